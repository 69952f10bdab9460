//! Writes to a journal, an index or pins until it is killed, and says on its output what counts as written; or looks at
//! what is left of them. A process of its own, so that it can be killed, can abort, and can have a disk of its own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail, ensure};
use writ_broker::store::TaskStore;
use writ_common::time::{Millis, Timestamp};
use writ_journal::{Entry, JournalDir, JournalError, JournalLimits, Room, Settles, Sync};
use writ_node::pin_file;
use writ_tests::storage;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [what, folder] = arguments else { bail!("usage: storage-writer <what> <folder>") };
    let folder = PathBuf::from(folder);
    match what.as_str() {
        "journal" => write_journal(&folder),
        "index" => write_index(&folder),
        "pins" => write_pins(&folder),
        "read-index" => read_index(&folder),
        "full-disk" => fill_the_disk(&folder),
        other => bail!("there is nothing called `{other}`"),
    }
}

/// Says that this number counts as written.
fn say(number: u64) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{number}")?;
    Ok(out.flush()?)
}

fn write_journal(folder: &Path) -> Result<()> {
    let dir = JournalDir::open(folder, storage::limits())?;
    let mut journal = dir.create(&storage::boot(), Sync::Kernel, Settles::OnOutcome)?;
    for seq in 0.. {
        journal.append(&[storage::prepared(seq)])?;
        say(seq)?;
        journal.append(&[Entry::Committed { seq, stream: seq + 1, part: None }])?;
    }
    Ok(())
}

fn write_index(folder: &Path) -> Result<()> {
    let (mut store, _) = TaskStore::open(folder)?;
    for number in 1.. {
        store.write(&[storage::task(number)], storage::position(number))?;
        say(number)?;
    }
    Ok(())
}

fn write_pins(folder: &Path) -> Result<()> {
    for number in 1.. {
        pin_file::write(folder, &storage::pins(number))?;
        say(number)?;
    }
    Ok(())
}

/// Says the numbers of the tasks that are there, if the index is taken for whole.
fn read_index(folder: &Path) -> Result<()> {
    let (_, tasks) = TaskStore::open(folder)?;
    let mut numbers = Vec::new();
    for task in tasks {
        let number = task.task.as_str().strip_prefix("t-").context("a task of another name")?.parse()?;
        ensure!(task == storage::task(number), "task {number} is not what was written");
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.into_iter().try_for_each(say)
}

/// Fills the disk the folder is on, from inside and from outside, and checks what the journal makes of it.
fn fill_the_disk(folder: &Path) -> Result<()> {
    let limits = JournalLimits { bytes_max: 1 << 30, keep: Millis::from_secs(3_600) };
    let open = || JournalDir::open(folder, limits);
    let mut journal = open()?.create(&storage::boot(), Sync::Kernel, Settles::OnOutcome)?;
    ensure!(journal.room() == Room::Enough, "there is room at first");
    let ballast = folder.join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    while file.write_all(&[1; 4096]).is_ok() {}
    let (mut seq, mut reserved, mut full) = (0, None, None);
    while full.is_none() {
        match journal.append(&[storage::prepared(seq)]) {
            Ok(()) => seq += 1,
            Err(JournalError::Io { .. }) => full = Some(seq),
            Err(error) => bail!("{error}"),
        }
        match journal.room() {
            Room::Enough => {}
            Room::Reserved => reserved = reserved.or(Some(seq)),
            Room::None => ensure!(full.is_some(), "nothing is taken although something was"),
        }
        ensure!(seq < 100_000, "the disk has no end");
    }
    let (reserved, full) = (reserved.context("the reserve was never used")?, seq);
    let bytes = (full - reserved) * storage::RECORD_BYTES as u64;
    ensure!(bytes > 7 << 20, "the reserve gave room for {bytes} bytes");
    ensure!(journal.room() == Room::None && journal.append(&[storage::prepared(seq)]).is_err(), "it is full");
    journal.refresh(Timestamp::from_secs(0))?;
    ensure!(journal.room() == Room::None, "there is no room to take the reserve again");
    drop(file);
    std::fs::remove_file(&ballast)?;
    journal.refresh(Timestamp::from_secs(0))?;
    ensure!(journal.room() == Room::Enough, "there is room again");
    journal.append(&[storage::prepared(seq)])?;
    drop(journal);
    let (left, lost) = open()?.unsettled(&storage::boot())?;
    let found: Vec<u64> = left.unpublished.iter().map(|one| one.seq).collect();
    ensure!(
        lost.is_none() && found == (0..=seq).collect::<Vec<_>>(),
        "{} of {seq} records are there",
        found.len()
    );
    writeln!(std::io::stdout(), "{reserved} records, then {} from the reserve", full - reserved)?;
    Ok(())
}
