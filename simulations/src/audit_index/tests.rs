//! Every question against reading everything; growing against building again; damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proptest::prelude::*;
use writ::index::{
    IndexError, Page, Position, Term,
    fill::{Content, Message},
    questions::Rise,
    remove,
    source::{Raw, open_all},
};
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision},
    ids::{OperatorId, TaskId},
    keys::PrivateKey,
    record::{Record, RecordBody, RecordKind, RecordedDecision, Verdicted, Who},
    time::Timestamp,
};

use super::*;

pub(super) fn source() -> Source {
    under(7)
}

fn under(root: u8) -> Source {
    let root = PrivateKey::from_seed(&[root; 32]).public();
    Source::Streams { tenant: TenantId::parse("acme").unwrap(), root }
}

/// Messages of several parts, in the order in which they were stored: a new part is begun after each of these.
pub(super) fn in_parts(stream: &mut Stream, counts: &[usize]) -> Vec<Raw> {
    let mut raws = Vec::new();
    for (number, count) in counts.iter().enumerate() {
        if number > 0 {
            stream.rotate();
        }
        raws.extend(stream.take(*count).unwrap());
    }
    raws
}

pub(super) fn build(folder: &Path, raws: &[Raw], stream: &Stream, stops: &[usize]) -> Index {
    let mut from = 0;
    for stop in stops.iter().copied().chain([raws.len()]) {
        let mut filler = Filler::new(Index::open(folder, &source()).unwrap()).unwrap();
        take_all(&mut filler, &raws[from..stop.max(from)], &stream.history).unwrap();
        drop(filler.finish().unwrap());
        from = stop.max(from);
    }
    Index::open(folder, &source()).unwrap()
}

/// A stream read as a whole, without lists. Messages are numbered as they come.
pub(super) struct Read {
    pub(super) records: Vec<(u64, Record)>,
    pub(super) answers: Vec<(u64, ApprovalAnswer)>,
    faults: u64,
}

pub(super) fn read(raws: &[Raw], stream: &Stream) -> Read {
    let mut read = Read { records: Vec::new(), answers: Vec::new(), faults: 0 };
    for (ordinal, Message { content, .. }) in (1..).zip(open_all(raws, &stream.history).unwrap()) {
        match content {
            Content::Answer(answer) => read.answers.push((ordinal, *answer)),
            Content::Fault(_) => read.faults += 1,
            Content::Record(record) => read.records.push((ordinal, *record)),
        }
    }
    read
}

impl Read {
    fn verdicts(&self) -> impl Iterator<Item = (u64, &Record, &Verdicted)> {
        self.records.iter().filter_map(|(sequence, record)| match &record.body {
            RecordBody::Verdict(verdicted) => Some((*sequence, record, verdicted.as_ref())),
            _ => None,
        })
    }

    fn matching(&self, window: Window, wanted: impl Fn(&Verdicted) -> bool) -> Vec<u64> {
        let verdicts = self.verdicts().filter(|(_, record, one)| in_window(window, record.at) && wanted(one));
        verdicts.map(|(sequence, ..)| sequence).collect()
    }
}

fn in_window(window: Window, at: Timestamp) -> bool {
    window.from.is_none_or(|from| at >= from) && window.to.is_none_or(|to| at < to)
}

fn involves(who: &Who, agent: &AgentId) -> bool {
    [&who.agent, &who.caller].into_iter().any(|one| one.as_ref() == Some(agent))
        || who.hops.iter().any(|hop| hop.to == *agent)
}

/// Every page of an answer, one after the other.
fn paged(limit: usize, mut page: impl FnMut(Paging) -> Result<Page, IndexError>) -> Vec<u64> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = page(Paging { after, limit }).unwrap();
        assert!(page.rows.len() <= limit);
        all.extend(page.rows.iter().map(|row| row.ordinal));
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

fn window(days: (u64, u64)) -> Window {
    let day = |number: u64| BEGIN.after(Millis::from_secs(number * 86_400));
    Window { from: Some(day(days.0)), to: Some(day(days.0 + days.1)), alive_at: None }
}

