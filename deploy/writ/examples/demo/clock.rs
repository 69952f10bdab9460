//! A real MCP server as a governed tool: the reference server for time, from PyPI, as it is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use writ::dev::{
    DevStack, Layout,
    nats_server::{Pins, cache_folder, install_wheels},
    sample, upstreams,
};
use writ_common::{ids::Resource, reason::ReasonCode, time::Millis};
use writ_node::tools::{EnvValue, McpServer, McpSettings};
use writ_sdk::{Agent, Error, NewTask, Right, json};
use writ_upstream::{ProposeOptions, propose};

use crate::story::Voice;

/// What is fetched: the server, and everything it was run with when this was written.
const REQUIREMENTS: &str = include_str!("clock-requirements.txt");
const SERVER: &str = "mcp-server-time 2026.10.19";
const RESOURCE: &str = "tool.clock";
const TOOL: &str = "get_current_time";
const MODULE: &str = "mcp_server_time";

/// Fetches the server into the cache folder, unless it is there.
///
/// # Errors
/// One line that says what is missing.
pub fn fetch() -> Result<PathBuf> {
    let folder = cache_folder()?.join(SERVER.replace(' ', "-"));
    let is_there = || folder.join(MODULE).is_dir();
    if !is_there() {
        let missing = format!("{SERVER} is not in the cache");
        install_wheels(&folder, REQUIREMENTS, Pins::Versions, &missing, is_there)?;
    }
    Ok(folder)
}

/// Puts the server behind the node, its tools into the policy as they are listed, and one of them into a role.
///
/// # Errors
/// If it does not start, or the policy does not take it.
pub async fn serve(root: &Path, installed: &Path) -> Result<()> {
    let layout = Layout::new(root);
    // A text of JSON is one of TOML.
    let path = serde_json::Value::from(installed.display().to_string());
    let text = format!(
        "[[tool]]\nresource = \"{RESOURCE}\"\nkind = \"mcp\"\ncommand = \"python3\"\nargs = [\"-m\", \"{MODULE}\", \
         \"--local-timezone\", \"UTC\"]\nenv = {{ PYTHONPATH = {path} }}\n"
    );
    let folder = upstreams::folder(layout.root());
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("clock.toml"), &text)?;

    sample::write_policies(&layout.policies())?;
    let resource = Resource::parse(RESOURCE)?;
    let settings = McpSettings {
        server: McpServer::Stdio {
            command: "python3".into(),
            args: ["-m", MODULE, "--local-timezone", "UTC"].map(str::to_owned).to_vec(),
            folder: folder.clone(),
            env: BTreeMap::from([("PYTHONPATH".to_owned(), EnvValue::Text(installed.display().to_string()))]),
        },
        timeout: Millis::from_secs(30),
        start_timeout: Millis::from_secs(30),
        bytes_max: 64 * 1024,
    };
    let listing = writ_upstream::list(&resource, &settings).await?;
    let bundle =
        writ_broker::config::read_policies(&layout.policies()).map_err(|found| anyhow!("{found}"))?;
    let proposal = propose(&resource, &listing, &bundle, &ProposeOptions::default())
        .map_err(|found| anyhow!("{found}"))?;
    // The operator has read it: to say what time it is changes nothing, so nobody has to approve it.
    let contract = proposal.contract.replace("effect = \"egress\"", "effect = \"read\"");
    fs::write(layout.policies().join(&proposal.contract_path), contract)?;
    let roles = layout.policies().join("roles.toml");
    let text = fs::read_to_string(&roles)?;
    let with_clock =
        text.replacen("\"tool.crm:read\",", &format!("\"{RESOURCE}:{TOOL}\", \"tool.crm:read\","), 1);
    ensure!(with_clock != text, "the role has no rights to add to");
    Ok(fs::write(&roles, with_clock)?)
}

/// Asks the server what time it is, and for what the task has no right to.
///
/// # Errors
/// If the one is refused, or the other is not.
pub async fn ask(stack: &DevStack, planner: &Agent, kind: &str, voice: Voice) -> Result<()> {
    let new = NewTask::new(kind, stack.tokens.token_for("alice")?, "What time is it in Berlin?");
    let task = planner.start_task(new.rights([Right::parse(&format!("{RESOURCE}:{TOOL}"))?])).await?;
    let told = task.call(RESOURCE, TOOL, json::object([("timezone", "Europe/Berlin".into())])).await?;
    let told: serde_json::Value = serde_json::from_str(&told.to_string())?;
    let answer = told.pointer("/content/0/text").and_then(serde_json::Value::as_str).unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_str(answer).context("the server says no time")?;
    let time =
        answer.get("datetime").and_then(serde_json::Value::as_str).context("the server says no time")?;
    voice.say(format_args!("\nAn MCP server from PyPI, {SERVER}, as it is, behind the node:\n"))?;
    voice.done("planner", &format!("asks it for the time in Berlin: {time}"))?;
    let other = json::object([
        ("source_timezone", "UTC".into()),
        ("target_timezone", "Europe/Berlin".into()),
        ("time", "12:00".into()),
    ]);
    match task.call(RESOURCE, "convert_time", other).await {
        Err(Error::Denied(denial)) if denial.code() == Some(ReasonCode::RightMissing) => {
            voice.denied("planner", "uses another tool of it, which the task was not given", "right.missing")
        }
        other => bail!("another tool of the MCP server is not refused: {other:?}"),
    }
}
