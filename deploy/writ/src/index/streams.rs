//! The parts of a tenant's audit stream as the source of an index: those that have a stream, and those in an archive.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use writ_common::{
    digest::Digest, ids::PartId, part::Archived as Said, subjects::part_stream, time::Timestamp,
};

use super::{
    Deleted, Index,
    fill::Filler,
    history::ControlHistory,
    lanes::{Lane, take_merged},
};
use crate::{
    archive::{
        manifest::{Class, Manifest},
        read::Archived,
        store::Store,
    },
    operator::Operator,
};

/// A part of which not everything is in an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead {
    /// Which.
    pub part: PartId,
    /// How many messages, or of an export, records; none if that is not known.
    pub messages: Option<u64>,
    /// Why, and what to do about it.
    pub why: String,
}

/// The parts as they are now.
pub struct Streams<'a> {
    operator: &'a Operator,
    store: Option<&'a Store>,
    live: Vec<Live>,
    /// Parts that were put away, with what the archive has of those the index lacks something of.
    put_away: Vec<(PartId, Said, Option<Archived>)>,
    /// What was stored later is not read: it could not be put in order yet.
    until: Option<Timestamp>,
}

struct Live {
    part: PartId,
    created: Timestamp,
    last: u64,
}

impl<'a> Streams<'a> {
    /// Looks at every part, and opens those in the archive that the index lacks something of.
    ///
    /// # Errors
    /// If a stream or the archive cannot be read, a part has no stream, or a manifest is not the one that the control
    /// stream names.
    pub async fn look(
        operator: &'a Operator,
        history: &ControlHistory,
        store: Option<&'a Store>,
        index: &Index,
    ) -> Result<Self> {
        let parts = history.state.parts();
        let mut put_away = Vec::new();
        for part in parts.all() {
            let Some(said) = parts.archived().get(part) else { continue };
            let found = match store {
                Some(store) if !has_all(index, part, said) => {
                    Archived::open(store, operator.tenant(), part, Some(&said.manifest)).await?
                }
                _ => None,
            };
            put_away.push((part.clone(), said.clone(), found));
        }
        let names: Vec<PartId> = parts.live().cloned().collect();
        let until = if names.len() > 1 { newest(operator, &names).await? } else { None };
        let mut live = Vec::new();
        for part in names {
            let (created, last) = facts(operator, &part).await?;
            live.push(Live { part, created, last });
        }
        Ok(Self { operator, store, live, put_away, until })
    }

    /// A part that can be read now and could not be read when others were: then the index is made anew, or its rows would
    /// not be in the order in which the bus stored them.
    ///
    /// # Errors
    /// If the archive cannot be read, or lacks a part that the index has and would lose.
    pub async fn came_back(&self, index: &Index) -> Result<Option<&PartId>> {
        let left_out = &index.position().left_out;
        let back = self.put_away.iter().find(|(part, _, found)| found.is_some() && left_out.contains(part));
        let (Some((back, ..)), Some(store)) = (back, self.store) else { return Ok(None) };
        for (part, said, found) in &self.put_away {
            if found.is_some() || !index.position().parts.contains_key(part) {
                continue;
            }
            if Archived::open(store, self.operator.tenant(), part, Some(&said.manifest)).await?.is_none() {
                let why = format!(
                    "was made without part {back}, and has part {part}, which is not in the archive {store}"
                );
                return Err(index.other_source(why).into());
            }
        }
        Ok(Some(back))
    }

    /// Takes in what the index lacks.
    ///
    /// # Errors
    /// If a stream went back behind the index or holds something else there, or one of them cannot be read.
    pub async fn fill(&self, index: Index, history: &ControlHistory) -> Result<Index> {
        self.check_goes_on(&index).await?;
        let mut filler = Filler::new(index)?;
        let mut lanes = Vec::new();
        let mut left_out = BTreeSet::new();
        for (part, said, found) in &self.put_away {
            match (found, self.store) {
                (Some(archived), Some(store)) => {
                    let read = filler.part(part);
                    say_archived(&mut filler, archived);
                    lanes.push(Lane::of_archive(store, archived, read.next, read.last));
                }
                _ if has_all(filler.index(), part, said) => {}
                _ => drop(left_out.insert(part.clone())),
            }
        }
        for Live { part, created, last } in &self.live {
            filler.say(part, Some(*created), Vec::new(), 1);
            let next = filler.part(part).next;
            if next <= *last {
                lanes.push(Lane::of_stream(self.operator, part.clone(), next, *last, self.until));
            }
        }
        filler.leave_out(left_out);
        take_merged(&mut filler, lanes, history).await?;
        Ok(filler.finish()?)
    }

