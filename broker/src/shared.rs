//! Carrying the labels of what outlives a task over to another part of the audit stream, so that no raise is lost.
//!
//! The old label is ended by compare-and-set, with what it held and where it goes: nothing is decided on it any more, a
//! node that does not know yet is fenced off, and one that has something to raise does so in the other part. Then what it
//! held is joined into the label there. Stopped anywhere, it can be begun again.

use std::{collections::BTreeSet, time::Duration};

use writ_bus::{Bus, BusError, Store, StoreError};
use writ_common::{
    codec::{decode, encode},
    control::ControlState,
    ids::{DomainId, FlowDomain, PartId, TenantId},
    keys::PrivateKey,
    label::{DomainLabel, Label, Origins},
    signed::Signed,
    subjects::{Subject, filter, part_stream},
};

/// How long an acknowledgement of the stream is waited for.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a label is tried that somebody raises meanwhile.
const ATTEMPTS_MAX: u32 = 50;

/// Why a label could not be carried over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("{0}: {1}")]
    Store(FlowDomain, StoreError),
    #[error("{0}: it was raised each of {ATTEMPTS_MAX} times it was read")]
    Busy(FlowDomain),
}

/// Carries every label over that outlives a task.
pub(crate) async fn move_shared(
    bus: &Bus,
    control: &ControlState,
    key: &PrivateKey,
    from: &PartId,
    to: &PartId,
) -> Result<(), MoveError> {
    let tenant = control.tenant();
    let mut domains = BTreeSet::new();
    let tail = bus.tail(&part_stream(tenant, from), &filter::labels(tenant, from), 1).await?;
    tail.drain(|message| {
        if let Ok((_, Subject::Label(FlowDomain { domain, .. }))) = Subject::parse(&message.subject)
            && domain.is_agents()
        {
            domains.insert(domain);
        }
    })
    .await?;
    for domain in &domains {
        move_one(bus, control, key, domain, from, to).await?;
    }
    Ok(())
}

/// A label as it stands on the bus, with its sequence; one that nobody signed who may counts as top.
async fn read(
    bus: &Bus,
    control: &ControlState,
    domain: &FlowDomain,
) -> Result<Option<(u64, DomainLabel)>, BusError> {
    let tenant = control.tenant();
    let subject = Subject::Label(domain.clone()).of(tenant);
    let found = bus.last_on(&part_stream(tenant, &domain.part), &subject).await?;
    Ok(found.map(|message| {
        let label = decode::<Signed<DomainLabel>>(&message.payload)
            .ok()
            .and_then(|signed| signed.open(|key| control.is_label_key(key)).ok())
            .filter(|label| label.tenant == *tenant && label.domain == *domain);
        (message.sequence, label.unwrap_or_else(|| top(tenant, domain)))
    }))
}

fn top(tenant: &TenantId, domain: &FlowDomain) -> DomainLabel {
    DomainLabel {
        tenant: tenant.clone(),
        domain: domain.clone(),
        label: Label::top(),
        origins: Origins::new(),
        moved_to: None,
    }
}

async fn move_one(
    bus: &Bus,
    control: &ControlState,
    key: &PrivateKey,
    domain: &DomainId,
    from: &PartId,
    to: &PartId,
) -> Result<(), MoveError> {
    let at = |part: &PartId| FlowDomain { part: part.clone(), domain: domain.clone() };
    let (old, new) = (at(from), at(to));
    // First the old one is ended; what it held stands in its end.
    let mut held = None;
    for _ in 0..ATTEMPTS_MAX {
        let Some((sequence, label)) = read(bus, control, &old).await? else { return Ok(()) };
        let is_ended = label.moved_to.is_some();
        let ended = DomainLabel { moved_to: Some(to.clone()), ..label };
        if is_ended || put(bus, control, key, &ended, sequence).await? {
            held = Some(ended);
            break;
        }
    }
    let held = held.ok_or_else(|| MoveError::Busy(old.clone()))?;
    let carried = DomainLabel { domain: new.clone(), moved_to: None, ..held };
    for _ in 0..ATTEMPTS_MAX {
        let (sequence, next) = match read(bus, control, &new).await? {
            None => (0, carried.clone()),
            Some((_, known)) if carried.label.flows_to(&known.label) => return Ok(()),
            Some((sequence, known)) => (sequence, known.joined(&carried)),
        };
        if put(bus, control, key, &next, sequence).await? {
            return Ok(());
        }
    }
    Err(MoveError::Busy(new))
}

/// Puts a label behind the one of this sequence; false if another came there, or nobody knows.
async fn put(
    bus: &Bus,
    control: &ControlState,
    key: &PrivateKey,
    label: &DomainLabel,
    sequence: u64,
) -> Result<bool, MoveError> {
    let subject = Subject::Label(label.domain.clone()).of(control.tenant());
    let store = Store::fenced(subject, sequence, encode(&Signed::new(label, key)));
    match bus.store(&store, ACK_TIMEOUT).await {
        Ok(_) => Ok(true),
        Err(StoreError::Fenced | StoreError::Busy | StoreError::Unknown(_)) => Ok(false),
        Err(error) => Err(MoveError::Store(label.domain.clone(), error)),
    }
}
