//! The command line, and what it says to wrong input: what is wrong, where, and what to do.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;
use writ_tests::{World, WorldOptions, run};

use crate::WRIT;

pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn writ_in(folder: &Path, arguments: &[&str]) -> Result<Said> {
    let mut child = Command::new(WRIT)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// Runs `writ` against the shared set-up from another thread, so that the set-up goes on.
pub(crate) async fn writ(world: &World, arguments: &[&str]) -> Result<Said> {
    let folder = world.folder().to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        writ_in(&folder, &arguments)
    })
    .await?
}

#[test]
fn a_task_can_be_started_looked_at_followed_and_halted() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let started = writ(
            &world,
            &["task", "start", "customer-answer", "--user", "alice", "--agent", "planner", "-o", "json"],
        )
        .await?;
        assert_eq!(started.code, 0, "{}", started.err);
        let started: serde_json::Value = serde_json::from_str(&started.out)?;
        let task = started["task"].as_str().unwrap();
        let inspected = writ(&world, &["capability", "inspect", ".writ/task.cap"]).await?;
        assert!(
            inspected.out.contains(task) && inspected.out.contains("may tool.crm:read"),
            "{}",
            inspected.out
        );
        let inspected = writ(&world, &["-o", "json", "capability", "inspect", ".writ/task.cap"]).await?;
        let _: serde_json::Value = serde_json::from_str(&inspected.out)?;
        let shown = writ(&world, &["task", "show", "last", "-o", "json"]).await?;
        let shown: serde_json::Value = serde_json::from_str(&shown.out)?;
        assert_eq!(shown["task"], task);
        let halted = writ(&world, &["task", "halt", "last", "--wait"]).await?;
        assert_eq!(halted.code, 0, "{}", halted.err);
        let chain = writ(&world, &["audit", "chain", "last", "-o", "json"]).await?;
        let chain: serde_json::Value = serde_json::from_str(&chain.out)?;
        assert_eq!(chain["chain"]["task"], task);
        assert!(chain["gaps"].as_array().unwrap().is_empty());
        let tail = writ(&world, &["audit", "tail", "--no-follow", "-n", "3", "-o", "json"]).await?;
        assert_eq!(tail.out.lines().count(), 3);
        for line in tail.out.lines() {
            let _: serde_json::Value = serde_json::from_str(line)?;
        }
        for arguments in [
            &["agent", "list"][..],
            &["agent", "show", "planner"],
            &["tools", "list"],
            &["tools", "show", "tool.crm"],
            &["policy", "check", ".writ/policies"],
            &["config", "check", ".writ/broker.toml"],
            &["config", "check", ".writ/node-1.toml"],
            &["explain", "token.holder_mismatch"],
            &["explain"],
            &["doctor"],
        ] {
            let said = writ(&world, arguments).await?;
            assert_eq!((said.code, said.out.is_empty()), (0, false), "{arguments:?}: {}", said.err);
            let json = writ(&world, &[arguments, &["-o", "json"]].concat()).await?;
            assert_eq!(json.code, 0, "{arguments:?}: {}", json.err);
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&json.out);
            assert!(parsed.is_ok(), "{arguments:?}: {}", json.out);
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn an_auditor_reads_why_and_what_to_do() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        writ_tests::read(&task, "DELETE FROM customers").await.unwrap_err();
        let said = writ(&world, &["audit", "chain", "last"]).await?;
        assert!(said.out.contains("DENY"), "{}", said.out);
        assert!(said.out.contains("sql.not_read_only:"), "{}", said.out);
        assert!(
            said.out.contains("help: ") && said.out.contains("(writ explain sql.not_read_only)"),
            "{}",
            said.out
        );
        world.close().await;
        Ok(())
    })
}

