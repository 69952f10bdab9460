//! What it costs that a question sees only what its asker may see: `search` beside a plain FTS5 query with `bm25()`,
//! over the same texts, in one run.
//!
//! `cargo bench -p writ-node --bench retrieval`. Of the governed figures, one has an asker who may see everything, one
//! an asker who may see a tenth: what is hidden is not ranked.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot run has nothing to say")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "made-up words, below 5,000")]

use criterion::{Criterion, criterion_group, criterion_main};
use rusqlite::Connection;
use writ_common::{
    ids::{AgentId, UserId},
    label::{Integrity, Label},
    time::Timestamp,
};
use writ_node::tools::retrieval::{Act, Asker, NewDocument, Readers, Store, search};

const DOCUMENTS: usize = 500;
const CHUNKS_PER_DOCUMENT: usize = 20;
const QUERY: &str = "refund of a late delivery to the customer";

/// Texts of made-up words with the frequencies of real ones (Zipf), so that common words have long lists.
fn text(seed: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let common = ["the", "of", "a", "to", "in", "is", "customer", "delivery", "order", "late", "refund"];
    let paragraph = |next: &mut dyn FnMut() -> f64| {
        let words: Vec<String> = (0..170)
            .map(|_| {
                let rank = (1.0 / (next() + 0.0002)) as usize;
                common.get(rank).map_or_else(|| format!("word{rank}"), ToString::to_string)
            })
            .collect();
        words.join(" ")
    };
    (0..CHUNKS_PER_DOCUMENT).map(|_| paragraph(&mut next)).collect::<Vec<_>>().join("\n\n")
}

fn searches(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("documents.db");
    let mut store = Store::create(&file).unwrap();
    let readers = |text: &str| {
        let entries: Vec<_> = text.split(' ').map(|entry| entry.parse().unwrap()).collect();
        Readers::new(&entries).unwrap()
    };
    let (all, some) = (readers("user:* agent:*"), readers("user:https://idp|kim agent:*"));
    for number in 0..DOCUMENTS {
        let readers = if number % 10 == 0 { all.clone() } else { some.clone() };
        let document =
            NewDocument { source: format!("d{number}"), text: text(number), label: Label::bottom(), readers };
        store.ingest(&document, Act { at: Timestamp::from_secs(1), by: "bench" }).unwrap();
    }
    // The same chunks in a plain FTS5 table.
    let plain = Connection::open(folder.path().join("plain.db")).unwrap();
    plain.execute_batch("CREATE VIRTUAL TABLE plain USING fts5 (text); BEGIN").unwrap();
    let mut count = 0;
    for document in store.documents().unwrap() {
        for chunk in document.chunks {
            plain.execute("INSERT INTO plain VALUES (?1)", [&chunk.text]).unwrap();
            count += 1;
        }
    }
    plain.execute_batch("COMMIT").unwrap();
    let asker = |user: &str| Asker {
        user: UserId::parse("https://idp", user).unwrap(),
        agents: vec![AgentId::parse("researcher").unwrap()],
        clearance: Label { integrity: Integrity::Untrusted, ..Label::bottom() },
    };
    let node = Store::open(&file).unwrap();
    let mut group = criterion.benchmark_group(format!("search {count} chunks"));
    for (name, user) in [("may see all", "kim"), ("may see a tenth", "lou")] {
        let asker = asker(user);
        assert_eq!(search(&node, &asker, QUERY, 8).unwrap().chunks.len(), 8);
        group.bench_function(name, |bencher| bencher.iter(|| search(&node, &asker, QUERY, 8).unwrap()));
    }
    let words: Vec<String> = QUERY.split(' ').map(|word| format!("\"{word}\"")).collect();
    let query = words.join(" OR ");
    let mut statement =
        plain.prepare("SELECT text FROM plain WHERE plain MATCH ?1 ORDER BY bm25(plain) LIMIT 8").unwrap();
    group.bench_function("plain FTS5, bm25()", |bencher| {
        bencher.iter(|| {
            let rows = statement.query_map([&query], |row| row.get::<_, String>(0)).unwrap();
            rows.map(Result::unwrap).count()
        });
    });
    group.finish();
}

criterion_group!(benches, searches);
criterion_main!(benches);
