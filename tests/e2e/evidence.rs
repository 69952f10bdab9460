//! Evidence: the log of every run is witnessed, an export of it stands for itself, and whoever changes it is found.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::Signal;
use serde_json::Value;
use writ::evidence::gather;
use writ_bus::keyfile;
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision},
    codec::{decode, encode},
    digest::Digest,
    keys::PrivateKey,
    policy::PolicyRevision,
    reason::ReasonCode,
    record::{Origin, Record, RecordBody, RecordKind},
    signed::Signed,
    time::{Millis, Timestamp},
};
use writ_sdk::Task;
use writ_tests::{World, WorldOptions, eventually, read, run};

use crate::{
    approvals::answer_for,
    audit_questions::held,
    cli::writ,
    faults::{copy, node},
    flow::hands,
};

struct Export<'a> {
    world: &'a World,
    name: &'a str,
    root: String,
}

impl<'a> Export<'a> {
    async fn of(world: &'a World, name: &'a str, more: &[&str]) -> Result<Self> {
        let arguments = [&["audit", "export", "--out", name], more].concat();
        let said = writ(world, &arguments).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let root = writ::operator::OperatorProfile::load(&world.layout.operator())?.root.to_string();
        Ok(Self { world, name, root })
    }

    fn path(&self) -> std::path::PathBuf {
        self.world.folder().join(self.name)
    }

    /// A copy to do something to.
    fn copied(&self, name: &'a str) -> Result<Self> {
        copy(&self.path(), &self.world.folder().join(name))?;
        Ok(Self { world: self.world, name, root: self.root.clone() })
    }

    async fn verify(&self, more: &[&str]) -> Result<(i32, Value)> {
        let arguments = [&["audit", "verify", self.name, "--root", &self.root, "-o", "json"], more].concat();
        let said = writ(self.world, &arguments).await?;
        let report = serde_json::from_str(&said.out).with_context(|| format!("{}{}", said.out, said.err))?;
        Ok((said.code, report))
    }

    async fn faults(&self, more: &[&str]) -> Result<BTreeSet<String>> {
        let (code, report) = self.verify(more).await?;
        let faults: BTreeSet<String> = report["findings"]
            .as_array()
            .context("findings")?
            .iter()
            .filter(|finding| finding["severity"] == "fault")
            .map(|finding| finding["code"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(code, i32::from(!faults.is_empty()));
        Ok(faults)
    }

    fn records(&self) -> Result<Vec<Value>> {
        self.lines("records.jsonl")
    }

    fn put(&self, records: &[Value]) -> Result<()> {
        self.put_lines("records.jsonl", records)
    }

    fn lines(&self, file: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.path().join(file))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn put_lines(&self, file: &str, lines: &[Value]) -> Result<()> {
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path().join(file), lines.concat())?;
        self.list_again()
    }

    /// The list of files, as whoever changed them would make it.
    fn list_again(&self) -> Result<()> {
        let path = self.path().join("export.json");
        let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let files = manifest["files"].as_object_mut().context("files")?;
        files.retain(|name, _| self.path().join(name).exists());
        for (name, digest) in files {
            *digest = Digest::plain(&fs::read(self.path().join(name))?).to_string().into();
        }
        Ok(fs::write(path, manifest.to_string())?)
    }
}

/// Exports everything, verifies it, and gives back what people were asked and said.
pub(crate) async fn said_in_evidence(world: &World) -> Result<Vec<Value>> {
    let export = Export::of(world, "evidence", &[]).await?;
    assert_eq!(export.faults(&[]).await?, BTreeSet::new());
    export.lines("approvals.jsonl")
}

fn envelope(line: &Value) -> Vec<u8> {
    STANDARD.decode(line["payload"].as_str().unwrap()).unwrap()
}

fn record(line: &Value) -> Record {
    decode::<Signed<Record>>(&envelope(line)).unwrap().peek().unwrap()
}

/// The line with another record of the same place.
fn resigned(line: &Value, key: &PrivateKey, change: impl FnOnce(&mut Record)) -> Value {
    let mut record = record(line);
    change(&mut record);
    let mut line = line.clone();
    line["payload"] = STANDARD.encode(encode(&Signed::new(&record, key))).into();
    line
}

fn is_nodes(line: &Value) -> bool {
    matches!(record(line).id.origin, Origin::Node(_))
}

#[test]
fn b05_b06_an_export_verifies_and_whoever_changes_it_is_found() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (planner, task) = world.task().await?;
        planner.keep_receipts(&world.folder().join("receipts"))?;
        for number in 0..5 {
            read(&task, &format!("SELECT {number}")).await?;
            read(&task, "DELETE FROM customers").await.unwrap_err();
        }
        let good = Export::of(&world, "good", &[]).await?;
        let (code, report) = good.verify(&[]).await?;
        assert_eq!((code, &report["findings"]), (0, &Value::Array(vec![])), "{report:#}");
        assert!(
            report["records"].as_u64() >= Some(16) && report["witnessed"] == report["records"],
            "{report}"
        );
        assert!(report["runs"].as_u64() >= Some(2));
        // Somebody else's root vouches for none of it.
        let other = PrivateKey::from_seed(&[7; 32]).public().to_string();
        let foreign = Export { root: other, world: &world, name: "good" };
        assert!(foreign.faults(&[]).await?.contains("record.forged"));

