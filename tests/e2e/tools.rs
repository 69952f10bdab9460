//! What tools let through, as agents meet it.

use anyhow::Result;
use writ::dev::Layout;
use writ_common::reason::ReasonCode;
use writ_sdk::{Error, Task, Value, json};
use writ_tests::{Answered, PostgresServer, RawCall, Seen, SmtpServer, World, WorldOptions, read, run};

async fn refused(task: &Task, sql: &str, code: ReasonCode) {
    let error = read(task, sql).await.unwrap_err();
    assert_eq!(error.code(), Some(code), "{sql}: {error}");
}

#[test]
fn a01_a02_a03_only_one_select_gets_through() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        refused(&task, "SELECT 1; DROP TABLE customers", ReasonCode::SqlMultiStatement).await;
        for sql in [
            "DELETE FROM customers",
            "WITH gone AS (SELECT 1) DELETE FROM customers",
            "EXPLAIN DELETE FROM customers",
            "PRAGMA writable_schema = ON",
            "ATTACH DATABASE '/tmp/x' AS x",
            "VACUUM INTO '/tmp/x'",
            "SELECT load_extension('x')",
            "SELECT writefile('/tmp/x', 'x')",
            "SELECT * FROM pragma_table_info('customers')",
        ] {
            let error = read(&task, sql).await.unwrap_err();
            assert!(
                matches!(error.code(), Some(ReasonCode::SqlNotReadOnly | ReasonCode::SqlUnparsable)),
                "{sql}: {error}"
            );
        }
        refused(&task, "SELECT /*!50000 1", ReasonCode::SqlUnparsable).await;
        let rows = read(&task, "SELECT count(*) FROM customers").await?;
        assert_eq!(rows.get("rows").unwrap().to_string(), "[[3]]", "nothing is gone");
        Ok(())
    })
}

