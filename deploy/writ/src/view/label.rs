//! Labels and what people let pass, as people read them.

use serde_json::{Value as Json, json};
use writ_common::{act::LabelAct, label::DomainLabel, visible::visible};

use super::approval::warnings;

/// A label with its origins.
#[must_use]
pub fn page(sequence: u64, label: &DomainLabel) -> String {
    let mut text = format!("{}  {}  (position {sequence})", label.domain, label.label);
    for (what, origin) in &label.origins {
        text += &format!("\n  {what:<20} {origin}, {}", origin.at);
    }
    text
}

/// The same for programs.
#[must_use]
pub fn to_json(sequence: u64, label: &DomainLabel) -> Json {
    json!({
        "domain": label.domain.to_string(),
        "sequence": sequence,
        "tags": label.label.names(),
        "integrity": label.label.integrity.as_str(),
        "origins": label.origins,
    })
}

/// What is about to be let pass.
#[must_use]
pub fn act(act: &LabelAct, user: &str, arguments: &str) -> String {
    let mut text = format!(
        "{}:{}  for {user}  task {}\n  {}\n  {}  once, until {}",
        act.resource,
        act.action,
        act.task,
        visible(arguments),
        act.kind,
        act.expires
    );
    for warning in warnings(arguments) {
        text += &format!("\n  warning: {warning}");
    }
    text
}