pub(super) fn check(
    index: &Index,
    read: &Read,
    stream: &Stream,
    pick: usize,
    days: (u64, u64),
    limit: usize,
) {
    let user = &stream.users[pick % stream.users.len()];
    let agent = &stream.agents[pick % stream.agents.len()];
    for window in [Window::default(), window(days)] {
        for agent in [None, Some(agent)] {
            let asked = OfUser { user: user.subject(), agent, right: None };
            let found = paged(limit, |paging| questions::of_user(index, asked, window, paging));
            let wanted = |one: &Verdicted| {
                one.who.user.as_ref() == Some(user) && agent.is_none_or(|agent| involves(&one.who, agent))
            };
            assert_eq!(found, read.matching(window, wanted));
            let found = paged(limit, |paging| questions::observed(index, agent, window, paging));
            let wanted = |one: &Verdicted| {
                !one.would_deny.is_empty() && agent.is_none_or(|agent| involves(&one.who, agent))
            };
            assert_eq!(found, read.matching(window, wanted));
        }
        for label in ["untrusted", "tag-7", "tag-3 untrusted", "public", "tag-99"] {
            let terms = questions::label_terms(label);
            let found = paged(limit, |paging| questions::touched(index, &terms, window, paging));
            assert_eq!(found, touched(read, label, window), "{label}");
        }
        let found = paged(limit, |paging| questions::approvals(index, None, true, window, paging));
        assert_eq!(found, approvals(read, window, true));
        let bob = OperatorId::parse("bob").unwrap();
        let found = paged(limit, |paging| questions::approvals(index, Some(&bob), false, window, paging));
        assert_eq!(found, approvals(read, window, false));
    }
    denials(index, read, BEGIN.after(Millis::from_secs(days.0 * 86_400)), days.1.max(1));
    who_can(index, read, stream, BEGIN.after(Millis::from_secs(days.0 * 86_400 + days.1 * 997)));
}

fn touched(read: &Read, label: &str, window: Window) -> Vec<u64> {
    let words: Vec<&str> = label.split(' ').collect();
    let found = read.records.iter().filter(|(_, record)| {
        let label = match &record.body {
            RecordBody::Verdict(one) => one.basis.label.as_ref(),
            RecordBody::Outcome(one) => one.label.as_ref(),
            RecordBody::Void(_) => None,
        };
        let holds = |label: &writ_common::label::Label| {
            words.iter().all(|word| label.names().contains(word) || label.integrity.as_str() == *word)
        };
        in_window(window, record.at) && label.is_some_and(holds)
    });
    found.map(|(sequence, _)| *sequence).collect()
}

/// What people were asked and said; or only what bob said, and what was done by that.
fn approvals(read: &Read, window: Window, asked_too: bool) -> Vec<u64> {
    let verdicts = read.matching(window, |one| {
        one.approval.as_ref().is_some_and(|approval| asked_too || !approval.by.is_empty())
    });
    let answers = read.answers.iter().filter(|(_, answer)| in_window(window, answer.at));
    let all: BTreeSet<u64> = verdicts.into_iter().chain(answers.map(|(sequence, _)| *sequence)).collect();
    all.into_iter().collect()
}

fn denials(index: &Index, read: &Read, last: Timestamp, days: u64) {
    let last = last.as_secs() / 86_400;
    let mut counted: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for (_, record, one) in read.verdicts().filter(|(.., one)| one.decision == RecordedDecision::Deny) {
        let day = record.at.as_secs() / 86_400;
        let target = format!("{}:{}", one.what.resource.as_ref().unwrap(), one.what.action.as_ref().unwrap());
        let key = (one.reasons[0].code.to_string(), target, one.who.caller.as_ref().unwrap().to_string());
        if day > last || day + 2 * days <= last {
            continue;
        }
        let counts = counted.entry(key).or_default();
        if day + days > last { counts.0 += 1 } else { counts.1 += 1 }
    }
    let rises = questions::denials(index, last, days).unwrap();
    assert!(rises.is_sorted_by_key(|rise| -rise.by()));
    let found = rises
        .into_iter()
        .map(|Rise { refusal, now, before }| ((refusal.code, refusal.target, refusal.caller), (now, before)));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), counted);
}

