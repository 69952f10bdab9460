//! The server's accounts and permissions, written in one place: `writ dev`, the tests, `writ agent enroll` and the
//! files in deploy/nats all come from here.
//!
//! CORE holds broker, nodes and operators. Each tenant has an account `AGENTS_<tenant>` that imports services from
//! CORE with `share: true`: the import fixes the tenant in the subject, rewrites the reply subject (within one
//! account a request can make a node's reply land anywhere), and adds the attested user to the request.

use std::fmt::Write as _;

use writ_common::ids::{
    AgentId, BrokerId, InspectorId, InvalidId, KeyId, NodeId, OperatorId, PartId, TenantId,
};
use writ_common::subjects;

/// How many parts of the audit stream the accounts know: the first ones. Before they are used up, the file is rendered
/// anew with more.
const PARTS_NAMED: usize = 16;
/// How long a reply may take: longer than any task.
const RESPONSE_EXPIRES: &str = "24h";

/// A user of the CORE account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoreUser {
    /// An operator who puts parts of the audit stream away: reads them, and may delete their streams.
    Archiver(OperatorId),
    /// An approver: reads the streams, answers requests for approval.
    Approver(OperatorId),
    /// A broker.
    Broker(BrokerId),
    /// An inspector: answers questions that nodes ask it by its name.
    Inspector(InspectorId),
    /// A node.
    Node(NodeId),
    /// An operator, who also reads the audit stream.
    Operator(OperatorId),
}

/// An agent's key with its NATS user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentUser {
    /// The agent.
    pub agent: AgentId,
    /// Its holder key's id.
    pub key: KeyId,
    /// Its NATS user.
    pub nkey: String,
}

/// Everybody who may connect for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// The tenant.
    pub tenant: TenantId,
    /// Users of CORE with their nkeys.
    pub core: Vec<(CoreUser, String)>,
    /// The user that may do nothing but enroll.
    pub bootstrap: String,
    /// The agents.
    pub agents: Vec<AgentUser>,
}

impl CoreUser {
    /// The private prefix of its reply subjects.
    #[must_use]
    pub fn inbox_prefix(&self) -> String {
        match self {
            // To their own commands they are an operator.
            Self::Archiver(name) => format!("_INBOX.operator.{name}"),
            Self::Approver(name) => format!("_INBOX.approver.{name}"),
            Self::Broker(name) => format!("_INBOX.broker.{name}"),
            Self::Inspector(name) => format!("_INBOX.inspector.{name}"),
            Self::Node(name) => format!("_INBOX.node.{name}"),
            Self::Operator(name) => format!("_INBOX.operator.{name}"),
        }
    }

