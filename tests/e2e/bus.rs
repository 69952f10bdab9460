//! What the bus keeps agents from, and what is on record however the bus behaves.

use std::time::Duration;

use anyhow::Result;
use writ::{
    dev::{connect_as, nats_conf::CoreUser},
    operator::Recorded,
    view::{chain, gaps},
};
use writ_bus::{Bus, BusError, Service, Store};
use writ_common::{
    codec::{decode, encode},
    ids::{BootId, NodeId, PartId},
    keys::PrivateKey,
    reason::ReasonCode,
    record::{Origin, Record, RecordKind},
    signed::Signed,
    subjects::{Subject, part_stream},
    wire::{IssueAnswer, IssueReply},
};
use writ_sdk::json;
use writ_tests::{Answered, RawCall, Seen, World, WorldOptions, eventually, letter, read, run};

const SHORT: Duration = Duration::from_secs(2);

async fn is_refused(bus: &Bus, subject: &str) -> bool {
    matches!(bus.request(subject.to_owned(), b"x".to_vec(), None, SHORT).await, Err(BusError::Refused(_)))
}

pub(crate) async fn node_bus(world: &World, node: &str) -> Result<Bus> {
    let who = CoreUser::Node(NodeId::parse(node)?);
    connect_as(&world.layout, &who, &format!("keys/{node}.nkey"), &world.nats.url()).await
}

#[test]
fn b01_agents_cannot_write_records_labels_or_control() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let before = Seen::read(&world, None).await?.recorded.len();
        let bus = world.bus_of("planner").await?;
        for subject in [
            format!("writ.v1.acme.audit.p0.allow.{}.node-1", task.id()),
            format!("writ.v1.acme.label.p0.{}", task.id()),
            "writ.v1.acme.control.event".to_owned(),
            "writ.v1.acme.control.tick".to_owned(),
            "writ.v1.acme.admin".to_owned(),
            "writ.v1.acme.fresh".to_owned(),
            "writ.v1.acme.issue.researcher".to_owned(),
            format!("writ.v1.acme.call.researcher.{}.tool.crm", task.id()),
            "writ.v1.acme.inbox.researcher.x".to_owned(),
            "$JS.API.INFO".to_owned(),
            "$JS.API.STREAM.INFO.WRIT_acme_p0".to_owned(),
            "$SRV.PING".to_owned(),
            "_INBOX.node.node-1.x".to_owned(),
        ] {
            assert!(is_refused(&bus, &subject).await, "{subject}");
        }
        assert_eq!(Seen::read(&world, None).await?.recorded.len(), before);
        world.close().await;
        Ok(())
    })
}

/// B09: whoever floods a broker with nonsense is answered, and cannot fill the audit stream with refusals.
#[test]
fn b09_refusals_by_a_broker_are_bounded_by_a_quota() -> Result<()> {
    run(async {
        let world = World::with(WorldOptions {
            edit: Some(|layout| {
                let described = "description = \"takes a user's task and hands parts of it to others\"";
                let with_quota = format!("{described}\nquota = {{ per_second = 10, burst = 20 }}");
                World::edit(&layout.policies().join("agents.toml"), described, &with_quota)
            }),
            ..Default::default()
        })
        .await?;
        let bus = world.bus_of("planner").await?;
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..1_000 {
            let bus = bus.clone();
            asked.spawn(async move {
                let subject = "writ.v1.acme.issue.planner".to_owned();
                bus.request(subject, b"nonsense".to_vec(), None, Duration::from_secs(20)).await
            });
        }
        let mut over_quota: u64 = 0;
        while let Some(answer) = asked.join_next().await {
            let reply = decode::<IssueReply>(&answer??.payload)?;
            let IssueAnswer::Refused { reasons } = reply.issued.peek()?.answer else {
                panic!("nonsense was answered")
            };
            over_quota += u64::from(reasons[0].code == ReasonCode::RequestQuota);
        }
        assert!(over_quota > 500, "{over_quota}: the burst is 20, and 10 a second follow");
        eventually("what was refused is on record", async || {
            let seen = Seen::read(&world, None).await?;
            let counted = |code| {
                let of_code =
                    seen.verdicts().filter(move |(_, one)| one.reasons.iter().any(|r| r.code == code));
                of_code.map(|(_, one)| one.count).sum::<u64>()
            };
            Ok(counted(ReasonCode::RequestQuota) == over_quota
                && counted(ReasonCode::CodecFormat) + over_quota == 1_000)
        })
        .await?;
        // The planner can still work, and so can everybody else.
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(world.task().await?);
        world.close().await;
        Ok(())
    })
}

