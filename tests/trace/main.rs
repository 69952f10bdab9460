//! Traces as an auditor sees them: one tree per task, and above every refusal the chain of delegation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod logs;
mod memory;
mod otlp;

use std::collections::BTreeMap;

/// A span, whoever brought it.
#[derive(Clone, Debug)]
struct Seen {
    trace: String,
    span: String,
    parent: Option<String>,
    name: String,
    service: String,
    is_error: bool,
    attributes: BTreeMap<String, String>,
}

/// Spans of one trace, by id.
struct Tree<'a>(BTreeMap<&'a str, &'a Seen>);

impl<'a> Tree<'a> {
    /// The trace that holds a task.
    fn of_task(spans: &'a [Seen], task: &str) -> Self {
        let about = |span: &&Seen| span.attributes.get("writ.task.id").is_some_and(|id| id == task);
        let trace = &spans.iter().find(about).unwrap().trace;
        Self(
            spans.iter().filter(|span| span.trace == *trace).map(|span| (span.span.as_str(), span)).collect(),
        )
    }

    /// Has one root, and everybody's parent.
    fn check(&self) {
        let roots: Vec<_> = self.0.values().filter(|span| span.parent.is_none()).collect();
        assert_eq!(roots.len(), 1, "{roots:#?}");
        assert!(roots[0].name.starts_with("task "), "{}", roots[0].name);
        for span in self.0.values() {
            let Some(parent) = &span.parent else { continue };
            assert!(self.0.contains_key(parent.as_str()), "{} is an orphan", span.name);
        }
    }

    fn ancestors(&self, span: &Seen) -> Vec<&'a Seen> {
        let mut found = Vec::new();
        let mut at = span.parent.clone();
        while let Some(parent) = at {
            let span = self.0[parent.as_str()];
            found.push(span);
            at = span.parent.clone();
        }
        found
    }

    /// The agents above a span, the first one first.
    fn agents_above(&self, span: &Seen) -> Vec<String> {
        let above = self.ancestors(span);
        let agents = above.iter().rev().filter_map(|span| span.name.strip_prefix("invoke_agent "));
        agents.map(str::to_owned).collect()
    }

    fn named(&self, start: &str) -> Vec<&'a Seen> {
        self.0.values().copied().filter(|span| span.name.starts_with(start)).collect()
    }
}

/// What holds of every trace Writ makes.
fn check_guardrails(tree: &Tree<'_>) {
    for denial in tree.named("DENY ") {
        assert!(denial.is_error, "a refusal stands out");
        assert_eq!(denial.attributes["writ.verdict"], "deny");
        assert_eq!(denial.attributes["openinference.span.kind"], "GUARDRAIL");
        assert!(denial.attributes.contains_key("writ.deny.reason"));
        assert!(denial.attributes.contains_key("writ.audit.seq"));
    }
    for span in tree.0.values() {
        for (name, value) in &span.attributes {
            assert!(!value.contains("eyJ"), "{name} of {} holds a token", span.name);
        }
    }
}