/// Rules in policies/examples/select-on-named-tables, in force on a real node.
#[test]
fn a02_policy_says_which_tables_and_columns_a_select_reads() -> Result<()> {
    const RULES: &str = include_str!("../../policies/examples/select-on-named-tables/rules.datalog");
    run(async {
        let edit = |layout: &Layout| Ok(std::fs::write(layout.policies().join("tables.datalog"), RULES)?);
        let world = World::with(WorldOptions { edit: Some(edit), ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        for sql in [
            "SELECT * FROM orders",
            "SELECT c.name, o.item FROM customers c JOIN orders o ON o.customer = c.id",
            "SELECT count(*) FROM customers",
        ] {
            read(&task, sql).await?;
        }
        for (sql, says) in [
            ("SELECT email FROM customers", "only number, name and plan"),
            ("SELECT name FROM customers ORDER BY note", "only number, name and plan"),
            ("SELECT * FROM customers", "only number, name and plan"),
            ("SELECT x FROM (SELECT email AS x FROM customers)", "only number, name and plan"),
            (
                "WITH orders AS (SELECT email FROM customers) SELECT * FROM orders",
                "only number, name and plan",
            ),
            ("SELECT 1 FROM salaries", "only orders and customers"),
        ] {
            let error = read(&task, sql).await.unwrap_err();
            assert_eq!(error.code(), Some(ReasonCode::PolicyDenied), "{sql}: {error}");
            assert!(error.to_string().contains(says), "{sql}: {error}");
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn a12_arguments_are_exactly_what_the_contract_says() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let mut codes = Vec::new();
        for arguments in [
            json::object([("sql", "SELECT 1".into()), ("as_user", "root".into())]),
            json::object([]),
            json::object([("sql", 1.into())]),
        ] {
            codes.push(task.call("tool.crm", "read", arguments).await.unwrap_err().code().unwrap());
        }
        assert_eq!(codes, [ReasonCode::ArgUnknown, ReasonCode::ArgMissing, ReasonCode::ArgInvalid]);
        Ok(())
    })
}

#[test]
fn a06_a07_arguments_and_messages_have_one_form() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let capability = task.capability().await?;
        let arguments = json::object([("sql", "SELECT 1".into())]);
        let call = RawCall::new(&planner, &capability, "tool.crm", "read", arguments)?;
        for (text, code) in [
            (r#"{"sql":"SELECT 1","sql":"SELECT 2"}"#, ReasonCode::ArgDuplicateKey),
            (r#"{ "sql":"SELECT 1"}"#, ReasonCode::ArgEncoding),
            (r#"{"sql":1e400}"#, ReasonCode::ArgNumber),
        ] {
            let mut call = call.clone();
            call.call.arguments = text.to_owned();
            call.resign(&planner.identity().holder, &capability);
            assert_eq!(call.send(&bus).await?, Answered::Denied(code), "{text}");
        }
        let mut bytes = call.payload();
        bytes.push(0xc0);
        let answer = RawCall::send_bytes(&bus, call.subject(), bytes).await?;
        assert_eq!(answer, Answered::Denied(ReasonCode::CodecNonCanonical));
        let answer = RawCall::send_bytes(&bus, call.subject(), b"GET / HTTP/1.1".to_vec()).await?;
        assert!(matches!(answer, Answered::Denied(ReasonCode::CodecFormat | ReasonCode::CodecNonCanonical)));
        let answer = RawCall::send_bytes(&bus, call.subject(), Vec::new()).await?;
        assert_eq!(answer, Answered::Denied(ReasonCode::CodecFormat));
        Ok(())
    })
}

#[test]
fn a08_a09_depth_and_length_bombs_are_refused_at_the_door() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let arguments = json::object([("sql", "SELECT 1".into())]);
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", arguments)?;
        let deep = vec![0x91_u8; 100_000];
        let answer = RawCall::send_bytes(&bus, call.subject(), deep).await?;
        assert!(
            matches!(answer, Answered::Denied(ReasonCode::CodecDepth | ReasonCode::CodecFormat)),
            "{answer:?}"
        );
        // array32 of 4 Gi items, bin32 of 4 GiB.
        for bomb in [vec![0xdd, 0xff, 0xff, 0xff, 0xff], vec![0xc6, 0xff, 0xff, 0xff, 0xff]] {
            let answer = RawCall::send_bytes(&bus, call.subject(), bomb).await?;
            assert!(matches!(answer, Answered::Denied(ReasonCode::CodecFormat)), "{answer:?}");
        }
        let answer = RawCall::send_bytes(&bus, call.subject(), vec![0; 900_000]).await?;
        assert_eq!(answer, Answered::Denied(ReasonCode::CodecTooLarge));
        read(&task, "SELECT 1").await?;
        Ok(())
    })
}

#[test]
fn a11_what_was_checked_is_what_is_recorded_and_run() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let arguments = json::object([("sql", "SELECT email FROM customers WHERE id = 1".into())]);
        let digest = writ_common::request::Arguments::new(arguments.clone()).digest();
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", arguments)?;
        let Answered::Done(result) = call.send(&bus).await? else { panic!("refused") };
        let seen = Seen::read(world, Some(task.id())).await?;
        let (_, verdicted) = seen.verdicts().find(|(_, one)| one.what.call_id == Some(call.id())).unwrap();
        assert_eq!(verdicted.what.arguments, Some(digest));
        let outcome = seen.outcomes().find(|outcome| outcome.call_id == call.id()).unwrap();
        assert_eq!(outcome.result, Some(writ_common::digest::Digest::plain(result.as_bytes())));
        Ok(())
    })
}

#[test]
fn a17_what_is_not_served_is_said_to_be_missing() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let error = task.call("tool.bank", "pay", json::object([])).await.unwrap_err();
        assert!(matches!(error, Error::NoNode(_)), "{error}");
        let error = task.call("tool.crm", "drop", json::object([])).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::RightMissing));
        assert!(matches!(task.call("tool crm", "read", json::object([])).await, Err(Error::Id(_))));
        Ok(())
    })
}

