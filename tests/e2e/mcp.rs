//! The agent's side of MCP: what a model sees, and what cannot be had through it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use writ::dev::Layout;
use writ_bus::SystemClock;
use writ_common::{
    approval::ApprovalDecision,
    control::RevocationTarget,
    ids::{AgentId, ApprovalId, Resource},
    reason::ReasonCode,
    record::{RecordedDecision, Verdicted},
    time::Millis,
};
use writ_mcp::{
    Bearer, Gateway, GatewayOptions, HttpGateway, HttpOptions, RemoteOptions, serve_http, serve_remote,
};
use writ_sdk::Task;
use writ_tests::{
    KIND, Seen, World, WorldOptions, WritProcess, eventually,
    mcp::{McpClient, Revision, request, send},
    only, run,
};

use crate::{WRIT, approvals::answer_for, cli::writ};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const READ: &str = "crm__read";
const SEND: &str = "mail__send";

fn is_read(verdict: &Verdicted) -> bool {
    verdict.what.action.as_ref().is_some_and(|action| action.as_str() == "read")
}

fn sql(text: &str) -> Value {
    json!({"sql": text})
}

fn mail() -> Value {
    json!({"to": ["ada@example.com"], "subject": "Your order", "body": "On its way."})
}

/// A gateway on loopback, for a task.
async fn listen(task: Task, options: GatewayOptions) -> Result<HttpGateway> {
    let gateway = Gateway::new(task, options).await?;
    let options = HttpOptions { address: "127.0.0.1:0".parse()?, bearer: Bearer::Secret(SECRET.to_owned()) };
    Ok(serve_http(gateway, options).await?)
}

async fn client(listening: &HttpGateway, revision: Revision) -> Result<McpClient> {
    McpClient::http(&listening.url(), SECRET, &[], revision).await
}

/// A token of the development provider for these audiences; `with` makes it another token of the same user.
fn user_token(
    world: &World,
    (user, group): (&str, &str),
    audience: &[&str],
    with: &str,
    life: u64,
) -> Result<String> {
    let now = SystemClock::new().now().wall.as_secs();
    world.tokens.sign(&json!({
        "iss": world.idp.url(), "aud": audience, "sub": user, "groups": [group],
        "iat": now, "nbf": now, "exp": now + life, "jti": with,
    }))
}

fn token(task: &writ_sdk::UnverifiedCapability) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(task.as_bytes())
}

#[test]
fn a_model_is_offered_what_the_capability_gives_and_told_why_the_rest_is_refused() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        for revision in [Revision::Sessions, Revision::Stateless] {
            let (_planner, task) = world.task().await?;
            let listening = listen(task.clone(), GatewayOptions::default()).await?;
            let client = client(&listening, revision).await?;
            let tools = ["crm__read", "mail__draft", "mail__send", "web__get", "writ_delegate"];
            assert_eq!(client.tools().await?, tools);
            let read = client.tool(READ).await?;
            assert_eq!(read["inputSchema"]["properties"]["sql"]["type"], "string", "{read}");

            let rows = client.call(READ, sql("SELECT name FROM customers WHERE id = 1")).await?;
            assert!(!rows.is_error() && rows.text().contains("Ada Lovelace"), "{rows:?}");
            assert_eq!(rows.meta("dev.writ/label")["tags"][0], "crm", "{rows:?}");

            for (name, arguments, code) in [
                (READ, sql("DELETE FROM customers"), ReasonCode::SqlNotReadOnly),
                (READ, json!({}), ReasonCode::ArgMissing),
                (SEND, mail(), ReasonCode::PolicyDenied),
                ("crm__drop", json!({}), ReasonCode::ToolUnknown),
            ] {
                let denied = client.call(name, arguments).await?;
                assert!(denied.is_error(), "{denied:?}");
                assert!(denied.text().contains(code.as_str()), "{denied:?}");
                assert_eq!(denied.field("message"), denied.text());
                assert_eq!(
                    (denied.field("reason").as_str(), denied.field("decision").as_str()),
                    (code.as_str(), "deny")
                );
            }
            client.close().await?;
            listening.stop().await;
            let seen = Seen::read(world, Some(task.id())).await?;
            let refused =
                seen.verdicts().filter(|(_, verdict)| verdict.decision == RecordedDecision::Deny).count();
            assert_eq!(refused, 3, "what was asked of a node is on record");
        }
        Ok(())
    })
}

