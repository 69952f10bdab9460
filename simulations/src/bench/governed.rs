//! Governed calls, as an agent makes them.

use std::time::Duration;

use anyhow::{Result, bail};
use writ_bus::Bus;
use writ_common::{
    codec::decode,
    wire::{Answer, CallReply},
};
use writ_sdk::{Identity, Task};

use super::{
    measure::{self, Load},
    setup,
};

/// How long one probe waits: a process that has just started may lose a request.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Calls through the SDK: signed here, decided and recorded by the node, its receipt checked here.
///
/// # Errors
/// The first call that is refused or fails.
pub async fn load(task: &Task, in_flight: usize, during: Duration) -> Result<Load> {
    let task = task.clone();
    measure::load(in_flight, during, move || {
        let task = task.clone();
        async move {
            task.call(setup::RESOURCE, setup::ACTION, setup::arguments()).await?;
            Ok(())
        }
    })
    .await
}

/// Bytes of a call and of its answer on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Of the call.
    pub call: usize,
    /// Of the answer.
    pub reply: usize,
}

/// One call without the SDK's patience: done, or not.
///
/// # Errors
/// Nobody there, no answer in time, or any answer but a result.
pub async fn probe(bus: &Bus, identity: &Identity, task: &Task) -> Result<Sizes> {
    let (subject, payload) = setup::signed_call(identity, &task.capability().await?)?;
    let call = payload.len();
    let reply = bus.request(subject, payload, None, PROBE_TIMEOUT).await?;
    let answer: CallReply = decode(&reply.payload)?;
    match answer.answer {
        Answer::Done { .. } => Ok(Sizes { call, reply: reply.payload.len() }),
        other => bail!("the node answers {other:?}"),
    }
}
