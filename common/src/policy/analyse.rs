//! Rules that can never fire, names that exist nowhere, comparisons that cannot be evaluated.
//!
//! A policy that silently does nothing is the commonest failure of its kind, so what can be known before any
//! request is an error here. Every check is sound: a rule refused as one that never fires has no request it could
//! fire on. What merely looks wrong is a warning.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Inventory, Statement, StatementNode, arithmetic,
    schema::{self, Provider, Requests, Type},
};
use crate::{
    contract::{ActionContract, ToolContract},
    datalog::{Binary, Body, Expression, Node, Predicate, Span, Term},
    decide::{AGENT_HANDOVER, AGENT_INPUT},
    diagnostic::{Diagnostic, Diagnostics, closest, suggest},
    ids::Resource,
    json::Value,
    wire::AdminWanted,
};

/// Predicates with exactly one fact in any request that has them at all.
fn is_single(name: &str) -> bool {
    let of_the_request =
        ["action", "caller", "depth", "effect", "integrity", "operator", "request", "resource", "task_kind"];
    let others = ["hour", "tenant", "time", "user", "user_kind", "weekday"];
    of_the_request.contains(&name)
        || others.contains(&name)
        || schema::find(name).is_some_and(|declared| declared.provider == Provider::Capability)
            && name != "right"
}

/// The type of a value as far as it is known; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Bool,
    Bytes,
    Date,
    Integer,
    Set,
    Text,
}

impl Known {
    fn of_declared(kind: Type) -> Option<Self> {
        match kind {
            Type::Any => None,
            Type::Bytes => Some(Self::Bytes),
            Type::Date => Some(Self::Date),
            Type::Integer => Some(Self::Integer),
            Type::Text => Some(Self::Text),
        }
    }

    fn of_term(term: &Term) -> Option<Self> {
        match term {
            Term::Bool(_) => Some(Self::Bool),
            Term::Bytes(_) => Some(Self::Bytes),
            Term::Date(_) => Some(Self::Date),
            Term::Integer(_) => Some(Self::Integer),
            Term::Set(_) => Some(Self::Set),
            Term::Str(_) => Some(Self::Text),
            Term::Variable(_) => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Bool => "a boolean",
            Self::Bytes => "a byte string",
            Self::Date => "a date",
            Self::Integer => "an integer",
            Self::Set => "a set",
            Self::Text => "a text",
        }
    }
}

/// Looks at all rules together.
pub(super) fn analyse(
    sources: &[(&str, &str, Vec<Statement>)],
    inventory: &Inventory,
    contracts: &BTreeMap<Resource, ToolContract>,
    findings: &mut Diagnostics,
) {
    let mut analysis = Analysis { inventory, contracts, derived: BTreeMap::new() };
    analysis.derive(sources);
    for (file, text, statements) in sources {
        for statement in statements {
            let bodies = statement.bodies();
            let head = match &statement.node {
                StatementNode::Derive(rule) => Some(&rule.head),
                StatementNode::Decide(..) => None,
            };
            let mut found = Vec::new();
            for body in bodies {
                analysis.body(body, head, statement.span, &mut found);
            }
            if head.is_none() && !crate::red::off("P08") {
                found.extend(unconditional(bodies, statement.span));
            }
            findings.0.extend(found.into_iter().map(|Finding { span, message, help, is_warning }| {
                let finding = Diagnostic::at(file, text, span, message);
                let finding = match help {
                    Some(help) => finding.help(help),
                    None => finding,
                };
                if is_warning { finding.warning() } else { finding }
            }));
        }
    }
    unused(sources, findings);
}

pub(super) struct Finding {
    span: Span,
    message: String,
    help: Option<String>,
    is_warning: bool,
}

impl Finding {
    pub(super) fn error(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: Some(help.into()), is_warning: false }
    }

    pub(super) fn warning(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::error(span, message, help) }
    }
}

/// `allow if true`: whatever else the policy allows has no meaning beside it.
fn unconditional(bodies: &[Body], span: Span) -> Option<Finding> {
    let is_unconditional = |body: &Body| {
        let says_true = |expression: &Expression| matches!(expression.node, Node::Term(Term::Bool(true)));
        body.predicates.is_empty() && body.expressions.iter().all(says_true)
    };
    bodies.iter().any(is_unconditional).then(|| {
        Finding::error(
            span,
            "this fires on every request of every kind",
            "name at least the kind, as in `request(\"call\")`; policies/base.datalog shows the usual rules",
        )
    })
}

/// Own predicates nobody asks about are typing errors or left over.
fn unused(sources: &[(&str, &str, Vec<Statement>)], findings: &mut Diagnostics) {
    let mut used = BTreeSet::new();
    for statement in sources.iter().flat_map(|(.., statements)| statements) {
        used.extend(
            statement
                .bodies()
                .iter()
                .flat_map(|body| &body.predicates)
                .map(|predicate| predicate.name.as_str()),
        );
    }
    let mut told = BTreeSet::new();
    for (file, text, statements) in sources {
        for statement in statements {
            let StatementNode::Derive(rule) = &statement.node else { continue };
            let name = rule.head.name.as_str();
            if schema::find(name).is_none() && !used.contains(name) && told.insert(name) {
                let message = format!("`{name}` is derived and no rule asks about it");
                findings.push(Diagnostic::at(file, text, rule.head.span, message).warning());
            }
        }
    }
}

