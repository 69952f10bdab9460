//! Before a broker serves: what the stream has and the index does not, what earlier runs left open, and what the stream has
//! lost.

use std::collections::BTreeMap;

use writ_bus::{Bus, BusError};
use writ_common::{
    codec::decode,
    ids::{BootId, PartId, TaskId, TenantId},
    record::{Origin, Record, RecordKind},
    signed::Signed,
    subjects::{filter, part_stream},
};
use writ_journal::{Entry, JournalDir, Unpublished, Unsettled};

use crate::{
    core::TaskEntry,
    serve::{BrokerError, ServeSetup},
};

/// What the stream says of tasks that the index does not have yet.
pub(crate) struct Missed {
    /// Each task by its last issue.
    pub(crate) tasks: BTreeMap<TaskId, TaskEntry>,
    /// Sequence of the last record that was looked at.
    pub(crate) last_sequence: u64,
}

/// Tasks in records of ours that the index does not have yet, those put back included.
pub(crate) async fn read_missed(setup: &ServeSetup, part: &PartId, after: u64) -> Result<Missed, BusError> {
    let stream = part_stream(&setup.tenant, part);
    let allowed = format!("writ.v1.{}.audit.{part}.allow.*.{}", setup.tenant, setup.broker);
    let restored = filter::restored_by(&setup.tenant, part, setup.broker.as_str());
    let (own, origin) = (setup.record_key.public(), Origin::Broker(setup.broker.clone()));
    // An earlier record key of this broker is one the control stream knows.
    let control = setup.bus.control_state(&setup.tenant, setup.root).await?;
    let mut missed = Missed { tasks: BTreeMap::new(), last_sequence: after };
    for subject in [allowed, restored] {
        let tail = setup.bus.tail(&stream, &subject, after + 1).await?;
        tail.drain(|message| {
            missed.last_sequence = missed.last_sequence.max(message.sequence);
            let record = decode::<Signed<Record>>(&message.payload).ok().and_then(|signed| {
                signed.open(|key| *key == own || control.is_record_key(&origin, key)).ok()
            });
            let Some(record) = record else {
                return tracing::warn!("record {} claims to be ours and is not", message.sequence);
            };
            let Some(task) = TaskEntry::of_record(&record) else { return };
            let is_older = |known: &TaskEntry| known.serial > task.serial;
            if !missed.tasks.get(&task.task).is_some_and(is_older) {
                missed.tasks.insert(task.task.clone(), task);
            }
        })
        .await?;
    }
    Ok(missed)
}

/// What earlier runs prepared and the stream does not have.
pub(crate) async fn open_records(
    dir: &mut JournalDir,
    bus: &Bus,
    tenant: &TenantId,
    part: &PartId,
) -> Result<Vec<(BootId, Unsettled, Vec<Vec<u8>>)>, BrokerError> {
    let stream = part_stream(tenant, part);
    let mut open = Vec::new();
    for run in dir.runs() {
        let mut records = Vec::new();
        let (mut unsettled, lost) = dir.unsettled(&run)?;
        if let Some(lost) = lost {
            tracing::error!("{lost}");
        }
        for Unpublished { seq, kind, subject, record, .. } in std::mem::take(&mut unsettled.unpublished) {
            let found =
                if kind == RecordKind::Allow { bus.find(&stream, &subject, &record).await? } else { None };
            match (found, unsettled.leaves.get_mut(&seq)) {
                (Some(stream), Some((_, is_committed))) => {
                    *is_committed = true;
                    dir.resolve(&run, &[Entry::Committed { seq, stream }])?;
                }
                _ => records.push(record),
            }
        }
        open.push((run, unsettled, records));
    }
    Ok(open)
}

/// Puts back into the audit stream what it lost of this broker's records.
pub(crate) async fn put_back(setup: &ServeSetup, part: &PartId, dir: &JournalDir) -> Result<(), BrokerError> {
    let origin = Origin::Broker(setup.broker.clone());
    let kept = dir.kept().map(|kept| kept.map(|kept| (kept.boot.to_string(), kept.seq, kept.record)));
    let say = |far| tracing::info!("completing the audit stream: {far}");
    let done = setup.bus.put_back(&setup.tenant, part, &origin, kept, say).await?;
    tracing::warn!("the audit stream is complete: {done}");
    Ok(())
}
