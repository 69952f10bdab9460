//! Hands a part of a task to another agent, which has to be serving (see `serve.rs`).
//!
//! ```sh
//! WRIT_USER_TOKEN=… cargo run -p writ-sdk --example delegate -- .writ/agents/planner
//! ```

use writ_sdk::{Agent, Identity, Narrowing, NewTask, Right, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".writ/agents/planner".to_owned());
    let agent = Agent::connect(Identity::load(folder)?).await?;
    let token = std::env::var("WRIT_USER_TOKEN")?;
    let task = agent.start_task(NewTask::new("customer-answer", token, "How many customers?")).await?;

    // Made here, without asking anybody: the researcher may read, and nothing else.
    let only_reading = Narrowing::new().only([Right::parse("tool.crm:read")?]);
    let researcher = task.delegate("researcher", only_reading).await?;
    let answer = researcher.invoke(json::object([("table", "customers".into())])).await?;
    anyhow::ensure!(answer.to_string().contains("[[3]]"), "unexpected: {answer}");
    Ok(())
}
