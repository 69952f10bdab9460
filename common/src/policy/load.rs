//! From files to a policy set: every check, every finding, or nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BUNDLE_BYTES_MAX, Effect, Inventory, PolicyBundle, PolicySet, RuleInfo, SourceRule, Statement,
    StatementNode,
    analyse::analyse,
    inventory::ApproverEntry,
    parse,
    schema::{self, Provider, SCHEMA},
    teams,
};
use crate::{
    approval::APPROVERS_MAX,
    capability::engine::Program,
    contract::{Effect as ToolEffect, ToolContract},
    datalog::{Body, Expression, Node, Predicate, Rule, Term},
    diagnostic::{Diagnostic, Diagnostics, suggest},
    ids::{Resource, RoleId},
};

/// The derived facts a verdict is read from; their only term is a position in [`PolicySet::rules`].
pub(crate) const ALLOW: &str = "writ_allow";
pub(crate) const DENY: &str = "writ_deny";

impl PolicySet {
    /// Checks and compiles a bundle.
    ///
    /// # Errors
    /// Every finding in every file, if any of them is an error. Warnings come back with the set.
    pub fn load(bundle: &PolicyBundle) -> Result<(Self, Diagnostics), Diagnostics> {
        let mut findings = Diagnostics::default();
        let size: usize = bundle.0.iter().map(|(path, text)| path.len() + text.len()).sum();
        if size > BUNDLE_BYTES_MAX {
            let message = format!("the policy has {size} bytes, more than {BUNDLE_BYTES_MAX}");
            let help =
                "one policy has to fit into one message of the bus; take out what is no longer asked about";
            findings.push(Diagnostic::in_file("policies", message).help(help));
            return Err(findings);
        }
        let mut inventory = Inventory::default();
        let mut contracts = BTreeMap::new();
        let mut sources: Vec<(&str, &str, Vec<Statement>)> = Vec::new();
        for (path, text) in &bundle.0 {
            let team = teams::of(path);
            match kind_of(path) {
                Kind::Agents | Kind::Approvers | Kind::Directories | Kind::Roles if team.is_some() => {
                    findings.push(teams::no_inventory(path));
                }
                Kind::Rules => {
                    let (statements, found) = parse(path, text);
                    findings.0.extend(found.0);
                    sources.push((path, text, statements));
                }
                Kind::Approvers => inventory.read_approvers(path, text, &mut findings),
                Kind::Directories => inventory.read_directories(path, text, &mut findings),
                Kind::Agents => inventory.read_agents(path, text, &mut findings),
                Kind::Roles => inventory.read_roles(path, text, &mut findings),
                Kind::Contract => {
                    if let Some(contract) = ToolContract::read(path, text, &mut findings) {
                        findings.0.extend(team.and_then(|team| teams::check_contract(path, team, &contract)));
                        let resource = contract.resource.clone();
                        if contracts.insert(resource.clone(), contract).is_some() {
                            let message = format!("`{resource}` has a contract already");
                            findings.push(Diagnostic::in_file(path, message));
                        }
                    }
                }
                Kind::Unknown => {
                    findings.push(Diagnostic::in_file(path, "this file is of no known kind").help(
                        "rules end in .datalog; the inventory is agents.toml, approvers.toml, directories.toml and roles.toml; contracts are tools/*.toml",
                    ));
                }
            }
        }
        check_stores(&contracts, bundle, &mut findings);
        if !crate::red::off("M02") {
            findings.0.extend(crate::mcp::look_alikes(&contracts));
        }
        check_delegations(&inventory, bundle, &mut findings);
        check_approvals(&inventory, &sources, &mut findings);
        let own = own_predicates(&sources, &mut findings);
        for (file, text, statements) in &sources {
            let checker = Checker { file, text, own: &own };
            statements.iter().for_each(|statement| checker.check(statement, &mut findings));
        }
        if !findings.has_errors() {
            teams::confine(&mut sources, &inventory, &contracts, &mut findings);
        }
        // What does not parse or type cannot be understood any further.
        if !findings.has_errors() {
            analyse(&sources, &inventory, &contracts, &mut findings);
        }
        if !sources.iter().any(|(.., statements)| statements.iter().any(allows)) && !findings.has_errors() {
            findings.push(
                Diagnostic::in_file("policies", "no rule allows anything")
                    .help("an empty policy denies every request; begin with policies/base.datalog"),
            );
        }
        let derives = |name: &str| {
            let derived = |statement: &Statement| matches!(&statement.node, StatementNode::Derive(rule) if rule.head.name == name);
            sources.iter().any(|(.., statements)| statements.iter().any(derived))
        };
        if !derives("may_observe") {
            findings.0.extend(super::observe::without_permission(&inventory, &contracts));
        }
        if findings.has_errors() {
            return Err(findings);
        }
        let (sources, infos) = compile(&sources);
        let mut inventory_facts = inventory.facts();
        inventory_facts.extend(teams::facts(&contracts));
        let rules: Vec<Rule> = sources.iter().map(|source| source.rule.clone()).collect();
        let set = Self {
            revision: bundle.revision(),
            program: Program::compile(&rules, &inventory_facts),
            sources,
            rules: infos,
            inventory_facts,
            inventory,
            contracts,
        };
        Ok((set, findings))
    }
}

