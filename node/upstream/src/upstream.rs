//! A server as a tool of the node: kept connected, looked at before every call, called.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rmcp::model::CallToolRequestParams;
use tokio::{
    sync::{Mutex, Notify, watch},
    task::JoinHandle,
};
use writ_common::{
    datalog::Predicate,
    decide::Gate,
    ids::{Action, Resource},
    json::Value,
    mcp::UpstreamTool,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};
use writ_node::{
    guard::ToolFailure,
    tools::{EnvValue, McpServer, McpSettings, Tool, ToolOutput, ToolSetupError},
};

use crate::{
    UpstreamError,
    client::{CallFault, Connection, Opening, Session, connect},
    http::HttpClient,
    listing::Listing,
    stdio::secret_line,
    wire::Wire,
};

/// How old a listing may be when a call relies on it. Servers may change their tools without saying so.
pub const LISTING_AGE_MAX: Duration = Duration::from_secs(1);
/// Shortest and longest wait before a server is connected to again.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// How long a connection has to hold until the next wait is the shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// A server, as the gate and calls see it.
struct Standing {
    session: Arc<Session>,
    listing: Arc<Listing>,
    listed: Instant,
}

struct Shared {
    resource: Resource,
    settings: McpSettings,
    standing: RwLock<Option<Standing>>,
    /// The listing before the one that counts, for saying what changed.
    before: RwLock<Option<Arc<Listing>>>,
    /// One listing at a time, for all calls that need one.
    relisting: Mutex<()>,
    /// What calls found out about a connection that does not say so itself.
    lost: Notify,
    is_up: watch::Sender<Option<bool>>,
}

