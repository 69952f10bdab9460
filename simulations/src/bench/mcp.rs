//! A tool of an MCP server, called directly and through gateway and node, in one run.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, JsonObject, ListToolsResult,
        PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
    },
    service::{RequestContext, RunningService},
    transport::{
        StreamableHttpClientTransport, TokioChildProcess,
        streamable_http_client::StreamableHttpClientTransportConfig,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use serde::Serialize;
use serde_json::json;
use writ_common::{ids::Resource, policy::PolicyBundle, wire::AdminWanted};
use writ_upstream::{ProposeOptions, propose};

use super::{
    Bench, Running, broker_answers,
    measure::{self, Load},
    process, setup,
};

/// Calls under way at the same time.
const IN_FLIGHT: [usize; 2] = [1, 32];
/// The resource of the server on a pipe, and of the one on a socket.
const RESOURCES: [&str; 2] = ["tool.piped", "tool.listening"];
/// The tool's name at the server, and the one it has where the same server is there a second time.
const NAMES: [&str; 2] = ["echo", "echo_listening"];
/// What governing a call may add at 1 in flight, in milliseconds: what a proxy without policy and signatures added.
const ADDED_MS_MAX: f64 = 1.2;

type Client = RunningService<RoleClient, ()>;

/// Calls over one way of carrying messages, at one number in flight.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// `stdio` or `http`.
    pub transport: &'static str,
    /// How many are under way at the same time.
    pub in_flight: usize,
    /// Straight to the server.
    pub direct: Load,
    /// Through gateway and node.
    pub governed: Load,
    /// What governing adds to the median, in milliseconds.
    pub added_ms: f64,
    /// Governed calls per second by direct ones.
    pub throughput_ratio: f64,
}

/// What one run found out.
#[derive(Clone, Debug, Serialize)]
pub struct McpReport {
    /// By transport and number in flight.
    pub carried: Vec<Carried>,
    /// Resident memory of a gateway after the calls, in MiB.
    pub gateway_mib: Option<f64>,
    /// What was aimed at, in milliseconds.
    pub added_ms_max: f64,
}

impl McpReport {
    /// Aligned columns.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<32} {:>10} {:>10} {:>12} {:>10}",
            "in flight", "p50 us", "p99 us", "per second", "added ms"
        )];
        for Carried { transport, in_flight, direct, governed, added_ms, throughput_ratio } in &self.carried {
            for (name, load) in [("direct", direct), ("governed", governed)] {
                let Load { p50_us, p99_us, per_second, .. } = load;
                let name = format!("{in_flight:>4}  {transport}, {name}");
                lines.push(format!("{name:<32} {p50_us:>10.1} {p99_us:>10.1} {per_second:>12.0}"));
            }
            let [p50, p99] = [governed.p50_us / direct.p50_us, governed.p99_us / direct.p99_us];
            lines.push(format!(
                "{:<32} {p50:>9.2}x {p99:>9.2}x {throughput_ratio:>11.3}x {added_ms:>10.2}",
                "      ratio"
            ));
        }
        let memory = self.gateway_mib.map_or("not measured".to_owned(), |mib| format!("{mib:.1} MiB"));
        lines.push(format!("\na gateway after the calls: {memory}"));
        let alone = self.carried.iter().filter(|one| one.in_flight == 1);
        lines.extend(alone.map(|Carried { transport, added_ms, .. }| {
            let met = if *added_ms <= self.added_ms_max { "met" } else { "not met" };
            format!(
                "goal: {transport}, 1 in flight, at most {:.1} ms added: {added_ms:.2}, {met}",
                self.added_ms_max
            )
        }));
        lines.join("\n")
    }
}

/// A server with one tool, which says what it is told.
struct Echo;

impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema =
            json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]});
        let schema: JsonObject = serde_json::from_value(schema).unwrap_or_default();
        let mut tool = Tool::default();
        tool.name = "echo".into();
        tool.description = Some("Says what it is told.".into());
        tool.input_schema = schema.into();
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let text = request
            .arguments
            .as_ref()
            .and_then(|arguments| arguments.get("text")?.as_str().map(str::to_owned));
        Ok(CallToolResult::success(vec![ContentBlock::text(text.unwrap_or_default())]).into())
    }
}

