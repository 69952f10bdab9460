//! `decide()` beside a second authorizer that was written from the documentation and shares nothing with it
//! (`support/reference.rs`): the same decision and the same reasons, for calls, starts, renewals and operators.
//!
//! The worlds are seeded. A failure names its seed; `WRIT_SEED=<seed> WRIT_WORLDS=1` runs that world alone.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a failed test may panic; how many cases to run is given from outside, and what they came to is said"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{
    NOW, keyset,
    random::Random,
    reference::{Allowed, Answer, Ask, Capability, Case, Condition, Statement, World},
    reference_flow::Derived,
    scenarios,
};
use writ_common::{control::ControlState, policy::PolicySet, reason::ReasonCode};

/// Cases in one world, and the chains they are about.
const CASES: usize = 100;
const CHAINS: usize = 12;
/// Worlds of which orders of files are tried, each with so many cases.
const ORDERS: u64 = 25;
const ORDERED_CASES: usize = 40;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// A case with its capability and the one it hands over, if there are any.
type StagedCase = (Case, [Option<writ_common::capability::Capability>; 2]);

/// A world with its questions, built.
struct Stage {
    world: World,
    control: ControlState,
    cases: Vec<StagedCase>,
}

impl Stage {
    fn new(random: &mut Random, cases: usize) -> Self {
        let keyset = keyset();
        let now = NOW.as_secs() - 3_600 * (random.next() % 168);
        let world = scenarios::world(random);
        let chains: Vec<Capability> = (0..CHAINS).map(|_| scenarios::chain(random, now)).collect();
        let mut built: Vec<(Capability, writ_common::capability::Capability)> = Vec::new();
        let mut build = |chain: &Capability| match built.iter().find(|(known, _)| known == chain) {
            Some((_, token)) => token.clone(),
            None => {
                let token = scenarios::build(chain, &keyset, now);
                built.push((chain.clone(), token.clone()));
                token
            }
        };
        let cases = (0..cases).map(|_| {
            let case = scenarios::case(random, &chains, now);
            let capability = case.capability.as_ref().map(&mut build);
            let handover = case.handover().map(|handover| build(&handover.chain));
            (case, [capability, handover])
        });
        let cases = cases.collect();
        let control = world.control();
        Self { world, control, cases }
    }

    fn answers(&self, policy: &PolicySet) -> Vec<Answer> {
        let ask = |(case, [capability, handover]): &(Case, [Option<_>; 2])| {
            scenarios::ask(case, policy, &self.control, capability.as_ref(), handover.as_ref())
        };
        self.cases.iter().map(ask).collect()
    }
}

/// Runs `work` for every seed from `first`, on as many threads as there are processors.
fn for_seeds<T: Send>(first: u64, count: u64, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)) as u64;
    let run = &|worker: u64| {
        let seeds = (first + worker..first + count).step_by(usize::try_from(workers).unwrap());
        seeds.map(&work).collect::<Vec<T>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || run(worker))).collect();
        let joined = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// The two agree on decision, reasons and bounds of 10,000 cases. `WRIT_WORLDS` is how many worlds of 100 cases are
/// tried, `WRIT_SEED` the first.
#[test]
fn decide_agrees_with_a_second_authorizer() {
    let (worlds, first) = (setting("WRIT_WORLDS", 100), setting("WRIT_SEED", 1));
    println!("{worlds} worlds of {CASES} cases from WRIT_SEED={first}");
    let tallies = for_seeds(first, worlds, |seed| {
        let stage = Stage::new(&mut Random(seed), CASES);
        let mut tally: BTreeMap<String, usize> = BTreeMap::new();
        for ((case, _), answer) in stage.cases.iter().zip(stage.answers(&stage.world.policy())) {
            let expected = stage.world.decide(case);
            assert!(
                answer == expected,
                "WRIT_SEED={seed} WRIT_WORLDS=1\ndecide():  {answer:?}\nreference: {expected:?}\n{case:#?}\n{}",
                stage.world.statements.iter().map(Statement::text).collect::<String>()
            );
            for met in met(case, &expected) {
                *tally.entry(met).or_default() += 1;
            }
        }
        tally
    });
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    tallies.into_iter().flatten().for_each(|(met, count)| *tally.entry(met).or_default() += count);
    println!("{tally:?}");
    if worlds >= 100 {
        // The cases have to be worth asking: enough is allowed, and every reason is met.
        let count = |met: &str| tally.get(met).copied().unwrap_or_default();
        assert!(count("allowed") > CASES * 15, "{tally:?}");
        for code in MET {
            assert!(count(code.as_str()) > 0, "no case met {code}");
        }
        for (met, least) in MET_OF_FLOW {
            assert!(count(met) >= least, "{met}: {tally:?}");
        }
    }
}

