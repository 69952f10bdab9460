//! Operators: signed requests, decided by policy, recorded, and then written.

use writ_common::{
    codec::{decode, encode},
    control::{ControlEvent, RevocationTarget},
    decide::{Evidence, decide, without_policy},
    entropy::draw,
    ids::{Action, OperatorId, Resource, TaskId},
    json::Value,
    label::Label,
    policy::PolicySet,
    reason::{Reason, ReasonCode},
    record::{Basis, RecordBody, RecordedDecision, Verdicted, What, Who},
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    time::{Millis, Now, Timestamp},
    verdict::{Decision, Verdict},
    wire::{
        AdminReply, AdminRequest, AdminWanted, AgentInfo, AgentKeyInfo, NodeInfo, StatusInfo, TaskInfo,
        join_token_digest,
    },
};

use super::{Arrival, Broker, CallRef, Effect, TaskEntry, control::ControlWrite, told};

/// An operator's change of control state, allowed and on record.
pub(super) struct Operation {
    pub(super) operator: OperatorId,
    pub(super) event: ControlEvent,
    pub(super) wanted: AdminWanted,
    /// The join token, which is told once and stored nowhere.
    token: Option<String>,
}

/// Longest life of a join token.
const JOIN_TOKEN_LIFE_MAX: Millis = Millis::from_secs(7 * 86_400);
/// A key that is not to be trusted is so for good.
const FOR_GOOD: Timestamp = Timestamp::from_secs(253_402_300_799);
/// How long a revocation of something without an end of its own is kept: longer than anything it covers lives.
const REVOCATION_LIFE: Millis = Millis::from_secs(30 * 86_400);

impl Broker {
    pub(super) fn admin(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        match self.open_admin(&arrival.payload, now) {
            Ok((operator, request)) => self.decide_operation(call, &operator, &request.wanted, now),
            Err(reason) => {
                let payload = refused(std::slice::from_ref(&reason));
                self.record_verdict(call, &Verdict::deny(reason, None), Who::default(), payload, now);
            }
        }
    }

    /// Only the keys of the configuration count, and each request once.
    fn open_admin(&mut self, payload: &[u8], now: Now) -> Result<(OperatorId, AdminRequest), Reason> {
        let signed: Signed<AdminRequest> =
            decode(payload).map_err(|error| Reason::new(ReasonCode::CodecFormat).told(error))?;
        let operators = &self.setup.operators;
        let request = signed
            .open(|key| operators.values().any(|operator| operator == key))
            .map_err(|error| Reason::new(ReasonCode::AdminForbidden).noted(error))?;
        let operator = operators.iter().find(|(_, key)| **key == *signed.claimed_key());
        let operator = operator.map(|(name, _)| name.clone()).ok_or(ReasonCode::AdminForbidden)?;
        if request.tenant != self.setup.tenant {
            return Err(ReasonCode::TenantMismatch.into());
        }
        self.check_age(request.at, now.wall)?;
        let until = now.wall.after(self.setup.request_age_max).after(self.setup.skew).after(self.setup.skew);
        if self.nonces.insert(request.nonce, until).is_some() {
            return Err(ReasonCode::RequestReplayed.into());
        }
        Ok((operator, request))
    }

    fn decide_operation(&mut self, call: CallRef, operator: &OperatorId, wanted: &AdminWanted, now: Now) {
        let (request, who) = self.describe(operator, wanted);
        let verdict = match &self.policy {
            Some(policy) => self.judge_operator(&request, policy, now),
            None => without_policy(),
        };
        let what = What {
            resource: Some(request.resource.clone()),
            action: Some(request.action.clone()),
            arguments: Some(request.arguments.digest()),
            ..What::default()
        };
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        // What is allowed and cannot be done, since it names nothing there is, is on record as refused.
        let body = |decision, verdict: &Verdict| {
            RecordBody::Verdict(Box::new(Verdicted::new(decision, verdict, who, what, basis)))
        };
        let refusal = match verdict.decision() {
            Decision::Allow => match self.operation(operator, wanted, now) {
                Ok(None) => {
                    let payload = encode(&self.look_up(wanted, now));
                    return self.record(body(RecordedDecision::Allow, &verdict), Some((call, payload)), now);
                }
                Ok(Some(operation)) => {
                    self.record(body(RecordedDecision::Allow, &verdict), None, now);
                    let operation = Box::new(operation);
                    return match wanted {
                        AdminWanted::RotatePart => self.rotate_when_made(call, operation, now),
                        _ => self.queue_control(ControlWrite::Admin(call, operation), now),
                    };
                }
                Err(reasons) => Verdict::denied(reasons, Vec::new(), verdict.policy_revision()),
            },
            Decision::Deny => verdict,
        };
        let payload = refused(refusal.reasons());
        self.record(body(RecordedDecision::Deny, &refusal), Some((call, payload)), now);
    }

    /// What a policy says of an operator's request.
    pub(super) fn judge_operator(&self, request: &Request, policy: &PolicySet, now: Now) -> Verdict {
        let label = Label::bottom();
        decide(request, &Evidence::new(&self.control, &label), policy, now.wall)
    }