/// The server: on standard input and output, or on a port of loopback, which it says first.
///
/// # Errors
/// If nobody speaks with it.
pub async fn echo(listen: bool) -> Result<()> {
    if !listen {
        Echo.serve(rmcp::transport::stdio()).await?.waiting().await?;
        return Ok(());
    }
    let config = StreamableHttpServerConfig::default();
    let service = StreamableHttpService::new(|| Ok(Echo), LocalSessionManager::default().into(), config);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    axum::serve(listener, axum::Router::new().route_service("/mcp", service)).await?;
    Ok(())
}

/// A child process that ends with this value.
struct Child(tokio::process::Child);

impl Child {
    /// This program as the server that listens, and where it does.
    async fn listening() -> Result<(Self, SocketAddr)> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args(["echo", "--listen"]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("no output")?;
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
        let address = lines.next_line().await?.context("the server does not say where it listens")?;
        Ok((Self(child), address.parse()?))
    }

    /// `writ mcp` over HTTP, and its URL.
    async fn gateway(folder: &Path, resource: &str) -> Result<(Self, String)> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.arg0(crate::WRIT).args(gateway_arguments(folder, resource));
        command.args(["--http", "127.0.0.1:0", "--open", "-o", "json"]);
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        let err = child.stderr.take().context("no output")?;
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(err));
        while let Some(line) = lines.next_line().await? {
            let said = serde_json::from_str::<serde_json::Value>(&line).ok();
            if let Some(url) = said.as_ref().and_then(|said| said.get("url")?.as_str()) {
                return Ok((Self(child), url.to_owned()));
            }
        }
        bail!("the gateway does not start")
    }

    fn resident_mib(&self) -> Option<f64> {
        process::resident_mib(self.0.id()?)
    }
}

fn gateway_arguments(folder: &Path, resource: &str) -> Vec<String> {
    let profile = folder.join("operator.toml").display().to_string();
    let arguments = ["mcp", "--profile", &profile, "--agent", setup::AGENT, "--user", "alice"];
    let more = ["--kind", "customer-answer", "--only", resource];
    arguments.into_iter().chain(more).map(str::to_owned).collect()
}

async fn piped(arguments: Vec<String>, name: Option<&str>) -> Result<Client> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    if let Some(name) = name {
        command.arg0(name);
    }
    command.args(arguments).kill_on_drop(true);
    let (transport, _) = TokioChildProcess::builder(command).stderr(Stdio::null()).spawn()?;
    Ok(().serve(transport).await?)
}

async fn connected(url: &str) -> Result<Client> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    config.max_concurrent_requests = 64;
    Ok(().serve(StreamableHttpClientTransport::from_config(config)).await?)
}

/// Measures; `during` is the time under load per figure.
///
/// # Errors
/// If the set-up does not come up, or a call is refused or fails.
pub async fn run(during: Duration) -> Result<McpReport> {
    // One provider for TLS in the whole process, also for clients that use none.
    drop(rustls::crypto::ring::default_provider().install_default());
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let folder = temporary.path().join(".writ");
    let (_server, address) = Child::listening().await?;
    let mut bench = Bench::start(folder.clone(), 1).await?;
    serve_tools(&bench, address).await?;
    let broker = Running::writ("broker", &bench.stack.layout.broker_config())?;
    broker_answers(&bench.stack, &broker).await?;
    bench.broker = Some(broker);
    // The first policy was put in force before the servers were there to be listed.
    let bundle = policies_of(&bench.stack.layout.policies())?;
    let operator = bench.stack.operator().await?;
    operator.ask(AdminWanted::ActivatePolicy { bundle, expect: None }).await?;
    operator.close().await;
    bench.restart_node().await?;

    let mut carried = Vec::new();
    let [piped_tool, listening_tool] = RESOURCES;
    let direct = piped(vec!["echo".to_owned()], None).await?;
    let governed = piped(gateway_arguments(&folder, piped_tool), Some(crate::WRIT)).await?;
    for in_flight in IN_FLIGHT {
        carried.push(compare("stdio", in_flight, &direct, (&governed, NAMES[0]), during).await?);
    }
    direct.cancel().await?;
    governed.cancel().await?;
    let (gateway, url) = Child::gateway(&folder, listening_tool).await?;
    let direct = connected(&format!("http://{address}/mcp")).await?;
    let governed = connected(&url).await?;
    for in_flight in IN_FLIGHT {
        carried.push(compare("http", in_flight, &direct, (&governed, NAMES[1]), during).await?);
    }
    let gateway_mib = gateway.resident_mib();
    direct.cancel().await?;
    governed.cancel().await?;
    bench.stop()?;
    Ok(McpReport { carried, gateway_mib, added_ms_max: ADDED_MS_MAX })
}

