//! How a person logs in at the development provider: a page with two buttons, for the code flow and for devices.
//!
//! It follows what real issuers do as far as a client can tell (RFC 6749, 7636, 8252, 8628, 9207; OIDC Core
//! 1.0), and asks nobody for a password.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Form, Json, Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{Html, IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Url;
use serde_json::{Value, json};
use writ_bus::{SystemClock, SystemEntropy};
use writ_common::{digest::Digest, entropy::draw};

use super::{TOKEN_SECS, TokenMaker, USERS};

/// Most logins of one kind that are remembered; the oldest makes room.
const REMEMBERED_MAX: usize = 256;
/// How long a login may take, in seconds.
const LOGIN_SECS: u64 = 300;
/// How often a device may ask, in seconds.
const INTERVAL_SECS: u64 = 1;

type Fields = BTreeMap<String, String>;
type Answer = (StatusCode, Json<Value>);

/// The provider with the logins that are under way.
#[derive(Clone)]
pub(super) struct SignIn {
    pub(super) maker: TokenMaker,
    logins: Arc<Mutex<Logins>>,
}

#[derive(Default)]
struct Logins {
    /// Pages somebody looks at, by a random name.
    pages: BTreeMap<String, Page>,
    /// Codes of the code flow.
    codes: BTreeMap<String, (Page, String)>,
    /// Devices by their code; with the user once one has approved.
    devices: BTreeMap<String, Device>,
    /// Refresh tokens.
    refreshing: BTreeMap<String, Session>,
}

/// What a client asked for.
#[derive(Clone)]
struct Page {
    client: String,
    redirect: Url,
    state: Option<String>,
    nonce: Option<String>,
    challenge: String,
    scope: String,
    ends: u64,
}

struct Device {
    client: String,
    user_code: String,
    scope: String,
    user: Option<String>,
    ends: u64,
}

#[derive(Clone)]
struct Session {
    client: String,
    user: String,
    scope: String,
}

fn now() -> u64 {
    SystemClock::new().now().wall.as_secs()
}

fn random() -> String {
    URL_SAFE_NO_PAD.encode(draw::<16>(&mut SystemEntropy))
}

/// A code people can type: RFC 8628 section 6.1 has these letters, which are no words and not mistaken for another.
fn user_code() -> String {
    const LETTERS: [char; 20] =
        ['B', 'C', 'D', 'F', 'G', 'H', 'J', 'K', 'L', 'M', 'N', 'P', 'Q', 'R', 'S', 'T', 'V', 'W', 'X', 'Z'];
    let drawn = draw::<8>(&mut SystemEntropy);
    let letters = drawn.iter().filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()));
    let letters: String = letters.collect();
    format!("{}-{}", letters.get(..4).unwrap_or_default(), letters.get(4..).unwrap_or_default())
}

fn remember<T>(map: &mut BTreeMap<String, T>, key: String, value: T) {
    if map.len() >= REMEMBERED_MAX {
        map.pop_first();
    }
    map.insert(key, value);
}

fn refused(code: &str, words: &str) -> Answer {
    (StatusCode::BAD_REQUEST, Json(json!({"error": code, "error_description": words})))
}

/// Text for a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page with a button for each user.
fn choice(action: &str, hidden: (&str, &str), client: &str) -> Html<String> {
    let (name, value) = (escaped(hidden.0), escaped(hidden.1));
    let buttons: String = USERS
        .iter()
        .map(|(user, group)| format!("<button name=\"user\" value=\"{user}\">{user} ({group})</button>\n"))
        .collect();
    Html(format!(
        "<!doctype html><title>writ dev</title>\n<h1>Log in to {}</h1>\n<p>This is the identity provider of \
         <code>writ dev</code>. It believes anybody.</p>\n<form method=\"post\" action=\"{action}\">\n\
         <input type=\"hidden\" name=\"{name}\" value=\"{value}\">\n{buttons}</form>\n",
        escaped(client)
    ))
}

impl SignIn {
    pub(super) fn new(maker: TokenMaker) -> Self {
        Self { maker, logins: Arc::default() }
    }

