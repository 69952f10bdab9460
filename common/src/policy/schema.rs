//! Every predicate a policy may speak about: declared once, checked at load, and the source of the table in
//! `policies/README.md`.

use crate::{
    datalog::{Predicate, Term},
    diagnostic::suggest,
    reason::Plane,
};

/// The type of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Whatever the argument is: a text, an integer or a boolean.
    Any,
    /// A byte string.
    Bytes,
    /// A point in time.
    Date,
    /// A signed 64-bit integer.
    Integer,
    /// A text.
    Text,
}

impl Type {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Bytes => "bytes",
            Self::Date => "date",
            Self::Integer => "integer",
            Self::Text => "text",
        }
    }

    /// Whether a constant is of this type; variables always may be.
    #[must_use]
    pub fn admits(self, term: &Term) -> bool {
        match (self, term) {
            (_, Term::Variable(_))
            | (Self::Bytes, Term::Bytes(_))
            | (Self::Date, Term::Date(_))
            | (Self::Integer, Term::Integer(_))
            | (Self::Text, Term::Str(_)) => true,
            (Self::Any, term) => matches!(term, Term::Str(_) | Term::Integer(_) | Term::Bool(_)),
            _ => false,
        }
    }
}

/// Who states the facts of a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The authority block of the capability.
    Capability,
    /// The tool's contract.
    Contract,
    /// The tool's own gate, from the arguments of a call.
    Gate,
    /// Inspectors of the node, from the texts of arguments and results.
    Inspector,
    /// `agents.toml` and `roles.toml`.
    Inventory,
    /// Rules of the policy; Writ reads what they derive.
    Policy,
    /// The request and its verifier.
    Request,
}

impl Provider {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capability => "capability",
            Self::Contract => "contract",
            Self::Gate => "gate of the tool",
            Self::Inspector => "inspector",
            Self::Inventory => "inventory",
            Self::Policy => "policy (read by Writ)",
            Self::Request => "request",
        }
    }
}

/// One declared predicate.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// Name and type of each term.
    pub terms: &'static [(&'static str, Type)],
    /// The plane it is mostly used on.
    pub plane: Plane,
    /// Who states it.
    pub provider: Provider,
    /// What it means.
    pub meaning: &'static str,
}

const fn declared(
    name: &'static str,
    terms: &'static [(&'static str, Type)],
    plane: Plane,
    provider: Provider,
    meaning: &'static str,
) -> Declared {
    Declared { name, terms, plane, provider, meaning }
}

