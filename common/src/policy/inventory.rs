//! The inventory: agents, approvers, directories and roles from TOML, as facts and as tables.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    capability::Right,
    datalog::{Predicate, Span, Term},
    diagnostic::{Diagnostics, suggest},
    flow::read_tags,
    ids::{AgentId, DirectoryId, EntityType, OperatorId, RoleId, TaskKind},
    label::{Confidentiality, Integrity, Label},
    settings::{Document, Section},
    source::Directory,
    time::Timestamp,
};

use super::observe::read_observe;

/// What agents.toml, approvers.toml and roles.toml say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Every known agent.
    pub agents: BTreeMap<AgentId, AgentEntry>,
    /// Lists operators keep of what may be trusted.
    pub directories: Vec<Directory>,
    /// Everybody who may approve.
    pub approvers: BTreeMap<OperatorId, ApproverEntry>,
    /// Every known role.
    pub roles: BTreeMap<RoleId, Vec<RoleTask>>,
    /// Where each fact stands, as `file:line`.
    places: BTreeMap<String, String>,
}

/// One agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEntry {
    /// The team that answers for it.
    pub owner: String,
    /// What it is for.
    pub description: String,
    /// The agents it may delegate to.
    pub delegates_to: BTreeSet<AgentId>,
    /// How many calls it may send.
    pub quota: Quota,
    /// Until when rules about its calls are asked and not obeyed.
    pub observe_until: Option<Timestamp>,
    /// What it may be told: its own clearance, as far as its provider's goes.
    pub clearance: Confidentiality,
    /// The language model it asks, where the operator says so.
    pub model: String,
    /// Who runs that model: one of the `[[provider]]`s.
    pub provider: String,
    /// Where that is.
    pub region: String,
    /// How long it remembers what it was told.
    pub memory: Memory,
}

/// How long an agent remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// No longer than a task.
    Task,
    /// From one task to the next, so that all of them share one label.
    Shared,
}

impl std::str::FromStr for Memory {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "task" => Ok(Self::Task),
            "shared" => Ok(Self::Shared),
            _ => Err("memory is task or shared"),
        }
    }
}

/// Who runs language models.
struct Provider {
    region: String,
    clearance: Confidentiality,
}

/// Somebody who may approve. Their key is enrolled by the broker's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApproverEntry {
    /// What they may approve as.
    pub roles: BTreeSet<RoleId>,
    /// The `sub` of every account they have at identity providers, so that nobody approves what is done on their
    /// own authority.
    pub users: BTreeSet<String>,
}

/// A token bucket: how many calls per second, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Refill, calls per second.
    pub per_second: u32,
    /// Size, calls.
    pub burst: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { per_second: 200, burst: 400 }
    }
}

/// What a role may have done in one kind of task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleTask {
    /// The kind of task.
    pub kind: TaskKind,
    /// The agents it may be given to.
    pub agents: BTreeSet<AgentId>,
    /// The rights it may carry.
    pub rights: BTreeSet<Right>,
}

impl Inventory {
    /// Reads agents.toml.
    pub(crate) fn read_agents(&mut self, file: &str, text: &str, findings: &mut Diagnostics) {
        let overrides = BTreeMap::new();
        let document = Document::new(file, text, &overrides);
        let mut root = document.root();
        let mut providers = BTreeMap::new();
        for mut section in root.tables("provider") {
            let span = section.span();
            let name = section.text("name", "\"inference-eu\"").unwrap_or_default();
            let region = section.optional_text("region").unwrap_or_default();
            let clearance = read_tags(&mut section, "clearance");
            section.finish(&["name", "region", "clearance"]);
            if providers.insert(name.clone(), Provider { region, clearance }).is_some() {
                document.note(document.at(span, format!("provider `{name}` is declared twice")));
            }
        }
        for mut section in root.tables("agent") {
            let span = section.span();
            let name: Option<AgentId> = section.required("name", "\"planner\"");
            let provider = section.optional_text("provider").unwrap_or_default();
            let named = providers.get(&provider);
            if named.is_none() && !provider.is_empty() {
                let otherwise = format!("add a `[[provider]]` named `{provider}`");
                let help = suggest(&provider, providers.keys().map(String::as_str), &otherwise);
                let spot = section.span_of("provider");
                document.note(document.at(spot, format!("there is no provider `{provider}`")).help(help));
            }
            let own = read_tags(&mut section, "clearance");
            let entry = AgentEntry {
                owner: section.optional_text("owner").unwrap_or_default(),
                description: section.optional_text("description").unwrap_or_default(),
                delegates_to: section.list("delegates_to").into_iter().collect(),
                quota: read_quota(section.table("quota")),
                observe_until: read_observe(&mut section),
                clearance: named.map_or_else(|| own.clone(), |provider| own.meet(&provider.clearance)),
                model: section.optional_text("model").unwrap_or_default(),
                region: named.map_or_else(String::new, |provider| provider.region.clone()),
                provider,
                memory: section.optional("memory").unwrap_or(Memory::Task),
            };
            let (owned, delegates) = (section.span_of("owner"), section.span_of("delegates_to"));
            let cleared = section.span_of("clearance");
            section.finish(&[
                "name",
                "owner",
                "description",
                "delegates_to",
                "quota",
                "observe",
                "clearance",
                "model",
                "provider",
                "memory",
            ]);
            let Some(name) = name else { continue };
            let mut note = |fact: Predicate, span, word: &str| {
                self.places.insert(fact.to_string(), place(file, text, span, word));
            };
            note(fact("registered", &[name.as_str()]), span, "");
            note(fact("owner", &[name.as_str(), &entry.owner]), owned, "");
            for to in &entry.delegates_to {
                note(fact("delegates", &[name.as_str(), to.as_str()]), delegates, to.as_str());
            }
            for stated in entry.flow_facts(&name) {
                note(stated, cleared, "");
            }
            if self.agents.contains_key(&name) {
                document.note(document.at(span, format!("agent `{name}` is declared twice")));
            }
            self.agents.insert(name, entry);
        }
        root.finish(&["agent", "provider"]);
        findings.0.extend(document.into_findings().0);
    }

