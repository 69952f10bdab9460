//! Rules of tools that nobody has looked at yet.
//!
//! What would be asked of a person once the tool is enforced stands as a denial as long as it is observed: a call that
//! is only observed is never held, and its record says what would have stood in its way.

use writ_common::ids::{Resource, RoleId};

const WAITS: &str = "has to say yes first";

/// Rules that have people asked, as `writ tools import` proposes them, in the form they have while observing.
#[must_use]
pub fn observed(resource: &Resource, rules: &str) -> String {
    let mut text = format!(
        "// `{resource}` is observed: its calls are done, and their records say what would have denied them. Once\n\
         // `writ enforce {resource}` ends that, people are asked where a denial stands here.\n\
         may_observe(\"{resource}\") <- request(\"call\");\n"
    );
    for line in rules.lines().filter(|line| !line.trim_start().starts_with("//") || line.starts_with("///")) {
        let asked = line.strip_prefix("needs_approval(\"").and_then(|rest| rest.split_once("\", 1) <- "));
        match asked {
            Some((role, body)) => {
                text.push_str(&format!("/// somebody who is `{role}` {WAITS}\ndeny if {body}\n"));
            }
            None => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

/// The same rules once the tool is enforced: whatever else somebody wrote beside them stays.
#[must_use]
pub fn enforced(resource: &Resource, rules: &str) -> String {
    let permission = format!("may_observe(\"{resource}\") <- request(\"call\");");
    let mut lines = rules.lines().peekable();
    let mut text = String::new();
    while let Some(line) = lines.next() {
        let role = line.strip_prefix("/// somebody who is `").and_then(|rest| rest.strip_suffix(WAITS));
        let role = role.and_then(|role| role.strip_suffix("` ")).and_then(|role| RoleId::parse(role).ok());
        let body = lines.peek().and_then(|next| next.strip_prefix("deny if "));
        match role.zip(body) {
            Some((role, body)) => {
                text.push_str(&format!("needs_approval(\"{role}\", 1) <- {body}\n"));
                lines.next();
            }
            None if line == permission || is_head(resource, line) => {}
            None => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

fn is_head(resource: &Resource, line: &str) -> bool {
    line.starts_with(&format!("// `{resource}` is observed: "))
        || line.starts_with(&format!("// `writ enforce {resource}` ends that"))
}

/// A contract in observe mode until a day.
#[must_use]
pub fn with_observe(contract: &str, until: &str) -> String {
    let observe = format!("[observe]\nuntil = \"{until}\"\n\n");
    match contract.find("[[action]]") {
        Some(at) => {
            let (head, actions) = contract.split_at(at);
            format!("{head}{observe}{actions}")
        }
        None => format!("{contract}\n{observe}"),
    }
}

/// A contract without its observe mode; `None` if it has none that could be found.
#[must_use]
pub fn without_observe(contract: &str) -> Option<String> {
    let mut text = String::new();
    let (mut inside, mut found) = (false, false);
    for line in contract.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed == "[observe]" {
            (inside, found) = (true, true);
            continue;
        }
        if inside && trimmed.starts_with('[') {
            inside = false;
        }
        if inside && (trimmed.is_empty() || trimmed.starts_with("until")) {
            continue;
        }
        if !inside
            && trimmed.starts_with("observe")
            && trimmed.trim_start_matches("observe").trim_start().starts_with('=')
        {
            found = true;
            continue;
        }
        text.push_str(line);
    }
    found.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Resource {
        Resource::parse("tool.time").unwrap()
    }

    const IMPORTED: &str = "// Proposed: a person approves every call.\nneeds_approval(\"lead\", 1) <- resource(\"tool.time\"), action(\"now\");\n/// there is nobody yet who could approve it\ndeny if resource(\"tool.time\"), action(\"set\");\n";

    #[test]
    fn who_would_be_asked_stands_as_a_denial_while_observing() {
        let observed = observed(&tool(), IMPORTED);
        for part in [
            "may_observe(\"tool.time\") <- request(\"call\");",
            "/// somebody who is `lead` has to say yes first\ndeny if resource(\"tool.time\"), action(\"now\");",
            "/// there is nobody yet who could approve it\ndeny if resource(\"tool.time\"), action(\"set\");",
        ] {
            assert!(observed.contains(part), "{part}: {observed}");
        }
        assert!(!observed.contains("needs_approval"), "{observed}");
        let own = format!("{observed}// mine\ndeny if resource(\"tool.time\"), hour($h), $h > 20;\n");
        let enforced = enforced(&tool(), &own);
        let expected = "needs_approval(\"lead\", 1) <- resource(\"tool.time\"), action(\"now\");\n/// there is nobody yet who could approve it\ndeny if resource(\"tool.time\"), action(\"set\");\n// mine\ndeny if resource(\"tool.time\"), hour($h), $h > 20;\n";
        assert_eq!(enforced, expected);
    }

    #[test]
    fn observe_mode_is_put_in_and_taken_out_and_nothing_else() {
        let contract = "resource = \"tool.time\"\ndescription = \"x\"\n\n[[action]]\nname = \"now\"\n";
        let with = with_observe(contract, "2026-12-31T00:00:00Z");
        assert!(with.contains("[observe]\nuntil = \"2026-12-31T00:00:00Z\"\n\n[[action]]"), "{with}");
        assert_eq!(without_observe(&with).as_deref(), Some(contract));
        assert_eq!(without_observe(contract), None);
        let inline = "resource = \"tool.time\"\nobserve = { until = \"2026-12-31T00:00:00Z\" }\n[[action]]\n";
        assert_eq!(without_observe(inline).as_deref(), Some("resource = \"tool.time\"\n[[action]]\n"));
    }
}
