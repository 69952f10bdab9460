//! Task labels: known, read, and raised before anything is released.
//!
//! A label only goes up, by compare-and-set on its exact subject. What is known here may lag behind the bus and never
//! runs ahead of it, so a result whose label is covered by it is released at once; any other waits until the raise is
//! acknowledged. Raises of one domain go one after the other, and take everything along that came meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use writ_bus::{Store, StoreError, Stored};
use writ_common::{
    codec::decode,
    digest::Digest,
    entropy::draw,
    ids::{FlowDomain, PartId},
    keys::PublicKey,
    label::{DomainLabel, Label, LabelOrigin},
    reason::{Reason, ReasonCode},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now},
    verdict::Permit,
};

use super::{CallRef, Effect, Guard, Pending};

/// How often a raise is tried again after other nodes were faster or the stream was busy.
const ATTEMPTS_MAX: u32 = 24;
/// Most domains whose label is kept; beyond, labels are read again.
const KNOWN_MAX: usize = 50_000;

/// What waits for a label to be raised.
pub(super) enum Waiter {
    /// The answer of an agent, for what its domain carries now.
    Answer(CallRef),
    /// The question for a result that was kept back.
    Fetch(CallRef, Digest),
    /// A call that is to be handed on to an agent with a memory of its own.
    Relay(CallRef, Box<Permit>),
    /// The result of a call.
    Release(CallRef),
}

/// A raise somebody waits for.
pub(super) struct Wanted {
    pub(super) by: Label,
    pub(super) origin: Option<LabelOrigin>,
    /// Whether what is known here may be less than what stands on the bus: a read, even by the leader, can be behind
    /// (DESIGN section 6), a write that was fenced on it cannot.
    pub(super) confirm: bool,
    pub(super) waiter: Waiter,
}

/// Why a label counts as more than what stands on the bus.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unsound {
    /// Raises after it may be lost, or one was taken back: whoever releases something writes it down as it counts.
    Lowered,
    /// Nobody known signed it; that may change by itself.
    Unverified,
}

/// What is under way for the raises of a domain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    Reading,
    Publishing,
}

/// The raises of one domain.
#[derive(Default)]
struct Raising {
    wanted: Vec<Wanted>,
    attempts: u32,
    /// The read or publish that is under way.
    busy: Option<Busy>,
    /// How many of those that wait the publish under way is for.
    sent: usize,
}

/// Everything this node knows of labels.
#[derive(Default)]
pub(super) struct Labels {
    known: BTreeMap<FlowDomain, (u64, DomainLabel)>,
    /// Domains whose label here is not what stands on the bus, and why.
    unsound: BTreeMap<FlowDomain, Unsound>,
    raising: BTreeMap<FlowDomain, Raising>,
    reading: BTreeSet<FlowDomain>,
    /// Domains whose label has to be read again.
    outdated: BTreeSet<FlowDomain>,
    /// Calls that cannot be decided before the label of a domain is read.
    waiting: BTreeMap<FlowDomain, Vec<CallRef>>,
}

impl Labels {
    /// The label of a domain, as far as it is known here, and its position.
    pub(super) fn get(&self, domain: &FlowDomain) -> Option<&(u64, DomainLabel)> {
        if self.outdated.contains(domain) { None } else { self.known.get(domain) }
    }

    /// Takes what is known as outdated.
    pub(super) fn forget(&mut self, domain: &FlowDomain) {
        // What it was is remembered: whatever comes next is at least that.
        if self.known.contains_key(domain) {
            self.outdated.insert(domain.clone());
        }
        if self.unsound.get(domain) == Some(&Unsound::Unverified) {
            self.drop(domain);
        }
    }

    fn drop(&mut self, domain: &FlowDomain) {
        self.known.remove(domain);
        self.unsound.remove(domain);
        self.outdated.remove(domain);
    }

    /// A replica may answer with less than is known already. False if a label went down, which none does: the join counts.
    fn learn(
        &mut self,
        domain: &FlowDomain,
        sequence: u64,
        mut label: DomainLabel,
        unsound: Option<Unsound>,
    ) -> bool {
        let known = self.known.get(domain);
        if known.is_some_and(|(known, _)| *known > sequence) {
            self.outdated.remove(domain);
            return true;
        }
        let is_sound = known.is_none_or(|(_, known)| known.label.flows_to(&label.label));
        let unsound = match known {
            Some((_, known)) if !is_sound => {
                label.label = label.label.join(&known.label);
                Some(Unsound::Lowered)
            }
            _ => unsound,
        };
        if self.known.len() >= KNOWN_MAX
            && let Some(oldest) = self.known.keys().next().cloned()
        {
            self.drop(&oldest);
        }
        self.outdated.remove(domain);
        match unsound {
            Some(why) => drop(self.unsound.insert(domain.clone(), why)),
            None => drop(self.unsound.remove(domain)),
        }
        self.known.insert(domain.clone(), (sequence, label));
        is_sound
    }
}

