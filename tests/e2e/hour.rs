//! The first hour with Writ: logging in, adopting the MCP servers an application is configured with, looking at what
//! would be denied, enforcing, and keeping the evidence.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use writ_tests::{World, WritProcess, eventually, read, run};

use crate::{WRIT, cli::writ};

/// What a browser does with one address: status, `Location`, body.
async fn browse(method: &str, address: &str, form: &str) -> Result<(u16, String, String)> {
    let rest = address.strip_prefix("http://").with_context(|| address.to_owned())?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host.parse::<SocketAddr>()?).await?;
    let request = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let location = head.lines().find(|line| line.to_lowercase().starts_with("location: "));
    let location = location.and_then(|line| line.get(10..)).unwrap_or_default().to_owned();
    Ok((status, location, body.to_owned()))
}

/// Waits until a process has said a line that begins so, and returns the rest of it.
async fn told(process: &WritProcess, start: &str) -> Result<String> {
    let mut found = String::new();
    eventually(start, async || {
        let said = process.said();
        let line = said.lines().find_map(|line| line.trim().find(start).and_then(|at| line.trim().get(at..)));
        found = line.unwrap_or_default().to_owned();
        Ok(!found.is_empty())
    })
    .await?;
    Ok(found)
}

fn hidden(page: &str) -> Result<String> {
    let (_, rest) = page.split_once("value=\"").context("no hidden field")?;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

fn login_of(world: &World) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(world.state().join("operator.login.json"))?)?)
}

