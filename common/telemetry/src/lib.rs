//! Writ's traces and logs.
//!
//! Spans leave by OTLP when the standard `OTEL_*` variables ask for it, and cost next to nothing when they do not.
//! The decision cores make spans as data ([`SpanRecord`]); [`Spans::emit`] hands them to the OpenTelemetry API.

mod export;
mod init;
mod sampler;

pub use export::Spans;
pub use init::{LogFormat, Telemetry, TelemetryError, init};
pub use sampler::DenialsKept;
pub use writ_common::trace::SpanRecord;