enum Kind {
    Agents,
    Approvers,
    Contract,
    Directories,
    Roles,
    Rules,
    Unknown,
}

fn kind_of(path: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name {
        _ if path.split('/').rev().nth(1) == Some("tools") && name.ends_with(".toml") => Kind::Contract,
        "agents.toml" => Kind::Agents,
        "approvers.toml" => Kind::Approvers,
        "directories.toml" => Kind::Directories,
        "roles.toml" => Kind::Roles,
        _ if name.ends_with(".datalog") => Kind::Rules,
        _ => Kind::Unknown,
    }
}

fn allows(statement: &Statement) -> bool {
    matches!(statement.node, StatementNode::Decide(Effect::Allow, _))
}

/// Data written into a tool and read back must not come out with fewer tags, or any agent could wash it.
fn check_stores(
    contracts: &BTreeMap<Resource, ToolContract>,
    bundle: &PolicyBundle,
    findings: &mut Diagnostics,
) {
    for (resource, contract) in contracts {
        let of = |wanted: &[ToolEffect]| {
            contract.actions.iter().filter(|(_, action)| wanted.contains(&action.effect)).collect::<Vec<_>>()
        };
        for (write, taking) in of(&[ToolEffect::Internal, ToolEffect::Shared]) {
            for (read, giving) in of(&[ToolEffect::Read]) {
                if taking.flow.accepts.flows_to(&giving.flow.returns.confidentiality) {
                    continue;
                }
                let named = |path: &&String| path.ends_with(&format!("{}.toml", resource.name()));
                let file = bundle.0.keys().find(named).map_or("tools", String::as_str);
                let takes = taking.flow.accepts.names().join(", ");
                let message = format!(
                    "`{resource}:{write}` takes data with the tags {takes}, and `{resource}:{read}` gives it back without them"
                );
                let help = format!("let `{write}` say what it `accepts`, or `{read}` what its results carry");
                findings.push(Diagnostic::in_file(file, message).help(help).warning());
            }
        }
    }
}

/// A name in `delegates_to` that no agent has is a typing error that would only show as a denial.
fn check_delegations(inventory: &Inventory, bundle: &PolicyBundle, findings: &mut Diagnostics) {
    let names: BTreeSet<&str> = inventory.agents.keys().map(crate::ids::AgentId::as_str).collect();
    let file =
        bundle.0.keys().find(|path| path.ends_with("agents.toml")).map_or("agents.toml", String::as_str);
    for (agent, entry) in &inventory.agents {
        for to in entry.delegates_to.iter().filter(|to| !names.contains(to.as_str())) {
            let finding =
                Diagnostic::in_file(file, format!("`{agent}` delegates to `{to}`, which is no agent here"));
            let otherwise = format!("add an `[[agent]]` named `{to}`");
            findings.push(finding.help(suggest(to.as_str(), names.iter().copied(), &otherwise)));
        }
    }
}

