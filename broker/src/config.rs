//! `writ.toml` of a broker: read whole, every fault at once.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use jsonwebtoken::Algorithm;
use writ_common::{
    datalog::Span,
    diagnostic::{Diagnostic, Diagnostics},
    ids::{BrokerId, NodeId, OperatorId, RoleId, TenantId},
    json::Value,
    keys::PublicKey,
    policy::PolicyBundle,
    settings::{Document, Section},
    time::Millis,
};
use writ_journal::{JournalLimits, Sync};

use crate::{
    jwks::KeySet,
    jwt::{Issuer, Keys, Service, parse_algorithms},
    key_cache::{KeyBounds, KeyCache},
    oidc::{KeyLocation, KeySource, parse_address},
};

/// A broker's configuration.
pub struct BrokerConfig {
    /// The tenant it serves.
    pub tenant: TenantId,
    /// Its name.
    pub broker: BrokerId,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The signed keyset.
    pub keyset_file: PathBuf,
    /// The online key.
    pub key_file: PathBuf,
    /// The key that signs records.
    pub record_key_file: PathBuf,
    /// Folder of the index and the journal.
    pub state: PathBuf,
    /// When a journal write counts as written.
    pub sync: Sync,
    /// Bounds of the journal.
    pub journal_limits: JournalLimits,
    /// Folder of the policies.
    pub policies: PathBuf,
    /// Server addresses.
    pub bus_urls: Vec<String>,
    /// The NATS user's seed.
    pub bus_user_file: PathBuf,
    /// Root certificate for TLS.
    pub bus_ca_file: Option<PathBuf>,
    /// Where it answers probes and shows its numbers, if anywhere.
    pub http: Option<SocketAddr>,
    /// Most bytes of the audit stream.
    pub stream_bytes_max: u64,
    /// On how many servers streams live.
    pub replicas: usize,
    /// Identity providers.
    pub issuers: Vec<Issuer>,
    /// Nodes: their record keys and NATS users.
    pub nodes: BTreeMap<NodeId, (PublicKey, String)>,
    /// Operators and their keys.
    pub operators: BTreeMap<OperatorId, PublicKey>,
    /// Approvers and their keys.
    pub approvers: BTreeMap<OperatorId, PublicKey>,
    /// Longest staleness any node may be set to.
    pub staleness_max: Millis,
}

struct KeyText(PublicKey);

impl std::str::FromStr for KeyText {
    type Err = writ_common::keys::InvalidKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PublicKey::parse(text).map(Self)
    }
}

