//! Serving requests, as a NATS micro service that tools can list and measure.

use std::sync::Arc;

use async_nats::{
    Message,
    service::{self, ServiceExt as _},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use writ_common::trace::TraceContext;

use crate::{
    Attested, Bus,
    error::BusError,
    headers::{attested, trace_of, with_trace},
};

/// A registered micro service; its endpoints end with it.
pub struct Service {
    bus: Bus,
    service: service::Service,
}

/// One subject being served.
pub struct Endpoint {
    requests: service::endpoint::Endpoint,
}

/// A private subject being listened on, without being registered as a service.
pub struct Inbox {
    bus: Bus,
    messages: async_nats::Subscriber,
}

/// A request that waits for its answer.
#[derive(Clone)]
pub struct Incoming {
    message: Arc<Message>,
    answer: Answer,
}

/// How an answer is sent: a service counts them.
#[derive(Clone)]
enum Answer {
    Service(Arc<service::Request>),
    Plain(Box<Bus>),
}

impl Service {
    /// Registers the service. `instance` distinguishes replicas in metadata.
    ///
    /// # Errors
    /// [`BusError::Client`].
    pub async fn start(bus: &Bus, name: &str, description: &str, instance: &str) -> Result<Self, BusError> {
        let metadata = [("instance".to_owned(), instance.to_owned())].into();
        let service = bus
            .client()
            .service_builder()
            .description(description)
            .metadata(metadata)
            .start(name, env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|error| BusError::client(format!("service `{name}`"), error))?;
        Ok(Self { bus: bus.clone(), service })
    }

    /// Serves a subject; replicas in the same `queue` share its requests.
    ///
    /// # Errors
    /// [`BusError::Refused`] if the server does not let this user subscribe.
    pub async fn endpoint(&self, name: &str, subject: &str, queue: &str) -> Result<Endpoint, BusError> {
        let requests = self
            .service
            .endpoint_builder()
            .name(name)
            .queue_group(queue)
            .add(subject)
            .await
            .map_err(|error| BusError::client(format!("endpoint `{subject}`"), error))?;
        // The server answers a flush after it has judged the subscription.
        self.bus.flush().await?;
        if self.bus.was_refused(subject) {
            return Err(BusError::Refused(subject.to_owned()));
        }
        Ok(Endpoint { requests })
    }
}

/// How long a refusal may take from the connection to whoever subscribed.
const REFUSAL_GRACE: std::time::Duration = std::time::Duration::from_millis(100);

impl Service {
    /// Listens on a private subject, as agents do: they are no services and have no business with `$SRV`.
    ///
    /// # Errors
    /// [`BusError::Refused`] if the server does not let this user subscribe.
    pub async fn inbox(bus: &Bus, subject: &str) -> Result<Inbox, BusError> {
        let mut refusals = bus.refusals();
        let messages = bus
            .client()
            .subscribe(subject.to_owned())
            .await
            .map_err(|error| BusError::client(format!("subscription to `{subject}`"), error))?;
        bus.flush().await?;
        // The server has said so by now, if it has; the client hands it on by a task of its own.
        let refused = async {
            while let Ok(refused) = refusals.recv().await {
                if *refused == *subject {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        if tokio::time::timeout(REFUSAL_GRACE, refused).await.is_ok() || bus.was_refused(subject) {
            return Err(BusError::Refused(subject.to_owned()));
        }
        Ok(Inbox { bus: bus.clone(), messages })
    }
}

impl Endpoint {
    /// The next request; `None` when the service has ended.
    pub async fn next(&mut self) -> Option<Incoming> {
        let request = self.requests.next().await?;
        Some(Incoming {
            message: Arc::new(request.message.clone()),
            answer: Answer::Service(Arc::new(request)),
        })
    }
}

impl Inbox {
    /// The next request; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Incoming> {
        let message = self.messages.next().await?;
        Some(Incoming { message: Arc::new(message), answer: Answer::Plain(Box::new(self.bus.clone())) })
    }
}

impl Incoming {
    /// The subject it arrived on.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.message.subject.as_str()
    }

    /// Its bytes.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// Who sent it, as the server says.
    #[must_use]
    pub fn attested(&self) -> Attested {
        attested(self.message.headers.as_ref())
    }

    /// Where the sender's trace stands.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        trace_of(self.message.headers.as_ref())
    }

    /// Answers it. An answer nobody waits for any more is no error.
    ///
    /// # Errors
    /// [`BusError::Client`] if it cannot be sent.
    pub async fn respond(&self, payload: Vec<u8>, trace: Option<&TraceContext>) -> Result<(), BusError> {
        let headers = with_trace(trace);
        let sent = match (&self.answer, self.message.reply.clone()) {
            (_, None) => return Ok(()),
            (Answer::Service(request), Some(_)) => {
                request.respond_with_headers(Ok(payload.into()), headers).await
            }
            (Answer::Plain(bus), Some(reply)) if headers.is_empty() => {
                bus.client().publish(reply, payload.into()).await
            }
            (Answer::Plain(bus), Some(reply)) => {
                bus.client().publish_with_headers(reply, headers, payload.into()).await
            }
        };
        sent.map_err(|error| BusError::client("answering a request", error))
    }
}