#[test]
fn what_is_not_offered_is_given_up() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let options = GatewayOptions { only: [Resource::parse("tool.mail")?].into(), ..Default::default() };
        let listening = listen(task, options).await?;
        let client = client(&listening, Revision::Sessions).await?;
        assert_eq!(client.tools().await?, ["mail__draft", "mail__send", "writ_delegate"]);
        assert_eq!(client.call(READ, sql("SELECT 1")).await?.field("reason"), "tool.unknown");
        let handed =
            client.call("writ_delegate", json!({"agent": "researcher", "tools": ["tool.crm:read"]})).await?;
        assert_eq!(handed.field("reason"), "delegation.widening", "{handed:?}");
        client.close().await?;
        Ok(())
    })
}

/// The mailer with a task of alice's, handed on to it.
async fn mailer(world: &World) -> Result<Task> {
    let (_planner, task) = world.task().await?;
    let rights = || only(["tool.mail:draft", "tool.mail:send", "tool.crm:read"]);
    let first = task.delegate("researcher", rights()?).await?.capability().await?;
    let researcher = Task::resume(&world.agent("researcher").await?, first)?;
    let second = researcher.delegate("mailer", rights()?).await?.capability().await?;
    Ok(Task::resume(&world.agent("mailer").await?, second)?)
}

fn outbox(world: &World) -> usize {
    fs::read_dir(world.layout.outbox().join("new")).map_or(0, Iterator::count)
}

