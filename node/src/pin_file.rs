//! Where the pins of the streams are kept: a small file in the journal's folder, replaced in one step.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use writ_common::codec::{decode, encode};

use crate::guard::StreamPins;

const NAME: &str = "streams.pin";

/// Why the pins are not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}; once you know why, `writ node --accept-streams` starts from the streams as they are", path.display())]
pub struct PinError {
    path: PathBuf,
    why: String,
}

fn failed(path: &Path, why: impl std::fmt::Display) -> PinError {
    PinError { path: path.to_owned(), why: why.to_string() }
}

/// What a pin file with a checksum begins with; the first ones had none.
const MAGIC: &[u8] = b"WRITPIN1";

fn seal(pins: &StreamPins) -> Vec<u8> {
    let payload = encode(pins);
    let checksum = crc32c::crc32c(&payload).to_le_bytes();
    [MAGIC, &checksum, &payload].concat()
}

fn unseal(bytes: &[u8]) -> Result<StreamPins, String> {
    let payload = match bytes.strip_prefix(MAGIC) {
        None => bytes,
        Some(sealed) => match sealed.split_first_chunk::<4>() {
            Some((checksum, payload))
                if crc32c::crc32c(payload).to_le_bytes() == *checksum || writ_common::red::off("K06") =>
            {
                payload
            }
            _ => return Err("it does not fit its checksum".to_owned()),
        },
    };
    decode(payload).map_err(|error| error.to_string())
}

/// Reads the pins; none if there is no file yet.
///
/// # Errors
/// [`PinError`] if the file cannot be read or is not whole: it is never taken for absent.
pub fn read(folder: &Path) -> Result<StreamPins, PinError> {
    let path = folder.join(NAME);
    match fs::read(&path) {
        Ok(bytes) => unseal(&bytes).map_err(|why| failed(&path, why)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(StreamPins::default()),
        Err(error) => Err(failed(&path, error)),
    }
}

/// Writes the pins. They are on the disk before they have their name: a power cut may leave those before them, and never a
/// file that is not whole, which would keep the node from starting.
///
/// # Errors
/// [`PinError`].
pub fn write(folder: &Path, pins: &StreamPins) -> Result<(), PinError> {
    let path = folder.join(NAME);
    let next = folder.join("streams.pin.next");
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let written = options.open(&next).and_then(|mut file| {
        file.write_all(&seal(pins))?;
        file.sync_data()
    });
    written.and_then(|()| fs::rename(&next, &path)).map_err(|error| failed(&path, error))
}

/// Forgets the pins: the streams as they are now are the ones to trust from here on. The task labels in them are not:
/// what was lost with a part of the stream may have been raises, so that every label that is there counts as top. Records
/// that were lost are put back at the start, from the journal.
///
/// # Errors
/// [`PinError`].
pub fn forget(folder: &Path) -> Result<(), PinError> {
    writ_journal::ask_restore(folder).map_err(|error| failed(folder, error))?;
    if !folder.join(NAME).exists() {
        return Ok(());
    }
    write(folder, &StreamPins { is_accepted: true, ..StreamPins::default() })
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
        let accepted = StreamPins { is_accepted: true, ..StreamPins::default() };
        assert_eq!(read(folder.path()).unwrap(), accepted);
    }
}
