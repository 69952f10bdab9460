//! The auditors' index: a local projection of the audit stream, made so that the questions auditors ask are answered
//! from a few pages.
//!
//! It is a cache and no evidence: it can be removed at any time and is built again from the stream or from an
//! export. What it says of a record is what the record said when its signature was checked against the keys the
//! control stream enrolled; a message that does not hold is counted and named in every answer, and is no row.
//!
//! Pages form a tree: rows in pages of [`ROWS_PER_PAGE`], those in directories; lists of rows by [`Term`]; refusals by
//! day. Each parent holds its children's digests up to the [`Position`], so that an answer either rests on exactly
//! what was written or is an error that names the page. `fill.rs` takes messages in, `scan.rs` walks lists,
//! `questions.rs` asks, `history.rs` knows the control stream.
//!
//! A tenant's audit stream comes in parts, whose sequences repeat: a message gets an ordinal as it is taken in, and that
//! is what rows, lists and pages of answers are numbered by. `lanes.rs` brings several parts into one order, `streams.rs`
//! has those of a running Writ and its archive, `export.rs` those of an export, `source.rs` checks signatures.

pub mod export;
pub mod fill;
pub mod history;
pub mod lanes;
pub mod questions;
pub mod row;
mod scan;
pub mod source;
pub mod store;
pub mod streams;
mod term;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};

use serde::{Deserialize, Serialize};
use writ_common::{
    digest::Digest,
    ids::BootId,
    record::{DecisionId, Origin},
};

pub use scan::{Page, Window};
pub use store::{Deleted, IndexError, PartRead, Position, Source, Taken, remove};
pub use term::Term;

use row::{Place, Row};
use store::{FORMAT, Pages};
use term::{BUCKETS, Head, PageInfo};

/// Rows per page.
pub const ROWS_PER_PAGE: usize = 64;
/// Pages of rows per directory.
const PAGES_PER_DIRECTORY: usize = 256;
/// Most faults that are kept with their cause; the others are counted.
pub const FAULTS_KEPT_MAX: usize = 100;
/// Days per page of refusals.
type Day = u64;

/// The page everything hangs below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Top {
    /// Directories of rows: the first ordinal and the digest of each.
    directories: Vec<(u64, Digest)>,
    /// Buckets of heads; none if nothing is in it.
    buckets: Vec<Option<Digest>>,
    /// Refusals by day, as days since 1970.
    days: BTreeMap<Day, Digest>,
    /// Allowed calls without outcome.
    open: Option<Digest>,
    /// Which records of which run were seen.
    runs: Option<Digest>,
    /// Messages that are not to be believed, the first ones: where and why.
    faults: Vec<(Place, String)>,
}

/// What refusals are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refusal {
    /// The code of the first cause.
    pub code: String,
    /// What was to be done.
    pub target: String,
    /// Who asked: the calling agent, or an operator.
    pub caller: String,
}

/// The refusals of one day.
pub type Refusals = BTreeMap<Refusal, u64>;

