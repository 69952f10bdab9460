//! MCP servers behind a node.
//!
//! A server is one resource, each of its tools an action. The contract names the tool and pins what the server said
//! of it when an operator accepted it; [`Upstream`] holds the connection, compares, and calls. What a server says
//! decides nothing: descriptions reach agents from the contract, labels come from the contract, and what
//! [`propose`] makes of a listing is a proposal that an operator reads.
//!
//! * `wire.rs` reads messages exactly and within bounds, `stdio.rs` and `http.rs` carry them, `handler.rs` refuses
//!   what servers ask for, `client.rs` is one connection.
//! * `upstream.rs` keeps it up and is the tool; `listing.rs` is what it compares with.
//! * `import.rs` writes contracts of listings, with `schema.rs` and `diff.rs`.

mod client;
mod diff;
mod handler;
mod http;
mod import;
mod listing;
mod schema;
mod stdio;
mod text;
mod upstream;
mod wire;

use writ_common::{ids::Resource, time::Millis};
use writ_node::tools::McpSettings;

pub use import::{
    Acceptance, DESCRIPTION_CHARS_MAX, Proposal, ProposeOptions, Remark, ToolChange, accept, propose,
};
pub use listing::{ListedTool, Listing, TOOLS_MAX, changes};
pub use upstream::{LISTING_AGE_MAX, Upstream};

/// Why a server is not there.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It goes on listing tools.
    #[error("it lists more than {TOOLS_MAX} tools, or without end")]
    Endless,
    /// A file of the configuration is not usable.
    #[error("{0}")]
    File(String),
    /// The connection could not be made, or ended.
    #[error("{0}")]
    Lost(String),
    /// It does not answer.
    #[error("it did not answer within {0}")]
    Silent(Millis),
    /// The program cannot be started.
    #[error("`{command}` cannot be started: {source}")]
    Start {
        /// Which.
        command: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Connects to a server as a node would, asks for its tools, and closes the connection. Both ways of opening one
/// are tried.
///
/// # Errors
/// [`UpstreamError`] of the second attempt, or of the first if the server cannot be reached at all.
pub async fn list(resource: &Resource, settings: &McpSettings) -> Result<Listing, UpstreamError> {
    let mut opening = client::Opening::Newest;
    let connection = match client::connect(resource, settings, opening).await {
        Ok(connection) => connection,
        Err(error @ (UpstreamError::File(_) | UpstreamError::Start { .. })) => return Err(error),
        Err(_) => {
            opening = opening.other();
            client::connect(resource, settings, opening).await?
        }
    };
    let listing = connection.session.list(settings.start_timeout.to_duration()).await;
    connection.close().await;
    listing
}
