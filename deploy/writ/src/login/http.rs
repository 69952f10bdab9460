//! Asking an issuer: HTTPS, or plain HTTP on loopback; no redirects, bounded in bytes and time.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::{Client, StatusCode, Url, header};
use serde::de::DeserializeOwned;
use serde_json::Value;
use writ_broker::oidc::{issuer_client, parse_address};

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to one issuer.
pub(super) struct Http {
    client: Client,
}

/// What an endpoint of OAuth 2.0 answered.
pub(super) enum Answered {
    /// Status 200 with this.
    Given(Value),
    /// An error by its code, with the issuer's words.
    Refused { code: String, words: String },
}

impl Http {
    /// For an issuer at this address.
    pub(super) fn new(first: &Url) -> Result<Self> {
        let client = issuer_client(first, REQUEST_TIMEOUT).build();
        Ok(Self { client: client.context("no HTTPS client")? })
    }

    /// A document.
    pub(super) async fn get<T: DeserializeOwned>(&self, url: &Url) -> Result<T> {
        let asked = self.client.get(url.clone()).header(header::ACCEPT, "application/json");
        let (status, body) = read(asked).await.with_context(|| url.to_string())?;
        if status != StatusCode::OK {
            bail!("{url} answers {status}");
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} answers what is not expected"))
    }

    /// A form.
    pub(super) async fn post(&self, url: &Url, fields: &[(&str, &str)]) -> Result<Answered> {
        let asked = self
            .client
            .post(url.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form(fields));
        let (status, body) = read(asked).await.with_context(|| url.to_string())?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status == StatusCode::OK {
            return Ok(Answered::Given(value));
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("error") {
            code if code.is_empty() => bail!("{url} answers {status}"),
            code => Ok(Answered::Refused { code, words: text("error_description") }),
        }
    }
}

impl Answered {
    /// The answer, or the refusal as an error.
    pub(super) fn given(self) -> Result<Value> {
        match self {
            Self::Given(value) => Ok(value),
            Self::Refused { code, words } if words.is_empty() => bail!("the issuer refuses: {code}"),
            Self::Refused { code, words } => bail!("the issuer refuses: {code}: {words}"),
        }
    }
}

async fn read(asked: reqwest::RequestBuilder) -> Result<(StatusCode, Vec<u8>)> {
    let mut response = asked.send().await.map_err(reqwest::Error::without_url)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            bail!("answers more than {} KiB", ANSWER_BYTES_MAX / 1024);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

/// `application/x-www-form-urlencoded`, as a query of a URL is.
pub(super) fn form(fields: &[(&str, &str)]) -> String {
    // The address is of no matter; the standard library has no encoder of its own.
    Url::parse_with_params("http://localhost/", fields)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

/// An address an issuer named.
pub(super) fn endpoint(name: &str, address: &str) -> Result<Url> {
    parse_address(address).with_context(|| format!("`{name}` of the issuer's discovery document"))
}
