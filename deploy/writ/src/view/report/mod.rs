//! One task's evidence as one HTML file, for somebody who has never seen Writ.
//!
//! A pure function of what was recorded. It needs no script, no font, no picture from elsewhere, and prints on A4. It
//! is a reading aid: what it says is proved by the signed records, and it says how to get at those.

mod basis;
mod graph;
mod html;

use std::collections::{BTreeMap, BTreeSet};

use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision, ApprovalRequest, in_words},
    control::Activation,
    digest::Digest,
    evidence,
    ids::{ApprovalId, TaskId, TenantId},
    keys::PublicKey,
    label::Label,
    policy::PolicyBundle,
    record::{
        DecisionId, Origin, Outcome, OutcomeStatus, Record, RecordBody, RecordedDecision, RecordedReason,
        Verdicted,
    },
    time::Timestamp,
};

use super::{chain, records};
use crate::operator::Recorded;
use html::{STYLE, code, escaped, escaped_lines, facts, section};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something does not hold.
    Bad,
    /// Something could not be checked.
    Unsure,
    /// Something was checked and holds.
    Good,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What, in words.
    pub text: String,
}

impl Finding {
    /// What a verification of the evidence comes to, a good end included.
    #[must_use]
    pub fn of_report(report: &evidence::Report) -> Vec<Self> {
        let mut findings: Vec<Self> = report
            .findings
            .iter()
            .map(|finding| Self {
                severity: match finding.severity {
                    evidence::Severity::Fault => Severity::Bad,
                    evidence::Severity::Warning | evidence::Severity::Note => Severity::Unsure,
                },
                text: format!("{}: {} ({})", finding.place, finding.text, finding.code),
            })
            .collect();
        if report.faults == 0 {
            let text = format!(
                "When it was exported, {} records of {} runs were signed by whom they name, and {} of them were in logs \
                 that a broker had witnessed or signed.",
                report.records, report.runs, report.witnessed
            );
            findings.insert(0, Self { severity: Severity::Good, text });
        }
        findings
    }
}

/// Everything a report is made of.
pub struct ReportInput<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The task.
    pub task: &'a TaskId,
    /// When the report is made.
    pub made_at: Timestamp,
    /// Where the records come from, in words.
    pub source: &'a str,
    /// The offline root whose word every key rests on.
    pub root: &'a PublicKey,
    /// The task's records in the order of the stream, and what is wrong with those that are wrong.
    pub recorded: &'a [Recorded],
    /// What the user asked for, if its text is still there; it is shown only if the records have its digest.
    pub instruction: Option<&'a str>,
    /// Requests for approval that are still there.
    pub requests: &'a BTreeMap<Digest, ApprovalRequest>,
    /// What approvers answered, signatures checked.
    pub answers: &'a [ApprovalAnswer],
    /// The policies the verdicts were given by, as far as they are known.
    pub policies: &'a [(Activation, PolicyBundle)],
    /// The keys that signed, as the control stream enrolled them.
    pub keys: &'a [(Origin, PublicKey)],
    /// What a verification found; empty if none was done.
    pub findings: &'a [Finding],
    /// What can be checked, and how: a claim and a command.
    pub checks: &'a [(String, String)],
}

/// The records of a task that are to be believed, each once, and its outcomes.
struct Facts<'a> {
    records: Vec<(u64, &'a Record)>,
    outcomes: BTreeMap<&'a DecisionId, (u64, Timestamp, &'a Outcome)>,
    faults: Vec<(u64, &'a str)>,
}

impl<'a> Facts<'a> {
    fn of(input: &ReportInput<'a>) -> Self {
        let mut facts = Self { records: Vec::new(), outcomes: BTreeMap::new(), faults: Vec::new() };
        let mut seen = BTreeSet::new();
        for recorded in input.recorded {
            if let Some(fault) = &recorded.fault {
                facts.faults.push((recorded.sequence, fault));
                continue;
            }
            let Some(record) = recorded.record.as_ref().filter(|record| record.task() == Some(input.task))
            else {
                continue;
            };
            // A record that came twice happened once.
            if !seen.insert((&record.id, record.kind())) {
                continue;
            }
            if let RecordBody::Outcome(outcome) = &record.body {
                facts.outcomes.insert(&outcome.intent, (recorded.sequence, record.at, outcome));
            }
            facts.records.push((recorded.sequence, record));
        }
        facts
    }