/// What a case is good for.
fn met(case: &Case, answer: &Answer) -> BTreeSet<String> {
    let allowed = match answer {
        Ok(allowed) => allowed,
        Err(codes) => return codes.iter().map(|code| code.as_str().to_owned()).collect(),
    };
    let mut met = BTreeSet::from(["allowed".to_owned()]);
    if let Allowed::Call(terms) = allowed {
        let kinds = terms.acts.iter().map(|act| case.told.acts[*act].declassifies.is_some());
        met.extend(
            kinds.map(|declassifies| if declassifies { "declassified" } else { "endorsed" }.to_owned()),
        );
        let sources = terms.sources.iter().map(|(.., source)| match source {
            Some(source) => format!("vouched for by {source}"),
            None if terms.acts.is_empty() => "held for a source".to_owned(),
            None => "vouched for by a person".to_owned(),
        });
        met.extend(sources);
        met.extend((!terms.needs.is_empty()).then(|| "held".to_owned()));
        let holds_tags = case.tags.as_ref().is_none_or(|tags| !tags.is_empty());
        met.extend(holds_tags.then(|| "allowed with tags".to_owned()));
        met.extend((terms.tags != Some(BTreeSet::new())).then(|| "told tags".to_owned()));
    }
    met
}

/// What has to be met often besides, in either direction.
const MET_OF_FLOW: [(&str, usize); 13] = [
    ("allowed with tags", 300),
    ("declass.digest", 20),
    ("declass.unauthorised", 20),
    ("declassified", 10),
    ("endorsed", 10),
    ("flow.clearance", 500),
    ("flow.integrity", 100),
    ("flow.sink", 100),
    ("held for a source", 20),
    ("told tags", 300),
    ("vouched for by directory:known", 20),
    ("vouched for by instruction", 20),
    ("vouched for by result", 20),
];

/// Every reason `decide()` has, but for those of an engine that met a limit.
const MET: [ReasonCode; 36] = [
    ReasonCode::AgentKeyUnknown,
    ReasonCode::AgentMismatch,
    ReasonCode::AgentQuarantined,
    ReasonCode::AgentUnknown,
    ReasonCode::ArgEncoding,
    ReasonCode::ArgInvalid,
    ReasonCode::ArgMissing,
    ReasonCode::ArgNumber,
    ReasonCode::ArgUnknown,
    ReasonCode::DeclassDigest,
    ReasonCode::DeclassUnauthorised,
    ReasonCode::DelegationNotAllowed,
    ReasonCode::DelegationSignature,
    ReasonCode::DelegationWidening,
    ReasonCode::EngineError,
    ReasonCode::FlowClearance,
    ReasonCode::FlowIntegrity,
    ReasonCode::FlowSink,
    ReasonCode::GrantNotAllowed,
    ReasonCode::HaltAll,
    ReasonCode::IdSyntax,
    ReasonCode::PolicyDenied,
    ReasonCode::PolicyNoMatch,
    ReasonCode::Revoked,
    ReasonCode::RevokedAgent,
    ReasonCode::RevokedHolder,
    ReasonCode::RevokedTask,
    ReasonCode::RevokedUser,
    ReasonCode::RightMissing,
    ReasonCode::StateStale,
    ReasonCode::TaskMismatch,
    ReasonCode::TenantMismatch,
    ReasonCode::TokenCheckFailed,
    ReasonCode::TokenExpired,
    ReasonCode::ToolUnknown,
    ReasonCode::UserMismatch,
];

/// The statements in another order, over other files.
fn shuffled(random: &mut Random, statements: &[String]) -> BTreeMap<String, String> {
    let mut left: Vec<&String> = statements.iter().collect();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    while !left.is_empty() {
        let statement = left.swap_remove(random.below(left.len()));
        *files.entry(format!("planes/{}.datalog", random.below(4))).or_default() += statement;
    }
    files
}

/// Deny wins: neither another order of rules and files nor more rules that allow take a denial away.
#[test]
fn a_denial_is_never_lost_by_order_or_by_allowing_more() {
    let first = setting("WRIT_SEED", 1);
    let tallies = for_seeds(first, ORDERS, |seed| {
        let random = &mut Random(seed);
        let stage = Stage::new(random, ORDERED_CASES);
        let mut statements: Vec<String> = stage.world.statements.iter().map(Statement::text).collect();
        let before = stage.answers(&stage.world.policy());
        let reordered = scenarios::load(stage.world.tables(), shuffled(random, &statements));
        assert_eq!(stage.answers(&reordered), before, "WRIT_SEED={seed}: the order matters");
        statements.extend((0..3).map(|_| scenarios::allowance(random).text()));
        let widened = scenarios::load(stage.world.tables(), shuffled(random, &statements));
        let (mut denied, mut allowed) = (0, 0);
        for ((case, _), (before, after)) in
            stage.cases.iter().zip(before.into_iter().zip(stage.answers(&widened)))
        {
            match before {
                Err(codes) if codes.contains(&ReasonCode::PolicyNoMatch) => {
                    // The one denial that says nobody allowed it. What else there is stays.
                    let others = codes.iter().filter(|code| **code != ReasonCode::PolicyNoMatch);
                    let after = after.err().unwrap_or_default();
                    assert!(others.clone().all(|code| after.contains(code)), "WRIT_SEED={seed}: {case:#?}");
                    allowed += usize::from(after.is_empty());
                }
                before => {
                    denied += usize::from(before.is_err());
                    assert_eq!(after, before, "WRIT_SEED={seed}: {case:#?}");
                }
            }
        }
        (denied, allowed)
    });
    let (denied, allowed) = tallies.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{denied} denials stayed, {allowed} were of what nothing allowed before");
    assert!(denied > 200 && allowed > 0, "{denied} {allowed}");
}