#[test]
fn a_held_call_goes_through_once_when_it_is_made_again_after_the_approval() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let listening = listen(mailer(&world).await?, GatewayOptions::default()).await?;
        let client = client(&listening, Revision::Sessions).await?;
        let held = client.call(SEND, mail()).await?;
        assert!(held.is_error() && held.text().contains("Held for approval"), "{held:?}");
        let id = ApprovalId::parse(held.field("approval"))?;
        assert!(held.text().contains(id.as_str()));
        // Asking again asks nobody again.
        assert_eq!(client.call(SEND, mail()).await?.field("approval"), id.as_str());
        assert_eq!(outbox(&world), 0);
        answer_for(&world, "bob", &id, ApprovalDecision::Granted, Millis::from_secs(600)).await?;
        let mut sent = client.call(SEND, mail()).await?;
        eventually("the node has heard of the grant", async || {
            if sent.field("decision") == "hold" {
                sent = client.call(SEND, mail()).await?;
            }
            Ok(!sent.is_error())
        })
        .await?;
        assert_eq!(outbox(&world), 1);
        // The next one is another call, which waits for another approval.
        let again = client.call(SEND, mail()).await?;
        assert_eq!(again.field("decision"), "hold", "{again:?}");
        assert_ne!(again.field("approval"), id.as_str());
        assert_eq!(outbox(&world), 1);
        client.close().await?;
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_call_made_again_while_it_waits_is_the_same_call() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let options = GatewayOptions { patience: Duration::from_secs(30), ..Default::default() };
        let listening = listen(mailer(&world).await?, options).await?;
        let client = std::sync::Arc::new(client(&listening, Revision::Stateless).await?);
        let again = || {
            let client = std::sync::Arc::clone(&client);
            tokio::spawn(async move { client.call(SEND, mail()).await })
        };
        let first = again();
        let bob = world.approver("bob").await?;
        eventually("somebody is asked", async || Ok(bob.approvals().await?.iter().count() == 1)).await?;
        // A client that has lost patience, or a model.
        let (second, third) = (again(), again());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let approvals = bob.approvals().await?;
        assert_eq!(approvals.iter().count(), 1, "nobody is asked twice");
        let id = approvals.iter().next().context("a request")?.0.clone();
        bob.close().await;
        answer_for(&world, "bob", &id, ApprovalDecision::Granted, Millis::from_secs(600)).await?;
        for call in [first, second, third] {
            let called = call.await??;
            assert!(!called.is_error(), "{called:?}");
        }
        assert_eq!(outbox(&world), 1);
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_client_that_can_be_asked_is_asked_to_wait_and_approves_nothing() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let listening = listen(mailer(&world).await?, GatewayOptions::default()).await?;
        let url = listening.url();
        let can_ask = json!({"elicitation": {}});
        let call = |params: Value| request("tools/call", params, can_ask.clone());
        let first = json!({"name": SEND, "arguments": mail()});
        let (status, _, answer) = send(&url, Some(SECRET), &call(first)).await?;
        assert_eq!((status, &answer["result"]["resultType"]), (200, &json!("input_required")), "{answer}");
        let state = answer["result"]["requestState"].as_str().context("no state")?.to_owned();
        let id = ApprovalId::parse(state.split('~').next().unwrap_or_default())?;
        let question = &answer["result"]["inputRequests"]["approval"];
        assert_eq!(question["method"], "elicitation/create");
        assert!(question["params"]["message"].as_str().unwrap().contains(id.as_str()), "{answer}");
        let again = |arguments: Value, state: &str| {
            call(json!({"name": SEND, "arguments": arguments, "requestState": state,
                        "inputResponses": {"approval": {"action": "accept", "content": {"again": true}}}}))
        };
        // Whoever sits before the client has said yes, and that is not theirs to say.
        let (_, _, answer) = send(&url, Some(SECRET), &again(mail(), &state)).await?;
        assert_eq!(answer["result"]["resultType"], "input_required", "{answer}");
        assert_eq!(outbox(&world), 0);
        // Whoever does not want to wait is told that it waits, and whoever always does as well, after a while.
        let declined = call(json!({"name": SEND, "arguments": mail(), "requestState": state,
                                   "inputResponses": {"approval": {"action": "decline"}}}));
        let patient = again(mail(), &format!("{id}~3"));
        for wanted in [declined, patient] {
            let (_, _, answer) = send(&url, Some(SECRET), &wanted).await?;
            assert_eq!(answer["result"]["structuredContent"]["approval"], id.as_str(), "{answer}");
        }
        // The state of one call opens no other.
        let mut other = mail();
        other["to"] = json!(["eve@example.com"]);
        for (arguments, state) in [(other, state.as_str()), (mail(), "ap-000000000000000000000000000~1")] {
            let (_, _, answer) = send(&url, Some(SECRET), &again(arguments, state)).await?;
            assert_eq!(answer["result"]["structuredContent"]["reason"], "approval.unknown", "{answer}");
        }
        answer_for(&world, "bob", &id, ApprovalDecision::Granted, Millis::from_secs(600)).await?;
        eventually("the call is done", async || {
            let (_, _, answer) = send(&url, Some(SECRET), &again(mail(), &state)).await?;
            Ok(answer["result"]["resultType"] == "complete" && answer["result"]["isError"] != true)
        })
        .await?;
        assert_eq!(outbox(&world), 1);
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn t22_m07_capability_that_comes_along_only_narrows_and_is_held_here() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let (_other, elsewhere) = world.task().await?;
        let narrowed = task.narrow(only(["tool.mail:draft", "tool.crm:read"])?);
        let to_researcher =
            narrowed.delegate("researcher", only(["tool.crm:read"])?).await?.capability().await?;
        let identity = world.identity("researcher")?;

        // The gateway of the researcher: what planner has is planner's (threat T22).
        let researcher = Task::resume(&world.agent("researcher").await?, to_researcher.clone())?;
        let listening = listen(researcher, GatewayOptions::default()).await?;
        let own = client(&listening, Revision::Stateless).await?;
        let broader = token(&task.capability().await?);
        let denied = own.call_with(READ, sql("SELECT 1"), Some(&broader)).await?;
        assert_eq!(denied.field("reason"), "token.holder_mismatch", "{denied:?}");
        own.close().await?;
        listening.stop().await;

        // The gateway of the planner, where both keys are: its own capability is the most there is.
        let options = GatewayOptions { others: vec![identity], ..Default::default() };
        let listening = listen(narrowed.clone(), options).await?;
        let own = client(&listening, Revision::Stateless).await?;
        for wider in [token(&task.capability().await?), token(&elsewhere.capability().await?)] {
            let denied = own.call_with(READ, sql("SELECT 1"), Some(&wider)).await?;
            assert_eq!(denied.field("reason"), "session.mismatch", "{denied:?}");
        }
        for garbage in ["", "?", "AAAA", &"A".repeat(100_000)] {
            let denied = own.call_with(READ, sql("SELECT 1"), Some(garbage)).await?;
            assert!(denied.field("reason").starts_with("token."), "{denied:?}");
        }
        own.close().await?;
        // A capability in the header of a connection is the most its calls have, whatever they bring.
        let handed = narrowed.delegate("researcher", only(["tool.crm:read"])?).await?.capability().await?;
        let headers = [("writ-capability", token(&handed))];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for revision in [Revision::Sessions, Revision::Stateless] {
            let sub = McpClient::http(&listening.url(), SECRET, &headers, revision).await?;
            assert!(!sub.call(READ, sql("SELECT 1")).await?.is_error());
            let kept = sub.call("mail__draft", mail()).await?;
            assert_eq!(kept.field("reason"), "delegation.widening", "{kept:?}");
            let own = token(&narrowed.capability().await?);
            let wider = sub.call_with("mail__draft", mail(), Some(&own)).await?;
            assert_eq!(wider.field("reason"), "token.holder_mismatch", "{wider:?}");
            assert_eq!(sub.tools().await?, [READ, "writ_delegate"]);
            sub.close().await?;
        }
        listening.stop().await;
        Ok(())
    })
}

