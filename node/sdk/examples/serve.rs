//! Serves other agents: what a caller handed over is all this agent may do.
//!
//! ```sh
//! cargo run -p writ-sdk --example serve -- .writ/agents/researcher
//! ```

use writ_sdk::{Agent, Error, Identity, Invocation, Value, json};

async fn count(invocation: Invocation) -> Result<Value, Error> {
    let table = invocation.input.get("table").and_then(Value::as_str).unwrap_or("customers");
    let sql = format!("SELECT count(*) FROM {table}");
    // A bad table is refused by the tool's gate, a missing right by the node: neither is this agent's business.
    invocation.task.call("tool.crm", "read", json::object([("sql", sql.into())])).await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".writ/agents/researcher".to_owned());
    let agent = Agent::connect(Identity::load(folder)?).await?;
    agent.serve(count).await?.wait().await;
    Ok(())
}
