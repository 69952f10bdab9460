//! Names of things: one grammar, one parser, one newtype each.
//!
//! Every id can stand in a NATS subject as it is, so an id that parses can neither add a token (`.`) nor a
//! wildcard (`*`, `>`), nor break a header or a log line. There is no other way to make one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Longest issuer or subject of a user, in bytes (RFC 7519 leaves both open).
pub const USER_PART_BYTES_MAX: usize = 512;

/// Why a text is not the id it was meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{text}` {why}")]
pub struct InvalidId {
    /// Which id was expected, for example `agent name`.
    pub what: &'static str,
    /// The offending text, escaped and cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl InvalidId {
    pub(crate) fn new(what: &'static str, text: &str, why: &'static str) -> Self {
        Self { what, text: text.chars().take(80).flat_map(char::escape_default).collect(), why }
    }
}

/// Checks the shared grammar `[a-z0-9_-]{1,64}`.
fn check_name(what: &'static str, text: &str) -> Result<(), InvalidId> {
    let why = if text.is_empty() {
        "is empty"
    } else if text.len() > ID_BYTES_MAX {
        "is longer than 64 bytes"
    } else if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
        "may only hold a-z, 0-9, `_` and `-`"
    } else if text == "_" {
        "is reserved"
    } else {
        return Ok(());
    };
    Err(InvalidId::new(what, text, why))
}

macro_rules! names {
    ($($(#[$doc:meta])* $Name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(String);

        impl $Name {
            /// Parses the shared id grammar `[a-z0-9_-]{1,64}`.
            ///
            /// # Errors
            /// [`InvalidId`] names the text and what is wrong with it.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check_name($what, &text)?;
                Ok(Self(text))
            }

            /// The id as it stands in subjects, records and policies.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $Name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $Name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl From<$Name> for String {
            fn from(id: $Name) -> String {
                id.0
            }
        }
    )*};
}

names! {
    /// One request for approval.
    ApprovalId, "approval id";
    /// An AI agent, as the inventory names it. Replicas share the name and have keys of their own.
    AgentId, "agent name";
    /// A budget of a task, as the policy names it.
    BudgetId, "budget";
    /// One capability; survives renewal (`serial` counts the renewals).
    CapabilityId, "capability id";
    /// What found something, within an inspector.
    DetectorId, "detector";
    /// A set of calls that share one task label; by default the task.
    DomainId, "flow domain id";
        /// A list of trusted values, kept by operators.
    DirectoryId, "directory";
    /// What sort of thing a guarded argument names: `email`, `iban`, `url`, `file_id`. What each means is in
    /// [`crate::source`].
    EntityType, "entity type";
    /// What sort of thing was found in a text: `card`, `email`.
    FindingKind, "kind of finding";
    /// A legal hold, as whoever ordered it names it.
    HoldId, "legal hold";
    /// What looks at texts, as a node's configuration names it.
    InspectorId, "inspector";
    /// An enforcement point.
    NodeId, "node name";
    /// A broker.
    BrokerId, "broker name";
    /// An operator of the control plane, named by the broker's configuration.
    OperatorId, "operator name";
    /// The stream part a flow domain lives in.
    PartId, "stream part";
    /// One run of a node or broker, unique and certified; with a sequence it names a record.
    BootId, "boot id";
    /// An agent's assignment.
    TaskId, "task id";
    /// What sort of task: the word policies speak about (`customer-answer`).
    TaskKind, "task kind";
    /// An organisation; everything belongs to exactly one.
    TenantId, "tenant";
    /// A role of a user, mapped from the claims of the user's token.
    RoleId, "role";
    /// What is done to a resource: `read`, `draft`, `invoke`.
    Action, "action";
    /// The key of an agent: the first 128 bits of the key's fingerprint in hex.
    KeyId, "key id";
}

/// Draws a sortable unique id: 48 bits of milliseconds, then 80 random bits, in lower-case base 32.
///
/// Same layout as a ULID, written in the id grammar.
#[must_use]
pub fn sortable_id(prefix: &str, now: Timestamp, random: [u8; 10]) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut value = u128::from(now.as_millis() & 0xffff_ffff_ffff) << 80;
    for (index, byte) in random.iter().rev().enumerate() {
        value |= u128::from(*byte) << (8 * index);
    }
    let digits = (0..26).rev().map(|position| {
        let index = usize::try_from((value >> (5 * position)) & 31).unwrap_or(0);
        char::from(*ALPHABET.get(index).unwrap_or(&b'0'))
    });
    prefix.chars().chain(digits).collect()
}

