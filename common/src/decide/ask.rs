//! A right that a task asks for beyond what it holds: may it be asked for, whose approval does it take, and for how
//! long could it be had?
//!
//! No `allow` rule is asked: that a rule derives `may_request` is the permission to ask, and people give the right. A
//! `deny` that fires still denies.

use std::collections::BTreeSet;

use super::{
    Allowed, Evidence, Refused, RequestFacts, ambient_facts, apply_rules, approval_needs, check_agent,
    conclude, least, terms_of,
};
use crate::{
    approval::Need,
    capability::{Pins, Right, engine::World},
    datalog::{Predicate, Term},
    ids::ResourceKind,
    json::Value,
    policy::PolicySet,
    reason::{Reason, ReasonCode},
    request::{Arguments, Principal, Request},
    time::{Millis, Timestamp},
    verdict::{GrantBounds, Obligation},
    wire::{RIGHT_VALUE_BYTES_MAX, RIGHT_VALUES_BYTES_MAX, RIGHT_VALUES_MAX},
};

/// The kind of request, and its action.
pub const ASK: &str = "ask";
/// Longest an extra capability can be used.
pub const EXTRA_LIFE_MAX: Millis = Millis::from_secs(300);

/// The member of the arguments that names the right.
const RIGHT: &str = "right";

/// The arguments of a request of this kind.
#[must_use]
pub fn ask_arguments(right: &Right) -> Arguments {
    Arguments::new([(RIGHT, Value::from(right.to_string()))].into_iter().collect())
}

fn asked(request: &Request) -> Option<Right> {
    if request.action.as_str() != ASK {
        return None;
    }
    let named = request.arguments.value().get(RIGHT).and_then(Value::as_str)?;
    Right::parse(named).ok()
}

/// The right as a fact.
pub(super) fn asked_fact(request: &Request) -> Option<Predicate> {
    let right = asked(request)?;
    Some(Predicate::new("asked", [Term::str(right.resource.as_str()), Term::str(right.action.as_str())]))
}

/// Who has to say yes, by the rules that derive `may_request` for this right; nobody if none does.
pub(super) fn needs(world: &mut World, right: &Right) -> Result<Vec<Need>, Reason> {
    let (wanted, verb) = (Term::str(right.resource.as_str()), Term::str(right.action.as_str()));
    let derived = world.facts("may_request", 4)?;
    approval_needs(derived.iter().filter_map(|tuple| match tuple.as_slice() {
        [resource, action, role, count] if *resource == wanted && *action == verb => Some((role, count)),
        _ => None,
    }))
}

pub(super) fn decide(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<Allowed, Refused> {
    let Principal::User { agent, .. } = &request.principal else {
        return Err(ReasonCode::AdminForbidden.into());
    };
    let refused = |why: std::fmt::Arguments<'_>| Reason::new(ReasonCode::RightNotRequestable).told(why);
    let right = asked(request).ok_or_else(|| refused(format_args!("no right is named")))?;
    evidence.control.check_readable()?;
    if evidence.control.is_halted() {
        return Err(ReasonCode::HaltAll.into());
    }
    check_agent(agent, evidence.control, policy)?;
    // A call on an agent hands the capability on, and this one cannot be.
    if right.resource.kind() != ResourceKind::Tool {
        return Err(refused(format_args!("`{right}` is on no tool")).into());
    }
    if policy.contract(&right.resource).and_then(|contract| contract.action(&right.action)).is_none() {
        return Err(Reason::new(ReasonCode::ToolUnknown).told(format_args!("`{right}`")).into());
    }
    let facts = RequestFacts::ambient(ambient_facts(request, now, evidence.label)).joined();
    let mut world = World::run(None, &facts, &policy.program).map_err(Reason::from)?;
    let mut reasons = Vec::new();
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    reasons.retain(|reason| reason.code() != ReasonCode::PolicyNoMatch);
    let needs = needs(&mut world, &right)?;
    if needs.is_empty() && !crate::red::off("D01-right") {
        reasons.push(refused(format_args!("`{right}` cannot be asked for in this task")));
    }
    let life = least(&mut world, "capability_seconds")?.map_or(EXTRA_LIFE_MAX, Millis::from_secs);
    let bounds = GrantBounds {
        rights: BTreeSet::from([right]),
        pins: Pins::default(),
        max_depth: 0,
        task_life: Millis(0),
        capability_life: if crate::red::off("K03-right") { life } else { life.min(EXTRA_LIFE_MAX) },
    };
    let terms = terms_of(&mut world, needs)?;
    conclude(reasons, rules, vec![Obligation::Approval(terms), Obligation::GrantWithin(bounds)])
}

/// The values a right is to be bound to, as facts have them: JSON Pointers with texts, whole numbers and booleans.
///
/// # Errors
/// `arg.invalid`, or what is wrong with the text as JSON.
pub fn bound_values(arguments: &str) -> Result<Vec<(String, Term)>, Reason> {
    let invalid = |why: std::fmt::Arguments<'_>| Reason::new(ReasonCode::ArgInvalid).told(why);
    let parsed = Arguments::parse(arguments)?;
    let Value::Object(members) = parsed.value() else {
        return Err(invalid(format_args!("the values of a right are an object of JSON Pointers")));
    };
    if members.len() > RIGHT_VALUES_MAX || arguments.len() > RIGHT_VALUES_BYTES_MAX {
        return Err(invalid(format_args!(
            "{} values in {} bytes; a right can be bound to {RIGHT_VALUES_MAX} in {RIGHT_VALUES_BYTES_MAX}",
            members.len(),
            arguments.len()
        )));
    }
    let mut values = Vec::new();
    for (path, value) in members {
        let term = match value {
            Value::String(text) => (text.len() <= RIGHT_VALUE_BYTES_MAX).then(|| Term::str(text.as_str())),
            Value::Bool(value) => Some(Term::Bool(*value)),
            Value::Number(number) => number.as_i64().map(Term::Integer),
            _ => None,
        };
        match term {
            Some(term) if path.starts_with('/') && path.len() <= RIGHT_VALUE_BYTES_MAX => {
                values.push((path.clone(), term));
            }
            _ => {
                return Err(invalid(format_args!(
                    "`{path}`: a right is bound by JSON Pointers to short texts, whole numbers and booleans"
                )));
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_scalars_at_json_pointers_and_few() {
        let values = bound_values("{\"/a\":\"x\",\"/b/0\":7,\"/c\":true}").unwrap();
        let paths: Vec<&str> = values.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/a", "/b/0", "/c"]);
        assert_eq!(values[1].1, Term::Integer(7));
        assert_eq!(bound_values("{}"), Ok(Vec::new()));
        let many: Vec<String> = (0..=RIGHT_VALUES_MAX).map(|n| format!("\"/{n:02}\":1")).collect();
        for bad in [
            "[]".to_owned(),
            "{\"a\":1}".to_owned(),
            "{\"/a\":1.5}".to_owned(),
            "{\"/a\":null}".to_owned(),
            "{\"/a\":{\"b\":1}}".to_owned(),
            format!("{{\"/a\":\"{}\"}}", "x".repeat(RIGHT_VALUE_BYTES_MAX + 1)),
            format!("{{{}}}", many.join(",")),
        ] {
            assert_eq!(bound_values(&bad).unwrap_err().code(), ReasonCode::ArgInvalid, "{bad}");
        }
        assert!(bound_values("{\"/b\":1, \"/a\":1}").is_err());
    }
}
