//! Users from elsewhere: an OAuth 2.1 resource server (MCP authorization; RFC 9728, RFC 6750).
//!
//! The token is the user's, for this resource. The broker verifies it, as it verifies every user's, and starts a task
//! on its authority; the token goes nowhere else. A user has one task however often the token is renewed: what a
//! conversation was told stays with it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use serde_json::{Value as JsonValue, json};
use tokio::sync::Semaphore;
use writ_common::{digest::Digest, ids::TaskId, reason::ReasonCode, time::Timestamp};
use writ_sdk::{Agent, Error, NewTask, Task};

use crate::{
    Gateway, GatewayError, GatewayOptions, HttpGateway,
    http::{Access, Hosts, LOOPBACK, PATH, credential, listen},
    server::Opened,
};

/// Most tokens that are known at once, good ones and refused ones.
const TOKENS_MAX: usize = 4_096;
/// After which time without a request a token is forgotten. The task stands: the same user finds it again.
const IDLE: Duration = Duration::from_secs(3_600);
/// How long a token that the broker refused is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// How many tasks are started at the same time.
const STARTS_MAX: usize = 8;
/// How many refused starts there may be at once, and how many more each second: anybody can make up tokens, and each
/// refusal of the broker is a record.
const REFUSALS: (u32, u32) = (20, 1);
/// How many tasks of a user may have ended on one day before no new one is started.
const TASKS_PER_DAY_MAX: u32 = 48;
/// How often a start is repeated that another request has under way, and after which time.
const WAITS: (u32, Duration) = (20, Duration::from_millis(100));
const SECS_PER_DAY: u64 = 86_400;
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

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

/// A task for each user.
pub(crate) struct Remote {
    agent: Agent,
    options: RemoteOptions,
    /// Scheme and authority of the resource.
    origin: String,
    state: Mutex<State>,
    starts: Semaphore,
}

struct State {
    /// Tokens the broker took.
    good: BTreeMap<Digest, Good>,
    /// Tokens it did not take.
    refused: BTreeMap<Digest, (Instant, ReasonCode)>,
    /// Which task of which day a user was given last, by what the token says of the user.
    latest: BTreeMap<Digest, Generation>,
    allowance: Allowance,
}

struct Good {
    gateway: Gateway,
    task: TaskId,
    /// When the token ends.
    expires: Timestamp,
    used: Instant,
}

impl State {
    /// The gateway of a task, if one of its user's tokens has opened it.
    fn gateway_of(&self, task: &TaskId) -> Option<Gateway> {
        self.good.values().find(|good| good.task == *task).map(|good| good.gateway.clone())
    }
}

/// Names a task of a user's among all that there were.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Generation {
    day: u64,
    number: u32,
}

/// How many refused starts are still let through.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn is_left(&mut self) -> bool {
        let (most, per_second) = REFUSALS;
        let seconds = u32::try_from(self.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left = self.left.saturating_add(seconds.saturating_mul(per_second)).min(most);
            self.since = Instant::now();
        }
        self.left > 0
    }
}

/// What a token says of itself. Nothing is believed of it: it only spares the broker what it would refuse, and names
/// the task to ask for, which the broker gives to nobody else.
struct Claims {
    user: Digest,
    expires: Timestamp,
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
    let is_local = LOOPBACK.contains(&authority.host().trim_matches(['[', ']']));
    if scheme != "https" && !(scheme == "http" && is_local) {
        return Err(unfit("is not https"));
    }
    if url.path() != PATH {
        return Err(unfit("does not end in /mcp, where the protocol is spoken"));
    }
    let origin = format!("{scheme}://{authority}");
    let hosts = LOOPBACK.into_iter().chain([authority.host()]).map(str::to_owned).collect();
    let port = authority.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let origins = vec![format!("{scheme}://{}:{port}", authority.host())];
    let address = options.address;
    let state = State {
        good: BTreeMap::new(),
        refused: BTreeMap::new(),
        latest: BTreeMap::new(),
        allowance: Allowance { left: REFUSALS.0, since: Instant::now() },
    };
    let (state, starts) = (Mutex::new(state), Semaphore::new(STARTS_MAX));
    let remote = Remote { agent, options, origin, state, starts };
    listen(Access::Remote(Arc::new(remote)), address, Hosts { hosts, origins }).await
}

