//! The first hour with Writ: logging in, adopting the MCP servers an application is configured with, looking at what
//! would be denied, enforcing, and keeping the evidence.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
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
        assert_eq!(summary["records"], records.len());
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

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn what_is_configured_and_not_governed_is_found() -> Result<()> {
    let home = tempfile::tempdir()?;
    let project = home.path().join("src/app/src");
    fs::create_dir_all(&project)?;
    fs::create_dir_all(home.path().join(".cursor"))?;
    fs::create_dir_all(home.path().join("xdg/Claude"))?;
    let put = |path: &str, text: &str| fs::write(home.path().join(path), text);
    put(
        "src/app/.mcp.json",
        r#"{"mcpServers":{"time":{"command":"uvx","args":["mcp-server-time"],"env":{"K":"s3cret"}}}}"#,
    )?;
    put(
        ".cursor/mcp.json",
        "{\n // mine\n \"mcpServers\": {\"docs\": {\"url\": \"https://docs.example/mcp?key=s3cret\"}}}",
    )?;
    put(
        "xdg/Claude/claude_desktop_config.json",
        &json!({"mcpServers": {"done": {"command": WRIT, "args": ["mcp"]}}}).to_string(),
    )?;
    // A program of somebody else's that has our name.
    put("src/app/src/.mcp.json", r#"{"mcpServers":{"posing":{"command":"./writ","args":["mcp"]}}}"#)?;
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
        "NOT GOVERNED posing",
        "4 servers in 4 files, 3 not governed",
        "next: writ mcp adopt",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (_, json, _) = scan(&["-o", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!((&json["not_governed"], json["servers"].as_array().map(Vec::len)), (&3.into(), Some(4)));
    assert!(!out.contains("s3cret") && !json.to_string().contains("s3cret"), "{out}{json}");

    let done = home.path().join("xdg/Claude/claude_desktop_config.json");
    let (code, out, _) = scan(&[done.to_str().unwrap()])?;
    assert!(code == 0 && out.contains("1 server in 1 file, 0 not governed"), "{out}");
    put("src/mcp.json", "{\"mcpServers\": {")?;
    let (code, out, _) = scan(&[])?;
    assert!(code == 1 && out.contains("src/mcp.json: line 1"), "{out}");
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

const NOTES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/notes_server.py");

/// Fenced blocks of a page, in one language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Every configuration the README shows is read by what would read it.
#[test]
fn configurations_in_the_readme_are_what_their_readers_take() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("README.md"))?;
    let mut seen = 0;
    for block in blocks(&text, "json").into_iter().chain(blocks(&text, "jsonc")) {
        let value = writ::mcp_clients::ClientConfig::read(Path::new("/w/.vscode/mcp.json"), block)?;
        let file = if value.entries.is_empty() || block.contains("mcpServers") {
            "/w/.mcp.json"
        } else {
            "/w/.vscode/mcp.json"
        };
        let config = writ::mcp_clients::ClientConfig::read(Path::new(file), block)?;
        assert!(!config.entries.is_empty(), "{block}");
        let around = writ::mcp_clients::Surroundings {
            folder: "/w".into(),
            home: "/home/a".into(),
            variable: &|name| Some(format!("value of {name}")),
            read: &|path| Err(path.display().to_string()),
        };
        let mut changed = Vec::new();
        for entry in &config.entries {
            if !entry.is_governed(Path::new(WRIT)) {
                let connection = entry.connection(config.client, &around).map_err(anyhow::Error::msg)?;
                let resource = writ::adopt::texts::resource_of(&entry.name).map_err(anyhow::Error::msg)?;
                writ::adopt::texts::upstream(&resource, &connection, Path::new("s"))
                    .map_err(anyhow::Error::msg)?;
            }
            changed.push((entry.clone(), vec!["mcp".to_owned()]));
        }
        let rewritten = config.rewritten(WRIT, &changed)?;
        let again = writ::mcp_clients::ClientConfig::read(Path::new(file), &rewritten)?;
        assert!(again.entries.iter().all(|entry| entry.is_governed(Path::new(WRIT))), "{rewritten}");
        seen += 1;
    }
    for block in blocks(&text, "toml") {
        let node = "tenant = \"acme\"\n[node]\nname = \"n\"\nroot_key = \"ed25519:d2e2c4e5a1078aa9a4bac335f4bf82413c88826eaa777c88717791596ab48220\"\nkey_file = \"k\"\njournal = \"j\"\n[bus]\nurls = [\"nats://127.0.0.1:4222\"]\nuser_file = \"u\"\n";
        assert!(block.contains("[[tool]]"), "no reader is known for\n{block}");
        let files = std::collections::BTreeMap::from([("readme".to_owned(), block.to_owned())]);
        let (_, left_out) = writ::dev::upstreams::combine(Path::new("/w/node.toml"), node, &files);
        assert!(left_out.is_empty(), "{left_out:?}");
        seen += 1;
    }
    assert!(seen >= 2, "{seen} configurations in the README");
    Ok(())
}

/// A configuration with a server that works, one that is the same under another name, one that does not start, and one
/// that asks its user for something.
fn configuration() -> String {
    format!(
        r#"// The team's servers.
{{
  "servers": {{
    "notes": {{
      "type": "stdio",
      "command": "python3", // any will do
      "args": ["{NOTES}"],
      "env": {{ "NOTES_KEY": "s3cret" }},
      "gallery": true,
    }},
    "twin": {{ "command": "python3", "args": ["{NOTES}", "again"] }},
    "gone": {{ "command": "no-such-server" }},
    "asks": {{ "command": "python3", "args": ["{NOTES}"], "env": {{ "KEY": "${{input:notes-key}}" }} }},
  }},
}}
"#
    )
}

impl Dev {
    async fn writ(&self, arguments: &[&str]) -> Result<crate::cli::Said> {
        let folder = self.folder.path().to_owned();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            crate::cli::writ_in(&folder, &arguments)
        })
        .await?
    }

    /// The text of every file that adopting may touch.
    fn state(&self) -> Result<std::collections::BTreeMap<String, String>> {
        let mut found = std::collections::BTreeMap::new();
        let mut folders =
            vec![self.path(".writ/policies"), self.path(".writ/upstreams"), self.path(".writ/agents")];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(&folder)? {
                let path = item?.path();
                let is_mark = path.file_name().is_some_and(|name| name == ".taken-up.json");
                if path.is_dir() {
                    folders.push(path);
                } else if !is_mark {
                    found.insert(path.display().to_string(), fs::read_to_string(&path)?);
                }
            }
        }
        Ok(found)
    }

    /// Connects as the program would: by the entry's command and arguments.
    async fn client(&self, file: &str, name: &str) -> Result<writ_tests::mcp::McpClient> {
        let path = self.path(file);
        let text = fs::read_to_string(&path)?;
        let config = writ::mcp_clients::ClientConfig::read(&path, &text)?;
        let entry = config.entries.iter().find(|entry| entry.name == name).context("no entry")?;
        let command = entry.value["command"].as_str().context("no command")?;
        let arguments = entry.value["args"].as_array().context("no arguments")?;
        let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
        writ_tests::mcp::McpClient::stdio(command, &arguments, self.folder.path()).await
    }
}