        let lines = good.records()?;
        let key = keyfile::read_key(&world.state().join("keys/node-1.key"))?;
        let of_node: Vec<usize> = (0..lines.len()).filter(|index| is_nodes(&lines[*index])).collect();
        let is_intent = |index: &&usize| record(&lines[**index]).kind() == RecordKind::Allow;
        let intent = *of_node.iter().skip(2).find(is_intent).context("an intent")?;
        let last = *of_node.last().context("a record of the node")?;
        let with = |index: usize, new: &[Value]| {
            let mut lines = lines.clone();
            lines.splice(index..=index, new.iter().cloned());
            lines
        };
        let later = |record: &mut Record| record.at = record.at.after(Millis(1));
        let never = PolicyRevision(Digest::plain(b"never in force"));
        let by_another_policy = |record: &mut Record| {
            if let RecordBody::Verdict(verdicted) = &mut record.body {
                verdicted.basis.policy = Some(never);
            }
        };
        let mut changed = lines[intent].clone();
        let mut bytes = envelope(&changed);
        // In the middle of the signature, so that it stays a record.
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        changed["payload"] = STANDARD.encode(bytes).into();
        let stranger = PrivateKey::from_seed(&[9; 32]);
        let again = resigned(&lines[intent], &key, later);
        let cases: [(&'static str, Vec<Value>, &[&str]); 9] = [
            ("byte", with(intent, &[changed]), &["record.changed", "record.missing"]),
            ("missing", with(intent, &[]), &["record.missing"]),
            ("forged", with(intent, &[resigned(&lines[intent], &stranger, |_| {})]), &["record.forged"]),
            ("two", with(intent, &[lines[intent].clone(), again.clone()]), &["record.fork"]),
            // Whoever has the node's key can sign what was not, and cannot make the log agree.
            ("exchanged", with(intent, &[again]), &["log.fork", "record.order"]),
            (
                "reordered",
                with(intent, &[resigned(&lines[intent], &key, |record| record.prev = Digest::plain(b"x"))]),
                &["log.fork", "record.order"],
            ),
            (
                "policy",
                with(intent, &[resigned(&lines[intent], &key, by_another_policy)]),
                &["policy.never_active"],
            ),
            // Cut off at the end: the checkpoint knows of it.
            ("cut", with(last, &[]), &["log.rolled_back"]),
            ("twice", with(intent, &[lines[intent].clone(), lines[intent].clone()]), &[]),
        ];
        for (name, lines, expected) in cases {
            let copy = good.copied(name)?;
            copy.put(&lines)?;
            let faults = copy.faults(&[]).await?;
            let is_found = expected.iter().all(|code| faults.contains(*code));
            assert!(is_found && faults.is_empty() == expected.is_empty(), "{name}: {faults:?}");
        }
        // An export from which everything of a node was taken is caught by what was kept of its log.
        let heads = writ(&world, &["audit", "heads"]).await?;
        assert_eq!(heads.code, 0, "{}", heads.err);
        fs::write(world.folder().join("heads"), &heads.out)?;
        assert!(good.faults(&["--heads", "heads"]).await?.is_empty());
        fs::write(good.path().join("policies").join("more"), "?")?;
        assert!(good.faults(&[]).await?.is_empty(), "a file nobody listed is a warning");
        let none = good.copied("none")?;
        none.put(&lines.iter().filter(|line| !is_nodes(line)).cloned().collect::<Vec<_>>())?;
        for entry in fs::read_dir(none.path().join("logs"))? {
            let path = entry?.path();
            if path.to_string_lossy().contains("node.") {
                fs::remove_dir_all(path)?;
            }
        }
        none.list_again()?;
        let faults = none.faults(&["--receipts", "receipts"]).await?;
        assert_eq!(faults, BTreeSet::from(["receipt.without_record".to_owned()]));
        assert!(good.faults(&["--receipts", "receipts"]).await?.is_empty());
        assert_eq!(fs::read_to_string(world.folder().join("receipts"))?.lines().count(), 10);
        assert!(none.faults(&["--heads", "heads"]).await?.contains("log.rolled_back"));
        world.close().await;
        Ok(())
    })
}

