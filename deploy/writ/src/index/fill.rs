//! Taking messages in. The same messages make the same pages, however often it was stopped in between.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use writ_common::{
    approval::ApprovalAnswer,
    digest::Digest,
    ids::{BootId, PartId},
    record::{DecisionId, Origin, Record, RecordBody},
    time::Timestamp,
};

use super::{
    Day, Deleted, FAULTS_KEPT_MAX, Index, IndexError, PAGES_PER_DIRECTORY, PartRead, ROWS_PER_PAGE, Refusal,
    Refusals, Run, bucket_key, day_key, directory_key, posting_key,
    row::{Place, Row, RowKind},
    rows_key,
    store::Packed,
    term::{self, Head, POSTINGS_PER_PAGE, PageInfo, Span, from_distances, to_distances},
};

/// Rows between two commits: what a fill that is killed has to do again, and what it keeps in memory.
pub const ROWS_PER_COMMIT: usize = 32_768;

/// A message as the index takes it, signatures checked.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it stands.
    pub place: Place,
    /// Plain SHA-256 of its bytes.
    pub digest: Digest,
    /// What it holds.
    pub content: Content,
}

/// What a message holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// An approver's answer.
    Answer(Box<ApprovalAnswer>),
    /// Nothing that is to be believed, and why.
    Fault(String),
    /// A record.
    Record(Box<Record>),
}

/// A list that is written: the head, its tail as ordinals.
type Written = (Head, Vec<u64>);

/// An index that grows. What was not committed is gone when it is dropped.
pub struct Filler {
    index: Index,
    /// Pages of rows that changed.
    rows: BTreeMap<usize, Vec<Row>>,
    /// The page new rows go to.
    page: usize,
    buckets: BTreeMap<usize, BTreeMap<Vec<u8>, Written>>,
    /// Full pages of lists.
    postings: Vec<(Vec<u8>, Packed)>,
    days: BTreeMap<Day, Refusals>,
    /// Allowed calls without outcome: ordinal, and the page if it is not committed.
    open: BTreeMap<DecisionId, (u64, Option<usize>)>,
    runs: BTreeMap<(Origin, BootId), Run>,
    /// Messages and other news since the last commit.
    waiting: usize,
}

