//! Control state: who is enrolled, what is revoked, which policy is in force.
//!
//! It is the fold of the control stream, the same in every broker and node. Events are signed by a keyset key; the
//! keyset itself is signed by the offline root. [`ControlState::apply`] is the only way state changes, so a state
//! and its [`Epoch`] say the same thing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    capability::Capability,
    codec::{CodecError, Message},
    digest::Digest,
    epoch::Epoch,
    hold::LegalHold,
    ids::{
        AgentId, BootId, BrokerId, CapabilityId, HoldId, KeyId, NodeId, OperatorId, PartId, TaskId, TenantId,
        UserId,
    },
    keys::{PublicKey, Purpose},
    keyset::{Keyset, KeysetDocument, KeysetError},
    part::{PartStage, Parts},
    policy::{PolicyBundle, PolicyRevision},
    reason::{Reason, ReasonCode},
    record::Origin,
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
};

/// How far brokers' clocks may be apart.
const SKEW: Millis = Millis(60_000);

/// One change of control state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlEvent {
    /// A key was enrolled for an agent, by a join token that is thereby used up.
    AgentKey {
        /// The agent.
        agent: AgentId,
        /// The key that holds its capabilities.
        holder: PublicKey,
        /// The NATS user its connections authenticate as.
        connection: String,
        /// Digest of the join token.
        token: Digest,
    },
    /// A key no longer counts for an agent.
    AgentKeyWithdrawn {
        /// The agent.
        agent: AgentId,
        /// The key.
        key: KeyId,
    },
    /// A key was enrolled for an approver, or withdrawn.
    ApproverKey {
        /// The approver.
        approver: OperatorId,
        /// The key that signs their answers; none if they have no key any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<PublicKey>,
    },
    /// A broker started; it signs its records with this key.
    BrokerBoot {
        /// The broker.
        broker: BrokerId,
        /// Its run.
        boot: BootId,
        /// Its record key.
        key: PublicKey,
    },
    /// Nothing may act, or may again.
    HaltAll {
        /// Whether the halt is on.
        on: bool,
    },
    /// The stream was recovered; epochs from before are older than any from now.
    Incarnation {
        /// The new incarnation.
        number: u32,
    },
    /// A join token was handed out.
    JoinToken {
        /// Digest of the token; the token itself is nowhere stored.
        token: Digest,
        /// The agent it enrols a key for.
        agent: AgentId,
        /// When it ends.
        expires: Timestamp,
    },
    /// A new keyset, signed by the offline root.
    Keyset(Signed<KeysetDocument>),
    /// Something must not be removed by retention, or may be again.
    LegalHold {
        /// The order's name.
        id: HoldId,
        /// The order; none if it is lifted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hold: Option<LegalHold>,
    },
    /// A node started a new run.
    NodeBoot {
        /// The node.
        node: NodeId,
        /// Its run.
        boot: BootId,
    },
    /// A node was enrolled, or got another key.
    NodeKey {
        /// The node.
        node: NodeId,
        /// The key that signs its records and receipts.
        key: PublicKey,
        /// The NATS user its connection authenticates as.
        connection: String,
    },
    /// A part of the audit stream came to another stage.
    Part {
        /// The part.
        part: PartId,
        /// The stage.
        stage: PartStage,
    },
    /// Another policy is in force.
    Policy(PolicyBundle),
    /// Another policy is asked beside the one in force, or none any more. Nothing is done by its answers.
    ShadowPolicy(Option<PolicyBundle>),
    /// An agent was isolated, or let go again.
    Quarantine {
        /// The agent.
        agent: AgentId,
        /// Whether it is isolated.
        on: bool,
    },
    /// Something was revoked.
    Revocation {
        /// What.
        target: RevocationTarget,
        /// When everything it covers has expired by itself, and the entry can be forgotten.
        until: Timestamp,
    },
}

/// What a revocation covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RevocationTarget {
    /// Every capability issued so far that this agent holds or handed on.
    Agent(AgentId),
    /// One capability with all its renewals and delegations.
    Capability(CapabilityId),
    /// Every chain this key is part of.
    Holder(KeyId),
    /// What one key handed to another, with all that hangs below it.
    Hop {
        /// The capability.
        capability: CapabilityId,
        /// The key that handed it on.
        delegator: KeyId,
        /// The key it was handed to.
        delegatee: KeyId,
    },
    /// A task with all its descendants.
    Task(TaskId),
    /// Every capability issued so far on this user's authority.
    User(UserId),
}

