//! The version of control state: which events every decision must have seen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// (incarnation, sequence of the last control event).
///
/// The sequence is the event's in the control stream; the incarnation is raised, signed, when a stream had to be
/// recovered, so that no epoch from before can pass for a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch {
    /// How often the control stream was recovered.
    pub incarnation: u32,
    /// Stream sequence of the last event; 0 before the first.
    pub sequence: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.sequence)
    }
}
