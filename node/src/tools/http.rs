//! `get`: one document from a host that is on the list.
//!
//! The name is looked up once per connection, every address it has is looked at, and those very addresses are
//! connected to; there is no second look-up that could answer otherwise. Redirects are followed on the same host
//! only, since the host is what policy decided on. Nothing is sent that the caller chose but the URL: no headers, no
//! cookies, no credentials, and no proxy of the environment in between.

use std::{
    error::Error as StdError,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Client, Response, Url,
    dns::{Name, Resolve, Resolving},
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, LOCATION},
    redirect,
};
use rustls::{ClientConfig, RootCertStore};
use writ_common::{
    datalog::{Predicate, Term},
    decide::Gate,
    digest::Digest,
    ids::Action,
    json::Value,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

use super::{
    Tool, ToolOutput, ToolSetupError,
    http_target::{Host, Reach, Target, check_addresses, check_target, read_target},
    tool_failed,
    trust::read_certificates,
    unknown_action,
};
use crate::guard::ToolFailure;

/// Most redirects of one call.
const REDIRECTS_MAX: usize = 5;

/// Settings of an HTTP tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The hosts that may be reached.
    pub hosts: Vec<Host>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Largest document, in bytes.
    pub bytes_max: usize,
    /// How long a call may take, redirects and all.
    pub timeout: Millis,
}

/// Documents by HTTP.
pub struct Http {
    client: Client,
    settings: HttpSettings,
}

impl Http {
    /// Reads the certificates and makes the client.
    ///
    /// # Errors
    /// [`ToolSetupError`] if there are no certificates to trust.
    pub fn open(settings: HttpSettings) -> Result<Self, ToolSetupError> {
        let tls = tls_config(settings.ca_file.as_ref())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Checked { hosts: settings.hosts.clone().into() })
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            // A connection is of the addresses of its call.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("writ/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ToolSetupError::Setting(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self { client, settings })
    }

    async fn get(&self, mut target: Target) -> Result<Value, ToolFailure> {
        for _ in 0..=REDIRECTS_MAX {
            let request = self.client.get(target.url.clone()).header(ACCEPT_ENCODING, "identity");
            let response = request.send().await.map_err(|error| failure_of(&error))?;
            let Some(next) = redirect_of(&response, &target.url)? else {
                return document(response, &target.url, self.settings.bytes_max).await;
            };
            target = self.hop(&target, next)?;
        }
        Err(tool_failed(format_args!("more than {REDIRECTS_MAX} redirects")))
    }

    /// # Errors
    /// `arg.host` if the server sends us on to somewhere the policy was not asked about.
    fn hop(&self, from: &Target, to: Url) -> Result<Target, ToolFailure> {
        let next = check_target(to, &self.settings.hosts).map_err(failed)?;
        if next.host != from.host && !writ_common::red::off("A13") {
            let (name, port) = (next.host.name(), next.host.port());
            return Err(failed(Reason::new(ReasonCode::ArgHost).told(format_args!(
                "the server sends on to `{name}:{port}`; call that by itself, if policy lets you"
            ))));
        }
        Ok(next)
    }
}

/// TLS for clients: the system's certificates, or those of a file instead of them.
///
/// # Errors
/// [`ToolSetupError`] if the file has none.
pub fn tls_config(ca_file: Option<&PathBuf>) -> Result<ClientConfig, ToolSetupError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in read_certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| ToolSetupError::Path { path: path.clone(), why: error.to_string() })?;
            }
        }
        // Certificates of the system that cannot be read are not trusted; without any no host is.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ToolSetupError::Setting(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The system's resolver, with every address looked at.
struct Checked {
    hosts: Arc<[Host]>,
}

/// Why a name is not connected to.
#[derive(Debug)]
struct NotReached(String);

impl fmt::Display for NotReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for NotReached {}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        // A name that is listed for both is held to the stricter.
        let reaches: Vec<Reach> =
            self.hosts.iter().filter(|host| host.name() == name).map(Host::reach).collect();
        let reach = reaches.into_iter().max().unwrap_or(Reach::Public);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
            check_addresses(&addresses, reach)
                .map_err(|why| NotReached(format!("`{name}` is not reached: {why}")))?;
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// An error with everything that led to it, in one line.
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Reading a document changes nothing: it failed, whatever came of it.
fn failed(reason: Reason) -> ToolFailure {
    ToolFailure { reason, status: OutcomeStatus::Failed }
}

fn failure_of(error: &reqwest::Error) -> ToolFailure {
    let mut cause: Option<&dyn StdError> = Some(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<NotReached>() {
            return failed(Reason::new(ReasonCode::ArgHost).told(refused));
        }
        cause = inner.source();
    }
    // The URL may be long, and the caller knows it.
    tool_failed(error.source().map_or_else(|| error.to_string(), chain))
}

