//! Exit codes: typed, documented, and the same for every command.

use std::process::ExitCode;

use writ_common::diagnostic::Diagnostics;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked to.
    Ok = 0,
    /// It could not.
    Failure = 1,
    /// It was refused, by a rule or because nobody could say.
    Denied = 2,
    /// A policy or configuration file is invalid.
    Invalid = 3,
    /// The command line makes no sense.
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Files that do not hold what they should.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub Diagnostics);

/// A refusal by the control plane.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);

/// The exit code an error stands for.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<Invalid>().is_some() {
        return Exit::Invalid;
    }
    if error.downcast_ref::<Denied>().is_some() {
        return Exit::Denied;
    }
    match error.downcast_ref::<writ_sdk::Error>() {
        Some(writ_sdk::Error::Denied(_) | writ_sdk::Error::CouldNotDecide(_)) => Exit::Denied,
        _ => Exit::Failure,
    }
}
