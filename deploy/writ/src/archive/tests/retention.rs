//! What retention deletes, what it keeps, and how either is told.

use std::fs;

use writ_common::{
    codec::encode,
    digest::Digest,
    hold::Held,
    ids::{ApprovalId, FlowDomain, TaskId, UserId},
    keys::PrivateKey,
    record::{
        Basis, DecisionId, Record, RecordBody, RecordedApproval, RecordedDecision, Verdicted, What, Who,
    },
    signed::Signed,
    time::{Millis, Timestamp},
};

use super::{DAY, Place, day, log, part, read, run, tenant, write};
use crate::archive::{
    Damage,
    manifest::{Class, DELETED, Deletions},
    read::{Archived, Item, open},
    retain::{Keep, Retention, carry_out, look},
    segment::{Message, SegmentLimits},
};

/// A record of a task and a user.
fn record(sequence: u64, task: &str, user: &str, approval: Option<&str>) -> Message {
    let who = Who {
        task: Some(TaskId::parse(task).unwrap()),
        user: Some(UserId::parse("https://idp", user).unwrap()),
        domain: Some(FlowDomain::parse(&format!("p3.memory-of-{user}")).unwrap()),
        ..Who::default()
    };
    let approval = approval.map(|id| {
        Box::new(RecordedApproval {
            id: ApprovalId::parse(id).unwrap(),
            request: Digest::plain(b""),
            needs: Vec::new(),
            by: Vec::new(),
            waited: None,
        })
    });
    let record = Record {
        tenant: tenant(),
        id: DecisionId { origin: log().origin, boot: log().boot, seq: sequence },
        prev: Digest::from_bytes([0; 32]),
        at: day(sequence),
        part: part(),
        body: RecordBody::Verdict(Box::new(Verdicted {
            decision: RecordedDecision::Deny,
            reasons: Vec::new(),
            would_deny: Vec::new(),
            who,
            what: What::default(),
            basis: Basis::default(),
            trace: None,
            granted: None,
            right: None,
            approval,
            sources: Vec::new(),
            found: Vec::new(),
            acts: Vec::new(),
            shadow: None,
            count: 1,
        })),
    };
    let payload = encode(&Signed::new(&record, &PrivateKey::from_seed(&[7; 32])));
    message(sequence, &format!("audit.p3.deny.{task}.node-1"), payload)
}

fn message(sequence: u64, subject: &str, payload: Vec<u8>) -> Message {
    Message { sequence, at: day(sequence), subject: format!("writ.v1.acme.{subject}"), payload }
}

/// One message a segment, one a day: two tasks of two users.
fn two_tasks() -> Vec<Message> {
    vec![
        record(1, "t-1", "alice", Some("ap-1")),
        record(2, "t-2", "bob", Some("ap-2")),
        message(3, "label.p3.t-1.instruction", b"alice's words".to_vec()),
        message(4, "label.p3.t-2.instruction", b"bob's words".to_vec()),
        message(5, "approval.p3.ap-1.answer.carol", b"yes".to_vec()),
        message(6, "approval.p3.ap-2.answer.carol", b"yes".to_vec()),
        message(7, "label.p3.t-1", b"label".to_vec()),
        message(8, "label.p3.memory-of-bob", b"label".to_vec()),
        message(9, "claim.p3.budget.t-2.cents", b"claim".to_vec()),
        message(10, "claim.p3.approval.ap-3", b"claim".to_vec()),
    ]
}

const ONE_EACH: SegmentLimits = SegmentLimits { lines_bytes: 1, messages: 1 };

fn retention(days: u64) -> Retention {
    let length = Millis::from_secs(days * DAY);
    Retention { content: length, records: length, state: length }
}

/// The sequences that would go and those that stay, and why.
async fn looked(place: &Place, days: u64, holds: &[&str], now: Timestamp) -> (Vec<u64>, Vec<(u64, String)>) {
    let holds: Vec<Held> = holds.iter().map(|hold| hold.parse().unwrap()).collect();
    let plan = look(&place.store, &mut place.archived().await, &retention(days), &holds, now).await.unwrap();
    let word = |why: &Keep| match why {
        Keep::Held(what) => format!("held {what}"),
        Keep::InDoubt(_) => "doubt".to_owned(),
        Keep::Young(_) => "young".to_owned(),
    };
    let mut delete: Vec<u64> = plan.delete.iter().map(|segment| segment.first).collect();
    let mut keep: Vec<(u64, String)> =
        plan.keep.iter().map(|(segment, why)| (segment.first, word(why))).collect();
    delete.sort_unstable();
    keep.sort_unstable();
    (delete, keep)
}

