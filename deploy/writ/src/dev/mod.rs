//! A whole Writ on one machine: for `writ dev`, for the demo, and for tests. Real parts, loopback only.

mod cluster;
pub mod idp;
pub mod nats_conf;
pub mod nats_server;
pub mod sample;
pub mod upstreams;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use writ_broker::serve::BrokerHandle;
use writ_bus::{Bus, BusConfig, NatsUser, SystemClock, SystemEntropy, keyfile};
use writ_common::{
    codec::encode,
    entropy::draw,
    ids::{AgentId, BrokerId, InspectorId, NodeId, OperatorId, TenantId},
    keys::PrivateKey,
    keyset::{KeysetDocument, KeysetKey},
    signed::Signed,
    time::{Millis, Timestamp},
};
use writ_node::serve::NodeHandle;
use writ_sdk::Identity;

use crate::{
    operator::{Operator, OperatorProfile},
    run,
};
use idp::{Idp, TokenMaker};
use nats_conf::{Accounts, AgentUser, CoreUser};
use nats_server::NatsServer;

/// The tenant of the development set-up.
pub const TENANT: &str = "acme";
/// The agents of the sample story.
pub const AGENTS: [&str; 3] = ["planner", "researcher", "mailer"];
/// The approvers of the sample story.
pub const APPROVERS: [&str; 2] = ["bob", "carol"];
/// How long the keyset of a development set-up is good for.
const KEYSET_LIFE: Millis = Millis::from_secs(365 * 86_400);
/// The longest a broker key may let a capability live.
const MAX_TTL: Millis = Millis::from_secs(3_600);
/// How long a node may take to start again with other upstreams, each of which has half of it to be there.
const NODE_START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where everything of a development set-up stands.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Below a folder.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// An agent's identity folder.
    #[must_use]
    pub fn agent(&self, agent: &str) -> PathBuf {
        self.at("agents").join(agent)
    }

    /// The broker's configuration.
    #[must_use]
    pub fn broker_config(&self) -> PathBuf {
        self.at("broker.toml")
    }

    /// A node's configuration.
    #[must_use]
    pub fn node_config(&self, node: &str) -> PathBuf {
        self.at(&format!("{node}.toml"))
    }

    /// The profile of the operator who puts parts of the audit stream away.
    #[must_use]
    pub fn archiver(&self) -> PathBuf {
        self.at("archiver.toml")
    }

    /// The operator's profile.
    #[must_use]
    pub fn operator(&self) -> PathBuf {
        self.at("operator.toml")
    }

    /// An approver's profile.
    #[must_use]
    pub fn approver(&self, name: &str) -> PathBuf {
        self.at(&format!("{name}.toml"))
    }

    /// The outbox.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.at("data/outbox")
    }

    /// The customer database.
    #[must_use]
    pub fn crm(&self) -> PathBuf {
        self.at("data/crm.db")
    }

    /// The drafts.
    #[must_use]
    pub fn drafts(&self) -> PathBuf {
        self.at("data/drafts")
    }

    /// The policies.
    #[must_use]
    pub fn policies(&self) -> PathBuf {
        self.at("policies")
    }

    /// The MCP servers beside the sample tools.
    #[must_use]
    pub fn upstreams(&self) -> PathBuf {
        upstreams::folder(&self.root)
    }

    /// The identity provider's key.
    #[must_use]
    pub fn idp_key(&self) -> PathBuf {
        self.at("idp/idp.key")
    }
}

/// How a development set-up is made.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// Its folder.
    pub folder: PathBuf,
    /// The bus's port; a free one if absent, the same at every start.
    pub port: Option<u16>,
    /// How many nats-servers there are; several keep every stream together.
    pub servers: usize,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Whether broker and nodes run in this process.
    pub start_core: bool,
}

impl DevOptions {
    /// One node, everything in this process.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let nodes = vec!["node-1".to_owned()];
        Self { folder: folder.into(), port: None, servers: 1, nodes, start_core: true }
    }
}