#[test]
fn a_draft_is_a_file_with_one_message_and_no_header_of_the_callers() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let mailer = world.agent("mailer").await?;
        let researcher = world.agent("researcher").await?;
        let one = task.delegate("researcher", writ_sdk::Narrowing::new()).await?.capability().await?;
        let two = Task::resume(&researcher, one)?.delegate("mailer", writ_sdk::Narrowing::new()).await?;
        let mailing = Task::resume(&mailer, two.capability().await?)?;
        let letter = |subject: &str| {
            json::object([
                ("to", json::list(["ada@example.com"])),
                ("subject", subject.into()),
                ("body", "Hello\n.\nBcc: eve@example.com\n".into()),
            ])
        };
        for subject in ["Hi\r\nBcc: eve@example.com", "Hi\nX: y"] {
            let error = mailing.call("tool.mail", "draft", letter(subject)).await.unwrap_err();
            assert_eq!(error.code(), Some(ReasonCode::ArgInvalid), "{error}");
        }
        mailing.call("tool.mail", "draft", letter("Größe")).await?;
        let folder = world.layout.drafts().join("cur");
        let file = std::fs::read_dir(folder)?.next().unwrap()?.path();
        let text = std::fs::read_to_string(file)?;
        let (head, _body) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.to_lowercase().contains("bcc"), "{head}");
        assert!(head.contains("To: ada@example.com"), "{head}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn endless_queries_end_and_do_not_stop_the_node() -> Result<()> {
    const ENDLESS: &str =
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c";
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let config = world.layout.node_config("node-1");
        World::edit(&config, "file = \"data/crm.db\"\n", "file = \"data/crm.db\"\ntimeout_seconds = 2\n")?;
        world.start_broker().await?;
        world.start_node("node-1").await?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        let mut endless = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let task = task.clone();
            endless.spawn(async move { read(&task, ENDLESS).await });
        }
        while let Some(ended) = endless.join_next().await {
            assert_eq!(ended?.unwrap_err().code(), Some(ReasonCode::ToolTimeout));
        }
        read(&task, "SELECT 1").await?;
        world.close().await;
        Ok(())
    })
}

pub(crate) const FILES: &str = include_str!("../../policies/examples/named-places/tools/files.toml");
const WEB: &str = include_str!("../../policies/examples/named-places/tools/web.toml");
const LETTERS: &str = include_str!("../../policies/examples/named-places/tools/letters.toml");
const PLACES: &str = include_str!("../../policies/examples/named-places/rules.datalog");

/// A world whose planner may use one more tool, with its contract and the rules about it.
pub(crate) async fn world_with_tool(contract: &str, rights: &str, rules: &str, tool: &str) -> Result<World> {
    let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
    let policies = world.layout.policies();
    std::fs::write(policies.join("tools/more.toml"), contract)?;
    std::fs::write(policies.join("more.datalog"), rules)?;
    World::edit(
        &policies.join("roles.toml"),
        "    \"tool.crm:read\",\n",
        &format!("    \"tool.crm:read\",\n    {rights},\n"),
    )?;
    let config = world.layout.node_config("node-1");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{text}\n[[tool]]\n{tool}"))?;
    world.start_broker().await?;
    world.start_node("node-1").await?;
    world.enroll_missing().await?;
    Ok(world)
}

/// The rules of the worked policy that are about one tool.
fn rules_about(tool: &str) -> String {
    let rules = PLACES.split("\n\n").filter(|rule| rule.contains(&format!("resource(\"{tool}\")")));
    rules.collect::<Vec<_>>().join("\n\n")
}