/// A signed event with its circumstances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlDocument {
    /// The tenant.
    pub tenant: TenantId,
    /// When the broker decided it.
    pub at: Timestamp,
    /// Who brought it about: a broker or an operator.
    pub by: String,
    /// The state it follows. An event counts right after that and nowhere else: moved, repeated or missing ones
    /// show, whatever the server says about sequences.
    pub follows: Epoch,
    /// The change.
    pub event: ControlEvent,
}

impl Signable for ControlDocument {
    const PURPOSE: Purpose = Purpose::Control;
    const KIND: &'static str = "control";
}

impl Message for Signed<ControlDocument> {
    const KIND: &'static str = "control";
    const BYTES_MAX: usize = 900 * 1024;
}

/// A key of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentKey {
    /// The key that holds its capabilities.
    pub holder: PublicKey,
    /// The NATS user its connections authenticate as.
    pub connection: String,
}

/// An enrolled node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The key that signs its records and receipts.
    pub key: PublicKey,
    /// The NATS user its connection authenticates as.
    pub connection: String,
    /// Its present run.
    pub boot: Option<BootId>,
}

/// A broker's present run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerEntry {
    /// The run.
    pub boot: BootId,
    /// The key that signs its records.
    pub key: PublicKey,
}

/// A join token that was handed out and not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The agent it enrols a key for.
    pub agent: AgentId,
    /// When it ends.
    pub expires: Timestamp,
}

/// That a policy was put in force. Its content stands in the event of this sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Sequence of its event: later ones are higher, also those that bring an old content back.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// By whom: an operator, or the broker that began the stream.
    pub by: String,
    /// What.
    pub revision: PolicyRevision,
}

/// Most activations that are remembered; earlier ones are still in the stream.
const ACTIVATIONS_MAX: usize = 1_024;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Revocation {
    /// The state with the event: capabilities issued later are not covered by it.
    epoch: Epoch,
    until: Timestamp,
}

/// The fold of the control stream up to an epoch.
#[derive(Clone, Debug)]
pub struct ControlState {
    tenant: TenantId,
    root: PublicKey,
    epoch: Epoch,
    /// The last message of the stream, whether it counted or not.
    seen: u64,
    /// The latest time an event bore.
    last_at: Timestamp,
    keyset: Option<Keyset>,
    agents: BTreeMap<AgentId, BTreeMap<KeyId, AgentKey>>,
    connections: BTreeMap<String, (AgentId, KeyId)>,
    approvers: BTreeMap<OperatorId, PublicKey>,
    brokers: BTreeMap<BrokerId, BrokerEntry>,
    nodes: BTreeMap<NodeId, NodeEntry>,
    /// Every key that ever signed the records of a broker or node: old records stay verifiable.
    record_keys: BTreeMap<Origin, BTreeSet<PublicKey>>,
    join_tokens: BTreeMap<Digest, JoinToken>,
    policy: Option<(u64, PolicyBundle)>,
    shadow: Option<PolicyBundle>,
    activations: VecDeque<Activation>,
    quarantined: BTreeSet<AgentId>,
    revocations: BTreeMap<RevocationTarget, Revocation>,
    halted: bool,
    parts: Parts,
    holds: BTreeMap<HoldId, LegalHold>,
    /// An authentic event this build could not read: what it asked for is unknown, so nothing is decided.
    unread: Option<u64>,
}

