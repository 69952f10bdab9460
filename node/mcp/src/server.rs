//! The MCP server: which methods are served, and how an answer is put for the revision the client speaks.
//!
//! Served are `initialize`, `server/discover`, `ping`, `tools/list`, `tools/call` and the news that the list of tools
//! has changed. Whoever lists prompts or resources, which are not advertised, hears that there are none. Everything else
//! is "method not found": what Writ does not govern, it does not pass on (threat M08).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::request::Parts;
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResponse, ElicitRequest, ElicitRequestParams, ElicitationSchema,
        Extensions, Implementation, InputRequest, InputRequiredResult, InputResponses, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, SubscriptionFilter,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use writ_common::{
    ids::ApprovalId,
    reason::{Reason, ReasonCode},
};
use writ_sdk::Held;

use crate::{
    Gateway, GatewayError, HEADER_CAPABILITY, META_CAPABILITY, answer,
    gateway::{Outcome, ToolCall},
};

/// What a model is told of the server as a whole.
const INSTRUCTIONS: &str = "These tools are governed by Writ: each call is decided, recorded and labelled before it \
    is done. A denied call says why; the same call again is denied again. A held call waits for a person: once they \
    have approved it, make the same call with the same arguments.";

/// The name of the one question a client is asked.
const QUESTION: &str = "approval";
/// What stands between an approval and how often a client was asked to wait for it, and how often it is: one that says
/// "again" by itself would go on until its library gives up, and its model would hear nothing.
const ROUND: char = '~';
const ROUNDS_MAX: u32 = 3;
/// How often it is looked whether a connection that is told news still stands.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a credential opens, put beside each request that came with it.
#[derive(Clone)]
pub(crate) enum Opened {
    /// A task.
    Live(Gateway),
    /// A task whose user's token is not good any more: what it shows can be seen, and nothing is done.
    Ended(Gateway, ReasonCode),
}

impl Opened {
    fn gateway(&self) -> &Gateway {
        match self {
            Self::Live(gateway) | Self::Ended(gateway, _) => gateway,
        }
    }
}

/// The server of one connection, or of one request where the protocol has no connections.
#[derive(Clone)]
pub(crate) struct Server {
    /// What is behind a pipe; over HTTP it comes with each request, by its credential.
    opened: Option<Opened>,
    /// Whether the client is told news already: it may say that it is ready more than once.
    is_told: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn new(gateway: Option<Gateway>) -> Self {
        Self { opened: gateway.map(Opened::Live), is_told: Arc::default() }
    }

    fn opened(&self, extensions: &Extensions) -> Result<Opened, ErrorData> {
        let of_request = || extensions.get::<Parts>()?.extensions.get::<Opened>().cloned();
        self.opened
            .clone()
            .or_else(of_request)
            .ok_or_else(|| ErrorData::internal_error("the request has no session", None))
    }
}

/// The capabilities that come with a call, outermost first: those of the request's headers, then the call's own.
fn presented(context: &RequestContext<RoleServer>) -> Vec<String> {
    let parts = context.extensions.get::<Parts>();
    let headers = parts.into_iter().flat_map(|parts| parts.headers.get_all(HEADER_CAPABILITY));
    // What is no text is no capability, and saying nothing of it would let the call through with more.
    let headers = headers.map(|value| value.to_str().unwrap_or("?").to_owned());
    let own = context.meta.0.0.get(META_CAPABILITY);
    headers.chain(own.map(|value| value.as_str().unwrap_or("?").to_owned())).collect()
}

/// What a client hands back of a call that waits: the approval, and how often it was asked to wait. It is no secret and
/// proves nothing.
fn read_state(state: &str) -> Result<(ApprovalId, u32), Reason> {
    let read = state
        .split_once(ROUND)
        .and_then(|(approval, round)| Some((ApprovalId::parse(approval).ok()?, round.parse().ok()?)));
    read.ok_or_else(|| Reason::new(ReasonCode::ApprovalUnknown).told("`requestState` is none of ours"))
}

