//! Archives as a whole: what is written is read, and what is done to one is named.

mod retention;

use std::{fs, path::PathBuf};

use anyhow::Result;
use futures_util::stream;
use proptest::prelude::*;
use writ_common::{
    digest::Digest,
    ids::{BootId, NodeId, PartId, TenantId},
    record::Origin,
    time::Timestamp,
    tlog::{LogId, leaf_hash},
};

use super::{
    Damage,
    manifest::{Class, MANIFEST, Manifest},
    read::{Archived, Item, open},
    segment::{Message, SegmentLimits, SegmentReader},
    store::Store,
    write::{Leaf, Sealed, Written, write_part},
};

const DAY: u64 = 86_400;
/// Small, so that a few messages are several segments.
const SMALL: SegmentLimits = SegmentLimits { lines_bytes: 4_000, messages: 3 };

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn part() -> PartId {
    PartId::parse("p3").unwrap()
}

fn day(number: u64) -> Timestamp {
    Timestamp::from_secs(number * DAY)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn sealed(messages: &[Message]) -> Sealed {
    Sealed {
        tenant: tenant(),
        part: part(),
        created: day(1),
        last: messages.last().map_or(0, |message| message.sequence + 1),
        sealed_at: day(900),
        checkpoints: [(log(), "note\n".to_owned())].into(),
        verified: Default::default(),
    }
}

fn log() -> LogId {
    LogId {
        tenant: tenant(),
        origin: Origin::Node(NodeId::parse("node-1").unwrap()),
        boot: BootId::parse("b-1").unwrap(),
    }
}

/// Takes every record for one of the same run, at the position its sequence says.
fn leaf(message: &Message) -> Option<Leaf> {
    let record = Digest::plain(&message.payload);
    Some(Leaf {
        log: log(),
        position: message.sequence,
        hash: leaf_hash(&message.payload),
        record,
        voids: None,
    })
}

async fn write(store: &Store, messages: &[Message], limits: &SegmentLimits) -> Result<Written> {
    let given = stream::iter(messages.iter().cloned().map(Ok));
    write_part(store, &sealed(messages), limits, given, leaf).await
}

async fn read(
    archived: &Archived,
    store: &Store,
    classes: &[Class],
    filter: Option<&str>,
) -> Result<Vec<Item>> {
    let mut messages = archived.messages(store, classes, filter);
    let mut items = Vec::new();
    while let Some(item) = messages.next().await? {
        items.push(item);
    }
    Ok(items)
}

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        Self { folder, store }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("acme/p3").join(name)
    }

    /// The files of the part, from its folder on.
    fn files(&self) -> Vec<String> {
        let listed = run(self.store.list(Some("acme/p3"))).unwrap();
        listed.iter().map(|file| file.key.strip_prefix("acme/p3/").unwrap().to_owned()).collect()
    }

    async fn archived(&self) -> Archived {
        open(&self.store, &tenant(), &part(), None).await.unwrap()
    }
}

const SUBJECTS: [&str; 9] = [
    "audit.p3.allow.t-1.node-1",
    "audit.p3.deny._.broker-1",
    "audit.p3.restored.t-2.node-1",
    "approval.p3.ap-1.request",
    "label.p3.t-1.instruction",
    "label.p3.t-1",
    "label.p3.t-1.sources",
    "claim.p3.approval.ap-1",
    "claim.p3.budget.t-1.cents",
];

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let message = (0..SUBJECTS.len(), prop::collection::vec(any::<u8>(), 0..300), 1..4_u64, 0..2_000_000_u64);
    prop::collection::vec(message, 0..40).prop_map(|drawn| {
        let mut sequence = 0;
        drawn
            .into_iter()
            .map(|(subject, payload, gap, at)| {
                // Gaps are what ended by itself in the stream.
                sequence += gap;
                let subject = format!("writ.v1.acme.{}", SUBJECTS[subject]);
                Message { sequence, at: Timestamp::from_millis(at), subject, payload }
            })
            .collect()
    })
}

