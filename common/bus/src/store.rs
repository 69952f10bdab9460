//! Publishing to a stream: acknowledged, fenced, once.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use serde::Deserialize;

use crate::{Bus, error::StoreError};

/// A message for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Its subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Within the stream's duplicate window, only the first message with this id is stored.
    pub message_id: Option<String>,
    /// What must still be the case for it to be stored.
    pub fence: Fence,
    /// Seconds after which the server forgets it.
    pub ttl_secs: Option<u64>,
}

impl Store {
    /// A message that is stored if the last one on its subject has this sequence, and is kept; 0 if it must be the
    /// first.
    #[must_use]
    pub fn fenced(subject: String, sequence: u64, payload: Vec<u8>) -> Self {
        let fence = Fence::LastOn { subject: subject.clone(), sequence };
        Self { subject, payload, message_id: None, fence, ttl_secs: None }
    }
}

/// A condition the server checks in the same step as it stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// No condition.
    None,
    /// The last message on exactly this subject has this sequence; 0 if there must be none.
    LastOn {
        /// The subject; never a wildcard, with which stale publishes get through.
        subject: String,
        /// The sequence.
        sequence: u64,
    },
    /// The last message of the whole stream has this sequence.
    LastOfStream(u64),
}

/// The server's acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Stream sequence of the message, or of the earlier one with the same id.
    pub sequence: u64,
    /// Whether the id had been stored before, so that this message was not.
    pub duplicate: bool,
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Bus {
    /// Publishes to a stream and waits for the acknowledgement.
    ///
    /// # Errors
    /// [`StoreError`]: all but `Unknown` mean that the message is definitely not stored.
    pub async fn store(&self, store: &Store, timeout: Duration) -> Result<Stored, StoreError> {
        let (bytes, bytes_max) = (store.payload.len(), self.payload_bytes_max());
        if bytes > bytes_max {
            // The server would end the connection over it.
            return Err(StoreError::Refused(format!(
                "{bytes} bytes are more than the {bytes_max} of the server's max_payload"
            )));
        }
        let mut headers = async_nats::HeaderMap::new();
        if let Some(id) = &store.message_id {
            headers.insert("Nats-Msg-Id", id.as_str());
        }
        match &store.fence {
            Fence::None => {}
            Fence::LastOn { subject, sequence } => {
                headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
                // On the message's own subject the server takes it from there.
                if *subject != store.subject {
                    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject.as_str());
                }
            }
            Fence::LastOfStream(sequence) => {
                headers.insert("Nats-Expected-Last-Sequence", sequence.to_string());
            }
        }
        if let Some(secs) = store.ttl_secs {
            headers.insert("Nats-TTL", format!("{secs}s"));
        }
        let mut request =
            async_nats::Request::new().payload(store.payload.clone().into()).timeout(Some(timeout));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        match self.client().send_request(store.subject.clone(), request).await {
            Ok(message) => parse_ack(&message.payload),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Err(StoreError::Refused("no stream takes this subject".to_owned()))
            }
            Err(error) => Err(StoreError::Unknown(error.to_string())),
        }
    }
}

fn parse_ack(payload: &[u8]) -> Result<Stored, StoreError> {
    let Ok(ack) = serde_json::from_slice::<Ack>(payload) else {
        return Err(StoreError::Unknown("the acknowledgement is unreadable".to_owned()));
    };
    match ack.error {
        None if ack.seq > 0 => Ok(Stored { sequence: ack.seq, duplicate: ack.duplicate }),
        None => Err(StoreError::Unknown("the acknowledgement has no sequence".to_owned())),
        // JetStream API error codes, nats-server server/errors.json.
        Some(AckError { err_code: 10_071, .. }) => Err(StoreError::Fenced),
        Some(AckError { err_code: 10_158 | 10_164, .. }) => Err(StoreError::Busy),
        Some(AckError { err_code: 10_047 | 10_077, .. }) => Err(StoreError::Full),
        Some(AckError { err_code, description }) => {
            Err(StoreError::Refused(format!("{description} ({err_code})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_told_apart() {
        let ack = |text: &str| parse_ack(text.as_bytes());
        assert_eq!(ack(r#"{"stream":"S","seq":7}"#), Ok(Stored { sequence: 7, duplicate: false }));
        assert_eq!(
            ack(r#"{"stream":"S","seq":7,"duplicate": true}"#),
            Ok(Stored { sequence: 7, duplicate: true })
        );
        let error = |code: u64| ack(&format!(r#"{{"error":{{"code":400,"err_code":{code}}},"seq":0}}"#));
        assert_eq!(error(10_071), Err(StoreError::Fenced));
        assert_eq!(error(10_158), Err(StoreError::Busy));
        assert_eq!(error(10_164), Err(StoreError::Busy));
        assert_eq!(error(10_077), Err(StoreError::Full));
        assert!(matches!(error(10_003), Err(StoreError::Refused(_))));
        assert!(matches!(ack("nonsense"), Err(StoreError::Unknown(_))));
        assert!(matches!(ack("{}"), Err(StoreError::Unknown(_))));
    }
}
