//! Timing things, alone or many at a time.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

/// What is thrown away before a measurement under load: connections, caches and clocks settle.
const WARM_UP: Duration = Duration::from_millis(500);

/// What one kind of request takes at one number in flight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// The longest, in microseconds.
    pub longest_us: f64,
    /// Completed per second.
    pub per_second: f64,
    /// Completed in all, those of the warm-up included.
    pub completed: f64,
}

impl Load {
    /// Sums up what every request took.
    pub fn of(mut took: Vec<f64>, during: Duration) -> Self {
        let completed = u32::try_from(took.len()).map_or(f64::INFINITY, f64::from);
        let [p50_us, p99_us, longest_us] = [50, 99, 100].map(|percent| percentile(&mut took, percent));
        Self { p50_us, p99_us, longest_us, per_second: completed / during.as_secs_f64(), completed }
    }
}

/// Repeats something for a while, `in_flight` at a time.
///
/// # Errors
/// The first failure: figures of requests that fail mean nothing.
pub async fn load<F, Fut>(in_flight: usize, during: Duration, request: F) -> Result<Load>
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let begin = Instant::now() + WARM_UP;
    let end = begin + during;
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let request = request.clone();
        workers.spawn(async move {
            let (mut took, mut completed) = (Vec::new(), 0u32);
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return Ok::<_, anyhow::Error>((took, completed));
                }
                request().await?;
                completed += 1;
                if sent >= begin {
                    took.push(micros(sent.elapsed()));
                }
            }
        });
    }
    let (mut all, mut completed) = (Vec::new(), 0.0);
    while let Some(worker) = workers.join_next().await {
        let (took, of_worker) = worker??;
        all.extend(took);
        completed += f64::from(of_worker);
    }
    Ok(Load { completed, ..Load::of(all, during) })
}

/// Does something with each of these in every round, all of them at the same time; how long each took, in microseconds.
///
/// # Errors
/// The first failure.
pub async fn rounds<T, F, Fut>(of: Vec<T>, rounds: Range<usize>, request: F) -> Result<Vec<f64>>
where
    T: Clone + Send + 'static,
    F: Fn(T, usize) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let mut workers = JoinSet::new();
    for one in of {
        let (request, rounds) = (request.clone(), rounds.clone());
        workers.spawn(async move {
            let mut took = Vec::new();
            for round in rounds {
                let sent = Instant::now();
                request(one.clone(), round).await?;
                took.push(micros(sent.elapsed()));
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(worker) = workers.join_next().await {
        all.extend(worker??);
    }
    Ok(all)
}

/// The median time of something short that needs no other process, in microseconds.
pub fn repeat(times: usize, mut work: impl FnMut()) -> f64 {
    let mut took: Vec<f64> = (0..times)
        .map(|_| {
            let begin = Instant::now();
            work();
            micros(begin.elapsed())
        })
        .collect();
    percentile(&mut took, 50)
}

/// Milliseconds until `try_once` succeeds, asked again and again without much of a pause.
///
/// # Errors
/// If it still fails after `patience`, as it failed last.
pub async fn until_done<Fut>(since: Instant, patience: Duration, try_once: impl Fn() -> Fut) -> Result<f64>
where
    Fut: Future<Output = Result<()>>,
{
    loop {
        match try_once().await {
            Ok(()) => return Ok(micros(since.elapsed()) / 1_000.0),
            Err(error) if since.elapsed() > patience => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

fn micros(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e6
}

/// The value that so many percent of the others do not exceed; 0 if there is none.
pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(last * percent / 100).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!(
            [0, 50, 99, 100].map(|percent| percentile(&mut values, percent)),
            [1.0, 51.0, 100.0, 101.0]
        );
        assert_eq!(percentile(&mut [], 50).to_bits(), 0.0f64.to_bits());
    }
}
