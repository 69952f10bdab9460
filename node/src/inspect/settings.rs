//! `[[inspector]]` of a node's writ.toml.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use reqwest::Url;
use writ_common::{
    diagnostic,
    ids::{FindingKind, InspectorId, Resource},
    inspect::{Direction, Inspector, Severity, detect::Detect, nemo, presidio},
    label::Tag,
    settings::{Document, Section},
    time::Millis,
};

/// How long an inspection may take if nothing is said, in milliseconds.
const DEADLINE_MS: u64 = 2_000;
/// How many questions may be under way at once if nothing is said.
const AT_ONCE: u64 = 8;

/// One inspector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectorSettings {
    /// What decisions depend on.
    pub inspector: Inspector,
    /// How it is asked.
    pub kind: InspectorKind,
    /// Most questions under way at once.
    pub at_once: usize,
}

/// How an inspector is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InspectorKind {
    /// Our own detectors.
    Builtin(BTreeSet<Detect>),
    /// Whoever answers on `inspect.<name>`.
    Bus {
        /// What is looked for.
        want: Vec<String>,
    },
    /// The generic interface at an address.
    Http {
        /// Where.
        endpoint: Endpoint,
        /// What is looked for.
        want: Vec<String>,
    },
    /// A server of `NeMo` Guardrails.
    Nemo {
        /// Where.
        endpoint: Endpoint,
        /// How it is asked.
        settings: nemo::Settings,
    },
    /// A server of Presidio's analyzer.
    Presidio {
        /// Where.
        endpoint: Endpoint,
        /// How it is asked.
        settings: presidio::Settings,
    },
}

/// An address that is asked by HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where; by TLS unless it is on this machine.
    pub url: Url,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A token that is sent along (RFC 6750).
    pub token_file: Option<PathBuf>,
}

struct Address(Url);

impl std::str::FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let is_local = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err("must hold no user name and no fragment; a token stands in `token_file`".to_owned());
        }
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if is_local => Ok(Self(url)),
            "http" => Err("is not on this machine and not encrypted; use `https://`".to_owned()),
            _ => Err("must begin with `https://`, or with `http://` for a server on this machine".to_owned()),
        }
    }
}

/// Something looked for, in the words of the interface.
struct Want(String);

impl std::str::FromStr for Want {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "injection" | "pii" | "policy" | "secrets" => Ok(Self(text.to_owned())),
            _ => Err("must be `pii`, `injection`, `secrets` or `policy`"),
        }
    }
}

