//! The parts of the audit stream: one that fills is followed by the next, what is remembered moves along, and what nobody
//! lives in any more is put away and still proves what happened.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;
use writ::operator::OperatorProfile;
use writ_bus::{Store, keyfile};
use writ_common::{
    codec::{decode, encode},
    control::RevocationTarget,
    hold::{Held, LegalHold},
    ids::{AgentId, DomainId, FlowDomain, HoldId, PartId},
    label::{Confidentiality, DomainLabel, Label, Tag},
    reason::ReasonCode,
    signed::Signed,
    subjects::{Subject, part_stream},
    wire::AdminWanted,
};
use writ_sdk::Task;
use writ_tests::{Seen, World, WorldOptions, eventually, only, read, run};

use crate::{
    bus::node_bus,
    cli::writ,
    faults::{broker, node, until_broker_answers},
    flow::with_a_memory,
};

pub(crate) async fn until_current(world: &World, part: &PartId) -> Result<()> {
    let operator = world.operator().await?;
    eventually("the next part is in use, and what agents remember is there", async || {
        let control = operator.control().await?;
        Ok(control.parts().current() == part && control.parts().shared() == part)
    })
    .await?;
    operator.close().await;
    Ok(())
}

/// What `writ audit verify` finds, with its exit code.
async fn verified(world: &World, folder: &str) -> Result<(i32, BTreeSet<String>)> {
    let root = OperatorProfile::load(&world.layout.operator())?.root.to_string();
    let said = writ(world, &["audit", "verify", folder, "--root", &root, "-o", "json"]).await?;
    let report: Value =
        serde_json::from_str(&said.out).with_context(|| format!("{}{}", said.out, said.err))?;
    let findings = report["findings"].as_array().context("findings")?;
    let told = |finding: &Value| format!("{} {}", finding["severity"], finding["code"]).replace('"', "");
    Ok((said.code, findings.iter().map(told).collect()))
}

