//! The figures, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{domains::Domains, labels::Labels, measure::Load, process::Footprint, swaps::Swaps};

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

/// Processor time, in microseconds; nothing where the system does not say.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    /// Of the agent.
    pub agent_us: Option<f64>,
    /// Of the NATS server.
    pub server_us: Option<f64>,
    /// Of the node.
    pub node_us: Option<f64>,
}

impl Cpu {
    /// What each took per request since `before`.
    pub fn since(&self, before: &Self, requests: f64) -> Self {
        let per_request = |now: Option<f64>, then: Option<f64>| Some((now? - then?) / requests);
        Self {
            agent_us: per_request(self.agent_us, before.agent_us),
            server_us: per_request(self.server_us, before.server_us),
            node_us: per_request(self.node_us, before.node_us),
        }
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
    /// Processor time per governed call.
    pub cpu: Cpu,
}

impl Level {
    /// Divides what belongs together.
    pub fn new(in_flight: usize, raw: Load, governed: Load, cpu: Cpu) -> Self {
        Self {
            in_flight,
            raw,
            governed,
            p50_ratio: governed.p50_us / raw.p50_us,
            p99_ratio: governed.p99_us / raw.p99_us,
            throughput_ratio: governed.per_second / raw.per_second,
            cpu,
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

/// What knowing where data may go costs.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// Calls by what their results do to the label.
    pub labels: Vec<Labels>,
    /// A node with many flow domains.
    pub domains: Domains,
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
    /// Calls while the policy is exchanged.
    pub swaps: Option<Swaps>,
    /// Labels.
    pub flow: Option<Flow>,
    /// Processes.
    pub processes: Vec<Footprint>,
    /// What was aimed at.
    pub goals: Vec<Goal>,
}

impl Report {
    /// Puts the figures beside the goals.
    pub fn new(
        parts: Parts,
        levels: Vec<Level>,
        processes: Vec<Footprint>,
        swaps: Option<Swaps>,
        flow: Option<Flow>,
    ) -> Self {
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
        Self { processors, parts, sum_us: parts.sum_us(), levels, swaps, flow, processes, goals }
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
                let Load { p50_us, p99_us, per_second, .. } = load;
                writeln!(text, "{name:<28} {p50_us:>10.1} {p99_us:>10.1} {per_second:>12.0}")?;
            }
            let Level { p50_ratio, p99_ratio, throughput_ratio, .. } = level;
            writeln!(
                text,
                "{:<28} {p50_ratio:>9.2}x {p99_ratio:>9.2}x {throughput_ratio:>11.3}x",
                "      ratio"
            )?;
        }
        let (agent, server, node) = ("agent", "server", "node");
        writeln!(text, "\n{:<28} {agent:>10} {server:>10} {node:>12}", "processor us per call")?;
        for Level { in_flight, cpu, .. } in &self.levels {
            let [agent, server, node] = [cpu.agent_us, cpu.server_us, cpu.node_us].map(shown);
            writeln!(text, "{in_flight:>4}{:<24} {agent:>10} {server:>10} {node:>12}", "")?;
        }
        if let Some(Swaps { load_us, calm, swapped, swaps, longest_ratio }) = &self.swaps {
            let (p50, p99, longest) = ("p50 us", "p99 us", "longest us");
            writeln!(text, "\n{:<28} {p50:>10} {p99:>10} {longest:>12}", "16 calls in flight")?;
            for (name, load) in [("one policy", calm), ("policies exchanged", swapped)] {
                let Load { p50_us, p99_us, longest_us, .. } = load;
                writeln!(text, "{name:<28} {p50_us:>10.1} {p99_us:>10.1} {longest_us:>12.1}")?;
            }
            let [p50, p99] = [swapped.p50_us / calm.p50_us, swapped.p99_us / calm.p99_us];
            writeln!(text, "{:<28} {p50:>9.2}x {p99:>9.2}x {longest_ratio:>11.2}x", "ratio")?;
            writeln!(text, "{swaps} exchanges, {load_us:.0} us each to check and compile")?;
        }
        if let Some(Flow { labels, domains }) = &self.flow {
            labels.iter().try_for_each(|labels| write_labels(text, labels))?;
            let Domains { tasks, before_mib, after_mib, each_kib } = domains;
            let [before, after, each] = [before_mib, after_mib, each_kib].map(|figure| shown(*figure));
            writeln!(
                text,
                "\na node, MiB: {before}; after {tasks} tasks made a call each: {after}; KiB each: {each}"
            )?;
        }
        writeln!(text, "\n{:<48} {:>12} {:>10}  met", "goal", "figure", "at most")?;
        for Goal { goal, figure, at_most, met } in &self.goals {
            let figure = shown(*figure);
            let met = match met {
                Some(true) => "yes",
                Some(false) => "no",
                None => "-",
            };
            writeln!(text, "{goal:<48} {figure:>12} {at_most:>10.2}  {met}")?;
        }
        Ok(())
    }
}

fn write_labels(text: &mut String, labels: &Labels) -> std::fmt::Result {
    let Labels { servers, in_flight, plain, covered, raising, .. } = labels;
    let heading = format!("results, {in_flight} in flight, R{servers}");
    let (p50, p99, per_second) = ("p50 us", "p99 us", "per second");
    writeln!(text, "\n{heading:<28} {p50:>10} {p99:>10} {per_second:>12}")?;
    for (name, load) in [("no tag", plain), ("a tag the task has", covered), ("a new tag", raising)] {
        let Load { p50_us, p99_us, per_second, .. } = load;
        writeln!(text, "{name:<28} {p50_us:>10.1} {p99_us:>10.1} {per_second:>12.0}")?;
    }
    for (name, load) in [("ratio, a tag it has", covered), ("ratio, a new tag", raising)] {
        let [p50, p99] = [load.p50_us / plain.p50_us, load.p99_us / plain.p99_us];
        let per_second = load.per_second / plain.per_second;
        writeln!(text, "{name:<28} {p50:>9.2}x {p99:>9.2}x {per_second:>11.3}x")?;
    }
    Ok(())
}

fn shown(figure: Option<f64>) -> String {
    figure.map_or("not measured".to_owned(), |figure| format!("{figure:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_which_goals_are_met() {
        let load = |p50_us| Load {
            p50_us,
            p99_us: 2.0 * p50_us,
            longest_us: 3.0 * p50_us,
            per_second: 10.0,
            completed: 20.0,
        };
        let parts = Parts { request_reply_us: 100.0, sign_us: 20.0, verify_us: 30.0, publish_ack_us: 50.0 };
        let process = Footprint { name: "node", ready_ms: 1_200.0, idle_mib: None };
        let report = Report::new(
            parts,
            vec![Level::new(1, load(100.0), load(250.0), Cpu::default())],
            vec![process],
            None,
            None,
        );
        let met: Vec<Option<bool>> = report.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true), None, Some(false)]);
        let table = report.table();
        assert!(table.contains("2.50x") && table.contains("not measured"), "{table}");
    }
}
