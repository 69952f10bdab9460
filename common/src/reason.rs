//! Why something was refused: a closed list of codes, each with its page.
//!
//! A code answers "which control said no"; the two texts of a [`Reason`] say what about. One text is for the
//! caller, who may be an attacker and may be a model: it never tells what another caller may do. The other is
//! for the operator's record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::approval::{Need, in_words};

/// The question a refusal answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// Which user, through which chain of agents, for which task?
    Identity,
    /// May this tool, this action, these arguments run now?
    Action,
    /// May data with these labels go there?
    Flow,
    /// Can it be recorded and proved?
    Audit,
}

impl Plane {
    /// The name used in records, metrics and policies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Action => "action",
            Self::Flow => "flow",
            Self::Audit => "audit",
        }
    }
}

/// Whether a rule said no, or no answer could be found. Both deny; auditors keep them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The state of things is unknown, stale or broken.
    CouldNotDecide,
    /// A rule, a limit or a proof said no.
    Denied,
}

/// The page `writ explain <code>` shows.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// What the code means, in one sentence.
    pub meaning: &'static str,
    /// What usually brings it about.
    pub cause: &'static str,
    /// What to do next: a command where there is one.
    pub next: &'static str,
}

macro_rules! reason_codes {
    ($($Name:ident = $code:literal, $Plane:ident, $Class:ident, $meaning:literal, $cause:literal, $next:literal;)*) => {
        /// A machine-readable cause of refusal. The list is closed: a new cause is a new code with its page.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ReasonCode {
            $(#[doc = $meaning] $Name,)*
        }

        impl ReasonCode {
            /// Every code, in the order of their texts.
            pub const ALL: &'static [Self] = &[$(Self::$Name,)*];

            /// The code's text, `group.cause`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$Name => $code,)* }
            }

            /// The plane whose question it answers.
            #[must_use]
            pub const fn plane(self) -> Plane {
                match self { $(Self::$Name => Plane::$Plane,)* }
            }

            /// Denied by a rule, or could not decide.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$Name => Class::$Class,)* }
            }

            /// The page that explains it.
            #[must_use]
            pub const fn page(self) -> Page {
                match self { $(Self::$Name => Page { meaning: $meaning, cause: $cause, next: $next },)* }
            }
        }
    };
}

