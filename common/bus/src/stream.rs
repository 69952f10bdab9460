//! Streams: creating, reading and following them.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push::OrderedConfig},
    context::GetStreamErrorKind,
    stream::{Config, DirectGetErrorKind, DiscardPolicy, StorageType},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use writ_common::time::Timestamp;

use crate::{Bus, error::BusError};

/// A stream as Writ sets it up: nothing in it can be deleted or purged, and it refuses what does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Its name.
    pub name: String,
    /// The subjects it takes.
    pub subjects: Vec<String>,
    /// Most bytes it may hold.
    pub bytes_max: u64,
    /// How long a message id is remembered.
    pub duplicate_window: Duration,
    /// On how many servers it lives.
    pub replicas: usize,
    /// What it keeps of each subject.
    pub keeps: Keeps,
}

/// What a stream keeps of each of its subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Every message.
    All,
    /// The last one.
    Last,
}

/// What distinguishes this stream from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// When it was created, in nanoseconds since the epoch.
    pub created_ns: i128,
    /// Sequence of the last message.
    pub last_sequence: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// Bytes it may hold; 0 if there is no limit.
    pub bytes_max: u64,
}

impl StreamFacts {
    /// When it was created, in whole milliseconds.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        timestamp(self.created_ns)
    }

    /// Whether 90 % is used, `more` bytes included. What is left then is kept for what must still be said.
    #[must_use]
    pub fn is_nearly_full(&self, more: u64) -> bool {
        self.bytes_max > 0 && self.bytes.saturating_add(more) >= self.bytes_max / 10 * 9
    }
}

/// A message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub sequence: u64,
    /// When the server stored it, by the server's clock.
    pub at: Timestamp,
    /// Its bytes.
    pub payload: Bytes,
    /// How many messages wait behind it; 0 where that is not known.
    pub pending: u64,
}

/// Messages of a stream from some sequence on, in order, without end.
pub struct Tail {
    messages: BoxStream<'static, Result<StoredMessage, BusError>>,
    next_sequence: u64,
    /// How many messages were waiting when the tail was opened.
    pub pending: u64,
}

impl Tail {
    /// The next message; waits for it.
    ///
    /// # Errors
    /// [`BusError`] if the consumer is lost; open another tail after the last message seen.
    pub async fn next(&mut self) -> Result<StoredMessage, BusError> {
        loop {
            let message = self.messages.next().await.unwrap_or(Err(BusError::NotConnected))?;
            // A consumer that is set up again before it delivered anything starts over at the first message.
            if message.sequence >= self.next_sequence {
                self.next_sequence = message.sequence + 1;
                return Ok(message);
            }
        }
    }

    /// Hands over what was waiting when the tail was opened and what came meanwhile, in order, and ends where nothing
    /// waits any more.
    ///
    /// # Errors
    /// [`BusError`] if the consumer is lost.
    pub async fn drain(self, mut take: impl FnMut(StoredMessage)) -> Result<(), BusError> {
        self.try_drain(|message| {
            take(message);
            Ok(())
        })
        .await
    }

    /// As [`Tail::drain`], until something does not want more.
    ///
    /// # Errors
    /// What `take` says, and [`BusError`] if the consumer is lost.
    pub async fn try_drain<E: From<BusError>>(
        mut self,
        mut take: impl FnMut(StoredMessage) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pending = self.pending;
        while pending > 0 {
            let message = self.next().await?;
            pending = message.pending;
            take(message)?;
        }
        Ok(())
    }
}

