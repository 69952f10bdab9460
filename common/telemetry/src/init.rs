//! Setting up logs and export, once per process.

use std::io::IsTerminal as _;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::global;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{LogExporter, SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tokio::runtime::Handle;
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use writ_common::record_log::LogBody;

use crate::{DenialsKept, RecordLogs, record_logs};

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
    /// The body of logs is of no known form.
    #[error("environment: WRIT_LOGS_FORMAT is `{0}`; say `text` or `ocsf`, or leave it out for `text`")]
    LogBody(String),
}

/// Export and logs of this process; flushes when dropped or shut down.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    record_logs: RecordLogs,
}

/// Sets up logs, and OTLP export of spans and of records as logs, each if `OTEL_EXPORTER_OTLP_ENDPOINT`,
/// `OTEL_EXPORTER_OTLP_<TRACES|LOGS>_ENDPOINT` or `OTEL_<TRACES|LOGS>_EXPORTER=otlp` asks for it. Everything else about
/// export is read from the standard variables; `WRIT_LOGS_FORMAT` says what the body of a log is.
///
/// Has to run within a tokio runtime.
///
/// # Errors
/// [`TelemetryError`] if export is asked for and cannot be set up.
pub fn init(service: &str, logs: LogFormat) -> Result<Telemetry, TelemetryError> {
    if logs == LogFormat::Lines {
        let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        // A second initialisation in one process (tests, `writ dev`) keeps the first.
        drop(subscriber.finish().with(without_content()).try_init());
    }
    global::set_text_map_propagator(TraceContextPropagator::new());
    let body = match std::env::var("WRIT_LOGS_FORMAT") {
        Ok(word) => LogBody::parse(&word).ok_or(TelemetryError::LogBody(word))?,
        Err(_) => LogBody::Text,
    };
    let mut telemetry = Telemetry { provider: None, record_logs: RecordLogs::default() };
    let (spans_wanted, logs_wanted) = (export_is_wanted("TRACES"), export_is_wanted("LOGS"));
    if !spans_wanted && !logs_wanted {
        return Ok(telemetry);
    }
    // reqwest brings none of its own here. One that is installed already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = RuntimeClient { runtime: Handle::current(), http: reqwest::Client::builder().build()? };
    let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.to_owned());
    let resource = Resource::builder().with_service_name(name).build();
    if logs_wanted {
        let exporter = LogExporter::builder().with_http().with_http_client(client.clone()).build()?;
        telemetry.record_logs = RecordLogs::to(exporter, record_logs::queue_max(), resource.clone(), body);
        RecordLogs::install(&telemetry.record_logs);
    }
    if spans_wanted {
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(DenialsKept::new(root_sampler()))
            .with_resource(resource)
            .build();
        global::set_tracer_provider(provider.clone());
        telemetry.provider = Some(provider);
    }
    Ok(telemetry)
}

/// What others write down of messages is content, capabilities included, and stands in no log whatever `WRIT_LOG` asks
/// for: async-nats does at `trace`, and rmcp of all that servers send. writ-upstream says what matters of that.
fn without_content() -> Targets {
    Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target("async_nats", LevelFilter::DEBUG)
        .with_target("rmcp", LevelFilter::OFF)
}

/// Whether the standard variables ask for a signal: `TRACES` or `LOGS`.
fn export_is_wanted(signal: &str) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    match std::env::var(format!("OTEL_{signal}_EXPORTER")) {
        _ if disabled => false,
        Ok(exporter) => exporter == "otlp",
        Err(_) => set("OTEL_EXPORTER_OTLP_ENDPOINT") || set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")),
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
        self.record_logs.shutdown();
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An HTTP client for the exporter's batch thread, which has no runtime: the request runs on ours.
#[derive(Clone, Debug)]
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
