//! `writ doctor`

use anyhow::Result;
use clap::Args;
use serde_json::json;
use writ_common::{
    subjects::{control_stream, heads_stream, part_stream},
    time::Millis,
    wire::StatusInfo,
};

use super::Common;
use crate::{exit::Exit, operator::Operator};

/// Check bus, broker, nodes and streams
#[derive(Args)]
pub struct Doctor {}

/// A node that has not been heard from for this long cannot act any more.
const SILENT_AFTER: Millis = Millis::from_secs(5);

struct Findings {
    lines: Vec<String>,
    faults: usize,
}

impl Findings {
    fn good(&mut self, text: impl std::fmt::Display) {
        self.lines.push(format!("ok    {text}"));
    }

    fn bad(&mut self, text: impl std::fmt::Display) {
        self.lines.push(format!("FAULT {text}"));
        self.faults += 1;
    }
}

impl Doctor {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let mut findings = Findings { lines: Vec::new(), faults: 0 };
        let profile = common.profile()?;
        let urls = profile.bus_urls.join(", ");
        match Operator::connect(&profile).await {
            Err(error) => findings.bad(format!("{error:#}")),
            Ok(operator) => {
                findings.good(format!("bus {urls}"));
                streams(&operator, &mut findings).await;
                match operator.status().await {
                    Ok(status) => nodes(&status, &mut findings),
                    Err(error) => findings.bad(format!("{error:#}")),
                }
            }
        }
        let answer = json!({"faults": findings.faults, "findings": findings.lines});
        common.say(findings.lines.join("\n"), &answer)?;
        Ok(if findings.faults == 0 { Exit::Ok } else { Exit::Failure })
    }
}

async fn streams(operator: &Operator, findings: &mut Findings) {
    let tenant = operator.tenant();
    let mut streams = vec![control_stream(tenant), heads_stream(tenant)];
    match operator.control().await {
        Ok(control) => streams.extend(control.parts().live().map(|part| part_stream(tenant, part))),
        Err(error) => findings.bad(format!("the control stream: {error:#}")),
    }
    for stream in streams {
        match operator.bus().stream_facts(&stream).await {
            Ok(Some(facts)) => {
                let percent = facts.bytes.saturating_mul(100).checked_div(facts.bytes_max).unwrap_or(0);
                let text = format!("stream {stream}: {} messages, {percent} % full", facts.last_sequence);
                if percent >= 90 { findings.bad(text) } else { findings.good(text) }
            }
            Ok(None) => findings.bad(format!("stream {stream} does not exist; the broker makes it")),
            Err(error) => findings.bad(format!("stream {stream}: {error}")),
        }
    }
}

fn nodes(status: &StatusInfo, findings: &mut Findings) {
    let policy = status.policy.map_or("none".to_owned(), |revision| revision.0.short());
    findings.good(format!("broker: epoch {}, policy {policy}", status.epoch));
    if let (Some(in_force), Some(configured)) = (status.policy, status.configured)
        && in_force != configured
    {
        // Not a fault: what an operator put in force stays, whatever the folder holds.
        findings.good(format!(
            "broker: its policy folder holds {}, which is not in force; `writ policy activate <folder>` puts it there",
            configured.0.short()
        ));
    }
    if status.halted {
        findings.bad("everything is halted; `writ halt --end` ends it");
    }
    if status.nodes.is_empty() {
        findings.bad("no node is enrolled");
    }
    for node in &status.nodes {
        if let Some(fault) = node.fault {
            findings
                .bad(format!("node {}: refuses everything with {fault}; writ explain {fault}", node.node));
        }
        if let Some(fault) = node.policy_fault {
            findings.bad(format!(
                "node {}: did not take a policy ({fault}) and goes on with {}; writ explain {fault}",
                node.node,
                node.policy.map_or("none".to_owned(), |revision| revision.0.short())
            ));
        }
        if let Some(behind) =
            node.policy_behind.filter(|_| node.heard.is_some_and(|heard| heard <= SILENT_AFTER))
        {
            findings.bad(format!(
                "node {}: has decided by policy {} for {behind}, and {policy} is in force; `writ policy show` tells them apart",
                node.node,
                node.policy.map_or("none".to_owned(), |revision| revision.0.short())
            ));
        }
        match (node.heard, node.applied) {
            (Some(heard), Some(applied)) if heard <= SILENT_AFTER => {
                findings.good(format!("node {}: heard {heard} ago, epoch {applied}", node.node));
            }
            (Some(heard), _) => findings.bad(format!("node {}: last heard {heard} ago", node.node)),
            (None, _) => findings.bad(format!("node {}: not heard since the broker started", node.node)),
        }
    }
}
