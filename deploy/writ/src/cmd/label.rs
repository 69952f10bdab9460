//! `writ label …`

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_bus::{SystemClock, SystemEntropy};
use writ_common::{
    act::{ACT_LIFE_MAX, ACT_WHY_BYTES_MAX, ActKind, LabelAct},
    codec::decode,
    entropy::draw,
    ids::{ApprovalId, FlowDomain, PartId, TaskId},
    json::Value,
    label::{DomainLabel, Tag},
    record::{Record, RecordBody, Verdicted},
    request::Arguments,
    signed::Signed,
    subjects::{Subject, part_stream},
    time::Millis,
    visible::visible,
    wire::call_digest,
};

use super::Common;
use crate::{
    exit::{Denied, Exit},
    operator::{Operator, Recorded},
    view::{chain, label as view},
};

/// What a task holds, where that came from, and letting one call pass in spite of it
#[derive(Subcommand)]
pub enum Label {
    /// The label of a task, and the call that brought each part of it in
    Show(Which),
    /// The call that brought a tag in, or `untrusted`
    Why(Why),
    /// Let one denied call pass although its task holds these tags; it counts once, for these arguments
    Declassify(Declassify),
    /// Vouch for the arguments of one denied call that nothing else vouches for; it counts once
    Endorse(Act),
}

#[derive(Args)]
pub struct Which {
    /// The task's id, `last`, or a flow domain such as `p0.memory-archivist`
    task: String,
}

#[derive(Args)]
pub struct Why {
    #[command(flatten)]
    which: Which,
    /// A tag, or `untrusted`
    tag: String,
}

#[derive(Args)]
pub struct Act {
    /// The record of the denied call, as `writ audit chain` names it
    decision: String,
    /// The arguments of the call as JSON, so that you see what you let pass; compared with the record
    #[arg(long)]
    arguments: PathBuf,
    /// Why, for the record
    #[arg(long)]
    why: String,
    /// How long it counts, in seconds
    #[arg(long, default_value_t = 900)]
    seconds: u64,
    /// Do it without being asked once more
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub struct Declassify {
    #[command(flatten)]
    act: Act,
    /// A tag to let pass; repeat it for several
    #[arg(long = "tag", required = true)]
    tags: Vec<String>,
}

impl Label {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Show(which) => {
                let operator = common.operator().await?;
                let (sequence, label) = which.read(&operator).await?;
                common.say(view::page(sequence, &label), &view::to_json(sequence, &label))?;
                Ok(Exit::Ok)
            }
            Self::Why(Why { which, tag }) => {
                let operator = common.operator().await?;
                let (_, label) = which.read(&operator).await?;
                let Some(origin) = label.origins.get(&tag) else {
                    let held: Vec<&str> = label.origins.keys().map(String::as_str).collect();
                    let held = if held.is_empty() { "nothing".to_owned() } else { held.join(", ") };
                    bail!("`{}` does not hold `{tag}`; it was told {held}", label.domain);
                };
                let text = format!("{tag}: {origin}, {}", origin.at);
                common.say(text, &json!({"tag": tag, "origin": origin}))?;
                Ok(Exit::Ok)
            }
            Self::Declassify(Declassify { act, tags }) => {
                let tags = tags.into_iter().map(Tag::parse).collect::<Result<BTreeSet<_>, _>>()?;
                act.run(common, ActKind::Declassify { tags }).await
            }
            Self::Endorse(act) => act.run(common, ActKind::Endorse).await,
        }
    }
}

impl Which {
    async fn read(&self, operator: &Operator) -> Result<(u64, DomainLabel)> {
        let domain = match self.task.split_once('.') {
            Some(_) => FlowDomain::parse(&self.task)?,
            None => self.domain_of_task(operator).await?,
        };
        let stream = part_stream(operator.tenant(), &domain.part);
        let subject = Subject::Label(domain.clone()).of(operator.tenant());
        let found = operator.bus().last_on(&stream, &subject).await?;
        let found = found.with_context(|| format!("the flow domain `{domain}` has no label"))?;
        let control = operator.control().await?;
        let signed: Signed<DomainLabel> = decode(&found.payload)?;
        let label = signed
            .open(|key| control.is_label_key(key))
            .with_context(|| format!("the label of `{domain}` counts as top"))?;
        Ok((found.sequence, label))
    }