#[test]
fn a04_files_stay_below_the_folder_and_where_policy_says() -> Result<()> {
    run(async {
        let outside = tempfile::tempdir()?;
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("reports/drafts"))?;
        std::fs::write(root.join("reports/q3.txt"), "up")?;
        std::fs::write(root.join("plans.txt"), "plans")?;
        std::fs::write(outside.path().join("secret"), "secret")?;
        std::os::unix::fs::symlink(outside.path(), root.join("reports/out"))?;
        let tool = format!(
            "resource = \"tool.files\"\nkind = \"files\"\nroot = \"{}\"\nwritable = true\n",
            root.display()
        );
        let rights = r#""tool.files:list", "tool.files:read", "tool.files:write""#;
        let world = world_with_tool(FILES, rights, &rules_about("tool.files"), &tool).await?;
        let (_planner, task) = world.task().await?;
        let at = |path: &str| json::object([("path", path.into())]);
        let read = task.call("tool.files", "read", at("reports/q3.txt")).await?;
        assert_eq!(read.get("text").and_then(|text| text.as_str()), Some("up"));
        for (path, code) in [
            ("../secret", ReasonCode::ArgPath),
            ("reports/../plans.txt", ReasonCode::ArgPath),
            ("%2e%2e/secret", ReasonCode::ArgPath),
            ("/etc/passwd", ReasonCode::ArgPath),
            ("reports\\q3.txt", ReasonCode::ArgPath),
            ("reports/out/secret", ReasonCode::ArgPath),
            ("plans.txt", ReasonCode::PolicyDenied),
        ] {
            let error = task.call("tool.files", "read", at(path)).await.unwrap_err();
            assert_eq!(error.code(), Some(code), "{path}: {error}");
        }
        let draft = |path: &str| json::object([("path", path.into()), ("text", "hello".into())]);
        task.call("tool.files", "write", draft("reports/drafts/q4.txt")).await?;
        assert_eq!(std::fs::read_to_string(root.join("reports/drafts/q4.txt"))?, "hello");
        let error = task.call("tool.files", "write", draft("reports/q3.txt")).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::PolicyDenied), "{error}");
        assert_eq!(std::fs::read_to_string(root.join("reports/q3.txt"))?, "up");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a13_documents_come_from_listed_hosts_only() -> Result<()> {
    run(async {
        use axum::{Router, response::Redirect, routing::get};
        let routes = Router::new()
            .route("/news", get(|| async { "news" }))
            .route("/moved", get(|| async { Redirect::permanent("/news") }))
            .route(
                "/away",
                get(|| async { Redirect::temporary("http://169.254.169.254/latest/meta-data/") }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
        let tool = format!(
            "resource = \"tool.docs\"\nkind = \"http\"\nhosts = [\"api.example.com\"]\nloopback_hosts = [\"127.0.0.1:{port}\", \"localhost:{port}\"]\n"
        );
        let rules = "/// not by that name\ndeny if resource(\"tool.docs\"), host(\"localhost\", $port);\n";
        let world =
            world_with_tool(&WEB.replace("tool.web", "tool.docs"), r#""tool.docs:get""#, rules, &tool)
                .await?;
        let (_planner, task) = world.task().await?;
        let fetch = async |url: String| {
            task.call("tool.docs", "get", json::object([("url", url.as_str().into())])).await
        };
        for path in ["/news", "/moved"] {
            let document = fetch(format!("http://127.0.0.1:{port}{path}")).await?;
            assert_eq!(document.get("text").and_then(|text| text.as_str()), Some("news"));
        }
        for (url, code) in [
            (format!("http://127.0.0.1:{port}/away"), ReasonCode::ArgHost),
            (format!("http://2130706433:{port}/news"), ReasonCode::ArgHost),
            (format!("http://[::ffff:127.0.0.1]:{port}/news"), ReasonCode::ArgHost),
            (format!("http://api.example.com@127.0.0.1:{port}/news"), ReasonCode::ArgHost),
            ("https://169.254.169.254/latest/meta-data/".to_owned(), ReasonCode::ArgHost),
            ("https://evil.example.net/".to_owned(), ReasonCode::ArgHost),
            (format!("http://localhost:{port}/news"), ReasonCode::PolicyDenied),
        ] {
            let error = fetch(url.clone()).await.unwrap_err();
            assert_eq!(error.code(), Some(code), "{url}: {error}");
        }
        world.close().await;
        serving.abort();
        Ok(())
    })
}

#[test]
fn a14_a_letter_goes_to_whom_policy_saw_and_to_nobody_else() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        writ_bus::keyfile::write_secret(&folder.path().join("password"), "secret\n")?;
        let server = SmtpServer::start(&folder.path().join("kept"), Some((&certificate, &key)))?;
        let tool = format!(
            "resource = \"tool.letters\"\nkind = \"smtp\"\nhost = \"localhost\"\nport = {}\nsecurity = \"starttls\"\n\
             from = \"Support <support@acme.example>\"\nuser = \"support\"\npassword_file = \"{}\"\nca_file = \"{}\"\n",
            server.port(),
            folder.path().join("password").display(),
            certificate.display()
        );
        let rules = rules_about("tool.letters");
        let world = world_with_tool(LETTERS, r#""tool.letters:send""#, &rules, &tool).await?;
        let (_planner, task) = world.task().await?;
        let letter = |to: &str, cc: &str, bcc: &[&str], subject: &str| {
            json::object([
                ("to", json::list([to])),
                ("cc", json::list([cc])),
                ("bcc", json::list(bcc.iter().copied())),
                ("subject", subject.into()),
                ("body", "Hello\n.\nMAIL FROM:<eve@evil.example>\n".into()),
            ])
        };
        let send = async |letter: Value| task.call("tool.letters", "send", letter).await;
        send(letter("Kim <kim@Example.com>", "lee@example.com", &[], "Größe")).await?;
        for (letter, code) in [
            (letter("kim@example.com", "eve@evil.example", &[], "x"), ReasonCode::PolicyDenied),
            (
                letter("kim@example.com", "lee@example.com", &["eve@evil.example"], "x"),
                ReasonCode::PolicyDenied,
            ),
            (
                letter("kim@example.com", "lee@example.com", &["lee@example.com"], "x"),
                ReasonCode::PolicyDenied,
            ),
            (
                letter("\"kim@example.com\" <eve@evil.example>", "lee@example.com", &[], "x"),
                ReasonCode::PolicyDenied,
            ),
            (letter("eve%evil.example@example.com", "lee@example.com", &[], "x"), ReasonCode::ArgInvalid),
            (
                letter("kim@example.com", "lee@example.com", &[], "x\u{85}Bcc: eve@evil.example"),
                ReasonCode::ArgInvalid,
            ),
            (
                letter("kim@example.com", "lee@example.com", &[], "x\r\nBcc: eve@evil.example"),
                ReasonCode::ArgInvalid,
            ),
            // The server knows no such user, and takes the letter for nobody else either.
            (letter("kim@example.com", "nobody@example.com", &[], "x"), ReasonCode::ToolFailed),
        ] {
            let shown = letter.to_string();
            let error = send(letter).await.unwrap_err();
            assert_eq!(error.code(), Some(code), "{shown}: {error}");
        }
        let kept = server.letters()?;
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(kept[0].starts_with("kim@example.com lee@example.com\n"), "{kept:?}");
        let (head, body) = kept[0].split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains("From: \"Support\" <support@acme.example>")
                || head.contains("From: Support <support@acme.example>"),
            "{head}"
        );
        assert!(!head.to_lowercase().contains("bcc") && body.contains("MAIL FROM"), "{head}");
        world.close().await;
        Ok(())
    })
}

