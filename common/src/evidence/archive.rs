//! Parts of the audit stream that were put away: rule 13 of deploy/evidence.md. The control stream names the manifest
//! of each by its digest; the manifest says which positions of which run lay in the part, and the newest checkpoint of
//! each run at that time, from which verifying starts again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Deserialize;

use super::{
    finding::{Code, Finding},
    run::Run,
    verify::Scope,
};
use crate::{
    control::ControlState,
    digest::Digest,
    ids::{PartId, TenantId},
    part::Archived,
    tlog::LogId,
    visible::visible,
};

/// The name of the manifest's format.
pub const ARCHIVE_FORMAT: &str = "writ-archive/1";
/// Most runs a note names; the others are counted.
const RUNS_NAMED_MAX: usize = 3;

/// What verifying needs of the manifest of an archived part. A manifest says more, for those who read the archive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ArchiveManifest {
    /// [`ARCHIVE_FORMAT`].
    pub format: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The part.
    pub part: PartId,
    /// The stream it was.
    pub stream: ArchivedStream,
    /// Every run with records in it.
    pub runs: Vec<ArchivedRun>,
}

/// The stream of an archived part.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ArchivedStream {
    /// Sequence of its last message.
    pub last: u64,
}

/// What of a run lay in a part.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ArchivedRun {
    /// The run, as the origin line of its checkpoints.
    #[serde(with = "crate::tlog::as_origin_line")]
    pub log: LogId,
    /// The positions of its records there: ranges with both ends, in order.
    pub positions: Vec<(u64, u64)>,
    /// The newest checkpoint of its log when the part was put away, if it had one.
    #[serde(default)]
    pub checkpoint: Option<String>,
}

impl ArchiveManifest {
    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// What is wrong with it: it is not JSON of this form, a run is of another tenant or stands there twice, or ranges
    /// are out of order.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.format != ARCHIVE_FORMAT {
            return Err(format!("its format is `{}` and not `{ARCHIVE_FORMAT}`", manifest.format));
        }
        let mut logs = BTreeSet::new();
        for ArchivedRun { log, positions, .. } in &manifest.runs {
            if log.tenant != manifest.tenant || !logs.insert(log) {
                return Err(format!("run {log} is of another tenant, or stands there twice"));
            }
            let is_out_of_order =
                |pair: &[(u64, u64)]| matches!(pair, [(_, last), (next, _)] if next <= last);
            if positions.iter().any(|(first, last)| first > last) || positions.windows(2).any(is_out_of_order)
            {
                return Err(format!("the positions of run {log} are out of order"));
            }
        }
        Ok(manifest)
    }
}

/// Positions of one run, as ranges with both ends that are in order and do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn add(&mut self, more: &[(u64, u64)]) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(more);
        all.sort_unstable();
        for (first, last) in all {
            match self.0.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => self.0.push((first, last)),
            }
        }
    }

    pub(super) fn holds(&self, position: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < position);
        self.0.get(at).is_some_and(|(first, _)| *first <= position)
    }

    /// One more than the last position.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |(_, last)| last.saturating_add(1))
    }

    /// How many positions there are from this one on.
    pub(super) fn count_from(&self, from: u64) -> u64 {
        let of = |(first, last): &(u64, u64)| last.saturating_add(1).saturating_sub(from.max(*first));
        self.0.iter().map(of).fold(0, u64::saturating_add)
    }

    /// What of a range with both ends is not among these.
    pub(super) fn outside(&self, (from, to): (u64, u64)) -> Vec<(u64, u64)> {
        let (mut outside, mut next) = (Vec::new(), from);
        let at = self.0.partition_point(|(_, last)| *last < from);
        for (first, last) in self.0.iter().skip(at).take_while(|(first, _)| *first <= to) {
            if *first > next {
                outside.push((next, first - 1));
            }
            if *last >= to {
                return outside;
            }
            next = last + 1;
        }
        outside.push((next, to));
        outside
    }
}

/// By part, what was put away with it and is not here.
pub(super) type NotHere<'m> = BTreeMap<&'m PartId, Vec<Lacking<'m>>>;

/// What of a run lay in a part and is not here.
#[derive(Debug)]
pub(super) struct Lacking<'m> {
    pub(super) log: &'m LogId,
    count: u64,
    first: u64,
    /// The last position that is not here.
    pub(super) last: u64,
}