/// A running development set-up.
pub struct DevStack {
    /// Where everything stands.
    pub layout: Layout,
    /// The bus, or the first of its servers.
    pub nats: NatsServer,
    /// The other servers of the bus, if there are several.
    pub peers: Vec<NatsServer>,
    /// The identity provider.
    pub idp: Idp,
    /// Makes tokens for any user.
    pub tokens: TokenMaker,
    accounts: Accounts,
    broker: Option<BrokerHandle>,
    nodes: BTreeMap<String, NodeHandle>,
    node_names: Vec<String>,
    /// Digest of the upstreams that were taken up.
    upstreams: String,
}

struct Secrets {
    root: PrivateKey,
    broker: PrivateKey,
    operator: PrivateKey,
    archiver: PrivateKey,
    approvers: Vec<(OperatorId, PrivateKey, NatsUser)>,
    nodes: Vec<(NodeId, PrivateKey, NatsUser)>,
    broker_user: NatsUser,
    operator_user: NatsUser,
    archiver_user: NatsUser,
    bootstrap: NatsUser,
}

fn key_at(path: &Path) -> Result<PrivateKey> {
    if !path.exists() {
        keyfile::write_key(path, &PrivateKey::from_seed(&draw(&mut SystemEntropy)))?;
    }
    Ok(keyfile::read_key(path)?)
}

fn user_at(path: &Path) -> Result<NatsUser> {
    if !path.exists() {
        keyfile::write_secret(path, NatsUser::from_seed_bytes(draw(&mut SystemEntropy))?.seed())?;
    }
    Ok(keyfile::read_user(path)?)
}

impl DevStack {
    /// Makes what is missing and starts everything.
    ///
    /// # Errors
    /// One line that says what is missing or taken.
    pub async fn start(options: DevOptions) -> Result<Self> {
        let layout = Layout::new(fs::canonicalize(&options.folder).or_else(|_| {
            keyfile::make_private_folder(&options.folder)?;
            fs::canonicalize(&options.folder).map_err(anyhow::Error::from)
        })?);
        for folder in ["keys", "idp", "agents", "data", "nats", "upstreams"] {
            keyfile::make_private_folder(&layout.at(folder))?;
        }
        sample::write_policies(&layout.policies())?;
        sample::write_crm(&layout.crm())?;
        let members = cluster::write(&layout, options.port, options.servers)?;
        let urls: Vec<String> =
            members.iter().map(|member| format!("nats://127.0.0.1:{}", member.port)).collect();
        let idp_port = fixed_port(&layout.at("idp/port"), None)?;
        let secrets = Secrets::load(&layout, &options.nodes)?;
        let tokens = TokenMaker::new(format!("http://127.0.0.1:{idp_port}"), &key_at(&layout.idp_key())?);
        let accounts = secrets.accounts(&known_agents(&layout)?)?;
        fs::write(layout.at("nats/accounts.conf"), accounts.render())?;
        secrets.write_keyset(&layout)?;
        secrets.write_configs(&layout, &urls, idp_port)?;
        let files = upstreams::read(&layout.upstreams())?;
        take_up_files(&layout, &options.nodes, &files)?;

        let mut peers = cluster::start(&layout, &members).await?;
        anyhow::ensure!(!peers.is_empty(), "a set-up has one server at least");
        let nats = peers.remove(0);
        let idp = Idp::start(tokens.clone(), idp_port).await?;
        let mut stack = Self {
            layout,
            nats,
            peers,
            idp,
            tokens,
            accounts,
            broker: None,
            nodes: BTreeMap::new(),
            node_names: options.nodes.clone(),
            upstreams: String::new(),
        };
        if options.start_core {
            stack.start_broker().await?;
            stack.take_up(&files).await?;
            stack.enroll_missing().await?;
        }
        Ok(stack)
    }

