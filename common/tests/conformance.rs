//! Biscuit's own conformance samples: none of them is a capability of Writ, and each is refused for a reason of its
//! own, without a panic and before any Datalog of it runs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed test may panic; tests read files"
)]

use std::{fs, path::PathBuf, process::Command};

use writ_common::{capability::UnverifiedCapability, reason::ReasonCode};

/// The samples ship with the crate.
fn samples() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        // What only other platforms need is not fetched for a build.
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            "host-tuple",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "biscuit-auth")
        .unwrap()["manifest_path"]
        .as_str()
        .unwrap()
        .to_owned();
    PathBuf::from(package).with_file_name("samples")
}

fn refused(name: &str) -> ReasonCode {
    let bytes = fs::read(samples().join(name)).unwrap();
    match UnverifiedCapability::parse(&bytes) {
        Ok(_) => panic!("{name} passes for a capability"),
        Err(reason) => reason.code(),
    }
}

#[test]
fn samples_are_refused_each_for_its_reason() {
    let mut seen = Vec::new();
    for item in fs::read_dir(samples()).unwrap() {
        let name = item.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".bc") {
            seen.push((name.clone(), refused(&name)));
        }
    }
    assert!(seen.len() >= 36, "{} samples", seen.len());
    let code = |name: &str| seen.iter().find(|(sample, _)| sample.starts_with(name)).unwrap().1;
    assert_eq!(code("test020"), ReasonCode::TokenSealed);
    assert_eq!(code("test036"), ReasonCode::TokenAlgorithm);
    for (name, code) in &seen {
        assert!(
            matches!(
                code,
                ReasonCode::TokenFormat
                    | ReasonCode::TokenBlockShape
                    | ReasonCode::TokenSealed
                    | ReasonCode::TokenThirdParty
                    | ReasonCode::TokenAlgorithm
                    | ReasonCode::TokenSignature
                    | ReasonCode::DelegationSignature
            ),
            "{name}: {code}"
        );
    }
}
