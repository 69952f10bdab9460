//! A proof for one record, held to the control stream: rule 12 of deploy/evidence.md.

use super::{
    finding::{Code, Finding, Report},
    open::open,
};
use crate::{control::ControlState, record::Record, tlog::InclusionProof};

/// Everything a proof can lack, and the record it is of, if it is one. The findings are faults: a proof holds if
/// there are none.
#[must_use]
pub fn check_proof(proof: &InclusionProof, control: &ControlState) -> (Report, Option<Record>) {
    let said = proof.checkpoint.checkpoint();
    let log = &said.log;
    let mut report = Report::default();
    if !proof.checkpoint.is_recorders(control) {
        let text = "its checkpoint is not signed by its recorder";
        report.add([Finding::fault(Code::LogSignature, log, text)]);
    }
    if !proof.checkpoint.is_witnessed(control) {
        let text = "no broker has cosigned its checkpoint";
        report.add([Finding::fault(Code::LogUnwitnessed, log, text)]);
    }
    let (opened, record) = match open(control, proof.position, None, &proof.envelope) {
        Ok(opened) => opened,
        Err(finding) => {
            report.add([finding]);
            return (report, None);
        }
    };
    (report.records, report.runs) = (1, 1);
    if opened.log != *log || opened.seq != proof.position {
        let text = format!("is not the record at position {} of {log}", proof.position);
        report.add([Finding::fault(Code::LogFork, &record.id, text)]);
    }
    if let Err(error) = proof.check() {
        report.add([Finding::fault(Code::LogFork, &record.id, error)]);
    }
    (report, Some(record))
}