#[test]
fn a_user_logs_in_by_a_browser_and_the_broker_takes_the_token() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let status = writ(&world, &["login", "--status"]).await?;
        assert!(
            status.code == 1 && status.out.contains("nobody is logged in"),
            "{}{}",
            status.out,
            status.err
        );
        let start = ["task", "start", "customer-answer", "--login", "--agent", "planner"];
        let said = writ(&world, &start).await?;
        assert!(said.code == 1 && said.err.contains("writ login"), "{}{}", said.out, said.err);

        let mut login = WritProcess::start(WRIT, &["login"], world.folder(), "login.log")?;
        let address = told(&login, "http://").await?;
        for part in
            ["code_challenge_method=S256", "state=", "nonce=", "redirect_uri=http%3A%2F%2F127.0.0.1%3A"]
        {
            assert!(address.contains(part), "{part}: {address}");
        }
        let (status, _, page) = browse("GET", &address, "").await?;
        assert!(status == 200 && page.contains("alice"), "{page}");
        let form = format!("page={}&user=alice", hidden(&page)?);
        let (status, back, _) = browse("POST", &format!("{}/authorize", world.idp.url()), &form).await?;
        assert_eq!(status, 303);
        // Somebody else's redirect changes nothing.
        let callback = back.split('?').next().unwrap_or_default();
        let (status, ..) = browse("GET", &format!("{callback}?code=stolen&state=guessed"), "").await?;
        assert_eq!(status, 400);
        let (status, _, page) = browse("GET", &back, "").await?;
        assert!(status == 200 && page.contains("Logged in"), "{page}");
        assert_eq!(login.wait()?, 0, "{}", login.said());
        let file = world.state().join("operator.login.json");
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        assert!(
            !login.said().contains(login_of(&world)?["token"].as_str().unwrap()),
            "no token on the screen"
        );

        let status = writ(&world, &["login", "--status", "-o", "json"]).await?;
        let status: Value = serde_json::from_str(&status.out)?;
        assert_eq!((&status["subject"], &status["refreshable"]), (&"alice".into(), &true.into()));
        let said = writ(&world, &start).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);

        // A token that has ended is refreshed, and the refresh token is another one then.
        let before = login_of(&world)?;
        let text = fs::read_to_string(&file)?;
        let old = format!("\"expires\": {}", before["expires"]);
        assert!(text.contains(&old), "{text}");
        fs::write(&file, text.replace(&old, "\"expires\": 1"))?;
        let said = writ(&world, &start).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let after = login_of(&world)?;
        assert_ne!(before["refresh_token"], after["refresh_token"]);
        assert!(after["expires"].as_u64() > Some(1));

        let said = writ(&world, &["logout"]).await?;
        assert!(said.code == 0 && said.out.contains("the issuer was told"), "{}{}", said.out, said.err);
        assert!(!file.exists());
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_user_logs_in_on_another_device() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let mut login = WritProcess::start(WRIT, &["login", "--device"], world.folder(), "login.log")?;
        let code = told(&login, "type in").await?.replace("type in", "").trim().to_owned();
        let device = format!("{}/device", world.idp.url());
        let (status, ..) = browse("GET", &format!("{device}?user_code=NOPE-NOPE"), "").await?;
        assert_eq!(status, 400);
        let (_, _, page) = browse("GET", &format!("{device}?user_code={code}"), "").await?;
        assert_eq!(hidden(&page)?, code);
        let (status, _, page) = browse("POST", &device, &format!("user_code={code}&user=bob")).await?;
        assert!(status == 200 && page.contains("Logged in"), "{page}");
        assert_eq!(login.wait()?, 0, "{}", login.said());
        assert_eq!(login_of(&world)?["subject"], "bob");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_login_that_cannot_be_used_is_told_with_a_way_out() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let idp = world.idp.url();
        for (arguments, code, part) in [
            (&["login", "--issuer", "http://login.example", "--client-id", "x"][..], 1, "use https://"),
            (&["login", "--issuer", &idp], 64, "--client-id"),
            (&["login", "--issuer", &format!("{idp}/other"), "--client-id", "x"], 1, "404"),
            (&["login", "--profile", "/nope.toml"], 1, "writ dev"),
            (&["task", "start", "x", "--login", "--user", "alice", "--agent", "planner"], 64, "--login"),
        ] {
            let said = writ(world, arguments).await?;
            assert!(
                said.code == code && said.err.contains(part),
                "{arguments:?}: {} {}",
                said.code,
                said.err
            );
        }
        // A token for somebody else's API is not kept.
        let arguments =
            ["login", "--device", "--issuer", &idp, "--client-id", "x", "--audience", "elsewhere"];
        let mut login = WritProcess::start(WRIT, &arguments, world.folder(), "audience.log")?;
        let code = told(&login, "type in").await?.replace("type in", "").trim().to_owned();
        browse("POST", &format!("{idp}/device"), &format!("user_code={code}&user=bob")).await?;
        assert_eq!(login.wait()?, 1);
        assert!(login.said().contains("for `writ`, not for `elsewhere`"), "{}", login.said());
        assert!(!world.state().join("operator.login.json").exists());
        Ok(())
    })
}

fn json_lines(file: &Path) -> Result<Vec<Value>> {
    fs::read_to_string(file)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn the_evidence_of_a_task_is_kept_as_it_was_signed() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT name FROM customers").await?;
        read(&task, "DELETE FROM customers").await.unwrap_err();
        let (_other, other) = world.task().await?;
        read(&other, "SELECT 1").await?;
        let id = task.id().to_string();
        let said = writ(&world, &["audit", "export", "--task", &id, "--out", "kept", "-o", "json"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let kept = world.folder().join("kept");
        let summary: Value = serde_json::from_str(&fs::read_to_string(kept.join("export.json"))?)?;
        let records = json_lines(&kept.join("records.jsonl"))?;
        assert_eq!(summary["records"]["count"], records.len());
        let control = world.operator().await?.control().await?;
        let mut words = Vec::new();
        for line in &records {
            assert!(line["fault"].is_null() && line["subject"].as_str().unwrap().contains(&id), "{line}");
            // The bytes are the signed ones: whoever knows the keys can open them.
            let bytes = decoded(line["payload"].as_str().unwrap());
            let opened = writ::operator::Recorded::open(line["sequence"].as_u64().unwrap(), &bytes, &control);
            assert!(opened.fault.is_none(), "{:?}", opened.fault);
            words.push(opened.kind().unwrap());
        }
        use writ_common::record::RecordKind::{Allow, Deny, Outcome};
        for kind in [Allow, Deny, Outcome] {
            assert!(words.contains(&kind), "{words:?}");
        }
        let policy = summary["policies"][0].as_str().unwrap();
        assert!(kept.join("policies").join(policy).join("base.datalog").exists());
        // From the root's key alone the same keys and the same policy follow.
        let profile = writ::operator::OperatorProfile::load(&world.layout.operator())?;
        let mut state = writ_common::control::ControlState::new(profile.tenant.clone(), profile.root);
        for line in json_lines(&kept.join("control.jsonl"))? {
            let bytes = decoded(line["payload"].as_str().unwrap());
            state.apply(line["sequence"].as_u64().unwrap(), &bytes)?;
        }
        assert!(state.keyset().is_some());
        assert_eq!(state.policy().unwrap().1.revision().0.to_string(), policy);

        let again = writ(&world, &["audit", "export", "--task", "last", "--out", "kept"]).await?;
        assert!(again.code == 1 && again.err.contains("--out"), "{}", again.err);
        let none = writ(&world, &["audit", "export", "--task", "t-nope"]).await?;
        assert!(none.code == 1 && none.err.contains("no record of task t-nope"), "{}", none.err);
        world.close().await;
        Ok(())
    })
}