impl Bus {
    /// Creates the stream if there is none. One that is there is taken as it is, if it forgets nothing: what it
    /// may hold is the server operator's to change.
    ///
    /// # Errors
    /// [`BusError::Client`]; [`BusError::StreamForgets`] for a stream that can lose what it was given.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<StreamFacts, BusError> {
        if let Ok(stream) = self.jetstream().get_stream(&spec.name).await {
            let info = stream.cached_info();
            check_remembers(&info.config, spec)?;
            return Ok(facts(info));
        }
        let config = Config {
            name: spec.name.clone(),
            subjects: spec.subjects.clone(),
            max_bytes: i64::try_from(spec.bytes_max).unwrap_or(i64::MAX),
            max_messages_per_subject: match spec.keeps {
                Keeps::All => -1,
                Keeps::Last => 1,
            },
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: spec.replicas,
            duplicate_window: spec.duplicate_window,
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            allow_message_ttl: true,
            ..Config::default()
        };
        let created = self.jetstream().create_stream(config).await;
        let created = created.map_err(|error| BusError::client(format!("stream `{}`", spec.name), error))?;
        Ok(facts(created.cached_info()))
    }

    /// What there is to know about a stream; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn stream_facts(&self, name: &str) -> Result<Option<StreamFacts>, BusError> {
        match self.jetstream().get_stream(name).await {
            Ok(stream) => Ok(Some(facts(stream.cached_info()))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(ref inner) if inner.code() == 404 => Ok(None),
                _ => Err(BusError::client(format!("stream `{name}`"), error)),
            },
        }
    }

    /// Deletes a stream with all it holds; false if there is none of that name. Only a connection that may can do it.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn delete_stream(&self, name: &str) -> Result<bool, BusError> {
        if self.stream_facts(name).await?.is_none() {
            return Ok(false);
        }
        let deleted = self.jetstream().delete_stream(name).await;
        let status = deleted.map_err(|error| BusError::client(format!("deleting stream `{name}`"), error))?;
        Ok(status.success)
    }

    async fn stream(&self, name: &str) -> Result<jetstream::stream::Stream<()>, BusError> {
        let stream = self.jetstream().get_stream_no_info(name).await;
        stream.map_err(|error| BusError::client(format!("stream `{name}`"), error))
    }

    /// The last message on a subject, if there is one.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn last_on(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, BusError> {
        direct(self.stream(stream).await?.direct_get_last_for_subject(subject).await)
    }

    /// The message at a sequence, if there is one.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn message_at(&self, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, BusError> {
        direct(self.stream(stream).await?.direct_get(sequence).await)
    }

    /// The sequence at which exactly these bytes stand on a subject, if they do.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn find(&self, stream: &str, subject: &str, payload: &[u8]) -> Result<Option<u64>, BusError> {
        let Some(last) = self.last_on(stream, subject).await? else { return Ok(None) };
        if last.payload == payload {
            return Ok(Some(last.sequence));
        }
        let mut tail = self.tail(stream, subject, 1).await?;
        loop {
            let message = tail.next().await?;
            if message.payload == payload {
                return Ok(Some(message.sequence));
            }
            if message.sequence >= last.sequence {
                return Ok(None);
            }
        }
    }

    /// Follows a stream from `from` on (1 is the first message).
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn tail(&self, stream: &str, filter: &str, from: u64) -> Result<Tail, BusError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            BusError::client(format!("following stream `{stream}`"), error)
        };
        let handle = self.jetstream().get_stream(stream).await.map_err(|error| failed(error.into()))?;
        let deliver_subject = self.client().new_inbox();
        // Named, so that the subject it is created on carries the stream and the filter, and a permission can too.
        let name = deliver_subject.rsplit('.').next().map(str::to_owned);
        let config = OrderedConfig {
            name,
            deliver_subject,
            filter_subject: filter.to_owned(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ..OrderedConfig::default()
        };
        let consumer = handle.create_consumer(config).await.map_err(|error| failed(error.into()))?;
        let pending = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
        let messages = messages
            .map(|message| {
                let message = message.map_err(|error| BusError::client("following a stream", error))?;
                let info = message.info().map_err(|error| BusError::client("following a stream", error))?;
                let (sequence, pending) = (info.stream_sequence, info.pending);
                let at = timestamp(info.published.unix_timestamp_nanos());
                Ok(StoredMessage {
                    subject: message.subject.to_string(),
                    sequence,
                    at,
                    payload: message.payload.clone(),
                    pending,
                })
            })
            .boxed();
        Ok(Tail { messages, next_sequence: from.max(1), pending })
    }
}

fn check_remembers(config: &Config, spec: &StreamSpec) -> Result<(), BusError> {
    let why = match config {
        Config { deny_delete: false, .. } => "messages can be deleted (deny_delete)",
        Config { deny_purge: false, .. } => "it can be purged (deny_purge)",
        Config { discard, .. } if *discard != DiscardPolicy::New => "it makes room by forgetting (discard)",
        Config { max_age, .. } if !max_age.is_zero() => "messages end by age (max_age)",
        Config { max_messages, .. } if *max_messages > 0 => "it holds a number of messages (max_msgs)",
        Config { max_messages_per_subject, .. }
            if *max_messages_per_subject > 0 && spec.keeps == Keeps::All =>
        {
            "it holds a number of messages per subject (max_msgs_per_subject)"
        }
        Config { duplicate_window, .. } if *duplicate_window < spec.duplicate_window => {
            "message ids are forgotten earlier than they are looked for (duplicate_window)"
        }
        Config { num_replicas, .. } if *num_replicas < spec.replicas => {
            "it lives on fewer servers than `stream.replicas` says (num_replicas)"
        }
        _ => return Ok(()),
    };
    Err(BusError::StreamForgets { stream: config.name.clone(), why })
}

fn facts(info: &jetstream::stream::Info) -> StreamFacts {
    StreamFacts {
        created_ns: info.created.unix_timestamp_nanos(),
        last_sequence: info.state.last_sequence,
        bytes: info.state.bytes,
        bytes_max: u64::try_from(info.config.max_bytes).unwrap_or(0),
    }
}

/// Whole milliseconds; what is before 1970 is that.
fn timestamp(nanos: i128) -> Timestamp {
    Timestamp::from_millis(u64::try_from(nanos / 1_000_000).unwrap_or_default())
}

fn direct(
    result: Result<jetstream::message::StreamMessage, jetstream::stream::DirectGetError>,
) -> Result<Option<StoredMessage>, BusError> {
    match result {
        Ok(message) => Ok(Some(StoredMessage {
            subject: message.subject.to_string(),
            sequence: message.sequence,
            at: timestamp(message.time.unix_timestamp_nanos()),
            payload: message.payload,
            pending: 0,
        })),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(BusError::client("reading a stream", error)),
    }
}
