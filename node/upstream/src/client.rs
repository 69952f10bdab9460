//! One connection to a server: made, asked for its tools, called, closed.

use std::{sync::Arc, time::Duration};

use rmcp::{
    RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, ClientRequest, ListToolsRequest, PaginatedRequestParams,
        ProtocolVersion, SubscriptionFilter,
    },
    service::{
        ClientInitializeError, ClientLifecycleMode, ClientServiceExt as _, Peer, PeerRequestOptions,
        RunningService, RunningServiceCancellationToken, ServiceError,
    },
    transport::StreamableHttpClientTransport,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};
use writ_common::{ids::Resource, json::Value};
use writ_node::tools::{McpServer, McpSettings, error_chain};

use crate::{
    UpstreamError,
    handler::Handler,
    http::HttpClient,
    listing::{Listing, TOOLS_MAX},
    stdio::{ChildGroup, Program},
    text::bounded,
    wire::{Fault, Taken, Wire},
};

/// Most pages of a listing.
const PAGES_MAX: usize = 100;
/// How long a connection may take to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a connection begins. Both revisions are spoken; which one a server speaks is found out by asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// `server/discover` first (2026-07-28), and `initialize` if the server does not know that.
    Newest,
    /// `initialize` at once (2025-11-25 and before): for servers that end, or fall silent, on anything else.
    Handshake,
}

impl Opening {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Newest => Self::Handshake,
            Self::Handshake => Self::Newest,
        }
    }

    fn mode(self) -> ClientLifecycleMode {
        match self {
            Self::Newest => ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
            },
            Self::Handshake => ClientLifecycleMode::Initialize,
        }
    }
}

/// A connection, as calls use it.
pub(crate) struct Session {
    peer: Peer<RoleClient>,
    wire: Arc<Wire>,
    /// The server says that its tools have changed.
    pub(crate) changed: Arc<Notify>,
}

/// A connection, as whoever made it holds it: what ends it.
pub(crate) struct Connection {
    pub(crate) session: Arc<Session>,
    /// Ends when the connection does.
    running: JoinHandle<()>,
    /// Closed when the connection is.
    gone: watch::Receiver<()>,
    stop: RunningServiceCancellationToken,
    subscription: Option<JoinHandle<()>>,
    child: Option<ChildGroup>,
}

/// Why a call has no result.
#[derive(Debug)]
pub(crate) enum CallFault {
    /// The server reports an error instead of a result.
    Refused(String),
    /// No answer came in time.
    Timeout,
    /// The answer is larger than anything that is read.
    TooLarge,
    /// The request never left.
    NotSent(String),
    /// The connection was lost after the request had left.
    Lost(String),
}

/// Connects.
///
/// # Errors
/// [`UpstreamError`]; nothing is left running then.
pub(crate) async fn connect(
    resource: &Resource,
    settings: &McpSettings,
    opening: Opening,
) -> Result<Connection, UpstreamError> {
    let wire = Arc::new(Wire::new());
    let changed = Arc::new(Notify::new());
    let handler = Handler { resource: resource.clone(), changed: Arc::clone(&changed) };
    let (running, child) = match &settings.server {
        McpServer::Stdio { command, args, folder, env } => {
            let program = Program { command, args, folder, env };
            let (child, transport) = program.start(resource, Arc::clone(&wire))?;
            let running = timeout(
                settings.start_timeout.to_duration(),
                handler.serve_with_lifecycle(transport, opening.mode()),
            );
            match running.await {
                Ok(Ok(running)) => (running, Some(child)),
                failed => {
                    child.end().await;
                    return Err(not_open(failed, settings, &wire));
                }
            }
        }
        McpServer::Http { url, header_files, ca_file } => {
            let (client, config) = HttpClient::open(url, header_files, ca_file.as_ref(), Arc::clone(&wire))?;
            let transport = StreamableHttpClientTransport::with_client(client, config);
            let running = timeout(
                settings.start_timeout.to_duration(),
                handler.serve_with_lifecycle(transport, opening.mode()),
            );
            match running.await {
                Ok(Ok(running)) => (running, None),
                failed => return Err(not_open(failed, settings, &wire)),
            }
        }
    };
    let peer = running.peer().clone();
    let subscription = subscribe(&peer, &changed);
    let stop = running.cancellation_token();
    let (alive, gone) = watch::channel(());
    let running = tokio::spawn(async move {
        drop(running.waiting().await);
        drop(alive);
    });
    let session = Arc::new(Session { peer, wire, changed });
    Ok(Connection { session, running, gone, stop, subscription, child })
}

type Opened =
    Result<Result<RunningService<RoleClient, Handler>, ClientInitializeError>, tokio::time::error::Elapsed>;

fn not_open(opened: Opened, settings: &McpSettings, wire: &Wire) -> UpstreamError {
    match (wire.fault(), opened) {
        (Some(fault), _) => UpstreamError::Lost(fault.as_str().to_owned()),
        (None, Ok(Err(error))) => UpstreamError::Lost(why_not(&error)),
        _ => UpstreamError::Silent(settings.start_timeout),
    }
}

/// Why it could not begin, in our words: the error's own hold whatever the server sent.
fn why_not(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::ConnectionClosed(_) => "it ended before it answered".to_owned(),
        ClientInitializeError::JsonRpcError(error) => format!("it refuses: {}", bounded(&error.message)),
        ClientInitializeError::TransportError { error, .. } => bounded(&error_chain(error.error.as_ref())),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => why_not(fallback),
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
            "it speaks no revision of MCP that is spoken here".to_owned()
        }
        _ => "it answers something else than the protocol has".to_owned(),
    }
}

