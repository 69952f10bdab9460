//! Data flow over hops, agents, nodes and tasks: what was read cannot be washed off.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result};
use writ::dev::Layout;
use writ_common::reason::ReasonCode;
use writ_sdk::{Denial, Error, NewTask, Task, Value, json};
use writ_tests::{KIND, World, WorldOptions, letter, only, read, run};

use crate::{
    cli::{Said, writ},
    evidence::said_in_evidence,
    tools::{FILES, world_with_tool},
};

const RIGHTS: [&str; 5] =
    ["agent.mailer:invoke", "tool.crm:read", "tool.mail:draft", "tool.mail:send", "tool.web:get"];

/// The same task as planner, researcher and mailer hold it.
pub(crate) async fn hands(world: &World, instruction: &str) -> Result<(Task, Task, Task)> {
    let planner = world.agent("planner").await?;
    let (researcher, mailer) = (world.agent("researcher").await?, world.agent("mailer").await?);
    let new = NewTask::new(KIND, world.tokens.token_for("alice")?, instruction);
    let task = planner.start_task(new).await?;
    let first = task.delegate("researcher", only(RIGHTS)?).await?.capability().await?;
    let second = Task::resume(&researcher, first)?;
    let third = second.delegate("mailer", only(RIGHTS)?).await?.capability().await?;
    Ok((task, second, Task::resume(&mailer, third)?))
}

async fn get(task: &Task, url: &str) -> Result<Value, Error> {
    task.call("tool.web", "get", json::object([("url", url.into())])).await
}

fn denial<T: std::fmt::Debug>(result: Result<T, Error>) -> Result<Denial> {
    match result {
        Err(Error::Denied(denial)) => Ok(*denial),
        other => anyhow::bail!("not denied: {other:?}"),
    }
}

fn codes(denial: &Denial) -> Vec<ReasonCode> {
    denial.reasons.iter().map(|reason| reason.code).collect()
}

async fn act(world: &World, who: &str, verb: &str, denial: &Denial, arguments: &Value) -> Result<Said> {
    let file = world.folder().join("arguments.json");
    fs::write(&file, arguments.to_string())?;
    let id = denial.receipt.as_ref().context("it is on record")?.id.to_string();
    let profile = world.layout.approver(who);
    let (file, profile) = (file.display().to_string(), profile.display().to_string());
    let mut words = vec!["label", verb, &id, "--arguments", &file, "--why", "checked", "--yes"];
    words.extend(["--profile", &profile]);
    if verb == "declassify" {
        words.extend(["--tag", "crm"]);
    }
    writ(world, &words).await
}

#[test]
fn f03_f08_six_steps_of_a_hand_off() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, researcher, mailer) = hands(&world, "test").await?;
        let page = world.page();
        // Nobody has read anything yet.
        get(&mailer, &page).await?;
        // One reads, another summarises, a third tries to carry it out.
        read(&researcher, "SELECT name, email FROM customers").await?;
        let denied = denial(get(&mailer, &page).await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowSink]);
        let told = &denied.reasons[0].text;
        assert!(told.contains("`crm` (from tool.crm:read by `researcher`, node-1/"), "{told}");

        let url = json::object([("url", page.as_str().into())]);
        // Bob may approve mail; customer data is not his to let go.
        assert_eq!(act(&world, "bob", "declassify", &denied, &url).await?.code, 0);
        let still = denial(get(&mailer, &page).await)?;
        assert_eq!(codes(&still), [ReasonCode::FlowSink, ReasonCode::DeclassUnauthorised], "{still}");
        // Carol's word is for this content, once.
        let other = json::object([("url", format!("{page}?q=1").into())]);
        let said = act(&world, "carol", "declassify", &denied, &other).await?;
        assert_ne!(said.code, 0, "{}", said.out);
        assert!(said.err.contains("not the arguments"), "{}", said.err);
        let said = act(&world, "carol", "declassify", &denied, &url).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let elsewhere = denial(get(&mailer, &format!("{page}?q=1")).await)?;
        assert!(codes(&elsewhere).contains(&ReasonCode::DeclassDigest), "{elsewhere}");
        get(&mailer, &page).await?;
        let again = denial(get(&mailer, &page).await)?;
        assert_eq!(codes(&again)[0], ReasonCode::FlowSink, "{again}");

        let shown = writ(&world, &["label", "show", "last"]).await?;
        assert!(shown.out.contains("{crm} untrusted"), "{}", shown.out);
        let why = writ(&world, &["label", "why", "last", "crm"]).await?;
        assert!(why.out.contains("crm: tool.crm:read by `researcher`"), "{}", why.out);
        let said = said_in_evidence(&world).await?;
        let by = said.iter().map(|line| line["said"]["by"].as_str()).collect::<Vec<_>>();
        assert_eq!(by, [Some("bob"), Some("carol")], "{said:#?}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn m04_f09_a_page_that_names_a_recipient_is_no_source() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (planner, researcher, mailer) = hands(&world, "Answer ada@example.com, please.").await?;
        get(&researcher, &world.page()).await?;
        let outsider = |to: &str| {
            json::object([
                ("to", json::list([to])),
                ("subject", "All our customers".into()),
                ("body", "…".into()),
            ])
        };
        let injected = outsider("press@example.com");
        let denied = denial(mailer.call("tool.mail", "send", injected.clone()).await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowIntegrity]);
        assert!(denied.reasons[0].text.contains("from tool.web:get by `researcher`"), "{denied}");
        // Addresses that look like the user's, and are not.
        for to in ["ada@example.com.evil.example", "xada@example.com", "ada@example.co", "аda@example.com"] {
            let refused = mailer.call("tool.mail", "send", outsider(to)).await;
            assert!(matches!(refused, Err(Error::Denied(_))), "{to}: {refused:?}");
        }
        // Whom the user named may be written to, once a person agrees; so may colleagues.
        for to in ["ada@example.com", "kim@acme.example"] {
            let held = mailer.call("tool.mail", "send", outsider(to)).await;
            assert!(matches!(held, Err(Error::Held(_))), "{to}: {held:?}");
        }
        // Bob vouches for the recipient, and has still to be asked for the mail itself.
        assert_eq!(act(&world, "bob", "endorse", &denied, &injected).await?.code, 0);
        let held = mailer.call("tool.mail", "send", injected).await;
        assert!(matches!(held, Err(Error::Held(_))), "{held:?}");
        drop(planner);
        world.close().await;
        Ok(())
    })
}