struct Analysis<'a> {
    inventory: &'a Inventory,
    contracts: &'a BTreeMap<Resource, ToolContract>,
    /// In which kinds of request each derived predicate can have facts.
    derived: BTreeMap<&'a str, Requests>,
}

/// What a body says of its variables.
struct Scope<'b> {
    body: &'b Body,
    /// Constants that `$x === constant` pins variables to.
    pinned: BTreeMap<&'b str, &'b Term>,
    /// Where variables stand: predicate and position.
    places: BTreeMap<&'b str, Vec<(&'b Predicate, usize)>>,
}

impl<'b> Scope<'b> {
    fn of(body: &'b Body) -> Self {
        let mut places: BTreeMap<&str, Vec<(&Predicate, usize)>> = BTreeMap::new();
        for predicate in &body.predicates {
            for (position, term) in predicate.terms.iter().enumerate() {
                if let Term::Variable(name) = term {
                    places.entry(name).or_default().push((predicate, position));
                }
            }
        }
        let mut pinned = BTreeMap::new();
        for_each_conjunct(body, &mut |op, name, constant, _| {
            if op == Binary::Equal {
                pinned.entry(name).or_insert(constant);
            }
        });
        Self { body, pinned, places }
    }

    /// The text that the first term of a predicate of the body can only be, as in `resource("tool.mail")`.
    fn text_of(&self, name: &str) -> Option<&'b str> {
        let named = self.body.predicates.iter().filter(|predicate| predicate.name == name);
        let mut constants = named.filter_map(|predicate| self.constant(predicate.terms.first()?));
        constants.find_map(|constant| if let Term::Str(text) = constant { Some(text.as_str()) } else { None })
    }

    /// The constant a term stands for, if it can only be one.
    fn constant(&self, term: &'b Term) -> Option<&'b Term> {
        match term {
            Term::Variable(name) => self.pinned.get(name.as_str()).copied(),
            constant => Some(constant),
        }
    }
}

/// Calls `visit` for every comparison of a variable with a constant that has to hold for the body to hold.
fn for_each_conjunct<'b>(body: &'b Body, visit: &mut impl FnMut(Binary, &'b str, &'b Term, Span)) {
    body.expressions.iter().for_each(|expression| for_each_conjunct_of(expression, visit));
}

/// The same for one condition.
pub(super) fn for_each_conjunct_of<'b>(
    expression: &'b Expression,
    visit: &mut impl FnMut(Binary, &'b str, &'b Term, Span),
) {
    let Node::Binary(op, left, right) = &expression.node else { return };
    if *op == Binary::And {
        for_each_conjunct_of(left, visit);
        return for_each_conjunct_of(right, visit);
    }
    match (&left.node, &right.node) {
        (Node::Term(Term::Variable(_)), Node::Term(Term::Variable(_))) => {}
        (Node::Term(Term::Variable(name)), Node::Term(constant)) => {
            visit(*op, name, constant, expression.span);
        }
        (Node::Term(constant), Node::Term(Term::Variable(name))) => {
            visit(mirrored(*op), name, constant, expression.span);
        }
        _ => {}
    }
}

/// The operator that says the same with its sides exchanged.
fn mirrored(op: Binary) -> Binary {
    match op {
        Binary::LessThan => Binary::GreaterThan,
        Binary::LessOrEqual => Binary::GreaterOrEqual,
        Binary::GreaterThan => Binary::LessThan,
        Binary::GreaterOrEqual => Binary::LessOrEqual,
        op => op,
    }
}

impl<'a> Analysis<'a> {
    /// The least set of kinds in which each derived predicate can have facts.
    fn derive(&mut self, sources: &'a [(&str, &str, Vec<Statement>)]) {
        let rules = || {
            sources.iter().flat_map(|(.., statements)| statements).filter_map(|statement| {
                match &statement.node {
                    StatementNode::Derive(rule) => Some(rule),
                    StatementNode::Decide(..) => None,
                }
            })
        };
        for rule in rules() {
            self.derived.insert(rule.head.name.as_str(), Requests::NONE);
        }
        loop {
            let mut has_grown = false;
            for rule in rules() {
                let scope = Scope::of(&rule.body);
                let kinds = rule.body.predicates.iter().map(|predicate| self.kinds(predicate, &scope));
                let kinds = kinds.fold(Requests::EVERY, Requests::and);
                if let Some(known) = self.derived.get_mut(rule.head.name.as_str()) {
                    has_grown |= known.or(kinds) != *known;
                    *known = known.or(kinds);
                }
            }
            if !has_grown {
                return;
            }
        }
    }

