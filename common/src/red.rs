//! Switches that turn one control off, so that its test can be seen red.
//!
//! They exist only when the workspace is built with `RUSTFLAGS="--cfg writ_red"`, which no release build is (a
//! test in `tests/tidy` looks for their traces in the binary). Everywhere else [`off`] is the constant `false`
//! and the branch behind it is gone.

/// Whether the control that answers threat `id` is switched off in this build and run.
#[cfg(not(writ_red))]
#[inline(always)]
#[must_use]
pub const fn off(_id: &str) -> bool {
    false
}

/// Whether the control that answers threat `id` is switched off: `WRIT_RED_OFF` holds the ids, comma-separated.
#[cfg(writ_red)]
#[must_use]
#[expect(clippy::disallowed_methods, reason = "test-only switch; this function is not in any release build")]
pub fn off(id: &str) -> bool {
    static OFF: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    OFF.get_or_init(|| std::env::var("WRIT_RED_OFF").unwrap_or_default())
        .split(',')
        .any(|switch| switch == id)
}
