//! Who does what: a planner, a researcher and a mailer answer a customer's question.

use std::{
    fmt,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use writ::{
    dev::DevStack,
    operator::Operator,
    view::{Colour, colour},
};
use writ_bus::Bus;
use writ_common::{capability::UnverifiedCapability, control::RevocationTarget};
use writ_sdk::{
    Agent, Delegation, Error, Invocation, Narrowing, NewTask, Right, Server, Task, TaskId, Value, json,
};

use crate::attempts::{self, Attempt};

const KIND: &str = "customer-answer";
const QUESTION: &str = "Ada Lovelace asks where her punched cards are. Look it up and draft the reply.";
const LOOK_UP: &str = "SELECT c.name, c.email, o.item, o.status, c.note FROM orders o JOIN customers c ON c.id = o.customer \
                       WHERE c.name = ?1 AND o.item LIKE ?2";

/// Tells the story, or keeps quiet.
#[derive(Clone, Copy)]
pub struct Voice {
    /// Whether only the end result is wanted.
    pub is_quiet: bool,
    /// Whether to colour.
    pub colour: Colour,
}

impl Voice {
    /// Says a line.
    pub fn say(self, text: fmt::Arguments<'_>) -> Result<()> {
        if !self.is_quiet {
            writeln!(std::io::stdout(), "{text}")?;
        }
        Ok(())
    }

    fn done(self, who: &str, what: &str) -> Result<()> {
        self.say(format_args!("  {} {who:<11} {what}", self.colour.paint(colour::GREEN, "ALLOW")))
    }

    fn refused(self, attempt: &Attempt) -> Result<()> {
        self.say(format_args!(
            "  {}  {:<11} {:<58} {}",
            self.colour.paint(colour::RED, "DENY"),
            attempt.who,
            attempt.what,
            self.colour.paint(colour::RED, &attempt.code)
        ))
    }
}

/// What was tried, by whoever tried it, and a capability that was left lying about.
#[derive(Clone, Default)]
struct Tried(Arc<Mutex<(Vec<Attempt>, Option<UnverifiedCapability>)>>);

impl Tried {
    fn state(&self) -> MutexGuard<'_, (Vec<Attempt>, Option<UnverifiedCapability>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, attempts: Vec<Attempt>) {
        self.state().0.extend(attempts);
    }

    fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.state().0)
    }

    fn lose(&self, capability: UnverifiedCapability) {
        self.state().1 = Some(capability);
    }

    fn find(&self) -> Option<UnverifiedCapability> {
        self.state().1.clone()
    }
}

fn rights<const N: usize>(texts: [&str; N]) -> Result<Vec<Right>, Error> {
    texts.into_iter().map(|text| Ok(Right::parse(text)?)).collect()
}

/// The cast.
pub struct Story<'a> {
    stack: &'a DevStack,
    voice: Voice,
    planner: Agent,
    _servers: [Server; 2],
    tried: Tried,
}

impl<'a> Story<'a> {
    /// Plays it all and returns the task it was about.
    pub async fn play(stack: &'a DevStack, voice: Voice) -> Result<TaskId> {
        let (planner, researcher, mailer) =
            tokio::try_join!(stack.agent("planner"), stack.agent("researcher"), stack.agent("mailer"))?;
        let tried = Tried::default();
        let servers = [
            serve_mailer(&mailer, tried.clone()).await?,
            serve_researcher(&researcher, tried.clone()).await?,
        ];
        let story = Self { stack, voice, planner, _servers: servers, tried };
        story.tell().await
    }

    async fn tell(&self) -> Result<TaskId> {
        let Self { voice, stack, .. } = *self;
        voice.say(format_args!("alice: \"{QUESTION}\"\n"))?;
        let task =
            self.planner.start_task(NewTask::new(KIND, stack.tokens.token_for("alice")?, QUESTION)).await?;
        voice.done("planner", &format!("starts {} on alice's authority", task.id()))?;
        let research = self.delegate_research(&task).await?;
        let answer = ask(&research, "answer").await?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        voice.done("planner", "hands reading and mailing to researcher, keeps the rest")?;
        voice.done("researcher", &format!("reads the customer database: {}", text("found")))?;
        voice.done("mailer", &format!("drafts the reply to {}", text("to")))?;
        self.check_draft(&text("to"))?;

        voice.say(format_args!(
            "\nThe customer's note says: \"{}\"\nThe agents fall for it, and try:\n",
            text("note")
        ))?;
        ask(&research, "overreach").await?;
        self.conclude_attempts()?;
        self.tried.add(attempts::by_planner(&self.planner, stack, KIND).await?);
        self.conclude_attempts()?;

        let operator = stack.operator().await?;
        self.halt(&operator, &task).await?;
        operator.close().await;
        self.tried.add(vec![attempts::after_halt(&task).await]);
        self.conclude_attempts()?;
        Ok(task.id().clone())
    }

