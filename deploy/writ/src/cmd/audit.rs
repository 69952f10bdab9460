//! `writ audit …`

mod archive;
mod asked;
mod export;
mod hold;
mod prove;
mod put_away;
mod questions;
mod report;
mod verify;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_common::{
    ids::TaskId,
    subjects::{audit_part, filter},
};

use super::{Common, Output};
use crate::{
    exit::Exit,
    operator::{Operator, Recorded},
    view::{chain, gaps, records},
};

/// What was decided, and why
#[derive(Subcommand)]
pub enum Audit {
    /// Follow the audit stream
    Tail(Tail),
    /// A task as a tree: who handed what to whom, every verdict, and what to do about a denial
    Chain(Which),
    /// Keep what the streams hold, of one task or all of it, in a folder that stands for itself: records as they were
    /// signed, the log's checkpoints and hashes, policies, and the control stream with the keys
    Export(export::Export),
    /// Check an export, anywhere, without broker, bus or profile
    Verify(verify::Verify),
    /// Begin the next part of the audit stream, before the broker does it by itself
    Rotate,
    /// Put parts of the audit stream away in which nothing lives any more, verified, and delete their streams; takes the
    /// profile of an operator whose connection may
    Archive(put_away::PutAway),
    /// Keep something from being removed by retention
    #[command(subcommand)]
    Hold(hold::Hold),
    /// The newest checkpoint of every log, for keeping elsewhere
    Heads(verify::ShowHeads),
    /// Prove that one record is in its log (C2SP tlog-proof@v1)
    Prove(prove::Prove),
    /// Check such a proof, anywhere
    CheckProof(prove::CheckProof),
    /// What a user's agents did: every verdict, through whose hands, and how it ended
    User(questions::User),
    /// Who held a right at a moment, by whose authority, and who may be granted it
    WhoCan(questions::WhoCan),
    /// What touched data with a label, and where it went
    Label(questions::Label),
    /// What people approved, refused or let pass, and what they saw
    Approvals(questions::Approvals),
    /// What ran only because it is observed, and would have been denied
    Observed(questions::Observed),
    /// Which refusals rose: the last day or week against the one before
    Denials(questions::Denials),
    /// Write a task down for people who have never seen Writ: one HTML file, to read or to print
    Report(report::Report),
    /// The parts in an archive: segments, times, what retention deleted, and whether all is as it was written
    Archived(archive::ShowArchived),
    /// Delete what an archive has kept long enough, and nothing that is held
    Retain(archive::Retain),
}

#[derive(Args)]
pub struct Tail {
    /// Begin with this many records before now
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    /// End after the records that are there, instead of waiting for more
    #[arg(long)]
    no_follow: bool,
}

#[derive(Args)]
pub struct Which {
    /// The task's id, or `last`
    task: String,
}

impl Audit {
    /// Whether its answer is a table, which can be written as CSV.
    pub(super) fn is_table(&self) -> bool {
        matches!(
            self,
            Self::User(_)
                | Self::WhoCan(_)
                | Self::Label(_)
                | Self::Approvals(_)
                | Self::Observed(_)
                | Self::Denials(_)
                | Self::Archived(_)
                | Self::Retain(_)
        )
    }

    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Tail(tail) => tail.run(common).await,
            Self::Chain(which) => which.run(common).await,
            Self::Export(export) => export.run(common).await,
            Self::Verify(verify) => verify.run(common),
            Self::Heads(heads) => heads.run(common).await,
            Self::Prove(prove) => prove.run(common).await,
            Self::CheckProof(check) => check.run(common),
            Self::User(user) => user.run(common).await,
            Self::WhoCan(who_can) => who_can.run(common).await,
            Self::Label(label) => label.run(common).await,
            Self::Approvals(approvals) => approvals.run(common).await,
            Self::Observed(observed) => observed.run(common).await,
            Self::Denials(denials) => denials.run(common).await,
            Self::Report(report) => report.run(common).await,
            Self::Archived(archived) => archived.run(common).await,
            Self::Retain(retain) => retain.run(common).await,
            Self::Rotate => put_away::rotate(common).await,
            Self::Archive(put_away) => put_away.run(common).await,
            Self::Hold(hold) => hold.run(common).await,
        }
    }
}

impl Tail {
    async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        // Listening begins before what is there is read, so that nothing falls between.
        let mut news = match self.no_follow {
            true => None,
            false => Some(operator.follow(|tenant, part| vec![filter::audit(tenant, part)]).await?),
        };
        let control = operator.control().await?;
        let (mut all, mut read) = (Vec::new(), BTreeMap::new());
        for part in control.parts().live() {
            let tail = operator.audit_tail(part, None, 1).await?;
            tail.drain(|message| {
                read.insert(part.clone(), message.sequence);
                all.push(Recorded::open(message.sequence, &message.payload, &control));
            })
            .await?;
        }
        let skip = all.len().saturating_sub(usize::try_from(self.lines).unwrap_or(usize::MAX));
        for recorded in all.iter().skip(skip) {
            print(common, recorded)?;
        }
        let Some(news) = &mut news else { return Ok(Exit::Ok) };
        while let Some(message) = news.recv().await {
            // What came while it was read is told already.
            let known = audit_part(&message.subject).and_then(|part| read.get(&part).copied());
            if known.is_none_or(|known| known < message.sequence) {
                print(common, &Recorded::open(message.sequence, &message.payload, &control))?;
            }
        }
        bail!("the stream is lost")
    }
}

fn print(common: &Common, recorded: &Recorded) -> Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match common.output {
        Output::Table => writeln!(out, "{}", records::line(recorded, common.colour()))?,
        Output::Csv | Output::Json => writeln!(out, "{}", records::to_json(recorded))?,
    }
    Ok(())
}

/// The task somebody means.
async fn task_of(text: String, operator: &Operator) -> Result<TaskId> {
    if text != "last" {
        return Ok(TaskId::parse(text)?);
    }
    let all = operator.records(None).await?;
    chain::latest_task(&all).context("no task was started yet; `writ task start` starts one")
}

impl Which {
    async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let all = operator.records(None).await?;
        let task = if self.task == "last" {
            chain::latest_task(&all).context("no task was started yet; `writ task start` starts one")?
        } else {
            TaskId::parse(self.task)?
        };
        let tree = chain::build(&task, &all);
        let missing = gaps::find(all.iter().filter_map(|recorded| recorded.record.as_ref()));
        let mut text = chain::render(&tree, common.colour());
        for gap in &missing {
            let line =
                format!("records {} to {} of {}/{} are missing\n", gap.from, gap.to, gap.origin, gap.boot);
            text.push_str(&line);
        }
        common.say(text, &json!({"chain": tree, "gaps": missing}))?;
        Ok(Exit::Ok)
    }
}
