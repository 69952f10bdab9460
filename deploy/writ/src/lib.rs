//! The one binary: broker, node, development set-up and the operator's commands.

pub mod adopt;
pub mod archive;
pub mod cmd;
pub mod cores;
pub mod dev;
pub mod evidence;
pub mod exit;
pub mod index;
pub mod login;
pub mod mcp_clients;
pub mod operator;
pub mod run;
pub mod span;
pub mod view;

pub use cmd::main;