    async fn domain_of_task(&self, operator: &Operator) -> Result<FlowDomain> {
        let all = operator.records(None).await?;
        let task = match self.task.as_str() {
            "last" => {
                chain::latest_task(&all).context("no task was started yet; `writ task start` starts one")?
            }
            task => TaskId::parse(task)?,
        };
        let of_task = all.iter().filter_map(|recorded| recorded.record.as_ref());
        let mut domains =
            of_task.filter(|record| record.task() == Some(&task)).filter_map(|record| match &record.body {
                RecordBody::Verdict(verdicted) => verdicted.who.domain.clone(),
                _ => None,
            });
        domains.next().with_context(|| format!("there is no task `{task}` on record"))
    }
}

impl Act {
    async fn run(self, common: &Common, kind: ActKind) -> Result<Exit> {
        if self.why.is_empty() || self.why.len() > ACT_WHY_BYTES_MAX {
            bail!("`--why` has 1 to {ACT_WHY_BYTES_MAX} bytes");
        }
        if self.seconds == 0 || Millis::from_secs(self.seconds) > ACT_LIFE_MAX {
            bail!("`--seconds` is from 1 to {}", ACT_LIFE_MAX.0 / 1_000);
        }
        let operator = common.operator().await?;
        operator.check_approver()?;
        let all = operator.records(None).await?;
        let (record, verdicted) = self.find(&all)?;
        let text = std::fs::read_to_string(&self.arguments)
            .with_context(|| format!("the arguments in {}", self.arguments.display()))?;
        let arguments = Value::parse(&text).context("the arguments are no JSON a call could have")?;
        let arguments = Arguments::new(arguments);
        let (who, what) = (&verdicted.who, &verdicted.what);
        let (Some(task), Some(resource), Some(action)) = (&who.task, &what.resource, &what.action) else {
            bail!("`{}` is not about a call of a task", self.decision);
        };
        let call = call_digest(resource, action, arguments.canonical(), task);
        if what.call != Some(call) {
            let why =
                format!("these are not the arguments of `{}`: another call would be let pass", record.id);
            return Err(Denied(why).into());
        }
        let now = SystemClock::new().now().wall;
        let act = LabelAct {
            tenant: operator.tenant().clone(),
            id: ApprovalId::generate(now, draw(&mut SystemEntropy)),
            kind,
            task: task.clone(),
            resource: resource.clone(),
            action: action.clone(),
            call,
            by: operator.name().clone(),
            at: now,
            expires: now.after(Millis::from_secs(self.seconds)),
            why: self.why.clone(),
        };
        let user = who.user.as_ref().map_or_else(String::new, |user| visible(user.subject()));
        let page = view::act(&act, &user, arguments.canonical());
        if !self.yes && !super::approval::confirmed(&page, "let it pass, once")? {
            bail!("nothing was let pass");
        }
        let part = who.domain.as_ref().map_or_else(PartId::first, |domain| domain.part.clone());
        let subject = Subject::LabelAct { part, act: act.id.clone(), by: act.by.clone() };
        operator.sign_act(&act, &subject).await?;
        let text = format!("{}: {} once, until {}, by {}", act.id, act.kind, act.expires, act.by);
        common
            .say(text, &json!({"act": act.id, "kind": act.kind, "call": act.call, "expires": act.expires}))?;
        operator.close().await;
        Ok(Exit::Ok)
    }

    fn find<'a>(&self, all: &'a [Recorded]) -> Result<(&'a Record, &'a Verdicted)> {
        let records = all.iter().filter(|recorded| recorded.fault.is_none());
        let mut records = records.filter_map(|recorded| recorded.record.as_ref());
        let record = records.find(|record| record.id.to_string() == self.decision);
        let record = record.with_context(|| {
            format!("there is no record `{}`; `writ audit chain last` names them", self.decision)
        })?;
        match &record.body {
            RecordBody::Verdict(verdicted) => Ok((record, verdicted)),
            _ => bail!("`{}` is no verdict", self.decision),
        }
    }
}
