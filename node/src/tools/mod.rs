//! Tools: what a permit can be spent on.
//!
//! Adding a tool is one file here and one contract in `policies/tools/`, and its settings where configuration is
//! read: a variant of [`ToolKind`] with its keys, and an arm in [`build`]. A tool has two
//! halves: a pure [`Gate`] that may refuse arguments the contract let through, asked before the decision, and
//! [`Tool::call`], which runs afterwards and takes the permit by value. What it runs is what the permit holds.

mod files;
mod http;
pub mod http_target;
mod mail;
mod maildir;
mod mcp;
mod postgres;
mod postgres_gate;
pub mod retrieval;
mod smtp;
pub mod sql_gate;
mod sql_reads;
mod sqlite;
#[cfg(test)]
mod testing;
mod trust;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use writ_common::{
    decide::Gate,
    digest::Digest,
    json::Value,
    label::Label,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

pub use files::{Files, FilesSettings};
pub use http::{Http, HttpSettings};
pub use maildir::Maildir;
pub use mcp::{EnvValue, McpServer, McpSettings};
pub use postgres::{Postgres, PostgresServer, PostgresSettings};
pub use retrieval::{Retrieval, RetrievalSettings};
pub use smtp::{Smtp, SmtpSecurity, SmtpSettings};
pub use sqlite::Sqlite;

pub use http::{chain as error_chain, tls_config};
pub(crate) use mcp::read_mcp;

use crate::guard::ToolFailure;

/// A tool behind a node.
#[async_trait]
pub trait Tool: Gate + Send + Sync {
    /// Does what the permit says, once.
    ///
    /// # Errors
    /// [`ToolFailure`] with what is known about the effect.
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure>;

    /// Ends what it has running. No call is under way, and none comes afterwards.
    async fn close(&self) {}
}

/// What a tool gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolOutput {
    /// The result, as the caller gets it.
    pub value: Value,
    /// What the tool itself knows of the result's label. It is joined with what the contract says of results, so it can
    /// only raise; `None` is a tool that knows nothing of labels.
    pub label: Option<Label>,
    /// Digests of the pieces of content the result is made of, for the record; at most [`writ_common::record::MANIFEST_MAX`].
    pub manifest: Vec<Digest>,
}

impl From<Value> for ToolOutput {
    fn from(value: Value) -> Self {
        Self { value, label: None, manifest: Vec::new() }
    }
}

/// What implements a tool, from the node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolKind {
    /// Files below a folder.
    Files(FilesSettings),
    /// Documents by HTTP.
    Http(HttpSettings),
    /// Mail drafts in a maildir folder.
    Maildir {
        /// The folder.
        folder: PathBuf,
        /// Where what is to be sent is put; without it nothing is sent.
        outbox: Option<PathBuf>,
        /// The sender of every message.
        from: String,
    },
    /// The tools of an MCP server; writ-upstream sets it up.
    Mcp(McpSettings),
    /// SELECT on a PostgreSQL database.
    Postgres(PostgresSettings),
    /// Questions to a document store.
    Retrieval(RetrievalSettings),
    /// Letters by SMTP.
    Smtp(SmtpSettings),
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
        ToolKind::Files(settings) => Arc::new(Files::open(settings.clone())?),
        ToolKind::Http(settings) => Arc::new(Http::open(settings.clone())?),
        ToolKind::Maildir { folder, outbox, from } => {
            Arc::new(Maildir::open(folder, outbox.as_deref(), from)?)
        }
        ToolKind::Mcp(_) => {
            let why = "an MCP server is set up by writ-upstream, which this program is without";
            return Err(ToolSetupError::Setting(why.to_owned()));
        }
        ToolKind::Postgres(settings) => Arc::new(Postgres::open(settings)?),
        ToolKind::Retrieval(settings) => Arc::new(Retrieval::open(settings.clone())?),
        ToolKind::Smtp(settings) => Arc::new(Smtp::open(settings)?),
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
