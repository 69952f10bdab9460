//! Carrying the labels of what outlives a task over to another part of the audit stream, so that no raise is lost.
//!
//! The label is copied first. Then the old one is ended, by compare-and-set, with a label of top that says where it went: a
//! node that does not know yet is fenced off and finds top, and a raise that came in between shows as a lost race, so
//! that it is copied too. Stopped anywhere, it can be begun again.

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

/// Carries every label over that outlives a task; returns how many there are.
pub(crate) async fn move_shared(
    bus: &Bus,
    control: &ControlState,
    key: &PrivateKey,
    from: &PartId,
    to: &PartId,
) -> Result<usize, MoveError> {
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
    Ok(domains.len())
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
    let tenant = control.tenant();
    for _ in 0..ATTEMPTS_MAX {
        let Some((old_sequence, label)) = read(bus, control, &old).await? else { return Ok(()) };
        if label.moved_to.is_some() {
            return Ok(());
        }
        let there = read(bus, control, &new).await?;
        let (new_sequence, carried) = match there {
            None => (0, DomainLabel { domain: new.clone(), ..label.clone() }),
            Some((sequence, known)) => (sequence, known.joined(&label)),
        };
        let ended = DomainLabel { moved_to: Some(to.clone()), ..top(tenant, &old) };
        let steps = [(&new, new_sequence, carried), (&old, old_sequence, ended)];
        let mut is_done = true;
        for (place, sequence, label) in steps {
            let payload = encode(&Signed::new(&label, key));
            let store = Store::fenced(Subject::Label(place.clone()).of(tenant), sequence, payload);
            match bus.store(&store, ACK_TIMEOUT).await {
                Ok(_) => {}
                // Somebody raised it meanwhile, or what was sent is there after all: look again.
                Err(StoreError::Fenced | StoreError::Busy | StoreError::Unknown(_)) => {
                    is_done = false;
                    break;
                }
                Err(error) => return Err(MoveError::Store(place.clone(), error)),
            }
        }
        if is_done {
            return Ok(());
        }
    }
    Err(MoveError::Busy(old))
}