/// The schema, in the order of names.
pub const SCHEMA: &[Declared] = {
    use Plane::{Action, Flow, Identity};
    use Provider::{Capability, Contract, Gate, Inspector, Inventory, Policy, Request};
    use Type::{Any, Bytes, Date, Integer, Text};
    &[
        declared(
            "accepts",
            &[("tag", Text)],
            Flow,
            Policy,
            "that data with this tag may flow into the action too, beyond what its contract accepts",
        ),
        declared("action", &[("name", Text)], Action, Request, "what is to be done to the resource"),
        declared("agent", &[("name", Text)], Identity, Capability, "the agent the task was given to"),
        declared(
            "approval_seconds",
            &[("seconds", Integer)],
            Action,
            Policy,
            "how long a request for approval is open; the least derived counts, none means 3600",
        ),
        declared(
            "arg",
            &[("path", Text), ("value", Any)],
            Action,
            Request,
            "an argument of the call, by JSON Pointer",
        ),
        declared(
            "asked",
            &[("resource", Text), ("action", Text)],
            Identity,
            Request,
            "the right a task asks for beyond what it holds, in requests of kind `ask`",
        ),
        declared(
            "budget",
            &[("name", Text), ("limit", Integer), ("amount", Integer)],
            Action,
            Policy,
            "that an allowed call takes so much out of a budget of its task; what the task spends in all stays within the limit",
        ),
        declared(
            "budget_rows",
            &[("name", Text), ("limit", Integer), ("most", Integer)],
            Action,
            Policy,
            "that an allowed call takes the rows of its result out of a budget of its task; so many are taken before it runs, and a result with more is kept back",
        ),
        declared("caller", &[("name", Text)], Identity, Request, "the agent that makes this call"),
        declared("capability", &[("id", Text)], Identity, Capability, "the capability, through all renewals"),
        declared(
            "capability_seconds",
            &[("seconds", Integer)],
            Identity,
            Policy,
            "longest life of a capability; the least derived counts",
        ),
        declared(
            "clearance",
            &[("agent", Text), ("tag", Text)],
            Flow,
            Inventory,
            "a tag the agent and the provider of its model may be told; `public` for none, `top` for all",
        ),
        declared(
            "delegates",
            &[("from", Text), ("to", Text)],
            Identity,
            Inventory,
            "`delegates_to` of an agent in agents.toml",
        ),
        declared(
            "depth",
            &[("hops", Integer)],
            Identity,
            Request,
            "how many times the capability was delegated",
        ),
        declared(
            "depth_limit",
            &[("hops", Integer)],
            Identity,
            Policy,
            "how deep a new capability may be delegated; the least derived counts, none means 0",
        ),
        declared("domain", &[("id", Text)], Flow, Capability, "the flow domain, as `part.domain`"),
        declared("effect", &[("kind", Text)], Action, Contract, "`read`, `internal`, `shared` or `egress`"),
        declared("expires", &[("time", Date)], Identity, Capability, "when the capability ends"),
        declared(
            "finding",
            &[("path", Text), ("kind", Text), ("detector", Text), ("severity", Integer)],
            Flow,
            Inspector,
            "something found in a text, by JSON Pointer: what sort of thing, by which detector of which inspector, how bad from 0 to 100",
        ),
        declared(
            "grant",
            &[("resource", Text), ("action", Text)],
            Identity,
            Policy,
            "a right a new capability may hold",
        ),
        declared(
            "grantable",
            &[("resource", Text), ("action", Text), ("by", Text)],
            Identity,
            Policy,
            "that a caller without this right is told who could grant it",
        ),
        declared(
            "guarded",
            &[("path", Text), ("entity", Text)],
            Flow,
            Contract,
            "an argument of the call that decides who or what is affected, and what it names",
        ),
        declared("holder", &[("key", Bytes)], Identity, Capability, "the key the task was given to"),
        declared(
            "hop",
            &[("depth", Integer), ("from", Text), ("to", Text)],
            Identity,
            Request,
            "one delegation of the chain, 1 first",
        ),
        declared(
            "host",
            &[("name", Text), ("port", Integer)],
            Action,
            Gate,
            "the host that is asked for a document",
        ),
        declared(
            "hour",
            &[("number", Integer)],
            Action,
            Request,
            "the hour of the decision, 0 to 23, in UTC",
        ),
        declared(
            "inspected",
            &[("what", Text)],
            Flow,
            Inspector,
            "what the findings are about: `arguments`, or `result` when rules are asked about a result; absent if no inspector is",
        ),
        declared("instruction", &[("digest", Bytes)], Flow, Capability, "SHA-256 of what the user asked for"),
        declared("integrity", &[("level", Text)], Flow, Request, "`trusted` or `untrusted`"),
        declared(
            "label",
            &[("tag", Text)],
            Flow,
            Request,
            "a tag of the task label; `public` if it has none, `top` if it is unknown",
        ),
        declared("max_depth", &[("hops", Integer)], Identity, Capability, "how deep it may be delegated"),
        declared(
            "may_declassify",
            &[("role", Text), ("tag", Text)],
            Flow,
            Policy,
            "that approvers with this role may let data with this tag pass where it is not taken, one call at a time",
        ),
        declared(
            "may_delegate",
            &[("from", Text), ("to", Text)],
            Identity,
            Policy,
            "that the first agent may delegate to the second",
        ),
        declared(
            "may_endorse",
            &[("role", Text), ("entity", Text)],
            Flow,
            Policy,
            "that approvers with this role may vouch for an argument of this type, one call at a time",
        ),
        declared(
            "may_observe",
            &[("resource", Text)],
            Action,
            Policy,
            "that a tool or agent (`agent.<name>`) in observe mode is observed, not denied",
        ),
        declared(
            "may_request",
            &[("resource", Text), ("action", Text), ("role", Text), ("people", Integer)],
            Identity,
            Policy,
            "that a task without this right may ask for it, and gets it for some minutes once so many approvers with this role have said yes",
        ),
        declared(
            "may_run",
            &[("agent", Text), ("kind", Text)],
            Identity,
            Policy,
            "that this user may have this agent do this kind of task",
        ),
        declared(
            "min_epoch",
            &[("incarnation", Integer), ("sequence", Integer)],
            Identity,
            Capability,
            "the control state a node must at least have seen",
        ),
        declared(
            "model",
            &[("agent", Text), ("name", Text)],
            Flow,
            Inventory,
            "`model` of an agent in agents.toml",
        ),
        declared(
            "needs_approval",
            &[("role", Text), ("people", Integer)],
            Action,
            Policy,
            "that an allowed call is held until so many approvers with this role have said yes",
        ),
        declared(
            "operator",
            &[("name", Text)],
            Identity,
            Request,
            "the operator asking, in requests of kind `admin`",
        ),
        declared(
            "own_approval",
            &[("role", Text)],
            Identity,
            Policy,
            "that users with this role may approve what is done on their own authority",
        ),
        declared(
            "owner",
            &[("agent", Text), ("team", Text)],
            Identity,
            Inventory,
            "`owner` of an agent in agents.toml",
        ),
        declared("path", &[("name", Text)], Action, Gate, "a file or folder, from the folder of the tool"),
        declared(
            "pin",
            &[("resource", Text), ("action", Text), ("call", Text), ("path", Text), ("value", Any)],
            Identity,
            Policy,
            "that a new capability holds this right only for calls whose argument has this value; values of one `call` go together, and of several calls one has to fit",
        ),
        declared(
            "provider",
            &[("agent", Text), ("name", Text)],
            Flow,
            Inventory,
            "`provider` of an agent in agents.toml",
        ),
        declared(
            "reads_column",
            &[("table", Text), ("column", Text)],
            Action,
            Gate,
            "a column that a SELECT reads or may read; `*` is all of the table",
        ),
        declared("reads_table", &[("name", Text)], Action, Gate, "a table or view that a SELECT reads"),
        declared(
            "recipient",
            &[("kind", Text), ("address", Text)],
            Action,
            Gate,
            "an address a letter goes to, with kind `to`, `cc` or `bcc`",
        ),
        declared(
            "region",
            &[("agent", Text), ("name", Text)],
            Flow,
            Inventory,
            "`region` of the provider of an agent in agents.toml",
        ),
        declared("registered", &[("agent", Text)], Identity, Inventory, "that the agent is in agents.toml"),
        declared("request", &[("kind", Text)], Action, Request, "`call`, `issue`, `renew`, `ask` or `admin`"),
        declared(
            "resource",
            &[("name", Text)],
            Action,
            Request,
            "what is acted on: `tool.…`, `agent.…`, `task.…` or `policy.…`",
        ),
        declared(
            "result_integrity",
            &[("level", Text)],
            Flow,
            Policy,
            "that the result is `untrusted`, beyond what its contract says",
        ),
        declared(
            "result_tag",
            &[("tag", Text)],
            Flow,
            Policy,
            "that the result carries this tag too, beyond what its contract says",
        ),
        declared(
            "right",
            &[("resource", Text), ("action", Text)],
            Action,
            Capability,
            "a right the capability was granted",
        ),
        declared(
            "role",
            &[("name", Text)],
            Identity,
            Request,
            "a role of the user, in requests of kind `issue`, `renew` and `ask`",
        ),
        declared(
            "role_right",
            &[("role", Text), ("kind", Text), ("resource", Text), ("action", Text)],
            Identity,
            Inventory,
            "`rights` of a task of a role in roles.toml",
        ),
        declared(
            "role_runs",
            &[("role", Text), ("agent", Text), ("kind", Text)],
            Identity,
            Inventory,
            "`agents` of a task of a role in roles.toml",
        ),
        declared("serial", &[("number", Integer)], Identity, Capability, "how often it was renewed, from 1"),
        declared(
            "source_approval",
            &[("role", Text), ("people", Integer)],
            Flow,
            Policy,
            "that a call with an `unsourced` argument is held until so many approvers with this role have said yes, instead of denied",
        ),
        declared(
            "sourced",
            &[("path", Text), ("entity", Text), ("source", Text)],
            Flow,
            Request,
            "what vouches for a guarded argument of an untrusted task: `instruction`, `result`, `grant` or `directory:<name>`",
        ),
        declared("task", &[("id", Text)], Identity, Capability, "the task"),
        declared(
            "task_kind",
            &[("kind", Text)],
            Identity,
            Request,
            "the kind of task, in requests of kind `issue`, `renew` and `ask`",
        ),
        declared(
            "task_seconds",
            &[("seconds", Integer)],
            Identity,
            Policy,
            "longest life of a task; the least derived counts",
        ),
        declared(
            "team_may",
            &[("team", Text), ("resource", Text), ("action", Text)],
            Action,
            Policy,
            "that the `allow` rules of a team's folder count for this",
        ),
        declared("tenant", &[("id", Text)], Identity, Request, "the organisation"),
        declared("time", &[("now", Date)], Action, Request, "when the decision is made"),
        declared(
            "tool_owner",
            &[("resource", Text), ("team", Text)],
            Action,
            Contract,
            "`owner` of a tool's contract",
        ),
        declared(
            "unsourced",
            &[("path", Text), ("entity", Text)],
            Flow,
            Request,
            "a guarded argument of an untrusted task that nothing vouches for",
        ),
        declared("user", &[("issuer", Text), ("subject", Text)], Identity, Request, "on whose authority"),
        declared(
            "user_kind",
            &[("kind", Text)],
            Identity,
            Request,
            "`human` or `service`: a program that logs in as itself",
        ),
        declared(
            "weekday",
            &[("number", Integer)],
            Action,
            Request,
            "the day of the decision, 1 for Monday to 7 for Sunday, in UTC",
        ),
    ]
};

