//! What deciding costs, beside what it is made of. `cargo bench -p writ-common` takes well under a minute.
//!
//! Groups: `baseline` is the bare libraries, `capability`, `decide` and `policy` are ours. Numbers of hops are the same in all
//! of them, and `biscuit_auth` reads the very bytes that ours reads, so figures of one run may be divided by each
//! other. The rules and contracts are those of the policy folder; only agents are added, for longer chains.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a benchmark may panic, and it reads the policy folder once"
)]

use std::{collections::BTreeMap, fmt::Write as _, fs, hint::black_box, path::Path, time::Duration};

use biscuit_auth::{Algorithm, AuthorizerBuilder, Biscuit, datalog::RunLimits};
use criterion::{BenchmarkId, Criterion};
use ed25519_dalek::{Signer as _, SigningKey};
use writ_common::{
    capability::{Capability, Grant, Narrowing, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    decide::{Evidence, FlowEvidence, decide},
    digest::Digest,
    epoch::Epoch,
    ids::{Action, AgentId, CapabilityId, FlowDomain, Resource, TaskId, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::{PolicyBundle, PolicySet},
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    time::{Millis, Timestamp},
    verdict::Decision,
};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// Hops of a chain: the format allows 15 (16 blocks), the sample policies grant at most 3.
const HOPS: [u8; 3] = [1, 3, 8];
const HOPS_MAX: u8 = 8;
const RIGHT: &str = "tool.crm:read";

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn root() -> PrivateKey {
    key(1)
}

fn broker() -> PrivateKey {
    key(2)
}

/// The key of the agent a chain has reached after so many hops.
fn holder(hop: u8) -> PrivateKey {
    key(10 + hop)
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn agent(hop: u8) -> AgentId {
    AgentId::parse(format!("agent-{hop}")).unwrap()
}

/// A chain in which every agent keeps one right and hands it to the next.
fn chain(hops: u8) -> UnverifiedCapability {
    let grant = Grant {
        tenant: tenant(),
        user: UserId::parse("https://idp.example", "alice").unwrap(),
        agent: agent(0),
        task: TaskId::parse("t-1").unwrap(),
        holder: holder(0).public(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        instruction: Digest::plain(b"answer the customer"),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: [RIGHT, "tool.mail:draft"].map(|text| Right::parse(text).unwrap()).into(),
        expires: NOW.after(Millis::from_secs(300)),
        min_epoch: Epoch::default(),
        max_depth: hops,
        bounds: Vec::new(),
    };
    let narrowing = Narrowing::new().only([Right::parse(RIGHT).unwrap()]);
    (0..hops).fold(grant.issue(&broker(), &[50; 32]).unwrap(), |capability, hop| {
        let to = holder(hop + 1).public();
        capability.delegate(&holder(hop), &agent(hop + 1), &to, &narrowing, &[51 + hop; 32]).unwrap()
    })
}

fn signed_keyset() -> Signed<KeysetDocument> {
    let later = NOW.after(Millis::from_secs(86_400));
    let key = KeysetKey {
        public: broker().public(),
        tenants: vec![tenant()],
        max_ttl: Millis::from_secs(600),
        not_before: Timestamp::default(),
        not_after: later,
    };
    let document =
        KeysetDocument { version: 1, issued_at: NOW, expires: later, keys: vec![key], withdrawn: Vec::new() };
    Signed::new(&document, &root())
}

fn keyset() -> Keyset {
    Keyset::open(&signed_keyset(), &root().public()).unwrap()
}

/// Control state in which every agent of the longest chain is enrolled.
fn control() -> ControlState {
    let enrolled = (0..=HOPS_MAX).map(|hop| ControlEvent::AgentKey {
        agent: agent(hop),
        holder: holder(hop).public(),
        connection: format!("U{hop}"),
        token: Digest::plain(&[hop]),
    });
    let mut control = ControlState::new(tenant(), root().public());
    let events = std::iter::once(ControlEvent::Keyset(signed_keyset())).chain(enrolled);
    for (sequence, event) in (1..).zip(events) {
        let document = ControlDocument {
            tenant: tenant(),
            at: NOW,
            by: "bench".into(),
            follows: control.epoch(),
            event,
        };
        control.apply(sequence, &encode(&Signed::new(&document, &broker()))).unwrap();
    }
    control
}

fn read_folder(folder: &Path, below: &str, files: &mut BTreeMap<String, String>) {
    for item in fs::read_dir(folder).unwrap() {
        let item = item.unwrap();
        let path = format!("{below}{}", item.file_name().to_str().unwrap());
        if item.file_type().unwrap().is_dir() {
            // The examples are policies of their own.
            if path != "examples" {
                read_folder(&item.path(), &format!("{path}/"), files);
            }
        } else if path.ends_with(".datalog") || path.ends_with(".toml") {
            files.insert(path, fs::read_to_string(item.path()).unwrap());
        }
    }
}

fn policy() -> PolicySet {
    load(files(0, 0))
}

fn load(files: BTreeMap<String, String>) -> PolicySet {
    PolicySet::load(&PolicyBundle(files)).unwrap_or_else(|findings| panic!("{findings}")).0
}

/// The files of the policy folder with the agents of the chains, more rules and more agents.
///
/// Four rules of each tool that is added are about its arguments, the user, the time and the agent that calls. Each
/// agent that is added is three facts.
fn files(rules: usize, agents: usize) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies"), "", &mut files);
    let table = files.get_mut("agents.toml").unwrap();
    for hop in 0..=HOPS_MAX {
        let to: Vec<String> = (hop < HOPS_MAX).then(|| agent(hop + 1).to_string()).into_iter().collect();
        writeln!(
            table,
            "\n[[agent]]\nname = \"{}\"\ndelegates_to = {to:?}\nclearance = [\"crm\"]",
            agent(hop)
        )
        .unwrap();
    }
    for more in 0..agents {
        writeln!(
            table,
            "\n[[agent]]\nname = \"more-{more}\"\nowner = \"team\"\ndelegates_to = [\"agent-1\"]"
        )
        .unwrap();
    }
    let mut text = String::new();
    for tool in 0..rules.div_ceil(4) {
        let on = format!("resource(\"tool.t{tool}\"), action(\"wire\")");
        let four = [
            format!("deny if {on}, user($issuer, \"junior\"), arg(\"/amount\", $cents), $cents > {tool};"),
            format!("deny if {on}, arg(\"/amount\", $cents), $cents > 1000000;"),
            format!("deny if {on}, hour($hour), $hour < 8 || $hour >= 18;"),
            format!("deny if {on}, caller($agent), $agent !== \"agent-0\";"),
        ];
        four.iter().take(rules - 4 * tool).for_each(|rule| writeln!(text, "{rule}").unwrap());
        let contract = format!(
            "resource = \"tool.t{tool}\"\n[[action]]\nname = \"wire\"\neffect = \"egress\"\nreturns = {{ tags = [], integrity = \"trusted\" }}\n\
             scales = {{ \"/amount\" = 2 }}\n\
             schema = {{ type = \"object\", properties = {{ amount = {{ type = \"number\" }} }} }}\n"
        );
        files.insert(format!("tools/t{tool}.toml"), contract);
    }
    files.insert("more.datalog".to_owned(), text);
    files
}

/// The files of the policy folder with a list that every argument of the call is held against.
fn with_facts(facts: usize) -> BTreeMap<String, String> {
    let mut files = files(0, 0);
    let mut text = "deny if resource(\"tool.crm\"), arg($path, $value), blocked($value);\n".to_owned();
    (0..facts).for_each(|fact| writeln!(text, "blocked(\"customer-{fact}\");").unwrap());
    files.insert("facts.datalog".to_owned(), text);
    let contract = files.get_mut("tools/crm.toml").unwrap();
    *contract = contract.replace("maxItems = 32", "maxItems = 512");
    files
}

/// Arguments with so many values, none of them on the list.
fn parameters(values: usize) -> Arguments {
    let sql = "SELECT item, status FROM orders WHERE customer = ?1";
    let parameters = (1..values).map(|value| Value::from(value.to_string().as_str())).collect();
    Arguments::new([("sql", Value::from(sql)), ("params", Value::Array(parameters))].into_iter().collect())
}

fn request(hops: u8) -> Request {
    let right = Right::parse(RIGHT).unwrap();
    let (resource, action): (Resource, Action) = (right.resource, right.action);
    Request {
        principal: Principal::Agent(agent(hops)),
        action,
        resource,
        arguments: parameters(2),
        environment: Environment {
            tenant: tenant(),
            task: Some(TaskId::parse("t-1").unwrap()),
            task_kind: None,
        },
    }
}

fn verify(bytes: &[u8], keyset: &Keyset) -> Capability {
    UnverifiedCapability::parse(bytes).and_then(|capability| capability.verify(keyset, NOW)).unwrap()
}

fn ask(request: &Request, capability: &Capability, control: &ControlState, policy: &PolicySet) -> Decision {
    // Without the tool's gate, which is the node's: the SQL parser is not what is measured here.
    let label = Label::bottom();
    let evidence = Evidence {
        capability: Some(capability),
        handover: None,
        control,
        gate: None,
        label: &label,
        flow: FlowEvidence::default(),
    };
    decide(request, &evidence, policy, NOW).decision()
}

fn ed25519_verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("baseline/ed25519_verify");
    let key = SigningKey::from_bytes(&[7; 32]);
    for bytes in [32usize, 200] {
        let message = vec![9; bytes];
        let signature = key.sign(&message);
        let public = key.verifying_key();
        group.bench_function(BenchmarkId::from_parameter(format!("{bytes}_bytes")), |bencher| {
            bencher.iter(|| public.verify_strict(black_box(&message), black_box(&signature)).unwrap());
        });
    }
    group.finish();
}

/// The library by itself on the same bytes: signatures, then one rule over right, resource and action.
fn biscuit_auth_alone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("baseline/biscuit_auth_parse_verify_authorize");
    let root = biscuit_auth::PublicKey::from_bytes(broker().public().as_bytes(), Algorithm::Ed25519).unwrap();
    // Its own default is one millisecond, which fails now and then on a loaded machine.
    let limits = RunLimits { max_time: Duration::from_secs(2), ..RunLimits::default() };
    let authorizer = AuthorizerBuilder::new()
        .set_limits(limits)
        .code(
            "resource(\"tool.crm\"); action(\"read\"); time(2027-01-15T08:00:00Z);
             allow if right($resource, $action), resource($resource), action($action);",
        )
        .unwrap();
    for hops in HOPS {
        let bytes = chain(hops).as_bytes().to_vec();
        group.bench_function(BenchmarkId::from_parameter(format!("{hops}_hops")), |bencher| {
            bencher.iter(|| {
                let biscuit = Biscuit::from(black_box(&bytes), root).unwrap();
                authorizer.clone().build(&biscuit).unwrap().authorize().unwrap()
            });
        });
    }
    group.finish();
}

fn capability(criterion: &mut Criterion) {
    let keyset = keyset();
    let mut group = criterion.benchmark_group("capability/parse");
    for hops in HOPS {
        let bytes = chain(hops).as_bytes().to_vec();
        group.bench_function(BenchmarkId::from_parameter(format!("{hops}_hops")), |bencher| {
            bencher.iter(|| UnverifiedCapability::parse(black_box(&bytes)).unwrap());
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("capability/parse_verify");
    for hops in HOPS {
        let bytes = chain(hops).as_bytes().to_vec();
        group.bench_function(BenchmarkId::from_parameter(format!("{hops}_hops")), |bencher| {
            bencher.iter(|| verify(black_box(&bytes), &keyset));
        });
    }
    group.finish();
}

fn deciding(criterion: &mut Criterion) {
    let (keyset, control, policy) = (keyset(), control(), policy());
    let mut group = criterion.benchmark_group("decide/warm");
    for hops in HOPS {
        let (capability, request) = (verify(chain(hops).as_bytes(), &keyset), request(hops));
        // A benchmark of refusals would be faster and mean nothing.
        assert_eq!(ask(&request, &capability, &control, &policy), Decision::Allow);
        group.bench_function(BenchmarkId::from_parameter(format!("{hops}_hops")), |bencher| {
            bencher.iter(|| ask(black_box(&request), &capability, &control, &policy));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("decide/cold");
    for hops in HOPS {
        let (bytes, request) = (chain(hops).as_bytes().to_vec(), request(hops));
        group.bench_function(BenchmarkId::from_parameter(format!("{hops}_hops")), |bencher| {
            bencher.iter(|| {
                let capability = verify(black_box(&bytes), &keyset);
                ask(&request, &capability, &control, &policy)
            });
        });
    }
    group.finish();
}

/// How a decision grows with the policy: the same call, with more rules and more facts that are not about it.
fn growing(criterion: &mut Criterion) {
    let (keyset, control) = (keyset(), control());
    let (capability, request) = (verify(chain(1).as_bytes(), &keyset), request(1));
    for (group, sizes) in [
        ("decide/rules", [10, 100, 1_000].map(|rules| (rules, 0))),
        ("decide/agents", [10, 100, 1_000].map(|agents| (0, agents))),
    ] {
        let mut group = criterion.benchmark_group(group);
        for (rules, agents) in sizes {
            let policy = load(files(rules, agents));
            assert_eq!(ask(&request, &capability, &control, &policy), Decision::Allow);
            group.bench_function(BenchmarkId::from_parameter(rules + agents), |bencher| {
                bencher.iter(|| ask(black_box(&request), &capability, &control, &policy));
            });
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("decide/facts");
    for facts in [10, 100, 1_000] {
        let policy = load(with_facts(facts));
        assert_eq!(ask(&request, &capability, &control, &policy), Decision::Allow);
        group.bench_function(BenchmarkId::from_parameter(facts), |bencher| {
            bencher.iter(|| ask(black_box(&request), &capability, &control, &policy));
        });
    }
    group.finish();
    // Facts that come with the request cannot be prepared when the policy is loaded.
    let policy = load(with_facts(1_000));
    let mut group = criterion.benchmark_group("decide/arguments");
    for values in [10, 100, 500] {
        let request = Request { arguments: parameters(values), ..request.clone() };
        assert_eq!(ask(&request, &capability, &control, &policy), Decision::Allow);
        group.bench_function(BenchmarkId::from_parameter(values), |bencher| {
            bencher.iter(|| ask(black_box(&request), &capability, &control, &policy));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("policy/load");
    for rules in [10, 100, 1_000] {
        let bundle = PolicyBundle(files(rules, 0));
        group.bench_function(BenchmarkId::from_parameter(format!("{rules}_rules")), |bencher| {
            bencher.iter(|| PolicySet::load(black_box(&bundle)).unwrap());
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    ed25519_verify(&mut criterion);
    biscuit_auth_alone(&mut criterion);
    capability(&mut criterion);
    deciding(&mut criterion);
    growing(&mut criterion);
    criterion.final_summary();
}