/// Approvals nobody can give would hold a call until it ends.
fn check_approvals(
    inventory: &Inventory,
    sources: &[(&str, &str, Vec<Statement>)],
    findings: &mut Diagnostics,
) {
    for (file, text, statements) in sources {
        for statement in statements {
            let StatementNode::Derive(Rule { head, .. }) = &statement.node else { continue };
            let (
                ("needs_approval" | "source_approval", [Term::Str(role), count])
                | ("may_request", [_, _, Term::Str(role), count]),
            ) = ((head.name.as_str(), head.terms.as_slice()),)
            else {
                continue;
            };
            let has = |entry: &&ApproverEntry| entry.roles.iter().any(|has| has.as_str() == role.as_str());
            let people = inventory.approvers.values().filter(has).count();
            let wanted = match count {
                Term::Integer(count) => *count,
                _ => 1,
            };
            let span = head.span;
            let wrong = !(1..=i64::from(APPROVERS_MAX)).contains(&wanted);
            if wrong {
                let message = format!("{wanted} approvals are asked for, and 1 to {APPROVERS_MAX} can be");
                findings.push(Diagnostic::at(file, text, span, message));
            } else if people == 0 {
                let roles = inventory.approvers.values().flat_map(|entry| &entry.roles);
                let help = suggest(
                    role.as_str(),
                    roles.map(RoleId::as_str),
                    &format!("give somebody in approvers.toml the role `{role}`"),
                );
                let message = format!("no approver has the role `{role}`");
                findings.push(Diagnostic::at(file, text, span, message).help(help));
            } else if usize::try_from(wanted).is_ok_and(|wanted| wanted > people) {
                let message =
                    format!("{wanted} approvals by `{role}` are asked for, and {people} can give one");
                let help = format!("give more people in approvers.toml the role `{role}`");
                findings.push(Diagnostic::at(file, text, span, message).help(help));
            }
        }
    }
}

/// Predicates the policy derives for its own use, with their arity.
fn own_predicates(
    sources: &[(&str, &str, Vec<Statement>)],
    findings: &mut Diagnostics,
) -> BTreeMap<String, usize> {
    let mut own = BTreeMap::new();
    for (file, text, statements) in sources {
        for statement in statements {
            let StatementNode::Derive(Rule { head, .. }) = &statement.node else { continue };
            if head.name.starts_with("writ_") {
                let message = format!("`{}` begins with `writ_`, which is reserved", head.name);
                findings.push(Diagnostic::at(file, text, head.span, message));
            }
            match schema::find(&head.name) {
                Some(declared) if declared.provider != Provider::Policy => {
                    let message = format!(
                        "`{}` is stated by the {}, not derived by rules",
                        head.name,
                        declared.provider.as_str()
                    );
                    let finding = Diagnostic::at(file, text, head.span, message);
                    findings.push(finding.help("choose another name for your own predicate"));
                }
                Some(_) => {}
                None => {
                    let arity = *own.entry(head.name.clone()).or_insert(head.terms.len());
                    if arity != head.terms.len() {
                        let message = format!(
                            "`{}` is derived with {} terms here and with {arity} first",
                            head.name,
                            head.terms.len()
                        );
                        findings.push(Diagnostic::at(file, text, head.span, message));
                    }
                }
            }
        }
    }
    own
}

struct Checker<'a> {
    file: &'a str,
    text: &'a str,
    own: &'a BTreeMap<String, usize>,
}

