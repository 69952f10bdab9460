//! What stands where, and what must not stand anywhere.

use std::{collections::BTreeSet, fs, path::Path};

use writ_common::{policy::schema, reason::ReasonCode};

use crate::{files, product, product_sources, root};

const TOP: [&str; 21] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "broker",
    "clippy.toml",
    "common",
    "deny.toml",
    "deploy",
    "node",
    "policies",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "simulations",
];

#[test]
fn the_top_level_holds_what_it_is_meant_to() {
    let allowed: BTreeSet<&str> = TOP.into_iter().chain(["tests"]).collect();
    let top: BTreeSet<String> =
        files(".", "").iter().map(|(path, _)| path.split('/').next().unwrap().to_owned()).collect();
    let strangers: Vec<&String> = top.iter().filter(|name| !allowed.contains(name.as_str())).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn every_reason_code_is_used() {
    let sources = product_sources();
    for code in ReasonCode::ALL {
        let name = format!("ReasonCode::{code:?}");
        let used = sources
            .iter()
            .filter(|(path, _)| path != "common/src/reason.rs")
            .any(|(_, text)| product(text).contains(&name));
        assert!(used, "{code} has a page, and nothing ever says it");
    }
}

#[test]
fn reason_codes_stand_in_order_and_their_pages_say_something() {
    let codes: Vec<&str> = ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
    let mut sorted = codes.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(codes, sorted);
    for code in ReasonCode::ALL {
        let page = code.page();
        assert!(
            page.meaning.ends_with('.') && page.cause.ends_with('.') && page.next.ends_with('.'),
            "{code}"
        );
    }
}

/// Targets of relative links in a Markdown text.
fn links(text: &str) -> Vec<&str> {
    let starts = text.match_indices("](").map(|(at, _)| at + 2);
    let targets = starts.filter_map(|at| text.get(at..)?.split(')').next());
    targets
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    for (path, text) in files(".", ".md") {
        let folder = root().join(&path);
        let folder = folder.parent().unwrap_or(Path::new(".")).to_owned();
        for target in links(&text) {
            assert!(folder.join(target).exists(), "{path} links to {target}");
        }
    }
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)"), ["b.md"]);
}

/// What belongs to one machine or to nobody else.
fn leaks(text: &str) -> Option<&'static str> {
    let needles = [
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("BEGIN PRIV", "ATE KEY"),
        concat!("artifact", "ory"),
        concat!("AKI", "A"),
    ];
    needles.into_iter().find(|needle| text.contains(needle))
}

#[test]
fn nothing_of_one_machine_is_committed() {
    for (path, text) in files(".", "") {
        assert_eq!(leaks(&text), None, "{path}");
    }
    assert!(leaks(concat!("see /ro", "ot/x")).is_some());
}

/// Switches that turn a control off exist only where a build asks for them.
#[test]
fn no_release_knows_the_red_switches() {
    for (path, text) in product_sources() {
        let mentions = text.matches("writ_red").count();
        assert!(mentions == 0 || path == "common/src/red.rs", "{path} looks at the switch by itself");
    }
    if !cfg!(writ_red) {
        let binary = fs::read(env!("CARGO_BIN_EXE_writ-under-test")).unwrap();
        let needle = concat!("WRIT_RED", "_OFF").as_bytes();
        assert!(
            !binary.windows(needle.len()).any(|window| window == needle),
            "the switches are in the binary"
        );
    }
}

/// The predicates of `policies/README.md` are those of the schema; `UPDATE_GOLDEN=1` writes them there.
#[test]
fn the_policy_guide_lists_the_predicates_there_are() {
    let path = root().join("policies/README.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("| predicate |").unwrap();
    let (body, after) = rest.split_once("\n\n").unwrap();
    let table = schema::table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, format!("{before}{table}\n{after}")).unwrap();
    } else {
        assert_eq!(format!("| predicate |{body}\n"), table, "run with UPDATE_GOLDEN=1");
    }
}