/// Numbers without holes, as far as they go: from, to (included).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds a number; says whether it was new.
    fn insert(&mut self, number: u64) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= number);
        let before = after.checked_sub(1).and_then(|at| self.0.get(at).copied());
        if before.is_some_and(|(_, to)| to >= number) {
            return false;
        }
        let joins_before = before.is_some_and(|(_, to)| to + 1 == number);
        let next = self.0.get(after).copied().filter(|(from, _)| *from == number + 1);
        match (joins_before, next) {
            (true, Some((_, to))) => {
                self.0.remove(after);
                self.0.get_mut(after - 1).into_iter().for_each(|range| range.1 = to);
            }
            (true, None) => self.0.get_mut(after - 1).into_iter().for_each(|range| range.1 = number),
            (false, Some(_)) => self.0.get_mut(after).into_iter().for_each(|range| range.0 = number),
            (false, None) => self.0.insert(after, (number, number)),
        }
        true
    }

    /// Adds every number from `first` to `last`.
    fn insert_all(&mut self, first: u64, last: u64) {
        let begin = self.0.partition_point(|(_, to)| to.saturating_add(1) < first);
        let end = self.0.partition_point(|(from, _)| *from <= last.saturating_add(1));
        let touched = self.0.get(begin..end).unwrap_or_default();
        let from = touched.first().map_or(first, |(from, _)| first.min(*from));
        let to = touched.last().map_or(last, |(_, to)| last.max(*to));
        self.0.splice(begin..end.max(begin), [(from, to)]);
    }

    /// How many numbers from `first` to `last` are not in it.
    fn lacks(&self, first: u64, last: u64) -> u64 {
        let begin = self.0.partition_point(|(_, to)| *to < first);
        let within = self.0.iter().skip(begin).take_while(|(from, _)| *from <= last);
        let has: u64 = within.map(|(from, to)| (*to).min(last) - (*from).max(first) + 1).sum();
        (last - first + 1).saturating_sub(has)
    }

    /// What is missing from 0 up to the highest number.
    fn holes(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut expected = 0;
        self.0.iter().filter_map(move |(from, to)| {
            let hole = (expected < *from).then(|| (expected, from - 1));
            expected = to + 1;
            hole
        })
    }
}

/// One run of a recorder: which of its records were seen, and which of its voids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    records: Ranges,
    voids: Ranges,
    /// Records of archived parts of which retention deleted some: those that were not seen are deleted, not missing.
    deleted: Ranges,
}

type Runs = Vec<((Origin, BootId), Run)>;

/// Records that are missing from a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// Who recorded.
    pub origin: String,
    /// The run.
    pub boot: String,
    /// The first missing number.
    pub from: u64,
    /// The last missing number.
    pub to: u64,
}

/// An index, open for reading; `fill.rs` makes it grow.
pub struct Index {
    pages: Pages,
    position: Position,
    top: Top,
    /// The directory and the page of rows that were read last.
    directory: RefCell<Option<(usize, Rc<Vec<PageInfo>>)>>,
    rows: RefCell<Option<(usize, Rc<Vec<Row>>)>>,
}

impl Index {
    /// Opens the index of a source, or begins one. Nothing else may have it open.
    ///
    /// # Errors
    /// [`IndexError`]: it is damaged, of another source, or in use.
    pub fn open(path: &Path, source: &Source) -> Result<Self, IndexError> {
        let (pages, position) = Pages::open(path)?;
        let position = match position {
            Some(position) if position.source == *source => position,
            Some(position) => {
                let why = format!("was made from {}, and this is {source}", position.source);
                return Err(IndexError::OtherSource { path: path.to_owned(), why });
            }
            None => Position {
                format: FORMAT,
                source: source.clone(),
                writes: 0,
                next: 1,
                parts: BTreeMap::new(),
                left_out: BTreeSet::new(),
                taken: Taken::default(),
                top: None,
            },
        };
        let top = match &position.top {
            Some(digest) => pages.read(b"T", digest, || "its first page".to_owned())?,
            None => Top { buckets: vec![None; BUCKETS], ..Top::default() },
        };
        let (directory, rows) = (RefCell::new(None), RefCell::new(None));
        Ok(Self { pages, position, top, directory, rows })
    }

    /// How far it has got.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The first messages that are not to be believed, each with its place and why.
    #[must_use]
    pub fn faults(&self) -> &[(Place, String)] {
        &self.top.faults
    }

    /// An error that says the index does not fit its source.
    #[must_use]
    pub fn other_source(&self, why: String) -> IndexError {
        IndexError::OtherSource { path: self.pages.path().to_owned(), why }
    }

