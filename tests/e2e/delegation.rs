//! Who may hand what to whom.

use anyhow::Result;
use writ_bus::{SystemClock, SystemEntropy};
use writ_common::{
    capability::UnverifiedCapability, control::RevocationTarget, entropy::draw, ids::AgentId,
    keys::PrivateKey, reason::ReasonCode, record::RecordKind, time::Millis, wire::AdminWanted,
};
use writ_sdk::{Error, Narrowing, NewTask, Task, json};
use writ_tests::{Answered, KIND, RawCall, Seen, World, letter, only, read, rights, run};

fn select() -> writ_sdk::Value {
    json::object([("sql", "SELECT name FROM customers".into())])
}

fn seed() -> [u8; 32] {
    draw(&mut SystemEntropy)
}

async fn handed(task: &Task, narrowing: Narrowing) -> Result<UnverifiedCapability> {
    Ok(task.delegate("researcher", narrowing).await?.capability().await?)
}

#[test]
fn a_chain_of_three_agents_acts_and_is_on_record_hop_by_hop() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let mailer = world.agent("mailer").await?;
        let to_researcher = handed(&task, only(["tool.mail:draft", "tool.crm:read"])?).await?;
        let middle = Task::resume(&researcher, to_researcher)?;
        let to_mailer = middle.delegate("mailer", only(["tool.mail:draft"])?).await?.capability().await?;
        let last = Task::resume(&mailer, to_mailer)?;
        let before = world.drafts()?;
        last.call("tool.mail", "draft", letter()).await?;
        assert!(world.drafts()? > before);
        let seen = Seen::read(world, Some(task.id())).await?;
        let (_, verdicted) = seen
            .verdicts()
            .find(|(_, one)| one.what.resource.as_ref().is_some_and(|r| r.as_str() == "tool.mail"))
            .unwrap();
        let hops: Vec<String> =
            verdicted.who.hops.iter().map(|hop| format!("{}>{}", hop.from, hop.to)).collect();
        assert_eq!(hops, ["planner>researcher", "researcher>mailer"]);
        let gave_up: Vec<String> = verdicted.who.hops[1].gave_up.iter().map(ToString::to_string).collect();
        assert_eq!(gave_up, ["tool.crm:read"]);
        assert_eq!(verdicted.who.user.as_ref().unwrap().subject(), "alice");
        Ok(())
    })
}

#[test]
fn d01_more_than_the_grant_is_refused_by_the_broker_and_by_the_node() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let planner = world.agent("planner").await?;
        let token = world.tokens.token_for("alice")?;
        let greedy = NewTask::new(KIND, token.clone(), "").rights(rights(["tool.bank:pay"])?);
        let error = planner.start_task(greedy).await.err().unwrap();
        assert_eq!(error.code(), Some(ReasonCode::DelegationWidening));
        let modest =
            NewTask::new(KIND, token, "").rights(rights(["agent.researcher:invoke", "tool.crm:read"])?);
        let task = planner.start_task(modest).await?;
        let researcher = world.agent("researcher").await?;
        let capability = handed(&task, only(["tool.crm:read", "tool.mail:draft"])?).await?;
        let error = Task::resume(&researcher, capability)?.call("tool.mail", "draft", letter()).await;
        assert_eq!(error.unwrap_err().code(), Some(ReasonCode::RightMissing));
        Ok(())
    })
}

#[test]
fn d01_a_hop_holds_only_what_was_passed_on() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let capability = handed(&task, only(["tool.mail:draft"])?).await?;
        let error = read(&Task::resume(&researcher, capability)?, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::DelegationWidening));
        let seen = Seen::read(world, Some(task.id())).await?;
        let refusal = seen.refusals().last().unwrap();
        assert!(refusal.reason.told.contains("planner"), "{}", refusal.reason.told);
        Ok(())
    })
}

