//! Policies are put in force, taken back and looked at, while everything goes on.

use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use anyhow::Result;
use writ::dev::nats_server::free_port;
use writ_broker::config::read_policies;
use writ_bus::{SystemClock, SystemEntropy, keyfile};
use writ_common::{
    codec::encode,
    entropy::draw,
    fresh::FreshQuestion,
    ids::{BootId, NodeId, TenantId},
    policy::{PolicyBundle, PolicyRevision},
    reason::ReasonCode,
    record::Origin,
    signed::Signed,
    subjects::Subject,
    time::Millis,
    wire::AdminWanted,
};
use writ_tests::{Seen, World, WorldOptions, eventually, read, run};

use crate::{
    bus::node_bus,
    cli::writ,
    faults::broker,
    health::{get, sample},
};

const RULES: &str = "planes/20-action.datalog";
const NOBODY_READS: &str = "\n/// nobody reads\ndeny if resource(\"tool.crm\");\n";

/// The policy of the set-up, with more at the end of its rules.
fn with(world: &World, rules: &str) -> Result<PolicyBundle> {
    let mut bundle =
        read_policies(&world.layout.policies()).map_err(|findings| anyhow::anyhow!("{findings}"))?;
    bundle.0.get_mut(RULES).unwrap().push_str(rules);
    Ok(bundle)
}

fn write(world: &World, rules: &str) -> Result<()> {
    let file = world.layout.policies().join(RULES);
    let text = fs::read_to_string(&file)? + rules;
    Ok(fs::write(file, text)?)
}

fn short(revision: PolicyRevision) -> String {
    revision.0.short()
}

