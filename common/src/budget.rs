//! Budgets: what a task may spend in all, whoever spends it and on whichever node.
//!
//! A policy charges a call to budgets of its task: calls, cents, whatever the rules count. What was spent so far
//! stands on the bus, on one subject per budget, and only grows by compare-and-set: two children of a task, or two
//! nodes, cannot both spend the last of it. It is charged before the intent, and given back if the call is known
//! not to have run. Rows of a result are known only afterwards: as many as there may be are charged before, and what
//! was not needed comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Message, decode},
    control::ControlState,
    ids::{BudgetId, NodeId, TaskId, TenantId},
    json::Value,
    keys::Purpose,
    reason::{Reason, ReasonCode},
    signed::{Signable, Signed},
    time::Timestamp,
};

/// What one call takes out of one budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The most the task may spend in all.
    pub limit: u64,
    /// What this call takes.
    pub amount: u64,
    /// How much of it is for the rows of its result, which nobody knows before; what is not needed comes back.
    pub rows: Option<u64>,
}

impl Charge {
    /// What comes back once the result is there.
    ///
    /// # Errors
    /// `budget.exhausted`, if it has more rows than were paid for.
    pub fn left_over(&self, budget: &BudgetId, result: &str) -> Result<u64, Reason> {
        // What has no rows to count took all that was set aside.
        let (Some(paid), Some(rows)) = (self.rows, rows_of(result)) else { return Ok(0) };
        match paid.checked_sub(rows) {
            Some(left) => Ok(left),
            None if crate::red::off("A15-rows") => Ok(0),
            None => Err(Reason::new(ReasonCode::BudgetExhausted).told(format_args!(
                "`{budget}`: the result has {rows} rows, and at most {paid} at once are let out"
            ))),
        }
    }
}

/// The rows of a result: of its member `rows`, or its own if it is a list.
fn rows_of(result: &str) -> Option<u64> {
    let value = Value::parse_canonical(result).ok()?;
    let rows = if matches!(value, Value::Array(_)) { Some(&value) } else { value.get("rows") };
    match rows? {
        Value::Array(rows) => u64::try_from(rows.len()).ok(),
        _ => None,
    }
}

/// What one call takes out of the budgets of its task.
pub type Charges = BTreeMap<BudgetId, Charge>;

/// What was spent of a budget, as it stands on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetState {
    /// The tenant.
    pub tenant: TenantId,
    /// The task.
    pub task: TaskId,
    /// The budget.
    pub budget: BudgetId,
    /// Spent so far.
    pub spent: u64,
    /// The node that charged it last.
    pub node: NodeId,
    /// When.
    pub at: Timestamp,
}

impl Signable for BudgetState {
    const PURPOSE: Purpose = Purpose::Budget;
    const KIND: &'static str = "budget";
}

impl Message for Signed<BudgetState> {
    const KIND: &'static str = "budget";
    const BYTES_MAX: usize = 4 * 1024;
}

impl BudgetState {
    /// Reads a state; only an enrolled node's word for this very budget counts, by the key it has now.
    ///
    /// # Errors
    /// `budget.unavailable`: what was spent is not known, so nothing more is.
    pub fn open(
        bytes: &[u8],
        tenant: &TenantId,
        task: &TaskId,
        budget: &BudgetId,
        control: &ControlState,
    ) -> Result<Self, Reason> {
        let unreadable = |why: String| Reason::new(ReasonCode::BudgetUnavailable).noted(why);
        let signed: Signed<Self> = decode(bytes).map_err(|error| unreadable(error.to_string()))?;
        let claimed = signed.peek().map_err(|error| unreadable(error.to_string()))?;
        // Records of a key that was withdrawn stay what they are; what it says of today does not count.
        let node = control.nodes().get(&claimed.node);
        let state = signed
            .open(|key| node.is_some_and(|node| node.key == *key) || crate::red::off("D07-key"))
            .map_err(|error| unreadable(error.to_string()))?;
        if state.tenant != *tenant || state.task != *task || state.budget != *budget {
            return Err(unreadable("it is about another budget".to_owned()));
        }
        Ok(state)
    }
}

/// What is spent after a charge.
///
/// # Errors
/// `budget.exhausted`.
pub fn charged(budget: &BudgetId, spent: u64, charge: Charge) -> Result<u64, Reason> {
    let total = spent.checked_add(charge.amount);
    match total {
        Some(total) if total <= charge.limit || crate::red::off("D07") => Ok(total),
        _ => Err(Reason::new(ReasonCode::BudgetExhausted).told(format_args!(
            "`{budget}`: {spent} of {} is spent, and this takes {}",
            charge.limit, charge.amount
        ))),
    }
}