reason_codes! {
    AdminForbidden = "admin.forbidden", Identity, Denied,
        "The operator may not do this to the control plane.",
        "The request is not signed by a key the broker's configuration lists, or no rule allows the operator this action.",
        "Check `[[operator]]` in the broker's writ.toml and the rules for action \"admin\"; then `writ config check`.";
    AgentKeyUnknown = "agent.key_unknown", Identity, Denied,
        "A key in the capability's chain is not enrolled for the agent it is said to belong to.",
        "The agent was re-installed without enrolling its new key, its key was withdrawn, or somebody delegated to a key of their own.",
        "`writ agent show <name>` lists the enrolled keys; `writ agent enroll <name>` adds one.";
    AgentMismatch = "agent.mismatch", Identity, Denied,
        "The subject of the call names another agent than the capability's last holder.",
        "A client was configured with the name of one agent and the capability of another.",
        "`writ capability inspect <file>` shows whom the capability was handed to last.";
    AgentQuarantined = "agent.quarantined", Identity, Denied,
        "An agent in the chain is quarantined; nothing it holds or handed on works.",
        "An operator isolated it.",
        "`writ agent show <name>` says when; `writ agent release <name>` ends it.";
    AgentUnknown = "agent.unknown", Identity, Denied,
        "An agent in the chain is not in the inventory.",
        "A misspelt name, or an agent that was never added to agents.toml.",
        "Add it to agents.toml of the policy, then `writ policy activate <folder>`.";
    AgentUnreachable = "agent.unreachable", Action, CouldNotDecide,
        "Nobody listens on the inbox of the agent's key.",
        "The agent is not running, or runs with another key than the one it was delegated to.",
        "Start the agent; `writ agent show <name>` lists its enrolled keys.";
        ApprovalBinding = "approval.binding", Action, Denied,
        "The approval is for something else.",
        "The arguments, the tool, the chain of agents, the task or what policy asks for changed after people were asked.",
        "Make the call without it: people are asked again, for what would run now.";
    ApprovalConsumed = "approval.consumed", Action, Denied,
        "The approval was used already; one yes is for one call.",
        "The same call was made again, or two calls were made under one approval.",
        "`writ approval show <id>` says which call used it; another call needs another approval.";
    ApprovalExpired = "approval.expired", Action, Denied,
        "The request for approval, or an answer to it, is past its end.",
        "Nobody answered in time, or the agent came back too late.",
        "Make the call again; `approval_seconds` in the policy says how long a request is open.";
    ApprovalNeeded = "approval.needed", Action, Denied,
        "It may be done, once people have said yes.",
        "The policy derives `needs_approval` for this call.",
        "`writ approval list` shows what waits; `writ approval show <id>` what would run.";
    ApprovalQuota = "approval.quota", Action, Denied,
        "Too many requests of this task or user wait for approval already.",
        "An agent asks faster than people answer. Who is asked too often stops reading.",
        "`writ approval list` shows them; answer some, or halt the task with `writ task halt <task>`.";
    ApprovalRefused = "approval.refused", Action, Denied,
        "An approver said no.",
        "See what the approver said.",
        "`writ approval show <id>` has the answer and its reason.";
    ApprovalRole = "approval.role", Identity, Denied,
        "An answer is by somebody who may not approve this.",
        "The approver never had the role, or lost it after answering.",
        "Roles stand in policies/approvers.toml, and are looked up when the approval is used.";
    ApprovalSelf = "approval.self", Identity, Denied,
        "An approver answered for what is done on their own authority.",
        "The user of the task and the approver are the same person, and policy asks for another.",
        "Have somebody else answer, or derive `own_approval` for the role if users may decide for themselves.";
    ApprovalSignature = "approval.signature", Identity, Denied,
        "A request for approval or an answer is not signed by the key it has to be.",
        "The approver's key is not enrolled or was exchanged, or somebody made the message up.",
        "`[[approver]]` in the broker's writ.toml lists the keys; then `writ config check`.";
    ApprovalUnavailable = "approval.unavailable", Action, CouldNotDecide,
        "People could not be asked, or the use of their answer could not be recorded; without that nothing is done.",
        "The bus did not acknowledge in time, or the policy asks for a number of approvals nobody can reach.",
        "Make the call again; if it stays, `writ doctor` and `writ policy check <folder>`.";
    ApprovalUnknown = "approval.unknown", Action, Denied,
        "There is no such request for approval.",
        "A misspelt id, or a request that ended long ago.",
        "Make the call without naming an approval; `writ approval list` shows what waits.";
    ArgDuplicateKey = "arg.duplicate_key", Action, Denied,
        "An object in the arguments names the same key twice.",
        "A hand-made request: readers differ in which of the two they take, so neither is taken.",
        "Send each key once.";
    ArgEncoding = "arg.encoding", Action, Denied,
        "A text in the arguments is malformed, or not in the one accepted form.",
        "Broken escapes, lone surrogates, control, tag or direction characters, or text that is not canonical or not NFC.",
        "Send arguments as canonical JSON (the SDK does), with text in Unicode normalization form C.";
    ArgHost = "arg.host", Action, Denied,
        "A URL in the arguments, or where a server sends on to, is not one of the tool's hosts.",
        "A host that is not listed, one written in a roundabout way, a name with a private address, or a redirect.",
        "Ask for a listed host, plainly written; `hosts` of the tool in the node's writ.toml is the list.";
    ArgInvalid = "arg.invalid", Action, Denied,
        "An argument does not fit the tool's contract.",
        "Wrong type, out of range, too long, or a value the contract does not list.",
        "`writ tools show <tool>` prints the schema of every action.";
    ArgMissing = "arg.missing", Action, Denied,
        "An argument the tool's contract requires is absent.",
        "The caller left it out.",
        "`writ tools show <tool>` prints which arguments are required.";
    ArgNumber = "arg.number", Action, Denied,
        "A number in the arguments cannot be kept exactly.",
        "Outside 64 bits, minus zero, NaN, more digits than the contract's scale, or an exponent that large.",
        "Send numbers as plain decimals within the contract's scale.";
    ArgPath = "arg.path", Action, Denied,
        "A path in the arguments is not in its one plain form, or leads to something that is no file of the tool's folder.",
        "Something to resolve or decode (`..`, an absolute path, a percent escape), or a symbolic link or device on the way.",
        "Name the file by its path below the tool's folder, as the tool's `list` gives it.";
    ArgUnknown = "arg.unknown", Action, Denied,
        "There is an argument the tool's contract does not know.",
        "A misspelt name, or an attempt to smuggle something past the check.",
        "`writ tools show <tool>` lists the arguments.";
    AuditBadSignature = "audit.bad_signature", Audit, Denied,
        "A record is not signed by a key that was ever enrolled for the name it bears.",
        "Somebody with access to the stream wrote it, or the control stream was lost and with it the enrollment.",
        "`writ audit tail` shows where it stands; treat it as an attack until you know better.";
    AuditFork = "audit.fork", Audit, Denied,
        "A run's log has two histories: what its recorder signed contradicts what a witness has cosigned.",
        "The node runs twice, was restored from a backup, or has left out or exchanged records.",
        "Quarantine the node, keep its journal, and compare it with the stream: `writ audit verify` on an export.";
    AuditFull = "audit.full", Audit, CouldNotDecide,
        "The audit stream or the journal is nearly full; what is left is kept for outcomes and voids.",
        "The task's stream part is full to 90 % (new tasks begin in the next part), or the node's disk is full.",
        "Begin the task again, or add disk; put old parts away with `writ audit archive`. See deploy/retention.md.";
    AuditPartInUse = "audit.part_in_use", Audit, Denied,
        "A part of the audit stream cannot be sealed or put away yet.",
        "It is the part in use, tasks or agents that remember still live in it, or it was not sealed before.",
        "`writ audit rotate` begins the next part; put this one away once its last task has ended.";
    AuditUnavailable = "audit.unavailable", Audit, CouldNotDecide,
        "The intent to act could not be recorded, so nothing was done.",
        "NATS is unreachable, JetStream is down, or the journal cannot be written.",
        "`writ doctor` checks bus, stream and journal.";
        BudgetExhausted = "budget.exhausted", Action, Denied,
        "The task would spend more than the policy lets it spend in all.",
        "It called too often, or asked for too much; whoever in the task spent it, on whichever node.",
        "Start another task, or raise the limit of the `budget` rule in the policy.";
    BudgetUnavailable = "budget.unavailable", Action, CouldNotDecide,
        "What was spent of a budget is not known, or could not be written down; without that nothing more is spent.",
        "The bus did not acknowledge in time, its message is not signed by an enrolled node, or a rule derives no number.",
        "Make the call again; if it stays, `writ doctor` and `writ policy check <folder>`.";
    CallUnknown = "call.unknown", Identity, Denied,
        "No result is kept here for that call by that caller.",
        "It was too long ago, another node ran it, or the caller is not the one who made the call.",
        "Ask the node named in the receipt, or repeat the call with a new nonce.";
    ClockUnsane = "clock.unsane", Identity, CouldNotDecide,
        "The clocks of node and broker are further apart than allowed, or a clock went backwards.",
        "NTP stopped, a virtual machine was resumed, or somebody set the clock.",
        "Compare `date -u` on both machines; start chrony or systemd-timesyncd.";
    CodecDepth = "codec.depth", Action, Denied,
        "The message is nested too deeply.",
        "A hand-made message; no client of ours nests so deep.",
        "Flatten the arguments.";
    CodecFormat = "codec.format", Action, Denied,
        "The bytes are not a message of the expected kind.",
        "A client of another protocol, or damaged bytes.",
        "Use the SDK of this version.";
    CodecNonCanonical = "codec.non_canonical", Action, Denied,
        "The message can be read, but is not written in its one canonical form.",
        "A hand-made encoder: trailing bytes, long integers, duplicate or unsorted keys.",
        "Compare with the golden files in common/tests/golden.";
    CodecTooLarge = "codec.too_large", Action, Denied,
        "The message is larger than its kind may be.",
        "Large content in the arguments.",
        "Send less, or in several calls; the limits are part of the format.";
    CodecVersion = "codec.version", Action, Denied,
        "The message is of another version of the format.",
        "Client and node are of different releases.",
        "Upgrade the older of the two.";
    ConnectionMismatch = "connection.mismatch", Identity, Denied,
        "The connection the call came over belongs to another agent.",
        "A holder key was copied to another agent's process, or the NATS user is shared between agents.",
        "Give every agent its own NATS user; `writ agent show <name>` lists them.";
    ControlUnavailable = "control.unavailable", Identity, CouldNotDecide,
        "The broker could not record its decision in the control stream.",
        "NATS is unreachable, or another broker wrote first too often.",
        "Repeat the request; `writ doctor` checks bus and stream.";
    DeclassDigest = "declass.digest", Flow, Denied,
        "What a person let pass was another content.",
        "Declassifying and endorsing are bound to resource, action, arguments and task of one call.",
        "Have this very call let through: `writ label declassify --help`.";
    DeclassUnauthorised = "declass.unauthorised", Flow, Denied,
        "What a person said about this call does not count.",
        "They have no role that policy lets declassify or endorse this, or speak for themselves, or it has expired.",
        "`may_declassify` and `may_endorse` rules say which role may; roles stand in approvers.toml.";
    DelegationCycle = "delegation.cycle", Identity, Denied,
        "A key appears twice in the chain.",
        "An agent delegated back to one that delegated to it.",
        "Return results up the chain instead of delegating in a circle.";
    DelegationDepth = "delegation.depth", Identity, Denied,
        "The chain is longer than the grant allows.",
        "More hops than `max_depth` of the capability.",
        "`writ capability inspect <file>` shows the chain; rules deriving `depth_limit` set the limit.";
    DelegationNotAllowed = "delegation.not_allowed", Identity, Denied,
        "Policy does not let this agent delegate to that one.",
        "No rule derives `may_delegate` for the pair.",
        "Add the agent to `delegates_to` in agents.toml, or write a rule for `may_delegate`.";
    DelegationSignature = "delegation.signature", Identity, Denied,
        "A block of the capability was not signed by the holder it claims to come from.",
        "A forged or re-arranged chain.",
        "`writ capability inspect <file>` shows who signed what.";
    DelegationWidening = "delegation.widening", Identity, Denied,
        "More was asked for than the grant, or the parent in the chain, holds.",
        "A request for rights outside the policy's grant, or a call outside what the delegator passed on.",
        "`writ capability inspect <file>` shows what each hop gave up.";
    EngineError = "engine.error", Action, CouldNotDecide,
        "A rule could not be evaluated on this request.",
        "Types that do not fit, an overflow or a division by zero in a rule or check.",
        "The record names the rule; guard the expression or fix the type.";
    EngineLimit = "engine.limit", Action, CouldNotDecide,
        "Evaluation met a limit on facts or iterations.",
        "A policy that derives too much.",
        "Look for rules that join many facts, and split or narrow them.";
    EngineTimeout = "engine.timeout", Action, CouldNotDecide,
        "Evaluation looked at too many facts.",
        "A policy with a very large join: it is work that is counted, not time.",
        "Look at rules with many predicates over arguments or agents that share no variable.";
    EnrollToken = "enroll.token", Identity, Denied,
        "The join token is unknown, used up, expired or for another agent.",
        "Each token enrolls one key, once, within its time.",
        "`writ agent enroll <name>` prints a new one.";
    FlowClearance = "flow.clearance", Flow, Denied,
        "An agent would be told something it is not cleared for.",
        "Its `clearance` in agents.toml, or that of its model's provider, lacks a tag of the result or of the task.",
        "Have an agent do it that is cleared, or widen the clearance; `writ policy explain` shows both sides.";
    FlowIntegrity = "flow.integrity", Flow, Denied,
        "An argument that decides who or what is affected has no trusted source, and outsiders had a say in the task.",
        "The value is in no instruction, no directory and no trusted result of this task; it may come from an injected text.",
        "Add it to a directory of directories.toml, or let people vouch for such calls with a `source_approval` rule.";
    FlowSink = "flow.sink", Flow, Denied,
        "The task holds data that may not go there.",
        "A tag of the task label is not among what the action `accepts`.",
        "The text names the call that brought the tag in; the contract or an `accepts` rule says what the action takes.";
    FlowWithheld = "flow.withheld", Flow, CouldNotDecide,
        "It was done, and its result is kept back: the task label could not be raised, or the caller is not cleared for it.",
        "The stream was not reachable, or the tool said that its result carries more than its contract does.",
        "It is not run again: ask for the result of this call once more.";
    GrantNotAllowed = "grant.not_allowed", Identity, Denied,
        "Policy does not let this user run this agent for this kind of task.",
        "No rule derives `may_run` for the user's roles, or a deny rule fired.",
        "Look at policies/planes/10-identity.datalog and the roles of the user's token.";
    HaltAll = "halt.all", Identity, Denied,
        "Everything is halted.",
        "An operator pulled the kill switch.",
        "An operator ends it; see deploy/README.md.";
    HoldRefused = "hold.refused", Audit, Denied,
        "A legal hold cannot be placed or lifted.",
        "Its name is in use, or, to lift it, unknown; or its reason is longer than 500 bytes.",
        "`writ audit hold list` shows the holds in force.";
    IdSyntax = "id.syntax", Identity, Denied,
        "An id is outside the grammar of ids.",
        "Dots, wildcards, spaces, line breaks or capitals in a name.",
        "Ids are 1 to 64 of a-z, 0-9, `_` and `-`.";
    InspectInvalid = "inspect.invalid", Flow, CouldNotDecide,
        "An inspector answered something that is no answer to what it was asked, so nothing is known of the content.",
        "Another version of the interface, another service behind the address, or an answer to another question.",
        "The record says what is wrong with the answer; node/README.md has the interface. Until it is repaired, `on_error` of that `[[inspector]]` decides.";
    InspectTooLarge = "inspect.too_large", Flow, CouldNotDecide,
        "There is more text than an inspector may be sent for one call.",
        "A result or an argument of hundreds of kilobytes.",
        "Ask for less at a time, or leave the tool out of that `[[inspector]]` in the node's writ.toml.";
    InspectUnavailable = "inspect.unavailable", Flow, CouldNotDecide,
        "An inspector did not look at the content in time, so nothing is known of it.",
        "It is not running, not reachable, too slow or too busy; after several failures it is not asked for some seconds.",
        "The record names the inspector and what happened; `on_error` of that `[[inspector]]` in the node's writ.toml decides what silence means.";
    JwtAlgorithm = "jwt.algorithm", Identity, Denied,
        "The token's algorithm is not one the issuer is configured with.",
        "`none`, an HMAC under a public key, or a real change at the issuer.",
        "Check `algorithms` of the issuer in writ.toml.";
    JwtAudience = "jwt.aud", Identity, Denied,
        "The token is not meant for Writ.",
        "`aud` is absent or names another service.",
        "Have the issuer put the configured audience into `aud`.";
    JwtClaims = "jwt.claims", Identity, Denied,
        "The token's claims are malformed or one is named twice.",
        "A hand-made token.",
        "Decode the token and compare with RFC 7519 section 4.";
    JwtCritical = "jwt.crit", Identity, Denied,
        "The token demands an extension Writ does not know.",
        "A `crit` header (RFC 7515 section 4.1.11).",
        "Have the issuer leave it out for this audience.";
    JwtExpired = "jwt.exp", Identity, Denied,
        "The token has expired, or carries no usable expiry.",
        "An old token, or clocks apart by more than five seconds.",
        "Log in again.";
    JwtFormat = "jwt.format", Identity, Denied,
        "The text is not a compact JWS.",
        "Padding, line breaks, or something else than a token.",
        "Pass the token as the issuer gave it.";
    JwtHeader = "jwt.header", Identity, Denied,
        "The token's header brings its own key or points to one.",
        "`jku`, `x5u`, `jwk` or `x5c`: keys come from configuration only.",
        "Have the issuer leave these headers out.";
    JwtIssuedAt = "jwt.iat", Identity, Denied,
        "The token was issued in the future.",
        "Clocks apart, or a hand-made token.",
        "Compare clocks with the issuer.";
    JwtIssuer = "jwt.iss", Identity, Denied,
        "The token's issuer is not configured, or absent.",
        "Another realm or environment than the broker's.",
        "Check `[[issuer]]` in writ.toml.";
    JwtKeysStale = "jwt.keys_stale", Identity, CouldNotDecide,
        "The issuer's keys could not be fetched for too long, or not at all yet.",
        "The issuer or the way to it is down, or it answers something that is no key set.",
        "The broker's log and `writ_issuer_key_fetches_total` in /metrics say what fails; tokens work again by themselves.";
    JwtNotBefore = "jwt.nbf", Identity, Denied,
        "The token is not valid yet.",
        "`nbf` lies in the future.",
        "Wait, or compare clocks with the issuer.";
    JwtReplayed = "jwt.replayed", Identity, Denied,
        "The idempotency key was used before, for another request.",
        "A client reuses one key for two tasks.",
        "Use a fresh idempotency key per task.";
    JwtService = "jwt.service", Identity, Denied,
        "The token speaks for a client and not for a user, and the client is not listed as a service.",
        "A `client_credentials` token of a client nobody listed, or of a listed one under another subject.",
        "List it under `[[issuer.service]]` in the broker's writ.toml, if it may start tasks by itself.";
    JwtSignature = "jwt.signature", Identity, Denied,
        "The token's signature does not verify.",
        "Changed content, or a key of the same name with other bytes.",
        "If the keys come from a file, refresh it; see deploy/README.md.";
    JwtType = "jwt.typ", Identity, Denied,
        "The token is of another class than this issuer's access tokens.",
        "An ID token, logout token or security event was sent instead (RFC 8725 section 3.11).",
        "Send the access token; `typ` of the issuer in writ.toml says which class is expected.";
    JwtUnknownKey = "jwt.unknown_key", Identity, Denied,
        "The token names a key that is not in the issuer's key set.",
        "The issuer rotated its keys, or the token is from another environment.",
        "With `discovery` or `jwks_url` the keys were fetched again, try once more in ten seconds; a `jwks_file` has to be refreshed.";
    KeysetExpired = "keyset.expired", Identity, CouldNotDecide,
        "The keyset that says which broker keys count has expired or is absent.",
        "The offline root did not sign a new one in time.",
        "`writ key sign-keyset --help` with the offline root, then restart the broker.";
    LabelMissing = "label.missing", Flow, CouldNotDecide,
        "The flow domain of the task has no label on the bus.",
        "The stream was purged or restored, or the task was never started by a broker.",
        "A missing label is never read as clean: start a new task.";
    LabelMoved = "label.moved", Flow, CouldNotDecide,
        "The task label changed while the call was being decided, too often to follow.",
        "Other calls of the task release data at the same time.",
        "Repeat the call.";
    McpMethod = "mcp.method", Action, Denied,
        "The method of MCP is not on the list of those that are served.",
        "A server that asks for the user's words or a model's, or a client that asks for what Writ does not govern.",
        "What Writ serves stands in node/mcp/README.md; nothing else is passed on, in either direction.";
    NodeKeyUnknown = "node.key_unknown", Identity, Denied,
        "The node is not enrolled, or signs with another key than the enrolled one.",
        "A node that is not in the broker's configuration, or a stolen name.",
        "Check `[[node]]` in the broker's writ.toml.";
    PolicyDenied = "policy.denied", Action, Denied,
        "A deny rule of the policy matched.",
        "The rule and its message stand in the record.",
        "The record names the file and line of the rule: change what is asked for, or the rule.";
    PolicyInvalid = "policy.invalid", Action, Denied,
        "The policy is broken, so the one before it stays in force.",
        "A file of it does not load, or under it no operator could put another one in force; a node that is older than its broker may not know a predicate.",
        "`writ policy check <folder>` names the fault with file, line and column; `writ policy show` names the nodes.";
    PolicyMoved = "policy.moved", Action, Denied,
        "Another policy revision is in force than the operator expected.",
        "Somebody else put one in force in the meantime.",
        "`writ policy show` says who and when; look at what changed, then repeat with the present revision.";
    PolicyNoMatch = "policy.no_match", Action, Denied,
        "No allow rule of the policy matched.",
        "Nothing is allowed unless a rule says so.",
        "Write an allow rule for it in policies/, if it is meant to be allowed.";
    PolicyRollback = "policy.rollback", Action, Denied,
        "A policy came over the control stream that is not the broker's next word, and was not taken.",
        "It is unsigned, signed by a key that does not count, or an older event that was put there again.",
        "`writ policy show` says what is in force; treat it as an attack on the bus until you know better.";
    PolicyUnavailable = "policy.unavailable", Action, CouldNotDecide,
        "There is no valid policy in force.",
        "The policy folder is missing, empty or broken, and no revision was ever good.",
        "`writ policy check <folder>` names the fault with file, line and column.";
    PolicyUnknown = "policy.unknown", Action, Denied,
        "No such policy revision was ever in force here.",
        "A rollback names a revision that was never activated, or its files were changed since.",
        "`writ policy show` lists the revisions there were; `writ policy activate <folder>` puts a new one in force.";
    RequestQuota = "request.quota", Action, Denied,
        "The agent sends a node more calls, or a broker more requests, than its quota.",
        "A loop, or a quota that is too tight.",
        "`quota` in agents.toml sets rate and burst.";
    RequestReplayed = "request.replayed", Identity, Denied,
        "This call was made before: same holder, same nonce.",
        "A recorded request sent again, or a retry of a call that already ran.",
        "A client that lost the answer asks the executing node for it; the SDK does.";
    RequestStale = "request.stale", Identity, Denied,
        "The call was signed too long ago, or in the future.",
        "A delayed or recorded message, or clocks apart.",
        "Sign again; compare clocks.";
    RevokedAgent = "revoked.agent", Identity, Denied,
        "Everything held by or delegated through this agent until now was revoked.",
        "An operator revoked the agent.",
        "Start a new task once the agent is trusted again.";
    Revoked = "revoked.capability", Identity, Denied,
        "The capability was revoked.",
        "An operator revoked it by id.",
        "Start a new task, or ask the operator.";
    RevokedHop = "revoked.delegator_subtree", Identity, Denied,
        "A delegation in the chain was revoked, with all that hangs below it.",
        "An operator revoked what one agent handed to another.",
        "`writ audit chain <task>` shows the hop.";
    RevokedHolder = "revoked.holder", Identity, Denied,
        "A key in the chain was revoked.",
        "A stolen or retired key.",
        "Enroll a new key with `writ agent enroll <name>`.";
    RevokedTask = "revoked.task", Identity, Denied,
        "The task was revoked or halted, with all its descendants.",
        "`writ task halt <task>`, or an operator's revocation.",
        "Start a new task.";
    RevokedUser = "revoked.user", Identity, Denied,
        "The user's tasks were revoked.",
        "The user left, or the account is suspect.",
        "Start a new task once the user may again.";
    RightMissing = "right.missing", Action, Denied,
        "The capability holds no right for this action on this resource.",
        "The task was not granted the tool, or a narrowing took it away.",
        "`writ capability inspect <file>` lists the rights; rules deriving `grant` give them.";
    RightNotRequestable = "right.not_requestable", Identity, Denied,
        "The right cannot be asked for, or not by this agent.",
        "No rule derives `may_request` for it, the task holds it already, it is on no tool, or the task was given to another agent.",
        "Write a rule for `may_request`, as policies/README.md shows; then `writ policy check <folder>`.";
    SessionMismatch = "session.mismatch", Identity, Denied,
        "The session belongs to somebody else, or the capability sent along does not extend that of the connection.",
        "A guessed or stolen session id, or a capability from another task.",
        "Open a session of your own with your own credential; hand on what `writ_delegate` returned in this session.";
    SqlMultiStatement = "sql.multi_statement", Action, Denied,
        "The query holds more than one statement.",
        "A second statement behind a semicolon.",
        "Send one statement per call.";
    SqlNotReadOnly = "sql.not_read_only", Action, Denied,
        "The query could change or reach something, or calls a function that is not on the list.",
        "Anything but a plain SELECT: writes, PRAGMA, ATTACH, temporary tables, extension functions.",
        "Rewrite it as a SELECT over tables and the listed functions.";
    SqlUnparsable = "sql.unparsable", Action, Denied,
        "The query is not SQL this gate can read with certainty.",
        "Dialect tricks, comments with meaning, unbalanced quotes, or a plain typing error.",
        "Simplify the query; what cannot be read is not run.";
    StateRollback = "state.rollback", Identity, CouldNotDecide,
        "Control state went backwards: a stream, store or keyset is older than one seen before.",
        "A backup was restored, or somebody replays old events.",
        "See deploy/README.md, section Recovery: find out why first, then tell broker and node to go on from there.";
    StateStale = "state.stale", Identity, CouldNotDecide,
        "The node has not heard from the broker recently enough to know what was revoked.",
        "Broker down, network partition, or a node that was paused.",
        "`writ doctor` shows when nodes were heard last; calls work again by themselves once the broker answers.";
    TaskDeadline = "task.deadline", Identity, Denied,
        "The task's deadline has passed.",
        "Tasks live as long as policy lets them.",
        "Start a new task.";
    TaskMismatch = "task.mismatch", Identity, Denied,
        "The call names another task than its capability.",
        "A capability of one task used in another.",
        "Use the capability that was issued for this task.";
    TaskUnknown = "task.unknown", Identity, Denied,
        "The broker does not know this task.",
        "A misspelt id, or a task of another tenant or environment.",
        "`writ task show <id>` on the right broker.";
    TenantMismatch = "tenant.mismatch", Identity, Denied,
        "The capability or request belongs to another tenant.",
        "Configuration of one tenant mixed with another's.",
        "Check `tenant` in writ.toml and the subject the client publishes on.";
    TokenAlgorithm = "token.algorithm", Identity, Denied,
        "The capability uses another algorithm than Ed25519.",
        "A token made by another program; with P-256 a revoked token could be given a new identity.",
        "Issue capabilities with Writ.";
    TokenAudience = "token.audience", Identity, Denied,
        "The call was signed for another resource.",
        "A signed call sent again to another tool.",
        "Sign a call per resource; the SDK does.";
    TokenBlockShape = "token.block_shape", Identity, Denied,
        "A block of the capability holds something the profile does not allow.",
        "Facts, rules, regular expressions or expensive checks in an appended block.",
        "Narrow with `writ capability narrow --help` or the SDK, which stay within the profile.";
    TokenCheckFailed = "token.check_failed", Action, Denied,
        "A condition the capability carries does not hold for this call.",
        "An argument, a time or a label outside what was delegated.",
        "The record names the check and who added it.";
    TokenExpired = "token.expired", Identity, Denied,
        "The capability has expired.",
        "Capabilities live minutes; the holder renews them.",
        "Renew; the SDK does it by itself while it is connected.";
    TokenFormat = "token.format", Identity, Denied,
        "The bytes are no capability.",
        "Cut, damaged or foreign bytes.",
        "`writ capability inspect <file>` says where reading stops.";
    TokenHolderMismatch = "token.holder_mismatch", Identity, Denied,
        "The call is not signed by the key the capability was handed to last.",
        "A stolen capability, or the wrong key file.",
        "Call with the key the capability names; `writ capability inspect <file>` shows it.";
    TokenLifetime = "token.lifetime", Identity, Denied,
        "The capability claims to live longer than its signing key may grant.",
        "A stolen or misconfigured broker key.",
        "Compare `max_ttl` in the keyset with the broker's `capability_seconds`.";
    TokenMissing = "token.missing", Identity, Denied,
        "The call carries no capability.",
        "A client that was not given one.",
        "Start a task first: `writ task start`.";
    TokenSealed = "token.sealed", Identity, Denied,
        "The capability is sealed; version 1 neither uses nor extends sealed ones.",
        "A token made by another program.",
        "Use the capability as it was issued.";
    TokenSignature = "token.signature", Identity, Denied,
        "A signature of the capability does not verify.",
        "Changed, cut or re-arranged blocks.",
        "Use the capability as it was issued.";
    TokenThirdParty = "token.third_party", Identity, Denied,
        "A block was not appended by a holder, or was lifted from another capability.",
        "An anonymous block, or one signed for another chain.",
        "Append with `writ capability narrow --help` or `delegate`.";
    TokenTooLarge = "token.too_large", Identity, Denied,
        "The capability has more bytes or blocks than the limit.",
        "Too many narrowings, or padding.",
        "Delegate with fewer blocks; the limits are 16 KiB and 16 blocks.";
    TokenUnknownRoot = "token.unknown_root", Identity, Denied,
        "No key of the keyset signed this capability.",
        "Issued by another environment, or under a key that was withdrawn.",
        "Start a new task; if that fails compare the keysets of node and broker.";
    ToolAmbiguous = "tool.ambiguous", Action, Denied,
        "The MCP server lists more than one tool under this name, or under one that can be taken for it.",
        "A faulty server, or one that puts a tool of its own in front of another.",
        "Repair the server; tools across servers are told apart by `writ tools import`, which takes other names.";
    ToolDigestChanged = "tool.digest_changed", Action, Denied,
        "The tool's name, description or schema is not what an operator accepted, or the server has it no longer.",
        "A new version of the server, or somebody who changes what a model is told after it was approved.",
        "`writ tools accept <tool>` shows what changed and renews the pin; then put the policy in force.";
    ToolFailed = "tool.failed", Action, Denied,
        "The tool ran and reported an error.",
        "The error's own words stand in the reply.",
        "Repair what the tool complains of; the call was recorded and is not repeated by itself.";
    ToolResultTooLarge = "tool.result_too_large", Action, Denied,
        "The tool's result is larger than the limit.",
        "A query without a limit, or a very large document.",
        "Ask for less: fewer rows, fewer columns, a part of the document.";
    ToolTimeout = "tool.timeout", Action, CouldNotDecide,
        "The tool did not finish in time; whether it had an effect is unknown.",
        "A slow upstream, or a limit that is too short.",
        "Check the effect before calling again; the record says `unknown_outcome`.";
    ToolUnavailable = "tool.unavailable", Action, CouldNotDecide,
        "The server behind the tool is not running or does not answer.",
        "A program that ended or cannot be started, an address that nobody listens on; the node tries again by itself.",
        "The node's log says which server is away and why; its metric `writ_tools_away` counts them.";
    ToolUnknown = "tool.unknown", Action, Denied,
        "No contract declares this tool or action.",
        "A misspelt name, or a tool that was never registered.",
        "`writ tools list` names the tools and their actions.";
    UserMismatch = "user.mismatch", Identity, Denied,
        "The user's token and the task belong to different users.",
        "An agent serving several users mixed up their sessions.",
        "Keep one client per task.";
}

