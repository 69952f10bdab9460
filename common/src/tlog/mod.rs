//! The Merkle log of a run: what makes a record that was left out, exchanged or moved show.
//!
//! Every run of a node or broker is one log (RFC 6962 hashing, C2SP tlog-checkpoint). Its leaf `i` is the signed
//! envelope of the record at position `i` of the run, byte for byte as the stream has it, or of the void that took
//! its place. Positions have no holes, so the log of a run follows from its records alone: whoever has them all can
//! compute it again. The recorder signs its root as a checkpoint; a broker that has seen every leaf since the
//! checkpoint before cosigns it as a witness (C2SP tlog-cosignature). The last checkpoint of a run says so.

mod checkpoint;
mod proof;
mod run;
mod tree;
mod witness;

pub use checkpoint::{Checkpoint, NoteError, SignedCheckpoint, VerifierKey, WitnessName};
pub use proof::{InclusionProof, ProofError};
pub use run::{Answered, RunLog, Witnessed};
pub use tree::{Frontier, Tree, TreeError, leaf_hash, tile_path};
pub use witness::{Head, Heads, WitnessReply, WitnessRequest, Witnessing};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BootId, BrokerId, InvalidId, NodeId, TenantId},
    record::{DecisionId, Origin},
};

/// Which log: one run of one recorder of one tenant. Its text is the origin line of its checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogId {
    /// The tenant.
    pub tenant: TenantId,
    /// Whose records.
    pub origin: Origin,
    /// The run.
    pub boot: BootId,
}

/// A log as its origin line, for what people read.
pub mod as_origin_line {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::LogId;

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(log: &LogId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(log)
    }

    /// Reads it.
    ///
    /// # Errors
    /// If it is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogId, D::Error> {
        LogId::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl LogId {
    /// The log in which a record is a leaf.
    #[must_use]
    pub fn of(tenant: &TenantId, record: &DecisionId) -> Self {
        Self { tenant: tenant.clone(), origin: record.origin.clone(), boot: record.boot.clone() }
    }

    /// `node` or `broker`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.origin {
            Origin::Broker(_) => "broker",
            Origin::Node(_) => "node",
        }
    }

    /// Reads an origin line.
    ///
    /// # Errors
    /// [`InvalidId`] for anything this type does not print.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let tokens: Vec<&str> = text.split('/').collect();
        let ["writ-log", "v1", tenant, kind, name, boot] = tokens.as_slice() else {
            return Err(InvalidId::new(
                "log",
                text,
                "is not of the form writ-log/v1/<tenant>/<kind>/<name>/<run>",
            ));
        };
        let origin = match *kind {
            "broker" => Origin::Broker(BrokerId::parse(*name)?),
            "node" => Origin::Node(NodeId::parse(*name)?),
            _ => return Err(InvalidId::new("log", text, "is neither a node's nor a broker's")),
        };
        Ok(Self { tenant: TenantId::parse(*tenant)?, origin, boot: BootId::parse(*boot)? })
    }

    /// The log's name as a file or folder: `node.node-1.b-01k…`.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{}.{}.{}", self.kind(), self.origin, self.boot)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writ-log/v1/{}/{}/{}/{}", self.tenant, self.kind(), self.origin, self.boot)
    }
}
