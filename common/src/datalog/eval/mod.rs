//! A compiled evaluator for [`crate::datalog`], with the meaning biscuit-auth's engine gives it.
//!
//! [`Program::compile`] interns what rules and fixed facts say, plans every join, and notes for each rule one constant
//! it cannot fire without. [`Run`] takes the facts of one request, looks only at rules whose constant is there, and
//! derives in rounds: a round sees the facts of the rounds before it, and after the first one only matches with
//! something new in them are looked at (semi-naive evaluation). Rounds, facts and errors are counted as the reference
//! engine counts them, so that the same question meets the same limit. `engine.rs` has the test that holds both
//! against each other.
//!
//! There is no clock here: instead of time, what is looked at is counted.

mod expression;
mod plan;
mod relation;
mod symbols;

use std::collections::{BTreeMap, BTreeSet};

use plan::{Body as CompiledBody, HeadTerm, Plan, Planner, Step};
use relation::{Bits, Relation, Rows};
use symbols::{Overlay, Symbols, Value};

use super::{Body, Predicate, Rule, Term};

/// How much an evaluation may come to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Facts, derived ones included. One that is derived both with and without the capability counts twice.
    pub facts: usize,
    /// Rounds of applying every rule.
    pub rounds: usize,
    /// Facts that are looked at while bodies are matched.
    pub looks: u64,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An expression has no value.
    Expression(&'static str),
    /// Too many facts or rounds.
    Limit,
    /// Too much to look at.
    Work,
}

/// Who said a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The authority block of the capability.
    Capability,
    /// The verifier.
    Verifier,
}

/// Names of relations, by name and number of terms.
type Names = BTreeMap<String, BTreeMap<usize, usize>>;

/// Rules and the facts that are always there, compiled.
#[derive(Clone, Debug, Default)]
pub struct Program {
    symbols: Symbols,
    names: Names,
    rules: Vec<CompiledRule>,
    /// The facts that are always there, by relation.
    fixed: Vec<Rows>,
    fixed_count: usize,
    /// Rules that wait for a constant, by relation and column.
    gates: Vec<Vec<BTreeMap<Value, Vec<usize>>>>,
    /// Rules without a constant to wait for.
    open: Vec<usize>,
    /// Rules over fixed facts alone. What they derive is among the fixed facts already.
    settled: Vec<usize>,
    /// Relations that settled rules ask about, each with whether it is one.
    settles: Vec<bool>,
}

#[derive(Clone, Debug)]
struct CompiledRule {
    relation: usize,
    head: Vec<HeadTerm>,
    body: CompiledBody,
    /// The whole body, for the first round.
    whole: Plan,
    /// For each predicate that rules derive, the body with that predicate's new facts first.
    deltas: Vec<Plan>,
}

impl Program {
    /// Compiles rules, and facts that hold in every run. What follows from those alone is derived here, once, if that
    /// stays within the limits.
    #[must_use]
    pub fn compile(rules: &[Rule], fixed: &[Predicate], limits: Limits) -> Self {
        let lasting = lasting(rules, fixed);
        let settled: Vec<Rule> =
            rules.iter().filter(|rule| lasting.contains(&key(&rule.head))).cloned().collect();
        let alone = Self::unsettled(&settled, fixed);
        let mut run = Run::new(&alone, limits);
        if settled.is_empty() || run.derive().is_err() {
            return Self::unsettled(rules, fixed);
        }
        let mut known = fixed.to_vec();
        for (name, arity) in settled.iter().map(|rule| key(&rule.head)).collect::<BTreeSet<_>>() {
            known.extend(run.facts(name, arity).into_iter().map(|terms| Predicate::new(name, terms)));
        }
        Self::new(rules, &known, |rule| lasting.contains(&key(&rule.head)))
    }

    /// Compiles rules, and facts that hold in every run; all rules are applied in every run.
    #[must_use]
    pub fn unsettled(rules: &[Rule], fixed: &[Predicate]) -> Self {
        Self::new(rules, fixed, |_| false)
    }