const CRM: &str = include_str!("../../policies/tools/crm.toml");
const SHOP: &str = r#"
    CREATE TABLE customers (id int, name text, email text, plan text);
    INSERT INTO customers VALUES (1, 'Ada', 'ada@example.com', 'pro'), (2, 'Bo', NULL, 'free');
    CREATE TABLE "Customers" (id int);
    CREATE TABLE orders (small smallint, large bigint, exact numeric, real float8, yes boolean, at timestamptz,
        day date, bytes bytea, doc jsonb, id uuid, tags text[], nothing text);
    INSERT INTO orders VALUES (-7, 9223372036854775807, 1234567890123456789012345678901234567890.10, 0.1, true,
        '2026-01-02 03:04:05.123456+02', '2026-01-02', '\x00ff', '{"a": 1.10}',
        '00000000-0000-0000-0000-000000000001', '{a,"b c"}', NULL);
    INSERT INTO orders (small, real) SELECT n, 'NaN' FROM generate_series(1, 20) AS n;
    CREATE TABLE salaries (amount int); INSERT INTO salaries VALUES (1000);
    CREATE SCHEMA hr; CREATE TABLE hr.customers (id int);
    CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql AS $$SELECT 'shadowed'$$;
    CREATE FUNCTION leak(text) RETURNS text LANGUAGE sql AS $$SELECT max(amount)::text FROM salaries$$;
    CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA hr TO reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA public, hr TO reader;
    CREATE ROLE writer LOGIN; GRANT SELECT, INSERT ON customers TO writer;
    CREATE ROLE cellist LOGIN; GRANT SELECT ON customers TO cellist; GRANT UPDATE (plan) ON customers TO cellist;
    CREATE ROLE owner LOGIN; CREATE TABLE owned (id int); ALTER TABLE owned OWNER TO owner;
    CREATE ROLE filer LOGIN; GRANT pg_read_server_files TO filer;
    CREATE ROLE maker LOGIN CREATEROLE;"#;