impl ReasonCode {
    /// Finds a code by its text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReasonCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is no reason code of this version"))
    }
}

/// Longest text of a reason, in characters; longer ones are cut.
pub const REASON_CHARS_MAX: usize = 300;

/// One cause of a refusal: its code, what the caller may know, what the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    code: ReasonCode,
    for_caller: String,
    for_operator: String,
    advice: Option<Box<Advice>>,
}

/// How a missing right could be had, as far as policy lets that be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// Who could grant it, in words of the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub granted_by: Vec<String>,
    /// Whose approval it takes if the agent asks for it; empty if it cannot be asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approval: Vec<Need>,
}

/// In a sentence.
impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let granted_by = self.granted_by.join(", ");
        match (self.granted_by.is_empty(), self.approval.is_empty()) {
            (true, true) => f.write_str("nobody is known to grant it"),
            (false, true) => write!(f, "{granted_by} can grant it"),
            (true, false) => write!(f, "it can be asked for and takes {}", in_words(&self.approval)),
            (false, false) => {
                write!(f, "{granted_by} can grant it, and it can be asked for: {}", in_words(&self.approval))
            }
        }
    }
}

impl Reason {
    /// A reason whose code says it all.
    #[must_use]
    pub fn new(code: ReasonCode) -> Self {
        Self { code, for_caller: String::new(), for_operator: String::new(), advice: None }
    }

