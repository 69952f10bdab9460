//! What auditors ask, asked of a running Writ and of an export, and held against the stream itself.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value as Json;
use writ::operator::Operator;
use writ_bus::Store;
use writ_common::{
    approval::ApprovalDecision,
    codec::encode,
    control::RevocationTarget,
    ids::TaskId,
    keys::PrivateKey,
    record::{Record, RecordBody, RecordKind},
    signed::Signed,
    time::Millis,
    wire::{AdminReply, AdminWanted},
};
use writ_sdk::{Error, Held, Task};
use writ_tests::{Seen, World, eventually, letter, only, read, run};

use crate::{
    approvals::answer_for,
    bus::node_bus,
    cli::{Said, writ},
    parts::until_current,
};

/// A task of alice's over three agents: a read, a refusal, a mail that bob lets go and one that he does not.
async fn story(world: &World) -> Result<Task> {
    let (_planner, task) = world.task().await?;
    let (researcher, mailer) = (world.agent("researcher").await?, world.agent("mailer").await?);
    let rights = only(["tool.mail:draft", "tool.mail:send", "tool.crm:read"])?;
    let first = task.delegate("researcher", rights).await?.capability().await?;
    let researcher = Task::resume(&researcher, first)?;
    read(&researcher, "SELECT name, email FROM customers").await?;
    read(&researcher, "DELETE FROM customers").await.unwrap_err();
    let without = only(["tool.mail:draft", "tool.mail:send"])?;
    let second = researcher.delegate("mailer", without).await?.capability().await?;
    let mailer = Task::resume(&mailer, second)?;
    for decision in [ApprovalDecision::Granted, ApprovalDecision::Refused] {
        let held = held(&mailer).await?;
        answer_for(world, "bob", &held.approval, decision, Millis::from_secs(600)).await?;
        let ended = mailer.wait_for_approval(held, Duration::from_secs(20)).await;
        assert_eq!(ended.is_ok(), decision == ApprovalDecision::Granted, "{ended:?}");
    }
    Ok(task)
}

pub(crate) async fn held(task: &Task) -> Result<Held> {
    match task.call("tool.mail", "send", letter()).await {
        Err(Error::Held(held)) => Ok(*held),
        other => anyhow::bail!("not held: {other:?}"),
    }
}

async fn json(world: &World, arguments: &[&str]) -> Result<Json> {
    let said = writ(world, &[&["audit"], arguments, &["-o", "json"]].concat()).await?;
    anyhow::ensure!(said.code == 0, "{arguments:?}: {}{}", said.out, said.err);
    Ok(serde_json::from_str(&said.out)?)
}

fn sequences(answer: &Json) -> Vec<u64> {
    answer["rows"].as_array().unwrap().iter().map(|row| row["sequence"].as_u64().unwrap()).collect()
}

/// Part, sequence and task of a row.
type Found = (String, u64, String);

/// Where the rows of an answer stand, and whose they are.
fn places(answer: &Json) -> Vec<Found> {
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let rows = answer["rows"].as_array().unwrap().iter();
    rows.map(|row| (text(&row["part"]), row["sequence"].as_u64().unwrap(), text(&row["task"]))).collect()
}

/// The sequences of what the stream itself says, read in full.
fn brute(seen: &Seen, wanted: impl Fn(&Record) -> bool) -> Vec<u64> {
    let believed = seen.recorded.iter().filter(|one| one.fault.is_none());
    believed.filter(|one| one.record.as_ref().is_some_and(&wanted)).map(|one| one.sequence).collect()
}