    fn verdicts(&self) -> impl Iterator<Item = (u64, &'a Record, &'a Verdicted)> {
        self.records.iter().filter_map(|(sequence, record)| match &record.body {
            RecordBody::Verdict(verdicted) => Some((*sequence, *record, verdicted.as_ref())),
            RecordBody::Outcome(_) | RecordBody::Void(_) => None,
        })
    }

    fn granted(&self) -> Option<(&'a Record, &'a Verdicted)> {
        let first = self.verdicts().find(|(_, _, one)| one.granted.is_some());
        first.map(|(_, record, verdicted)| (record, verdicted))
    }

    fn without_outcome(&self) -> Vec<(u64, &'a Record, &'a Verdicted)> {
        let calls = self.verdicts().filter(|(_, record, one)| {
            one.decision == RecordedDecision::Allow && matches!(record.id.origin, Origin::Node(_))
        });
        calls.filter(|(_, record, _)| !self.outcomes.contains_key(&record.id)).collect()
    }
}

/// The report, as one HTML file.
#[must_use]
pub fn render(input: &ReportInput<'_>) -> String {
    let known = Facts::of(input);
    let tree = chain::build(input.task, input.recorded);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"referrer\" content=\"no-referrer\">\
         <title>Report on task {}</title><style>{STYLE}</style></head><body>\n",
        escaped(input.task.as_str())
    );
    html += &head(input, &known, &tree);
    html += &findings(input, &known);
    html += &asked(input, &known);
    html += &handed_on(&tree);
    html += &timeline(input, &known);
    html += &people(input, &known);
    html += &data(&known);
    html += &open_calls(&known);
    html += &basis::rules(input, &known);
    html += &basis::keys(input, &known);
    html += &basis::how_to_check(input);
    html + "</body></html>\n"
}

fn plural(count: usize, one: &str, more: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {more}") }
}

fn head(input: &ReportInput<'_>, known: &Facts<'_>, tree: &chain::Chain) -> String {
    let user = tree.user.as_deref().unwrap_or("somebody who is not on record");
    let agent = if tree.root.agent.is_empty() { "no agent" } else { &tree.root.agent };
    let kind = tree.kind.as_deref().unwrap_or("unknown");
    let (allowed, denied, held) = (tree.allowed, tree.denied, tree.held);
    let open = known.without_outcome().len();
    let mut sum = format!(
        "On the authority of {user}, the agent {agent} was given a task of the kind {kind}. {} allowed, {denied} refused, \
         {held} had to wait for people.",
        plural(usize::try_from(allowed).unwrap_or(usize::MAX), "call was", "calls were"),
    );
    if tree.only_observed > 0 {
        sum +=
            &format!(" {} of the allowed ran only because a rule was being tried out.", tree.only_observed);
    }
    if open > 0 {
        sum += &format!(
            " Of {} it is not on record how it ended.",
            plural(open, "allowed call", "allowed calls")
        );
    }
    format!(
        "<h1>What happened in a task of AI agents</h1>\n<p>{}</p>\n{}\
         <p class=\"dim\">Writ decides, each time an agent wants to do something, whether it may, and keeps a signed record \
         of every such decision before anything is done. This report tells those records in words. Times are UTC; a number \
         such as #17 is the record's place in the audit stream.</p>\n",
        escaped(&sum),
        facts(&[
            ("Task", code(input.task.as_str())),
            ("Organisation", code(input.tenant.as_str())),
            ("Report made", escaped(&input.made_at.to_string())),
            ("From", escaped(input.source)),
        ])
    )
}

fn findings(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut html = "<section><h2>Whether this can be believed</h2>\n".to_owned();
    let boxed = |class: &str, text: &str| format!("<div class=\"box {class}\">{}</div>\n", escaped(text));
    for (sequence, fault) in &known.faults {
        html += &boxed(
            "bad",
            &format!("Record #{sequence} is not to be believed and is left out below: {fault}"),
        );
    }
    for finding in input.findings {
        let class = match finding.severity {
            Severity::Bad => "bad",
            Severity::Unsure => "wait",
            Severity::Good => "good",
        };
        html += &boxed(class, &finding.text);
    }
    if input.findings.is_empty() {
        html += &boxed(
            "wait",
            "The signature of each record shown was checked when this report was made. That none is missing was not; the \
             last section says how to check it.",
        );
    }
    html + "</section>\n"
}

