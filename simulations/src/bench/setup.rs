//! The set-up that is measured: a development set-up whose quotas are out of the way.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use writ::dev::{DevOptions, DevStack, nats_conf::CoreUser, sample};
use writ_bus::{SystemClock, SystemEntropy, keyfile};
use writ_common::{
    capability::UnverifiedCapability,
    codec::encode,
    entropy::draw,
    ids::{Action, NodeId, Resource, TaskId},
    request::Arguments,
    subjects::Subject,
    wire::UnsignedCall,
};
use writ_sdk::{Identity, Value, json};

/// The node that is measured.
pub const NODE: &str = "node-1";
/// A node in name only: its NATS user is the far end of the baselines.
pub const RESPONDER: &str = "responder";
/// The agent that calls.
pub const AGENT: &str = "planner";
/// What is called.
pub const RESOURCE: &str = "tool.crm";
/// How.
pub const ACTION: &str = "read";
const SQL: &str = "SELECT name FROM customers WHERE id = 1";
/// The same row, with a parameter that says which tag the result is to carry.
const TAGGED: &str = "SELECT name FROM customers WHERE id = 1 AND ?1 <> ''";
/// What it says for none.
pub const NO_TAG: &str = "none";
const TAG_RULE: &str =
    "result_tag($tag) <- resource(\"tool.crm\"), arg(\"/params/0\", $tag), $tag !== \"none\";\n";

/// Starts server and identity provider; broker and node are processes that are started by name later.
pub async fn start(folder: &Path, servers: usize) -> Result<DevStack> {
    write_policies(&folder.join("policies"))?;
    let nodes = vec![NODE.to_owned(), RESPONDER.to_owned()];
    let options = DevOptions { folder: folder.to_owned(), port: None, servers, nodes, start_core: false };
    DevStack::start(options).await
}

/// The sample policies with the largest quota there is: the bucket is not what is measured. The caller may be told
/// anything, and what a result carries is what the call asks for.
fn write_policies(folder: &Path) -> Result<()> {
    sample::write_policies(folder)?;
    let file = folder.join("agents.toml");
    let agents = fs::read_to_string(&file).context("the policies have no agents.toml")?;
    let name = format!("name = \"{AGENT}\"\n");
    let with_quota = format!("{name}quota = {{ per_second = 1000000, burst = 1000000 }}\n");
    let agents = agents.replace(&name, &with_quota).replace("clearance = [\"crm\"]", "clearance = [\"top\"]");
    fs::write(&file, agents)?;
    let contract = folder.join("tools/crm.toml");
    let text = fs::read_to_string(&contract).context("the policies have no contract of the tool")?;
    fs::write(&contract, text.replace("tags = [\"crm\"]", "tags = []"))?;
    Ok(fs::write(folder.join("tags.datalog"), TAG_RULE)?)
}

/// The arguments of every call.
pub fn arguments() -> Value {
    json::object([("sql", SQL.into())])
}

/// Arguments of a call whose result carries a tag.
pub fn tagged(tag: &str) -> Value {
    json::object([("sql", TAGGED.into()), ("params", Value::Array(vec![tag.into()]))])
}

/// One governed call as bytes, with a nonce of its own.
pub fn signed_call(identity: &Identity, capability: &UnverifiedCapability) -> Result<(String, Vec<u8>)> {
    let resource = Resource::parse(RESOURCE)?;
    let call = UnsignedCall {
        capability,
        resource: &resource,
        action: &Action::parse(ACTION)?,
        arguments: &Arguments::new(arguments()),
        handover: None,
        approval: None,
        nonce: draw(&mut SystemEntropy),
        issued_at: SystemClock::new().now().wall,
    };
    let payload = encode(&call.sign(&identity.holder));
    let task = capability.grant().task.clone();
    let subject = Subject::Call { agent: identity.agent.clone(), task, resource };
    Ok((subject.of(&identity.tenant), payload))
}

/// A subject the agent may publish to and only the responder listens on.
pub fn echo_subject(identity: &Identity, task: &TaskId) -> Result<String> {
    let resource = Resource::parse("tool.echo")?;
    Ok(Subject::Call { agent: identity.agent.clone(), task: task.clone(), resource }.of(&identity.tenant))
}

/// A bare client with an agent's credentials: nothing of ours in the way.
pub async fn agent_client(identity: &Identity) -> Result<async_nats::Client> {
    let options = async_nats::ConnectOptions::with_nkey(identity.user.seed().to_owned());
    let options = options.custom_inbox_prefix(identity.inbox_prefix());
    Ok(options.connect(identity.bus_urls.clone()).await?)
}

/// A bare client with the responder's credentials.
pub async fn responder_client(folder: &Path) -> Result<async_nats::Client> {
    let user = keyfile::read_user(&folder.join(format!("keys/{RESPONDER}.nkey")))?;
    let port = fs::read_to_string(folder.join("nats/port")).context("the set-up has no port")?;
    let prefix = CoreUser::Node(NodeId::parse(RESPONDER)?).inbox_prefix();
    let options = async_nats::ConnectOptions::with_nkey(user.seed().to_owned()).custom_inbox_prefix(prefix);
    Ok(options.connect(format!("nats://127.0.0.1:{}", port.trim())).await?)
}