#[test]
fn questions_of_an_auditor_are_answered_from_the_stream_and_from_an_export() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = story(&world).await?;
        // Somebody else's, which must be in no answer about alice.
        let planner = world.agent("planner").await?;
        assert!(world.task_of(&planner, "bob").await.is_err(), "nobody gives bob tasks");
        let seen = Seen::read(&world, None).await?;

        let alice = json(&world, &["user", "alice"]).await?;
        let of_alice = |record: &Record| match &record.body {
            RecordBody::Verdict(one) => one.who.user.as_ref().is_some_and(|user| user.subject() == "alice"),
            RecordBody::Void(one) => one.who.user.as_ref().is_some_and(|user| user.subject() == "alice"),
            RecordBody::Outcome(_) => false,
        };
        assert_eq!(sequences(&alice), brute(&seen, of_alice));
        assert!(sequences(&alice).len() >= 6);
        let bobs = sequences(&json(&world, &["user", "bob"]).await?);
        assert!(!bobs.is_empty() && bobs.iter().all(|one| !sequences(&alice).contains(one)));
        assert_eq!(alice["index"]["not_believed"], 0);
        assert_eq!(alice["index"]["missing"].as_array().unwrap().len(), 0);
        let issuer = alice["rows"][0]["user"]["iss"].as_str().unwrap().to_owned();
        let named = format!("{issuer}/alice");
        assert_eq!(sequences(&json(&world, &["user", &named]).await?), sequences(&alice));
        assert!(sequences(&json(&world, &["user", "https://else/alice"]).await?).is_empty());
        assert!(sequences(&json(&world, &["user", "alice", "--to", "1h"]).await?).is_empty());

        // A page at a time: all of it, nothing twice.
        let (mut paged, mut after) = (Vec::new(), "0".to_owned());
        loop {
            let page = json(&world, &["user", "alice", "--limit", "2", "--after", &after]).await?;
            paged.extend(sequences(&page));
            match page["next"].as_u64() {
                Some(next) => after = next.to_string(),
                None => break,
            }
        }
        assert_eq!(paged, sequences(&alice));

        let mailed =
            json(&world, &["user", "alice", "--agent", "mailer", "--action", "tool.mail:send"]).await?;
        let kinds: Vec<&str> =
            mailed["rows"].as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["hold", "allow", "hold", "deny"], "{mailed:#}");
        assert_eq!(mailed["rows"][1]["ended"]["status"], "done");

        report(&world, &task).await?;
        who_can(&world, &task).await?;
        labels_approvals_and_denials(&world, &seen).await?;
        by_export(&world, &task).await?;
        world.close().await;
        Ok(())
    })
}