    /// Reads approvers.toml.
    pub(crate) fn read_approvers(&mut self, file: &str, text: &str, findings: &mut Diagnostics) {
        let overrides = BTreeMap::new();
        let document = Document::new(file, text, &overrides);
        let mut root = document.root();
        for mut section in root.tables("approver") {
            let span = section.span();
            let name: Option<OperatorId> = section.required("name", "\"bob\"");
            let roles: BTreeSet<RoleId> = section.list("roles").into_iter().collect();
            let users: BTreeSet<String> = section.list("users").into_iter().collect();
            section.finish(&["name", "roles", "users"]);
            let Some(name) = name else { continue };
            if roles.is_empty() {
                document.note(document.at(span, format!("approver `{name}` has no `roles`")));
            }
            if users.is_empty() {
                let finding = document.at(span, format!("approver `{name}` has no `users`"));
                document.note(finding.help(
                    "list the `sub` of every account they have: without it, nobody could tell whether they approve their own doing",
                ));
            }
            for (other, entry) in &self.approvers {
                if let Some(user) = entry.users.intersection(&users).next() {
                    let message = format!("`{name}` and `{other}` are both the user `{user}`");
                    let finding = document.at(span, message);
                    document.note(
                        finding.help("one person counts once: give them one name, with all their roles"),
                    );
                }
            }
            if self.approvers.contains_key(&name) {
                document.note(document.at(span, format!("approver `{name}` is declared twice")));
            }
            self.approvers.insert(name, ApproverEntry { roles, users });
        }
        root.finish(&["approver"]);
        findings.0.extend(document.into_findings().0);
    }

    /// Reads directories.toml.
    pub(crate) fn read_directories(&mut self, file: &str, text: &str, findings: &mut Diagnostics) {
        let overrides = BTreeMap::new();
        let document = Document::new(file, text, &overrides);
        let mut root = document.root();
        for mut section in root.tables("directory") {
            let span = section.span();
            let name: Option<DirectoryId> = section.required("name", "\"colleagues\"");
            let entity: Option<EntityType> = section.required("entity", "\"email\"");
            let values: Vec<String> = section.list("values");
            let domains: Vec<String> = section.list("domains");
            let outsiders_write = section.optional_bool("outsiders_write").unwrap_or(false);
            section.finish(&["name", "entity", "values", "domains", "outsiders_write"]);
            let (Some(name), Some(entity)) = (name, entity) else { continue };
            if self.directories.iter().any(|other| other.name() == name.as_str()) {
                document.note(document.at(span, format!("directory `{name}` is declared twice")));
            }
            match Directory::new(name.as_str(), entity, &values, &domains, outsiders_write) {
                Ok(directory) => self.directories.push(directory),
                Err(why) => document.note(document.at(span, why)),
            }
        }
        root.finish(&["directory"]);
        findings.0.extend(document.into_findings().0);
    }

    /// What an agent may be told; of one nobody knows, what is public.
    #[must_use]
    pub fn clearance(&self, agent: &AgentId) -> Label {
        let cleared = self.agents.get(agent).map(|entry| entry.clearance.clone());
        let confidentiality = cleared.unwrap_or_else(|| Label::bottom().confidentiality);
        Label { confidentiality, integrity: Integrity::Untrusted }
    }

