//! Who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};

use crate::{files, product, product_sources, root};

/// Crates of ours that each crate may use, tests aside.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("writ-common", &[]),
    ("writ-bus", &["writ-common"]),
    ("writ-journal", &["writ-common"]),
    ("writ-telemetry", &["writ-common"]),
    ("writ-node", &["writ-common", "writ-bus", "writ-journal", "writ-telemetry"]),
    ("writ-broker", &["writ-common", "writ-bus", "writ-journal", "writ-telemetry"]),
    ("writ-sdk", &["writ-common", "writ-bus"]),
    ("writ-mcp", &["writ-common", "writ-sdk"]),
    ("writ-upstream", &["writ-common", "writ-bus", "writ-node"]),
    (
        "writ",
        &[
            "writ-broker",
            "writ-bus",
            "writ-common",
            "writ-journal",
            "writ-mcp",
            "writ-node",
            "writ-sdk",
            "writ-telemetry",
            "writ-upstream",
        ],
    ),
    ("writ-tests", &["*"]),
    ("writ-simulations", &["*"]),
    ("writ-fuzz", &["*"]),
];

/// What the decision core must not know: runtimes, the network, the disk.
const FORBIDDEN_IN_COMMON: [&str; 8] =
    ["tokio", "async-nats", "sled", "opentelemetry", "reqwest", "rusqlite", "tracing", "getrandom"];

type Graph = BTreeMap<String, BTreeSet<String>>;

fn graph() -> Graph {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
            let names = normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
            (package["name"].as_str().unwrap().to_owned(), names.collect())
        })
        .collect()
}

fn broken_layers(graph: &Graph) -> Vec<String> {
    let allowed = BTreeMap::from(ALLOWED);
    let mut broken = Vec::new();
    for (name, dependencies) in graph {
        let Some(allowed) = allowed.get(name.as_str()) else {
            broken.push(format!("{name} has no layer yet"));
            continue;
        };
        let ours = dependencies.iter().filter(|dependency| graph.contains_key(*dependency));
        for dependency in
            ours.filter(|dependency| *allowed != ["*"] && !allowed.contains(&dependency.as_str()))
        {
            broken.push(format!("{name} -> {dependency}"));
        }
        if name == "writ-common" {
            let forbidden = dependencies.iter().filter(|one| FORBIDDEN_IN_COMMON.contains(&one.as_str()));
            broken.extend(forbidden.map(|one| format!("{name} -> {one}")));
        }
    }
    broken
}

#[test]
fn crates_depend_downwards_only() {
    assert_eq!(broken_layers(&graph()), [""; 0]);
    let bad = Graph::from([
        ("writ-common".to_owned(), BTreeSet::from(["tokio".to_owned()])),
        ("writ-node".to_owned(), BTreeSet::from(["writ-broker".to_owned()])),
        ("writ-broker".to_owned(), BTreeSet::new()),
    ]);
    assert_eq!(broken_layers(&bad), ["writ-common -> tokio", "writ-node -> writ-broker"]);
}

/// Packages that `from` reaches through ordinary dependencies.
fn reached(metadata: &serde_json::Value, from: &str) -> BTreeSet<String> {
    let name_of = |id: &serde_json::Value| {
        let packages = metadata["packages"].as_array().unwrap();
        packages.iter().find(|package| package["id"] == *id).unwrap()["name"].as_str().unwrap().to_owned()
    };
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut waiting: Vec<&serde_json::Value> =
        nodes.iter().map(|node| &node["id"]).filter(|id| name_of(id) == from).collect();
    let mut seen: Vec<&serde_json::Value> = Vec::new();
    while let Some(id) = waiting.pop() {
        if seen.contains(&id) {
            continue;
        }
        seen.push(id);
        let node = nodes.iter().find(|node| node["id"] == *id).unwrap();
        let dependencies = node["deps"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        });
        waiting.extend(normal.map(|dependency| &dependency["pkg"]));
    }
    seen.into_iter().map(name_of).collect()
}

#[test]
fn the_decision_core_reaches_no_runtime_through_others() {
    let output = std::process::Command::new(env!("CARGO"))
        // What only other platforms need is not fetched for a build.
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            "host-tuple",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata = serde_json::from_slice(&output.stdout).unwrap();
    // biscuit-auth draws the keys of its own builders through getrandom; common hands it seeds instead.
    let forbidden: BTreeSet<String> = FORBIDDEN_IN_COMMON
        .iter()
        .filter(|name| **name != "getrandom")
        .map(|name| (*name).to_owned())
        .collect();
    let core = reached(&metadata, "writ-common");
    assert!(core.contains("biscuit-auth"));
    assert_eq!(core.intersection(&forbidden).collect::<Vec<_>>(), [""; 0]);
    assert!(reached(&metadata, "writ-node").contains("tokio"), "what is looked for would be found");
}

#[test]
fn one_module_names_biscuit_auth() {
    let elsewhere: Vec<String> = product_sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("common/src/capability/"))
        .filter(|(_, text)| product(text).contains("biscuit_auth"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(elsewhere, [""; 0]);
}

/// Datalog is built from values, never from text with values in it.
fn builds_datalog_from_text(text: &str) -> bool {
    let code: String = product(text).split_whitespace().collect();
    // `error.code()` reads a reason; `.code(…)` with anything in it is the parser of Datalog.
    let parses = code.split(".code(").skip(1).any(|after| !after.starts_with(')'));
    let others = [".code_with_params(", "Rule::try_from(", "Fact::try_from(", "Check::try_from("];
    parses || others.iter().any(|call| code.contains(call))
}

#[test]
fn p09_no_datalog_is_made_by_formatting() {
    let found: Vec<String> = product_sources()
        .into_iter()
        .filter(|(_, text)| builds_datalog_from_text(text))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(found, [""; 0]);
    assert!(builds_datalog_from_text("let b = BlockBuilder::new()\n    .code(format!(\"user({name})\"));"));
}

#[test]
fn versions_are_declared_once_and_lints_apply_everywhere() {
    for (path, text) in files(".", "Cargo.toml") {
        if path == "Cargo.toml" || path.starts_with("tests/fuzz") || path.starts_with("simulations/peers") {
            continue;
        }
        assert!(text.contains("[lints]\nworkspace = true"), "{path} does not take the workspace's lints");
        let table: toml::Table = text.parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = table.get(section).and_then(toml::Value::as_table) else { continue };
            for (name, value) in dependencies {
                let inherits = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(inherits, "{path}: `{name}` declares a version of its own");
            }
        }
    }
}

#[test]
fn the_decision_core_is_kept_from_clocks_and_io() {
    let text = std::fs::read_to_string(root().join("common/clippy.toml")).unwrap();
    for banned in ["std::time::SystemTime::now", "std::time::Instant::now", "std::fs::", "std::env::var"] {
        assert!(text.contains(banned), "common/clippy.toml no longer bans {banned}");
    }
}