#[test]
fn b01_a_node_writes_records_under_its_own_name_only() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let bus = node_bus(world, "node-1").await?;
        for subject in [
            "writ.v1.acme.audit.p0.allow.t-1.node-2",
            "writ.v1.acme.audit.p0.deny._.broker-1",
            "writ.v1.acme.control.event",
            "writ.v1.acme.admin",
            "writ.v1.acme.enroll",
            "$JS.API.STREAM.DELETE.WRIT_acme_p0",
            "$JS.API.STREAM.PURGE.WRIT_acme_p0",
            "$JS.API.STREAM.UPDATE.WRIT_acme_p0",
            "$JS.API.STREAM.MSG.DELETE.WRIT_acme_p0",
        ] {
            assert!(is_refused(&bus, subject).await, "{subject}");
        }
        Ok(())
    })
}

#[test]
fn b01_a_record_by_another_key_is_flagged() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        let seen = Seen::read(&world, None).await?;
        let mut record: Record =
            seen.records().find(|record| record.kind() == RecordKind::Outcome).unwrap().clone();
        record.id.seq += 1;
        let forged = encode(&Signed::new(&record, &PrivateKey::from_seed(&[9; 32])));
        let bus = node_bus(&world, "node-1").await?;
        let store = Store {
            subject: format!("writ.v1.acme.audit.p0.outcome.{}.node-1", task.id()),
            payload: forged,
            message_id: None,
            fence: writ_bus::Fence::None,
            ttl_secs: None,
        };
        bus.store(&store, SHORT).await?;
        let seen = Seen::read(&world, None).await?;
        let fault = seen.recorded.last().unwrap().fault.clone().unwrap();
        assert!(fault.contains("audit.bad_signature"), "{fault}");
        let tree = chain::build(task.id(), &seen.recorded);
        assert_eq!(tree.faults.len(), 1);
        world.close().await;
        Ok(())
    })
}

#[test]
fn b04_a_record_delivered_twice_counts_once() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        read(&task, "DELETE FROM customers").await.unwrap_err();
        let once = Seen::read(&world, None).await?;
        let bus = node_bus(&world, "node-1").await?;
        for recorded in once.recorded.iter().filter(|one| {
            matches!(one.record.as_ref().map(|record| &record.id.origin), Some(Origin::Node(_)))
        }) {
            let message =
                bus.message_at(&part_stream(&"acme".parse()?, &PartId::first()), recorded.sequence).await?;
            let message = message.unwrap();
            let store = Store {
                subject: message.subject,
                payload: message.payload.to_vec(),
                // As if the window of duplicates had passed.
                message_id: None,
                fence: writ_bus::Fence::None,
                ttl_secs: None,
            };
            bus.store(&store, SHORT).await?;
        }
        let twice = Seen::read(&world, None).await?;
        assert!(twice.recorded.len() > once.recorded.len());
        let (a, b) = (chain::build(task.id(), &once.recorded), chain::build(task.id(), &twice.recorded));
        assert_eq!((a.allowed, a.denied), (1, 1));
        assert_eq!((b.allowed, b.denied), (1, 1));
        assert_eq!(twice.missing(), 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn b05_a_hole_is_reported_with_its_range() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        for _ in 0..6 {
            read(&task, "SELECT 1").await?;
        }
        let seen = Seen::read(world, None).await?;
        assert_eq!(seen.missing(), 0);
        // Whichever node served more of them.
        let of =
            |name: &str| seen.records().filter(|record| record.id.origin.name() == name).collect::<Vec<_>>();
        let (one, two) = (of("node-1"), of("node-2"));
        let mut kept: Vec<&Record> = if one.len() > two.len() { one } else { two };
        let boot: BootId = kept[0].id.boot.clone();
        kept.sort_by_key(|record| record.id.seq);
        let gone: Vec<u64> = kept.drain(2..4).map(|record| record.id.seq).collect();
        kept.reverse();
        let found = gaps::find(kept);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].from, found[0].to, &found[0].boot), (gone[0], gone[1], &boot.to_string()));
        Ok(())
    })
}

#[test]
fn b11_subjects_cannot_be_injected() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        for name in ["tool.crm.>", "tool.*", "tool.crm read", "tool.crm\r\nX", "tool.CRM", "tool."] {
            let error = task.call(name, "read", json::object([])).await.unwrap_err();
            assert!(matches!(error, writ_sdk::Error::Id(_)), "{name:?}: {error}");
        }
        let bus = world.bus_of("planner").await?;
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", letter())?;
        // More tokens than a call has: no node listens there.
        let longer = format!("{}.x", call.subject());
        assert!(RawCall::send_bytes(&bus, longer, call.payload()).await.is_err());
        // A task token outside the grammar is refused for what it is.
        let odd = "writ.v1.acme.call.planner.T+1.tool.crm".to_owned();
        let answer = RawCall::send_bytes(&bus, odd, call.payload()).await?;
        assert_eq!(answer, Answered::Denied(ReasonCode::IdSyntax));
        for text in ["a.b", "a*", ">", "a b", "a\n", "Ä", ""] {
            assert!(writ_common::ids::AgentId::parse(text).is_err(), "{text:?}");
        }
        Ok(())
    })
}