#[test]
fn the_first_hour() -> Result<()> {
    run(async {
        let dev = Dev::start().await?;
        fs::create_dir(dev.path(".vscode"))?;
        let (file, original) = (".vscode/mcp.json", configuration());
        fs::write(dev.path(file), &original)?;
        let before = dev.state()?;
        let dry = dev.writ(&["mcp", "adopt", file, "--dry-run"]).await?;
        assert_eq!(dry.code, 0, "{}{}", dry.out, dry.err);
        assert_eq!((dev.state()?, fs::read_to_string(dev.path(file))?), (before.clone(), original.clone()));

        let said = dev.writ(&["mcp", "adopt", file, "--days", "7"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        for part in [
            "1 of 4 servers adopted as agent `vscode`",
            "tool.notes: read_note, send_note",
            "gone             left as it was: `no-such-server` cannot be started",
            "twin             left as it was: 2 of its tools cannot be offered: `read_note` is left out: agents could take it for",
            "${env:NOTES_KEY}",
        ] {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
        assert_eq!(fs::read_to_string(dev.path(".vscode/mcp.json.writ-backup"))?, original);
        let text = fs::read_to_string(dev.path(file))?;
        for part in [
            "// The team's servers.",
            "\"gallery\": true",
            "\"type\": \"stdio\"",
            "\"gone\": { \"command\": \"no-such-server\" }",
            "${input:notes-key}",
            "\"tool.notes\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
        let secret = dev.path(".writ/upstreams/notes/NOTES_KEY");
        assert_eq!(fs::metadata(&secret)?.permissions().mode() & 0o777, 0o600);
        for (path, text) in dev.state()? {
            assert!(path.ends_with("NOTES_KEY") || !text.contains("s3cret"), "{path}");
        }
        let again = dev.writ(&["mcp", "adopt", file]).await?;
        assert!(again.code == 0 && again.out.contains("adopted already"), "{}{}", again.out, again.err);

        // The program as it was: the same tools under the same names, and its calls are done.
        let client = dev.client(file, "notes").await?;
        let mut tools = client.tools().await?;
        tools.sort();
        assert_eq!(tools, ["read_note", "send_note"]);
        let called = client.call("send_note", serde_json::json!({"name": "plan", "to": "bob"})).await?;
        assert!(
            !called.is_error() && called.text().contains("with the key 6 letters long"),
            "{}",
            called.text()
        );
        let chain = dev.writ(&["audit", "chain", "last"]).await?;
        for part in [
            "ALLOW tool.notes:send_note",
            "{public} untrusted",
            "WOULD DENY policy.denied: somebody who is `tool-approver` has to say yes first",
            "help: ",
        ] {
            assert!(chain.out.contains(part), "{part}: {}", chain.out);
        }

        let dry = dev.writ(&["enforce", "tool.notes", "--dry-run"]).await?;
        assert!(
            dry.code == 0 && dry.out.contains("1 x vscode tool.notes:send_note  WOULD DENY"),
            "{}{}",
            dry.out,
            dry.err
        );
        let wrong = dev.writ(&["enforce", "tool.crm"]).await?;
        assert!(wrong.code == 1 && wrong.err.contains("not observed"), "{}", wrong.err);
        let said = dev.writ(&["enforce", "--all"]).await?;
        assert!(said.code == 0 && said.out.contains("tool.notes enforced"), "{}{}", said.out, said.err);
        let ask = serde_json::json!({"name": "plan", "to": "eve"});
        let held = client.call("send_note", ask.clone()).await?;
        assert!(held.is_error() && held.text().contains("tool-approver"), "{}", held.text());
        let waiting = dev.writ(&["approval", "list", "-o", "json"]).await?;
        let waiting: Value = serde_json::from_str(&waiting.out)?;
        let id = waiting[0]["id"].as_str().or(waiting[0]["approval"].as_str()).context("no id")?.to_owned();
        let granted = dev.writ(&["approval", "grant", &id, "--yes", "--profile", ".writ/bob.toml"]).await?;
        assert_eq!(granted.code, 0, "{}{}", granted.out, granted.err);
        let mut done = None;
        eventually("the approved call is done", async || {
            let called = client.call("send_note", ask.clone()).await?;
            done = Some(called.text());
            Ok(!called.is_error())
        })
        .await?;
        assert!(done.unwrap_or_default().contains("send_note plan"));
        client.close().await?;

        // Undoing leaves nothing, and the file is what it was to the byte.
        fs::write(dev.path(file), format!("{text}\n"))?;
        let undo = ["mcp", "adopt", file, "--undo"];
        let refused = dev.writ(&undo).await?;
        assert!(refused.code == 1 && refused.err.contains("--force"), "{}{}", refused.out, refused.err);
        fs::write(dev.path(file), &text)?;
        let undone = dev.writ(&undo).await?;
        assert_eq!(undone.code, 0, "{}{}", undone.out, undone.err);
        assert_eq!(fs::read_to_string(dev.path(file))?, original);
        assert_eq!(dev.state()?, before);
        assert!(!dev.path(".vscode/mcp.json.writ-backup").exists());
        assert!(dev.taken_up().await?.left_out.is_empty());
        let nothing = dev.writ(&undo).await?;
        assert!(nothing.code == 1 && nothing.err.contains("was not adopted"), "{}", nothing.err);
        Ok(())
    })
}

#[test]
fn an_adoption_that_cannot_be_finished_changes_nothing() -> Result<()> {
    run(async {
        let dev = Dev::start().await?;
        let original = format!(r#"{{"mcpServers":{{"notes":{{"command":"python3","args":["{NOTES}"]}}}}}}"#);
        fs::write(dev.path(".mcp.json"), &original)?;
        let adopt = ["mcp", "adopt", ".mcp.json"];
        for (arguments, part) in [
            (&["mcp", "adopt", "nope.json"][..], "nope.json cannot be read"),
            (&["mcp", "adopt", ".mcp.json", "--role", "nobody"], "no role `nobody`"),
            (&["mcp", "adopt", ".mcp.json", "--profile", "nope.toml"], "writ dev"),
            (&["mcp", "adopt", ".mcp.json", "--undo"], "was not adopted"),
        ] {
            let said = dev.writ(arguments).await?;
            assert!(said.code == 1 && said.err.contains(part), "{arguments:?}: {}{}", said.out, said.err);
        }
        // A backup of something else is not overwritten.
        fs::write(dev.path(".mcp.json.writ-backup"), "{}")?;
        let said = dev.writ(&adopt).await?;
        assert!(said.code == 1 && said.err.contains("not overwritten"), "{}", said.err);
        fs::remove_file(dev.path(".mcp.json.writ-backup"))?;
        // What somebody changed in the policy folder is not put in force by the way.
        let rules = dev.path(".writ/policies/base.datalog");
        let text = fs::read_to_string(&rules)?;
        fs::write(&rules, format!("{text}// mine\n"))?;
        let said = dev.writ(&adopt).await?;
        assert!(said.code == 1 && said.err.contains("writ policy diff"), "{}", said.err);
        fs::write(&rules, text)?;
        // The last step but one fails: all that was done before is taken back.
        fs::rename(dev.path(".writ/keys/bootstrap.nkey"), dev.path("bootstrap.nkey"))?;
        let before = dev.state()?;
        let said = dev.writ(&adopt).await?;
        assert!(said.code == 1 && said.err.contains("nothing else is left"), "{}{}", said.out, said.err);
        assert_eq!((fs::read_to_string(dev.path(".mcp.json"))?, dev.state()?), (original.clone(), before));
        assert!(!dev.path(".mcp.json.writ-backup").exists());
        fs::rename(dev.path("bootstrap.nkey"), dev.path(".writ/keys/bootstrap.nkey"))?;
        // A second program with the same server shares it; the first one's end leaves it to the second.
        fs::create_dir(dev.path(".cursor"))?;
        fs::write(dev.path(".cursor/mcp.json"), &original)?;
        for file in [".mcp.json", ".cursor/mcp.json"] {
            let said = dev.writ(&["mcp", "adopt", file]).await?;
            assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        }
        let said = dev.writ(&["mcp", "adopt", ".mcp.json", "--undo"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let client = dev.client(".cursor/mcp.json", "notes").await?;
        let called = client.call("read_note", serde_json::json!({"name": "plan"})).await?;
        assert!(!called.is_error(), "{}", called.text());
        client.close().await?;
        // Everything was set up and the file not swapped, as after a crash: it begins again, and comes to its end.
        fs::write(dev.path(".cursor/mcp.json"), &original)?;
        let said = dev.writ(&["mcp", "adopt", ".cursor/mcp.json"]).await?;
        assert!(
            said.code == 0 && said.out.contains("1 of 1 servers adopted as agent `cursor`"),
            "{}{}",
            said.out,
            said.err
        );
        let said = dev.writ(&["mcp", "adopt", ".cursor/mcp.json", "--undo"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert_eq!(fs::read_to_string(dev.path(".cursor/mcp.json"))?, original);
        Ok(())
    })
}