#[test]
fn d02_no_deeper_than_granted_and_not_in_a_circle() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?.identity().holder.clone();
        let mailer = world.agent("mailer").await?.identity().holder.clone();
        let own = planner.identity().holder.clone();
        let (r, m, p) =
            (AgentId::parse("researcher")?, AgentId::parse("mailer")?, AgentId::parse("planner")?);
        let one =
            task.capability().await?.delegate(&own, &r, &researcher.public(), &Narrowing::new(), &seed())?;
        let two = one.delegate(&researcher, &m, &mailer.public(), &Narrowing::new(), &seed())?;
        let back = two.delegate(&mailer, &p, &own.public(), &Narrowing::new(), &seed());
        assert!(back.unwrap_err().to_string().contains("delegation.cycle"), "the library says so already");
        let other = PrivateKey::from_seed(&seed());
        let three = two.delegate(&mailer, &r, &other.public(), &Narrowing::new(), &seed())?;
        let four =
            three.delegate(&other, &m, &PrivateKey::from_seed(&seed()).public(), &Narrowing::new(), &seed());
        assert!(four.unwrap_err().to_string().contains("delegation.depth"));
        Ok(())
    })
}

#[test]
fn d03_a_key_nobody_enrolled_is_no_agent() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let fake = PrivateKey::from_seed(&seed());
        let to = AgentId::parse("researcher")?;
        let capability =
            task.delegate_to_key(to.clone(), fake.public(), Narrowing::new()).capability().await?;
        let bus = world.bus_of("researcher").await?;
        let call = RawCall::signed_by(&fake, &to, &capability, "tool.crm", "read", select())?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::AgentKeyUnknown));
        Ok(())
    })
}

#[test]
fn d03_an_agent_that_is_not_in_the_inventory_cannot_be_in_a_chain() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let fake = PrivateKey::from_seed(&seed());
        let to = AgentId::parse("stranger")?;
        let capability = task.delegate_to_key(to, fake.public(), Narrowing::new()).capability().await?;
        let bus = world.bus_of("researcher").await?;
        let mut call = RawCall::signed_by(
            &fake,
            &AgentId::parse("stranger")?,
            &capability,
            "tool.crm",
            "read",
            select(),
        )?;
        // It has no connection of its own; it borrows one.
        call.agent = AgentId::parse("researcher")?;
        assert!(matches!(call.send(&bus).await?, Answered::Denied(_)));
        let seen = Seen::read(world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), 0);
        Ok(())
    })
}

#[test]
fn d03_a_quarantined_agent_is_out_until_it_is_released() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let middle = Task::resume(&researcher, handed(&task, Narrowing::new()).await?)?;
        read(&middle, "SELECT 1").await?;
        let operator = world.operator().await?;
        let agent = AgentId::parse("researcher")?;
        operator.ask(AdminWanted::Quarantine { agent: agent.clone(), on: true }).await?;
        writ_tests::eventually("the node hears of the quarantine", async || {
            Ok(read(&middle, "SELECT 1").await.err().and_then(|e| e.code())
                == Some(ReasonCode::AgentQuarantined))
        })
        .await?;
        // The delegator is not affected, and may not hand on to it.
        read(&task, "SELECT 1").await?;
        operator.ask(AdminWanted::Quarantine { agent, on: false }).await?;
        writ_tests::eventually("the node hears of the release", async || {
            Ok(read(&middle, "SELECT 1").await.is_ok())
        })
        .await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn d04_nobody_can_claim_to_have_been_delegated_to() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let mailer = world.agent("mailer").await?;
        let own = task.capability().await?;
        // The mailer appends a hop to itself with its own key, as if the planner had.
        let refused = own.delegate(
            &mailer.identity().holder,
            mailer.name(),
            &mailer.identity().holder.public(),
            &Narrowing::new(),
            &seed(),
        );
        assert!(matches!(refused, Err(writ_common::capability::ExtendError::NotHolder)));
        Ok(())
    })
}

