//! The control plane: who may have which agent do what, and who may not any more.
//!
//! [`core`] decides and orders, without I/O; [`jwt`] verifies users' tokens; [`store`] is a rebuildable index of
//! tasks; [`serve`] ties them to the bus, the journal and the clock.

pub mod config;
pub mod core;
pub mod jwt;
mod meter;
pub mod serve;
pub mod store;
