//! `writ approval …`

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use writ_bus::SystemClock;
use writ_common::{
    approval::{Approval as Request, ApprovalDecision, Approvals, COMMENT_BYTES_MAX, in_words},
    control::ControlState,
    ids::ApprovalId,
    policy::PolicySet,
    subjects::{Subject, filter},
    time::{Millis, Timestamp},
};

use super::Common;
use crate::{
    exit::{Denied, Exit},
    operator::Operator,
    view::approval as view,
};

/// What waits for people, and their answers
#[derive(Subcommand)]
pub enum Approval {
    /// Requests that wait; with `--all` the others too
    List(List),
    /// One request: exactly what would run, or the right that would be given, and who has answered
    Show(Which),
    /// Say yes, as the approver whose profile is used
    Grant(Answer),
    /// Say no
    Refuse(Answer),
    /// Follow requests as they come in, and tell a webhook
    Watch(Watch),
}

#[derive(Args)]
pub struct List {
    /// Also what was used, refused or has ended
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub struct Which {
    /// The approval's id, or `last`
    id: String,
}

#[derive(Args)]
pub struct Answer {
    /// The approval's id, or `last`
    id: String,
    /// Why; nodes tell the agent when it is refused
    #[arg(long, default_value = "")]
    comment: String,
    /// Answer without being asked once more
    #[arg(long)]
    yes: bool,
    /// Until when a yes counts, in seconds from now; to the end of the request if absent
    #[arg(long)]
    seconds: Option<u64>,
    /// Only if the request has this digest, as `writ approval show` printed it
    #[arg(long)]
    digest: Option<String>,
}

#[derive(Args)]
pub struct Watch {
    /// Posts each request as JSON to this URL
    #[arg(long)]
    webhook: Option<reqwest::Url>,
    /// End after the first new request
    #[arg(long)]
    once: bool,
}

fn now() -> Timestamp {
    SystemClock::new().now().wall
}

/// Approvals together with what they are judged by.
struct Known {
    approvals: Approvals,
    control: ControlState,
}

impl Known {
    async fn read(operator: &Operator) -> Result<Self> {
        Ok(Self { approvals: operator.approvals().await?, control: operator.control().await? })
    }

    fn find(&self, id: &str) -> Result<&Request> {
        if id == "last" {
            let last = self.approvals.iter().map(|(_, approval)| approval).max_by_key(|a| a.request().at);
            return last.context("there is no request for approval");
        }
        let id = ApprovalId::parse(id)?;
        self.approvals.get(&id).with_context(|| {
            format!("there is no request `{id}`; `writ approval list --all` shows what there is")
        })
    }
}

impl Approval {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::List(list) => list.run(common).await,
            Self::Show(which) => {
                let operator = common.operator().await?;
                let known = Known::read(&operator).await?;
                let approval = known.find(&which.id)?;
                let is_signed = approval.check_request(&known.control).is_ok();
                common.say(view::page(approval, is_signed, now()), &view::to_json(approval, now()))?;
                Ok(Exit::Ok)
            }
            Self::Grant(answer) => answer.run(common, ApprovalDecision::Granted).await,
            Self::Refuse(answer) => answer.run(common, ApprovalDecision::Refused).await,
            Self::Watch(watch) => watch.run(common).await,
        }
    }
}

impl List {
    async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let known = Known::read(&operator).await?;
        let now = now();
        let mut listed: Vec<&Request> = known
            .approvals
            .iter()
            .map(|(_, approval)| approval)
            .filter(|approval| self.all || matches!(view::state(approval, now), "waiting" | "answered"))
            .collect();
        listed.sort_by_key(|approval| approval.request().at);
        let lines: Vec<String> = listed.iter().map(|approval| view::line(approval, now)).collect();
        let text = if lines.is_empty() { "nothing waits for approval".to_owned() } else { lines.join("\n") };
        let all: Vec<Value> = listed.iter().map(|approval| view::to_json(approval, now)).collect();
        common.say(text, &json!(all))?;
        Ok(Exit::Ok)
    }
}