    /// The addresses of the bus.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        std::iter::once(&self.nats).chain(&self.peers).map(NatsServer::url).collect()
    }

    /// A server of the bus, by its number from 1 on.
    #[must_use]
    pub fn server(&self, number: usize) -> Option<&NatsServer> {
        std::iter::once(&self.nats).chain(&self.peers).nth(number.checked_sub(1)?)
    }

    /// Starts a server of the bus again, after it was killed.
    ///
    /// # Errors
    /// If it is not one, or does not come up.
    pub fn restart_server(&mut self, number: usize) -> Result<()> {
        let config = cluster::config(&self.layout, number);
        let position = number.checked_sub(1).context("servers are numbered from 1 on")?;
        let server = match position.checked_sub(1) {
            None => &mut self.nats,
            Some(peer) => self.peers.get_mut(peer).context("there is no such server")?,
        };
        let port = server.port();
        server.end();
        *server = NatsServer::start(&nats_server::find()?, &config, port)?;
        Ok(())
    }

    /// Starts the broker in this process and waits until it answers.
    ///
    /// # Errors
    /// As `writ broker`.
    pub async fn start_broker(&mut self) -> Result<()> {
        let mut broker = run::start_broker(&self.layout.broker_config(), false).await?;
        broker.ready().await;
        self.broker = Some(broker);
        Ok(())
    }

    /// Where the broker of this process answers probes and shows its numbers.
    #[must_use]
    pub fn broker_http(&self) -> Option<SocketAddr> {
        self.broker.as_ref().and_then(BrokerHandle::http_address)
    }

    /// Where a node of this process answers probes and shows its numbers.
    #[must_use]
    pub fn node_http(&self, name: &str) -> Option<SocketAddr> {
        self.nodes.get(name).and_then(NodeHandle::http_address)
    }

    /// Stops the broker of this process.
    pub async fn stop_broker(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop().await;
        }
    }

    /// Starts a node in this process and waits until it decides.
    ///
    /// # Errors
    /// As `writ node`.
    pub async fn start_node(&mut self, name: &str) -> Result<()> {
        let mut node = run::start_node(&self.layout.node_config(name), false).await?;
        node.ready().await;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// Stops a node of this process.
    pub async fn stop_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            node.stop().await;
        }
    }

    /// Takes up what changed in the set-up's folder since: identities of agents, and MCP servers, for which the nodes
    /// are started again once they have finished what is under way.
    ///
    /// # Errors
    /// What is wrong with it; what was there before goes on, and a later call tries again.
    pub async fn refresh(&mut self) -> Result<()> {
        self.refresh_agents()?;
        let files = upstreams::read(&self.layout.upstreams())?;
        let is_running = self.node_names.iter().all(|name| self.nodes.contains_key(name));
        if upstreams::digest(&files) == self.upstreams && is_running {
            return Ok(());
        }
        self.take_up(&files).await
    }

    /// Starts the nodes with these upstreams, or without any if that does not work: the sample tools go on.
    async fn take_up(&mut self, files: &BTreeMap<String, String>) -> Result<()> {
        let digest = upstreams::digest(files);
        // Noted first: files that keep a node from starting are not tried again until they are others.
        self.upstreams.clone_from(&digest);
        let mut left_out = take_up_files(&self.layout, &self.node_names, files)?;
        for name in self.node_names.clone() {
            self.stop_node(&name).await;
            let started = tokio::time::timeout(NODE_START_TIMEOUT, self.start_node(&name)).await;
            let fault = match started {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if files.is_empty() => return Err(error),
                Ok(Err(error)) => format!("{name} does not start with it: {error:#}"),
                Err(_) => format!("{name} is not ready with it after {} s", NODE_START_TIMEOUT.as_secs()),
            };
            left_out.extend(files.keys().map(|file| (file.clone(), fault.clone())));
            take_up_files(&self.layout, &self.node_names, &BTreeMap::new())?;
            self.start_node(&name).await?;
        }
        for (name, why) in &left_out {
            tracing::warn!("upstreams/{name}.toml is left out: {why}");
        }
        upstreams::say_taken_up(&self.layout.upstreams(), &upstreams::TakenUp { digest, left_out })
    }

    /// Lets agents in whose identities came into the folder since, and those that are gone not any more.
    fn refresh_agents(&mut self) -> Result<()> {
        // One that is being written is not whole yet; the next look sees it.
        let Ok(known) = known_agents(&self.layout) else { return Ok(()) };
        let is_known = |agent| self.accounts.agents.contains(agent);
        if known.len() == self.accounts.agents.len() && known.iter().all(is_known) {
            return Ok(());
        }
        self.accounts.agents = known;
        fs::write(self.layout.at("nats/accounts.conf"), self.accounts.render())?;
        for server in std::iter::once(&self.nats).chain(&self.peers) {
            server.reload()?;
        }
        Ok(())
    }

    /// Enrolls the agents of the inventory that have no identity folder yet, each by a join token of its own.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn enroll_missing(&mut self) -> Result<()> {
        for agent in AGENTS {
            if !self.layout.agent(agent).exists() {
                self.enroll(agent, agent).await?;
            }
        }
        Ok(())
    }

    /// Enrolls one more key of an agent and writes its identity into `agents/<folder>`.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn enroll(&mut self, agent: &str, folder: &str) -> Result<Identity> {
        let name = AgentId::parse(agent)?;
        let operator = self.operator().await?;
        let token = operator.join_token(&name, Millis::from_secs(600)).await?;
        operator.close().await;
        let profile = OperatorProfile::load(&self.layout.operator())?;
        let tenant = TenantId::parse(TENANT)?;
        let identity = Identity::generate(tenant, name.clone(), profile.root, self.urls(), None)?;
        let bootstrap = keyfile::read_user(&self.layout.at("keys/bootstrap.nkey"))?;
        let key = writ_sdk::enroll(&identity, &token, bootstrap).await?;
        self.accounts.agents.push(AgentUser { agent: name, key, nkey: identity.user.public().to_owned() });
        fs::write(self.layout.at("nats/accounts.conf"), self.accounts.render())?;
        for server in std::iter::once(&self.nats).chain(&self.peers) {
            server.reload()?;
        }
        identity.save(self.layout.agent(folder))?;
        Ok(identity)
    }

    /// Lets an inspector answer on the bus, and connects as it.
    ///
    /// # Errors
    /// If its key cannot be made, or there is no connection.
    pub async fn inspector(&mut self, name: &str) -> Result<Bus> {
        let who = CoreUser::Inspector(InspectorId::parse(name)?);
        let user = user_at(&self.layout.at(&format!("keys/inspector-{name}.nkey")))?;
        let inbox_prefix = who.inbox_prefix();
        self.accounts.core.push((who, user.public().to_owned()));
        fs::write(self.layout.at("nats/accounts.conf"), self.accounts.render())?;
        self.nats.reload()?;
        let mut left = 50;
        loop {
            let config = BusConfig {
                urls: vec![self.nats.url()],
                user: user.clone(),
                name: name.to_owned(),
                inbox_prefix: inbox_prefix.clone(),
                ca_file: None,
            };
            match Bus::connect(config).await {
                Err(_) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                connected => return Ok(connected?),
            }
        }
    }

    /// The operator's connection.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn operator(&self) -> Result<Operator> {
        Operator::connect(&OperatorProfile::load(&self.layout.operator())?).await
    }

    /// An approver's connection.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn approver(&self, name: &str) -> Result<Operator> {
        Operator::connect(&OperatorProfile::load(&self.layout.approver(name))?).await
    }

    /// A page somebody outside wrote, which `tool.web` may read.
    #[must_use]
    pub fn page(&self) -> String {
        format!("{}{}", self.idp.url(), sample::PAGE)
    }

    /// An agent's connection.
    ///
    /// # Errors
    /// If the agent is not enrolled or there is no connection.
    pub async fn agent(&self, folder: &str) -> Result<writ_sdk::Agent> {
        let identity = Identity::load(self.layout.agent(folder))?;
        // A reload of the accounts takes a moment.
        let mut left = 50;
        loop {
            match writ_sdk::Agent::connect(identity.clone()).await {
                Err(_) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                connected => return Ok(connected?),
            }
        }
    }

    /// Stops nodes and broker in order; the server ends when this is dropped.
    pub async fn stop(mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
        self.stop_broker().await;
    }
}