/// Whether a statement asks about the task label, or about a clearance.
fn looks_at_flow(statement: &Statement) -> bool {
    use Condition::{Cleared, Sourced, Tag, TagAmong, Unsourced, Untrusted};
    let looks = |condition: &&Condition| {
        matches!(condition, Cleared(_) | Sourced(_) | Tag(_) | TagAmong(_) | Unsourced(_) | Untrusted)
    };
    statement.conditions().iter().any(looks)
}

/// Whether a statement can only stand against a call.
fn only_denies(statement: &Statement) -> bool {
    use Derived::{NeedsApproval, ResultTag, ResultUntrusted};
    matches!(
        statement,
        Statement::Decide { allow: false, .. }
            | Statement::Derive(NeedsApproval(..) | ResultTag(_) | ResultUntrusted, _)
    )
}

/// Whether an answer allows what the other denies, or on less.
fn allows_more(before: &Answer, after: &Answer) -> bool {
    let (Ok(Allowed::Call(before)), Ok(Allowed::Call(after))) = (before, after) else {
        return before.is_err() && after.is_ok();
    };
    before.needs.iter().any(|(role, people)| after.needs.get(role).is_none_or(|now| now < people))
}

/// A task that was told more, an agent that may be told less and one more deny rule never turn a denial into
/// an allowance, nor do they take an approval away. What asks for a label to allow something, or denies while there is
/// none, is left out: there the policy says so.
#[test]
fn a_denial_is_never_lost_by_a_higher_label_or_less_clearance() {
    use Condition::{Cleared, Tag};
    let first = setting("WRIT_SEED", 1);
    let tallies = for_seeds(first, ORDERS, |seed| {
        let random = &mut Random(seed);
        let mut stage = Stage::new(random, ORDERED_CASES);
        stage.cases.retain(|(case, _)| matches!(case.ask, Ask::Call { .. }));
        let is_given_up = |condition: &&Condition| matches!(condition, Cleared(_) | Tag("public" | "top"));
        stage.world.statements.retain(|statement| {
            let keeps = statement.conditions().iter().all(|condition| !is_given_up(condition));
            keeps && (only_denies(statement) || !looks_at_flow(statement))
        });
        let policy = stage.world.policy();
        let before = stage.answers(&policy);
        let mut lost = [0; 3];
        let mut compare = |kind: usize, after: Vec<Answer>, cases: &[StagedCase]| {
            for ((case, _), (before, after)) in cases.iter().zip(before.iter().zip(after)) {
                assert!(
                    !allows_more(before, &after),
                    "WRIT_SEED={seed}\n{kind}: {before:?}\nto: {after:?}\n{case:#?}"
                );
                lost[kind] += usize::from(before.is_ok() && after.is_err());
            }
        };
        // More was told.
        let mut raised = stage.cases.clone();
        for (case, _) in &mut raised {
            let more = scenarios::some(random, &scenarios::TAGS, 50);
            case.tags = case.tags.as_ref().map(|tags| tags | &more);
            case.is_untrusted |= random.chance(50);
        }
        std::mem::swap(&mut stage.cases, &mut raised);
        compare(0, stage.answers(&policy), &stage.cases);
        stage.cases = raised;
        // One more rule denies.
        let mut statements: Vec<String> = stage.world.statements.iter().map(Statement::text).collect();
        statements.push(scenarios::denial(random).text());
        let stricter = scenarios::load(stage.world.tables(), shuffled(random, &statements));
        compare(1, stage.answers(&stricter), &stage.cases);
        // Agents may be told less.
        for tags in stage.world.flow.clearances.values_mut() {
            let fewer = scenarios::some(random, &scenarios::TAGS, 50);
            *tags = Some(tags.as_ref().map_or(fewer.clone(), |tags| tags & &fewer));
        }
        compare(2, stage.answers(&stage.world.policy()), &stage.cases);
        lost
    });
    let lost =
        tallies.into_iter().fold([0; 3], |sum, one| [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]]);
    println!("lost by a higher label, a deny rule and less clearance: {lost:?}");
    assert!(lost.iter().all(|lost| *lost > 10), "{lost:?}");
}