async fn report(world: &World, task: &Task) -> Result<()> {
    let said = writ(world, &["audit", "report", "last", "--out", "report.html"]).await?;
    assert_eq!(said.code, 0, "{}", said.err);
    let html = fs::read_to_string(world.folder().join("report.html"))?;
    for part in [
        task.id().as_str(),
        "On the authority of alice",
        "<pre>test</pre>",
        "sql.not_read_only",
        "It was done in",
        "Approved by bob.",
        "On its way.",
        ": as discussed",
        "mailer",
        "node node-1",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let again = writ(world, &["audit", "report", "last", "--out", "report.html"]).await?;
    assert!(again.code == 1 && again.err.contains("--out"), "{}", again.err);
    Ok(())
}

async fn who_can(world: &World, task: &Task) -> Result<()> {
    let agents = |answer: &Json| -> Vec<(String, bool)> {
        let holdings = answer["holdings"].as_array().unwrap().iter();
        let own = holdings.filter(|one| one["grant"]["task"] == task.id().as_str());
        own.flat_map(|one| one["holders"].as_array().unwrap())
            .map(|one| (one["agent"].as_str().unwrap().to_owned(), one["ended_by"].is_null()))
            .collect()
    };
    let mail = json(world, &["who-can", "tool.mail:send"]).await?;
    let held =
        |names: &[&str], still| names.iter().map(|name| ((*name).to_owned(), still)).collect::<Vec<_>>();
    assert_eq!(agents(&mail), held(&["planner", "researcher", "mailer"], true), "{mail:#}");
    assert_eq!(mail["holdings"][0]["grant"]["user"]["sub"], "alice");
    assert_eq!(mail["policy"]["revision"], mail["holdings"][0]["grant"]["policy"]);
    assert!(!mail["allowed"].as_array().unwrap().is_empty(), "a role may have it: {mail:#}");
    // The mailer was not given this one.
    let crm = json(world, &["who-can", "tool.crm:read"]).await?;
    assert_eq!(agents(&crm), held(&["planner", "researcher"], true));
    let mailer = json(world, &["who-can", "tool.crm:read", "--agent", "mailer"]).await?;
    assert!(agents(&mailer).is_empty());
    assert!(agents(&json(world, &["who-can", "tool.mail:send", "--at", "1h"]).await?).is_empty(), "not yet");
    assert!(agents(&json(world, &["who-can", "tool.payments:wire"]).await?).is_empty());

    let before = mail["at"].as_str().unwrap();
    let halted = writ(world, &["task", "halt", task.id().as_str(), "--wait"]).await?;
    assert_eq!(halted.code, 0, "{}", halted.err);
    let after = json(world, &["who-can", "tool.mail:send"]).await?;
    assert_eq!(agents(&after), held(&["planner", "researcher", "mailer"], false));
    let ended = after["holdings"][0]["holders"][0]["ended_by"].as_str().unwrap();
    assert!(ended.contains("revoked") && ended.contains("by operator"), "{ended}");
    let then = json(world, &["who-can", "tool.mail:send", "--at", before]).await?;
    assert_eq!(agents(&then), held(&["planner", "researcher", "mailer"], true), "as it was then");
    Ok(())
}

async fn labels_approvals_and_denials(world: &World, seen: &Seen) -> Result<()> {
    let crm = json(world, &["label", "crm"]).await?;
    let carried = |record: &Record| {
        let label = match &record.body {
            RecordBody::Verdict(one) => one.basis.label.as_ref(),
            RecordBody::Outcome(one) => one.label.as_ref(),
            RecordBody::Void(_) => None,
        };
        label.is_some_and(|label| label.names().contains(&"crm"))
    };
    assert_eq!(sequences(&crm), brute(seen, carried));
    let came = crm["rows"].as_array().unwrap().iter().find(|row| row["kind"] == "outcome").unwrap();
    assert_eq!(
        (came["resource"].as_str(), came["hops"][0]["to"].as_str()),
        (Some("tool.crm"), Some("researcher"))
    );
    assert!(crm.to_string().contains("tool.mail"), "and where it went");

    let said = json(world, &["approvals"]).await?;
    let what: Vec<&str> =
        said["rows"].as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["granted", "used", "refused", "not done"], "{said:#}");
    for row in said["rows"].as_array().unwrap().iter().take(3) {
        assert_eq!(row["row"]["approval"]["by"][0], "bob");
        assert_eq!(row["call"]["resource"], "tool.mail");
        assert!(row["shown"].as_str().unwrap().contains("On its way."), "{row:#}");
    }
    assert_eq!(said["rows"][0]["row"]["approval"]["comment"], "as discussed");
    let by = |answer: &Json| answer["rows"].as_array().unwrap().len();
    assert_eq!(by(&json(world, &["approvals", "--by", "bob"]).await?), 3);
    assert_eq!(by(&json(world, &["approvals", "--by", "carol"]).await?), 0);

    let denials = json(world, &["denials", "--by", "day"]).await?;
    let row = |code: &str| {
        let rows = denials["rows"].as_array().unwrap().iter();
        rows.into_iter().find(|row| row["code"] == code).cloned().unwrap_or_default()
    };
    assert_eq!(row("sql.not_read_only")["now"], 1);
    assert_eq!(row("sql.not_read_only")["caller"], "researcher");
    let counted: u64 =
        denials["rows"].as_array().unwrap().iter().map(|row| row["now"].as_u64().unwrap()).sum();
    assert_eq!(counted, seen.refusals().count() as u64);
    let then = json(world, &["denials", "--at", "8d"]).await?;
    assert!(then["rows"].as_array().unwrap().is_empty());

    let csv = writ(world, &["audit", "approvals", "-o", "csv"]).await?;
    assert_eq!((csv.code, csv.out.matches("\r\n").count()), (0, 5), "{}{}", csv.out, csv.err);
    assert!(csv.out.starts_with("\"time\",\"number\",\"said\""), "{}", csv.out);
    let table = writ(world, &["audit", "who-can", "tool.mail:send"]).await?;
    assert!(table.out.contains("the broker") && table.out.contains("was in force"), "{}", table.out);
    let refused = writ(world, &["audit", "chain", "last", "-o", "csv"]).await?;
    assert!(refused.code == 64 && refused.err.contains("no table"), "{}", refused.err);
    Ok(())
}

