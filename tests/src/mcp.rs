//! MCP clients for tests: the protocol's own library, and bare HTTP for what it would not send.

use std::{collections::HashMap, path::Path, process::Stdio};

use anyhow::{Context as _, Result};
use axum::http::{HeaderName, HeaderValue};
use rmcp::{
    ClientHandler, RoleClient, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, Implementation,
        ProtocolVersion, RequestMetaObject,
    },
    service::{ClientLifecycleMode, ClientServiceExt as _, NotificationContext, RunningService},
    transport::{
        StreamableHttpClientTransport, TokioChildProcess,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// A client that counts how often it was told that the list of tools is another one.
#[derive(Clone)]
pub struct Client {
    changes: watch::Sender<u32>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("writ-tests", "1"))
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changes.send_modify(|times| *times += 1);
    }
}

/// A connection to a gateway.
pub struct McpClient {
    service: RunningService<RoleClient, Client>,
    changes: watch::Receiver<u32>,
}

/// Which revision of the protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// 2025-11-25: sessions.
    Sessions,
    /// 2026-07-28: each request on its own.
    Stateless,
}

impl Revision {
    fn lifecycle(self) -> ClientLifecycleMode {
        match self {
            Self::Sessions => ClientLifecycleMode::Initialize,
            Self::Stateless => {
                ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
            }
        }
    }
}

impl McpClient {
    /// Connects over HTTP with a bearer, and headers beside it.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn http(url: &str, bearer: &str, headers: &[(&str, &str)], revision: Revision) -> Result<Self> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(url).auth_header(bearer);
        config.custom_headers = headers
            .iter()
            .map(|(name, value)| Ok((name.parse::<HeaderName>()?, HeaderValue::from_str(value)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        config.max_concurrent_requests = 64;
        let (changes, told) = watch::channel(0);
        let transport = StreamableHttpClientTransport::from_config(config);
        let service = Client { changes }.serve_with_lifecycle(transport, revision.lifecycle()).await?;
        Ok(Self { service, changes: told })
    }

    /// Starts a program and speaks with it over its standard input and output.
    ///
    /// # Errors
    /// If it does not start, or the handshake fails.
    pub async fn stdio(program: &str, arguments: &[&str], folder: &Path) -> Result<Self> {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).current_dir(folder).kill_on_drop(true);
        let (transport, _) = TokioChildProcess::builder(command).stderr(Stdio::inherit()).spawn()?;
        let (changes, told) = watch::channel(0);
        Ok(Self { service: Client { changes }.serve(transport).await?, changes: told })
    }

    /// The names of the tools.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn tools(&self) -> Result<Vec<String>> {
        let tools = self.service.list_all_tools().await?;
        Ok(tools.into_iter().map(|tool| tool.name.into_owned()).collect())
    }

    /// One tool as it is listed.
    ///
    /// # Errors
    /// If it is not.
    pub async fn tool(&self, name: &str) -> Result<Value> {
        let tools = self.service.list_all_tools().await?;
        let tool = tools.into_iter().find(|tool| tool.name == name).context("it is not listed")?;
        Ok(serde_json::to_value(tool)?)
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// An answer that is no result.
    pub async fn call(&self, name: &str, arguments: Value) -> Result<Called> {
        self.call_with(name, arguments, None).await
    }

    /// Calls a tool with a capability in `_meta`.
    ///
    /// # Errors
    /// As [`McpClient::call`].
    pub async fn call_with(&self, name: &str, arguments: Value, capability: Option<&str>) -> Result<Called> {
        let Value::Object(arguments) = arguments else { anyhow::bail!("arguments are an object") };
        let mut request = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
        if let Some(capability) = capability {
            let mut meta = RequestMetaObject::default();
            meta.0.0.insert("dev.writ/capability".to_owned(), capability.into());
            request.meta = Some(meta);
        }
        Ok(Called(self.service.call_tool(request).await?))
    }

    /// Waits until the server says that the list of tools is another one.
    ///
    /// # Errors
    /// If it does not within 30 s.
    pub async fn told_of_change(&mut self) -> Result<()> {
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), self.changes.changed()).await;
        Ok(waited.context("no news of the list of tools within 30 s")??)
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// If it did not end well.
    pub async fn close(self) -> Result<()> {
        self.service.cancel().await?;
        Ok(())
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Called(pub CallToolResult);

impl Called {
    /// Whether nothing came of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.0.is_error.unwrap_or(false)
    }

    /// The text a model is shown.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.content.iter().filter_map(|block| block.as_text()).map(|text| text.text.as_str()).collect()
    }

    /// A member of the structured content.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        let field = self.0.structured_content.as_ref().and_then(|content| content.get(name));
        field.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// A member of `_meta`.
    #[must_use]
    pub fn meta(&self, name: &str) -> Value {
        self.0.meta.as_ref().and_then(|meta| meta.0.get(name)).cloned().unwrap_or_default()
    }
}

/// A request of revision 2026-07-28 with its headers, to be spoilt.
#[must_use]
pub fn request(method: &str, params: Value, capabilities: Value) -> (Vec<(String, String)>, Value) {
    let mut params = params;
    let name = params.get("name").and_then(Value::as_str).map(str::to_owned);
    if let Some(params) = params.as_object_mut() {
        let meta = params.entry("_meta").or_insert_with(|| json!({}));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert("io.modelcontextprotocol/protocolVersion".to_owned(), "2026-07-28".into());
            meta.insert("io.modelcontextprotocol/clientCapabilities".to_owned(), capabilities);
        }
    }
    let mut headers = vec![
        ("accept".to_owned(), "application/json, text/event-stream".to_owned()),
        ("mcp-protocol-version".to_owned(), "2026-07-28".to_owned()),
        ("mcp-method".to_owned(), method.to_owned()),
    ];
    headers.extend(name.map(|name| ("mcp-name".to_owned(), name)));
    (headers, json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
}

/// Sends a request as it is, and returns status and answer: the first JSON-RPC message of it.
///
/// # Errors
/// If there is no answer.
pub async fn send(
    url: &str,
    bearer: Option<&str>,
    (headers, body): &(Vec<(String, String)>, Value),
) -> Result<(u16, HashMap<String, String>, Value)> {
    let client = reqwest::Client::new();
    let mut request = client.post(url).header("content-type", "application/json").body(body.to_string());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if let Some(bearer) = bearer {
        request = request.header("authorization", format!("Bearer {bearer}"));
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
        .collect();
    let text = response.text().await?;
    let event = text.lines().filter_map(|line| line.strip_prefix("data:")).find_map(|data| {
        serde_json::from_str::<Value>(data.trim()).ok().filter(|message| message.get("id").is_some())
    });
    let message = event.or_else(|| serde_json::from_str(&text).ok()).unwrap_or(Value::String(text));
    Ok((status, headers, message))
}