/// A mail that bob lets pass.
async fn mailed(world: &World) -> Result<Task> {
    let (task, _researcher, mailer) = hands(world, "test").await?;
    let held = held(&mailer).await?;
    answer_for(world, "bob", &held.approval, ApprovalDecision::Granted, Millis::from_secs(600)).await?;
    mailer.wait_for_approval(held, Duration::from_secs(20)).await?;
    Ok(task)
}

#[test]
fn b05_h11_who_let_something_pass_said_so_and_whoever_makes_that_up_is_found() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailed(&world).await?;
        let whole = Export::of(&world, "whole", &[]).await?;
        assert_eq!(whole.verify(&[]).await?.1["findings"], Value::Array(vec![]));
        // Another task asks too, and is in no export of this one.
        let other = mailed(&world).await?;
        let good = Export::of(&world, "good", &["--task", task.id().as_str()]).await?;
        assert!(good.faults(&[]).await?.is_empty());
        let lines = good.lines("approvals.jsonl")?;
        assert_eq!(lines.len(), 2, "what was asked, and the answer: {lines:#?}");
        assert!(lines[0]["said"]["arguments"].as_str().unwrap().contains("On its way."), "{lines:#?}");
        assert_ne!(lines[0]["said"]["task"], Value::from(other.id().as_str()));
        let key = keyfile::read_key(&world.state().join("keys/node-1.key"))?;
        let said: ApprovalAnswer = decode::<Signed<ApprovalAnswer>>(&envelope(&lines[1]))?.peek()?;
        let answer = |key: &PrivateKey, change: &dyn Fn(&mut ApprovalAnswer)| {
            let (mut line, mut said) = (lines[1].clone(), said.clone());
            change(&mut said);
            line["payload"] = STANDARD.encode(encode(&Signed::new(&said, key))).into();
            line
        };
        let bob = keyfile::read_key(&world.state().join("keys/bob.key"))?;
        let asked = lines[0].clone();
        let cases: [(&'static str, Vec<Value>, &str); 5] = [
            ("asked-only", vec![asked.clone()], "approval.missing"),
            ("answered-only", vec![lines[1].clone()], "approval.missing"),
            // A node that acts without anybody's word can name bob in its records, and not sign for him.
            ("by-the-node", vec![asked.clone(), answer(&key, &|_| {})], "approval.signature"),
            (
                "refused",
                vec![asked.clone(), answer(&bob, &|said| said.decision = ApprovalDecision::Refused)],
                "approval.binding",
            ),
            (
                "ended",
                vec![asked, answer(&bob, &|said| said.expires = Timestamp::from_secs(1))],
                "approval.binding",
            ),
        ];
        for (name, lines, code) in cases {
            let copy = good.copied(name)?;
            copy.put_lines("approvals.jsonl", &lines)?;
            assert_eq!(copy.faults(&[]).await?, BTreeSet::from([code.to_owned()]), "{name}");
        }
        let unknown = good.copied("unknown")?;
        fs::remove_file(unknown.path().join("approvals.jsonl"))?;
        unknown.list_again()?;
        assert_eq!(unknown.faults(&[]).await?, BTreeSet::from(["approval.missing".to_owned()]));
        world.close().await;
        Ok(())
    })
}