/// Reads one `[[inspector]]`; `known` are the names of those before it.
pub fn read_inspector(
    document: &Document<'_>,
    mut section: Section<'_, '_>,
    base: &Path,
    known: &BTreeSet<InspectorId>,
) -> Option<InspectorSettings> {
    const KINDS: [&str; 5] = ["builtin", "bus", "http", "nemo", "presidio"];
    let span = section.span();
    let name: Option<InspectorId> = section.required("name", "\"dlp\"");
    if let Some(name) = name.as_ref().filter(|name| known.contains(name)) {
        document.note(document.at(span, format!("the inspector `{name}` is configured twice")));
    }
    let directions: BTreeSet<Direction> = section.list("directions").into_iter().collect();
    if !section.has("directions") {
        let finding = document.at(span, "`inspector.directions` is missing");
        document.note(finding.help("add `directions = [\"tool_args\", \"tool_result\"]`"));
    }
    let resources: BTreeSet<Resource> = section.list("tools").into_iter().collect();
    let deadline = section.optional_integer("deadline_ms", 10..=10_000).unwrap_or(DEADLINE_MS);
    let on_error = section.optional("on_error").unwrap_or_default();
    let at_once = section.optional_integer("at_once", 1..=256).unwrap_or(AT_ONCE);
    let add_tags = read_tags(document, &mut section);
    let kind_span = section.span_of("kind");
    let mut keys =
        vec!["name", "kind", "directions", "tools", "deadline_ms", "on_error", "at_once", "add_tags"];
    let kind = match section.text("kind", "\"builtin\"").as_deref() {
        Some("builtin") => {
            keys.push("detect");
            let wanted: BTreeSet<Detect> = section.list("detect").into_iter().collect();
            Some(InspectorKind::Builtin(if wanted.is_empty() { Detect::ALL.into() } else { wanted }))
        }
        Some("bus") => {
            keys.push("want");
            Some(InspectorKind::Bus { want: read_want(&mut section) })
        }
        Some("http") => {
            keys.push("want");
            let want = read_want(&mut section);
            read_endpoint(&mut section, &mut keys, base, "\"https://dlp.example.com/inspect\"")
                .map(|endpoint| InspectorKind::Http { endpoint, want })
        }
        Some("nemo") => {
            keys.push("config_id");
            let config_id = section.text("config_id", "\"rails\"");
            let endpoint =
                read_endpoint(&mut section, &mut keys, base, "\"http://127.0.0.1:8000/v1/checks\"");
            endpoint.zip(config_id).map(|(endpoint, config_id)| InspectorKind::Nemo {
                endpoint,
                settings: nemo::Settings { config_id },
            })
        }
        Some("presidio") => {
            keys.extend(["language", "entities", "score_min"]);
            let settings = presidio::Settings {
                language: section.optional_text("language").unwrap_or_else(|| "en".to_owned()),
                entities: section.list("entities"),
                score_min: Severity::new(
                    section
                        .optional_integer("score_min", 0..=100)
                        .map_or(0, |score| u8::try_from(score).unwrap_or(100)),
                ),
            };
            let endpoint = read_endpoint(&mut section, &mut keys, base, "\"http://127.0.0.1:5002/analyze\"");
            endpoint.map(|endpoint| InspectorKind::Presidio { endpoint, settings })
        }
        Some(other) => {
            let finding = document.at(kind_span, format!("there is no inspector of kind `{other}`"));
            let otherwise = format!("there are {}", KINDS.join(", "));
            document.note(finding.help(diagnostic::suggest(other, KINDS, &otherwise)));
            return None;
        }
        None => None,
    };
    section.finish(&keys);
    let inspector =
        Inspector { name: name?, directions, resources, deadline: Millis(deadline), on_error, add_tags };
    Some(InspectorSettings { inspector, kind: kind?, at_once: usize::try_from(at_once).unwrap_or(1) })
}

fn read_want(section: &mut Section<'_, '_>) -> Vec<String> {
    let want: Vec<Want> = section.list("want");
    let all = || ["injection", "pii", "policy", "secrets"].map(str::to_owned).into();
    if want.is_empty() { all() } else { want.into_iter().map(|Want(word)| word).collect() }
}

fn read_endpoint(
    section: &mut Section<'_, '_>,
    keys: &mut Vec<&'static str>,
    base: &Path,
    example: &str,
) -> Option<Endpoint> {
    keys.extend(["url", "ca_file", "token_file"]);
    let url: Option<Address> = section.required("url", example);
    let ca_file = section.optional_text("ca_file").map(|path| base.join(path));
    let token_file = section.optional_text("token_file").map(|path| base.join(path));
    url.map(|Address(url)| Endpoint { url, ca_file, token_file })
}

