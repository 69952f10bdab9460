//! Walking lists: rows that stand in all of some lists, within a window of time, a page at a time.

use writ_common::time::Timestamp;

use super::{
    Index, IndexError, Term,
    row::Row,
    term::{Head, Span, from_distances},
};

/// Which times are asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The first moment.
    pub from: Option<Timestamp>,
    /// The moment after the last.
    pub to: Option<Timestamp>,
    /// Only what was granted and had not ended at this moment.
    pub alive_at: Option<Timestamp>,
}

impl Window {
    /// Whether a row is within.
    #[must_use]
    pub fn holds(&self, row: &Row) -> bool {
        self.touches(&Span::of(row))
    }

    fn touches(&self, span: &Span) -> bool {
        self.from.is_none_or(|from| span.to >= from)
            && self.to.is_none_or(|to| span.from < to)
            && self.alive_at.is_none_or(|at| span.from <= at && at < span.until)
    }
}

/// One page of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the order in which the bus stored them.
    pub rows: Vec<Row>,
    /// The ordinal after which the next page begins; none if this is the last.
    pub next: Option<u64>,
}

/// One list, read as far as it is needed.
struct Walk<'i> {
    index: &'i Index,
    key: Vec<u8>,
    head: Head,
    tail: Vec<u64>,
    window: Window,
    /// The page that is loaded; the tail counts as the one after the last.
    number: usize,
    loaded: Option<Vec<u64>>,
}

impl<'i> Walk<'i> {
    fn new(index: &'i Index, term: &Term<'_>, window: Window) -> Result<Self, IndexError> {
        let key = term.key();
        let head = index.head(&key)?;
        let tail = from_distances(&head.tail);
        Ok(Self { index, key, head, tail, window, number: 0, loaded: None })
    }

    /// The first ordinal of the list that is not below `from`, leaving out pages that lie outside the window.
    fn seek(&mut self, from: u64) -> Result<Option<u64>, IndexError> {
        loop {
            let Some(info) = self.head.pages.get(self.number) else {
                let in_window = self.head.span.is_some_and(|span| self.window.touches(&span));
                let at = self.tail.partition_point(|ordinal| *ordinal < from);
                return Ok(self.tail.get(at).copied().filter(|_| in_window));
            };
            if info.last >= from && self.window.touches(&info.span) {
                if self.loaded.is_none() {
                    self.loaded = Some(self.index.posting_page(&self.key, self.number, info)?);
                }
                let loaded = self.loaded.as_deref().unwrap_or_default();
                let at = loaded.partition_point(|ordinal| *ordinal < from);
                if let Some(found) = loaded.get(at) {
                    return Ok(Some(*found));
                }
            }
            self.number += 1;
            self.loaded = None;
        }
    }
}

impl Index {
    /// Visits rows that stand in every one of the lists and are within the window, in the order in which the bus stored
    /// them, after the ordinal `after`, until `visit` says no.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn visit(
        &self,
        terms: &[Term<'_>],
        window: Window,
        after: Option<u64>,
        mut visit: impl FnMut(&Row) -> bool,
    ) -> Result<(), IndexError> {
        let mut walks =
            terms.iter().map(|term| Walk::new(self, term, window)).collect::<Result<Vec<_>, _>>()?;
        // The shortest list leads: it skips most of the others.
        walks.sort_by_key(|walk| walk.head.len());
        let mut from = after.map_or(0, |after| after.saturating_add(1));
        'rows: loop {
            let mut agreed = None;
            for walk in &mut walks {
                match walk.seek(from)? {
                    None => return Ok(()),
                    Some(found) if agreed.is_some_and(|agreed| agreed != found) => {
                        from = found;
                        continue 'rows;
                    }
                    Some(found) => {
                        agreed = Some(found);
                        from = found;
                    }
                }
            }
            let Some(ordinal) = agreed else { return Ok(()) };
            // A page of rows that lies outside the window is not read.
            let page = self.page_info(ordinal)?;
            if let Some(page) = page.filter(|page| !window.touches(&page.span)) {
                from = page.last.max(ordinal) + 1;
                continue 'rows;
            }
            let row = self.row(ordinal)?;
            let row =
                row.ok_or_else(|| self.pages.damaged(format!("row {ordinal} is listed and not there")))?;
            if window.holds(&row) && !visit(&row) {
                return Ok(());
            }
            from = ordinal + 1;
        }
    }

    /// One page of the rows that [`Index::visit`] visits and `wanted` takes.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn page(
        &self,
        terms: &[Term<'_>],
        window: Window,
        after: Option<u64>,
        limit: usize,
        mut wanted: impl FnMut(&Row) -> bool,
    ) -> Result<Page, IndexError> {
        let mut page = Page::default();
        self.visit(terms, window, after, |row| {
            if !wanted(row) {
                return true;
            }
            if page.rows.len() == limit {
                page.next = page.rows.last().map(|row| row.ordinal);
                return false;
            }
            page.rows.push(row.clone());
            true
        })?;
        Ok(page)
    }
}