#[test]
fn an_agent_hands_a_part_of_its_task_on_by_a_tool() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let options = GatewayOptions { others: vec![world.identity("researcher")?], ..Default::default() };
        let listening = listen(task.clone(), options).await?;
        let client = client(&listening, Revision::Stateless).await?;
        let handed = client.call("writ_delegate", json!({"agent": "researcher", "tools": [READ]})).await?;
        assert!(!handed.is_error(), "{handed:?}");
        let capability = handed.field("capability");
        let rows = client.call_with(READ, sql("SELECT name FROM customers"), Some(&capability)).await?;
        assert!(rows.text().contains("Grace"), "{rows:?}");
        let denied = client.call_with("mail__draft", mail(), Some(&capability)).await?;
        assert_eq!(denied.field("reason"), "delegation.widening", "{denied:?}");
        for (arguments, reason) in [
            (json!({"agent": "mailer", "tools": [READ]}), ""),
            (json!({"agent": "researcher", "tools": []}), "arg.missing"),
            (json!({"agent": "researcher", "tools": ["nothing"]}), "tool.unknown"),
            (json!({"tools": [READ]}), "arg.missing"),
        ] {
            let refused = client.call("writ_delegate", arguments).await?;
            assert!(refused.is_error() && refused.field("reason") == reason, "{refused:?}");
        }
        client.close().await?;
        listening.stop().await;
        let seen = Seen::read(world, Some(task.id())).await?;
        let mut callers = seen.verdicts().filter_map(|(_, verdict)| verdict.who.caller.as_ref());
        assert!(callers.any(|caller| caller.as_str() == "researcher"), "the call was the researcher's");
        Ok(())
    })
}

