//! The journal: append-only files per run that know what a stream must hold.
//!
//! A record is journalled before it is published and marked when the stream has acknowledged it. After a crash
//! the journal says what is missing from the stream and which intents have no outcome; see [`Unsettled`]. What is
//! settled is kept for a while: it is what a stream that lost acknowledged records is completed from; see
//! [`JournalDir::kept`].
//!
//! A run's journal is a row of segments, `<run>.journal`, `<run>.1.journal` and so on. The first ones are called
//! `.kept` once everything in them is settled, and go when room is needed or they are old; `.gone` is the name of the last
//! one that went. Segment: `WRITJNL2 | u32 number | 32 bytes chain digest so far | u32 CRC-32C of the run's name and
//! these | frames`. Frame: `u32 payload length | u32 CRC-32C of chain and payload | 32 bytes chain digest | u32 CRC-32C
//! of these | payload`, little-endian. The chain digest is SHA-256 over the one before and the payload, across
//! segments, so a frame cannot be exchanged for another valid one. A frame cut short at the end of the file was never
//! acknowledged and is dropped; anything else that does not verify is corruption and is reported, never skipped. What
//! is shorter than it was shows by `<run>.anchor`, which says how far the journal had got, or by the last entry of a
//! segment that was closed. `reserve` is room for the day the disk is full.

mod anchor;
mod dir;
mod entry;
mod error;
mod frame;
mod journal;
mod kept;
mod reserve;
mod segment;

pub use dir::{JournalDir, JournalLimits, Lost, Room, ask_restore};
pub use entry::{Entry, Fold, Unpublished, Unsettled};
pub use error::JournalError;
pub use journal::{Journal, Settles, Sync};
pub use kept::KeptRecords;

#[cfg(test)]
mod tests;