    /// In which kinds of request one predicate of a body can match.
    fn kinds(&self, predicate: &Predicate, scope: &Scope<'_>) -> Requests {
        let name = predicate.name.as_str();
        let available = match schema::find(name) {
            Some(declared) if declared.provider != Provider::Policy => declared.requests(),
            _ => self.derived.get(name).copied().unwrap_or(Requests::NONE),
        };
        let constant = match predicate.terms.first() {
            Some(Term::Variable(name)) => scope.pinned.get(name.as_str()).copied(),
            term => term,
        };
        let Some(Term::Str(constant)) = constant else { return available };
        let named = Requests::NAMED.iter().find(|(kind, _)| kind == constant);
        available.and(match name {
            "request" => named.map_or(Requests::EVERY, |(_, kind)| *kind),
            "resource" if constant.starts_with("tool.") => Requests::CALL,
            "resource" if constant.starts_with("agent.") => Requests::CALL.or(Requests::ADMIN),
            "resource" if constant.starts_with("policy.") => Requests::ADMIN,
            "resource" if constant.starts_with("task.") => Requests::GRANTS.or(Requests::ADMIN),
            _ => Requests::EVERY,
        })
    }

    fn body(&self, body: &Body, head: Option<&Predicate>, whole: Span, found: &mut Vec<Finding>) {
        let scope = Scope::of(body);
        self.kinds_meet(&scope, whole, found);
        one_value_each(&scope, found);
        ranges(body, found);
        arithmetic::faults(body, found);
        for predicate in body.predicates.iter().chain(head) {
            for (position, term) in predicate.terms.iter().enumerate() {
                if let Term::Str(text) = term {
                    found.extend(self.unknown_name(predicate, position, text, predicate.span, &scope));
                }
            }
        }
        let types = self.types(&scope, found);
        for expression in &body.expressions {
            expression.walk(&mut |part| {
                self.compared_names(part, &scope, found);
                comparison(part, &types, found);
            });
        }
    }

    fn kinds_meet(&self, scope: &Scope<'_>, whole: Span, found: &mut Vec<Finding>) {
        let mut possible = Requests::EVERY;
        let mut narrowed_by: Vec<(&Predicate, Requests)> = Vec::new();
        for predicate in &scope.body.predicates {
            let kinds = self.kinds(predicate, scope);
            // Predicates that do not exist were reported already.
            let is_known = schema::find(&predicate.name).is_some_and(|d| d.provider != Provider::Policy);
            if kinds == Requests::NONE && !is_known {
                if self.derived.contains_key(predicate.name.as_str()) {
                    found.push(Finding::error(
                        predicate.span,
                        format!("this can never fire: no rule that can fire derives `{}`", predicate.name),
                        "repair or remove the rules that derive it",
                    ));
                    return;
                }
                if schema::find(&predicate.name).is_some() {
                    found.push(Finding::error(
                        predicate.span,
                        format!("this can never fire: no rule derives `{}`", predicate.name),
                        format!("add a rule `{} <- …;`", predicate.name),
                    ));
                }
                return;
            }
            if possible.and(kinds) == Requests::NONE {
                let others: Vec<String> = narrowed_by
                    .iter()
                    .filter(|(_, other)| other.and(kinds) == Requests::NONE)
                    .map(|(other, kinds)| format!("`{other}` only in {}", kinds.names()))
                    .collect();
                let others = if others.is_empty() {
                    format!("the rest only in {}", possible.names())
                } else {
                    others.join(", ")
                };
                found.push(Finding::error(
                    whole,
                    format!(
                        "this can never fire: `{predicate}` holds only in requests of kind {}, {others}",
                        kinds.names()
                    ),
                    "policies/README.md, \"Predicates\", says which facts a request has; roles decide what a capability is granted, calls see the rights",
                ));
                return;
            }
            possible = possible.and(kinds);
            if kinds != Requests::EVERY {
                narrowed_by.push((predicate, kinds));
            }
        }
    }

