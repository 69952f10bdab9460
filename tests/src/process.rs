//! Brokers and nodes as processes of their own, to be killed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A `writ` process; it is killed when dropped.
pub struct WritProcess {
    child: Child,
    log: PathBuf,
}

impl WritProcess {
    /// Starts `writ` with these arguments; what it says goes to `log`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(binary: &str, arguments: &[&str], folder: &Path, log: &str) -> Result<Self> {
        Self::start_in(binary, arguments, folder, log, &[])
    }

    /// As [`WritProcess::start`], with variables.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_in(
        binary: &str,
        arguments: &[&str],
        folder: &Path,
        log: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let log = folder.join(log);
        let out = File::create(&log)?;
        let child = Command::new(binary)
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{binary} does not start"))?;
        Ok(Self { child, log })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Its file system as seen from here, for one that has its own.
    ///
    /// # Errors
    /// If it is gone.
    pub fn root(&self) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        anyhow::ensure!(root.exists(), "it is gone");
        Ok(root)
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end and returns its exit code.
    ///
    /// # Errors
    /// If it was ended by a signal.
    pub fn wait(&mut self) -> Result<i32> {
        self.child.wait()?.code().context("ended by a signal")
    }

    /// Everything it has said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for WritProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
