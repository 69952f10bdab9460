//! A folder of journals: the runs that are over, and what becomes of their files.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use writ_common::{
    ids::BootId,
    settings::Section,
    time::{Millis, Timestamp},
};

use crate::{
    JournalError, anchor,
    entry::{Entry, Fold, Leaves, Unsettled},
    error::io_error,
    frame::{Chain, Frames, frames},
    reserve::{RESERVE_BYTES, Reserve},
    segment::{self, Segment, State, path_of},
};

/// Bounds of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLimits {
    /// Most bytes of all segments together.
    pub bytes_max: u64,
    /// How long what is settled is kept, if there is room.
    pub keep: Millis,
}

impl JournalLimits {
    /// Bounds in the units of configuration files.
    #[must_use]
    pub fn new(mebibytes_max: u64, keep_days: u64) -> Self {
        let bytes_max = mebibytes_max.saturating_mul(1024 * 1024);
        Self { bytes_max, keep: Millis::from_secs(keep_days.saturating_mul(86_400)) }
    }

    /// Reads the section `[journal]` of a configuration.
    #[must_use]
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let mebibytes_max = section.optional_integer("mebibytes_max", 32..=1_048_576).unwrap_or(2_048);
        let keep_days = section.optional_integer("keep_days", 0..=3_650).unwrap_or(7);
        section.finish(&["mebibytes_max", "keep_days"]);
        Self::new(mebibytes_max, keep_days)
    }

    /// Bytes of one segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        (self.bytes_max / 16).clamp(64 * 1024, 64 * 1024 * 1024)
    }

    /// What is kept for denials, voids and outcomes.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        RESERVE_BYTES.max(self.bytes_max / 20)
    }
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self::new(2_048, 7)
    }
}

/// Whether there is room for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// For everything.
    #[default]
    Enough,
    /// For denials, voids and outcomes: nothing new is to be let through.
    Reserved,
    /// For nothing.
    None,
}

/// A folder of journals, held by one process, before its own run begins.
#[derive(Debug)]
pub struct JournalDir {
    pub(crate) path: PathBuf,
    pub(crate) limits: JournalLimits,
    pub(crate) reserve: Reserve,
    /// Every segment there is, run after run in order.
    pub(crate) segments: Vec<Segment>,
    /// Where the files end to which later runs may have to add.
    tails: BTreeMap<BootId, Tail>,
    /// Released when the process ends, however it ends.
    _lock: File,
}

/// Where the last segment of a run ends.
#[derive(Clone, Copy, Debug)]
struct Tail {
    number: u32,
    length: u64,
    chain: Chain,
    /// Whether it says itself that it ends there.
    is_closed: bool,
    is_empty: bool,
}

/// The marker of a completion of the stream that was asked for and is not done.
const RESTORE: &str = "restore.pending";

/// Asks for the stream to be completed from the journals of a folder at the next start; until that is done, at every
/// start.
///
/// # Errors
/// [`JournalError::Io`].
pub fn ask_restore(folder: &Path) -> Result<(), JournalError> {
    make_folder(folder)?;
    let path = folder.join(RESTORE);
    fs::write(&path, b"").map_err(io_error(&path))
}

fn make_folder(path: &Path) -> Result<(), JournalError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))
}

