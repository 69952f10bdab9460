//! Results, refusals and holds in the one form that every framework passes on to its model: a tool result, with
//! `isError` where nothing came of the call (DESIGN section 13: other forms crash or hang some of them).

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, MetaObject};
use serde_json::{Value as Json, json};
use writ_common::{json::Value, label::Label, reason::ReasonCode};
use writ_sdk::{Error, Held, Labelled};

use crate::{META_LABEL, catalogue::Shape};

/// What a call came to, as a tool result.
pub(crate) fn of(outcome: Result<Labelled, Error>, shape: Shape) -> CallToolResult {
    match outcome {
        Ok(labelled) => done(&labelled, shape),
        Err(error) => failed(&error),
    }
}

/// A result as its tool gave it, with its label beside it.
pub(crate) fn done(labelled: &Labelled, shape: Shape) -> CallToolResult {
    let value = json_of(&labelled.value);
    let passed_on = match shape {
        // Whatever is no content block of MCP is shown as the JSON it is.
        Shape::Mcp => serde_json::from_value::<CallToolResult>(value.clone()).ok(),
        Shape::Json => None,
    };
    let mut result = passed_on.unwrap_or_else(|| {
        let mut result = CallToolResult::success(vec![ContentBlock::text(labelled.value.to_string())]);
        // Before 2026-07-28 structured content is an object or nothing.
        result.structured_content = value.is_object().then_some(value);
        result
    });
    let mut meta = MetaObject::default();
    meta.0.insert(META_LABEL.to_owned(), label(&labelled.label));
    result.meta = Some(meta);
    result
}

fn label(label: &Label) -> Json {
    json!({"tags": label.confidentiality.names(), "integrity": label.integrity.as_str()})
}

/// Why nothing came of a call, in words for the model and in fields for programs.
pub(crate) fn failed(error: &Error) -> CallToolResult {
    match error {
        Error::Held(held) => hold(held),
        Error::Denied(denial) => {
            let mut next = "Asking again with the same arguments does not help.".to_owned();
            if let Some(advice) = denial.advice() {
                next = format!("{next} {advice}");
            }
            refused("deny", "Denied", error.code(), &denial.to_string(), &next)
        }
        Error::CouldNotDecide(denial) => refused(
            "undecided",
            "Not decided, and nothing was done",
            error.code(),
            &denial.to_string(),
            "Trying again in a moment may help.",
        ),
        Error::Failed { reason, status } => {
            let next = format!("The effect of the call is `{}`.", status.as_str());
            refused("failed", "Failed", error.code(), &format!("{}: {}", reason.code, reason.text), &next)
        }
        other => refused("error", "Failed", error.code(), &other.to_string(), ""),
    }
}

/// A refusal by the gateway itself, before a node was asked.
pub(crate) fn refused_here(code: ReasonCode, why: &str) -> CallToolResult {
    refused("deny", "Denied", Some(code), &format!("{code}: {why}"), "")
}

fn refused(decision: &str, lead: &str, code: Option<ReasonCode>, why: &str, next: &str) -> CallToolResult {
    let message = format!("{lead}: {why}. {next}");
    let mut fields = JsonObject::new();
    fields.insert("decision".to_owned(), decision.into());
    if let Some(code) = code {
        fields.insert("reason".to_owned(), code.as_str().into());
        fields.insert("help".to_owned(), format!("writ explain {code}").into());
    }
    error(message.trim_end().to_owned(), fields)
}

fn hold(held: &Held) -> CallToolResult {
    let mut fields = JsonObject::new();
    fields.insert("decision".to_owned(), "hold".into());
    fields.insert("reason".to_owned(), ReasonCode::ApprovalNeeded.as_str().into());
    fields.insert("approval".to_owned(), held.approval.as_str().into());
    fields.insert("expires".to_owned(), held.expires.to_string().into());
    error(hold_text(held), fields)
}

/// What a model and the person before it are told of a call that waits.
pub(crate) fn hold_text(held: &Held) -> String {
    format!(
        "Held for approval, nothing was done yet: {held}. Once it is approved, call again with the same arguments; \
         other arguments are another call."
    )
}

fn error(message: String, mut fields: JsonObject) -> CallToolResult {
    fields.insert("message".to_owned(), message.clone().into());
    let mut result = CallToolResult::error(vec![ContentBlock::text(message)]);
    result.structured_content = Some(Json::Object(fields));
    result
}

/// To the JSON type of the protocol library. Both are JSON; the text of one is the text of the other.
pub(crate) fn json_of(value: &Value) -> Json {
    serde_json::from_str(&value.to_string()).unwrap_or(Json::Null)
}

#[cfg(test)]
mod tests {
    use writ_common::label::Integrity;

    use super::*;

    fn labelled(text: &str) -> Labelled {
        let label = Label { integrity: Integrity::Untrusted, ..Label::bottom() };
        Labelled { value: Value::parse(text).unwrap(), label }
    }

    #[test]
    fn content_of_an_mcp_server_is_passed_on_as_it_is() {
        let text = r#"{"content":[{"type":"text","text":"no such order"},{"type":"image","data":"AA==","mimeType":"image/png"}],"isError":true}"#;
        let result = serde_json::to_value(done(&labelled(text), Shape::Mcp)).unwrap();
        assert_eq!(result["isError"], true);
        assert_eq!(result["content"][1]["mimeType"], "image/png");
        assert_eq!(result["_meta"][META_LABEL]["integrity"], "untrusted");
    }

    #[test]
    fn json_of_other_tools_is_text_and_structure() {
        let result = serde_json::to_value(done(&labelled(r#"{"rows":[["Ada"]]}"#), Shape::Json)).unwrap();
        assert_eq!(result["structuredContent"]["rows"][0][0], "Ada");
        assert_eq!(result["content"][0]["text"], r#"{"rows":[["Ada"]]}"#);
        let list = serde_json::to_value(done(&labelled("[1]"), Shape::Json)).unwrap();
        assert!(list.get("structuredContent").is_none());
    }

    #[test]
    fn a_refusal_is_an_error_result_with_its_reason_in_text_and_fields() {
        let result = serde_json::to_value(refused_here(ReasonCode::ToolUnknown, "no tool `x`")).unwrap();
        assert_eq!(result["isError"], true);
        let message = result["structuredContent"]["message"].as_str().unwrap();
        assert!(message.starts_with("Denied: tool.unknown: no tool `x`"), "{message}");
        assert_eq!(result["content"][0]["text"], message);
        assert_eq!(result["structuredContent"]["reason"], "tool.unknown");
    }
}