#[test]
fn retention_goes_by_age_and_by_what_is_held() {
    let place = Place::new();
    run(async {
        write(&place.store, &two_tasks(), &ONE_EACH).await.unwrap();
        let old = day(1_000);
        let all: Vec<u64> = (1..=10).collect();
        let named = |held: &[(u64, &str)]| -> Vec<(u64, String)> {
            held.iter().map(|(sequence, word)| (*sequence, (*word).to_owned())).collect()
        };
        assert_eq!(looked(&place, 400, &[], old).await, (all.clone(), vec![]));
        // Not before every message is older.
        let young: Vec<(u64, String)> = (5..=10).map(|sequence| (sequence, "young".to_owned())).collect();
        assert_eq!(looked(&place, 400, &[], day(405)).await, (vec![1, 2, 3, 4], young));
        let (delete, keep) = looked(&place, 400, &["everything"], old).await;
        assert_eq!((delete, keep.len()), (vec![], 10));
        // An approval and a domain that nothing names may be anybody's.
        let task = "held task t-1";
        let held = named(&[(1, task), (3, task), (5, task), (7, task), (10, "doubt")]);
        assert_eq!(looked(&place, 400, &["task:t-1"], old).await, (vec![2, 4, 6, 8, 9], held));
        let user = "held user bob (https://idp)";
        let held = named(&[(2, user), (4, user), (6, user), (8, user), (9, user), (10, "doubt")]);
        assert_eq!(looked(&place, 400, &["user:https://idp/bob"], old).await, (vec![1, 3, 5, 7], held));
        // A task of another part.
        let (delete, keep) = looked(&place, 400, &["task:t-9"], old).await;
        assert_eq!((delete, keep), ((1..=9).collect(), named(&[(10, "doubt")])));
    });
}

#[test]
fn a_held_user_keeps_all_where_the_records_are_gone() {
    let place = Place::new();
    run(async {
        write(&place.store, &two_tasks(), &ONE_EACH).await.unwrap();
        let mut archived = place.archived().await;
        let records = Retention { content: Millis(u64::MAX), state: Millis(u64::MAX), ..retention(0) };
        let plan = look(&place.store, &mut archived, &records, &[], day(1_000)).await.unwrap();
        assert_eq!(plan.delete.len(), 2);
        carry_out(&place.store, &archived, &plan, &records, day(1_000)).await.unwrap();
        let (delete, keep) = looked(&place, 0, &["user:https://idp/bob"], day(1_000)).await;
        assert_eq!((delete, keep.len()), (vec![], 8));
        assert!(keep.iter().all(|(_, why)| why == "doubt"), "{keep:?}");
        // A held task is named by most of what is its own.
        let (delete, _) = looked(&place, 0, &["task:t-1"], day(1_000)).await;
        assert_eq!(delete, [4, 9]);
    });
}

#[test]
fn a_damaged_record_is_kept_and_so_is_what_it_may_speak_of() {
    let place = Place::new();
    run(async {
        write(&place.store, &two_tasks(), &ONE_EACH).await.unwrap();
        fs::write(place.file("records-000001.jsonl.gz"), b"?").unwrap();
        let (delete, keep) = looked(&place, 0, &["user:https://idp/bob"], day(1_000)).await;
        assert_eq!((delete, keep.len()), (vec![], 10));
        let (delete, keep) = looked(&place, 0, &["task:t-1"], day(1_000)).await;
        assert!(!delete.contains(&2) && keep.contains(&(2, "doubt".to_owned())), "{keep:?}");
    });
}