    fn permissions(&self, tenant: &TenantId) -> (Vec<String>, Vec<String>) {
        let own = |rest: &str| format!("writ.v1.{tenant}.{rest}");
        let inbox = format!("{}.>", self.inbox_prefix());
        // A wildcard stands for a whole token, so each stream is named where no subject says whose it is; the parts that
        // are yet to come too.
        let parts = (0..PARTS_NAMED).map(|number| subjects::part_stream(tenant, &PartId::numbered(number)));
        let parts: Vec<String> = parts.collect();
        let mut streams = vec![subjects::control_stream(tenant)];
        let mut planes = vec!["approval", "audit", "claim", "control", "label"];
        // The heads of the logs are between brokers and whoever audits them.
        if matches!(self, Self::Archiver(_) | Self::Broker(_) | Self::Operator(_)) {
            streams.push(subjects::heads_stream(tenant));
            planes.push("head");
        }
        let is_operator = matches!(self, Self::Archiver(_) | Self::Operator(_));
        streams.extend(parts.iter().cloned());
        let reading = || {
            let mut rights = vec!["$JS.FC.>".to_owned()];
            for plane in &planes {
                rights.push(format!("$JS.API.CONSUMER.CREATE.*.*.{}", own(&format!("{plane}.>"))));
                rights.push(format!("$JS.API.DIRECT.GET.*.{}", own(&format!("{plane}.>"))));
            }
            // A part is read whole to be put away.
            rights.extend(is_operator.then(|| format!("$JS.API.CONSUMER.CREATE.*.*.{}", own(">"))));
            for stream in &streams {
                rights.extend([
                    format!("$JS.API.CONSUMER.DELETE.{stream}.>"),
                    format!("$JS.API.DIRECT.GET.{stream}"),
                    format!("$JS.API.STREAM.INFO.{stream}"),
                ]);
            }
            rights
        };
        match self {
            // What was put away may go; nobody else can remove anything.
            Self::Archiver(_) => {
                let mut publish = vec![own("admin")];
                publish.extend(reading());
                publish.extend(parts.iter().map(|stream| format!("$JS.API.STREAM.DELETE.{stream}")));
                (publish, vec![inbox])
            }
            Self::Approver(name) => {
                let mut publish = vec![
                    own(&format!("approval.*.*.act.{name}")),
                    own(&format!("approval.*.*.answer.{name}")),
                ];
                publish.extend(reading());
                (publish, vec![inbox])
            }
            Self::Broker(name) => {
                let mut publish = vec![
                    own("approval.*.*.request"),
                    own(&format!("audit.*.*.*.{name}")),
                    own("claim.*.approval.*"),
                    own("control.*"),
                    own("head.*.*.*"),
                    own("label.*.*"),
                    own("label.*.*.instruction"),
                ];
                // Creating, never updating: an update can make a stream forget.
                publish.extend(streams.iter().map(|stream| format!("$JS.API.STREAM.CREATE.{stream}")));
                publish.extend(reading());
                let subscribe = vec![
                    own("admin"),
                    own("enroll"),
                    own("fresh"),
                    own("issue.*"),
                    own("witness.*"),
                    "$SRV.>".into(),
                    inbox,
                ];
                (publish, subscribe)
            }
            // It publishes answers and nothing else; a list without an entry would allow everything.
            Self::Inspector(name) => (vec![inbox.clone()], vec![own(&format!("inspect.{name}")), inbox]),
            Self::Node(name) => {
                let mut publish = vec![
                    own("approval.*.*.request"),
                    own(&format!("audit.*.*.*.{name}")),
                    own("claim.*.approval.*"),
                    own("claim.*.budget.*.*"),
                    own("fresh"),
                    own("inbox.*.*"),
                    own("inspect.*"),
                    own("label.*.*"),
                    own("label.*.*.sources"),
                    own(&format!("witness.{name}")),
                ];
                publish.extend(reading());
                // Calls only as one of a queue group: nobody listens in.
                let calls = format!("{} writ-node", own("call.*.*.*.*"));
                let kept = format!("{} {name}", own(&format!("call.*.*.node.{name}")));
                (publish, vec![calls, kept, "$SRV.>".into(), inbox])
            }
            Self::Operator(_) => {
                let mut publish = vec![own("admin")];
                publish.extend(reading());
                (publish, vec![inbox])
            }
        }
    }
}

fn list(subjects: &[String]) -> String {
    let subjects: Vec<String> = subjects.iter().map(|subject| format!("{subject:?}")).collect();
    match subjects.as_slice() {
        [] | [_] | [_, _] => subjects.join(", "),
        _ => format!("\n            {}\n          ", subjects.join(",\n            ")),
    }
}

fn user(comment: &str, nkey: &str, publish: &[String], subscribe: &[String]) -> String {
    format!(
        "      # {comment}\n      {{\n        nkey: {nkey}\n        permissions: {{\n          publish: [{}]\n          \
         subscribe: [{}]\n          allow_responses: {{ max: 1, expires: \"{RESPONSE_EXPIRES}\" }}\n        }}\n      }}\n",
        list(publish),
        list(subscribe)
    )
}

/// One agent's entry: calls and issue requests under its own name, its own inbox and reply prefix, nothing else.
#[must_use]
pub fn agent_stanza(tenant: &TenantId, agent: &AgentUser) -> String {
    let AgentUser { agent, key, nkey } = agent;
    let publish = [format!("writ.v1.{tenant}.call.{agent}.>"), format!("writ.v1.{tenant}.issue.{agent}")];
    let subscribe = [format!("writ.v1.{tenant}.inbox.{agent}.{key}"), format!("_INBOX.{agent}.{key}.>")];
    user(&format!("agent {agent}, key {key}"), nkey, &publish, &subscribe)
}

fn bootstrap_stanza(tenant: &TenantId, nkey: &str) -> String {
    let publish = [format!("writ.v1.{tenant}.enroll")];
    let subscribe = [format!("_INBOX.bootstrap.{nkey}.>")];
    user("bootstrap: may enroll by a join token, and nothing else", nkey, &publish, &subscribe)
}

