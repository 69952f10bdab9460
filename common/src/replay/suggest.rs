//! A policy under which what was done could have been done, and little else: a place to begin, not an answer.
//!
//! It is made from records of allowed calls. Records hold no arguments, so contracts come out as stubs that take any;
//! whoever takes the suggestion closes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{Answer, History, Past};
use crate::{
    capability::Right,
    cases::{Case, without_case},
    datalog::{Body, Predicate, Term},
    ids::{AgentId, Resource, ResourceKind, RoleId, TaskKind},
    label::{Confidentiality, Integrity, Tag},
    policy::{PolicyBundle, PolicySet, format::format},
    time::Millis,
};

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// The files of a policy folder, by path.
    pub files: BTreeMap<String, String>,
    /// Calls it was made from.
    pub calls: u64,
    /// Decisions it was not made from, by why.
    pub left_out: BTreeMap<String, u64>,
    /// What whoever takes it has to look at.
    pub notes: BTreeSet<String>,
}

/// The name of an operator in the case about one.
const OPERATOR: &str = "operator";

/// What a user may have done, as seen.
#[derive(Default)]
struct Task {
    agents: BTreeSet<AgentId>,
    rights: BTreeSet<Right>,
    task_life: Millis,
    capability_life: Millis,
}

/// Calls that are one case.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    role: RoleId,
    kind: TaskKind,
    chain: Vec<AgentId>,
    right: Right,
    tags: BTreeSet<Tag>,
    is_untrusted: bool,
}

#[derive(Default)]
struct Seen {
    agents: BTreeSet<AgentId>,
    delegates: BTreeSet<(AgentId, AgentId)>,
    tasks: BTreeMap<(RoleId, TaskKind), Task>,
    calls: BTreeMap<Call, u64>,
    depth: usize,
}