#[test]
fn unknown_names_are_named_with_what_there_is() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        for (arguments, code, parts) in [
            (&["tools", "show", "tool.nope"][..], 1, &["tool.nope", "tool.crm"][..]),
            (&["agent", "show", "nobody"], 1, &["nobody", "planner"]),
            (
                &["task", "start", "customer-answer", "--user", "carol", "--agent", "planner"],
                1,
                &["carol", "alice"],
            ),
            (
                &["task", "start", "customer-answer", "--user", "alice", "--agent", "nobody"],
                1,
                &["nobody", "writ agent enroll"],
            ),
            (
                &["task", "start", "no-such", "--user", "alice", "--agent", "planner"],
                2,
                &["grant.not_allowed", "no-such"],
            ),
            (
                &["task", "start", "customer-answer", "--user", "bob", "--agent", "planner"],
                2,
                &["grant.not_allowed"],
            ),
            (&["task", "show", "t-nope"], 2, &["task.unknown"]),
            (&["task", "halt", "T.*"], 1, &["T.*"]),
            (
                &["agent", "withdraw-key", "planner", "00000000000000000000000000000000"],
                2,
                &["agent.key_unknown"],
            ),
            (&["explain", "no.such"], 1, &["no.such"]),
            (&["capability", "inspect", "/etc/hostname"], 1, &["/etc/hostname"]),
            (&["capability", "inspect", "/nope"], 1, &["/nope"]),
            (&["doctor", "--profile", "/nope.toml"], 1, &["/nope.toml", "writ dev"]),
            (&["frob"], 64, &["frob"]),
            (&["key", "new"], 64, &["<FILE>"]),
        ] {
            let said = writ(world, arguments).await?;
            assert_eq!(said.code, code, "{arguments:?}: {}", said.err);
            for part in parts {
                assert!(said.err.contains(part), "{arguments:?}: {}", said.err);
            }
            assert!(!said.err.contains("panicked"), "{}", said.err);
        }
        Ok(())
    })
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once_with_its_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(
        folder.path().join("broker.toml"),
        "tenant = \"Not A Tenant\"\n[broker]\nname = 7\nstat = \"x\"\n[bus]\nurls = []\n[[issuer]]\nalgorithms = [\"HS256\", \"RS256\"]\n",
    )?;
    for command in [&["broker", "--config", "broker.toml"][..], &["config", "check", "broker.toml"]] {
        let said = writ_in(folder.path(), command)?;
        assert_eq!(said.code, 3, "{}", said.err);
        for part in ["broker.toml:1:", "broker.toml:3:", "broker.toml:4:", "stat", "broker.toml:8:", "help:"]
        {
            assert!(said.err.contains(part), "{part}: {}", said.err);
        }
    }
    fs::write(folder.path().join("node.toml"), "tenant = \"acme\"\n[node\n")?;
    let said = writ_in(folder.path(), &["node", "--config", "node.toml"])?;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("node.toml:2:"), "{}", said.err);
    let said = writ_in(folder.path(), &["node", "--config", "nope.toml"])?;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("nope.toml"), "{}", said.err);
    Ok(())
}

#[test]
fn every_fault_of_a_policy_is_told_at_once_with_its_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    writ::dev::sample::write_policies(&folder.path().join("policies"))?;
    let file = folder.path().join("policies/planes/20-action.datalog");
    let mut text = fs::OpenOptions::new().append(true).open(&file)?;
    writeln!(
        text,
        "\ndeny if resuorce(\"tool.crm\");\ndeny if caller($a), $a == \"x\";\ndeny if caller(\"a\", \"b\");"
    )?;
    let said = writ_in(folder.path(), &["policy", "check", "policies"])?;
    assert_eq!(said.code, 3, "{}", said.err);
    for part in [
        "20-action.datalog:10:",
        "resuorce",
        "resource",
        "20-action.datalog:11:",
        "===",
        "20-action.datalog:12:",
    ] {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
    fs::write(&file, "")?;
    fs::write(folder.path().join("policies/base.datalog"), "")?;
    let said = writ_in(folder.path(), &["policy", "check", "policies"])?;
    assert_eq!(said.code, 3, "an empty policy allows nothing, and says so: {}{}", said.out, said.err);
    Ok(())
}

/// The mistakes operators make most, each told with its place and the way out.
#[test]
fn mistakes_in_a_policy_are_told_with_a_way_out() -> Result<()> {
    for (rule, message, help) in [
        ("deny if resuorce(\"tool.crm\");", "there is no predicate `resuorce`", "did you mean `resource`?"),
        ("deny if caller(\"planner\", 2);", "`caller` has 1 terms, not 2", "caller(name: text)"),
        ("deny if caller($a), $a == \"planner\";", "`==` compares values of different types", "write `===`"),
        ("allow if true;", "fires on every request of every kind", "request(\"call\")"),
        ("deny if role(\"analyst\"), resource(\"tool.crm\");", "can never fire", "Predicates"),
        ("deny if depth($n), $n > 3, $n < 2;", "within all its bounds", "exchanged"),
        ("deny if caller($a) resource(\"tool.crm\");", "expected `,` or `;`", "separated by `,`"),
        ("deny if resource(\"tool.crmm\");", "no contract for `tool.crmm`", "did you mean `tool.crm`?"),
        (
            "deny if resource(\"tool.crm\"), arg(\"/sqll\", $s);",
            "an argument at `/sqll`",
            "did you mean `/sql`?",
        ),
        (
            "deny if resource(\"tool.crm\"), arg(\"/sql\", $s), $s > 5;",
            "compares a text with an integer",
            "engine.error",
        ),
    ] {
        let folder = tempfile::tempdir()?;
        writ::dev::sample::write_policies(&folder.path().join("policies"))?;
        let file = folder.path().join("policies/planes/20-action.datalog");
        writeln!(fs::OpenOptions::new().append(true).open(&file)?, "\n{rule}")?;
        let said = writ_in(folder.path(), &["policy", "check", "policies"])?;
        assert_eq!(said.code, 3, "{rule}: {}{}", said.out, said.err);
        for part in ["20-action.datalog:10:", "^", message, help] {
            assert!(said.err.contains(part), "{rule}: {part}: {}", said.err);
        }
    }
    Ok(())
}

