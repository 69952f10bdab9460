//! A human who is asked says yes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;
use writ::operator::Operator;
use writ_bus::SystemClock;
use writ_common::{
    approval::{ApprovalDecision, Approvals},
    ids::ApprovalId,
    subjects::Subject,
};

/// How long after it was lost the stream is looked at again.
const PAUSE: Duration = Duration::from_millis(100);

/// An approver who follows what is asked, until dropped.
pub struct Human {
    worker: JoinHandle<()>,
    said: Arc<Mutex<Said>>,
}

/// What came of listening.
#[derive(Default)]
struct Said {
    /// The arguments nothing vouches for, as every request showed them.
    unsourced: BTreeMap<ApprovalId, Vec<String>>,
    /// What went wrong last.
    fault: Option<String>,
}

impl Drop for Human {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Human {
    /// Begins to listen.
    pub fn new(approver: Operator) -> Self {
        let said = Arc::<Mutex<Said>>::default();
        Self { worker: tokio::spawn(grant_all(approver, Arc::clone(&said))), said }
    }

    /// What a request showed of arguments nothing vouches for; to be asked once it was granted.
    pub fn saw(&self, approval: &ApprovalId) -> Vec<String> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.unsourced.remove(approval).unwrap_or_default()
    }

    /// What went wrong with listening or answering, for whoever waited in vain.
    pub fn fault(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }
}

/// The stream may be lost under load; it goes on with what was not answered yet.
async fn grant_all(approver: Operator, said: Arc<Mutex<Said>>) {
    let mut next = 1;
    loop {
        if let Err(fault) = grant_from(&approver, &said, &mut next).await {
            said.lock().unwrap_or_else(PoisonError::into_inner).fault = Some(format!("{fault:#}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn grant_from(approver: &Operator, said: &Mutex<Said>, next: &mut u64) -> Result<()> {
    let mut asked = approver.approval_tail(&writ_common::ids::PartId::first(), *next).await?;
    loop {
        let message = asked.next().await?;
        let (_, subject) = Subject::parse(&message.subject)?;
        if let Subject::ApprovalRequest { approval, .. } = subject {
            // By itself: of all that was ever asked there may be more than a fold has room for.
            let (mut approvals, now) = (Approvals::default(), SystemClock::new().now().wall);
            approvals.take(message.sequence, &message.subject, &message.payload, now)?;
            let request = approvals.get(&approval).context("a request that is not there")?;
            let unsourced = request.request().sources.iter().filter(|one| one.source.is_none());
            let unsourced = unsourced.map(|one| format!("{} ({})", one.path, one.entity)).collect();
            said.lock().unwrap_or_else(PoisonError::into_inner).unsourced.insert(approval, unsourced);
            let expires = request.request().expires;
            approver.answer_approval(request, ApprovalDecision::Granted, "", expires).await?;
        }
        *next = message.sequence + 1;
    }
}
