//! Faults of storage: killed writers, flipped bits, cut files, sectors of zeros, full disks. Whatever happens to a
//! journal, an index or pins is found and named, or nothing is lost by it.
//!
//! A hundred faults in a usual run; `WRIT_FAULTS=2000` asks for more, `WRIT_SEED=7` for others.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a failed test may panic, and says what it saw"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use writ_journal::{Entry, JournalDir, JournalError, Settles, Sync};
use writ_node::pin_file;
use writ_tests::{PowerLoss, storage};

const WRITER: &str = env!("CARGO_BIN_EXE_storage-writer");
/// Faults of one run, all tests together.
const FAULTS: usize = 100;
/// Longest look at a damaged index.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// This test's part of the faults, in percent.
fn faults(percent: usize) -> usize {
    (usize::try_from(number("WRIT_FAULTS", FAULTS as u64)).unwrap() * percent / 100).max(1)
}

/// Numbers that look drawn and are the same at every run of a seed (xorshift64*).
struct Draw(u64);

impl Draw {
    fn new(salt: u64) -> Self {
        Self((number("WRIT_SEED", 1) << 8 | salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        usize::try_from(drawn).unwrap() % bound.max(1)
    }
}

/// Damages a file; says how.
fn damage(path: &Path, draw: &mut Draw) -> String {
    let mut bytes = fs::read(path).unwrap();
    let at = draw.below(bytes.len());
    let how = match draw.below(4) {
        0 | 1 => {
            bytes[at] ^= 1 << draw.below(8);
            format!("a bit flipped at {at}")
        }
        2 => {
            bytes.truncate(at);
            format!("cut to {at} bytes")
        }
        _ => {
            let sector = at / 512 * 512;
            let end = (sector + 512).min(bytes.len());
            bytes[sector..end].fill(0);
            format!("zeros from {sector} to {end}")
        }
    };
    fs::write(path, bytes).unwrap();
    format!("{}: {how}", path.display())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What happened to the faults of a test.
#[derive(Debug, Default)]
struct Tally {
    named: usize,
    without_loss: usize,
}

impl Tally {
    fn check(&self, name: &str, faults: usize) {
        eprintln!(
            "{name}: {faults} faults, {} found and named, {} without loss",
            self.named, self.without_loss
        );
        assert_eq!(self.named + self.without_loss, faults);
        assert!(self.named > 0, "{name}: no fault was found, which means that none was made");
    }
}

type Left = (Vec<u64>, Vec<(u64, Vec<u8>)>);

/// Tries until nobody has the folder. A test beside this one that starts a process has its child hold every lock of this
/// process for a moment, between fork and exec.
fn unlocked<T>(mut open: impl FnMut() -> Result<T, JournalError>) -> Result<T, JournalError> {
    for _ in 0..200 {
        match open() {
            Err(JournalError::Locked(_)) => std::thread::sleep(Duration::from_millis(5)),
            opened => return opened,
        }
    }
    open()
}

/// What is left of a journal: the positions that are open, and the records the stream was given.
fn left(folder: &Path) -> Result<Left, JournalError> {
    let mut dir = unlocked(|| JournalDir::open(folder, storage::limits()))?;
    let mut open = Vec::new();
    for run in dir.runs() {
        let (unsettled, lost) = dir.unsettled(&run)?;
        assert_eq!(lost, None, "the machine was not started again");
        open.extend(unsettled.unpublished.iter().map(|one| one.seq));
    }
    let kept = dir.kept().map(|kept| kept.map(|kept| (kept.seq, kept.record))).collect::<Result<_, _>>()?;
    Ok((open, kept))
}

/// K06, K07: every damage to a file of a journal is found and named, or nothing is lost by it.
#[test]
fn k06_k07_damage_to_a_journal_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let dir = JournalDir::open(folder.path(), storage::limits()).unwrap();
    let mut journal = dir.create(&storage::boot(), Sync::Kernel, Settles::OnOutcome).unwrap();
    // The records behind 100 wait for their acknowledgement, so that there are kept and open segments.
    for seq in 0..150 {
        journal.append(&[storage::prepared(seq)]).unwrap();
        if seq < 100 {
            journal.append(&[Entry::Committed { seq, stream: seq + 1, part: None }]).unwrap();
        }
    }
    drop(journal);
    let whole = left(folder.path()).unwrap();
    assert_eq!((whole.0.len(), whole.1.len()), (50, 100));
    let targets: Vec<PathBuf> =
        files(folder.path()).into_iter().filter(|path| !path.ends_with("reserve")).collect();
    let is = |kind: &str| targets.iter().filter(|path| path.to_str().unwrap().ends_with(kind)).count();
    assert!(is(".kept") >= 1 && is(".journal") >= 2 && is(".anchor") == 1, "{targets:?}");
    let (mut draw, mut tally, faults) = (Draw::new(1), Tally::default(), faults(45));
    for _ in 0..faults {
        let target = &targets[draw.below(targets.len())];
        let before = fs::read(target).unwrap();
        let how = damage(target, &mut draw);
        match left(folder.path()) {
            Ok(found) => {
                assert!(found == whole, "{how}: lost without a word");
                tally.without_loss += 1;
            }
            Err(error @ JournalError::Corrupt { .. }) => {
                assert!(error.to_string().contains("b-1"), "{how}: {error} names no file");
                tally.named += 1;
            }
            Err(error) => panic!("{how}: {error}"),
        }
        fs::write(target, before).unwrap();
    }
    assert!(left(folder.path()).unwrap() == whole);
    tally.check("journal", faults);
}

/// K06: damage to the memory of the streams.
#[test]
fn k06_damage_to_pins_is_found() {
    let folder = tempfile::tempdir().unwrap();
    pin_file::write(folder.path(), &storage::pins(12)).unwrap();
    let target = folder.path().join("streams.pin");
    let whole = fs::read(&target).unwrap();
    let (mut draw, mut tally, faults) = (Draw::new(2), Tally::default(), faults(15));
    for _ in 0..faults {
        let how = damage(&target, &mut draw);
        match pin_file::read(folder.path()) {
            Ok(pins) => {
                assert_eq!(pins, storage::pins(12), "{how}: lost without a word");
                tally.without_loss += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("streams.pin"), "{how}: {error}");
                tally.named += 1;
            }
        }
        fs::write(&target, &whole).unwrap();
    }
    tally.check("pins", faults);
}

/// K06, K07, K08: damage to the broker's index, in a process of its own, since sled may abort it.
#[test]
fn k06_k07_k08_damage_to_the_index_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (mut store, _) = writ_broker::store::TaskStore::open(&original).unwrap();
    for number in 1..=60 {
        store.write(&[storage::task(number)], storage::position(number)).unwrap();
    }
    drop(store);
    let whole: Vec<u64> = (1..=60).collect();
    assert_eq!(look_at_index(&original), (true, whole.clone(), String::new()));
    let (mut draw, mut tally, faults) = (Draw::new(3), Tally::default(), faults(30));
    for round in 0..faults {
        let copy = folder.path().join(format!("copy-{round}"));
        copy_folder(&original, &copy);
        let targets = files(&copy);
        let how = damage(&targets[draw.below(targets.len())], &mut draw);
        let (is_taken, said, error) = look_at_index(&copy);
        if is_taken {
            assert_eq!(said, whole, "{how}: lost without a word");
            tally.without_loss += 1;
        } else {
            assert!(error.contains("--rebuild"), "{how}: {error}");
            tally.named += 1;
        }
        fs::remove_dir_all(copy).unwrap();
    }
    tally.check("index", faults);
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Whether the index is taken for whole, the tasks it holds, and what is said if it is not.
fn look_at_index(folder: &Path) -> (bool, Vec<u64>, String) {
    let mut child = Command::new(WRITER)
        .arg("read-index")
        .arg(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("a damaged index is looked at for ever");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let numbers = said.lines().map(|line| line.parse().unwrap()).collect();
    (output.status.success(), numbers, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Starts a writer, kills it after a while, and returns the last number it said was written.
fn killed(what: &str, folder: &Path, after: Duration) -> Option<u64> {
    let mut child = Command::new(WRITER).arg(what).arg(folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading = std::thread::spawn(move || {
        let mut last = None;
        while let Some(Ok(line)) = lines.next() {
            last = line.parse().ok().or(last);
        }
        last
    });
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap()
}

/// R06: a writer that is killed at any time has written what it said it had.
#[test]
fn r06_a_killed_writer_has_written_what_it_said() {
    let (mut draw, mut said_something) = (Draw::new(4), 0);
    for round in 0..faults(10) {
        let folder = tempfile::tempdir().unwrap();
        let what = ["journal", "index", "pins"][round % 3];
        let last = killed(what, folder.path(), Duration::from_millis(30 + draw.below(120) as u64));
        let Some(last) = last else { continue };
        said_something += 1;
        match what {
            "journal" => {
                let (open, kept) = left(folder.path()).unwrap();
                // What was settled long ago may have made room.
                let found = kept.iter().map(|(seq, _)| *seq).chain(open).max();
                assert!(found >= Some(last), "journal: {last} was said to be written, {found:?} is the last");
            }
            "index" => {
                let (is_taken, said, error) = look_at_index(folder.path());
                assert!(is_taken && said.len() as u64 >= last, "index: {last}, {}: {error}", said.len());
            }
            _ => {
                let pins = pin_file::read(folder.path()).unwrap();
                assert!(pins.control.sequence >= last, "pins: {last}, {pins:?}");
            }
        }
    }
    assert!(said_something > 0, "no writer got to writing");
}

/// Whatever counts as written is there after the power was lost, and nothing is taken for damaged that was only not written
/// yet.
#[test]
fn power_lost_takes_nothing_that_counts_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["journal", "pins"] {
        fs::create_dir(at(name)).unwrap();
    }
    let dir = JournalDir::open(&at("journal"), storage::limits()).unwrap();
    let mut journal = dir.create(&storage::boot(), Sync::Always, Settles::OnOutcome).unwrap();
    let (mut index, _) = writ_broker::store::TaskStore::open(&at("index")).unwrap();
    let folders = ["journal", "index", "pins"].map(at).to_vec();
    let Some(power) = PowerLoss::note(at("then"), folders).unwrap() else {
        eprintln!("skipped: this kernel or file system does not say what is written");
        return;
    };
    for number in 1..=100 {
        journal.append(&[storage::prepared(number - 1)]).unwrap();
        index.write(&[storage::task(number)], storage::position(number)).unwrap();
    }
    // The first ones: a file system may well take care of a file that replaces another.
    pin_file::write(&at("pins"), &storage::pins(1)).unwrap();
    power.cut(&at("left")).unwrap();
    let left_in = |name: &str| at("left").join(name);
    let (open, kept) = left(&left_in("journal")).unwrap();
    assert_eq!((open, kept.len()), ((0..100).collect(), 0), "the journal");
    assert_eq!(look_at_index(&left_in("index")), (true, (1..=100).collect(), String::new()));
    assert_eq!(pin_file::read(&left_in("pins")).unwrap(), storage::pins(1));
}

/// R10: on a full disk the reserve takes what has to be said, and there is room again once there is. The disk is a small
/// file system of the writer's own, for which Linux has to let users have namespaces.
#[test]
fn r10_reserve_a_full_disk_still_takes_what_has_to_be_said() {
    let folder = tempfile::tempdir().unwrap();
    let Some(output) = writ_tests::on_small_disk(folder.path(), 24, WRITER, &["full-disk"]).unwrap() else {
        eprintln!("skipped: `unshare --user --map-root-user --mount` is not allowed here");
        return;
    };
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{error}");
    eprintln!("disk of 24 MiB: {said}");
}
