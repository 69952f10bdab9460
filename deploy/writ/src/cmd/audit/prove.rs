//! `writ audit prove` and `writ audit check-proof`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    control::ControlState,
    evidence::{Code, Finding, Report, check_proof},
    ids::BootId,
    keys::PublicKey,
    record::DecisionId,
    tlog::{InclusionProof, LogId},
};

use super::verify::root_key;
use crate::{
    archive::store::Store,
    cmd::Common,
    evidence::{
        folder::CONTROL,
        gather::{self, Gathered},
        read::control_of,
    },
    exit::Exit,
    operator::Recorded,
    view::records,
};

#[derive(Args)]
pub struct Prove {
    /// The record: `<node or broker>/<run>/<position>`, as receipts and `writ audit tail -o json` name it
    decision: String,
    /// Where parts of the audit stream were put away: a folder, or `s3://bucket/prefix`
    #[arg(long, value_name = "WHERE")]
    archive: Option<String>,
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
        let archive = self.archive.as_deref().map(Store::open).transpose()?;
        let gathered = gather::records(&operator, archive.as_ref(), |message, recorded| {
            let id = recorded.record.as_ref().map(|record| &record.id);
            let is_it = recorded.fault.is_none() && id.is_some_and(|id| name.is(id));
            if let (true, Some(id)) = (is_it, id) {
                found = Some((LogId::of(operator.tenant(), id), message.payload.to_vec()));
            }
            Ok(is_it)
        })
        .await?;
        let Some((log, envelope)) = found else { bail!("the audit stream has no record {}", self.decision) };
        let Gathered { heads, leaves, .. } = gathered;
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
        let path = self.proof.display().to_string();
        let bytes = fs::read(&self.proof).with_context(|| format!("{path} cannot be read"))?;
        let file = if self.control.is_dir() { self.control.join(CONTROL) } else { self.control };
        let mut text = String::new();
        let report = match InclusionProof::parse(&String::from_utf8_lossy(&bytes)) {
            Err(error) => Report::of([Finding::fault(Code::ProofMalformed, &path, error)]),
            Ok(proof) => {
                let log = &proof.checkpoint.checkpoint().log;
                let control = control_of(&file, ControlState::new(log.tenant.clone(), self.root))?;
                let (report, record) = check_proof(&proof, &control);
                if record.is_some() {
                    let by = proof.checkpoint.witness(&control);
                    let by = by.map(|(broker, at)| format!(", which {broker} cosigned at {at}"));
                    text = records::line(
                        &Recorded { sequence: proof.position, record, fault: None },
                        common.colour(),
                    );
                    text += &format!("\nis record {} of log {log}{}", proof.position, by.unwrap_or_default());
                }
                report
            }
        };
        let exit = if report.faults == 0 { Exit::Ok } else { Exit::Failure };
        if exit == Exit::Ok {
            text += ": the proof holds";
        } else {
            let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            text = findings.join("\n");
        }
        common.say(text, &json!(report))?;
        Ok(exit)
    }
}
