//! Content inspectors: what looks at text and says what is in it.
//!
//! An inspector is asked about the texts of a call's arguments before policy is, and about those of a result before the
//! result is released. It says what it found and where, and never what to do about it:
//!
//! * **Findings are facts.** `finding(path, kind, detector, severity)` stands beside `arg(…)` when rules are asked. A
//!   rule denies, holds or lets through; an inspector that says "block" has only found something of kind `block`.
//! * **Nothing is lowered.** Labels an inspector adds, and tags that the configuration gives for kinds of findings, join
//!   the label of the data. There is no way to take one off: text an inspector rewrote is not used, and its verdict
//!   "pass" is the absence of findings and nothing more.
//! * **Silence denies.** Down, slow, too busy, or an answer that is not exactly an answer to what was asked: the call is
//!   refused or the result withheld, with a reason of its own, unless the configuration of that inspector says `allow`
//!   or `label`; and then it is a finding of kind `uninspected`.
//! * **Nothing found is repeated.** A finding has a kind, a place and a number. The words of an inspector about it are
//!   read and dropped, since they may quote what was found; records would spread it.
//!
//! This module is the pure half: what is sent ([`Question`]), what counts as an answer ([`Answer`]), how long texts are
//! cut ([`batches`]), the detectors that need nobody else ([`detect`]), what two products mean ([`presidio`],
//! [`nemo`]), how long an answer is remembered ([`Remembered`]), when a silent inspector is not asked at all
//! ([`Circuit`]), and what it all comes to ([`Inspection`]). The node has the sockets.

mod answer;
mod circuit;
pub mod detect;
pub mod nemo;
pub mod presidio;
mod question;
mod remember;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

pub use answer::{ANSWER_BYTES_MAX, Answer, InvalidAnswer, Judgement};
pub use circuit::Circuit;
pub use question::{Question, Subject};
pub use remember::Remembered;
pub use text::{BATCHES_MAX, Batch, Part, Piece, batches, parts_of};

use crate::{
    datalog::{Predicate, Term},
    ids::{DetectorId, FindingKind, InspectorId, Resource, ResourceKind},
    label::{Confidentiality, Integrity, Label, Tag},
    reason::{Reason, ReasonCode},
    record::RecordedFinding,
    time::Millis,
};

/// Most findings that become facts of one decision; beyond, their places are not told apart any more.
pub const FINDINGS_MAX: usize = 256;
/// Most findings in a record.
const RECORDED_MAX: usize = 32;
/// What marks data that an inspector should have seen and did not.
pub const UNINSPECTED: &str = "uninspected";

/// Which way a text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To another agent, or back from one.
    Message,
    /// To a tool.
    ToolArguments,
    /// Back from a tool.
    ToolResult,
}

impl Direction {
    /// The way of what is asked of a resource.
    #[must_use]
    pub fn towards(resource: &Resource) -> Self {
        if resource.kind() == ResourceKind::Agent { Self::Message } else { Self::ToolArguments }
    }

    /// The way of what a resource answers.
    #[must_use]
    pub fn from(resource: &Resource) -> Self {
        if resource.kind() == ResourceKind::Agent { Self::Message } else { Self::ToolResult }
    }

    /// The word on the wire and in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::ToolArguments => "tool_args",
            Self::ToolResult => "tool_result",
        }
    }
}

impl std::str::FromStr for Direction {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Message, Self::ToolArguments, Self::ToolResult];
        all.into_iter()
            .find(|one| one.as_str() == text)
            .ok_or("must be `tool_args`, `tool_result` or `message`")
    }
}

/// What becomes of data an inspector could not be asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The call is refused, the result withheld.
    #[default]
    Deny,
    /// It goes on, and rules see a finding of kind `uninspected`.
    Allow,
    /// As `Allow`, and the data has the tag `uninspected`.
    Label,
}

impl std::str::FromStr for OnError {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "deny" => Ok(Self::Deny),
            "allow" => Ok(Self::Allow),
            "label" => Ok(Self::Label),
            _ => Err("must be `deny`, `allow` or `label`"),
        }
    }
}

