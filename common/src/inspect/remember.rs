//! Answers that are remembered, by the digest of what they depend on.
//!
//! Inspectors are asked about the same text again and again: a call is decided once more after people approved it or
//! the label moved, and agents repeat what they were told. Only answers are kept, never silence, and not for long.

use std::collections::{BTreeMap, VecDeque};

use super::Answer;
use crate::{
    digest::Digest,
    time::{Millis, Monotonic},
};

/// How long an answer is believed.
const LIFE: Millis = Millis::from_secs(300);
/// Most answers kept.
const ANSWERS_MAX: usize = 4_096;
/// Most findings kept, over all answers.
const FINDINGS_MAX: usize = 65_536;

/// Answers by what they depend on, the oldest first to go.
#[derive(Debug, Default)]
pub struct Remembered {
    answers: BTreeMap<Digest, (Monotonic, Answer)>,
    order: VecDeque<(Monotonic, Digest)>,
    findings: usize,
}

impl Remembered {
    /// The answer to this, if it was given lately.
    #[must_use]
    pub fn get(&self, key: &Digest, now: Monotonic) -> Option<&Answer> {
        let (at, answer) = self.answers.get(key)?;
        (now.since(*at) < LIFE).then_some(answer)
    }

    /// Keeps an answer.
    pub fn keep(&mut self, key: Digest, answer: Answer, now: Monotonic) {
        self.findings += answer.findings.len();
        if let Some((_, old)) = self.answers.insert(key, (now, answer)) {
            self.findings -= old.findings.len();
        }
        self.order.push_back((now, key));
        while self.order.len() > ANSWERS_MAX
            || self.findings > FINDINGS_MAX
            || self.order.front().is_some_and(|(at, _)| now.since(*at) >= LIFE)
        {
            let Some((at, key)) = self.order.pop_front() else { return };
            // It may have been given anew since.
            if self.answers.get(&key).is_some_and(|(given, _)| *given == at)
                && let Some((_, old)) = self.answers.remove(&key)
            {
                self.findings -= old.findings.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: &str) -> Answer {
        Answer {
            findings: Vec::new(),
            add_tags: std::collections::BTreeSet::new(),
            version: version.to_owned(),
        }
    }

    #[test]
    fn answers_are_kept_for_a_while_and_so_many() {
        let mut remembered = Remembered::default();
        let at = |secs: u64| Monotonic::from_millis(secs * 1_000);
        let key = |number: u64| Digest::plain(&number.to_be_bytes());
        remembered.keep(key(0), answer("a"), at(0));
        remembered.keep(key(0), answer("b"), at(100));
        assert_eq!(remembered.get(&key(0), at(399)).map(|answer| answer.version.as_str()), Some("b"));
        assert_eq!(remembered.get(&key(0), at(400)), None);
        assert_eq!(remembered.get(&key(1), at(100)), None);
        for number in 1..10_000 {
            remembered.keep(key(number), answer(""), at(200));
        }
        assert_eq!(remembered.answers.len(), ANSWERS_MAX);
        assert!(remembered.get(&key(9_999), at(200)).is_some() && remembered.get(&key(1), at(200)).is_none());
        remembered.keep(key(1), answer(""), at(600));
        assert_eq!((remembered.answers.len(), remembered.order.len(), remembered.findings), (1, 1, 0));
    }
}
