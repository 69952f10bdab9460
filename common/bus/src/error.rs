//! What can go wrong on the bus, told apart.

/// Why a request or a subscription came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The address is malformed or would send credentials in the clear.
    #[error("the bus address `{url}` {why}")]
    Address {
        /// The address as configured.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No connection could be made.
    #[error("no connection to NATS at {url}: {source}")]
    Connect {
        /// The address.
        url: String,
        /// The client's error.
        source: async_nats::ConnectError,
    },
    /// The seed is no NATS user key.
    #[error("the NATS user key is malformed: {0}")]
    Key(String),
    /// Nobody listens on the subject.
    #[error("nobody answers on `{0}`")]
    NoResponders(String),
    /// The connection is gone.
    #[error("not connected to NATS")]
    NotConnected,
    /// The stream is set up to lose what it was given.
    #[error("stream `{stream}`: {why}; an audit trail must not forget, see deploy/nats/README.md")]
    StreamForgets {
        /// Its name.
        stream: String,
        /// In which way.
        why: &'static str,
    },
    /// The server does not let this user use the subject.
    #[error("NATS does not allow this user to use `{0}`")]
    Refused(String),
    /// Nobody answered in time.
    #[error("no answer on `{0}` in time")]
    TimedOut(String),
    /// The server is too old.
    #[error("nats-server {found} is too old; at least {}.{} is needed", OLDEST.0, OLDEST.1)]
    TooOld {
        /// Its version.
        found: String,
    },
    /// Anything else the client reports.
    #[error("{what}: {source}")]
    Client {
        /// What was tried.
        what: String,
        /// The client's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

use crate::connect::OLDEST_SERVER as OLDEST;

impl BusError {
    pub(crate) fn client(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Client { what: what.into(), source: source.into() }
    }
}

/// Why a publish to a stream was not acknowledged. Which of them it is decides what may be done next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another message with this id is being stored right now (10158), or the stream is contended (10164):
    /// definitely not stored, try again shortly.
    #[error("the stream is busy with a conflicting publish")]
    Busy,
    /// The fence moved (10071): definitely not stored, what was decided must be decided again.
    #[error("the expected last sequence is not the last any more")]
    Fenced,
    /// The stream is full: definitely not stored.
    #[error("the stream is full")]
    Full,
    /// The server refused for another cause: definitely not stored.
    #[error("the server refused: {0}")]
    Refused(String),
    /// No acknowledgement: whether it was stored is unknown.
    #[error("no acknowledgement: {0}")]
    Unknown(String),
}
