//! The servers of a bus of several: which one leads, and what becomes of the others without it.

#![allow(clippy::indexing_slicing, reason = "what is not there in JSON is null")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use writ::operator::Operator;
use writ_common::{
    ids::PartId,
    subjects::{control_stream, part_stream},
};

/// How long the servers get to answer; without a leader nobody does.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Which server leads the stream of records and labels, by its number; nothing while there is none.
///
/// # Errors
/// If the answer is none.
pub async fn leader(operator: &Operator) -> Result<Option<usize>> {
    let stream = part_stream(operator.tenant(), &PartId::first());
    let Some(info) = info(operator, &stream).await? else { return Ok(None) };
    let Some(name) = info["cluster"]["leader"].as_str() else { return Ok(None) };
    let number = name.strip_prefix("writ-dev-").and_then(|number| number.parse().ok());
    Ok(Some(number.with_context(|| format!("`{name}` is no server of a development set-up"))?))
}

/// Whether every stream has a leader, and all its other servers are there and have caught up.
///
/// # Errors
/// If the answer is none.
pub async fn is_whole(operator: &Operator, servers: usize) -> Result<bool> {
    for stream in [control_stream(operator.tenant()), part_stream(operator.tenant(), &PartId::first())] {
        let Some(info) = info(operator, &stream).await? else { return Ok(false) };
        let cluster = &info["cluster"];
        let others = cluster["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
        let current = others.iter().filter(|other| other["current"] == true && other["offline"] != true);
        if cluster["leader"].as_str().is_none() || current.count() + 1 != servers {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn info(operator: &Operator, stream: &str) -> Result<Option<serde_json::Value>> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let Ok(reply) = operator.bus().request(subject, Vec::new(), None, TIMEOUT).await else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&reply.payload).context("the servers' answer is no JSON")?))
}