async fn by_export(world: &World, task: &Task) -> Result<()> {
    let exported = writ(world, &["audit", "export", "--task", task.id().as_str(), "--out", "kept"]).await?;
    assert_eq!(exported.code, 0, "{}", exported.err);
    let live = json(world, &["label", "crm"]).await?;
    let kept = json(world, &["label", "crm", "--export", "kept"]).await?;
    assert_eq!(sequences(&kept), sequences(&live));
    assert!(world.folder().join("kept.index").is_dir());
    // Who said yes, and to what, goes with it.
    let said = |answer: &Json| {
        let rows = answer["rows"].as_array().unwrap().iter();
        let of =
            |row: &Json| (row["what"].clone(), row["row"]["approval"]["by"].clone(), row["shown"].clone());
        rows.map(of).collect::<Vec<_>>()
    };
    let live = json(world, &["approvals"]).await?;
    let kept = json(world, &["approvals", "--export", "kept"]).await?;
    assert_eq!((said(&kept), kept["rows"].as_array().unwrap().len()), (said(&live), 4));
    // Without bus and profile, from the root's key.
    let profile = writ::operator::OperatorProfile::load(&world.layout.operator())?;
    let root = profile.root.to_string();
    let trusted = ["--tenant", "acme", "--root", &root, "--profile", "/nowhere", "--index", "elsewhere"];
    let alone = json(world, &[&["user", "alice", "--export", "kept"], &trusted[..]].concat()).await?;
    assert!(!sequences(&alone).is_empty());
    let stranger = PrivateKey::from_seed(&[9; 32]).public().to_string();
    let other = ["audit", "user", "alice", "--export", "kept", "--root", &stranger, "--index", "third"];
    let other = writ(world, &other).await?;
    assert!(other.code == 1 && other.err.contains("no keyset"), "{}{}", other.out, other.err);
    // Another export in the place of this one is another source.
    let file = world.folder().join("kept/records.jsonl");
    let text = fs::read_to_string(&file)?;
    let (first, _) = text.split_once('\n').context("several records")?;
    fs::write(&file, format!("{first}\n"))?;
    let said = writ(world, &["audit", "user", "alice", "--export", "kept"]).await?;
    assert!(said.code == 1 && said.err.contains("--rebuild"), "{}{}", said.out, said.err);
    let said =
        writ(world, &["audit", "user", "alice", "--export", "kept", "--rebuild", "-o", "json"]).await?;
    assert_eq!(said.code, 0, "{}", said.err);
    Ok(())
}

async fn ask(world: &World, more: &[&str]) -> Result<Said> {
    writ(world, &[&["audit", "user", "alice"], more].concat()).await
}

#[test]
fn what_is_not_to_be_believed_is_counted_in_every_answer_and_in_none() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        let before = json(&world, &["user", "alice"]).await?;
        let seen = Seen::read(&world, None).await?;
        let of_kind =
            |kind| seen.records().find(|record| record.kind() == kind).cloned().context("it is there");
        let bus = node_bus(&world, "node-1").await?;
        let store = |subject: String, payload| Store {
            subject,
            payload,
            message_id: None,
            fence: writ_bus::Fence::None,
            ttl_secs: None,
        };
        // By another key, and no record at all.
        let mut forged = of_kind(RecordKind::Outcome)?;
        forged.id.seq += 1;
        let forged = encode(&Signed::new(&forged, &PrivateKey::from_seed(&[9; 32])));
        let subject = format!("writ.v1.acme.audit.p0.outcome.{}.node-1", task.id());
        bus.store(&store(subject.clone(), forged), Duration::from_secs(5)).await?;
        bus.store(&store(subject, b"nonsense".to_vec()), Duration::from_secs(5)).await?;
        // A genuine one under another task.
        let genuine = seen.recorded.iter().find(|one| one.kind() == Some(RecordKind::Outcome)).unwrap();
        let message = bus.message_at("WRIT_acme_p0", genuine.sequence).await?.context("it is there")?;
        let elsewhere = "writ.v1.acme.audit.p0.outcome.t-else.node-1".to_owned();
        bus.store(&store(elsewhere, message.payload.to_vec()), Duration::from_secs(5)).await?;
        // And a second copy of one, which is nothing bad.
        bus.store(&store(message.subject, message.payload.to_vec()), Duration::from_secs(5)).await?;

        let answer = json(&world, &["user", "alice"]).await?;
        assert_eq!(answer["rows"], before["rows"]);
        assert_eq!(answer["index"]["not_believed"], 3, "{:#}", answer["index"]);
        assert_eq!(answer["index"]["second_copies"], 1);
        let faults = answer["index"]["faults"].to_string();
        assert!(faults.contains("audit.bad_signature") && faults.contains("not its own"), "{faults}");
        let said = ask(&world, &[]).await?;
        assert!(said.out.contains("3 records are not to be believed"), "{}", said.out);
        let csv = ask(&world, &["-o", "csv"]).await?;
        assert!(
            csv.err.contains("3 records are not to be believed") && !csv.out.contains("believed"),
            "{}",
            csv.err
        );
        // Built again it says the same.
        let again = ask(&world, &["--rebuild", "-o", "json"]).await?;
        assert_eq!(serde_json::from_str::<Json>(&again.out)?, answer);
        world.close().await;
        Ok(())
    })
}

