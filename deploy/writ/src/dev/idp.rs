//! A loopback identity provider for development: it gives a token to whoever asks for a name it knows, and publishes
//! its keys as real ones do. `sign_in.rs` has the pages by which people log in.

mod sign_in;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use axum::{Json, Router, extract::State, response::Html, routing::get};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::sync::watch;
use writ_bus::SystemClock;
use writ_common::keys::PrivateKey;

use sign_in::SignIn;

/// `aud` of the tokens.
pub const AUDIENCE: &str = "writ";
/// The key id of a new provider.
const KEY_ID: &str = "dev-1";
/// How long a token is good for, in seconds.
const TOKEN_SECS: u64 = 3_600;

/// The development users and their groups.
pub const USERS: [(&str, &str); 2] = [("alice", "analysts"), ("bob", "approvers")];

/// The client of the development set-up that speaks for itself, with its role.
pub const SERVICE: (&str, &str) = ("nightly-report", "analyst");

/// Makes tokens for the development users. Clones share the keys.
#[derive(Clone)]
pub struct TokenMaker {
    issuer: String,
    keys: Arc<RwLock<Keys>>,
    /// How often the keys were asked for.
    fetches: Arc<AtomicUsize>,
}

struct Keys {
    id: String,
    signing: Arc<EncodingKey>,
    /// What is published, by id.
    published: BTreeMap<String, [u8; 32]>,
}

impl TokenMaker {
    /// For an issuer name and a key.
    #[must_use]
    pub fn new(issuer: impl Into<String>, key: &PrivateKey) -> Self {
        let keys = Keys {
            id: KEY_ID.to_owned(),
            signing: signing_key(key),
            published: BTreeMap::from([(KEY_ID.to_owned(), *key.public().as_bytes())]),
        };
        Self { issuer: issuer.into(), keys: Arc::new(RwLock::new(keys)), fetches: Arc::default() }
    }

    /// Signs with another key from now on, and publishes it beside those there are.
    pub fn rotate(&self, id: &str, key: &PrivateKey) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        (keys.id, keys.signing) = (id.to_owned(), signing_key(key));
        keys.published.insert(id.to_owned(), *key.public().as_bytes());
    }

    /// Publishes a key no longer.
    pub fn withdraw(&self, id: &str) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).published.remove(id);
    }

    /// How often the keys were asked for.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }

    /// The discovery document.
    fn document(&self) -> Value {
        let issuer = &self.issuer;
        json!({
            "issuer": issuer, "jwks_uri": format!("{issuer}/jwks.json"), "token_endpoint": format!("{issuer}/token"),
            "authorization_endpoint": format!("{issuer}/authorize"),
            "device_authorization_endpoint": format!("{issuer}/device_authorization"),
            "revocation_endpoint": format!("{issuer}/revoke"),
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "code_challenge_methods_supported": ["S256"], "scopes_supported": ["openid", "offline_access"],
            "authorization_response_iss_parameter_supported": true,
            "id_token_signing_alg_values_supported": ["EdDSA"],
        })
    }

    /// `iss` of the tokens.
    fn issuer(&self) -> &str {
        &self.issuer
    }

    /// An ID token for a client (OIDC Core 1.0, section 2).
    fn id_token(&self, user: &str, client: &str, nonce: Option<&str>) -> Result<String> {
        let now = SystemClock::new().now().wall.as_secs();
        let mut claims = json!({
            "iss": self.issuer, "aud": client, "sub": user, "iat": now, "exp": now + TOKEN_SECS,
        });
        if let (Some(claims), Some(nonce)) = (claims.as_object_mut(), nonce) {
            claims.insert("nonce".to_owned(), nonce.into());
        }
        self.sign_as("JWT", &claims)
    }

    /// The public keys as a JWK set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let published = keys.published.iter().map(|(id, public)| {
            let x = URL_SAFE_NO_PAD.encode(public);
            json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "use": "sig", "alg": "EdDSA"})
        });
        json!({"keys": published.collect::<Vec<_>>()})
    }

    /// A token for any subject, with any groups.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn token(&self, subject: &str, groups: &[&str]) -> Result<String> {
        let now = SystemClock::new().now().wall.as_secs();
        let claims = json!({
            "iss": self.issuer, "aud": AUDIENCE, "sub": subject, "groups": groups,
            "iat": now, "nbf": now, "exp": now + TOKEN_SECS,
        });
        self.sign(&claims)
    }

    /// A token of a client's own, as grant type `client_credentials` gives (RFC 9068 section 2.2).
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn service_token(&self, client: &str) -> Result<String> {
        let now = SystemClock::new().now().wall.as_secs();
        self.sign(&json!({
            "iss": self.issuer, "aud": AUDIENCE, "sub": client, "client_id": client,
            "iat": now, "nbf": now, "exp": now + TOKEN_SECS,
        }))
    }

    /// Signs claims as they are.
    ///
    /// # Errors
    /// If they cannot be signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        self.sign_as("at+jwt", claims)
    }

    fn sign_as(&self, typ: &str, claims: &Value) -> Result<String> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(keys.id.clone());
        header.typ = Some(typ.to_owned());
        jsonwebtoken::encode(&header, claims, &keys.signing).context("the token cannot be signed")
    }

    /// A token for a development user.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn token_for(&self, name: &str) -> Result<String> {
        let users = BTreeMap::from(USERS);
        let names = USERS.map(|(name, _)| name).join(", ");
        let group =
            users.get(name).with_context(|| format!("there is no user `{name}`; there are {names}"))?;
        self.token(name, &[group])
    }
}

fn signing_key(key: &PrivateKey) -> Arc<EncodingKey> {
    // PKCS#8 (RFC 8410 section 7) around the seed.
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(key.seed().as_slice());
    Arc::new(EncodingKey::from_ed_der(&der))
}

/// A running provider; it ends when dropped.
pub struct Idp {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    worker: tokio::task::JoinHandle<()>,
}

impl Drop for Idp {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Idp {
    /// Serves on loopback.
    ///
    /// # Errors
    /// If the port is taken.
    pub async fn start(maker: TokenMaker, port: u16) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener
            .with_context(|| format!("port {port} on 127.0.0.1 cannot be used for the identity provider"))?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/jwks.json", get(give_keys))
            .route(
                "/.well-known/openid-configuration",
                get(async |State(maker): State<TokenMaker>| Json(maker.document())),
            )
            .route(super::sample::PAGE, get(async || Html(super::sample::PAGE_TEXT)))
            .with_state(maker.clone())
            .merge(SignIn::new(maker).routes());
        let (stop, mut stopping) = watch::channel(false);
        let worker = tokio::spawn(async move {
            let stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
            // It cannot fail once it listens.
            drop(axum::serve(listener, app).with_graceful_shutdown(stopped).await);
        });
        Ok(Self { address, stop, worker })
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends it, and the connections it has.
    pub async fn stop(&mut self) {
        self.stop.send_replace(true);
        // It may have ended already.
        drop((&mut self.worker).await);
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn give_keys(State(maker): State<TokenMaker>) -> Json<Value> {
    maker.fetches.fetch_add(1, Ordering::Relaxed);
    Json(maker.jwks())
}