impl Checker<'_> {
    fn at(&self, span: crate::datalog::Span, message: impl std::fmt::Display) -> Diagnostic {
        Diagnostic::at(self.file, self.text, span, message)
    }

    fn check(&self, statement: &Statement, findings: &mut Diagnostics) {
        match &statement.node {
            StatementNode::Decide(_, bodies) => bodies.iter().for_each(|body| self.body(body, findings)),
            StatementNode::Derive(rule) => {
                // The arity of the policy's own predicates was compared when they were collected.
                if schema::find(&rule.head.name).is_some() {
                    self.types(&rule.head, findings);
                }
                self.body(&rule.body, findings);
                let bound = bound_variables(&rule.body);
                for term in &rule.head.terms {
                    if let Term::Variable(name) = term
                        && !bound.contains(name.as_str())
                    {
                        let message = format!("`${name}` is not bound by any predicate of the body");
                        findings.push(
                            self.at(rule.head.span, message)
                                .help(format!("add a predicate that holds `${name}` after `<-`")),
                        );
                    }
                }
            }
        }
    }

    fn body(&self, body: &Body, findings: &mut Diagnostics) {
        body.predicates.iter().for_each(|predicate| self.types(predicate, findings));
        let bound = bound_variables(body);
        for expression in &body.expressions {
            expression.walk(&mut |part: &Expression| {
                if let Node::Term(Term::Variable(name)) = &part.node
                    && !bound.contains(name.as_str())
                {
                    let message = format!("`${name}` is not bound by any predicate of the body");
                    findings.push(self.at(part.span, message));
                }
            });
        }
    }

    fn types(&self, predicate: &Predicate, findings: &mut Diagnostics) {
        let Predicate { name, terms, span } = predicate;
        let Some(declared) = schema::find(name) else {
            match self.own.get(name) {
                Some(arity) if *arity != terms.len() => {
                    let message =
                        format!("`{name}` is used with {} terms and derived with {arity}", terms.len());
                    findings.push(self.at(*span, message));
                }
                Some(_) => {}
                None if crate::red::off("P07") => {}
                None => {
                    let known = SCHEMA.iter().map(|declared| declared.name);
                    let known = known.chain(self.own.keys().map(String::as_str));
                    let finding = self.at(*span, format!("there is no predicate `{name}`"));
                    let otherwise =
                        "policies/README.md lists every predicate; your own need a rule that derives them";
                    findings.push(finding.help(suggest(name, known, otherwise)));
                }
            }
            return;
        };
        let shape = || format!("it is {}", declared.shape());
        if declared.terms.len() != terms.len() {
            let message = format!("`{name}` has {} terms, not {}", declared.terms.len(), terms.len());
            findings.push(self.at(*span, message).help(shape()));
            return;
        }
        for ((term_name, kind), term) in declared.terms.iter().zip(terms) {
            if !kind.admits(term) {
                let message = format!("`{term_name}` of `{name}` is a {}, not `{term}`", kind.as_str());
                findings.push(self.at(*span, message).help(shape()));
            }
        }
    }
}

fn bound_variables(body: &Body) -> BTreeSet<&str> {
    body.predicates
        .iter()
        .flat_map(|predicate| &predicate.terms)
        .filter_map(|term| if let Term::Variable(name) = term { Some(name.as_str()) } else { None })
        .collect()
}

/// Turns deciding rules into rules that derive their own position, so that one evaluation finds all that fire.
/// What denies for a tag denies as well where nobody knows which tags there are: a label at `top` may hold any. The same
/// body with `top` in the place of tags; `None` if it names none.
fn at_top(body: &Body) -> Option<Body> {
    let is_tag = |term: &Term| matches!(term, Term::Str(tag) if !matches!(tag.as_str(), "public" | "top"));
    let mut unknown = body.clone();
    let mut names_some = false;
    for predicate in &mut unknown.predicates {
        if predicate.name == "label" && predicate.terms.iter().any(is_tag) {
            predicate.terms = vec![Term::str("top")];
            names_some = true;
        }
    }
    names_some.then_some(unknown)
}