fn who_can(index: &Index, read: &Read, stream: &Stream, at: Timestamp) {
    let mut rights: BTreeSet<Right> = BTreeSet::new();
    for (_, _, one) in read.verdicts() {
        rights.extend(one.granted.iter().flat_map(|granted| granted.rights.clone()));
    }
    for right in rights.iter().take(5) {
        let mut wanted: BTreeMap<String, u64> = BTreeMap::new();
        let mut hands: BTreeSet<(String, String)> = BTreeSet::new();
        for (sequence, record, one) in read.verdicts() {
            let Some(granted) = &one.granted else { continue };
            let alive = record.at <= at && at < granted.expires && granted.rights.contains(right);
            if alive {
                wanted.insert(one.who.capability.as_ref().unwrap().to_string(), sequence);
            }
        }
        for (_, record, one) in read.verdicts().filter(|(_, record, _)| record.at <= at) {
            let capability = one.who.capability.as_ref().unwrap().to_string();
            if !wanted.contains_key(&capability) {
                continue;
            }
            assert!(record.at <= at);
            hands.insert((capability.clone(), one.who.agent.as_ref().unwrap().to_string()));
            for hop in one.who.hops.iter().take_while(|hop| !hop.gave_up.contains(right)) {
                hands.insert((capability.clone(), hop.to.to_string()));
            }
        }
        let answer = questions::who_can(index, &stream.history, right, at, None).unwrap();
        let found = answer
            .holdings
            .iter()
            .map(|one| (one.grant.capability.as_ref().unwrap().to_string(), one.grant.ordinal));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), wanted, "{right} at {at}");
        let holders = answer.holdings.iter().flat_map(|one| {
            one.holders
                .iter()
                .map(|holder| (one.grant.capability.as_ref().unwrap().to_string(), holder.agent.to_string()))
        });
        assert_eq!(holders.collect::<BTreeSet<_>>(), hands);
        for holding in &answer.holdings {
            let task: &TaskId = holding.grant.task.as_ref().unwrap();
            let rows = questions::of_task(index, task).unwrap();
            let all = read.records.iter().filter(|(_, record)| record.task() == Some(task));
            assert_eq!(rows.len(), all.count());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn every_question_finds_what_reading_everything_finds(
        seed: u64, counts in (20usize..600, 20usize..600, 0usize..300), pick: usize, days in (0u64..90, 0u64..40),
        limit in 1usize..40,
    ) {
        let count = counts.0 + counts.1 + counts.2;
        let folder = tempfile::tempdir().unwrap();
        let mut stream = Stream::new(seed, count as u64).unwrap();
        // Few users, so that each has something.
        stream.users.truncate(8);
        let raws = in_parts(&mut stream, &[counts.0, counts.1, counts.2]);
        let index = build(folder.path(), &raws, &stream, &[count / 3, count / 2]);
        let read = read(&raws, &stream);
        prop_assert_eq!(index.position().taken.faults, read.faults);
        prop_assert_eq!(index.position().taken.rows, (read.records.len() + read.answers.len()) as u64);
        check(&index, &read, &stream, pick, days, limit);
    }
}

fn known(position: &Position) -> Position {
    Position { writes: 0, ..position.clone() }
}

#[test]
fn growing_bit_by_bit_makes_the_pages_that_building_again_makes() {
    let mut stream = Stream::new(7, 5_000).unwrap();
    let raws = in_parts(&mut stream, &[1_500, 2_000, 1_500]);
    let both = raws.windows(2).filter(|pair| pair[0].part > pair[1].part).count();
    assert!(both > 50, "an old part goes on beside the next: {both}");
    let (whole, bits) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = build(whole.path(), &raws, &stream, &[]);
    let bits = build(bits.path(), &raws, &stream, &[1, 2, 63, 64, 65, 700, 701, 1_000, 2_500, 4_999]);
    assert_eq!(known(whole.position()), known(bits.position()));
    assert!(whole.position().taken.faults > 0, "the generator forges some");
    assert_eq!(whole.holes().unwrap(), []);
}

#[test]
fn a_missing_record_shows_and_a_second_copy_counts_once() {
    let mut stream = Stream::new(3, 400).unwrap();
    let mut raws = in_parts(&mut stream, &[200, 200]);
    let read = read(&raws, &stream);
    let (gone, record) = &read.records[100];
    let copy = raws[50].clone();
    drop(raws.remove(usize::try_from(gone - 1).unwrap()));
    let last = raws.iter().filter(|raw| raw.part == copy.part).map(|raw| raw.sequence).max().unwrap();
    raws.push(Raw { sequence: last + 1, ..copy });
    let folder = tempfile::tempdir().unwrap();
    let index = build(folder.path(), &raws, &stream, &[]);
    let holes = index.holes().unwrap();
    assert_eq!(holes.len(), 1);
    assert_eq!(
        (holes[0].origin.as_str(), holes[0].from, holes[0].to),
        (record.id.origin.name(), record.id.seq, record.id.seq)
    );
    assert_eq!(index.position().taken.copies, 1);
}

