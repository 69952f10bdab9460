//! What a verifier has to say.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The evidence contradicts itself or lacks something.
    Fault,
    /// Nothing contradicts it, and less is shown than could be.
    Warning,
    /// For knowing.
    Note,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        /// What kind of finding it is. The texts are the same in every implementation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $name,)+
        }

        impl Code {
            /// The text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    /// A request, an answer or an act by which something was let pass is not here.
    ApprovalMissing = "approval.missing";
    /// One that nobody signed whose word it would be.
    ApprovalSignature = "approval.signature";
    /// One that is about something else, or is no yes.
    ApprovalBinding = "approval.binding";
    /// What counts once let more than one thing pass.
    ApprovalReused = "approval.reused";
    /// The manifest of a part that was put away is not here, or is another.
    ArchiveManifest = "archive.manifest";
    /// A file is not the one the export lists, or is not in its list.
    FileDigest = "file.digest";
    /// A control event that nobody signed who may.
    ControlSignature = "control.signature";
    /// A control event that does not follow from the one before it, or one that is missing.
    ControlOrder = "control.order";
    /// Something that is no record.
    RecordMalformed = "record.malformed";
    /// A record whose bytes are not those that were signed.
    RecordChanged = "record.changed";
    /// A record by a key that was never enrolled for the name it bears.
    RecordForged = "record.forged";
    /// A record under a subject that is not its own.
    RecordSubject = "record.subject";
    /// Records that were put away with their part and are not here.
    RecordArchived = "record.archived";
    /// Positions of a run without a record.
    RecordMissing = "record.missing";
    /// Two records at one position.
    RecordFork = "record.fork";
    /// A record that does not name the one before it.
    RecordOrder = "record.order";
    /// A checkpoint that is not signed by its recorder.
    LogSignature = "log.signature";
    /// Records that no cosigned checkpoint covers.
    LogUnwitnessed = "log.unwitnessed";
    /// A log with another history than its records have.
    LogFork = "log.fork";
    /// A log with more records than there are.
    LogRolledBack = "log.rolled_back";
    /// Tiles that do not lead to the root.
    LogTiles = "log.tiles";
    /// A run that never ended, although its recorder began another.
    LogAbandoned = "log.abandoned";
    /// Records behind the end of a run.
    LogAfterClose = "log.after_close";
    /// Something was allowed, and nothing says how it ended.
    IntentWithoutOutcome = "intent.without_outcome";
    /// Something was allowed and may still be under way.
    IntentOpen = "intent.open";
    /// A verdict by a policy that was not in force.
    PolicyNeverActive = "policy.never_active";
    /// Something that is no proof.
    ProofMalformed = "proof.malformed";
    /// A receipt nobody signed who may.
    ReceiptSignature = "receipt.signature";
    /// A receipt whose record is not there.
    ReceiptWithoutRecord = "receipt.without_record";
    /// The root's key was taken from the export itself.
    RootFromExport = "root.from_export";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// Where.
    #[serde(rename = "where")]
    pub place: String,
    /// What, in words.
    pub text: String,
}

impl Finding {
    /// A fault.
    pub fn fault(code: Code, place: impl fmt::Display, text: impl fmt::Display) -> Self {
        Self { severity: Severity::Fault, code, place: place.to_string(), text: text.to_string() }
    }

    /// A warning.
    pub fn warning(code: Code, place: impl fmt::Display, text: impl fmt::Display) -> Self {
        Self { severity: Severity::Warning, ..Self::fault(code, place, text) }
    }

    /// A note.
    pub fn note(code: Code, place: impl fmt::Display, text: impl fmt::Display) -> Self {
        Self { severity: Severity::Note, ..Self::fault(code, place, text) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Fault => "fault",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity} {} {}: {}", self.code, self.place, self.text)
    }
}

/// Everything a verifier has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many faults there are.
    pub faults: usize,
    /// How many warnings.
    pub warnings: usize,
    /// How many different records were read.
    pub records: u64,
    /// How many runs they are of.
    pub runs: u64,
    /// How many of the records a cosigned checkpoint covers (a broker's own: a signed one).
    pub witnessed: u64,
    /// The findings, worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// A report of nothing but these findings.
    #[must_use]
    pub fn of(findings: impl IntoIterator<Item = Finding>) -> Self {
        let mut report = Self::default();
        report.add(findings);
        report
    }

    /// Adds findings and keeps their order.
    pub fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
        self.findings.sort();
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        (self.faults, self.warnings) = (count(Severity::Fault), count(Severity::Warning));
    }
}