/// How bad a finding is, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Severity(u8);

impl Severity {
    /// The worst.
    pub const MAX: Self = Self(100);

    /// From hundredths; more than 100 is 100.
    #[must_use]
    pub const fn new(hundredths: u8) -> Self {
        Self(if hundredths > 100 { 100 } else { hundredths })
    }

    /// In hundredths.
    #[must_use]
    pub const fn hundredths(self) -> u8 {
        self.0
    }
}

/// Something an inspector found: where, what sort of thing, by which detector, how bad. Never the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// JSON Pointer of the text within arguments or result; empty for all of it.
    pub path: String,
    /// What sort of thing.
    pub kind: FindingKind,
    /// Who found it.
    pub inspector: InspectorId,
    /// By which of its detectors.
    pub detector: DetectorId,
    /// How bad.
    pub severity: Severity,
    /// Where in the text, in bytes, if that is known.
    pub span: Option<(usize, usize)>,
}

impl Finding {
    /// The fact that rules see.
    #[must_use]
    pub fn fact(&self) -> Predicate {
        Predicate::new(
            "finding",
            [
                Term::str(&self.path),
                Term::str(self.kind.as_str()),
                Term::str(format!("{}.{}", self.inspector, self.detector)),
                Term::Integer(i64::from(self.severity.hundredths())),
            ],
        )
    }

    /// About all of what was inspected, by the inspector itself.
    fn overall(inspector: &InspectorId, kind: Overall) -> Self {
        Self {
            path: String::new(),
            kind: FindingKind::fixed(kind.as_str()),
            inspector: inspector.clone(),
            detector: DetectorId::fixed("verdict"),
            severity: Severity::MAX,
            span: None,
        }
    }
}

/// Kinds of findings that stand for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overall {
    Block,
    Flag,
    Modified,
    Uninspected,
}

impl Overall {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Flag => "flag",
            Self::Modified => "modified",
            Self::Uninspected => UNINSPECTED,
        }
    }
}

/// One inspector, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspector {
    /// Its name in configuration and facts.
    pub name: InspectorId,
    /// Which ways of texts it is asked about.
    pub directions: BTreeSet<Direction>,
    /// On calls on which tools and agents; all if none is named.
    pub resources: BTreeSet<Resource>,
    /// How long all of it may take.
    pub deadline: Millis,
    /// What becomes of data it could not be asked about.
    pub on_error: OnError,
    /// Tags that data gets if something of a kind is found in it.
    pub add_tags: BTreeMap<FindingKind, Tag>,
}

impl Inspector {
    /// Whether it is to be asked.
    #[must_use]
    pub fn is_asked(&self, direction: Direction, resource: &Resource) -> bool {
        self.directions.contains(&direction)
            && (self.resources.is_empty() || self.resources.contains(resource))
    }
}

/// Why an inspector's word is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It answered something that is no answer to what was asked.
    Invalid(String),
    /// There is more text than may be sent to it.
    TooLarge(String),
    /// It is not there, too slow, too busy, or says itself that it failed.
    Unavailable(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Invalid(why) | Self::TooLarge(why) | Self::Unavailable(why)) = self;
        f.write_str(why)
    }
}

impl Failure {
    fn reason(&self, inspector: &InspectorId) -> Reason {
        let (code, why) = match self {
            Self::Invalid(why) => (ReasonCode::InspectInvalid, why),
            Self::TooLarge(why) => (ReasonCode::InspectTooLarge, why),
            Self::Unavailable(why) => (ReasonCode::InspectUnavailable, why),
        };
        Reason::new(code)
            .told(format_args!("the inspector `{inspector}` did not look at it"))
            .noted(format_args!("inspector `{inspector}`: {why}"))
    }
}

impl From<InvalidAnswer> for Failure {
    fn from(error: InvalidAnswer) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// What all inspectors that were asked say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    findings: BTreeSet<Finding>,
    tags: BTreeSet<Tag>,
    failures: Vec<Reason>,
}

