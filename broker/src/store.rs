//! The index of tasks: rebuildable from the audit stream, and trusted accordingly.
//!
//! sled 0.34 loses a suffix without a word after a flipped bit, and unflushed writes on `kill -9`. So every value
//! carries a checksum over itself and its key, a batch is flushed before anything relies on it, and a small anchor
//! file beside it knows how far the index had got and what all of it digested to. An index that is behind its
//! anchor, does not digest to it, or is ahead of the stream is refused; rebuilding it is one command.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use writ_common::{
    codec::{self, Message},
    digest::Digest,
    ids::PartId,
};

use crate::core::TaskEntry;

/// Why the index is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is behind what was acknowledged, or not what it was.
    #[error("{}: {why}; rebuild it from the stream with `writ broker --rebuild`", path.display())]
    Rollback {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// The operating system or sled refused.
    #[error("{}: {why}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// How far the index has got in a part of the audit stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartPosition {
    /// When the stream was created, in nanoseconds since the epoch, as text.
    pub created: String,
    /// Every record of this broker up to this sequence is taken in; some behind it may be.
    pub sequence: u64,
}

/// How far the index has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// How often the index was written: what orders it against its anchor.
    pub writes: u64,
    /// The parts of the audit stream that were read.
    pub parts: BTreeMap<PartId, PartPosition>,
    /// How many tasks there are.
    pub count: u64,
    /// XOR of the digests of every entry: the same whatever the order they came in.
    pub digest: Option<Digest>,
    /// When the control stream was created.
    pub control_created: String,
    /// Sequence of the last control event seen.
    pub control_sequence: u64,
}

impl Message for Position {
    const KIND: &'static str = "position";
}

impl Message for TaskEntry {
    const KIND: &'static str = "task";
}

/// Tasks on disk.
pub struct TaskStore {
    path: PathBuf,
    db: sled::Db,
    position: Position,
    /// XOR of all entry digests, kept up to date.
    digest: [u8; 32],
}

type PanicHook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync>;

/// While it lives, a panic is told as what it is: an index that cannot be read.
struct PanicTold(Arc<PanicHook>);

impl PanicTold {
    fn begin(path: &Path) -> Self {
        let before = Arc::new(std::panic::take_hook());
        let (shared, path) = (Arc::clone(&before), path.display().to_string());
        std::panic::set_hook(Box::new(move |info| {
            tracing::error!(
                "{path}: the index is damaged; rebuild it from the stream with `writ broker --rebuild`"
            );
            shared(info);
        }));
        Self(before)
    }
}

impl Drop for PanicTold {
    fn drop(&mut self) {
        // While a panic unwinds the hook cannot be changed.
        if !std::thread::panicking() {
            let before = Arc::clone(&self.0);
            std::panic::set_hook(Box::new(move |info| before(info)));
        }
    }
}

const POSITION_KEY: &[u8] = b"\0position";

