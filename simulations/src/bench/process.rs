//! Broker, node and responder as processes of their own: when they answer, and what memory they take.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::WRIT;

/// How long an idle process is left alone before its memory is read.
pub const SETTLE: Duration = Duration::from_secs(1);
/// How long a process may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with this value.
pub struct Running {
    child: Child,
    /// When it was started.
    pub since: Instant,
}

/// What one process takes.
#[derive(Clone, Debug, Serialize)]
pub struct Footprint {
    /// Which.
    pub name: &'static str,
    /// Milliseconds from its start to its first right answer: the median of several starts.
    pub ready_ms: f64,
    /// Resident memory in MiB when nothing happens; nothing where it cannot be read.
    pub idle_mib: Option<f64>,
}

impl Running {
    /// `writ <verb> --config <file>`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn writ(verb: &str, config: &Path) -> Result<Self> {
        let mut command = this_program()?;
        command.arg0(WRIT).arg(verb).arg("--config").arg(config);
        Self::spawn(&mut command)
    }

    /// The far end of the baseline.
    ///
    /// # Errors
    /// If it does not start.
    pub fn responder(folder: &Path, bytes: usize) -> Result<Self> {
        let mut command = this_program()?;
        command.arg("responder").arg("--folder").arg(folder).arg("--bytes").arg(bytes.to_string());
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        let since = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self { child: child.context("a process of the set-up does not start")?, since })
    }

    /// Resident memory in MiB, where the system says it.
    pub fn resident_mib(&self) -> Option<f64> {
        resident_mib(self.child.id())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process without an id")?, Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already needs no ending.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Resident memory of a process in MiB, where the system says it (`VmRSS` of proc(5)).
pub fn resident_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kib) / 1_024.0)
}

/// Microseconds a process has spent on processors, where the system says it: the sum over its threads of the first
/// field of `/proc/<pid>/task/<tid>/schedstat`. Unlike times on the clock it hardly depends on what else runs.
pub fn cpu_us(pid: u32) -> Option<f64> {
    let mut total = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else { continue };
        let nanos: f64 = text.split_whitespace().next()?.parse().ok()?;
        total += nanos / 1e3;
    }
    Some(total)
}

fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("this program does not know where it is")?))
}