fn asked(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut html = "<section><h2>What was asked, and by whom</h2>\n".to_owned();
    let Some((record, verdicted)) = known.granted() else {
        return html + "<p>No grant of this task is among the records.</p></section>\n";
    };
    let Some(granted) = &verdicted.granted else { return html };
    let digest = granted.instruction;
    let text = input.instruction.filter(|text| Digest::plain(text.as_bytes()) == digest);
    let rights: Vec<String> = granted.rights.iter().map(|right| code(&right.to_string())).collect();
    let user = verdicted.who.user.as_ref();
    html += &facts(&[
        ("User", user.map(|user| escaped(user.subject())).unwrap_or_default()),
        ("As the issuer says", user.map(|user| code(user.issuer())).unwrap_or_default()),
        ("Roles", escaped(&granted.roles.join(", "))),
        ("Kind of task", code(granted.kind.as_str())),
        ("Given to", verdicted.who.agent.iter().map(|agent| code(agent.as_str())).collect()),
        ("Granted", escaped(&record.at.to_string())),
        ("Until", format!("{} at the latest", escaped(&granted.deadline.to_string()))),
        ("May be handed on", format!("{} deep", granted.max_depth)),
        ("Rights", rights.join(" ")),
        (
            "Instruction",
            match text {
                Some(text) => format!("<pre>{}</pre>", escaped_lines(text)),
                None => format!(
                    "Its text is not kept with the records. Its SHA-256 is {}: whoever has the text can compare.",
                    code(&digest.to_string())
                ),
            },
        ),
    ]);
    html + "</section>\n"
}

fn handed_on(tree: &chain::Chain) -> String {
    fn collect(agent: &chain::Agent, rows: &mut Vec<Vec<String>>) {
        for delegate in &agent.delegates {
            let kept: Vec<String> = delegate.kept_back.iter().map(|right| code(right)).collect();
            let what = match (delegate.is_outsider, kept.is_empty()) {
                (true, _) => {
                    "<span class=\"v bad\">nothing: it came with what was not its own</span>".to_owned()
                }
                (false, true) => "everything".to_owned(),
                (false, false) => format!("everything but {}", kept.join(" ")),
            };
            rows.push(vec![code(&agent.agent), code(&delegate.agent), what]);
            collect(delegate, rows);
        }
    }
    let mut rows = Vec::new();
    collect(&tree.root, &mut rows);
    let lead = "An agent may hand its task on to another one, with the same rights or fewer, never more. A hand-over shows \
                once a call is made through it.";
    let table = section(
        "Who handed what to whom",
        lead,
        &["From", "To", "Handed on"],
        &rows,
        "Nothing was handed on.",
    );
    // The drawing stands before its table.
    table.replacen("</p>\n", &format!("</p>\n{}", graph::draw(tree)), 1)
}

/// The class and word of a verdict.
fn badge(class: &str, word: &str) -> String {
    format!("<span class=\"v {class}\">{}</span>", escaped(word))
}

fn told(reason: &RecordedReason) -> String {
    let noted = reason.noted.as_ref().map(|noted| format!(" <small>{}</small>", escaped(noted)));
    format!(
        "<p>{} <small>{} {}</small>{}</p>",
        escaped(&reason.told),
        code(reason.code.as_str()),
        escaped(reason.code.page().meaning),
        noted.unwrap_or_default()
    )
}

fn told_all(reasons: &[RecordedReason]) -> String {
    reasons.iter().map(told).collect()
}

fn ended(outcome: &Outcome) -> String {
    let how = match outcome.status {
        OutcomeStatus::Done => "It was done",
        OutcomeStatus::Failed => "It was begun and failed",
        OutcomeStatus::NotRun => "It was not begun",
        OutcomeStatus::UnknownOutcome => "Nobody knows whether it was done",
    };
    let took = outcome.elapsed.map(|elapsed| format!(" in {elapsed}")).unwrap_or_default();
    let reason = outcome.reason.as_ref().map(told).unwrap_or_default();
    format!("<p>{how}{}.</p>{reason}", escaped(&took))
}

