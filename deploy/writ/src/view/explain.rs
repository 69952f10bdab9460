//! An explanation as text: what decided, where its facts come from, and what would have had to be otherwise.

use std::fmt::Write as _;

use writ_common::{
    policy::explain::{Explanation, Fired, Lack, Nearest, Proof, RuleText},
    reason::Class,
};

use super::{Colour, colour};

/// Whole lines; `title` says what was asked.
#[must_use]
pub fn render(title: &str, told: &Explanation, colour: Colour) -> String {
    let (word, code) = match told.decision {
        "allow" => ("ALLOW", colour::GREEN),
        _ => ("DENY", colour::RED),
    };
    let mut text = format!("{}  {title}\n", colour.paint(code, word));
    for reason in &told.reasons {
        let noted = reason.noted.as_ref().map(|noted| format!(" [{noted}]")).unwrap_or_default();
        let _ = writeln!(text, "  {}: {}{noted}", colour.paint(code, reason.code.as_str()), reason.told);
    }
    if let Some(fault) = &told.fault {
        let _ = writeln!(text, "\ncannot be evaluated: {}: {}", fault.condition, fault.why);
        rule(&mut text, &fault.rule, "in", colour);
    }
    for fired in &told.rules {
        decided(&mut text, fired, colour);
    }
    let there: Vec<Proof> = told.demands.iter().filter_map(|demand| demand.proof.clone()).collect();
    if !there.is_empty() {
        text.push_str("\nasked of the policy, and there:\n");
        tree(&mut text, &there, &[], "  ", colour);
    }
    for demand in told.demands.iter().filter(|demand| demand.proof.is_none()) {
        let _ = writeln!(text, "\nasked of the policy, and missing: {}", demand.fact);
        match &demand.nearest {
            Some(found) => nearest_rule(&mut text, found, "  ", colour),
            None => text.push_str("  no rule derives it\n"),
        }
    }
    if let Some(found) = &told.nearest {
        let _ = writeln!(text, "\nnearest rule that allows:");
        nearest_rule(&mut text, found, "  ", colour);
    }
    for unknown in &told.unknown {
        let rules = unknown.rules.join(", ");
        let _ = writeln!(text, "\nnot recorded, and looked at by {rules}: {}", unknown.predicate);
    }
    let has_rules = !told.rules.is_empty() || !told.demands.is_empty() || told.nearest.is_some();
    if !has_rules && told.fault.is_none() {
        let undecided = told.reasons.iter().any(|reason| reason.code.class() == Class::CouldNotDecide);
        let _ = writeln!(text, "\nno rule decided this{}", if undecided { "; nobody could say" } else { "" });
    }
    if let Some(reason) = told.reasons.first() {
        let _ = writeln!(text, "\nhelp: {} (writ explain {})", reason.code.page().next, reason.code);
    }
    text
}

fn rule(text: &mut String, rule: &RuleText, word: &str, colour: Colour) {
    let _ = writeln!(text, "{word} {}", colour.paint(colour::BOLD, &rule.place));
    if let Some(message) = &rule.message {
        let _ = writeln!(text, "  /// {message}");
    }
    rule.text.lines().for_each(|line| {
        let _ = writeln!(text, "  {}", line.trim());
    });
}

fn decided(text: &mut String, fired: &Fired, colour: Colour) {
    text.push('\n');
    rule(text, &fired.rule, if fired.effect == "allow" { "allowed by" } else { "denied by" }, colour);
    tree(text, &fired.facts, &fired.conditions, "  ", colour);
}

/// Facts with their sources, then the conditions; what a fact was derived from hangs below it.
fn tree(text: &mut String, facts: &[Proof], conditions: &[String], indent: &str, colour: Colour) {
    let count = facts.len() + conditions.len();
    let width = facts.iter().map(|proof| proof.fact.chars().count()).max().unwrap_or(0).min(48);
    for (position, proof) in (1..).zip(facts) {
        let (branch, below) = if position == count { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let source = colour.paint(colour::DIM, &proof.source);
        let _ = writeln!(text, "{indent}{branch}{:<width$}  {source}", proof.fact);
        let indent = format!("{indent}{below}");
        tree(text, &proof.facts, &proof.conditions, &indent, colour);
    }
    for (position, condition) in (facts.len() + 1..).zip(conditions) {
        let branch = if position == count { "└─ " } else { "├─ " };
        let _ = writeln!(text, "{indent}{branch}{condition}");
    }
}

fn nearest_rule(text: &mut String, nearest: &Nearest, indent: &str, colour: Colour) {
    let _ = writeln!(text, "{indent}{}", colour.paint(colour::BOLD, &nearest.rule.place));
    nearest.rule.text.lines().for_each(|line| {
        let _ = writeln!(text, "{indent}{}", line.trim());
    });
    let _ = writeln!(
        text,
        "{indent}{}",
        if nearest.overruled_by.is_empty() { "but for:" } else { "would have allowed, but for:" }
    );
    for lack in &nearest.lacks {
        match lack {
            Lack::Fact { fact, stated_by, nearest } => {
                let _ = writeln!(text, "{indent}- no {fact}; {stated_by} would state it");
                if let Some(nearest) = nearest {
                    nearest_rule(text, nearest, &format!("{indent}    "), colour);
                }
            }
            Lack::Condition { condition, values, fault } => {
                let why = fault.as_deref().unwrap_or("does not hold");
                let _ =
                    writeln!(text, "{indent}- {values} {}  ({condition})", colour.paint(colour::YELLOW, why));
            }
        }
    }
    for overruling in &nearest.overruled_by {
        let because = overruling.because.join(", ");
        let _ = writeln!(text, "{indent}- {because}  ({} denies)", overruling.place);
    }
}