fn redirect_of(response: &Response, from: &Url) -> Result<Option<Url>, ToolFailure> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
    let location = location.to_str().map_err(|_| tool_failed("a redirect to somewhere unreadable"))?;
    from.join(location).map(Some).map_err(|error| tool_failed(format_args!("a redirect to nowhere: {error}")))
}

async fn document(mut response: Response, url: &Url, bytes_max: usize) -> Result<Value, ToolFailure> {
    let too_large = || {
        failed(
            Reason::new(ReasonCode::ToolResultTooLarge)
                .told(format_args!("the document has more than {bytes_max} bytes")),
        )
    };
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // It was asked not to; what is small here could be very large once unpacked.
    if header(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(tool_failed("the server compressed the document, which is not read"));
    }
    let content_type = header(CONTENT_TYPE).unwrap_or_default();
    let status = i64::from(response.status().as_u16());
    let announced = response.content_length().and_then(|bytes| usize::try_from(bytes).ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let mut content = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure_of(&error))? {
        if content.len() + chunk.len() > bytes_max {
            return Err(too_large());
        }
        content.extend_from_slice(&chunk);
    }
    let digest = Digest::plain(&content).to_string();
    let (key, content) = match String::from_utf8(content) {
        Ok(text) => ("text", text),
        Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
    };
    Ok([
        ("content_type", Value::from(content_type)),
        ("sha256", Value::from(digest)),
        ("status", Value::from(status)),
        ("url", Value::from(url.as_str())),
        (key, Value::from(content)),
    ]
    .into_iter()
    .collect())
}

impl Http {
    /// # Errors
    /// Why the URL is not asked for.
    fn target(&self, action: &Action, arguments: &Value) -> Result<Target, Reason> {
        if action.as_str() != "get" {
            return Err(unknown_action(action));
        }
        let url = arguments.get("url").and_then(Value::as_str).unwrap_or_default();
        read_target(url, &self.settings.hosts)
    }
}

impl Gate for Http {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        let host = self.target(action, arguments)?.host;
        Ok(vec![Predicate::new("host", [Term::str(host.name()), Term::Integer(i64::from(host.port()))])])
    }
}