    fn new(rules: &[Rule], fixed: &[Predicate], is_settled: impl Fn(&Rule) -> bool) -> Self {
        let mut program = Self::default();
        for fact in fixed {
            let relation = program.relation(&fact.name, fact.terms.len());
            let row: Vec<Value> = fact.terms.iter().filter_map(|term| program.symbols.intern(term)).collect();
            if let Some(rows) = program.fixed.get_mut(relation) {
                program.fixed_count += usize::from(rows.insert(&row, Bits::VERIFIER).is_some());
            }
        }
        let derived: BTreeSet<usize> =
            rules.iter().map(|rule| program.relation(&rule.head.name, rule.head.terms.len())).collect();
        for rule in rules {
            let before = program.rules.len();
            program.add(rule, &derived);
            if is_settled(rule) {
                program.settled.extend(before..program.rules.len());
            }
        }
        program.settles = vec![false; program.fixed.len()];
        let asked = program.settled.iter().filter_map(|at| program.rules.get(*at));
        for relation in asked.flat_map(|rule| &rule.whole).map(|step| step.relation) {
            if let Some(settles) = program.settles.get_mut(relation) {
                *settles = true;
            }
        }
        program.place_gates();
        program
    }

    fn relation(&mut self, name: &str, arity: usize) -> usize {
        if let Some(known) = relation_of(&self.names, name, arity) {
            return known;
        }
        let next = self.fixed.len();
        self.names.entry(name.to_owned()).or_default().insert(arity, next);
        self.fixed.push(Rows::new(arity));
        next
    }

    fn add(&mut self, rule: &Rule, derived: &BTreeSet<usize>) {
        let relations: Vec<usize> = rule
            .body
            .predicates
            .iter()
            .map(|predicate| self.relation(&predicate.name, predicate.terms.len()))
            .collect();
        let mut planner = Planner::default();
        let body = planner.body(&rule.body, &relations, &mut |term| self.symbols.intern(term));
        // A variable the body does not bind makes a rule the loader refuses; here it derives nothing.
        let head: Option<Vec<HeadTerm>> = rule
            .head
            .terms
            .iter()
            .map(|term| planner.head(term, &mut |term| self.symbols.intern(term)))
            .collect();
        let Some(head) = head else { return };
        let relation = self.relation(&rule.head.name, rule.head.terms.len());
        let fixed = &self.fixed;
        let size = |relation: usize| fixed.get(relation).map_or(0, Rows::len);
        let whole = body.plan(None, size);
        let deltas =
            (0..relations.len()).filter(|at| relations.get(*at).is_some_and(|of| derived.contains(of)));
        let deltas = deltas.map(|at| body.plan(Some(at), size)).collect();
        self.rules.push(CompiledRule { relation, head, body, whole, deltas });
    }

    /// Chooses for each rule the constant that the fewest rules share, if it can one that is not always there.
    fn place_gates(&mut self) {
        let mut shared: BTreeMap<(usize, usize, Value), usize> = BTreeMap::new();
        for constant in self.rules.iter().flat_map(|rule| rule.body.constants()) {
            *shared.entry(constant).or_default() += 1;
        }
        self.gates = self.fixed.iter().map(|rows| vec![BTreeMap::new(); rows.arity()]).collect();
        let settled: BTreeSet<usize> = self.settled.iter().copied().collect();
        for (at, rule) in self.rules.iter().enumerate().filter(|(at, _)| !settled.contains(at)) {
            let is_fixed = |(relation, column, value): (usize, usize, Value)| {
                self.fixed.get(relation).is_some_and(|rows| rows.has(column, value))
            };
            let fewest = |constant: &(usize, usize, Value)| {
                (is_fixed(*constant), shared.get(constant).copied().unwrap_or(0))
            };
            let gate = rule.body.constants().min_by_key(fewest).filter(|constant| !is_fixed(*constant));
            let waiting = gate.and_then(|(relation, column, value)| {
                Some((self.gates.get_mut(relation)?.get_mut(column)?, value))
            });
            match waiting {
                Some((column, value)) => column.entry(value).or_default().push(at),
                None => self.open.push(at),
            }
        }
    }
}

fn key(predicate: &Predicate) -> (&str, usize) {
    (&predicate.name, predicate.terms.len())
}

/// Relations whose facts are fixed or follow from fixed ones alone.
fn lasting<'a>(rules: &'a [Rule], fixed: &'a [Predicate]) -> BTreeSet<(&'a str, usize)> {
    let mut lasting: BTreeSet<(&str, usize)> =
        fixed.iter().chain(rules.iter().map(|rule| &rule.head)).map(key).collect();
    loop {
        let fleeting = rules.iter().filter(|rule| {
            lasting.contains(&key(&rule.head))
                && rule.body.predicates.iter().any(|predicate| !lasting.contains(&key(predicate)))
        });
        let fleeting: Vec<_> = fleeting.map(|rule| key(&rule.head)).collect();
        if fleeting.is_empty() {
            return lasting;
        }
        lasting.retain(|relation| !fleeting.contains(relation));
    }
}

