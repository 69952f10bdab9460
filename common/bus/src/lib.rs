//! Writ on NATS.
//!
//! One [`Bus`] per process: an authenticated connection that tells "refused" from "timed out", publishes to
//! streams with a fence and a message id, reads and follows streams, and serves requests as a NATS micro service.
//! What the messages mean is none of its business.

mod connect;
mod control;
mod error;
mod follow;
mod headers;
pub mod keyfile;
mod restore;
mod serve;
mod store;
mod stream;
mod system;

pub use connect::{Bus, BusConfig, ConnectionState, NatsUser, OLDEST_SERVER, Reply};
pub use error::{BusError, StoreError};
pub use follow::{News, follow, follow_approvals, follow_parts};
pub use headers::Attested;
pub use restore::{PutBack, PutBackError};
pub use serve::{Endpoint, Inbox, Incoming, Service};
pub use store::{Fence, Store, Stored};
pub use stream::{Keeps, StoredMessage, StreamFacts, StreamSpec, Tail};
pub use system::{SystemClock, SystemEntropy};
