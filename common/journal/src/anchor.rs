//! How far the journal of a run had got, kept beside it: a journal that is shorter has lost its end.
//!
//! Two places in one small file, a sector apart, written in turn after each write to the journal. Whichever of the two
//! is damaged, the other one is at most one write behind.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use writ_common::ids::BootId;

use crate::{JournalError, Sync, error::io_error};

const PLACE_BYTES: u64 = 512;
const SEALED_BYTES: usize = 8 + 4 + 8 + 1 + 16 + 4;

/// How far a journal had got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    writes: u64,
    /// The segment written to last.
    pub(crate) segment: u32,
    /// Its bytes.
    pub(crate) length: u64,
    /// When a write counted as written.
    pub(crate) sync: Sync,
    /// Names what the machine did since it was started last; zeros if it does not say.
    machine: [u8; 16],
}

impl Anchor {
    fn seal(&self, boot: &BootId) -> Vec<u8> {
        let mut bytes = self.writes.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.push(u8::from(self.sync == Sync::Always));
        bytes.extend_from_slice(&self.machine);
        bytes.extend_from_slice(&checksum(boot, &bytes).to_le_bytes());
        bytes
    }

    fn unseal(boot: &BootId, bytes: &[u8]) -> Option<Self> {
        let (covered, own) = bytes.split_last_chunk::<4>()?;
        if checksum(boot, covered).to_le_bytes() != *own {
            return None;
        }
        let (writes, rest) = covered.split_first_chunk::<8>()?;
        let (segment, rest) = rest.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (sync, machine) = rest.split_first()?;
        Some(Self {
            writes: u64::from_le_bytes(*writes),
            segment: u32::from_le_bytes(*segment),
            length: u64::from_le_bytes(*length),
            sync: if *sync == 0 { Sync::Kernel } else { Sync::Always },
            machine: machine.try_into().ok()?,
        })
    }

    /// Whether the machine was started again since. What only the kernel had is lost then, and that is no damage.
    pub(crate) fn is_before_restart(&self) -> bool {
        let now = machine();
        self.machine != now && self.machine != [0; 16] && now != [0; 16]
    }
}

fn checksum(boot: &BootId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(boot.as_str().as_bytes()), bytes)
}

/// A digest of the kernel's name for this run of the machine.
fn machine() -> [u8; 16] {
    let name = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if name.is_empty() {
        return [0; 16];
    }
    let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    digest.first_chunk().copied().unwrap_or([0; 16])
}

/// The anchor of the present run.
#[derive(Debug)]
pub(crate) struct AnchorFile {
    file: File,
    boot: BootId,
    last: Anchor,
}

impl AnchorFile {
    /// Both places are written at once, so that later writes need no room on the disk.
    pub(crate) fn create(path: &Path, boot: &BootId, sync: Sync, length: u64) -> Result<Self, JournalError> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
        let file = file.map_err(io_error(path))?;
        let last = Anchor { writes: 0, segment: 0, length, sync, machine: machine() };
        let mut anchor = Self { file, boot: boot.clone(), last };
        let written = anchor.write(0, length).and_then(|()| anchor.write(0, length));
        written.and_then(|()| anchor.file.sync_all()).map_err(io_error(path))?;
        Ok(anchor)
    }

    /// Says how far the journal has got. Not flushed: it may be behind, never ahead of what the journal flushed.
    pub(crate) fn write(&mut self, segment: u32, length: u64) -> io::Result<()> {
        let next = Anchor { writes: self.last.writes + 1, segment, length, ..self.last };
        self.file.write_all_at(&next.seal(&self.boot), (next.writes % 2) * PLACE_BYTES)?;
        self.last = next;
        Ok(())
    }
}

/// As if the machine had been started again since.
#[cfg(test)]
pub(crate) fn after_restart(path: &Path, boot: &BootId) {
    let anchor = Anchor { machine: [9; 16], ..read(path, boot).unwrap().unwrap() };
    fs::write(path, anchor.seal(boot)).unwrap();
}

/// Reads an anchor; nothing if there is none.
pub(crate) fn read(path: &Path, boot: &BootId) -> Result<Option<Anchor>, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path)(source)),
    };
    let place = |at: usize| {
        let sealed = bytes.get(at..at + SEALED_BYTES)?;
        Anchor::unseal(boot, sealed)
    };
    let places = [place(0), place(usize::try_from(PLACE_BYTES).unwrap_or(512))];
    let newest = places.into_iter().flatten().max_by_key(|anchor| anchor.writes);
    newest.map(Some).ok_or_else(|| JournalError::Corrupt {
        path: path.to_owned(),
        at: 0,
        why: "neither place of the anchor is readable",
    })
}
