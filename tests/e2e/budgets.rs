//! What a task may spend in all, whoever spends it and on whichever node.

use std::io::Write as _;

use anyhow::Result;
use writ::dev::Layout;
use writ_common::reason::ReasonCode;
use writ_sdk::Task;
use writ_tests::{Seen, World, WorldOptions, eventually, only, read, run};

fn ten_reads(layout: &Layout) -> Result<()> {
    let rules = layout.policies().join("planes/20-action.datalog");
    let mut file = std::fs::OpenOptions::new().append(true).open(rules)?;
    Ok(writeln!(file, "budget(\"reads\", 10, 1) <- resource(\"tool.crm\"), action(\"read\");")?)
}

/// A task with two children that were handed the same right.
async fn children(world: &World) -> Result<[Task; 2]> {
    let (_planner, task) = world.task().await?;
    let researcher = world.agent("researcher").await?;
    let mut children = Vec::new();
    for _ in 0..2 {
        let handed = task.delegate("researcher", only(["tool.crm:read"])?).await?.capability().await?;
        children.push(Task::resume(&researcher, handed)?);
    }
    children.try_into().map_err(|_| anyhow::anyhow!("two children"))
}

#[test]
fn d07_two_children_on_two_nodes_spend_one_budget() -> Result<()> {
    run(async {
        let options =
            WorldOptions { nodes: vec!["node-1", "node-2"], edit: Some(ten_reads), ..Default::default() };
        let world = World::with(options).await?;
        let [one, two] = children(&world).await?;
        let calls: Vec<_> = (0..24)
            .map(|number| {
                let task = if number % 2 == 0 { one.clone() } else { two.clone() };
                tokio::spawn(async move { read(&task, "SELECT name FROM customers").await })
            })
            .collect();
        let (mut done, mut exhausted) = (0, 0);
        for call in calls {
            match call.await? {
                Ok(_) => done += 1,
                Err(error) if error.code() == Some(ReasonCode::BudgetExhausted) => exhausted += 1,
                Err(error) => anyhow::bail!("{error}"),
            }
        }
        assert_eq!((done, exhausted), (10, 14));
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        // Another task has a budget of its own.
        let (_planner, other) = world.task().await?;
        read(&other, "SELECT name FROM customers").await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a15_what_a_node_forgets_stands_on_the_bus_and_what_did_not_run_comes_back() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { edit: Some(ten_reads), ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        for _ in 0..9 {
            read(&task, "SELECT name FROM customers").await?;
        }
        // A call that is refused takes nothing.
        for _ in 0..5 {
            assert!(read(&task, "DELETE FROM customers").await.is_err());
        }
        world.stop_node("node-1").await;
        world.start_node("node-1").await?;
        read(&task, "SELECT name FROM customers").await?;
        let error = read(&task, "SELECT name FROM customers").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::BudgetExhausted));
        assert!(error.to_string().contains("10 of 10 is spent"), "{error}");
        world.close().await;
        Ok(())
    })
}

fn seven_rows(layout: &Layout) -> Result<()> {
    let rules = layout.policies().join("planes/20-action.datalog");
    let mut file = std::fs::OpenOptions::new().append(true).open(rules)?;
    Ok(writeln!(file, "budget_rows(\"rows\", 7, 2) <- resource(\"tool.crm\"), action(\"read\");")?)
}

/// A15: rows are paid for before anybody knows how many there are.
#[test]
fn a15_rows_of_a_task_are_counted_on_whichever_node_and_too_many_at_once_stay_there() -> Result<()> {
    run(async {
        let options =
            WorldOptions { nodes: vec!["node-1", "node-2"], edit: Some(seven_rows), ..Default::default() };
        let world = World::with(options).await?;
        let (_planner, task) = world.task().await?;
        let select =
            async |rows: usize| read(&task, &format!("SELECT name FROM customers LIMIT {rows}")).await;
        for _ in 0..4 {
            select(1).await?;
        }
        // Three customers: one more than are let out at once. It ran, so what was set aside is spent.
        let error = select(3).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::BudgetExhausted));
        assert!(error.to_string().contains("3 rows"), "{error}");
        // 6 of 7 are spent, and a call sets two aside.
        let error = select(1).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::BudgetExhausted));
        assert!(error.to_string().contains(" of 7 is spent"), "{error}");
        eventually("what was let out is on record", async || {
            let seen = Seen::read(&world, None).await?;
            let let_out = seen.outcomes().filter(|outcome| outcome.result.is_some());
            Ok(let_out.count() == 4 && seen.outcomes().count() == 5 && seen.missing() == 0)
        })
        .await?;
        world.close().await;
        Ok(())
    })
}