type Refusal = Box<Response<Body>>;

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    /// The task of a token's user, started with the first request; and whose its sessions are.
    pub(crate) async fn open(&self, bearer: Option<&str>) -> Result<(Opened, Digest), Refusal> {
        let Some(token) = bearer.filter(|token| !token.is_empty()) else {
            return Err(self.unauthorized(None));
        };
        let written = credential(token);
        if let Some(known) = self.known(written) {
            return known;
        }
        let claims = self.read(token).map_err(|why| self.unauthorized(Some(why)))?;
        let Ok(_turn) = self.starts.acquire().await else { return Err(busy()) };
        // Another request may have brought it meanwhile.
        if let Some(known) = self.known(written) {
            return known;
        }
        if !self.state().allowance.is_left() {
            return Err(busy());
        }
        match self.start(token, &claims).await {
            Ok(gateway) => Ok(self.keep(written, &claims, gateway)),
            Err(error) => Err(self.refuse(written, &error)),
        }
    }

    /// What is known of a token already.
    fn known(&self, written: Digest) -> Option<Result<(Opened, Digest), Refusal>> {
        let mut state = self.state();
        if let Some((at, code)) = state.refused.get(&written).copied() {
            if at.elapsed() < REFUSED_FOR {
                return Some(Err(self.unauthorized(Some(code.as_str()))));
            }
            state.refused.remove(&written);
        }
        let good = state.good.get_mut(&written)?;
        good.used = Instant::now();
        let (gateway, owner) = (good.gateway.clone(), owner(&good.task));
        let is_over = good.expires <= self.agent.now() && !writ_common::red::off("M07-expiry");
        let opened =
            if is_over { Opened::Ended(gateway, ReasonCode::JwtExpired) } else { Opened::Live(gateway) };
        Some(Ok((opened, owner)))
    }

    /// Remembers a token the broker took. Users have one gateway, whichever of their tokens came first.
    fn keep(&self, written: Digest, claims: &Claims, gateway: Gateway) -> (Opened, Digest) {
        let mut state = self.state();
        if state.good.len() >= TOKENS_MAX {
            state.good.retain(|_, good| good.used.elapsed() < IDLE);
        }
        if state.good.len() >= TOKENS_MAX {
            let longest = state.good.iter().min_by_key(|(_, good)| good.used).map(|(written, _)| *written);
            longest.and_then(|written| state.good.remove(&written));
        }
        let task = gateway.task().id().clone();
        let gateway = state.gateway_of(&task).unwrap_or(gateway);
        let owner = owner(&task);
        let good = Good { gateway: gateway.clone(), task, expires: claims.expires, used: Instant::now() };
        state.good.insert(written, good);
        (Opened::Live(gateway), owner)
    }

    async fn start(&self, token: &str, claims: &Claims) -> Result<Gateway, GatewayError> {
        let task = self.task(token, claims).await?;
        let known = self.state().gateway_of(task.id());
        match known {
            Some(gateway) => Ok(gateway),
            None => Gateway::new(task, self.options.gateway.clone()).await,
        }
    }

    /// The user's task, or the next one if that is over. Which it is does not depend on the token but on its user, whom
    /// the broker vouches for: with a new token a new task would begin, and have been told nothing.
    async fn task(&self, token: &str, claims: &Claims) -> Result<Task, Error> {
        let today = self.agent.now().as_secs() / SECS_PER_DAY;
        let latest = self.state().latest.get(&claims.user).copied();
        let mut generation = latest.unwrap_or(Generation { day: today, number: 0 });
        let mut waits = 0;
        loop {
            match self.agent.start_task(self.new_task(token, generation)).await {
                Ok(task) => {
                    let mut state = self.state();
                    if state.latest.len() >= TOKENS_MAX {
                        state.latest.retain(|_, generation| generation.day == today);
                    }
                    state.latest.insert(claims.user, generation);
                    return Ok(task);
                }
                Err(error) => match error.code() {
                    Some(ReasonCode::JwtReplayed) if waits < WAITS.0 => {
                        waits += 1;
                        tokio::time::sleep(WAITS.1).await;
                    }
                    Some(ReasonCode::TaskDeadline) if generation.day < today => {
                        generation = Generation { day: today, number: 0 };
                    }
                    Some(ReasonCode::TaskDeadline) if generation.number < TASKS_PER_DAY_MAX => {
                        generation.number += 1;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn new_task(&self, token: &str, Generation { day, number }: Generation) -> NewTask {
        let resource = Digest::of("writ/v1/mcp-resource", &[self.options.resource.as_bytes()]);
        // Replicas have keys of their own, and a task is given to one key.
        let key = self.agent.identity().holder.public().id();
        let key = format!("mcp-{}-{key}-{day}-{number}", resource.short());
        NewTask::new(&self.options.kind, token, "").idempotency_key(key)
    }

    /// # Errors
    /// What the broker would refuse, in words for the client.
    fn read(&self, token: &str) -> Result<Claims, &'static str> {
        let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Option<JsonValue> = claims.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let claims = claims.ok_or("the token is no JWT")?;
        let text = |name: &str| claims.get(name).and_then(JsonValue::as_str);
        let resource = self.options.resource.as_str();
        let is_meant = match claims.get("aud") {
            Some(JsonValue::String(audience)) => audience == resource,
            Some(JsonValue::Array(audiences)) => {
                audiences.iter().any(|audience| audience.as_str() == Some(resource))
            }
            _ => false,
        };
        if !is_meant && !writ_common::red::off("M07-audience") {
            return Err("the token is for another resource");
        }
        let (issuer, subject) = (text("iss").unwrap_or_default(), text("sub").unwrap_or_default());
        if !self.options.issuers.iter().any(|known| known == issuer) {
            return Err("the token is of another issuer");
        }
        let expires = claims.get("exp").and_then(JsonValue::as_u64).map(Timestamp::from_secs);
        let expires = expires.filter(|expires| self.agent.now() < *expires).ok_or("the token has ended")?;
        let user = Digest::of("writ/v1/mcp-user", &[issuer.as_bytes(), subject.as_bytes()]);
        Ok(Claims { user, expires })
    }

    fn refuse(&self, written: Digest, error: &GatewayError) -> Refusal {
        let GatewayError::Sdk(Error::Denied(denial)) = error else {
            // Whoever asks is not to blame: they may ask again.
            tracing::warn!("a task could not be started: {error}");
            return busy();
        };
        let mut state = self.state();
        state.allowance.left = state.allowance.left.saturating_sub(1);
        match denial.code() {
            Some(code) if is_of_token(code) => {
                if state.refused.len() >= TOKENS_MAX {
                    state.refused.retain(|_, (at, _)| at.elapsed() < REFUSED_FOR);
                }
                if state.refused.len() < TOKENS_MAX {
                    state.refused.insert(written, (Instant::now(), code));
                }
                drop(state);
                self.unauthorized(Some(code.as_str()))
            }
            Some(ReasonCode::JwtReplayed) => busy(),
            _ => Box::new((StatusCode::FORBIDDEN, denial.to_string()).into_response()),
        }
    }

    /// RFC 6750, section 3, with the pointer of RFC 9728, section 5.1.
    fn unauthorized(&self, why: Option<&str>) -> Refusal {
        let metadata = format!("{}{WELL_KNOWN}{PATH}", self.origin);
        let error = why.map_or_else(String::new, |why| {
            format!(", error=\"invalid_token\", error_description=\"{}\"", why.replace(['"', '\\'], "'"))
        });
        let challenge = format!("Bearer resource_metadata=\"{metadata}\"{error}");
        let said = why.unwrap_or("a token is needed").to_owned();
        let mut response = (StatusCode::UNAUTHORIZED, said).into_response();
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        Box::new(response)
    }
}

/// Sessions are a user's task's, and outlive a token.
fn owner(task: &TaskId) -> Digest {
    Digest::of("writ/v1/mcp-owner", &[task.as_str().as_bytes()])
}

fn busy() -> Refusal {
    let headers = [(header::RETRY_AFTER, "1")];
    Box::new(
        (StatusCode::SERVICE_UNAVAILABLE, headers, "no task could be started; try again").into_response(),
    )
}

/// Whether it is the token that does not count, and another one may.
fn is_of_token(code: ReasonCode) -> bool {
    code != ReasonCode::JwtReplayed && code.as_str().starts_with("jwt.")
}