    /// Adds what the caller is told.
    #[must_use]
    pub fn told(mut self, text: impl fmt::Display) -> Self {
        self.for_caller = plain(&text.to_string());
        self
    }

    /// Adds what only the operator's record holds.
    #[must_use]
    pub fn noted(mut self, text: impl fmt::Display) -> Self {
        self.for_operator = plain(&text.to_string());
        self
    }

    /// Adds how it could be had, to what the caller is told.
    #[must_use]
    pub fn advised(self, advice: Advice) -> Self {
        let told = format!("{}; {advice}", self.for_caller());
        Self { advice: Some(Box::new(advice)), ..self.told(told) }
    }

    /// How it could be had, if that may be told.
    #[must_use]
    pub fn advice(&self) -> Option<&Advice> {
        self.advice.as_deref()
    }

    /// The machine-readable code.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        self.code
    }

    /// What the caller is told: the code's meaning unless there is something more exact.
    #[must_use]
    pub fn for_caller(&self) -> &str {
        if self.for_caller.is_empty() { self.code.page().meaning } else { &self.for_caller }
    }

    /// What the operator's record says: the operator's text, else the caller's.
    #[must_use]
    pub fn for_operator(&self) -> &str {
        if self.for_operator.is_empty() { self.for_caller() } else { &self.for_operator }
    }
}

