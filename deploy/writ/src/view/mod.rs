//! What people read: records as trees and lines. Pure; where it comes from and goes to is decided elsewhere.

pub mod approval;
pub mod chain;
pub mod explain;
pub mod findings;
pub mod gaps;
pub mod label;
pub mod questions;
pub mod records;
pub mod report;
pub mod table;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Yes.
    On,
    /// No: not a terminal, or `NO_COLOR` is set (no-color.org).
    Off,
}

impl Colour {
    /// For standard output.
    #[must_use]
    pub fn detect() -> Self {
        use std::io::IsTerminal as _;
        if Self::is_refused() || !std::io::stdout().is_terminal() { Self::Off } else { Self::On }
    }

    /// For standard error, if that is a terminal.
    #[must_use]
    pub fn of_stderr() -> Option<Self> {
        use std::io::IsTerminal as _;
        let colour = if Self::is_refused() { Self::Off } else { Self::On };
        std::io::stderr().is_terminal().then_some(colour)
    }

    fn is_refused() -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    }

    /// The text in an ANSI colour (ECMA-48 SGR code).
    #[must_use]
    pub fn paint(self, code: u8, text: &str) -> String {
        match self {
            Self::On => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

/// SGR codes by meaning.
pub mod colour {
    /// Allowed.
    pub const GREEN: u8 = 32;
    /// Denied.
    pub const RED: u8 = 31;
    /// Held, or in doubt.
    pub const YELLOW: u8 = 33;
    /// Less important.
    pub const DIM: u8 = 2;
    /// Names.
    pub const BOLD: u8 = 1;
}
