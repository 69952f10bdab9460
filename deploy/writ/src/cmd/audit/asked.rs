//! What every question of an auditor shares: where the records come from, which times, which page, and what has to be
//! said with every answer.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use writ_bus::SystemClock;
use writ_common::{
    digest::Digest,
    ids::TenantId,
    keys::PublicKey,
    time::{Millis, Timestamp},
    visible::visible,
};

use crate::{
    archive::store::Store,
    cmd::{Common, Output},
    index::{
        Deleted, Index, Source, Window,
        export::{self, Export},
        history::ControlHistory,
        questions::Paging,
        remove,
        row::Place,
        source::{self, Said},
        streams::{NotRead, Streams},
    },
    operator::{Operator, OperatorProfile},
    span,
    view::table::Table,
};

/// Where the index is if nobody says: beside the operator's profile.
const FOLDER: &str = "audit-index";
/// Most rows of a page.
const LIMIT_MAX: u64 = 10_000;
/// Most faults and missing records that are told one by one.
const TOLD_MAX: usize = 5;

/// Where the records come from.
#[derive(Args, Clone)]
pub struct Where {
    /// Folder of the index; a cache that can be removed. `audit-index` beside the profile if absent, for an export
    /// `<export>.index`
    #[arg(long, value_name = "FOLDER")]
    index: Option<PathBuf>,
    /// Build the index again from the first record
    #[arg(long)]
    rebuild: bool,
    /// Where parts of the stream were put away: a folder, or `s3://bucket/prefix`. Needed until the index has read them
    #[arg(long, value_name = "WHERE", conflicts_with = "export")]
    archive: Option<String>,
    /// Ask an export (a folder of `writ audit export`) instead of the stream; no bus is needed
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
    /// With `--export`: the public key of the offline root, from somewhere else than the export; the profile's if absent
    #[arg(long, value_name = "KEY", requires = "export")]
    root: Option<String>,
    /// With `--export`: the tenant; the profile's if absent
    #[arg(long, requires = "export")]
    tenant: Option<TenantId>,
}

/// Which times.
#[derive(Args, Clone)]
pub struct Times {
    /// From then on: RFC 3339 (`2026-11-21`, `2026-11-21T08:00:00Z`) or so long ago (`30m`, `12h`, `7d`, `2w`)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until right before then
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

/// Which page.
#[derive(Args, Clone)]
pub struct Pages {
    /// Most rows of one answer
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX))]
    limit: u64,
    /// Go on after this row, as the answer before said
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
}

/// The present moment.
pub fn now() -> Timestamp {
    SystemClock::new().now().wall
}

/// Reads a moment: RFC 3339, a day, or how long ago.
///
/// # Errors
/// What it should look like.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp> {
    read_moment(text, now).with_context(|| {
        format!("`{text}` is no time; write `2026-11-21T08:00:00Z`, `2026-11-21` or `7d` (so long ago)")
    })
}

fn read_moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(ago) = span::parse(text) {
        return Some(Timestamp::from_millis(now.as_millis().saturating_sub(ago.0)));
    }
    if !text.contains('T') {
        return Timestamp::parse(&format!("{text}T00:00:00Z"));
    }
    // The date and time, a fraction, and the distance from UTC.
    let (whole, rest) = text.split_at_checked(19)?;
    let at = Timestamp::parse(&format!("{whole}Z"))?;
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) if digits > 0 => rest.split_at_checked(digits)?,
        Some(_) => return None,
        None => ("", rest),
    };
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let at = at.after(Millis(millis));
    if zone == "Z" {
        return Some(at);
    }
    let (sign, zone) = zone.split_at_checked(1)?;
    let (hours, minutes) =
        zone.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2)?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    let distance = (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) * 60_000)?;
    match sign {
        "+" => Some(Timestamp::from_millis(at.as_millis().checked_sub(distance)?)),
        "-" => Some(at.after(Millis(distance))),
        _ => None,
    }
}

impl Times {
    /// The window they say.
    ///
    /// # Errors
    /// If a time is none, or the window ends before it begins.
    pub fn window(&self) -> Result<Window> {
        let now = now();
        let from = self.from.as_deref().map(|text| moment(text, now)).transpose()?;
        let to = self.to.as_deref().map(|text| moment(text, now)).transpose()?;
        if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            bail!("`--from` {from} is not before `--to` {to}");
        }
        Ok(Window { from, to, alive_at: None })
    }
}

impl Pages {
    /// The page they say.
    #[must_use]
    pub fn paging(&self) -> Paging {
        Paging { after: self.after, limit: usize::try_from(self.limit).unwrap_or(usize::MAX) }
    }
}

/// An index that is up to date, with what else is known.
pub struct Opened {
    /// The index.
    pub index: Index,
    /// The control stream.
    pub history: ControlHistory,
    /// The connection; none for an export.
    pub operator: Option<Operator>,
    /// The parts of which it lacks something.
    pub not_read: Vec<NotRead>,
}