/// Base64 as RFC 4648 section 4 has it.
fn decoded(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = LETTERS.iter().position(|one| *one == letter).unwrap();
        bits = (bits << 6) | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    bytes
}

#[test]
fn what_is_configured_and_not_governed_is_found() -> Result<()> {
    let home = tempfile::tempdir()?;
    let project = home.path().join("work/app/src");
    fs::create_dir_all(&project)?;
    fs::create_dir_all(home.path().join(".cursor"))?;
    fs::create_dir_all(home.path().join("xdg/Claude"))?;
    let put = |path: &str, text: &str| fs::write(home.path().join(path), text);
    put(
        "work/app/.mcp.json",
        r#"{"mcpServers":{"time":{"command":"uvx","args":["mcp-server-time"],"env":{"K":"s3cret"}}}}"#,
    )?;
    put(
        ".cursor/mcp.json",
        "{\n // mine\n \"mcpServers\": {\"docs\": {\"url\": \"https://docs.example/mcp?key=s3cret\"}}}",
    )?;
    put(
        "xdg/Claude/claude_desktop_config.json",
        r#"{"mcpServers":{"done":{"command":"/opt/writ","args":["mcp"]}}}"#,
    )?;
    let scan = |arguments: &[&str]| -> Result<(i32, String, String)> {
        let output = std::process::Command::new(WRIT)
            .arg("scan")
            .args(arguments)
            .current_dir(&project)
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path().join("xdg"))
            .output()?;
        let text = |bytes| String::from_utf8(bytes);
        Ok((output.status.code().unwrap_or(-1), text(output.stdout)?, text(output.stderr)?))
    };
    let (code, out, err) = scan(&[])?;
    assert_eq!(code, 1, "{out}{err}");
    for part in [
        "Claude Code",
        "NOT GOVERNED time",
        "NOT GOVERNED docs",
        "governed     done",
        "3 MCP servers in 3 files, 2 not governed",
        "next: writ mcp adopt",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (_, json, _) = scan(&["-o", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!((&json["not_governed"], json["servers"].as_array().map(Vec::len)), (&2.into(), Some(3)));
    assert!(!out.contains("s3cret") && !json.to_string().contains("s3cret"), "{out}{json}");

    let done = home.path().join("xdg/Claude/claude_desktop_config.json");
    let (code, out, _) = scan(&[done.to_str().unwrap()])?;
    assert!(code == 0 && out.contains("1 MCP servers in 1 files, 0 not governed"), "{out}");
    put("work/mcp.json", "{\"mcpServers\": {")?;
    let (code, out, _) = scan(&[])?;
    assert!(code == 1 && out.contains("work/mcp.json: line 1"), "{out}");
    let (code, out, _) = scan(&["/nope.json"])?;
    assert!(code == 1 && out.contains("/nope.json: there is no such file"), "{out}");
    Ok(())
}

/// `writ dev` as somebody runs it, in a folder of the test's.
struct Dev {
    folder: tempfile::TempDir,
    process: WritProcess,
}

impl Dev {
    async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("writ-hour-").tempdir()?;
        let process = WritProcess::start(WRIT, &["dev"], folder.path(), "dev.log")?;
        let dev = Self { folder, process };
        dev.ready().await?;
        Ok(dev)
    }

    async fn ready(&self) -> Result<()> {
        eventually("writ dev runs", async || Ok(self.process.said().contains("Ctrl-C stops everything")))
            .await
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path)
    }

    async fn taken_up(&self) -> Result<writ::dev::upstreams::TakenUp> {
        let folder = self.path(".writ/upstreams");
        let mut taken_up = None;
        eventually("the upstreams are taken up", async || {
            let digest = writ::dev::upstreams::digest(&writ::dev::upstreams::read(&folder)?);
            taken_up = writ::dev::upstreams::taken_up(&folder).filter(|taken_up| taken_up.digest == digest);
            Ok(taken_up.is_some())
        })
        .await?;
        taken_up.context("nothing was taken up")
    }
}

