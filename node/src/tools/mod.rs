//! Tools: what a permit can be spent on.
//!
//! Adding a tool is one file here and one contract in `policies/tools/`, and its settings where configuration is
//! read: a variant of [`ToolKind`] with its keys, and an arm in [`build`]. A tool has two
//! halves: a pure [`Gate`] that may refuse arguments the contract let through, asked before the decision, and
//! [`Tool::call`], which runs afterwards and takes the permit by value. What it runs is what the permit holds.

mod maildir;
pub mod sql_gate;
mod sqlite;
#[cfg(test)]
mod testing;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use writ_common::{
    decide::Gate,
    json::Value,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

pub use maildir::Maildir;
pub use sqlite::Sqlite;

use crate::guard::ToolFailure;

/// A tool behind a node.
#[async_trait]
pub trait Tool: Gate + Send + Sync {
    /// Does what the permit says, once.
    ///
    /// # Errors
    /// [`ToolFailure`] with what is known about the effect.
    async fn call(&self, permit: Permit) -> Result<Value, ToolFailure>;
}

/// What implements a tool, from the node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolKind {
    /// Mail drafts in a maildir folder.
    Maildir {
        /// The folder.
        folder: PathBuf,
        /// Where what is to be sent is put; without it nothing is sent.
        outbox: Option<PathBuf>,
        /// The sender of every message.
        from: String,
    },
    /// SELECT on a SQLite file.
    Sqlite {
        /// The file.
        file: PathBuf,
        /// Most rows of a result.
        rows_max: usize,
        /// Longest run of a query.
        timeout: Millis,
    },
}

/// Why a tool cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ToolSetupError {
    /// A file or folder is not there or not usable.
    #[error("{}: {why}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A setting has no meaning.
    #[error("{0}")]
    Setting(String),
}

/// Sets a tool up.
///
/// # Errors
/// [`ToolSetupError`]: found out now, not at the first call.
pub fn build(kind: &ToolKind) -> Result<Arc<dyn Tool>, ToolSetupError> {
    Ok(match kind {
        ToolKind::Maildir { folder, outbox, from } => {
            Arc::new(Maildir::open(folder, outbox.as_deref(), from)?)
        }
        ToolKind::Sqlite { file, rows_max, timeout } => Arc::new(Sqlite::open(file, *rows_max, *timeout)?),
    })
}

/// The tool ran and reported an error; its effect is known to be none or complete.
pub(crate) fn tool_failed(text: impl std::fmt::Display) -> ToolFailure {
    ToolFailure { reason: Reason::new(ReasonCode::ToolFailed).told(text), status: OutcomeStatus::Failed }
}

/// The tool does not know this action; contracts and tools are of different minds.
pub(crate) fn unknown_action(action: &writ_common::ids::Action) -> Reason {
    Reason::new(ReasonCode::ToolUnknown).told(format_args!("the tool has no action `{action}`"))
}
