//! Policies exchanged while calls are under way: how long anybody waits for that.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use writ::dev::DevStack;
use writ_common::{
    policy::{PolicyBundle, PolicySet},
    wire::AdminWanted,
};
use writ_sdk::Task;

use super::{
    governed,
    measure::{self, Load},
};

/// How many calls are under way.
const IN_FLIGHT: usize = 16;
/// How often a policy is put in force.
const SWAP_EVERY: Duration = Duration::from_millis(200);

/// Calls beside exchanges of the policy.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Swaps {
    /// What a node's loop stands still for: checking and compiling the policy, in microseconds.
    pub load_us: f64,
    /// Calls under one policy.
    pub calm: Load,
    /// Calls while policies come and go.
    pub swapped: Load,
    /// How many did.
    pub swaps: u32,
    /// The longest call while they do, by the longest under one policy.
    pub longest_ratio: f64,
}

/// The same calls with and without exchanges.
///
/// # Errors
/// The first call that is refused or fails: an exchange may cost time, never a call.
pub async fn measure(stack: &DevStack, task: &Task, during: Duration) -> Result<Swaps> {
    let operator = stack.operator().await?;
    let (_, mut policies) = operator.policies().await?;
    let (_, bundle) = policies.pop().context("no policy is in force")?;
    let load_us = measure::repeat(50, || drop(PolicySet::load(&bundle)));
    let calm = governed::load(task, IN_FLIGHT, during).await?;
    let until = Instant::now() + during;
    let swapping = async {
        let mut swaps = 0;
        while Instant::now() < until {
            swaps += 1;
            let wanted = AdminWanted::ActivatePolicy { bundle: another(&bundle, swaps), expect: None };
            // A refusal is an error: what is not put in force cannot hold anybody up.
            operator.ask(wanted).await?;
            tokio::time::sleep(SWAP_EVERY).await;
        }
        anyhow::Ok(swaps)
    };
    let (swapped, swaps) = tokio::join!(governed::load(task, IN_FLIGHT, during), swapping);
    let swapped = swapped?;
    Ok(Swaps { load_us, calm, swapped, swaps: swaps?, longest_ratio: swapped.longest_us / calm.longest_us })
}

/// The same rules as another revision.
fn another(bundle: &PolicyBundle, number: u32) -> PolicyBundle {
    let mut another = bundle.clone();
    another.0.insert("number.datalog".to_owned(), format!("// {number}\n"));
    another
}
