//! The control plane: who may have which agent do what, and who may not any more.
//!
//! [`core`] decides and orders, without I/O; [`jwt`] verifies users' tokens; [`jwks`] reads their issuers' keys,
//! [`key_cache`] says when to fetch them and how long they count, [`oidc`] fetches; [`store`] is a rebuildable index
//! of tasks; `catch_up` brings index and stream together at the start; `shared` carries labels over to the next stream part; [`serve`] ties them to the bus, the journal and
//! the clock.

mod catch_up;
pub mod config;
pub mod core;
pub mod jwks;
pub mod jwt;
pub mod key_cache;
mod meter;
pub mod oidc;
pub mod serve;
mod shared;
pub mod store;