    /// Records that were numbered and are not here. What comes after the last record of a run cannot be seen.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn holes(&self) -> Result<Vec<Hole>, IndexError> {
        let mut holes = Vec::new();
        for ((origin, boot), run) in self.runs()? {
            // A void stands at the position of the record it replaces.
            let mut seen = run.records;
            for (from, to) in run.voids.0.iter().chain(&run.deleted.0) {
                seen.insert_all(*from, *to);
            }
            holes.extend(seen.holes().map(|(from, to)| Hole {
                origin: origin.to_string(),
                boot: boot.to_string(),
                from,
                to,
            }));
        }
        Ok(holes)
    }

    /// How many of these positions of a run no record or void was seen at.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn lacks(&self, origin: &Origin, boot: &BootId, positions: &[(u64, u64)]) -> Result<u64, IndexError> {
        let runs = self.runs()?;
        let run = runs.into_iter().find(|((of, run), _)| of == origin && run == boot).map(|(_, run)| run);
        let mut seen = run.unwrap_or_default();
        for (from, to) in std::mem::take(&mut seen.voids.0) {
            seen.records.insert_all(from, to);
        }
        Ok(positions.iter().map(|(first, last)| seen.records.lacks(*first, *last)).sum())
    }

    fn runs(&self) -> Result<Runs, IndexError> {
        match &self.top.runs {
            Some(digest) => self.pages.read(b"R", digest, || "the page of runs".to_owned()),
            None => Ok(Runs::new()),
        }
    }

    /// Allowed calls without outcome: the record, and the ordinal of its row.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn open_calls(&self) -> Result<Vec<(DecisionId, u64)>, IndexError> {
        match &self.top.open {
            Some(digest) => self.pages.read(b"O", digest, || "the page of calls without outcome".to_owned()),
            None => Ok(Vec::new()),
        }
    }

    /// The refusals of a day, counted; a day is its number since 1970.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn refusals(&self, day: u64) -> Result<Refusals, IndexError> {
        let Some(digest) = self.top.days.get(&day) else { return Ok(Refusals::new()) };
        let counted: Vec<(Refusal, u64)> =
            self.pages.read(&day_key(day), digest, || format!("the refusals of day {day}"))?;
        Ok(counted.into_iter().collect())
    }

    /// How many rows a term has.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn count(&self, term: &Term<'_>) -> Result<u64, IndexError> {
        Ok(self.head(&term.key())?.len())
    }

    fn bucket(&self, number: usize) -> Result<BTreeMap<Vec<u8>, Head>, IndexError> {
        let Some(Some(digest)) = self.top.buckets.get(number) else { return Ok(BTreeMap::new()) };
        let heads: Vec<(Vec<u8>, Head)> =
            self.pages.read(&bucket_key(number), digest, || format!("bucket {number} of the lists"))?;
        Ok(heads.into_iter().collect())
    }

    fn head(&self, key: &[u8]) -> Result<Head, IndexError> {
        Ok(self.bucket(term::bucket_of(key))?.remove(key).unwrap_or_default())
    }

    fn posting_page(&self, key: &[u8], number: usize, info: &PageInfo) -> Result<Vec<u64>, IndexError> {
        let what = || format!("page {number} of the list `{}`", String::from_utf8_lossy(key).escape_debug());
        let distances: Vec<u64> = self.pages.read(&posting_key(key, number), &info.digest, what)?;
        Ok(term::from_distances(&distances))
    }

    fn directory(&self, number: usize) -> Result<Rc<Vec<PageInfo>>, IndexError> {
        if let Some((known, directory)) = &*self.directory.borrow()
            && *known == number
        {
            return Ok(directory.clone());
        }
        let read = match self.top.directories.get(number) {
            Some((_, digest)) => self
                .pages
                .read(&directory_key(number), digest, || format!("directory {number} of the rows"))?,
            None => Vec::new(),
        };
        let read = Rc::new(read);
        *self.directory.borrow_mut() = Some((number, read.clone()));
        Ok(read)
    }

    fn row_page(&self, number: usize) -> Result<Rc<Vec<Row>>, IndexError> {
        if let Some((known, rows)) = &*self.rows.borrow()
            && *known == number
        {
            return Ok(rows.clone());
        }
        let directory = self.directory(number / PAGES_PER_DIRECTORY)?;
        let Some(info) = directory.get(number % PAGES_PER_DIRECTORY) else {
            return Err(self.pages.damaged(format!("there is no page {number} of rows")));
        };
        let read: Vec<Row> =
            self.pages.read(&rows_key(number), &info.digest, || format!("page {number} of the rows"))?;
        let read = Rc::new(read);
        *self.rows.borrow_mut() = Some((number, read.clone()));
        Ok(read)
    }

    /// The page a row would stand in.
    fn page_of(&self, ordinal: u64) -> Result<Option<usize>, IndexError> {
        let directory = self.top.directories.partition_point(|(first, _)| *first <= ordinal);
        let Some(directory) = directory.checked_sub(1) else { return Ok(None) };
        let within = self.directory(directory)?.partition_point(|info| info.first <= ordinal);
        Ok(within.checked_sub(1).map(|within| directory * PAGES_PER_DIRECTORY + within))
    }

    /// What is known of the page a row would stand in.
    fn page_info(&self, ordinal: u64) -> Result<Option<PageInfo>, IndexError> {
        let Some(page) = self.page_of(ordinal)? else { return Ok(None) };
        Ok(self.directory(page / PAGES_PER_DIRECTORY)?.get(page % PAGES_PER_DIRECTORY).copied())
    }

    /// The row of an ordinal, if there is one.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn row(&self, ordinal: u64) -> Result<Option<Row>, IndexError> {
        let Some(page) = self.page_of(ordinal)? else { return Ok(None) };
        let rows = self.row_page(page)?;
        let at = rows.binary_search_by_key(&ordinal, |row| row.ordinal);
        Ok(at.ok().and_then(|at| rows.get(at).cloned()))
    }

    /// Every row, in the order in which they were taken: for checking, and for comparing with what lists find.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn each_row(&self, mut visit: impl FnMut(&Row)) -> Result<(), IndexError> {
        for number in 0..self.top.directories.len() {
            let pages = self.directory(number)?.len();
            for page in 0..pages {
                self.row_page(number * PAGES_PER_DIRECTORY + page)?.iter().for_each(&mut visit);
            }
        }
        Ok(())
    }
}