#[test]
fn m07_a_session_is_of_use_to_nobody_but_its_opener() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let listening = remote(world).await?;
        let (url, resource) = (listening.url(), RESOURCE);
        let (alice, mallory) = (
            user_token(world, ALICE, &["writ", resource], "1", 600)?,
            user_token(world, ("mallory", "analysts"), &["writ", resource], "2", 600)?,
        );
        let open = |method: &str, params: Value| {
            let headers = vec![("accept".to_owned(), "application/json, text/event-stream".to_owned())];
            (headers, json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        };
        let hello = open(
            "initialize",
            json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}),
        );
        let (status, headers, answer) = send(&url, Some(&alice), &hello).await?;
        assert_eq!(status, 200, "{answer}");
        let session = headers.get("mcp-session-id").context("no session")?.clone();
        let with = |session: &str| {
            let (mut headers, body) = open("tools/list", json!({}));
            headers.push(("mcp-session-id".to_owned(), session.to_owned()));
            (headers, body)
        };
        let (status, _, answer) = send(&url, Some(&mallory), &with(&session)).await?;
        assert_eq!(status, 404);
        assert!(answer["error"]["message"].as_str().unwrap().starts_with("session.mismatch"), "{answer}");
        let (status, _, _) = send(&url, Some(&alice), &with("0b3e7bb8-6c3e-4c0a-9d6f-0e5a2b9b8c11")).await?;
        assert_eq!(status, 404);
        let (status, _, answer) = send(&url, Some(&alice), &with(&session)).await?;
        assert_eq!(status, 200, "{answer}");
        listening.stop().await;
        Ok(())
    })
}

const ALICE: (&str, &str) = ("alice", "analysts");
const RESOURCE: &str = "https://tools.acme.example/mcp";

async fn remote(world: &World) -> Result<HttpGateway> {
    let agent = world.agent("planner").await?;
    let options = RemoteOptions {
        address: "127.0.0.1:0".parse()?,
        resource: RESOURCE.to_owned(),
        issuers: vec![world.idp.url()],
        kind: KIND.to_owned(),
        gateway: GatewayOptions::default(),
    };
    Ok(serve_remote(agent, options).await?)
}

#[test]
fn m07_audience_users_from_elsewhere_bring_a_token_for_this_resource() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let listening = remote(world).await?;
        let (url, http) = (listening.url(), reqwest::Client::new());
        let list = request("tools/list", json!({}), json!({}));
        let (status, headers, _) = send(&url, None, &list).await?;
        assert_eq!(status, 401);
        let metadata = "https://tools.acme.example/.well-known/oauth-protected-resource/mcp";
        assert_eq!(headers["www-authenticate"], format!("Bearer resource_metadata=\"{metadata}\""));
        let own = format!("http://{}/.well-known/oauth-protected-resource/mcp", listening.address());
        let told: Value = serde_json::from_str(&http.get(own).send().await?.text().await?)?;
        assert_eq!(
            (&told["resource"], &told["authorization_servers"][0]),
            (&json!(RESOURCE), &json!(world.idp.url()))
        );

        let for_us = user_token(world, ALICE, &["writ", RESOURCE], "3", 600)?;
        let (status, _, answer) = send(&url, Some(&for_us), &list).await?;
        assert_eq!(status, 200, "{answer}");
        assert!(answer["result"]["tools"].as_array().is_some_and(|tools| tools.len() == 5), "{answer}");

        let for_others = world.tokens.token_for("alice")?;
        let mut forged = for_us.clone();
        forged.truncate(forged.len() - 4);
        forged.push_str("AAAA");
        for (token, why) in
            [(for_others.as_str(), "another resource"), (&forged, "jwt.signature"), ("x", "no JWT")]
        {
            let (status, headers, _) = send(&url, Some(token), &list).await?;
            let challenge = &headers["www-authenticate"];
            assert!(
                status == 401 && challenge.contains("invalid_token") && challenge.contains(why),
                "{why}: {challenge}"
            );
        }
        // Who he is is beyond doubt, and he may not.
        let bob = user_token(world, ("bob", "approvers"), &["writ", RESOURCE], "4", 600)?;
        let (status, _, answer) = send(&url, Some(&bob), &list).await?;
        assert!(status == 403 && answer.to_string().contains("grant.not_allowed"), "{status} {answer}");
        listening.stop().await;
        Ok(())
    })
}