/// `[inspector.add_tags]`: kinds of findings with the tags they add.
fn read_tags(document: &Document<'_>, section: &mut Section<'_, '_>) -> BTreeMap<FindingKind, Tag> {
    let mut tags = BTreeMap::new();
    for (key, span, value) in section.free_table("add_tags") {
        let kind = FindingKind::parse(key.as_str()).map_err(|error| error.to_string());
        let tag = match value.as_str() {
            Some(text) => Tag::parse(text).map_err(|error| error.to_string()),
            None => Err(format!("the tag for `{key}` must be a text")),
        };
        match (kind, tag) {
            (Ok(kind), Ok(tag)) => drop(tags.insert(kind, tag)),
            (kind, tag) => {
                for fault in [kind.err(), tag.err()].into_iter().flatten() {
                    document.note(document.at(span, format!("`inspector.add_tags`: {fault}")));
                }
            }
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use writ_common::{diagnostic::Diagnostics, inspect::OnError};

    use super::*;

    fn read(text: &str) -> Result<Vec<InspectorSettings>, Diagnostics> {
        let overrides = BTreeMap::new();
        let document = Document::new("writ.toml", text, &overrides);
        let mut known = BTreeSet::new();
        let mut all = Vec::new();
        for section in document.root().tables("inspector") {
            if let Some(one) = read_inspector(&document, section, Path::new("/etc/writ"), &known) {
                known.insert(one.inspector.name.clone());
                all.push(one);
            }
        }
        let findings = document.into_findings();
        if findings.has_errors() { Err(findings) } else { Ok(all) }
    }

    const GOOD: &str = r#"
        [[inspector]]
        name = "patterns"
        kind = "builtin"
        directions = ["tool_args", "tool_result", "message"]
        tools = ["tool.mail", "agent.mailer"]
        detect = ["card", "key"]
        [inspector.add_tags]
        card = "pci"
        [[inspector]]
        name = "dlp"
        kind = "http"
        url = "https://dlp.example.com/inspect"
        token_file = "dlp.token"
        directions = ["tool_args"]
        deadline_ms = 500
        on_error = "label"
        [[inspector]]
        name = "pii"
        kind = "presidio"
        url = "http://127.0.0.1:5002/analyze"
        directions = ["tool_result"]
        score_min = 40
        [[inspector]]
        name = "rails"
        kind = "nemo"
        url = "http://localhost:8000/v1/checks"
        config_id = "dlp"
        directions = ["tool_result"]
        [[inspector]]
        name = "ours"
        kind = "bus"
        directions = ["message"]
        want = ["secrets"]
    "#;

    #[test]
    fn every_kind_with_its_settings() {
        let all = read(GOOD).unwrap_or_else(|findings| panic!("{findings}"));
        let names: Vec<&str> = all.iter().map(|one| one.inspector.name.as_str()).collect();
        assert_eq!(names, ["patterns", "dlp", "pii", "rails", "ours"]);
        assert_eq!(all[0].kind, InspectorKind::Builtin([Detect::Card, Detect::Key].into()));
        assert_eq!(all[0].inspector.add_tags.len(), 1);
        assert_eq!((all[0].inspector.on_error, all[1].inspector.on_error), (OnError::Deny, OnError::Label));
        assert_eq!(all[1].inspector.deadline, Millis(500));
        let InspectorKind::Http { endpoint, .. } = &all[1].kind else { panic!() };
        assert_eq!(endpoint.token_file.as_deref(), Some(Path::new("/etc/writ/dlp.token")));
    }

    #[test]
    fn every_fault_is_named() {
        for (from, to, expected) in [
            ("https://dlp", "http://dlp", "not encrypted"),
            ("https://dlp", "https://me:pw@dlp", "no user name"),
            ("https://dlp", "ftp://dlp", "must begin with"),
            ("\"builtin\"", "\"builtn\"", "did you mean `builtin`?"),
            ("\"label\"", "\"ignore\"", "must be `deny`, `allow` or `label`"),
            ("\"tool_args\"]", "\"args\"]", "must be `tool_args`, `tool_result` or `message`"),
            ("directions = [\"message\"]", "", "`inspector.directions` is missing"),
            ("name = \"dlp\"", "name = \"patterns\"", "configured twice"),
            ("card = \"pci\"", "card = \"top\"", "is reserved"),
            ("card = \"pci\"", "\"Card No\" = \"pci\"", "may only hold"),
            ("\"card\", \"key\"", "\"cards\"", "must be `card`"),
            ("deadline_ms = 500", "deadline_ms = 0", "must be from 10 to 10000"),
            ("config_id = \"dlp\"", "", "`inspector.config_id` is missing"),
            ("want = [\"secrets\"]", "want = [\"all\"]", "must be `pii`"),
            ("score_min = 40", "score_max = 40", "unknown key `inspector.score_max`"),
            ("\"tool.mail\"", "\"mail\"", "is not `kind.name`"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let found = read(&GOOD.replacen(from, to, 1)).err().map(|findings| findings.to_string());
            let found = found.unwrap_or_default();
            assert!(found.contains(expected), "{to}: {found}");
        }
    }
}