impl Where {
    /// Opens the index and takes in what is new.
    ///
    /// # Errors
    /// If the index is damaged or of another source, or the source cannot be read.
    pub async fn open(&self, common: &Common) -> Result<Opened> {
        match &self.export {
            Some(export) => self.open_export(export, common).await,
            None => self.open_stream(common).await,
        }
    }

    async fn open_stream(&self, common: &Common) -> Result<Opened> {
        let profile = common.profile()?;
        let beside = || common.profile_file().parent().unwrap_or(Path::new("")).join(FOLDER);
        let folder = self.index.clone().unwrap_or_else(beside);
        let operator = Operator::connect(&profile).await?;
        let history = source::history(&operator, profile.root).await?;
        let store = self.archive.as_deref().map(Store::open).transpose()?;
        let source = Source::Streams { tenant: operator.tenant().clone(), root: profile.root };
        if self.rebuild {
            remove(&folder)?;
        }
        let mut index = open_index(&folder, &source)?;
        let mut streams = Streams::look(&operator, &history, store.as_ref(), &index).await?;
        if let Some(part) = streams.came_back(&index).await? {
            let told = "which it could not read before what came after it";
            writeln!(std::io::stderr().lock(), "note: the index is built again, with part {part}, {told}")?;
            // Closed before it is removed.
            drop(index);
            remove(&folder)?;
            index = open_index(&folder, &source)?;
            streams = Streams::look(&operator, &history, store.as_ref(), &index).await?;
        }
        let index = streams.fill(index, &history).await?;
        let not_read = streams.not_read(&index);
        Ok(Opened { index, history, operator: Some(operator), not_read })
    }

    async fn open_export(&self, folder_of: &Path, common: &Common) -> Result<Opened> {
        let (tenant, root) = self.trusted(common)?;
        let beside = || {
            let name = folder_of.file_name();
            let mut name = name.map_or_else(|| "export".into(), std::ffi::OsStr::to_os_string);
            name.push(".index");
            folder_of.with_file_name(name)
        };
        let folder = self.index.clone().unwrap_or_else(beside);
        let history = export::history(folder_of, tenant, root)?;
        let export = Export::open(folder_of)?;
        if self.rebuild {
            remove(&folder)?;
        }
        let index = export.fill(open_index(&folder, &export.source())?, &history).await?;
        let not_read = export.not_read(&index, &history)?;
        Ok(Opened { index, history, operator: None, not_read })
    }

    /// What approvers were shown and answered, to some requests.
    ///
    /// # Errors
    /// If the stream, archive or export cannot be read.
    pub async fn said(&self, opened: &Opened, requests: &BTreeSet<Digest>) -> Result<Said> {
        match (&opened.operator, &self.export) {
            (Some(operator), _) => {
                let store = self.archive.as_deref().map(Store::open).transpose()?;
                Said::to(requests, operator, store.as_ref(), &opened.history).await
            }
            (None, Some(folder)) => export::said(folder, requests, &opened.history),
            (None, None) => Ok(Said::default()),
        }
    }

    /// Whom to believe. Never the export itself: it could bring a root of its own.
    fn trusted(&self, common: &Common) -> Result<(TenantId, PublicKey)> {
        let root = self.root.as_deref().map(PublicKey::parse).transpose()?;
        if let (Some(tenant), Some(root)) = (&self.tenant, root) {
            return Ok((tenant.clone(), root));
        }
        let profile: OperatorProfile = common.profile().context(
            "an export is believed by the root's public key: give `--root` and `--tenant`, or a profile that has them",
        )?;
        Ok((self.tenant.clone().unwrap_or(profile.tenant), root.unwrap_or(profile.root)))
    }
}

fn open_index(folder: &Path, source: &Source) -> Result<Index> {
    let name = folder.display().to_string();
    // sled may panic over bytes it cannot place, and with `panic = "abort"` nobody else gets to say what to do.
    std::panic::set_hook(Box::new(move |info| {
        let told =
            format!("error: the index in {name} is damaged ({info}); build it again with `--rebuild`\n");
        drop(std::io::stderr().write_all(told.as_bytes()));
    }));
    Ok(Index::open(folder, source)?)
}

