//! What can be wrong with a journal.

use std::{
    io,
    path::{Path, PathBuf},
};

/// What can be wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Something does not verify, and it is not the torn end of the last write.
    #[error("{}: corrupt at byte {at}: {why}; restore the file or see deploy/README.md, section recovery", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the fault begins.
        at: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// What cannot be removed yet fills the journal's bound.
    #[error("{}: the journal holds {bytes} bytes that are not settled, and may hold {bytes_max} (`journal.mebibytes_max`)", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
        /// Bytes that cannot be removed.
        bytes: u64,
        /// Bytes it may hold.
        bytes_max: u64,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error("{}: another process uses this folder", .0.display())]
    Locked(PathBuf),
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { path, source }
}

/// Whether there is no room, wherever that is said: on the disk, in a quota, in a file.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
