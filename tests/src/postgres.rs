//! A real PostgreSQL for tests: the one that is installed, in a folder of its own, on its Unix socket only.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The user and group `nobody`: PostgreSQL does not run as root.
const NOBODY: u32 = 65_534;
/// Longest start of a server.
const START: Duration = Duration::from_secs(60);

/// A running server; it ends when dropped.
pub struct PostgresServer {
    child: Child,
    folder: TempDir,
    binaries: PathBuf,
}

impl PostgresServer {
    /// Starts a server whose superuser is `writ`, without a password; `None`, with a line that says so, if there is no
    /// PostgreSQL on this machine.
    ///
    /// # Errors
    /// If the server does not start.
    #[expect(clippy::print_stderr, reason = "what was not tested is said")]
    pub fn start() -> Result<Option<Self>> {
        let Some(binaries) = find() else {
            eprintln!(
                "no PostgreSQL: this needs `psql` in PATH, and `initdb` and `postgres` there or below /usr/lib/postgresql"
            );
            return Ok(None);
        };
        // The path of a socket is short.
        let folder = tempfile::Builder::new().prefix("writ-pg-").tempdir_in("/tmp")?;
        if is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        let made = command(&binaries.join("initdb"), folder.path())
            .args([
                "--username=writ",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&data)
            .output()
            .context("initdb does not start")?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let child = Self::spawn(&binaries, folder.path())?;
        let server = Self { child, folder, binaries };
        server.wait()?;
        Ok(Some(server))
    }

    fn spawn(binaries: &Path, folder: &Path) -> Result<Child> {
        let log = fs::File::create(folder.join("log"))?;
        let mut command = command(&binaries.join("postgres"), folder);
        command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
        command.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=20"]);
        command.stdout(Stdio::null()).stderr(log).spawn().context("postgres does not start")
    }

    /// Ends the server and starts it again, as an operator might: connections are lost.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.child = Self::spawn(&self.binaries, self.folder.path())?;
        self.wait()
    }

    /// Ends the server; its data stay.
    pub fn stop(&mut self) {
        // After its end the number may be another process's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // SIGINT is the fast shutdown: it waits for nobody.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            _ = kill_process(pid, Signal::INT);
        }
        drop(self.child.wait());
    }

    fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        while self.sql("postgres", "SELECT 1").is_err() {
            if begun.elapsed() > START {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!("postgres does not answer:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The folder of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// Runs SQL as the superuser and returns what came of it, a line for every row.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let output = Command::new("psql")
            .args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1"])
            .args(["--username=writ", "--dbname", database, "--command", sql, "--host"])
            .arg(self.socket())
            .output()
            .context("psql does not start")?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The folder with the newest server that is installed; Debian keeps them out of PATH.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    let has = |folder: &PathBuf, name: &str| folder.join(name).exists();
    let has_client = env::split_paths(&path).any(|folder| has(&folder, "psql"));
    let mut folders = env::split_paths(&path).chain(versions.into_iter().rev());
    folders.find(|folder| has(folder, "initdb") && has(folder, "postgres")).filter(|_| has_client)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
