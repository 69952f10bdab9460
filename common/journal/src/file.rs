//! Frames in a file, one file per run, one process per folder.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use writ_common::{codec::encode, ids::BootId};

use crate::entry::Entry;

const MAGIC: &[u8; 8] = b"WRITJNL1";
const HEAD: usize = 4 + 4 + 32 + 4;

/// When a write counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// When the disk says so: survives the loss of power.
    Always,
    /// When the kernel has it: survives the death of the process.
    Kernel,
}

/// What can be wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A frame does not verify, and it is not the torn end of the last write.
    #[error("{}: corrupt at byte {at}: {why}; restore the file or see deploy/README.md, section recovery", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the frame begins.
        at: usize,
        /// What does not fit.
        why: &'static str,
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

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { path, source }
}

/// A folder of journals, held by one process.
#[derive(Debug)]
pub struct JournalDir {
    path: PathBuf,
    /// Released when the process ends, however it ends.
    _lock: File,
}

impl JournalDir {
    /// Creates the folder if need be and takes it for this process.
    ///
    /// # Errors
    /// [`JournalError::Locked`] if another process has it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) if writ_common::red::off("K09") => {
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(JournalError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(JournalError::Io { path: lock_path, source }),
        }
    }

    fn file_of(&self, boot: &BootId) -> PathBuf {
        self.path.join(format!("{boot}.journal"))
    }

    /// Starts the journal of a new run.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create(&self, boot: &BootId, sync: Sync) -> Result<JournalFile, JournalError> {
        let path = self.file_of(boot);
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error(&path))?;
        file.write_all(MAGIC).map_err(io_error(&path))?;
        file.sync_all().map_err(io_error(&path))?;
        // The folder's own entry has to survive as well.
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(io_error(&self.path))?;
        let length = MAGIC.len() as u64;
        Ok(JournalFile { file, path, sync, chain: [0; 32], length })
    }

    /// The runs whose journals are still here, oldest first.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn runs(&self) -> Result<Vec<BootId>, JournalError> {
        let mut runs = Vec::new();
        for item in fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let name = item.map_err(io_error(&self.path))?.file_name();
            let boot = name.to_str().and_then(|name| name.strip_suffix(".journal"));
            runs.extend(boot.and_then(|boot| BootId::parse(boot).ok()));
        }
        runs.sort();
        Ok(runs)
    }

    /// Reads the journal of a run.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] for anything but a torn end.
    pub fn read(&self, boot: &BootId) -> Result<Vec<Entry>, JournalError> {
        let path = self.file_of(boot);
        let mut bytes = Vec::new();
        File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(io_error(&path))?;
        read_frames(&bytes).map_err(|(at, why)| JournalError::Corrupt { path, at, why })
    }

    /// Forgets a run that left nothing open.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove(&self, boot: &BootId) -> Result<(), JournalError> {
        let path = self.file_of(boot);
        fs::remove_file(&path).map_err(io_error(&path))
    }
}

fn read_frames(bytes: &[u8]) -> Result<Vec<Entry>, (usize, &'static str)> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC.as_slice()) else {
        // A file cut before its magic was complete never held anything.
        return if MAGIC.starts_with(bytes) { Ok(Vec::new()) } else { Err((0, "is no journal")) };
    };
    let mut chain = [0; 32];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        // After a loss of power a file may be longer than what was written into it.
        if rest.iter().all(|byte| *byte == 0) {
            break;
        }
        let Some((head, after)) = rest.split_first_chunk::<HEAD>() else { break };
        let head = Head::parse(head).ok_or((at, "the head of a frame does not fit its checksum"))?;
        let Some((payload, next)) = after.split_at_checked(head.length) else { break };
        if checksum(&head.chain, payload) != head.crc {
            return Err((at, "a frame does not fit its checksum"));
        }
        chain = link(&chain, payload);
        if chain != head.chain {
            return Err((at, "a frame does not follow the one before it"));
        }
        entries.push(Entry::decode(payload).map_err(|_| (at, "a frame holds no entry"))?);
        rest = next;
    }
    Ok(entries)
}

/// The fixed part of a frame. It has a checksum of its own, so that a damaged length cannot pass for a torn end
/// and take everything behind it along.
struct Head {
    length: usize,
    crc: u32,
    chain: [u8; 32],
}

