//! A server over streamable HTTP, with bounds on what it answers and exact numbers in it.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue},
    redirect,
};
use rmcp::{
    model::{
        ClientJsonRpcMessage, ClientRequest, ErrorCode, ErrorData, JsonRpcMessage, ServerJsonRpcMessage,
    },
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
        StreamableHttpPostResponse,
    },
};
use sse_stream::{Sse, SseStream};
use writ_node::tools::tls_config;

use crate::{
    UpstreamError,
    stdio::secret_line,
    wire::{MESSAGE_BYTES_MAX, Wire},
};

const SESSION: &str = "mcp-session-id";
const LAST_EVENT: &str = "last-event-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// Longest answer to a refused request that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Failure = StreamableHttpError<reqwest::Error>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

/// The client rmcp's transport sends with.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client,
    wire: Arc<Wire>,
}

impl HttpClient {
    /// Reads certificates and headers, and makes the client.
    ///
    /// # Errors
    /// [`UpstreamError`] if a file is not usable.
    pub(crate) fn open(
        url: &reqwest::Url,
        header_files: &std::collections::BTreeMap<String, std::path::PathBuf>,
        ca_file: Option<&std::path::PathBuf>,
        wire: Arc<Wire>,
    ) -> Result<(Self, StreamableHttpClientTransportConfig), UpstreamError> {
        let tls = tls_config(ca_file).map_err(|error| UpstreamError::File(error.to_string()))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            // What is sent is for this server, headers and all, and for none it points to.
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .user_agent(concat!("writ/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| UpstreamError::File(error.to_string()))?;
        let mut headers = HashMap::new();
        for (name, file) in header_files {
            let unusable = |why: &str| UpstreamError::File(format!("{}: {why}", file.display()));
            let name = HeaderName::try_from(name.as_str()).map_err(|_| unusable("is for no header"))?;
            let mut value = HeaderValue::try_from(secret_line(file)?)
                .map_err(|_| unusable("holds something else than one line of text"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
        config.custom_headers = headers;
        config.max_sse_event_size = MESSAGE_BYTES_MAX;
        config.max_concurrent_requests = 256;
        Ok((Self { client, wire }, config))
    }

    fn with_headers(
        request: RequestBuilder,
        session: Option<Arc<str>>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> RequestBuilder {
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        match session {
            Some(session) => request.header(SESSION, session.as_ref()),
            None => request,
        }
    }

    /// Server-sent events, each read as a message before rmcp sees it.
    fn events(&self, response: Response) -> Events {
        let wire = Arc::clone(&self.wire);
        let mut size = EventSize::default();
        let bytes = response.bytes_stream().map(move |chunk| {
            let chunk = chunk.map_err(std::io::Error::other)?;
            match size.count(&chunk) {
                true => Ok(chunk),
                false => Err(std::io::Error::other("an event larger than 4 MiB")),
            }
        });
        let events = SseStream::from_bytes_stream(bytes).map(move |event| {
            let mut event = event?;
            // What is no message stays an event without data, which only carries its id.
            event.data = event.data.as_deref().and_then(|data| wire.read(data));
            Ok(event)
        });
        events.boxed()
    }
}

/// How much of the event under way has come.
#[derive(Default)]
struct EventSize {
    bytes: usize,
    line_feeds: usize,
}

impl EventSize {
    /// Whether it is still within bounds with this.
    fn count(&mut self, chunk: &[u8]) -> bool {
        for byte in chunk {
            match byte {
                b'\r' => {}
                b'\n' => self.line_feeds += 1,
                _ => self.line_feeds = 0,
            }
            self.bytes = if self.line_feeds >= 2 { 0 } else { self.bytes + 1 };
            if self.bytes > MESSAGE_BYTES_MAX {
                return false;
            }
        }
        true
    }
}

impl StreamableHttpClient for HttpClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        // Credentials come as headers only.
        drop(auth);
        self.wire.sending(&message);
        let has_session = session.is_some();
        let request = self.client.post(uri.as_ref()).header(ACCEPT, format!("{EVENTS}, {JSON}"));
        let request = Self::with_headers(request, session, headers).json(&message);
        let response = request.send().await.map_err(Failure::Client)?;
        let status = response.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && has_session {
            return Err(Failure::SessionExpired);
        }
        if !status.is_success() {
            return refusal(&message, has_session, response).await;
        }
        let session = response.headers().get(SESSION);
        let session = session.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let kind = content_type(&response);
        if kind.starts_with(EVENTS) {
            return Ok(StreamableHttpPostResponse::Sse(self.events(response), session));
        }
        let JsonRpcMessage::Request(request) = &message else {
            // Nothing is waited for; some servers answer 200 where the protocol has 202.
            return Ok(StreamableHttpPostResponse::Accepted);
        };
        if !kind.starts_with(JSON) {
            return Err(Failure::UnexpectedContentType(Some(crate::text::bounded(&kind))));
        }
        let Some(body) = bounded_body(response, MESSAGE_BYTES_MAX).await? else {
            self.wire.too_large(&request.id.to_string());
            return Err(Failure::ResponseBodyTooLarge { max_size: MESSAGE_BYTES_MAX });
        };
        let text = std::str::from_utf8(&body).ok().and_then(|text| self.wire.read(text.trim()));
        let answer = text.and_then(|text| serde_json::from_str::<ServerJsonRpcMessage>(&text).ok());
        let answer =
            answer.ok_or(Failure::UnexpectedServerResponse(Cow::from("the answer is no message")))?;
        Ok(StreamableHttpPostResponse::Json(answer, session))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        drop(auth);
        let request = Self::with_headers(self.client.delete(uri.as_ref()), Some(session), headers);
        request.send().await.map_err(Failure::Client).map(drop)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Events, Failure> {
        drop(auth);
        let request = self.client.get(uri.as_ref()).header(ACCEPT, format!("{EVENTS}, {JSON}"));
        let mut request = Self::with_headers(request, session, headers);
        if let Some(last_event) = last_event {
            request = request.header(LAST_EVENT, last_event);
        }
        let response = request.send().await.map_err(Failure::Client)?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => return Err(Failure::ServerDoesNotSupportSse),
            status if !status.is_success() => {
                return Err(Failure::UnexpectedServerResponse(format!("HTTP {status}").into()));
            }
            _ => {}
        }
        match content_type(&response) {
            kind if kind.starts_with(EVENTS) => Ok(self.events(response)),
            kind => Err(Failure::UnexpectedContentType(Some(crate::text::bounded(&kind)))),
        }
    }
}

fn content_type(response: &Response) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.unwrap_or_default().to_ascii_lowercase()
}

/// The whole body; `None` if it is larger.
async fn bounded_body(mut response: Response, bytes_max: usize) -> Result<Option<Vec<u8>>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Failure::Client)? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// What a status other than success amounts to. A server of the older revision refuses `server/discover`, and often
/// with a body that names no request: that has to reach rmcp as the answer to it, so that it begins with `initialize`
/// instead (MCP 2026-07-28, Versioning).
async fn refusal(
    message: &ClientJsonRpcMessage,
    has_session: bool,
    response: Response,
) -> Result<StreamableHttpPostResponse, Failure> {
    let status = response.status();
    let failed = || Failure::UnexpectedServerResponse(format!("HTTP {status}").into());
    let JsonRpcMessage::Request(request) = message else { return Err(failed()) };
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(failed());
    }
    let body = bounded_body(response, REFUSAL_BYTES_MAX).await?.unwrap_or_default();
    let said = match serde_json::from_slice::<ServerJsonRpcMessage>(&body) {
        Ok(JsonRpcMessage::Error(error)) => Some(error.error),
        _ => None,
    };
    let is_discovery = matches!(request.request, ClientRequest::DiscoverRequest(_));
    let error = match said {
        Some(error) => error,
        None if is_discovery && !has_session && status.is_client_error() => {
            ErrorData::new(ErrorCode::INVALID_REQUEST, format!("HTTP {status}"), None)
        }
        None => return Err(failed()),
    };
    Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(request.id.clone())), None))
}