/// Writes the nodes' configurations with these upstreams, and says what could not be read.
fn take_up_files(
    layout: &Layout,
    nodes: &[String],
    files: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut left_out = BTreeMap::new();
    for node in nodes {
        let config = layout.node_config(node);
        let text = fs::read_to_string(&config).with_context(|| config.display().to_string())?;
        let (text, more) = upstreams::combine(&config, &text, files);
        fs::write(&config, text).with_context(|| format!("{} cannot be written", config.display()))?;
        left_out.extend(more);
    }
    Ok(left_out)
}

/// The port of an earlier start, the wanted one, or a free one.
fn fixed_port(file: &Path, wanted: Option<u16>) -> Result<u16> {
    let known = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    match (wanted, known) {
        (Some(wanted), Some(known)) if wanted != known => {
            bail!("this set-up uses port {known}; remove its folder to start anew on {wanted}")
        }
        (_, Some(known)) => Ok(known),
        (wanted, None) => {
            let port = wanted.map_or_else(nats_server::free_port, Ok)?;
            fs::write(file, port.to_string())?;
            Ok(port)
        }
    }
}

/// The agents whose identity folders are there already.
fn known_agents(layout: &Layout) -> Result<Vec<AgentUser>> {
    let mut agents = Vec::new();
    for item in fs::read_dir(layout.at("agents"))? {
        let folder = item?.path();
        // It is the last that is written: without it somebody is making the identity, or was stopped at it.
        if !folder.join("agent.toml").exists() {
            continue;
        }
        let identity = Identity::load(&folder).with_context(|| format!("{}", folder.display()))?;
        agents.push(AgentUser {
            agent: identity.agent.clone(),
            key: identity.holder.public().id(),
            nkey: identity.user.public().to_owned(),
        });
    }
    agents.sort_by(|a, b| (&a.agent, &a.key).cmp(&(&b.agent, &b.key)));
    Ok(agents)
}

