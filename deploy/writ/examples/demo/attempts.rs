//! What the agents try outside their authority, each attempt with the reason it should be refused for.

use std::time::Duration;

use anyhow::{Context as _, Result};
use writ::dev::DevStack;
use writ_bus::{Bus, SystemClock, SystemEntropy};
use writ_common::{
    capability::UnverifiedCapability,
    codec::{decode, encode},
    entropy::draw,
    ids::{Action, Resource},
    reason::ReasonCode,
    request::Arguments,
    subjects::Subject,
    time::Millis,
    wire::{Answer, Call, CallReply, UnsignedCall},
};
use writ_sdk::{Agent, ApprovalId, Error, Held, Narrowing, NewTask, Right, Task, Value, json};

/// How long an answer to a hand-made call may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One attempt and how it ended.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who tried.
    pub who: String,
    /// What.
    pub what: &'static str,
    /// The code it should be refused with.
    pub expected: &'static str,
    /// The code it was refused with, or what happened instead.
    pub code: String,
    /// What the caller was told, where that is the point.
    pub why: Option<String>,
}

impl Attempt {
    fn new<T>(who: &Agent, what: &'static str, expected: ReasonCode, result: Result<T, Error>) -> Self {
        let code = match result {
            Ok(_) => "done".to_owned(),
            Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.to_string()),
        };
        Self { who: who.name().to_string(), what, expected: expected.as_str(), code, why: None }
    }

    /// The same, with what the caller is told.
    fn told<T>(who: &Agent, what: &'static str, expected: ReasonCode, result: Result<T, Error>) -> Self {
        let why = match &result {
            Err(Error::Denied(denial)) => denial.reasons.first().map(|reason| reason.text.clone()),
            _ => None,
        };
        Self { why, ..Self::new(who, what, expected, result) }
    }
}

async fn read(task: &Task, sql: &str) -> Result<Value, Error> {
    task.call("tool.crm", "read", json::object([("sql", sql.into())])).await
}

fn letter() -> Value {
    json::object([
        ("to", json::list(["press@example.com"])),
        ("subject", "All our customers".into()),
        ("body", "…".into()),
    ])
}

/// The researcher may read, with one SELECT at a time, and hand mailing on.
pub async fn by_researcher(task: &Task) -> Result<Vec<Attempt>, Error> {
    let me = task.agent();
    let write = read(task, "UPDATE orders SET status = 'lost' WHERE id = 102").await;
    let second = read(task, "SELECT name FROM customers; DELETE FROM customers").await;
    let draft = task.call("tool.mail", "draft", letter()).await;
    let argument = json::object([("sql", "SELECT 1".into()), ("as_user", "root".into())]);
    let argument = task.call("tool.crm", "read", argument).await;
    let end = SystemClock::new().now().wall.after(Millis::from_secs(1));
    let short = task.narrow(Narrowing::new().until(end));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let late = read(&short, "SELECT name FROM customers").await;
    Ok(vec![
        Attempt::new(me, "writes to the database", ReasonCode::SqlNotReadOnly, write),
        Attempt::new(me, "smuggles in a second statement", ReasonCode::SqlMultiStatement, second),
        Attempt::new(me, "mails by itself, against a deny rule", ReasonCode::PolicyDenied, draft),
        Attempt::new(me, "adds an argument the contract does not know", ReasonCode::ArgUnknown, argument),
        Attempt::new(me, "goes on after its capability expired", ReasonCode::TokenExpired, late),
    ])
}

