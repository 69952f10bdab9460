//! What a node keeps of tasks that go on: its memory before and after many of them made a call.

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Bench, process, setup};

/// How many tasks.
const TASKS: u32 = 10_000;
/// How many are started at the same time.
const AT_ONCE: u32 = 50;

/// A node with many flow domains.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Domains {
    /// How many tasks made a call, each with a domain of its own.
    pub tasks: u32,
    /// Resident memory before, in MiB; nothing where it cannot be read.
    pub before_mib: Option<f64>,
    /// And after.
    pub after_mib: Option<f64>,
    /// What each took, in KiB.
    pub each_kib: Option<f64>,
}

/// Starts the tasks, each of which makes one call whose result raises its label.
///
/// # Errors
/// The first task that is not started, and the first call that is refused or fails.
pub async fn measure(bench: &mut Bench) -> Result<Domains> {
    bench.restart_node().await?;
    let before_mib = resident(bench).await;
    for _ in 0..TASKS / AT_ONCE {
        let mut started = JoinSet::new();
        for _ in 0..AT_ONCE {
            let starting = bench.starting().await?;
            started.spawn(async move {
                starting.await?.call(setup::RESOURCE, setup::ACTION, setup::tagged("t")).await?;
                anyhow::Ok(())
            });
        }
        while let Some(done) = started.join_next().await {
            done??;
        }
    }
    let after_mib = resident(bench).await;
    let grown = after_mib.zip(before_mib).map(|(after, before)| after - before);
    let each_kib = grown.map(|mib| mib * 1_024.0 / f64::from(TASKS));
    Ok(Domains { tasks: TASKS, before_mib, after_mib, each_kib })
}

async fn resident(bench: &Bench) -> Option<f64> {
    tokio::time::sleep(process::SETTLE).await;
    bench.node.as_ref().and_then(process::Running::resident_mib)
}
