//! Setting up logs and export, once per process.

use std::io::IsTerminal as _;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::global;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tokio::runtime::Handle;
use tracing_subscriber::EnvFilter;

use crate::DenialsKept;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people, to standard error.
    Lines,
    /// None at all.
    Off,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refused its configuration.
    #[error("OTLP export: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The HTTP client could not be made.
    #[error("OTLP export: {0}")]
    Http(#[from] reqwest::Error),
}

/// Export and logs of this process; flushes when dropped or shut down.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs, and OTLP export if `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
/// `OTEL_TRACES_EXPORTER=otlp` asks for it. Everything else about export is read from the standard variables.
///
/// Has to run within a tokio runtime.
///
/// # Errors
/// [`TelemetryError`] if export is asked for and cannot be set up.
pub fn init(service: &str, logs: LogFormat) -> Result<Telemetry, TelemetryError> {
    if logs == LogFormat::Lines {
        // rmcp writes down what servers send, unbounded; writ-upstream says what matters of it.
        let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new("warn,rmcp=off"));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        // A second initialisation in one process (tests, `writ dev`) keeps the first.
        drop(subscriber.try_init());
    }
    global::set_text_map_propagator(TraceContextPropagator::new());
    if !export_is_wanted() {
        return Ok(Telemetry { provider: None });
    }
    // reqwest brings none of its own here. One that is installed already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = RuntimeClient { runtime: Handle::current(), http: reqwest::Client::builder().build()? };
    let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
    let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.to_owned());
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(DenialsKept::new(root_sampler()))
        .with_resource(Resource::builder().with_service_name(name).build())
        .build();
    global::set_tracer_provider(provider.clone());
    Ok(Telemetry { provider: Some(provider) })
}

fn export_is_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    match std::env::var("OTEL_TRACES_EXPORTER") {
        _ if disabled => false,
        Ok(exporter) => exporter == "otlp",
        Err(_) => set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    }
}

/// `OTEL_TRACES_SAMPLER` for traces that begin here.
fn root_sampler() -> Sampler {
    let ratio =
        || std::env::var("OTEL_TRACES_SAMPLER_ARG").ok().and_then(|arg| arg.parse().ok()).unwrap_or(1.0);
    match std::env::var("OTEL_TRACES_SAMPLER").as_deref() {
        Ok("always_off" | "parentbased_always_off") => Sampler::AlwaysOff,
        Ok("traceidratio" | "parentbased_traceidratio") => Sampler::TraceIdRatioBased(ratio()),
        _ => Sampler::AlwaysOn,
    }
}

impl Telemetry {
    /// Sends what is left and stops.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(provider) = self.provider.take() {
            // A collector that is gone at the end is no reason to fail.
            drop(provider.shutdown());
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An HTTP client for the exporter's batch thread, which has no runtime: the request runs on ours.
#[derive(Debug)]
struct RuntimeClient {
    runtime: Handle,
    http: reqwest::Client,
}

#[async_trait]
impl HttpClient for RuntimeClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let response = http.execute(request.try_into()?).await?;
            let mut answer = Response::builder().status(response.status());
            if let Some(headers) = answer.headers_mut() {
                headers.clone_from(response.headers());
            }
            let body = response.bytes().await?;
            Ok::<_, HttpError>(answer.body(body)?)
        });
        sent.await?
    }
}
