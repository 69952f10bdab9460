//! `writ audit user`, `who-can`, `label`, `approvals`, `observed`, `denials`

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use writ_common::{
    capability::Right,
    ids::{AgentId, OperatorId},
};

use super::asked::{Opened, Pages, Times, Where, go_on, moment, now};
use crate::{
    cmd::Common,
    exit::Exit,
    index::{
        Page,
        questions::{self, OfUser},
    },
    view::{questions as view, table::Table},
};

#[derive(Args)]
pub struct User {
    /// The user's `sub`, or `iss/sub`
    user: String,
    /// Only where this agent had a hand in it
    #[arg(long)]
    agent: Option<AgentId>,
    /// Only this: `tool.crm:read`
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    pages: Pages,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct WhoCan {
    /// The right: `tool.payments:wire`
    right: String,
    /// At which moment; now if absent
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Only where this agent held it
    #[arg(long)]
    agent: Option<AgentId>,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct Label {
    /// A tag, several (`crm,hr`), or `untrusted`
    label: String,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    pages: Pages,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct Approvals {
    /// Only what this person answered or let pass
    #[arg(long, value_name = "APPROVER")]
    by: Option<OperatorId>,
    /// Also what was asked, whether somebody answered or not
    #[arg(long, conflicts_with = "by")]
    asked: bool,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    pages: Pages,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct Observed {
    /// Only calls this agent had a hand in
    #[arg(long)]
    agent: Option<AgentId>,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    pages: Pages,
    #[command(flatten)]
    place: Where,
}

/// How long a stretch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stretch {
    /// One day of UTC
    Day,
    /// Seven days of UTC
    Week,
}

#[derive(Args)]
pub struct Denials {
    /// What is compared: the last day or week with the one before
    #[arg(long, value_enum, default_value_t = Stretch::Week)]
    by: Stretch,
    /// The stretch that ends with the day of this moment; today if absent
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Most rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit: u64,
    #[command(flatten)]
    place: Where,
}

fn say_page(opened: &Opened, common: &Common, table: &Table, page: &Page) -> Result<Exit> {
    let rows: Vec<_> = page.rows.iter().map(view::row_json).collect();
    let more = go_on(page.next).into_iter().collect();
    opened.say(common, table, more, json!({"rows": rows, "next": page.next}))?;
    Ok(Exit::Ok)
}

impl User {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let window = self.times.window()?;
        let right = self.action.as_deref().map(Right::parse).transpose()?;
        let opened = self.place.open(common).await?;
        let asked = OfUser { user: &self.user, agent: self.agent.as_ref(), right: right.as_ref() };
        let page = questions::of_user(&opened.index, asked, window, self.pages.paging())?;
        say_page(&opened, common, &view::done(&page.rows), &page)
    }
}

impl WhoCan {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let right = Right::parse(&self.right)?;
        let now = now();
        let at = self.at.as_deref().map_or(Ok(now), |text| moment(text, now))?;
        let opened = self.place.open(common).await?;
        let answer = questions::who_can(&opened.index, &opened.history, &right, at, self.agent.as_ref())?;
        let told = view::who_can_notes(&right, at, &answer);
        opened.say(common, &view::who_can(&answer), told, view::who_can_json(&right, at, &answer))?;
        Ok(Exit::Ok)
    }
}

impl Label {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let window = self.times.window()?;
        let terms = questions::label_terms(&self.label);
        ensure!(
            !terms.is_empty(),
            "`{}` names no tag; `writ label show` shows what a task's label holds",
            self.label
        );
        let opened = self.place.open(common).await?;
        let page = questions::touched(&opened.index, &terms, window, self.pages.paging())?;
        say_page(&opened, common, &view::touched(&page.rows), &page)
    }
}

impl Approvals {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let window = self.times.window()?;
        let opened = self.place.open(common).await?;
        let paging = self.pages.paging();
        let page = questions::approvals(&opened.index, self.by.as_ref(), self.asked, window, paging)?;
        // The index keeps no arguments: what was shown is read where it stands.
        let asked = page.rows.iter().filter_map(|row| Some(row.approval.as_ref()?.request)).collect();
        let shown = self.place.said(&opened, &asked).await?.requests;
        let mut lines = Vec::new();
        for row in &page.rows {
            let call = questions::asked_call(&opened.index, row)?;
            lines.push(view::Answered::of(row, call, &shown));
        }
        let json: Vec<_> = lines.iter().map(view::Answered::to_json).collect();
        let more = go_on(page.next).into_iter().collect();
        opened.say(common, &view::answered(&lines), more, json!({"rows": json, "next": page.next}))?;
        Ok(Exit::Ok)
    }
}

impl Observed {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let window = self.times.window()?;
        let opened = self.place.open(common).await?;
        let page = questions::observed(&opened.index, self.agent.as_ref(), window, self.pages.paging())?;
        say_page(&opened, common, &view::observed(&page.rows), &page)
    }
}

impl Denials {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let now = now();
        let at = self.at.as_deref().map_or(Ok(now), |text| moment(text, now))?;
        let opened = self.place.open(common).await?;
        let (days, name) = match self.by {
            Stretch::Day => (1, "day"),
            Stretch::Week => (7, "week"),
        };
        let last = at.as_secs() / 86_400;
        let rises = questions::denials(&opened.index, last, days)?;
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let shown = rises.get(..limit).unwrap_or(&rises);
        let mut more = vec![view::denials_note(last, days, name, &rises)];
        if shown.len() < rises.len() {
            more.push(format!("{} more rows; `--limit` shows more", rises.len() - shown.len()));
        }
        let json = view::denials_json(last, days, shown, rises.len());
        opened.say(common, &view::denials(shown), more, json)?;
        Ok(Exit::Ok)
    }
}
