//! What a server may ask of a node: whether it is there, and nothing else.
//!
//! No capability is advertised, so a server that keeps to the protocol asks for nothing. One that asks for a model's
//! or the user's words all the same (sampling, elicitation, roots) is refused: whoever could make a node ask people
//! for credentials would not need the tools (threat M08).

#![expect(deprecated, reason = "what the newer revision has no more is refused by its old name")]

use std::sync::Arc;

use rmcp::{
    ClientHandler, ErrorData,
    model::{
        ClientCapabilities, ClientConfig, CreateMessageRequestParams, CreateMessageResult, CustomRequest,
        CustomResult, ElicitRequestParams, ElicitResult, ElicitationAction, ErrorCode, Implementation,
        ListRootsResult, LoggingMessageNotificationParam, ProtocolVersion,
    },
    service::{NotificationContext, RequestContext, RoleClient},
};
use tokio::sync::Notify;
use writ_common::{ids::Resource, reason::ReasonCode};

use crate::text::bounded;

/// The client's side of a connection.
pub(crate) struct Handler {
    pub(crate) resource: Resource,
    /// The server says that its tools have changed.
    pub(crate) changed: Arc<Notify>,
}

impl Handler {
    fn refused(&self, method: &str) -> ErrorData {
        let (code, method) = (ReasonCode::McpMethod, bounded(method));
        tracing::warn!(
            "{code}: the MCP server of `{}` asks for `{method}`, which it does not get",
            self.resource
        );
        ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "not served", None)
    }
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let this = Implementation::new("writ", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), this)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn create_message(
        &self,
        _params: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        Err(self.refused("sampling/createMessage"))
    }

    async fn list_roots(&self, _context: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Err(self.refused("roots/list"))
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        if writ_common::red::off("M08") {
            return Ok(ElicitResult::new(ElicitationAction::Accept));
        }
        Err(self.refused("elicitation/create"))
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _context: RequestContext<RoleClient>,
    ) -> Result<CustomResult, ErrorData> {
        Err(self.refused(&request.method))
    }

    async fn on_logging_message(
        &self,
        params: LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        tracing::debug!("the MCP server of `{}` says: {}", self.resource, bounded(&params.data.to_string()));
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}