#[test]
fn a_record_that_was_put_back_is_a_row_and_one_on_anothers_subject_is_none() {
    let mut stream = Stream::new(3, 400).unwrap();
    let mut raws = stream.take(400).unwrap();
    let read = read(&raws, &stream);
    let at = |ordinal: u64| usize::try_from(ordinal - 1).unwrap();
    let allowed = read.records.iter().rfind(|(_, record)| record.kind() == RecordKind::Allow).unwrap();
    let (back, elsewhere) = (at(read.records[100].0), at(allowed.0));
    assert_ne!(back, elsewhere);
    let put = |raw: &mut Raw, class: &str| {
        let mut tokens: Vec<&str> = raw.subject.split('.').collect();
        assert_eq!(tokens[3], "audit");
        tokens[5] = class;
        raw.subject = tokens.join(".");
    };
    put(&mut raws[back], "restored");
    put(&mut raws[elsewhere], "hold");
    let folder = tempfile::tempdir().unwrap();
    let index = build(folder.path(), &raws, &stream, &[]);
    assert_eq!(index.position().taken.faults, read.faults + 1);
    assert!(index.row(back as u64 + 1).unwrap().is_some());
    assert!(index.row(elsewhere as u64 + 1).unwrap().is_none());
    assert!(index.faults().iter().any(|(_, why)| why.contains("not its own")));
}

#[test]
fn what_an_approver_did_not_sign_is_no_answer() {
    let mut stream = Stream::new(5, 3_000).unwrap();
    let raws = stream.take(3_000).unwrap();
    let answers = read(&raws, &stream).answers;
    assert!(answers.iter().any(|(_, answer)| answer.decision == ApprovalDecision::Refused));
    // The same stream, judged by another control stream: nobody of ours is enrolled there.
    let other = Stream::new(6, 1).unwrap();
    let elsewhere = read(&raws, &other);
    assert_eq!((elsewhere.records.len(), elsewhere.answers.len()), (0, 0));
    assert_eq!(elsewhere.faults, 3_000);
}