impl<'m> Lacking<'m> {
    fn of(archived: &'m ArchivedRun, run: Option<&Run>) -> Option<Self> {
        let none = BTreeMap::new();
        let here = run.map_or(&none, |run| &run.positions);
        let mut gaps = Vec::new();
        for (first, last) in &archived.positions {
            let mut next = *first;
            for position in here.range(first..=last).map(|(position, _)| *position) {
                if position > next {
                    gaps.push((next, position - 1));
                }
                next = position.saturating_add(1);
            }
            if next <= *last && !here.contains_key(last) {
                gaps.push((next, *last));
            }
        }
        let count = gaps.iter().map(|(first, last)| (last - first).saturating_add(1));
        let count = count.fold(0, u64::saturating_add);
        let ((first, _), (_, last)) = (*gaps.first()?, *gaps.last()?);
        Some(Self { log: &archived.log, count, first, last })
    }
}

impl fmt::Display for Lacking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, count, first, last } = self;
        write!(f, "{count} of {}/{} from {first} to {last}", log.origin, log.boot)
    }
}

/// The parts that the control stream says were put away, as far as their manifests are here.
#[derive(Debug, Default)]
pub(super) struct PutAway {
    manifests: BTreeMap<PartId, ArchiveManifest>,
    /// Parts of which there is a manifest, good or bad.
    seen: BTreeSet<PartId>,
    runs: BTreeMap<LogId, Ranges>,
}

impl PutAway {
    /// Takes the manifest of a part; gives back the checkpoints in it.
    ///
    /// # Errors
    /// The finding, if the control stream does not name it, or it is not what that names: then it counts for nothing.
    pub(super) fn take(
        &mut self,
        name: &str,
        bytes: &[u8],
        control: &ControlState,
    ) -> Result<Vec<(LogId, String)>, Finding> {
        let place = place(&visible(name));
        let Some((part, archived)) =
            control.parts().archived().iter().find(|(part, _)| part.as_str() == name)
        else {
            let text = "the control stream does not say that this part was put away: it counts for nothing";
            return Err(Finding::warning(Code::ArchiveManifest, place, text));
        };
        self.seen.insert(part.clone());
        let manifest = Self::read(part, archived, bytes, control.tenant())
            .map_err(|why| Finding::fault(Code::ArchiveManifest, place, visible(&why)))?;
        for run in &manifest.runs {
            self.runs.entry(run.log.clone()).or_default().add(&run.positions);
        }
        let kept = |run: &ArchivedRun| Some((run.log.clone(), run.checkpoint.clone()?));
        let checkpoints = manifest.runs.iter().filter_map(kept).collect();
        self.manifests.insert(part.clone(), manifest);
        Ok(checkpoints)
    }

    fn read(
        part: &PartId,
        archived: &Archived,
        bytes: &[u8],
        tenant: &TenantId,
    ) -> Result<ArchiveManifest, String> {
        let digest = Digest::plain(bytes);
        if digest != archived.manifest {
            return Err(format!("its digest is {digest}, and the control stream says {}", archived.manifest));
        }
        let manifest = ArchiveManifest::parse(bytes)?;
        if manifest.part != *part || manifest.tenant != *tenant || manifest.stream.last != archived.last {
            return Err(
                "it is of another part or tenant, or ends elsewhere than the control stream says".to_owned()
            );
        }
        Ok(manifest)
    }

    /// The positions of a run that were put away.
    pub(super) fn of(&self, log: &LogId) -> Option<&Ranges> {
        self.runs.get(log)
    }

    /// Whether there may be a record at a position that is not here.
    pub(super) fn holds(&self, log: &LogId, position: u64) -> bool {
        self.of(log).is_some_and(|ranges| ranges.holds(position))
    }

    /// Every run of which something was put away.
    pub(super) fn logs(&self) -> impl Iterator<Item = &LogId> {
        self.runs.keys()
    }

