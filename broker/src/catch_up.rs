//! Before a broker serves: what the stream has and the index does not, what earlier runs left open, and what the stream has
//! lost.

use std::collections::BTreeMap;

use writ_bus::{Bus, BusError};
use writ_common::{
    codec::decode,
    control::ControlState,
    ids::{BootId, PartId, TaskId, TenantId},
    part::Parts,
    record::{Origin, Record, RecordKind},
    signed::Signed,
    subjects::{audit_part, filter, part_stream},
};
use writ_journal::{Entry, JournalDir, Unpublished, Unsettled};

use crate::{
    core::TaskEntry,
    serve::{BrokerError, ServeSetup},
};

/// Takes in the tasks in records of ours behind a sequence of a part, those put back included, each by its last issue;
/// returns the sequence of the last record that was looked at.
pub(crate) async fn read_missed(
    setup: &ServeSetup,
    control: &ControlState,
    part: &PartId,
    after: u64,
    tasks: &mut BTreeMap<TaskId, TaskEntry>,
) -> Result<u64, BusError> {
    let stream = part_stream(&setup.tenant, part);
    let allowed = format!("writ.v1.{}.audit.{part}.allow.*.{}", setup.tenant, setup.broker);
    let restored = filter::restored_by(&setup.tenant, part, setup.broker.as_str());
    // An earlier record key of this broker is one the control stream knows.
    let (own, origin) = (setup.record_key.public(), Origin::Broker(setup.broker.clone()));
    let mut last = after;
    for subject in [allowed, restored] {
        let tail = setup.bus.tail(&stream, &subject, after + 1).await?;
        tail.drain(|message| {
            last = last.max(message.sequence);
            let record = decode::<Signed<Record>>(&message.payload).ok().and_then(|signed| {
                signed.open(|key| *key == own || control.is_record_key(&origin, key)).ok()
            });
            let Some(record) = record else {
                return tracing::warn!("record {} of {part} claims to be ours and is not", message.sequence);
            };
            let Some(task) = TaskEntry::of_record(&record) else { return };
            let is_older = |known: &TaskEntry| known.serial > task.serial;
            if !tasks.get(&task.task).is_some_and(is_older) {
                tasks.insert(task.task.clone(), task);
            }
        })
        .await?;
    }
    Ok(last)
}

/// What earlier runs prepared and the stream does not have.
pub(crate) async fn open_records(
    dir: &mut JournalDir,
    bus: &Bus,
    tenant: &TenantId,
    parts: &Parts,
) -> Result<Vec<(BootId, Unsettled, Vec<Vec<u8>>)>, BrokerError> {
    let mut open = Vec::new();
    for run in dir.runs() {
        let mut records = Vec::new();
        let (mut unsettled, lost) = dir.unsettled(&run)?;
        if let Some(lost) = lost {
            tracing::error!("{lost}");
        }
        for Unpublished { seq, kind, subject, record, .. } in std::mem::take(&mut unsettled.unpublished) {
            let part = audit_part(&subject).filter(|part| parts.live().any(|live| live == part));
            let found = match part {
                Some(part) if kind == RecordKind::Allow => {
                    bus.find(&part_stream(tenant, &part), &subject, &record).await?
                }
                _ => None,
            };
            match (found, unsettled.leaves.get_mut(&seq)) {
                (Some(stream), Some((_, is_committed))) => {
                    *is_committed = true;
                    dir.resolve(&run, &[Entry::Committed { seq, stream, part: None }])?;
                }
                _ => records.push(record),
            }
        }
        open.push((run, unsettled, records));
    }
    Ok(open)
}

/// Puts back into the audit stream what it lost of this broker's records.
pub(crate) async fn put_back(setup: &ServeSetup, parts: &Parts, dir: &JournalDir) -> Result<(), BrokerError> {
    let origin = Origin::Broker(setup.broker.clone());
    let say = |far| tracing::info!("completing the audit stream: {far}");
    let done = setup.bus.put_back(&setup.tenant, parts, &origin, dir.kept(), say).await?;
    tracing::warn!("the audit stream is complete: {done}");
    Ok(())
}
