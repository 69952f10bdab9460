//! Numbering, chaining and signing records: the pure half of recording. Writing and publishing them is done by
//! whoever holds the recorder, in the order it prepared them.

use std::sync::Arc;

use crate::{
    codec::encode,
    counts::Counts,
    digest::Digest,
    ids::{BootId, PartId, TenantId},
    keys::PrivateKey,
    part::Parts,
    record::{DecisionId, Origin, Receipt, Record, RecordBody, RecordKind, RecordedReason, Void, What, Who},
    signed::{OpenError, Signed},
    subjects::{Subject, audit_part},
    time::Timestamp,
    wire::Answer,
};

/// Numbers, chains and signs the records of one run.
pub struct Recorder {
    tenant: TenantId,
    origin: Origin,
    boot: BootId,
    key: PrivateKey,
    next_seq: u64,
    prev: Digest,
    counts: Counts,
}

/// A record, ready to be journalled and then published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Its name.
    pub id: DecisionId,
    /// Its digest.
    pub digest: Digest,
    /// Digest of the record prepared before it.
    pub prev: Digest,
    /// Its class.
    pub kind: RecordKind,
    /// Where it is published.
    pub subject: String,
    /// The message id it is published under unless it is an ALLOW.
    pub message_id: String,
    /// The signed envelope.
    pub bytes: Vec<u8>,
    /// What it says, so that nobody has to decode it again.
    pub record: Arc<Record>,
}

/// A record the stream has acknowledged, as whoever wrote it has kept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its run.
    pub boot: BootId,
    /// Its position in the run.
    pub seq: u64,
    /// The part in which it stands, if that is not its own.
    pub part: Option<PartId>,
    /// The signed envelope.
    pub record: Vec<u8>,
}

impl Prepared {
    /// The part a subject belongs to on which it was published, if that is not the record's own.
    #[must_use]
    pub fn part_elsewhere(&self, subject: &str) -> Option<PartId> {
        let part = if subject == self.subject { None } else { audit_part(subject) };
        part.filter(|part| *part != self.record.part)
    }

    /// Where it stands instead, and under which message id, if its part takes nothing any more: in the one in use, as put
    /// back.
    #[must_use]
    pub fn elsewhere(&self, parts: &Parts) -> Option<(String, String)> {
        parts.is_sealed(&self.record.part).then(|| put_back(&self.record.tenant, &self.record, parts))
    }
}

/// Where a record is put back, and under which message id: in its part, or, once that is sealed, in the one in use.
#[must_use]
pub fn put_back(tenant: &TenantId, record: &Record, parts: &Parts) -> (String, String) {
    let subject = Subject::Restored {
        part: parts.for_record(&record.part),
        task: record.task().cloned(),
        origin: record.id.origin.name().to_owned(),
    };
    (subject.of(tenant), record.id.restored_id().to_string())
}

impl Recorder {
    /// Starts a run.
    #[must_use]
    pub fn new(tenant: TenantId, origin: Origin, boot: BootId, key: PrivateKey) -> Self {
        let (prev, counts) = (Digest::from_bytes([0; 32]), Counts::default());
        Self { tenant, origin, boot, key, next_seq: 0, prev, counts }
    }

    /// The run.
    #[must_use]
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Who records.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What this run's records came to.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The name the next record will have.
    #[must_use]
    pub fn next_id(&self) -> DecisionId {
        DecisionId { origin: self.origin.clone(), boot: self.boot.clone(), seq: self.next_seq }
    }

    /// Prepares the next record of the run, for this part of the audit stream.
    pub fn prepare(&mut self, part: PartId, body: RecordBody, at: Timestamp) -> Prepared {
        self.counts.count(&body);
        let record =
            Record { tenant: self.tenant.clone(), id: self.next_id(), prev: self.prev, at, part, body };
        self.next_seq += 1;
        let prepared = self.sign(record);
        self.prev = prepared.digest;
        prepared
    }

    /// Prepares the void of a record of this or an earlier run; it takes that record's position in the chain, and stands
    /// in the same part.
    #[must_use]
    pub fn void(
        &self,
        prepared: &Prepared,
        cause: RecordedReason,
        who: Who,
        what: What,
        at: Timestamp,
    ) -> Prepared {
        let void = Void { prepared: prepared.digest, cause, who, what };
        let record = Record {
            tenant: self.tenant.clone(),
            id: prepared.id.clone(),
            prev: prepared.prev,
            at,
            part: prepared.record.part.clone(),
            body: RecordBody::Void(Box::new(void)),
        };
        self.sign(record)
    }

    fn sign(&self, record: Record) -> Prepared {
        let signed = Signed::new(&record, &self.key);
        self.describe(record, &signed)
    }

    fn describe(&self, record: Record, signed: &Signed<Record>) -> Prepared {
        let subject = Subject::Audit {
            part: record.part.clone(),
            kind: record.kind(),
            task: record.task().cloned(),
            origin: self.origin.name().to_owned(),
        };
        Prepared {
            id: record.id.clone(),
            digest: signed.digest(),
            prev: record.prev,
            kind: record.kind(),
            subject: subject.of(&self.tenant),
            message_id: record.id.message_id().to_string(),
            bytes: encode(signed),
            record: Arc::new(record),
        }
    }

    /// A record of an earlier run as it was prepared then.
    ///
    /// # Errors
    /// [`OpenError`] if it was not signed by this recorder's key.
    pub fn reopen(&self, bytes: &[u8]) -> Result<(Prepared, Record), OpenError> {
        let signed: Signed<Record> = crate::codec::decode(bytes)?;
        let record = signed.open(|key| *key == self.key.public())?;
        Ok((self.describe(record.clone(), &signed), record))
    }

    /// Signs a receipt for a record of this run.
    #[must_use]
    pub fn receipt(&self, prepared: &Prepared, what: &What, answer: &Answer) -> Signed<Receipt> {
        let receipt = Receipt {
            tenant: self.tenant.clone(),
            id: prepared.id.clone(),
            record: prepared.digest,
            call: what.call,
            call_id: what.call_id,
            answer: answer.digest(),
        };
        Signed::new(&receipt, &self.key)
    }
}