    /// A name in the place of an agent, a tool, an action, … that nothing has.
    fn unknown_name(
        &self,
        predicate: &Predicate,
        position: usize,
        text: &str,
        span: Span,
        scope: &Scope<'_>,
    ) -> Option<Finding> {
        let agents = || self.inventory.agents.keys().map(crate::ids::AgentId::as_str);
        let roles = || self.inventory.roles.keys().map(crate::ids::RoleId::as_str);
        let tasks = || self.inventory.roles.values().flatten().map(|task| task.kind.as_str());
        let missing = |what: &str, known: Vec<&str>, elsewhere: &str| {
            if known.is_empty() || known.contains(&text) {
                return None;
            }
            Some(Finding::error(
                span,
                format!("there is no {what} `{text}`"),
                suggest(text, known, elsewhere),
            ))
        };
        match (predicate.name.as_str(), position) {
            ("request", 0) => missing(
                "kind of request",
                Requests::NAMED.iter().map(|(name, _)| *name).collect(),
                "it is `call`, `issue`, `renew`, `ask` or `admin`",
            ),
            ("effect", 0) => missing(
                "effect",
                vec!["read", "internal", "shared", "egress"],
                "it is `read`, `internal`, `shared` or `egress`",
            ),
            ("integrity" | "result_integrity", 0) => {
                missing("integrity", vec!["trusted", "untrusted"], "it is `trusted` or `untrusted`")
            }
            ("agent" | "caller" | "registered" | "owner", 0)
            | ("delegates" | "may_delegate", 0 | 1)
            | ("hop", 1 | 2)
            | ("role_runs", 1)
            | ("clearance" | "model" | "provider" | "region", 0)
            | ("may_run", 0) => {
                missing("agent", agents().collect(), "agents are those of agents.toml; add an `[[agent]]`")
            }
            ("owner" | "tool_owner", 1) | ("team_may", 0) => missing(
                "team",
                super::teams::known(self.inventory, self.contracts).into_iter().collect(),
                "teams are the `owner`s of agents.toml and of contracts",
            ),
            ("role", 0) | ("role_runs" | "role_right", 0) => {
                missing("role", roles().collect(), "roles are those of roles.toml; add a `[[role]]`")
            }
            ("task_kind", 0) | ("may_run", 1) | ("role_right", 1) | ("role_runs", 2) => missing(
                "kind of task",
                tasks().collect(),
                "kinds of task are those of roles.toml; add a `[[role.task]]`",
            ),
            (
                "resource" | "right" | "grant" | "tool_owner" | "may_observe" | "asked" | "grantable"
                | "may_request",
                0,
            )
            | ("role_right", 2)
            | ("team_may", 1) => self.unknown_resource(text, span),
            ("action" | "right" | "grant" | "asked", _)
            | ("grantable" | "may_request", 1)
            | ("role_right", 3) => self.unknown_action(predicate, position, text, span, scope),
            ("arg", 0) => self.unknown_argument(text, span, scope),
            _ => None,
        }
    }

    fn unknown_resource(&self, text: &str, span: Span) -> Option<Finding> {
        let tools = self.contracts.keys().map(Resource::as_str);
        match text.split_once('.') {
            Some(("tool", _)) if !self.contracts.is_empty() => {
                let known: Vec<&str> = tools.collect();
                (!known.contains(&text)).then(|| {
                    let help = suggest(text, known, "every tool needs a contract in a folder `tools`");
                    Finding::error(span, format!("there is no contract for `{text}`"), help)
                })
            }
            Some(("agent", name)) if !self.inventory.agents.is_empty() => {
                let known: Vec<&str> =
                    self.inventory.agents.keys().map(crate::ids::AgentId::as_str).collect();
                (!known.contains(&name)).then(|| {
                    let help = closest(name, known).map_or_else(
                        || "agents are those of agents.toml".to_owned(),
                        |near| format!("did you mean `agent.{near}`?"),
                    );
                    Finding::error(span, format!("there is no agent `{name}`"), help)
                })
            }
            Some(("tool" | "agent" | "task" | "policy", _)) => None,
            _ => Some(Finding::error(
                span,
                format!("`{text}` is no resource"),
                "resources are `tool.<name>`, `agent.<name>`, `task.<kind>` and `policy.<revision>`",
            )),
        }
    }

    fn unknown_action(
        &self,
        predicate: &Predicate,
        position: usize,
        text: &str,
        span: Span,
        scope: &Scope<'_>,
    ) -> Option<Finding> {
        if self.contracts.is_empty() || (predicate.name != "action" && position == 0) {
            return None;
        }
        let resource = match predicate.name.as_str() {
            "action" => scope.text_of("resource"),
            _ => match position.checked_sub(1).and_then(|before| predicate.terms.get(before)) {
                Some(Term::Str(text)) => Some(text.as_str()),
                _ => None,
            },
        };
        let of_tools = |contract: &'a ToolContract| contract.actions.keys().map(crate::ids::Action::as_str);
        let contract = resource
            .and_then(|name| self.contracts.iter().find(|(known, _)| known.as_str() == name))
            .map(|(_, contract)| contract);
        let known: Vec<&str> = match (contract, resource) {
            (Some(contract), _) => of_tools(contract).collect(),
            (None, Some(resource)) if resource.starts_with("tool.") => return None,
            _ => self
                .contracts
                .values()
                .flat_map(of_tools)
                .chain(["invoke", "issue", "renew", "ask"])
                .chain(AdminWanted::ACTIONS.iter().copied())
                .collect(),
        };
        if known.contains(&text) {
            return None;
        }
        let what = resource.filter(|_| contract.is_some()).unwrap_or("nothing here");
        let help = suggest(text, known.iter().copied(), &format!("it is one of {}", known.join(", ")));
        Some(Finding::error(span, format!("{what} has no action `{text}`"), help))
    }

