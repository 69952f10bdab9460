//! A server as a child process: its own group, an environment that is written out, and bounds on what it says.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rmcp::{
    RoleClient,
    model::ServerJsonRpcMessage,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Mutex, watch},
    time::{Instant, timeout},
};
use writ_bus::keyfile::read_secret;
use writ_common::ids::Resource;
use writ_node::tools::EnvValue;

use crate::{
    UpstreamError,
    text::bounded,
    wire::{Fault, MESSAGE_BYTES_MAX, Wire},
};

/// What every child's environment holds, if the node's does.
const ALWAYS: [&str; 4] = ["HOME", "LANG", "PATH", "TMPDIR"];
/// Longest piece of a line on standard error that is read at once, in bytes.
const STDERR_LINE_BYTES_MAX: u64 = 4 * 1024;
/// Most lines of standard error that are logged in a second.
const STDERR_LINES_PER_SECOND_MAX: u32 = 20;
/// How long a child may take to read one message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a child may take to end once its input is closed, and again once it is asked to.
const END_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What is started.
pub(crate) struct Program<'a> {
    pub(crate) command: &'a Path,
    pub(crate) args: &'a [String],
    pub(crate) folder: &'a Path,
    pub(crate) env: &'a std::collections::BTreeMap<String, EnvValue>,
}

impl Program<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// [`UpstreamError`] if it cannot be started, or a file of its environment cannot be read.
    pub(crate) fn start(
        &self,
        resource: &Resource,
        wire: Arc<Wire>,
    ) -> Result<(ChildGroup, StdioTransport), UpstreamError> {
        let mut command = Command::new(self.command);
        command
            .args(self.args)
            .current_dir(self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if !writ_common::red::off("M06") {
            command.env_clear();
        }
        command.envs(self.environment()?);
        let mut child = command
            .spawn()
            .map_err(|source| UpstreamError::Start { command: self.command.display().to_string(), source })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let child = ChildGroup { child, group };
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(UpstreamError::Lost("its pipes could not be opened".to_owned()));
        };
        tokio::spawn(log_errors(resource.clone(), errors));
        let transport = StdioTransport {
            output: BufReader::new(output),
            line: Vec::new(),
            input: Arc::new(Mutex::new(Some(input))),
            faults: wire.faults(),
            wire,
        };
        Ok((child, transport))
    }

    fn environment(&self) -> Result<Vec<(String, std::ffi::OsString)>, UpstreamError> {
        let own = |name: &str| Some((name.to_owned(), std::env::var_os(name)?));
        let mut variables: Vec<_> = ALWAYS.iter().filter_map(|name| own(name)).collect();
        for (name, value) in self.env {
            match value {
                EnvValue::Text(text) => variables.push((name.clone(), text.into())),
                EnvValue::Inherited => variables.extend(own(name)),
                EnvValue::File(path) => {
                    variables.push((name.clone(), secret_line(path)?.into()));
                }
            }
        }
        Ok(variables)
    }
}

