//! The two ways to log in, and refreshing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{Router, extract::State, http::Uri, response::Html, routing::get};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc};
use writ_broker::oidc::parse_address;
use writ_bus::SystemEntropy;
use writ_common::{digest::Digest, entropy::draw};

use super::{
    Login, TokenKind, Wanted, check_access_token, check_id_token,
    http::{Answered, Http, endpoint},
    now_secs,
};

/// How long somebody may take at the issuer's pages.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the issuer is asked whether the code was typed in, unless it says otherwise (RFC 8628 section 3.2).
const POLL_DEFAULT_SECS: u64 = 5;
/// By how much that grows each time the issuer says `slow_down` (RFC 8628 section 3.5).
const SLOW_DOWN_SECS: u64 = 5;
/// The path of the redirect on loopback.
const CALLBACK: &str = "/callback";

/// What a person is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Open this address in a browser on this machine.
    Browser(Url),
    /// Open the address anywhere and type in the code; some issuers have an address that holds it already.
    Device {
        /// Where.
        address: Url,
        /// What to type in.
        code: String,
        /// The address with the code in it.
        complete: Option<Url>,
    },
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    code_challenge_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    scopes_supported: Vec<String>,
}

/// An issuer, and what is wanted of it.
struct Issuer<'w> {
    http: Http,
    found: Discovered,
    token_endpoint: Url,
    wanted: &'w Wanted,
    scope: String,
}

/// Logs somebody in; `device` keeps off browsers on this machine, and so does an issuer that has no page for them.
///
/// # Errors
/// What the issuer said, or what is wrong with it.
pub async fn log_in(wanted: &Wanted, device: bool, prompt: impl Fn(Prompt)) -> Result<Login> {
    let issuer = Issuer::discover(wanted).await?;
    let (answer, nonce) = match (&issuer.found.authorization_endpoint, device) {
        (Some(page), false) => {
            let page = endpoint("authorization_endpoint", page)?;
            issuer.by_browser(page, prompt).await?
        }
        _ => (issuer.by_device(prompt).await?, None),
    };
    issuer.keep(&answer, nonce.as_deref())
}

/// Another token for the refresh token.
pub(super) async fn refresh(login: Login) -> Result<Login> {
    let again =
        format!("log in again: `writ login --issuer {} --client-id {}`", login.issuer, login.client_id);
    let Some(refresh_token) = login.refresh_token.clone() else {
        bail!(
            "the login of `{}` has ended, and the issuer gave nothing to refresh it with; {again}",
            login.subject
        );
    };
    let wanted = login.wanted();
    let token_endpoint = endpoint("token_endpoint", &login.token_endpoint)?;
    let http = Http::new(&token_endpoint)?;
    let fields = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &refresh_token),
        ("client_id", &login.client_id),
        ("scope", &login.scope),
    ];
    let answer = http.post(&token_endpoint, &fields).await?.given().with_context(|| again.clone())?;
    let (token, subject, expires) = choose(&answer, &wanted, None).with_context(|| again.clone())?;
    ensure!(
        subject == login.subject,
        "the issuer answers for `{subject}`, not for `{}`; {again}",
        login.subject
    );
    let refresh_token = text(&answer, "refresh_token").map_or(refresh_token, str::to_owned);
    Ok(Login { token, expires, refresh_token: Some(refresh_token), ..login })
}

/// Tells the issuer that a login is over, if it wants to know (RFC 7009).
///
/// # Errors
/// If it does not take it.
pub async fn revoke(login: &Login) -> Result<bool> {
    let (Some(address), Some(token)) = (&login.revocation_endpoint, &login.refresh_token) else {
        return Ok(false);
    };
    let address = endpoint("revocation_endpoint", address)?;
    let fields =
        [("token", token.as_str()), ("token_type_hint", "refresh_token"), ("client_id", &login.client_id)];
    Http::new(&address)?.post(&address, &fields).await?.given()?;
    Ok(true)
}

fn text<'v>(answer: &'v Value, name: &str) -> Option<&'v str> {
    answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The token to keep, whose it is, and when it ends.
fn choose(answer: &Value, wanted: &Wanted, nonce: Option<&str>) -> Result<(String, String, u64)> {
    ensure!(
        text(answer, "token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")),
        "the issuer gives a token that is no bearer token"
    );
    let id = text(answer, "id_token");
    // Whichever is kept: an ID token of another login shows that the answer is of another login.
    let checked = id.map(|token| check_id_token(token, wanted, nonce, now_secs())).transpose()?;
    match (wanted.token, id.zip(checked)) {
        (TokenKind::Access, _) => {
            let token = text(answer, "access_token").context("the issuer gives no access token")?;
            let claims = check_access_token(token, wanted, now_secs())?;
            Ok((token.to_owned(), claims.subject, claims.expires))
        }
        (TokenKind::Id, Some((token, claims))) => Ok((token.to_owned(), claims.subject, claims.expires)),
        (TokenKind::Id, None) => {
            bail!("the issuer gives no ID token; without `--token id` its access token is kept")
        }
    }
}

