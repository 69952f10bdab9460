//! What `writ policy` tells and makes: explanations, formatting, differences, suggestions.

use std::{fs, path::Path};

use anyhow::Result;
use writ_sdk::Task;
use writ_tests::{World, letter, only, read, run};

use crate::cli::{writ, writ_in};

fn sample(folder: &Path) -> Result<()> {
    writ::dev::sample::write_policies(&folder.join("policies"))
}

fn append(file: &Path, text: &str) -> Result<()> {
    Ok(fs::write(file, format!("{}\n{text}\n", fs::read_to_string(file)?))?)
}

#[test]
fn a_case_is_explained_with_its_rule_its_facts_and_what_came_nearest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    sample(folder.path())?;
    let explain = |only: &str, more: &[&str]| {
        let arguments = ["policy", "explain", "--cases", "policies/cases.yaml", "--only", only];
        writ_in(folder.path(), &[&arguments, more].concat())
    };
    let said = explain("does not draft mail", &[])?;
    assert_eq!(said.code, 0, "{}", said.err);
    for part in [
        "DENY  the researcher does not draft mail",
        "denied by planes/20-action.datalog:4",
        "/// only the mailer writes mail",
        "├─ caller(\"researcher\")   capability, hop 1: `planner` handed it to `researcher`",
        "└─ \"researcher\" !== \"mailer\"",
        "planes/10-identity.datalog:7",
        "delegates(\"planner\", \"researcher\")  agents.toml:7",
        "would have allowed, but for:",
        "(planes/20-action.datalog:4 denies)",
        "writ explain policy.denied",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = explain("planner may not hand on", &[])?;
    for part in [
        "missing: may_delegate(\"planner\", \"mailer\")",
        "no delegates(\"planner\", \"mailer\"); agents.toml",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = explain("the mailer does", &["-o", "json"])?;
    let told: serde_json::Value = serde_json::from_str(&said.out)?;
    assert_eq!(told["explanation"]["decision"], "allow");
    assert_eq!(told["explanation"]["rules"][0]["rule"]["place"], "base.datalog:4");
    let said = explain("the", &[])?;
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.err.contains("which case") && said.err.contains("`the mailer does`"), "{}", said.err);
    // One case in a file of its own, under other rules, at another hour.
    append(
        &folder.path().join("policies/planes/20-action.datalog"),
        "allow if request(\"call\"), effect(\"read\"), hour($hour), $hour < 18;",
    )?;
    let base = folder.path().join("policies/base.datalog");
    let text = fs::read_to_string(&base)?;
    fs::write(
        &base,
        text.replace("allow if request(\"call\"), right", "allow if request(\"call\"), hour(3), right"),
    )?;
    fs::write(
        folder.path().join("case.yaml"),
        "name: late\ncall: tool.crm:read\nchain: [planner]\nroles: [analyst]\ntask: customer-answer\narguments: { sql: SELECT 1 }\nat: 2026-01-05T19:30:00Z\nexpect: deny\n",
    )?;
    let said = writ_in(folder.path(), &["policy", "explain", "--case", "case.yaml"])?;
    assert_eq!(said.code, 0, "{}", said.err);
    for part in
        ["policy.no_match", "nearest rule that allows:", "19 < 18", "($hour < 18)", "20-action.datalog:10"]
    {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    Ok(())
}

#[test]
fn rules_are_formatted_or_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    sample(folder.path())?;
    let file = folder.path().join("policies/base.datalog");
    let before = fs::read_to_string(&file)?;
    let said = writ_in(folder.path(), &["policy", "fmt", "--check", "policies"])?;
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
    let ugly = before
        .replace("resource($resource), ", "resource( $resource )\n, ")
        .replace("// What", "\n\n// What");
    fs::write(&file, &ugly)?;
    let said = writ_in(folder.path(), &["policy", "fmt", "--check", "policies"])?;
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.out.contains("would change policies/base.datalog"), "{}", said.out);
    assert_eq!(fs::read_to_string(&file)?, ugly);
    // Not one file is written while another cannot be read.
    let broken = folder.path().join("policies/planes/20-action.datalog");
    append(&broken, "deny if resource(tool);")?;
    let said = writ_in(folder.path(), &["policy", "fmt", "policies"])?;
    assert_eq!(said.code, 3, "{}", said.out);
    assert!(said.err.contains("20-action.datalog:10"), "{}", said.err);
    assert_eq!(fs::read_to_string(&file)?, ugly);
    fs::remove_file(&broken)?;
    let said = writ_in(folder.path(), &["policy", "fmt", "policies"])?;
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::read_to_string(&file)?, before);
    let left: Vec<_> =
        fs::read_dir(folder.path().join("policies"))?.map(|item| item.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{left:?}");
    Ok(())
}