/// The one line of a private file.
///
/// # Errors
/// [`UpstreamError::File`].
pub(crate) fn secret_line(path: &PathBuf) -> Result<String, UpstreamError> {
    let text = read_secret(path).map_err(|error| UpstreamError::File(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A child with everything it started. It is killed when this is dropped.
pub(crate) struct ChildGroup {
    child: Child,
    /// Its process id, which is that of its group; gone once the child was waited for.
    group: Option<Pid>,
}

impl ChildGroup {
    /// Waits until its input being closed has ended it, then asks it to end, then ends it; whatever else is in its
    /// group goes with it (MCP 2025-11-25, Lifecycle, Shutdown).
    pub(crate) async fn end(mut self) {
        if timeout(END_TIMEOUT, self.has_exited()).await.is_err() {
            self.signal(Signal::TERM);
            drop(timeout(END_TIMEOUT, self.has_exited()).await);
        }
        // Before it is waited for: until then its id cannot be another group's.
        self.signal(Signal::KILL);
        self.group = None;
        drop(self.child.wait().await);
    }

    /// Whether the child has exited, found out without releasing its id.
    async fn has_exited(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let Some(pid) = self.group else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Ok(None)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // An error means that nobody is left.
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for ChildGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Messages as lines (MCP 2025-11-25, Transports, stdio).
pub(crate) struct StdioTransport {
    output: BufReader<ChildStdout>,
    line: Vec<u8>,
    input: Arc<Mutex<Option<ChildStdin>>>,
    faults: watch::Receiver<Option<Fault>>,
    wire: Arc<Wire>,
}

impl Transport<RoleClient> for StdioTransport {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        self.wire.sending(&item);
        let (input, wire) = (Arc::clone(&self.input), Arc::clone(&self.wire));
        async move {
            let mut line = serde_json::to_vec(&item)?;
            line.push(b'\n');
            let mut input = input.lock().await;
            let Some(pipe) = input.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
            let written = timeout(WRITE_TIMEOUT, async {
                pipe.write_all(&line).await?;
                pipe.flush().await
            });
            let Ok(written) = written.await else {
                // Half a message may be in the pipe: nothing can follow it.
                *input = None;
                wire.fail(Fault::Stuck);
                return Err(io::ErrorKind::TimedOut.into());
            };
            written
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let whole = tokio::select! {
                _ = self.faults.wait_for(Option::is_some) => return None,
                whole = read_line(&mut self.output, &mut self.line) => whole,
            };
            match whole {
                Ok(Line::Whole) => {}
                Ok(Line::TooLong) => {
                    self.wire.fail(Fault::TooLarge);
                    return None;
                }
                Ok(Line::End) | Err(_) => return None,
            }
            let line = std::mem::take(&mut self.line);
            let message = std::str::from_utf8(&line).ok().and_then(|text| self.wire.read(text.trim()));
            let message = message.and_then(|text| serde_json::from_str::<ServerJsonRpcMessage>(&text).ok());
            if message.is_some() {
                return message;
            }
            tracing::debug!("a line that is no message: {}", bounded(&String::from_utf8_lossy(&line)));
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        self.input.lock().await.take();
        Ok(())
    }
}

enum Line {
    Whole,
    TooLong,
    End,
}

/// Reads up to the next line feed into `line`. Dropped half-way, it goes on where it was.
async fn read_line(
    from: &mut (impl AsyncRead + Unpin + tokio::io::AsyncBufRead),
    line: &mut Vec<u8>,
) -> io::Result<Line> {
    loop {
        let available = from.fill_buf().await?;
        if available.is_empty() {
            return Ok(Line::End);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |at| at + 1);
        if line.len() + taken > MESSAGE_BYTES_MAX {
            return Ok(Line::TooLong);
        }
        line.extend(available.iter().take(taken));
        from.consume(taken);
        if end.is_some() {
            return Ok(Line::Whole);
        }
    }
}

/// Writes what a child says on standard error into the log, within bounds.
async fn log_errors(resource: Resource, errors: ChildStderr) {
    let mut errors = BufReader::new(errors);
    let (mut second, mut lines) = (Instant::now(), 0_u32);
    loop {
        let mut line = Vec::new();
        match (&mut errors).take(STDERR_LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if second.elapsed() > Duration::from_secs(1) {
            if lines > STDERR_LINES_PER_SECOND_MAX {
                let left_out = lines - STDERR_LINES_PER_SECOND_MAX;
                tracing::debug!("the MCP server of `{resource}` wrote {left_out} more lines");
            }
            (second, lines) = (Instant::now(), 0);
        }
        lines = lines.saturating_add(1);
        if lines <= STDERR_LINES_PER_SECOND_MAX {
            let text = String::from_utf8_lossy(&line);
            tracing::debug!("the MCP server of `{resource}` writes: {}", bounded(text.trim_end()));
        }
    }
}