impl Secrets {
    fn load(layout: &Layout, nodes: &[String]) -> Result<Self> {
        let key = |name: &str| key_at(&layout.at(&format!("keys/{name}.key")));
        let user = |name: &str| user_at(&layout.at(&format!("keys/{name}.nkey")));
        // Made now, read by the broker itself.
        key("broker-records")?;
        Ok(Self {
            root: key("root")?,
            broker: key("broker")?,
            operator: key("operator")?,
            archiver: key("archiver")?,
            approvers: APPROVERS
                .iter()
                .map(|name| Ok((OperatorId::parse(*name)?, key(name)?, user(name)?)))
                .collect::<Result<_>>()?,
            nodes: nodes
                .iter()
                .map(|name| Ok((NodeId::parse(name.as_str())?, key(name)?, user(name)?)))
                .collect::<Result<_>>()?,
            broker_user: user("broker")?,
            operator_user: user("operator")?,
            archiver_user: user("archiver")?,
            bootstrap: user("bootstrap")?,
        })
    }

    fn accounts(&self, agents: &[AgentUser]) -> Result<Accounts> {
        let mut core = vec![
            (CoreUser::Broker(BrokerId::parse("broker-1")?), self.broker_user.public().to_owned()),
            (CoreUser::Operator(OperatorId::parse("operator")?), self.operator_user.public().to_owned()),
            (CoreUser::Archiver(OperatorId::parse("archiver")?), self.archiver_user.public().to_owned()),
        ];
        core.extend(
            self.approvers
                .iter()
                .map(|(name, _, user)| (CoreUser::Approver(name.clone()), user.public().to_owned())),
        );
        core.extend(
            self.nodes.iter().map(|(name, _, user)| (CoreUser::Node(name.clone()), user.public().to_owned())),
        );
        Ok(Accounts {
            tenant: TenantId::parse(TENANT)?,
            core,
            bootstrap: self.bootstrap.public().to_owned(),
            agents: agents.to_vec(),
        })
    }

