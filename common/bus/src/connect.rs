//! Connections: who we are, to which server, and what the server refuses.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{ConnectOptions, Event, ServerError, client::RequestErrorKind, jetstream};
use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use writ_common::trace::TraceContext;
use zeroize::Zeroizing;

use crate::{
    error::BusError,
    headers::{trace_of, with_trace},
};

/// The oldest server Writ works with: it needs the subject fence and per-message TTL.
pub const OLDEST_SERVER: (u64, u64) = (2, 11);

/// How to connect.
pub struct BusConfig {
    /// Server addresses: `nats://127.0.0.1:4222`, `tls://nats.example:4222`.
    pub urls: Vec<String>,
    /// The user's nkey.
    pub user: NatsUser,
    /// What the connection is called in the server's monitoring.
    pub name: String,
    /// Private prefix of reply subjects; the server lets this user subscribe to no other.
    pub inbox_prefix: String,
    /// Root certificate for TLS, if the system's own do not do.
    pub ca_file: Option<PathBuf>,
}

/// A NATS user key. Its seed is wiped when dropped and never printed.
#[derive(Clone)]
pub struct NatsUser {
    seed: Zeroizing<String>,
    public: String,
}

impl NatsUser {
    /// From 32 random bytes.
    ///
    /// # Errors
    /// [`BusError::Key`].
    pub fn from_seed_bytes(seed: [u8; 32]) -> Result<Self, BusError> {
        let pair = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, seed);
        Self::from_pair(&pair.map_err(|error| BusError::Key(error.to_string()))?)
    }

    /// From an encoded seed (`SU…`).
    ///
    /// # Errors
    /// [`BusError::Key`].
    pub fn parse(seed: &str) -> Result<Self, BusError> {
        let pair = nkeys::KeyPair::from_seed(seed.trim());
        Self::from_pair(&pair.map_err(|error| BusError::Key(error.to_string()))?)
    }

    fn from_pair(pair: &nkeys::KeyPair) -> Result<Self, BusError> {
        let seed = pair.seed().map_err(|error| BusError::Key(error.to_string()))?;
        Ok(Self { seed: Zeroizing::new(seed), public: pair.public_key() })
    }

    /// The public key (`U…`), as the server knows the user.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The encoded seed, for a key file.
    #[must_use]
    pub fn seed(&self) -> &str {
        &self.seed
    }
}

impl std::fmt::Debug for NatsUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NatsUser({})", self.public)
    }
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Yes.
    Connected,
    /// Not now; the client keeps trying.
    Disconnected,
}

/// A connection to NATS. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    refusals: broadcast::Sender<Arc<str>>,
    last_refusals: Arc<Mutex<Vec<Arc<str>>>>,
    state: watch::Receiver<ConnectionState>,
}

/// How many refusals are remembered for subscriptions that ask after the fact.
const REFUSALS_KEPT: usize = 32;

