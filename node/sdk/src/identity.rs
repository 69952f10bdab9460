//! Who an agent is: a folder with its names, its keys, and where the bus is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use writ_bus::{BusConfig, NatsUser, SystemEntropy, keyfile};
use writ_common::{
    entropy::draw,
    ids::{AgentId, TenantId},
    keys::{PrivateKey, PublicKey},
    settings::Document,
};

use crate::Error;

/// An agent's names, keys and bus.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The tenant.
    pub tenant: TenantId,
    /// The agent.
    pub agent: AgentId,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The key that holds capabilities.
    pub holder: PrivateKey,
    /// The NATS user.
    pub user: NatsUser,
    /// Server addresses.
    pub bus_urls: Vec<String>,
    /// Root certificate for TLS.
    pub ca_file: Option<PathBuf>,
}

struct KeyText(PublicKey);

impl std::str::FromStr for KeyText {
    type Err = writ_common::keys::InvalidKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PublicKey::parse(text).map(Self)
    }
}

impl Identity {
    /// An identity with fresh keys, which nobody knows yet.
    ///
    /// # Errors
    /// If no key of a NATS user comes of it.
    pub fn generate(
        tenant: TenantId,
        agent: AgentId,
        root: PublicKey,
        bus_urls: Vec<String>,
        ca_file: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let holder = PrivateKey::from_seed(&draw(&mut SystemEntropy));
        let user = NatsUser::from_seed_bytes(draw(&mut SystemEntropy))?;
        Ok(Self { tenant, agent, root, holder, user, bus_urls, ca_file })
    }

    /// Reads `agent.toml`, `holder.key` and `agent.nkey` of a folder. Key files others could read are refused.
    ///
    /// # Errors
    /// [`Error::Identity`] names the file and what is wrong with it.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let path = folder.join("agent.toml");
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::Identity(format!("{}: {error}", path.display())))?;
        let name = path.display().to_string();
        let overrides = BTreeMap::new();
        let document = Document::new(&name, &text, &overrides);
        let mut root = document.root();
        let tenant: Option<TenantId> = root.required("tenant", "\"acme\"");
        let agent: Option<AgentId> = root.required("agent", "\"planner\"");
        let root_key: Option<KeyText> = root.required("root_key", "\"ed25519:…\"");
        let bus_urls: Vec<String> = root.list("bus_urls");
        let ca_file = root.optional_text("ca_file").map(|file| folder.join(file));
        root.finish(&["tenant", "agent", "root_key", "bus_urls", "ca_file"]);
        let findings = document.into_findings();
        let (Some(tenant), Some(agent), Some(root)) = (tenant, agent, root_key) else {
            return Err(findings.into());
        };
        if findings.has_errors() {
            return Err(findings.into());
        }
        Ok(Self {
            tenant,
            agent,
            root: root.0,
            holder: keyfile::read_key(&folder.join("holder.key"))?,
            user: keyfile::read_user(&folder.join("agent.nkey"))?,
            bus_urls,
            ca_file,
        })
    }

    /// Writes a new folder; existing keys are never overwritten.
    ///
    /// # Errors
    /// [`Error::Identity`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), Error> {
        let folder = folder.as_ref();
        keyfile::make_private_folder(folder)?;
        keyfile::write_key(&folder.join("holder.key"), &self.holder)?;
        keyfile::write_secret(&folder.join("agent.nkey"), self.user.seed())?;
        let urls: Vec<String> = self.bus_urls.iter().map(|url| format!("{url:?}")).collect();
        let ca =
            self.ca_file.as_ref().map_or(String::new(), |file| format!("ca_file = {:?}\n", file.display()));
        let text = format!(
            "tenant = \"{}\"\nagent = \"{}\"\nroot_key = \"{}\"\nbus_urls = [{}]\n{ca}",
            self.tenant,
            self.agent,
            self.root,
            urls.join(", ")
        );
        let path = folder.join("agent.toml");
        fs::write(&path, text).map_err(|error| Error::Identity(format!("{}: {error}", path.display())))
    }

    /// How this agent connects.
    #[must_use]
    pub fn bus_config(&self) -> BusConfig {
        BusConfig {
            urls: self.bus_urls.clone(),
            user: self.user.clone(),
            name: self.agent.to_string(),
            inbox_prefix: self.inbox_prefix(),
            ca_file: self.ca_file.clone(),
        }
    }

    /// The private prefix of the agent's reply subjects: the server lets it subscribe to no other.
    #[must_use]
    pub fn inbox_prefix(&self) -> String {
        inbox_prefix(&self.agent, &self.holder.public())
    }
}

/// The reply prefix of an agent's key, as the server's configuration has to permit it.
#[must_use]
pub fn inbox_prefix(agent: &AgentId, holder: &PublicKey) -> String {
    format!("_INBOX.{agent}.{}", holder.id())
}