impl JournalDir {
    /// Creates the folder if need be and takes it for this process.
    ///
    /// # Errors
    /// [`JournalError::Locked`] if another process has it; [`JournalError::Corrupt`] if a segment is missing.
    pub fn open(path: &Path, limits: JournalLimits) -> Result<Self, JournalError> {
        make_folder(path)?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if writ_common::red::off("K09") => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(JournalError::Io { path: lock_path, source }),
        }
        let mut segments = segment::list(path)?;
        check_complete(path, &segments)?;
        finish_removals(path, &mut segments)?;
        let reserve = Reserve::take_in(path);
        Ok(Self { path: path.to_owned(), limits, reserve, segments, tails: BTreeMap::new(), _lock: lock })
    }

    /// The runs that may have left something open, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<BootId> {
        let open = self.segments.iter().filter(|segment| segment.state == State::Open);
        let mut runs: Vec<BootId> = open.map(|segment| segment.boot.clone()).collect();
        runs.dedup();
        runs
    }

    /// What a run left open, and what it lost that was said to be written, if it did.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] for anything but a torn end.
    pub fn unsettled(&mut self, boot: &BootId) -> Result<(Unsettled, Option<Lost>), JournalError> {
        let mut fold = Fold::default();
        let mut run = RunReader::new(self, boot, State::Open);
        while let Some(entry) = run.next()? {
            fold.take(entry);
        }
        let (tail, lost) = run.finish(fold.entries() == 0)?;
        self.tails.insert(boot.clone(), tail);
        // Settled segments have nothing open, and may well have records that no witness has seen.
        let is_kept = |segment: &Segment| segment.boot == *boot && segment.state == State::Kept;
        if !fold.leaves.is_whole() && self.segments.iter().any(is_kept) {
            let mut leaves = Leaves::default();
            let mut run = RunReader::new(self, boot, State::Kept);
            while let Some(entry) = run.next()? {
                leaves.take(&entry);
            }
            fold.leaves = leaves;
        }
        Ok((fold.finish(), lost))
    }

    /// Adds to the journal of a run that is over what became of something it left open. Not flushed: what gets lost of
    /// it is found open once more by the next run.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn resolve(&mut self, boot: &BootId, entries: &[Entry]) -> Result<(), JournalError> {
        let Some(tail) = self.tails.get_mut(boot).filter(|tail| !tail.is_closed) else { return Ok(()) };
        let path = path_of(&self.path, boot, tail.number, State::Open);
        let (frames, chain) = frames(entries, tail.chain);
        let mut file = OpenOptions::new().append(true).open(&path).map_err(io_error(&path))?;
        // A torn end was never acknowledged, and nothing may stand behind it.
        let written = file.set_len(tail.length).and_then(|()| file.write_all(&frames));
        if let Err(source) = written {
            drop(file.set_len(tail.length));
            return Err(JournalError::Io { path, source });
        }
        tail.chain = chain;
        tail.length += frames.len() as u64;
        tail.is_empty = false;
        let same = |segment: &&mut Segment| segment.boot == *boot && segment.number == tail.number;
        if let Some(segment) = self.segments.iter_mut().find(same) {
            segment.bytes = tail.length;
        }
        Ok(())
    }

    /// Nothing of a run is open any more: its journal may make room, and until then the stream can be completed from it.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn settle(&mut self, boot: &BootId) -> Result<(), JournalError> {
        let tail = self.tails.get(boot).copied();
        if tail.is_some_and(|tail| !tail.is_closed && !tail.is_empty) {
            self.resolve(boot, &[Entry::Closed { next: None }])?;
            let path = path_of(&self.path, boot, tail.map_or(0, |tail| tail.number), State::Open);
            File::open(&path).and_then(|file| file.sync_data()).map_err(io_error(&path))?;
        }
        if let Some(tail) = tail {
            // Made for a rotation that a kill came before.
            let is_unused = |segment: &Segment| segment.boot == *boot && segment.number > tail.number;
            for segment in self.segments.iter().filter(|segment| is_unused(segment)) {
                remove(&segment.path(&self.path))?;
            }
            self.segments.retain(|segment| !is_unused(segment));
        }
        // In order, so that what is kept is the beginning of the run at any time.
        for at in 0..self.segments.len() {
            let Some(segment) = self.segments.get(at).filter(|segment| segment.boot == *boot) else {
                continue;
            };
            if segment.state == State::Open {
                self.keep(at)?;
            }
        }
        self.tails.remove(boot);
        let anchor = self.anchor_path(boot);
        remove(&anchor)?;
        if tail.is_some_and(|tail| tail.is_empty && tail.number == 0) {
            // A run that did nothing is not worth a file.
            remove(&path_of(&self.path, boot, 0, State::Kept))?;
            self.segments.retain(|segment| segment.boot != *boot);
        }
        Ok(())
    }

    /// Marks a segment as settled.
    pub(crate) fn keep(&mut self, at: usize) -> Result<(), JournalError> {
        if let Some(segment) = self.segments.get_mut(at) {
            let (from, to) = (segment.path(&self.path), segment.path_as(&self.path, State::Kept));
            fs::rename(&from, &to).map_err(io_error(&from))?;
            segment.state = State::Kept;
            segment.modified = segment::modified(&fs::metadata(&to).map_err(io_error(&to))?);
        }
        Ok(())
    }

    /// Removes what is settled and too old, and the oldest of the rest while there are more bytes than there may be.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn make_room(&mut self, now: Timestamp) -> Result<(), JournalError> {
        self.drop_kept(0, Some(now))
    }

    /// As [`JournalDir::make_room`], for `more` bytes.
    pub(crate) fn drop_kept(&mut self, more: u64, now: Option<Timestamp>) -> Result<(), JournalError> {
        let mut total = more + self.segments.iter().map(|segment| segment.bytes).sum::<u64>();
        let mut at = 0;
        while let Some(segment) = self.segments.get(at) {
            let is_old = now.is_some_and(|now| now.since(segment.modified) > self.limits.keep);
            if segment.state != State::Kept || !(is_old || total > self.limits.bytes_max) {
                at += 1;
                continue;
            }
            total = total.saturating_sub(segment.bytes);
            self.remove(at)?;
        }
        Ok(())
    }

    /// Removes a kept segment, the first of its run. The name stays while there are segments after it, so that nobody
    /// has to guess whether it was removed or lost.
    fn remove(&mut self, at: usize) -> Result<(), JournalError> {
        let Some(segment) = self.segments.get(at).cloned() else { return Ok(()) };
        let (kept, gone) = (segment.path(&self.path), segment.path_as(&self.path, State::Gone));
        fs::rename(&kept, &gone).map_err(io_error(&kept))?;
        OpenOptions::new().write(true).truncate(true).open(&gone).map_err(io_error(&gone))?;
        let is_last = !self.segments.iter().skip(at + 1).any(|later| later.boot == segment.boot);
        let before = segment.number.checked_sub(1);
        if let Some(before) = before {
            remove(&path_of(&self.path, &segment.boot, before, State::Gone))?;
        }
        if is_last {
            remove(&gone)?;
        }
        self.segments.remove(at);
        Ok(())
    }

    pub(crate) fn anchor_path(&self, boot: &BootId) -> PathBuf {
        self.path.join(format!("{boot}.anchor"))
    }

    /// Bytes that cannot be removed.
    pub(crate) fn open_bytes(&self) -> u64 {
        let open = self.segments.iter().filter(|segment| segment.state == State::Open);
        open.map(|segment| segment.bytes).sum()
    }

    /// Whether the stream is to be completed from here.
    #[must_use]
    pub fn is_restore_asked(&self) -> bool {
        self.path.join(RESTORE).exists()
    }

    /// The stream has been completed.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn restored(&self) -> Result<(), JournalError> {
        remove(&self.path.join(RESTORE))
    }
}

