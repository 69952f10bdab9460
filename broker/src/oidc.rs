//! Fetching an issuer's keys: OpenID Connect Discovery 1.0 and JWK sets over HTTPS. All I/O of it is here.
//!
//! No redirects, no compression, bounded in bytes and time. Plain HTTP is for loopback only.

use std::{net::IpAddr, sync::Arc, time::Duration};

use reqwest::{Certificate, Client, ClientBuilder, Url, header::ACCEPT, redirect::Policy, tls::Version};
use serde::Deserialize;

use crate::jwks::{KeySet, SET_BYTES_MAX};

/// Most bytes of a discovery document.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;
/// How long one request may take. Two fit into what agents wait for an answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Where an issuer's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLocation {
    /// From wherever the issuer's discovery document says.
    Discovery,
    /// From this address.
    Url(Url),
}

/// Why an address cannot be fetched from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is no address, or not one that is safe.
    #[error("`{url}` {why}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// TLS cannot be set up.
    #[error("no HTTPS client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The document names an address that is not safe.
    #[error("`jwks_uri`: {0}")]
    Address(#[from] SourceError),
    /// No answer, or none of use.
    #[error("{url}: {why}")]
    Answer {
        /// What was asked for.
        url: Url,
        /// What came of it.
        why: String,
    },
    /// The discovery document is another issuer's (OpenID Connect Discovery 1.0 section 4.3).
    #[error("the discovery document is that of `{found}`, not of `{expected}`")]
    Issuer {
        /// The configured issuer.
        expected: String,
        /// What the document says.
        found: String,
    },
}

