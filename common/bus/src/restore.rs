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
    ids::TenantId,
    part::Parts,
    record::{Origin, Record},
    signed::Signed,
    subjects::{Subject, filter, part_stream},
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
        boot: String,
        /// The position.
        seq: u64,
        /// What does not fit.
        why: String,
    },
    /// The stream does not take it.
    #[error("the audit stream does not take back record {seq} of run {boot}: {source}")]
    Store {
        /// The run.
        boot: String,
        /// The position.
        seq: u64,
        /// Why.
        source: StoreError,
    },
}

/// A record to be put back.
struct Lacking {
    boot: String,
    seq: u64,
    store: Store,
}

impl Bus {
    /// Puts back, in their order, those of these records that the stream does not hold byte for byte. Each is given as
    /// run, position and signed envelope. `say` is told now and then how far it is.
    ///
    /// # Errors
    /// [`PutBackError`].
    pub async fn put_back<E: std::error::Error + 'static>(
        &self,
        tenant: &TenantId,
        parts: &Parts,
        origin: &Origin,
        kept: impl Iterator<Item = Result<(String, u64, Vec<u8>), E>>,
        mut say: impl FnMut(PutBack),
    ) -> Result<PutBack, PutBackError<E>> {
        let there = self.digests_of(tenant, parts, origin).await?;
        let mut far = PutBack::default();
        let lacking = kept.filter_map(|kept| {
            let (boot, seq, record) = match kept {
                Ok(kept) => kept,
                Err(error) => return Some(Err(PutBackError::Journal(error))),
            };
            far.checked += 1;
            let is_there = there.binary_search(&short_digest(&record)).is_ok();
            far.restored += u64::from(!is_there);
            if far.checked.is_multiple_of(SAY_EVERY) {
                say(far);
            }
            if is_there || writ_common::red::off("B08") {
                return None;
            }
            lacking(tenant, parts, origin, boot, seq, record).transpose()
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

/// The record as it is put back; none if its part was put away, and it with it.
fn lacking<E: std::error::Error + 'static>(
    tenant: &TenantId,
    parts: &Parts,
    origin: &Origin,
    boot: String,
    seq: u64,
    payload: Vec<u8>,
) -> Result<Option<Lacking>, PutBackError<E>> {
    let record = decode::<Signed<Record>>(&payload)
        .map_err(|error| error.to_string())
        .and_then(|signed| signed.peek().map_err(|error| error.to_string()));
    let record = match record {
        Ok(record)
            if record.id.origin == *origin && record.id.boot.as_str() == boot && record.id.seq == seq =>
        {
            record
        }
        Ok(record) => {
            return Err(PutBackError::Foreign { boot, seq, why: format!("it is {}", record.id) });
        }
        Err(why) => return Err(PutBackError::Foreign { boot, seq, why }),
    };
    if parts.archived().contains_key(&record.part) {
        return Ok(None);
    }
    let subject = Subject::Restored {
        part: parts.for_record(&record.part),
        task: record.task().cloned(),
        origin: origin.name().to_owned(),
    };
    let store = Store {
        subject: subject.of(tenant),
        payload,
        message_id: Some(record.id.restored_id().to_string()),
        fence: Fence::None,
        ttl_secs: None,
    };
    Ok(Some(Lacking { boot, seq, store }))
}
