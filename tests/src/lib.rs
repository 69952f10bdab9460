//! The harness of the end-to-end tests: real servers on free ports, agents, hand-made calls, and the audit stream
//! to look the truth up in.

mod audit;
mod disk;
mod inspectors;
pub mod mcp;
mod postgres;
mod process;
mod raw;
mod s3;
mod servers;
mod smtp;
pub mod storage;
mod world;

pub use audit::{Refusal, Seen};
pub use disk::{PowerLoss, on_small_disk, small_disk};
pub use inspectors::InspectorServer;
pub use postgres::PostgresServer;
pub use process::WritProcess;
pub use raw::{Answered, RawCall};
pub use s3::S3Server;
pub use servers::{is_whole, leader};
pub use smtp::SmtpServer;
pub use world::{KIND, World, WorldOptions, eventually, letter, only, read, rights, run};
