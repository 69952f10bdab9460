//! Putting back what a stream has lost.
//!
//! A stream that was restored from a copy, or made anew, lacks records it had acknowledged. Whoever wrote them still has
//! them, byte for byte, and puts them back on a subject of their own: a restored ALLOW is evidence that something was
//! let through, never an intent to do it.

use std::{collections::VecDeque, fmt, time::Duration};

use async_nats::jetstream::context::PublishAckFuture;
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::{BootId, TenantId},
    part::Parts,
    record::{Origin, Record},
    recorder::{Kept, put_back},
    signed::Signed,
    subjects::{filter, part_stream},
};

use crate::{Bus, BusError, Fence, Store, StoreError};

/// How long an acknowledgement is waited for.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a publish of unknown fate is repeated; its message id makes that harmless.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often that is tried.
const ATTEMPTS_MAX: u32 = 20;
/// Most publishes that wait for their acknowledgement.
const AT_ONCE: usize = 64;
/// How many records are looked at between two words on how far it is.
const SAY_EVERY: u64 = 10_000;

/// How far putting back has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Records the stream should have.
    pub checked: u64,
    /// Those it lacked.
    pub restored: u64,
}

impl fmt::Display for PutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of the journal looked for, {} of them put back", self.checked, self.restored)
    }
}

/// Why not everything is put back. What is stays; another attempt goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PutBackError<E: std::error::Error + 'static> {
    /// The stream cannot be read.
    #[error("the audit stream cannot be read: {0}")]
    Bus(#[from] BusError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(E),
    /// It holds something that is no record of ours.
    #[error("record {seq} in the journal of run {boot} is none of this process: {why}")]
    Foreign {
        /// The run.
        boot: BootId,
        /// The position.
        seq: u64,
        /// What does not fit.
        why: String,
    },
    /// The stream does not take it.
    #[error("the audit stream does not take back record {seq} of run {boot}: {source}")]
    Store {
        /// The run.
        boot: BootId,
        /// The position.
        seq: u64,
        /// Why.
        source: StoreError,
    },
}

/// A record to be put back.
struct Lacking {
    boot: BootId,
    seq: u64,
    store: Store,
}

impl Bus {
    /// Puts back, in their order, those of these records that the stream does not hold byte for byte. `say` is told now
    /// and then how far it is.
    ///
    /// # Errors
    /// [`PutBackError`].
    pub async fn put_back<E: std::error::Error + 'static>(
        &self,
        tenant: &TenantId,
        parts: &Parts,
        origin: &Origin,
        kept: impl Iterator<Item = Result<Kept, E>>,
        mut say: impl FnMut(PutBack),
    ) -> Result<PutBack, PutBackError<E>> {
        let there = self.digests_of(tenant, parts, origin).await?;
        let mut far = PutBack::default();
        let lacking = kept.filter_map(|kept| {
            let kept = match kept {
                Ok(kept) => kept,
                Err(error) => return Some(Err(PutBackError::Journal(error))),
            };
            far.checked += 1;
            let is_there = there.binary_search(&short_digest(&kept.record)).is_ok();
            far.restored += u64::from(!is_there);
            if far.checked.is_multiple_of(SAY_EVERY) {
                say(far);
            }
            if is_there || writ_common::red::off("B08") {
                return None;
            }
            lacking(tenant, parts, origin, kept).transpose()
        });
        // The journal is read no faster than the stream acknowledges.
        let mut sent = VecDeque::new();
        for lacking in lacking {
            sent.push_back(self.send(lacking?).await);
            if sent.len() >= AT_ONCE
                && let Some(first) = sent.pop_front()
            {
                self.acknowledged(first).await?;
            }
        }
        for rest in sent {
            self.acknowledged(rest).await?;
        }
        Ok(far)
    }

    /// Sends a record; whoever sends the next one afterwards has it behind this one.
    async fn send(&self, lacking: Lacking) -> (Lacking, Option<PublishAckFuture>) {
        let Store { subject, payload, message_id, .. } = &lacking.store;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", message_id.as_deref().unwrap_or_default());
        let sending = self.jetstream().publish_with_headers(subject.clone(), headers, payload.clone().into());
        let acknowledgement = sending.await.ok();
        (lacking, acknowledgement)
    }

    /// Waits until the stream has a record. What it has not taken is sent again under the same id; then alone it comes
    /// behind some that were sent after it.
    async fn acknowledged<E: std::error::Error + 'static>(
        &self,
        (lacking, acknowledgement): (Lacking, Option<PublishAckFuture>),
    ) -> Result<(), PutBackError<E>> {
        if let Some(acknowledgement) = acknowledgement
            && acknowledgement.await.is_ok()
        {
            return Ok(());
        }
        self.give_back(lacking).await
    }

    async fn give_back<E: std::error::Error + 'static>(
        &self,
        lacking: Lacking,
    ) -> Result<(), PutBackError<E>> {
        let Lacking { boot, seq, store } = lacking;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.store(&store, ACK_TIMEOUT).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Busy | StoreError::Unknown(_)) if attempts < ATTEMPTS_MAX => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                Err(source) => return Err(PutBackError::Store { boot, seq, source }),
            }
        }
    }

    /// Digests of everything this origin has in the streams there are, sorted: 16 bytes for each record.
    async fn digests_of(
        &self,
        tenant: &TenantId,
        parts: &Parts,
        origin: &Origin,
    ) -> Result<Vec<u128>, BusError> {
        let mut digests = Vec::new();
        for part in parts.live() {
            let subject = filter::records_of(tenant, part, origin.name());
            let tail = self.tail(&part_stream(tenant, part), &subject, 1).await?;
            tail.drain(|message| digests.push(short_digest(&message.payload))).await?;
        }
        digests.sort_unstable();
        Ok(digests)
    }
}