    /// Contracts of the actions a body can be about; `None` if it can be about agents too.
    fn actions(&self, scope: &Scope<'_>) -> Option<Vec<&'a ActionContract>> {
        let resource = scope.text_of("resource")?;
        let (_, contract) = self.contracts.iter().find(|(known, _)| known.as_str() == resource)?;
        let action = scope.text_of("action");
        let wanted = |name: &str| action.is_none_or(|action| action == name);
        Some(contract.actions.iter().filter(|(name, _)| wanted(name.as_str())).map(|(_, one)| one).collect())
    }

    fn unknown_argument(&self, path: &str, span: Span, scope: &Scope<'_>) -> Option<Finding> {
        if !path.starts_with('/') {
            return Some(Finding::error(
                span,
                format!("`{path}` is no path of an argument"),
                format!("paths are JSON Pointers and begin with a slash: did you mean `/{path}`?"),
            ));
        }
        let actions = match self.actions(scope) {
            Some(actions) => actions,
            None if scope.text_of("resource").is_some() || self.contracts.is_empty() => return None,
            // Any tool or agent: input of agents has any shape.
            None if path == format!("/{AGENT_HANDOVER}") || path.starts_with(&format!("/{AGENT_INPUT}")) => {
                return None;
            }
            None => self.contracts.values().flat_map(|contract| contract.actions.values()).collect(),
        };
        if actions.iter().any(|action| !leaf_types(&action.schema, Some(path)).is_empty()) {
            return None;
        }
        let mut known = BTreeSet::new();
        actions.iter().for_each(|action| first_names(&action.schema, &mut known));
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let otherwise =
            format!("arguments are {}; elements of a list are `/name/0`, `/name/1`, …", known.join(", "));
        let help = suggest(path, known, &otherwise);
        Some(Finding::error(span, format!("no action this can be about has an argument at `{path}`"), help))
    }

    /// Names that a variable is compared with.
    fn compared_names(&self, part: &Expression, scope: &Scope<'_>, found: &mut Vec<Finding>) {
        let Node::Binary(op, left, right) = &part.node else { return };
        let (variable, constants): (&str, Vec<&Term>) = match (op, &left.node, &right.node) {
            (Binary::Equal | Binary::NotEqual, Node::Term(Term::Variable(name)), Node::Term(term))
            | (Binary::Equal | Binary::NotEqual, Node::Term(term), Node::Term(Term::Variable(name))) => {
                (name, vec![term])
            }
            (Binary::Contains, Node::Term(Term::Set(items)), Node::Term(Term::Variable(name))) => {
                (name, items.iter().collect())
            }
            _ => return,
        };
        for constant in constants {
            let Term::Str(text) = constant else { continue };
            let places = scope.places.get(variable).into_iter().flatten();
            found.extend(
                places
                    .filter_map(|(predicate, position)| {
                        self.unknown_name(predicate, *position, text, part.span, scope)
                    })
                    .next(),
            );
        }
    }

    /// What is known of the type of each variable.
    fn types<'b>(&self, scope: &Scope<'b>, found: &mut Vec<Finding>) -> BTreeMap<&'b str, Typed> {
        let mut types: BTreeMap<&str, Typed> = BTreeMap::new();
        for (name, places) in &scope.places {
            for (predicate, position) in places {
                let typed = match schema::find(&predicate.name).and_then(|known| known.terms.get(*position)) {
                    Some((_, Type::Any)) => self.argument_type(predicate, scope),
                    Some((_, kind)) => Typed::from(Known::of_declared(*kind)),
                    None => Typed::Open,
                };
                match (types.get(name), typed) {
                    (Some(Typed::Is(one)), Typed::Is(other)) if *one != other => found.push(Finding::error(
                        predicate.span,
                        format!(
                            "this can never fire: `${name}` is {} here and {} before",
                            other.word(),
                            one.word()
                        ),
                        "use another variable",
                    )),
                    (Some(Typed::Is(_)), _) => {}
                    _ => drop(types.insert(name, typed)),
                }
            }
        }
        types
    }

    /// What the contracts say about the value of `arg(path, value)`.
    fn argument_type(&self, predicate: &Predicate, scope: &Scope<'_>) -> Typed {
        let path = match predicate.terms.first() {
            Some(Term::Variable(name)) => match scope.pinned.get(name.as_str()) {
                Some(Term::Str(path)) => Some(path.as_str()),
                _ => None,
            },
            Some(Term::Str(path)) => Some(path.as_str()),
            _ => None,
        };
        let Some(actions) = self.actions(scope) else { return Typed::Varies };
        let mut all = BTreeSet::new();
        actions.iter().for_each(|action| all.extend(leaf_types(&action.schema, path)));
        match (all.pop_first(), all.pop_first()) {
            (Some(Some(only)), None) => Typed::Is(only),
            _ => Typed::Varies,
        }
    }
}

/// What is known of a variable's type.
#[derive(Clone, Copy, Debug)]
enum Typed {
    /// One type.
    Is(Known),
    /// A term of the policy's own predicate.
    Open,
    /// An argument that can be of several types.
    Varies,
}

impl From<Option<Known>> for Typed {
    fn from(known: Option<Known>) -> Self {
        known.map_or(Self::Varies, Self::Is)
    }
}