/// The end of a journal that was written, and is not there after the machine was started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The file.
    pub path: PathBuf,
    /// Bytes there are.
    pub bytes: u64,
    /// Bytes there were.
    pub bytes_before: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, bytes, bytes_before } = self;
        write!(
            f,
            "{}: {bytes} bytes are left of {bytes_before}: the machine stopped before they were on the disk, and records \
             that the audit stream does not have are lost (`sync = \"always\"` waits for the disk)",
            path.display()
        )
    }
}

fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

/// The segments of a run follow each other; those that were removed were the first.
fn check_complete(folder: &Path, segments: &[Segment]) -> Result<(), JournalError> {
    let mut before: Option<&Segment> = None;
    for segment in segments {
        let expected = match before {
            Some(before) if before.boot == segment.boot => Some(before.number + 1),
            _ if segment.state == State::Gone => None,
            _ => Some(0),
        };
        if expected.is_some_and(|expected| expected != segment.number) {
            let why = "a segment of this run before it is missing";
            return Err(JournalError::Corrupt { path: segment.path(folder), at: 0, why });
        }
        before = Some(segment);
    }
    Ok(())
}

/// Finishes what a kill left half done: of a run that goes on, one name is left of what was removed; of one that does not,
/// nothing; and anchors go with the last thing that was open.
fn finish_removals(folder: &Path, segments: &mut Vec<Segment>) -> Result<(), JournalError> {
    let is_needed = |at: usize, segment: &Segment| {
        segments.get(at + 1).is_some_and(|next| next.boot == segment.boot && next.state != State::Gone)
    };
    for (at, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.state == State::Gone) {
        let path = segment.path(folder);
        if !is_needed(at, segment) {
            remove(&path)?;
        } else if segment.bytes > 0 {
            OpenOptions::new().write(true).truncate(true).open(&path).map_err(io_error(&path))?;
        }
    }
    segments.retain(|segment| segment.state != State::Gone);
    for item in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = item.map_err(io_error(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(boot) = name.strip_suffix(".anchor") else { continue };
        let Ok(boot) = BootId::parse(boot) else { continue };
        let of_run = || segments.iter().filter(|segment| segment.boot == boot);
        if of_run().any(|segment| segment.state == State::Open) {
            continue;
        }
        // It goes before the last segment does: without that one something is lost that was not settled.
        let last = of_run().map(|segment| segment.number).max();
        if let Some(anchor) = anchor::read(&path, &boot)?
            && last.is_none_or(|last| last < anchor.segment)
        {
            let path = path_of(folder, &boot, anchor.segment, State::Open);
            return Err(JournalError::Corrupt { path, at: 0, why: "the file is missing" });
        }
        remove(&path)?;
    }
    Ok(())
}

/// Reads the segments of one run in order, and checks that they follow each other.
pub(crate) struct RunReader {
    folder: PathBuf,
    boot: BootId,
    segments: std::vec::IntoIter<Segment>,
    current: Option<(Segment, Frames)>,
    tail: Option<Tail>,
    /// Whether the last entry said that nothing follows, and what follows.
    closed: Option<Option<u32>>,
    is_plain: bool,
}

impl RunReader {
    /// From the first segment that is in this state, or from the first there is.
    pub(crate) fn new(dir: &JournalDir, boot: &BootId, from: State) -> Self {
        let of_run = dir.segments.iter().filter(|segment| segment.boot == *boot);
        let wanted = of_run.filter(|segment| segment.state == State::Open || segment.state == from);
        let segments: Vec<Segment> = wanted.cloned().collect();
        let (folder, boot, segments) = (dir.path.clone(), boot.clone(), segments.into_iter());
        Self { folder, boot, segments, current: None, tail: None, closed: None, is_plain: false }
    }

    fn corrupt(&self, segment: &Segment, at: u64, why: &'static str) -> JournalError {
        JournalError::Corrupt { path: segment.path(&self.folder), at, why }
    }

    /// The next entry of the run.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some((segment, frames)) = &mut self.current else { return Ok(None) };
            let entry = frames.next()?;
            let (length, chain) = frames.position();
            match entry {
                Some(entry) if self.closed.is_none() => {
                    if let Entry::Closed { next } = &entry {
                        self.closed = Some(*next);
                    }
                    self.tail = self.tail.map(|tail| Tail { length, chain, is_empty: false, ..tail });
                    return Ok(Some(entry));
                }
                Some(_) => {
                    let segment = segment.clone();
                    return Err(self.corrupt(&segment, length, "an entry follows the last one"));
                }
                None if segment.state == State::Kept && self.closed.is_none() => {
                    let segment = segment.clone();
                    return Err(self.corrupt(&segment, length, "the segment ends too early"));
                }
                None => self.current = None,
            }
        }
    }

    fn open_next(&mut self) -> Result<bool, JournalError> {
        let Some(segment) = self.segments.next() else { return Ok(false) };
        let path = segment.path(&self.folder);
        let opened = Frames::open(&path, &self.boot, segment.number)?;
        let closed = self.closed.take();
        let Some(frames) = opened else {
            // Made and not begun: the segment before it was not closed yet.
            if closed.is_some() || segment.state == State::Kept {
                return Err(self.corrupt(&segment, 0, "the segment is empty"));
            }
            if self.tail.is_none() {
                let number = segment.number;
                self.tail =
                    Some(Tail { number, length: 0, chain: [0; 32], is_closed: false, is_empty: true });
            }
            return Ok(self.segments.len() > 0);
        };
        let (length, chain) = frames.position();
        match (&self.tail, closed) {
            (None, _) => {}
            (Some(tail), Some(Some(next))) if next == segment.number && tail.chain == chain => {}
            // Killed between making this one and closing the one before.
            (Some(_), None) if segment.bytes == length && segment.state == State::Open => {
                return Ok(self.segments.len() > 0);
            }
            (Some(_), _) => {
                return Err(self.corrupt(&segment, 0, "the segment does not follow the one before it"));
            }
        }
        self.is_plain = frames.is_plain();
        self.tail = Some(Tail {
            number: segment.number,
            length,
            chain,
            is_closed: false,
            is_empty: segment.number == 0,
        });
        self.current = Some((segment, frames));
        Ok(true)
    }

    /// Compares where the run ended with where its anchor says it did.
    fn finish(self, is_empty: bool) -> Result<(Tail, Option<Lost>), JournalError> {
        let path = |number| path_of(&self.folder, &self.boot, number, State::Open);
        let empty = Tail { number: 0, length: 0, chain: [0; 32], is_closed: false, is_empty: true };
        let mut tail = self.tail.unwrap_or(empty);
        match self.closed {
            Some(None) => {
                tail.is_closed = true;
                return Ok((tail, None));
            }
            Some(Some(next)) => {
                let why = "the run goes on in a segment that is missing";
                return Err(JournalError::Corrupt { path: path(next), at: 0, why });
            }
            None => {}
        }
        let anchor = anchor::read(&self.folder.join(format!("{}.anchor", self.boot)), &self.boot)?;
        let Some(anchor) = anchor else {
            // Killed while the run was set up, or before there were anchors.
            return if is_empty || self.is_plain || writ_common::red::off("K07") {
                Ok((tail, None))
            } else {
                let why = "its anchor is missing";
                Err(JournalError::Corrupt { path: path(tail.number), at: tail.length, why })
            };
        };
        let is_short = (tail.number, tail.length) < (anchor.segment, anchor.length);
        if !is_short || writ_common::red::off("K07") {
            return Ok((tail, None));
        }
        if anchor.sync == crate::Sync::Kernel && anchor.is_before_restart() {
            let path = path(tail.number);
            return Ok((tail, Some(Lost { path, bytes: tail.length, bytes_before: anchor.length })));
        }
        let why = "the journal ends here, and was longer";
        Err(JournalError::Corrupt { path: path(tail.number), at: tail.length, why })
    }
}