/// A part with several segments of each class.
fn some_messages() -> Vec<Message> {
    (1..=30_u8)
        .map(|number| Message {
            sequence: number.into(),
            at: day(number.into()),
            subject: format!("writ.v1.acme.{}", SUBJECTS[usize::from(number) % SUBJECTS.len()]),
            payload: vec![number; number.into()],
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(messages in messages()) {
        let place = Place::new();
        run(async {
            let written = write(&place.store, &messages, &SMALL).await.unwrap();
            prop_assert!(!written.was_there);
            let archived = Archived::open(&place.store, &tenant(), &part(), Some(&written.digest)).await.unwrap().unwrap();
            prop_assert_eq!(&archived.manifest, &written.manifest);
            prop_assert_eq!(archived.check(&place.store).await.unwrap(), []);
            let of = |wanted: &dyn Fn(&Message) -> bool| -> Vec<Item> {
                messages.iter().filter(|message| wanted(message)).cloned().map(Item::Message).collect()
            };
            let class = |message: &Message| Class::of(&message.subject, &tenant(), &part()).unwrap();
            prop_assert_eq!(read(&archived, &place.store, &Class::ALL, None).await.unwrap(), of(&|_| true));
            for one in Class::ALL {
                let read = read(&archived, &place.store, &[one], None).await.unwrap();
                prop_assert_eq!(read, of(&|message| class(message) == one));
            }
            let filter = "writ.v1.acme.*.p3.*.t-1.*";
            let read = read(&archived, &place.store, &Class::ALL, Some(filter)).await.unwrap();
            prop_assert_eq!(read, of(&|message| message.subject.contains(".allow.t-1.") || message.subject.contains("budget")));
            for segment in &archived.manifest.segments {
                prop_assert!(segment.messages.get() <= SMALL.messages);
            }
            let records: Vec<(u64, Digest)> = messages
                .iter()
                .filter(|message| class(message) == Class::Records)
                .map(|message| (message.sequence, leaf_hash(&message.payload)))
                .collect();
            prop_assert_eq!(archived.manifest.runs.len(), usize::from(!records.is_empty()));
            for run in &archived.manifest.runs {
                prop_assert_eq!(run.checkpoint.as_deref(), Some("note\n"));
                prop_assert_eq!(&archived.leaves(&place.store, run).await.unwrap(), &records);
                for position in 0..200 {
                    let is_here = records.iter().any(|(here, _)| *here == position);
                    prop_assert_eq!(run.has(position), is_here);
                }
            }
            // A second run, after the manifest was written and before anybody heard of it.
            let again = write(&place.store, &messages, &SMALL).await.unwrap();
            prop_assert!(again.was_there && again.digest == written.digest);
            Ok(())
        })?;
    }

    #[test]
    fn a_run_that_was_killed_is_completed(messages in messages(), killed_at in 0..40_usize, other in any::<bool>()) {
        let (place, whole) = (Place::new(), Place::new());
        run(async {
            let killed = messages.iter().take(killed_at).cloned().map(Ok);
            let killed = killed.chain([Err(anyhow::anyhow!("killed"))]);
            // Another version may have cut elsewhere.
            let limits = if other { SegmentLimits { messages: 2, ..SMALL } } else { SMALL };
            let error = write_part(&place.store, &sealed(&messages), &limits, stream::iter(killed), leaf).await.unwrap_err();
            prop_assert_eq!(error.to_string(), "killed");
            prop_assert!(Archived::open(&place.store, &tenant(), &part(), None).await.unwrap().is_none());
            let written = write(&place.store, &messages, &SMALL).await.unwrap();
            prop_assert_eq!(written.manifest, write(&whole.store, &messages, &SMALL).await.unwrap().manifest);
            prop_assert_eq!(place.archived().await.check(&place.store).await.unwrap(), []);
            Ok(())
        })?;
        prop_assert_eq!(place.files(), whole.files());
    }
}

#[test]
fn whatever_is_done_to_a_file_is_found_and_named() {
    let place = Place::new();
    let written = run(write(&place.store, &some_messages(), &SMALL)).unwrap();
    let found = || {
        run(async {
            match Archived::open(&place.store, &tenant(), &part(), Some(&written.digest)).await {
                Ok(Some(archived)) => archived.check(&place.store).await.unwrap(),
                Ok(None) => vec![Damage::of(MANIFEST, "is not there")],
                Err(error) => vec![error.downcast().unwrap()],
            }
        })
    };
    assert_eq!(found(), []);
    let files = place.files();
    assert!(files.len() > 10 && files.iter().any(|name| name.starts_with("leaves/")), "{files:?}");
    for name in files {
        let path = place.file(&name);
        let good = fs::read(&path).unwrap();
        let is_named = |done: &str| {
            let found = found();
            assert_eq!(found.len(), 1, "{done} in {name}: {found:?}");
            assert!(found[0].file.ends_with(&name), "{done} in {name}: {}", found[0]);
            // Nor is any of it handed out.
            if name.ends_with(".jsonl.gz") {
                let archived = run(place.archived());
                let error = run(read(&archived, &place.store, &Class::ALL, None)).unwrap_err();
                assert!(error.is::<Damage>(), "{error:#}");
            }
        };
        for at in (0..good.len()).step_by(good.len() / 16 + 1) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            is_named(&format!("a bit of byte {at}"));
            fs::write(&path, &good[..at]).unwrap();
            is_named(&format!("cut at {at}"));
        }
        fs::write(&path, [&good[..], b"\n"].concat()).unwrap();
        is_named("more");
        fs::remove_file(&path).unwrap();
        is_named("gone");
        fs::write(&path, good).unwrap();
    }
    fs::write(place.file("records-000099.jsonl.gz"), "?").unwrap();
    let found = found();
    assert!(
        found.len() == 1 && found[0].to_string().contains("records-000099.jsonl.gz: is not listed"),
        "{found:?}"
    );
}

/// Somebody who may write manifests, and whose word nobody has asked the control stream about.
#[test]
fn segments_are_held_to_what_the_manifest_says() {
    let place = Place::new();
    let good = run(write(&place.store, &some_messages(), &SMALL)).unwrap().manifest;
    let last = good.segments.len() - 1;
    let found = |change: &dyn Fn(&mut Manifest), said: &str| {
        let mut manifest = good.clone();
        change(&mut manifest);
        fs::write(place.file(MANIFEST), manifest.to_bytes().unwrap()).unwrap();
        let found = run(async { place.archived().await.check(&place.store).await.unwrap() });
        assert!(found.len() == 1 && found[0].to_string().contains(said), "{said}: {found:?}");
    };
    found(&|manifest| manifest.segments[0].from = day(0), "should be from 1970-01-01");
    found(&|manifest| manifest.segments[0].to = day(999), "and should be from");
    found(&|manifest| manifest.segments[last].last += 1, "and should with");
    found(&|manifest| manifest.segments[0].first -= 1, "which does not belong there");
    found(&|manifest| manifest.runs[0].positions.push((500, 500)), "bytes instead of");
}

#[test]
fn a_killed_run_leaves_a_part_that_shows_as_unfinished() {
    let place = Place::new();
    run(async {
        let killed = some_messages().into_iter().map(Ok).chain([Err(anyhow::anyhow!("killed"))]);
        write_part(&place.store, &sealed(&some_messages()), &SMALL, stream::iter(killed), leaf)
            .await
            .unwrap_err();
        assert_eq!(Archived::list(&place.store).await.unwrap(), (vec![], vec!["acme/p3".to_owned()]));
        write(&place.store, &some_messages(), &SMALL).await.unwrap();
        assert_eq!(Archived::list(&place.store).await.unwrap(), (vec![(tenant(), part())], vec![]));
    });
}

#[test]
fn another_part_of_the_same_name_is_refused() {
    let place = Place::new();
    run(async {
        write(&place.store, &some_messages(), &SMALL).await.unwrap();
        let mut other = some_messages();
        other[7].payload.push(0);
        let error = write(&place.store, &other, &SMALL).await.unwrap_err().to_string();
        assert!(error.contains("holds another part of this name") && error.contains("message 8"), "{error}");
        let error = write(&place.store, &some_messages()[..9], &SMALL).await.unwrap_err().to_string();
        assert!(error.contains("message 10 where the stream has nothing"), "{error}");
    });
}

#[test]
fn what_no_stream_of_the_part_holds_is_refused() {
    let place = Place::new();
    let refused = |change: &dyn Fn(&mut Vec<Message>), said: &str| {
        let mut messages = some_messages();
        let sealed = sealed(&messages);
        change(&mut messages);
        let given = stream::iter(messages.into_iter().map(Ok));
        let error = run(write_part(&place.store, &sealed, &SMALL, given, leaf)).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{error:#}");
        assert!(!place.file(MANIFEST).exists());
    };
    refused(&|messages| messages.swap(4, 5), "message 5 comes behind 6");
    refused(&|messages| messages[4].sequence = 4, "message 4 comes behind 4");
    refused(&|messages| messages[29].sequence = 99, "message 99 comes behind 29");
    for subject in
        ["writ.v1.acme.audit.p0.deny._.n", "writ.v1.other.audit.p3.deny._.n", "writ.v1.acme.call.p3.t-1", "x"]
    {
        refused(&|messages| messages[4].subject = subject.to_owned(), "none of part p3 of tenant acme");
    }
}

#[test]
fn a_segment_that_unpacks_to_too_much_does_not_fill_the_memory() {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![b' '; 1024 * 1024];
    for _ in 0..200 {
        encoder.write_all(&zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let place = Place::new();
    let written = run(write(&place.store, &some_messages(), &SMALL)).unwrap();
    // As somebody would list it who may write manifests too.
    let mut segment = written.manifest.segments[0].clone();
    segment.bytes = bomb.len() as u64;
    segment.digest = Digest::plain(&bomb);
    let mut reader = SegmentReader::open("x".to_owned(), &written.manifest, segment, bomb).unwrap();
    let damage = reader.next().unwrap_err();
    assert!(damage.what.contains("unpacks to more than"), "{damage}");
}

#[test]
fn a_manifest_that_cannot_be_is_none() {
    let place = Place::new();
    let written = run(write(&place.store, &some_messages(), &SMALL)).unwrap();
    let good = written.manifest;
    Manifest::parse("m", &good.to_bytes().unwrap()).unwrap();
    let bad = |change: &dyn Fn(&mut Manifest), said: &str| {
        let mut manifest = good.clone();
        change(&mut manifest);
        let damage = Manifest::parse("m", &manifest.to_bytes().unwrap()).unwrap_err();
        assert!(damage.what.contains(said), "{damage}");
    };
    bad(&|manifest| manifest.format = "writ-archive/2".to_owned(), "this writ reads `writ-archive/1`");
    bad(&|manifest| drop(manifest.segments.remove(0)), "belongs");
    bad(&|manifest| manifest.segments[0].name = "../../etc/passwd".to_owned(), "belongs");
    bad(&|manifest| manifest.segments[1].first = 1, "what cannot be");
    bad(&|manifest| manifest.segments[0].bytes = u64::MAX, "what cannot be");
    bad(&|manifest| manifest.segments[0].last = 2, "what cannot be");
    bad(&|manifest| manifest.stream.messages += 1, "says the stream had 31");
    bad(&|manifest| manifest.runs[0].log.tenant = TenantId::parse("other").unwrap(), "wrong place");
    bad(&|manifest| manifest.runs[0].positions = vec![(0, 3), (4, 5)], "in no order");
    bad(&|manifest| manifest.runs[0].positions = vec![(5, 3)], "in no order");
    bad(&|manifest| manifest.runs[0].positions.clear(), "no position");
    bad(&|manifest| manifest.runs.push(manifest.runs[0].clone()), "wrong place");
}