/// Whether a client that was asked to wait says that it wants to know how things stand now.
fn wants_to_know(responses: Option<&InputResponses>) -> bool {
    let Some(answer) = responses.and_then(|responses| responses.get(QUESTION)) else { return true };
    answer.get("action").and_then(serde_json::Value::as_str) == Some("accept")
        && answer.pointer("/content/again") != Some(&serde_json::Value::Bool(false))
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
        let opened = self.opened(&context.extensions)?;
        Ok(ListToolsResult::with_all_items(opened.gateway().tools(&presented(&context)).await))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let gateway = match self.opened(&context.extensions)? {
            Opened::Live(gateway) => gateway,
            Opened::Ended(_, code) => return Ok(answer::refused_here(code, code.page().meaning).into()),
        };
        let state = match request.request_state.as_deref().map(read_state) {
            Some(Err(reason)) => return Ok(answer::refused_here(reason.code(), reason.for_caller()).into()),
            Some(Ok((approval, _))) if !wants_to_know(request.input_responses.as_ref()) => {
                return Ok(answer::still_held(&approval).into());
            }
            Some(Ok(state)) => Some(state),
            None => None,
        };
        let call = ToolCall {
            name: &request.name,
            arguments: request.arguments.as_ref(),
            presented: &presented(&context),
            state: state.as_ref().map(|(approval, _)| approval),
            cancelled: &context.ct,
        };
        let outcome = gateway.call(call).await;
        let round = state.map_or(0, |(_, round)| round);
        Ok(match outcome {
            Outcome::Complete(result) => result.into(),
            Outcome::Held(held) if can_be_asked(&context) && round < ROUNDS_MAX => {
                input_required(&held, round + 1)?.into()
            }
            Outcome::Held(held) => answer::failed(&writ_sdk::Error::Held(held)).into(),
        })
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        if self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let Ok(opened) = self.opened(&context.extensions) else { return };
        let mut changes = opened.gateway().changes();
        let peer = context.peer;
        // The receiver does not keep the gateway alive.
        tokio::spawn(async move {
            while !peer.is_transport_closed() {
                match tokio::time::timeout(LOOK_EVERY, changes.changed()).await {
                    Ok(Ok(())) if peer.notify_tool_list_changed().await.is_ok() => {}
                    Ok(_) => return,
                    Err(_) => {}
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
        let mut changes = self.opened(&context.request_context().extensions)?.gateway().changes();
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
    let asks = context.client_capabilities().and_then(|capabilities| capabilities.elicitation);
    // One that names no form can do forms; one that names URLs only cannot.
    is_new && asks.is_some_and(|asks| asks.form.is_some() || asks.url.is_none())
}

/// The person before the client is told who has to approve, and says when to look again. What they say approves
/// nothing: that is for somebody else, who answers elsewhere.
fn input_required(held: &Held, round: u32) -> Result<InputRequiredResult, ErrorData> {
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
        BTreeMap::from([(QUESTION.to_owned(), InputRequest::Elicitation(ElicitRequest::new(question)))]);
    Ok(InputRequiredResult::new(Some(requests), Some(format!("{}{ROUND}{round}", held.approval))))
}

/// Serves one client on standard input and output, until it closes them.
///
/// # Errors
/// [`GatewayError::Setting`] if what comes in is no MCP.
pub async fn serve_stdio(gateway: Gateway) -> Result<(), GatewayError> {
    let server = Server::new(Some(gateway));
    let no_mcp = |error: &dyn std::fmt::Display| GatewayError::Setting(format!("standard input: {error}"));
    let running = Box::pin(server.serve(rmcp::transport::stdio())).await.map_err(|error| no_mcp(&error))?;
    running.waiting().await.map_err(|error| no_mcp(&error))?;
    Ok(())
}
