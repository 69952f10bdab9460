//! What is replayed of a suite: every task, every attack, and every attacker made from one.

use std::borrow::Cow;

use super::{
    laundering,
    trace::{Attack, Call, Suite},
};

/// Calls one after another, and what is counted by them.
pub struct Trace<'a> {
    /// What it is.
    pub what: What<'a>,
    /// What outsiders wrote into results, if somebody attacks.
    pub attack: Option<&'a Attack>,
    /// The calls, the last ones to be judged.
    pub legs: Vec<Leg<'a>>,
}

/// What a trace is, with its name.
#[derive(Clone, Copy)]
pub enum What<'a> {
    /// A user's task.
    Benign(&'a str),
    /// An attack of the file.
    Attack(&'a str),
    /// An attacker of ours, made from an attack.
    Launderer(&'static str, &'a str),
}

/// Calls of one task.
pub struct Leg<'a> {
    /// The user's task.
    pub task: &'a str,
    /// Whether it is another task than that of the leg before: told nothing, among the same tools.
    pub is_another: bool,
    /// The calls.
    pub calls: Cow<'a, [Call]>,
}

impl<'a> Leg<'a> {
    /// Calls that go on in the same task.
    pub fn of(task: &'a str, calls: impl Into<Cow<'a, [Call]>>) -> Self {
        Self { task, is_another: false, calls: calls.into() }
    }
}

/// Everything that is replayed of a suite, in the order in which it is reported.
pub fn of(suite: &Suite) -> Vec<Trace<'_>> {
    let benign = suite.tasks.iter().map(|(name, task)| Trace {
        what: What::Benign(name),
        attack: None,
        legs: vec![Leg::of(name, task.calls.as_slice())],
    });
    let attacks = suite.attacks.iter().map(|attack| Trace {
        what: What::Attack(&attack.id),
        attack: Some(attack),
        legs: vec![
            Leg::of(&attack.user, before(suite, attack)),
            Leg::of(&attack.user, attack.calls.as_slice()),
        ],
    });
    benign.chain(attacks).chain(laundering::of(suite)).collect()
}

/// The calls of the task before the outsider's text is read.
pub fn before<'a>(suite: &'a Suite, attack: &Attack) -> &'a [Call] {
    let calls = suite.tasks.get(&attack.user).map_or(&[][..], |task| task.calls.as_slice());
    calls.get(..attack.prefix).unwrap_or(calls)
}
