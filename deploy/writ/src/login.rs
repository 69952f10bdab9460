//! Users' tokens from OIDC issuers: got by a browser or another device, kept beside the profile, refreshed.
//!
//! The code flow is that of native apps (RFC 8252): a redirect to a free port on loopback, PKCE with S256 (RFC 7636),
//! `state` and `nonce`. Where there is no browser, a code is typed in elsewhere (RFC 8628). What is kept is the one
//! token the broker takes: a JWT of the issuer's. Its signature is the broker's to check, whose configuration says by
//! which keys; here it came straight from the issuer.

mod flow;
mod http;
mod kept;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use writ_bus::SystemClock;

pub use flow::{Prompt, log_in, revoke};
pub use kept::{Login, file_of, forget, load, locked, save};

/// How much longer a token has to be good for to be handed out.
const SPARE_SECS: u64 = 30;
/// How far the issuer's clock may be ahead or behind, in seconds.
const LEEWAY_SECS: u64 = 5;

/// What is asked of an issuer.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The issuer, as its tokens name it.
    pub issuer: String,
    /// The client that is registered there, public and without a secret.
    pub client_id: String,
    /// Scopes beside `openid`.
    pub scopes: Vec<String>,
    /// For whom the token is to be: what the broker's `[[issuer]]` has as `audience`.
    pub audience: Option<String>,
    /// Which token to keep.
    pub token: TokenKind,
}

/// Which of the issuer's tokens the broker is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// The access token, a JWT with `typ` `at+jwt` by default
    #[default]
    Access,
    /// The ID token, for issuers whose access tokens are opaque; the broker's `audience` is then the client's id
    Id,
}

/// A token that works now, refreshed if need be.
///
/// # Errors
/// Nobody is logged in, or the login ended; the message has the command that repairs it.
pub async fn token(profile: &Path) -> Result<String> {
    let file = file_of(profile);
    let login = load(&file)?.with_context(|| {
        format!("nobody is logged in ({} is not there); `writ login` does it", file.display())
    })?;
    if login.is_good_for(SPARE_SECS, now_secs()) {
        return Ok(login.token);
    }
    // One refresh at a time: issuers that rotate refresh tokens take a second use for a theft.
    let lock = locked(&file).await?;
    let login = load(&file)?.context("the login was ended meanwhile; `writ login` starts another")?;
    if login.is_good_for(SPARE_SECS, now_secs()) {
        return Ok(login.token);
    }
    let login = flow::refresh(login).await?;
    save(&file, &login)?;
    drop(lock);
    Ok(login.token)
}

pub(crate) fn now_secs() -> u64 {
    SystemClock::new().now().wall.as_secs()
}

/// What of a token matters here.
#[derive(Debug)]
struct Claims {
    subject: String,
    expires: u64,
    body: Value,
}

/// Reads a token's claims and holds them against what was asked for.
fn read_claims(token: &str, wanted: &Wanted, now: u64) -> Result<Claims> {
    let mut parts = token.split('.');
    let (Some(_), Some(body), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("it is no JWT");
    };
    let body = URL_SAFE_NO_PAD.decode(body).context("its claims are not base64url")?;
    let body: Value = serde_json::from_slice(&body).context("its claims are no JSON")?;
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    if text("iss") != Some(&wanted.issuer) {
        bail!("its issuer is `{}`, not `{}`", text("iss").unwrap_or_default(), wanted.issuer);
    }
    let subject = text("sub").filter(|sub| !sub.is_empty()).context("it names no user (`sub`)")?.to_owned();
    let expires = body.get("exp").and_then(Value::as_f64).context("it never ends (`exp`)")?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
    let expires = expires as u64;
    if expires.saturating_add(LEEWAY_SECS) <= now {
        bail!("it has ended already; compare this machine's clock with the issuer's");
    }
    Ok(Claims { subject, expires, body })
}

fn audiences(claims: &Value) -> Vec<&str> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// What the broker is to be given has to be a JWT for its audience.
fn check_access_token(token: &str, wanted: &Wanted, now: u64) -> Result<Claims> {
    let claims = read_claims(token, wanted, now).context(
        "the access token is of no use to a broker. Ask for one by `--audience` (what the issuer calls its API), or \
         keep the ID token with `--token id`",
    )?;
    if let Some(audience) = &wanted.audience
        && !audiences(&claims.body).contains(&audience.as_str())
    {
        let named = audiences(&claims.body).join(", ");
        bail!("the access token is for `{named}`, not for `{audience}`; the issuer has to know that API");
    }
    Ok(claims)
}

/// OIDC Core, section 3.1.3.7, as far as it concerns a token that came from the token endpoint.
fn check_id_token(token: &str, wanted: &Wanted, nonce: Option<&str>, now: u64) -> Result<Claims> {
    let claims = read_claims(token, wanted, now).context("the ID token")?;
    let named = audiences(&claims.body);
    if !named.contains(&wanted.client_id.as_str()) {
        bail!("the ID token is for `{}`, not for client `{}`", named.join(", "), wanted.client_id);
    }
    let party = claims.body.get("azp").and_then(Value::as_str);
    if party.is_some_and(|party| party != wanted.client_id) || (named.len() > 1 && party.is_none()) {
        bail!("the ID token was given to another client");
    }
    if nonce.is_some() && claims.body.get("nonce").and_then(Value::as_str) != nonce {
        bail!("the ID token belongs to another login (`nonce`)");
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            issuer: "https://login.example".to_owned(),
            client_id: "writ-cli".to_owned(),
            scopes: Vec::new(),
            audience: Some("writ".to_owned()),
            token: TokenKind::Access,
        }
    }

    fn jwt(change: &Value) -> String {
        let mut claims = json!({"iss": "https://login.example", "sub": "alice", "aud": "writ", "exp": 2_000});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn only_what_a_broker_takes_is_kept() {
        let check = |token: &str| {
            check_access_token(token, &wanted(), 1_000).map(|_| ()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(check(&jwt(&json!({}))), Ok(()));
        assert_eq!(check(&jwt(&json!({"aud": ["other", "writ"]}))), Ok(()));
        for (token, part) in [
            ("2YotnFZFEjr1zCsicMWpAA".to_owned(), "--token id"),
            (jwt(&json!({"iss": "https://evil.example"})), "https://evil.example"),
            (jwt(&json!({"aud": "graph"})), "for `graph`, not for `writ`"),
            (jwt(&json!({"sub": null})), "`sub`"),
            (jwt(&json!({"exp": null})), "`exp`"),
            (jwt(&json!({"exp": 900})), "clock"),
        ] {
            let error = check(&token).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn an_id_token_of_another_login_or_client_is_refused() {
        let check = |change: Value| check_id_token(&jwt(&change), &wanted(), Some("n-1"), 1_000).map(|_| ());
        assert!(check(json!({"aud": "writ-cli", "nonce": "n-1"})).is_ok());
        assert!(check(json!({"aud": ["writ-cli", "x"], "azp": "writ-cli", "nonce": "n-1"})).is_ok());
        for change in [
            json!({"aud": "writ-cli", "nonce": "n-2"}),
            json!({"aud": "writ-cli"}),
            json!({"aud": "writ", "nonce": "n-1"}),
            json!({"aud": ["writ-cli", "x"], "nonce": "n-1"}),
            json!({"aud": "writ-cli", "azp": "x", "nonce": "n-1"}),
        ] {
            assert!(check(change.clone()).is_err(), "{change}");
        }
    }
}