impl Inspection {
    /// Adds what one inspector says.
    pub fn add(&mut self, inspector: &Inspector, said: Result<Vec<Answer>, Failure>) {
        match said {
            Ok(answers) => {
                for answer in answers {
                    let kinds = answer.findings.iter().map(|finding| &finding.kind);
                    self.tags.extend(kinds.filter_map(|kind| inspector.add_tags.get(kind)).cloned());
                    self.tags.extend(answer.add_tags);
                    self.findings.extend(answer.findings);
                }
            }
            Err(_) if crate::red::off("M04-silence") => {}
            Err(failure) => {
                if inspector.on_error == OnError::Deny {
                    self.failures.push(failure.reason(&inspector.name));
                }
                let finding = Finding::overall(&inspector.name, Overall::Uninspected);
                self.tags.extend(inspector.add_tags.get(&finding.kind).cloned());
                if inspector.on_error == OnError::Label {
                    self.tags.extend(Tag::parse(UNINSPECTED));
                }
                self.findings.insert(finding);
            }
        }
    }

    /// Why the call must be refused or the result withheld, whatever the policy says.
    #[must_use]
    pub fn failures(&self) -> &[Reason] {
        &self.failures
    }

    /// What was found, in order.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter()
    }

    /// What records keep of it: every kind by every detector once, the worst first, so many as have room.
    #[must_use]
    pub fn recorded(&self) -> Vec<RecordedFinding> {
        let mut all: BTreeMap<(&FindingKind, String), (u8, u64)> = BTreeMap::new();
        for finding in &self.findings {
            let detector = format!("{}.{}", finding.inspector, finding.detector);
            let (worst, places) = all.entry((&finding.kind, detector)).or_default();
            *worst = (*worst).max(finding.severity.hundredths());
            *places += 1;
        }
        let mut recorded: Vec<RecordedFinding> = all
            .into_iter()
            .map(|((kind, detector), (severity, places))| RecordedFinding {
                kind: kind.clone(),
                detector,
                severity,
                places,
            })
            .collect();
        recorded.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        recorded.truncate(RECORDED_MAX);
        recorded
    }

    /// The least label the data has after this.
    #[must_use]
    pub fn label(&self) -> Label {
        let tags = if crate::red::off("M04-tags") { BTreeSet::new() } else { self.tags.clone() };
        Label { confidentiality: Confidentiality::Tags(tags), integrity: Integrity::Trusted }
    }

    /// Everything rules see of it: that it took place, and what was found.
    #[must_use]
    pub fn evidence(&self, what: &str) -> Vec<Predicate> {
        let mut facts = self.facts();
        facts.push(Predicate::new("inspected", [Term::str(what)]));
        facts
    }

    /// The facts that rules see. If there are too many, each kind is told once for all of it, at its worst.
    #[must_use]
    pub fn facts(&self) -> Vec<Predicate> {
        if crate::red::off("M04-findings") {
            return Vec::new();
        }
        let distinct: BTreeSet<Finding> =
            self.findings.iter().map(|finding| Finding { span: None, ..finding.clone() }).collect();
        if distinct.len() <= FINDINGS_MAX {
            return distinct.iter().map(Finding::fact).collect();
        }
        let mut worst: BTreeMap<(FindingKind, InspectorId), Finding> = BTreeMap::new();
        for finding in distinct {
            let key = (finding.kind.clone(), finding.inspector.clone());
            let known = worst.entry(key).or_insert_with(|| finding.clone());
            known.severity = known.severity.max(finding.severity);
            known.path = String::new();
        }
        worst.values().map(Finding::fact).collect()
    }
}

