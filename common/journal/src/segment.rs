//! The files of a run: numbered segments, whose names say what may become of them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use writ_common::{ids::BootId, time::Timestamp};

use crate::{JournalError, error::io_error};

/// What may become of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Something in it is not settled: it stays.
    Open,
    /// Everything in it is settled; it is what the stream can be completed from, until room is needed.
    Kept,
    /// It and all before it were removed to make room; nothing but the name is left.
    Gone,
}

/// A file of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) boot: BootId,
    pub(crate) number: u32,
    pub(crate) state: State,
    pub(crate) bytes: u64,
    /// When it was written last.
    pub(crate) modified: Timestamp,
}

impl Segment {
    /// Where it is in a folder.
    pub(crate) fn path(&self, folder: &Path) -> PathBuf {
        self.path_as(folder, self.state)
    }

    /// Where it would be in another state.
    pub(crate) fn path_as(&self, folder: &Path, state: State) -> PathBuf {
        path_of(folder, &self.boot, self.number, state)
    }
}

/// The path of a segment.
pub(crate) fn path_of(folder: &Path, boot: &BootId, number: u32, state: State) -> PathBuf {
    let kind = match state {
        State::Open => "journal",
        State::Kept => "kept",
        State::Gone => "gone",
    };
    folder.join(match number {
        0 => format!("{boot}.{kind}"),
        number => format!("{boot}.{number}.{kind}"),
    })
}

fn parse(name: &str) -> Option<(BootId, u32, State)> {
    let (rest, kind) = name.rsplit_once('.')?;
    let state = match kind {
        "journal" => State::Open,
        "kept" => State::Kept,
        "gone" => State::Gone,
        _ => return None,
    };
    let (boot, number) = match rest.rsplit_once('.') {
        // One way to write a number, so that no two names are the same segment.
        Some((boot, number)) if !number.starts_with('0') => (boot, number.parse().ok()?),
        Some(_) => return None,
        None => (rest, 0),
    };
    Some((BootId::parse(boot).ok()?, number, state))
}

/// When a file was written last.
pub(crate) fn modified(facts: &fs::Metadata) -> Timestamp {
    let modified = facts.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    Timestamp::from_secs(modified.unwrap_or(Duration::ZERO).as_secs())
}

/// Every segment in a folder, run after run in order.
pub(crate) fn list(folder: &Path) -> Result<Vec<Segment>, JournalError> {
    let mut segments = Vec::new();
    for item in fs::read_dir(folder).map_err(io_error(folder))? {
        let item = item.map_err(io_error(folder))?;
        let Some((boot, number, state)) = item.file_name().to_str().and_then(parse) else { continue };
        let facts = item.metadata().map_err(io_error(&item.path()))?;
        let modified = modified(&facts);
        segments.push(Segment { boot, number, state, bytes: facts.len(), modified });
    }
    segments.sort_by(|one, other| (&one.boot, one.number).cmp(&(&other.boot, other.number)));
    Ok(segments)
}