fn relation_of(names: &Names, name: &str, arity: usize) -> Option<usize> {
    names.get(name)?.get(&arity).copied()
}

/// One evaluation: facts go in, rounds derive more, questions are answered.
pub struct Run<'p> {
    program: &'p Program,
    symbols: Overlay<'p>,
    /// Relations the program does not know.
    names: Names,
    relations: Vec<Relation<'p>>,
    /// Whether the constant a rule waits for was seen.
    is_ready: Vec<bool>,
    ready: Vec<usize>,
    count: usize,
    looks: u64,
    limits: Limits,
}

/// A fact to be merged at the end of a round.
type Pending = BTreeMap<(usize, Box<[Value]>), Bits>;

impl<'p> Run<'p> {
    /// Begins with the program's fixed facts.
    #[must_use]
    pub fn new(program: &'p Program, limits: Limits) -> Self {
        let mut is_ready = vec![false; program.rules.len()];
        for rule in &program.open {
            if let Some(is_ready) = is_ready.get_mut(*rule) {
                *is_ready = true;
            }
        }
        Self {
            program,
            symbols: Overlay::new(&program.symbols),
            names: Names::new(),
            relations: program.fixed.iter().map(Relation::new).collect(),
            is_ready,
            ready: program.open.clone(),
            count: program.fixed_count,
            looks: 0,
            limits,
        }
    }

    /// Facts that no rule and no check can see, but that are there.
    pub fn count_unseen(&mut self, facts: usize) {
        self.count += facts;
    }

    /// States a fact.
    pub fn state(&mut self, fact: &Predicate, source: Source) {
        let relation = self.relation(&fact.name, fact.terms.len());
        let symbols = &mut self.symbols;
        let row: Option<Vec<Value>> = fact.terms.iter().map(|term| symbols.intern(term)).collect();
        let bits = match source {
            Source::Capability => Bits::CAPABILITY,
            Source::Verifier => Bits::VERIFIER,
        };
        let is_new = row.and_then(|row| self.insert(relation, &row, bits)).is_some();
        if is_new && self.program.settles.get(relation) == Some(&true) {
            // What settled rules ask about is not what it was when they were settled.
            self.program.settled.iter().for_each(|rule| self.make_ready(*rule));
        }
    }

    fn make_ready(&mut self, rule: usize) {
        if let Some(is_ready @ false) = self.is_ready.get_mut(rule) {
            *is_ready = true;
            self.ready.push(rule);
        }
    }

    fn relation(&mut self, name: &str, arity: usize) -> usize {
        let known = relation_of(&self.program.names, name, arity);
        if let Some(known) = known.or_else(|| relation_of(&self.names, name, arity)) {
            return known;
        }
        let next = self.relations.len();
        self.names.entry(name.to_owned()).or_default().insert(arity, next);
        self.relations.push(Relation::empty(arity));
        next
    }

    /// Inserts a row; its position among the run's own rows if anything about it is new.
    fn insert(&mut self, relation: usize, row: &[Value], bits: Bits) -> Option<usize> {
        for (column, value) in row.iter().enumerate() {
            let gate = self.program.gates.get(relation).and_then(|columns| columns.get(column));
            for rule in gate.and_then(|values| values.get(value)).into_iter().flatten() {
                self.make_ready(*rule);
            }
        }
        let (at, added) = self.relations.get_mut(relation)?.insert(row, bits)?;
        self.count += added;
        Some(at)
    }