#[test]
fn m07_expiry_a_user_has_one_task_whose_label_outlives_a_token() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let listening = remote(world).await?;
        let url = listening.url();
        let token =
            |with: &str, life| user_token(world, ("carla", "analysts"), &["writ", RESOURCE], with, life);
        let read = || {
            let arguments = sql("SELECT name FROM customers");
            request("tools/call", json!({"name": READ, "arguments": arguments}), json!({}))
        };
        let (first, second) = (token("1", 3)?, token("2", 600)?);
        for token in [&first, &second] {
            let (status, _, answer) = send(&url, Some(token), &read()).await?;
            assert!(status == 200 && answer["result"]["isError"] != true, "{answer}");
        }
        // In the middle of a session the end of a token is a refusal that a model hears of.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let (status, _, answer) = send(&url, Some(&first), &read()).await?;
        let reason = &answer["result"]["structuredContent"]["reason"];
        assert_eq!((status, reason), (200, &json!("jwt.exp")), "{answer}");
        let (_, _, answer) = send(&url, Some(&second), &read()).await?;
        assert!(answer["result"]["isError"] != true, "{answer}");
        listening.stop().await;
        let seen = Seen::read(world, None).await?;
        let carlas = seen.verdicts().filter(|(_, verdict)| {
            verdict.who.user.as_ref().is_some_and(|user| user.subject() == "carla") && is_read(verdict)
        });
        let tasks: BTreeSet<_> = carlas.filter_map(|(_, verdict)| verdict.who.task.clone()).collect();
        assert_eq!(tasks.len(), 1, "{tasks:?}");
        Ok(())
    })
}

#[test]
fn what_is_called_is_what_the_body_says_and_a_header_that_differs_is_refused() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let listening = listen(task.clone(), GatewayOptions::default()).await?;
        let url = listening.url();
        let (mut headers, body) =
            request("tools/call", json!({"name": READ, "arguments": sql("SELECT 1")}), json!({}));
        let (status, _, answer) = send(&url, Some(SECRET), &(headers.clone(), body.clone())).await?;
        assert!(status == 200 && answer["result"]["isError"] != true, "{answer}");
        for header in &mut headers {
            if header.0 == "mcp-name" {
                "mail__draft".clone_into(&mut header.1);
            }
        }
        let (status, _, answer) = send(&url, Some(SECRET), &(headers.clone(), body.clone())).await?;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32020)), "{answer}");
        headers.retain(|(name, _)| name != "mcp-name");
        assert_eq!(send(&url, Some(SECRET), &(headers, body.clone())).await?.0, 400);
        // Pages of the web, and names that are not this machine's (DNS rebinding).
        let (good, body) =
            request("tools/call", json!({"name": READ, "arguments": sql("SELECT 1")}), json!({}));
        for (name, value) in [("origin", "https://evil.example"), ("host", "evil.example")] {
            let mut headers = good.clone();
            headers.push((name.to_owned(), value.to_owned()));
            let (status, _, _) = send(&url, Some(SECRET), &(headers, body.clone())).await?;
            assert!((400..500).contains(&status), "{name}: {status}");
        }
        for secret in [None, Some("0123456789abcdef0123456789abcdee"), Some("")] {
            let (status, headers, _) = send(&url, secret, &(good.clone(), body.clone())).await?;
            assert_eq!((status, headers["www-authenticate"].as_str()), (401, "Bearer"));
        }
        listening.stop().await;
        let seen = Seen::read(world, Some(task.id())).await?;
        let calls = seen.verdicts().filter(|(_, verdict)| is_read(verdict)).count();
        assert_eq!(calls, 1);
        Ok(())
    })
}