/// A comparison of values of different types cannot be evaluated, and denies the request.
fn comparison(part: &Expression, types: &BTreeMap<&str, Typed>, found: &mut Vec<Finding>) {
    let Node::Binary(op, left, right) = &part.node else { return };
    let compares = matches!(
        op,
        Binary::Equal
            | Binary::NotEqual
            | Binary::LessThan
            | Binary::LessOrEqual
            | Binary::GreaterThan
            | Binary::GreaterOrEqual
    );
    if !compares {
        return;
    }
    let typed = |side: &Expression| match &side.node {
        Node::Term(Term::Variable(name)) => types.get(name.as_str()).copied().unwrap_or(Typed::Open),
        Node::Term(term) => Known::of_term(term).map_or(Typed::Open, Typed::Is),
        _ => Typed::Open,
    };
    match (typed(left), typed(right)) {
        (Typed::Is(one), Typed::Is(other)) if one != other => found.push(Finding::error(
            part.span,
            format!("compares {} with {}", one.word(), other.word()),
            "such a comparison cannot be evaluated and denies the request with engine.error",
        )),
        (Typed::Is(Known::Text | Known::Bool), Typed::Is(_))
            if !matches!(op, Binary::Equal | Binary::NotEqual) =>
        {
            found.push(Finding::error(
                part.span,
                "only integers and dates have an order",
                "such a comparison cannot be evaluated and denies the request with engine.error",
            ));
        }
        (Typed::Varies, Typed::Is(known)) | (Typed::Is(known), Typed::Varies) => found.push(Finding {
            span: part.span,
            message: format!(
                "the argument may be something else than {}, and the request is denied with engine.error then",
                known.word()
            ),
            help: Some("name the tool with `resource(\"tool.…\")` and `action(\"…\")`, so that its contract says the type".into()),
            is_warning: true,
        }),
        _ => {}
    }
}

/// A predicate with one fact cannot have two values.
fn one_value_each(scope: &Scope<'_>, found: &mut Vec<Finding>) {
    let mut values: BTreeMap<(&str, usize), &Term> = BTreeMap::new();
    for predicate in scope.body.predicates.iter().filter(|predicate| is_single(&predicate.name)) {
        for (position, term) in predicate.terms.iter().enumerate() {
            let Some(constant) = scope.constant(term) else { continue };
            let known = *values.entry((&predicate.name, position)).or_insert(constant);
            if known != constant {
                found.push(Finding::error(
                    predicate.span,
                    format!(
                        "this can never fire: there is one `{}`, and it cannot be {known} and {constant}",
                        predicate.name
                    ),
                    "join alternatives with `or`",
                ));
            }
        }
    }
}

/// Bounds that leave nothing between them.
fn ranges(body: &Body, found: &mut Vec<Finding>) {
    for expression in &body.expressions {
        if matches!(expression.node, Node::Term(Term::Bool(false))) {
            found.push(Finding::error(expression.span, "this can never fire: `false`", "remove the rule"));
        }
    }
    let mut equal: BTreeMap<&str, &Term> = BTreeMap::new();
    let mut bounds: BTreeMap<&str, (i128, i128)> = BTreeMap::new();
    for_each_conjunct(body, &mut |op, name, constant, span| {
        if op == Binary::Equal {
            let known = *equal.entry(name).or_insert(constant);
            if known != constant {
                found.push(Finding::error(
                    span,
                    format!("this can never fire: `${name}` cannot be {known} and {constant}"),
                    "join alternatives with `or`",
                ));
                return;
            }
        }
        let value = match constant {
            Term::Integer(value) => i128::from(*value),
            Term::Date(value) => i128::from(*value),
            _ => return,
        };
        let (low, high) = bounds.entry(name).or_insert((i128::MIN, i128::MAX));
        let was_possible = *low <= *high;
        match op {
            Binary::Equal => (*low, *high) = ((*low).max(value), (*high).min(value)),
            Binary::LessThan => *high = (*high).min(value - 1),
            Binary::LessOrEqual => *high = (*high).min(value),
            Binary::GreaterThan => *low = (*low).max(value + 1),
            Binary::GreaterOrEqual => *low = (*low).max(value),
            _ => {}
        }
        if was_possible && *low > *high {
            found.push(Finding::error(
                span,
                format!("this can never fire: no value of `${name}` is within all its bounds"),
                "were the sides of a comparison exchanged?",
            ));
        }
    });
}

