//! Over the wire: the demo with an OTLP collector of our own behind it.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, any_value},
};
use otlp_prost::Message as _;
use writ_tests::run;

use crate::{Seen, Tree, check_guardrails};

type Spans = Arc<Mutex<Vec<Seen>>>;

pub(crate) fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::ArrayValue(list)) => {
            list.values.iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut spans = spans.lock().unwrap();
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = attributes.iter().find(|attribute| attribute.key == "service.name");
        let service = text(service.and_then(|attribute| attribute.value.as_ref()));
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Seen {
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                name: span.name,
                service: service.clone(),
                is_error: span.status.is_some_and(|status| status.code == 2),
                attributes: span
                    .attributes
                    .iter()
                    .map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref())))
                    .collect(),
            });
        }
    }
    StatusCode::OK
}

#[test]
fn a_collector_gets_whole_traces() -> Result<()> {
    run(async {
        let spans = Spans::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let app = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let demo = Path::new(env!("CARGO_BIN_EXE_writ-under-test")).with_file_name("examples").join("demo");
        let mut command = if demo.exists() {
            tokio::process::Command::new(demo)
        } else {
            let mut cargo = tokio::process::Command::new(env!("CARGO"));
            cargo.args(["demo", "--"]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            cargo
        };
        let output = command
            .arg("--json")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .stdin(Stdio::null())
            .output()
            .await
            .context("the demo does not start")?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.abort();
        let spans = spans.lock().unwrap().clone();
        let tasks: std::collections::BTreeSet<&String> =
            spans.iter().filter_map(|span| span.attributes.get("writ.task.id")).collect();
        assert!(tasks.len() >= 2, "{tasks:?}");
        let mut denials = 0;
        for task in tasks {
            let tree = Tree::of_task(&spans, task);
            tree.check();
            check_guardrails(&tree);
            denials += tree.named("DENY ").len();
        }
        assert!(denials >= 8, "{denials}");
        assert!(spans.iter().all(|span| span.service == "writ-demo"));
        // Every refusal of the demo that belongs to a task has its agents above it.
        let deepest = spans.iter().filter(|span| span.name.starts_with("DENY ")).map(|denial| {
            Tree(
                spans
                    .iter()
                    .filter(|span| span.trace == denial.trace)
                    .map(|span| (span.span.as_str(), span))
                    .collect(),
            )
            .agents_above(denial)
            .join(">")
        });
        assert!(deepest.collect::<Vec<_>>().contains(&"planner>researcher>mailer".to_owned()));
        Ok(())
    })
}