/// Why an event of the stream was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlFault {
    /// Not signed by a key that may; it is not the broker's word, so it is ignored and reported.
    #[error("event {sequence} is not signed by a key of the keyset")]
    NotAuthentic {
        /// Its stream sequence.
        sequence: u64,
    },
    /// Signed rightly but not readable by this build; everything is denied until an upgrade.
    #[error("event {sequence} is authentic but not readable by this version: {source}")]
    Unreadable {
        /// Its stream sequence.
        sequence: u64,
        /// What the decoder met.
        source: CodecError,
    },
    /// Its keyset is no successor of the present one.
    #[error("event {sequence}: {source}")]
    Keyset {
        /// Its stream sequence.
        sequence: u64,
        /// What is wrong with the keyset.
        source: KeysetError,
    },
    /// It follows another state than the one it stands behind: moved, repeated, or something before it is missing.
    #[error(
        "event {sequence} of {at} follows {follows}, and {applied} is applied: moved, repeated, or one is missing"
    )]
    OutOfOrder {
        /// Its stream sequence.
        sequence: u64,
        /// The state it was written to follow.
        follows: Epoch,
        /// The state it was found behind.
        applied: Epoch,
        /// When it says it was written.
        at: Timestamp,
    },
    /// Older than what was applied already.
    #[error("event {sequence} comes after {applied} was applied")]
    Rollback {
        /// Its stream sequence.
        sequence: u64,
        /// The last applied sequence.
        applied: u64,
    },
}

/// Whether a message of the control stream says that it is a policy, whoever wrote it.
#[must_use]
pub fn claims_policy(bytes: &[u8]) -> bool {
    let signed = crate::codec::decode::<Signed<ControlDocument>>(bytes);
    let document = signed.ok().and_then(|signed| signed.peek().ok());
    matches!(document, Some(ControlDocument { event: ControlEvent::Policy(_), .. }))
}

impl ControlState {
    /// The state before the first event; `root` is the pinned offline root.
    #[must_use]
    pub fn new(tenant: TenantId, root: PublicKey) -> Self {
        Self {
            tenant,
            root,
            epoch: Epoch::default(),
            seen: 0,
            last_at: Timestamp::default(),
            keyset: None,
            agents: BTreeMap::new(),
            connections: BTreeMap::new(),
            approvers: BTreeMap::new(),
            brokers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            record_keys: BTreeMap::new(),
            join_tokens: BTreeMap::new(),
            policy: None,
            shadow: None,
            activations: VecDeque::new(),
            quarantined: BTreeSet::new(),
            revocations: BTreeMap::new(),
            halted: false,
            parts: Parts::default(),
            holds: BTreeMap::new(),
            unread: None,
        }
    }

