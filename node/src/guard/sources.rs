//! What may vouch for guarded arguments: the user's instruction, and what trusted results of the domain named.
//!
//! Both are read when an argument of an untrusted task has no other source, and the instruction also when a result
//! vouches for what the user called by name. Being behind is harmless: less is vouched for. The instruction is believed
//! by its digest, which the capability carries.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use writ_bus::{StoreError, Stored};
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::{FlowDomain, TaskId},
    keys::PublicKey,
    label::DomainSources,
    signed::Signed,
    source::{Instruction, ResultSources},
    subjects::Subject,
    time::{Millis, Now},
};

use super::{CallRef, Effect, Guard, Pending};

/// How often it is tried to put down what a result vouches for.
const ATTEMPTS_MAX: u32 = 8;
/// Most bytes of instructions that are remembered; beyond, they are read again. In memory they take several times that.
const INSTRUCTION_BYTES_KEPT: usize = 8 * 1024 * 1024;
/// Most domains that are remembered; beyond, they are read again.
const KNOWN_MAX: usize = 10_000;

/// What was read of a domain: the instruction's text, and the sources of its results with their position.
#[derive(Clone, Debug, Default)]
pub struct FoundSources {
    /// The text, as bytes.
    pub instruction: Option<Bytes>,
    /// What results vouch for.
    pub results: Option<(u64, Bytes)>,
}

#[derive(Default)]
struct Remembering {
    new: Vec<(ResultSources, CallRef)>,
    attempts: u32,
    is_busy: bool,
}

/// Everything this node knows of sources.
#[derive(Default)]
pub(super) struct KnownSources {
    instructions: BTreeMap<Digest, (Arc<Instruction>, usize)>,
    /// Of all texts that are remembered.
    instruction_bytes: usize,
    results: BTreeMap<FlowDomain, (u64, Arc<ResultSources>)>,
    reading: BTreeMap<(FlowDomain, TaskId), BTreeSet<CallRef>>,
    remembering: BTreeMap<FlowDomain, Remembering>,
}

impl KnownSources {
    pub(super) fn instruction(&self, digest: &Digest) -> Option<Arc<Instruction>> {
        self.instructions.get(digest).map(|(instruction, _)| instruction.clone())
    }

    pub(super) fn results(&self, domain: &FlowDomain) -> Option<Arc<ResultSources>> {
        self.results.get(domain).map(|(_, results)| results.clone())
    }

    fn learn(&mut self, domain: &FlowDomain, sequence: u64, results: ResultSources) {
        if self.results.get(domain).is_some_and(|(known, _)| *known > sequence) {
            return;
        }
        if self.results.len() >= KNOWN_MAX {
            self.results.pop_first();
        }
        self.results.insert(domain.clone(), (sequence, Arc::new(results)));
    }
}