    /// The request as policy and record see it.
    pub(super) fn describe(&self, operator: &OperatorId, wanted: &AdminWanted) -> (Request, Who) {
        let task = |id: &TaskId| Resource::parse(format!("task.{id}")).ok();
        let resource = match wanted {
            AdminWanted::Enroll { agent, .. }
            | AdminWanted::Quarantine { agent, .. }
            | AdminWanted::WithdrawKey { agent, .. }
            | AdminWanted::Revoke { target: RevocationTarget::Agent(agent), .. } => {
                Some(Resource::agent(agent))
            }
            AdminWanted::ActivatePolicy { bundle, .. } | AdminWanted::RollbackPolicy { bundle, .. } => {
                Some(Resource::policy(&bundle.revision()))
            }
            AdminWanted::ShadowPolicy { bundle: Some(bundle) } => Some(Resource::policy(&bundle.revision())),
            AdminWanted::Task { task: Some(id) }
            | AdminWanted::Revoke { target: RevocationTarget::Task(id), .. } => task(id),
            _ => None,
        };
        // What concerns no single agent or task concerns all of them.
        let resource = resource.or_else(|| Resource::parse("task.all").ok());
        let action = Action::parse(wanted.action());
        let shown: Value = [("wanted", Value::from(format!("{wanted:?}")))].into_iter().collect();
        let who = Who {
            operator: Some(operator.to_string()),
            task: match wanted {
                AdminWanted::Revoke { target: RevocationTarget::Task(task), .. } => Some(task.clone()),
                _ => None,
            },
            ..Who::default()
        };
        #[expect(
            clippy::expect_used,
            reason = "`task.all` and the words of AdminWanted::action are in the grammar"
        )]
        let request = Request {
            principal: Principal::Operator(operator.clone()),
            action: action.expect("the words of AdminWanted::action are actions"),
            resource: resource.expect("`task.all` is a resource"),
            arguments: Arguments::new(shown),
            environment: Environment { tenant: self.setup.tenant.clone(), task: None, task_kind: None },
        };
        (request, who)
    }

    /// The control event an operator's wish comes to; none if it only asks.
    fn operation(
        &mut self,
        operator: &OperatorId,
        wanted: &AdminWanted,
        now: Now,
    ) -> Result<Option<Operation>, Vec<Reason>> {
        let mut token = None;
        let event = match wanted {
            AdminWanted::Agents | AdminWanted::Status | AdminWanted::Task { .. } => return Ok(None),
            AdminWanted::ActivatePolicy { bundle, expect }
            | AdminWanted::RollbackPolicy { bundle, expect } => {
                let is_back = matches!(wanted, AdminWanted::RollbackPolicy { .. });
                if !self.may_become_policy(bundle, *expect, is_back, now)? {
                    return Ok(None);
                }
                ControlEvent::Policy(bundle.clone())
            }
            AdminWanted::ShadowPolicy { bundle } => {
                if let Some(bundle) = bundle {
                    self.may_be_shadow(bundle)?;
                }
                ControlEvent::ShadowPolicy(bundle.clone())
            }
            AdminWanted::Enroll { agent, life } => {
                let known = self.policy.as_ref().is_some_and(|p| p.inventory().agents.contains_key(agent));
                if !known {
                    let reason = Reason::new(ReasonCode::AgentUnknown);
                    return Err(vec![reason.told(format_args!("agent `{agent}`"))]);
                }
                let text = hex::encode(draw::<24>(self.entropy.as_mut()));
                let event = ControlEvent::JoinToken {
                    token: join_token_digest(&text),
                    agent: agent.clone(),
                    expires: now.wall.after((*life).min(JOIN_TOKEN_LIFE_MAX)),
                };
                token = Some(text);
                event
            }
            AdminWanted::HaltAll { on } => ControlEvent::HaltAll { on: *on },
            AdminWanted::LegalHold { .. }
            | AdminWanted::PartArchived { .. }
            | AdminWanted::RotatePart
            | AdminWanted::SealPart { .. } => {
                self.part_operation(wanted, now).map_err(|reason| vec![reason])?
            }
            AdminWanted::Quarantine { agent, on } => {
                ControlEvent::Quarantine { agent: agent.clone(), on: *on }
            }
            AdminWanted::Revoke { target, .. } => {
                let until = self.end_of(target, now.wall).map_err(|reason| vec![reason])?;
                ControlEvent::Revocation { target: target.clone(), until }
            }
            AdminWanted::WithdrawKey { agent, key } => {
                let known = self.control.agent_keys(agent).is_some_and(|keys| keys.contains_key(key));
                if !known {
                    let reason = Reason::new(ReasonCode::AgentKeyUnknown);
                    return Err(vec![reason.told(format_args!("`{agent}` has no key `{key}`"))]);
                }
                ControlEvent::AgentKeyWithdrawn { agent: agent.clone(), key: key.clone() }
            }
        };
        Ok(Some(Operation { operator: operator.clone(), event, wanted: wanted.clone(), token }))
    }

    /// When everything a revocation covers has expired by itself.
    fn end_of(&self, target: &RevocationTarget, now: Timestamp) -> Result<Timestamp, Reason> {
        let unknown = || Reason::new(ReasonCode::TaskUnknown);
        match target {
            RevocationTarget::Task(task) => {
                let entry = self.tasks.get(task).ok_or_else(unknown)?;
                Ok(entry.deadline.max(now).after(Millis::from_secs(60)))
            }
            RevocationTarget::Capability(capability) => {
                let entry = self.tasks.values().find(|entry| entry.capability == *capability);
                Ok(entry.ok_or_else(unknown)?.deadline.max(now).after(Millis::from_secs(60)))
            }
            RevocationTarget::Holder(_) => Ok(FOR_GOOD),
            RevocationTarget::Agent(_) | RevocationTarget::Hop { .. } | RevocationTarget::User(_) => {
                Ok(now.after(REVOCATION_LIFE))
            }
        }
    }

    /// An operator's change is in force.
    pub(super) fn operation_done(&mut self, call: CallRef, operation: &Operation, now: Now) {
        let reply = match (&operation.token, &operation.event) {
            (Some(token), ControlEvent::JoinToken { expires, .. }) => {
                AdminReply::Enroll { token: token.clone(), expires: *expires }
            }
            _ => AdminReply::Done { epoch: self.control.epoch() },
        };
        let payload = encode(&reply);
        if matches!(operation.wanted, AdminWanted::Revoke { wait: true, .. } | AdminWanted::SealPart { .. }) {
            return self.wait_for_nodes(call, payload, now);
        }
        self.push(Effect::Reply(call, payload));
    }

    pub(super) fn operation_failed(&mut self, call: CallRef, reason: &Reason) {
        let payload = refused(std::slice::from_ref(reason));
        self.push(Effect::Reply(call, payload));
    }

    fn look_up(&self, wanted: &AdminWanted, now: Now) -> AdminReply {
        match wanted {
            AdminWanted::Agents => AdminReply::Agents(self.agent_infos()),
            AdminWanted::Status => AdminReply::Status(self.status(now)),
            AdminWanted::Task { task } => {
                let entry = match task {
                    Some(task) => self.tasks.get(task),
                    // Task ids sort by the time they were made.
                    None => self.tasks.values().next_back(),
                };
                match entry {
                    Some(entry) => AdminReply::Task(Box::new(self.task_info(entry, now))),
                    None => AdminReply::Refused { reasons: told(&[ReasonCode::TaskUnknown.into()]) },
                }
            }
            _ => AdminReply::Done { epoch: self.control.epoch() },
        }
    }

    fn agent_infos(&self) -> Vec<AgentInfo> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let agents = policy.inventory().agents.iter();
        agents
            .map(|(agent, entry)| AgentInfo {
                agent: agent.clone(),
                owner: entry.owner.clone(),
                description: entry.description.clone(),
                delegates_to: entry.delegates_to.iter().cloned().collect(),
                keys: self
                    .control
                    .agent_keys(agent)
                    .into_iter()
                    .flatten()
                    .map(|(key, enrolled)| AgentKeyInfo {
                        key: key.clone(),
                        connection: enrolled.connection.clone(),
                    })
                    .collect(),
                quarantined: self.control.is_quarantined(agent),
            })
            .collect()
    }

    fn status(&self, now: Now) -> StatusInfo {
        let nodes = self.control.nodes().iter();
        StatusInfo {
            epoch: self.control.epoch(),
            policy: self.policy.as_ref().map(|policy| policy.revision()),
            configured: Some(self.setup.policy.revision()),
            halted: self.control.is_halted(),
            nodes: nodes
                .map(|(node, entry)| {
                    let liveness = self.freshness.liveness(node);
                    NodeInfo {
                        node: node.clone(),
                        key: entry.key.id(),
                        applied: liveness.map(|liveness| liveness.applied),
                        fault: liveness.and_then(|liveness| liveness.fault),
                        heard: liveness.map(|liveness| now.monotonic.since(liveness.asked.monotonic)),
                        policy: liveness.and_then(|liveness| liveness.policy),
                        policy_fault: liveness.and_then(|liveness| liveness.policy_fault),
                        policy_behind: liveness.and_then(|liveness| liveness.behind(now)),
                    }
                })
                .collect(),
        }
    }

    fn task_info(&self, entry: &TaskEntry, now: Now) -> TaskInfo {
        let revoked = self
            .control
            .check_task(&entry.capability, &entry.task, &entry.user, &entry.agent, entry.started)
            .err()
            .map(|reason| reason.code());
        let over = (now.wall >= entry.deadline).then_some(ReasonCode::TaskDeadline);
        TaskInfo {
            task: entry.task.clone(),
            kind: entry.kind.clone(),
            user: entry.user.clone(),
            agent: entry.agent.clone(),
            capability: entry.capability.clone(),
            serial: entry.serial,
            rights: entry.rights.clone(),
            deadline: entry.deadline,
            stopped: revoked.or(over),
        }
    }
}

fn refused(reasons: &[Reason]) -> Vec<u8> {
    encode(&AdminReply::Refused { reasons: told(reasons) })
}