#[test]
fn a_policy_is_tested_by_its_cases() -> Result<()> {
    let folder = tempfile::tempdir()?;
    writ::dev::sample::write_policies(&folder.path().join("policies"))?;
    let said = writ_in(folder.path(), &["policy", "test", "policies", "--strict"])?;
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("0 failed, 0 rules without a case"), "{}", said.out);
    // A rule that fires where the cases say it must not, and one no case fires.
    let file = folder.path().join("policies/planes/20-action.datalog");
    writeln!(
        fs::OpenOptions::new().append(true).open(&file)?,
        "\n/// nobody reads\ndeny if resource(\"tool.crm\");\ndeny if depth($n), $n > 2;"
    )?;
    let said = writ_in(folder.path(), &["policy", "test", "policies"])?;
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    for part in
        ["FAIL the researcher reads", "policy.denied: nobody reads", "no case fired:", "20-action.datalog:12"]
    {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    fs::write(
        folder.path().join("policies/cases.yaml"),
        "- name: x\n  cal: tool.crm:read\n  expect: allow\n",
    )?;
    let said = writ_in(folder.path(), &["policy", "test", "policies"])?;
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    assert!(said.err.contains("cases.yaml:2:3: error: unknown field `cal`"), "{}", said.err);
    let said = writ_in(folder.path(), &["policy", "test", "policies", "--cases", "nowhere.yaml"])?;
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    Ok(())
}

#[test]
fn k01_keys_others_can_read_are_refused() -> Result<()> {
    run(async {
        let world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let state = world.state();
        for (key, command) in [
            ("keys/broker.key", &["broker", "--config", "broker.toml"][..]),
            ("keys/broker.nkey", &["broker", "--config", "broker.toml"]),
            ("keys/node-1.key", &["node", "--config", "node-1.toml"]),
        ] {
            let path = state.join(key);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
            let said = writ_in(&state, command)?;
            assert_eq!(said.code, 1, "{}", said.err);
            assert!(said.err.contains(key) && said.err.contains("chmod 600"), "{}", said.err);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            let real = state.join("real");
            fs::rename(&path, &real)?;
            std::os::unix::fs::symlink(&real, &path)?;
            let said = writ_in(&state, command)?;
            assert_eq!(said.code, 1, "{}", said.err);
            assert!(said.err.contains(key), "{}", said.err);
            fs::remove_file(&path)?;
            fs::rename(&real, &path)?;
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn without_a_bus_the_address_is_named() -> Result<()> {
    run(async {
        let world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let state = world.state();
        let config = state.join("node-1.toml");
        let url = world.nats.url();
        World::edit(&config, &url, "nats://127.0.0.1:1")?;
        let said = writ_in(&state, &["node", "--config", "node-1.toml"])?;
        assert_eq!(said.code, 1, "{}", said.err);
        assert!(said.err.contains("nats://127.0.0.1:1"), "{}", said.err);
        // The handshake of an old server, as far as it gets.
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let old = format!("nats://{}", listener.local_addr()?);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let info = r#"INFO {"server_id":"x","version":"2.9.25","proto":1,"max_payload":1048576,"headers":true,"nonce":"abc"}"#;
                drop(write!(stream, "{info}\r\n+OK\r\nPONG\r\n"));
                std::thread::sleep(std::time::Duration::from_secs(2));
            }
        });
        World::edit(&config, "nats://127.0.0.1:1", &old)?;
        let said = writ_in(&state, &["node", "--config", "node-1.toml"])?;
        assert_eq!(said.code, 1, "{}", said.err);
        assert!(said.err.contains("2.9.25") && said.err.contains("2.11"), "{}", said.err);
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_taken_port_and_an_unusable_folder_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let said = writ_in(folder.path(), &["dev", "--port", &port])?;
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains(&port), "{}", said.err);
    fs::write(folder.path().join("file"), "")?;
    // Not even root can make a folder below a file.
    let said = writ_in(folder.path(), &["dev", "--dir", "file/state"])?;
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("file/state"), "{}", said.err);
    Ok(())
}

#[test]
fn keys_are_made_and_never_overwritten() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let said = writ_in(folder.path(), &["key", "new", "root.key"])?;
    assert_eq!(said.code, 0, "{}", said.err);
    let mode = fs::metadata(folder.path().join("root.key"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = fs::read(folder.path().join("root.key"))?;
    let said = writ_in(folder.path(), &["key", "new", "root.key"])?;
    assert_eq!(said.code, 1, "{}", said.err);
    assert_eq!(fs::read(folder.path().join("root.key"))?, before);
    Ok(())
}
