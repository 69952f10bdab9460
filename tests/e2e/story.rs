//! The sample story as a user runs it.

use std::{path::Path, process::Command};

use anyhow::Result;
use writ_tests::run;

use crate::WRIT;

#[test]
fn the_demo_allows_what_is_granted_and_refuses_the_rest_each_for_its_own_reason() -> Result<()> {
    run(async {
        // `cargo test --workspace` has built it; for this package alone, Cargo has to be asked.
        let demo = Path::new(WRIT).with_file_name("examples").join("demo");
        let output = if demo.exists() {
            Command::new(demo).arg("--json").output()?
        } else {
            Command::new(env!("CARGO"))
                .args(["demo", "--", "--json"])
                .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
                .output()?
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let reasons = report["reasons"].as_object().unwrap();
        for code in [
            "sql.not_read_only",
            "sql.multi_statement",
            "right.missing",
            "delegation.widening",
            "token.holder_mismatch",
            "request.replayed",
            "token.expired",
            "revoked.task",
        ] {
            assert!(reasons.contains_key(code), "{code}: {reasons:?}");
        }
        let total: u64 = reasons.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(report["denied"].as_u64(), Some(total));
        assert_eq!(report["audit_gaps"], 0);
        assert_eq!(report["verification_faults"], 0);
        assert!(report["verified_records"].as_u64().unwrap() > 10);
        assert!(report["allowed"].as_u64().unwrap() >= 5);
        assert!(report["audit_records"].as_u64().unwrap() > total);
        Ok(())
    })
}