#[test]
fn one_record_is_proved_and_the_proof_is_checked_without_a_bus() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        let export = Export::of(&world, "kept", &["--task", "last"]).await?;
        let (code, report) = export.verify(&[]).await?;
        assert_eq!((code, &report["findings"]), (0, &Value::Array(vec![])), "{report:#}");
        let line = export.records()?.into_iter().rfind(is_nodes).context("a record")?;
        let id = record(&line).id.to_string();
        let said = writ(&world, &["audit", "prove", &id, "--out", "one.tlog-proof"]).await?;
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let check = ["audit", "check-proof", "one.tlog-proof", "--root", &export.root, "--control"];
        let elsewhere = [&check[..], &["kept", "--profile", "/nowhere"]].concat();
        let said = writ(&world, &elsewhere).await?;
        assert!(said.code == 0 && said.out.contains("the proof holds"), "{}{}", said.out, said.err);
        assert!(said.out.contains("broker-1 cosigned at"), "{}", said.out);
        let path = world.folder().join("one.tlog-proof");
        let text = fs::read_to_string(&path)?;
        let position = record(&line).id.seq;
        for (name, wrong) in [
            ("position", text.replace(&format!("index {position}\n"), &format!("index {}\n", position + 1))),
            ("signature", text.replace("writ-log/v1/acme/node/node-1", "writ-log/v1/acme/node/node-2")),
        ] {
            assert_ne!(wrong, text, "{name}");
            fs::write(&path, wrong)?;
            let said = writ(&world, &[&check[..], &["kept"]].concat()).await?;
            assert_eq!(said.code, 1, "{name}: {}", said.out);
        }
        for (arguments, part) in [
            (&["audit", "prove", "node-1/b"][..], "position"),
            (&["audit", "prove", "node-1/b-x/3"], "no record node-1/b-x/3"),
            (&["audit", "verify", "."], "is it the folder of an export?"),
        ] {
            let said = writ(&world, arguments).await?;
            assert!(said.code == 1 && said.err.contains(part), "{arguments:?}: {}", said.err);
        }
        world.close().await;
        Ok(())
    })
}

async fn closed_and_open(world: &World) -> Result<(usize, usize)> {
    let operator = world.operator().await?;
    let heads = gather::heads(&operator).await?;
    operator.close().await;
    let nodes = heads.values().filter(|head| matches!(head.checkpoint().log.origin, Origin::Node(_)));
    let (closed, open): (Vec<_>, Vec<_>) = nodes.partition(|head| head.checkpoint().is_closed);
    Ok((closed.len(), open.len()))
}

#[test]
fn a_run_is_closed_when_it_ends_and_by_the_next_one_when_it_was_killed() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        world.start_broker().await?;
        let first = node(&world, "node-1")?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("a node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        eventually("its log is witnessed", async || Ok(closed_and_open(&world).await? == (0, 1))).await?;
        let mut first = first;
        first.signal(Signal::TERM)?;
        assert_eq!(first.wait()?, 0);
        assert_eq!(closed_and_open(&world).await?, (1, 0), "{}", first.said());
        let second = node(&world, "node-1")?;
        eventually("a node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        second.kill()?;
        let third = node(&world, "node-1")?;
        eventually("a node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        eventually("both are closed", async || Ok(closed_and_open(&world).await? == (2, 1))).await?;
        let export = Export::of(&world, "after", &[]).await?;
        assert!(export.faults(&[]).await?.is_empty());
        drop(third);
        world.close().await;
        Ok(())
    })
}

fn journals(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "journal") {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn b06_a_node_that_was_set_back_decides_nothing_until_somebody_says_so() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        world.start_broker().await?;
        let first = node(&world, "node-1")?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("a node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let folder = world.state().join("node-1");
        let backup = world.folder().join("backup");
        copy(&folder, &backup)?;
        for _ in 0..3 {
            read(&task, "SELECT 1").await?;
        }
        let before = closed_and_open(&world).await?;
        assert_eq!(before.0, 0);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        first.kill()?;
        assert_eq!(journals(&folder)?.len(), 1);
        fs::remove_dir_all(&folder)?;
        copy(&backup, &folder)?;
        let second = node(&world, "node-1")?;
        eventually("it decides nothing", async || {
            Ok(read(&task, "SELECT 1")
                .await
                .is_err_and(|error| error.code() == Some(ReasonCode::StateRollback)))
        })
        .await?;
        assert!(second.said().contains("the witness has seen"), "{}", second.said());
        second.kill()?;
        let arguments = ["node", "--config", "node-1.toml", "--accept-streams"];
        let state = world.state();
        let _third = writ_tests::WritProcess::start(crate::WRIT, &arguments, &state, "node-1.log")?;
        eventually("a node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        world.close().await;
        Ok(())
    })
}
