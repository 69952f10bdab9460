//! Team folders: what stands in `teams/<team>/` is about the team's own agents and tools, and nothing else.
//!
//! Nobody has to trust a team for that. The loader refuses a rule that mentions somebody else's agent or tool, or
//! that could hold for one; and it adds to every `allow` of a team the condition that the platform's rules derive
//! `team_may` for it. A team's faults stay its own too: each of its rules begins with one of its agents or tools, so
//! no expression of it is ever evaluated in a request of others.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Effect, Inventory, Statement, StatementNode,
    schema::{self, Provider},
};
use crate::{
    contract::ToolContract,
    datalog::{Body, Node, Predicate, Span, Term},
    diagnostic::{Diagnostic, Diagnostics, suggest},
    ids::{AgentId, Resource},
};

type Contracts = BTreeMap<Resource, ToolContract>;
type Source<'a> = (&'a str, &'a str, Vec<Statement>);

/// The team whose folder a path is in.
pub(super) fn of(path: &str) -> Option<&str> {
    let (team, _) = path.strip_prefix("teams/")?.split_once('/')?;
    Some(team)
}

/// Every team that owns something.
pub(super) fn known<'a>(inventory: &'a Inventory, contracts: &'a Contracts) -> BTreeSet<&'a str> {
    let owners = inventory.agents.values().map(|entry| entry.owner.as_str());
    let owners = owners.chain(contracts.values().map(|contract| contract.owner.as_str()));
    owners.filter(|owner| !owner.is_empty()).collect()
}

/// Who owns which tool.
pub(super) fn facts(contracts: &Contracts) -> impl Iterator<Item = Predicate> + '_ {
    let owned = contracts.values().filter(|contract| !contract.owner.is_empty());
    owned.map(|contract| {
        Predicate::new("tool_owner", [Term::str(contract.resource.as_str()), Term::str(&contract.owner)])
    })
}

/// Agents and roles are the platform's to name: whoever could own an agent by a file of their own would own all.
pub(super) fn no_inventory(path: &str) -> Diagnostic {
    Diagnostic::in_file(path, "a team's folder has no inventory").help(
        "agents and roles stand in agents.toml and roles.toml of the platform, agents with their `owner`",
    )
}

pub(super) fn check_contract(path: &str, team: &str, contract: &ToolContract) -> Option<Diagnostic> {
    (contract.owner != team).then(|| {
        let message =
            format!("`{}` stands in the folder of team `{team}` and is not its own", contract.resource);
        Diagnostic::in_file(path, message).help(format!("write `owner = \"{team}\"`, or move the file"))
    })
}

/// Checks every rule of a team, and caps what it allows.
pub(super) fn confine(
    sources: &mut [Source<'_>],
    inventory: &Inventory,
    contracts: &Contracts,
    findings: &mut Diagnostics,
) {
    let elsewhere = names_by_folder(sources);
    for (file, text, statements) in sources {
        let Some(team) = of(file) else { continue };
        let known = known(inventory, contracts);
        if !known.contains(team) {
            let finding =
                Diagnostic::in_file(file, format!("no agent and no tool belongs to a team `{team}`"));
            let otherwise = "a team is the `owner` of an agent in agents.toml or of a contract";
            findings.push(finding.help(suggest(team, known, otherwise)));
            continue;
        }
        let checker = Checker { file, text, team, inventory, contracts, elsewhere: &elsewhere };
        for statement in statements {
            checker.statement(statement, findings);
            if let StatementNode::Decide(Effect::Allow, bodies) = &mut statement.node
                && !crate::red::off("P08")
            {
                bodies.iter_mut().for_each(|body| cap(body, team, statement.span));
            }
        }
    }
}

/// The predicates that are derived or asked about, by team; platform files are those of no team.
fn names_by_folder(sources: &[Source<'_>]) -> BTreeMap<String, BTreeSet<Option<String>>> {
    let mut names: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
    for (file, _, statements) in sources {
        let team = of(file).map(str::to_owned);
        for statement in statements {
            let bodies = statement.bodies().iter().flat_map(|body| &body.predicates);
            let head = match &statement.node {
                StatementNode::Derive(rule) => Some(&rule.head),
                StatementNode::Decide(..) => None,
            };
            for predicate in bodies.chain(head) {
                names.entry(predicate.name.clone()).or_default().insert(team.clone());
            }
        }
    }
    names
}

/// An `allow` of a team counts only for what the platform lets the team allow.
fn cap(body: &mut Body, team: &str, span: Span) {
    let mut term_of = |name: &str| {
        let there = body.predicates.iter().find(|predicate| predicate.name == name);
        there.and_then(|predicate| predicate.terms.first().cloned()).unwrap_or_else(|| {
            // A team that uses the same name only makes its own rule narrower.
            let variable = Term::var(format!("writ_{name}"));
            body.predicates.push(Predicate { name: name.to_owned(), terms: vec![variable.clone()], span });
            variable
        })
    };
    let terms = vec![Term::str(team), term_of("resource"), term_of("action")];
    body.predicates.push(Predicate { name: "team_may".to_owned(), terms, span });
}

struct Checker<'a> {
    file: &'a str,
    text: &'a str,
    team: &'a str,
    inventory: &'a Inventory,
    contracts: &'a Contracts,
    elsewhere: &'a BTreeMap<String, BTreeSet<Option<String>>>,
}

/// What a term of a predicate names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Agent,
    Resource,
    Team,
}