/// From 2026-07-28 on a server says that its tools have changed to whoever listens.
fn subscribe(peer: &Peer<RoleClient>, changed: &Arc<Notify>) -> Option<JoinHandle<()>> {
    let info = peer.peer_info()?;
    let tools = info.capabilities.tools.as_ref()?;
    if info.protocol_version.has_initialize() || tools.list_changed != Some(true) {
        return None;
    }
    let (peer, changed) = (peer.clone(), Arc::clone(changed));
    Some(tokio::spawn(async move {
        // Without it, a change is found out before the next call all the same.
        let wanted = SubscriptionFilter::builder().tools_list_changed().build();
        let Ok(mut subscription) = peer.listen(wanted).await else { return };
        while let Ok(Some(_)) = subscription.next().await {
            changed.notify_one();
        }
    }))
}

impl Connection {
    /// Whether it was opened with `initialize`.
    pub(crate) fn is_handshake(&self) -> bool {
        let info = self.session.peer.peer_info();
        info.is_some_and(|info| info.protocol_version.has_initialize())
    }

    /// Waits until it has ended, by whichever side.
    pub(crate) async fn ended(&self) {
        let mut gone = self.gone.clone();
        // Nothing is ever sent: it closes.
        while gone.changed().await.is_ok() {}
    }

    /// Closes it, and ends the child if there is one.
    pub(crate) async fn close(self) {
        if let Some(subscription) = self.subscription {
            subscription.abort();
        }
        self.stop.cancel();
        drop(timeout(CLOSE_TIMEOUT, self.running).await);
        if let Some(child) = self.child {
            child.end().await;
        }
    }
}

impl Session {
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.wire.fault()
    }

    /// Waits until the server has done something it is not listened to any further for.
    pub(crate) async fn faulted(&self) -> Fault {
        let mut faults = self.wire.faults();
        let fault = faults.wait_for(Option::is_some).await.ok().and_then(|fault| *fault);
        match fault {
            Some(fault) => fault,
            // The wire is gone only together with this.
            None => std::future::pending().await,
        }
    }

    /// Every tool the server lists, page by page.
    ///
    /// # Errors
    /// [`UpstreamError`] if it does not answer in time, or lists without end.
    pub(crate) async fn list(&self, within: Duration) -> Result<Listing, UpstreamError> {
        match timeout(within, self.pages(within)).await {
            Ok(listed) => listed,
            Err(_) => Err(UpstreamError::Silent(writ_common::time::Millis(
                u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            ))),
        }
    }

    async fn pages(&self, within: Duration) -> Result<Listing, UpstreamError> {
        let mut entries = Vec::new();
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let params = PaginatedRequestParams::default().with_cursor(cursor.clone());
            let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params));
            let page = self.ask(request, within).await.map_err(|fault| match fault {
                CallFault::Refused(why) => UpstreamError::Lost(format!("it does not list its tools: {why}")),
                CallFault::Timeout => UpstreamError::Lost("it does not list its tools in time".to_owned()),
                CallFault::TooLarge => UpstreamError::Endless,
                CallFault::NotSent(why) | CallFault::Lost(why) => UpstreamError::Lost(why),
            })?;
            let Some(Value::Array(tools)) = page.get("tools") else {
                return Err(UpstreamError::Lost("its list of tools is none".to_owned()));
            };
            entries.extend(tools.iter().cloned());
            if entries.len() > TOOLS_MAX {
                return Err(UpstreamError::Endless);
            }
            match page.get("nextCursor").and_then(Value::as_str) {
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                Some(_) => return Err(UpstreamError::Endless),
                None => return Ok(Listing::new(entries)),
            }
        }
        Err(UpstreamError::Endless)
    }

    /// Calls a tool: its name and its arguments, and nothing about who asks.
    pub(crate) async fn call(
        &self,
        params: CallToolRequestParams,
        within: Duration,
    ) -> Result<Value, CallFault> {
        self.ask(ClientRequest::CallToolRequest(CallToolRequest::new(params)), within).await
    }

    /// # Errors
    /// [`CallFault`]. After [`CallFault::Timeout`] the server was told that nobody waits any longer.
    async fn ask(&self, request: ClientRequest, within: Duration) -> Result<Value, CallFault> {
        let options = PeerRequestOptions::with_timeout(within);
        let sent = self.peer.send_request_with_option(request, options).await;
        let handle = sent.map_err(|_| CallFault::NotSent("the connection is closed".to_owned()))?;
        let id = handle.id.to_string();
        let answered = handle.await_response().await;
        let taken = self.wire.take(&id);
        match (answered, taken) {
            (_, Taken::TooLarge) => Err(CallFault::TooLarge),
            (Ok(_), Taken::Answer(value)) => Ok(value),
            (Ok(_), Taken::Nothing) => Err(CallFault::Lost("the answer is not there".to_owned())),
            (Err(ServiceError::McpError(error)), _) => {
                Err(CallFault::Refused(format!("{}: {}", error.code.0, bounded(&error.message))))
            }
            (Err(ServiceError::Timeout { .. }), _) => Err(CallFault::Timeout),
            (Err(ServiceError::TransportSend(error)), _) => {
                let why = bounded(&error_chain(error.error.as_ref()));
                Err(if is_unconnected(error.error.as_ref()) {
                    CallFault::NotSent(why)
                } else {
                    CallFault::Lost(why)
                })
            }
            (Err(_), _) => Err(match self.wire.fault() {
                Some(Fault::TooLarge) => CallFault::TooLarge,
                Some(fault) => CallFault::Lost(fault.as_str().to_owned()),
                None => CallFault::Lost("the connection ended".to_owned()),
            }),
        }
    }
}

/// Whether there never was a connection that something could have been sent on.
fn is_unconnected(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect) {
            return true;
        }
        cause = inner.source();
    }
    false
}
