//! The MCP server: which methods are served, and how an answer is put for the revision the client speaks.
//!
//! Served are `initialize`, `server/discover`, `ping`, `tools/list`, `tools/call` and the news that the list of tools
//! has changed. Everything else is "method not found": what Writ does not govern, it does not pass on (threat M08).

use std::collections::BTreeMap;

use axum::http::request::Parts;
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResponse, ElicitRequest, ElicitRequestParams, ElicitationSchema,
        Extensions, Implementation, InputRequest, InputRequiredResult, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, SubscriptionFilter,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use writ_sdk::Held;

use crate::{Gateway, GatewayError, HEADER_CAPABILITY, META_CAPABILITY, answer, gateway::Outcome};

/// What a model is told of the server as a whole.
const INSTRUCTIONS: &str = "These tools are governed by Writ: each call is decided, recorded and labelled before it \
    is done. A denied call says why; the same call again is denied again. A held call waits for a person: once they \
    have approved it, make the same call with the same arguments.";

/// The server of one connection, or of one request where the protocol has no connections.
#[derive(Clone)]
pub(crate) struct Server {
    /// The gateway behind a pipe; over HTTP it comes with each request, by its credential.
    pub(crate) gateway: Option<Gateway>,
}

impl Server {
    fn gateway(&self, extensions: &Extensions) -> Result<Gateway, ErrorData> {
        let of_request = || extensions.get::<Parts>()?.extensions.get::<Gateway>().cloned();
        self.gateway
            .clone()
            .or_else(of_request)
            .ok_or_else(|| ErrorData::internal_error("the request has no session", None))
    }
}

/// The capabilities that come with a call, outermost first: the connection's header, then the call's own.
fn presented(context: &RequestContext<RoleServer>) -> Vec<String> {
    let parts = context.extensions.get::<Parts>();
    let header = parts.and_then(|parts| parts.headers.get(HEADER_CAPABILITY));
    // A header that is no text is no capability, and saying nothing of it would let the call through with more.
    let header = header.map(|value| value.to_str().unwrap_or("?").to_owned());
    let own = context.meta.0.0.get(META_CAPABILITY);
    let own = own.map(|value| value.as_str().unwrap_or("?").to_owned());
    header.into_iter().chain(own).collect()
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build();
        let mut info = ServerConfig::new(capabilities).with_instructions(INSTRUCTIONS);
        info.server_info = Implementation::new("writ", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let gateway = self.gateway(&context.extensions)?;
        Ok(ListToolsResult::with_all_items(gateway.tools(&presented(&context)).await))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let gateway = self.gateway(&context.extensions)?;
        let presented = presented(&context);
        let state = request.request_state.as_deref();
        let outcome = gateway.call(&request.name, request.arguments.as_ref(), &presented, state).await;
        Ok(match outcome {
            Outcome::Complete(result) => result.into(),
            Outcome::Held(held) if can_be_asked(&context) => input_required(&held)?.into(),
            Outcome::Held(held) => answer::failed(&writ_sdk::Error::Held(held)).into(),
        })
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let Ok(gateway) = self.gateway(&context.extensions) else { return };
        let mut changes = gateway.changes();
        let peer = context.peer;
        // The receiver does not keep the gateway alive; the peer goes with its connection.
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                if peer.notify_tool_list_changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let wanted = requested.tools_list_changed.unwrap_or(false);
        let accepted = SubscriptionFilter::builder();
        Some(if wanted { accepted.tools_list_changed() } else { accepted }.build())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let gateway = self.gateway(&context.request_context().extensions)?;
        let mut changes = gateway.changes();
        drop(gateway);
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                changed = changes.changed() => {
                    if changed.is_err() || context.sink().notify_tool_list_changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether the client said that it can put a question to the person before it, in a revision that has the form for it
/// (MCP 2026-07-28, `input_required`).
fn can_be_asked(context: &RequestContext<RoleServer>) -> bool {
    let is_new = context
        .protocol_version()
        .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str());
    is_new && context.client_capabilities().is_some_and(|capabilities| capabilities.elicitation.is_some())
}

/// The person before the client is told who has to approve, and says when to look again. What they say approves
/// nothing: that is for somebody else, who answers elsewhere.
fn input_required(held: &Held) -> Result<InputRequiredResult, ErrorData> {
    let schema = ElicitationSchema::builder()
        .optional_bool("again", true)
        .build()
        .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
    let question = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: answer::hold_text(held),
        requested_schema: schema,
    };
    let requests =
        BTreeMap::from([("approval".to_owned(), InputRequest::Elicitation(ElicitRequest::new(question)))]);
    Ok(InputRequiredResult::new(Some(requests), Some(held.approval.to_string())))
}

/// Serves one client on standard input and output, until it closes them.
///
/// # Errors
/// [`GatewayError::Setting`] if what comes in is no MCP.
pub async fn serve_stdio(gateway: Gateway) -> Result<(), GatewayError> {
    let server = Server { gateway: Some(gateway) };
    let no_mcp = |error: &dyn std::fmt::Display| GatewayError::Setting(format!("standard input: {error}"));
    let running = Box::pin(server.serve(rmcp::transport::stdio())).await.map_err(|error| no_mcp(&error))?;
    running.waiting().await.map_err(|error| no_mcp(&error))?;
    Ok(())
}
