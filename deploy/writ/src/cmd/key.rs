//! `writ key …`

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use writ_bus::{NatsUser, SystemClock, SystemEntropy, keyfile};
use writ_common::{
    codec::{decode, encode},
    entropy::draw,
    ids::TenantId,
    keys::{PrivateKey, PublicKey},
    keyset::{KeysetDocument, KeysetKey},
    signed::Signed,
    time::{Millis, Timestamp},
};

use super::Common;
use crate::exit::Exit;

/// Keys
#[derive(Subcommand)]
pub enum Key {
    /// Make a key; existing files are never overwritten
    New(New),
    /// Print the public half of a key file
    Show(Show),
    /// Sign a keyset with the offline root
    SignKeyset(SignKeyset),
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Ed25519, for root, brokers, nodes, operators and agents
    Ed25519,
    /// A NATS user
    Nats,
}

#[derive(Args)]
pub struct New {
    /// The file
    file: PathBuf,
    /// What it is for
    #[arg(long, value_enum, default_value_t = Kind::Ed25519)]
    kind: Kind,
}

#[derive(Args)]
pub struct Show {
    /// The file
    file: PathBuf,
}

#[derive(Args)]
pub struct SignKeyset {
    /// The offline root's key file
    #[arg(long)]
    root: PathBuf,
    /// A broker's public key; may be given several times
    #[arg(long = "key", required = true, value_parser = |text: &str| PublicKey::parse(text))]
    keys: Vec<PublicKey>,
    /// A key that must never count again; may be given several times
    #[arg(long = "withdrawn", value_parser = |text: &str| PublicKey::parse(text))]
    withdrawn: Vec<PublicKey>,
    /// A tenant the keys may issue for; may be given several times
    #[arg(long = "tenant", required = true)]
    tenants: Vec<TenantId>,
    /// Longest life of a capability
    #[arg(long, default_value_t = 60)]
    max_ttl_minutes: u64,
    /// How long the keyset is good for
    #[arg(long, default_value_t = 90)]
    days: u64,
    /// The keyset it replaces, whose version is raised by one
    #[arg(long)]
    replaces: Option<PathBuf>,
    /// Where the keyset goes
    #[arg(long)]
    out: PathBuf,
}

impl Key {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::New(New { file, kind }) => {
                let public = match kind {
                    Kind::Ed25519 => {
                        let key = PrivateKey::from_seed(&draw(&mut SystemEntropy));
                        keyfile::write_key(&file, &key)?;
                        key.public().to_string()
                    }
                    Kind::Nats => {
                        let user = NatsUser::from_seed_bytes(draw(&mut SystemEntropy))?;
                        keyfile::write_secret(&file, user.seed())?;
                        user.public().to_owned()
                    }
                };
                common.say(&public, &json!({"file": file, "public": public}))?;
            }
            Self::Show(Show { file }) => {
                let public = match keyfile::read_key(&file) {
                    Ok(key) => key.public().to_string(),
                    Err(error) => match keyfile::read_user(&file) {
                        Ok(user) => user.public().to_owned(),
                        Err(_) => return Err(error.into()),
                    },
                };
                common.say(&public, &json!({"file": file, "public": public}))?;
            }
            Self::SignKeyset(sign) => sign.run(common)?,
        }
        Ok(Exit::Ok)
    }
}

impl SignKeyset {
    fn run(self, common: &Common) -> Result<()> {
        let root = keyfile::read_key(&self.root)?;
        let now = SystemClock::new().now().wall;
        let expires = now.after(Millis::from_secs(self.days.saturating_mul(86_400)));
        let previous: Option<KeysetDocument> = match &self.replaces {
            None => None,
            Some(path) => {
                let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
                let signed: Signed<KeysetDocument> =
                    decode(&bytes).with_context(|| format!("{} is no keyset", path.display()))?;
                Some(signed.open(|key| *key == root.public()).context("it was signed by another root")?)
            }
        };
        let mut withdrawn = previous.as_ref().map(|previous| previous.withdrawn.clone()).unwrap_or_default();
        withdrawn.extend(self.withdrawn);
        withdrawn.sort();
        withdrawn.dedup();
        let keys = self.keys.iter().map(|public| KeysetKey {
            public: *public,
            tenants: self.tenants.clone(),
            max_ttl: Millis::from_secs(self.max_ttl_minutes.saturating_mul(60)),
            not_before: Timestamp::from_millis(now.as_millis().saturating_sub(60_000)),
            not_after: expires,
        });
        let document = KeysetDocument {
            version: previous.map_or(1, |previous| previous.version + 1),
            issued_at: now,
            expires,
            keys: keys.collect(),
            withdrawn,
        };
        fs::write(&self.out, encode(&Signed::new(&document, &root)))
            .with_context(|| format!("{} cannot be written", self.out.display()))?;
        let text = format!(
            "{}: version {}, {} keys, good until {}; nodes pin {}",
            self.out.display(),
            document.version,
            document.keys.len(),
            document.expires,
            root.public()
        );
        common.say(
            text,
            &json!({"version": document.version, "root": root.public().to_string(), "file": self.out}),
        )
    }
}
