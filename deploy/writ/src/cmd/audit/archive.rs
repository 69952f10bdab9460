//! `writ audit archived` and `writ audit retain`

use std::io::Write as _;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use writ_common::{
    hold::Held,
    ids::{PartId, TenantId},
    time::Millis,
};

use super::asked::now;
use crate::{
    archive::{
        Damage,
        manifest::{ArchivedRun, Segment},
        read::{Archived, open},
        retain::{Keep, Plan, Retention, carry_out, look},
        store::Store,
    },
    cmd::{Common, Output},
    exit::Exit,
    operator::Operator,
    span,
    view::{colour, table::Table},
};

#[derive(Args)]
pub struct ShowArchived {
    /// The archive: a folder, or `s3://bucket/prefix` with its key in the environment (`AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` or `AWS_SECRET_ACCESS_KEY_FILE`, `AWS_REGION` or `AWS_ENDPOINT_URL`)
    #[arg(long, value_name = "WHERE")]
    archive: String,
    /// Only of this tenant
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only this part
    #[arg(long)]
    part: Option<PartId>,
    /// Read everything, and name what is not as it was written
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
pub struct Retain {
    /// The archive: a folder, or `s3://bucket/prefix`
    #[arg(long, value_name = "WHERE")]
    archive: String,
    /// How long records are kept, from when the bus stored them
    #[arg(long, value_name = "TIME", default_value = "400d", value_parser = span::read)]
    records: Millis,
    /// How long instructions, requests for approval and answers are kept
    #[arg(long, value_name = "TIME", default_value = "400d", value_parser = span::read)]
    content: Millis,
    /// How long labels and claims are kept
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = span::read)]
    state: Millis,
    /// Also keep this, for this once: `everything`, `task:<id>` or `user:<issuer>/<subject>`; may be given several times
    #[arg(long, value_name = "WHAT")]
    hold: Vec<Held>,
    /// Only this part
    #[arg(long)]
    part: Option<PartId>,
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which parts of a store are asked for.
async fn parts(
    store: &Store,
    tenant: Option<&TenantId>,
    part: Option<&PartId>,
) -> Result<(Vec<(TenantId, PartId)>, Vec<String>)> {
    let (mut parts, unfinished) = Archived::list(store).await?;
    parts.retain(|(of, is)| tenant.is_none_or(|tenant| tenant == of) && part.is_none_or(|part| part == is));
    if let Some(part) = part {
        ensure!(!parts.is_empty(), "{store} holds no archived part {part}");
    }
    Ok((parts, unfinished))
}

impl ShowArchived {
    /// Runs without broker, bus or profile.
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let store = Store::open(&self.archive)?;
        let (parts, unfinished) = parts(&store, self.tenant.as_ref(), self.part.as_ref()).await?;
        let mut table =
            Table::new(&["part", "segment", "messages", "first", "last", "from", "to", "bytes", "state"]);
        let (mut shown, mut notes, mut damaged) = (Vec::new(), Vec::new(), 0);
        for (tenant, part) in &parts {
            let name = format!("{tenant}/{part}");
            let found = match Archived::open(&store, tenant, part, None).await {
                Ok(Some(archived)) => self.look(&store, &archived).await.map(|damages| (archived, damages)),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            let (archived, damages) = match found {
                Ok(found) => found,
                // One part that cannot be read does not hide the others.
                Err(error) => {
                    let damage = error.downcast::<Damage>()?;
                    damaged += 1;
                    shown.push(json!({"tenant": tenant, "part": part, "damaged": [damage.to_string()]}));
                    notes.push(common.colour().paint(colour::RED, &damage.to_string()));
                    continue;
                }
            };
            for segment in &archived.manifest.segments {
                let state = archived
                    .deletions
                    .of(segment)
                    .map_or("kept".to_owned(), |one| format!("deleted {} by {}", one.at, one.rule));
                table.push(row(&name, segment, state));
            }
            damaged += damages.len();
            notes.push(summary(&name, &archived));
            notes.extend(damages.iter().map(|one| common.colour().paint(colour::RED, &one.to_string())));
            shown.push(to_json(&archived, &damages));
        }
        notes.extend(
            unfinished.iter().map(|folder| {
                format!("{folder}: has no manifest: archiving it was begun and not finished, and it counts for nothing")
            }),
        );
        if self.check {
            notes.push(match damaged {
                0 => common
                    .colour()
                    .paint(colour::GREEN, "everything that is not deleted is as it was written"),
                1 => common.colour().paint(colour::RED, "1 file is damaged"),
                count => common.colour().paint(colour::RED, &format!("{count} files are damaged")),
            });
        }
        let json = json!({"archive": store.to_string(), "parts": shown, "unfinished": unfinished});
        say(common, &table, &notes, &json, "the archive holds no part")?;
        Ok(if damaged == 0 { Exit::Ok } else { Exit::Failure })
    }

    async fn look(&self, store: &Store, archived: &Archived) -> Result<Vec<Damage>> {
        if self.check { archived.check(store).await } else { Ok(Vec::new()) }
    }
}

