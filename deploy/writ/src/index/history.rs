//! What the control stream tells an auditor that control state forgets: who changed what, and when.

use std::collections::{BTreeMap, BTreeSet};

use writ_common::{
    control::{Activation, ControlEvent, ControlFault, ControlState, RevocationTarget},
    ids::{AgentId, OperatorId, TenantId},
    keys::PublicKey,
    policy::PolicyBundle,
    record::Origin,
    time::Timestamp,
};

/// A change, when it was made, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Sequence of its event.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// A broker or an operator.
    pub by: String,
    /// What.
    pub what: T,
}

/// The control stream, folded for auditors.
#[derive(Clone, Debug)]
pub struct ControlHistory {
    /// The state at its end.
    pub state: ControlState,
    /// Every policy that was put in force, in order.
    pub policies: Vec<(Activation, PolicyBundle)>,
    /// Every revocation.
    pub revocations: Vec<Change<RevocationTarget>>,
    /// Agents isolated (true) and let go (false).
    pub quarantines: Vec<Change<(AgentId, bool)>>,
    /// Everything stopped (true) and let go on (false).
    pub halts: Vec<Change<bool>>,
    /// Every key an approver ever had: old answers stay verifiable.
    approver_keys: BTreeMap<OperatorId, BTreeSet<PublicKey>>,
    /// Every key that was enrolled for a broker's or node's records, and when: sequence of the event.
    pub record_keys: Vec<Change<(Origin, PublicKey)>>,
    /// Events that did not count.
    pub faults: Vec<ControlFault>,
}

impl ControlHistory {
    /// The history before the first event; `root` is the pinned offline root.
    #[must_use]
    pub fn new(tenant: TenantId, root: PublicKey) -> Self {
        Self {
            state: ControlState::new(tenant, root),
            policies: Vec::new(),
            revocations: Vec::new(),
            quarantines: Vec::new(),
            halts: Vec::new(),
            approver_keys: BTreeMap::new(),
            record_keys: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Takes an event. One that does not count is kept as a fault and changes nothing else.
    pub fn take(&mut self, sequence: u64, payload: &[u8]) {
        let document = match self.state.apply(sequence, payload) {
            Ok(document) => document,
            Err(fault) => return self.faults.push(fault),
        };
        let (at, by) = (document.at, document.by);
        match document.event {
            ControlEvent::ApproverKey { approver, key } => {
                self.approver_keys.entry(approver).or_default().extend(key);
            }
            ControlEvent::BrokerBoot { broker, key, .. } => {
                self.record_keys.push(Change { sequence, at, by, what: (Origin::Broker(broker), key) });
            }
            ControlEvent::HaltAll { on } => self.halts.push(Change { sequence, at, by, what: on }),
            ControlEvent::NodeKey { node, key, .. } => {
                self.record_keys.push(Change { sequence, at, by, what: (Origin::Node(node), key) });
            }
            ControlEvent::Policy(bundle) => {
                if let Some(activation) = self.state.activations().back() {
                    self.policies.push((activation.clone(), bundle));
                }
            }
            ControlEvent::Quarantine { agent, on } => {
                self.quarantines.push(Change { sequence, at, by, what: (agent, on) });
            }
            ControlEvent::Revocation { target, .. } => {
                self.revocations.push(Change { sequence, at, by, what: target });
            }
            _ => {}
        }
    }

    /// The policy in force at a moment.
    #[must_use]
    pub fn policy_at(&self, at: Timestamp) -> Option<&(Activation, PolicyBundle)> {
        self.policies.iter().rev().find(|(activation, _)| activation.at <= at)
    }

    /// Whether an agent was isolated at a moment, and by which event.
    #[must_use]
    pub fn quarantine_at(&self, agent: &AgentId, at: Timestamp) -> Option<&Change<(AgentId, bool)>> {
        let last = self.quarantines.iter().rev().find(|change| change.what.0 == *agent && change.at <= at);
        last.filter(|change| change.what.1)
    }

    /// Whether everything was stopped at a moment, and by which event.
    #[must_use]
    pub fn halt_at(&self, at: Timestamp) -> Option<&Change<bool>> {
        self.halts.iter().rev().find(|change| change.at <= at).filter(|change| change.what)
    }

    /// Whether a key was ever an approver's.
    #[must_use]
    pub fn is_approver_key(&self, approver: &OperatorId, key: &PublicKey) -> bool {
        self.approver_keys.get(approver).is_some_and(|keys| keys.contains(key))
    }
}