fn names(predicate: &str, position: usize) -> Option<Names> {
    match (predicate, position) {
        ("agent" | "caller" | "registered" | "owner" | "may_run", 0)
        | ("delegates" | "may_delegate", _)
        | ("hop", 1 | 2)
        | ("role_runs", 1)
        | ("clearance" | "model" | "provider" | "region", 0) => Some(Names::Agent),
        ("resource" | "right" | "grant" | "tool_owner" | "may_observe" | "asked", 0)
        | ("role_right", 2)
        | ("team_may", 1) => Some(Names::Resource),
        ("owner" | "tool_owner", 1) | ("team_may", 0) => Some(Names::Team),
        _ => None,
    }
}

impl Checker<'_> {
    fn at(&self, span: Span, message: impl std::fmt::Display, help: impl std::fmt::Display) -> Diagnostic {
        Diagnostic::at(self.file, self.text, span, message).help(help)
    }

    fn statement(&self, statement: &Statement, findings: &mut Diagnostics) {
        let (what, needs_both) = match &statement.node {
            StatementNode::Decide(Effect::Allow, _) => ("an `allow`", true),
            StatementNode::Decide(Effect::Deny, _) => ("a `deny`", false),
            StatementNode::Derive(rule) => {
                findings.0.extend(self.head(&rule.head));
                self.mentions_of(&rule.head, findings);
                ("a rule", false)
            }
        };
        for body in statement.bodies() {
            self.mentions(body, findings);
            self.bound(body, what, needs_both, statement.span, findings);
        }
    }

    /// What a team derives is read by nobody else.
    fn head(&self, head: &Predicate) -> Option<Diagnostic> {
        let team = self.team;
        if schema::find(&head.name).is_some_and(|declared| declared.provider == Provider::Policy) {
            let message = format!("`{}` is reserved for the platform's rules", head.name);
            let help = format!("team `{team}` writes `allow if`, `deny if` and predicates of its own");
            return Some(self.at(head.span, message, help));
        }
        let others = self.elsewhere.get(&head.name)?.iter().any(|one| one.as_deref() != Some(team));
        others.then(|| {
            let message = format!("`{}` is used outside of the folder of team `{team}`", head.name);
            self.at(
                head.span,
                message,
                format!("a team's predicates are its own: call it `{team}_{}`", head.name),
            )
        })
    }

    fn mentions(&self, body: &Body, findings: &mut Diagnostics) {
        let mut kinds: BTreeMap<&str, Vec<Names>> = BTreeMap::new();
        for predicate in &body.predicates {
            self.mentions_of(predicate, findings);
            for (position, term) in predicate.terms.iter().enumerate() {
                if let (Term::Variable(variable), Some(kind)) = (term, names(&predicate.name, position)) {
                    kinds.entry(variable).or_default().push(kind);
                }
            }
        }
        for expression in &body.expressions {
            // Which constant is compared with which variable is not looked at: they stand in one condition.
            let (mut compared, mut constants) = (Vec::<Names>::new(), Vec::new());
            expression.walk(&mut |part| match &part.node {
                Node::Term(Term::Variable(name)) => {
                    compared.extend(kinds.get(name.as_str()).into_iter().flatten().copied());
                }
                Node::Term(Term::Str(text)) => constants.push((text, part.span)),
                Node::Term(Term::Set(items)) => {
                    constants.extend(items.iter().filter_map(|item| match item {
                        Term::Str(text) => Some((text, part.span)),
                        _ => None,
                    }));
                }
                _ => {}
            });
            for (text, span) in constants {
                findings.0.extend(compared.iter().find_map(|kind| self.foreign(*kind, text, span)));
            }
        }
    }

    fn mentions_of(&self, predicate: &Predicate, findings: &mut Diagnostics) {
        for (position, term) in predicate.terms.iter().enumerate() {
            if let (Term::Str(text), Some(kind)) = (term, names(&predicate.name, position)) {
                findings.0.extend(self.foreign(kind, text, predicate.span));
            }
        }
    }

    /// A name that is somebody else's. What nobody has is found by others.
    fn foreign(&self, kind: Names, text: &str, span: Span) -> Option<Diagnostic> {
        if crate::red::off("P08") {
            return None;
        }
        let team = self.team;
        let (what, own) = match kind {
            Names::Team if text == team => return None,
            Names::Team => ("team", vec![team.to_owned()]),
            Names::Agent => {
                let agent = AgentId::parse(text).ok()?;
                if self.inventory.agents.get(&agent)?.owner == team {
                    return None;
                }
                ("agent", self.agents().map(str::to_owned).collect())
            }
            Names::Resource => {
                let resource = Resource::parse(text).ok()?;
                if self.owns(&resource) {
                    return None;
                }
                ("resource", self.resources())
            }
        };
        let otherwise = match own.as_slice() {
            [] => format!("team `{team}` has none"),
            own => format!("team `{team}` has {}", own.join(", ")),
        };
        let message = format!("the {what} `{text}` is not of team `{team}`");
        Some(self.at(span, message, suggest(text, own.iter().map(String::as_str), &otherwise)))
    }

    fn agents(&self) -> impl Iterator<Item = &str> {
        let own = self.inventory.agents.iter().filter(|(_, entry)| entry.owner == self.team);
        own.map(|(name, _)| name.as_str())
    }

    fn resources(&self) -> Vec<String> {
        let tools = self.contracts.values().filter(|contract| contract.owner == self.team);
        let tools = tools.map(|contract| contract.resource.to_string());
        tools.chain(self.agents().map(|agent| format!("agent.{agent}"))).collect()
    }

    fn owns(&self, resource: &Resource) -> bool {
        self.resources().iter().any(|own| own == resource.as_str())
    }

    /// A rule has to begin with what is the team's, so that it cannot hold, or fail, for anybody else.
    fn bound(&self, body: &Body, what: &str, needs_both: bool, span: Span, findings: &mut Diagnostics) {
        if crate::red::off("P08") {
            return;
        }
        let is_own = |variable: &str, of: &str| {
            body.predicates.iter().any(|predicate| {
                predicate.name == of && predicate.terms == [Term::var(variable), Term::str(self.team)]
            })
        };
        let names_own = |name: &str, of: &str| {
            body.predicates.iter().filter(|predicate| predicate.name == name).any(|predicate| {
                match predicate.terms.first() {
                    // Whose it is was looked at before.
                    Some(Term::Str(_)) => true,
                    Some(Term::Variable(variable)) => is_own(variable, of),
                    _ => false,
                }
            })
        };
        let (agent, tool) = (names_own("caller", "owner"), names_own("resource", "tool_owner"));
        let team = self.team;
        let with_agent = format!("`caller(\"…\")`, or `caller($agent), owner($agent, \"{team}\")`");
        let with_tool =
            format!("`resource(\"tool.…\")`, or `resource($tool), tool_owner($tool, \"{team}\")`");
        match (needs_both, agent, tool) {
            (true, false, _) => findings.push(self.at(
                span,
                format!("{what} of team `{team}` does not say for which of its agents"),
                format!("add {with_agent}"),
            )),
            (true, true, false) => findings.push(self.at(
                span,
                format!("{what} of team `{team}` does not say on which of its tools"),
                format!("add {with_tool}"),
            )),
            (false, false, false) => findings.push(self.at(
                span,
                format!("{what} of team `{team}` is about everybody's requests"),
                format!("add {with_agent}, or {with_tool}"),
            )),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PolicyBundle, PolicySet};

    const AGENTS: &str = "[[agent]]\nname = \"seller\"\nowner = \"sales\"\n[[agent]]\nname = \"helper\"\nowner = \"support\"\n";
    const BASE: &str = "allow if request(\"issue\");\n\
        team_may(\"sales\", $r, \"read\") <- resource($r), tool_owner($r, \"sales\");\n\
        platform_own($a) <- caller($a);\ndeny if platform_own($a), $a === \"x\";\n";

    fn contract(tool: &str, owner: &str) -> String {
        format!(
            "resource = \"{tool}\"\nowner = \"{owner}\"\n[[action]]\nname = \"read\"\neffect = \"read\"\nreturns = {{ tags = [], integrity = \"trusted\" }}\nschema = {{ type = \"object\" }}\n"
        )
    }

    fn faults(team: &str, rules: &str) -> Vec<String> {
        let files = [
            ("base.datalog".to_owned(), BASE.to_owned()),
            ("agents.toml".to_owned(), AGENTS.to_owned()),
            ("tools/crm.toml".to_owned(), contract("tool.crm", "sales")),
            ("tools/mail.toml".to_owned(), contract("tool.mail", "support")),
            (format!("teams/{team}/rules.datalog"), rules.to_owned()),
        ];
        match PolicySet::load(&PolicyBundle(files.into())) {
            Ok(_) => Vec::new(),
            Err(findings) => findings.0.iter().map(super::Diagnostic::in_one_line).collect(),
        }
    }

    #[test]
    fn a_team_allows_what_is_its_own() {
        for rules in [
            "allow if caller(\"seller\"), resource(\"tool.crm\"), action(\"read\");",
            "allow if caller($a), owner($a, \"sales\"), resource($t), tool_owner($t, \"sales\");",
            "deny if resource(\"tool.crm\"), caller($a), $a !== \"seller\";",
            "deny if caller(\"seller\"), hour($h), $h < 8;",
            "sales_hour($h) <- resource(\"tool.crm\"), hour($h);\ndeny if resource(\"tool.crm\"), sales_hour($h), $h < 8;",
        ] {
            assert_eq!(faults("sales", rules), Vec::<String>::new(), "{rules}");
        }
    }

    #[test]
    fn p08_a_team_is_confined_to_its_own_with_place_and_way_out() {
        for (rules, expected) in [
            (
                "allow if caller(\"helper\"), resource(\"tool.crm\");",
                "teams/sales/rules.datalog:1:10: the agent `helper` is not of team `sales` (did you mean `seller`?)",
            ),
            (
                "allow if caller(\"seller\"), resource(\"tool.mail\");",
                "teams/sales/rules.datalog:1:28: the resource `tool.mail` is not of team `sales` (team `sales` has tool.crm, agent.seller)",
            ),
            ("allow if resource(\"tool.crm\");", "does not say for which of its agents"),
            ("allow if caller(\"seller\"), request(\"call\");", "does not say on which of its tools"),
            ("deny if request(\"call\");", "is about everybody's requests"),
            (
                "late(1) <- hour($h), $h * 9 > 1;\ndeny if resource(\"tool.crm\"), late(1);",
                "is about everybody's requests",
            ),
            (
                "deny if resource(\"tool.crm\"), caller($a), {\"seller\", \"helper\"}.contains($a);",
                "the agent `helper` is not of team",
            ),
            (
                "deny if caller($a), owner($a, \"support\"), resource(\"tool.crm\");",
                "the team `support` is not of team `sales`",
            ),
            ("deny if caller($a), owner($b, \"sales\"), hour($h);", "is about everybody's requests"),
            (
                "grant(\"tool.crm\", \"read\") <- caller(\"seller\");",
                "`grant` is reserved for the platform's rules",
            ),
            ("team_may(\"sales\", \"tool.crm\", \"read\") <- caller(\"seller\");", "`team_may` is reserved"),
            (
                "platform_own($a) <- caller($a), owner($a, \"sales\");",
                "`platform_own` is used outside of the folder of team `sales`",
            ),
        ] {
            let found = faults("sales", rules);
            assert!(found.iter().any(|one| one.contains(expected)), "{rules}: {found:?}");
        }
        let found = faults("salse", "deny if resource(\"tool.crm\");");
        assert!(found[0].contains("did you mean `sales`?"), "{found:?}");
    }

    #[test]
    fn p08_a_team_brings_neither_agents_nor_foreign_contracts() {
        let files = |path: &str, text: String| {
            let files = [
                ("base.datalog", BASE.split("platform_own").next().unwrap_or_default().to_owned()),
                ("agents.toml", AGENTS.to_owned()),
                (path, text),
            ];
            PolicyBundle(files.into_iter().map(|(path, text)| (path.to_owned(), text)).collect())
        };
        let found =
            PolicySet::load(&files("teams/sales/agents.toml", AGENTS.to_owned())).unwrap_err().to_string();
        assert!(
            found.contains("teams/sales/agents.toml: error: a team's folder has no inventory"),
            "{found}"
        );
        let found = PolicySet::load(&files("teams/sales/tools/mail.toml", contract("tool.mail", "support")))
            .unwrap_err();
        assert!(found.to_string().contains("is not its own"), "{found}");
        assert!(PolicySet::load(&files("teams/sales/tools/crm.toml", contract("tool.crm", "sales"))).is_ok());
    }
}