/// An issuer that publishes its keys.
#[derive(Clone, Debug)]
pub struct KeySource {
    issuer: String,
    location: KeyLocation,
    client: Client,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

/// Reads an address that keys may come from: HTTPS, or HTTP on loopback.
///
/// # Errors
/// [`SourceError::Address`].
pub fn parse_address(text: &str) -> Result<Url, SourceError> {
    let bad = |why| SourceError::Address { url: text.to_owned(), why };
    let url = Url::parse(text).map_err(|_| bad("is no URL"))?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(bad("is plain HTTP, which is for loopback only; use https://")),
        _ => return Err(bad("has to begin with https://")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("holds credentials; keys are public"));
    }
    if url.fragment().is_some() || url.host_str().is_none_or(str::is_empty) {
        return Err(bad("has no host, or a fragment"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A client for what an issuer publishes: TLS 1.2 at least where it begins with TLS, and no redirects.
pub fn issuer_client(first: &Url, timeout: Duration) -> ClientBuilder {
    // reqwest brings no provider of its own here. One that is installed already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let builder = Client::builder()
        .redirect(Policy::none())
        .referer(false)
        .timeout(timeout)
        .tls_version_min(Version::TLS_1_2);
    if first.scheme() == "https" {
        builder.https_only(true)
    } else {
        // What is on this machine is not reached through another.
        builder.no_proxy()
    }
}

/// Where an issuer's discovery document is: a path of the issuer's is kept, a slash at its end is not (OpenID
/// Connect Discovery 1.0 section 4.1).
fn document_address(issuer: &str) -> Result<Url, SourceError> {
    let url = parse_address(issuer)?;
    if url.query().is_some() {
        return Err(SourceError::Address { url: issuer.to_owned(), why: "has a query" });
    }
    parse_address(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))
}

impl KeySource {
    /// Prepares to fetch; nothing is asked for yet. `ca` is a root certificate in PEM beside the system's own.
    ///
    /// # Errors
    /// [`SourceError`] for an address that is not safe, or a certificate that is none.
    pub fn new(issuer: &str, location: KeyLocation, ca: Option<&[u8]>) -> Result<Arc<Self>, SourceError> {
        let first = match &location {
            KeyLocation::Discovery => document_address(issuer)?,
            KeyLocation::Url(url) => url.clone(),
        };
        let mut builder = issuer_client(&first, REQUEST_TIMEOUT);
        if let Some(pem) = ca {
            builder = builder.tls_certs_merge(Certificate::from_pem_bundle(pem)?);
        }
        Ok(Arc::new(Self { issuer: issuer.to_owned(), location, client: builder.build()? }))
    }

    /// Fetches the keys.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self) -> Result<KeySet, FetchError> {
        let url = match &self.location {
            KeyLocation::Discovery => self.discover().await?,
            KeyLocation::Url(url) => url.clone(),
        };
        let text = self.get(&url, SET_BYTES_MAX).await?;
        KeySet::parse(&text).map_err(|error| FetchError::Answer { url, why: error.to_string() })
    }

    async fn discover(&self) -> Result<Url, FetchError> {
        let url = document_address(&self.issuer)?;
        let text = self.get(&url, DOCUMENT_BYTES_MAX).await?;
        let found: Discovered = serde_json::from_str(&text)
            .map_err(|error| FetchError::Answer { url, why: format!("is no discovery document: {error}") })?;
        if found.issuer != self.issuer && !writ_common::red::off("J11") {
            return Err(FetchError::Issuer { expected: self.issuer.clone(), found: found.issuer });
        }
        Ok(parse_address(&found.jwks_uri)?)
    }

    async fn get(&self, url: &Url, bytes_max: usize) -> Result<String, FetchError> {
        let failed = |why: String| FetchError::Answer { url: url.clone(), why };
        let told = |error: reqwest::Error| failed(causes(&error.without_url()));
        let asked = self.client.get(url.clone()).header(ACCEPT, "application/json");
        let mut response = asked.send().await.map_err(told)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(failed(format!("answers {status}; redirects are not followed")));
        }
        if status != reqwest::StatusCode::OK {
            return Err(failed(format!("answers {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            if body.len() + chunk.len() > bytes_max && !writ_common::red::off("J17-size") {
                return Err(failed(format!("is longer than {} KiB", bytes_max / 1024)));
            }
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(body).map_err(|_| failed("is not UTF-8".to_owned()))
    }
}

/// An error with what brought it about.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        http::{StatusCode, header::LOCATION},
        response::IntoResponse as _,
        routing::get,
    };
    use serde_json::json;

    use super::*;

    const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// An issuer on loopback whose paths are different kinds of answers; dropped with the runtime of its test.
    async fn issuer() -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let document = |issuer: String, jwks_uri: String| {
            get(async move || json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string())
        };
        let at = |path: &str| format!("{path}/.well-known/openid-configuration");
        let (issuer, jwks_uri) = (format!("{base}/long"), format!("{base}/keys"));
        let pad = "x".repeat(DOCUMENT_BYTES_MAX);
        let padded = json!({"issuer": issuer, "jwks_uri": jwks_uri, "pad": pad}).to_string();
        let slow = async || tokio::time::sleep(REQUEST_TIMEOUT * 5).await;
        let app = Router::new()
            .route(&at(""), document(base.clone(), format!("{base}/keys")))
            .route(&at("/slash"), document(format!("{base}/slash/"), format!("{base}/keys")))
            .route(&at("/other"), document("https://idp.example".to_owned(), format!("{base}/keys")))
            .route(&at("/plain"), document(format!("{base}/plain"), "http://idp.example/keys".to_owned()))
            .route(&at("/long"), get(async move || padded))
            .route("/keys", get(async || SET))
            .route("/moved", get(async || (StatusCode::FOUND, [(LOCATION, "/keys")]).into_response()))
            .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
            .route("/slow", get(slow))
            .route("/long", get(async || format!("{SET}{}", " ".repeat(SET_BYTES_MAX))))
            .route("/text", get(async || "<html>"));
        tokio::spawn(async { axum::serve(listener, app).await });
        base
    }

    async fn discovered(issuer: &str) -> Result<(), String> {
        let source = KeySource::new(issuer, KeyLocation::Discovery, None).unwrap();
        source.fetch().await.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn j11_keys_are_those_the_issuers_own_document_names() {
        let base = issuer().await;
        assert_eq!(discovered(&base).await, Ok(()));
        assert_eq!(discovered(&format!("{base}/slash/")).await, Ok(()));
        for (path, why) in [
            ("/other", "is that of `https://idp.example`, not of"),
            ("/slash", "not of"),
            ("/plain", "`jwks_uri`: `http://idp.example/keys` is plain HTTP"),
            ("/nowhere", "404"),
        ] {
            let said = discovered(&format!("{base}{path}")).await.unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[tokio::test]
    async fn answers_are_bounded_in_bytes_and_time_and_nothing_is_followed() {
        let base = issuer().await;
        for (path, why) in [
            ("/moved", "redirects are not followed"),
            ("/broken", "answers 500"),
            ("/slow", "operation timed out"),
            ("/long", "is longer than 256 KiB"),
            ("/text", "is no JWK set"),
        ] {
            let url = parse_address(&format!("{base}{path}")).unwrap();
            let source = KeySource::new(&base, KeyLocation::Url(url), None).unwrap();
            let said = source.fetch().await.unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        let said = discovered(&format!("{base}/long")).await.unwrap_err();
        assert!(said.contains("is longer than 64 KiB"), "{said}");
        // Nobody listens.
        let said = discovered("http://127.0.0.1:1").await.unwrap_err();
        assert!(said.contains("refused"), "{said}");
    }

    #[test]
    fn keys_come_over_https_or_from_loopback() {
        for good in
            ["https://idp.example/a?b=c", "http://127.0.0.1:1/", "http://[::1]/", "http://localhost:1/x"]
        {
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for bad in [
            "http://idp.example/",
            "http://127.0.0.1.example/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "https://user:secret@idp.example/",
            "https://idp.example/#x",
            "idp.example",
        ] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn documents_stand_below_the_issuers_path() {
        for (issuer, expected) in [
            ("https://idp.example", "https://idp.example/.well-known/openid-configuration"),
            ("https://idp.example/", "https://idp.example/.well-known/openid-configuration"),
            (
                "https://idp.example/realms/acme",
                "https://idp.example/realms/acme/.well-known/openid-configuration",
            ),
        ] {
            assert_eq!(document_address(issuer).unwrap().as_str(), expected);
        }
        assert!(document_address("https://idp.example?x=y").is_err());
    }
}