/// A database to sell from, and the tool that reads it as `reader`.
fn shop(server: &PostgresServer) -> Result<String> {
    server.sql("postgres", "CREATE DATABASE shop")?;
    server.sql("shop", SHOP)?;
    Ok(format!(
        "resource = \"tool.shop\"\nkind = \"postgres\"\nsocket = \"{}\"\ndatabase = \"shop\"\nuser = \"reader\"\n\
         rows_max = 10\ntimeout_seconds = 2\n",
        server.socket().display()
    ))
}

async fn select(task: &Task, sql: &str, params: Vec<Value>) -> Result<Value, Error> {
    let arguments = json::object([("sql", sql.into()), ("params", Value::Array(params))]);
    task.call("tool.shop", "read", arguments).await
}

/// Over a real server: what comes back, what policy is told, and what the locks hold.
#[test]
fn a02_a_select_on_postgresql_reads_what_policy_was_told_of() -> Result<()> {
    const RULES: &str = include_str!("../../policies/examples/select-on-named-tables/rules.datalog");
    run(async {
        let Some(mut server) = PostgresServer::start()? else { return Ok(()) };
        let tool = shop(&server)?;
        let (contract, rules) =
            (CRM.replace("tool.crm", "tool.shop"), RULES.replace("tool.crm", "tool.shop"));
        // The sample policies have a contract for tool.crm already; this one stands beside it.
        let world = world_with_tool(&contract, r#""tool.shop:read""#, &rules, &tool).await?;
        let (_planner, task) = world.task().await?;
        for (sql, params, rows) in [
            ("SELECT name FROM customers WHERE id = $1", vec![1.into()], r#"[["Ada"]]"#),
            ("SELECT Name FROM Customers WHERE plan = $1;", vec!["pro' OR '1'='1".into()], "[]"),
            ("SELECT c.name FROM public.customers c ORDER BY c.id DESC", vec![], r#"[["Bo"],["Ada"]]"#),
            (
                "SELECT lower('ABC'), upper($1), $2::bigint",
                vec!["x'; DROP TABLE t; --".into(), Value::Null],
                r#"[["abc","X'; DROP TABLE T; --",null]]"#,
            ),
            (
                "SELECT small, large, exact, real, yes, at, day, bytes, doc, id, tags, nothing FROM orders \
                 WHERE large > 0 AND yes = $1",
                vec![true.into()],
                r#"[[-7,9223372036854775807,"1234567890123456789012345678901234567890.10",0.1,true,"2026-01-02 01:04:05.123456+00","2026-01-02","hex:00ff","{\"a\": 1.10}","00000000-0000-0000-0000-000000000001","{a,\"b c\"}",null]]"#,
            ),
            ("SELECT o.real FROM orders o WHERE o.small = 1", vec![], r#"[["NaN"]]"#),
            ("SELECT count(*), 1.50 FROM orders", vec![], r#"[[21,"1.50"]]"#),
            (
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3) SELECT x FROM n",
                vec![],
                "[[1],[2],[3]]",
            ),
        ] {
            let result =
                select(&task, sql, params).await.map_err(|error| anyhow::anyhow!("{sql}: {error}"))?;
            assert_eq!(result.get("rows").unwrap().to_string(), rows, "{sql}");
            assert_eq!(result.get("truncated"), Some(&Value::Bool(false)), "{sql}");
        }
        let result = select(&task, "SELECT o.small FROM orders o", vec![]).await?;
        assert!(result.to_string().ends_with("[8],[9]],\"truncated\":true}"), "{result}");
        for (sql, code) in [
            ("SELECT email FROM customers", ReasonCode::PolicyDenied),
            ("SELECT c FROM customers c", ReasonCode::PolicyDenied),
            ("SELECT id FROM \"Customers\"", ReasonCode::PolicyDenied),
            ("SELECT id FROM hr.customers", ReasonCode::PolicyDenied),
            ("SELECT amount FROM salaries", ReasonCode::PolicyDenied),
            ("SELECT leak('x')", ReasonCode::SqlNotReadOnly),
            ("SELECT pg_sleep(10)", ReasonCode::SqlNotReadOnly),
            ("SELECT pg_read_file('/etc/passwd')", ReasonCode::SqlNotReadOnly),
            ("SELECT set_config('transaction_read_only', 'off', false)", ReasonCode::SqlNotReadOnly),
            ("SELECT rolname FROM pg_roles", ReasonCode::SqlNotReadOnly),
            ("DELETE FROM customers", ReasonCode::SqlNotReadOnly),
            ("WITH d AS (DELETE FROM customers RETURNING *) SELECT * FROM d", ReasonCode::SqlNotReadOnly),
            ("SELECT id INTO copied FROM customers", ReasonCode::SqlNotReadOnly),
            ("SELECT id FROM customers FOR UPDATE", ReasonCode::SqlNotReadOnly),
            ("SELECT 1; DROP TABLE customers", ReasonCode::SqlMultiStatement),
            ("SELECT U&\"e\\006dail\" FROM customers", ReasonCode::SqlUnparsable),
            ("SELECT missing FROM orders", ReasonCode::ToolFailed),
            ("SELECT id FROM customers WHERE id = $1", ReasonCode::ToolFailed),
            (
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x > 0) SELECT max(x) FROM n",
                ReasonCode::ToolTimeout,
            ),
            (
                "WITH RECURSIVE n(x, t) AS (SELECT 1, 'x' UNION ALL SELECT x + 1, t || t FROM n WHERE x < 22) \
                 SELECT t FROM n WHERE x = 22",
                ReasonCode::ToolResultTooLarge,
            ),
        ] {
            let error = select(&task, sql, vec![]).await.expect_err(sql);
            assert_eq!(error.code(), Some(code), "{sql}: {error}");
        }
        assert_eq!(server.sql("shop", "SELECT count(*) FROM customers")?, "2", "nothing is gone");
        // Connections that were lost are made again; without a server the failure says that.
        server.restart()?;
        select(&task, "SELECT 1", vec![]).await?;
        server.stop();
        let error = select(&task, "SELECT 1", vec![]).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ToolFailed), "{error}");
        server.restart()?;
        select(&task, "SELECT 1", vec![]).await?;
        // A role that was given more meanwhile is not used for new connections.
        server.sql("shop", "GRANT INSERT ON orders TO reader")?;
        server.restart()?;
        let error = select(&task, "SELECT 1", vec![]).await.unwrap_err();
        assert!(error.to_string().contains("public.orders"), "{error}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a02_a_role_of_postgresql_that_can_write_is_not_used() -> Result<()> {
    run(async {
        let Some(server) = PostgresServer::start()? else { return Ok(()) };
        let tool = shop(&server)?;
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        world.start_broker().await?;
        let config = world.layout.node_config("node-1");
        let text = std::fs::read_to_string(&config)?;
        for (from, to, says) in [
            ("\"reader\"", "\"writ\"", "superuser"),
            ("\"reader\"", "\"writer\"", "public.customers"),
            ("\"reader\"", "\"cellist\"", "public.customers"),
            ("\"reader\"", "\"owner\"", "public.owned"),
            ("\"reader\"", "\"filer\"", "pg_read_server_files"),
            ("\"reader\"", "\"maker\"", "may make roles"),
            ("\"reader\"", "\"nobody\"", "does not exist"),
            ("\"shop\"\nuser", "\"shops\"\nuser", "does not exist"),
            ("rows_max", "schema = \"sales\"\nrows_max", "there is no schema `sales`"),
        ] {
            std::fs::write(&config, format!("{text}\n[[tool]]\n{}", tool.replace(from, to)))?;
            let Err(error) = world.start_node("node-1").await else { panic!("{to} is used") };
            let shown = format!("{error:#}");
            assert!(shown.contains(says), "{to}: {shown}");
        }
        std::fs::write(&config, format!("{text}\n[[tool]]\n{tool}"))?;
        world.start_node("node-1").await?;
        world.close().await;
        Ok(())
    })
}
