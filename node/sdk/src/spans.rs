//! Spans of agents, through the OpenTelemetry API: nothing happens unless the program installs a provider.

use std::sync::Arc;

use opentelemetry::{
    Context, KeyValue, global,
    trace::{
        Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _,
    },
};
use writ_common::{
    capability::DelegationChain,
    ids::{ApprovalId, TaskId},
    trace::{TraceContext, attribute, span},
};

/// A span that ends when its last owner lets go of it.
#[derive(Clone)]
pub(crate) struct Span {
    context: Arc<EndOnDrop>,
}

struct EndOnDrop(Context);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

impl Span {
    fn start(name: String, kind: SpanKind, parent: &Context, attributes: Vec<KeyValue>) -> Self {
        let tracer = global::tracer("writ-sdk");
        let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        let started = builder.start_with_context(&tracer, parent);
        Self { context: Arc::new(EndOnDrop(parent.with_span(started))) }
    }

    fn child(&self, name: String, kind: SpanKind, attributes: Vec<KeyValue>) -> Self {
        Self::start(name, kind, &self.context.0, attributes)
    }

    /// A user's task: the root of its trace, unless the program has a span of its own around it.
    pub(crate) fn task(kind: &str) -> Self {
        let attributes = vec![KeyValue::new(attribute::OPENINFERENCE_KIND, "CHAIN")];
        Self::start(span::task(kind), SpanKind::Server, &Context::current(), attributes)
    }

    /// A held call taken up again: a trace of its own, which names the one it was held in. By attribute as well as
    /// by link, since some collectors drop links.
    pub(crate) fn resume(what: &str, approval: &ApprovalId, held_in: Option<TraceContext>) -> Self {
        let mut attributes = vec![
            KeyValue::new(attribute::OPENINFERENCE_KIND, "CHAIN"),
            KeyValue::new(attribute::APPROVAL_ID, approval.to_string()),
        ];
        let tracer = global::tracer("writ-sdk");
        let mut builder = tracer.span_builder(span::resume(what)).with_kind(SpanKind::Server);
        if let Some(held_in) = held_in {
            attributes.push(KeyValue::new(attribute::RESUMES_TRACE, hex(&held_in.trace)));
            let awaited = vec![KeyValue::new(attribute::LINK_KIND, "awaited")];
            builder = builder.with_links(vec![Link::new(remote(held_in), awaited, 0)]);
        }
        let started = builder.with_attributes(attributes).start_with_context(&tracer, &Context::current());
        Self { context: Arc::new(EndOnDrop(Context::current().with_span(started))) }
    }

    /// An agent at work, below the task or below the agent that called it.
    pub(crate) fn invoke_agent(&self, agent: &str, chain: &DelegationChain, task: &TaskId) -> Self {
        self.child(span::invoke_agent(agent), SpanKind::Internal, agent_attributes(agent, chain, task))
    }

    /// An agent at work for a caller elsewhere.
    pub(crate) fn invoke_remote(
        parent: Option<TraceContext>,
        agent: &str,
        chain: &DelegationChain,
        task: &TaskId,
    ) -> Self {
        let parent = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(parent)));
        let mut attributes = agent_attributes(agent, chain, task);
        attributes.push(KeyValue::new(attribute::MESSAGING_SYSTEM, "nats"));
        Self::start(span::invoke_agent(agent), SpanKind::Consumer, &parent, attributes)
    }

    /// A hand-over, made offline.
    pub(crate) fn delegate(&self, from: &str, to: &str, checks: Vec<String>, task: &TaskId) -> Self {
        let checks: Vec<opentelemetry::StringValue> = checks.into_iter().map(Into::into).collect();
        let mut attributes = task_attributes(task);
        attributes.extend([
            KeyValue::new(attribute::OPENINFERENCE_KIND, "CHAIN"),
            KeyValue::new(attribute::DELEGATION_FROM, from.to_owned()),
            KeyValue::new(attribute::DELEGATION_TO, to.to_owned()),
            KeyValue::new(attribute::DELEGATION_OFFLINE, true),
            KeyValue::new(attribute::DELEGATION_CHECKS, opentelemetry::Value::Array(checks.into())),
        ]);
        self.child(span::delegate(to), SpanKind::Internal, attributes)
    }

    /// A call on a tool.
    pub(crate) fn execute_tool(&self, tool: &str, task: &TaskId) -> Self {
        let mut attributes = task_attributes(task);
        attributes.extend([
            KeyValue::new(attribute::OPENINFERENCE_KIND, "TOOL"),
            KeyValue::new(attribute::OPERATION_NAME, "execute_tool"),
            KeyValue::new(attribute::TOOL_NAME, tool.to_owned()),
            KeyValue::new(attribute::TOOL_TYPE, "extension"),
            KeyValue::new(attribute::MESSAGING_SYSTEM, "nats"),
        ]);
        self.child(span::execute_tool(tool), SpanKind::Client, attributes)
    }

    pub(crate) fn about_task(&self, task: &TaskId) {
        self.context.0.span().set_attributes(task_attributes(task));
    }

    /// Marks the span as failed.
    pub(crate) fn failed(&self, kind: &str, text: &str) {
        let context = &self.context.0;
        context.span().set_attribute(KeyValue::new(attribute::ERROR_TYPE, kind.to_owned()));
        context.span().set_status(Status::error(text.to_owned()));
    }

    /// Where the trace stands, for a message; nothing without a provider.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        let span = self.context.0.span();
        let context = span.span_context();
        context.is_valid().then(|| TraceContext {
            trace: context.trace_id().to_bytes(),
            span: context.span_id().to_bytes(),
            sampled: context.is_sampled(),
        })
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, span) = (TraceId::from_bytes(context.trace), SpanId::from_bytes(context.span));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

fn hex(trace: &[u8; 16]) -> String {
    TraceId::from_bytes(*trace).to_string()
}

fn task_attributes(task: &TaskId) -> Vec<KeyValue> {
    [attribute::SESSION_ID, attribute::CONVERSATION_ID, attribute::TASK]
        .map(|name| KeyValue::new(name, task.to_string()))
        .into()
}

fn agent_attributes(agent: &str, chain: &DelegationChain, task: &TaskId) -> Vec<KeyValue> {
    let agents: Vec<opentelemetry::StringValue> =
        chain.holders().map(|(agent, _)| agent.to_string().into()).collect();
    let depth = i64::try_from(chain.depth()).unwrap_or(i64::MAX);
    let mut attributes = task_attributes(task);
    attributes.extend([
        KeyValue::new(attribute::OPENINFERENCE_KIND, "AGENT"),
        KeyValue::new(attribute::OPERATION_NAME, "invoke_agent"),
        KeyValue::new(attribute::AGENT_ID, agent.to_owned()),
        KeyValue::new(attribute::AGENT_NAME, agent.to_owned()),
        KeyValue::new(attribute::GRAPH_NODE, agent.to_owned()),
        KeyValue::new(attribute::CHAIN, opentelemetry::Value::Array(agents.into())),
        KeyValue::new(attribute::CHAIN_DEPTH, depth),
    ]);
    if let Some(hop) = chain.hops().next_back() {
        attributes.push(KeyValue::new(attribute::GRAPH_PARENT, hop.from.to_string()));
    }
    attributes
}