    async fn delegate_research(&self, task: &Task) -> Result<Delegation> {
        let kept = rights(["tool.crm:read", "tool.mail:draft", "agent.mailer:invoke"])?;
        Ok(task.delegate("researcher", Narrowing::new().only(kept)).await?)
    }

    /// The draft is a file: somebody can open it.
    fn check_draft(&self, to: &str) -> Result<()> {
        let folder = self.stack.layout.drafts().join("cur");
        let draft = std::fs::read_dir(&folder)?.next().context("there is no draft")??;
        let text = std::fs::read_to_string(draft.path())?;
        ensure!(text.contains(to), "the draft in {} is not to {to}", folder.display());
        Ok(())
    }

    async fn halt(&self, operator: &Operator, task: &Task) -> Result<()> {
        let epoch = operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        self.voice
            .say(format_args!("\nThe operator halts the task; every node has heard of it (epoch {epoch}):\n"))
    }

    /// Prints what was tried. Something that should have been refused and was not ends the demo.
    fn conclude_attempts(&self) -> Result<()> {
        for attempt in self.tried.take() {
            if attempt.code != attempt.expected {
                bail!(
                    "{} {}: expected `{}`, got `{}`",
                    attempt.who,
                    attempt.what,
                    attempt.expected,
                    attempt.code
                );
            }
            self.voice.refused(&attempt)?;
        }
        Ok(())
    }
}

async fn ask(to: &Delegation, what: &str) -> Result<Value, Error> {
    to.invoke(json::object([("do", what.into())])).await
}

fn wish(invocation: &Invocation) -> String {
    invocation.input.get("do").and_then(Value::as_str).unwrap_or_default().to_owned()
}

async fn serve_researcher(agent: &Agent, tried: Tried) -> Result<Server> {
    Ok(agent
        .serve(move |invocation| {
            let tried = tried.clone();
            async move {
                match wish(&invocation).as_str() {
                    "answer" => research(&invocation.task).await,
                    _ => {
                        let task = &invocation.task;
                        tried.add(attempts::by_researcher(task).await?);
                        tried.lose(task.capability().await?);
                        ask(&hand_to_mailer(task).await?, "overreach").await
                    }
                }
            }
        })
        .await?)
}

async fn hand_to_mailer(task: &Task) -> Result<Delegation, Error> {
    task.delegate("mailer", Narrowing::new().only(rights(["tool.mail:draft"])?)).await
}

async fn research(task: &Task) -> Result<Value, Error> {
    let arguments =
        json::object([("sql", LOOK_UP.into()), ("params", json::list(["Ada Lovelace", "punched cards%"]))]);
    let found = task.call("tool.crm", "read", arguments).await?;
    let row = match found.get("rows") {
        Some(Value::Array(rows)) => rows.first(),
        _ => None,
    };
    let Some(Value::Array(row)) = row else { return Ok(Value::Null) };
    let column = |index: usize| row.get(index).and_then(Value::as_str).unwrap_or_default();
    let (name, email, item, status, note) = (column(0), column(1), column(2), column(3), column(4));
    let draft = json::object([
        ("do", "draft".into()),
        ("to", email.into()),
        ("subject", format!("Your order: {item}").into()),
        ("body", format!("Dear {name},\n\nyour {item} are {status}.\n").into()),
    ]);
    hand_to_mailer(task).await?.invoke(draft).await?;
    Ok(json::object([
        ("found", format!("{item} for {name}: {status}").into()),
        ("to", email.into()),
        ("note", note.into()),
    ]))
}

async fn serve_mailer(agent: &Agent, tried: Tried) -> Result<Server> {
    let bus = Arc::new(Bus::connect(agent.identity().bus_config()).await?);
    Ok(agent
        .serve(move |invocation| {
            let (tried, bus) = (tried.clone(), Arc::clone(&bus));
            async move {
                match wish(&invocation).as_str() {
                    "draft" => draft(&invocation).await,
                    _ => {
                        if let Some(stolen) = tried.find() {
                            tried.add(attempts::by_mailer(&invocation.task, &bus, &stolen).await?);
                        }
                        Ok(Value::Null)
                    }
                }
            }
        })
        .await?)
}

async fn draft(invocation: &Invocation) -> Result<Value, Error> {
    let text = |name: &str| invocation.input.get(name).and_then(Value::as_str).unwrap_or_default();
    let arguments = json::object([
        ("to", json::list([text("to")])),
        ("subject", text("subject").into()),
        ("body", text("body").into()),
    ]);
    invocation.task.call("tool.mail", "draft", arguments).await
}
