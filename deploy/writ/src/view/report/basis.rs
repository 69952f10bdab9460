//! What a report rests on: rules, policies, keys, and how to check it.

use std::collections::{BTreeMap, BTreeSet};

use writ_common::{
    policy::{PolicyBundle, PolicyRevision, PolicySet},
    record::{Origin, Verdicted},
};

use super::{
    Facts, ReportInput,
    html::{code, escaped, escaped_lines, section},
    plural,
};

pub(super) fn rules_of(input: &ReportInput<'_>, one: &Verdicted) -> String {
    let known = one.basis.policy.and_then(|revision| bundle_of(input, revision));
    let rule = |place: &String| match known.and_then(|bundle| line_of(bundle, place)) {
        Some(text) => format!("<small>rule {}: {}</small>", code(place), code(text.trim())),
        None => format!("<small>rule {}</small>", code(place)),
    };
    one.basis.rules.iter().map(|place| format!("<p>{}</p>", rule(place))).collect()
}

fn bundle_of<'a>(input: &ReportInput<'a>, revision: PolicyRevision) -> Option<&'a PolicyBundle> {
    let found = input.policies.iter().find(|(activation, _)| activation.revision == revision);
    found.map(|(_, bundle)| bundle)
}

/// The line `file:line` means.
fn line_of<'a>(bundle: &'a PolicyBundle, place: &str) -> Option<&'a str> {
    let (file, line) = place.rsplit_once(':')?;
    let line: usize = line.parse().ok()?;
    bundle.0.get(file)?.lines().nth(line.checked_sub(1)?)
}

pub(super) fn rules(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut used: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (_, _, one) in known.verdicts() {
        if let Some(revision) = one.basis.policy {
            let places = used.entry(revision.to_string()).or_default();
            places.extend(one.basis.rules.iter().map(String::as_str));
        }
    }
    let mut html = "<section><h2>The rules that decided</h2>\n".to_owned();
    if used.is_empty() {
        return html + "<p>No policy was asked.</p></section>\n";
    }
    for (revision, places) in &used {
        let found =
            input.policies.iter().find(|(activation, _)| activation.revision.to_string() == *revision);
        let since = match found {
            Some((activation, _)) => format!(
                "put in force {} by {} (control event #{})",
                escaped(&activation.at.to_string()),
                escaped(&activation.by),
                activation.sequence
            ),
            None => "its files are not at hand".to_owned(),
        };
        html += &format!("<p>Policy {}, {since}</p>\n", code(revision));
        let Some((_, bundle)) = found else { continue };
        let set = PolicySet::load(bundle).ok().map(|(set, _)| set);
        for place in places {
            let info = set.as_ref().and_then(|set| set.rules().iter().find(|rule| rule.place() == **place));
            let message = info.and_then(|rule| rule.message.as_deref()).unwrap_or_default();
            let text =
                info.map(|rule| rule.text.as_str()).or_else(|| line_of(bundle, place)).unwrap_or("not found");
            html +=
                &format!("<p>{} {}</p><pre>{}</pre>\n", code(place), escaped(message), escaped_lines(text));
        }
    }
    html + "</section>\n"
}

pub(super) fn keys(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut rows = vec![vec![
        "offline root".to_owned(),
        code(&input.root.to_string()),
        "Compare it with the one your organisation published: everything else rests on it.".to_owned(),
    ]];
    for (origin, key) in input.keys {
        let signed = known.records.iter().filter(|(_, record)| record.id.origin == *origin).count();
        if signed == 0 {
            continue;
        }
        let kind = match origin {
            Origin::Broker(_) => "broker",
            Origin::Node(_) => "node",
        };
        rows.push(vec![
            format!("{kind} {}", escaped(origin.name())),
            code(&key.to_string()),
            format!("signed {} here", plural(signed, "record", "records")),
        ]);
    }
    section("Keys", "", &["Whose", "Public key", ""], &rows, "")
}

pub(super) fn how_to_check(input: &ReportInput<'_>) -> String {
    let rows: Vec<Vec<String>> =
        input.checks.iter().map(|(claim, command)| vec![escaped(claim), code(command)]).collect();
    let lead = "This file proves nothing by itself; the signed records do. `writ explain <code>` says more of a code.";
    section("How to check this", lead, &["That", "Run"], &rows, "Nothing was said about how to check this.")
}