impl Head {
    fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let (chain, own) = rest.split_first_chunk::<32>()?;
        let covered = bytes.get(..HEAD - 4)?;
        let is_sound = crc32c::crc32c(covered).to_le_bytes().as_slice() == own;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        is_sound.then_some(Self { length, crc: u32::from_le_bytes(*crc), chain: *chain })
    }

    fn write(payload: &[u8], chain: &[u8; 32], frames: &mut Vec<u8>) {
        let start = frames.len();
        frames.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        frames.extend_from_slice(&checksum(chain, payload).to_le_bytes());
        frames.extend_from_slice(chain);
        let own = crc32c::crc32c(frames.get(start..).unwrap_or(&[]));
        frames.extend_from_slice(&own.to_le_bytes());
    }
}

fn checksum(chain: &[u8; 32], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(chain), payload)
}

fn link(chain: &[u8; 32], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"writ/v1/journal").chain_update(chain).chain_update(payload).finalize().into()
}

/// The journal of the present run.
#[derive(Debug)]
pub struct JournalFile {
    file: File,
    path: PathBuf,
    sync: Sync,
    chain: [u8; 32],
    length: u64,
}

impl JournalFile {
    /// Appends entries with one write; when it returns, they count as written.
    ///
    /// # Errors
    /// [`JournalError::Io`]: a full disk, say. The file is cut back to what counted before, so that a later
    /// attempt starts from there.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut chain = self.chain;
        let mut frames = Vec::new();
        for entry in entries {
            let payload = encode(entry);
            chain = link(&chain, &payload);
            Head::write(&payload, &chain, &mut frames);
            frames.extend_from_slice(&payload);
        }
        let written = self.file.write_all(&frames).and_then(|()| match self.sync {
            Sync::Always => self.file.sync_data(),
            Sync::Kernel => Ok(()),
        });
        if let Err(source) = written {
            // If even this fails the torn end is dropped when the file is read.
            drop(self.file.set_len(self.length));
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.chain = chain;
        self.length += frames.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use writ_common::record::RecordKind;

    use super::*;

    fn entry(seq: u64) -> Entry {
        Entry::Prepared {
            seq,
            kind: RecordKind::Deny,
            subject: "writ.v1.acme.audit.p0.deny._.n1".into(),
            message_id: "m".into(),
            ends: None,
            record: vec![1, 2, 3],
        }
    }

    fn boot() -> BootId {
        BootId::parse("b-1").unwrap()
    }

    fn filled(count: u64) -> (tempfile::TempDir, JournalDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let dir = JournalDir::open(folder.path()).unwrap();
        let mut file = dir.create(&boot(), Sync::Kernel).unwrap();
        for seq in 0..count {
            file.append(&[entry(seq), Entry::Committed { seq, stream: seq + 1 }]).unwrap();
        }
        let path = dir.file_of(&boot());
        (folder, dir, path)
    }

    #[test]
    fn what_is_appended_is_read() {
        let (_folder, dir, _) = filled(3);
        let entries = dir.read(&boot()).unwrap();
        assert_eq!(entries.len(), 6);
        assert_eq!(entries[4], entry(2));
        assert_eq!(dir.runs().unwrap(), [boot()]);
    }

    #[test]
    fn every_cut_keeps_a_prefix() {
        let (_folder, dir, path) = filled(3);
        let whole = fs::read(&path).unwrap();
        let all = dir.read(&boot()).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let entries = dir.read(&boot()).unwrap();
            assert!(all.starts_with(&entries), "cut to {length}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (_folder, dir, path) = filled(3);
        let whole = fs::read(&path).unwrap();
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 1 << (index % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(matches!(dir.read(&boot()), Err(JournalError::Corrupt { .. })), "flip at {index}");
        }
    }

    #[test]
    fn zeros_behind_the_last_write_are_no_entries() {
        let (_folder, dir, path) = filled(2);
        let all = dir.read(&boot()).unwrap();
        let mut longer = fs::read(&path).unwrap();
        longer.resize(longer.len() + 4096, 0);
        fs::write(&path, &longer).unwrap();
        assert_eq!(dir.read(&boot()).unwrap(), all);
    }

    #[test]
    fn k09_a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = JournalDir::open(folder.path()).unwrap();
        assert!(matches!(JournalDir::open(folder.path()), Err(JournalError::Locked(_))));
        drop(first);
        assert!(JournalDir::open(folder.path()).is_ok());
    }
}