impl Accounts {
    /// The accounts file.
    #[must_use]
    pub fn render(&self) -> String {
        let tenant = &self.tenant;
        let mut core_users = String::new();
        for (who, nkey) in &self.core {
            let (publish, subscribe) = who.permissions(tenant);
            let comment = match who {
                CoreUser::Archiver(name) => {
                    format!(
                        "archiver {name}: as an operator, and may delete the streams of parts that were put away"
                    )
                }
                CoreUser::Approver(name) => {
                    format!("approver {name}: reads the streams, answers under their own name only")
                }
                CoreUser::Broker(name) => format!("broker {name}"),
                CoreUser::Inspector(name) => {
                    format!("inspector {name}: is asked by nodes, and asks nobody")
                }
                CoreUser::Node(name) => format!("node {name}: publishes records under its own name only"),
                CoreUser::Operator(name) => format!("operator {name}: asks the broker, reads the streams"),
            };
            core_users.push_str(&user(&comment, nkey, &publish, &subscribe));
        }
        let mut agent_users = bootstrap_stanza(tenant, &self.bootstrap);
        for agent in &self.agents {
            agent_users.push_str(&agent_stanza(tenant, agent));
        }
        let services = ["call.>", "enroll", "issue.*"].map(|rest| format!("writ.v1.{tenant}.{rest}"));
        let account = format!("AGENTS_{tenant}");
        let mut text = String::new();
        let exports: String = services.iter().fold(String::new(), |mut text, subject| {
            let _ = writeln!(text, "      {{ service: {subject:?}, accounts: [{account}] }}");
            text
        });
        let imports: String = services.iter().fold(String::new(), |mut text, subject| {
            let _ =
                writeln!(text, "      {{ service: {{ account: CORE, subject: {subject:?} }}, share: true }}");
            text
        });
        let inbox = format!("writ.v1.{tenant}.inbox.>");
        let _ = write!(
            text,
            r#"accounts {{
  # Broker, nodes and operators. The only account with JetStream.
  CORE {{
    jetstream: enabled
    users: [
{core_users}    ]
    # What agents may ask for; the import on the other side says who asked.
    exports: [
{exports}    ]
    # Calls relayed to agents. No `threshold`: an agent may take as long as its task.
    imports: [
      {{ service: {{ account: {account}, subject: {inbox:?} }} }}
    ]
  }}

  # The agents of tenant {tenant}: no JetStream, no view of each other, nothing but services of CORE.
  {account} {{
    users: [
{agent_users}    ]
    imports: [
{imports}    ]
    exports: [
      {{ service: {inbox:?}, accounts: [CORE] }}
    ]
  }}
}}
"#
        );
        text
    }
}

/// The accounts as deploy/nats ships them: names of a small set-up, and a placeholder where each public key goes.
///
/// # Errors
/// Never: the names are in the grammar.
pub fn shipped_accounts() -> Result<Accounts, InvalidId> {
    let place = |what: &str| format!("<{what}>");
    let agent = |name: &str| {
        Ok(AgentUser {
            agent: AgentId::parse(name)?,
            key: KeyId::parse("00000000000000000000000000000000")?,
            nkey: place(&format!("nkey of {name}")),
        })
    };
    Ok(Accounts {
        tenant: TenantId::parse("acme")?,
        core: vec![
            (CoreUser::Broker(BrokerId::parse("broker-1")?), place("nkey of broker-1")),
            (CoreUser::Operator(OperatorId::parse("ops")?), place("nkey of ops")),
            (CoreUser::Archiver(OperatorId::parse("archiver")?), place("nkey of archiver")),
            (CoreUser::Approver(OperatorId::parse("bob")?), place("nkey of bob")),
            (CoreUser::Inspector(InspectorId::parse("dlp")?), place("nkey of dlp")),
            (CoreUser::Node(NodeId::parse("node-1")?), place("nkey of node-1")),
        ],
        bootstrap: place("nkey of bootstrap"),
        agents: vec![agent("planner")?],
    })
}