fn random() -> String {
    URL_SAFE_NO_PAD.encode(draw::<32>(&mut SystemEntropy))
}

impl<'w> Issuer<'w> {
    async fn discover(wanted: &'w Wanted) -> Result<Self> {
        let base = wanted.issuer.trim_end_matches('/');
        let address = parse_address(&format!("{base}/.well-known/openid-configuration"))?;
        let http = Http::new(&address)?;
        let found: Discovered = http.get(&address).await.context("the issuer's discovery document")?;
        ensure!(
            found.issuer == wanted.issuer,
            "the discovery document is that of `{}`, not of `{}`; name the issuer as it names itself",
            found.issuer,
            wanted.issuer
        );
        let named = found.token_endpoint.as_deref().context("the issuer names no `token_endpoint`")?;
        let token_endpoint = endpoint("token_endpoint", named)?;
        let mut scopes = vec!["openid".to_owned()];
        // Without it, many give no refresh token; those who do not know it may refuse it.
        scopes.extend(found.scopes_supported.iter().find(|scope| *scope == "offline_access").cloned());
        scopes.extend(wanted.scopes.iter().cloned());
        scopes.dedup();
        Ok(Self { http, found, token_endpoint, wanted, scope: scopes.join(" ") })
    }

    async fn by_browser(&self, page: Url, prompt: impl Fn(Prompt)) -> Result<(Value, Option<String>)> {
        if let Some(methods) = &self.found.code_challenge_methods_supported {
            ensure!(
                methods.iter().any(|method| method == "S256"),
                "the issuer does not take PKCE by S256 (it has {}); use `--device`",
                methods.join(", ")
            );
        }
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.await.context("no port on loopback for the redirect")?;
        let redirect = format!("http://{}{CALLBACK}", listener.local_addr()?);
        let (verifier, state, nonce) = (random(), random(), random());
        let challenge = URL_SAFE_NO_PAD.encode(Digest::plain(verifier.as_bytes()).as_bytes());
        let mut address = page;
        {
            let mut query = address.query_pairs_mut();
            query
                .append_pair("response_type", "code")
                .append_pair("client_id", &self.wanted.client_id)
                .append_pair("redirect_uri", &redirect)
                .append_pair("scope", &self.scope)
                .append_pair("state", &state)
                .append_pair("nonce", &nonce)
                .append_pair("code_challenge", &challenge)
                .append_pair("code_challenge_method", "S256");
            if let Some(audience) = &self.wanted.audience {
                query.append_pair("audience", audience);
            }
        }
        prompt(Prompt::Browser(address));
        let code = self.wait_for_code(listener, &state).await?;
        let fields = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", &redirect),
            ("client_id", &self.wanted.client_id),
            ("code_verifier", &verifier),
        ];
        let answer = self.http.post(&self.token_endpoint, &fields).await?.given()?;
        Ok((answer, Some(nonce)))
    }

    /// The code of the redirect that bears our state. Whatever else comes to the port is of somebody else's making,
    /// and nothing it says counts.
    async fn wait_for_code(&self, listener: TcpListener, state: &str) -> Result<String> {
        let (send, mut redirected) = mpsc::channel(1);
        let expected = Expected { state: state.to_owned(), issuer: self.wanted.issuer.clone(), send };
        let app = Router::new().route(CALLBACK, get(redirect_arrived)).with_state(expected);
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        let arrived = tokio::time::timeout(PATIENCE, redirected.recv()).await;
        // The page is on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        serving.abort();
        let minutes = PATIENCE.as_secs() / 60;
        arrived
            .with_context(|| format!("nobody logged in within {minutes} minutes"))?
            .context("the port on loopback was closed")?
            .map_err(|refused| anyhow::anyhow!("the issuer refuses: {refused}"))
    }

    async fn by_device(&self, prompt: impl Fn(Prompt)) -> Result<Value> {
        let address = self.found.device_authorization_endpoint.as_deref().context(
            "the issuer has no `device_authorization_endpoint`; log in by a browser, without `--device`",
        )?;
        let address = endpoint("device_authorization_endpoint", address)?;
        let mut fields = vec![("client_id", self.wanted.client_id.as_str()), ("scope", &self.scope)];
        fields.extend(self.wanted.audience.as_deref().map(|audience| ("audience", audience)));
        let begun = self.http.post(&address, &fields).await?.given()?;
        let needed = |name: &str| text(&begun, name).with_context(|| format!("the issuer gives no `{name}`"));
        let device_code = needed("device_code")?;
        prompt(Prompt::Device {
            address: endpoint("verification_uri", needed("verification_uri")?)?,
            code: needed("user_code")?.to_owned(),
            complete: text(&begun, "verification_uri_complete")
                .map(|address| endpoint("verification_uri_complete", address))
                .transpose()?,
        });
        let seconds = |name: &str| begun.get(name).and_then(Value::as_u64);
        let mut pause = seconds("interval").unwrap_or(POLL_DEFAULT_SECS);
        let life = seconds("expires_in").unwrap_or(PATIENCE.as_secs()).min(PATIENCE.as_secs());
        let ends = now_secs() + life;
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", device_code),
            ("client_id", &self.wanted.client_id),
        ];
        while now_secs() < ends {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            match self.http.post(&self.token_endpoint, &fields).await? {
                Answered::Given(answer) => return Ok(answer),
                Answered::Refused { code, .. } if code == "authorization_pending" => {}
                Answered::Refused { code, .. } if code == "slow_down" => pause += SLOW_DOWN_SECS,
                refused @ Answered::Refused { .. } => drop(refused.given()?),
            }
        }
        bail!("nobody typed the code in within {} minutes", life / 60)
    }

    fn keep(&self, answer: &Value, nonce: Option<&str>) -> Result<Login> {
        let (token, subject, expires) = choose(answer, self.wanted, nonce)?;
        Ok(Login {
            issuer: self.wanted.issuer.clone(),
            client_id: self.wanted.client_id.clone(),
            token_endpoint: self.token_endpoint.to_string(),
            revocation_endpoint: self.found.revocation_endpoint.clone(),
            scope: self.scope.clone(),
            audience: self.wanted.audience.clone(),
            kind: self.wanted.token,
            subject,
            token,
            expires,
            refresh_token: text(answer, "refresh_token").map(str::to_owned),
        })
    }
}

