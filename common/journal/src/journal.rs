//! The journal of the present run.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use writ_common::{ids::BootId, record::RecordKind, time::Timestamp};

use crate::{
    JournalError,
    anchor::AnchorFile,
    dir::{JournalDir, Room},
    entry::Entry,
    error::{io_error, is_full},
    frame::{Chain, frames, segment_head},
    segment::{Segment, State, path_of},
};

/// When a write counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// When the disk says so: survives the loss of power.
    Always,
    /// When the kernel has it: survives the death of the process.
    Kernel,
}

impl std::str::FromStr for Sync {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "always" => Ok(Self::Always),
            "kernel" => Ok(Self::Kernel),
            _ => Err("must be `always` (survives power loss) or `kernel` (survives the process)"),
        }
    }
}

/// When an ALLOW needs nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settles {
    /// When the stream has acknowledged it: a broker's.
    OnCommit,
    /// When its outcome is written too: a node's.
    OnOutcome,
}

/// The journal of the present run, and the kept ones of those before it.
#[derive(Debug)]
pub struct Journal {
    dir: JournalDir,
    boot: BootId,
    sync: Sync,
    settles: Settles,
    file: File,
    path: PathBuf,
    number: u32,
    chain: Chain,
    length: u64,
    anchor: AnchorFile,
    open: OpenRecords,
    /// Whether not even the reserve was enough the last time.
    is_disk_full: bool,
}

/// What is not settled, by segment.
#[derive(Debug, Default)]
struct OpenRecords {
    uncommitted: BTreeMap<u64, (u32, RecordKind)>,
    /// Acknowledged intents that wait for their outcomes.
    intents: BTreeMap<u64, u32>,
    in_segment: BTreeMap<u32, u64>,
}

impl OpenRecords {
    fn add(&mut self, segment: u32) {
        *self.in_segment.entry(segment).or_default() += 1;
    }

    fn remove(&mut self, segment: u32) {
        if let Some(count) = self.in_segment.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                self.in_segment.remove(&segment);
            }
        }
    }

    fn take(&mut self, entry: &Entry, segment: u32, settles: Settles) {
        match entry {
            Entry::Prepared { seq, kind, ends, .. } => {
                let intent = ends.and_then(|intent| self.intents.remove(&intent));
                let again = self.intents.remove(seq);
                let before = self.uncommitted.insert(*seq, (segment, *kind)).map(|(before, _)| before);
                self.add(segment);
                [intent, again, before].into_iter().flatten().for_each(|segment| self.remove(segment));
            }
            Entry::Committed { seq, .. } => match self.uncommitted.remove(seq) {
                Some((segment, RecordKind::Allow)) if settles == Settles::OnOutcome => {
                    self.intents.insert(*seq, segment);
                }
                Some((segment, _)) => self.remove(segment),
                None => {}
            },
            Entry::Ended { .. } | Entry::Witnessed(_) | Entry::Closed { .. } => {}
        }
    }

    /// The first segment in which something is open.
    fn first(&self) -> Option<u32> {
        self.in_segment.first_key_value().map(|(segment, _)| *segment)
    }
}

impl JournalDir {
    /// Starts the journal of a new run.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create(mut self, boot: &BootId, sync: Sync, settles: Settles) -> Result<Journal, JournalError> {
        let (file, path, length) = self.create_segment(boot, 0, &[0; 32])?;
        let anchor = AnchorFile::create(&self.anchor_path(boot), boot, sync, length)?;
        // The folder's own entries have to survive as well.
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(io_error(&self.path))?;
        Ok(Journal {
            dir: self,
            boot: boot.clone(),
            sync,
            settles,
            file,
            path,
            number: 0,
            chain: [0; 32],
            length,
            anchor,
            open: OpenRecords::default(),
            is_disk_full: false,
        })
    }

    fn create_segment(
        &mut self,
        boot: &BootId,
        number: u32,
        chain: &Chain,
    ) -> Result<(File, PathBuf, u64), JournalError> {
        let path = path_of(&self.path, boot, number, State::Open);
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600);
        // A later segment may be left from an attempt for which there was no room.
        let opened =
            if number == 0 { options.create_new(true).open(&path) } else { options.create(true).open(&path) };
        let mut file = opened.map_err(io_error(&path))?;
        let head = segment_head(boot, number, chain);
        let written = file.set_len(0).and_then(|()| file.write_all(&head)).and_then(|()| file.sync_all());
        written.map_err(io_error(&path))?;
        let bytes = head.len() as u64;
        // Its age counts from its last write, which is not now.
        let modified = Timestamp::from_secs(u64::MAX / 1_000);
        let segment = Segment { boot: boot.clone(), number, state: State::Open, bytes, modified };
        self.segments.retain(|other| (&other.boot, other.number) != (boot, number));
        self.segments.push(segment);
        Ok((file, path, bytes))
    }
}