#[test]
fn what_retention_deletes_is_told_as_that_and_nothing_else_is() {
    let place = Place::new();
    run(async {
        let messages = two_tasks();
        let written = write(&place.store, &messages, &ONE_EACH).await.unwrap();
        let mut archived = place.archived().await;
        let (rule, now) = (retention(400), day(405));
        let plan = look(&place.store, &mut archived, &rule, &[], now).await.unwrap();
        carry_out(&place.store, &archived, &plan, &rule, now).await.unwrap();
        let archived = open(&place.store, &tenant(), &part(), Some(&written.digest)).await.unwrap();
        assert_eq!(archived.check(&place.store).await.unwrap(), []);
        let items = read(&archived, &place.store, &Class::ALL, None).await.unwrap();
        let deleted: Vec<(u64, String)> = items
            .iter()
            .filter_map(|item| match item {
                Item::Deleted(range) => Some((range.segment.first, range.rule.clone())),
                Item::Message(_) => None,
            })
            .collect();
        let rule_of = |sequence: u64| if sequence < 3 { "records 400d" } else { "content 400d" };
        let expected: Vec<(u64, String)> =
            (1..=4).map(|sequence| (sequence, rule_of(sequence).to_owned())).collect();
        assert_eq!(deleted, expected);
        assert_eq!(items[4..], messages[4..].iter().cloned().map(Item::Message).collect::<Vec<_>>());
        // The hashes stay.
        assert_eq!(archived.leaves(&place.store, &archived.manifest.runs[0]).await.unwrap().len(), 2);
        // The part cannot be compared with a stream any more.
        let error = write(&place.store, &messages, &ONE_EACH).await.unwrap_err().to_string();
        assert!(error.contains("retention deleted records-000000.jsonl.gz of it (records 400d)"), "{error}");
        // Gone otherwise is damage.
        fs::remove_file(place.file("state-000000.jsonl.gz")).unwrap();
        let damages = archived.check(&place.store).await.unwrap();
        assert_eq!(damages.len(), 1);
        assert!(
            damages[0].to_string().contains("state-000000.jsonl.gz: is not there, and was not deleted"),
            "{damages:?}"
        );
        // So is listing it afterwards, before its rule allows it.
        let mut deletions = Deletions::read(&place.store, &archived.manifest).await.unwrap();
        let mut forged = deletions.deleted[0].clone();
        let segment = archived.manifest.of_class(Class::State).next().unwrap();
        (forged.name, forged.digest, forged.rule) =
            (segment.name.clone(), segment.digest, "state 400d".to_owned());
        deletions.deleted.push(forged);
        deletions.write(&place.store, &archived.manifest).await.unwrap();
        let damages = place.archived().await.check(&place.store).await.unwrap();
        assert_eq!(damages.len(), 1);
        assert!(damages[0].to_string().contains("which did not allow it yet"), "{damages:?}");
        // And a list that is none.
        fs::write(place.file(DELETED), b"[]").unwrap();
        let error = Archived::open(&place.store, &tenant(), &part(), None).await.unwrap_err();
        assert!(error.is::<Damage>(), "{error:#}");
    });
}

#[test]
fn what_a_killed_run_left_is_decided_anew() {
    let place = Place::new();
    run(async {
        write(&place.store, &two_tasks(), &ONE_EACH).await.unwrap();
        let files = ["records-000000.jsonl.gz", "records-000001.jsonl.gz"].map(|name| place.file(name));
        let kept = files.clone().map(|file| fs::read(file).unwrap());
        let rule = retention(400);
        let retain = async |holds: &[&str]| {
            let holds: Vec<Held> = holds.iter().map(|hold| hold.parse().unwrap()).collect();
            let mut archived = place.archived().await;
            let plan = look(&place.store, &mut archived, &rule, &holds, day(405)).await.unwrap();
            carry_out(&place.store, &archived, &plan, &rule, day(405)).await.unwrap();
            plan.delete.iter().map(|segment| segment.first).collect::<Vec<_>>()
        };
        let mut first = retain(&[]).await;
        first.sort_unstable();
        assert_eq!(first, [1, 2, 3, 4]);
        // As if it had been killed between the list and the deletion, and alice's task were held since.
        for (file, bytes) in files.iter().zip(&kept) {
            fs::write(file, bytes).unwrap();
        }
        assert_eq!(retain(&["task:t-1"]).await, [2]);
        assert!(files[0].exists() && !files[1].exists());
        assert_eq!(
            place.archived().await.deletions.deleted.len(),
            3,
            "what is kept is not listed as deleted"
        );
        assert_eq!(place.archived().await.check(&place.store).await.unwrap(), []);
        assert_eq!(retain(&[]).await, [1], "the hold was lifted");
        assert!(!files[0].exists());
    });
}

#[test]
fn holds_are_read_as_they_are_written() {
    let user = UserId::parse("https://idp.example/realm", "alice").unwrap();
    assert_eq!("user:https://idp.example/realm/alice".parse(), Ok(Held::User(user)));
    assert_eq!("task:t-1".parse(), Ok(Held::Task(TaskId::parse("t-1").unwrap())));
    assert_eq!("everything".parse(), Ok(Held::Everything));
    for text in ["", "all", "task:", "task:a b", "user:alice", "user:/", "everything:x"] {
        text.parse::<Held>().unwrap_err();
    }
}
