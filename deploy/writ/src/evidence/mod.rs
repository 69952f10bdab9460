//! Evidence as a folder: written from the streams, read and verified without them. deploy/evidence.md is the format.

pub mod folder;
pub mod gather;
pub mod read;
pub mod write;