    pub(super) fn routes(self) -> Router {
        Router::new()
            .route("/authorize", get(ask).post(answer))
            .route("/device_authorization", post(begin_device))
            .route("/device", get(ask_device).post(answer_device))
            .route("/revoke", post(revoke))
            .route("/token", post(give))
            .with_state(self)
    }

    fn with<T>(&self, then: impl FnOnce(&mut Logins) -> T) -> T {
        then(&mut self.logins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a client is given for a login.
    fn grant(&self, session: &Session, nonce: Option<&str>) -> Result<Value> {
        let mut given = json!({
            "access_token": self.maker.token_for(&session.user)?, "token_type": "Bearer",
            "expires_in": TOKEN_SECS, "scope": session.scope,
        });
        let asked = |scope: &str| session.scope.split(' ').any(|one| one == scope);
        let mut add = |name: &str, value: String| {
            given.as_object_mut().map(|all| all.insert(name.to_owned(), value.into()))
        };
        if asked("openid") {
            add("id_token", self.maker.id_token(&session.user, &session.client, nonce)?);
        }
        if asked("offline_access") {
            let token = random();
            add("refresh_token", token.clone());
            self.with(|logins| remember(&mut logins.refreshing, token, session.clone()));
        }
        Ok(given)
    }
}

fn query(uri: &Uri) -> Fields {
    let url = Url::parse(&format!("http://127.0.0.1{uri}"));
    url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default()
}

/// Only a client on this machine is let back to.
fn is_loopback(redirect: &Url) -> bool {
    redirect.scheme() == "http"
        && redirect.fragment().is_none()
        && matches!(redirect.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"))
}

async fn ask(State(provider): State<SignIn>, uri: Uri) -> Response {
    let asked = query(&uri);
    let one = |name: &str| asked.get(name).cloned();
    let redirect = one("redirect_uri").and_then(|text| Url::parse(&text).ok()).filter(is_loopback);
    let (Some(client), Some(redirect)) = (one("client_id"), redirect) else {
        let words = "`client_id` and a `redirect_uri` on loopback are needed";
        return refused("invalid_request", words).into_response();
    };
    if one("response_type").as_deref() != Some("code") {
        return refused("unsupported_response_type", "there is `code`").into_response();
    }
    let (Some(challenge), Some("S256")) = (one("code_challenge"), one("code_challenge_method").as_deref())
    else {
        return refused("invalid_request", "PKCE by S256 is needed").into_response();
    };
    let page = Page {
        client: client.clone(),
        redirect,
        state: one("state"),
        nonce: one("nonce"),
        challenge,
        scope: one("scope").unwrap_or_default(),
        ends: now() + LOGIN_SECS,
    };
    let name = random();
    provider.with(|logins| remember(&mut logins.pages, name.clone(), page));
    choice("/authorize", ("page", &name), &client).into_response()
}

async fn answer(State(provider): State<SignIn>, Form(fields): Form<Fields>) -> Response {
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let page = provider.with(|logins| logins.pages.remove(field("page"))).filter(|page| now() < page.ends);
    let Some(page) = page else {
        return refused("invalid_request", "this login is over; begin another").into_response();
    };
    let mut back = page.redirect.clone();
    {
        let mut answer = back.query_pairs_mut();
        if USERS.iter().any(|(user, _)| *user == field("user")) {
            let code = random();
            answer.append_pair("code", &code);
            let login = (page.clone(), field("user").to_owned());
            provider.with(|logins| remember(&mut logins.codes, code, login));
        } else {
            answer.append_pair("error", "access_denied");
        }
        if let Some(state) = &page.state {
            answer.append_pair("state", state);
        }
        answer.append_pair("iss", provider.maker.issuer());
    }
    (StatusCode::SEE_OTHER, [(header::LOCATION, String::from(back))]).into_response()
}

async fn begin_device(State(provider): State<SignIn>, Form(fields): Form<Fields>) -> Answer {
    let Some(client) = fields.get("client_id") else {
        return refused("invalid_request", "`client_id` is needed");
    };
    let (device_code, user_code) = (random(), user_code());
    let device = Device {
        client: client.clone(),
        user_code: user_code.clone(),
        scope: fields.get("scope").cloned().unwrap_or_default(),
        user: None,
        ends: now() + LOGIN_SECS,
    };
    provider.with(|logins| remember(&mut logins.devices, device_code.clone(), device));
    let page = format!("{}/device", provider.maker.issuer());
    let given = json!({
        "device_code": device_code, "user_code": user_code, "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": LOGIN_SECS, "interval": INTERVAL_SECS,
    });
    (StatusCode::OK, Json(given))
}

async fn ask_device(State(provider): State<SignIn>, uri: Uri) -> Response {
    let Some(code) = query(&uri).remove("user_code") else {
        let page = "<!doctype html><title>writ dev</title>\n<form><label>Code <input name=\"user_code\"></label> \
                    <button>Go on</button></form>\n";
        return Html(page).into_response();
    };
    let client = provider.with(|logins| {
        let device = logins.devices.values().find(|device| device.user_code == code);
        device.map(|device| device.client.clone())
    });
    match client {
        Some(client) => choice("/device", ("user_code", &code), &client).into_response(),
        None => refused("invalid_request", "there is no such code").into_response(),
    }
}

async fn answer_device(State(provider): State<SignIn>, Form(fields): Form<Fields>) -> Response {
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let (code, user) = (field("user_code"), field("user"));
    let is_known = USERS.iter().any(|(known, _)| *known == user);
    let approved = provider.with(|logins| {
        let waiting = |device: &&mut Device| device.user_code == code && device.user.is_none();
        let device = logins.devices.values_mut().find(waiting).filter(|device| now() < device.ends);
        device.filter(|_| is_known).map(|device| device.user = Some(user.to_owned()))
    });
    match approved {
        Some(()) => Html("Logged in. This window can be closed.").into_response(),
        None => refused("invalid_request", "there is no such code or user").into_response(),
    }
}

async fn revoke(State(provider): State<SignIn>, Form(fields): Form<Fields>) -> StatusCode {
    // A token nobody knows is as good as revoked (RFC 7009 section 2.2).
    if let Some(token) = fields.get("token") {
        provider.with(|logins| logins.refreshing.remove(token));
    }
    StatusCode::OK
}

async fn give(State(provider): State<SignIn>, Form(fields): Form<Fields>) -> Answer {
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let granted = match field("grant_type") {
        // For scripts: a token for a name, without further ado.
        "" => provider
            .maker
            .token_for(field("user"))
            .map(|token| json!({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECS})),
        "authorization_code" => {
            // A code is used once, whatever comes of it.
            let Some((page, user)) = provider.with(|logins| logins.codes.remove(field("code"))) else {
                return refused("invalid_grant", "there is no such code");
            };
            let proof = URL_SAFE_NO_PAD.encode(Digest::plain(field("code_verifier").as_bytes()).as_bytes());
            if proof != page.challenge
                || field("client_id") != page.client
                || field("redirect_uri") != page.redirect.as_str()
                || now() >= page.ends
            {
                return refused("invalid_grant", "the code belongs to another client, redirect or verifier");
            }
            let session = Session { client: page.client, user, scope: page.scope };
            provider.grant(&session, page.nonce.as_deref())
        }
        "urn:ietf:params:oauth:grant-type:device_code" => {
            let session = provider.with(|logins| {
                let code = field("device_code");
                let device = logins.devices.get(code).filter(|device| device.client == field("client_id"));
                let Some(device) = device else { return Err("invalid_grant") };
                if now() >= device.ends {
                    return Err("expired_token");
                }
                let Some(user) = device.user.clone() else { return Err("authorization_pending") };
                let session = Session { client: device.client.clone(), user, scope: device.scope.clone() };
                logins.devices.remove(code);
                Ok(session)
            });
            match session {
                Ok(session) => provider.grant(&session, None),
                Err(code) => return refused(code, ""),
            }
        }
        "refresh_token" => {
            let known = provider.with(|logins| logins.refreshing.remove(field("refresh_token")));
            match known.filter(|session| session.client == field("client_id")) {
                Some(session) => provider.grant(&session, None),
                None => return refused("invalid_grant", "there is no such refresh token"),
            }
        }
        other => return refused("unsupported_grant_type", other),
    };
    match granted {
        Ok(given) => (StatusCode::OK, Json(given)),
        Err(error) => refused("invalid_grant", &error.to_string()),
    }
}
