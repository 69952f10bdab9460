//! `writ task …`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_bus::keyfile;
use writ_common::{
    capability::Right,
    control::RevocationTarget,
    ids::TaskId,
    time::Timestamp,
    wire::{AdminReply, AdminWanted, TaskInfo},
};
use writ_sdk::{Agent, NewTask};

use super::Common;
use crate::{dev::idp::TokenMaker, exit::Exit};

/// Tasks
#[derive(Subcommand)]
pub enum Task {
    /// Start a task on a user's authority, as one of the agents whose keys are here
    Start(Start),
    /// One task; the latest with `last`
    Show(Which),
    /// Stop a task with everything that was delegated in it
    Halt(HaltTask),
}

#[derive(Args)]
pub struct Start {
    /// The kind of task, as the policy names it
    kind: String,
    /// The agent the task is given to
    #[arg(long)]
    agent: String,
    /// A user of the development identity provider
    #[arg(long, conflicts_with = "token_file", required_unless_present_any = ["login", "token_file"])]
    user: Option<String>,
    /// File with the user's token
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The user who is logged in by `writ login`
    #[arg(long, conflicts_with_all = ["token_file", "user"])]
    login: bool,
    /// What the user asks for
    #[arg(long, default_value = "")]
    instruction: String,
    /// Ask for these rights only, for example `tool.crm:read`
    #[arg(long = "right", value_parser = Right::parse)]
    rights: Vec<Right>,
    /// Where the capability goes; beside the profile by default
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub struct Which {
    /// The task's id, or `last`
    task: String,
}

#[derive(Args)]
pub struct HaltTask {
    /// The task's id, or `last`
    task: String,
    /// Return only once no node can act for it any more
    #[arg(long)]
    wait: bool,
}

fn parse_task(text: &str) -> Result<Option<TaskId>> {
    if text == "last" { Ok(None) } else { Ok(Some(TaskId::parse(text)?)) }
}

async fn look_up(common: &Common, task: Option<TaskId>) -> Result<TaskInfo> {
    match common.operator().await?.ask(AdminWanted::Task { task }).await? {
        AdminReply::Task(info) => Ok(*info),
        other => bail!("an answer to another question: {other:?}"),
    }
}

fn describe(info: &TaskInfo) -> String {
    let rights: Vec<String> = info.rights.iter().map(ToString::to_string).collect();
    let state = info.stopped.map_or_else(|| "may go on".to_owned(), |code| format!("stopped ({code})"));
    format!(
        "task        {}\nkind        {}\nuser        {}\nagent       {}\ncapability  {} #{}\nrights      {}\ndeadline    {}\nstate       {state}",
        info.task,
        info.kind,
        info.user,
        info.agent,
        info.capability,
        info.serial,
        rights.join(", "),
        info.deadline
    )
}

impl Task {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Start(start) => start.run(common).await,
            Self::Show(Which { task }) => {
                let info = look_up(common, parse_task(&task)?).await?;
                common.say(describe(&info), &serde_json::to_value(&info)?)?;
                Ok(Exit::Ok)
            }
            Self::Halt(HaltTask { task, wait }) => {
                let task = match parse_task(&task)? {
                    Some(task) => task,
                    None => look_up(common, None).await?.task,
                };
                let epoch =
                    common.operator().await?.revoke(RevocationTarget::Task(task.clone()), wait).await?;
                let everywhere = if wait { ", and no node can act for it any more" } else { "" };
                common.say(
                    format!("task {task} is halted as of epoch {epoch}{everywhere}"),
                    &json!({"task": task, "epoch": epoch, "everywhere": wait}),
                )?;
                Ok(Exit::Ok)
            }
        }
    }
}

impl Start {
    async fn run(self, common: &Common) -> Result<Exit> {
        let profile = common.profile()?;
        let token = match (&self.token_file, &self.user) {
            _ if self.login => crate::login::token(&common.profile).await?,
            (Some(file), _) => keyfile::read_secret(file)?.trim().to_owned(),
            (None, Some(user)) => development_token(common, &profile.idp_url, user)?,
            (None, None) => bail!("name a `--user` or a `--token-file`, or log in and say `--login`"),
        };
        let agent = Agent::connect(profile.identity(&self.agent)?).await?;
        let mut new = NewTask::new(self.kind, token, self.instruction);
        if !self.rights.is_empty() {
            new = new.rights(self.rights);
        }
        let task = agent.start_task(new).await?;
        let capability = task.capability().await?;
        let out = self.out.unwrap_or_else(|| common.profile.with_file_name("task.cap"));
        // A capability is worth something only with its holder's key, but it is nobody else's business either.
        drop(std::fs::remove_file(&out));
        keyfile::write_secret(&out, &format!("{}\n", hex::encode(capability.as_bytes())))?;
        let rights: Vec<String> = capability.rights().iter().map(ToString::to_string).collect();
        let life = capability.expires().since(now());
        let text = format!(
            "task        {}\nagent       {}\nrights      {}\ncapability  {} for {life}\n\nnext: writ capability inspect {}",
            task.id(),
            self.agent,
            rights.join(", "),
            out.display(),
            out.display()
        );
        let answer = json!({
            "task": task.id(), "agent": self.agent, "rights": rights, "capability_file": out,
            "expires": capability.expires().to_string(),
        });
        common.say(text, &answer)?;
        agent.close().await;
        Ok(Exit::Ok)
    }
}

fn now() -> Timestamp {
    writ_bus::SystemClock::new().now().wall
}

/// The development provider's key is here, so its token can be made without asking it.
pub(super) fn development_token(common: &Common, idp_url: &Option<String>, user: &str) -> Result<String> {
    let url =
        idp_url.as_ref().context("the profile names no development identity provider; use `--token-file`")?;
    let key = keyfile::read_key(&common.profile.with_file_name("idp").join("idp.key"))?;
    TokenMaker::new(url.as_str(), &key).token_for(user)
}