async fn compare(
    transport: &'static str,
    in_flight: usize,
    direct: &Client,
    (governed, name): (&Client, &'static str),
    during: Duration,
) -> Result<Carried> {
    let direct = load(direct, NAMES[0], in_flight, during).await?;
    let governed = load(governed, name, in_flight, during).await?;
    let added_ms = (governed.p50_us - direct.p50_us) / 1_000.0;
    let throughput_ratio = governed.per_second / direct.per_second;
    Ok(Carried { transport, in_flight, direct, governed, added_ms, throughput_ratio })
}

async fn load(client: &Client, name: &'static str, in_flight: usize, during: Duration) -> Result<Load> {
    let peer = client.peer().clone();
    measure::load(in_flight, during, move || {
        let peer = peer.clone();
        async move {
            let arguments: JsonObject = [("text".to_owned(), "hello".into())].into_iter().collect();
            let called = peer.call_tool(CallToolRequestParams::new(name).with_arguments(arguments)).await?;
            ensure!(called.is_error != Some(true), "the call came to {called:?}");
            Ok(())
        }
    })
    .await
}

/// Puts the server behind the node, twice, and its tool into policy and role.
async fn serve_tools(bench: &Bench, address: SocketAddr) -> Result<()> {
    let layout = &bench.stack.layout;
    let config = layout.node_config(setup::NODE);
    let program = std::env::current_exe()?;
    let [piped, listening] = RESOURCES;
    let text = format!(
        "{}\n[[tool]]\nresource = \"{piped}\"\nkind = \"mcp\"\ncommand = {program:?}\nargs = [\"echo\"]\n\n\
         [[tool]]\nresource = \"{listening}\"\nkind = \"mcp\"\nurl = \"http://{address}/mcp\"\n",
        fs::read_to_string(&config)?
    );
    fs::write(&config, text)?;
    for (resource, own) in RESOURCES.into_iter().zip(NAMES) {
        let resource = Resource::parse(resource)?;
        let settings = writ::run::read_mcp_settings(&config, &resource)?;
        let listing = writ_upstream::list(&resource, &settings).await?;
        let mut options = ProposeOptions::default();
        // One tool of two servers: each needs a name of its own.
        options.renames.insert("echo".to_owned(), own.to_owned());
        add_contract(&layout.policies(), &resource, &listing, &options)?;
    }
    let roles: PathBuf = layout.policies().join("roles.toml");
    let [echo, again] = NAMES;
    let rights = format!("\"{piped}:{echo}\", \"{listening}:{again}\", \"tool.crm:read\",");
    let text = fs::read_to_string(&roles)?;
    ensure!(text.contains("\"tool.crm:read\","), "the role has no rights to add to");
    Ok(fs::write(&roles, text.replacen("\"tool.crm:read\",", &rights, 1))?)
}

fn policies_of(folder: &Path) -> Result<PolicyBundle> {
    writ_broker::config::read_policies(folder).map_err(|findings| anyhow::anyhow!("{findings}"))
}

/// What is proposed asks a person before every call; what is measured does not.
fn add_contract(
    policies: &Path,
    resource: &Resource,
    listing: &writ_upstream::Listing,
    options: &ProposeOptions,
) -> Result<()> {
    let bundle = policies_of(policies)?;
    let proposal =
        propose(resource, listing, &bundle, options).map_err(|findings| anyhow::anyhow!("{findings}"))?;
    let contract = proposal.contract.replace("effect = \"egress\"", "effect = \"read\"");
    fs::write(policies.join(&proposal.contract_path), contract)?;
    Ok(())
}
