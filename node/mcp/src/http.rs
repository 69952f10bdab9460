//! Streamable HTTP on this machine. Who may use it is settled before the protocol library sees a request; what a
//! request does is decided from its body, by the protocol library and then by a node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::IntoResponse as _,
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService,
    session::{SessionManager as _, local::LocalSessionManager},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use writ_common::{digest::Digest, reason::ReasonCode};

use crate::{
    Gateway, GatewayError,
    oauth::Remote,
    server::{Opened, Server},
    sessions::Sessions,
};

/// Where the protocol is spoken.
pub(crate) const PATH: &str = "/mcp";
/// Largest request: what the bus would not carry is refused at the door.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// After which time without a request a session of the older revision is closed: people pause, and not every client
/// opens another one by itself.
const SESSION_IDLE: Duration = Duration::from_secs(3_600);
/// The names of this machine.
pub(crate) const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const SESSION_HEADER: &str = "mcp-session-id";

/// What a client on this machine has to show.
#[derive(Clone)]
pub enum Bearer {
    /// Nothing: whoever reaches the port acts as the agent.
    Open,
    /// This secret, as `Authorization: Bearer` (RFC 6750).
    Secret(String),
}

/// How a gateway listens.
#[derive(Clone)]
pub struct HttpOptions {
    /// The address, on loopback; port 0 is one of the system's choice.
    pub address: SocketAddr,
    /// What a client has to show.
    pub bearer: Bearer,
}

/// A gateway that listens. It goes on until it is stopped or dropped.
pub struct HttpGateway {
    address: SocketAddr,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl HttpGateway {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL clients are given.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Takes no new requests, ends the open ones, and returns.
    pub async fn stop(mut self) {
        self.stop.cancel();
        drop((&mut self.done).await);
    }
}

impl Drop for HttpGateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.done.abort();
    }
}

/// Who may use a listener.
#[derive(Clone)]
pub(crate) enum Access {
    /// Programs of this machine, all in one task.
    Local(Gateway, Bearer),
    /// Users with a token of their own, each in a task of their own.
    Remote(Arc<Remote>),
}

#[derive(Clone)]
struct Door {
    access: Access,
    sessions: Arc<Sessions>,
    /// Where the protocol library keeps them.
    kept: Arc<LocalSessionManager>,
}

/// Serves programs of this machine over HTTP.
///
/// # Errors
/// [`GatewayError`] if the address is not on loopback or taken.
pub async fn serve_http(gateway: Gateway, options: HttpOptions) -> Result<HttpGateway, GatewayError> {
    let hosts = Hosts { hosts: LOOPBACK.map(str::to_owned).to_vec(), origins: loopback_origins() };
    listen(Access::Local(gateway, options.bearer), options.address, hosts).await
}

/// What a request may say of where it goes and where it comes from (DNS rebinding).
pub(crate) struct Hosts {
    pub(crate) hosts: Vec<String>,
    pub(crate) origins: Vec<String>,
}

fn loopback_origins() -> Vec<String> {
    ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"].map(str::to_owned).to_vec()
}

pub(crate) async fn listen(
    access: Access,
    address: SocketAddr,
    hosts: Hosts,
) -> Result<HttpGateway, GatewayError> {
    if !address.ip().is_loopback() {
        return Err(GatewayError::Setting(format!(
            "{address} is not on loopback; put a server with TLS in front of it, on this machine"
        )));
    }
    let stop = CancellationToken::new();
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts.hosts)
        .with_allowed_origins(hosts.origins)
        .enforce_origin_validation()
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(stop.child_token());
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SESSION_IDLE);
    let kept = Arc::new(sessions);
    let service = StreamableHttpService::new(|| Ok(Server::new(None)), Arc::clone(&kept), config);
    let door = Door { access: access.clone(), sessions: Arc::default(), kept };
    let mut router = Router::new().route_service(PATH, service).layer(from_fn_with_state(door, admit));
    if let Access::Remote(remote) = &access {
        router = router.merge(remote.metadata());
    }
    let failed = |source| GatewayError::Listen { address: address.to_string(), source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let stopped = stop.clone();
    let done = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!("the listener ended: {error}");
        }
    });
    Ok(HttpGateway { address, stop, done })
}

/// Settles whose a request is, before anything of it is read.
async fn admit(State(door): State<Door>, mut request: Request, next: Next) -> Response<Body> {
    let bearer = bearer(request.headers());
    let (opened, owner) = match door.access.open(bearer.as_deref()).await {
        Ok(opened) => opened,
        Err(refusal) => return *refusal,
    };
    let session = request.headers().get(SESSION_HEADER).map(|id| id.to_str().unwrap_or("").to_owned());
    if let Some(session) = &session
        && !door.sessions.is_of(session, owner)
    {
        return no_session();
    }
    // Neither the protocol library nor anything behind it has a use for the credential.
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(opened);
    let is_end = request.method() == Method::DELETE;
    let response = next.run(request).await;
    match session {
        Some(session) => {
            if response.status() == StatusCode::NOT_FOUND || (is_end && response.status().is_success()) {
                door.sessions.closed(&session);
            }
        }
        None => {
            let new = response.headers().get(SESSION_HEADER).and_then(|id| id.to_str().ok());
            if let Some(oldest) = new.and_then(|new| door.sessions.opened(new, owner))
                && let Err(error) = door.kept.close_session(&oldest.into()).await
            {
                tracing::debug!("a session could not be closed: {error}");
            }
        }
    }
    response
}

/// The one bearer token of a request; two are none.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    (second.is_none() && scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim().to_owned())
}

impl Access {
    /// What a credential opens, and whose its sessions are.
    async fn open(&self, bearer: Option<&str>) -> Result<(Opened, Digest), Box<Response<Body>>> {
        match self {
            Self::Local(gateway, Bearer::Open) => {
                Ok((Opened::Live(gateway.clone()), Digest::of("writ/v1/mcp-open", &[])))
            }
            Self::Local(gateway, Bearer::Secret(secret)) => {
                let (expected, shown) = (credential(secret), credential(bearer.unwrap_or_default()));
                // Digests are compared, so that how long it takes tells nothing of the secret.
                if expected == shown {
                    Ok((Opened::Live(gateway.clone()), shown))
                } else {
                    Err(Box::new(no_bearer()))
                }
            }
            Self::Remote(remote) => remote.open(bearer).await,
        }
    }
}

pub(crate) fn credential(token: &str) -> Digest {
    Digest::of("writ/v1/mcp-credential", &[token.as_bytes()])
}

fn no_bearer() -> Response<Body> {
    let why = "the secret is missing or wrong; `writ mcp` says at its start which file holds it";
    let mut response = (StatusCode::UNAUTHORIZED, why).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// A session that is somebody else's looks like one that does not exist; the client opens another (MCP, streamable
/// HTTP, session management).
fn no_session() -> Response<Body> {
    let code = ReasonCode::SessionMismatch;
    let message = format!("{code}: {}", code.page().meaning);
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": message}});
    (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
}