    /// The same, with the parts as a complete read of the stream told them: until it is read again, what is recorded goes
    /// to the part in use. Their events change nothing when they come round.
    #[must_use]
    pub fn with_parts(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    /// Applies the message at `sequence` of the control stream and returns what it said.
    ///
    /// # Errors
    /// [`ControlFault`]; whatever the fault, nothing but the note of an unreadable event changes.
    pub fn apply(&mut self, sequence: u64, bytes: &[u8]) -> Result<ControlDocument, ControlFault> {
        self.seen = self.seen.max(sequence);
        // Both threats are answered by the same three checks.
        let is_red = crate::red::off("R07") || crate::red::off("P13");
        if sequence <= self.epoch.sequence && !is_red {
            return Err(ControlFault::Rollback { sequence, applied: self.epoch.sequence });
        }
        let not_authentic = || ControlFault::NotAuthentic { sequence };
        let Ok(signed) = crate::codec::decode::<Signed<ControlDocument>>(bytes) else {
            return Err(not_authentic());
        };
        // A keyset is the root's word, whoever brings it: a key it lists may, also after the last one expired.
        let brought = match signed.peek() {
            Ok(ControlDocument { event: ControlEvent::Keyset(signed), .. }) => Some(
                Keyset::open(&signed, &self.root)
                    .map_err(|source| ControlFault::Keyset { sequence, source })?,
            ),
            _ => None,
        };
        let keysets: Vec<&Keyset> = self.keyset.iter().chain(&brought).collect();
        // A key that stopped counting since is judged by the time of the event: what it said then still stands.
        let at = signed.peek().map(|document| document.at).unwrap_or_default();
        let document =
            match signed.open(|key| keysets.iter().any(|keyset| keyset.is_active(key, &self.tenant, at))) {
                Ok(document) => document,
                Err(crate::signed::OpenError::Codec(source)) => {
                    self.unread = Some(sequence);
                    return Err(ControlFault::Unreadable { sequence, source });
                }
                Err(_) if is_red => signed.peek().map_err(|_| not_authentic())?,
                Err(_) => return Err(not_authentic()),
            };
        if document.tenant != self.tenant {
            return Err(not_authentic());
        }
        let is_backdated = self.last_at.since(document.at) > SKEW;
        if (document.follows != self.epoch || is_backdated) && !is_red {
            return Err(ControlFault::OutOfOrder {
                sequence,
                follows: document.follows,
                applied: self.epoch,
                at: document.at,
            });
        }
        self.last_at = self.last_at.max(document.at);
        self.fold(sequence, document.clone())?;
        Ok(document)
    }

    fn fold(&mut self, sequence: u64, document: ControlDocument) -> Result<(), ControlFault> {
        match document.event {
            ControlEvent::AgentKey { agent, holder, connection, token } => {
                let key = holder.id();
                self.join_tokens.remove(&token);
                self.connections.insert(connection.clone(), (agent.clone(), key.clone()));
                self.agents.entry(agent).or_default().insert(key, AgentKey { holder, connection });
            }
            ControlEvent::AgentKeyWithdrawn { agent, key } => {
                let withdrawn = self.agents.get_mut(&agent).and_then(|keys| keys.remove(&key));
                if let Some(withdrawn) = withdrawn {
                    self.connections.remove(&withdrawn.connection);
                }
            }
            ControlEvent::ApproverKey { approver, key: Some(key) } => {
                self.approvers.insert(approver, key);
            }
            ControlEvent::ApproverKey { approver, key: None } => {
                self.approvers.remove(&approver);
            }
            ControlEvent::BrokerBoot { broker, boot, key } => {
                self.record_keys.entry(Origin::Broker(broker.clone())).or_default().insert(key);
                self.brokers.insert(broker, BrokerEntry { boot, key });
            }
            ControlEvent::HaltAll { on } => self.halted = on,
            ControlEvent::Incarnation { number } => {
                self.epoch.incarnation = self.epoch.incarnation.max(number);
            }
            ControlEvent::JoinToken { token, agent, expires } => {
                self.join_tokens.insert(token, JoinToken { agent, expires });
            }
            ControlEvent::Keyset(signed) => {
                let newer = Keyset::open(&signed, &self.root)
                    .map_err(|source| ControlFault::Keyset { sequence, source })?;
                match &mut self.keyset {
                    Some(current) => {
                        current.replace(newer).map_err(|source| ControlFault::Keyset { sequence, source })?;
                    }
                    none => *none = Some(newer),
                }
            }
            ControlEvent::LegalHold { id, hold: Some(hold) } => {
                self.holds.insert(id, hold);
            }
            ControlEvent::LegalHold { id, hold: None } => {
                self.holds.remove(&id);
            }
            ControlEvent::NodeBoot { node, boot } => {
                if let Some(entry) = self.nodes.get_mut(&node) {
                    entry.boot = Some(boot);
                }
            }
            ControlEvent::NodeKey { node, key, connection } => {
                self.record_keys.entry(Origin::Node(node.clone())).or_default().insert(key);
                self.nodes.insert(node, NodeEntry { key, connection, boot: None });
            }
            ControlEvent::Part { part, stage } => self.parts.apply(part, stage, document.at),
            ControlEvent::Policy(bundle) => {
                if self.activations.len() == ACTIVATIONS_MAX {
                    self.activations.pop_front();
                }
                let (at, by) = (document.at, document.by);
                let revision = bundle.revision();
                self.activations.push_back(Activation { sequence, at, by, revision });
                // What is in force needs no shadow of itself.
                self.shadow = self.shadow.take().filter(|shadow| shadow.revision() != revision);
                self.policy = Some((sequence, bundle));
            }
            ControlEvent::ShadowPolicy(shadow) => self.shadow = shadow,
            ControlEvent::Quarantine { agent, on: true } => {
                self.quarantined.insert(agent);
            }
            ControlEvent::Quarantine { agent, on: false } => {
                self.quarantined.remove(&agent);
            }
            ControlEvent::Revocation { target, until } => {
                let epoch = Epoch { sequence, ..self.epoch };
                self.revocations.insert(target, Revocation { epoch, until });
            }
        }
        self.epoch.sequence = sequence;
        self.revocations.retain(|_, revocation| revocation.until > document.at);
        self.join_tokens.retain(|_, token| token.expires > document.at);
        Ok(())
    }

    /// What was applied so far.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Sequence of the last message of the stream, whether it counted or not: what the next one comes after.
    #[must_use]
    pub fn last_seen(&self) -> u64 {
        self.seen
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The keyset in force.
    #[must_use]
    pub fn keyset(&self) -> Option<&Keyset> {
        self.keyset.as_ref()
    }

    /// The enrolled keys of an agent.
    #[must_use]
    pub fn agent_keys(&self, agent: &AgentId) -> Option<&BTreeMap<KeyId, AgentKey>> {
        self.agents.get(agent)
    }

    /// Every agent that has keys.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentId, &BTreeMap<KeyId, AgentKey>)> {
        self.agents.iter()
    }

    /// The agent and key a NATS user belongs to.
    #[must_use]
    pub fn agent_of_connection(&self, connection: &str) -> Option<&(AgentId, KeyId)> {
        self.connections.get(connection)
    }

    /// The approvers and the keys that sign their answers.
    #[must_use]
    pub fn approvers(&self) -> &BTreeMap<OperatorId, PublicKey> {
        &self.approvers
    }

    /// The key that signs an approver's answers. A key that an agent holds is nobody's to approve with.
    #[must_use]
    pub fn approver_key(&self, approver: &OperatorId) -> Option<&PublicKey> {
        let key = self.approvers.get(approver)?;
        let is_agents = self.agents.values().any(|keys| keys.contains_key(&key.id()));
        (!is_agents || crate::red::off("H03")).then_some(key)
    }

    /// Whether the key signs, or once signed, the records of a broker or node.
    #[must_use]
    pub fn is_record_key(&self, origin: &Origin, key: &PublicKey) -> bool {
        self.record_keys.get(origin).is_some_and(|keys| keys.contains(key))
    }

    /// Whether the key signs, or once signed, anybody's records.
    #[must_use]
    pub fn has_record_key(&self, key: &PublicKey) -> bool {
        self.record_keys.values().any(|keys| keys.contains(key))
    }

    /// Every key that signs, or once signed, the records of a broker or node.
    pub fn record_keys(&self, origin: &Origin) -> impl Iterator<Item = &PublicKey> {
        self.record_keys.get(origin).into_iter().flatten()
    }

    /// Whether a label signed by this key counts: a broker's of the keyset, or an enrolled node's.
    #[must_use]
    pub fn is_label_key(&self, key: &PublicKey) -> bool {
        let of_keyset = |keyset: &Keyset| keyset.document().keys.iter().any(|entry| entry.public == *key);
        self.keyset().is_some_and(of_keyset) || self.nodes.values().any(|node| node.key == *key)
    }

    /// Every enrolled node.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeEntry> {
        &self.nodes
    }