fn timeline(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut rows = Vec::new();
    for (sequence, record) in &known.records {
        let (who, what, verdict, why) = match &record.body {
            RecordBody::Outcome(_) => continue,
            RecordBody::Verdict(one) => {
                let (who, what) = who_and_what(record, one);
                let (verdict, why) = verdict_in_words(record, one, known);
                (who, what, verdict, why + &basis::rules_of(input, one))
            }
            RecordBody::Void(void) => (
                escaped(&records::path(&void.who)),
                format!("wanted {}", code(&records::target(&void.what))),
                badge("bad", "not done"),
                format!("<p>It was about to be allowed, and then was not.</p>{}", told(&void.cause)),
            ),
        };
        let at = record.at.to_string();
        let time = at.get(11..23).unwrap_or(&at);
        let day = at.get(..10).unwrap_or_default();
        rows.push(vec![
            format!("{}<br><small>{} #{sequence}</small>", escaped(time), escaped(day)),
            format!("<p>{who} {what}</p>"),
            verdict,
            why,
        ]);
    }
    let lead = "Every decision in the order of the stream. What was allowed stands here before it was done.";
    section(
        "What happened",
        lead,
        &["When", "Who wanted what", "Answer", "Why, and how it ended"],
        &rows,
        "Nothing.",
    )
}

fn who_and_what(record: &Record, one: &Verdicted) -> (String, String) {
    let who = escaped(&records::path(&one.who));
    let count = if one.count > 1 { format!(" ({} times)", one.count) } else { String::new() };
    if let Some(asked) = &one.right {
        return (who, format!("asked for one more right, {}", code(&asked.right.to_string())));
    }
    let target = records::target(&one.what);
    match &record.id.origin {
        Origin::Broker(_) => (who, format!("asked the broker: {}{count}", code(&target))),
        Origin::Node(_) => (who, format!("wanted to do {}{count}", code(&target))),
    }
}

fn verdict_in_words(record: &Record, one: &Verdicted, known: &Facts<'_>) -> (String, String) {
    match one.decision {
        RecordedDecision::Deny => (badge("bad", "refused"), told_all(&one.reasons)),
        RecordedDecision::Hold => {
            let needs = one.approval.as_ref().map(|approval| in_words(&approval.needs)).unwrap_or_default();
            let why = format!("<p>It had to wait for people: {}.</p>", escaped(&needs));
            (badge("wait", "waits"), why + &told_all(&one.reasons))
        }
        RecordedDecision::Allow => {
            let mut why = String::new();
            if let Some(granted) = &one.granted {
                let ends = escaped(&granted.expires.to_string());
                why += &format!("<p>A capability was issued that ends {ends}.</p>");
            }
            if let Some(approval) = one.approval.as_ref().filter(|approval| !approval.by.is_empty()) {
                let by: Vec<&str> = approval.by.iter().map(writ_common::ids::OperatorId::as_str).collect();
                why += &format!("<p>Approved by {}.</p>", escaped(&by.join(", ")));
            }
            for act in &one.acts {
                why += &format!("<p>{} let it pass: {}.</p>", escaped(act.by.as_str()), escaped(&act.what));
            }
            if !one.would_deny.is_empty() {
                why += "<p><span class=\"v wait\">It ran only because the rule against it was being tried out.</span></p>";
                why += &told_all(&one.would_deny);
            }
            why += &match known.outcomes.get(&record.id) {
                Some((_, _, outcome)) => ended(outcome),
                None if matches!(record.id.origin, Origin::Node(_)) => {
                    "<p><span class=\"v wait\">How it ended is not on record.</span></p>".to_owned()
                }
                None => String::new(),
            };
            (badge("good", "allowed"), why)
        }
    }
}