    /// The parts of which the index lacks something.
    #[must_use]
    pub fn not_read(&self, index: &Index) -> Vec<NotRead> {
        let missing = self.put_away.iter().filter(|(part, said, _)| !has_all(index, part, said));
        missing
            .map(|(part, said, _)| {
                let next = index.position().parts.get(part).map_or(1, |read| read.next);
                let how_far = match next {
                    1 => "it was put away before it was read".to_owned(),
                    next => format!("it was read up to #{} of #{} and then put away", next - 1, said.last),
                };
                let remedy = match self.store {
                    None => "name the archive with `--archive`".to_owned(),
                    Some(store) => format!("the archive {store} does not hold it"),
                };
                NotRead { part: part.clone(), messages: None, why: format!("{how_far}; {remedy}") }
            })
            .collect()
    }

    /// A stream that was put back to an earlier state and grew on looks as if it went on. The last message that was taken
    /// of each part has to be there, byte for byte.
    async fn check_goes_on(&self, index: &Index) -> Result<()> {
        let other = |why: String| anyhow::Error::from(index.other_source(why));
        for (part, read) in &index.position().parts {
            let up_to = read.next.saturating_sub(1);
            let (created, last) = match self.live.iter().find(|live| live.part == *part) {
                Some(live) => (Some(live.created), live.last),
                None => {
                    let known = self.put_away.iter().find(|(known, ..)| known == part);
                    let (_, said, found) = known.ok_or_else(|| {
                        other(format!(
                            "holds messages of part {part}, of which the control stream does not know"
                        ))
                    })?;
                    (found.as_ref().map(|found| found.manifest.stream.created), said.last)
                }
            };
            if let (Some(was), Some(is)) = (read.created, created)
                && was != is
            {
                return Err(other(format!(
                    "was made from a stream of part {part} of {was}, and this one is of {is}"
                )));
            }
            if up_to > last {
                return Err(other(format!(
                    "holds messages of part {part} up to #{up_to}, and its stream ends at #{last}: the stream went back"
                )));
            }
            let is_live = self.live.iter().any(|live| live.part == *part);
            let Some((sequence, digest)) = read.last.filter(|_| is_live) else { continue };
            let stream = part_stream(self.operator.tenant(), part);
            let message = self.operator.bus().message_at(&stream, sequence).await?;
            if message.is_none_or(|message| Digest::plain(&message.payload) != digest) {
                return Err(other(format!(
                    "holds another message {part}#{sequence} than the stream: the stream was put back to an earlier \
                     state"
                )));
            }
        }
        Ok(())
    }
}

/// Whether everything of a part that was put away is in an index.
fn has_all(index: &Index, part: &PartId, said: &Said) -> bool {
    index.position().parts.get(part).map_or(1, |read| read.next) > said.last
}

/// Tells the index what it reads from an archive: when the part's stream was created, and what is deleted of it.
pub fn say_archived(filler: &mut Filler, archived: &Archived) {
    let Manifest { part, stream, segments, runs, .. } = &archived.manifest;
    let read = filler.part(part);
    let mut deleted: Vec<Deleted> = Vec::new();
    // Other classes hold nothing the index takes, and what it has already is not lost to it.
    let gone = segments.iter().filter(|segment| {
        segment.class != Class::State && segment.last >= read.next && archived.deletions.of(segment).is_some()
    });
    for segment in gone {
        let messages = segment.messages.get();
        match deleted.iter_mut().find(|known| known.class == segment.class) {
            Some(known) => {
                known.messages = known.messages.saturating_add(messages);
                known.from = known.from.min(segment.from);
                known.to = known.to.max(segment.to);
            }
            None => {
                deleted.push(Deleted { class: segment.class, messages, from: segment.from, to: segment.to });
            }
        }
    }
    if deleted.iter().any(|one| one.class == Class::Records) {
        for run in runs {
            filler.say_deleted(&run.log.origin, &run.log.boot, &run.positions);
        }
    }
    // A fill that was stopped begins again behind what it told already.
    let deleted = if read.deleted.is_empty() { deleted } else { Vec::new() };
    filler.say(part, Some(stream.created), deleted, 1);
}

/// When the newest message of any part was stored. A moment after that, every part's last sequence covers all that was
/// stored up to then, in each of them. None if a part's last message is gone, as those are that end by themselves.
async fn newest(operator: &Operator, parts: &[PartId]) -> Result<Option<Timestamp>> {
    let mut newest = Timestamp::default();
    for part in parts {
        let (_, last) = facts(operator, part).await?;
        if last == 0 {
            continue;
        }
        let stream = part_stream(operator.tenant(), part);
        let Some(message) = operator.bus().message_at(&stream, last).await? else { return Ok(None) };
        newest = newest.max(message.at);
    }
    Ok(Some(newest))
}

async fn facts(operator: &Operator, part: &PartId) -> Result<(Timestamp, u64)> {
    let name = part_stream(operator.tenant(), part);
    let facts = operator.bus().stream_facts(&name).await?;
    let facts =
        facts.with_context(|| format!("there is no stream `{name}`; a broker makes it when it starts"))?;
    Ok((facts.created(), facts.last_sequence))
}
