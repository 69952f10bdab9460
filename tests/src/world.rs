//! A running Writ for a test: a shared one for tests that only use it, one of its own for tests that break it.

use std::{
    fs,
    future::Future,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::OnceCell};
use writ::dev::{DevOptions, DevStack, Layout, sample};
use writ_bus::Bus;
use writ_common::capability::Right;
use writ_sdk::{Agent, Error, Identity, Narrowing, NewTask, Task, Value, json};

/// The kind of task the sample policies know.
pub const KIND: &str = "customer-answer";

/// One runtime for all tests of a process: what the shared world started has to outlive the test that was first.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "no test can run without")]
    Runtime::new().expect("threads to run on")
});
static SHARED: OnceCell<World> = OnceCell::const_new();

/// Runs a test.
///
/// # Errors
/// What the test says.
pub fn run<F: Future<Output = Result<()>>>(test: F) -> Result<()> {
    RUNTIME.block_on(test)
}

/// What is to be different from `writ dev`.
pub struct WorldOptions {
    /// How many nats-servers keep the streams.
    pub servers: usize,
    /// The nodes.
    pub nodes: Vec<&'static str>,
    /// Whether broker and nodes run in this process.
    pub start_core: bool,
    /// Changes the files before anything reads them.
    pub edit: Option<fn(&Layout) -> Result<()>>,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self { servers: 1, nodes: vec!["node-1"], start_core: true, edit: None }
    }
}

/// A running set-up with its folder.
pub struct World {
    stack: DevStack,
    // Removed once everything that writes into it has stopped.
    folder: TempDir,
}

impl Deref for World {
    type Target = DevStack;
    fn deref(&self) -> &DevStack {
        &self.stack
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut DevStack {
        &mut self.stack
    }
}

impl World {
    /// The one all tests of this process share. Nothing that stays may be changed in it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn shared() -> Result<&'static Self> {
        SHARED
            .get_or_try_init(|| {
                Self::with(WorldOptions { nodes: vec!["node-1", "node-2"], ..Default::default() })
            })
            .await
    }

    /// One of the test's own.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn new() -> Result<Self> {
        Self::with(WorldOptions::default()).await
    }

    /// One of the test's own, different from the usual one.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn with(options: WorldOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("writ-test-").tempdir()?;
        let root = folder.path().join(".writ");
        if let Some(edit) = options.edit {
            let layout = Layout::new(&root);
            fs::create_dir_all(&root)?;
            sample::write_policies(&layout.policies())?;
            edit(&layout)?;
        }
        let dev = DevOptions {
            folder: root,
            port: None,
            servers: options.servers,
            nodes: options.nodes.iter().map(|name| (*name).to_owned()).collect(),
            start_core: options.start_core,
        };
        Ok(Self { stack: DevStack::start(dev).await?, folder })
    }

    /// Stops everything in order, and removes the folder.
    pub async fn close(self) {
        let Self { stack, folder } = self;
        stack.stop().await;
        drop(folder);
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder `writ dev` would call `.writ`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join(".writ")
    }

    /// The identity of an enrolled agent.
    ///
    /// # Errors
    /// If it is not enrolled.
    pub fn identity(&self, agent: &str) -> Result<Identity> {
        Ok(Identity::load(self.layout.agent(agent))?)
    }

    /// A bare connection as an agent, for what the SDK would not send.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn bus_of(&self, agent: &str) -> Result<Bus> {
        Ok(Bus::connect(self.identity(agent)?.bus_config()).await?)
    }

    /// A task of alice's, given to planner.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn task(&self) -> Result<(Agent, Task)> {
        let planner = self.agent("planner").await?;
        let task = self.task_of(&planner, "alice").await?;
        Ok((planner, task))
    }

    /// A task of a user's, given to an agent.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn task_of(&self, agent: &Agent, user: &str) -> Result<Task> {
        let new = NewTask::new(KIND, self.tokens.token_for(user)?, "test");
        // A broker under load may take longer than one attempt.
        Ok(agent.start_task(new).await?)
    }

    /// Edits a file of the set-up by replacing one piece of text.
    ///
    /// # Errors
    /// If the text is not there.
    pub fn edit(file: &Path, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        anyhow::ensure!(text.contains(from), "{} has no `{from}`", file.display());
        Ok(fs::write(file, text.replacen(from, to, 1))?)
    }

    /// Files of drafts.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn drafts(&self) -> Result<usize> {
        let folder = self.layout.drafts().join("cur");
        Ok(if folder.exists() { fs::read_dir(folder)?.count() } else { 0 })
    }
}

/// Rights by their texts.
///
/// # Errors
/// If a text is no right.
pub fn rights<const N: usize>(texts: [&str; N]) -> Result<Vec<Right>> {
    texts.into_iter().map(|text| Ok(Right::parse(text)?)).collect()
}

/// A narrowing to these rights.
///
/// # Errors
/// If a text is no right.
pub fn only<const N: usize>(texts: [&str; N]) -> Result<Narrowing> {
    Ok(Narrowing::new().only(rights(texts)?))
}

/// Reads from the customer database.
///
/// # Errors
/// As [`Task::call`].
pub async fn read(task: &Task, sql: &str) -> Result<Value, Error> {
    task.call("tool.crm", "read", json::object([("sql", sql.into())])).await
}

/// A letter's arguments.
#[must_use]
pub fn letter() -> Value {
    json::object([
        ("to", json::list(["ada@example.com"])),
        ("subject", "Your order".into()),
        ("body", "On its way.".into()),
    ])
}

/// Waits for a condition, with a limit that only a broken system reaches.
///
/// # Errors
/// If it does not come about.
pub async fn eventually<F: AsyncFnMut() -> Result<bool>>(what: &str, mut condition: F) -> Result<()> {
    for _ in 0..300 {
        if condition().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{what}: not within 30 s")
}
