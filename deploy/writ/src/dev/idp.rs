//! A loopback identity provider for development: it gives a token to whoever asks for a name it knows.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Form, Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Deserialize;
use serde_json::{Value, json};
use writ_bus::SystemClock;
use writ_common::keys::PrivateKey;

/// `aud` of the tokens.
pub const AUDIENCE: &str = "writ";
const KEY_ID: &str = "dev-1";
/// How long a token is good for, in seconds.
const TOKEN_SECS: u64 = 3_600;

/// The development users and their groups.
pub const USERS: [(&str, &str); 2] = [("alice", "analysts"), ("bob", "approvers")];

/// Makes tokens for the development users.
#[derive(Clone)]
pub struct TokenMaker {
    issuer: String,
    key: Arc<EncodingKey>,
    public: [u8; 32],
}

impl TokenMaker {
    /// For an issuer name and a key.
    #[must_use]
    pub fn new(issuer: impl Into<String>, key: &PrivateKey) -> Self {
        // PKCS#8 (RFC 8410 section 7) around the seed.
        let mut der = vec![
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
        ];
        der.extend_from_slice(key.seed().as_slice());
        Self {
            issuer: issuer.into(),
            key: Arc::new(EncodingKey::from_ed_der(&der)),
            public: *key.public().as_bytes(),
        }
    }

    /// The public keys as a JWK set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.public);
        json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": KEY_ID, "use": "sig", "alg": "EdDSA"},
        ]})
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

    /// Signs claims as they are.
    ///
    /// # Errors
    /// If they cannot be signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(KEY_ID.to_owned());
        header.typ = Some("at+jwt".to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).context("the token cannot be signed")
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

#[derive(Deserialize)]
struct TokenRequest {
    user: String,
}

/// A running provider; it ends when dropped.
pub struct Idp {
    address: SocketAddr,
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
            .route("/jwks.json", get(async |State(maker): State<TokenMaker>| Json(maker.jwks())))
            .route("/token", post(give_token))
            .with_state(maker);
        let worker = tokio::spawn(async move {
            // Ends only with the task.
            drop(axum::serve(listener, app).await);
        });
        Ok(Self { address, worker })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn give_token(
    State(maker): State<TokenMaker>,
    Form(request): Form<TokenRequest>,
) -> (StatusCode, Json<Value>) {
    match maker.token_for(&request.user) {
        Ok(token) => {
            let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECS});
            (StatusCode::OK, Json(body))
        }
        Err(error) => {
            let body = json!({"error": "invalid_grant", "error_description": error.to_string()});
            (StatusCode::BAD_REQUEST, Json(body))
        }
    }
}
