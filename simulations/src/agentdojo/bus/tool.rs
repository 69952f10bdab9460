//! Tools that answer with what the file says they answered.
//!
//! The node runs them under a permit as any other. What they keep carries the label its task had on the bus when it was
//! written, and what they return of it carries that in turn.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use writ::operator::Operator;
use writ_common::{
    codec::decode,
    control::ControlState,
    datalog::Predicate,
    decide::Gate,
    ids::{Action, FlowDomain, TaskId},
    json::Value,
    label::{DomainLabel, Label},
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    signed::Signed,
    subjects::{Subject, part_stream},
    verdict::Permit,
};
use writ_node::{
    guard::ToolFailure,
    tools::{Tool, ToolOutput},
};

/// What the tools of one trace keep: by group, since a file does not say more.
pub type Stores = Arc<Mutex<BTreeMap<String, Label>>>;

/// A call that is about to be made, and what it is answered with.
#[derive(Clone)]
pub struct Expected {
    /// With these arguments and no others.
    pub arguments: Arc<Value>,
    /// The result.
    pub result: Value,
    /// The tools it belongs to.
    pub group: String,
    /// Whether it changes what they keep.
    pub writes: bool,
    /// The flow domain of the task.
    pub domain: FlowDomain,
    /// What was kept so far.
    pub stores: Stores,
}

/// Every tool of a suite.
pub struct Replayed {
    operator: Operator,
    control: ControlState,
    expected: Mutex<BTreeMap<TaskId, Expected>>,
}

impl Replayed {
    /// Tools that look labels up with an operator's connection.
    ///
    /// # Errors
    /// If the control stream cannot be read.
    pub async fn new(operator: Operator) -> anyhow::Result<Self> {
        let control = operator.control().await?;
        Ok(Self { operator, control, expected: Mutex::default() })
    }

    /// Says what the next call of a task is answered with.
    pub fn expect(&self, task: &TaskId, call: Expected) {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone(), call);
    }

    /// Forgets a task.
    pub fn forget(&self, task: &TaskId) {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }

    /// The label of a domain as it stands on the bus.
    async fn label(&self, domain: &FlowDomain) -> anyhow::Result<Label> {
        let tenant = self.operator.tenant();
        let subject = Subject::Label(domain.clone()).of(tenant);
        let found = self.operator.bus().last_on(&part_stream(tenant, &domain.part), &subject).await?;
        let Some(found) = found else { return Ok(Label::top()) };
        let signed: Signed<DomainLabel> = decode(&found.payload)?;
        Ok(signed.open(|key| self.control.is_label_key(key))?.label)
    }
}

impl Gate for Replayed {
    fn admit(&self, _action: &Action, _arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Tool for Replayed {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let failed = |why: String| ToolFailure {
            reason: Reason::new(ReasonCode::ToolFailed).told(why),
            status: OutcomeStatus::Failed,
        };
        let expected = permit
            .task()
            .and_then(|task| self.expected.lock().unwrap_or_else(PoisonError::into_inner).get(task).cloned());
        let Some(expected) = expected.filter(|call| *call.arguments == *permit.arguments().value()) else {
            return Err(failed("the file has no such call here".to_owned()));
        };
        let told = match expected.writes {
            true => self.label(&expected.domain).await.map_err(|error| failed(error.to_string()))?,
            false => Label::bottom(),
        };
        let mut stores = expected.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = stores.entry(expected.group).or_insert_with(Label::bottom);
        *kept = kept.join(&told);
        Ok(ToolOutput { label: Some(kept.clone()), ..ToolOutput::from(expected.result) })
    }
}