    /// Every broker that ever started.
    #[must_use]
    pub fn brokers(&self) -> &BTreeMap<BrokerId, BrokerEntry> {
        &self.brokers
    }

    /// A join token that was handed out and not used.
    #[must_use]
    pub fn join_token(&self, digest: &Digest) -> Option<&JoinToken> {
        self.join_tokens.get(digest)
    }

    /// The policy in force, with the sequence of its event.
    #[must_use]
    pub fn policy(&self) -> Option<(u64, &PolicyBundle)> {
        self.policy.as_ref().map(|(sequence, bundle)| (*sequence, bundle))
    }

    /// The policy that is asked beside it, if there is one.
    #[must_use]
    pub fn shadow(&self) -> Option<&PolicyBundle> {
        self.shadow.as_ref()
    }

    /// Every policy that was put in force, the present one last.
    #[must_use]
    pub fn activations(&self) -> &VecDeque<Activation> {
        &self.activations
    }

    /// Whether an agent is isolated.
    #[must_use]
    pub fn is_quarantined(&self, agent: &AgentId) -> bool {
        self.quarantined.contains(agent)
    }

    /// The parts of the audit stream.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What must not be removed.
    #[must_use]
    pub fn holds(&self) -> &BTreeMap<HoldId, LegalHold> {
        &self.holds
    }

    /// Whether everything is halted.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Refuses to decide while an authentic event could not be read.
    ///
    /// # Errors
    /// `state.stale`.
    pub fn check_readable(&self) -> Result<(), Reason> {
        match self.unread {
            Some(sequence) => Err(Reason::new(ReasonCode::StateStale)
                .noted(format_args!("control event {sequence} needs a newer version of this program"))),
            None => Ok(()),
        }
    }

