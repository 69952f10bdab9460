//! Users from elsewhere: an OAuth 2.1 resource server (MCP authorization; RFC 9728, RFC 6750).
//!
//! The token is the user's, for this resource. The broker verifies it, as it verifies every user's, and starts a task
//! on its authority; the token goes nowhere else.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value as Json_, json};
use tokio::sync::OnceCell;
use writ_common::{digest::Digest, reason::ReasonCode};
use writ_sdk::{Agent, Error, NewTask};

use crate::{
    Gateway, GatewayError, GatewayOptions, HttpGateway,
    http::{Access, Hosts, PATH, credential, listen, loopback_hosts},
};

/// Most users with a task at once.
const USERS_MAX: usize = 1_000;
/// After which time without a request a user's gateway is given up. The task stands: the same token finds it again.
const IDLE: Duration = Duration::from_secs(3_600);

/// How users from elsewhere are served.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Where it listens: on loopback, behind a server with TLS.
    pub address: SocketAddr,
    /// The URL by which clients reach it, which tokens must name as their audience (RFC 8707).
    pub resource: String,
    /// The issuers whose tokens the broker takes.
    pub issuers: Vec<String>,
    /// The kind of task that is started.
    pub kind: String,
    /// What is offered, and by whom calls are made.
    pub gateway: GatewayOptions,
}

/// One task for each user's token.
pub(crate) struct Remote {
    agent: Agent,
    options: RemoteOptions,
    /// Scheme and authority of the resource.
    origin: String,
    users: Mutex<BTreeMap<Digest, Arc<User>>>,
}

struct User {
    gateway: OnceCell<Gateway>,
    used: Mutex<Instant>,
}

/// Serves users who bring a token of their own.
///
/// # Errors
/// [`GatewayError`] if the resource is no URL, or the address is not on loopback or taken.
pub async fn serve_remote(agent: Agent, options: RemoteOptions) -> Result<HttpGateway, GatewayError> {
    let unfit = |why: &str| GatewayError::Setting(format!("`{}` {why}", options.resource));
    let url: axum::http::Uri = options.resource.parse().map_err(|_| unfit("is no URL"))?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(unfit("is no URL with a host"));
    };
    let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&authority.host());
    if scheme != "https" && !(scheme == "http" && is_local) {
        return Err(unfit("is not https"));
    }
    if url.path() != PATH {
        return Err(unfit("does not end in /mcp, where the protocol is spoken"));
    }
    let origin = format!("{scheme}://{authority}");
    let mut hosts = loopback_hosts();
    hosts.push(authority.host().to_owned());
    let port = authority.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let origins = vec![format!("{scheme}://{}:{port}", authority.host())];
    let address = options.address;
    let remote = Remote { agent, options, origin, users: Mutex::default() };
    listen(Access::Remote(Arc::new(remote)), address, Hosts { hosts, origins }).await
}

impl Remote {
    /// Where clients learn who issues tokens for this resource (RFC 9728, section 3.1).
    pub(crate) fn metadata(&self) -> Router {
        let document = json!({
            "resource": self.options.resource,
            "authorization_servers": self.options.issuers,
            "bearer_methods_supported": ["header"],
            "resource_name": "Writ",
        });
        let answer = move || {
            let document = document.clone();
            async move { Json(document) }
        };
        Router::new()
            .route(WELL_KNOWN, get(answer.clone()))
            .route(&format!("{WELL_KNOWN}{PATH}"), get(answer))
    }

    /// The task of a token, started with its first request.
    pub(crate) async fn open(&self, bearer: Option<&str>) -> Result<(Gateway, Digest), Box<Response<Body>>> {
        let Some(token) = bearer.filter(|token| !token.is_empty()) else {
            return Err(Box::new(self.unauthorized(None)));
        };
        if !self.is_meant(token) && !writ_common::red::off("M07-audience") {
            return Err(Box::new(self.unauthorized(Some("the token is for another resource"))));
        }
        let credential = credential(token);
        let user = self.user(credential);
        let opened = user.gateway.get_or_try_init(|| self.start(token, credential)).await;
        match opened {
            Ok(gateway) => Ok((gateway.clone(), credential)),
            Err(error) => {
                self.users.lock().unwrap_or_else(PoisonError::into_inner).remove(&credential);
                Err(Box::new(self.refused(&error)))
            }
        }
    }

    fn user(&self, credential: Digest) -> Arc<User> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let used = |user: &User| *user.used.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= USERS_MAX {
            users.retain(|_, user| now.duration_since(used(user)) < IDLE);
        }
        if users.len() >= USERS_MAX && !users.contains_key(&credential) {
            let longest = users.iter().min_by_key(|(_, user)| used(user)).map(|(key, _)| *key);
            longest.and_then(|key| users.remove(&key));
        }
        let new = || Arc::new(User { gateway: OnceCell::new(), used: Mutex::new(now) });
        let user = Arc::clone(users.entry(credential).or_insert_with(new));
        *user.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
        user
    }

    async fn start(&self, token: &str, credential: Digest) -> Result<Gateway, GatewayError> {
        // The same token finds the same task, whichever gateway it comes to and however often.
        let new = NewTask::new(&self.options.kind, token, "").idempotency_key(format!("mcp-{credential}"));
        let task = self.agent.start_task(new).await?;
        Gateway::new(task, self.options.gateway.clone()).await
    }

    /// Whether the token names this resource among its audience. Nothing is believed by it: the broker verifies the
    /// same bytes before anything is done on their authority.
    fn is_meant(&self, token: &str) -> bool {
        let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Option<Json_> = claims.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let resource = self.options.resource.as_str();
        match claims.as_ref().and_then(|claims| claims.get("aud")) {
            Some(Json_::String(audience)) => audience == resource,
            Some(Json_::Array(audiences)) => {
                audiences.iter().any(|audience| audience.as_str() == Some(resource))
            }
            _ => false,
        }
    }

    fn refused(&self, error: &GatewayError) -> Response<Body> {
        match error {
            GatewayError::Sdk(Error::Denied(denial)) => {
                let of_token = denial.code().is_some_and(is_of_token);
                if of_token {
                    let code = denial.code().map_or("", ReasonCode::as_str);
                    return self.unauthorized(Some(code));
                }
                (StatusCode::FORBIDDEN, denial.to_string()).into_response()
            }
            // Whoever asks is nobody's fault: they may ask again.
            other => {
                tracing::warn!("a task could not be started: {other}");
                (StatusCode::SERVICE_UNAVAILABLE, "no task could be started; try again").into_response()
            }
        }
    }

    /// RFC 6750, section 3, with the pointer of RFC 9728, section 5.1.
    fn unauthorized(&self, why: Option<&str>) -> Response<Body> {
        let metadata = format!("{}{WELL_KNOWN}{PATH}", self.origin);
        let error = why.map_or_else(String::new, |why| {
            format!(", error=\"invalid_token\", error_description=\"{}\"", why.replace(['"', '\\'], "'"))
        });
        let challenge = format!("Bearer resource_metadata=\"{metadata}\"{error}");
        let mut response =
            (StatusCode::UNAUTHORIZED, why.unwrap_or("a token is needed").to_owned()).into_response();
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// Whether it is the token that does not count, and another one may.
fn is_of_token(code: ReasonCode) -> bool {
    code.as_str().starts_with("jwt.")
}
