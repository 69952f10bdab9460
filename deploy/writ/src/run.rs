//! Starting a broker or a node from its configuration file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use futures_util::future::join_all;
use writ_broker::{
    config::{BrokerConfig, read_policies},
    jwt::Issuers,
    serve::{BrokerHandle, ServeSetup, forget_index},
};
use writ_bus::{Bus, BusConfig, SystemClock, keyfile};
use writ_common::{
    codec::decode,
    diagnostic::Diagnostics,
    ids::Resource,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument},
    signed::Signed,
};
use writ_node::{
    config::NodeConfig,
    inspect::Panel,
    serve::{NodeHandle, NodeSetup},
    tools::{self, McpSettings, Tool, ToolKind},
};
use writ_upstream::Upstream;

use crate::{dev::nats_conf::CoreUser, exit::Invalid};

/// Values of `WRIT_SECTION__KEY` variables, by dotted path; they go before the file.
#[must_use]
pub fn overrides() -> BTreeMap<String, String> {
    std::env::vars()
        .filter_map(|(name, value)| {
            let path = name.strip_prefix("WRIT_")?;
            // Variables without a section are settings of the command line, not of the file.
            path.contains("__").then(|| (path.to_ascii_lowercase().replace("__", "."), value))
        })
        .collect()
}

fn read(path: &Path) -> Result<(String, PathBuf)> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Invalid(Diagnostics(vec![writ_common::diagnostic::Diagnostic::in_file(
            &path.display().to_string(),
            error,
        )]))
    })?;
    let base = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    Ok((text, base))
}

/// Reads a broker's configuration.
///
/// # Errors
/// [`Invalid`] with every finding.
pub fn read_broker_config(path: &Path) -> Result<BrokerConfig> {
    let (text, base) = read(path)?;
    Ok(BrokerConfig::read(&path.display().to_string(), &text, &base, &overrides()).map_err(Invalid)?)
}

/// Reads a node's configuration.
///
/// # Errors
/// [`Invalid`] with every finding.
pub fn read_node_config(path: &Path) -> Result<NodeConfig> {
    let (text, base) = read(path)?;
    Ok(NodeConfig::read(&path.display().to_string(), &text, &base, &overrides()).map_err(Invalid)?)
}

/// Starts a broker.
///
/// # Errors
/// A bad configuration or policy, an unsafe key file, no connection, state that went backwards.
pub async fn start_broker(path: &Path, rebuild: bool) -> Result<BrokerHandle> {
    let config = read_broker_config(path)?;
    let policy = read_policies(&config.policies).map_err(Invalid)?;
    writ_common::policy::PolicySet::load(&policy).map_err(Invalid)?;
    let key = keyfile::read_key(&config.key_file)?;
    let record_key = keyfile::read_key(&config.record_key_file)?;
    let keyset = std::fs::read(&config.keyset_file)
        .with_context(|| format!("{} cannot be read", config.keyset_file.display()))?;
    let keyset = decode(&keyset).with_context(|| format!("{} is no keyset", config.keyset_file.display()))?;
    check_broker_key(&config, &keyset, &key)?;
    let user = keyfile::read_user(&config.bus_user_file)?;
    let bus = Bus::connect(BusConfig {
        urls: config.bus_urls,
        user,
        name: config.broker.to_string(),
        inbox_prefix: CoreUser::Broker(config.broker.clone()).inbox_prefix(),
        ca_file: config.bus_ca_file,
    })
    .await?;
    if rebuild {
        forget_index(&config.state)?;
    }
    let setup = ServeSetup {
        tenant: config.tenant,
        broker: config.broker,
        root: config.root,
        keyset,
        key,
        record_key,
        policy,
        nodes: config.nodes,
        operators: config.operators,
        approvers: config.approvers,
        identity: Box::new(Issuers(config.issuers)),
        bus,
        state: config.state,
        sync: config.sync,
        journal_limits: config.journal_limits,
        stream_bytes_max: config.stream_bytes_max,
        replicas: config.replicas,
        staleness_max: config.staleness_max,
        http: config.http,
        is_recovered: rebuild,
    };
    Ok(Box::pin(writ_broker::serve::start(setup)).await?)
}