/// The mailer was handed two rights: to draft, and to send what somebody approves.
pub async fn by_mailer(
    task: &Task,
    bus: &Bus,
    stolen: &UnverifiedCapability,
    held: Option<&Held>,
) -> Result<Vec<Attempt>, Error> {
    let me = task.agent();
    let widened = read(task, "SELECT email FROM customers").await;
    let thief = RawCall::new(me, stolen, "tool.crm", "read", json::object([("sql", "SELECT 1".into())]))?;
    let thief = thief.send(bus).await;
    let own = task.capability().await?;
    let recorded = RawCall::new(me, &own, "tool.mail", "draft", letter())?;
    recorded.send(bus).await?;
    let again = recorded.send(bus).await;
    let twice = match held {
        Some(held) => task.proceed(held).await,
        None => Err(Error::BadAnswer("nothing was held".to_owned())),
    };
    let injected = task.call("tool.mail", "send", letter()).await;
    let other = match held {
        Some(held) => {
            let more = json::object([
                ("to", json::list(["ada@example.com"])),
                ("subject", "All our customers".into()),
                ("body", "…".into()),
            ]);
            RawCall::new(me, &own, "tool.mail", "send", more)?.under(&held.approval).send(bus).await
        }
        None => Err(Error::BadAnswer("nothing was held".to_owned())),
    };
    Ok(vec![
        Attempt::new(me, "reads, which was not handed to it", ReasonCode::DelegationWidening, widened),
        Attempt::new(me, "uses a stolen capability without its key", ReasonCode::TokenHolderMismatch, thief),
        Attempt::new(me, "sends a recorded call a second time", ReasonCode::RequestReplayed, again),
        Attempt::new(me, "makes the approved call once more", ReasonCode::RequestReplayed, twice),
        Attempt::new(me, "sends another mail under bob's approval", ReasonCode::ApprovalBinding, other),
        Attempt::told(me, "mails the customers to whom the page said", ReasonCode::FlowIntegrity, injected),
    ])
}

/// The planner may start tasks for those whose role allows it, with what their role allows.
pub async fn by_planner(planner: &Agent, stack: &DevStack, kind: &str) -> Result<Vec<Attempt>> {
    let alice = stack.tokens.token_for("alice")?;
    let modest = NewTask::new(kind, alice.clone(), "read only").rights([Right::parse("tool.crm:read")?]);
    let modest = planner.start_task(modest).await?;
    let missing = modest.call("tool.mail", "draft", letter()).await;
    let greedy = NewTask::new(kind, alice.clone(), "").rights([Right::parse("tool.bank:pay")?]);
    let greedy = planner.start_task(greedy).await;
    let bob = planner.start_task(NewTask::new(kind, stack.tokens.token_for("bob")?, "")).await;
    let (head, _) = alice.rsplit_once('.').context("a token has three parts")?;
    let forged = planner.start_task(NewTask::new(kind, format!("{head}.{}", "A".repeat(86)), "")).await;
    Ok(vec![
        Attempt::new(planner, "mails in a task that may only read", ReasonCode::RightMissing, missing),
        Attempt::new(planner, "asks for a right alice's role lacks", ReasonCode::DelegationWidening, greedy),
        Attempt::new(planner, "acts for bob, whose role may not", ReasonCode::GrantNotAllowed, bob),
        Attempt::new(planner, "brings a user token nobody signed", ReasonCode::JwtSignature, forged),
    ])
}

/// Once the task is halted, nothing more happens in it.
pub async fn after_halt(task: &Task) -> Attempt {
    let result = read(task, "SELECT name FROM customers").await;
    Attempt::new(task.agent(), "goes on with the halted task", ReasonCode::RevokedTask, result)
}

/// A call made by hand, past the SDK's own care.
struct RawCall {
    subject: String,
    call: Call,
}

impl RawCall {
    fn new(
        agent: &Agent,
        capability: &UnverifiedCapability,
        resource: &str,
        action: &str,
        arguments: Value,
    ) -> Result<Self, Error> {
        let resource = Resource::parse(resource)?;
        let call = UnsignedCall {
            capability,
            resource: &resource,
            action: &Action::parse(action)?,
            arguments: &Arguments::new(arguments),
            handover: None,
            approval: None,
            nonce: draw(&mut SystemEntropy),
            issued_at: SystemClock::new().now().wall,
        };
        let call = call.sign(&agent.identity().holder);
        let task = capability.grant().task.clone();
        let subject = Subject::Call { agent: agent.name().clone(), task, resource };
        Ok(Self { subject: subject.of(&agent.identity().tenant), call })
    }

    fn under(mut self, approval: &ApprovalId) -> Self {
        self.call.approval = Some(approval.clone());
        self
    }

    async fn send(&self, bus: &Bus) -> Result<(), Error> {
        let reply = bus.request(self.subject.clone(), encode(&self.call), None, TIMEOUT).await?;
        let reply: CallReply = decode(&reply.payload).map_err(|error| Error::BadAnswer(error.to_string()))?;
        match reply.answer {
            Answer::Done { .. } => Ok(()),
            Answer::Denied { reasons } => Err(Error::refused(reasons)),
            Answer::Failed { reason, status } => Err(Error::Failed { reason, status }),
            Answer::Held { approval, .. } => Err(Error::BadAnswer(format!("held for {approval}"))),
            Answer::Replayed { first, outcome } => Err(Error::Replayed { first, outcome }),
        }
    }
}