impl Opened {
    /// What goes with every answer: what was left out of it, and of what it is the answer.
    ///
    /// # Errors
    /// If the index is damaged.
    pub fn notes(&self) -> Result<(Vec<String>, Value)> {
        let (position, faults) = (self.index.position(), self.index.faults());
        let mut notes = Vec::new();
        if position.taken.faults > 0 {
            let told: Vec<String> = faults
                .iter()
                .take(TOLD_MAX)
                .map(|(place, why)| format!("{place} {}", visible(why)))
                .collect();
            let (verb, noun) = if position.taken.faults == 1 { ("is", "record") } else { ("are", "records") };
            let told = told.join("; ");
            notes.push(format!(
                "{} {noun} {verb} not to be believed and in no answer: {told}",
                position.taken.faults
            ));
        }
        // An export of one task has holes of its own making: what is missing from it, `verify` finds.
        let holes = match position.source {
            Source::Streams { .. } => self.index.holes()?,
            Source::Export { .. } => Vec::new(),
        };
        // What is missing may stand where nobody looked.
        let unless = match self.not_read.as_slice() {
            [] => "",
            _ => ", unless they are in a part that is not in this answer",
        };
        for hole in holes.iter().take(TOLD_MAX) {
            notes.push(format!(
                "records {} to {} of {}/{} are missing{unless}",
                hole.from, hole.to, hole.origin, hole.boot
            ));
        }
        if holes.len() > TOLD_MAX {
            notes.push(format!("and {} more stretches of records are missing", holes.len() - TOLD_MAX));
        }
        let parts = position.parts.iter().map(|(part, read)| {
            let deleted = read.deleted.iter().map(|Deleted { class, messages, from, to }| {
                json!({
                    "class": class, "messages": messages, "from": from.to_string(), "to": to.to_string(),
                })
            });
            let deleted: Vec<Value> = deleted.collect();
            json!({"part": part, "up_to": read.next.saturating_sub(1), "deleted": deleted})
        });
        let fault = |(place, why): &(Place, String)| json!({"part": place.part, "sequence": place.sequence, "why": why});
        let not_read = |one: &NotRead| json!({"part": one.part, "messages": one.messages, "why": one.why});
        let told = json!({
            "source": position.source.to_string(),
            "parts": parts.collect::<Vec<_>>(),
            "rows": position.taken.rows,
            "not_believed": position.taken.faults,
            "faults": faults.iter().map(fault).collect::<Vec<_>>(),
            "not_read": self.not_read.iter().map(not_read).collect::<Vec<_>>(),
            "second_copies": position.taken.copies,
            "missing": holes,
        });
        Ok((notes, told))
    }

    /// What no answer holds because it was not there to be read.
    fn lacks(&self) -> Vec<String> {
        let not_read = self.not_read.iter().map(|NotRead { part, messages, why }| match messages {
            Some(count) => format!("{count} records of part {part} are in no answer: {why}"),
            None => format!("not all of part {part} is in this answer: {why}"),
        });
        let parts = self.index.position().parts.iter();
        let deleted = parts.flat_map(|(part, read)| read.deleted.iter().map(move |one| (part, one)));
        let deleted = deleted.map(|(part, Deleted { class, messages, from, to })| {
            format!(
                "{messages} messages ({class}) of part {part}, stored from {from} to {to}, are in no answer: retention \
                 deleted them"
            )
        });
        not_read.chain(deleted).collect()
    }

    /// Writes an answer in the form that was asked for.
    ///
    /// # Errors
    /// If the index is damaged, or nobody takes the answer.
    pub fn say(&self, common: &Common, table: &Table, more: Vec<String>, mut json: Value) -> Result<()> {
        let (notes, about) = self.notes()?;
        // Whatever the form of the answer, and not among what a program reads of it.
        let mut err = std::io::stderr().lock();
        self.lacks().iter().try_for_each(|note| writeln!(err, "note: {note}"))?;
        let notes: Vec<String> = more.into_iter().chain(notes).collect();
        if let Some(json) = json.as_object_mut() {
            json.insert("index".to_owned(), about);
        }
        match common.output() {
            Output::Table => {
                let body =
                    if table.rows.is_empty() { "nothing on record\n".to_owned() } else { table.to_text() };
                let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
                common.say(body + &notes, &json)
            }
            Output::Csv => {
                std::io::stdout().lock().write_all(table.to_csv().as_bytes())?;
                // Not among the rows: whoever reads those by program would take it for one.
                notes.iter().try_for_each(|note| writeln!(err, "{note}"))?;
                Ok(())
            }
            Output::Json => common.say("", &json),
        }
    }
}

/// How to get the next page.
#[must_use]
pub fn go_on(next: Option<u64>) -> Option<String> {
    next.map(|next| format!("there is more: the next page begins with `--after {next}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_every_form_that_is_told() {
        let now = Timestamp::parse("2026-11-21T12:00:00Z").unwrap();
        for (text, at) in [
            ("2026-11-21T08:00:00Z", "2026-11-21T08:00:00.000Z"),
            ("2026-11-21T08:00:00.25Z", "2026-11-21T08:00:00.250Z"),
            ("2026-11-21T08:00:00.123456Z", "2026-11-21T08:00:00.123Z"),
            ("2026-11-21T08:00:00+02:00", "2026-11-21T06:00:00.000Z"),
            ("2026-11-21T08:00:00-01:30", "2026-11-21T09:30:00.000Z"),
            ("2026-11-21", "2026-11-21T00:00:00.000Z"),
            ("90s", "2026-11-21T11:58:30.000Z"),
            ("30m", "2026-11-21T11:30:00.000Z"),
            ("12h", "2026-11-21T00:00:00.000Z"),
            ("7d", "2026-11-14T12:00:00.000Z"),
            ("2w", "2026-11-07T12:00:00.000Z"),
        ] {
            assert_eq!(moment(text, now).unwrap().to_string(), at, "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2026-02-30",
            "7",
            "-7d",
            "2026-11-21T08:00",
            "2026-11-21T08:00:00",
            "2026-11-21T08:00:00.Z",
            "é",
        ] {
            assert!(moment(text, now).is_err(), "{text}");
        }
    }
}
