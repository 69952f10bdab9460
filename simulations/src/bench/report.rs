//! The figures, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{measure::Load, process::Footprint};

/// A governed call may take so many times what it is made of.
const CALL_RATIO_MAX: f64 = 1.5;
/// Memory of an idle process, in MiB.
const IDLE_MIB_MAX: f64 = 30.0;
/// Time from start to the first right answer, in milliseconds.
const READY_MS_MAX: f64 = 1_000.0;

/// What a governed call is made of, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parts {
    /// A request over the bus and back, median.
    pub request_reply_us: f64,
    /// An Ed25519 signature.
    pub sign_us: f64,
    /// An Ed25519 verification.
    pub verify_us: f64,
    /// A JetStream publish with acknowledgement, median.
    pub publish_ack_us: f64,
}

impl Parts {
    fn sum_us(&self) -> f64 {
        self.request_reply_us + self.sign_us + self.verify_us + self.publish_ack_us
    }
}

/// Raw and governed requests at one number in flight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Level {
    /// How many are under way at the same time.
    pub in_flight: usize,
    /// Requests over the bare bus.
    pub raw: Load,
    /// Governed calls.
    pub governed: Load,
    /// Governed p50 by raw p50.
    pub p50_ratio: f64,
    /// Governed p99 by raw p99.
    pub p99_ratio: f64,
    /// Governed calls per second by raw requests per second.
    pub throughput_ratio: f64,
}

impl Level {
    /// Divides what belongs together.
    pub fn new(in_flight: usize, raw: Load, governed: Load) -> Self {
        Self {
            in_flight,
            raw,
            governed,
            p50_ratio: governed.p50_us / raw.p50_us,
            p99_ratio: governed.p99_us / raw.p99_us,
            throughput_ratio: governed.per_second / raw.per_second,
        }
    }
}

/// Something we set out to reach.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What.
    pub goal: String,
    /// What it is; nothing where it cannot be measured.
    pub figure: Option<f64>,
    /// The most it may be.
    pub at_most: f64,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Goal {
    fn new(goal: impl Into<String>, figure: Option<f64>, at_most: f64) -> Self {
        Self { goal: goal.into(), figure, at_most, met: figure.map(|figure| figure <= at_most) }
    }
}

/// Everything one run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Processors the run had.
    pub processors: usize,
    /// What a call is made of.
    pub parts: Parts,
    /// The sum of it.
    pub sum_us: f64,
    /// Calls by number in flight.
    pub levels: Vec<Level>,
    /// Processes.
    pub processes: Vec<Footprint>,
    /// What was aimed at.
    pub goals: Vec<Goal>,
}

impl Report {
    /// Puts the figures beside the goals.
    pub fn new(parts: Parts, levels: Vec<Level>, processes: Vec<Footprint>) -> Self {
        let alone = levels.iter().find(|level| level.in_flight == 1);
        let ratio = alone.map(|level| level.governed.p50_us / parts.sum_us());
        let mut goals =
            vec![Goal::new("governed p50 at 1 in flight, by the sum of its parts", ratio, CALL_RATIO_MAX)];
        for process in &processes {
            let name = process.name;
            goals.push(Goal::new(format!("{name}, idle, MiB"), process.idle_mib, IDLE_MIB_MAX));
            goals.push(Goal::new(
                format!("{name}, ms from start to answer"),
                Some(process.ready_ms),
                READY_MS_MAX,
            ));
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { processors, parts, sum_us: parts.sum_us(), levels, processes, goals }
    }

    /// Aligned columns.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        self.write(&mut text).unwrap_or_default();
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Parts { request_reply_us, sign_us, verify_us, publish_ack_us } = self.parts;
        writeln!(text, "{} processors; server, broker, node and agent on this machine\n", self.processors)?;
        writeln!(text, "{:<28} {:>10}", "what a call is made of", "us")?;
        let parts = [
            ("request_reply p50", request_reply_us),
            ("sign", sign_us),
            ("verify", verify_us),
            ("publish_ack p50", publish_ack_us),
            ("sum", self.sum_us),
        ];
        for (name, value) in parts {
            writeln!(text, "{name:<28} {value:>10.1}")?;
        }
        let (p50, p99, per_second) = ("p50 us", "p99 us", "per second");
        writeln!(text, "\n{:<28} {p50:>10} {p99:>10} {per_second:>12}", "in flight")?;
        for level in &self.levels {
            for (name, load) in [("raw request", level.raw), ("governed call", level.governed)] {
                let name = format!("{:>4}  {name}", level.in_flight);
                let Load { p50_us, p99_us, per_second } = load;
                writeln!(text, "{name:<28} {p50_us:>10.1} {p99_us:>10.1} {per_second:>12.0}")?;
            }
            let Level { p50_ratio, p99_ratio, throughput_ratio, .. } = level;
            writeln!(
                text,
                "{:<28} {p50_ratio:>9.2}x {p99_ratio:>9.2}x {throughput_ratio:>11.3}x",
                "      ratio"
            )?;
        }
        writeln!(text, "\n{:<48} {:>10} {:>10}  met", "goal", "figure", "at most")?;
        for Goal { goal, figure, at_most, met } in &self.goals {
            let figure = figure.map_or("not measured".to_owned(), |figure| format!("{figure:.2}"));
            let met = match met {
                Some(true) => "yes",
                Some(false) => "no",
                None => "-",
            };
            writeln!(text, "{goal:<48} {figure:>10} {at_most:>10.2}  {met}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_which_goals_are_met() {
        let load = |p50_us| Load { p50_us, p99_us: 2.0 * p50_us, per_second: 10.0 };
        let parts = Parts { request_reply_us: 100.0, sign_us: 20.0, verify_us: 30.0, publish_ack_us: 50.0 };
        let process = Footprint { name: "node", ready_ms: 1_200.0, idle_mib: None };
        let report = Report::new(parts, vec![Level::new(1, load(100.0), load(250.0))], vec![process]);
        let met: Vec<Option<bool>> = report.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true), None, Some(false)]);
        let table = report.table();
        assert!(table.contains("2.50x") && table.contains("not measured"), "{table}");
    }
}
