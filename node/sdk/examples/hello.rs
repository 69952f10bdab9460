//! Starts a task on a user's authority and calls a tool.
//!
//! ```sh
//! WRIT_USER_TOKEN=… cargo run -p writ-sdk --example hello -- .writ/agents/planner
//! ```

use writ_sdk::{Agent, Identity, NewTask, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".writ/agents/planner".to_owned());
    let agent = Agent::connect(Identity::load(folder)?).await?;
    let token = std::env::var("WRIT_USER_TOKEN")?;
    let task = agent.start_task(NewTask::new("customer-answer", token, "Who is on the pro plan?")).await?;

    let sql = "SELECT name FROM customers WHERE plan = ?1";
    let arguments = json::object([("sql", sql.into()), ("params", json::list(["pro"]))]);
    let rows = task.call("tool.crm", "read", arguments).await?;
    anyhow::ensure!(rows.to_string().contains("Ada"), "unexpected: {rows}");

    // What the grant does not hold is refused, and the error says which control said no.
    let refused = task.call("tool.crm", "drop", json::object([])).await.err();
    anyhow::ensure!(refused.is_some_and(|error| error.code().is_some()), "this should have been refused");
    Ok(())
}
