//! Writ, Cedar and Rego deciding the same policy on the same requests, in the same process.
//!
//! First all of them are asked every request and have to agree; only then anything is timed. What is timed is one
//! decision on a request that is there already, in the type of each engine: for Writ all of `decide()`, with a
//! verified capability (so also its binding, revocation, contract and conditions), for the others the evaluation of
//! their policies. Reading requests, capabilities and policies is not in it; loading a policy has its own column.

mod engines;
mod policy;

use std::time::{Duration, Instant};

use engines::{Cedar, Engine, Rego, RegoCompiled, Writ};
use policy::{Policy, Question};

/// How long each engine is asked, at each size.
const TIME: Duration = Duration::from_millis(1_500);
/// Tools of a policy, four rules each; two more stand for all.
const TOOLS: [usize; 3] = [2, 25, 250];

struct Row {
    name: &'static str,
    load: Duration,
    median: Duration,
    p99: Duration,
    decisions: usize,
}

fn main() {
    println!("rules  engine                 load        median          p99   median by Writ's   decisions");
    for tools in TOOLS {
        let policy = Policy { tools };
        let questions = policy.questions();
        let mut rows = vec![
            measure("Writ", &questions, || Writ::load(&policy)),
            measure("Cedar", &questions, || Cedar::load(&policy)),
            measure("Rego (regorus, VM)", &questions, || RegoCompiled::load(&policy)),
            measure("Rego (regorus)", &questions, || Rego::load(&policy)),
        ];
        let writ = rows[0].median.as_secs_f64();
        for row in rows.drain(..) {
            println!(
                "{:>5}  {:<19} {:>7.2} ms {:>10.2} us {:>9.2} us {:>18.2} {:>11}",
                policy.rules(),
                row.name,
                row.load.as_secs_f64() * 1e3,
                row.median.as_secs_f64() * 1e6,
                row.p99.as_secs_f64() * 1e6,
                row.median.as_secs_f64() / writ,
                row.decisions,
            );
        }
    }
}

/// Loads, compares every answer with what the policy means, and then measures.
fn measure<E: Engine>(name: &'static str, questions: &[Question], load: impl Fn() -> E) -> Row {
    let started = Instant::now();
    let mut engine = load();
    let load = started.elapsed();
    let requests: Vec<E::Request> = questions.iter().map(|question| engine.request(question)).collect();
    for (question, request) in questions.iter().zip(&requests) {
        assert_eq!(engine.allows(request), question.is_allowed(), "{name} on {question:?}");
    }
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < TIME {
        for request in &requests {
            let before = Instant::now();
            std::hint::black_box(engine.allows(std::hint::black_box(request)));
            times.push(before.elapsed());
        }
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    Row { name, load, median: at(50), p99: at(99), decisions: times.len() }
}