#[derive(Clone)]
struct Expected {
    state: String,
    issuer: String,
    send: mpsc::Sender<Result<String, String>>,
}

async fn redirect_arrived(
    State(expected): State<Expected>,
    uri: Uri,
) -> (axum::http::StatusCode, Html<&'static str>) {
    use axum::http::StatusCode;
    // axum hands over path and query; the URL parser needs a host to go with them.
    let Ok(url) = Url::parse(&format!("http://127.0.0.1{uri}")) else {
        return (StatusCode::BAD_REQUEST, Html("no address"));
    };
    let one = |name: &str| {
        let mut values =
            url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        values.next().filter(|_| values.next().is_none())
    };
    if one("state").as_deref() != Some(expected.state.as_str()) {
        return (StatusCode::BAD_REQUEST, Html("This is not the login that was begun here."));
    }
    // RFC 9207: an issuer that says who it is has to be the one that was asked.
    let arrived = match (one("iss"), one("code"), one("error")) {
        (Some(issuer), ..) if issuer != expected.issuer => Err(format!("the answer is of `{issuer}`")),
        (_, Some(code), None) => Ok(code),
        (_, _, Some(error)) => Err(match one("error_description") {
            Some(words) => format!("{error}: {words}"),
            None => error,
        }),
        (_, None, None) => Err("the redirect has no code".to_owned()),
    };
    let page = match &arrived {
        Ok(_) => "Logged in. This window can be closed.",
        Err(_) => "Not logged in; the terminal says why.",
    };
    // Full means that it arrived already.
    drop(expected.send.try_send(arrived));
    (StatusCode::OK, Html(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn arrive(query: &str) -> (u16, Option<Result<String, String>>) {
        let (send, mut arrived) = mpsc::channel(1);
        let expected = Expected { state: "s1".to_owned(), issuer: "https://login.example".to_owned(), send };
        let uri = format!("/callback?{query}").parse().unwrap();
        let (status, _) = redirect_arrived(State(expected), uri).await;
        (status.as_u16(), arrived.try_recv().ok())
    }

    #[tokio::test]
    async fn only_the_redirect_with_our_state_counts() {
        let code = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(arrive("code=c&state=s1").await, (200, code("c")));
        assert_eq!(arrive("code=c&state=s1&iss=https%3A%2F%2Flogin.example").await, (200, code("c")));
        for query in ["code=c", "code=c&state=s2", "code=c&state=s1&state=s1", "error=access_denied"] {
            assert_eq!(arrive(query).await, (400, None), "{query}");
        }
        let refused = arrive("state=s1&error=access_denied&error_description=no").await.1;
        assert_eq!(refused, Some(Err("access_denied: no".to_owned())));
        let other = arrive("code=c&state=s1&iss=https%3A%2F%2Fevil.example").await.1;
        assert!(other.unwrap().unwrap_err().contains("evil.example"));
    }
}