impl BrokerConfig {
    /// Reads a configuration. Relative paths are relative to `base`; key sets of issuers are read as well.
    ///
    /// # Errors
    /// Every finding.
    pub fn read(
        file: &str,
        text: &str,
        base: &Path,
        overrides: &BTreeMap<String, String>,
    ) -> Result<Self, Diagnostics> {
        let document = Document::new(file, text, overrides);
        let mut root = document.root();
        let path = |text: String| base.join(text);
        let tenant: Option<TenantId> = root.required("tenant", "\"acme\"");
        let mut broker = root.table("broker");
        let name: Option<BrokerId> = broker.required("name", "\"broker-1\"");
        let root_key: Option<KeyText> = broker.required("root_key", "\"ed25519:…\"");
        let keyset_file = broker.text("keyset_file", "\"keyset.writ\"").map(path);
        let key_file = broker.text("key_file", "\"broker.key\"").map(path);
        let record_key_file = broker.text("record_key_file", "\"broker-records.key\"").map(path);
        let state = broker.text("state", "\"state\"").map(path);
        let policies = broker.text("policies", "\"policies\"").map(path);
        let sync: Option<Sync> = broker.optional("sync");
        let staleness = broker.optional_integer("staleness_seconds_max", 1..=3_600).unwrap_or(60);
        broker.finish(&[
            "name",
            "root_key",
            "keyset_file",
            "key_file",
            "record_key_file",
            "state",
            "policies",
            "sync",
            "staleness_seconds_max",
        ]);
        let journal_limits = JournalLimits::read(root.table("journal"));
        let mut bus = root.table("bus");
        let bus_urls: Vec<String> = bus.list("urls");
        if bus_urls.is_empty() {
            let finding = document.at(bus.span(), "`bus.urls` is missing");
            document.note(finding.help("add `urls = [\"nats://127.0.0.1:4222\"]` under `[bus]`"));
        }
        let bus_user_file = bus.text("user_file", "\"broker.nkey\"").map(path);
        let bus_ca_file = bus.optional_text("ca_file").map(path);
        bus.finish(&["urls", "user_file", "ca_file"]);
        let mut http_section = root.table("http");
        let http = http_section.optional("listen");
        http_section.finish(&["listen"]);
        let mut stream = root.table("stream");
        let mebibytes = stream.optional_integer("mebibytes_max", 1..=1_048_576).unwrap_or(1_024);
        let replicas = stream.optional_integer("replicas", 1..=5).unwrap_or(1);
        stream.finish(&["mebibytes_max", "replicas"]);
        let issuers: Vec<Issuer> = root
            .tables("issuer")
            .into_iter()
            .filter_map(|section| read_issuer(&document, section, base))
            .collect();
        let mut nodes = BTreeMap::new();
        for mut section in root.tables("node") {
            let name: Option<NodeId> = section.required("name", "\"node-1\"");
            let key: Option<KeyText> = section.required("key", "\"ed25519:…\"");
            let connection = section.text("connection", "\"U…\"");
            section.finish(&["name", "key", "connection"]);
            if let Some(((name, key), connection)) = name.zip(key).zip(connection) {
                nodes.insert(name, (key.0, connection));
            }
        }
        let operators = read_people(&document, root.tables("operator"));
        let approvers = read_people(&document, root.tables("approver"));
        let known = [
            "tenant", "broker", "journal", "bus", "http", "stream", "issuer", "node", "operator", "approver",
        ];
        root.finish(&known);
        let findings = document.into_findings();
        if findings.has_errors() {
            return Err(findings);
        }
        let complete = || {
            Some(Self {
                tenant: tenant?,
                broker: name?,
                root: root_key?.0,
                keyset_file: keyset_file?,
                key_file: key_file?,
                record_key_file: record_key_file?,
                state: state?,
                sync: sync.unwrap_or(Sync::Kernel),
                journal_limits,
                policies: policies?,
                bus_urls,
                bus_user_file: bus_user_file?,
                bus_ca_file,
                http,
                stream_bytes_max: mebibytes * 1024 * 1024,
                replicas: usize::try_from(replicas).unwrap_or(1),
                issuers,
                nodes,
                operators,
                approvers,
                staleness_max: Millis::from_secs(staleness),
            })
        };
        complete().ok_or(findings)
    }
}

/// Names with their public keys: each name once, and each key. One key under two names would be two people to whoever
/// counts answers, and of two keys under one name the last would quietly count.
fn read_people(document: &Document<'_>, sections: Vec<Section<'_, '_>>) -> BTreeMap<OperatorId, PublicKey> {
    let mut people: BTreeMap<OperatorId, PublicKey> = BTreeMap::new();
    for mut section in sections {
        let name: Option<OperatorId> = section.required("name", "\"ops\"");
        let key: Option<KeyText> = section.required("key", "\"ed25519:…\"");
        let (name_span, key_span) = (section.span_of("name"), section.span_of("key"));
        section.finish(&["name", "key"]);
        let Some((name, KeyText(key))) = name.zip(key) else { continue };
        if people.contains_key(&name) {
            let finding = document.at(name_span, format!("`{name}` is there twice"));
            document.note(finding.help("a person has one key; take one of the two out"));
            continue;
        }
        if let Some((other, _)) = people.iter().find(|(_, known)| **known == key) {
            let finding = document.at(key_span, format!("`{name}` has the key of `{other}`"));
            document.note(finding.help("everybody has a key of their own; `writ key new` makes one"));
            continue;
        }
        people.insert(name, key);
    }
    people
}

