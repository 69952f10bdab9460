//! The corpus of the fuzz targets, through the very functions the targets call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test may panic")]
#![allow(clippy::print_stdout, reason = "names the file a panic is about")]
#![allow(clippy::disallowed_methods, reason = "reads the corpus")]

#[path = "../../tests/fuzz/src/lib.rs"]
mod fuzzing;

fn replay(target: &str, read: fn(&[u8])) {
    let folder = format!("{}/../tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut files = 0;
    for file in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")) {
        let path = file.unwrap().path();
        println!("{}", path.display());
        read(&std::fs::read(path).unwrap());
        files += 1;
    }
    assert!(files >= 5, "{folder} holds {files} files");
}

#[test]
fn capabilities() {
    replay("capability", fuzzing::capability);
}

#[test]
fn envelopes() {
    replay("envelope", fuzzing::envelope);
}

#[test]
fn json() {
    replay("json", fuzzing::json);
}

#[test]
fn policies() {
    replay("policy", fuzzing::policy);
}
