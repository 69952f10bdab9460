//! A request for approval, as people read it: exactly what would run, the invisible made visible.

use serde_json::{Value as Json, json};
use writ_common::{
    approval::{Approval, ApprovalAnswer, ApprovalDecision, ApprovalRequest, in_words},
    json::Value,
    record::TraceRef,
    time::Timestamp,
    visible::{deceptive, visible},
};

/// Where a request stands, in a word.
#[must_use]
pub fn state(approval: &Approval, now: Timestamp) -> &'static str {
    let answered = |wanted| approval.answers().any(|answer| answer.decision == wanted);
    if approval.is_used() {
        "used"
    } else if answered(ApprovalDecision::Refused) {
        "refused"
    } else if now >= approval.request().expires {
        "expired"
    } else if answered(ApprovalDecision::Granted) {
        "answered"
    } else {
        "waiting"
    }
}

/// One line for a list.
#[must_use]
pub fn line(approval: &Approval, now: Timestamp) -> String {
    let request = approval.request();
    let right = request.right.as_ref().map(|asked| format!("  the right, for {}", asked.life));
    format!(
        "{}  {:<8}  {}:{}{}  for {}  by {}  needs {}",
        request.id,
        state(approval, now),
        request.resource,
        request.action,
        right.unwrap_or_default(),
        visible(request.user.subject()),
        path(approval),
        in_words(&request.needs)
    )
}

fn path(approval: &Approval) -> String {
    approval.request().chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(" > ")
}

/// What a reader could be deceived by, and where.
#[must_use]
pub fn warnings(arguments: &str) -> Vec<String> {
    let Ok(value) = Value::parse_canonical(arguments) else {
        return vec!["the arguments are not canonical JSON".to_owned()];
    };
    let mut found = Vec::new();
    value.for_each_leaf(&mut |path, leaf| {
        found.extend(deceptive(path).into_iter().map(|why| format!("the name {}: {why}", visible(path))));
        if let Value::String(text) = leaf {
            found.extend(deceptive(text).into_iter().map(|why| format!("{} {why}", visible(path))));
        }
    });
    found
}

/// Where what stands: the arguments of a call, or the values a right is bound to, which bring their own pointers.
fn shown_values(request: &ApprovalRequest) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    match (Value::parse_canonical(&request.arguments), &request.right) {
        (Ok(Value::Object(members)), Some(_)) => {
            shown.extend(members.iter().map(|(path, value)| (path.clone(), value.to_string())));
        }
        (Ok(value), _) => {
            value.for_each_leaf(&mut |path, leaf| shown.push((path.to_owned(), leaf.to_string())));
        }
        (Err(_), _) => {}
    }
    shown
}

fn warnings_of_why(request: &ApprovalRequest) -> Vec<String> {
    let why = request.right.as_ref().map(|asked| deceptive(&asked.why)).unwrap_or_default();
    why.into_iter().map(|why| format!("what it says {why}")).collect()
}

/// Everything there is to know before answering.
#[must_use]
pub fn page(approval: &Approval, signed_by_node: bool, now: Timestamp) -> String {
    let request = approval.request();
    let left = request.expires.since(now);
    let mut text = format!(
        "approval   {}\nstate      {}\nneeds      {}\nasked      {} by {}{}\nends       {}{}\nfor        {} ({})\ntask       {}\nchain      {}\n\n",
        request.id,
        state(approval, now),
        in_words(&request.needs),
        request.at,
        request.node,
        match (signed_by_node, &request.right) {
            (true, _) => "",
            (false, None) => "   !! NOT SIGNED BY THIS NODE",
            (false, Some(_)) => "   !! NOT SIGNED BY A BROKER",
        },
        request.expires,
        if left.0 > 0 { format!(" (in {left})") } else { String::new() },
        visible(request.user.subject()),
        visible(request.user.issuer()),
        request.task,
        path(approval),
    );
    text += &match &request.right {
        None => format!("would run  {}:{}\n", request.resource, request.action),
        Some(asked) => format!(
            "would give {}:{}\nto         {} (key {}), which cannot hand it on\nas long as {}, any number of calls\n",
            request.resource,
            request.action,
            path(approval),
            asked.holder.id(),
            asked.life
        ),
    };
    for (path, value) in shown_values(request) {
        text += &format!("  {:<12} {}\n", visible(&path), visible(&value));
    }
    match &request.right {
        None => text += &format!("exactly    {}\n", visible(&request.arguments)),
        Some(asked) => {
            text += match request.arguments.as_str() {
                "{}" => "with       any arguments\n",
                _ => "with       these values, and any others beside\n",
            };
            text += &format!("it says    \"{}\"\n", visible(&asked.why));
        }
    }
    for warning in warnings(&request.arguments).into_iter().chain(warnings_of_why(request)) {
        text += &format!("BEWARE     {warning}\n");
    }
    // A broker does not know the label of a task.
    if request.right.is_none() {
        text += &format!("\ntask label {}", request.label);
        for (what, origin) in &request.origins {
            text += &format!("\n  {what:<12} from {origin}");
        }
        for argument in &request.sources {
            let source = argument.source.as_deref().unwrap_or("NOTHING vouches for it");
            text += &format!("\n  {:<12} is vouched for by: {}", visible(&argument.path), visible(source));
        }
    }
    text += &format!(
        "\npolicy     {} ({})\ndigest     {}\n",
        request.policy.0.short(),
        visible(&request.rules.join(", ")),
        approval.digest()
    );
    for answer in approval.answers() {
        text += &format!("answer     {}\n", answered(&answer));
    }
    if let Some((_, Some(claim))) = approval.claim() {
        text += &format!("used by    {} at {}\n", claim.node, claim.at);
    }
    text
}

fn answered(answer: &ApprovalAnswer) -> String {
    let word = match answer.decision {
        ApprovalDecision::Granted => "granted",
        ApprovalDecision::Refused => "refused",
    };
    let comment = if answer.comment.is_empty() { "" } else { ": " };
    format!("{} {word} at {}{comment}{}", answer.approver, answer.at, visible(&answer.comment))
}

/// The same for programs.
#[must_use]
pub fn to_json(approval: &Approval, now: Timestamp) -> Json {
    let request = approval.request();
    let answers: Vec<Json> = approval
        .answers()
        .map(|answer| {
            json!({"approver": answer.approver, "decision": answer.decision, "at": answer.at.to_string(),
                   "expires": answer.expires.to_string(), "comment": answer.comment})
        })
        .collect();
    json!({
        "approval": request.id,
        "state": state(approval, now),
        "needs": request.needs,
        "asked": request.at.to_string(),
        "expires": request.expires.to_string(),
        "node": request.node,
        "user": {"issuer": request.user.issuer(), "subject": request.user.subject()},
        "task": request.task,
        "chain": request.chain,
        "resource": request.resource,
        "action": request.action,
        "arguments": request.arguments,
        "warnings": warnings(&request.arguments),
        "policy": request.policy,
        "rules": request.rules,
        "digest": approval.digest().to_string(),
        "right": request.right.as_ref().map(|asked| json!({
            "holder": asked.holder.id(), "seconds": asked.life.0 / 1_000, "why": asked.why,
        })),
        "trace": request.trace.as_ref().map(|TraceRef { trace, .. }| trace),
        "answers": answers,
    })
}