fn read_issuer(document: &Document<'_>, mut section: Section<'_, '_>, base: &Path) -> Option<Issuer> {
    let issuer = section.text("issuer", "\"https://idp.example\"");
    let audience = section.text("audience", "\"writ\"");
    let typ = section.optional_text("typ").unwrap_or_else(|| "at+jwt".to_owned());
    let algorithms_span = section.span_of("algorithms");
    let names: Vec<String> = section.list("algorithms");
    let algorithms: Option<Vec<Algorithm>> = note(document, algorithms_span, parse_algorithms(&names));
    let issuer_span = section.span_of("issuer");
    let origin = read_key_origin(document, &mut section, base);
    let role_claim = section.optional_text("role_claim").unwrap_or_else(|| "/roles".to_owned());
    let mut roles = BTreeMap::new();
    for (value, span, role) in section.free_table("roles") {
        match role {
            Value::String(role) => {
                roles.extend(note(document, span, RoleId::parse(role)).map(|role| (value, role)));
            }
            _ => document.note(document.at(span, "a role is a text")),
        }
    }
    let mut service_marks = Vec::new();
    for (pointer, span, value) in section.free_table("service_marks") {
        match value {
            Value::String(value) if pointer.starts_with('/') => service_marks.push((pointer, value)),
            _ => document.note(
                document
                    .at(span, format!("`{pointer}` is no mark of a service's token"))
                    .help("write a JSON Pointer and a text, such as `\"/idtyp\" = \"app\"`"),
            ),
        }
    }
    let services = section.tables("service").into_iter().filter_map(read_service).collect();
    section.finish(&[
        "issuer",
        "audience",
        "typ",
        "algorithms",
        "discovery",
        "jwks_file",
        "jwks_url",
        "ca_file",
        "refresh_seconds",
        "keys_seconds_max",
        "role_claim",
        "roles",
        "service",
        "service_marks",
    ]);
    let (issuer, origin) = (issuer?, origin?);
    let keys = match origin {
        KeyOrigin::File(keys) => Keys::Fixed(keys),
        KeyOrigin::Issuer { location, ca, bounds } => {
            let source = note(document, issuer_span, KeySource::new(&issuer, location, ca.as_deref()))?;
            Keys::Fetched { cache: KeyCache::new(bounds), source }
        }
    };
    Some(Issuer {
        issuer,
        audience: audience?,
        typ,
        algorithms: algorithms?,
        role_claim,
        roles,
        keys,
        services,
        service_marks,
    })
}

/// Where an issuer's keys come from, as the file says it.
enum KeyOrigin {
    File(KeySet),
    Issuer { location: KeyLocation, ca: Option<Vec<u8>>, bounds: KeyBounds },
}

/// One of `discovery`, `jwks_url` and `jwks_file`; the other keys make sense with the first two only.
fn read_key_origin(document: &Document<'_>, section: &mut Section<'_, '_>, base: &Path) -> Option<KeyOrigin> {
    let (section_span, file_span) = (section.span(), section.span_of("jwks_file"));
    let (url_span, ca_span) = (section.span_of("jwks_url"), section.span_of("ca_file"));
    let age_span = section.span_of("keys_seconds_max");
    let is_discovered = section.optional_bool("discovery").unwrap_or(false);
    let url = section.optional_text("jwks_url");
    let file = section.optional_text("jwks_file").map(|file| base.join(file));
    let ca = section.optional_text("ca_file").map(|file| base.join(file));
    let refresh = section.optional_integer("refresh_seconds", 1..=86_400);
    let age_max = section.optional_integer("keys_seconds_max", 1..=604_800);
    if usize::from(is_discovered) + usize::from(url.is_some()) + usize::from(file.is_some()) != 1 {
        let finding =
            document.at(section_span, "an issuer needs one of `discovery`, `jwks_url` and `jwks_file`");
        document.note(finding.help("`discovery = true` takes the keys from where the issuer says they are"));
        return None;
    }
    if let Some(file) = file {
        let keys = note(document, file_span, read_file(&file).and_then(text_of))?;
        return note(document, file_span, KeySet::parse(&keys)).map(KeyOrigin::File);
    }
    let bounds = KeyBounds {
        refresh: Millis::from_secs(refresh.unwrap_or(300)),
        age_max: Millis::from_secs(age_max.unwrap_or(3_600)),
    };
    if bounds.age_max <= bounds.refresh {
        let message = "`keys_seconds_max` has to be more than `refresh_seconds`";
        document
            .note(document.at(age_span, message).help("else keys are too old before they are fetched again"));
    }
    let ca = match ca {
        Some(file) => Some(note(document, ca_span, read_file(&file))?),
        None => None,
    };
    let location = match url {
        Some(url) => KeyLocation::Url(note(document, url_span, parse_address(&url))?),
        None => KeyLocation::Discovery,
    };
    Some(KeyOrigin::Issuer { location, ca, bounds })
}

