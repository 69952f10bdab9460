//! From span data to the OpenTelemetry API.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value, global,
    global::BoxedTracer,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind as OtelKind, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use writ_common::{
    time::Timestamp,
    trace::{AttributeValue, SpanKind, SpanRecord, TraceContext},
};

/// Hands finished spans to the installed tracer provider.
pub struct Spans {
    tracer: BoxedTracer,
}

impl Spans {
    /// Takes the tracer of the provider installed now; install one first.
    #[must_use]
    pub fn new() -> Self {
        Self { tracer: global::tracer("writ") }
    }

    /// Exports a span.
    pub fn emit(&self, record: SpanRecord) {
        let parent = parent_context(record.parent.as_ref());
        let builder = SpanBuilder::from_name(record.name)
            .with_kind(match record.kind {
                SpanKind::Consumer => OtelKind::Consumer,
                SpanKind::Internal => OtelKind::Internal,
            })
            .with_start_time(to_system_time(record.start))
            .with_attributes(
                record.attributes.into_iter().map(|(name, value)| KeyValue::new(name, to_value(value))),
            );
        let mut span = self.tracer.build_with_context(builder, &parent);
        if let Some(error) = record.error {
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(to_system_time(record.end));
    }
}

impl Default for Spans {
    fn default() -> Self {
        Self::new()
    }
}

/// The caller's span as a parent: one span per hop, no links, which some viewers drop.
fn parent_context(parent: Option<&TraceContext>) -> Context {
    let Some(parent) = parent else { return Context::new() };
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from_bytes(parent.trace),
        SpanId::from_bytes(parent.span),
        flags,
        true,
        TraceState::default(),
    ))
}

pub(crate) fn to_system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis())
}

fn to_value(value: AttributeValue) -> Value {
    match value {
        AttributeValue::Integer(value) => Value::I64(value),
        AttributeValue::Text(text) => Value::String(text.into()),
        AttributeValue::Texts(texts) => {
            Value::Array(Array::String(texts.into_iter().map(StringValue::from).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider};
    use writ_common::trace::attribute;

    use super::*;
    use crate::DenialsKept;

    fn span(verdict: &str, sampled: bool) -> SpanRecord {
        SpanRecord {
            name: format!("{verdict} crm"),
            kind: SpanKind::Consumer,
            parent: Some(TraceContext { trace: [1; 16], span: [2; 8], sampled }),
            start: Timestamp::from_millis(1_000),
            end: Timestamp::from_millis(1_007),
            attributes: vec![(attribute::VERDICT, verdict.into())],
            error: (verdict == "deny").then(|| "token.expired".to_owned()),
        }
    }

    #[test]
    fn denials_are_kept_even_if_the_caller_samples_nothing() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .with_sampler(DenialsKept::new(Sampler::AlwaysOn))
            .build();
        let spans = Spans { tracer: BoxedTracer::new(Box::new(provider.tracer("test"))) };
        for (verdict, sampled) in [("allow", false), ("deny", false), ("hold", false), ("allow", true)] {
            spans.emit(span(verdict, sampled));
        }
        let exported = exporter.get_finished_spans().unwrap();
        let names: Vec<&str> = exported.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["deny crm", "hold crm", "allow crm"]);
        assert_eq!(exported[0].parent_span_id, SpanId::from_bytes([2; 8]));
        assert_eq!(exported[0].span_context.trace_id(), TraceId::from_bytes([1; 16]));
        assert_eq!(exported[0].status, Status::error("token.expired"));
        assert_eq!(exported[1].status, Status::Unset);
    }
}