impl Retain {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let tenant = operator.tenant().clone();
        let store = Store::open(&self.archive)?;
        let retention = Retention { content: self.content, records: self.records, state: self.state };
        let (parts, _) = parts(&store, Some(&tenant), self.part.as_ref()).await?;
        let mut table = Table::new(&["part", "segment", "messages", "to", "bytes", "what"]);
        let (mut shown, mut deleted, mut bytes) = (Vec::new(), 0, 0);
        let mut notes = Vec::new();
        for (tenant, part) in &parts {
            let plan = match self.retain(&operator, &store, part, &retention).await {
                Ok(Some(plan)) => plan,
                Ok(None) => {
                    notes.push(format!(
                        "{tenant}/{part}: the control stream does not say that it was put away; left alone"
                    ));
                    continue;
                }
                // One part that cannot be read keeps the others from nothing, and all of itself.
                Err(error) => {
                    let damage = error.downcast::<Damage>()?;
                    notes.push(common.colour().paint(colour::RED, &damage.to_string()));
                    shown.push(json!({"tenant": tenant, "part": part, "damaged": [damage.to_string()]}));
                    continue;
                }
            };
            let mut push = |segment: &Segment, what: String| {
                table.push([
                    format!("{tenant}/{part}"),
                    segment.name.clone(),
                    segment.messages.to_string(),
                    segment.to.to_string(),
                    segment.bytes.to_string(),
                    what,
                ]);
            };
            for segment in &plan.delete {
                let rule = retention.rule(segment.class);
                let verb = if self.dry_run { "would be deleted" } else { "deleted" };
                push(segment, format!("{verb} by {rule}"));
                deleted += 1;
                bytes += segment.bytes;
            }
            for (segment, why) in &plan.keep {
                push(segment, why.to_string());
            }
            shown.push(plan_json(tenant, part, &plan, &retention));
        }
        let exit = if notes.is_empty() { Exit::Ok } else { Exit::Failure };
        let verb = if self.dry_run { "would be deleted" } else { "deleted" };
        notes.push(format!("{deleted} segments with {bytes} bytes {verb}"));
        let json = json!({"archive": store.to_string(), "dry_run": self.dry_run, "parts": shown});
        say(common, &table, &notes, &json, "nothing is left to delete")?;
        Ok(exit)
    }

    /// What becomes of a part; none if it was not put away.
    async fn retain(
        &self,
        operator: &Operator,
        store: &Store,
        part: &PartId,
        retention: &Retention,
    ) -> Result<Option<Plan>> {
        // What is held, and which parts are in archives, stands in the control stream: without it nothing is deleted.
        let mut control = operator.control().await?;
        let Some(known) = control.parts().archived().get(part).cloned() else { return Ok(None) };
        let mut archived = open(store, operator.tenant(), part, Some(&known.manifest)).await?;
        let now = now();
        let plan = loop {
            let in_force = control.holds().values().map(|hold| &hold.on);
            let held: Vec<Held> = in_force.chain(&self.hold).cloned().collect();
            let plan = look(store, &mut archived, retention, &held, now).await?;
            // Reading a part can take long, and somebody may want to keep something of it by now.
            let later = operator.control().await?;
            if later.holds() == control.holds() {
                break plan;
            }
            control = later;
        };
        if !self.dry_run {
            carry_out(store, &archived, &plan, retention, now).await?;
        }
        Ok(Some(plan))
    }
}

fn say(common: &Common, table: &Table, notes: &[String], json: &Value, empty: &str) -> Result<()> {
    match common.output() {
        Output::Table => {
            let body = if table.rows.is_empty() { format!("{empty}\n") } else { table.to_text() };
            let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
            common.say(body + &notes, json)
        }
        Output::Csv => {
            std::io::stdout().lock().write_all(table.to_csv().as_bytes())?;
            let mut err = std::io::stderr().lock();
            notes.iter().try_for_each(|note| writeln!(err, "{note}"))?;
            Ok(())
        }
        Output::Json => common.say("", json),
    }
}

fn row(part: &str, segment: &Segment, state: String) -> [String; 9] {
    [
        part.to_owned(),
        segment.name.clone(),
        segment.messages.to_string(),
        segment.first.to_string(),
        segment.last.to_string(),
        segment.from.to_string(),
        segment.to.to_string(),
        segment.bytes.to_string(),
        state,
    ]
}

fn summary(name: &str, archived: &Archived) -> String {
    let manifest = &archived.manifest;
    let records: u64 = manifest.runs.iter().map(ArchivedRun::count).sum();
    format!(
        "{name}: {} messages, {records} leaves of {} runs, sealed {}; {} faults and {} warnings then; SHA-256 of its \
         manifest {}",
        manifest.stream.messages,
        manifest.runs.len(),
        manifest.sealed_at,
        manifest.verified.faults,
        manifest.verified.warnings,
        archived.digest
    )
}

fn to_json(archived: &Archived, damages: &[Damage]) -> Value {
    let manifest = &archived.manifest;
    let damages: Vec<String> = damages.iter().map(ToString::to_string).collect();
    json!({
        "tenant": manifest.tenant, "part": manifest.part, "manifest": archived.digest, "stream": manifest.stream,
        "sealed_at": manifest.sealed_at.to_string(), "segments": manifest.segments, "runs": manifest.runs.len(),
        "verified": {"faults": manifest.verified.faults, "warnings": manifest.verified.warnings},
        "deleted": archived.deletions.deleted, "damaged": damages,
    })
}

fn plan_json(tenant: &TenantId, part: &PartId, plan: &Plan, retention: &Retention) -> Value {
    let deleted: Vec<Value> = plan
        .delete
        .iter()
        .map(|segment| json!({"segment": segment, "rule": retention.rule(segment.class)}))
        .collect();
    let kept: Vec<Value> = plan
        .keep
        .iter()
        .map(|(segment, why)| {
            let kind = match why {
                Keep::Held(_) => "held",
                Keep::InDoubt(_) => "in_doubt",
                Keep::Young(_) => "young",
            };
            json!({"segment": segment, "why": kind, "text": why.to_string()})
        })
        .collect();
    json!({"tenant": tenant, "part": part, "delete": deleted, "keep": kept})
}