fn read_file(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn read_service(mut section: Section<'_, '_>) -> Option<Service> {
    let client = section.text("client", "\"nightly-report\"");
    let subject = section.optional_text("subject");
    let roles = section.list("roles");
    section.finish(&["client", "subject", "roles"]);
    let client = client?;
    Some(Service { subject: subject.unwrap_or_else(|| client.clone()), client, roles })
}

fn note<T, E: std::fmt::Display>(document: &Document<'_>, span: Span, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| document.note(document.at(span, error))).ok()
}

/// Reads the policy folder into a bundle; `examples` and READMEs are no part of it.
///
/// # Errors
/// Findings about files that cannot be read. What they say is checked when the bundle is loaded.
pub fn read_policies(folder: &Path) -> Result<PolicyBundle, Diagnostics> {
    let mut findings = Diagnostics::default();
    let mut bundle = PolicyBundle::default();
    walk(folder, "", &mut bundle, &mut findings);
    if bundle.0.is_empty() && findings.0.is_empty() {
        let finding = Diagnostic::in_file(&folder.display().to_string(), "the policy folder is empty");
        findings.push(
            finding.help("copy the `policies` folder of the release, or point `broker.policies` at yours"),
        );
    }
    if findings.has_errors() { Err(findings) } else { Ok(bundle) }
}

fn walk(folder: &Path, prefix: &str, bundle: &mut PolicyBundle, findings: &mut Diagnostics) {
    let mut failed = |path: &Path, error: std::io::Error| {
        findings.push(Diagnostic::in_file(&path.display().to_string(), error));
    };
    let items = match fs::read_dir(folder) {
        Ok(items) => items,
        Err(error) => return failed(folder, error),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for item in items {
        match item {
            Ok(item) => paths.push(item.path()),
            Err(error) => failed(folder, error),
        }
    }
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let relative = format!("{prefix}{name}");
        if path.is_dir() {
            // Worked examples stand beside the policy; they are sets of their own.
            if relative != "examples" && !name.starts_with('.') {
                walk(&path, &format!("{relative}/"), bundle, findings);
            }
        } else if !is_document(name) {
            match fs::read_to_string(&path) {
                Ok(text) => drop(bundle.0.insert(relative, text)),
                Err(error) => findings.push(Diagnostic::in_file(&path.display().to_string(), error)),
            }
        }
    }
}

fn is_document(name: &str) -> bool {
    // Cases are about a policy, not part of it.
    name == "cases.yaml"
        || name.starts_with('.')
        || Path::new(name).extension().is_some_and(|extension| extension == "md")
}

#[cfg(test)]
mod tests {
    use writ_common::policy::PolicySet;

    use super::*;

    #[test]
    fn every_fault_at_once() {
        let text = r#"
            tenant = "acme"
            [broker]
            name = "broker-1"
            root_key = "ed25519:00"
            keyset_file = "keyset.writ"
            key_file = "broker.key"
            record_key_file = "records.key"
            state = "state"
            policies = "policies"
            [bus]
            urls = ["nats://127.0.0.1:4222"]
            user_file = "broker.nkey"
            [[issuer]]
            issuer = "https://idp.example"
            audience = "writ"
            algorithms = ["HS256"]
            jwks_file = "/nowhere/jwks.json"
            [[issuer]]
            issuer = "https://two.example"
            audience = "writ"
            algorithms = ["RS256"]
            discovery = true
            jwks_url = "https://two.example/keys"
            [[issuer]]
            issuer = "https://three.example"
            audience = "writ"
            algorithms = ["RS256"]
            jwks_url = "http://idp.example/keys"
            [[issuer]]
            issuer = "https://idp.example?tenant=x"
            audience = "writ"
            algorithms = ["RS256"]
            discovery = true
            refresh_seconds = 60
            keys_seconds_max = 60
            [issuer.service_marks]
            idtyp = "app"
            [[issuer.service]]
            roles = ["reporter"]
            [[operator]]
            name = "Ops"
            kee = "x"
        "#;
        let Err(findings) = BrokerConfig::read("writ.toml", text, Path::new("."), &BTreeMap::new()) else {
            panic!("taken");
        };
        let findings = findings.to_string();
        for expected in [
            "`broker.root_key`: the Ed25519 public key is not 32 bytes",
            "`HS256` would let the broker's public keys sign tokens",
            "/nowhere/jwks.json",
            "an issuer needs one of `discovery`, `jwks_url` and `jwks_file`",
            "`http://idp.example/keys` is plain HTTP, which is for loopback only",
            "`https://idp.example?tenant=x` has a query",
            "`idtyp` is no mark of a service's token",
            "`keys_seconds_max` has to be more than `refresh_seconds`",
            "`issuer.service.client` is missing",
            "operator name `Ops` may only hold",
            "unknown key `operator.kee`",
            "`operator.key` is missing",
        ] {
            assert!(findings.contains(expected), "{expected} not in\n{findings}");
        }
    }

    #[test]
    fn nobody_is_there_twice_by_name_or_by_key() {
        let key = |seed: u8| writ_common::keys::PrivateKey::from_seed(&[seed; 32]).public();
        let person = |table: &str, name: &str, seed: u8| {
            format!("[[{table}]]\nname = \"{name}\"\nkey = \"{}\"\n", key(seed))
        };
        let text = [
            person("operator", "ops", 1),
            person("operator", "ops", 2),
            // An approver may be an operator as well.
            person("approver", "ops", 1),
            person("approver", "bob", 3),
            person("approver", "carol", 3),
        ];
        let read = BrokerConfig::read("writ.toml", &text.concat(), Path::new("."), &BTreeMap::new());
        let Err(findings) = read else { panic!("taken") };
        let findings = findings.to_string();
        for expected in
            ["writ.toml:5:8", "`ops` is there twice", "writ.toml:15:7", "`carol` has the key of `bob`"]
        {
            assert!(findings.contains(expected), "{expected} not in\n{findings}");
        }
        assert_eq!(findings.matches("there twice").count(), 1, "{findings}");
    }

    #[test]
    fn the_shipped_issuers_are_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/issuers.toml");
        let text = fs::read_to_string(&file).unwrap();
        let read = BrokerConfig::read("issuers.toml", &text, Path::new("."), &BTreeMap::new());
        let config = read.unwrap_or_else(|findings| panic!("{findings}"));
        assert_eq!(config.issuers.len(), 4);
        for issuer in &config.issuers {
            assert!(matches!(issuer.keys, Keys::Fetched { .. }), "{}", issuer.issuer);
            assert_eq!((issuer.services.len(), issuer.roles.len()), (1, 1), "{}", issuer.issuer);
        }
        assert!(config.http.is_some());
    }

    #[test]
    fn the_policies_of_this_repository_load() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let bundle = read_policies(&folder).unwrap();
        let (policy, warnings) = PolicySet::load(&bundle).unwrap();
        assert_eq!(warnings, Diagnostics::default());
        assert_eq!(policy.contracts().count(), 3);
    }

    #[test]
    fn an_empty_or_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_policies(folder.path()).unwrap_err().to_string().contains("is empty"));
        assert!(read_policies(&folder.path().join("nowhere")).is_err());
    }
}
