//! What a journal promises, fault by fault.

use std::{
    fs,
    path::{Path, PathBuf},
};

use writ_common::{
    ids::{BootId, NodeId, TenantId},
    record::{Origin, RecordKind},
    time::{Millis, Timestamp},
    tlog::{Frontier, LogId, RunLog, Witnessed, leaf_hash},
};

use crate::{Entry, Journal, JournalDir, JournalError, JournalLimits, Room, Settles, Sync};

fn boot(name: &str) -> BootId {
    BootId::parse(name).unwrap()
}

fn prepared(seq: u64, kind: RecordKind, bytes: usize, ends: Option<u64>) -> Entry {
    Entry::Prepared {
        seq,
        kind,
        subject: "writ.v1.acme.audit.p0.deny._.n1".into(),
        message_id: format!("m{seq}"),
        ends,
        record: vec![u8::try_from(seq % 251).unwrap(); bytes],
    }
}

fn committed(seq: u64) -> Entry {
    Entry::Committed { seq, stream: seq + 1, part: None }
}

/// Sixteen segments of 1 MiB.
fn small() -> JournalLimits {
    JournalLimits { bytes_max: 32 * 1024 * 1024, keep: Millis::from_secs(3_600) }
}

fn open(folder: &Path) -> JournalDir {
    JournalDir::open(folder, small()).unwrap()
}

fn start(folder: &Path, name: &str) -> Journal {
    open(folder).create(&boot(name), Sync::Kernel, Settles::OnOutcome).unwrap()
}

/// A run of denials of 3 bytes each, acknowledged at once.
fn filled(folder: &Path, count: u64) -> PathBuf {
    let mut journal = start(folder, "b-1");
    for seq in 0..count {
        journal.append(&[prepared(seq, RecordKind::Deny, 3, None), committed(seq)]).unwrap();
    }
    folder.join("b-1.journal")
}

/// A run of denials of 100 kB each over several segments, of which the last is not acknowledged.
fn long(folder: &Path, count: u64) {
    let mut journal = start(folder, "b-1");
    for seq in 0..count {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None)]).unwrap();
        if seq + 1 < count {
            journal.append(&[committed(seq)]).unwrap();
        }
    }
}

fn kept(dir: &JournalDir) -> Result<Vec<(String, u64)>, JournalError> {
    dir.kept().map(|kept| kept.map(|kept| (kept.boot.to_string(), kept.seq))).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let items = fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = items.filter(|name| name.starts_with("b-")).collect();
    names.sort();
    names
}

fn whole(error: Result<impl Sized, JournalError>) -> String {
    error.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn what_was_open_is_found_and_what_was_acknowledged_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    long(folder.path(), 3);
    let mut dir = open(folder.path());
    assert_eq!(dir.runs(), [boot("b-1")]);
    let (open_records, lost) = dir.unsettled(&boot("b-1")).unwrap();
    assert_eq!(lost, None);
    let seqs: Vec<u64> = open_records.unpublished.iter().map(|one| one.seq).collect();
    assert_eq!(seqs, [2]);
    assert_eq!(kept(&dir).unwrap(), [("b-1".into(), 0), ("b-1".into(), 1)]);
    dir.resolve(&boot("b-1"), &[prepared(2, RecordKind::Deny, 10, None), committed(2)]).unwrap();
    drop(dir);
    // Killed before it was settled: what was completed stays so.
    let mut dir = open(folder.path());
    assert!(!dir.unsettled(&boot("b-1")).unwrap().0.is_open());
    dir.settle(&boot("b-1")).unwrap();
    assert_eq!(dir.runs(), []);
    drop(dir);
    let dir = open(folder.path());
    assert_eq!(dir.runs(), [], "what is settled is not read again");
    assert_eq!(kept(&dir).unwrap().len(), 3);
    assert_eq!(names(folder.path()), ["b-1.kept"]);
}

#[test]
fn a_run_that_did_nothing_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    drop(start(folder.path(), "b-1"));
    let mut dir = open(folder.path());
    assert!(!dir.unsettled(&boot("b-1")).unwrap().0.is_open());
    dir.settle(&boot("b-1")).unwrap();
    assert_eq!(names(folder.path()), [] as [&str; 0]);
}