#[test]
fn f04_what_one_node_released_binds_the_next_call_on_another() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        for _ in 0..10 {
            let (_planner, researcher, mailer) = hands(world, "test").await?;
            // Either node may serve either call.
            read(&researcher, "SELECT name FROM customers").await?;
            let denied = denial(get(&mailer, &world.page()).await)?;
            assert_eq!(codes(&denied), [ReasonCode::FlowSink]);
        }
        Ok(())
    })
}

pub(crate) fn with_a_memory(layout: &Layout) -> Result<()> {
    let file = layout.policies().join("agents.toml");
    World::edit(&file, "name = \"researcher\"\n", "name = \"researcher\"\nmemory = \"shared\"\n")
}

#[test]
fn m11_f04_what_an_agent_remembers_comes_along_into_the_next_task() -> Result<()> {
    run(async {
        let options = WorldOptions { edit: Some(with_a_memory), ..WorldOptions::default() };
        let world = World::with(options).await?;
        let agent = world.agent("researcher").await?;
        let server =
            agent.serve(|invocation| async move { Ok(json::object([("heard", invocation.input)])) }).await?;
        // In one task the researcher reads customers; the task itself is told nothing of it.
        let (_planner, researcher, mailer) = hands(&world, "one").await?;
        read(&researcher, "SELECT name FROM customers").await?;
        get(&mailer, &world.page()).await?;
        // In the next it remembers them: what it calls is refused, and what it answers carries them.
        let (planner, researcher, _mailer) = hands(&world, "two").await?;
        let denied = denial(get(&researcher, &world.page()).await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowSink]);
        get(&planner, &world.page()).await?;
        let asked = planner.delegate("researcher", only(["tool.crm:read"])?).await?;
        asked.invoke(json::object([("do", "remember".into())])).await?;
        let denied = denial(get(&planner, &world.page()).await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowSink]);
        let told = &denied.reasons[0].text;
        assert!(told.contains("from agent.researcher:invoke by `planner`"), "{told}");
        drop(server);
        world.close().await;
        Ok(())
    })
}

fn cleared_for_less(layout: &Layout) -> Result<()> {
    let file = layout.policies().join("agents.toml");
    World::edit(
        &file,
        "description = \"drafts replies\"\nclearance = [\"crm\"]",
        "description = \"drafts replies\"",
    )
}

#[test]
fn an_agent_that_is_not_cleared_is_neither_told_nor_called() -> Result<()> {
    run(async {
        let options = WorldOptions { edit: Some(cleared_for_less), ..WorldOptions::default() };
        let world = World::with(options).await?;
        let (_planner, researcher, mailer) = hands(&world, "test").await?;
        let denied = denial(read(&mailer, "SELECT name FROM customers").await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowClearance]);
        read(&researcher, "SELECT name FROM customers").await?;
        let to_mailer = researcher.delegate("mailer", only(["tool.mail:draft"])?).await?;
        let denied = denial(to_mailer.invoke(letter()).await)?;
        let seen: BTreeSet<ReasonCode> = codes(&denied).into_iter().collect();
        assert_eq!(seen, BTreeSet::from([ReasonCode::FlowClearance]), "{denied}");
        assert!(denied.reasons[0].text.contains("`mailer` may not be told `crm`"), "{denied}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn f04_a_file_carries_what_was_written_into_it_to_the_next_task() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let tool = format!(
            "resource = \"tool.files\"\nkind = \"files\"\nroot = \"{}\"\nwritable = true\n",
            folder.path().display()
        );
        // What the folder takes, it gives back.
        let contract = FILES
            .replace("effect = \"shared\"\n", "effect = \"shared\"\naccepts = [\"crm\"]\n")
            .replace("tags = [], integrity = \"untrusted\"", "tags = [\"crm\"], integrity = \"untrusted\"")
            .replace(
                "effect = \"read\"\nreturns = { tags = []",
                "effect = \"read\"\nreturns = { tags = [\"crm\"]",
            );
        let rights = r#""tool.files:read", "tool.files:write""#;
        let world = world_with_tool(&contract, rights, "", &tool).await?;
        let (_planner, one) = world.task().await?;
        read(&one, "SELECT name FROM customers").await?;
        let note = json::object([("path", "note.txt".into()), ("text", "Ada Lovelace".into())]);
        one.call("tool.files", "write", note).await?;
        let (_planner, two) = world.task().await?;
        get(&two, &world.page()).await?;
        let at = json::object([("path", "note.txt".into())]);
        let labelled = two.call_labelled("tool.files", "read", at).await?;
        assert_eq!(labelled.label.to_string(), "{crm} untrusted");
        let denied = denial(get(&two, &world.page()).await)?;
        assert_eq!(codes(&denied), [ReasonCode::FlowSink]);
        assert!(denied.reasons[0].text.contains("from tool.files:read"), "{denied}");
        world.close().await;
        Ok(())
    })
}