/// The server file as deploy/nats ships it: TLS, every write on disk before it is acknowledged.
#[must_use]
pub fn shipped_server() -> String {
    r#"# One nats-server for Writ, reachable over TLS only. `nats-server -t -c server.conf` checks it.
server_name: "writ-1"
listen: "0.0.0.0:4222"

# Writ's largest message, a policy bundle, is 900 KiB.
max_payload: 1MB

# Agents prove who they are by their nkeys; the certificate is the server's, so that nobody in between can be it.
tls {
  cert_file: "/etc/nats/tls/server.pem"
  key_file: "/etc/nats/tls/server.key"
}

jetstream {
  store_dir: "/var/lib/nats"
  # More than the streams' own limits together (`[stream] mebibytes_max` of the broker, and 256 MiB).
  max_file_store: 8GB
  max_memory_store: 256MB
  # Acknowledged means on disk: with the default of two minutes, a power cut takes records that were acknowledged.
  sync_interval: always
}

# Nothing is asked of the server over HTTP; for monitoring, open it on loopback only.
# http: "127.0.0.1:8222"

include "accounts.conf"
"#
    .to_owned()
}

/// The file of each of three servers as deploy/nats ships it: as [`shipped_server`], and every stream on all three.
#[must_use]
pub fn shipped_cluster() -> String {
    let routes: String = (1..=3).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "    \"nats-route://nats-{number}.example.com:6222\"");
        text
    });
    let cluster = format!(
        r#"# Three nats-servers for Writ that keep its streams together, the same file on each; `SERVER_NAME` of its environment
# is its name, and each has a name of its own. `SERVER_NAME=writ-1 nats-server -t -c cluster.conf` checks it.
server_name: $SERVER_NAME
listen: "0.0.0.0:4222"

cluster {{
  name: "writ"
  listen: "0.0.0.0:6222"
  # All three, also in the file of each.
  routes: [
{routes}  ]
  # Clients know the servers by their own configuration, under the names the certificates have.
  no_advertise: true
  # Both ends of a route show a certificate of this authority, which signs for nobody else.
  tls {{
    cert_file: "/etc/nats/tls/route.pem"
    key_file: "/etc/nats/tls/route.key"
    ca_file: "/etc/nats/tls/routes-ca.pem"
  }}
}}
"#
    );
    let rest = shipped_server();
    let rest = rest.split_once("\n\n").map_or("", |(_, rest)| rest);
    format!("{cluster}\n{rest}")
}

/// One of the servers of a set-up on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where clients connect.
    pub port: u16,
    /// Where the other servers connect.
    pub route_port: u16,
}

/// The file of one of several servers on loopback that keep the streams together; `accounts` is the accounts file.
#[must_use]
pub fn loopback_member(
    number: usize,
    member: Member,
    all: &[Member],
    store: &std::path::Path,
    accounts: &str,
) -> String {
    let Member { port, route_port } = member;
    let routes: Vec<String> =
        all.iter().map(|member| format!("nats-route://127.0.0.1:{}", member.route_port)).collect();
    format!(
        "# Written by `writ dev`. Loopback only: without TLS nothing else may reach it.\n\
         listen: \"127.0.0.1:{port}\"\nserver_name: \"writ-dev-{number}\"\nmax_payload: 1MB\n\
         cluster {{ name: \"writ-dev\", listen: \"127.0.0.1:{route_port}\", routes: {routes:?}, no_advertise: true }}\n\
         jetstream {{ store_dir: {store:?}, max_file_store: 4GB, max_memory_store: 256MB }}\n\
         include {accounts:?}\n"
    )
}

/// A server file for loopback, with the accounts beside it.
#[must_use]
pub fn loopback_server(port: u16, store: &std::path::Path) -> String {
    format!(
        "# Written by `writ dev`. Loopback only: without TLS nothing else may reach it.\n\
         listen: \"127.0.0.1:{port}\"\nserver_name: \"writ-dev\"\nmax_payload: 1MB\n\
         jetstream {{ store_dir: {store:?}, max_file_store: 4GB, max_memory_store: 256MB }}\n\
         include \"accounts.conf\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_what_this_module_writes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../nats");
        let accounts = format!(
            "# Accounts and permissions for tenant acme. Put the public keys in; `writ agent join` prints an entry per\n\
             # agent key. Written by deploy/writ/src/dev/nats_conf.rs, whose test keeps it so.\n{}",
            shipped_accounts().unwrap().render()
        );
        let files = [
            ("accounts.conf", accounts),
            ("server.conf", shipped_server()),
            ("cluster.conf", shipped_cluster()),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "run with UPDATE_GOLDEN=1");
        }
    }
}