#[test]
fn another_stream_and_a_damaged_index_are_told_and_built_again() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        assert_eq!(ask(&world, &[]).await?.code, 0);
        let folder = world.state().join("audit-index");
        fs::write(folder.join("anchor"), b"no anchor")?;
        let said = ask(&world, &[]).await?;
        assert!(
            said.code == 1 && said.err.contains("damaged") && said.err.contains("--rebuild"),
            "{}",
            said.err
        );
        assert_eq!(ask(&world, &["--rebuild"]).await?.code, 0);
        assert_eq!(ask(&world, &[]).await?.code, 0);
        // The index of one set-up asked about another.
        let other = World::new().await?;
        let folder = folder.display().to_string();
        let said = ask(&other, &["--index", &folder]).await?;
        assert!(
            said.code == 1 && said.err.contains("was made from the audit stream of `acme`"),
            "{}",
            said.err
        );
        other.close().await;
        world.close().await;
        Ok(())
    })
}

/// Begins the next part, and waits until what outlives a task has moved there.
async fn rotate(world: &World, operator: &Operator) -> Result<()> {
    let next = operator.control().await?.parts().next();
    assert!(matches!(operator.ask(AdminWanted::RotatePart).await?, AdminReply::Done { .. }));
    until_current(world, &next).await?;
    // Nodes hear of it a moment later than operators.
    let planner = world.agent("planner").await?;
    eventually("a task is in it", async || {
        let task = world.task_of(&planner, "alice").await?;
        Ok(task.capability().await?.grant().domain.part == next)
    })
    .await
}

/// Puts the first part away, as an operator does: what lives in it ends, and the broker says that it may go.
async fn put_away(world: &World, operator: &Operator, found: &[Found], archive: &str) -> Result<()> {
    let tasks: BTreeSet<&String> =
        found.iter().filter(|(part, ..)| part == "p0").map(|(.., task)| task).collect();
    for task in tasks {
        operator.revoke(RevocationTarget::Task(TaskId::parse(task.as_str())?), true).await?;
    }
    let archiver = world.layout.archiver().display().to_string();
    let asked = ["--profile", &archiver, "audit", "archive", "--archive", archive, "--part", "p0"];
    let said = writ(world, &asked).await?;
    assert!(said.code == 0 && said.out.contains("its stream is deleted"), "{}{}", said.out, said.err);
    Ok(())
}