#[test]
fn k07_every_cut_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 3);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let found = open(folder.path()).unsettled(&boot("b-1"));
        assert!(matches!(found, Err(JournalError::Corrupt { .. })), "cut to {length}: {found:?}");
    }
    // What was never said to be written is no loss.
    let torn: Vec<u8> = whole.iter().chain(&whole[48..70]).copied().collect();
    fs::write(&path, torn).unwrap();
    open(folder.path()).unsettled(&boot("b-1")).unwrap();
}

#[test]
fn k06_every_flipped_bit_is_found_or_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 3);
    let all = kept(&open(folder.path())).unwrap();
    for target in [path, folder.path().join("b-1.anchor")] {
        let whole = fs::read(&target).unwrap();
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 1 << (index % 8);
            fs::write(&target, &flipped).unwrap();
            let mut dir = open(folder.path());
            match dir.unsettled(&boot("b-1")) {
                Err(JournalError::Corrupt { .. }) => {}
                Err(error) => panic!("{error}"),
                Ok((_, lost)) => {
                    assert_eq!((lost, kept(&dir).unwrap()), (None, all.clone()), "flip at {index}");
                }
            }
        }
        fs::write(&target, &whole).unwrap();
    }
}

#[test]
fn zeros_behind_the_last_write_are_no_entries_and_zeros_in_its_place_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 2);
    let whole = fs::read(&path).unwrap();
    let mut longer = whole.clone();
    longer.resize(longer.len() + 4096, 0);
    fs::write(&path, &longer).unwrap();
    assert_eq!(kept(&open(folder.path())).unwrap().len(), 2);
    let mut blank = whole.clone();
    // The whole last write, so that what is left looks like room nobody used.
    let last = blank.len() - (blank.len() - 48) / 2;
    blank[last..].fill(0);
    fs::write(&path, &blank).unwrap();
    let error = whole_error(folder.path());
    assert!(error.contains("was longer"), "{error}");
}

fn whole_error(folder: &Path) -> String {
    whole(open(folder).unsettled(&boot("b-1")))
}

#[test]
fn a_long_run_goes_over_several_segments_and_what_is_settled_is_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    long(folder.path(), 50);
    let found = names(folder.path());
    // Of 50 records of 195 kB in segments of 2 MiB only the last one is open.
    assert!(found.iter().filter(|name| name.ends_with(".kept")).count() >= 2, "{found:?}");
    assert_eq!(found.iter().filter(|name| name.ends_with(".journal")).count(), 1, "{found:?}");
    let mut dir = open(folder.path());
    let (left, _) = dir.unsettled(&boot("b-1")).unwrap();
    assert_eq!(left.unpublished.iter().map(|one| one.seq).collect::<Vec<_>>(), [49]);
    let expected: Vec<(String, u64)> = (0..49).map(|seq| ("b-1".into(), seq)).collect();
    assert_eq!(kept(&dir).unwrap(), expected);
}

#[test]
fn an_intent_without_outcome_keeps_its_segment_and_those_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = start(folder.path(), "b-1");
    journal.append(&[prepared(0, RecordKind::Allow, 100, None), committed(0)]).unwrap();
    for seq in 1..40 {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None), committed(seq)]).unwrap();
    }
    assert!(names(folder.path()).iter().all(|name| !name.ends_with(".kept")));
    drop(journal);
    let (left, _) = open(folder.path()).unsettled(&boot("b-1")).unwrap();
    assert_eq!(left.without_outcome.len(), 1);
    let mut journal = {
        fs::remove_dir_all(folder.path()).unwrap();
        start(folder.path(), "b-1")
    };
    journal.append(&[prepared(0, RecordKind::Allow, 100, None), committed(0)]).unwrap();
    for seq in 1..40 {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None), committed(seq)]).unwrap();
    }
    journal.append(&[prepared(40, RecordKind::Outcome, 10, Some(0)), committed(40)]).unwrap();
    assert!(names(folder.path()).iter().any(|name| name.ends_with(".kept")));
}

/// A run's log as its journal tells it, the record on its way taken for stored, and at which position one is missing.
fn log_of(folder: &Path) -> (u64, Option<u64>) {
    let left = open(folder).unsettled(&boot("b-1")).unwrap().0;
    let id = LogId {
        tenant: TenantId::parse("acme").unwrap(),
        origin: Origin::Node(NodeId::parse("n1").unwrap()),
        boot: boot("b-1"),
    };
    let mut log = RunLog::witnessed(id, left.witnessed);
    for (seq, (leaf, _)) in &left.leaves {
        log.taken_up(*seq, *leaf, true);
    }
    (log.size(), log.end_here())
}