/// A transcript: every verb, and what it says.
#[test]
fn a_policy_is_activated_shown_and_rolled_back_without_a_restart() -> Result<()> {
    run(async {
        let mut world =
            World::with(WorldOptions { nodes: vec!["node-1", "node-2"], ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        let (first, second) = (with(&world, "")?.revision(), with(&world, NOBODY_READS)?.revision());

        // Each node reports once a second.
        eventually("both nodes have reported", async || {
            let said = writ(&world, &["policy", "show"]).await?;
            Ok(said.out.matches(" has it").count() == 2)
        })
        .await?;
        let said = writ(&world, &["policy", "show"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        for part in
            [first.to_string().as_str(), "by broker broker-1", "node-1 has it", "node-2 has it", "history"]
        {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }

        write(&world, NOBODY_READS)?;
        // The cases of the folder say that the researcher reads.
        let said = writ(&world, &["policy", "activate", ".writ/policies"]).await?;
        assert_eq!(said.code, 1, "{}{}", said.out, said.err);
        for part in ["nothing was put in force", "FAIL the researcher reads", "--no-test"] {
            assert!(said.err.contains(part), "{part}: {}", said.err);
        }
        read(&task, "SELECT 1").await?;
        let said =
            writ(&world, &["policy", "activate", ".writ/policies", "--no-test", "--expect", &short(first)])
                .await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        for part in
            [short(second).as_str(), &short(first), "node-1           has it", "node-2           has it"]
        {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::PolicyDenied));

        // Whoever still thinks the first is in force is told who was faster.
        let said =
            writ(&world, &["policy", "activate", ".writ/policies", "--no-test", "--expect", &short(first)])
                .await?;
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(
            said.err.contains("policy.moved") && said.err.contains("put there by operator operator"),
            "{}",
            said.err
        );
        let said = writ(&world, &["policy", "activate", ".writ/policies", "--no-test"]).await?;
        assert!(said.code == 0 && said.out.contains("already; nothing changed"), "{}{}", said.out, said.err);

        let said = writ(&world, &["policy", "rollback"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert!(said.out.contains(&short(first)), "{}", said.out);
        read(&task, "SELECT 1").await?;
        let said = writ(&world, &["policy", "show"]).await?;
        assert!(said.out.contains("(again, as in #"), "{}", said.out);
        let said = writ(&world, &["policy", "show", &short(second), "--files"]).await?;
        assert!(
            said.out.contains("==> planes/20-action.datalog <==") && said.out.contains("nobody reads"),
            "{}",
            said.out
        );
        let json = writ(&world, &["policy", "show", "-o", "json"]).await?;
        let shown: serde_json::Value = serde_json::from_str(&json.out)?;
        let by: Vec<&str> =
            shown["history"].as_array().unwrap().iter().map(|one| one["by"].as_str().unwrap()).collect();
        assert_eq!(
            by,
            ["broker broker-1", "operator operator", "operator operator"],
            "the one that changed nothing wrote nothing"
        );
        let sequences: Vec<u64> = shown["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["sequence"].as_u64().unwrap())
            .collect();
        assert!(sequences.is_sorted(), "what goes back goes forward: {sequences:?}");

        // It is all on record: who, which revision, and what was refused.
        let seen = Seen::read(&world, None).await?;
        let acts: Vec<String> = seen
            .verdicts()
            .filter(|(_, verdicted)| {
                let action = verdicted.what.action.as_ref().map(ToString::to_string);
                matches!(action.as_deref(), Some("activate" | "rollback"))
            })
            .map(|(record, verdicted)| {
                assert!(matches!(record.id.origin, Origin::Broker(_)));
                assert_eq!(verdicted.who.operator.as_deref(), Some("operator"));
                assert!(verdicted.basis.policy.is_some() && verdicted.basis.epoch.is_some());
                format!("{:?} {}", verdicted.decision, verdicted.what.resource.as_ref().unwrap())
            })
            .collect();
        assert_eq!(
            acts,
            [
                format!("Allow policy.{second}"),
                format!("Deny policy.{second}"),
                format!("Allow policy.{second}"),
                format!("Allow policy.{first}")
            ]
        );

        // A restart brings nothing back: the folder still holds the second.
        world.stop_broker().await;
        world.start_broker().await?;
        eventually("both nodes are heard", async || {
            let status = world.operator().await?.status().await?;
            Ok(status.policy == Some(first) && status.nodes.iter().all(|node| node.policy == Some(first)))
        })
        .await?;
        let status = world.operator().await?.status().await?;
        assert_eq!((status.policy, status.configured), (Some(first), Some(second)));
        let said = writ(&world, &["doctor"]).await?;
        assert!(
            said.out.contains(&format!("its policy folder holds {}, which is not in force", short(second))),
            "{}",
            said.out
        );
        let said = writ(&world, &["policy", "show"]).await?;
        assert!(
            said.out.contains(&format!("its folder holds {}, which is not in force", short(second))),
            "{}",
            said.out
        );
        read(&task, "SELECT 1").await?;
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn what_may_not_be_in_force_is_refused_with_its_place() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let operator = world.operator().await?;
        let first = operator.status().await?.policy;
        let activate = async |bundle: PolicyBundle| {
            operator.ask(AdminWanted::ActivatePolicy { bundle, expect: None }).await
        };
        // The command line refuses it, and so does the broker, which trusts no command line.
        write(&world, "\ndeny if resuorce(\"tool.crm\");\n")?;
        let said = writ(&world, &["policy", "activate", ".writ/policies"]).await?;
        assert!(said.code == 3 && said.err.contains("20-action.datalog:10:9"), "{}", said.err);
        let error = activate(with(&world, "")?).await.unwrap_err().to_string();
        assert!(
            error.contains("policy.invalid: planes/20-action.datalog:10:9: there is no predicate `resuorce`"),
            "{error}"
        );
        let error = activate(PolicyBundle::default()).await.unwrap_err().to_string();
        assert!(error.contains("no rule allows anything"), "{error}");
        let mut bundle = with(&world, "")?;
        bundle.0.insert(
            RULES.to_owned(),
            "/// nobody\ndeny if request(\"admin\"), action(\"activate\");".to_owned(),
        );
        let error = activate(bundle.clone()).await.unwrap_err().to_string();
        assert!(error.contains("no operator may put another one in force"), "{error}");
        // What was never in force is no rollback.
        bundle.0.insert(RULES.to_owned(), String::new());
        let wanted = AdminWanted::RollbackPolicy { bundle: bundle.clone(), expect: None };
        let error = operator.ask(wanted).await.unwrap_err().to_string();
        assert!(error.contains("policy.unknown"), "{error}");
        assert_eq!(operator.status().await?.policy, first);
        // The policy in force says who may.
        bundle.0.insert(
            RULES.to_owned(),
            "/// nobody goes back\ndeny if operator(\"operator\"), action(\"rollback\");".to_owned(),
        );
        activate(bundle.clone()).await?;
        eventually("the broker has it", async || {
            Ok(operator.status().await?.policy == Some(bundle.revision()))
        })
        .await?;
        let said = writ(&world, &["policy", "rollback"]).await?;
        assert!(said.code == 2 && said.err.contains("nobody goes back"), "{}{}", said.out, said.err);
        for (arguments, part) in [
            (&["policy", "show", "abc"][..], "at least 4 digits"),
            (&["policy", "show", "#999"], "#999"),
            (&["policy", "rollback", "ffffffff"], "writ policy show"),
            (&["policy", "activate", "/nowhere"], "/nowhere"),
        ] {
            let said = writ(&world, arguments).await?;
            assert!(said.code != 0 && said.err.contains(part), "{arguments:?}: {}", said.err);
        }
        // What does not fit into a message is told before it is sent.
        let mut huge = with(&world, "")?;
        huge.0.insert("more.datalog".to_owned(), "//\n".repeat(200_000));
        fs::write(world.layout.policies().join("more.datalog"), "//\n".repeat(200_000))?;
        let said = writ(&world, &["policy", "activate", ".writ/policies"]).await?;
        assert!(said.code == 3 && said.err.contains("more than 524288"), "{}", said.err);
        huge.0.insert("even-more.datalog".to_owned(), "//\n".repeat(200_000));
        let error = activate(huge).await.unwrap_err().to_string();
        assert!(error.contains("max_payload"), "{error}");
        world.close().await;
        Ok(())
    })
}

/// Two revisions by turns while agents call: every call is decided by one of the two, and every record is there.
#[test]
fn p14_under_load_each_record_names_one_of_the_two_revisions() -> Result<()> {
    run(async {
        let world =
            World::with(WorldOptions { nodes: vec!["node-1", "node-2"], ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        let operator = world.operator().await?;
        let bundles = [with(&world, "")?, with(&world, NOBODY_READS)?];
        let (mut done, mut denied) = (0, 0);
        let swaps = async {
            for turn in 1..=8 {
                let bundle = bundles[turn % 2].clone();
                operator.ask(AdminWanted::ActivatePolicy { bundle, expect: None }).await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            anyhow::Ok(())
        };
        let calls = async {
            for _ in 0..40 {
                let (one, two, three) =
                    tokio::join!(read(&task, "SELECT 1"), read(&task, "SELECT 2"), read(&task, "SELECT 3"));
                for answer in [one, two, three] {
                    match answer {
                        Ok(_) => done += 1,
                        Err(error) => {
                            assert_eq!(error.code(), Some(ReasonCode::PolicyDenied), "{error}");
                            denied += 1;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        let (swapped, called) = tokio::join!(swaps, calls);
        swapped?;
        called?;
        assert!(done > 0 && denied > 0, "both were met: {done} done, {denied} denied");
        eventually("every call is on record", async || {
            let seen = Seen::read(&world, Some(task.id())).await?;
            let verdicts = seen.verdicts().filter(|(record, _)| matches!(record.id.origin, Origin::Node(_)));
            Ok(verdicts.count() == done + denied && seen.outcomes().count() == done)
        })
        .await?;
        let seen = Seen::read(&world, None).await?;
        assert_eq!(seen.missing(), 0);
        let revisions: BTreeSet<PolicyRevision> = bundles.iter().map(PolicyBundle::revision).collect();
        let control = operator.control().await?;
        for (record, verdicted) in seen.verdicts().filter(|(_, verdicted)| verdicted.what.call.is_some()) {
            let revision = verdicted.basis.policy.unwrap();
            assert!(revisions.contains(&revision), "{record:?}");
            // The epoch names the revision once more: the two never contradict each other.
            let epoch = verdicted.basis.epoch.unwrap();
            let then = control.activations().iter().rev().find(|one| one.sequence <= epoch.sequence).unwrap();
            assert_eq!(then.revision, revision, "{record:?}");
            let is_denied = !verdicted.reasons.is_empty();
            assert_eq!(is_denied, revision == bundles[1].revision(), "{record:?}");
        }
        world.close().await;
        Ok(())
    })
}

/// P14: a node that goes on living under another policy is told of: in the broker's log, by `writ doctor`, in numbers.
#[test]
fn p14_a_live_node_that_stays_on_another_policy_raises_an_alarm() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        World::edit(&world.layout.broker_config(), "127.0.0.1:0", &http.to_string())?;
        let broker = broker(&world)?;
        eventually("agents are enrolled", async || Ok(world.enroll_missing().await.is_ok())).await?;
        // A node as the broker hears it: it asks every second, and is where it was before the last activation.
        let key = keyfile::read_key(&world.state().join("keys/node-1.key"))?;
        let (bus, tenant) = (node_bus(&world, "node-1").await?, TenantId::parse("acme")?);
        let clock = SystemClock::new();
        let boot = BootId::generate(clock.now().wall, draw(&mut SystemEntropy));
        let operator = world.operator().await?;
        let ask = async |policy: PolicyRevision| {
            let question = FreshQuestion {
                tenant: tenant.clone(),
                node: NodeId::parse("node-1")?,
                boot: boot.clone(),
                nonce: draw(&mut SystemEntropy),
                applied: operator.control().await?.epoch(),
                staleness: Millis::from_secs(5),
                fault: None,
                policy: Some(policy),
                policy_fault: None,
            };
            let payload = encode(&Signed::new(&question, &key));
            drop(bus.request(Subject::Fresh.of(&tenant), payload, None, Duration::from_secs(5)).await?);
            anyhow::Ok(())
        };
        let numbers =
            async || anyhow::Ok(sample(&get(http, "/metrics").await?.1, "writ_nodes_on_another_policy"));
        let (first, second) = (with(&world, "")?, with(&world, NOBODY_READS)?);
        ask(first.revision()).await?;
        let changed = AdminWanted::ActivatePolicy { bundle: second.clone(), expect: None };
        operator.ask(changed).await?;
        // For as long as it takes to put a policy in force everywhere, that is nothing.
        ask(first.revision()).await?;
        let said = writ(&world, &["doctor"]).await?;
        assert!(!said.out.contains("has decided by policy"), "{}", said.out);
        assert_eq!(numbers().await?, Some(0.0));
        eventually("the broker's alarm", async || {
            tokio::time::sleep(Duration::from_millis(900)).await;
            ask(first.revision()).await?;
            Ok(broker.said().contains("node-1 has decided by another policy"))
        })
        .await?;
        let said = writ(&world, &["doctor"]).await?;
        let (old, new) = (short(first.revision()), short(second.revision()));
        assert!(
            said.out.contains(&format!("FAULT node node-1: has decided by policy {old}")),
            "{}",
            said.out
        );
        assert!(said.out.contains(&new) && said.code == 1, "{}", said.out);
        eventually("it is counted", async || Ok(numbers().await? == Some(1.0))).await?;
        ask(first.revision()).await?;
        assert_eq!(broker.said().matches("has decided by another policy").count(), 1, "told once");
        ask(second.revision()).await?;
        eventually("it is over", async || Ok(numbers().await? == Some(0.0))).await?;
        drop(broker);
        world.close().await;
        Ok(())
    })
}

#[test]
fn what_is_observed_is_done_and_shown_wherever_one_looks() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let contract = world.layout.policies().join("tools/crm.toml");
        let until = |days: u64| {
            let until = SystemClock::new().now().wall.after(Millis::from_secs(days * 86_400)).to_string();
            format!("{}Z", until.split('.').next().unwrap())
        };
        World::edit(
            &contract,
            "[[action]]",
            &format!("[observe]\nuntil = \"{}\"\n\n[[action]]", until(100)),
        )?;
        write(&world, &format!("{NOBODY_READS}\nmay_observe(\"tool.crm\") <- request(\"call\");\n"))?;
        let activate = ["policy", "activate", ".writ/policies", "--no-test"];
        let said = writ(&world, &activate).await?;
        assert!(said.code == 3 && said.err.contains("more than 90 days"), "{}{}", said.out, said.err);
        let error = world
            .operator()
            .await?
            .ask(AdminWanted::ActivatePolicy { bundle: with(&world, "")?, expect: None })
            .await
            .unwrap_err();
        assert!(error.to_string().contains("more than 90 days"), "the broker has a calendar too: {error}");
        World::edit(&contract, until(100).get(..10).unwrap(), until(30).get(..10).unwrap())?;
        let said = writ(&world, &activate).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        read(&task, "SELECT 1").await?;
        for (arguments, part) in [
            (&["audit", "tail", "--no-follow", "-n", "50"][..], "WOULD DENY policy.denied: nobody reads"),
            (&["audit", "chain", "last"], "WOULD DENY policy.denied: nobody reads"),
            (&["audit", "chain", "last"], "(writ explain policy.denied)"),
            (&["audit", "observed"], "policy.denied: nobody reads"),
            (&["audit", "observed", "--agent", "mailer"], "nothing on record"),
            (&["audit", "chain", "last"], "{crm} trusted"),
            (&["policy", "show"], "observed    tool.crm until"),
        ] {
            let said = writ(&world, arguments).await?;
            assert!(said.out.contains(part), "{arguments:?}: {}{}", said.out, said.err);
        }
        // What no rule decides is not observed.
        let error =
            task.call("tool.crm", "read", writ_sdk::json::object([("sqll", "x".into())])).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ArgUnknown), "{error}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_policy_in_the_shadow_is_asked_and_nothing_is_done_by_it() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        write(&world, NOBODY_READS)?;
        let said = writ(&world, &["policy", "shadow", ".writ/policies"]).await?;
        assert!(said.code == 0 && said.out.contains("is asked beside"), "{}{}", said.out, said.err);
        // The node follows the control stream; until it has read the event nothing is compared.
        let mut tail = String::new();
        for _ in 0..50 {
            read(&task, "SELECT name FROM customers").await?;
            tail = writ(&world, &["audit", "tail", "--no-follow", "-n", "5"]).await?.out;
            if tail.contains("shadow ") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(tail.contains(": DENY policy.denied [planes/20-action.datalog:"), "{tail}");
        let shown = writ(&world, &["policy", "show"]).await?;
        assert!(shown.out.contains("is asked beside it"), "{}", shown.out);
        let off = writ(&world, &["policy", "shadow", "--off"]).await?;
        assert_eq!(off.code, 0, "{}", off.err);
        fs::write(world.layout.policies().join(RULES), "allow if tru;\n")?;
        let broken = writ(&world, &["policy", "shadow", ".writ/policies"]).await?;
        assert!(broken.code == 3 && broken.err.contains("20-action.datalog:1:"), "{}", broken.err);
        world.close().await;
        Ok(())
    })
}