#[test]
fn a_part_that_fills_is_followed_by_the_next_and_is_put_away() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        World::edit(&world.layout.broker_config(), "[stream]\n", "[stream]\nmebibytes_max = 1\n")?;
        let serving = broker(&world)?;
        until_broker_answers(&world).await?;
        let enforcing = node(&world, "node-1")?;
        world.enroll_missing().await?;
        let (planner, first) = world.task().await?;
        eventually("the node serves", async || Ok(read(&first, "SELECT 1").await.is_ok())).await?;
        let mut refused = None;
        for _ in 0..2_000 {
            if let Err(error) = read(&first, "SELECT 1").await {
                refused = error.code();
                break;
            }
        }
        // The task ends where it began; the next one has a part of its own.
        assert_eq!(refused, Some(ReasonCode::AuditFull));
        let (p0, p1) = (PartId::first(), PartId::numbered(1));
        until_current(&world, &p1).await?;
        let second = world.task_of(&planner, "alice").await?;
        eventually("the next task is let work", async || Ok(read(&second, "SELECT 1").await.is_ok())).await?;
        read(&first, "SELECT 1").await.unwrap_err();
        let seen = Seen::read(&world, None).await?;
        assert_eq!(seen.missing(), 0);
        let parts: BTreeSet<&PartId> = seen.records().map(|record| &record.part).collect();
        assert_eq!(parts, BTreeSet::from([&p0, &p1]));

        // Nobody puts away what lives.
        let archiver = world.layout.archiver().display().to_string();
        let archive = ["--profile", &archiver, "audit", "archive", "--archive", "archive"];
        let said = writ(&world, &archive).await?;
        assert!(said.code == 0 && said.out.contains("p0 stays"), "{}{}", said.out, said.err);
        let operator = world.operator().await?;
        operator.revoke(RevocationTarget::Task(first.id().clone()), true).await?;
        // Who may not delete a stream leaves it, and says what to do; the rest is done.
        let said = writ(&world, &["audit", "archive", "--archive", "archive", "--part", "p0"]).await?;
        assert!(
            said.code == 1 && said.err.contains("whose connection may delete it"),
            "{}{}",
            said.out,
            said.err
        );
        let stream = part_stream(operator.tenant(), &p0);
        assert!(operator.bus().stream_facts(&stream).await?.is_some());
        let said = writ(&world, &archive).await?;
        assert!(said.code == 0 && said.out.contains("its stream is deleted"), "{}{}", said.out, said.err);
        assert!(operator.bus().stream_facts(&stream).await?.is_none());
        assert!(operator.control().await?.parts().archived().contains_key(&p0));

        // Work goes on, also after a restart of both.
        read(&second, "SELECT 2").await?;
        for mut process in [serving, enforcing] {
            process.signal(Signal::TERM)?;
            process.wait()?;
        }
        let (serving, enforcing) = (broker(&world)?, node(&world, "node-1")?);
        eventually("both go on", async || Ok(read(&second, "SELECT 3").await.is_ok())).await?;
        let third = world.task_of(&planner, "alice").await?;
        read(&third, "SELECT 4").await?;

        // The evidence is whole, with the archive, and says so without it.
        let said = writ(&world, &["audit", "export", "--out", "without"]).await?;
        assert!(said.code == 1 && said.err.contains("--archive"), "{}", said.err);
        let said = writ(&world, &["audit", "export", "--out", "whole", "--archive", "archive"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let (code, findings) = verified(&world, "whole").await?;
        assert!(code == 0 && !findings.contains("note record.archived"), "{findings:?}");
        let of_first = first.id().to_string();
        let task = ["audit", "export", "--task", &of_first, "--out", "of-first", "--archive", "archive"];
        let said = writ(&world, &task).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        assert_eq!(verified(&world, "of-first").await?.0, 0);

        // What is held stays; what is not goes, and what is left still proves that nothing else is missing.
        let hold = LegalHold { on: Held::Task(first.id().clone()), why: "matter 42".to_owned() };
        let id = HoldId::parse("matter-42")?;
        operator.ask(AdminWanted::LegalHold { id: id.clone(), hold: Some(hold) }).await?;
        let all = ["--records", "0s", "--content", "0s", "--state", "0s", "--archive", "archive"];
        let said = writ(&world, &[&["audit", "retain"], all.as_slice()].concat()).await?;
        assert!(said.code == 0 && said.out.contains("held: task"), "{}{}", said.out, said.err);
        let said = writ(&world, &["audit", "hold", "lift", "matter-42"]).await?;
        assert_eq!(said.code, 0, "{}", said.err);
        let said = writ(&world, &[&["audit", "retain"], all.as_slice()].concat()).await?;
        assert!(said.code == 0 && said.out.contains("deleted by records 0d"), "{}{}", said.out, said.err);
        let said = writ(&world, &["audit", "export", "--out", "rest", "--archive", "archive"]).await?;
        assert!(said.code == 0 && said.out.contains("removed by retention"), "{}{}", said.out, said.err);
        let (code, findings) = verified(&world, "rest").await?;
        assert!(code == 0 && findings.contains("note record.archived"), "{findings:?}");
        // Without the manifest that the control stream names, they are missing.
        fs::remove_file(world.folder().join("rest/archive/p0.json"))?;
        let (code, findings) = verified(&world, "rest").await?;
        assert!(code == 1 && findings.contains("fault archive.manifest"), "{findings:?}");
        assert!(findings.contains("fault record.missing"), "{findings:?}");
        operator.close().await;
        drop((serving, enforcing));
        world.close().await;
        Ok(())
    })
}