#[test]
fn a_log_whose_first_records_are_settled_can_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing was witnessed, and the first 40 records or so are in segments in which nothing is open.
    long(folder.path(), 50);
    assert_eq!(log_of(folder.path()), (50, None));

    // The tree was kept when it had 3 records, in a segment that is settled since.
    fs::remove_dir_all(folder.path()).unwrap();
    let leaves = |seqs: std::ops::Range<u64>| {
        let mut tree = Frontier::default();
        seqs.for_each(|seq| match prepared(seq, RecordKind::Deny, 100_000, None) {
            Entry::Prepared { record, .. } => tree.append(leaf_hash(&record)),
            _ => unreachable!(),
        });
        tree
    };
    let mut journal = start(folder.path(), "b-1");
    for seq in 0..50 {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None), committed(seq)]).unwrap();
        if seq == 5 {
            journal.append(&[Entry::Witnessed(Witnessed { tree: leaves(0..3), checkpoint: None })]).unwrap();
        }
    }
    drop(journal);
    let left = open(folder.path()).unsettled(&boot("b-1")).unwrap().0;
    assert_eq!((left.witnessed.tree.size(), left.leaves.len()), (3, 47));
    assert!(left.leaves.values().all(|(_, is_committed)| *is_committed));
    assert_eq!(log_of(folder.path()), (50, None));
}

#[test]
fn a_record_that_was_prepared_again_does_not_stand_for_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = start(folder.path(), "b-1");
    let intent = prepared(0, RecordKind::Allow, 100, None);
    journal.append(std::slice::from_ref(&intent)).unwrap();
    for seq in 1..30 {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None), committed(seq)]).unwrap();
    }
    // What was open is in another segment from here on, and those before it are settled.
    for again in [prepared(0, RecordKind::Void, 100_000, None), intent] {
        for _ in 0..30 {
            journal.append(std::slice::from_ref(&again)).unwrap();
        }
        assert!(names(folder.path()).contains(&"b-1.1.kept".to_owned()));
        assert_eq!(log_of_copy(folder.path()), (30, None));
    }
}

/// As [`log_of`], while the journal is open.
fn log_of_copy(folder: &Path) -> (u64, Option<u64>) {
    let copy = tempfile::tempdir().unwrap();
    for item in fs::read_dir(folder).unwrap() {
        let item = item.unwrap();
        fs::copy(item.path(), copy.path().join(item.file_name())).unwrap();
    }
    log_of(copy.path())
}

#[test]
fn a_missing_cut_or_exchanged_segment_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = || {
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        long(folder.path(), 50);
        let found = names(folder.path());
        assert!(found.contains(&"b-1.kept".to_owned()) && found.contains(&"b-1.1.kept".to_owned()));
    };
    let path = |name: &str| folder.path().join(name);
    let faults = || {
        let opened = JournalDir::open(folder.path(), small());
        opened.and_then(|mut dir| dir.unsettled(&boot("b-1")).map(drop).and_then(|()| kept(&dir).map(drop)))
    };
    fresh();
    faults().unwrap();
    fs::remove_file(path("b-1.kept")).unwrap();
    assert!(whole(faults()).contains("missing"));
    fresh();
    fs::remove_file(path("b-1.1.kept")).unwrap();
    assert!(whole(faults()).contains("missing"));
    fresh();
    fs::copy(path("b-1.kept"), path("b-1.1.kept")).unwrap();
    assert!(whole(faults()).contains("another segment"));
    fresh();
    let bytes = fs::read(path("b-1.1.kept")).unwrap();
    for length in [0, 10, 48, bytes.len() / 2, bytes.len() - 1] {
        fs::write(path("b-1.1.kept"), &bytes[..length]).unwrap();
        assert!(whole(faults()).contains("b-1.1.kept"), "cut to {length}");
    }
    fresh();
    let last = names(folder.path()).into_iter().find(|name| name.ends_with(".journal")).unwrap();
    fs::remove_file(path(&last)).unwrap();
    assert!(whole(faults()).contains(&last), "{last}");
    for name in names(folder.path()).iter().filter(|name| !name.ends_with(".anchor")) {
        fs::remove_file(path(name)).unwrap();
    }
    assert!(whole(faults()).contains("missing"), "nothing but the anchor is left");
}

