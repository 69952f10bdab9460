//! `writ explain <code>`

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    diagnostic::closest,
    reason::{Class, ReasonCode},
};

use super::Common;
use crate::exit::Exit;

/// What a reason code means, what brings it about, and what to do
#[derive(Args)]
pub struct Explain {
    /// The code, for example `token.holder_mismatch`; every code if absent
    code: Option<String>,
}

fn to_json(code: ReasonCode) -> serde_json::Value {
    let page = code.page();
    let class = match code.class() {
        Class::CouldNotDecide => "could not decide",
        Class::Denied => "denied",
    };
    json!({
        "code": code.as_str(), "plane": code.plane().as_str(), "class": class,
        "meaning": page.meaning, "cause": page.cause, "next": page.next,
    })
}

impl Explain {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let Some(text) = self.code else {
            let lines: Vec<String> = ReasonCode::ALL
                .iter()
                .map(|code| format!("{:<28} {}", code.as_str(), code.page().meaning))
                .collect();
            let all: Vec<_> = ReasonCode::ALL.iter().map(|code| to_json(*code)).collect();
            common.say(lines.join("\n"), &all.into())?;
            return Ok(Exit::Ok);
        };
        let Some(code) = ReasonCode::parse(&text) else {
            match closest(&text, ReasonCode::ALL.iter().map(|code| code.as_str())) {
                Some(near) => bail!("there is no reason code `{text}`; did you mean `{near}`?"),
                None => bail!("there is no reason code `{text}`; `writ explain` lists them all"),
            }
        };
        let page = code.page();
        let class = match code.class() {
            Class::CouldNotDecide => "could not decide",
            Class::Denied => "denied",
        };
        let shown = format!(
            "{code}   ({} plane, {class})\n\nmeaning  {}\ncause    {}\nnext     {}",
            code.plane().as_str(),
            page.meaning,
            page.cause,
            page.next
        );
        common.say(shown, &to_json(code))?;
        Ok(Exit::Ok)
    }
}
