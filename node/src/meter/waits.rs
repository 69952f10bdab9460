//! How long people take to answer what they are asked, and what nobody answers.
//!
//! Numbers only: whose answer counts is for the guard to say.

use std::collections::BTreeMap;

use writ_common::{
    approval::{ApprovalAnswer, ApprovalRequest},
    codec::decode,
    ids::ApprovalId,
    signed::Signed,
    subjects::Subject,
    time::Timestamp,
};
use writ_telemetry::metrics::{Exposition, Histogram, Kind, as_f64};

/// Upper bounds of how long people take, in seconds: 10 s to a day.
const WAIT_SECONDS: &[f64] =
    &[10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 86_400.0];
/// Most requests that are followed at once.
const OPEN_MAX: usize = 4_096;

/// What people were asked and how long they took, since a run began.
pub(super) struct Waits {
    started: Timestamp,
    /// Requests nobody has answered: since when, and until when.
    open: BTreeMap<ApprovalId, (Timestamp, Timestamp)>,
    waited: Histogram,
    unanswered: u64,
}

impl Waits {
    pub(super) fn new(started: Timestamp) -> Self {
        Self { started, open: BTreeMap::new(), waited: Histogram::new(WAIT_SECONDS), unanswered: 0 }
    }

    /// Takes a message about approvals. What was answered before this run began is not counted again.
    pub(super) fn take(&mut self, subject: &str, payload: &[u8]) {
        match Subject::parse(subject) {
            Ok((_, Subject::ApprovalRequest { approval, .. })) if self.open.len() < OPEN_MAX => {
                let signed = decode::<Signed<ApprovalRequest>>(payload).ok();
                if let Some(request) = signed.and_then(|signed| signed.peek().ok()) {
                    self.open.entry(approval).or_insert((request.at, request.expires));
                }
            }
            Ok((_, Subject::ApprovalAnswer { approval, .. })) => {
                let signed = decode::<Signed<ApprovalAnswer>>(payload).ok();
                if let Some(answer) = signed.and_then(|signed| signed.peek().ok())
                    && let Some((asked, _)) = self.open.remove(&approval)
                    && answer.at >= self.started
                {
                    self.waited.observe_time(answer.at.since(asked).to_duration());
                }
            }
            _ => {}
        }
    }

    /// Counts the requests whose time is over and that nobody answered.
    pub(super) fn end(&mut self, now: Timestamp) {
        let Self { started, open, unanswered, .. } = self;
        open.retain(|_, (_, expires)| {
            *unanswered += u64::from(*expires <= now && *expires > *started);
            *expires > now
        });
    }

    pub(super) fn show(&self, text: &mut Exposition) {
        let help = "From a request for approval until the first answer to it.";
        text.histogram("writ_approval_wait_seconds", help, &self.waited);
        let help = "Requests for approval whose time ran out before anybody answered.";
        text.single("writ_approvals_unanswered_total", Kind::Counter, help, as_f64(self.unanswered));
    }
}