/// sled gives its lock back a moment after it is dropped.
fn sled_at(folder: &Path) -> sled::Db {
    for _ in 0..100 {
        match sled::Config::default().path(folder).open() {
            Ok(db) => return db,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    panic!("{} stays locked", folder.display())
}

/// Reads everything there is to be read.
fn read_all(folder: &Path) -> Result<u64, IndexError> {
    let index = Index::open(folder, &source())?;
    let mut rows = 0;
    index.each_row(|_| rows += 1)?;
    for term in [Term::Approvals, Term::Observed, Term::Tag("tag-7"), Term::Tag("public")] {
        index.visit(&[term], Window::default(), None, |_| true)?;
    }
    for day in 0..100 {
        index.refusals(BEGIN.as_secs() / 86_400 + day)?;
    }
    index.holes()?;
    index.open_calls()?;
    Ok(rows)
}

#[test]
fn a_page_that_is_lost_changed_or_old_is_named_and_never_left_out() {
    let mut stream = Stream::new(11, 1_200).unwrap();
    let raws = stream.take(1_200).unwrap();
    let folder = tempfile::tempdir().unwrap();
    drop(build(folder.path(), &raws[..900], &stream, &[]));
    let open = || sled_at(&folder.path().join("pages"));
    let older: BTreeMap<Vec<u8>, Vec<u8>> = open()
        .iter()
        .map(|item| {
            let (k, v) = item.unwrap();
            (k.to_vec(), v.to_vec())
        })
        .collect();
    let index = build(folder.path(), &raws[900..], &stream, &[]);
    let rows = index.position().taken.rows;
    drop(index);
    assert_eq!(read_all(folder.path()).unwrap(), rows);
    let present: Vec<(Vec<u8>, Vec<u8>)> = open()
        .iter()
        .map(|item| {
            let (k, v) = item.unwrap();
            (k.to_vec(), v.to_vec())
        })
        .collect();
    let (mut found, mut tried) = (0, 0);
    // Buckets and pages of lists are many and read only if they are asked for: rows, directories, the rest.
    let read_always = |key: &[u8]| matches!(key.first(), Some(b'r' | b'D' | b'T' | b'R' | b'O' | 0));
    for (key, value) in present.iter().filter(|(key, _)| read_always(key)) {
        let mut flipped = value.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let old = older.get(key).filter(|old| *old != value).cloned();
        for damage in [None, Some(flipped), old.clone()] {
            if damage.is_none() && old.is_none() && older.contains_key(key) {
                continue;
            }
            let db = open();
            match &damage {
                None => drop(db.remove(key).unwrap()),
                Some(bytes) => drop(db.insert(key, bytes.as_slice()).unwrap()),
            }
            db.flush().unwrap();
            drop(db);
            tried += 1;
            let told = read_all(folder.path());
            assert!(
                matches!(told, Err(IndexError::Damaged { .. })),
                "{:?}: {told:?}",
                String::from_utf8_lossy(key)
            );
            found += 1;
            let db = open();
            db.insert(key, value.as_slice()).unwrap();
            db.flush().unwrap();
        }
    }
    assert!(found == tried && tried > 20, "{found} of {tried}");
    assert_eq!(read_all(folder.path()).unwrap(), rows);
}

#[test]
fn bits_flipped_on_disk_are_found_or_change_nothing() {
    let mut stream = Stream::new(13, 1_500).unwrap();
    let raws = stream.take(1_500).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let index = build(folder.path(), &raws, &stream, &[]);
    let rows = index.position().taken.rows;
    drop(index);
    let file = folder.path().join("pages/db");
    let good = fs::read(&file).unwrap();
    // Most of the file is room that sled has not written to, and how much depends on when it flushed.
    let used: Vec<usize> =
        good.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
    let mut dice = generate::Dice::new(17);
    let (mut named, mut harmless) = (0, 0);
    for _ in 0..30 {
        let mut bad = good.clone();
        let at = used[usize::try_from(dice.below(used.len() as u64)).unwrap()];
        bad[at] ^= 1 << dice.below(8);
        // sled rewrites its files as it opens them.
        let copy = tempfile::tempdir().unwrap();
        copy_to(folder.path(), copy.path());
        fs::write(copy.path().join("pages/db"), &bad).unwrap();
        match std::panic::catch_unwind(|| read_all(copy.path())) {
            Ok(Ok(found)) => {
                assert_eq!(found, rows, "an answer that lacks rows, after byte {at}");
                harmless += 1;
            }
            Ok(Err(_)) | Err(_) => named += 1,
        }
    }
    assert!(named >= 5, "{named} of {}", named + harmless);
}

fn copy_to(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy_to(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

#[test]
fn another_source_an_older_state_and_a_lost_anchor_are_refused_until_it_is_built_again() {
    let mut stream = Stream::new(19, 600).unwrap();
    let raws = stream.take(600).unwrap();
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(build(folder.path(), &raws[..300], &stream, &[]));
    copy_to(&folder.path().join("pages"), kept.path());
    drop(build(folder.path(), &raws[300..], &stream, &[]));
    let told = |folder: &Path, source: &Source| match Index::open(folder, source) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(told(folder.path(), &under(8)).contains("--rebuild"));
    // What sled silently rolls back to.
    fs::remove_dir_all(folder.path().join("pages")).unwrap();
    copy_to(kept.path(), &folder.path().join("pages"));
    assert!(
        told(folder.path(), &source()).contains("its anchor says 2"),
        "{}",
        told(folder.path(), &source())
    );
    fs::remove_dir_all(folder.path().join("pages")).unwrap();
    assert!(told(folder.path(), &source()).contains("no position"));
    remove(folder.path()).unwrap();
    let index = build(folder.path(), &raws, &stream, &[]);
    // A message from before is none that comes next.
    let mut filler = Filler::new(index).unwrap();
    let message = open_all(&raws[..1], &stream.history).unwrap().remove(0);
    assert!(matches!(filler.take(message), Err(IndexError::OtherSource { .. })));
    drop(filler);
    remove(folder.path()).unwrap();
    drop(build(folder.path(), &raws, &stream, &[300]));
    fs::remove_file(folder.path().join("anchor")).unwrap();
    assert!(told(folder.path(), &source()).contains("anchor is gone"));
}