#[test]
fn d05_a_longer_expiry_than_the_parents_changes_nothing() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let now = SystemClock::new().now().wall;
        let short = task.narrow(Narrowing::new().until(now.after(Millis::from_secs(2))));
        let long = Narrowing::new().until(now.after(Millis::from_secs(86_400)));
        let capability = short.delegate("researcher", long).await?.capability().await?;
        let middle = Task::resume(&researcher, capability)?;
        read(&middle, "SELECT 1").await?;
        tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
        let error = read(&middle, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::TokenExpired));
        Ok(())
    })
}

#[test]
fn t20_a_fresh_sibling_of_a_revoked_hop_is_revoked_too() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let mailer = world.agent("mailer").await?;
        let one = handed(&task, Narrowing::new()).await?;
        let middle = Task::resume(&researcher, one)?;
        read(&middle, "SELECT 1").await?;
        let operator = world.operator().await?;
        let target = RevocationTarget::Hop {
            capability: task.capability().await?.grant().capability.clone(),
            delegator: planner.identity().holder.public().id(),
            delegatee: researcher.identity().holder.public().id(),
        };
        operator.revoke(target, true).await?;
        let refused = read(&middle, "SELECT 1").await.unwrap_err();
        assert_eq!(refused.code(), Some(ReasonCode::RevokedHop));
        // Made anew it is the same hop, and what hangs below it stays revoked.
        let again = Task::resume(&researcher, handed(&task, Narrowing::new()).await?)?;
        assert_eq!(read(&again, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::RevokedHop));
        let below = middle.delegate("mailer", Narrowing::new()).await?.capability().await?;
        let error = Task::resume(&mailer, below)?.call("tool.mail", "draft", letter()).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::RevokedHop));
        // The delegator goes on.
        read(&task, "SELECT 1").await?;
        Ok(())
    })
}

#[test]
fn policy_says_who_may_delegate_to_whom() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let refused = task.delegate("mailer", Narrowing::new()).await;
        assert!(matches!(refused, Err(Error::NoSuchDelegate(_))), "the broker does not hand out its key");
        // With a key learnt elsewhere the node still says no.
        let mailer = world.agent("mailer").await?;
        let to_key = mailer.identity().holder.public();
        let capability =
            task.delegate_to_key(mailer.name().clone(), to_key, Narrowing::new()).capability().await?;
        let error =
            Task::resume(&mailer, capability)?.call("tool.mail", "draft", letter()).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::DelegationNotAllowed));
        drop(planner);
        Ok(())
    })
}

#[test]
fn narrowed_arguments_hold_for_everybody_below() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let allowed = "SELECT name FROM customers";
        let fixed = Narrowing::new().only_where([(
            writ_sdk::Right::parse("tool.crm:read")?,
            vec![("/sql".to_owned(), writ_common::datalog::Term::str(allowed))],
        )]);
        let middle = Task::resume(&researcher, handed(&task, fixed).await?)?;
        read(&middle, allowed).await?;
        let error = read(&middle, "SELECT email FROM customers").await.unwrap_err();
        assert!(
            matches!(error.code(), Some(ReasonCode::TokenCheckFailed | ReasonCode::DelegationWidening)),
            "{error}"
        );
        Ok(())
    })
}

#[test]
fn d01_a_chain_attached_to_a_tool_call_does_not_stand_in_for_the_callers_own() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let mailer = world.agent("mailer").await?;
        let own = task.capability().await?;
        // The planner may not delegate to the mailer, and hands its own chain along to hide that it did.
        let to_key = mailer.identity().holder.public();
        let handed =
            task.delegate_to_key(mailer.name().clone(), to_key, Narrowing::new()).capability().await?;
        let mut call = RawCall::new(&mailer, &handed, "tool.mail", "draft", letter())?;
        let bus = world.bus_of("mailer").await?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::DelegationNotAllowed));
        call = RawCall::new(&mailer, &handed, "tool.mail", "draft", letter())?;
        call.call.handover = Some(own.as_bytes().to_vec());
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::ArgUnknown));
        Ok(())
    })
}