impl TaskStore {
    /// Opens the index, checks every value and the anchor, and returns what it holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<(Self, Vec<TaskEntry>), StoreError> {
        let io = |why: String| StoreError::Io { path: path.to_owned(), why };
        let rollback = |why: String| StoreError::Rollback { path: path.to_owned(), why };
        fs::create_dir_all(path).map_err(|error| io(error.to_string()))?;
        // A flipped bit can make sled panic; with `panic = "abort"` the process ends, and starts closed. Until the index
        // is read whole, the end says what to do.
        let _told = PanicTold::begin(path);
        let db = sled::Config::default().path(path.join("index")).flush_every_ms(None).open().map_err(
            |error| match error {
                sled::Error::Io(error) => io(format!("the index cannot be opened: {error}")),
                damage => rollback(format!("the index cannot be opened: {damage}")),
            },
        )?;
        let mut store = Self { path: path.to_owned(), db, position: Position::default(), digest: [0; 32] };
        let mut tasks = Vec::new();
        let mut stored = None;
        for item in store.db.iter() {
            let (key, value) =
                item.map_err(|error| rollback(format!("an entry is not readable: {error}")))?;
            let payload =
                unseal(&key, &value).ok_or_else(|| rollback("an entry does not fit its checksum".into()))?;
            if key == POSITION_KEY {
                stored = codec::decode::<Position>(payload).ok();
                continue;
            }
            let task: TaskEntry = codec::decode(payload)
                .map_err(|error| rollback(format!("an entry is not readable: {error}")))?;
            xor(&mut store.digest, &entry_digest(&key, payload));
            tasks.push(task);
        }
        let stored = stored.unwrap_or_default();
        let own = Digest::from_bytes(store.digest);
        if stored.count != tasks.len() as u64 || stored.digest.is_some_and(|digest| digest != own) {
            return Err(rollback(format!("{} tasks are there, {} should be", tasks.len(), stored.count)));
        }
        if let Some(anchor) = store.read_anchor()? {
            // A kill between flush and anchor leaves the index ahead: that is as it should be.
            let behind = stored.writes < anchor.writes;
            let other = stored.writes == anchor.writes && stored != anchor;
            if (behind || other) && !writ_common::red::off("R06") {
                return Err(rollback(format!(
                    "the index was written {} times, its anchor says {}{}",
                    stored.writes,
                    anchor.writes,
                    if other { " and something else" } else { "" }
                )));
            }
        }
        store.position = stored;
        Ok((store, tasks))
    }

    /// How far it has got.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    fn anchor_path(&self) -> PathBuf {
        self.path.join("anchor")
    }

    fn read_anchor(&self) -> Result<Option<Position>, StoreError> {
        let path = self.anchor_path();
        match fs::read(&path) {
            Ok(bytes) => {
                let payload = unseal(b"anchor", &bytes);
                let anchor = payload.and_then(|payload| codec::decode(payload).ok());
                anchor.map(Some).ok_or_else(|| StoreError::Rollback {
                    path: self.path.clone(),
                    why: "the anchor is not readable".to_owned(),
                })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::Io { path, why: error.to_string() }),
        }
    }

    /// Writes tasks and the position after them, flushed, then moves the anchor.
    ///
    /// # Errors
    /// [`StoreError::Io`]: nothing of it counts then, and the caller must not acknowledge anything.
    pub fn write(&mut self, tasks: &[TaskEntry], mut position: Position) -> Result<(), StoreError> {
        let io = |why: String| StoreError::Io { path: self.path.clone(), why };
        let mut batch = sled::Batch::default();
        let mut digest = self.digest;
        let mut count = self.position.count;
        for task in tasks {
            let key = task.task.as_str().as_bytes();
            match self.db.get(key).map_err(|error| io(error.to_string()))? {
                Some(old) => {
                    if let Some(old) = unseal(key, &old) {
                        xor(&mut digest, &entry_digest(key, old));
                    }
                }
                None => count += 1,
            }
            let payload = codec::encode(task);
            xor(&mut digest, &entry_digest(key, &payload));
            batch.insert(key, seal(key, &payload));
        }
        position.writes = self.position.writes + 1;
        position.count = count;
        position.digest = Some(Digest::from_bytes(digest));
        batch.insert(POSITION_KEY, seal(POSITION_KEY, &codec::encode(&position)));
        self.db.apply_batch(batch).map_err(|error| io(error.to_string()))?;
        if !writ_common::red::off("R06") {
            self.db.flush().map_err(|error| io(error.to_string()))?;
        }
        self.write_anchor(&position).map_err(|error| io(error.to_string()))?;
        self.digest = digest;
        self.position = position;
        Ok(())
    }

    fn write_anchor(&self, position: &Position) -> std::io::Result<()> {
        let new = self.path.join("anchor.new");
        let mut file = File::create(&new)?;
        file.write_all(&seal(b"anchor", &codec::encode(position)))?;
        file.sync_all()?;
        fs::rename(&new, self.anchor_path())?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes the index and its anchor, so that the next start rebuilds both from the stream.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(path: &Path) -> Result<(), StoreError> {
        for name in ["index", "anchor", "anchor.new"] {
            let target = path.join(name);
            let removed =
                if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { path: target, why: error.to_string() });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checksum over key and payload, then the payload: a value under another key does not verify.
fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = checksum(key, payload).to_le_bytes().to_vec();
    sealed.extend_from_slice(payload);
    sealed
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, payload) = sealed.split_first_chunk::<4>()?;
    (checksum(key, payload) == u32::from_le_bytes(*crc)).then_some(payload)
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), payload)
}