    /// The keyset, signed once; a development set-up keeps its "offline" root beside it.
    fn write_keyset(&self, layout: &Layout) -> Result<()> {
        let path = layout.at("keyset.writ");
        if path.exists() {
            return Ok(());
        }
        let now = SystemClock::new().now().wall;
        let document = KeysetDocument {
            version: 1,
            issued_at: now,
            expires: now.after(KEYSET_LIFE),
            keys: vec![KeysetKey {
                public: self.broker.public(),
                tenants: vec![TenantId::parse(TENANT)?],
                max_ttl: MAX_TTL,
                // Clocks of other machines may be a little behind.
                not_before: Timestamp::from_millis(now.as_millis().saturating_sub(60_000)),
                not_after: now.after(KEYSET_LIFE),
            }],
            withdrawn: Vec::new(),
        };
        fs::write(&path, encode(&Signed::new(&document, &self.root)))
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    fn write_configs(&self, layout: &Layout, urls: &[String], idp_port: u16) -> Result<()> {
        let root = self.root.public();
        let nodes: String = self
            .nodes
            .iter()
            .map(|(name, key, user)| {
                format!(
                    "\n[[node]]\nname = \"{name}\"\nkey = \"{}\"\nconnection = \"{}\"\n",
                    key.public(),
                    user.public()
                )
            })
            .collect();
        let approvers: String = self
            .approvers
            .iter()
            .map(|(name, key, _)| format!("\n[[approver]]\nname = \"{name}\"\nkey = \"{}\"\n", key.public()))
            .collect();
        let broker = format!(
            r#"# Written by `writ dev`; `writ broker --config <this file>` runs the same broker by itself.
tenant = "{TENANT}"

[broker]
name = "broker-1"
root_key = "{root}"
keyset_file = "keyset.writ"
key_file = "keys/broker.key"
record_key_file = "keys/broker-records.key"
state = "broker"
policies = "policies"

[bus]
urls = {urls:?}
user_file = "keys/broker.nkey"

[http]
listen = "127.0.0.1:0"

[stream]
replicas = {replicas}

[[issuer]]
issuer = "http://127.0.0.1:{idp_port}"
audience = "{audience}"
algorithms = ["EdDSA"]
discovery = true
role_claim = "/groups"

[issuer.roles]
analysts = "analyst"
approvers = "approver"

[[issuer.service]]
client = "{service}"
roles = ["{service_role}"]

[[operator]]
name = "operator"
key = "{operator}"

[[operator]]
name = "archiver"
key = "{archiver}"
{approvers}{nodes}"#,
            audience = idp::AUDIENCE,
            replicas = urls.len(),
            service = idp::SERVICE.0,
            service_role = idp::SERVICE.1,
            operator = self.operator.public(),
            archiver = self.archiver.public(),
        );
        fs::write(layout.broker_config(), broker)?;
        for (name, ..) in &self.nodes {
            let node = format!(
                r#"# Written by `writ dev`; `writ node --config <this file>` runs the same node by itself.
tenant = "{TENANT}"

[node]
name = "{name}"
root_key = "{root}"
key_file = "keys/{name}.key"
journal = "{name}"

[bus]
urls = {urls:?}
user_file = "keys/{name}.nkey"

[http]
listen = "127.0.0.1:0"

[[tool]]
resource = "tool.crm"
kind = "sqlite"
file = "data/crm.db"

[[tool]]
resource = "tool.mail"
kind = "maildir"
folder = "data/drafts"
outbox = "data/outbox"
from = "Support <support@acme.example>"

[[tool]]
resource = "tool.web"
kind = "http"
loopback_hosts = ["127.0.0.1:{idp_port}"]
"#
            );
            fs::write(layout.node_config(name.as_str()), node)?;
        }
        for (name, file) in [("operator", layout.operator()), ("archiver", layout.archiver())] {
            let operator = format!(
                r#"# Written by `writ dev`: what the {name}'s commands need.
tenant = "{TENANT}"
operator = "{name}"
root_key = "{root}"
key_file = "keys/{name}.key"
user_file = "keys/{name}.nkey"
bus_urls = {urls:?}
idp_url = "http://127.0.0.1:{idp_port}"
agents = "agents"
"#
            );
            fs::write(file, operator)?;
        }
        for (name, ..) in &self.approvers {
            let approver = format!(
                r#"# Written by `writ dev`: what an approver's commands need.
tenant = "{TENANT}"
approver = "{name}"
root_key = "{root}"
key_file = "keys/{name}.key"
user_file = "keys/{name}.nkey"
bus_urls = {urls:?}
"#
            );
            fs::write(layout.approver(name.as_str()), approver)?;
        }
        Ok(())
    }
}

/// Connects a CORE user of this set-up, for tests that look over the fence.
///
/// # Errors
/// If there is no connection.
pub async fn connect_as(layout: &Layout, who: &CoreUser, user_file: &str, url: &str) -> Result<Bus> {
    let user = keyfile::read_user(&layout.at(user_file))?;
    let config = BusConfig {
        urls: vec![url.to_owned()],
        user,
        name: "test".to_owned(),
        inbox_prefix: who.inbox_prefix(),
        ca_file: None,
    };
    Ok(Bus::connect(config).await?)
}
