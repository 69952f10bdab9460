//! Who does what: a planner, a researcher and a mailer answer a customer's question.

use std::{
    fmt,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use writ::{
    dev::DevStack,
    operator::Operator,
    view::{self, Colour, colour},
};
use writ_bus::{Bus, SystemClock};
use writ_common::{approval::ApprovalDecision, capability::UnverifiedCapability, control::RevocationTarget};
use writ_sdk::{
    Agent, Delegation, Error, Held, Invocation, Narrowing, NewTask, Right, Server, Task, TaskId, Value, json,
};

use crate::attempts::{self, Attempt};

/// How long the demo waits for an answer from another terminal.
const PATIENCE: Duration = Duration::from_secs(90);
pub const KIND: &str = "customer-answer";
const QUESTION: &str = "Ada Lovelace (ada@example.com) asks where her punched cards are. See what the carrier's page \
                        says, look her order up, and write back.";
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

    /// Says that something was let through.
    pub fn done(self, who: &str, what: &str) -> Result<()> {
        self.say(format_args!("  {} {who:<11} {what}", self.colour.paint(colour::GREEN, "ALLOW")))
    }

    /// Says that something was refused, and by which code.
    pub fn denied(self, who: &str, what: &str, code: &str) -> Result<()> {
        let [deny, code] = ["DENY", code].map(|text| self.colour.paint(colour::RED, text));
        self.say(format_args!("  {deny}  {who:<11} {what:<58} {code}"))
    }

    fn refused(self, attempt: &Attempt) -> Result<()> {
        self.denied(&attempt.who, attempt.what, &attempt.code)
    }
}

/// What was tried, by whoever tried it, a capability that was left lying about, and a call that waited for bob.
#[derive(Clone, Default)]
struct Tried(Arc<Mutex<TriedState>>);

#[derive(Default)]
struct TriedState {
    attempts: Vec<Attempt>,
    lost: Option<UnverifiedCapability>,
    held: Option<Held>,
}

impl Tried {
    fn state(&self) -> MutexGuard<'_, TriedState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, attempts: Vec<Attempt>) {
        self.state().attempts.extend(attempts);
    }

    fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.state().attempts)
    }

    fn lose(&self, capability: UnverifiedCapability) {
        self.state().lost = Some(capability);
    }

    fn hold(&self, held: Held) {
        self.state().held = Some(held);
    }

    fn held(&self) -> Option<Held> {
        self.state().held.clone()
    }

    fn find(&self) -> Option<UnverifiedCapability> {
        self.state().lost.clone()
    }
}

fn rights<const N: usize>(texts: [&str; N]) -> Result<Vec<Right>, Error> {
    texts.into_iter().map(|text| Ok(Right::parse(text)?)).collect()
}

/// The cast.
pub struct Story<'a> {
    stack: &'a DevStack,
    voice: Voice,
    /// Whether bob answers by himself instead of from another terminal.
    answers_himself: bool,
    planner: Agent,
    _servers: [Server; 2],
    tried: Tried,
}