/// Half of a SHA-256: whoever can choose records cannot make one pass for another.
fn short_digest(bytes: &[u8]) -> u128 {
    Digest::plain(bytes).as_bytes().first_chunk().copied().map_or(0, u128::from_be_bytes)
}

/// The record as it is put back; none if the part it stands in was put away, and it with it.
fn lacking<E: std::error::Error + 'static>(
    tenant: &TenantId,
    parts: &Parts,
    origin: &Origin,
    kept: Kept,
) -> Result<Option<Lacking>, PutBackError<E>> {
    let Kept { boot, seq, part, record: payload } = kept;
    let record = decode::<Signed<Record>>(&payload)
        .map_err(|error| error.to_string())
        .and_then(|signed| signed.peek().map_err(|error| error.to_string()));
    let record = match record {
        Ok(record) if record.id.origin == *origin && record.id.boot == boot && record.id.seq == seq => record,
        Ok(record) => {
            return Err(PutBackError::Foreign { boot, seq, why: format!("it is {}", record.id) });
        }
        Err(why) => return Err(PutBackError::Foreign { boot, seq, why }),
    };
    if parts.archived().contains_key(part.as_ref().unwrap_or(&record.part)) {
        return Ok(None);
    }
    let (subject, message_id) = put_back(tenant, &record, parts);
    let store = Store { subject, payload, message_id: Some(message_id), fence: Fence::None, ttl_secs: None };
    Ok(Some(Lacking { boot, seq, store }))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use writ_common::{
        digest::Digest,
        ids::{NodeId, PartId},
        keys::PrivateKey,
        part::{Archived, PartStage},
        record::{DecisionId, Outcome, OutcomeStatus, RecordBody},
        recorder::Recorder,
        time::Timestamp,
    };

    use super::*;

    #[test]
    fn what_stands_in_another_part_goes_with_that_one() {
        let tenant = TenantId::parse("acme").unwrap();
        let origin = Origin::Node(NodeId::parse("node-1").unwrap());
        let boot = BootId::parse("boot-1").unwrap();
        let (p0, p1) = (PartId::first(), PartId::numbered(1));
        let mut recorder =
            Recorder::new(tenant.clone(), origin.clone(), boot.clone(), PrivateKey::from_seed(&[7; 32]));
        let intent = DecisionId { origin: origin.clone(), boot: boot.clone(), seq: 0 };
        let outcome = Outcome::of(intent, Digest::plain(b"call"), None, OutcomeStatus::Done);
        let body = RecordBody::Outcome(Box::new(outcome));
        let record = recorder.prepare(p0.clone(), body, Timestamp::from_secs(7)).bytes;
        let mut parts = Parts::default();
        let put_back_to = |parts: &Parts, part: Option<&PartId>| {
            let (boot, part, record) = (boot.clone(), part.cloned(), record.clone());
            lacking::<Infallible>(&tenant, parts, &origin, Kept { boot, seq: 0, part, record })
                .unwrap()
                .map(|lacking| lacking.store.subject)
        };
        let on = |part: &str| Some(format!("writ.v1.acme.audit.{part}.restored._.node-1"));
        assert_eq!(put_back_to(&parts, None), on("p0"));
        let archived = PartStage::Archived(Archived { manifest: Digest::plain(b"p0"), last: 9 });
        for (part, stage) in [
            (p1.clone(), PartStage::Current),
            (p1.clone(), PartStage::Shared),
            (p0.clone(), PartStage::Sealed),
            (p0, archived.clone()),
        ] {
            parts.apply(part, stage, Timestamp::from_secs(8));
        }
        assert_eq!(put_back_to(&parts, None), None, "it is in the archive of its part");
        assert_eq!(put_back_to(&parts, Some(&p1)), on("p1"), "it came after its part was sealed");
        let p2 = PartId::numbered(2);
        for (part, stage) in [
            (p2.clone(), PartStage::Current),
            (p2, PartStage::Shared),
            (p1.clone(), PartStage::Sealed),
            (p1.clone(), archived),
        ] {
            parts.apply(part, stage, Timestamp::from_secs(9));
        }
        assert_eq!(put_back_to(&parts, Some(&p1)), None, "it went with the part it stands in");
    }
}