fn day_key(day: u64) -> Vec<u8> {
    [b"N".as_slice(), &day.to_be_bytes()].concat()
}

fn bucket_key(number: usize) -> Vec<u8> {
    [b"B".as_slice(), &(number as u64).to_be_bytes()].concat()
}

fn directory_key(number: usize) -> Vec<u8> {
    [b"D".as_slice(), &(number as u64).to_be_bytes()].concat()
}

fn rows_key(number: usize) -> Vec<u8> {
    [b"r".as_slice(), &(number as u64).to_be_bytes()].concat()
}

fn posting_key(key: &[u8], number: usize) -> Vec<u8> {
    [b"p".as_slice(), key, b"\0", &(number as u64).to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_the_numbers_that_were_added(
            added in proptest::collection::vec((0_u64..60, 0_u64..8), 0..20), asked in (0_u64..60, 0_u64..20),
        ) {
            let (mut ranges, mut numbers) = (Ranges::default(), BTreeSet::new());
            for (first, more) in added {
                match more {
                    0 => prop_assert_eq!(ranges.insert(first), numbers.insert(first)),
                    more => {
                        ranges.insert_all(first, first + more);
                        numbers.extend(first..=first + more);
                    }
                }
            }
            prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges);
            let all: BTreeSet<u64> = ranges.0.iter().flat_map(|(from, to)| *from..=*to).collect();
            prop_assert_eq!(&all, &numbers);
            let (first, last) = (asked.0, asked.0 + asked.1);
            let lacking = (first..=last).filter(|number| !numbers.contains(number)).count() as u64;
            prop_assert_eq!(ranges.lacks(first, last), lacking);
            let missing: u64 = ranges.holes().map(|(from, to)| to - from + 1).sum();
            let end = numbers.last().map_or(0, |last| last + 1);
            prop_assert_eq!(missing, end - numbers.len() as u64);
        }
    }
}