#[test]
fn m08_methods_that_are_not_served_are_not_there() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let listening = listen(task, GatewayOptions::default()).await?;
        for method in [
            "resources/read",
            "resources/subscribe",
            "prompts/get",
            "logging/setLevel",
            "sampling/createMessage",
            "elicitation/create",
            "roots/list",
            "tasks/get",
            "tools/forget",
        ] {
            let wanted = request(
                method,
                json!({"uri": "file:///etc/passwd", "name": "x", "ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "x", "value": "y"}}),
                json!({}),
            );
            let (status, _, answer) = send(&listening.url(), Some(SECRET), &wanted).await?;
            assert!(
                status >= 400 && answer["error"]["code"].as_i64().is_some(),
                "{method}: {status} {answer}"
            );
        }
        listening.stop().await;
        Ok(())
    })
}

#[test]
fn a_capability_that_ends_in_the_middle_is_a_refusal_and_no_broken_connection() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let listening = listen(task.clone(), GatewayOptions::default()).await?;
        let client = client(&listening, Revision::Sessions).await?;
        assert!(!client.call(READ, sql("SELECT 1")).await?.is_error());
        let operator = world.operator().await?;
        operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        operator.close().await;
        let ended = client.call(READ, sql("SELECT 1")).await?;
        assert_eq!(ended.field("reason"), "revoked.task", "{ended:?}");
        // Tools are listed as they were: a framework that asks again goes on, and is refused call by call.
        assert_eq!(client.tools().await?.len(), 5);
        client.close().await?;
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn the_list_of_tools_changes_when_the_policy_does() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let listening = listen(task, GatewayOptions::default()).await?;
        let mut client = client(&listening, Revision::Sessions).await?;
        assert!(!client.tool(READ).await?["description"].as_str().unwrap().contains("Be quick."));
        let contract = world.layout.policies().join("tools/crm.toml");
        let text = fs::read_to_string(&contract)?;
        let (before, after) = text.split_once("description = \"").context("no description")?;
        let (first, action) = after.split_once("description = \"").context("no second description")?;
        fs::write(&contract, format!("{before}description = \"{first}description = \"Be quick. {action}"))?;
        let activated = writ(&world, &["policy", "activate", ".writ/policies", "--no-test"]).await?;
        assert_eq!(activated.code, 0, "{}", activated.err);
        client.told_of_change().await?;
        assert!(client.tool(READ).await?["description"].as_str().unwrap().contains("Be quick."));
        client.close().await?;
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

const CROWD: usize = 20;

/// Twenty more agents, to whom the planner may hand on.
fn crowd(layout: &Layout) -> Result<()> {
    let agents = layout.policies().join("agents.toml");
    let names: Vec<String> = (0..CROWD).map(|number| format!("helper-{number}")).collect();
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let to = format!("delegates_to = [\"researcher\", {}]", quoted.join(", "));
    World::edit(&agents, "delegates_to = [\"researcher\"]", &to)?;
    let mut text = fs::read_to_string(&agents)?;
    for name in &names {
        text.push_str(&format!(
            "\n[[agent]]\nname = \"{name}\"\nowner = \"support\"\nclearance = [\"crm\"]\n"
        ));
    }
    Ok(fs::write(&agents, text)?)
}

