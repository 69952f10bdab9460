//! Biscuit's own conformance samples against our profile: every one of them is refused, each for a stated reason.
//!
//! None is a capability: their authority blocks hold other facts than ours. So what counts is that each is
//! refused by the check that should catch it, and that nothing panics. The samples ship with biscuit-auth.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]
#![allow(clippy::disallowed_methods, reason = "asks Cargo where the samples are, and reads them")]

mod support;

use std::{collections::BTreeMap, path::PathBuf};

use biscuit_auth::format::schema;
use prost::Message as _;
use support::{NOW, PLANNER, append_payload, issued, keyset_of, verify};
use writ_common::{
    capability::UnverifiedCapability,
    keys::PublicKey,
    reason::{Reason, ReasonCode},
};

/// What each sample is refused with, and the part of the reason that says by which rule.
const EXPECTED: [(&str, &str, &str); 38] = [
    ("test001_basic.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test002_different_root_key.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    (
        "test003_invalid_signature_format.bc",
        "token.third_party",
        "block 1 was appended by nobody in particular",
    ),
    ("test004_random_block.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test005_invalid_signature.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test006_reordered_blocks.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test007_scoped_rules.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test008_scoped_checks.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test009_expired_token.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test010_authorizer_scope.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test011_authorizer_authority_caveats.bc", "token.block_shape", "block 0: lacks a fact"),
    ("test012_authority_caveats.bc", "token.block_shape", "block 0: lacks a fact"),
    ("test013_block_rules.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test014_regex_constraint.bc", "token.block_shape", "block 0: holds a regular expression"),
    ("test015_multi_queries_caveats.bc", "token.block_shape", "block 0: lacks a fact"),
    ("test016_caveat_head_name.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test017_expressions.bc", "token.block_shape", "block 0: holds more than 32 checks"),
    (
        "test018_unbound_variables_in_rule.bc",
        "token.block_shape",
        "block 0: asks about something else than resource, action, arg, time, label, integrity",
    ),
    (
        "test019_generating_ambient_from_variables.bc",
        "token.block_shape",
        "block 0: asks about something else than resource, action, arg, time, label, integrity",
    ),
    ("test020_sealed.bc", "token.sealed", ""),
    ("test021_parsing.bc", "token.block_shape", "block 0: lacks a fact"),
    ("test022_default_symbols.bc", "token.block_shape", "block 0: has a fact of the wrong type"),
    ("test023_execution_scope.bc", "token.third_party", "block 1 was appended by nobody in particular"),
    ("test024_third_party.bc", "token.block_shape", "block 0: changes its scope"),
    (
        "test025_check_all.bc",
        "token.block_shape",
        "block 0: asks about something else than resource, action, arg, time, label, integrity",
    ),
    ("test026_public_keys_interning.bc", "token.block_shape", "block 0: changes its scope"),
    (
        "test027_integer_wraparound.bc",
        "token.block_shape",
        "block 0: holds an operator that is not on the list",
    ),
    ("test028_expressions_v4.bc", "token.block_shape", "block 0: holds an operator that is not on the list"),
    ("test029_reject_if.bc", "token.block_shape", "block 0: holds a `reject if`"),
    ("test030_null.bc", "token.block_shape", "block 0: holds a null, an array or a map"),
    ("test031_heterogeneous_equal.bc", "token.block_shape", "block 0: holds a lenient comparison"),
    (
        "test032_laziness_closures.bc",
        "token.block_shape",
        "block 0: holds an operator that is not on the list",
    ),
    ("test033_typeof.bc", "token.block_shape", "block 0: holds a null, an array or a map"),
    ("test034_array_map.bc", "token.block_shape", "block 0: holds a null, an array or a map"),
    ("test035_ffi.bc", "token.block_shape", "block 0: holds a type test or an external call"),
    ("test036_secp256r1.bc", "token.algorithm", ""),
    ("test037_secp256r1_third_party.bc", "token.algorithm", ""),
    ("test038_try_op.bc", "token.block_shape", "block 0: holds an operator that is not on the list"),
];

/// The folder of the samples, next to the manifest of the biscuit-auth this build uses.
fn samples() -> PathBuf {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let library = packages.iter().find(|package| package["name"] == "biscuit-auth").unwrap();
    let manifest = PathBuf::from(library["manifest_path"].as_str().unwrap());
    manifest.with_file_name("samples")
}

/// Every sample with its bytes, in the order of names.
fn read_samples() -> (serde_json::Value, BTreeMap<String, Vec<u8>>) {
    let folder = samples();
    let index = std::fs::read(folder.join("samples.json")).unwrap_or_else(|error| {
        panic!("biscuit-auth ships its samples, but {} cannot be read: {error}", folder.display())
    });
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let cases = index["testcases"].as_array().unwrap().iter();
    let files = cases.map(|case| case["filename"].as_str().unwrap().to_owned());
    let files = files.map(|file| (file.clone(), std::fs::read(folder.join(file)).unwrap())).collect();
    (index, files)
}

#[test]
fn every_sample_of_biscuit_is_refused_for_its_reason() {
    let (index, files) = read_samples();
    let root = hex::decode(index["root_public_key"].as_str().unwrap()).unwrap();
    // The samples' own root is trusted, so that it is not the key they are refused for.
    let keyset = keyset_of(&[PublicKey::from_bytes(&root).unwrap()]);
    let mut found = BTreeMap::new();
    for (file, bytes) in &files {
        let refused: Reason = UnverifiedCapability::parse(bytes)
            .and_then(|capability| capability.verify(&keyset, NOW))
            .err()
            .unwrap_or_else(|| panic!("{file} is accepted"));
        found.insert(file.clone(), (refused.code().as_str(), refused.for_caller().to_owned()));
    }
    let listed: Vec<&str> = EXPECTED.iter().map(|(file, ..)| *file).collect();
    let there: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(there, listed, "the samples changed");
    for (file, code, told) in EXPECTED {
        let (found_code, found_told) = &found[file];
        assert_eq!(*found_code, code, "{file}: {found_told}");
        assert!(found_told.contains(told), "{file}: {found_told}");
    }
}

/// Blocks of the samples that are narrowings like ours: nothing, or checks on resource and time.
const TAKEN: [&str; 4] = [
    "test009_expired_token.bc block 0",
    "test009_expired_token.bc block 1",
    "test012_authority_caveats.bc block 0",
    "test016_caveat_head_name.bc block 0",
];

/// The same blocks, each appended by the holder of a good capability: what their content is refused for.
#[test]
fn blocks_of_the_samples_are_within_the_profile_or_refused() {
    let (_, files) = read_samples();
    let (mut refused, mut taken) = (0, Vec::new());
    for (file, bytes) in &files {
        let Ok(sample) = schema::Biscuit::decode(bytes.as_slice()) else { continue };
        for (at, signed) in std::iter::once(&sample.authority).chain(&sample.blocks).enumerate() {
            match verify(&append_payload(&issued(), PLANNER, &signed.block)) {
                Ok(_) => taken.push(format!("{file} block {at}")),
                Err(code) => {
                    assert_eq!(code, ReasonCode::TokenBlockShape, "{file} block {at}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(taken, TAKEN);
    assert_eq!(refused, 61);
}
