//! The journal: an append-only file per run that knows what a stream must hold.
//!
//! A record is journalled before it is published and marked when the stream has acknowledged it. After a crash
//! the journal says what is missing from the stream and which intents have no outcome; see [`Unsettled`].
//!
//! Frame: `u32 payload length | u32 CRC-32C of chain and payload | 32 bytes chain digest | u32 CRC-32C of these |
//! payload`, little-endian. The chain digest is SHA-256 over the one before and the payload, so a frame cannot be
//! exchanged for another valid one. A frame cut short at the end of the file was never acknowledged and is
//! dropped; anything else that does not verify is corruption and is reported, never skipped.

mod entry;
mod file;

pub use entry::{Entry, Unpublished, Unsettled, unsettled};
pub use file::{JournalDir, JournalError, JournalFile, Sync};
