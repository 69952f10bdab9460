//! Archives: parts of the audit stream, put away in sealed segments, and what retention leaves of them.
//!
//! A part that takes nothing any more is written by `write`, read back by `read`, and thinned out by `retain`; `segment`
//! and `manifest` are the files it consists of, `store` is where they are. `deploy/retention.md` is for operators.
//!
//! Nothing here decides that a part may go: its manifest's digest stands in the control stream, signed, before its
//! stream is deleted.

pub mod manifest;
pub mod read;
pub mod retain;
pub mod segment;
pub mod store;
#[cfg(test)]
mod tests;
pub mod write;

use std::fmt;

use writ_common::ids::{PartId, TenantId};

/// Something in an archive that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {what}; {remedy}")]
pub struct Damage {
    /// Which file, as the store names it.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// What to do about a file that is not the one that was written.
const FROM_A_COPY: &str = "put it back from a copy of the archive; its SHA-256 stands in manifest.json";
/// What to do about a manifest that is not the one that was written.
const MANIFEST_FROM_A_COPY: &str =
    "put it back from a copy of the archive; its SHA-256 stands in the control stream";

impl Damage {
    fn of(file: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self { file: file.to_string(), what: what.to_string(), remedy: FROM_A_COPY }
    }

    fn of_manifest(file: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self { remedy: MANIFEST_FROM_A_COPY, ..Self::of(file, what) }
    }
}

/// The folder of a part in an archive.
#[must_use]
pub fn folder(tenant: &TenantId, part: &PartId) -> String {
    format!("{tenant}/{part}")
}