impl Bus {
    /// Connects, and refuses a server that is too old.
    ///
    /// # Errors
    /// [`BusError`]: a bad address, no connection, a refused user, an old server.
    pub async fn connect(config: BusConfig) -> Result<Self, BusError> {
        for url in &config.urls {
            check_address(url)?;
        }
        let (refusals, _) = broadcast::channel(64);
        let last_refusals = Arc::new(Mutex::new(Vec::new()));
        let (state_sender, state) = watch::channel(ConnectionState::Connected);
        let (refused, remembered) = (refusals.clone(), Arc::clone(&last_refusals));
        let mut options = ConnectOptions::with_nkey(config.user.seed.to_string())
            .name(&config.name)
            .custom_inbox_prefix(&config.inbox_prefix)
            .connection_timeout(Duration::from_secs(5))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(u64::try_from(attempts.min(20)).unwrap_or(20) * 100)
            })
            .event_callback(move |event| {
                match &event {
                    Event::Connected => {
                        state_sender.send_replace(ConnectionState::Connected);
                    }
                    Event::Disconnected | Event::Closed => {
                        state_sender.send_replace(ConnectionState::Disconnected);
                    }
                    Event::ServerError(ServerError::Other(text)) => {
                        if let Some(subject) = refused_subject(text) {
                            let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
                            if remembered.len() == REFUSALS_KEPT {
                                remembered.remove(0);
                            }
                            remembered.push(Arc::clone(&subject));
                            // Nobody may be waiting for it.
                            drop(refused.send(subject));
                        }
                    }
                    _ => {}
                }
                std::future::ready(())
            });
        if let Some(file) = config.ca_file {
            options = options.add_root_certificates(file);
        }
        let shown = config.urls.join(", ");
        let client =
            options.connect(config.urls).await.map_err(|source| BusError::Connect { url: shown, source })?;
        let version = client.server_info().version;
        if !is_new_enough(&version) {
            return Err(BusError::TooOld { found: version });
        }
        let jetstream = jetstream::new(client.clone());
        Ok(Self { client, jetstream, refusals, last_refusals, state })
    }

    /// Whether there is a connection, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Most bytes the server takes in one message.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    /// Sends a request and waits for one answer.
    ///
    /// The server reports a missing permission on the connection, not on the request; here it ends the request
    /// with [`BusError::Refused`] instead of letting it time out.
    ///
    /// # Errors
    /// [`BusError`]: refused, nobody there, no answer in time, not connected.
    pub async fn request(
        &self,
        subject: String,
        payload: Vec<u8>,
        trace: Option<&TraceContext>,
        timeout: Duration,
    ) -> Result<Reply, BusError> {
        if *self.state.borrow() == ConnectionState::Disconnected {
            return Err(BusError::NotConnected);
        }
        let mut refusals = self.refusals.subscribe();
        let request = async_nats::Request::new()
            .payload(Bytes::from(payload))
            .headers(with_trace(trace))
            .timeout(Some(timeout));
        let answer = self.client.send_request(subject.clone(), request);
        let refused = async {
            loop {
                match refusals.recv().await {
                    Ok(found) if *found == *subject => break,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            answer = answer => match answer {
                Ok(message) => {
                    Ok(Reply { trace: trace_of(message.headers.as_ref()), payload: message.payload })
                }
                Err(error) => Err(match error.kind() {
                    RequestErrorKind::NoResponders => BusError::NoResponders(subject),
                    RequestErrorKind::TimedOut => match *self.state.borrow() {
                        ConnectionState::Connected => BusError::TimedOut(subject),
                        ConnectionState::Disconnected => BusError::NotConnected,
                    },
                    _ => BusError::client(format!("request on `{subject}`"), error),
                }),
            },
            () = refused => Err(BusError::Refused(subject)),
        }
    }

    /// Publishes without waiting for anybody.
    ///
    /// # Errors
    /// [`BusError::Client`] if the message cannot even be queued.
    pub async fn publish(&self, subject: String, payload: Vec<u8>) -> Result<(), BusError> {
        let sent = self.client.publish(subject.clone(), payload.into()).await;
        sent.map_err(|error| BusError::client(format!("publish on `{subject}`"), error))
    }

    /// Waits until the server has taken everything sent so far.
    ///
    /// # Errors
    /// [`BusError::NotConnected`].
    pub async fn flush(&self) -> Result<(), BusError> {
        self.client.flush().await.map_err(|_| BusError::NotConnected)
    }

    /// Closes the connection after what was sent has left.
    pub async fn close(&self) {
        // Nothing can be done about a connection that is gone already.
        drop(self.client.flush().await);
        drop(self.client.drain().await);
    }

    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Subjects the server refuses from now on.
    pub(crate) fn refusals(&self) -> broadcast::Receiver<Arc<str>> {
        self.refusals.subscribe()
    }

    /// Whether the server has refused this subject lately.
    pub(crate) fn was_refused(&self, subject: &str) -> bool {
        let refusals = self.last_refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().any(|refused| **refused == *subject)
    }
}

/// One answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its bytes.
    pub payload: Bytes,
    /// Where the answerer's trace stands.
    pub trace: Option<TraceContext>,
}

/// `Permissions Violation for Publish to "subject"` and its variant for subscriptions.
fn refused_subject(text: &str) -> Option<Arc<str>> {
    let (_, after) = text.split_once("Permissions Violation for ")?;
    let (_, quoted) = after.split_once('"')?;
    quoted.split_once('"').map(|(subject, _)| Arc::from(subject))
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST_SERVER
}

/// Credentials and capabilities never cross a network in the clear.
fn check_address(url: &str) -> Result<(), BusError> {
    let fail = |why| Err(BusError::Address { url: url.to_owned(), why });
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("nats", url),
    };
    let authority = rest.split('/').next().unwrap_or("");
    if authority.is_empty() {
        return fail("has no host");
    }
    if authority.contains('@') {
        return fail("holds credentials; use a key file");
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "tls" => Ok(()),
        "nats" if loopback => Ok(()),
        "nats" => fail("is not on this machine and not encrypted; use `tls://`"),
        _ => fail("has a scheme other than `nats` and `tls`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_stays_on_the_machine() {
        for good in
            ["nats://127.0.0.1:4222", "127.0.0.1:1", "nats://[::1]:4222", "localhost", "tls://nats.example"]
        {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in
            ["nats://nats.example:4222", "10.0.0.1:4222", "nats://", "nats://u:p@127.0.0.1", "ws://127.0.0.1"]
        {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn old_servers_are_recognised() {
        for (version, expected) in
            [("2.11.0", true), ("2.15.1", true), ("3.0.0", true), ("2.9.10", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }

    #[test]
    fn refusals_name_their_subject() {
        let text = r#"nats: Permissions Violation for Publish to "writ.v1.acme.admin""#;
        assert_eq!(refused_subject(text).as_deref(), Some("writ.v1.acme.admin"));
        let text = r#"Permissions Violation for Subscription to "_INBOX.>" using queue "q""#;
        assert_eq!(refused_subject(text).as_deref(), Some("_INBOX.>"));
        assert_eq!(refused_subject("Stale Connection"), None);
    }

    #[test]
    fn user_keys_round_trip_and_do_not_print() {
        let user = NatsUser::from_seed_bytes([7; 32]).unwrap();
        let again = NatsUser::parse(user.seed()).unwrap();
        assert_eq!(user.public(), again.public());
        assert!(!format!("{user:?}").contains(user.seed()));
        assert!(NatsUser::parse("SUNONSENSE").is_err());
    }
}