#[test]
fn a_development_set_up_takes_up_upstreams_while_it_runs_and_leaves_faulty_ones_out() -> Result<()> {
    run(async {
        let mut dev = Dev::start().await?;
        assert!(dev.taken_up().await?.left_out.is_empty());
        let tool = |file: &str| {
            format!("[[tool]]\nresource = \"tool.extra\"\nkind = \"sqlite\"\nfile = \"{file}\"\n")
        };
        fs::write(dev.path(".writ/upstreams/extra.toml"), tool("data/crm.db"))?;
        assert!(dev.taken_up().await?.left_out.is_empty(), "{}", dev.process.said());
        let node = fs::read_to_string(dev.path(".writ/node-1.toml"))?;
        assert!(node.contains("tool.extra"), "{node}");
        // A file that says nothing sensible, and one of which the node cannot start: the sample tools go on.
        fs::write(dev.path(".writ/upstreams/broken.toml"), "[[tool]]\nkind = \"sqlit\"\n")?;
        let left_out = dev.taken_up().await?.left_out;
        assert!(left_out.len() == 1 && left_out["broken"].contains("sqlite"), "{left_out:?}");
        fs::write(dev.path(".writ/upstreams/extra.toml"), tool("nope/nope.db"))?;
        let left_out = dev.taken_up().await?.left_out;
        assert!(left_out["extra"].contains("does not start"), "{left_out:?}");
        let identity = writ_sdk::Identity::load(dev.path(".writ/agents/planner"))?;
        let planner = writ_sdk::Agent::connect(identity).await?;
        let profile = dev.path(".writ/operator.toml");
        let idp = writ::operator::OperatorProfile::load(&profile)?.idp_url.context("no identity provider")?;
        let (_, _, token) = browse("POST", &format!("{idp}/token"), "user=alice").await?;
        let token: Value = serde_json::from_str(&token)?;
        let token = token["access_token"].as_str().unwrap();
        let task = planner.start_task(writ_sdk::NewTask::new("customer-answer", token, "x")).await?;
        read(&task, "SELECT 1").await?;
        // They are there again at the next start.
        fs::remove_file(dev.path(".writ/upstreams/broken.toml"))?;
        fs::write(dev.path(".writ/upstreams/extra.toml"), tool("data/crm.db"))?;
        assert!(dev.taken_up().await?.left_out.is_empty());
        dev.process.signal(rustix::process::Signal::TERM)?;
        assert_eq!(dev.process.wait()?, 0, "{}", dev.process.said());
        dev.process = WritProcess::start(WRIT, &["dev"], dev.folder.path(), "dev.log")?;
        dev.ready().await?;
        assert!(fs::read_to_string(dev.path(".writ/node-1.toml"))?.contains("tool.extra"));
        Ok(())
    })
}
