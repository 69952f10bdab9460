//! `writ audit rotate` and `writ audit archive`

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use writ_common::{
    control::ControlState,
    ids::PartId,
    keys::PublicKey,
    part,
    subjects::part_stream,
    time::Timestamp,
    wire::{AdminReply, AdminWanted},
};

use super::asked::now;
use crate::{
    archive::{
        manifest::Verified,
        read::{Archived, open},
        segment::SegmentLimits,
        store::Store,
        write::{Leaf, Sealed, waiting, write_part},
    },
    cmd::Common,
    evidence::{
        gather::heads,
        read::{Against, verify},
        write::export,
    },
    exit::{Denied, Exit},
    operator::Operator,
};

/// How long something may be on its way to the stream: longer than its acknowledgement is waited for.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

#[derive(Args)]
pub struct PutAway {
    /// The archive: a folder, or `s3://bucket/prefix` with its key in the environment
    #[arg(long, value_name = "WHERE")]
    archive: String,
    /// This part; every one in which nothing lives any more if absent
    #[arg(long)]
    part: Option<PartId>,
    /// Put it away although a run is open whose node or broker is away, and may never complete its records
    #[arg(long)]
    although_open: bool,
    /// Put it away although verifying found faults; they are written into its manifest
    #[arg(long)]
    with_faults: bool,
    /// Leave its stream where it is
    #[arg(long)]
    keep_stream: bool,
}

/// What became of a part.
enum Outcome {
    /// It is in the archive.
    Away { messages: u64, bytes: u64, manifest: String, is_deleted: bool },
    /// It stays for now, and why.
    Stays(String),
}

/// Begins the next part.
pub(super) async fn rotate(common: &Common) -> Result<Exit> {
    let operator = common.operator().await?;
    let AdminReply::Done { epoch } = operator.ask(AdminWanted::RotatePart).await? else {
        bail!("an answer to another question");
    };
    let control = operator.control().await?;
    let part = control.parts().current();
    let text = format!("new tasks live in part {part} as of epoch {epoch}");
    common.say(text, &json!({"part": part, "epoch": epoch}))?;
    operator.close().await;
    Ok(Exit::Ok)
}

impl PutAway {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let root = common.profile()?.root;
        let store = Store::open(&self.archive)?;
        let control = operator.control().await?;
        let parts: Vec<PartId> = match &self.part {
            Some(part) => vec![part.clone()],
            // The one in use never goes; of the others the broker says whether they may.
            None => {
                control.parts().all().filter(|part| *part != control.parts().current()).cloned().collect()
            }
        };
        let (mut lines, mut shown) = (Vec::new(), Vec::new());
        for part in &parts {
            let outcome = match self.put_away(&operator, root, &store, part).await {
                Ok(None) => continue,
                Ok(Some(outcome)) => outcome,
                // Of those nobody named, what is still in use waits for the next time.
                Err(error) if self.part.is_none() && error.is::<Denied>() => {
                    Outcome::Stays(error.to_string())
                }
                Err(error) => return Err(error.context(format!("part {part}"))),
            };
            lines.push(line(part, &outcome));
            shown.push(to_json(part, &outcome));
        }
        if lines.is_empty() {
            lines.push("there is no part to put away; `writ audit rotate` begins the next one".to_owned());
        }
        common.say(lines.join("\n"), &json!({"archive": store.to_string(), "parts": shown}))?;
        operator.close().await;
        Ok(Exit::Ok)
    }

    /// Seals, verifies, writes, records and deletes, in this order; what was done before is not done again.
    async fn put_away(
        &self,
        operator: &Operator,
        root: PublicKey,
        store: &Store,
        part: &PartId,
    ) -> Result<Option<Outcome>> {
        let control = operator.control().await?;
        if let Some(known) = control.parts().archived().get(part) {
            // It was put away before, and only its stream may be left.
            let archived = open(store, operator.tenant(), part, Some(&known.manifest)).await?;
            let is_deleted = self.delete(operator, store, &archived).await?;
            return Ok(is_deleted.then(|| away(&archived, true)));
        }
        // Answered once no node can publish to it any more.
        let seal = AdminWanted::SealPart { part: part.clone(), although_open: self.although_open };
        operator.ask(seal).await?;
        // What was on its way when the last node heard of it has arrived by then.
        tokio::time::sleep(SETTLED_AFTER).await;
        let control = operator.control().await?;
        let sealed_at = now();
        let verified = self.verify(operator, root, store).await?;
        let archived = write(operator, store, &control, part, sealed_at, verified).await?;
        let known = part::Archived { manifest: archived.digest, last: archived.manifest.stream.last };
        operator.ask(AdminWanted::PartArchived { part: part.clone(), archived: known }).await?;
        let is_deleted = self.delete(operator, store, &archived).await?;
        Ok(Some(away(&archived, is_deleted)))
    }

    /// Verifies everything there is, the part with it: what is wrong is found while its stream is still there.
    async fn verify(&self, operator: &Operator, root: PublicKey, store: &Store) -> Result<Verified> {
        let folder =
            tempfile::tempdir().context("no folder for verifying in the system's temporary folder")?;
        let out = folder.path().join("evidence");
        export(operator, root, None, Some(store), &out).await?;
        let (_, report) = verify(&out, &Against { root: Some(root), ..Against::default() })?;
        let first = report.findings.first().map(ToString::to_string).unwrap_or_default();
        ensure!(
            report.faults == 0 || self.with_faults,
            "verifying found {} faults, the first: {first}; look with `writ audit export` and `writ audit verify`, and \
             put it away with `--with-faults` if that is how it is",
            report.faults
        );
        Ok(Verified::from(&report))
    }

    /// Deletes the stream of a part that is in the archive; false if it is left, or gone already.
    async fn delete(&self, operator: &Operator, store: &Store, archived: &Archived) -> Result<bool> {
        let (part, last) = (&archived.manifest.part, archived.manifest.stream.last);
        let stream = part_stream(operator.tenant(), part);
        if self.keep_stream {
            return Ok(false);
        }
        let Some(facts) = operator.bus().stream_facts(&stream).await? else { return Ok(false) };
        ensure!(
            facts.last_sequence == last,
            "stream `{stream}` ends at {}, and what is in the archive at {last}: it is not deleted; keep both, and look who \
             published to a part that was sealed",
            facts.last_sequence
        );
        // The stream is the last copy of what the archive has lost meanwhile.
        if let Some(damage) = archived.check(store).await?.into_iter().next() {
            bail!("stream `{stream}` is not deleted: {damage}");
        }
        operator.bus().delete_stream(&stream).await.with_context(|| {
            format!(
                "it is in the archive, and stream `{stream}` is still there: run this again with the profile of an \
                 operator whose connection may delete it (deploy/nats/README.md), or with `--keep-stream`"
            )
        })
    }
}