/// A place in a text, in bytes.
fn span(range: &Range<usize>) -> (usize, usize) {
    (range.start, range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspector(on_error: OnError) -> Inspector {
        Inspector {
            name: InspectorId::parse("dlp").unwrap(),
            directions: [Direction::ToolArguments].into(),
            resources: [Resource::parse("tool.mail").unwrap()].into(),
            deadline: Millis(1_000),
            on_error,
            add_tags: [
                (FindingKind::parse("card").unwrap(), Tag::parse("pci").unwrap()),
                (FindingKind::parse(UNINSPECTED).unwrap(), Tag::parse("unseen").unwrap()),
            ]
            .into(),
        }
    }

    fn card(path: &str, severity: u8) -> Finding {
        Finding {
            path: path.to_owned(),
            kind: FindingKind::parse("card").unwrap(),
            inspector: InspectorId::parse("dlp").unwrap(),
            detector: DetectorId::parse("luhn").unwrap(),
            severity: Severity::new(severity),
            span: Some((3, 19)),
        }
    }

    fn answer(findings: Vec<Finding>) -> Answer {
        Answer { findings, add_tags: [Tag::parse("seen").unwrap()].into(), version: String::new() }
    }

    #[test]
    fn findings_become_facts_and_tags_and_say_nothing_of_the_text() {
        let mut inspection = Inspection::default();
        inspection
            .add(&inspector(OnError::Deny), Ok(vec![answer(vec![card("/body", 90), card("/to/0", 90)])]));
        let facts: Vec<String> = inspection.facts().iter().map(ToString::to_string).collect();
        assert_eq!(
            facts,
            [r#"finding("/body", "card", "dlp.luhn", 90)"#, r#"finding("/to/0", "card", "dlp.luhn", 90)"#]
        );
        assert_eq!(inspection.label().to_string(), "{pci, seen} trusted");
        let recorded = inspection.recorded();
        assert_eq!((recorded.len(), recorded[0].detector.as_str(), recorded[0].places), (1, "dlp.luhn", 2));
        assert_eq!(inspection.failures(), []);
    }

    #[test]
    fn m04_silence_denies_or_is_told() {
        for (on_error, failures, label) in [
            (OnError::Deny, vec![ReasonCode::InspectUnavailable], "{unseen} trusted"),
            (OnError::Allow, vec![], "{unseen} trusted"),
            (OnError::Label, vec![], "{uninspected, unseen} trusted"),
        ] {
            let mut inspection = Inspection::default();
            inspection.add(&inspector(on_error), Err(Failure::Unavailable("no answer".into())));
            let codes: Vec<ReasonCode> = inspection.failures().iter().map(Reason::code).collect();
            assert_eq!((codes, inspection.label().to_string().as_str()), (failures, label));
            let facts: Vec<String> = inspection.facts().iter().map(ToString::to_string).collect();
            assert_eq!(facts, [r#"finding("", "uninspected", "dlp.verdict", 100)"#]);
        }
    }

    #[test]
    fn what_is_asked_about_is_what_the_configuration_names() {
        let one = inspector(OnError::Deny);
        let (mail, crm) = (Resource::parse("tool.mail").unwrap(), Resource::parse("tool.crm").unwrap());
        assert!(one.is_asked(Direction::ToolArguments, &mail));
        assert!(!one.is_asked(Direction::ToolArguments, &crm) && !one.is_asked(Direction::ToolResult, &mail));
        let every = Inspector { resources: BTreeSet::new(), ..one };
        assert!(every.is_asked(Direction::ToolArguments, &crm));
        let agent = Resource::parse("agent.mailer").unwrap();
        assert_eq!(
            (Direction::towards(&agent), Direction::from(&crm)),
            (Direction::Message, Direction::ToolResult)
        );
    }

    #[test]
    fn a_flood_of_findings_keeps_the_worst_of_each_kind() {
        let mut inspection = Inspection::default();
        let many =
            (0..1_000).map(|index| card(&format!("/rows/{index}"), u8::from(index == 500) * 90)).collect();
        inspection.add(&inspector(OnError::Deny), Ok(vec![answer(many)]));
        let facts: Vec<String> = inspection.facts().iter().map(ToString::to_string).collect();
        assert_eq!(facts, [r#"finding("", "card", "dlp.luhn", 90)"#]);
    }
}