#[test]
fn f11_what_an_agent_remembers_moves_to_the_next_part() -> Result<()> {
    run(async {
        let options = WorldOptions { edit: Some(with_a_memory), ..WorldOptions::default() };
        let world = World::with(options).await?;
        let researcher = world.agent("researcher").await?;
        let (_planner, task) = world.task().await?;
        let handed = task.delegate("researcher", only(["tool.crm:read"])?).await?.capability().await?;
        let at_researcher = Task::resume(&researcher, handed)?;
        read(&at_researcher, "SELECT name FROM customers").await?;
        let operator = world.operator().await?;
        let label = async |part: PartId| -> Result<DomainLabel> {
            let domain = FlowDomain { part, domain: DomainId::of_agent(&AgentId::parse("researcher")?) };
            let subject = Subject::Label(domain.clone()).of(operator.tenant());
            let found =
                operator.bus().last_on(&part_stream(operator.tenant(), &domain.part), &subject).await?;
            Ok(decode::<Signed<DomainLabel>>(&found.context("a label")?.payload)?.peek()?)
        };
        let before = label(PartId::first()).await?;
        assert_eq!(before.label.names(), ["crm"]);
        operator.ask(AdminWanted::RotatePart).await?;
        let next = PartId::numbered(1);
        until_current(&world, &next).await?;
        let (old, new) = (label(PartId::first()).await?, label(next.clone()).await?);
        assert_eq!((&old.label, old.moved_to), (&before.label, Some(next)));
        assert_eq!((&new.label, &new.origins, new.moved_to), (&before.label, &before.origins, None));
        // The task lives in the first part, and what its agent is told from now on stands in the next.
        eventually("the agent goes on", async || Ok(read(&at_researcher, "SELECT 1").await.is_ok())).await?;
        operator.close().await;
        world.close().await;
        Ok(())
    })
}

/// A raise that the stream has taken is in the label wherever it is afterwards.
#[test]
fn f11_no_raise_is_lost_while_a_label_moves() -> Result<()> {
    run(async {
        let options = WorldOptions { edit: Some(with_a_memory), ..WorldOptions::default() };
        let world = World::with(options).await?;
        let operator = world.operator().await?;
        let (tenant, p0, p1) = (operator.tenant().clone(), PartId::first(), PartId::numbered(1));
        let domain =
            FlowDomain { part: p0.clone(), domain: DomainId::of_agent(&AgentId::parse("researcher")?) };
        let raising = {
            let (tenant, domain, stream) = (tenant.clone(), domain.clone(), part_stream(&tenant, &p0));
            let node = node_bus(&world, "node-1").await?;
            let key = keyfile::read_key(&world.state().join("keys/node-1.key"))?;
            let subject = Subject::Label(domain).of(&tenant);
            tokio::spawn(async move {
                let mut taken = BTreeSet::new();
                for number in 0..2_000 {
                    let Some(found) = node.last_on(&stream, &subject).await? else { continue };
                    let label = decode::<Signed<DomainLabel>>(&found.payload)?.peek()?;
                    if label.moved_to.is_some() {
                        return anyhow::Ok(taken);
                    }
                    // Few enough tags for a label.
                    let tag = Tag::parse(format!("t{}", number % 50))?;
                    let by = Label {
                        confidentiality: Confidentiality::Tags([tag.clone()].into()),
                        integrity: label.label.integrity,
                    };
                    let raised = DomainLabel { label: label.label.join(&by), ..label };
                    let payload = encode(&Signed::new(&raised, &key));
                    let store = Store::fenced(subject.clone(), found.sequence, payload);
                    if node.store(&store, Duration::from_secs(2)).await.is_ok() {
                        taken.insert(tag);
                    }
                }
                anyhow::bail!("the label never moved")
            })
        };
        tokio::time::sleep(Duration::from_millis(30)).await;
        operator.ask(AdminWanted::RotatePart).await?;
        until_current(&world, &p1).await?;
        let taken = raising.await??;
        assert!(!taken.is_empty());
        let there = FlowDomain { part: p1.clone(), ..domain };
        let subject = Subject::Label(there).of(&tenant);
        let found = operator.bus().last_on(&part_stream(&tenant, &p1), &subject).await?.context("a label")?;
        let label = decode::<Signed<DomainLabel>>(&found.payload)?.peek()?.label;
        let Confidentiality::Tags(tags) = &label.confidentiality else { panic!("{label}") };
        assert!(taken.is_subset(tags), "{taken:?} {tags:?}");
        operator.close().await;
        world.close().await;
        Ok(())
    })
}