#[async_trait]
impl Tool for Http {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let target = self
            .target(permit.action(), permit.arguments().value())
            .map_err(|reason| ToolFailure { reason, status: OutcomeStatus::NotRun })?;
        let timeout = self.settings.timeout;
        match tokio::time::timeout(timeout.to_duration(), self.get(target)).await {
            Ok(result) => result.map(ToolOutput::from),
            Err(_) => {
                Err(failed(Reason::new(ReasonCode::ToolTimeout).told(format_args!("longer than {timeout}"))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, io::Write as _, net::TcpListener, sync::mpsc, thread};

    use axum::{Router, http::StatusCode, response::Redirect, routing::get};

    use super::*;
    use crate::tools::testing::permit;

    /// A real server on loopback; it ends with the runtime of the test.
    async fn server(routes: Router) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        port
    }

    fn tool(hosts: Vec<Host>) -> Http {
        let settings = HttpSettings { hosts, ca_file: None, bytes_max: 1_000, timeout: Millis::from_secs(2) };
        Http::open(settings).unwrap()
    }

    fn loopback(name: &str, port: u16) -> Host {
        Host::parse(&format!("{name}:{port}"), Reach::Loopback).unwrap()
    }

    async fn fetch(tool: &Http, url: &str) -> Result<String, String> {
        let arguments: Value = [("url", Value::from(url))].into_iter().collect();
        let result = tool.call(permit("tool.web", "get", &arguments.to_string())).await;
        result.map(|output| output.value.to_string()).map_err(|failure| failure.reason.to_string())
    }

    fn routes(other: u16) -> Router {
        let to_other = move |path: &'static str| {
            get(move || async move { Redirect::temporary(&format!("http://127.0.0.1:{other}{path}")) })
        };
        Router::new()
            .route("/text", get(|| async { "hello" }))
            .route("/bytes", get(|| async { vec![0xff_u8, 0x00] }))
            .route("/missing", get(|| async { (StatusCode::NOT_FOUND, "no") }))
            .route("/here", get(|| async { Redirect::permanent("/text") }))
            .route("/loop", get(|| async { Redirect::temporary("/loop") }))
            .route("/there", to_other("/text"))
            .route(
                "/metadata",
                get(|| async { Redirect::temporary("http://169.254.169.254/latest/meta-data/") }),
            )
            .route("/user", get(move || async move { Redirect::temporary("http://a@127.0.0.1/text") }))
            .route("/file", get(|| async { Redirect::temporary("file:///etc/passwd") }))
            .route("/large", get(|| async { "x".repeat(1_001) }))
            .route("/packed", get(|| async { ([(CONTENT_ENCODING, "gzip")], "\x1f") }))
            .route("/slow", get(std::future::pending::<&str>))
    }

    #[tokio::test]
    async fn a_document_comes_back_with_its_status() {
        let port = server(routes(0)).await;
        let tool = tool(vec![loopback("127.0.0.1", port), loopback("localhost", port)]);
        let at = |path: &str| format!("http://127.0.0.1:{port}{path}");
        let text = fetch(&tool, &at("/text")).await.unwrap();
        assert!(text.contains(r#""status":200,"text":"hello""#), "{text}");
        assert!(fetch(&tool, &at("/bytes")).await.unwrap().contains(r#""base64":"/wA=""#));
        assert!(fetch(&tool, &at("/missing")).await.unwrap().contains(r#""status":404"#));
        let moved = fetch(&tool, &at("/here")).await.unwrap();
        assert!(moved.contains("hello") && moved.contains(&at("/text")), "{moved}");
        assert!(fetch(&tool, &format!("http://localhost:{port}/text")).await.unwrap().contains("hello"));
        let facts = tool.admit(
            &Action::parse("get").unwrap(),
            &[("url", Value::from(at("/text")))].into_iter().collect(),
        );
        assert_eq!(facts.unwrap()[0].to_string(), format!(r#"host("127.0.0.1", {port})"#));
    }

    #[tokio::test]
    async fn a13_a_redirect_leads_nowhere_else() {
        let other = server(routes(0)).await;
        let port = server(routes(other)).await;
        // Both are on the list; policy was asked about one.
        let tool = tool(vec![loopback("127.0.0.1", port), loopback("127.0.0.1", other)]);
        for path in ["/there", "/metadata", "/user", "/file"] {
            let result = fetch(&tool, &format!("http://127.0.0.1:{port}{path}")).await;
            assert!(result.as_ref().is_err_and(|text| text.starts_with("arg.host")), "{path}: {result:?}");
        }
        let endless = fetch(&tool, &format!("http://127.0.0.1:{port}/loop")).await;
        assert_eq!(endless, Err("tool.failed: more than 5 redirects".to_owned()));
    }

    /// A13: a name on the list whose address is none of the public ones; here the system's own `localhost`.
    #[tokio::test]
    async fn a13_a_listed_name_with_an_inner_address_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let checked = Checked { hosts: vec![loopback("localhost", 1)].into() };
        assert!(checked.resolve("localhost".parse().unwrap()).await.is_ok());
        let public = Checked { hosts: Vec::new().into() };
        let Err(error) = public.resolve("localhost".parse().unwrap()).await else { panic!("resolved") };
        assert!(error.to_string().contains("loopback"), "{error}");
        // The same through the whole client, which must not have tried either.
        let client = Client::builder()
            .tls_backend_preconfigured(tls_config(None).unwrap())
            .dns_resolver(public)
            .no_proxy()
            .build()
            .unwrap();
        let error = client.get(format!("http://localhost:{port}/")).send().await.unwrap_err();
        assert_eq!(failure_of(&error).reason.code(), ReasonCode::ArgHost);
        assert!(listener.accept().is_err(), "somebody connected");
    }

    #[tokio::test]
    async fn size_time_and_packing_are_bounded() {
        let port = server(routes(0)).await;
        let tool = tool(vec![loopback("127.0.0.1", port)]);
        for (path, expected) in
            [("/large", "tool.result_too_large"), ("/packed", "tool.failed"), ("/slow", "tool.timeout")]
        {
            let result = fetch(&tool, &format!("http://127.0.0.1:{port}{path}")).await;
            assert!(result.as_ref().is_err_and(|text| text.starts_with(expected)), "{path}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_certificate_has_to_be_trusted_and_of_the_host() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (done, asked) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut connection = rustls::ServerConnection::new(config.clone().into()).unwrap();
                let mut stream = stream.unwrap();
                let mut tls = rustls::Stream::new(&mut connection, &mut stream);
                let mut request = [0; 1_024];
                let read = tls.read(&mut request);
                if read.is_ok() {
                    tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
                        .unwrap();
                    tls.conn.send_close_notify();
                    tls.flush().unwrap_or_default();
                }
                done.send(read.is_ok()).unwrap();
            }
        });
        let hosts = vec![loopback("localhost", port)];
        let settings = HttpSettings { hosts, ca_file: None, bytes_max: 1_000, timeout: Millis::from_secs(5) };
        let url = format!("https://localhost:{port}/");
        let stranger = Http::open(settings.clone()).unwrap();
        assert!(fetch(&stranger, &url).await.is_err());
        assert!(!asked.recv().unwrap(), "a request was sent under an unknown certificate");
        let friend = Http::open(HttpSettings { ca_file: Some(ca_file), ..settings.clone() }).unwrap();
        assert!(fetch(&friend, &url).await.unwrap().contains(r#""text":"hi""#));
        assert!(asked.recv().unwrap());
        let missing = folder.path().join("missing.pem");
        assert!(Http::open(HttpSettings { ca_file: Some(missing), ..settings }).is_err());
    }
}
