//! Calling tools: signed, repeated safely, and believed only with a receipt.

use std::time::{Duration, Instant};

use writ_bus::{BusError, SystemEntropy};
use writ_common::{
    capability::UnverifiedCapability,
    codec::{decode, encode},
    digest::Digest,
    entropy::draw,
    ids::{Action, ApprovalId, NodeId, Resource, ResourceKind},
    json::Value,
    label::Label,
    reason::ReasonCode,
    record::{DecisionId, Origin, OutcomeStatus, Receipt},
    request::Arguments,
    signed::Signed,
    subjects::Subject,
    trace::TraceContext,
    wire::{Answer, CallReply, FetchRequest, UnsignedCall, call_id},
};

use crate::{Error, Held, Task, spans::Span};

/// The number of an attempt after which nothing is asked for any more.
const ASKED_AGAIN: u32 = 0;
/// Pause before a result is asked for that was kept back.
const WITHHELD_PAUSE: Duration = Duration::from_millis(250);
/// How long one attempt waits for an answer.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a called agent may take.
const AGENT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long after its first attempt a call may be sent again.
const RESEND_WITHIN: Duration = Duration::from_secs(60);
/// How often a call is repeated after a lost answer or while no node listens.
const ATTEMPTS_MAX: u32 = 4;
/// How often a result that is not there yet is asked for.
const FETCHES_MAX: u32 = 60;

/// One logical call: its nonce stays the same however often it is sent.
pub(crate) struct Logical {
    pub(crate) resource: Resource,
    pub(crate) action: Action,
    pub(crate) arguments: Arguments,
    pub(crate) handover: Option<UnverifiedCapability>,
    pub(crate) nonce: [u8; 16],
    /// The approval it is made under, once it was held for one.
    pub(crate) approval: Option<ApprovalId>,
}

impl Logical {
    pub(crate) fn new(
        resource: Resource,
        action: Action,
        arguments: Value,
        handover: Option<UnverifiedCapability>,
    ) -> Self {
        let arguments = Arguments::new(arguments);
        Self { resource, action, arguments, handover, nonce: draw(&mut SystemEntropy), approval: None }
    }

    /// An agent may take longer than a tool.
    fn timeout(&self) -> Duration {
        match self.resource.kind() {
            ResourceKind::Agent => AGENT_TIMEOUT,
            _ => ATTEMPT_TIMEOUT,
        }
    }

    /// The call, put aside until people have answered.
    fn held(&self, task: &Task, answer: Answer, trace: Option<&TraceContext>) -> Option<Held> {
        let Answer::Held { approval, expires, missing, unusable } = answer else { return None };
        Some(Held {
            approval,
            task: task.id.clone(),
            expires,
            missing,
            unusable,
            resource: self.resource.clone(),
            action: self.action.clone(),
            arguments: self.arguments.canonical().to_owned(),
            handover: self.handover.as_ref().map(|chain| chain.as_bytes().to_vec()).unwrap_or_default(),
            nonce: self.nonce.to_vec(),
            trace: trace.map(ToString::to_string),
        })
    }
}

/// A result and what it carries, as the node said under its receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The result.
    pub value: Value,
    /// Who may see it, and whether outsiders had a say in it.
    pub label: Label,
}

impl Task {
    /// Calls a tool and returns its result.
    ///
    /// A lost answer is asked for again; the call itself runs at most once.
    ///
    /// # Errors
    /// [`Error`], told apart by what can be done about it. [`Error::Held`] if people have to approve it first:
    /// then [`Task::wait_for_approval`] or, later, [`Task::proceed`].
    pub async fn call(&self, resource: &str, action: &str, arguments: Value) -> Result<Value, Error> {
        self.call_labelled(resource, action, arguments).await.map(|labelled| labelled.value)
    }

    /// Calls a tool and returns its result with the label the node released it under.
    ///
    /// # Errors
    /// As [`Task::call`].
    pub async fn call_labelled(
        &self,
        resource: &str,
        action: &str,
        arguments: Value,
    ) -> Result<Labelled, Error> {
        let logical = Logical::new(Resource::parse(resource)?, Action::parse(action)?, arguments, None);
        let span = self.span.execute_tool(logical.resource.name(), &self.id);
        let result = self.send(&logical, span.context()).await;
        note(&span, &result);
        result
    }

