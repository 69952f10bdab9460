//! Writ's traces, logs and numbers.
//!
//! Spans leave by OTLP when the standard `OTEL_*` variables ask for it, and cost next to nothing when they do not.
//! The decision cores make spans as data ([`SpanRecord`]); [`Spans::emit`] hands them to the OpenTelemetry API.
//! Records that the audit stream has leave as logs in the same way, for systems that collect logs ([`RecordLogs`]).
//!
//! Numbers and probes are served over HTTP where a process is told to: [`serve_http`] answers with what the event
//! loop published last ([`Snapshot`]), so that a loop that stands still shows.

mod export;
mod http;
mod init;
pub mod metrics;
mod record_logs;
mod sampler;

pub use export::Spans;
pub use http::{HttpError, HttpHandle, Snapshot, Snapshots, serve_http};
pub use init::{LogFormat, Telemetry, TelemetryError, init};
pub use record_logs::{LogLosses, RecordLogs};
pub use sampler::DenialsKept;
pub use writ_common::trace::SpanRecord;