/// An MCP server behind a resource.
pub struct Upstream {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Upstream {
    /// Begins to connect, and goes on for as long as this is there. Needs a runtime.
    ///
    /// # Errors
    /// [`ToolSetupError`] if a file of the configuration is not usable: found out now, not at the first call. A server
    /// that is not there is no error, and tried again.
    pub fn start(resource: Resource, settings: McpSettings) -> Result<Self, ToolSetupError> {
        check_files(&settings).map_err(|error| ToolSetupError::Setting(error.to_string()))?;
        let shared = Arc::new(Shared {
            resource,
            settings,
            standing: RwLock::default(),
            before: RwLock::default(),
            relisting: Mutex::default(),
            lost: Notify::new(),
            is_up: watch::Sender::new(None),
        });
        let (stop, stopping) = watch::channel(false);
        let supervisor = tokio::spawn(Arc::clone(&shared).supervise(stopping));
        Ok(Self { shared, stop, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// Waits until the server is there for the first time, as long as it may take to start; whether it is there. A
    /// server that cannot be there is not waited for.
    pub async fn first_attempt(&self) -> bool {
        let mut is_up = self.shared.is_up.subscribe();
        let known = is_up.wait_for(Option::is_some);
        let known = tokio::time::timeout(self.shared.settings.start_timeout.to_duration(), known).await;
        known.is_ok_and(|known| known.is_ok_and(|known| *known == Some(true)))
    }
}

/// Reads what will be read at every start of the server.
fn check_files(settings: &McpSettings) -> Result<(), UpstreamError> {
    match &settings.server {
        McpServer::Stdio { folder, env, .. } => {
            for value in env.values() {
                if let EnvValue::File(path) = value {
                    secret_line(path)?;
                }
            }
            if !folder.is_dir() {
                return Err(UpstreamError::File(format!("{} is no folder", folder.display())));
            }
            Ok(())
        }
        McpServer::Http { url, header_files, ca_file } => {
            HttpClient::open(url, header_files, ca_file.as_ref(), Arc::new(Wire::new())).map(drop)
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The supervisor ends the connection; a child is killed with it.
        self.stop.send_replace(true);
    }
}

impl Shared {
    async fn supervise(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let mut wait = RETRY_AFTER;
        let mut opening = Opening::Newest;
        let mut attempts = 0_u32;
        loop {
            let opened = tokio::select! {
                opened = self.open(opening) => opened,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            match opened {
                Ok(connection) => {
                    // The next time at once as it turned out to be.
                    opening = if connection.is_handshake() { Opening::Handshake } else { Opening::Newest };
                    let begun = Instant::now();
                    let why = tokio::select! {
                        why = self.watch(&connection) => Some(why),
                        _ = stopping.wait_for(|stop| *stop) => None,
                    };
                    self.standing_mut(|standing| *standing = None);
                    connection.close().await;
                    let Some(why) = why else { return };
                    tracing::warn!("the MCP server of `{}` is gone: {why}", self.resource);
                    if begun.elapsed() > STABLE_AFTER {
                        wait = RETRY_AFTER;
                    }
                }
                Err(error) => {
                    tracing::warn!("the MCP server of `{}` is not there: {error}", self.resource);
                    opening = opening.other();
                }
            }
            attempts = attempts.saturating_add(1);
            // Both ways of opening a connection were tried.
            if attempts >= 2 {
                self.is_up.send_replace(Some(false));
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(wait)) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            wait = (wait * 2).min(RETRY_AFTER_MAX);
        }
    }

    async fn open(&self, opening: Opening) -> Result<Connection, UpstreamError> {
        let connection = connect(&self.resource, &self.settings, opening).await?;
        match connection.session.list(self.settings.start_timeout.to_duration()).await {
            Ok(listing) => {
                self.stand(&connection.session, listing);
                self.is_up.send_replace(Some(true));
                Ok(connection)
            }
            Err(error) => {
                connection.close().await;
                Err(error)
            }
        }
    }

    /// Lists the tools again whenever the server says they changed, until the connection ends; why it did.
    async fn watch(&self, connection: &Connection) -> String {
        let session = &connection.session;
        loop {
            tokio::select! {
                () = connection.ended() => {
                    return session.fault().map_or("the connection ended", |fault| fault.as_str()).to_owned();
                }
                fault = session.faulted() => return fault.as_str().to_owned(),
                () = self.lost.notified() => return "it does not answer".to_owned(),
                () = session.changed.notified() => {
                    if let Err(error) = self.relist(session, Duration::ZERO).await {
                        return error.to_string();
                    }
                    // A server that changes all the time is asked no more often than this.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Lists the tools again, unless somebody has within `age_max`.
    async fn relist(&self, session: &Arc<Session>, age_max: Duration) -> Result<(), UpstreamError> {
        let asked = Instant::now();
        let _one = self.relisting.lock().await;
        let fresh = self.of_standing(|standing| {
            // What was listed while this waited counts too.
            standing.listed.elapsed() <= age_max || standing.listed > asked
        });
        if fresh == Some(true) {
            return Ok(());
        }
        let listing = session.list(self.settings.timeout.to_duration()).await?;
        self.stand(session, listing);
        Ok(())
    }

    fn stand(&self, session: &Arc<Session>, listing: Listing) {
        let listed = Instant::now();
        self.standing_mut(|standing| {
            if let Some(last) = standing.take().filter(|last| *last.listing != listing) {
                *self.before.write().unwrap_or_else(PoisonError::into_inner) = Some(last.listing);
            }
            *standing = Some(Standing { session: Arc::clone(session), listing: Arc::new(listing), listed });
        });
    }

    fn standing_mut(&self, change: impl FnOnce(&mut Option<Standing>)) {
        change(&mut self.standing.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn of_standing<T>(&self, of: impl FnOnce(&Standing) -> T) -> Option<T> {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(of)
    }

    fn current(&self) -> Option<(Arc<Session>, Arc<Listing>)> {
        self.of_standing(|standing| (Arc::clone(&standing.session), Arc::clone(&standing.listing)))
    }

    fn check(&self, pin: &UpstreamTool) -> Result<Arc<Session>, Reason> {
        let Some((session, listing)) = self.current() else {
            return Err(Reason::new(ReasonCode::ToolUnavailable).told("its MCP server is not connected"));
        };
        let before = self.before.read().unwrap_or_else(PoisonError::into_inner).clone();
        listing.check(pin, before.as_deref()).map(|()| session)
    }

    /// Looks at the tool once more, as the server lists it now (threat M01: it may have changed since the decision).
    async fn look_again(&self, pin: &UpstreamTool) -> Result<Arc<Session>, Reason> {
        let session = self.check(pin)?;
        if let Err(error) = self.relist(&session, LISTING_AGE_MAX).await {
            self.lost.notify_one();
            return Err(Reason::new(ReasonCode::ToolUnavailable)
                .told("its MCP server does not answer")
                .noted(error));
        }
        self.check(pin)
    }
}

/// Between half of it and the whole, so that servers that fell together do not rise together.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    // Without randomness the wait is merely the same every time.
    let _same = getrandom::fill(&mut byte);
    let [byte] = byte;
    wait / 2 + (wait / 2).mul_f64(f64::from(byte) / 255.0)
}

impl Gate for Upstream {
    fn admit(&self, _action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        to_arguments(arguments).map(|_| Vec::new())
    }

    fn pinned(&self, tool: Option<&UpstreamTool>) -> Result<(), Reason> {
        let Some(pin) = tool else {
            return Err(Reason::new(ReasonCode::ToolUnknown)
                .told("the contract does not say which tool of the MCP server this action is"));
        };
        self.shared.check(pin).map(drop)
    }
}

#[async_trait]
impl Tool for Upstream {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let not_run = |reason| ToolFailure { reason, status: OutcomeStatus::NotRun };
        let Some(pin) = permit.upstream() else {
            return Err(not_run(ReasonCode::ToolUnknown.into()));
        };
        let session = if writ_common::red::off("M01-call") {
            self.shared
                .current()
                .map(|(session, _)| session)
                .ok_or_else(|| ReasonCode::ToolUnavailable.into())
        } else {
            self.shared.look_again(pin).await
        };
        let session = session.map_err(not_run)?;
        let arguments = to_arguments(permit.arguments().value()).map_err(not_run)?;
        let params = CallToolRequestParams::new(pin.name.to_string()).with_arguments(arguments);
        let timeout = self.shared.settings.timeout;
        let result = session.call(params, timeout.to_duration()).await;
        if matches!(result, Err(CallFault::NotSent(_))) {
            self.shared.lost.notify_one();
        }
        let result = result.map_err(|fault| failure(fault, timeout))?;
        to_output(&result, self.shared.settings.bytes_max).map(ToolOutput::from)
    }

    fn is_available(&self) -> bool {
        self.shared.current().is_some()
    }

    async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            // It panicked only if a child is left to be killed by being dropped.
            drop(supervisor.await);
        }
    }
}

/// The arguments as rmcp sends them.
///
/// # Errors
/// `arg.number` if a number would not arrive as it was checked.
fn to_arguments(arguments: &Value) -> Result<serde_json::Map<String, serde_json::Value>, Reason> {
    let text = arguments.to_string();
    let sent: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let is_same = Value::parse(&sent.to_string()).is_ok_and(|arrives| arrives == *arguments);
    match sent {
        serde_json::Value::Object(members) if is_same => Ok(members),
        _ => Err(Reason::new(ReasonCode::ArgNumber)
            .told("a number has more digits than an MCP server would be sent; pass it as text")),
    }
}

fn failure(fault: CallFault, timeout: Millis) -> ToolFailure {
    let (reason, status) = match fault {
        CallFault::Refused(why) => (
            Reason::new(ReasonCode::ToolFailed).told(format_args!("the MCP server reports an error: {why}")),
            OutcomeStatus::Failed,
        ),
        CallFault::Timeout => (
            Reason::new(ReasonCode::ToolTimeout).told(format_args!("longer than {timeout}")),
            OutcomeStatus::UnknownOutcome,
        ),
        CallFault::TooLarge => (
            Reason::new(ReasonCode::ToolResultTooLarge).told("the result has more than 4 MiB"),
            OutcomeStatus::UnknownOutcome,
        ),
        CallFault::NotSent(why) => (
            Reason::new(ReasonCode::ToolUnavailable).told("its MCP server is not connected").noted(why),
            OutcomeStatus::NotRun,
        ),
        CallFault::Lost(why) => (
            Reason::new(ReasonCode::ToolUnavailable)
                .told("the connection to its MCP server was lost while it ran")
                .noted(why),
            OutcomeStatus::UnknownOutcome,
        ),
    };
    ToolFailure { reason, status }
}

/// A `CallToolResult` as the caller gets it: content, structured content, and whether the tool calls it an error.
/// Everything else the server adds, `_meta` above all, is dropped: what it says there of labels or instructions is
/// nobody's word (threat M10).
fn to_output(result: &Value, bytes_max: usize) -> Result<Value, ToolFailure> {
    let failed = |reason| Err(ToolFailure { reason, status: OutcomeStatus::Failed });
    // 2026-07-28: instead of asking the client, a server ends the call with questions for the user.
    match result.get("resultType").and_then(Value::as_str) {
        None | Some("complete") => {}
        Some("input_required") => {
            return failed(
                Reason::new(ReasonCode::McpMethod)
                    .told("the tool asks the user for input, which it does not get"),
            );
        }
        Some(_) => {
            return failed(
                Reason::new(ReasonCode::ToolFailed).told("the MCP server answers without a result"),
            );
        }
    }
    let content = match result.get("content") {
        Some(Value::Array(items)) => Value::Array(items.iter().map(without_meta).collect()),
        _ => Value::Array(Vec::new()),
    };
    let is_error = matches!(result.get("isError"), Some(Value::Bool(true)));
    let structured = result.get("structuredContent").filter(|value| **value != Value::Null);
    let structured = structured.map(|value| ("structuredContent", value.clone()));
    let members = [("content", content), ("isError", Value::Bool(is_error))];
    let mut output: Value = members.into_iter().chain(structured).collect();
    if writ_common::red::off("M10") {
        output = result.clone();
    }
    let bytes = output.to_string().len();
    if bytes > bytes_max && !writ_common::red::off("M09") {
        let told = format_args!("the result has {bytes} bytes, more than {bytes_max}").to_string();
        return failed(Reason::new(ReasonCode::ToolResultTooLarge).told(told));
    }
    Ok(output)
}

/// A content block without what the server adds for clients.
fn without_meta(block: &Value) -> Value {
    match block {
        Value::Object(members) => {
            let kept = members.iter().filter(|(key, _)| *key != "_meta");
            kept.map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(result: &str, bytes_max: usize) -> Result<String, String> {
        let result = to_output(&Value::parse(result).unwrap(), bytes_max);
        result.map(|value| value.to_string()).map_err(|failure| failure.reason.to_string())
    }

    #[test]
    fn m10_results_keep_content_and_lose_what_servers_say_of_them() {
        let result = r#"{"_meta":{"dev.writ/label":"public"},"content":[{"_meta":{},"text":"hi","type":"text"}],"resultType":"complete","structuredContent":{"n":0.1000000000000000055}}"#;
        assert_eq!(
            output(result, 1_000).unwrap(),
            r#"{"content":[{"text":"hi","type":"text"}],"isError":false,"structuredContent":{"n":0.1000000000000000055}}"#
        );
        assert_eq!(output("{}", 1_000).unwrap(), r#"{"content":[],"isError":false}"#);
        assert_eq!(output(r#"{"isError":true}"#, 1_000).unwrap(), r#"{"content":[],"isError":true}"#);
        let large = format!(r#"{{"content":["{}"]}}"#, "x".repeat(1_000));
        assert!(output(&large, 1_000).unwrap_err().starts_with("tool.result_too_large"));
    }

    #[test]
    fn m08_a_result_that_asks_for_input_is_none() {
        let asks = r#"{"inputRequests":{},"resultType":"input_required"}"#;
        assert!(output(asks, 1_000).unwrap_err().starts_with("mcp.method"));
    }

    #[test]
    fn numbers_are_sent_as_they_were_checked_or_not_at_all() {
        let sent = |text: &str| to_arguments(&Value::parse(text).unwrap()).is_ok();
        assert!(sent(r#"{"a":98.7,"b":9007199254740993,"c":[-1,0.1]}"#));
        assert!(!sent(r#"{"a":0.1000000000000000055}"#));
    }

    #[test]
    fn waits_are_spread_and_bounded() {
        for _ in 0..100 {
            let wait = jittered(RETRY_AFTER_MAX);
            assert!(wait >= RETRY_AFTER_MAX / 2 && wait <= RETRY_AFTER_MAX, "{wait:?}");
        }
    }
}