/// Escapes what a terminal or a log reader would act on, and bounds the length (threat B16).
fn plain(text: &str) -> String {
    if crate::red::off("B16") {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len().min(REASON_CHARS_MAX));
    for (count, character) in text.chars().enumerate() {
        if count == REASON_CHARS_MAX {
            plain.push('…');
            break;
        }
        if crate::visible::is_invisible(character) {
            plain.extend(character.escape_unicode());
        } else {
            plain.push(character);
        }
    }
    plain
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.for_caller())
    }
}

impl From<ReasonCode> for Reason {
    fn from(code: ReasonCode) -> Self {
        Self::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        for code in ReasonCode::ALL {
            assert_eq!(ReasonCode::parse(code.as_str()), Some(*code));
            assert!(code.as_str().contains('.'));
        }
    }

    #[test]
    fn every_page_is_written() {
        for code in ReasonCode::ALL {
            let page = code.page();
            for text in [page.meaning, page.cause, page.next] {
                assert!(text.len() > 8 && text.ends_with('.'), "{code}: {text}");
            }
        }
    }

    #[test]
    fn b16_what_a_terminal_would_act_on_is_shown_instead() {
        let reason = Reason::new(ReasonCode::ToolFailed).told("a\n\u{1b}[2Jb\u{202e}c");
        assert_eq!(reason.for_caller(), "a\\u{a}\\u{1b}[2Jb\\u{202e}c");
        let long = Reason::new(ReasonCode::ToolFailed).told("x".repeat(10_000));
        assert_eq!(long.for_caller().chars().count(), REASON_CHARS_MAX + 1);
    }
}