fn people(input: &ReportInput<'_>, known: &Facts<'_>) -> String {
    let mut asked: BTreeMap<&ApprovalId, (&Record, &Verdicted)> = BTreeMap::new();
    for (_, record, one) in known.verdicts() {
        if let Some(approval) = &one.approval {
            asked.entry(&approval.id).or_insert((record, one));
        }
    }
    let mut rows = Vec::new();
    for (id, (record, one)) in asked {
        let Some(approval) = &one.approval else { continue };
        let saw = match input.requests.get(&approval.request) {
            Some(request) => format!("<pre>{}</pre>", escaped_lines(&request.arguments)),
            None => {
                "<p>Its text is not there any more, or in a part of the audit stream that was not read.</p>"
                    .to_owned()
            }
        };
        let what = format!(
            "<p>{}</p>{saw}<small>SHA-256 of the arguments {}; of the request {}</small>",
            code(&records::target_of(one)),
            one.what.arguments.map_or_else(|| "?".to_owned(), |digest| code(&digest.to_string())),
            code(&approval.request.to_string())
        );
        let answers: Vec<String> = input
            .answers
            .iter()
            .filter(|answer| answer.approval == *id && answer.request == approval.request)
            .map(|answer| {
                let (class, word) = match answer.decision {
                    ApprovalDecision::Granted => ("good", "yes"),
                    ApprovalDecision::Refused => ("bad", "no"),
                };
                let comment =
                    if answer.comment.is_empty() { String::new() } else { format!(": {}", answer.comment) };
                let (by, at) = (escaped(answer.approver.as_str()), escaped(&answer.at.to_string()));
                format!("<p>{} {by}, {at}{}</p>", badge(class, word), escaped(&comment))
            })
            .collect();
        rows.push(vec![
            escaped(&record.at.to_string()),
            what,
            escaped(&in_words(&approval.needs)),
            if answers.is_empty() { "<p>No answer is on record.</p>".to_owned() } else { answers.concat() },
        ]);
    }
    for (_, record, one) in known.verdicts() {
        for act in &one.acts {
            let what = format!("<p>{}</p><p>{}</p>", code(&records::target_of(one)), escaped(&act.what));
            rows.push(vec![
                escaped(&record.at.to_string()),
                what,
                "to let one call pass".to_owned(),
                code(act.by.as_str()),
            ]);
        }
    }
    let lead = "Where a rule asks for people, exactly what would be done is shown to them, and their answer counts for that \
                and nothing else.";
    section(
        "What people decided",
        lead,
        &["When", "What they were shown", "Needed", "Answers"],
        &rows,
        "Nobody was asked.",
    )
}

fn label(label: &Label) -> String {
    let tags = label.names().into_iter().map(code).collect::<Vec<_>>().join(" ");
    let untrusted = label.integrity == writ_common::label::Integrity::Untrusted;
    if untrusted { format!("{tags} <span class=\"v wait\">untrusted</span>") } else { tags }
}

fn data(known: &Facts<'_>) -> String {
    let bottom = Label::bottom();
    let mut rows = Vec::new();
    for (sequence, record, one) in
        known.verdicts().filter(|(_, record, _)| matches!(record.id.origin, Origin::Node(_)))
    {
        let target = code(&records::target_of(one));
        let who = escaped(&records::path(&one.who));
        if let Some(before) = one.basis.label.as_ref().filter(|label| **label != bottom) {
            let (way, class) = match one.decision {
                RecordedDecision::Allow => ("went to", "good"),
                RecordedDecision::Deny => ("was kept from", "bad"),
                RecordedDecision::Hold => ("waited before", "wait"),
            };
            rows.push((
                sequence,
                vec![format!("#{sequence}"), label(before), badge(class, way), format!("{target}, {who}")],
            ));
        }
        if let Some((sequence, _, outcome)) = known.outcomes.get(&record.id)
            && let Some(carried) = outcome.label.as_ref().filter(|label| **label != bottom)
        {
            rows.push((
                *sequence,
                vec![
                    format!("#{sequence}"),
                    label(carried),
                    badge("", "came from"),
                    format!("{target}, {who}"),
                ],
            ));
        }
    }
    rows.sort_by_key(|(sequence, _)| *sequence);
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    let lead = "Tags say who may see data; untrusted says that somebody outside could have written it. What an agent was \
                given stays with its task: a call made afterwards may carry it, and is decided as if it did.";
    section(
        "Where data came from and went",
        lead,
        &["Number", "Data with", "", "What, and by whom"],
        &rows,
        "Only data that everybody may see was touched.",
    )
}

fn open_calls(known: &Facts<'_>) -> String {
    let open = known.without_outcome();
    let rows: Vec<Vec<String>> = open
        .into_iter()
        .map(|(sequence, record, one)| {
            vec![
                format!("#{sequence}"),
                escaped(&record.at.to_string()),
                code(&records::target_of(one)),
                code(&record.id.to_string()),
            ]
        })
        .collect();
    let lead = "What was allowed is recorded before it is done, and how it ended after. Where the second is missing, nobody \
                can say from the records whether it was done.";
    section(
        "Allowed, and no word how it ended",
        lead,
        &["Number", "When", "What", "Record"],
        &rows,
        "None: every allowed call says how it ended.",
    )
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