    pub(super) fn not_here(&self, runs: &BTreeMap<LogId, Run>) -> NotHere<'_> {
        let mut not_here = NotHere::new();
        for (part, manifest) in &self.manifests {
            let archived = manifest.runs.iter();
            let lacking = archived.filter_map(|archived| Lacking::of(archived, runs.get(&archived.log)));
            not_here.insert(part, lacking.collect());
        }
        not_here
    }

    /// Manifests that should be here and are not, and how much is not here because it was put away. An export of one
    /// task is not asked for either: what it lacks, it does not claim.
    pub(super) fn check(&self, control: &ControlState, scope: &Scope, lacking: &NotHere<'_>) -> Vec<Finding> {
        if *scope != Scope::All {
            return Vec::new();
        }
        let archived = control.parts().archived().keys();
        let missing = archived.filter(|part| !self.seen.contains(*part)).map(|part| {
            let text = "the control stream says that this part was put away, and its manifest is not here";
            Finding::fault(Code::ArchiveManifest, place(part.as_str()), text)
        });
        let notes = lacking.iter().filter(|(_, lacking)| !lacking.is_empty()).map(|(part, lacking)| {
            let count = lacking.iter().map(|one| one.count).fold(0, u64::saturating_add);
            let mut named: Vec<String> =
                lacking.iter().take(RUNS_NAMED_MAX).map(ToString::to_string).collect();
            if let Some(more @ 1..) = lacking.len().checked_sub(RUNS_NAMED_MAX) {
                named.push(format!("those of {more} other runs"));
            }
            let text = format!("{count} records were put away and are not here: {}", named.join(", "));
            Finding::note(Code::RecordArchived, format!("part {part}"), text)
        });
        missing.chain(notes).collect()
    }
}

/// Where the manifest of a part stands in an export.
pub(super) fn place(part: &str) -> String {
    format!("archive/{part}.json")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(all: &[(u64, u64)]) -> Ranges {
        let mut ranges = Ranges::default();
        all.iter().for_each(|range| ranges.add(&[*range]));
        ranges
    }

    #[test]
    fn a_manifest_is_read_and_what_is_none_is_told() {
        let good = r#"{"format": "writ-archive/1", "tenant": "acme", "part": "p0", "stream": {"last": 9, "messages": 9},
            "segments": [], "runs": [{"log": "writ-log/v1/acme/node/node-1/b-1", "positions": [[0, 3], [5, 5]],
            "leaves": "00", "checkpoint": "note"}, {"log": "writ-log/v1/acme/broker/broker-1/b-1", "positions": []}]}"#;
        let read = ArchiveManifest::parse(good.as_bytes()).unwrap();
        assert_eq!((read.stream.last, read.runs.len()), (9, 2));
        assert_eq!(read.runs[0].positions, [(0, 3), (5, 5)]);
        for (what, wrong, why) in [
            ("/1", "/2", "format"),
            ("[5, 5]", "[3, 5]", "out of order"),
            ("[0, 3]", "[3, 0]", "out of order"),
            ("[0, 3]", "[0, 3, 4]", "trailing characters"),
            ("[0, 3]", "[0, -3]", "invalid value"),
            ("v1/acme/broker", "v1/globex/broker", "another tenant"),
            ("broker/broker-1", "node/node-1", "twice"),
            ("writ-log/v1", "writ-log/v2", "form"),
            (r#""part": "p0", "#, "", "part"),
        ] {
            let text = good.replace(what, wrong);
            assert_ne!(text, good, "{what}");
            let said = ArchiveManifest::parse(text.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{what}: {said}");
        }
    }

    #[test]
    fn the_ends_of_everything_are_no_trouble() {
        let all = ranges(&[(0, u64::MAX)]);
        assert_eq!((all.end(), all.holds(u64::MAX), all.outside((0, u64::MAX)).len()), (u64::MAX, true, 0));
        assert_eq!(all.count_from(0), u64::MAX);
        let archived = ArchivedRun {
            log: LogId::parse("writ-log/v1/acme/node/node-1/b-1").unwrap(),
            positions: vec![(0, u64::MAX)],
            checkpoint: None,
        };
        assert_eq!(Lacking::of(&archived, None).unwrap().count, u64::MAX);
    }

    proptest! {
        #[test]
        fn ranges_say_what_their_positions_do(
            all in proptest::collection::vec((0_u64..40, 0_u64..8), 0..8),
            from in 0_u64..50,
            length in 0_u64..20,
        ) {
            let all: Vec<(u64, u64)> = all.iter().map(|(first, more)| (*first, first + more)).collect();
            let one = ranges(&all);
            let holds = |position: u64| all.iter().any(|(first, last)| (*first..=*last).contains(&position));
            prop_assert!((0..60).all(|position| one.holds(position) == holds(position)));
            prop_assert_eq!(one.end(), (0..60).rfind(|position| holds(*position)).map_or(0, |last| last + 1));
            prop_assert_eq!(one.count_from(from), (from..60).filter(|position| holds(*position)).count() as u64);
            let to = from + length;
            let outside = one.outside((from, to)).into_iter().flat_map(|(first, last)| first..=last);
            prop_assert_eq!(outside.collect::<Vec<_>>(), (from..=to).filter(|position| !holds(*position)).collect::<Vec<_>>());
        }
    }
}
