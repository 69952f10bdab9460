//! Headers: the caller's trace context, and what the server attests about the connection.

use async_nats::HeaderMap;
use serde::Deserialize;
use writ_common::trace::{TRACEPARENT, TraceContext};

/// The header a server adds when a request crosses a shared account import.
///
/// Only this exact spelling counts: the server removes an agent's own header of this name, but lets variants in
/// other cases pass.
const REQUEST_INFO: &str = "Nats-Request-Info";

/// Who sent a request, as the NATS server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attested {
    /// A connection of another account, with its user.
    Agent {
        /// The account, for example `AGENTS_acme`.
        account: String,
        /// The user's public nkey.
        user: String,
    },
    /// A connection of the service's own account, or a server that says nothing.
    #[default]
    Core,
}

#[derive(Deserialize)]
struct RequestInfo {
    acc: String,
    #[serde(default)]
    user: String,
}

pub(crate) fn attested(headers: Option<&HeaderMap>) -> Attested {
    let Some(headers) = headers else { return Attested::Core };
    // Two headers of this name cannot come from the server; nobody is attested then.
    let mut values = headers.get_all(REQUEST_INFO);
    let (Some(value), None) = (values.next(), values.next()) else { return Attested::Core };
    match serde_json::from_str::<RequestInfo>(value.as_str()) {
        Ok(RequestInfo { acc, user }) => Attested::Agent { account: acc, user },
        Err(_) => Attested::Core,
    }
}

pub(crate) fn trace_of(headers: Option<&HeaderMap>) -> Option<TraceContext> {
    TraceContext::parse(headers?.get(TRACEPARENT)?.as_str())
}

pub(crate) fn with_trace(trace: Option<&TraceContext>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace.to_string());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"acc":"AGENTS_acme","user":"UABC","rtt":5}"#;

    #[test]
    fn only_the_servers_own_header_attests() {
        let agent = Attested::Agent { account: "AGENTS_acme".into(), user: "UABC".into() };
        let mut headers = HeaderMap::new();
        assert_eq!(attested(Some(&headers)), Attested::Core);
        headers.insert("nats-request-info", INFO);
        assert_eq!(attested(Some(&headers)), Attested::Core);
        headers.insert(REQUEST_INFO, INFO);
        assert_eq!(attested(Some(&headers)), agent);
        headers.append(REQUEST_INFO, INFO);
        assert_eq!(attested(Some(&headers)), Attested::Core);
    }

    #[test]
    fn trace_context_survives_the_headers() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = TraceContext::parse(text);
        assert_eq!(trace_of(Some(&with_trace(trace.as_ref()))), trace);
    }
}
