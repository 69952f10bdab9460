//! The agent's side of MCP: a server that holds an agent's key and capability, offers the tools the capability
//! allows, and signs each call onto the bus.
//!
//! The model and its framework stay as they are. What they call is a tool of an MCP server; what happens is a call
//! that a node decides, records and labels. The gateway decides nothing: it cannot let through what a node would not,
//! and everything it answers, it was told under a receipt.
//!
//! [`Gateway`] is one user's task with the identities that may act in it. [`serve_stdio`] puts it behind a pipe,
//! [`serve_http`] behind a listener on this machine, [`serve_remote`] opens one for each user who brings a token
//! (OAuth 2.1 resource server, RFC 9728).

mod answer;
mod catalogue;
mod gateway;
mod held;
mod http;
mod oauth;
mod presented;
mod server;
mod sessions;

pub use gateway::{Gateway, GatewayError, GatewayOptions};
pub use http::{Bearer, HttpGateway, HttpOptions, serve_http};
pub use oauth::{RemoteOptions, serve_remote};
pub use server::serve_stdio;

/// The key of `_meta` that holds a narrower capability for one call, in base64url.
pub const META_CAPABILITY: &str = "dev.writ/capability";
/// The key of a result's `_meta` that holds the label it was released under. It tells; nothing relies on its return.
pub const META_LABEL: &str = "dev.writ/label";
/// The header that holds a narrower capability for all calls of a connection, in base64url.
pub const HEADER_CAPABILITY: &str = "writ-capability";