/// Charges that are on the bus, made by whoever put them there. Discharges the obligation.
#[derive(Debug)]
pub struct Spent<'a>(pub &'a Charges);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::encode,
        control::{ControlDocument, ControlEvent},
        keys::PrivateKey,
        keyset::{KeysetDocument, KeysetKey},
        time::Millis,
    };

    #[test]
    fn d07_a_withdrawn_key_says_nothing_of_what_was_spent() {
        let key = |seed: u8| PrivateKey::from_seed(&[seed; 32]);
        let tenant = TenantId::parse("acme").unwrap();
        let now = Timestamp::from_secs(1_800_000_000);
        let keyset = KeysetDocument {
            version: 1,
            issued_at: now,
            expires: now.after(Millis::from_secs(60)),
            keys: vec![KeysetKey {
                public: key(2).public(),
                tenants: vec![tenant.clone()],
                max_ttl: Millis::from_secs(60),
                not_before: Timestamp::default(),
                not_after: now.after(Millis::from_secs(60)),
            }],
            withdrawn: Vec::new(),
        };
        let node = NodeId::parse("node-1").unwrap();
        let node_key = |seed: u8| ControlEvent::NodeKey {
            node: node.clone(),
            key: key(seed).public(),
            connection: "N".to_owned(),
        };
        let mut control = ControlState::new(tenant.clone(), key(1).public());
        let mut apply = |sequence: u64, event: ControlEvent| {
            let (tenant, follows) = (tenant.clone(), control.epoch());
            let document =
                ControlDocument { tenant, at: now, by: "broker broker-1".to_owned(), follows, event };
            control.apply(sequence, &encode(&Signed::new(&document, &key(2)))).unwrap();
            control.clone()
        };
        apply(1, ControlEvent::Keyset(Signed::new(&keyset, &key(1))));
        let before = apply(2, node_key(3));
        let after = apply(3, node_key(4));
        let (task, budget) = (TaskId::parse("t-1").unwrap(), BudgetId::parse("cents").unwrap());
        let state = BudgetState {
            tenant: tenant.clone(),
            task: task.clone(),
            budget: budget.clone(),
            spent: 0,
            node: node.clone(),
            at: now,
        };
        let open = |seed: u8, control: &ControlState| {
            let bytes = encode(&Signed::new(&state, &key(seed)));
            BudgetState::open(&bytes, &tenant, &task, &budget, control).map_err(|reason| reason.code())
        };
        assert_eq!(open(3, &before), Ok(state.clone()));
        assert_eq!(open(3, &after), Err(ReasonCode::BudgetUnavailable));
        assert_eq!(open(4, &after), Ok(state.clone()));
    }

    #[test]
    fn d07_the_last_of_it_is_spent_once() {
        let budget = BudgetId::parse("cents").unwrap();
        let charge = |amount| Charge { limit: 100, amount, rows: None };
        assert_eq!(charged(&budget, 0, charge(100)), Ok(100));
        assert_eq!(charged(&budget, 100, charge(0)), Ok(100));
        for (spent, amount) in [(100, 1), (1, 100), (u64::MAX, 1)] {
            let reason = charged(&budget, spent, charge(amount)).unwrap_err();
            assert_eq!(reason.code(), ReasonCode::BudgetExhausted);
        }
    }

    #[test]
    fn a15_rows_that_were_not_needed_come_back_and_more_are_not_let_out() {
        let budget = BudgetId::parse("rows").unwrap();
        let charge = Charge { limit: 100, amount: 12, rows: Some(2) };
        let left = |result| charge.left_over(&budget, result).map_err(|reason| reason.code());
        assert_eq!(left(r#"{"columns":["n"],"rows":[[1]]}"#), Ok(1));
        assert_eq!(left("[]"), Ok(2));
        assert_eq!(left("[1,2]"), Ok(0));
        assert_eq!(left("[1,2,3]"), Err(ReasonCode::BudgetExhausted));
        // Without rows nothing is counted, and nothing comes back.
        for result in ["{}", "7", r#"{"rows":3}"#, "no result"] {
            assert_eq!(left(result), Ok(0), "{result}");
        }
        assert_eq!(Charge { rows: None, ..charge }.left_over(&budget, "[]"), Ok(0));
    }
}
