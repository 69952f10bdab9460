//! Parts that were put away: read in the order in which they were written, and what retention deleted of them.

use futures_util::stream;
use writ::{
    archive::{
        manifest::{Class, Verified},
        read::{Archived, open},
        retain::{Retention, carry_out, look},
        segment::{Message, SegmentLimits},
        store::Store,
        write::{Leaf, Sealed, write_part},
    },
    index::{
        lanes::{Lane, take_merged},
        source::Raw,
        streams::say_archived,
    },
};
use writ_common::ids::PartId;

use super::{
    tests::{build, check, in_parts, read, source},
    *,
};

fn part_numbers(raws: &[Raw]) -> Vec<PartId> {
    let mut parts: Vec<PartId> = raws.iter().map(|raw| raw.part.clone()).collect();
    parts.sort();
    parts.dedup();
    parts
}

/// Puts every part of a stream away, a few messages a segment.
async fn put_away(raws: &[Raw], stream: &Stream, store: &Store) -> Vec<Archived> {
    let tenant = stream.history.state.tenant();
    let mut archived = Vec::new();
    for part in part_numbers(raws) {
        let of_part = raws.iter().filter(|raw| raw.part == part);
        let messages: Vec<Result<Message>> = of_part
            .map(|raw| {
                let (subject, payload) = (raw.subject.clone(), raw.payload.clone());
                Ok(Message { sequence: raw.sequence, at: raw.at, subject, payload })
            })
            .collect();
        let last = messages.iter().flatten().map(|message| message.sequence).max().unwrap();
        let sealed = Sealed {
            tenant: tenant.clone(),
            part: part.clone(),
            created: BEGIN,
            last,
            sealed_at: BEGIN,
            checkpoints: std::collections::BTreeMap::new(),
            verified: Verified::default(),
        };
        let limits = SegmentLimits { messages: 40, ..SegmentLimits::default() };
        let leaf = |message: &Message| Leaf::of(message, &stream.history.state);
        let written = write_part(store, &sealed, &limits, stream::iter(messages), leaf).await.unwrap();
        archived.push(open(store, tenant, &part, Some(&written.digest)).await.unwrap());
    }
    archived
}

async fn fill(index: Index, archived: &[Archived], store: &Store, stream: &Stream) -> Index {
    let mut filler = Filler::new(index).unwrap();
    let mut lanes = Vec::new();
    for one in archived {
        let part = filler.part(&one.manifest.part);
        say_archived(&mut filler, one);
        lanes.push(Lane::of_archive(store, one, part.next, part.last));
    }
    take_merged(&mut filler, lanes, &stream.history).await.unwrap();
    filler.finish().unwrap()
}

#[tokio::test]
async fn parts_of_an_archive_come_in_the_order_of_time_wherever_a_fill_was_stopped() {
    let mut stream = Stream::new(23, 900).unwrap();
    stream.users.truncate(8);
    let raws = in_parts(&mut stream, &[300, 400, 200]);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("archive").to_str().unwrap()).unwrap();
    let archived = put_away(&raws, &stream, &store).await;
    assert_eq!(archived.len(), 3);
    let whole = build(&folder.path().join("whole"), &raws, &stream, &[]);
    for stop in [0, 1, 311, 650, 900] {
        let path = folder.path().join(format!("stopped-{stop}"));
        drop(build(&path, &raws[..stop], &stream, &[]));
        let index = fill(Index::open(&path, &source()).unwrap(), &archived, &store, &stream).await;
        // Every page there is, by its digest.
        assert_eq!(index.position().top, whole.position().top, "stopped after {stop}");
        for one in &archived {
            let part = &index.position().parts[&one.manifest.part];
            assert_eq!((part.created, part.next), (Some(BEGIN), one.manifest.stream.last + 1));
        }
        check(&index, &read(&raws, &stream), &stream, 3, (10, 20), 7);
    }
}

#[tokio::test]
async fn what_the_index_was_made_from_and_the_archive_has_otherwise_is_refused() {
    let mut stream = Stream::new(29, 300).unwrap();
    let raws = in_parts(&mut stream, &[200, 100]);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("archive").to_str().unwrap()).unwrap();
    let archived = put_away(&raws, &stream, &store).await;
    let mut other = raws.clone();
    let at = 99;
    other[at].payload = other[at - 1].payload.clone();
    let index = build(&folder.path().join("index"), &other[..=at], &stream, &[]);
    let mut filler = Filler::new(index).unwrap();
    let read = filler.part(&archived[0].manifest.part);
    let lanes = vec![Lane::of_archive(&store, &archived[0], read.next, read.last)];
    let told = take_merged(&mut filler, lanes, &stream.history).await.unwrap_err().to_string();
    assert!(told.contains(&format!("another message p0#{}", raws[at].sequence)), "{told}");
}

#[tokio::test]
async fn what_retention_deleted_is_counted_and_not_missing() {
    let mut stream = Stream::new(31, 600).unwrap();
    let mut raws = in_parts(&mut stream, &[300, 300]);
    // One that is really missing, from the part that nothing is deleted of.
    let known = read(&raws, &stream);
    let of_second = |ordinal: u64| raws[usize::try_from(ordinal - 1).unwrap()].part == PartId::numbered(1);
    let (gone, record) = known
        .records
        .iter()
        .rfind(|(ordinal, record)| {
            of_second(*ordinal) && {
                let later = known.records.iter().filter(|(_, one)| one.id.boot == record.id.boot);
                later.filter(|(ordinal, one)| one.id.seq > record.id.seq && of_second(*ordinal)).count() > 3
            }
        })
        .unwrap()
        .clone();
    drop(raws.remove(usize::try_from(gone - 1).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("archive").to_str().unwrap()).unwrap();
    let mut archived = put_away(&raws, &stream, &store).await;
    let day = Millis::from_secs(86_400);
    let records = archived[0].manifest.segments.iter().filter(|one| one.class == Class::Records);
    let middle = records.clone().nth(records.clone().count() / 2).unwrap().to;
    let retention = Retention { content: Millis(u64::MAX / 4), records: day, state: day };
    let now = middle.after(day);
    let plan = look(&store, &mut archived[0], &retention, &[], now).await.unwrap();
    carry_out(&store, &archived[0], &plan, &retention, now).await.unwrap();
    let deleted: u64 = plan.delete.iter().map(|segment| segment.messages.get()).sum();
    assert!(deleted > 50, "{deleted}");
    archived[0] = open(&store, stream.history.state.tenant(), &PartId::first(), None).await.unwrap();

    let path = folder.path().join("index");
    let index = fill(Index::open(&path, &source()).unwrap(), &archived, &store, &stream).await;
    let told = &index.position().parts[&PartId::first()].deleted;
    assert_eq!(
        told.iter().map(|one| (one.class, one.messages)).collect::<Vec<_>>(),
        [(Class::Records, deleted)]
    );
    assert_eq!(index.position().taken.messages, raws.len() as u64 - deleted);
    let holes = index.holes().unwrap();
    assert_eq!(
        holes.iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>(),
        [(record.id.seq, record.id.seq)]
    );
    // What was read before it was deleted stays, and nothing is said of it.
    let before = folder.path().join("before");
    drop(build(&before, &raws, &stream, &[]));
    let index = fill(Index::open(&before, &source()).unwrap(), &archived, &store, &stream).await;
    assert_eq!(index.position().taken.messages, raws.len() as u64);
    assert!(index.position().parts[&PartId::first()].deleted.is_empty());
}