/// The types leaves of a schema have at a path, or anywhere; `None` among them is any. Empty: no such leaf.
fn leaf_types(schema: &Value, path: Option<&str>) -> BTreeSet<Option<Known>> {
    let mut found = BTreeSet::new();
    let segments: Option<Vec<String>> = path
        .map(|path| path.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~")).collect());
    walk_schema(schema, segments.as_deref(), &mut found);
    found
}

fn walk_schema(schema: &Value, path: Option<&[String]>, found: &mut BTreeSet<Option<Known>>) {
    const OPAQUE: [&str; 12] = [
        "$ref",
        "$dynamicRef",
        "allOf",
        "anyOf",
        "contains",
        "dependentSchemas",
        "if",
        "not",
        "oneOf",
        "patternProperties",
        "prefixItems",
        "unevaluatedProperties",
    ];
    let kind = schema.get("type").and_then(Value::as_str);
    if OPAQUE.iter().any(|key| schema.get(key).is_some()) || kind.is_none() {
        found.insert(None);
        return;
    }
    let is_leaf = path.is_none_or(<[String]>::is_empty);
    match kind {
        Some("object") => {
            let next = match path {
                Some([]) => return,
                Some([first, rest @ ..]) => Some((first, rest)),
                None => None,
            };
            let empty = BTreeMap::new();
            let properties = match schema.get("properties") {
                Some(Value::Object(properties)) => properties,
                _ => &empty,
            };
            match next {
                Some((first, rest)) => match properties.get(first) {
                    Some(property) => walk_schema(property, Some(rest), found),
                    None => others(schema, Some(rest), found),
                },
                None => {
                    properties.values().for_each(|property| walk_schema(property, None, found));
                    others(schema, None, found);
                }
            }
        }
        Some("array") => {
            let rest = match path {
                Some([]) => return,
                Some([first, rest @ ..]) if first.bytes().all(|byte| byte.is_ascii_digit()) => Some(rest),
                Some(_) => return,
                None => None,
            };
            match schema.get("items") {
                Some(items) => walk_schema(items, rest, found),
                None => drop(found.insert(None)),
            }
        }
        Some("string") if is_leaf => drop(found.insert(Some(Known::Text))),
        Some("integer" | "number") if is_leaf => drop(found.insert(Some(Known::Integer))),
        Some("boolean") if is_leaf => drop(found.insert(Some(Known::Bool))),
        _ => {}
    }
}

/// Properties an object may have beyond those it lists.
fn others(schema: &Value, path: Option<&[String]>, found: &mut BTreeSet<Option<Known>>) {
    match schema.get("additionalProperties") {
        Some(Value::Bool(false)) => {}
        Some(more @ Value::Object(_)) => walk_schema(more, path, found),
        _ => drop(found.insert(None)),
    }
}

/// The arguments of the first level, as paths, for suggestions.
fn first_names(schema: &Value, names: &mut BTreeSet<String>) {
    if let Some(Value::Object(properties)) = schema.get("properties") {
        names.extend(properties.keys().map(|name| format!("/{name}")));
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::{PolicyBundle, PolicySet};

    const AGENTS: &str = "[[agent]]\nname = \"planner\"\nowner = \"support\"\ndelegates_to = [\"mailer\"]\n[[agent]]\nname = \"mailer\"\nowner = \"support\"\n";
    const ROLES: &str = "[[role]]\nname = \"analyst\"\n[[role.task]]\nkind = \"reply\"\nagents = [\"planner\"]\nrights = [\"tool.pay:wire\"]\n";
    const PAY: &str = "resource = \"tool.pay\"\n[[action]]\nname = \"wire\"\neffect = \"egress\"\nreturns = { tags = [], integrity = \"trusted\" }\nscales = { \"/amount\" = 2 }\nschema = { type = \"object\", properties = { payee = { type = \"string\" }, amount = { type = \"number\" }, to = { type = \"array\", items = { type = \"string\" } }, urgent = { type = \"boolean\" } } }\n";

    fn findings(rules: &str) -> Vec<String> {
        let text = format!("allow if request(\"call\"), right($r, $a), resource($r), action($a);\n{rules}");
        let bundle = [
            ("a.datalog", text.as_str()),
            ("agents.toml", AGENTS),
            ("roles.toml", ROLES),
            ("tools/pay.toml", PAY),
        ];
        let bundle = bundle.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        let found = match PolicySet::load(&PolicyBundle(bundle)) {
            Ok((_, warnings)) => warnings,
            Err(findings) => findings,
        };
        found.0.iter().map(|one| format!("{} | {}", one.message, one.help.as_deref().unwrap_or(""))).collect()
    }

    #[test]
    fn rules_that_can_fire_are_left_alone() {
        for rules in [
            "deny if resource(\"tool.pay\"), arg(\"/amount\", $a), $a > 100000;",
            "deny if resource($r), $r === \"tool.pay\", arg(\"/amount\", $a), $a >= 1, $a <= 1;",
            "deny if resource(\"tool.pay\"), arg(\"/to/0\", $a), $a.ends_with(\"@example.net\");",
            "deny if resource(\"tool.pay\"), arg(\"/urgent\", $a), $a === true;",
            "deny if resource(\"agent.mailer\"), arg(\"/input/x\", $a), caller(\"planner\");",
            "deny if role(\"analyst\"), task_kind(\"reply\");",
            "own($a) <- caller($a), depth($n), $n > 2; deny if request(\"call\"), own($a);",
            "own(\"x\"); deny if caller($c), own($c);",
            "a($x) <- caller($x); a($x) <- b($x); b($x) <- a($x); deny if a($x), depth(1);",
            "may_delegate($a, $b) <- delegates($a, $b); deny if may_delegate(\"planner\", \"mailer\"), operator($o);",
            "deny if effect(\"shared\"), integrity(\"untrusted\"); deny if action(\"revoke\"), operator(\"bob\");",
            "deny if right(\"tool.pay\", \"wire\"), time($t), $t > 2030-01-01T00:00:00Z;",
        ] {
            assert_eq!(findings(rules), Vec::<String>::new(), "{rules}");
        }
    }

    #[test]
    fn rules_that_never_fire_are_refused_with_the_reason() {
        for (rules, expected) in [
            (
                "deny if role(\"analyst\"), resource(\"tool.pay\");",
                "holds only in requests of kind `call`, `role(\"analyst\")` only in `issue`, `renew`",
            ),
            (
                "deny if request(\"issue\"), arg(\"/amount\", $a);",
                "`arg(\"/amount\", $a)` holds only in requests of kind `call`",
            ),
            ("deny if operator($o), caller($c);", "`caller($c)` holds only in requests of kind"),
            (
                "deny if resource(\"tool.pay\"), resource(\"agent.mailer\");",
                "there is one `resource`, and it cannot be",
            ),
            (
                "deny if caller($c), $c === \"mailer\", $c === \"planner\";",
                "`$c` cannot be \"mailer\" and \"planner\"",
            ),
            (
                "deny if resource(\"tool.pay\"), arg(\"/amount\", $a), $a > 500, $a < 100;",
                "no value of `$a` is within all its bounds",
            ),
            ("deny if depth($n), 3 < $n, $n <= 3;", "no value of `$n` is within"),
            ("deny if caller($c), false;", "never fire: `false`"),
            ("own($c) <- own($c); deny if own($c);", "no rule that can fire derives `own`"),
            ("own($c) <- role($c), depth(1); deny if own($c);", "this can never fire"),
            ("deny if may_run($a, $k);", "no rule derives `may_run`"),
            ("deny if caller($x), depth($x);", "`$x` is an integer here and a text before"),
        ] {
            let found = findings(rules);
            assert!(found.iter().any(|finding| finding.contains(expected)), "{rules}: {found:#?}");
        }
    }

    #[test]
    fn names_that_nothing_has_are_refused_with_the_nearest() {
        for (rules, expected) in [
            (
                "deny if resource(\"tool.apy\");",
                "there is no contract for `tool.apy` | did you mean `tool.pay`?",
            ),
            ("deny if resource(\"pay\");", "`pay` is no resource | resources are"),
            (
                "deny if resource(\"tool.pay\"), action(\"wier\");",
                "tool.pay has no action `wier` | did you mean `wire`?",
            ),
            ("deny if action(\"raed\");", "has no action `raed` |"),
            ("deny if caller(\"mialer\");", "there is no agent `mialer` | did you mean `mailer`?"),
            ("deny if caller($c), $c !== \"mialer\";", "there is no agent `mialer` | did you mean `mailer`?"),
            (
                "deny if caller($c), !{\"planer\"}.contains($c);",
                "there is no agent `planer` | did you mean `planner`?",
            ),
            ("deny if role(\"analist\");", "there is no role `analist` | did you mean `analyst`?"),
            ("deny if request(\"cal\");", "there is no kind of request `cal` | did you mean `call`?"),
            ("deny if effect(\"reed\");", "there is no effect `reed` | did you mean `read`?"),
            (
                "deny if owner($a, \"suport\"), caller($a);",
                "there is no team `suport` | did you mean `support`?",
            ),
            (
                "deny if resource(\"tool.pay\"), arg(\"amount\", $a), $a > 1;",
                "`amount` is no path of an argument | paths are JSON Pointers and begin with a slash: did you mean `/amount`?",
            ),
            (
                "deny if resource(\"tool.pay\"), arg(\"/amuont\", $a);",
                "has an argument at `/amuont` | did you mean `/amount`?",
            ),
            ("deny if arg(\"/to/x\", $a);", "has an argument at `/to/x`"),
            (
                "grant(\"tool.pay\", \"wires\") <- role($r);",
                "tool.pay has no action `wires` | did you mean `wire`?",
            ),
            ("own($c) <- caller($c);", "`own` is derived and no rule asks about it"),
        ] {
            let found = findings(rules);
            assert!(found.iter().any(|finding| finding.contains(expected)), "{rules}: {found:#?}");
        }
    }

    #[test]
    fn p08_an_allow_without_a_condition_is_refused_wherever_it_stands() {
        for rules in ["allow if true;", "deny if depth(1); allow if true;", "allow if depth(1) or true;"] {
            let found = findings(rules);
            assert!(
                found.iter().any(|one| one.contains("every request of every kind")),
                "{rules}: {found:#?}"
            );
        }
    }

    #[test]
    fn comparisons_that_cannot_be_evaluated_are_refused_or_warned_of() {
        for (rules, expected) in [
            ("deny if depth($n), $n === \"1\";", "compares an integer with a text"),
            (
                "deny if resource(\"tool.pay\"), arg(\"/amount\", $a), $a > \"100\";",
                "compares an integer with a text",
            ),
            (
                "deny if resource(\"tool.pay\"), arg(\"/payee\", $a), $a === 7;",
                "compares a text with an integer",
            ),
            ("deny if caller($c), $c < \"m\";", "only integers and dates have an order"),
            ("deny if time($t), $t > 1700000000;", "compares a date with an integer"),
            ("deny if arg($p, $a), $a > 5;", "may be something else than an integer"),
        ] {
            let found = findings(rules);
            assert!(found.iter().any(|finding| finding.contains(expected)), "{rules}: {found:#?}");
        }
    }
}
