//! Putting Writ in front of MCP servers that somebody uses already: the texts that makes, without any I/O.
//!
//! * `rules.rs`: the rules of a tool while it is observed, and once it is enforced.
//! * `texts.rs`: a node's `[[tool]]` for a server, and what goes into the policy's inventory.
//! * `manifest.rs`: what was adopted, so that it can be undone.

pub mod manifest;
pub mod rules;
pub mod texts;