impl Answer {
    async fn run(self, common: &Common, decision: ApprovalDecision) -> Result<Exit> {
        let operator = common.operator().await?;
        operator.check_approver()?;
        let known = Known::read(&operator).await?;
        let approval = known.find(&self.id)?;
        let now = now();
        self.check(approval, &known.control, &operator, now)?;
        let id = approval.request().id.clone();
        let verb = match decision {
            ApprovalDecision::Granted => "grant",
            ApprovalDecision::Refused => "refuse",
        };
        if !self.yes && !confirmed(&view::page(approval, true, now), verb)? {
            bail!("nothing was answered");
        }
        let end = approval.request().expires;
        let sooner = self.seconds.map(|seconds| now.after(Millis::from_secs(seconds)).min(end));
        // A no does not run out before its question.
        let expires = if decision == ApprovalDecision::Granted { sooner.unwrap_or(end) } else { end };
        operator.answer_approval(approval, decision, &self.comment, expires).await?;
        let word = match decision {
            ApprovalDecision::Granted => "granted",
            ApprovalDecision::Refused => "refused",
        };
        let text = format!("{id} {word} by {}", operator.name());
        common.say(text, &json!({"approval": id, "decision": decision, "by": operator.name()}))?;
        operator.close().await;
        Ok(Exit::Ok)
    }

    /// What a node would not count is told here, before anything is signed.
    fn check(
        &self,
        approval: &Request,
        control: &ControlState,
        operator: &Operator,
        now: Timestamp,
    ) -> Result<()> {
        let request = approval.request();
        let denied = |why: String| Err(Denied(why).into());
        if self.id == "last" && self.yes && self.digest.is_none() {
            bail!("whoever asks last decides what `last` is: name the request, or its `--digest`");
        }
        if self.comment.len() > COMMENT_BYTES_MAX {
            bail!("the comment has {} bytes, at most {COMMENT_BYTES_MAX}", self.comment.len());
        }
        if let Err(reason) = approval.check_request(control) {
            return denied(format!("{reason}: no enrolled node or broker asked for this"));
        }
        if let Some(digest) = &self.digest
            && *digest != approval.digest().to_string()
        {
            return denied(format!("the request has the digest {}, not {digest}", approval.digest()));
        }
        let state = view::state(approval, now);
        if matches!(state, "used" | "expired") {
            return denied(format!("`{}` is {state}; an answer would change nothing", request.id));
        }
        let name = operator.name();
        if control.approver_key(name).is_none() {
            return denied(format!(
                "`{name}` has no enrolled key: add `[[approver]]` to the broker's writ.toml and restart the broker"
            ));
        }
        let policy = control.policy().and_then(|(_, bundle)| PolicySet::load(bundle).ok());
        let Some((policy, _)) = policy else { return denied("no policy is in force".to_owned()) };
        let entry = policy.inventory().approvers.get(name);
        let has_role =
            entry.is_some_and(|entry| request.needs.iter().any(|need| entry.roles.contains(&need.role)));
        if !has_role {
            return denied(format!("approval.role: `{name}` cannot give {}", in_words(&request.needs)));
        }
        Ok(())
    }
}

/// Shows what would run and asks; whoever cannot be asked has to say `--yes`.
pub(super) fn confirmed(page: &str, verb: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; read `writ approval show` and add `--yes`");
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{page}\n{verb}? Type `yes`: ")?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

impl Watch {
    async fn run(self, common: &Common) -> Result<Exit> {
        let telemetry = writ_telemetry::init("writ-approval", writ_telemetry::LogFormat::Lines)?;
        let operator = common.operator().await?;
        let control = operator.control().await?;
        let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(10)).build()?;
        let mut requests = operator.follow(|tenant, part| vec![filter::approvals(tenant, part)]).await?;
        loop {
            let message = requests.recv().await.context("the stream is lost")?;
            let Ok((_, Subject::ApprovalRequest { approval, .. })) = Subject::parse(&message.subject) else {
                continue;
            };
            let mut approvals = Approvals::default();
            drop(approvals.take(message.sequence, &message.subject, &message.payload, now()));
            let Some(request) = approvals.get(&approval) else { continue };
            if request.check_request(&control).is_err()
                && request.check_request(&operator.control().await?).is_err()
            {
                tracing::warn!("`{approval}` is not signed by the node or broker it names");
                continue;
            }
            let told = view::to_json(request, now());
            common.say(view::line(request, now()), &told)?;
            if let Some(url) = &self.webhook {
                let body = serde_json::to_vec(&told)?;
                let sent = client
                    .post(url.clone())
                    .header("content-type", "application/json")
                    .body(body)
                    .send()
                    .await;
                // A hook that is away must not stop the next notice; the request waits in any case.
                if let Err(error) = sent.and_then(reqwest::Response::error_for_status) {
                    // Its path may be a secret.
                    let host = url.host_str().unwrap_or("?");
                    tracing::warn!("the webhook at {host}: {}", error.without_url());
                }
            }
            if self.once {
                telemetry.shutdown();
                return Ok(Exit::Ok);
            }
        }
    }
}
