//! An inspector that stays silent is not asked for a while: every call would wait for the whole deadline, to be refused
//! in the end all the same.

use crate::time::{Millis, Monotonic};

/// Failures in a row after which it is not asked.
const FAILURES_MAX: u32 = 5;
/// How long it is not asked then; afterwards one question shows whether it is back.
const REST: Millis = Millis::from_secs(5);

/// What is known of an inspector's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    failures: u32,
    rests_until: Option<Monotonic>,
}

impl Circuit {
    /// Whether it is to be asked now. After a rest the first who asks is let through, and the others once it answered.
    pub fn admits(&mut self, now: Monotonic) -> bool {
        match self.rests_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.rests_until = Some(now.after(REST));
                true
            }
            None => true,
        }
    }

    /// It answered, whatever it said.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// It did not.
    pub fn failed(&mut self, now: Monotonic) {
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            self.rests_until = Some(now.after(REST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_failures_it_rests_and_one_question_tries_again() {
        let at = Monotonic::from_millis;
        let mut circuit = Circuit::default();
        for time in 0..5 {
            assert!(circuit.admits(at(time)));
            circuit.failed(at(time));
        }
        assert!(!circuit.admits(at(5_003)));
        assert!(circuit.admits(at(5_004)), "one is let through");
        assert!(!circuit.admits(at(5_005)), "and no other");
        circuit.failed(at(5_100));
        assert!(!circuit.admits(at(10_099)) && circuit.admits(at(10_100)));
        circuit.answered();
        assert!(circuit.admits(at(10_101)));
        circuit.failed(at(10_102));
        assert!(circuit.admits(at(10_103)), "one failure is none");
    }
}