/// Kinds of request, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests(u8);

impl Requests {
    /// Calls of agents.
    pub const CALL: Self = Self(1);
    /// Starts of tasks.
    pub const ISSUE: Self = Self(2);
    /// Renewals of capabilities.
    pub const RENEW: Self = Self(4);
    /// What operators ask for.
    pub const ADMIN: Self = Self(8);
    /// Rights that tasks ask for beyond what they hold.
    pub const ASK: Self = Self(16);
    /// What a broker is asked by an agent, for a user.
    pub const GRANTS: Self = Self::ISSUE.or(Self::RENEW).or(Self::ASK);
    /// None.
    pub const NONE: Self = Self(0);
    /// All.
    pub const EVERY: Self = Self(31);
    /// Each with the name `request` has for it.
    pub const NAMED: [(&str, Self); 5] = [
        ("call", Self::CALL),
        ("issue", Self::ISSUE),
        ("renew", Self::RENEW),
        ("ask", Self::ASK),
        ("admin", Self::ADMIN),
    ];

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Their names, quoted.
    #[must_use]
    pub fn names(self) -> String {
        let named = Self::NAMED.iter().filter(|(_, one)| self.and(*one) != Self::NONE);
        named.map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }
}

impl Declared {
    /// Name and terms, as in `reads_table(name: text)`.
    #[must_use]
    pub fn shape(&self) -> String {
        let terms: Vec<String> =
            self.terms.iter().map(|(name, kind)| format!("{name}: {}", kind.as_str())).collect();
        format!("`{}({})`", self.name, terms.join(", "))
    }