#[test]
fn b12_nobody_listens_on_anothers_replies_or_inbox() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let bus = world.bus_of("planner").await?;
        let researcher = world.identity("researcher")?;
        let key = researcher.holder.public().id();
        for subject in [
            "_INBOX.>".to_owned(),
            "_INBOX.*.*.>".to_owned(),
            format!("_INBOX.researcher.{key}.>"),
            format!("writ.v1.acme.inbox.researcher.{key}"),
            "writ.v1.acme.>".to_owned(),
            "writ.v1.acme.call.>".to_owned(),
            ">".to_owned(),
            "$SYS.>".to_owned(),
        ] {
            assert!(matches!(Service::inbox(&bus, &subject).await, Err(BusError::Refused(_))), "{subject}");
        }
        Ok(())
    })
}

#[test]
fn b12_a_connection_speaks_for_its_own_agent_only() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        // A CORE user is no agent: what it relays is attested by nobody.
        let bus = node_bus(world, "node-1").await?;
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", letter())?;
        assert!(matches!(
            bus.request(call.subject(), call.payload(), None, SHORT).await,
            Err(BusError::Refused(_))
        ));
        Ok(())
    })
}

#[test]
fn b14_a_forged_trace_changes_nothing_that_is_evidence() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let arguments = json::object([("sql", "SELECT 1".into())]);
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", arguments)?;
        let foreign = writ_common::trace::TraceContext::parse(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .unwrap();
        bus.request(call.subject(), call.payload(), Some(&foreign), SHORT).await?;
        let seen = Seen::read(world, Some(task.id())).await?;
        let (_, verdicted) = seen.verdicts().find(|(_, one)| one.what.call_id == Some(call.id())).unwrap();
        assert_eq!(verdicted.trace.as_ref().unwrap().trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        // Task, user and chain come from the capability.
        assert_eq!(verdicted.who.task.as_ref(), Some(task.id()));
        assert_eq!(verdicted.who.chain, Some(task.capability().await?.chain_id()));
        Ok(())
    })
}

#[test]
fn b16_nothing_in_a_record_can_write_on_a_terminal() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        for sql in [
            "SELECT \u{1b}[31m red",
            "DELETE FROM x -- \u{7}\r\nDENY forged",
            "SELECT \u{202e}evil",
            "SELECT load_extension('\u{1b}]0;x\u{7}')",
        ] {
            read(&task, sql).await.unwrap_err();
        }
        let seen = Seen::read(&world, Some(task.id())).await?;
        let refused = seen.refusals().map(|refusal| refusal.reason);
        let failed = seen.outcomes().filter_map(|outcome| outcome.reason.as_ref());
        let reasons: Vec<_> = refused.chain(failed).collect();
        assert_eq!(reasons.len(), 4);
        for reason in reasons {
            for text in [Some(&reason.told), reason.noted.as_ref()].into_iter().flatten() {
                assert!(
                    !text.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)),
                    "{text:?}"
                );
                assert!(text.len() < 2_048);
            }
        }
        let text = chain::render(&chain::build(task.id(), &seen.recorded), writ::view::Colour::Off);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        world.close().await;
        Ok(())
    })
}

#[test]
fn records_of_a_run_follow_each_other_without_holes_and_name_their_predecessor() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        for _ in 0..5 {
            read(&task, "SELECT 1").await?;
            read(&task, "DROP TABLE customers").await.unwrap_err();
        }
        let operator = world.operator().await?;
        let control = operator.control().await?;
        let mut of_node = Vec::new();
        let tail = operator.audit_tail(&PartId::first(), None, 1).await?;
        tail.try_drain::<anyhow::Error>(|message| {
            let recorded = Recorded::open(message.sequence, &message.payload, &control);
            let record = recorded.record.unwrap();
            let parsed = Subject::parse(&message.subject)?.1;
            let Subject::Audit { kind, origin, .. } = parsed else { panic!("{}", message.subject) };
            assert_eq!(kind, record.kind(), "the subject says what the record is");
            assert_eq!(origin.to_string(), record.id.origin.name());
            if matches!(record.id.origin, Origin::Node(_)) {
                let digest = decode::<Signed<Record>>(&message.payload)?.digest();
                of_node.push((record.id.seq, record.prev, digest));
            }
            Ok(())
        })
        .await?;
        of_node.sort_by_key(|(seq, ..)| *seq);
        assert!(of_node.len() >= 15, "two records per call, one per refusal");
        let mut before = writ_common::digest::Digest::from_bytes([0; 32]);
        for (expected, (seq, prev, digest)) in of_node.into_iter().enumerate() {
            assert_eq!((seq, prev), (expected as u64, before));
            before = digest;
        }
        world.close().await;
        Ok(())
    })
}
