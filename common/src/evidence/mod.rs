//! Verifying evidence: whether what an export holds is what happened, and all of it.
//!
//! Without I/O: the control stream, records, checkpoints and receipts are put in, findings come out. Nothing is
//! believed that is not signed by a key that leads to the pinned root. The rules stand in deploy/evidence.md, which
//! a second implementation in Python was written from.

mod approval;
mod archive;
mod finding;
mod open;
mod proof;
mod run;
mod verify;

pub use approval::{Said, Word};
pub use archive::{ARCHIVE_FORMAT, ArchiveManifest, ArchivedRun, ArchivedStream};
pub use finding::{Code, Finding, Report, Severity};
pub use open::{Opened, is_its_subject, open};
pub use proof::check_proof;
pub use verify::{Scope, Verifier};
