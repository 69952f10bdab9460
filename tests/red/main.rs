//! Every control's test with the control switched off: it has to fail. A test that stays green then proves nothing.
//!
//! The switches ([`writ_common::red`]) exist only under `--cfg writ_red`, so this builds the workspace once more,
//! into a folder of its own. The usual run does so for the decision core and a sample of its controls;
//! `.ci/run --red` for everything.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test may panic, and says what it saw"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A control that is held twice: the second holds when the first is off, so both are switched off together.
const TOGETHER: [(&str, &str); 3] =
    [("A16", "A16,T02-cache"), ("M01", "M01,M01-call"), ("T02", "T02,T02-cache")];
/// Longer than any test with its control in place; one that hangs without it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The ids of every switch in product code.
fn switches(folder: &Path, found: &mut BTreeSet<String>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !["target", ".git", "tests"].contains(&name) {
            switches(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(
                text.split("red::off(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
            );
        }
    }
}

/// Builds test binaries with the switches in them.
fn build(arguments: &[&str]) -> Vec<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--quiet", "--message-format=json", "--target-dir", "target/red"])
        .args(arguments)
        .env("RUSTFLAGS", "--cfg writ_red")
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the red build fails");
    let messages = String::from_utf8(output.stdout).unwrap();
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .collect()
}

/// The tests of an id that fail with its control switched off, out of those there are.
fn red(binaries: &[PathBuf], id: &str) -> (usize, Vec<String>) {
    let off = TOGETHER.iter().find(|(first, _)| *first == id).map_or(id, |(_, both)| both);
    let filter = id.to_lowercase().replace('-', "_");
    let (mut there, mut failed) = (0, Vec::new());
    for binary in binaries {
        let listed = Command::new(binary).args(["--list", &filter]).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for test in listed.lines().filter_map(|line| line.strip_suffix(": test")) {
            there += 1;
            if !passes(binary, test, off) {
                failed.push(test.to_owned());
            }
        }
    }
    (there, failed)
}

fn passes(binary: &Path, test: &str, off: &str) -> bool {
    let mut child = Command::new(binary)
        .args(["--exact", test])
        .env("WRIT_RED_OFF", off)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

#[test]
fn a_sample_of_controls_goes_red_when_switched_off() {
    let binaries = build(&["--package", "writ-common"]);
    for id in ["T18", "D02", "A07"] {
        let (there, failed) = red(&binaries, id);
        assert!(!failed.is_empty(), "{id}: none of {there} tests notices that the control is off");
    }
}

#[test]
#[ignore = "builds everything once more; `.ci/run --red`"]
fn every_control_goes_red_when_switched_off() {
    let mut ids = BTreeSet::new();
    for folder in ["common", "node", "broker", "deploy"] {
        switches(&root().join(folder), &mut ids);
    }
    let binaries = build(&["--workspace"]);
    let mut unnoticed = BTreeMap::new();
    for id in &ids {
        let (there, failed) = red(&binaries, id);
        // The second half of a control that is held twice has no test of its own.
        if there == 0 && id.contains('-') {
            continue;
        }
        println!("{id}: {} of {there} red: {}", failed.len(), failed.join(", "));
        if failed.is_empty() {
            unnoticed.insert(id.clone(), there);
        }
    }
    assert!(unnoticed.is_empty(), "controls whose tests stay green without them: {unnoticed:?}");
}
