//! Frames and the head of a segment: what stands in the file, byte for byte.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use writ_common::{codec::encode, ids::BootId};

use crate::{JournalError, entry::Entry, error::io_error};

/// A run's first file as it was before there were segments.
const MAGIC_PLAIN: &[u8; 8] = b"WRITJNL1";
const MAGIC: &[u8; 8] = b"WRITJNL2";
const SEGMENT_HEAD: usize = 8 + 4 + 32 + 4;
const FRAME_HEAD: usize = 4 + 4 + 32 + 4;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// A chain digest.
pub(crate) type Chain = [u8; 32];

/// The chain digest after a payload.
pub(crate) fn link(chain: &Chain, payload: &[u8]) -> Chain {
    Sha256::new().chain_update(b"writ/v1/journal").chain_update(chain).chain_update(payload).finalize().into()
}

fn checksum(chain: &Chain, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(chain), payload)
}

/// Entries as frames behind `chain`, and the chain digest after them.
pub(crate) fn frames(entries: &[Entry], mut chain: Chain) -> (Vec<u8>, Chain) {
    let mut frames = Vec::new();
    for entry in entries {
        let payload = encode(entry);
        chain = link(&chain, &payload);
        let start = frames.len();
        frames.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        frames.extend_from_slice(&checksum(&chain, &payload).to_le_bytes());
        frames.extend_from_slice(&chain);
        let own = crc32c::crc32c(frames.get(start..).unwrap_or(&[]));
        frames.extend_from_slice(&own.to_le_bytes());
        frames.extend_from_slice(&payload);
    }
    (frames, chain)
}

/// The first bytes of a segment. They name its run and number, so that no other segment can stand in its place.
pub(crate) fn segment_head(boot: &BootId, number: u32, chain: &Chain) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(chain);
    let own = crc32c::crc32c_append(crc32c::crc32c(boot.as_str().as_bytes()), &head);
    head.extend_from_slice(&own.to_le_bytes());
    head
}

/// The fixed part of a frame. It has a checksum of its own, so that a damaged length cannot pass for a torn end
/// and take everything behind it along.
struct FrameHead {
    length: u64,
    crc: u32,
    chain: Chain,
}

impl FrameHead {
    fn parse(bytes: &[u8; FRAME_HEAD]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let (chain, own) = rest.split_first_chunk::<32>()?;
        let covered = bytes.get(..FRAME_HEAD - 4)?;
        let is_sound = crc32c::crc32c(covered).to_le_bytes().as_slice() == own;
        let length = u64::from(u32::from_le_bytes(*length));
        is_sound.then_some(Self { length, crc: u32::from_le_bytes(*crc), chain: *chain })
    }
}

/// The entries of one segment, one after the other.
pub(crate) struct Frames {
    path: PathBuf,
    reader: BufReader<File>,
    /// Bytes that hold whole frames; what is behind them is a torn end.
    length: u64,
    chain: Chain,
    /// Whether the file was written before there were segments.
    is_plain: bool,
}

impl Frames {
    /// Opens a segment and checks that it is the one its name says. Nothing if the file was cut before its head was
    /// complete: it never held anything.
    pub(crate) fn open(path: &Path, boot: &BootId, number: u32) -> Result<Option<Self>, JournalError> {
        let file = File::open(path).map_err(io_error(path))?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut magic = [0; 8];
        let corrupt = |why| JournalError::Corrupt { path: path.to_owned(), at: 0, why };
        let got = fill(&mut reader, &mut magic).map_err(io_error(path))?;
        let begun = magic.get(..got).unwrap_or(&[]);
        if got < magic.len() {
            let is_begun = MAGIC.starts_with(begun) || MAGIC_PLAIN.starts_with(begun);
            return if is_begun { Ok(None) } else { Err(corrupt("is no journal")) };
        }
        if magic == *MAGIC_PLAIN && number == 0 {
            let length = magic.len() as u64;
            return Ok(Some(Self { path: path.to_owned(), reader, length, chain: [0; 32], is_plain: true }));
        }
        if magic != *MAGIC {
            return Err(corrupt("is no journal"));
        }
        let mut rest = [0; SEGMENT_HEAD - 8];
        if fill(&mut reader, &mut rest).map_err(io_error(path))? < rest.len() {
            return Ok(None);
        }
        let chain: Option<Chain> = rest.get(4..36).and_then(|chain| chain.try_into().ok());
        let chain = chain.ok_or_else(|| corrupt("is no journal"))?;
        let expected = segment_head(boot, number, &chain);
        if expected.get(8..) != Some(rest.as_slice()) {
            return Err(corrupt("the head does not fit its checksum, or is that of another segment"));
        }
        Ok(Some(Self { path: path.to_owned(), reader, length: SEGMENT_HEAD as u64, chain, is_plain: false }))
    }

    /// The next entry; nothing at the end, also a torn one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        let at = self.length;
        let corrupt = |path: &Path, why| JournalError::Corrupt { path: path.to_owned(), at, why };
        let mut head = [0; FRAME_HEAD];
        let got = fill(&mut self.reader, &mut head).map_err(io_error(&self.path))?;
        if got < head.len() {
            return Ok(None);
        }
        let Some(head) = FrameHead::parse(&head) else {
            // After a loss of power a file may be longer than what was written into it.
            return if head.iter().all(|byte| *byte == 0) && self.rest_is_zero()? {
                Ok(None)
            } else {
                Err(corrupt(&self.path, "the head of a frame does not fit its checksum"))
            };
        };
        let mut payload = Vec::new();
        let taken = (&mut self.reader).take(head.length).read_to_end(&mut payload);
        if (taken.map_err(io_error(&self.path))? as u64) < head.length {
            return Ok(None);
        }
        if checksum(&head.chain, &payload) != head.crc {
            return Err(corrupt(&self.path, "a frame does not fit its checksum"));
        }
        if link(&self.chain, &payload) != head.chain {
            return Err(corrupt(&self.path, "a frame does not follow the one before it"));
        }
        let entry = Entry::decode(&payload).map_err(|_| corrupt(&self.path, "a frame holds no entry"))?;
        self.chain = head.chain;
        self.length += FRAME_HEAD as u64 + head.length;
        Ok(Some(entry))
    }

    fn rest_is_zero(&mut self) -> Result<bool, JournalError> {
        let mut bytes = [0; 4096];
        loop {
            let got = fill(&mut self.reader, &mut bytes).map_err(io_error(&self.path))?;
            if bytes.iter().take(got).any(|byte| *byte != 0) {
                return Ok(false);
            }
            if got < bytes.len() {
                return Ok(true);
            }
        }
    }

    /// Where the file stands after what was read so far: bytes, and the chain digest.
    pub(crate) fn position(&self) -> (u64, Chain) {
        (self.length, self.chain)
    }

    /// Whether it was written before there were segments, and anchors.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }
}

/// Reads until the buffer is full or the file ends; says how much.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(free) = buffer.get_mut(got..).filter(|free| !free.is_empty()) {
        match reader.read(free) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