    /// The kinds of request in which it has facts; those that rules derive have them wherever the rules fire.
    #[must_use]
    pub fn requests(&self) -> Requests {
        match (self.name, self.provider) {
            ("user" | "user_kind" | "caller", _) => Requests::CALL.or(Requests::GRANTS),
            ("role" | "task_kind", _) => Requests::GRANTS,
            ("asked", _) => Requests::ASK,
            ("operator", _) => Requests::ADMIN,
            ("depth" | "hop" | "arg" | "effect" | "guarded" | "sourced" | "unsourced", _)
            | (_, Provider::Capability | Provider::Gate | Provider::Inspector) => Requests::CALL,
            _ => Requests::EVERY,
        }
    }
}

/// The table of `policies/README.md`.
#[must_use]
pub fn table() -> String {
    let mut table = "| predicate | stated by | in requests | meaning |\n|---|---|---|---|\n".to_owned();
    for declared in SCHEMA {
        let requests = match declared.requests() {
            _ if declared.provider == Provider::Policy => "where rules derive it".to_owned(),
            Requests::EVERY => "every".to_owned(),
            some => some.names(),
        };
        table += &format!(
            "| {} | {} | {requests} | {} |\n",
            declared.shape(),
            declared.provider.as_str(),
            declared.meaning
        );
    }
    table
}

/// Finds a declared predicate.
#[must_use]
pub fn find(name: &str) -> Option<&'static Declared> {
    SCHEMA.iter().find(|declared| declared.name == name)
}

/// Checks a fact that is said to come from a tool's gate or an inspector.
///
/// # Errors
/// What is wrong with it, and what these state.
pub fn check_gate_fact(fact: &Predicate) -> Result<(), String> {
    let stated = || {
        let provided = [Provider::Gate, Provider::Inspector];
        SCHEMA.iter().filter(move |declared| provided.contains(&declared.provider))
    };
    let Some(declared) = stated().find(|declared| declared.name == fact.name) else {
        let names: Vec<&str> = stated().map(|declared| declared.name).collect();
        let otherwise = format!("gates and inspectors state {}", names.join(", "));
        let help = suggest(&fact.name, names, &otherwise);
        return Err(format!("no gate or inspector states `{}`: {help}", fact.name));
    };
    let fits = declared.terms.len() == fact.terms.len()
        && declared
            .terms
            .iter()
            .zip(&fact.terms)
            .all(|((_, kind), term)| kind.admits(term) && !matches!(term, Term::Variable(_)));
    if fits { Ok(()) } else { Err(format!("`{fact}` should be {}", declared.shape())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_sorted_and_without_duplicates() {
        assert!(SCHEMA.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn what_a_capability_may_ask_about_is_declared() {
        for (name, arity) in crate::capability::block::AMBIENT {
            let declared = find(name).unwrap();
            assert_eq!((declared.terms.len(), declared.provider), (arity, Provider::Request));
        }
    }
}