fn entry_digest(key: &[u8], payload: &[u8]) -> Digest {
    Digest::of("writ/v1/index", &[key, payload])
}

fn xor(digest: &mut [u8; 32], other: &Digest) {
    for (byte, other) in digest.iter_mut().zip(other.as_bytes()) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use writ_common::{
        epoch::Epoch,
        ids::{AgentId, CapabilityId, FlowDomain, KeyId, TaskId, TaskKind, UserId},
        time::Timestamp,
    };

    use super::*;

    fn task(number: u64) -> TaskEntry {
        let id = TaskId::parse(format!("t-{number}")).unwrap();
        TaskEntry {
            kind: TaskKind::parse("k").unwrap(),
            user: UserId::parse("i", "s").unwrap(),
            roles: vec![],
            agent: AgentId::parse("a").unwrap(),
            key: KeyId::parse("0a").unwrap(),
            capability: CapabilityId::parse("c-1").unwrap(),
            serial: 1,
            domain: FlowDomain::parse("p0.t-1").unwrap(),
            rights: vec![],
            max_depth: 0,
            deadline: Timestamp::from_secs(1),
            started: Epoch::default(),
            instruction: Digest::plain(b""),
            idempotency: Digest::plain(id.as_str().as_bytes()),
            asked: Digest::plain(b""),
            task: id,
        }
    }

    fn at(sequence: u64) -> Position {
        let part = PartPosition { created: "1".into(), sequence };
        Position { parts: BTreeMap::from([(PartId::first(), part)]), ..Position::default() }
    }

    fn filled(folder: &Path, count: u64) {
        let (mut store, _) = TaskStore::open(folder).unwrap();
        for number in 1..=count {
            store.write(&[task(number)], at(number)).unwrap();
        }
    }

    #[test]
    fn what_is_written_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 5);
        let (store, tasks) = TaskStore::open(folder.path()).unwrap();
        assert_eq!((tasks.len(), &store.position().parts), (5, &at(5).parts));
        assert!(TaskStore::open(folder.path()).is_err(), "opened twice");
    }

    #[test]
    fn an_index_killed_before_its_anchor_moved_is_used() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 3);
        let anchor = fs::read(folder.path().join("anchor")).unwrap();
        // Answered for out of order: the position stays while the index grows.
        let (mut store, _) = TaskStore::open(folder.path()).unwrap();
        store.write(&[task(4)], at(3)).unwrap();
        drop(store);
        fs::write(folder.path().join("anchor"), anchor).unwrap();
        assert_eq!(TaskStore::open(folder.path()).unwrap().1.len(), 4);
    }

    #[test]
    fn r06_an_index_behind_its_anchor_is_refused_and_can_be_rebuilt() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 3);
        let old = folder.path().join("old");
        copy(&folder.path().join("index"), &old);
        filled_on(folder.path(), 4..=6);
        fs::remove_dir_all(folder.path().join("index")).unwrap();
        copy(&old, &folder.path().join("index"));
        let Err(error) = TaskStore::open(folder.path()) else { panic!("an old index was taken") };
        assert!(error.to_string().contains("--rebuild"), "{error}");
        TaskStore::remove(folder.path()).unwrap();
        assert_eq!(TaskStore::open(folder.path()).unwrap().1.len(), 0);
    }

    fn filled_on(folder: &Path, numbers: std::ops::RangeInclusive<u64>) {
        let (mut store, _) = TaskStore::open(folder).unwrap();
        for number in numbers {
            store.write(&[task(number)], at(number)).unwrap();
        }
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for item in fs::read_dir(from).unwrap() {
            let item = item.unwrap();
            let target = to.join(item.file_name());
            if item.path().is_dir() {
                copy(&item.path(), &target);
            } else {
                fs::copy(item.path(), target).unwrap();
            }
        }
    }

    #[test]
    fn a_value_under_another_key_or_changed_is_refused() {
        let sealed = seal(b"a", b"payload");
        assert_eq!(unseal(b"a", &sealed), Some(b"payload".as_slice()));
        assert_eq!(unseal(b"b", &sealed), None);
        let mut changed = sealed.clone();
        changed[6] ^= 1;
        assert_eq!(unseal(b"a", &changed), None);
    }
}