    /// Applies the rules until nothing new comes of them.
    ///
    /// # Errors
    /// [`Fault`] if there is no answer.
    pub fn derive(&mut self) -> Result<(), Fault> {
        let mut pending = Pending::new();
        let program = self.program;
        for rule in self.ready.clone() {
            let Some(rule) = program.rules.get(rule) else { continue };
            self.apply(rule, &rule.whole, None, &mut pending)?;
        }
        for round in 1.. {
            let before = self.count;
            let mut deltas: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for ((relation, row), bits) in std::mem::take(&mut pending) {
                if let Some(at) = self.insert(relation, &row, bits) {
                    deltas.entry(relation).or_default().push(at);
                }
            }
            if self.count == before {
                break;
            }
            if round >= self.limits.rounds || self.count >= self.limits.facts {
                return Err(Fault::Limit);
            }
            // Rules that became ready take part from now on: what they waited for is among what is new.
            for rule in self.ready.clone() {
                let Some(rule) = program.rules.get(rule) else { continue };
                for plan in &rule.deltas {
                    if let Some(rows) = plan.first().and_then(|step| deltas.get(&step.relation)) {
                        self.apply(rule, plan, Some(rows), &mut pending)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        rule: &CompiledRule,
        plan: &Plan,
        delta: Option<&[usize]>,
        pending: &mut Pending,
    ) -> Result<(), Fault> {
        // With more than so many something is new, and too much.
        let pending_max = self.limits.facts.saturating_add(self.count);
        self.matches(&rule.body, plan, delta, &mut |slots, bits| {
            let row: Option<Box<[Value]>> = rule.head.iter().map(|term| term.value(slots)).collect();
            if let Some(row) = row.filter(|_| pending.len() <= pending_max) {
                let known = pending.entry((rule.relation, row)).or_default();
                *known = known.or(bits);
            }
        })
    }

    /// Calls `visit` for every match on which all expressions are true.
    fn matches(
        &mut self,
        body: &CompiledBody,
        plan: &Plan,
        delta: Option<&[usize]>,
        visit: &mut dyn FnMut(&[Value], Bits),
    ) -> Result<(), Fault> {
        let mut join = Join {
            relations: &self.relations,
            symbols: &self.symbols,
            body,
            slots: vec![Value::Bool(false); body.slots],
            looks: self.looks,
            looks_max: self.limits.looks,
            visit,
        };
        let result = join.step(plan, delta, Bits::VERIFIER);
        self.looks = join.looks;
        result
    }

    /// Whether a body holds for some match (`Some(true)`), for none, or, with `all`, for every match of at least one.
    ///
    /// # Errors
    /// [`Fault`] if an expression has no value on any match.
    pub fn ask(&mut self, body: &Body, all: bool) -> Result<bool, Fault> {
        let relations: Vec<usize> = body
            .predicates
            .iter()
            .map(|predicate| self.relation(&predicate.name, predicate.terms.len()))
            .collect();
        let mut planner = Planner::default();
        let symbols = &mut self.symbols;
        let mut compiled = planner.body(body, &relations, &mut |term| symbols.intern(term));
        let plan = compiled.plan(None, |_| 0);
        let mut held = 0u64;
        self.matches(&compiled, &plan, None, &mut |_, _| {
            held += 1;
        })?;
        if !all || (held == 0 && !crate::red::off("P12")) {
            return Ok(held > 0);
        }
        compiled.expressions.clear();
        let mut met = 0u64;
        self.matches(&compiled, &plan, None, &mut |_, _| {
            met += 1;
        })?;
        Ok(met == held)
    }

    /// Whether a fact is there.
    #[must_use]
    pub fn has(&self, name: &str, terms: &[Term]) -> bool {
        let row: Option<Vec<Value>> = terms.iter().map(|term| self.symbols.find(term)).collect();
        let relation = self.known_relation(name, terms.len());
        relation.zip(row).is_some_and(|(relation, row)| relation.has(&row))
    }

    fn known_relation(&self, name: &str, arity: usize) -> Option<&Relation<'p>> {
        let known = relation_of(&self.program.names, name, arity);
        self.relations.get(known.or_else(|| relation_of(&self.names, name, arity))?)
    }

    /// Every fact of a predicate, sorted.
    #[must_use]
    pub fn facts(&self, name: &str, arity: usize) -> Vec<Vec<Term>> {
        let Some(relation) = self.known_relation(name, arity) else { return Vec::new() };
        let mut tuples: Vec<Vec<Term>> = relation
            .rows()
            .map(|(row, _)| row.iter().filter_map(|value| self.symbols.term(*value)).collect())
            .collect();
        tuples.sort();
        tuples.dedup();
        tuples
    }
}

/// A join under way.
struct Join<'a, 'p> {
    relations: &'a [Relation<'p>],
    symbols: &'a Overlay<'p>,
    body: &'a CompiledBody,
    slots: Vec<Value>,
    looks: u64,
    looks_max: u64,
    visit: &'a mut dyn FnMut(&[Value], Bits),
}

impl Join<'_, '_> {
    /// Matches what is left of the plan.
    fn step(&mut self, plan: &[Step], delta: Option<&[usize]>, bits: Bits) -> Result<(), Fault> {
        let Some((step, rest)) = plan.split_first() else {
            for expression in &self.body.expressions {
                if !expression.holds(&self.slots, self.symbols)? {
                    return Ok(());
                }
            }
            (self.visit)(&self.slots, bits);
            return Ok(());
        };
        let relations = self.relations;
        let Some(relation) = relations.get(step.relation) else { return Ok(()) };
        if let Some(delta) = delta {
            for (row, of_row) in delta.iter().filter_map(|at| relation.own(*at)) {
                self.look(step, rest, row, bits.joined(of_row))?;
            }
            return Ok(());
        }
        let known = |column: usize| step.columns.get(column)?.known(&self.slots);
        let keys: Vec<(usize, Value)> =
            step.keys.iter().filter_map(|column| Some((*column, known(*column)?))).collect();
        for (row, of_row) in relation.candidates(&keys) {
            self.look(step, rest, row, bits.joined(of_row))?;
        }
        Ok(())
    }

    fn look(&mut self, step: &Step, rest: &[Step], row: &[Value], bits: Bits) -> Result<(), Fault> {
        self.looks += 1;
        if self.looks > self.looks_max {
            return Err(Fault::Work);
        }
        let fits = step.columns.iter().zip(row).all(|(column, value)| column.take(*value, &mut self.slots));
        if fits { self.step(rest, None, bits) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { facts: 1_000, rounds: 10, looks: 10_000 };

    fn atom(name: &str, variables: &[&str]) -> Predicate {
        Predicate::new(name, variables.iter().map(|name| Term::var(*name)).collect::<Vec<_>>())
    }

    fn rule(head: Predicate, body: impl IntoIterator<Item = Predicate>) -> Rule {
        Rule { head, body: Body { predicates: body.into_iter().collect(), expressions: Vec::new() } }
    }

    fn edge(from: i64, to: i64) -> Predicate {
        Predicate::new("edge", [Term::Integer(from), Term::Integer(to)])
    }

    #[test]
    fn a_join_that_is_too_large_is_given_up_by_count() {
        let rules = [rule(atom("found", &["x"]), [atom("p", &["x"]), atom("p", &["y"]), atom("p", &["z"])])];
        let program = Program::compile(&rules, &[], LIMITS);
        let answer = |facts: i64| {
            let mut run = Run::new(&program, LIMITS);
            (0..facts).for_each(|n| run.state(&Predicate::new("p", [Term::Integer(n)]), Source::Verifier));
            run.derive()
        };
        assert_eq!(answer(20), Ok(()));
        assert_eq!(answer(40), Err(Fault::Work));
    }

    #[test]
    fn what_was_settled_beforehand_is_derived_again_if_more_is_stated() {
        let rules = [
            rule(atom("reach", &["x", "y"]), [atom("edge", &["x", "y"])]),
            rule(atom("reach", &["x", "z"]), [atom("reach", &["x", "y"]), atom("edge", &["y", "z"])]),
        ];
        let fixed = [edge(1, 2), edge(2, 3)];
        let program = Program::compile(&rules, &fixed, LIMITS);
        let reach = |from: i64, to: i64| [Term::Integer(from), Term::Integer(to)];
        let mut run = Run::new(&program, LIMITS);
        run.derive().unwrap();
        assert!(run.has("reach", &reach(1, 3)) && !run.has("reach", &reach(1, 4)));
        assert!(run.ready.is_empty(), "nothing is left to apply");
        let mut run = Run::new(&program, LIMITS);
        run.state(&edge(3, 4), Source::Verifier);
        run.derive().unwrap();
        assert!(run.has("reach", &reach(1, 4)));
        assert_eq!(run.facts("reach", 2).len(), 6);
    }

    #[test]
    fn a_rule_is_looked_at_only_where_its_constant_is() {
        let about = |name: &str| Predicate::new("resource", [Term::str(name)]);
        let rules: Vec<Rule> = (0..100i64)
            .map(|n| {
                let head = Predicate::new("fired", [Term::Integer(n)]);
                rule(head, [Predicate::new("request", [Term::str("call")]), about(&format!("tool.t{n}"))])
            })
            .collect();
        let program = Program::compile(&rules, &[], LIMITS);
        let mut run = Run::new(&program, LIMITS);
        run.state(&Predicate::new("request", [Term::str("call")]), Source::Verifier);
        run.state(&about("tool.t7"), Source::Verifier);
        assert_eq!(run.ready, [7]);
        run.derive().unwrap();
        assert_eq!(run.facts("fired", 1), [[Term::Integer(7)]]);
    }
}