/// Suggests a policy. `leave_out` says why a decision should not count, beyond what its record says; `known` is the
/// policy in force, for what records do not hold: owners, descriptions, effects.
#[must_use]
pub fn suggest(
    history: &History<'_>,
    known: Option<&PolicySet>,
    leave_out: &dyn Fn(&Past<'_>) -> Option<String>,
) -> Suggestion {
    let mut suggestion = Suggestion::default();
    let mut seen = Seen::default();
    for past in history.decisions() {
        let is_call = past
            .verdicted
            .what
            .resource
            .as_ref()
            .is_none_or(|resource| resource.kind() != ResourceKind::Task);
        // Starts count through the calls under them.
        if past.verdicted.who.operator.is_some() || (!is_call && past.decision() == Answer::Allow) {
            continue;
        }
        match leave_out(&past).map_or_else(|| seen.take(&past, &mut suggestion.notes), Err) {
            Ok(()) => suggestion.calls += past.verdicted.count,
            Err(why) => *suggestion.left_out.entry(why).or_default() += past.verdicted.count,
        }
    }
    if suggestion.calls > 0 {
        suggestion.files = seen.files(known, &mut suggestion.notes);
    }
    suggestion
}

impl Seen {
    fn take(&mut self, past: &Past<'_>, notes: &mut BTreeSet<String>) -> Result<(), String> {
        let (who, what) = (&past.verdicted.who, &past.verdicted.what);
        if past.decision() != Answer::Allow {
            let codes: BTreeSet<&str> =
                past.verdicted.reasons.iter().map(|reason| reason.code.as_str()).collect();
            return Err(format!("denied: {}", codes.into_iter().collect::<Vec<_>>().join(", ")));
        }
        let granted = past.granted.ok_or("the start of its task is not on record")?;
        let roles = past.roles();
        let [role, others @ ..] = roles.as_slice() else { return Err("its user had no role".to_owned()) };
        if !others.is_empty() {
            notes.insert(format!(
                "a user had several roles ({}); `{role}` was taken for what they had done",
                roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ));
        }
        let label = past.verdicted.basis.label.as_ref().ok_or("its task label is not on record")?;
        let Confidentiality::Tags(tags) = &label.confidentiality else {
            return Err("its task label was unknown".to_owned());
        };
        let (Some(origin), Some(resource), Some(action)) = (&who.agent, &what.resource, &what.action) else {
            return Err("its record does not say who did what".to_owned());
        };
        let chain: Vec<AgentId> =
            std::iter::once(origin).chain(who.hops.iter().map(|hop| &hop.to)).cloned().collect();
        let right = Right { resource: resource.clone(), action: action.clone() };
        let called = match resource.kind() {
            ResourceKind::Agent => Some(AgentId::parse(resource.name()).map_err(|error| error.to_string())?),
            _ => None,
        };
        self.agents.extend(chain.iter().chain(&called).cloned());
        self.delegates.extend(who.hops.iter().map(|hop| (hop.from.clone(), hop.to.clone())));
        self.depth = self.depth.max(who.hops.len() + usize::from(called.is_some()));
        self.delegates.extend(chain.last().cloned().zip(called));
        let task = self.tasks.entry((role.clone(), granted.kind.clone())).or_default();
        task.agents.insert(origin.clone());
        task.rights.insert(right.clone());
        // What was left of each at the first call under it is less than what it was given; seconds are rounded up.
        task.task_life = task.task_life.max(granted.deadline.since(past.record.at));
        task.capability_life = task.capability_life.max(granted.expires.since(past.record.at));
        let call = Call {
            role: role.clone(),
            kind: granted.kind.clone(),
            chain,
            right,
            tags: tags.clone(),
            is_untrusted: label.integrity == Integrity::Untrusted,
        };
        *self.calls.entry(call).or_default() += past.verdicted.count;
        Ok(())
    }

    fn files(&self, known: Option<&PolicySet>, notes: &mut BTreeSet<String>) -> BTreeMap<String, String> {
        let mut files = BTreeMap::from([
            ("agents.toml".to_owned(), self.agents_file(known, notes)),
            ("roles.toml".to_owned(), self.roles_file()),
            ("base.datalog".to_owned(), self.base_file()),
            ("calls.datalog".to_owned(), self.calls_file()),
            ("cases.yaml".to_owned(), self.cases_file()),
        ]);
        let mut tools: BTreeMap<&Resource, BTreeSet<&Right>> = BTreeMap::new();
        for call in self.calls.keys().filter(|call| call.right.resource.kind() == ResourceKind::Tool) {
            tools.entry(&call.right.resource).or_default().insert(&call.right);
        }
        for (resource, rights) in tools {
            files.insert(
                format!("tools/{}.toml", resource.name()),
                contract_file(resource, &rights, known, notes),
            );
        }
        files
    }

    fn agents_file(&self, known: Option<&PolicySet>, notes: &mut BTreeSet<String>) -> String {
        let mut text = "# The agents that were seen at work, and whom each handed something to.\n".to_owned();
        for agent in &self.agents {
            let entry = known.and_then(|policy| policy.inventory().agents.get(agent));
            let _ = write!(text, "\n[[agent]]\nname = {}\n", quoted(agent.as_str()));
            match entry {
                Some(entry) => {
                    let (owner, description) = (quoted(&entry.owner), quoted(&entry.description));
                    let _ = write!(text, "owner = {owner}\ndescription = {description}\n");
                }
                None => {
                    notes.insert(format!("agents.toml: say who owns `{agent}`"));
                }
            }
            let to = self.delegates.iter().filter(|(from, _)| from == agent).map(|(_, to)| to.as_str());
            let to: Vec<String> = to.map(quoted).collect();
            if !to.is_empty() {
                let _ = writeln!(text, "delegates_to = [{}]", to.join(", "));
            }
        }
        text
    }

    fn roles_file(&self) -> String {
        let mut text = "# What users with each role had done.\n".to_owned();
        let roles: BTreeSet<&RoleId> = self.tasks.keys().map(|(role, _)| role).collect();
        for role in roles {
            let _ = write!(text, "\n[[role]]\nname = {}\n", quoted(role.as_str()));
            for ((_, kind), task) in self.tasks.iter().filter(|((one, _), _)| one == role) {
                let agents: Vec<String> = task.agents.iter().map(|agent| quoted(agent.as_str())).collect();
                let rights: Vec<String> =
                    task.rights.iter().map(|right| quoted(&right.to_string())).collect();
                let _ = write!(
                    text,
                    "\n[[role.task]]\nkind = {}\nagents = [{}]\nrights = [{}]\n",
                    quoted(kind.as_str()),
                    agents.join(", "),
                    rights.join(", ")
                );
            }
        }
        text
    }

    fn base_file(&self) -> String {
        let longest = |life: fn(&Task) -> Millis| {
            let lives = self.tasks.values().map(life);
            lives.max().unwrap_or_default().0.div_ceil(1000).max(1)
        };
        let text = format!(
            "// Starting tasks, handing them on and administration. What may be done under them is in calls.datalog.\n\n\
             /// the user's role may have this agent do this kind of task\n\
             allow if request(\"issue\"), caller($agent), task_kind($kind), may_run($agent, $kind);\n\
             /// the user's role still may have this agent do this kind of task\n\
             allow if request(\"renew\"), caller($agent), task_kind($kind), may_run($agent, $kind);\n\n\
             /// operators are the keys the broker's configuration lists\n\
             allow if request(\"admin\"), operator($name);\n\n\
             may_run($agent, $kind) <- role($role), role_runs($role, $agent, $kind);\n\
             grant($resource, $action) <- role($role), task_kind($kind), role_right($role, $kind, $resource, $action);\n\
             may_delegate($from, $to) <- delegates($from, $to);\n\n\
             // The deepest delegation and the longest lives that were seen.\n\
             depth_limit({}) <- task_kind($kind);\n\
             task_seconds({}) <- request(\"issue\");\n\
             capability_seconds({}) <- task_kind($kind);\n",
            self.depth,
            longest(|task| task.task_life),
            longest(|task| task.capability_life),
        );
        format("base.datalog", &text).unwrap_or(text)
    }

    fn calls_file(&self) -> String {
        let mut callers: BTreeMap<(Option<&AgentId>, &Right), u64> = BTreeMap::new();
        for (call, count) in &self.calls {
            *callers.entry((call.chain.last(), &call.right)).or_default() += count;
        }
        let mut text = "// One rule for each agent and right that was used.\n".to_owned();
        for ((caller, right), count) in callers {
            let Some(caller) = caller else { continue };
            // Built from values: a name never becomes Datalog by being pasted into it.
            let one = |name: &str, value: &str| Predicate::new(name, [Term::str(value)]);
            let (resource, action) = (right.resource.as_str(), right.action.as_str());
            let predicates = vec![
                one("request", "call"),
                one("caller", caller.as_str()),
                one("resource", resource),
                one("action", action),
                Predicate::new("right", [Term::str(resource), Term::str(action)]),
            ];
            let body = Body { predicates, expressions: Vec::new() };
            let _ = write!(text, "\n// seen {count} times\n/// {caller} may {right}\nallow if {body};\n");
        }
        format("calls.datalog", &text).unwrap_or(text)
    }

    fn cases_file(&self) -> String {
        let mut text = "# What was seen, as cases: writ policy test\n".to_owned();
        let list = |items: &mut dyn Iterator<Item = &str>| {
            format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
        };
        for ((role, kind), task) in &self.tasks {
            let rights: Vec<String> = task.rights.iter().map(ToString::to_string).collect();
            for agent in &task.agents {
                for (verb, key) in [("starts", "start"), ("renews", "renew")] {
                    let name = format!("for {role}, {agent} {verb} {kind}");
                    let _ = write!(
                        text,
                        "\n- name: {}\n  {key}: true\n  chain: {}\n  roles: {}\n  task: {}\n  expect: allow\n",
                        quoted(&name),
                        list(&mut std::iter::once(agent.as_str())),
                        list(&mut std::iter::once(role.as_str())),
                        quoted(kind.as_str()),
                    );
                    if key == "start" {
                        let _ = writeln!(text, "  grants: {}", list(&mut rights.iter().map(String::as_str)));
                    }
                }
            }
        }
        for (number, (call, count)) in (1..).zip(&self.calls) {
            let path: Vec<&str> = call.chain.iter().map(AgentId::as_str).collect();
            let name = format!(
                "{number}: for {}, {} does {}, seen {count} times",
                call.role,
                path.join(" > "),
                call.right
            );
            let _ = write!(
                text,
                "\n- name: {}\n  call: {}\n  chain: {}\n  roles: {}\n  task: {}\n",
                quoted(&name),
                quoted(&call.right.to_string()),
                list(&mut path.into_iter()),
                list(&mut std::iter::once(call.role.as_str())),
                quoted(call.kind.as_str()),
            );
            if !call.tags.is_empty() {
                let _ = writeln!(text, "  tags: {}", list(&mut call.tags.iter().map(Tag::as_str)));
            }
            if call.is_untrusted {
                text.push_str("  untrusted: true\n");
            }
            text.push_str("  expect: allow\n");
        }
        let _ = write!(
            text,
            "\n- name: \"an operator revokes\"\n  admin: \"task.t-1:revoke\"\n  operator: {}\n  expect: allow\n",
            quoted(OPERATOR)
        );
        text
    }
}

/// A stub: the actions that were used, with any arguments.
fn contract_file(
    resource: &Resource,
    rights: &BTreeSet<&Right>,
    known: Option<&PolicySet>,
    notes: &mut BTreeSet<String>,
) -> String {
    let contract = known.and_then(|policy| policy.contract(resource));
    let mut text = format!(
        "# A stub: it takes any arguments. Put the tool's own contract here, or list its arguments.\nresource = {}\n",
        quoted(resource.as_str())
    );
    notes.insert(format!("tools/{}.toml: its schema takes any arguments; close it", resource.name()));
    for right in rights {
        let effect = contract.and_then(|contract| contract.action(&right.action)).map(|action| action.effect);
        if effect.is_none() {
            notes.insert(format!("tools/{}.toml: say what `{}` amounts to", resource.name(), right.action));
        }
        let _ = write!(
            text,
            "\n[[action]]\nname = {}\neffect = {}\nreturns = {{ tags = [], integrity = \"untrusted\" }} # say which tags its results carry\n\n[action.schema]\ntype = \"object\"\nadditionalProperties = true\n",
            quoted(right.action.as_str()),
            // What nobody knows is taken for the gravest.
            quoted(effect.map_or("egress", crate::contract::Effect::as_str))
        );
    }
    text
}

/// A text for TOML and YAML alike: in double quotes, with what both escape alike.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

impl Suggestion {
    /// Loads what is suggested and decides its cases.
    ///
    /// # Errors
    /// What does not hold; then it is not to be used.
    pub fn check(&self, cases: &[Case]) -> Result<PolicySet, String> {
        let mut files = self.files.clone();
        files.remove("cases.yaml");
        let (policy, _) = PolicySet::load(&PolicyBundle(files)).map_err(|findings| findings.to_string())?;
        let outcomes: Vec<_> = cases.iter().map(|case| case.run(&policy)).collect();
        let faults: Vec<String> = cases
            .iter()
            .zip(&outcomes)
            .flat_map(|(case, outcome)| outcome.faults.iter().map(|fault| format!("{}: {fault}", case.name)))
            .chain(
                without_case(&policy, &outcomes).iter().map(|rule| format!("no case for {}", rule.place())),
            )
            .collect();
        if faults.is_empty() { Ok(policy) } else { Err(faults.join("\n")) }
    }
}
