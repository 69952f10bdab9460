//! `writ audit prove` and `writ audit check-proof`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    codec::decode,
    control::ControlState,
    ids::BootId,
    keys::PublicKey,
    record::{DecisionId, Origin, Record},
    signed::Signed,
    tlog::{InclusionProof, LogId, SignedCheckpoint, WitnessName},
};

use super::verify::root_key;
use crate::{
    cmd::Common,
    evidence::{
        folder::{CONTROL, Manifest},
        gather, read,
    },
    exit::Exit,
    operator::Recorded,
    view::records,
};

#[derive(Args)]
pub struct Prove {
    /// The record: `<node or broker>/<run>/<position>`, as receipts and `writ audit tail -o json` name it
    decision: String,
    /// File to write to; `<name>-<run>-<position>.tlog-proof` if absent
    #[arg(long)]
    out: Option<PathBuf>,
}

struct Name {
    origin: String,
    boot: BootId,
    seq: u64,
}

impl Name {
    fn parse(text: &str) -> Result<Self> {
        let tokens: Vec<&str> = text.split('/').collect();
        let [origin, boot, seq] = tokens.as_slice() else {
            bail!("`{text}` names no record; it is `<node or broker>/<run>/<position>`");
        };
        let seq = seq.parse().with_context(|| format!("`{seq}` is no position"))?;
        Ok(Self { origin: (*origin).to_owned(), boot: BootId::parse(*boot)?, seq })
    }

    fn is(&self, id: &DecisionId) -> bool {
        id.origin.name() == self.origin && id.boot == self.boot && id.seq == self.seq
    }
}

impl Prove {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let name = Name::parse(&self.decision)?;
        let operator = common.operator().await?;
        let mut found: Option<(LogId, Vec<u8>)> = None;
        let (heads, leaves) = gather::records(&operator, |message, recorded| {
            let id = recorded.record.as_ref().map(|record| &record.id);
            let is_it = recorded.fault.is_none() && id.is_some_and(|id| name.is(id));
            if let (true, Some(id)) = (is_it, id) {
                let log = LogId {
                    tenant: operator.tenant().clone(),
                    origin: id.origin.clone(),
                    boot: id.boot.clone(),
                };
                found = Some((log, message.payload.to_vec()));
            }
            Ok(is_it)
        })
        .await?;
        let Some((log, envelope)) = found else { bail!("the audit stream has no record {}", self.decision) };
        let head = heads.get(&log).with_context(|| format!("log {log} has no checkpoint yet"))?;
        let said = head.checkpoint();
        let tree = leaves
            .get(&log)
            .and_then(|leaves| leaves.tree(said.size, &said.root))
            .with_context(|| format!("the records of log {log} do not lead to its checkpoint"))?;
        let proof = InclusionProof::of(&tree, name.seq, envelope, head.clone())
            .context("its checkpoint does not cover the record yet; try again in some seconds")?;
        proof.check().context("the stream has another record there than the log")?;
        let out = self.out.unwrap_or_else(|| {
            PathBuf::from(format!("{}-{}-{}.tlog-proof", name.origin, name.boot, name.seq))
        });
        write_new(&out, &proof.to_string())?;
        let text = format!(
            "{}: record {} is number {} of the {} in log {log}\ncheck it anywhere with `writ audit check-proof {} \
             --control <control.jsonl of an export> --root {}`",
            out.display(),
            self.decision,
            name.seq,
            said.size,
            out.display(),
            common.profile()?.root
        );
        common.say(text, &json!({"proof": out, "log": log.to_string(), "size": said.size}))?;
        Ok(Exit::Ok)
    }
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("{} cannot be written", path.display()))
}

#[derive(Args)]
pub struct CheckProof {
    /// The proof
    proof: PathBuf,
    /// An export, or its `control.jsonl`: the keys, which lead to the root's
    #[arg(long, value_name = "FOLDER OR FILE")]
    control: PathBuf,
    /// The offline root's public key (`ed25519:…`)
    #[arg(long, value_parser = root_key)]
    root: PublicKey,
}

impl CheckProof {
    /// Runs without broker, bus or profile.
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let path = self.proof.display();
        let text = fs::read_to_string(&self.proof).with_context(|| format!("{path} cannot be read"))?;
        let proof = InclusionProof::parse(&text).with_context(|| format!("{path}"))?;
        let said = proof.checkpoint.checkpoint();
        let file = match self.control.is_dir() {
            true => {
                let manifest = Manifest::read(&self.control)?;
                anyhow::ensure!(
                    manifest.tenant == said.log.tenant,
                    "the export is of tenant {}, the proof of {}",
                    manifest.tenant,
                    said.log.tenant
                );
                self.control.join(CONTROL)
            }
            false => self.control.clone(),
        };
        let control = read::control_of(&file, ControlState::new(said.log.tenant.clone(), self.root))?;
        let witnessed = check_note(&proof.checkpoint, &control)?;
        proof.check().with_context(|| format!("{path}"))?;
        let record = open(&proof, &control)?;
        let line = records::line(
            &Recorded { sequence: proof.position, record: Some(record.clone()), fault: None },
            common.colour(),
        );
        let text =
            format!("{line}\nis record {} of log {}, {witnessed}: the proof holds", proof.position, said.log);
        common.say(
            text,
            &json!({"record": record, "log": said.log.to_string(), "size": said.size, "holds": true}),
        )?;
        Ok(Exit::Ok)
    }
}

/// Checks who signed a checkpoint, and says who cosigned it.
fn check_note(note: &SignedCheckpoint, control: &ControlState) -> Result<String> {
    let log = &note.checkpoint().log;
    if !control.record_keys(&log.origin).any(|key| note.check(key).is_ok()) {
        bail!("its checkpoint is not signed by a record key of {}", log.origin);
    }
    if matches!(log.origin, Origin::Broker(_)) {
        return Ok("as its broker signed it".to_owned());
    }
    for broker in control.brokers().keys() {
        let origin = Origin::Broker(broker.clone());
        let name = WitnessName(&log.tenant, broker);
        let at = control.record_keys(&origin).find_map(|key| note.check_witness(&name, key).ok());
        if let Some(at) = at {
            return Ok(format!("as {broker} cosigned it at {at}"));
        }
    }
    bail!("no broker has cosigned its checkpoint")
}

fn open(proof: &InclusionProof, control: &ControlState) -> Result<Record> {
    let log = &proof.checkpoint.checkpoint().log;
    let signed: Signed<Record> = decode(&proof.envelope).context("what it proves is no record")?;
    let record = signed
        .open(|key| control.is_record_key(&log.origin, key))
        .with_context(|| format!("what it proves is not signed by a record key of {}", log.origin))?;
    let is_its = record.id.origin == log.origin
        && record.id.boot == log.boot
        && record.id.seq == proof.position
        && record.tenant == log.tenant;
    if !is_its {
        bail!("what it proves is record {}, of another position or log", record.id);
    }
    Ok(record)
}