    pub(crate) async fn send(
        &self,
        logical: &Logical,
        trace: Option<TraceContext>,
    ) -> Result<Labelled, Error> {
        let begun = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let capability = self.capability().await?;
            let (payload, digest) = self.sign(logical, &capability);
            let subject = Subject::Call {
                agent: self.agent.name().clone(),
                task: self.id.clone(),
                resource: logical.resource.clone(),
            };
            let subject = subject.of(&self.agent.identity().tenant);
            let bus = &self.agent.shared.bus;
            match bus.request(subject, payload, trace.as_ref(), logical.timeout()).await {
                Ok(reply) => {
                    let id = call_id(capability.chain().holder(), &logical.nonce);
                    let (reply, receipt) = self.read(&reply.payload, digest, id).await?;
                    if matches!(reply.answer, Answer::Held { .. })
                        && let Some(held) = logical.held(self, reply.answer.clone(), trace.as_ref())
                    {
                        return Err(Error::Held(Box::new(held)));
                    }
                    return self.conclude((reply, receipt), id, attempt).await;
                }
                // The same nonce again: if the first was done, its result is fetched, not done twice.
                Err(BusError::TimedOut(_) | BusError::NotConnected) if attempt < ATTEMPTS_MAX => {}
                Err(BusError::NoResponders(_)) if attempt < ATTEMPTS_MAX => {}
                Err(BusError::NoResponders(_)) => return Err(Error::NoNode(logical.resource.to_string())),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(50 << attempt.min(5))).await;
            // The stream remembers a nonce for two minutes. Past that, the same call would be run again.
            if begun.elapsed() > RESEND_WITHIN {
                return Err(Error::TimedOut);
            }
        }
    }

    /// Signs a call; every attempt is signed afresh, since a signature ages.
    fn sign(&self, logical: &Logical, capability: &UnverifiedCapability) -> (Vec<u8>, Digest) {
        let call = UnsignedCall {
            capability,
            resource: &logical.resource,
            action: &logical.action,
            arguments: &logical.arguments,
            handover: logical.handover.as_ref(),
            nonce: logical.nonce,
            approval: logical.approval.as_ref(),
            issued_at: self.agent.now(),
        };
        (encode(&call.sign(&self.agent.identity().holder)), call.digest())
    }

    /// Reads a reply and checks its receipt: a known node, this call, this result.
    async fn read(
        &self,
        payload: &[u8],
        call: Digest,
        id: Digest,
    ) -> Result<(CallReply, Option<Receipt>), Error> {
        let bad = |why: &str| Error::BadAnswer(why.to_owned());
        let reply: CallReply = decode(payload).map_err(|error| bad(&error.to_string()))?;
        let Some(signed) = &reply.receipt else {
            // A refusal before there was a record can come without. Nothing else can: somebody on the way could
            // make it up, and have the call made again.
            return match &reply.answer {
                Answer::Denied { reasons } if reasons.iter().all(|reason| is_unrecorded(reason.code)) => {
                    Ok((reply, None))
                }
                // Being told to go on waiting has no record of its own: the hold has. Made up, it delays.
                Answer::Held { .. } => Ok((reply, None)),
                _ => Err(bad("an answer without a receipt")),
            };
        };
        let receipt = self.open_receipt(signed).await?;
        // Of a call that could not be read, only the refusal is vouched for.
        let is_refusal = matches!(reply.answer, Answer::Denied { .. });
        let fits =
            |receipted: Option<Digest>, own| receipted.map_or(is_refusal, |receipted| receipted == own);
        if receipt.answer != reply.answer.digest() || !fits(receipt.call, call) || !fits(receipt.call_id, id)
        {
            return Err(bad("the receipt is for another call or another answer"));
        }
        Ok((reply, Some(receipt)))
    }

    async fn open_receipt(&self, signed: &Signed<Receipt>) -> Result<Receipt, Error> {
        let bad = |why: String| Error::BadAnswer(why);
        let claimed = signed.peek().map_err(|error| bad(error.to_string()))?;
        let Origin::Node(node) = &claimed.id.origin else { return Err(bad("a receipt by no node".into())) };
        if self.agent.node_key(node).is_none() {
            // A node that joined since.
            self.agent.refresh_keys().await?;
        }
        let key =
            self.agent.node_key(node).ok_or_else(|| bad(format!("`{node}` is no node of this tenant")))?;
        let receipt = signed.open(|signer| *signer == key).map_err(|error| bad(error.to_string()))?;
        self.agent.shared.receipts.keep(signed);
        Ok(receipt)
    }

    async fn conclude(
        &self,
        (reply, receipt): (CallReply, Option<Receipt>),
        id: Digest,
        attempt: u32,
    ) -> Result<Labelled, Error> {
        match reply.answer {
            Answer::Denied { reasons } => Err(Error::denied(reasons, receipt)),
            Answer::Done { result, label } => {
                let value = Value::parse_canonical(&result);
                let value = value.map_err(|error| Error::BadAnswer(error.to_string()))?;
                Ok(Labelled { value, label })
            }
            // Done, and kept back while the label could not be raised: it may be had a moment later.
            Answer::Failed { reason, status: OutcomeStatus::Done }
                if reason.code == ReasonCode::FlowWithheld && attempt != ASKED_AGAIN =>
            {
                let failed = || Error::Failed { reason: reason.clone(), status: OutcomeStatus::Done };
                let first = receipt.map(|receipt| receipt.id).ok_or_else(failed)?;
                tokio::time::sleep(WITHHELD_PAUSE).await;
                match self.fetch(&first, Some(OutcomeStatus::Done), id).await {
                    Err(Error::Replayed { .. }) => Err(failed()),
                    fetched => fetched,
                }
            }
            Answer::Failed { reason, status } => Err(Error::Failed { reason, status }),
            Answer::Held { .. } => Err(Error::BadAnswer("a hold where none can be".to_owned())),
            // Our own first attempt: its answer was lost, its result may still be had.
            Answer::Replayed { first, outcome } if attempt > 1 => self.fetch(&first, outcome, id).await,
            Answer::Replayed { first, outcome } => Err(Error::Replayed { first, outcome }),
        }
    }

    /// Asks the node that ran the first attempt for what came of it.
    async fn fetch(
        &self,
        first: &DecisionId,
        outcome: Option<OutcomeStatus>,
        id: Digest,
    ) -> Result<Labelled, Error> {
        let replayed = || Error::Replayed { first: first.clone(), outcome };
        let Origin::Node(node) = &first.origin else { return Err(replayed()) };
        for _ in 0..FETCHES_MAX {
            let reply = self.fetch_once(node, id).await?;
            match reply.answer {
                // Not done yet.
                Answer::Replayed { outcome: None, .. } => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Answer::Denied { .. } | Answer::Held { .. } | Answer::Replayed { .. } => {
                    return Err(replayed());
                }
                Answer::Done { .. } | Answer::Failed { .. } => {
                    let receipt = match &reply.receipt {
                        Some(signed) => Some(self.open_receipt(signed).await?),
                        None => None,
                    };
                    let is_meant = |receipt: &Receipt| {
                        receipt.id == *first
                            && receipt.call_id == Some(id)
                            && receipt.answer == reply.answer.digest()
                    };
                    let Some(receipt) = receipt.filter(is_meant) else {
                        return Err(Error::BadAnswer("the kept result is of another call".to_owned()));
                    };
                    return Box::pin(self.conclude((reply, Some(receipt)), id, ASKED_AGAIN)).await;
                }
            }
        }
        Err(replayed())
    }

    async fn fetch_once(&self, node: &NodeId, id: Digest) -> Result<CallReply, Error> {
        let identity = self.agent.identity();
        let request = FetchRequest {
            tenant: identity.tenant.clone(),
            task: self.id.clone(),
            node: node.clone(),
            call_id: id,
            at: self.agent.now(),
        };
        let subject = Subject::Call {
            agent: self.agent.name().clone(),
            task: self.id.clone(),
            resource: Resource::node(node),
        };
        let payload = encode(&Signed::new(&request, &identity.holder));
        let bus = &self.agent.shared.bus;
        let reply = bus.request(subject.of(&identity.tenant), payload, None, ATTEMPT_TIMEOUT).await;
        let reply = reply.map_err(|error| match error {
            BusError::NoResponders(_) => Error::NoNode(format!("node.{node}")),
            other => other.into(),
        })?;
        decode(&reply.payload).map_err(|error| Error::BadAnswer(error.to_string()))
    }
}

/// The refusals a node gives before it can record anything.
fn is_unrecorded(code: ReasonCode) -> bool {
    matches!(code, ReasonCode::RequestQuota | ReasonCode::AuditFull | ReasonCode::AuditUnavailable)
}

pub(crate) fn note<T>(span: &Span, result: &Result<T, Error>) {
    if let Err(error) = result {
        let kind = match error {
            // The guardrail did its work: nothing failed.
            Error::Held(_) | Error::RightWaiting(_) => return,
            Error::Denied(_) => "permission_denied",
            Error::CouldNotDecide(_) => "could_not_decide",
            Error::TimedOut => "timeout",
            _ => "error",
        };
        span.failed(kind, &error.to_string());
    }
}
