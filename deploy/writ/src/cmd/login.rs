//! `writ login` and `writ logout`

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use writ_common::time::Timestamp;

use super::Common;
use crate::{
    exit::Exit,
    login::{self, Login as Kept, Prompt, TokenKind, Wanted},
};

/// The client of the development identity provider, which takes any.
const DEVELOPMENT_CLIENT: &str = "writ-cli";

/// Get a user's token from an OIDC issuer, and keep it beside the profile
#[derive(Args)]
pub struct Login {
    /// The issuer, as its tokens name it; the development identity provider of `writ dev` if absent
    #[arg(long, requires = "client_id")]
    issuer: Option<String>,
    /// The public client that is registered there, with a redirect to any port of 127.0.0.1
    #[arg(long, requires = "issuer")]
    client_id: Option<String>,
    /// Type a code in on another device, instead of a browser on this one
    #[arg(long)]
    device: bool,
    /// A scope beside `openid`; may be given several times
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// For whom the token is to be: `audience` of the broker's `[[issuer]]`
    #[arg(long)]
    audience: Option<String>,
    /// Which of the issuer's tokens to keep
    #[arg(long, value_enum, default_value_t)]
    token: TokenKind,
    /// Only say who is logged in, and until when
    #[arg(long, conflicts_with_all = ["issuer", "client_id", "device", "scopes", "audience", "token"])]
    status: bool,
}

/// Forget the login, here and at the issuer
#[derive(Args)]
pub struct Logout {}

fn describe(login: &Kept) -> String {
    let until = Timestamp::from_secs(login.expires);
    let after = match login.refresh_token {
        Some(_) => "refreshed by itself after that",
        None => "not refreshed: log in again after that",
    };
    format!(
        "user     {}\nissuer   {}\nclient   {}\nuntil    {until}, {after}",
        login.subject, login.issuer, login.client_id
    )
}

fn to_json(login: &Kept) -> serde_json::Value {
    json!({
        "subject": login.subject, "issuer": login.issuer, "client_id": login.client_id,
        "audience": login.audience, "expires": Timestamp::from_secs(login.expires).to_string(),
        "refreshable": login.refresh_token.is_some(),
    })
}

impl Login {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let file = login::file_of(&common.profile);
        if self.status {
            return status(common);
        }
        let profile = common.profile.display();
        // The folder is the profile's: without it there is nothing to keep a login for.
        anyhow::ensure!(
            common.profile.exists(),
            "there is no profile {profile}; start `writ dev`, or name one with `--profile`"
        );
        let (issuer, client_id) = match (self.issuer, self.client_id) {
            (Some(issuer), Some(client_id)) => (issuer, client_id),
            _ => {
                let issuer = common.profile()?.idp_url.with_context(|| {
                    format!(
                        "{profile} names no development identity provider; give `--issuer` and `--client-id`"
                    )
                })?;
                (issuer, DEVELOPMENT_CLIENT.to_owned())
            }
        };
        let wanted =
            Wanted { issuer, client_id, scopes: self.scopes, audience: self.audience, token: self.token };
        let kept = login::log_in(&wanted, self.device, ask).await?;
        let lock = login::locked(&file).await?;
        login::save(&file, &kept)?;
        drop(lock);
        common.say(
            format!("logged in; the token is in {}\n{}", file.display(), describe(&kept)),
            &to_json(&kept),
        )?;
        Ok(Exit::Ok)
    }
}

/// What somebody has to do now. On standard error, so that the answer on standard output stays one.
fn ask(prompt: Prompt) {
    let text = match &prompt {
        Prompt::Browser(address) => {
            format!("Open this address in a browser on this machine:\n\n  {address}\n")
        }
        Prompt::Device { address, code, complete } => {
            let direct = complete.as_ref().map(|address| format!("\nor {address}\n")).unwrap_or_default();
            format!("Open {address}\nand type in  {code}\n{direct}")
        }
    };
    // Nobody reads it if it cannot be written; the wait ends by itself.
    drop(writeln!(std::io::stderr(), "{text}"));
    if let Prompt::Browser(address) = prompt
        && std::io::stderr().is_terminal()
    {
        let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
        let null = std::process::Stdio::null;
        // Without such a command the address is there to be copied.
        drop(
            std::process::Command::new(opener)
                .arg(address.as_str())
                .stdin(null())
                .stdout(null())
                .stderr(null())
                .spawn(),
        );
    }
}

fn status(common: &Common) -> Result<Exit> {
    let file = login::file_of(&common.profile);
    let Some(login) = login::load(&file)? else {
        common.say("nobody is logged in; `writ login` does it", &json!({"subject": null}))?;
        return Ok(Exit::Failure);
    };
    let is_over = !login.is_good_for(0, login::now_secs()) && login.refresh_token.is_none();
    let over = if is_over { "\nthe login has ended; `writ login` starts another" } else { "" };
    common.say(format!("{}{over}", describe(&login)), &to_json(&login))?;
    Ok(if is_over { Exit::Failure } else { Exit::Ok })
}

impl Logout {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let file = login::file_of(&common.profile);
        let _lock = if file.exists() { Some(login::locked(&file).await?) } else { None };
        // A file that cannot be read is removed as well: that is how one gets rid of it.
        let told = match login::load(&file) {
            Ok(None) => {
                common.say("nobody was logged in", &json!({"revoked": false}))?;
                return Ok(Exit::Ok);
            }
            Ok(Some(login)) => login::revoke(&login).await,
            Err(_) => Ok(false),
        };
        login::forget(&file)?;
        let (at_issuer, revoked) = match told {
            Ok(true) => ("; the issuer was told".to_owned(), true),
            Ok(false) => (String::new(), false),
            Err(error) => (format!("; the issuer could not be told: {error:#}"), false),
        };
        common.say(format!("logged out{at_issuer}"), &json!({"revoked": revoked}))?;
        Ok(Exit::Ok)
    }
}