impl Guard {
    /// Has a label read before a call is decided.
    pub(super) fn wait_for_label(&mut self, call: CallRef, domain: &FlowDomain) {
        self.labels.waiting.entry(domain.clone()).or_default().push(call);
        self.read_label(domain);
    }

    fn read_label(&mut self, domain: &FlowDomain) {
        if self.labels.reading.insert(domain.clone()) {
            self.push(Effect::ReadLabel(domain.clone()));
        }
    }

    /// What the stream said about a label.
    pub(super) fn label_read(
        &mut self,
        domain: &FlowDomain,
        found: Result<Option<(u64, Bytes)>, String>,
        now: Now,
    ) {
        self.labels.reading.remove(domain);
        let label = match found {
            Ok(Some((sequence, payload))) => self.open_label(domain, sequence, &payload),
            Ok(None) => None,
            Err(why) => {
                self.alarm(format!("label of {domain}: {why}"));
                None
            }
        };
        let is_known = label.is_some();
        match label {
            Some((sequence, label, unsound)) => {
                if !self.labels.learn(domain, sequence, label, unsound) {
                    self.alarm(format!("label of {domain} at {sequence} is less than it was before"));
                }
            }
            None => self.labels.forget(domain),
        }
        if let Some(raising) = self.labels.raising.get_mut(domain)
            && raising.busy != Some(Busy::Publishing)
        {
            raising.busy = None;
            raising.attempts += u32::from(!is_known);
            self.raise_on(domain, now);
        }
        for call in self.labels.waiting.remove(domain).unwrap_or_default() {
            self.decide_call(call, now);
        }
    }

    /// A label counts only if a broker or node of this tenant signed it for this domain.
    fn open_label(
        &mut self,
        domain: &FlowDomain,
        sequence: u64,
        payload: &[u8],
    ) -> Option<(u64, DomainLabel, Option<Unsound>)> {
        let accepts = |key: &PublicKey| self.control.is_label_key(key) || writ_common::red::off("F02");
        let opened = decode::<Signed<DomainLabel>>(payload)
            .map_err(|error| error.to_string())
            .and_then(|signed| signed.open(accepts).map_err(|error| error.to_string()));
        let (why, unsound) = match opened {
            Ok(_) if self.streams.is_distrusted(&domain.part, sequence) => {
                ("raises after it may be lost".to_owned(), Unsound::Lowered)
            }
            Ok(label) if label.tenant == self.config.tenant && label.domain == *domain => {
                return Some((sequence, label, None));
            }
            Ok(label) => (format!("it is of {}", label.domain), Unsound::Unverified),
            Err(why) => (why, Unsound::Unverified),
        };
        self.alarm(format!("label of {domain} at {sequence}: {why}"));
        // Unverifiable is top, not absent: the domain exists, and nothing may leave it.
        let tenant = self.config.tenant.clone();
        let top = DomainLabel {
            tenant,
            domain: domain.clone(),
            label: Label::top(),
            origins: BTreeMap::new(),
            moved_to: None,
        };
        Some((sequence, top, Some(unsound)))
    }

    /// Has a domain carry a label at least, and then goes on with what waits for it.
    pub(super) fn raise(&mut self, domain: &FlowDomain, wanted: Wanted, now: Now) {
        if writ_common::red::off("F11") {
            // Red: what was told to an agent stands nowhere.
            return self.raised_for(wanted.waiter, domain, now);
        }
        self.labels.raising.entry(domain.clone()).or_default().wanted.push(wanted);
        self.raise_on(domain, now);
    }

