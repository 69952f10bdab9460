//! Declassifying and endorsing: a person's signed word that one call may go on although its task's label is against it.
//!
//! An act is bound to a call digest (resource, action, arguments and task), counts once, and lowers no label: the task
//! holds what it holds. Who may is policy (`may_declassify`, `may_endorse`); which key speaks for whom is control
//! state. It is used up by one claim on the bus, before the intent, that names the call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    approval::{ApprovalClaim, SKEW},
    codec::{Message, decode},
    control::ControlState,
    datalog::Term,
    digest::Digest,
    ids::{Action, ApprovalId, OperatorId, Resource, TaskId, TenantId, UserId},
    keys::Purpose,
    label::Tag,
    policy::Inventory,
    reason::{Reason, ReasonCode},
    record::RecordedAct,
    signed::{Signable, Signed},
    subjects::Subject,
    time::{Millis, Timestamp},
};

/// Longest life of an act.
pub const ACT_LIFE_MAX: Millis = Millis::from_secs(86_400);
/// Longest explanation, in bytes.
pub const ACT_WHY_BYTES_MAX: usize = 500;
/// How long a claim counts for the call that made it: well within the window in which a stream remembers message ids.
const CLAIM_COUNTS: Millis = Millis::from_secs(60);
/// Most acts that are remembered.
const ACTS_MAX: usize = 20_000;

/// What a person lets pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ActKind {
    /// That data with these tags goes there, once.
    Declassify {
        /// The tags.
        tags: BTreeSet<Tag>,
    },
    /// That the arguments are right although nothing else vouches for them.
    Endorse,
}

impl fmt::Display for ActKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declassify { tags } => {
                let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
                write!(f, "declassified {}", tags.join(", "))
            }
            Self::Endorse => f.write_str("endorsed"),
        }
    }
}

/// A person's word on one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelAct {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name; the claim on it bears the same.
    pub id: ApprovalId,
    /// What it lets pass.
    pub kind: ActKind,
    /// The task.
    pub task: TaskId,
    /// What is called.
    pub resource: Resource,
    /// What is done.
    pub action: Action,
    /// The digest of the very call, arguments and all.
    pub call: Digest,
    /// Who says so.
    pub by: OperatorId,
    /// When it was said.
    pub at: Timestamp,
    /// Until when it counts.
    pub expires: Timestamp,
    /// Why, for the record.
    pub why: String,
}

impl Signable for LabelAct {
    const PURPOSE: Purpose = Purpose::Act;
    const KIND: &'static str = "label_act";
}

impl Message for Signed<LabelAct> {
    const KIND: &'static str = "label_act";
    const BYTES_MAX: usize = 16 * 1024;
}

/// An act as it stands on the bus.
#[derive(Clone, Debug)]
struct Known {
    signed: Signed<LabelAct>,
    act: LabelAct,
}

/// Every act of a tenant that may still count, as the fold of the stream.
#[derive(Clone, Debug, Default)]
pub struct Acts {
    known: BTreeMap<ApprovalId, Known>,
    /// Claims by act, with the call that made them, and when.
    claims: BTreeMap<ApprovalId, (Digest, Timestamp)>,
}