impl TaskId {
    /// A fresh task id.
    #[must_use]
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(sortable_id("t-", now, random))
    }
}

impl CapabilityId {
    /// A fresh capability id.
    #[must_use]
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(sortable_id("c-", now, random))
    }

    /// The id of the extra capability that one approval comes to: `<id>_<16 hex digits>`.
    ///
    /// # Errors
    /// [`InvalidId`] if this id is so long that no more fits.
    pub fn extra(&self, approval: &ApprovalId) -> Result<Self, InvalidId> {
        let digest = crate::digest::Digest::of("writ/v1/extra-capability", &[approval.as_str().as_bytes()]);
        let short: String = digest.to_string().chars().take(16).collect();
        Self::parse(format!("{}{EXTRA}{short}", self.0))
    }

    /// The capability an extra one was issued beside: whoever revokes that revokes both.
    #[must_use]
    pub fn beside(&self) -> Option<Self> {
        self.0.split_once(EXTRA).map(|(id, _)| Self(id.to_owned())).filter(|id| !id.0.is_empty())
    }
}

/// What parts the id of an extra capability from that of its task's: no generated id holds it.
const EXTRA: char = '_';

impl ApprovalId {
    /// The approval of a call that names none: the first 128 bits of the call id.
    #[must_use]
    pub fn of_call(call_id: &crate::digest::Digest) -> Self {
        Self(format!("ap-{}", call_id.to_string().chars().take(32).collect::<String>()))
    }

    /// A fresh id for what a person lets pass unasked.
    #[must_use]
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(sortable_id("la-", now, random))
    }
}

impl NodeId {
    /// A broker by its name, where it speaks as a node does. The grammar is the same.
    #[must_use]
    pub fn of_broker(broker: &BrokerId) -> Self {
        Self(broker.as_str().to_owned())
    }
}

impl BootId {
    /// A fresh boot id.
    #[must_use]
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(sortable_id("b-", now, random))
    }
}

/// What the domain of an agent's memory begins with.
const AGENT_DOMAIN_PREFIX: &str = "memory-";

impl DomainId {
    /// The flow domain of a task: one domain per task unless the inventory says otherwise.
    #[must_use]
    pub fn of_task(task: &TaskId) -> Self {
        Self(task.as_str().to_owned())
    }

    /// The flow domain of an agent that remembers from one task to the next. No task has such an id.
    #[must_use]
    pub fn of_agent(agent: &AgentId) -> Self {
        let whole = format!("{AGENT_DOMAIN_PREFIX}{agent}");
        if whole.len() <= ID_BYTES_MAX {
            return Self(whole);
        }
        let digest = crate::digest::Digest::of("writ/v1/agent-domain", &[agent.as_str().as_bytes()]);
        let digits = ID_BYTES_MAX - AGENT_DOMAIN_PREFIX.len();
        let text: String = digest.to_string().chars().take(digits).collect();
        Self(format!("{AGENT_DOMAIN_PREFIX}{text}"))
    }
}

impl DomainId {
    /// Whether it is the flow domain of an agent that remembers from one task to the next.
    #[must_use]
    pub fn is_agents(&self) -> bool {
        self.0.starts_with(AGENT_DOMAIN_PREFIX)
    }
}

impl PartId {
    /// The part a tenant begins with.
    #[must_use]
    pub fn first() -> Self {
        Self::numbered(0)
    }

    /// The part that is begun after so many others.
    #[must_use]
    pub fn numbered(number: usize) -> Self {
        Self(format!("p{number}"))
    }
}

impl FindingKind {
    /// One of our own words.
    pub(crate) fn fixed(word: &'static str) -> Self {
        Self(word.to_owned())
    }
}

impl DetectorId {
    /// One of our own words.
    pub(crate) fn fixed(word: &'static str) -> Self {
        Self(word.to_owned())
    }
}

impl KeyId {
    pub(crate) fn from_hex(hex: String) -> Self {
        Self(hex)
    }
}