fn compile(sources: &[(&str, &str, Vec<Statement>)]) -> (Vec<SourceRule>, Vec<RuleInfo>) {
    let (mut rules, mut infos) = (Vec::new(), Vec::new());
    for (file, text, statements) in sources {
        for statement in statements {
            let info = RuleInfo {
                file: (*file).to_owned(),
                line: Diagnostic::at(file, text, statement.span, "").line,
                effect: Effect::Allow,
                message: statement.message.clone(),
                text: text.get(statement.span.start..statement.span.end).unwrap_or("").to_owned(),
            };
            match &statement.node {
                StatementNode::Derive(rule) => {
                    rules.push(SourceRule {
                        rule: rule.clone(),
                        place: info.place(),
                        decides: None,
                        text: info.text,
                    });
                }
                StatementNode::Decide(effect, bodies) => {
                    let position = Term::Integer(i64::try_from(infos.len()).unwrap_or(i64::MAX));
                    let name = if *effect == Effect::Allow { ALLOW } else { DENY };
                    let unknown = bodies.iter().filter(|_| *effect == Effect::Deny).filter_map(at_top);
                    rules.extend(bodies.iter().cloned().chain(unknown).map(|body| SourceRule {
                        rule: Rule { head: Predicate::new(name, [position.clone()]), body },
                        place: info.place(),
                        decides: Some(infos.len()),
                        text: info.text.clone(),
                    }));
                    infos.push(RuleInfo { effect: *effect, ..info });
                }
            }
        }
    }
    (rules, infos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<(PolicySet, Diagnostics), Diagnostics> {
        let bundle = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        PolicySet::load(&PolicyBundle(bundle))
    }

    fn faults(rules: &str) -> Vec<String> {
        let text = format!("allow if request(\"call\");\n{rules}");
        match load(&[("a.datalog", &text)]) {
            Ok(_) => Vec::new(),
            Err(findings) => findings
                .0
                .iter()
                .map(|f| {
                    format!("{}:{} {} | {}", f.line, f.column, f.message, f.help.as_deref().unwrap_or(""))
                })
                .collect(),
        }
    }

    #[test]
    fn an_empty_policy_is_an_error() {
        assert!(load(&[]).is_err());
        assert!(load(&[("a.datalog", "deny if request(\"call\");")]).is_err());
        assert!(load(&[("a.datalog", "allow if request(\"call\");")]).is_ok());
    }

    #[test]
    fn p07_mistakes_are_named_with_their_place_and_a_way_out() {
        for (rules, expected) in [
            ("deny if resuorce(\"x\");", "2:9 there is no predicate `resuorce` | did you mean `resource`?"),
            (
                "deny if right(\"x\");",
                "2:9 `right` has 2 terms, not 1 | it is `right(resource: text, action: text)`",
            ),
            (
                "deny if time(\"noon\");",
                "2:9 `now` of `time` is a date, not `\"noon\"` | it is `time(now: date)`",
            ),
            (
                "grant($r, \"read\") <- resource($x);",
                "2:1 `$r` is not bound by any predicate of the body | add a predicate that holds `$r` after `<-`",
            ),
            ("deny if resource($r), $s === \"x\";", "2:23 `$s` is not bound by any predicate of the body | "),
            (
                "right(\"a\", \"b\") <- resource($x);",
                "2:1 `right` is stated by the capability, not derived by rules | choose another name for your own predicate",
            ),
            ("writ_allow(0) <- resource($x);", "2:1 `writ_allow` begins with `writ_`, which is reserved | "),
        ] {
            assert_eq!(faults(rules), [expected], "{rules}");
        }
        assert_eq!(faults("own(1) <- resource($x);\nown(1, 2) <- resource($x);\ndeny if own($a);").len(), 1);
    }

    #[test]
    fn files_of_no_known_kind_are_refused() {
        let findings = load(&[("a.datalog", "allow if request(\"call\");"), ("b.datalogg", "")]).unwrap_err();
        assert!(findings.to_string().contains("b.datalogg: error: this file is of no known kind"));
    }

    #[test]
    fn a_delegate_that_is_no_agent_is_found() {
        let agents = "[[agent]]\nname = \"planner\"\ndelegates_to = [\"reseacher\"]\n[[agent]]\nname = \"researcher\"\n";
        let findings =
            load(&[("a.datalog", "allow if request(\"call\");"), ("agents.toml", agents)]).unwrap_err();
        assert!(findings.to_string().contains("did you mean `researcher`?"), "{findings}");
    }

    #[test]
    fn the_revision_names_the_content() {
        let bundle = |text: &str| PolicyBundle([("a.datalog".to_owned(), text.to_owned())].into());
        assert_eq!(bundle("x").revision(), bundle("x").revision());
        assert_ne!(bundle("x").revision(), bundle("y").revision());
    }
}
