//! Writ from outside, over a real nats-server. Tests that bear a threat's id are its row of the threat table.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod agents;
mod approvals;
mod archive;
mod audit_questions;
mod budgets;
mod bus;
mod canary;
mod cli;
mod delegation;
mod evidence;
mod examples;
mod faults;
mod flow;
mod flow_races;
mod health;
mod hour;
mod inspect;
mod mcp;
mod outage;
mod parts;
mod policy;
mod power;
mod retrieval;
mod revocation;
mod rights;
mod rollout;
mod rotation;
mod shipped;
mod story;
mod theft;
mod tools;
mod upstream;
mod users;

/// The program under test.
const WRIT: &str = env!("CARGO_BIN_EXE_writ-under-test");