    /// Refuses what is halted or revoked, whoever holds it.
    ///
    /// # Errors
    /// `halt.all`, `agent.quarantined` or a reason of the `revoked.*` group.
    pub fn check_revocation(&self, capability: &Capability) -> Result<(), Reason> {
        if self.halted {
            return Err(ReasonCode::HaltAll.into());
        }
        let grant = capability.grant();
        let issued = grant.min_epoch;
        let is = |target: RevocationTarget| self.revocations.contains_key(&target);
        // What covers everything issued so far does not cover what was issued since.
        let is_since = |target: RevocationTarget| {
            self.revocations.get(&target).is_some_and(|revocation| revocation.epoch > issued)
        };
        let beside = grant.capability.beside().filter(|_| !crate::red::off("R01-right"));
        if std::iter::once(grant.capability.clone())
            .chain(beside)
            .any(|id| is(RevocationTarget::Capability(id)))
        {
            return Err(ReasonCode::Revoked.into());
        }
        if is(RevocationTarget::Task(grant.task.clone())) {
            return Err(ReasonCode::RevokedTask.into());
        }
        if is_since(RevocationTarget::User(grant.user.clone())) {
            return Err(ReasonCode::RevokedUser.into());
        }
        for (agent, key) in capability.chain().holders() {
            if self.quarantined.contains(agent) {
                return Err(Reason::new(ReasonCode::AgentQuarantined).told(format_args!("agent `{agent}`")));
            }
            if is_since(RevocationTarget::Agent(agent.clone())) {
                return Err(Reason::new(ReasonCode::RevokedAgent).told(format_args!("agent `{agent}`")));
            }
            if is(RevocationTarget::Holder(key.id())) {
                return Err(Reason::new(ReasonCode::RevokedHolder).told(format_args!("a key of `{agent}`")));
            }
        }
        for hop in capability.chain().hops() {
            let target = RevocationTarget::Hop {
                capability: grant.capability.clone(),
                delegator: hop.delegator.id(),
                delegatee: hop.key.id(),
            };
            if is(target) {
                return Err(
                    Reason::new(ReasonCode::RevokedHop).told(format_args!("`{}` to `{}`", hop.from, hop.to))
                );
            }
        }
        Ok(())
    }

    /// Whether a task, its user or its agent was revoked after `issued`, for renewals.
    ///
    /// # Errors
    /// As [`ControlState::check_revocation`].
    pub fn check_task(
        &self,
        capability: &CapabilityId,
        task: &TaskId,
        user: &UserId,
        agent: &AgentId,
        issued: Epoch,
    ) -> Result<(), Reason> {
        if self.halted {
            return Err(ReasonCode::HaltAll.into());
        }
        let since = |target: RevocationTarget| {
            self.revocations.get(&target).is_some_and(|revocation| revocation.epoch > issued)
        };
        if self.revocations.contains_key(&RevocationTarget::Capability(capability.clone())) {
            return Err(ReasonCode::Revoked.into());
        }
        if self.revocations.contains_key(&RevocationTarget::Task(task.clone())) {
            return Err(ReasonCode::RevokedTask.into());
        }
        if since(RevocationTarget::User(user.clone())) {
            return Err(ReasonCode::RevokedUser.into());
        }
        if since(RevocationTarget::Agent(agent.clone())) {
            return Err(ReasonCode::RevokedAgent.into());
        }
        if self.quarantined.contains(agent) {
            return Err(ReasonCode::AgentQuarantined.into());
        }
        Ok(())
    }

    /// Checks that every agent of the chain is registered with the key it holds or held the capability by.
    ///
    /// # Errors
    /// `agent.key_unknown`.
    pub fn check_keys(&self, capability: &Capability) -> Result<(), Reason> {
        for (agent, key) in capability.chain().holders() {
            let enrolled = self.agents.get(agent).is_some_and(|keys| keys.contains_key(&key.id()));
            if !enrolled && !crate::red::off("D03") {
                return Err(Reason::new(ReasonCode::AgentKeyUnknown)
                    .told(format_args!("agent `{agent}`"))
                    .noted(format_args!("agent `{agent}`, key {}", key.id())));
            }
        }
        Ok(())
    }
}