#[test]
fn answers_are_over_all_parts_also_those_that_were_put_away() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let operator = world.operator().await?;
        let (_planner, before) = world.task().await?;
        read(&before, "SELECT 1").await?;
        let first = json(&world, &["user", "alice"]).await?;
        assert!(places(&first).iter().all(|(part, ..)| part == "p0"));

        rotate(&world, &operator).await?;
        let (_planner, after) = world.task().await?;
        read(&after, "SELECT 2").await?;
        // The old task goes on where it began.
        read(&before, "SELECT 3").await?;
        read(&after, "DELETE FROM customers").await.unwrap_err();
        let all = json(&world, &["user", "alice"]).await?;
        let found = places(&all);
        assert_eq!(
            found.get(..places(&first).len()),
            Some(places(&first).as_slice()),
            "what was there stays"
        );
        let of = |task: &Task, part: &str| {
            found.iter().filter(|(of, _, id)| of == part && id == task.id().as_str()).count()
        };
        assert_eq!((of(&before, "p0"), of(&before, "p1")), (3, 0), "{found:?}");
        assert_eq!((of(&after, "p0"), of(&after, "p1")), (0, 3), "{found:?}");
        let at = |part: &str| found.iter().rposition(|(of, ..)| of == part).unwrap();
        assert!(at("p0") > found.iter().position(|(of, ..)| of == "p1").unwrap(), "in one order of time");
        let times: Vec<&str> =
            all["rows"].as_array().unwrap().iter().map(|row| row["at"].as_str().unwrap()).collect();
        assert!(times.is_sorted(), "{times:?}");
        let table = ask(&world, &[]).await?;
        assert!(table.out.contains("p0#") && table.out.contains("p1#"), "{}", table.out);
        let again = json(&world, &["user", "alice", "--rebuild"]).await?;
        assert_eq!(again["rows"], all["rows"], "built at once or bit by bit");
        assert_eq!(
            (&all["index"]["not_read"], &all["index"]["missing"]),
            (&Json::Array(vec![]), &Json::Array(vec![]))
        );

        // An export holds part after part; its answers are in one order all the same.
        let exported = writ(&world, &["audit", "export", "--out", "both"]).await?;
        assert_eq!(exported.code, 0, "{}", exported.err);
        let kept = json(&world, &["user", "alice", "--export", "both"]).await?;
        assert_eq!((&kept["rows"], &kept["index"]["not_read"]), (&all["rows"], &Json::Array(vec![])));

        let archive = world.folder().join("archive").display().to_string();
        put_away(&world, &operator, &found, &archive).await?;
        let kept = json(&world, &["user", "alice"]).await?;
        assert_eq!((&kept["rows"], &kept["index"]["not_read"]), (&all["rows"], &Json::Array(vec![])));
        // An index that has not read it says so, until it is shown the archive.
        let elsewhere = ["user", "alice", "--index", "elsewhere"];
        let without = json(&world, &elsewhere).await?;
        assert!(places(&without).iter().all(|(part, ..)| part == "p1") && !places(&without).is_empty());
        assert_eq!(without["index"]["not_read"][0]["part"], "p0", "{:#}", without["index"]);
        let said = ask(&world, &["--index", "elsewhere"]).await?;
        assert!(said.err.contains("not all of part p0") && said.err.contains("--archive"), "{}", said.err);
        let with = json(&world, &[&elsewhere[..], &["--archive", &archive]].concat()).await?;
        assert_eq!((&with["rows"], &with["index"]["not_read"]), (&all["rows"], &Json::Array(vec![])));
        let then = json(&world, &elsewhere).await?;
        assert_eq!(then["rows"], all["rows"], "read once is enough");

        // What retention deleted is not missing, and is said.
        let said = writ(&world, &["audit", "retain", "--archive", &archive, "--records", "0s"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let third = ["--index", "third", "--archive", &archive];
        let left = json(&world, &[&["user", "alice"], &third[..]].concat()).await?;
        assert!(places(&left).iter().all(|(part, ..)| part == "p1"));
        let deleted = &left["index"]["parts"][0]["deleted"][0];
        assert_eq!(
            (&left["index"]["parts"][0]["part"], &deleted["class"]),
            (&"p0".into(), &"records".into())
        );
        assert!(deleted["messages"].as_u64().unwrap() >= 5, "{deleted:#}");
        assert_eq!(left["index"]["missing"], Json::Array(vec![]), "{:#}", left["index"]);
        let said = ask(&world, &third).await?;
        assert!(said.err.contains("retention deleted them"), "{}", said.err);
        let exported = writ(&world, &["audit", "export", "--out", "rest", "--archive", &archive]).await?;
        assert_eq!(exported.code, 0, "{}", exported.err);
        let kept = json(&world, &["user", "alice", "--export", "rest"]).await?;
        assert_eq!((places(&kept), &kept["index"]["not_read"][0]["part"]), (places(&left), &"p0".into()));
        assert!(kept["index"]["not_read"][0]["messages"].as_u64().unwrap() >= 5, "{:#}", kept["index"]);
        // A manifest that is not the one on record is no archive of it.
        let manifest = world.folder().join("archive/acme/p0/manifest.json");
        fs::write(&manifest, fs::read_to_string(&manifest)?.replace("\"faults\": 0", "\"faults\":  0"))?;
        let said = ask(&world, &["--index", "fourth", "--archive", &archive]).await?;
        assert!(said.code == 1 && said.err.contains("the control stream says"), "{}{}", said.out, said.err);
        operator.close().await;
        world.close().await;
        Ok(())
    })
}
