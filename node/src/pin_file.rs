//! Where the pins of the streams are kept: a small file in the journal's folder, replaced in one step.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use writ_common::codec::{decode, encode};

use crate::{guard::StreamPins, serve::NodeError};

const NAME: &str = "streams.pin";

fn failed(path: &Path, why: impl std::fmt::Display) -> NodeError {
    NodeError::Pins { path: path.to_owned(), why: why.to_string() }
}

/// Reads the pins; none if there is no file yet.
///
/// # Errors
/// [`NodeError::Pins`] if the file cannot be read or is not whole: it is never taken for absent.
pub fn read(folder: &Path) -> Result<StreamPins, NodeError> {
    let path = folder.join(NAME);
    match fs::read(&path) {
        Ok(bytes) => decode(&bytes).map_err(|error| failed(&path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(StreamPins::default()),
        Err(error) => Err(failed(&path, error)),
    }
}

/// Writes the pins. Not flushed: after a power cut they may be a little behind, never ahead.
///
/// # Errors
/// [`NodeError::Pins`].
pub fn write(folder: &Path, pins: &StreamPins) -> Result<(), NodeError> {
    let path = folder.join(NAME);
    let next = folder.join("streams.pin.next");
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let written = options.open(&next).and_then(|mut file| file.write_all(&encode(pins)));
    written.and_then(|()| fs::rename(&next, &path)).map_err(|error| failed(&path, error))
}

/// Forgets the pins: the streams as they are now are the ones to trust from here on.
///
/// # Errors
/// [`NodeError::Pins`].
pub fn forget(folder: &Path) -> Result<(), NodeError> {
    let path = folder.join(NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_survive_and_a_damaged_file_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), StreamPins::default());
        let mut pins = StreamPins::default();
        pins.control.sequence = 7;
        write(folder.path(), &pins).unwrap();
        assert_eq!(read(folder.path()).unwrap(), pins);
        fs::write(folder.path().join(NAME), b"\xc1").unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("streams.pin") && error.contains("--accept-streams"), "{error}");
        forget(folder.path()).unwrap();
        forget(folder.path()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), StreamPins::default());
    }
}
