//! Rules about the tree itself. Each is a function over data, tried on a bad example as well as on the tree.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod layers;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every committed file below a folder of the tree, with its path from the root.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", folder])
        .current_dir(root())
        .output()
        .unwrap();
    String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .filter(|path| path.ends_with(ending))
        .filter_map(|path| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

/// The part of a source file that ships: everything before its tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

/// The sources of the crates that ship.
fn product_sources() -> Vec<(String, String)> {
    ["common", "node", "broker", "deploy"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .filter(|(path, _)| path.contains("/src/") && !path.contains("testing"))
        .collect()
}