impl<'a> Story<'a> {
    /// Plays it all and returns the task it was about.
    pub async fn play(stack: &'a DevStack, voice: Voice, answers_himself: bool) -> Result<TaskId> {
        let (planner, researcher, mailer) =
            tokio::try_join!(stack.agent("planner"), stack.agent("researcher"), stack.agent("mailer"))?;
        let tried = Tried::default();
        let servers = [
            serve_mailer(&mailer, tried.clone()).await?,
            serve_researcher(&researcher, tried.clone(), stack.page()).await?,
        ];
        let story = Self { stack, voice, answers_himself, planner, _servers: servers, tried };
        Box::pin(story.tell()).await
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
        voice.done("researcher", &format!("reads the carrier's page: {}", text("page")))?;
        voice.done("researcher", &format!("reads the customer database: {}", text("found")))?;
        voice.done("mailer", &format!("drafts the reply to {}", text("to")))?;
        self.check_draft(&text("to"))?;
        Box::pin(self.send(&research)).await?;

        voice.say(format_args!(
            "\nThe carrier's page says, where only models read it: \"{}\"\nThe customer's note says: \"{}\"\n\
             The agents fall for it, and try:\n",
            text("hidden"),
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
        let kept = rights([
            "tool.web:get",
            "tool.crm:read",
            "tool.mail:draft",
            "tool.mail:send",
            "agent.mailer:invoke",
        ])?;
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

    /// What is sent is gone, so a person says yes first: the mail waits for bob, and is sent once.
    async fn send(&self, research: &Delegation) -> Result<()> {
        let (sent, answered) = tokio::join!(ask(research, "send"), self.answer());
        answered?;
        sent?;
        let outbox = std::fs::read_dir(self.stack.layout.outbox().join("new"))?.count();
        ensure!(outbox == 1, "{outbox} mails were sent instead of one");
        self.voice.done("mailer", "sends the mail, once")
    }

    async fn answer(&self) -> Result<()> {
        let bob = self.stack.approver("bob").await?;
        let mut is_told = false;
        let begun = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let approvals = bob.approvals().await?;
            let Some((id, approval)) = approvals.iter().next() else {
                ensure!(begun.elapsed() < PATIENCE, "the mail does not wait for an approval");
                continue;
            };
            if approval.answers().next().is_some() {
                break;
            }
            if !std::mem::replace(&mut is_told, true) {
                let hold = self.voice.colour.paint(colour::YELLOW, "HOLD");
                self.voice.say(format_args!(
                    "  {hold}  mailer      wants to send the mail; a mail-approver has to say yes\n"
                ))?;
                let page = view::approval::page(approval, true, SystemClock::new().now().wall);
                page.lines().try_for_each(|line| self.voice.say(format_args!("    {line}")))?;
                if !self.answers_himself {
                    let profile = self.stack.layout.approver("bob");
                    self.voice.say(format_args!(
                        "\n  Answer as bob, from another terminal (or wait, and he does so himself):\n  \
                         cargo run -qp writ -- approval grant {id} --profile {}\n",
                        profile.display()
                    ))?;
                }
            }
            if self.answers_himself || begun.elapsed() > PATIENCE {
                let expires = approval.request().expires;
                bob.answer_approval(approval, ApprovalDecision::Granted, "fine", expires).await?;
                break;
            }
        }
        bob.close().await;
        self.voice.done("bob", "says yes")
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
            if let Some(why) = &attempt.why {
                self.voice.say(format_args!("        {why}"))?;
            }
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

async fn serve_researcher(agent: &Agent, tried: Tried, page: String) -> Result<Server> {
    Ok(agent
        .serve(move |invocation| {
            let (tried, page) = (tried.clone(), page.clone());
            async move {
                match wish(&invocation).as_str() {
                    "answer" => {
                        let read = browse(&invocation.task, &page).await?;
                        research(&invocation.task, "draft", read).await
                    }
                    "send" => research(&invocation.task, "send", Page::default()).await,
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
    task.delegate("mailer", Narrowing::new().only(rights(["tool.mail:draft", "tool.mail:send"])?)).await
}

/// What a page says to people, and what it says to models.
#[derive(Default)]
struct Page {
    shown: String,
    hidden: String,
}

async fn browse(task: &Task, url: &str) -> Result<Page, Error> {
    let found = task.call("tool.web", "get", json::object([("url", url.into())])).await?;
    let text = found.get("text").and_then(Value::as_str).unwrap_or_default();
    let lines: Vec<String> = text.lines().map(without_tags).collect();
    let line = |index: usize| lines.get(index).cloned().unwrap_or_default();
    Ok(Page { shown: line(1), hidden: line(2) })
}

fn without_tags(line: &str) -> String {
    let mut is_tag = false;
    let shown = line.chars().filter(|c| match c {
        '<' | '>' => {
            is_tag = *c == '<';
            false
        }
        _ => !is_tag,
    });
    shown.collect::<String>().trim().to_owned()
}

async fn research(task: &Task, then: &str, page: Page) -> Result<Value, Error> {
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
        ("do", then.into()),
        ("to", email.into()),
        ("subject", format!("Your order: {item}").into()),
        ("body", format!("Dear {name},\n\nyour {item} are {status}.\n").into()),
    ]);
    hand_to_mailer(task).await?.invoke(draft).await?;
    Ok(json::object([
        ("found", format!("{item} for {name}: {status}").into()),
        ("to", email.into()),
        ("note", note.into()),
        ("page", page.shown.into()),
        ("hidden", page.hidden.into()),
    ]))
}

async fn serve_mailer(agent: &Agent, tried: Tried) -> Result<Server> {
    let bus = Arc::new(Bus::connect(agent.identity().bus_config()).await?);
    Ok(agent
        .serve(move |invocation| {
            let (tried, bus) = (tried.clone(), Arc::clone(&bus));
            async move {
                match wish(&invocation).as_str() {
                    "draft" => mail(&invocation, "draft").await,
                    "send" => match mail(&invocation, "send").await {
                        Err(Error::Held(held)) => {
                            tried.hold(held.as_ref().clone());
                            invocation.task.wait_for_approval(*held, 2 * PATIENCE).await
                        }
                        other => other,
                    },
                    _ => {
                        if let Some(stolen) = tried.find() {
                            tried.add(
                                attempts::by_mailer(&invocation.task, &bus, &stolen, tried.held().as_ref())
                                    .await?,
                            );
                        }
                        Ok(Value::Null)
                    }
                }
            }
        })
        .await?)
}

async fn mail(invocation: &Invocation, action: &str) -> Result<Value, Error> {
    let text = |name: &str| invocation.input.get(name).and_then(Value::as_str).unwrap_or_default();
    let arguments = json::object([
        ("to", json::list([text("to")])),
        ("subject", text("subject").into()),
        ("body", text("body").into()),
    ]);
    invocation.task.call("tool.mail", action, arguments).await
}
