//! Work on many things at once: signatures are checked on every core there is.

use std::{num::NonZero, thread};

use anyhow::{Result, anyhow};

/// Does the same with each of these, and gives back what came of it in their order.
///
/// # Errors
/// If `work` panicked: then it is not known of which, and nothing is said of any.
pub fn on_every_core<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let share = items.len().div_ceil(cores).max(1);
    let work = &work;
    let parts = thread::scope(|scope| {
        let workers: Vec<_> = items
            .chunks(share)
            .map(|chunk| scope.spawn(move || chunk.iter().map(work).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut done = Vec::with_capacity(items.len());
    for part in parts {
        done.extend(part.map_err(|_| anyhow!("a thread that checks signatures ended early"))?);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_in_order() {
        for count in [0, 1, 2, 7, 1_000] {
            let items: Vec<u64> = (0..count).collect();
            let done = on_every_core(&items, |item| item * 2).unwrap();
            assert!(done.into_iter().eq(items.iter().map(|item| item * 2)), "{count}");
        }
    }

    #[test]
    fn a_thread_that_ends_early_is_an_error_and_no_shorter_answer() {
        let even = |item: &u64| item.checked_rem(*item).unwrap();
        assert!(on_every_core(&[1, 2, 0, 3], even).is_err());
    }
}