/// A flow domain together with the stream part it lives in: `p0.t-01k…` in capabilities.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FlowDomain {
    /// The stream part.
    pub part: PartId,
    /// The domain within it.
    pub domain: DomainId,
}

impl FlowDomain {
    /// Parses `part.domain`.
    ///
    /// # Errors
    /// [`InvalidId`] if the dot is missing or either half is no id.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let (part, domain) = text
            .split_once('.')
            .ok_or_else(|| InvalidId::new("flow domain", text, "is not `part.domain`"))?;
        Ok(Self { part: PartId::parse(part)?, domain: DomainId::parse(domain)? })
    }
}

impl fmt::Display for FlowDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.part, self.domain)
    }
}

impl TryFrom<String> for FlowDomain {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(&text)
    }
}

impl From<FlowDomain> for String {
    fn from(domain: FlowDomain) -> String {
        domain.to_string()
    }
}

/// What sort of thing a resource is; the first token of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// Another agent, invoked through a node.
    Agent,
    /// A node itself, asked for a result it kept.
    Node,
    /// A policy revision, by the digest that names it.
    Policy,
    /// A kind of task, when a broker is asked to start one.
    Task,
    /// A tool behind a node.
    Tool,
}

impl ResourceKind {
    /// The first token of the resource's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Node => "node",
            Self::Policy => "policy",
            Self::Task => "task",
            Self::Tool => "tool",
        }
    }
}

/// What an action is done to: `kind.name`, for example `tool.crm` or `agent.researcher`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resource {
    kind: ResourceKind,
    /// The whole text, `kind.name`.
    text: String,
}

impl Resource {
    /// Parses `kind.name`.
    ///
    /// # Errors
    /// [`InvalidId`] if the kind is unknown or the name is outside the id grammar.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        let Some((kind, name)) = text.split_once('.') else {
            return Err(InvalidId::new("resource", &text, "is not `kind.name`"));
        };
        let kind = match kind {
            "agent" => ResourceKind::Agent,
            "node" => ResourceKind::Node,
            "policy" => ResourceKind::Policy,
            "task" => ResourceKind::Task,
            "tool" => ResourceKind::Tool,
            _ => {
                return Err(InvalidId::new(
                    "resource",
                    &text,
                    "is of no known kind (agent, node, policy, task, tool)",
                ));
            }
        };
        check_name("resource name", name)?;
        Ok(Self { kind, text })
    }

    /// The resource `agent.<name>`.
    #[must_use]
    pub fn agent(name: &AgentId) -> Self {
        Self { kind: ResourceKind::Agent, text: format!("agent.{name}") }
    }

    /// The resource `node.<name>`.
    #[must_use]
    pub fn node(name: &NodeId) -> Self {
        Self { kind: ResourceKind::Node, text: format!("node.{name}") }
    }

    /// The resource `policy.<revision>`.
    #[must_use]
    pub fn policy(revision: &crate::policy::PolicyRevision) -> Self {
        Self { kind: ResourceKind::Policy, text: format!("policy.{revision}") }
    }

    /// The resource `task.<kind>`.
    #[must_use]
    pub fn task(kind: &TaskKind) -> Self {
        Self { kind: ResourceKind::Task, text: format!("task.{kind}") }
    }

    /// What sort of resource it is.
    #[must_use]
    pub fn kind(&self) -> ResourceKind {
        self.kind
    }

    /// The name without its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.split_once('.').map_or("", |(_, name)| name)
    }

    /// The whole text, `kind.name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Resource {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Resource {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> String {
        resource.text
    }
}

/// What the subject of a service begins with; the subject of no human does.
const SERVICE_PREFIX: &str = "service:";

/// What stands behind a [`UserId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserKind {
    /// A person.
    Human,
    /// A program that logs in as itself, such as one that starts tasks by the clock.
    Service,
}

impl UserKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Service => "service",
        }
    }
}

/// A user as the token names them: issuer and subject (RFC 7519 sections 4.1.1 and 4.1.2).
///
/// Both are opaque texts of the issuer's; they never stand in a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct UserId {
    issuer: String,
    subject: String,
}