#[test]
fn two_folders_are_compared_without_any_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    sample(folder.path())?;
    let said = writ_in(folder.path(), &["policy", "diff", "policies", "policies", "--offline"])?;
    assert_eq!((said.code, said.out.trim()), (0, "no rule differs"), "{}", said.err);
    writ::dev::sample::write_policies(&folder.path().join("new"))?;
    append(
        &folder.path().join("new/planes/20-action.datalog"),
        "deny if caller(\"researcher\"), resource(\"tool.crm\");",
    )?;
    let arguments = ["policy", "diff", "policies", "new", "--offline", "--cases", "policies/cases.yaml"];
    let said = writ_in(folder.path(), &arguments)?;
    assert_eq!(said.code, 0, "{}", said.err);
    for part in [
        "+ planes/20-action.datalog:10  deny if caller(\"researcher\"), resource(\"tool.crm\")",
        "16 cases, 1 answered otherwise",
        "the researcher reads: allow -> deny: policy.denied",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = writ_in(folder.path(), &["policy", "diff", "policies", "new"])?;
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.err.contains("--offline"), "{}", said.err);
    Ok(())
}

/// A story like the demo's, and what can be made of its records.
#[test]
fn recorded_decisions_are_explained_compared_and_made_into_a_policy() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let mailer = world.agent("mailer").await?;
        let rights = only(["tool.crm:read", "tool.mail:draft"])?;
        let middle =
            Task::resume(&researcher, task.delegate("researcher", rights).await?.capability().await?)?;
        read(&middle, "SELECT name FROM customers").await?;
        read(&middle, "SELECT item FROM orders").await?;
        middle.call("tool.mail", "draft", letter()).await.unwrap_err();
        read(&middle, "DELETE FROM customers").await.unwrap_err();
        let last = only(["tool.mail:draft"])?;
        let last = Task::resume(&mailer, middle.delegate("mailer", last).await?.capability().await?)?;
        last.call("tool.mail", "draft", letter()).await?;

        let tail = writ(&world, &["audit", "tail", "--no-follow", "-n", "100", "-o", "json"]).await?;
        let records: Vec<serde_json::Value> =
            tail.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of = |decision: &str, resource: &str| {
            let found = records.iter().find(|one| {
                let verdict = &one["record"]["body"]["verdict"];
                verdict["decision"] == decision && verdict["what"]["resource"] == resource
            });
            found.unwrap_or_else(|| panic!("no {decision} of {resource}: {}", tail.out)).clone()
        };

        // Explained from the record alone, by number and by id.
        let denied = of("deny", "tool.mail");
        let number = denied["sequence"].to_string();
        let explain = ["policy", "explain", &number, "--policy", ".writ/policies"];
        let said = writ(&world, &explain).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        for part in [
            "DENY  tool.mail:draft by planner > researcher",
            "denied by planes/20-action.datalog:4",
            "capability, hop 1: `planner` handed it to `researcher`",
            "would have allowed, but for:",
        ] {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
        let id = said.out.lines().next().unwrap().rsplit("  ").next().unwrap().to_owned();
        let by_id = writ(&world, &["policy", "explain", &id, "--policy", ".writ/policies"]).await?;
        assert_eq!(by_id.out, said.out, "{}", by_id.err);
        let allowed = of("allow", "tool.mail")["sequence"].to_string();
        let said = writ(&world, &["policy", "explain", &allowed, "--policy", ".writ/policies"]).await?;
        assert!(
            said.out.contains("right(\"tool.mail\", \"draft\")  capability, authority block"),
            "{}",
            said.out
        );
        // A11: its arguments, and no others.
        fs::write(world.folder().join("letter.json"), letter().to_string())?;
        fs::write(world.folder().join("other.json"), "{\"to\": [\"eve@example.net\"]}")?;
        let with = |file: &'static str| [&explain[..], &["--arguments", file]].concat();
        let said = writ(&world, &with("letter.json")).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let said = writ(&world, &with("other.json")).await?;
        assert_eq!(said.code, 1, "{}", said.out);
        assert!(said.err.contains("not the arguments of"), "{}", said.err);

        // Another policy: one rule changes calls, one hangs on what no record holds.
        let new = world.folder().join("new");
        writ::dev::sample::write_policies(&new)?;
        append(
            &new.join("planes/20-action.datalog"),
            "deny if caller(\"mailer\"), resource(\"tool.mail\");\ndeny if resource(\"tool.crm\"), arg(\"/sql\", $sql), $sql.contains(\"orders\");",
        )?;
        let said = writ(&world, &["policy", "explain", &number, "--policy", "new"]).await?;
        assert_eq!(said.code, 1, "{}", said.out);
        assert!(said.err.contains("was decided under revision"), "{}", said.err);
        for arguments in [&["policy", "diff", "new"][..], &["policy", "diff", ".writ/policies", "new"]] {
            let said = writ(&world, arguments).await?;
            assert_eq!(said.code, 0, "{}", said.err);
            for part in [
                "1 x mailer tool.mail:draft: allow -> deny policy.denied  by planes/20-action.datalog:10",
                "not to be said from records",
                "2 x researcher tool.crm:read: allow -> depends on arguments  by planes/20-action.datalog:11",
                "1 x refused for sql.not_read_only, whatever the policy",
            ] {
                assert!(said.out.contains(part), "{arguments:?}: {part}: {}", said.out);
            }
        }
        let same = writ(&world, &["policy", "diff", ".writ/policies"]).await?;
        assert!(same.out.contains("unchanged") && !same.out.contains("->"), "{}", same.out);
        let later = writ(&world, &["policy", "diff", "new", "--since", "2100-01-01T00:00:00Z"]).await?;
        assert!(later.out.contains("0 decisions asked again"), "{}", later.out);

        // A policy of what was done. It holds what it promises, and promises no more.
        let said = writ(&world, &["policy", "suggest", "--out", "suggested"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        for part in [
            "from 3 calls",
            "1 x denied: policy.denied",
            "1 x denied: sql.not_read_only",
            "takes any arguments",
        ] {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
        for arguments in [
            &["policy", "check", "suggested"][..],
            &["policy", "test", "--strict", "suggested"],
            &["policy", "fmt", "--check", "suggested"],
        ] {
            let said = writ(&world, arguments).await?;
            assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        }
        let same = writ(&world, &["policy", "diff", "suggested"]).await?;
        assert!(!same.out.contains("allow -> deny"), "{}", same.out);
        let rules = fs::read_to_string(world.folder().join("suggested/calls.datalog"))?;
        assert_eq!(rules.matches("allow if").count(), 2, "{rules}");
        let again = writ(&world, &["policy", "suggest", "--out", "suggested"]).await?;
        assert_eq!(again.code, 1, "{}", again.out);
        assert!(again.err.contains("is not empty"), "{}", again.err);
        // What a quarantined agent did is not taken for an example.
        let said = writ(&world, &["agent", "quarantine", "mailer"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let said = writ(&world, &["policy", "suggest", "--out", "without"]).await?;
        assert!(said.out.contains("flagged: `mailer` is quarantined"), "{}{}", said.out, said.err);
        assert!(!world.folder().join("without/tools/mail.toml").exists());
        let said = writ(&world, &["policy", "suggest", "--agent", "planner", "--out", "none"]).await?;
        assert_eq!(said.code, 1, "{}", said.out);
        assert!(said.err.contains("no call to suggest a policy from"), "{}", said.err);
        world.close().await;
        Ok(())
    })
}
