//! In this process, with the exporter that keeps spans in memory.

use anyhow::Result;
use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use writ_sdk::{Value, json};
use writ_tests::{World, only, read, run};

use crate::{Seen, Tree, check_guardrails};

fn seen(span: &SpanData) -> Seen {
    let parent = span.parent_span_id.to_string();
    Seen {
        trace: span.span_context.trace_id().to_string(),
        span: span.span_context.span_id().to_string(),
        parent: (span.parent_span_id != opentelemetry::trace::SpanId::INVALID).then_some(parent),
        name: span.name.to_string(),
        service: String::new(),
        is_error: matches!(span.status, Status::Error { .. }),
        attributes: span
            .attributes
            .iter()
            .map(|attribute| (attribute.key.to_string(), attribute.value.to_string()))
            .collect(),
    }
}

#[test]
fn above_a_refusal_stands_the_chain_of_delegation() -> Result<()> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let mailer = world.agent("mailer").await?;
        let _mailing =
            mailer.serve(|invocation| async move { read(&invocation.task, "SELECT 1").await }).await?;
        let _research = researcher
            .serve(|invocation| async move {
                read(&invocation.task, "SELECT name FROM customers").await?;
                let to = only(["tool.mail:draft"]).map_err(|_| writ_sdk::Error::NotConnected)?;
                // The mailer tries what it was not handed.
                drop(invocation.task.delegate("mailer", to).await?.invoke(json::object([])).await);
                Ok(Value::Null)
            })
            .await?;
        let id = task.id().to_string();
        task.delegate("researcher", writ_sdk::Narrowing::new()).await?.invoke(json::object([])).await?;
        read(&task, "DELETE FROM customers").await.unwrap_err();
        drop(task);
        world.close().await;
        provider.force_flush()?;
        let spans: Vec<Seen> = exporter.get_finished_spans()?.iter().map(seen).collect();
        let tree = Tree::of_task(&spans, &id);
        tree.check();
        check_guardrails(&tree);
        let mut chains: Vec<(String, Vec<String>)> = tree
            .named("DENY ")
            .iter()
            .map(|denial| (denial.attributes["writ.deny.reason"].clone(), tree.agents_above(denial)))
            .collect();
        chains.sort();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            chains,
            [
                ("delegation.widening".to_owned(), names(&["planner", "researcher", "mailer"])),
                ("sql.not_read_only".to_owned(), names(&["planner"])),
            ]
        );
        // What is said of the chain is what the tree shows.
        for verdict in tree.named("ALLOW ").into_iter().chain(tree.named("DENY ")) {
            let Some(chain) = verdict.attributes.get("writ.chain") else { continue };
            let agents = tree.agents_above(verdict);
            assert!(agents.iter().all(|agent| chain.contains(agent.as_str())), "{chain} and {agents:?}");
        }
        for run in tree.named("run ") {
            let above = tree.ancestors(run);
            assert!(
                above[0].name.starts_with("execute_tool ") || above[0].name.starts_with("ALLOW "),
                "{}",
                above[0].name
            );
        }
        Ok(())
    })
}