/// A broker whose key counts for nobody would write what nobody believes.
fn check_broker_key(config: &BrokerConfig, keyset: &Signed<KeysetDocument>, key: &PrivateKey) -> Result<()> {
    let file = config.keyset_file.display();
    let keyset = Keyset::open(keyset, &config.root).with_context(|| file.to_string())?;
    let now = SystemClock::new().now().wall;
    if !keyset.is_current(now) {
        bail!(
            "{file} expired at {}; sign a newer one with `writ key sign-keyset`",
            keyset.document().expires
        );
    }
    if !keyset.is_active(&key.public(), &config.tenant, now) {
        bail!(
            "{file} does not list the key of {} ({}) for tenant `{}` at this time",
            config.key_file.display(),
            key.public(),
            config.tenant
        );
    }
    Ok(())
}

/// Reads and checks the keyset and the key of a broker's configuration.
///
/// # Errors
/// What is wrong with them.
pub fn check_broker_files(config: &BrokerConfig) -> Result<()> {
    let keyset = std::fs::read(&config.keyset_file)
        .with_context(|| format!("{} cannot be read", config.keyset_file.display()))?;
    let keyset = decode(&keyset).with_context(|| format!("{} is no keyset", config.keyset_file.display()))?;
    check_broker_key(config, &keyset, &keyfile::read_key(&config.key_file)?)
}

/// Sets up what a node serves. MCP servers are given time to be there; one that is not is tried again meanwhile, and
/// its tools are unavailable until then.
async fn build_tools(config: &NodeConfig) -> Result<BTreeMap<Resource, Arc<dyn Tool>>> {
    let mut built: BTreeMap<Resource, Arc<dyn Tool>> = BTreeMap::new();
    let mut upstreams = Vec::new();
    for (resource, kind) in &config.tools {
        let tool: Arc<dyn Tool> = match kind {
            ToolKind::Mcp(settings) => {
                let upstream = Upstream::start(resource.clone(), settings.clone());
                let upstream = Arc::new(upstream.with_context(|| format!("`{resource}`"))?);
                upstreams.push(Arc::clone(&upstream));
                upstream
            }
            other => tools::build(other).with_context(|| format!("`{resource}`"))?,
        };
        built.insert(resource.clone(), tool);
    }
    join_all(upstreams.iter().map(|upstream| upstream.first_attempt())).await;
    Ok(built)
}

/// The settings of an MCP server of a node's configuration.
///
/// # Errors
/// [`Invalid`] configuration, or no MCP server behind the resource.
pub fn read_mcp_settings(path: &Path, resource: &Resource) -> Result<McpSettings> {
    let config = read_node_config(path)?;
    match config.tools.get(resource) {
        Some(ToolKind::Mcp(settings)) => Ok(settings.clone()),
        Some(_) => bail!("`{resource}` is no MCP server in {}", path.display()),
        None => {
            let is_mcp = |(_, kind): &(&Resource, &ToolKind)| matches!(kind, ToolKind::Mcp(_));
            let known: Vec<&str> =
                config.tools.iter().filter(is_mcp).map(|(name, _)| name.as_str()).collect();
            let known = if known.is_empty() { "no MCP servers".to_owned() } else { known.join(", ") };
            bail!("{} has no `{resource}`; there are {known}", path.display())
        }
    }
}

/// Starts a node.
///
/// # Errors
/// A bad configuration, a tool that is not there, an unsafe key file, no connection.
pub async fn start_node(path: &Path, accept_streams: bool) -> Result<NodeHandle> {
    let config = read_node_config(path)?;
    if accept_streams {
        writ_node::pin_file::forget(&config.journal)?;
    }
    let key = keyfile::read_key(&config.key_file)?;
    let user = keyfile::read_user(&config.bus_user_file)?;
    let built = build_tools(&config).await?;
    let panel = Panel::open(&config.inspectors)?;
    let bus = Bus::connect(BusConfig {
        urls: config.bus_urls,
        user,
        name: config.node.to_string(),
        inbox_prefix: CoreUser::Node(config.node.clone()).inbox_prefix(),
        ca_file: config.bus_ca_file,
    })
    .await?;
    let setup = NodeSetup {
        tenant: config.tenant,
        node: config.node,
        root: config.root,
        key,
        bus,
        journal: config.journal,
        sync: config.sync,
        journal_limits: config.journal_limits,
        fresh: config.fresh,
        tools: built,
        panel,
        http: config.http,
    };
    Ok(Box::pin(writ_node::serve::start(setup)).await?)
}