impl Guard {
    /// Has everything read that might vouch for the arguments of a call.
    pub(super) fn read_sources(&mut self, call: CallRef) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        known.sources_read = true;
        // Of the task and not of an agent's memory: what one user's task named vouches for nothing in another's.
        let grant = known.capability.grant();
        let key = (grant.domain.clone(), grant.task.clone());
        let waiting = self.sources.reading.entry(key.clone()).or_default();
        waiting.insert(call);
        if waiting.len() == 1 {
            self.push(Effect::ReadSources(key.0, key.1));
        }
    }

    /// What the stream holds of sources.
    pub(super) fn sources_read(
        &mut self,
        domain: &FlowDomain,
        task: &TaskId,
        found: Result<FoundSources, String>,
        now: Now,
    ) {
        let waiting = self.sources.reading.remove(&(domain.clone(), task.clone())).unwrap_or_default();
        match found {
            Ok(FoundSources { instruction, results }) => {
                if let Some((sequence, payload)) = results {
                    self.learn_sources(domain, sequence, &payload);
                }
                if let Some(text) = instruction {
                    self.learn_instruction(&text);
                }
            }
            Err(why) => self.alarm(format!("sources of {domain}: {why}")),
        }
        if self.sources.remembering.contains_key(domain) {
            self.remember_on(domain, now);
        }
        for call in waiting {
            let known = self.calls.get(&call).and_then(|flight| flight.known.as_ref());
            match known.is_some_and(|known| known.flowing.output.is_some()) {
                // It has run, and its result waits for what the user said.
                true => self.vouch(call, now),
                false => self.decide_call(call, now),
            }
        }
    }

    /// Whatever text it is, it counts for those capabilities alone that carry its digest.
    fn learn_instruction(&mut self, text: &[u8]) {
        let Ok(words) = std::str::from_utf8(text) else { return };
        let known = &mut self.sources;
        while known.instruction_bytes + text.len() > INSTRUCTION_BYTES_KEPT
            && let Some((_, (_, bytes))) = known.instructions.pop_first()
        {
            known.instruction_bytes -= bytes;
        }
        let entry = (Arc::new(Instruction::new(words)), text.len());
        match known.instructions.insert(Digest::plain(text), entry) {
            Some(_) => {}
            None => known.instruction_bytes += text.len(),
        }
    }

    fn learn_sources(&mut self, domain: &FlowDomain, sequence: u64, payload: &[u8]) {
        let accepts = |key: &PublicKey| self.control.nodes().values().any(|node| node.key == *key);
        let opened = decode::<Signed<DomainSources>>(payload)
            .map_err(|error| error.to_string())
            .and_then(|signed| signed.open(accepts).map_err(|error| error.to_string()));
        let why = match opened {
            Ok(sources) if sources.tenant == self.config.tenant && sources.domain == *domain => {
                return self.sources.learn(domain, sequence, sources.results);
            }
            Ok(sources) => format!("they are of {}", sources.domain),
            Err(why) => why,
        };
        self.alarm(format!("sources of {domain} at {sequence}: {why}"));
        // They vouch for nothing, and are written over.
        self.sources.learn(domain, sequence, ResultSources::default());
    }

    /// Puts down what a result vouches for, and then lets the result go.
    pub(super) fn remember(&mut self, domain: &FlowDomain, new: ResultSources, call: CallRef, now: Now) {
        let is_known =
            new.is_empty() || self.sources.results(domain).is_some_and(|known| known.join(&new) == *known);
        if is_known {
            return self.let_go(call, now);
        }
        self.sources.remembering.entry(domain.clone()).or_default().new.push((new, call));
        self.remember_on(domain, now);
    }

    fn remember_on(&mut self, domain: &FlowDomain, now: Now) {
        let Some(remembering) = self.sources.remembering.get_mut(domain) else { return };
        if remembering.is_busy {
            return;
        }
        if remembering.attempts > ATTEMPTS_MAX {
            return self.forget_sources(domain, now);
        }
        let known = self.sources.results.get(domain).map(|(sequence, known)| (*sequence, known.clone()));
        let (sequence, known) = known.unwrap_or_default();
        let results = remembering.new.iter().fold((*known).clone(), |known, (new, _)| known.join(new));
        if results == *known {
            let done = self.sources.remembering.remove(domain).map(|done| done.new).unwrap_or_default();
            return done.into_iter().for_each(|(_, call)| self.let_go(call, now));
        }
        remembering.is_busy = true;
        let sources = DomainSources { tenant: self.config.tenant.clone(), domain: domain.clone(), results };
        let store = self.fenced(&sources, &Subject::Sources(domain.clone()), sequence);
        let ticket = self.ticket(Pending::Remembered(domain.clone(), Box::new(sources.results)));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// What the stream said about sources that were put down.
    pub(super) fn remembered(
        &mut self,
        domain: &FlowDomain,
        results: ResultSources,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let Some(remembering) = self.sources.remembering.get_mut(domain) else { return };
        remembering.is_busy = false;
        match result {
            Ok(stored) => {
                remembering.attempts = 0;
                self.streams.acknowledged(&domain.part, stored.sequence);
                self.sources.learn(domain, stored.sequence, results);
                self.remember_on(domain, now);
            }
            Err(StoreError::Fenced | StoreError::Unknown(_) | StoreError::Busy) => {
                remembering.attempts += 1;
                let call = remembering.new.first().map(|(_, call)| *call);
                let task = call.and_then(|call| {
                    Some(self.calls.get(&call)?.known.as_ref()?.capability.grant().task.clone())
                });
                match task {
                    // Nobody waits for it to be decided: only what is there is wanted.
                    Some(task) => {
                        self.sources.reading.entry((domain.clone(), task.clone())).or_default();
                        self.push(Effect::ReadSources(domain.clone(), task));
                    }
                    None => self.forget_sources(domain, now),
                }
            }
            Err(error) => {
                self.alarm(format!("sources of {domain}: {error}"));
                self.forget_sources(domain, now);
            }
        }
    }

    /// What results vouch for could not be put down: they are let go all the same, and vouch for nothing.
    fn forget_sources(&mut self, domain: &FlowDomain, now: Now) {
        let given_up = self.sources.remembering.remove(domain).map(|given_up| given_up.new);
        for (_, call) in given_up.unwrap_or_default() {
            self.let_go(call, now);
        }
    }
}
