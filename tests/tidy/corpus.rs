//! The fuzzer's corpus, replayed.

use std::fs;

use crate::root;

#[path = "../fuzz/src/lib.rs"]
mod fuzzing;

type Target = fn(&[u8]);

#[test]
fn the_corpus_of_the_fuzzer_holds() {
    let targets: [(&str, Target); 3] =
        [("capability", fuzzing::capability), ("envelope", fuzzing::envelope), ("text", fuzzing::text)];
    for (name, target) in targets {
        let folder = root().join("tests/fuzz/corpus").join(name);
        let mut replayed = 0;
        for item in fs::read_dir(&folder).unwrap() {
            target(&fs::read(item.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed >= 5, "{name}: {replayed} inputs");
    }
}
