//! One POST to one configured address, and no further: no redirect, no proxy of the environment, no second try.

use std::net::{Ipv4Addr, SocketAddr};

use reqwest::{
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect,
};
use writ_bus::keyfile;
use writ_common::{
    inspect::{ANSWER_BYTES_MAX, Failure},
    time::Millis,
};

use super::settings::Endpoint;
use crate::tools::{ToolSetupError, error_chain, tls_config};

/// A client for one address.
pub(super) struct Client {
    client: reqwest::Client,
    url: reqwest::Url,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// # Errors
    /// [`ToolSetupError`]: no certificates to trust, no token.
    pub(super) fn open(endpoint: &Endpoint, deadline: Millis) -> Result<Self, ToolSetupError> {
        let port = endpoint.url.port_or_known_default().unwrap_or(80);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls_config(endpoint.ca_file.as_ref())?)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .timeout(deadline.to_duration())
            // Whatever a resolver says: what is not encrypted stays on this machine.
            .resolve("localhost", SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .user_agent(concat!("writ/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ToolSetupError::Setting(format!("no HTTP client: {}", error_chain(&error))))?;
        let authorization = endpoint.token_file.as_ref().map(|file| {
            let token =
                keyfile::read_secret(file).map_err(|error| ToolSetupError::Setting(error.to_string()))?;
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| ToolSetupError::Setting(format!("{} holds no token", file.display())))?;
            value.set_sensitive(true);
            Ok::<_, ToolSetupError>(value)
        });
        Ok(Self { client, url: endpoint.url.clone(), authorization: authorization.transpose()? })
    }

    /// Sends a body and reads the answer, as far as it may be long.
    pub(super) async fn post(&self, body: String) -> Result<Vec<u8>, Failure> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let unavailable = |error: reqwest::Error| Failure::Unavailable(error_chain(&error.without_url()));
        let mut response = request.send().await.map_err(unavailable)?;
        let status = response.status();
        if status.is_server_error() || status.as_u16() == 429 {
            return Err(Failure::Unavailable(format!("HTTP status {status}")));
        }
        if status.as_u16() != 200 {
            return Err(Failure::Invalid(format!("its answer has HTTP status {status}")));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Invalid(format!("its answer has more than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