impl UserId {
    /// Checks that both parts are present, bounded and free of control characters.
    ///
    /// # Errors
    /// [`InvalidId`] names the part and what is wrong with it.
    pub fn parse(issuer: impl Into<String>, subject: impl Into<String>) -> Result<Self, InvalidId> {
        let (issuer, subject) = (issuer.into(), subject.into());
        for (what, part) in [("user issuer", &issuer), ("user subject", &subject)] {
            let why = if part.is_empty() {
                "is empty"
            } else if part.len() > USER_PART_BYTES_MAX {
                "is longer than 512 bytes"
            } else if part.chars().any(char::is_control) {
                "holds a control character"
            } else {
                continue;
            };
            return Err(InvalidId::new(what, part, why));
        }
        Ok(Self { issuer, subject })
    }

    /// A client of the issuer's that speaks for itself. Its subject is `service:` and the client's name, in
    /// capabilities, records and revocations alike.
    ///
    /// # Errors
    /// As [`UserId::parse`].
    pub fn service(issuer: impl Into<String>, client: &str) -> Result<Self, InvalidId> {
        Self::parse(issuer, format!("{SERVICE_PREFIX}{client}"))
    }

    /// Person or program.
    #[must_use]
    pub fn kind(&self) -> UserKind {
        if self.subject.starts_with(SERVICE_PREFIX) { UserKind::Service } else { UserKind::Human }
    }

    /// Whether this user may ever approve what others asked for. A program may not: a scheduled agent would
    /// otherwise be its own second pair of eyes.
    #[must_use]
    pub fn may_approve(&self) -> bool {
        self.kind() == UserKind::Human || crate::red::off("H04-service")
    }

    /// The `iss` of the user's tokens.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The `sub` of the user's tokens.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.subject, self.issuer)
    }
}

impl TryFrom<(String, String)> for UserId {
    type Error = InvalidId;
    fn try_from((issuer, subject): (String, String)) -> Result<Self, InvalidId> {
        Self::parse(issuer, subject)
    }
}

impl From<UserId> for (String, String) {
    fn from(user: UserId) -> (String, String) {
        (user.issuer, user.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_out_whatever_a_subject_or_a_log_could_trip_over() {
        for bad in ["", "_", "a.b", "*", ">", "a b", "a\r\nb", "A", "é", "a/b", &"x".repeat(65)] {
            assert!(AgentId::parse(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["a", "planner", "a_b-9", &"x".repeat(64)] {
            assert_eq!(AgentId::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn h04_services_are_told_from_people_and_approve_nothing() {
        let service = UserId::service("https://idp.example", "nightly-report").unwrap();
        assert_eq!((service.subject(), service.kind()), ("service:nightly-report", UserKind::Service));
        let human = UserId::parse("https://idp.example", "nightly-report").unwrap();
        assert_eq!(human.kind(), UserKind::Human);
        assert!(human.may_approve() && !service.may_approve());
        // Read back from a record or a capability it is the same.
        let (issuer, subject) = service.clone().into();
        assert_eq!(UserId::parse(issuer, subject), Ok(service));
    }

    #[test]
    fn the_error_shows_hostile_text_escaped_and_cut() {
        let error = AgentId::parse("x\u{1b}[31m\n".repeat(50)).unwrap_err();
        assert!(error.text.chars().all(|c| c.is_ascii_graphic()));
        assert!(error.to_string().starts_with("agent name `x\\u{1b}[31m\\n"));
    }

    #[test]
    fn resources_split_into_kind_and_name() {
        let crm = Resource::parse("tool.crm").unwrap();
        assert_eq!((crm.kind(), crm.name()), (ResourceKind::Tool, "crm"));
        for bad in ["crm", "tool.", "tool.a.b", "disk.c", ".crm", "tool.*"] {
            assert!(Resource::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn sortable_ids_sort_by_time() {
        let early = sortable_id("t-", Timestamp::from_millis(1_000), [0xff; 10]);
        let late = sortable_id("t-", Timestamp::from_millis(1_001), [0; 10]);
        assert!(early < late);
        assert!(TaskId::parse(early).is_ok());
    }

    #[test]
    fn users_are_bounded_and_printable() {
        assert!(UserId::parse("https://idp", "alice").is_ok());
        for (issuer, subject) in [("", "a"), ("i", ""), ("i", "a\nb"), ("i", &"x".repeat(513) as &str)] {
            assert!(UserId::parse(issuer, subject).is_err());
        }
    }
}