#[test]
fn what_is_settled_makes_room_the_oldest_first_and_what_is_not_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = start(folder.path(), "b-1");
    for seq in 0..400 {
        journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None), committed(seq)]).unwrap();
    }
    assert_eq!(journal.room(), Room::Enough, "what can be removed does not count");
    let bytes: u64 =
        names(folder.path()).iter().map(|name| fs::metadata(folder.path().join(name)).unwrap().len()).sum();
    assert!(bytes <= small().bytes_max + 64 * 1024, "{bytes}");
    let found = names(folder.path());
    assert_eq!(found.iter().filter(|name| name.ends_with(".gone")).count(), 1, "{found:?}");
    drop(journal);
    let mut dir = open(folder.path());
    dir.unsettled(&boot("b-1")).unwrap();
    let left = kept(&dir).unwrap();
    let first = left[0].1;
    assert!(first > 50 && left.len() as u64 == 400 - first, "{first}, {}", left.len());
    // By age.
    dir.settle(&boot("b-1")).unwrap();
    let now = fs::metadata(folder.path()).unwrap().modified().unwrap();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    dir.make_room(Timestamp::from_secs(now + 3_000)).unwrap();
    assert_eq!(kept(&dir).unwrap(), left);
    dir.make_room(Timestamp::from_secs(now + 4_000)).unwrap();
    assert_eq!(names(folder.path()), [] as [&str; 0]);
}

#[test]
fn r10_bound_near_the_bound_room_is_kept_and_at_it_nothing_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = start(folder.path(), "b-1");
    let mut rooms = vec![Room::Enough];
    for seq in 0.. {
        assert!(seq < 1_000, "there is no bound");
        let appended = journal.append(&[prepared(seq, RecordKind::Deny, 100_000, None)]);
        if let Err(error) = appended {
            assert!(matches!(error, JournalError::Full { .. }), "{error}");
            break;
        }
        if journal.room() != rooms[rooms.len() - 1] {
            rooms.push(journal.room());
        }
    }
    assert_eq!(rooms, [Room::Enough, Room::Reserved]);
    // Once the stream has them, there is room again.
    let acknowledged: Vec<Entry> = (0..200).map(committed).collect();
    journal.append(&acknowledged).unwrap();
    journal.refresh(Timestamp::from_secs(0)).unwrap();
    assert_eq!(journal.room(), Room::Enough);
}

#[test]
fn a_rotation_that_was_killed_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    long(folder.path(), 5);
    let before = kept(&open(folder.path())).unwrap();
    let head = crate::frame::segment_head(&boot("b-1"), 1, &[7; 32]);
    for length in [0, 5, 20, head.len()] {
        fs::write(folder.path().join("b-1.1.journal"), &head[..length]).unwrap();
        let mut dir = open(folder.path());
        let (left, _) = dir.unsettled(&boot("b-1")).unwrap();
        assert_eq!((left.unpublished.len(), kept(&dir).unwrap()), (1, before.clone()), "{length}");
        drop(dir);
    }
    let mut dir = open(folder.path());
    dir.unsettled(&boot("b-1")).unwrap();
    dir.settle(&boot("b-1")).unwrap();
    drop(dir);
    assert_eq!(names(folder.path()), ["b-1.kept"]);
    assert_eq!(kept(&open(folder.path())).unwrap(), before);
}

#[test]
fn what_a_machine_that_stopped_took_along_is_said_or_refused() {
    for (sync, is_expected) in [(Sync::Kernel, true), (Sync::Always, false)] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path()).create(&boot("b-1"), sync, Settles::OnOutcome).unwrap();
        for seq in 0..3 {
            journal.append(&[prepared(seq, RecordKind::Deny, 3, None)]).unwrap();
        }
        let bytes = journal.bytes();
        drop(journal);
        let path = folder.path().join("b-1.journal");
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - 100).unwrap();
        crate::anchor::after_restart(&folder.path().join("b-1.anchor"), &boot("b-1"));
        match open(folder.path()).unsettled(&boot("b-1")) {
            // The kernel had promised no more.
            Ok((left, Some(lost))) if is_expected => {
                assert!(lost.bytes < bytes && lost.bytes_before == bytes, "{lost}");
                assert!(left.unpublished.len() < 3);
            }
            // The disk had.
            Err(JournalError::Corrupt { .. }) if !is_expected => {}
            other => panic!("{sync:?}: {other:?}"),
        }
    }
}

#[test]
fn k09_a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    assert!(matches!(JournalDir::open(folder.path(), small()), Err(JournalError::Locked(_))));
    drop(first);
    assert!(JournalDir::open(folder.path(), small()).is_ok());
}
