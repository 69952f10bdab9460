//! The enforcement point: nothing behind a node runs without passing its [`guard`].
//!
//! [`guard`] decides and records, without I/O; [`tools`] are what a permit can be spent on; [`inspect`] asks inspectors; [`pin_file`] keeps what is known of the streams; [`serve`] ties both to
//! the bus, the journal and the clock.

pub mod config;
pub mod guard;
pub mod inspect;
mod meter;
pub mod pin_file;
pub mod serve;
pub mod tools;
