//! What labels cost: the same call where its result raises nothing, where the task has been told as much before, and
//! where every result brings a tag that is new to the task.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use writ_sdk::Task;

use super::{
    Bench,
    measure::{self, Load},
    setup,
};

/// Calls of one task that are timed. The first is not, and a label has room for 64 tags.
const ROUNDS: usize = 60;
/// How many are under way, and how often that is done; the kinds take turns.
const SETTINGS: [(usize, usize); 2] = [(1, 8), (64, 2)];

/// Calls by what their results do to the label.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Labels {
    /// How many servers keep the streams together.
    pub servers: usize,
    /// How many calls are under way at the same time, each in a task of its own.
    pub in_flight: usize,
    /// Results without a tag.
    pub plain: Load,
    /// Results with a tag the task has.
    pub covered: Load,
    /// Results with a new tag.
    pub raising: Load,
    /// p50 of results with a tag the task has, by that of results without.
    pub covered_ratio: f64,
    /// p50 of results with a new tag, by that of results without.
    pub raising_ratio: f64,
}

/// What the result of a call carries.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Covered,
    Raising,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Plain, Self::Covered, Self::Raising];

    fn tag(self, round: usize) -> String {
        match self {
            Self::Plain => setup::NO_TAG.to_owned(),
            Self::Covered => "t".to_owned(),
            Self::Raising => format!("t{round}"),
        }
    }
}

/// The three sorts of calls, at each number in flight.
///
/// # Errors
/// The first call that is refused or fails.
pub async fn measure(bench: &mut Bench, servers: usize) -> Result<Vec<Labels>> {
    let mut figures = Vec::new();
    for (in_flight, repeats) in SETTINGS {
        let mut took: [(Vec<f64>, Duration); 3] = Default::default();
        for _ in 0..repeats {
            for (kind, (took, elapsed)) in Kind::ALL.into_iter().zip(&mut took) {
                let mut tasks = Vec::new();
                for _ in 0..in_flight {
                    tasks.push(bench.task().await?);
                }
                run(kind, tasks.clone(), 0..1).await?;
                let begin = Instant::now();
                took.extend(run(kind, tasks, 1..1 + ROUNDS).await?);
                *elapsed += begin.elapsed();
            }
        }
        let [plain, covered, raising] = took.map(|(took, elapsed)| Load::of(took, elapsed));
        let (covered_ratio, raising_ratio) = (covered.p50_us / plain.p50_us, raising.p50_us / plain.p50_us);
        figures.push(Labels { servers, in_flight, plain, covered, raising, covered_ratio, raising_ratio });
    }
    Ok(figures)
}

async fn run(kind: Kind, tasks: Vec<Task>, rounds: std::ops::Range<usize>) -> Result<Vec<f64>> {
    measure::rounds(tasks, rounds, move |task, round| async move {
        task.call(setup::RESOURCE, setup::ACTION, setup::tagged(&kind.tag(round))).await?;
        Ok(())
    })
    .await
}