async fn write(
    operator: &Operator,
    store: &Store,
    control: &ControlState,
    part: &PartId,
    sealed_at: Timestamp,
    verified: Verified,
) -> Result<Archived> {
    let stream = part_stream(operator.tenant(), part);
    let facts = operator.bus().stream_facts(&stream).await?;
    let facts = facts.with_context(|| format!("stream `{stream}` is gone, and was not put away"))?;
    let checkpoints: BTreeMap<_, _> =
        heads(operator).await?.into_iter().map(|(log, note)| (log, note.note().to_owned())).collect();
    let sealed = Sealed {
        tenant: operator.tenant().clone(),
        part: part.clone(),
        created: facts.created(),
        last: facts.last_sequence,
        sealed_at,
        checkpoints,
        verified,
    };
    let everything = format!("writ.v1.{}.>", operator.tenant());
    let tail = operator.bus().tail(&stream, &everything, 1).await?;
    let leaf = |message: &_| Leaf::of(message, control);
    let written = write_part(store, &sealed, &SegmentLimits::default(), waiting(tail), leaf).await?;
    open(store, operator.tenant(), part, Some(&written.digest)).await
}

fn away(archived: &Archived, is_deleted: bool) -> Outcome {
    Outcome::Away {
        messages: archived.manifest.stream.messages,
        bytes: archived.manifest.segments.iter().map(|segment| segment.bytes).sum(),
        manifest: archived.digest.to_string(),
        is_deleted,
    }
}

fn line(part: &PartId, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Away { messages, bytes, manifest, is_deleted } => {
            let stream = if *is_deleted { "its stream is deleted" } else { "its stream is still there" };
            format!(
                "{part}: {messages} messages are in the archive ({bytes} bytes, manifest {manifest}); {stream}"
            )
        }
        Outcome::Stays(why) => format!("{part} stays: {why}"),
    }
}

fn to_json(part: &PartId, outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Away { messages, bytes, manifest, is_deleted } => json!({
            "part": part, "archived": true, "messages": messages, "bytes": bytes, "manifest": manifest,
            "deleted": is_deleted,
        }),
        Outcome::Stays(why) => json!({"part": part, "archived": false, "why": why}),
    }
}
