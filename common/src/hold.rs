//! Legal holds: what retention must not remove, and why. They are placed and lifted by events of the control stream.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::{TaskId, UserId};

/// Longest explanation, in bytes.
pub const HOLD_WHY_BYTES_MAX: usize = 500;

/// What is held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Held {
    /// Everything of the tenant.
    Everything,
    /// One task.
    Task(TaskId),
    /// Every task of a user.
    User(UserId),
}

/// An order to keep something until it is lifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegalHold {
    /// What is held.
    pub on: Held,
    /// Why, for the record.
    pub why: String,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Task(task) => write!(f, "task {task}"),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

/// `everything`, `task:<id>` or `user:<issuer>/<subject>`.
impl FromStr for Held {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "write `everything`, `task:<id>` or `user:<issuer>/<subject>`".to_owned();
        match text.split_once(':') {
            None if text == "everything" => Ok(Self::Everything),
            Some(("task", task)) => TaskId::parse(task).map(Self::Task).map_err(|error| error.to_string()),
            Some(("user", user)) => {
                // Issuers are addresses and have slashes.
                let (issuer, subject) = user.rsplit_once('/').ok_or_else(form)?;
                UserId::parse(issuer, subject).map(Self::User).map_err(|error| error.to_string())
            }
            _ => Err(form()),
        }
    }
}