impl Acts {
    /// Takes a message of the approvals' subjects; those that are about something else are left alone.
    ///
    /// # Errors
    /// What is wrong with an act.
    pub fn take(&mut self, subject: &str, payload: &[u8], now: Timestamp) -> Result<(), String> {
        match Subject::parse(subject) {
            Ok((tenant, Subject::LabelAct { act: id, by, .. })) => {
                let signed: Signed<LabelAct> = decode(payload).map_err(|error| error.to_string())?;
                let act = signed.peek().map_err(|error| error.to_string())?;
                if act.tenant != tenant || act.id != id || act.by != by {
                    return Err("the act names another tenant, id or person".to_owned());
                }
                if act.expires.since(act.at) > ACT_LIFE_MAX || act.why.len() > ACT_WHY_BYTES_MAX {
                    return Err("the act lives too long or explains too much".to_owned());
                }
                self.known.retain(|_, known| known.act.expires > now);
                let known = &self.known;
                self.claims.retain(|id, _| known.contains_key(id));
                // The first counts: what was signed cannot be exchanged under the same name.
                if self.known.len() < ACTS_MAX && act.expires > now {
                    self.known.entry(id).or_insert(Known { signed, act });
                }
            }
            Ok((_, Subject::ApprovalClaim { approval, .. })) if self.known.contains_key(&approval) => {
                let claim =
                    decode::<Signed<ApprovalClaim>>(payload).ok().and_then(|signed| signed.peek().ok());
                // One that cannot be read uses it up all the same.
                let (call, at) =
                    claim.map_or((Digest::plain(payload), now), |claim| (claim.call_id, claim.at));
                self.claimed(approval, call, at);
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes that a call has used an act up.
    pub fn claimed(&mut self, id: ApprovalId, call_id: Digest, at: Timestamp) {
        self.claims.entry(id).or_insert((call_id, at));
    }

    /// Whether this very call has used the act up just now, so that it may go on under it. Only for as long as the stream
    /// surely remembers the call's own id: afterwards the same call could be let through a second time.
    #[must_use]
    pub fn is_claimed_by(&self, id: &ApprovalId, call_id: &Digest, now: Timestamp) -> bool {
        let is_of = |(by, at): &(Digest, Timestamp)| by == call_id && now.since(*at) < CLAIM_COUNTS;
        self.claims.get(id).is_some_and(is_of)
    }

    /// The acts of a task that are left to this call: unused, or used by itself.
    #[must_use]
    pub fn of(&self, task: &TaskId, call_id: &Digest, now: Timestamp) -> Vec<Signed<LabelAct>> {
        let is_free = |id: &ApprovalId| {
            !self.claims.contains_key(id)
                || self.is_claimed_by(id, call_id, now)
                || crate::red::off("F08-claim")
        };
        let of_task = self.known.iter().filter(|(id, known)| known.act.task == *task && is_free(id));
        of_task.map(|(_, known)| known.signed.clone()).collect()
    }

    /// Acts as records keep them.
    #[must_use]
    pub fn recorded(&self, ids: &BTreeSet<ApprovalId>) -> Vec<RecordedAct> {
        let known = ids.iter().filter_map(|id| self.known.get(id));
        let recorded = known.map(|Known { act, .. }| RecordedAct {
            id: act.id.clone(),
            by: act.by.clone(),
            what: act.kind.to_string(),
        });
        recorded.collect()
    }
}

/// An act whose signature holds and whose author may speak; whether they may say this is the policy's to answer.
#[derive(Clone, Debug)]
pub struct OpenAct {
    /// What was said.
    pub act: LabelAct,
    /// The roles its author has.
    pub roles: BTreeSet<String>,
}

impl OpenAct {
    /// Whether one of the author's roles is named with this word in a relation the rules derived.
    #[must_use]
    pub fn may(&self, permitted: &[Vec<Term>], what: &str) -> bool {
        let named = |tuple: &Vec<Term>| match tuple.as_slice() {
            [Term::Str(role), Term::Str(word)] => self.roles.contains(role.as_str()) && word.as_str() == what,
            _ => false,
        };
        permitted.iter().any(named) || crate::red::off("F08")
    }
}

/// Checks who signed, when, and that nobody speaks for themselves.
///
/// # Errors
/// `declass.unauthorised`.
pub fn open(
    signed: &Signed<LabelAct>,
    control: &ControlState,
    inventory: &Inventory,
    user: &UserId,
    now: Timestamp,
) -> Result<OpenAct, Reason> {
    let refused = |why: String| Reason::new(ReasonCode::DeclassUnauthorised).told(why);
    let act = signed.peek().map_err(|error| refused(error.to_string()))?;
    let by = &act.by;
    let key = control.approver_key(by);
    if signed.open(|signer| key == Some(signer)).is_err() {
        return Err(refused(format!("`{by}` did not sign this")));
    }
    let Some(entry) = inventory.approvers.get(by) else {
        return Err(refused(format!("`{by}` is not in approvers.toml")));
    };
    if entry.users.contains(user.subject()) {
        return Err(refused(format!("`{by}` is the user on whose authority it would be done")));
    }
    // Its clock may be ahead of this one, and evidence has to hold what is relied on against the time it was.
    if act.at.since(now) > SKEW {
        return Err(refused(format!("what `{by}` said is of {}, which is still to come", act.at)));
    }
    if act.expires <= now {
        return Err(refused(format!("what `{by}` said counted until {}", act.expires)));
    }
    let roles = entry.roles.iter().map(ToString::to_string).collect();
    Ok(OpenAct { act, roles })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f08_a_used_act_counts_for_its_call_for_a_moment_and_for_no_other() {
        let (id, call) = (ApprovalId::parse("la-1").unwrap(), Digest::plain(b"call"));
        let at = Timestamp::from_secs(1_800_000_000);
        let mut acts = Acts::default();
        assert!(!acts.is_claimed_by(&id, &call, at));
        acts.claimed(id.clone(), call, at);
        // The first claim counts, whatever comes later.
        acts.claimed(id.clone(), Digest::plain(b"another"), at);
        assert!(acts.is_claimed_by(&id, &call, at.after(Millis::from_secs(59))));
        assert!(!acts.is_claimed_by(&id, &Digest::plain(b"another"), at));
        // By then the stream may have forgotten the call, and would let it through again.
        assert!(!acts.is_claimed_by(&id, &call, at.after(Millis::from_secs(60))));
    }
}