#[test]
fn five_hundred_calls_of_twenty_agents_over_one_gateway_are_not_crossed() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { edit: Some(crowd), ..Default::default() }).await?;
        let mut others = Vec::new();
        for number in 0..CROWD {
            let name = format!("helper-{number}");
            others.push(world.enroll(&name, &name).await?);
        }
        let (_planner, task) = world.task().await?;
        let listening = listen(task.clone(), GatewayOptions { others, ..Default::default() }).await?;
        let client = std::sync::Arc::new(client(&listening, Revision::Stateless).await?);
        let mut capabilities = Vec::new();
        for number in 0..CROWD {
            let arguments = json!({"agent": format!("helper-{number}"), "tools": [READ]});
            capabilities.push(client.call("writ_delegate", arguments).await?.field("capability"));
        }
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..500 {
            let (client, agent) = (std::sync::Arc::clone(&client), number % CROWD);
            let capability = capabilities[agent].clone();
            calls.spawn(async move {
                let text = format!("SELECT {number} AS call, 'helper-{agent}' AS who");
                let mut pause = Duration::from_millis(20);
                // Quotas and leases are the node's: whoever is told to try again does.
                loop {
                    let called = client.call_with(READ, sql(&text), Some(&capability)).await?;
                    if called.field("decision") != "undecided" && called.field("reason") != "request.quota" {
                        return anyhow::Ok((number, agent, called));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            });
        }
        let mut done = 0;
        while let Some(call) = calls.join_next().await {
            let (number, agent, called) = call??;
            let rows = format!("[[{number},\"helper-{agent}\"]]");
            assert!(called.text().contains(&rows), "{number}: {called:?}");
            done += 1;
        }
        assert_eq!(done, 500);
        let seen = Seen::read(&world, Some(task.id())).await?;
        let mut by_caller: BTreeMap<AgentId, usize> = BTreeMap::new();
        for (_, verdict) in seen.verdicts().filter(|(_, verdict)| verdict.decision == RecordedDecision::Allow)
        {
            if let Some(caller) =
                verdict.who.caller.clone().filter(|caller| caller.as_str().starts_with("helper-"))
            {
                *by_caller.entry(caller).or_default() += 1;
            }
        }
        assert!(by_caller.len() == CROWD && by_caller.values().all(|calls| *calls == 25), "{by_caller:?}");
        listening.stop().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn the_program_serves_a_pipe_and_what_it_was_doing_when_it_was_killed_is_on_record() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let arguments = ["mcp", "--agent", "planner", "--user", "alice", "--kind", KIND];
        let piped = McpClient::stdio(WRIT, &arguments, world.folder()).await?;
        assert!(piped.tools().await?.contains(&READ.to_owned()));
        let rows = piped.call(READ, sql("SELECT name FROM customers WHERE id = 3")).await?;
        assert!(rows.text().contains("Alan Turing"), "{rows:?}");
        piped.close().await?;

        let file = world.state().join("bearer");
        let bearer = file.to_str().context("a path")?;
        let mut arguments = arguments.to_vec();
        arguments.extend(["--http", "127.0.0.1:0", "--bearer-file", bearer, "-o", "json"]);
        let gateway = WritProcess::start(WRIT, &arguments, world.folder(), "mcp.log")?;
        let mut url = String::new();
        eventually("the gateway listens", async || {
            let log = fs::read_to_string(world.folder().join("mcp.log"))?;
            let said = log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
            url = said.and_then(|said| Some(said["url"].as_str()?.to_owned())).unwrap_or_default();
            Ok(!url.is_empty())
        })
        .await?;
        let secret = fs::read_to_string(&file)?.trim().to_owned();
        let client = McpClient::http(&url, &secret, &[], Revision::Stateless).await?;
        let tables: Vec<String> = (0..17).map(|number| format!("customers c{number}")).collect();
        let slow = format!("SELECT count(*) FROM {}", tables.join(", "));
        let calling = tokio::spawn(async move { client.call(READ, sql(&slow)).await });
        let allowed = async || {
            let seen = Seen::read(&world, None).await?;
            let slow = seen
                .verdicts()
                .filter(|(_, verdict)| is_read(verdict) && verdict.decision == RecordedDecision::Allow);
            Ok(slow.count() == 2)
        };
        eventually("the call was let through", allowed).await?;
        gateway.kill()?;
        let ended = calling.await?;
        assert!(ended.is_err(), "the client is told that its connection ended: {ended:?}");
        eventually("the outcome is on record", async || {
            let seen = Seen::read(&world, None).await?;
            Ok(seen.outcomes().filter(|outcome| outcome.status.as_str() == "done").count() >= 2)
        })
        .await?;
        world.close().await;
        Ok(())
    })
}