    /// Reads roles.toml.
    pub(crate) fn read_roles(&mut self, file: &str, text: &str, findings: &mut Diagnostics) {
        let overrides = BTreeMap::new();
        let document = Document::new(file, text, &overrides);
        let mut root = document.root();
        for mut section in root.tables("role") {
            let name: Option<RoleId> = section.required("name", "\"analyst\"");
            let mut tasks = Vec::new();
            for mut task in section.tables("task") {
                let kind: Option<TaskKind> = task.required("kind", "\"customer-answer\"");
                let agents = task.list("agents").into_iter().collect();
                let rights = task.list::<RightText>("rights").into_iter().map(|right| right.0).collect();
                let (running, holding) = (task.span_of("agents"), task.span_of("rights"));
                task.finish(&["kind", "agents", "rights"]);
                let Some(kind) = kind else { continue };
                let task = RoleTask { kind, agents, rights };
                if let Some(name) = &name {
                    for (fact, word) in task.facts(name) {
                        let span = if fact.name == "role_runs" { running } else { holding };
                        self.places.insert(fact.to_string(), place(file, text, span, &word));
                    }
                }
                tasks.push(task);
            }
            section.finish(&["name", "task"]);
            if let Some(name) = name {
                self.roles.entry(name).or_default().extend(tasks);
            }
        }
        root.finish(&["role"]);
        findings.0.extend(document.into_findings().0);
    }

    /// The inventory as facts.
    pub(crate) fn facts(&self) -> Vec<Predicate> {
        let mut facts = Vec::new();
        for (name, entry) in &self.agents {
            facts.push(fact("registered", &[name.as_str()]));
            if !entry.owner.is_empty() {
                facts.push(fact("owner", &[name.as_str(), &entry.owner]));
            }
            facts.extend(entry.flow_facts(name));
            facts
                .extend(entry.delegates_to.iter().map(|to| fact("delegates", &[name.as_str(), to.as_str()])));
        }
        for (role, tasks) in &self.roles {
            facts.extend(tasks.iter().flat_map(|task| task.facts(role)).map(|(fact, _)| fact));
        }
        facts
    }

    /// Where a fact of the inventory stands, as `file:line`.
    pub(crate) fn place(&self, fact: &str) -> Option<&str> {
        self.places.get(fact).map(String::as_str)
    }
}

impl AgentEntry {
    /// What it may be told and where that goes.
    fn flow_facts(&self, name: &AgentId) -> Vec<Predicate> {
        let cleared = self.clearance.names().into_iter().map(|tag| fact("clearance", &[name.as_str(), tag]));
        let named = [("model", &self.model), ("provider", &self.provider), ("region", &self.region)];
        let named = named.into_iter().filter(|(_, text)| !text.is_empty());
        cleared.chain(named.map(|(kind, text)| fact(kind, &[name.as_str(), text]))).collect()
    }
}

impl RoleTask {
    /// Its facts, each with the word of the file it comes from.
    fn facts(&self, role: &RoleId) -> Vec<(Predicate, String)> {
        let (role, kind) = (role.as_str(), self.kind.as_str());
        let runs = self
            .agents
            .iter()
            .map(|agent| (fact("role_runs", &[role, agent.as_str(), kind]), agent.to_string()));
        let holds = self.rights.iter().map(|right| {
            let terms = [role, kind, right.resource.as_str(), right.action.as_str()];
            (fact("role_right", &terms), right.to_string())
        });
        runs.chain(holds).collect()
    }
}

fn fact(name: &str, terms: &[&str]) -> Predicate {
    Predicate::new(name, terms.iter().copied().map(Term::str).collect::<Vec<_>>())
}

/// `file:line` of a quoted word within a span, or of the span.
fn place(file: &str, text: &str, span: Span, word: &str) -> String {
    let within = text.get(span.start..span.end).unwrap_or("");
    let offset = if word.is_empty() { 0 } else { within.find(&format!("\"{word}\"")).unwrap_or(0) };
    let line = text.get(..span.start + offset).unwrap_or("").matches('\n').count() + 1;
    format!("{file}:{line}")
}

struct RightText(Right);

impl std::str::FromStr for RightText {
    type Err = crate::ids::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Right::parse(text).map(Self)
    }
}

fn read_quota(mut section: Section<'_, '_>) -> Quota {
    let default = Quota::default();
    let mut number = |key: &str, default: u32| {
        section.optional_integer(key, 1..=1_000_000).and_then(|n| u32::try_from(n).ok()).unwrap_or(default)
    };
    let quota =
        Quota { per_second: number("per_second", default.per_second), burst: number("burst", default.burst) };
    section.finish(&["per_second", "burst"]);
    quota
}
