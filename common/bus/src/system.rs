//! The process's own clocks and randomness, for everything that lives on the bus. Decision cores are given both.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use writ_common::{
    entropy::Entropy,
    time::{Monotonic, Now, Timestamp},
};

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Its monotonic zero is now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Both clocks, read together.
    #[must_use]
    pub fn now(&self) -> Now {
        let millis = |elapsed: Duration| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            wall: Timestamp::from_millis(millis(since_epoch)),
            monotonic: Monotonic::from_millis(millis(self.start.elapsed())),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

/// The operating system's random bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        #[expect(clippy::expect_used, reason = "no process of ours can go on safely without randomness")]
        getrandom::fill(bytes).expect("the operating system gives no random bytes");
    }
}