impl Journal {
    /// Appends entries with one write; when it returns, they count as written.
    ///
    /// # Errors
    /// [`JournalError::Io`]: a full disk, say, that not even the reserve helps; [`JournalError::Full`] at the bound. The
    /// file is cut back to what counted before, so that a later attempt starts from there.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if self.length >= self.dir.limits.segment_bytes() {
            // On a full disk it goes on in the present segment.
            match self.rotate() {
                Err(JournalError::Io { source, .. }) if is_full(&source) => drop(self.dir.reserve.give_up()),
                other => other?,
            }
        }
        let (frames, chain) = frames(entries, self.chain);
        let more = frames.len() as u64;
        let bytes = self.dir.open_bytes();
        if bytes + more > self.dir.limits.bytes_max && !writ_common::red::off("R10-bound") {
            let (path, bytes_max) = (self.dir.path.clone(), self.dir.limits.bytes_max);
            return Err(JournalError::Full { path, bytes, bytes_max });
        }
        // What cannot be removed is tried again, and told, by `refresh`.
        drop(self.dir.drop_kept(more, None));
        self.write(&frames)?;
        self.chain = chain;
        self.length += more;
        // What an anchor says that is behind is true as well.
        drop(self.anchor.write(self.number, self.length));
        for entry in entries {
            self.open.take(entry, self.number, self.settles);
        }
        self.note_length();
        drop(self.keep_settled());
        Ok(())
    }

    fn write(&mut self, frames: &[u8]) -> Result<(), JournalError> {
        let mut written = self.write_once(frames);
        if let Err(error) = &written
            && is_full(error)
            && self.dir.reserve.give_up()
            && !writ_common::red::off("R10-reserve")
        {
            written = self.write_once(frames);
        }
        self.is_disk_full = written.as_ref().is_err_and(is_full);
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }

    fn write_once(&mut self, frames: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(frames).and_then(|()| match self.sync {
            Sync::Always => self.file.sync_data(),
            Sync::Kernel => Ok(()),
        });
        if written.is_err() {
            // If even this fails the torn end is dropped when the file is read.
            drop(self.file.set_len(self.length));
        }
        written
    }

    /// Goes on in a new segment. It is made before the present one is closed: what a kill leaves between the two is an
    /// empty segment behind one that is whole.
    fn rotate(&mut self) -> Result<(), JournalError> {
        let next = self.number + 1;
        let (closing, chain) = frames(&[Entry::Closed { next: Some(next) }], self.chain);
        let (file, path, length) = self.dir.create_segment(&self.boot, next, &chain)?;
        // Whatever counts as written: a segment is on the disk before anything stands in the next one.
        if let Err(source) = self.write_once(&closing).and_then(|()| self.file.sync_data()) {
            drop(self.file.set_len(self.length));
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.length += closing.len() as u64;
        self.note_length();
        (self.file, self.path, self.number, self.chain, self.length) = (file, path, next, chain, length);
        drop(self.anchor.write(self.number, self.length));
        Ok(())
    }

    fn note_length(&mut self) {
        let (boot, number) = (&self.boot, self.number);
        let same = |segment: &&mut Segment| segment.number == number && segment.boot == *boot;
        if let Some(segment) = self.dir.segments.iter_mut().rev().find(same) {
            segment.bytes = self.length;
        }
    }

    /// Marks as settled what was closed and has nothing open, from the first on.
    fn keep_settled(&mut self) -> Result<(), JournalError> {
        if self.number == 0 {
            return Ok(());
        }
        let first = self.open.first().unwrap_or(self.number).min(self.number);
        while let Some(at) = self.dir.segments.iter().position(|segment| {
            segment.boot == self.boot && segment.state == State::Open && segment.number < first
        }) {
            self.dir.keep(at)?;
        }
        Ok(())
    }

    /// Whether there is room for more, counting only what cannot be removed.
    #[must_use]
    pub fn room(&self) -> Room {
        let left = self.dir.limits.bytes_max.saturating_sub(self.dir.open_bytes());
        if self.is_disk_full || left == 0 {
            Room::None
        } else if !self.dir.reserve.is_held() || left < self.dir.limits.reserved_bytes() {
            Room::Reserved
        } else {
            Room::Enough
        }
    }

    /// Removes what is settled and too old, and takes the reserve again if there is room on the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn refresh(&mut self, now: Timestamp) -> Result<(), JournalError> {
        if self.dir.reserve.take() {
            self.is_disk_full = false;
        }
        self.keep_settled()?;
        self.dir.make_room(now)
    }

    /// As [`JournalDir::resolve`].
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn resolve(&mut self, boot: &BootId, entries: &[Entry]) -> Result<(), JournalError> {
        self.dir.resolve(boot, entries)
    }

    /// As [`JournalDir::settle`]; the present run's journal is closed by it, and takes nothing more.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn settle(&mut self, boot: &BootId) -> Result<(), JournalError> {
        if *boot == self.boot {
            self.append(&[Entry::Closed { next: None }])?;
            self.file.sync_data().map_err(io_error(&self.path))?;
        }
        self.dir.settle(boot)
    }

    /// Bytes of all segments that cannot be removed yet.
    #[must_use]
    pub fn open_bytes(&self) -> u64 {
        self.dir.open_bytes()
    }

    /// Most bytes of all segments together.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.dir.limits.bytes_max
    }

    /// Bytes of the present segment.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.length
    }
}