    /// Goes on with the raises of a domain, unless something is under way.
    fn raise_on(&mut self, domain: &FlowDomain, now: Now) {
        let Some(raising) = self.labels.raising.get_mut(domain) else { return };
        if raising.busy.is_some() {
            return;
        }
        // It may verify in a moment, and must not be written over until then.
        if self.labels.unsound.get(domain) == Some(&Unsound::Unverified) {
            let reason = Reason::new(ReasonCode::FlowWithheld).noted("the label does not verify");
            self.labels.forget(domain);
            return self.raise_failed(domain, &reason, now);
        }
        if raising.attempts > ATTEMPTS_MAX {
            let reason = Reason::new(ReasonCode::FlowWithheld).noted("the label could not be raised");
            return self.raise_failed(domain, &reason, now);
        }
        let Some((sequence, label)) = self.labels.get(domain).cloned() else {
            if let Some(raising) = self.labels.raising.get_mut(domain) {
                raising.busy = Some(Busy::Reading);
            }
            return self.read_label(domain);
        };
        if let Some(to) = label.moved_to.clone()
            && !writ_common::red::off("F11-part")
        {
            return self.raise_there(domain, to, now);
        }
        let stands = !self.labels.unsound.contains_key(domain);
        let Some(raising) = self.labels.raising.get_mut(domain) else { return };
        let (covered, left): (Vec<Wanted>, Vec<Wanted>) = raising
            .wanted
            .drain(..)
            .partition(|wanted| stands && !wanted.confirm && wanted.by.flows_to(&label.label));
        raising.wanted = left;
        if raising.wanted.is_empty() {
            self.labels.raising.remove(domain);
        } else {
            let next = raising.wanted.iter().fold(label, |label, wanted| match &wanted.origin {
                Some(origin) => label.raised(&wanted.by, origin),
                None => DomainLabel { label: label.label.join(&wanted.by), ..label },
            });
            raising.busy = Some(Busy::Publishing);
            raising.sent = raising.wanted.len();
            let store = self.fenced(&next, &Subject::Label(domain.clone()), sequence);
            self.publish_raise(domain.clone(), Box::new((next, store)), Millis(0));
        }
        for wanted in covered {
            self.raised_for(wanted.waiter, domain, now);
        }
    }

    /// The label of a domain went to another part while a call was under way: it is raised there. That what stands here
    /// covers it may say nothing about what the domain carries.
    fn raise_there(&mut self, domain: &FlowDomain, to: PartId, now: Now) {
        let Some(raising) = self.labels.raising.remove(domain) else { return };
        let there = FlowDomain { part: to, domain: domain.domain.clone() };
        for wanted in raising.wanted {
            self.raise(&there, wanted, now);
        }
    }

    fn publish_raise(&mut self, domain: FlowDomain, raise: Box<(DomainLabel, Store)>, delay: Millis) {
        let store = raise.1.clone();
        let ticket = self.ticket(Pending::Raised(domain, raise));
        self.push(Effect::Publish { ticket, store, delay });
    }

    /// What the stream said about a raise.
    pub(super) fn raised(
        &mut self,
        domain: &FlowDomain,
        raise: Box<(DomainLabel, Store)>,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let Some(raising) = self.labels.raising.get_mut(domain) else { return };
        match result {
            Ok(stored) => {
                (raising.busy, raising.attempts) = (None, 0);
                raising.wanted.iter_mut().take(raising.sent).for_each(|wanted| wanted.confirm = false);
                self.streams.acknowledged(&domain.part, stored.sequence);
                self.labels.learn(domain, stored.sequence, raise.0, None);
                self.raise_on(domain, now);
            }
            Err(StoreError::Busy) => {
                raising.attempts += 1;
                if raising.attempts > ATTEMPTS_MAX {
                    raising.busy = None;
                    return self.raise_on(domain, now);
                }
                let ceiling = 2u64 << raising.attempts.min(6);
                let [jitter] = draw::<1>(self.entropy.as_mut());
                self.publish_raise(domain.clone(), raise, Millis(u64::from(jitter) % ceiling));
            }
            // Somebody else raised it, or nobody knows: what is there says which.
            Err(StoreError::Fenced | StoreError::Unknown(_)) => {
                raising.attempts += 1;
                raising.busy = None;
                self.labels.forget(domain);
                self.raise_on(domain, now);
            }
            Err(error @ (StoreError::Full | StoreError::Refused(_))) => {
                let reason = Reason::new(ReasonCode::FlowWithheld).noted(error);
                self.raise_failed(domain, &reason, now);
            }
        }
    }

    fn raise_failed(&mut self, domain: &FlowDomain, reason: &Reason, now: Now) {
        let Some(raising) = self.labels.raising.remove(domain) else { return };
        self.alarm(format!("label of {domain}: {}", reason.for_operator()));
        for wanted in raising.wanted {
            self.not_raised_for(&wanted.waiter, reason, now);
        }
    }

    fn raised_for(&mut self, waiter: Waiter, domain: &FlowDomain, now: Now) {
        match waiter {
            Waiter::Answer(call) => {
                let carried =
                    self.labels.get(domain).map_or_else(Label::top, |(_, known)| known.label.clone());
                self.release_as(call, &carried, now);
            }
            Waiter::Fetch(call, call_id) => self.hand_out(call, &call_id, now),
            Waiter::Relay(call, permit) => self.relay(call, &permit, now),
            Waiter::Release(call) => self.vouch(call, now),
        }
    }

    fn not_raised_for(&mut self, waiter: &Waiter, reason: &Reason, now: Now) {
        match *waiter {
            Waiter::Answer(call) | Waiter::Release(call) => self.withhold(call, reason, now),
            Waiter::Fetch(call, _) => self.reply_unrecorded(call, reason),
            Waiter::Relay(call, _) => self.not_run(call, reason.clone(), now),
        }
    }
}
