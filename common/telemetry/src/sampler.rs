//! Sampling that never loses a denial.

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Link, SpanKind, TraceContextExt as _, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};
use writ_common::trace::attribute;

/// Follows the caller's choice, except that a span with a verdict other than `allow` is always kept.
///
/// The verdict has to be among the attributes the span is started with; verdict spans are built whole.
#[derive(Clone, Debug)]
pub struct DenialsKept {
    otherwise: Sampler,
}

impl DenialsKept {
    /// For traces that begin here, `root` decides.
    #[must_use]
    pub fn new(root: Sampler) -> Self {
        Self { otherwise: Sampler::ParentBased(Box::new(root)) }
    }
}

impl ShouldSample for DenialsKept {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let refused = attributes.iter().any(|pair| {
            pair.key.as_str() == attribute::VERDICT
                && matches!(&pair.value, Value::String(verdict) if verdict.as_str() != "allow")
        });
        if refused {
            let trace_state = parent.map_or_else(TraceState::default, |context| {
                context.span().span_context().trace_state().clone()
            });
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state,
            };
        }
        self.otherwise.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}