impl Filler {
    /// Makes an index grow.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn new(index: Index) -> Result<Self, IndexError> {
        let open = index.open_calls()?.into_iter().map(|(id, ordinal)| (id, (ordinal, None))).collect();
        let runs = index.runs()?.into_iter().collect();
        let page = match index.top.directories.len().checked_sub(1) {
            None => 0,
            Some(directory) => {
                let infos = index.directory(directory)?;
                let last = directory * PAGES_PER_DIRECTORY + infos.len().saturating_sub(1);
                let is_full = infos.last().is_some_and(|info| info.count == ROWS_PER_PAGE as u64);
                last + usize::from(is_full)
            }
        };
        Ok(Self {
            index,
            rows: BTreeMap::new(),
            page,
            buckets: BTreeMap::new(),
            postings: Vec::new(),
            days: BTreeMap::new(),
            open,
            runs,
            waiting: 0,
        })
    }

    /// What was committed.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// How far a part was read.
    #[must_use]
    pub fn part(&self, part: &PartId) -> PartRead {
        self.index.position.parts.get(part).cloned().unwrap_or_default()
    }

    /// Says of a part which stream it was read from, what of it was deleted before, and that everything before `next`
    /// was looked at.
    pub fn say(&mut self, part: &PartId, created: Option<Timestamp>, deleted: Vec<Deleted>, next: u64) {
        let known = self.index.position.parts.get(part);
        let before = known.cloned().unwrap_or_default();
        let after = PartRead {
            created: before.created.or(created),
            next: before.next.max(next),
            deleted: if deleted.is_empty() { before.deleted.clone() } else { deleted },
            ..before.clone()
        };
        if known.is_none() || after != before {
            self.index.position.parts.insert(part.clone(), after);
            self.waiting += 1;
        }
    }

    /// Says which records of a run stood in an archived part of which some are deleted, as ranges with both ends.
    pub fn say_deleted(&mut self, origin: &Origin, boot: &BootId, positions: &[(u64, u64)]) {
        let run = self.runs.entry((origin.clone(), boot.clone())).or_default();
        for (first, last) in positions {
            run.deleted.insert_all(*first, *last);
        }
        self.waiting += 1;
    }

    /// Says which parts are not to be had now, although there is more in them.
    pub fn leave_out(&mut self, parts: BTreeSet<PartId>) {
        if self.index.position.left_out != parts {
            self.index.position.left_out = parts;
            self.waiting += 1;
        }
    }

    /// Takes a message in.
    ///
    /// # Errors
    /// [`IndexError`]; also if it comes before one of its part that was taken.
    pub fn take(&mut self, message: Message) -> Result<(), IndexError> {
        let Message { place, digest, content } = message;
        let position = &mut self.index.position;
        let part = position.parts.entry(place.part.clone()).or_default();
        if place.sequence < part.next {
            let why =
                format!("holds messages of {} up to #{}, and {place} came now", place.part, part.next - 1);
            return Err(self.index.other_source(why));
        }
        part.next = place.sequence + 1;
        part.last = Some((place.sequence, digest));
        let ordinal = position.next;
        position.next += 1;
        position.taken.messages += 1;
        match content {
            Content::Answer(answer) => self.push(Row::of_answer(ordinal, place, &answer))?,
            Content::Fault(why) => {
                position.taken.faults += 1;
                if self.index.top.faults.len() < FAULTS_KEPT_MAX {
                    self.index.top.faults.push((place, why));
                }
            }
            Content::Record(record) => self.take_record(ordinal, place, &record)?,
        }
        self.waiting += 1;
        if self.waiting >= ROWS_PER_COMMIT {
            self.commit()?;
        }
        Ok(())
    }

    fn take_record(&mut self, ordinal: u64, place: Place, record: &Record) -> Result<(), IndexError> {
        let run = self.runs.entry((record.id.origin.clone(), record.id.boot.clone())).or_default();
        let is_void = matches!(record.body, RecordBody::Void(_));
        let seen = if is_void { &mut run.voids } else { &mut run.records };
        if !seen.insert(record.id.seq) {
            self.index.position.taken.copies += 1;
            return Ok(());
        }
        let mut row = Row::of_record(ordinal, place, record);
        let ends = match &record.body {
            RecordBody::Outcome(outcome) => Some(&outcome.intent),
            RecordBody::Void(_) => Some(&record.id),
            RecordBody::Verdict(_) => None,
        };
        if let Some((at, page)) = ends.and_then(|id| self.open.remove(id)) {
            let end = row.as_end();
            let intent = self.row_mut(at, page)?;
            intent.ended = Some(end);
            if row.kind == RowKind::Outcome {
                let intent = intent.clone();
                row.complete_from(&intent);
            }
        }
        if row.is_open() {
            self.open.insert(record.id.clone(), (ordinal, Some(self.page)));
        }
        if row.kind.is_refusal() {
            self.count_refusal(&row)?;
        }
        self.push(row)
    }

    /// A row that was written before, to be changed.
    fn row_mut(&mut self, ordinal: u64, page: Option<usize>) -> Result<&mut Row, IndexError> {
        let page = match page {
            Some(page) => Some(page),
            None => self.index.page_of(ordinal)?,
        };
        let missing =
            || self.index.pages.damaged(format!("row {ordinal} waits for its outcome and is not there"));
        let page = page.ok_or_else(missing)?;
        if !self.rows.contains_key(&page) {
            self.rows.insert(page, self.index.row_page(page)?.to_vec());
        }
        let rows = self.rows.get_mut(&page).into_iter().flatten();
        rows.into_iter().find(|row| row.ordinal == ordinal).ok_or_else(missing)
    }

    fn count_refusal(&mut self, row: &Row) -> Result<(), IndexError> {
        let day = row.at.as_secs() / 86_400;
        if !self.days.contains_key(&day) {
            self.days.insert(day, self.index.refusals(day)?);
        }
        let caller = row.caller.as_ref().or(row.agent.as_ref()).map(ToString::to_string);
        let refusal = Refusal {
            code: row.causes.first().map_or_else(String::new, |cause| cause.code.to_string()),
            target: row.target(),
            caller: caller.or_else(|| row.operator.clone()).unwrap_or_default(),
        };
        let counted = self.days.entry(day).or_default().entry(refusal).or_default();
        *counted = counted.saturating_add(row.count);
        Ok(())
    }

    fn push(&mut self, row: Row) -> Result<(), IndexError> {
        let span = Span::of(&row);
        for key in term::keys_of(&row) {
            self.list(&key, row.ordinal, span)?;
        }
        if !self.rows.contains_key(&self.page) {
            let begun =
                self.index.top.directories.len().checked_sub(1).map(|last| self.index.directory(last));
            let pages = begun.transpose()?.map_or(0, |infos| infos.len());
            let known = self.index.top.directories.len().saturating_sub(1) * PAGES_PER_DIRECTORY + pages;
            let rows = if self.page < known { self.index.row_page(self.page)?.to_vec() } else { Vec::new() };
            self.rows.insert(self.page, rows);
        }
        let rows = self.rows.entry(self.page).or_default();
        rows.push(row);
        if rows.len() >= ROWS_PER_PAGE {
            self.page += 1;
        }
        self.index.position.taken.rows += 1;
        Ok(())
    }

    fn list(&mut self, key: &[u8], ordinal: u64, span: Span) -> Result<(), IndexError> {
        let number = term::bucket_of(key);
        if !self.buckets.contains_key(&number) {
            let heads = self.index.bucket(number)?.into_iter();
            let written = heads.map(|(key, mut head)| {
                let tail = from_distances(&std::mem::take(&mut head.tail));
                (key, (head, tail))
            });
            self.buckets.insert(number, written.collect());
        }
        let (head, tail) = self.buckets.entry(number).or_default().entry(key.to_vec()).or_default();
        tail.push(ordinal);
        let span = head.span.map_or(span, |known| known.join(span));
        head.span = Some(span);
        if tail.len() >= POSTINGS_PER_PAGE {
            let page_key = posting_key(key, head.pages.len());
            let packed = self.index.pages.pack(&page_key, &to_distances(tail))?;
            head.pages.push(PageInfo {
                first: tail.first().copied().unwrap_or_default(),
                last: ordinal,
                count: tail.len() as u64,
                span,
                digest: packed.digest,
            });
            tail.clear();
            head.span = None;
            self.postings.push((page_key, packed));
        }
        Ok(())
    }

    /// Writes what was taken since the last commit: all of it or nothing.
    ///
    /// # Errors
    /// [`IndexError`]; nothing of it counts then.
    pub fn commit(&mut self) -> Result<(), IndexError> {
        if self.waiting == 0 {
            return Ok(());
        }
        let mut pages = std::mem::take(&mut self.postings);
        self.commit_rows(&mut pages)?;
        self.commit_lists(&mut pages)?;
        let store = &self.index.pages;
        let top = &mut self.index.top;
        for (day, refusals) in std::mem::take(&mut self.days) {
            let counted: Vec<(Refusal, u64)> = refusals.into_iter().collect();
            let packed = store.pack(&day_key(day), &counted)?;
            top.days.insert(day, packed.digest);
            pages.push((day_key(day), packed));
        }
        let open: Vec<(&DecisionId, u64)> =
            self.open.iter().map(|(id, (ordinal, _))| (id, *ordinal)).collect();
        let packed = store.pack(b"O", &open)?;
        top.open = Some(packed.digest);
        pages.push((b"O".to_vec(), packed));
        let runs: Vec<_> = self.runs.iter().collect();
        let packed = store.pack(b"R", &runs)?;
        top.runs = Some(packed.digest);
        pages.push((b"R".to_vec(), packed));
        let packed = store.pack(b"T", &*top)?;
        self.index.position.top = Some(packed.digest);
        pages.push((b"T".to_vec(), packed));
        self.index.position.writes += 1;
        store.write(pages, &self.index.position)?;
        // They are on disk now, and their pages are found there.
        self.open.values_mut().for_each(|(_, page)| *page = None);
        *self.index.directory.borrow_mut() = None;
        *self.index.rows.borrow_mut() = None;
        self.waiting = 0;
        Ok(())
    }

    fn commit_rows(&mut self, pages: &mut Vec<(Vec<u8>, Packed)>) -> Result<(), IndexError> {
        let mut directories: BTreeMap<usize, Vec<PageInfo>> = BTreeMap::new();
        for (number, rows) in std::mem::take(&mut self.rows) {
            let (Some(first), Some(last)) = (rows.first(), rows.last()) else { continue };
            let packed = self.index.pages.pack(&rows_key(number), &rows)?;
            let info = PageInfo {
                first: first.ordinal,
                last: last.ordinal,
                count: rows.len() as u64,
                span: rows.iter().map(Span::of).fold(Span::of(first), Span::join),
                digest: packed.digest,
            };
            pages.push((rows_key(number), packed));
            let directory = number / PAGES_PER_DIRECTORY;
            let infos = match directories.entry(directory) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.index.directory(directory)?.to_vec()),
            };
            match infos.get_mut(number % PAGES_PER_DIRECTORY) {
                Some(known) => *known = info,
                // Pages come in order, so that a new one is the next one.
                None => infos.push(info),
            }
        }
        for (number, infos) in directories {
            let packed = self.index.pages.pack(&directory_key(number), &infos)?;
            let entry = (infos.first().map_or(0, |info| info.first), packed.digest);
            match self.index.top.directories.get_mut(number) {
                Some(known) => *known = entry,
                None => self.index.top.directories.push(entry),
            }
            pages.push((directory_key(number), packed));
        }
        Ok(())
    }

    fn commit_lists(&mut self, pages: &mut Vec<(Vec<u8>, Packed)>) -> Result<(), IndexError> {
        for (number, written) in std::mem::take(&mut self.buckets) {
            let heads: Vec<(Vec<u8>, Head)> = written
                .into_iter()
                .map(|(key, (head, tail))| (key, Head { tail: to_distances(&tail), ..head }))
                .collect();
            let packed = self.index.pages.pack(&bucket_key(number), &heads)?;
            if let Some(known) = self.index.top.buckets.get_mut(number) {
                *known = Some(packed.digest);
            }
            pages.push((bucket_key(number), packed));
        }
        Ok(())
    }

    /// Commits, and gives the index back for reading.
    ///
    /// # Errors
    /// As [`Filler::commit`].
    pub fn finish(mut self) -> Result<Index, IndexError> {
        self.commit()?;
        Ok(self.index)
    }
}
