//! What a governed call cannot be faster than.
//!
//! `request_reply` is a request over a bare NATS client from the agent's account, through the same shared service
//! import a governed call takes, to a responder in a process of its own, and back: same subjects, same sizes, no
//! code of ours. `publish_ack` is one JetStream publish with its acknowledgement, into the very stream records go
//! to. `sign` and `verify` are Ed25519 over as many bytes as a call's proof has.

use std::{hint::black_box, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::StreamExt as _;
use writ::dev::TENANT;

use super::{
    measure::{self, Load},
    setup,
};

/// Bytes that are signed for a call: its fixed fields and digests.
const PROOF_BYTES: usize = 256;
/// Bytes of an ALLOW record with its signature, as the node publishes it.
const RECORD_BYTES: usize = 1_400;
const SIGNATURES: usize = 2_000;

/// Answers every request on the echo subjects with so many bytes, until it is ended.
///
/// # Errors
/// If there is no connection or it may not listen.
pub async fn respond(folder: &Path, bytes: usize) -> Result<()> {
    let client = setup::responder_client(folder).await?;
    let subject = format!("writ.v1.{TENANT}.call.*.*.tool.echo");
    // In a queue group, as nodes are.
    let mut requests = client.queue_subscribe(subject, "writ-node".to_owned()).await?;
    let answer = Bytes::from(vec![b'x'; bytes]);
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, answer.clone()).await?;
        }
    }
    Ok(())
}

/// A request over the bus and its answer, nothing else.
#[derive(Clone)]
pub struct RequestReply {
    client: async_nats::Client,
    subject: String,
    payload: Bytes,
}

impl RequestReply {
    /// With a payload of so many bytes.
    pub fn new(client: async_nats::Client, subject: String, bytes: usize) -> Self {
        Self { client, subject, payload: Bytes::from(vec![b'x'; bytes]) }
    }

    /// Once.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn once(&self) -> Result<()> {
        self.client.request(self.subject.clone(), self.payload.clone()).await.context("raw request")?;
        Ok(())
    }

    /// Many times.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn load(&self, in_flight: usize, during: Duration) -> Result<Load> {
        let this = self.clone();
        measure::load(in_flight, during, move || {
            let this = this.clone();
            async move { this.once().await }
        })
        .await
    }
}

/// Publishes with acknowledgement, one after the other.
///
/// # Errors
/// If the stream does not take it.
pub async fn publish_ack(folder: &Path, during: Duration) -> Result<Load> {
    let client = setup::responder_client(folder).await?;
    let jetstream = async_nats::jetstream::new(client);
    let subject = format!("writ.v1.{TENANT}.audit.p0.outcome._.{}", setup::RESPONDER);
    let payload = Bytes::from(vec![b'x'; RECORD_BYTES]);
    measure::load(1, during, move || {
        let (jetstream, subject, payload) = (jetstream.clone(), subject.clone(), payload.clone());
        async move {
            let acknowledged = jetstream.publish(subject, payload).await?.await?;
            ensure!(acknowledged.sequence > 0, "the stream took nothing");
            Ok(())
        }
    })
    .await
}

/// Median microseconds of one signature and of one verification.
pub fn signatures() -> (f64, f64) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let message = vec![9; PROOF_BYTES];
    let signature = key.sign(&message);
    let public = key.verifying_key();
    let sign = measure::repeat(SIGNATURES, || {
        black_box(key.sign(black_box(&message)));
    });
    let verify = measure::repeat(SIGNATURES, || {
        // Whether it holds is not the question.
        drop(black_box(public.verify_strict(black_box(&message), &signature)));
    });
    (sign, verify)
}
