//! Rights that a task asks for: by the agent it was given to, granted by people, issued once, for some minutes.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use writ::dev::Layout;
use writ_bus::{SystemClock, SystemEntropy};
use writ_common::{
    approval::{ApprovalDecision, WAITING_PER_TASK_MAX},
    capability::Right,
    control::RevocationTarget,
    entropy::draw,
    keys::PrivateKey,
    reason::ReasonCode,
    record::RecordKind,
    time::Millis,
};
use writ_sdk::{Error, RequestedRight, Task, UnverifiedCapability, json};
use writ_tests::{
    Answered, RawCall, Seen, World, WorldOptions, WritProcess, eventually, letter, only, read, run,
};

use crate::{WRIT, approvals::answer_for, cli::writ, evidence::said_in_evidence};

const WHY: &str = "to look up what Ada ordered";

/// In this world analysts cannot read customer data; the planner may ask for it.
fn asks(layout: &Layout) -> Result<()> {
    World::edit(&layout.policies().join("roles.toml"), "    \"tool.crm:read\",\n", "")?;
    let identity = layout.policies().join("planes/10-identity.datalog");
    let rules = "\nmay_request(\"tool.crm\", \"read\", \"mail-approver\", 1) <- caller(\"planner\");\n";
    std::fs::write(&identity, std::fs::read_to_string(&identity)? + rules)?;
    Ok(())
}

fn asks_briefly(layout: &Layout) -> Result<()> {
    asks(layout)?;
    let identity = layout.policies().join("planes/10-identity.datalog");
    let rules = "capability_seconds(6) <- request(\"ask\");\napproval_seconds(7) <- request(\"ask\");\n";
    std::fs::write(&identity, std::fs::read_to_string(&identity)? + rules)?;
    Ok(())
}

/// Far longer than an extra capability may live.
fn asks_for_an_hour(layout: &Layout) -> Result<()> {
    asks(layout)?;
    let identity = layout.policies().join("planes/10-identity.datalog");
    let rules = "capability_seconds(3600) <- request(\"ask\");\n";
    std::fs::write(&identity, std::fs::read_to_string(&identity)? + rules)?;
    Ok(())
}

/// Bob is alice by another name, and carol has no role any more.
fn only_bob(layout: &Layout) -> Result<()> {
    asks(layout)?;
    let approvers = layout.policies().join("approvers.toml");
    World::edit(&approvers, "users = [\"bob\"]", "users = [\"bob\", \"alice\"]")?;
    let text = std::fs::read_to_string(&approvers)?;
    let dave = "\n[[approver]]\nname = \"dave\"\nroles = [\"mail-approver\"]\nusers = [\"dave\"]\n";
    let (first, second) = text.split_once("name = \"carol\"").unwrap();
    let second = second.replacen("mail-approver", "visitor", 1);
    std::fs::write(&approvers, format!("{first}name = \"carol\"{second}{dave}"))?;
    Ok(())
}

async fn world_of(edit: fn(&Layout) -> Result<()>) -> Result<World> {
    World::with(WorldOptions { edit: Some(edit), ..Default::default() }).await
}

fn crm() -> Right {
    Right::parse("tool.crm:read").unwrap()
}

async fn request(task: &Task) -> Result<RequestedRight> {
    Ok(task.request_right(crm(), WHY).await?)
}

async fn answer(world: &World, who: &str, asked: &RequestedRight, decision: ApprovalDecision) -> Result<()> {
    answer_for(world, who, &asked.approval, decision, Millis::from_secs(600)).await
}

async fn wait(task: &Task, asked: &RequestedRight) -> Result<Task, Error> {
    task.wait_for_right(asked.clone(), Duration::from_secs(30)).await
}

async fn granted(world: &World, task: &Task) -> Result<(RequestedRight, Task)> {
    let asked = request(task).await?;
    answer(world, "bob", &asked, ApprovalDecision::Granted).await?;
    let more = wait(task, &asked).await?;
    Ok((asked, more))
}

/// Asks how it stands until an answer is on its way through, and returns why it does not count.
async fn unusable(task: &Task, asked: &RequestedRight) -> Result<ReasonCode> {
    for _ in 0..50 {
        match task.take_right(asked).await {
            Err(Error::RightWaiting(still)) if still.unusable.is_empty() => {}
            Err(Error::RightWaiting(still)) => return Ok(still.unusable[0].code),
            Err(error) => anyhow::bail!("not waiting: {error}"),
            Ok(_) => anyhow::bail!("it was given"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("every answer counts")
}

#[test]
fn d01_right_is_asked_for_granted_by_bob_and_used() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let Err(Error::Denied(denial)) = read(&task, "SELECT 1").await else { anyhow::bail!("not denied") };
        assert_eq!(denial.code(), Some(ReasonCode::RightMissing));
        let advice = denial.advice().expect("the caller is told").clone();
        assert_eq!(advice.approval[0].to_string(), "1 approval by `mail-approver`");
        let asked = request(&task).await?;
        assert_eq!(asked.missing, advice.approval);
        // Asking how it stands is no second request, and no second record.
        assert!(matches!(task.take_right(&asked).await, Err(Error::RightWaiting(_))));
        assert_eq!(Seen::read(&world, Some(task.id())).await?.count(RecordKind::Hold), 1);
        answer(&world, "bob", &asked, ApprovalDecision::Granted).await?;
        let asked = RequestedRight::from_bytes(&asked.to_bytes())?;
        let more = wait(&task, &asked).await?;
        read(&more, "SELECT 1").await?;
        read(&more, "SELECT 2").await?;
        // The task itself has no more than before.
        let error = read(&task, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::RightMissing));
        let (capability, own) = (more.capability().await?, task.capability().await?);
        let (grant, base) = (capability.grant(), own.grant());
        assert_eq!(grant.rights, [crm()].into());
        assert_eq!(
            (&grant.task, &grant.user, &grant.domain, &grant.holder, grant.max_depth),
            (&base.task, &base.user, &base.domain, &base.holder, 0)
        );
        assert_eq!(grant.capability.beside().as_ref(), Some(&base.capability));
        assert!(capability.expires() <= SystemClock::new().now().wall.after(Millis::from_secs(300)));
        let seen = Seen::read(&world, Some(task.id())).await?;
        let issued = seen.verdicts().find_map(|(_, one)| Some((one.right.as_ref()?, one.approval.as_ref()?)));
        assert_eq!(issued.expect("the hold is on record").0.right, crm());
        let by = seen
            .verdicts()
            .filter(|(_, one)| one.right.as_ref().is_some_and(|right| right.expires.is_some()))
            .filter_map(|(_, one)| one.approval.as_ref()?.by.first())
            .collect::<Vec<_>>();
        assert_eq!(by.iter().map(|who| who.as_str()).collect::<Vec<_>>(), ["bob"]);
        let chain = writ(&world, &["audit", "chain", task.id().as_str()]).await?;
        assert!(chain.out.contains("HOLD  the right tool.crm:read"), "{}", chain.out);
        assert!(chain.out.contains("ALLOW the right tool.crm:read until "), "{}", chain.out);
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        let said = said_in_evidence(&world).await?;
        assert_eq!((said.len(), &said[1]["said"]["approver"]), (2, &serde_json::Value::from("bob")));
        world.close().await;
        Ok(())
    })
}

#[test]
fn d01_right_that_no_rule_lets_be_asked_for_is_not() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let refused = async |task: &Task, right: &str, why: &str| -> Result<ReasonCode> {
            let right = Right::parse(right)?;
            let asked = task.request_right(right.clone(), why).await;
            // With the control off it is only asked for: see whether it is given.
            if let Ok(asked) = &asked {
                anyhow::bail!(
                    "`{right}` can be asked for: {asked}, {:?}",
                    task.take_right(asked).await.is_ok()
                );
            }
            asked.unwrap_err().code().ok_or_else(|| anyhow::anyhow!("no code"))
        };
        let never = ReasonCode::RightNotRequestable;
        // Held already, on no tool, of a tool nobody knows, and without a reason.
        assert_eq!(refused(&task, "tool.mail:draft", WHY).await?, never);
        assert_eq!(refused(&task, "agent.mailer:invoke", WHY).await?, never);
        assert_eq!(refused(&task, "tool.crm:read", " ").await?, ReasonCode::ArgInvalid);
        let narrowed = writ_sdk::NewTask::new(writ_tests::KIND, world.tokens.token_for("alice")?, "test")
            .rights([Right::parse("tool.mail:draft")?]);
        let narrowed = task.agent().start_task(narrowed).await?;
        assert_eq!(refused(&narrowed, "tool.mail:send", WHY).await?, never);
        assert_eq!(refused(&narrowed, "tool.nothing:read", WHY).await?, ReasonCode::ToolUnknown);
        assert_eq!(Seen::read(&world, Some(task.id())).await?.count(RecordKind::Hold), 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn d04_right_is_for_the_agent_the_task_was_given_to() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let handed = task.delegate("researcher", only(["tool.mail:draft"])?).await?.capability().await?;
        let delegated = Task::resume(&researcher, handed)?;
        let error = delegated.request_right(crm(), WHY).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::RightNotRequestable));
        assert!(error.to_string().contains("the agent the task was given to"), "{error}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn t01_right_is_of_use_to_nobody_else_and_for_nothing_else() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (planner, task) = world.task().await?;
        let (_, more) = granted(&world, &task).await?;
        let capability = more.capability().await?;
        let send = async |call: RawCall, who: &str| -> Result<Answered> {
            call.send(&world.bus_of(who).await?).await
        };
        let sql = || json::object([("sql", "SELECT 1".into())]);
        let own = RawCall::new(&planner, &capability, "tool.crm", "read", sql())?;
        assert!(matches!(send(own, "planner").await?, Answered::Done(_)));
        let other = RawCall::new(&planner, &capability, "tool.mail", "draft", letter())?;
        assert_eq!(send(other, "planner").await?, Answered::Denied(ReasonCode::RightMissing));
        // Another agent with the bytes, and the planner's name with another key.
        let mailer = world.agent("mailer").await?;
        let stolen = RawCall::new(&mailer, &capability, "tool.crm", "read", sql())?;
        assert_eq!(send(stolen, "mailer").await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        let stranger = PrivateKey::from_seed(&draw(&mut SystemEntropy));
        let forged = RawCall::signed_by(&stranger, planner.name(), &capability, "tool.crm", "read", sql())?;
        assert_eq!(send(forged, "planner").await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        world.close().await;
        Ok(())
    })
}

#[test]
fn d02_right_cannot_be_handed_on() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let (_, more) = granted(&world, &task).await?;
        let handed = more.delegate("researcher", only(["tool.crm:read"])?).await?.capability().await;
        assert!(matches!(handed, Err(Error::Extend(_))), "it was handed on");
        world.close().await;
        Ok(())
    })
}

#[test]
fn k03_right_ends_after_five_minutes_at_the_latest() -> Result<()> {
    run(async {
        let world = world_of(asks_for_an_hour).await?;
        let (_planner, task) = world.task().await?;
        let (_, more) = granted(&world, &task).await?;
        let ends = more.capability().await?.expires();
        assert!(ends <= SystemClock::new().now().wall.after(Millis::from_secs(300)), "{ends}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn h05_right_and_request_end_and_nothing_renews_them() -> Result<()> {
    run(async {
        let world = world_of(asks_briefly).await?;
        let (planner, task) = world.task().await?;
        let (asked, more) = granted(&world, &task).await?;
        let capability = more.capability().await?;
        read(&more, "SELECT 1").await?;
        let late = request(&task).await?;
        tokio::time::sleep(Duration::from_millis(7_300)).await;
        let error = read(&more, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::TokenExpired));
        // What a renewal gives is the task's own capability, without the right.
        let renewed = Task::resume(&planner, capability)?;
        let error = read(&renewed, "SELECT 1").await.unwrap_err();
        assert!(matches!(error.code(), Some(ReasonCode::RightMissing | ReasonCode::TokenExpired)), "{error}");
        assert_eq!(
            task.take_right(&asked).await.map(drop).unwrap_err().code(),
            Some(ReasonCode::ApprovalExpired)
        );
        answer(&world, "bob", &late, ApprovalDecision::Granted).await?;
        assert_eq!(
            task.take_right(&late).await.map(drop).unwrap_err().code(),
            Some(ReasonCode::ApprovalExpired)
        );
        world.close().await;
        Ok(())
    })
}

#[test]
fn h03_right_is_granted_by_nobody_for_themselves_and_h04_by_nobody_without_the_role() -> Result<()> {
    run(async {
        let world = world_of(only_bob).await?;
        let (_planner, task) = world.task().await?;
        let asked = request(&task).await?;
        answer(&world, "bob", &asked, ApprovalDecision::Granted).await?;
        assert_eq!(unusable(&task, &asked).await?, ReasonCode::ApprovalSelf);
        let asked = request(&task).await?;
        answer(&world, "carol", &asked, ApprovalDecision::Granted).await?;
        assert_eq!(unusable(&task, &asked).await?, ReasonCode::ApprovalRole);
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_right_that_is_refused_is_not_given() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let asked = request(&task).await?;
        answer(&world, "carol", &asked, ApprovalDecision::Refused).await?;
        let error = wait(&task, &asked).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ApprovalRefused));
        assert!(error.to_string().contains("`carol`: as discussed"), "{error}");
        world.close().await;
        Ok(())
    })
}

async fn bytes(task: &Task) -> Result<Vec<u8>> {
    Ok(task.capability().await?.as_bytes().to_vec())
}

#[test]
fn h01_right_is_one_capability_however_often_it_is_asked_after() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let (_planner, other) = world.task().await?;
        let (asked, others) = (request(&task).await?, request(&other).await?);
        assert_ne!(asked.approval, others.approval);
        answer(&world, "bob", &asked, ApprovalDecision::Granted).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // All at once, and once more.
        let all = (0..8).map(|_| {
            let (task, asked) = (task.clone(), asked.clone());
            tokio::spawn(async move { task.take_right(&asked).await })
        });
        let mut given = BTreeSet::new();
        for one in all.collect::<Vec<_>>() {
            match one.await? {
                Ok(more) => drop(given.insert(bytes(&more).await?)),
                Err(Error::RightWaiting(_)) => {}
                Err(error) => anyhow::bail!("{error}"),
            }
        }
        given.insert(bytes(&wait(&task, &asked).await?).await?);
        assert_eq!(given.len(), 1);
        // Bob's yes was for the one task, and the other's request finds nothing of it.
        assert!(matches!(other.take_right(&others).await, Err(Error::RightWaiting(_))));
        let seen = Seen::read(&world, None).await?;
        let issued = seen
            .verdicts()
            .filter(|(_, one)| one.right.as_ref().is_some_and(|right| right.expires.is_some()));
        assert_eq!(issued.count(), 1);
        world.close().await;
        Ok(())
    })
}

#[test]
fn h10_right_after_right_is_not_asked_for_without_end() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        for _ in 0..WAITING_PER_TASK_MAX {
            request(&task).await?;
        }
        let error = task.request_right(crm(), WHY).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ApprovalQuota));
        world.close().await;
        Ok(())
    })
}

#[test]
fn d08_right_is_bound_to_the_values_it_was_asked_for_with() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let values = [("/sql", "SELECT 7".into())];
        let asked = task.request_right_for(crm(), values, WHY).await?;
        let shown = writ(&world, &["approval", "show", asked.approval.as_str()]).await?;
        assert!(shown.out.contains("/sql") && shown.out.contains("\"SELECT 7\""), "{}", shown.out);
        answer(&world, "bob", &asked, ApprovalDecision::Granted).await?;
        let more = wait(&task, &asked).await?;
        read(&more, "SELECT 7").await?;
        let error = read(&more, "SELECT 8").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::TokenCheckFailed));
        world.close().await;
        Ok(())
    })
}

#[test]
fn r01_right_goes_with_the_capability_it_was_given_beside() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let (_, more) = granted(&world, &task).await?;
        read(&more, "SELECT 1").await?;
        let own = task.capability().await?.grant().capability.clone();
        let operator = world.operator().await?;
        operator.revoke(RevocationTarget::Capability(own), true).await?;
        operator.close().await;
        let error = read(&more, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::Revoked));
        let error = task.request_right(crm(), WHY).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::Revoked));
        world.close().await;
        Ok(())
    })
}

/// H07: the broker is killed between the yes and the capability, at every step; at most one comes of an approval.
#[test]
fn h07_right_outlives_kills_of_the_broker() -> Result<()> {
    run(async {
        let edit: fn(&Layout) -> Result<()> = asks;
        let mut world =
            World::with(WorldOptions { start_core: false, edit: Some(edit), ..Default::default() }).await?;
        let root = world.state();
        let _node = WritProcess::start(WRIT, &["node", "--config", "node-1.toml"], &root, "n.log")?;
        let broker = || WritProcess::start(WRIT, &["broker", "--config", "broker.toml"], &root, "b.log");
        let mut running = broker()?;
        eventually("agents are enrolled", async || Ok(world.enroll_missing().await.is_ok())).await?;
        let mut given = 0;
        for round in 0..5u64 {
            let (_planner, task) = world.task().await?;
            let asked = request(&task).await?;
            running.kill()?;
            running = broker()?;
            answer(&world, "bob", &asked, ApprovalDecision::Granted).await?;
            let waiting = tokio::spawn({
                let (task, asked) = (task.clone(), asked.clone());
                async move { task.wait_for_right(asked, Duration::from_secs(60)).await }
            });
            eventually("the claim is made", async || {
                let operator = world.approver("bob").await?;
                let approvals = operator.approvals().await?;
                operator.close().await;
                Ok(approvals.get(&asked.approval).is_some_and(|one| one.claim().is_some()))
            })
            .await?;
            tokio::time::sleep(Duration::from_millis(2 * round)).await;
            running.kill()?;
            running = broker()?;
            match waiting.await? {
                Ok(more) => {
                    given += 1;
                    // The broker may have been away for longer than the node trusts what it heard last.
                    eventually("the right is of use", async || match read(&more, "SELECT 1").await {
                        Err(Error::CouldNotDecide(_)) => Ok(false),
                        read => Ok(read.map(|_| true)?),
                    })
                    .await?;
                }
                // Used, and the broker gone before it could say so: people are asked anew.
                Err(error) if error.code() == Some(ReasonCode::ApprovalConsumed) => {}
                Err(error) => anyhow::bail!("round {round}: {error}"),
            }
        }
        assert!(given >= 1, "nothing was ever given");
        drop(running);
        world.close().await;
        Ok(())
    })
}

#[test]
fn rights_are_listed_shown_and_granted_on_the_command_line() -> Result<()> {
    run(async {
        let world = world_of(asks).await?;
        let (_planner, task) = world.task().await?;
        let asked = task.request_right(crm(), "urgent\u{202e}: see p\u{0430}ge 1").await?;
        let id = asked.approval.as_str();
        let listed = writ(&world, &["approval", "list"]).await?;
        assert!(
            listed.out.contains(id) && listed.out.contains("tool.crm:read  the right, for 5 min"),
            "{}",
            listed.out
        );
        let shown = writ(&world, &["approval", "show", id]).await?;
        for expected in [
            "would give tool.crm:read",
            "to         planner (key ",
            "any arguments",
            "it says    \"urgent\\u{202e}: see p",
            "BEWARE     what it says has characters that are not seen: U+202E",
            "by broker-1",
        ] {
            assert!(shown.out.contains(expected), "{expected}:\n{}", shown.out);
        }
        assert!(!shown.out.contains('\u{202e}') && !shown.out.contains("NOT SIGNED"), "{}", shown.out);
        let bob = ["--profile", ".writ/bob.toml"];
        let granted = writ(&world, &["approval", "grant", id, "--yes", bob[0], bob[1]]).await?;
        assert_eq!((granted.code, granted.out.trim()), (0, format!("{id} granted by bob").as_str()));
        let more = wait(&task, &asked).await?;
        let file = world.folder().join("more.cap");
        std::fs::write(&file, bytes(&more).await?)?;
        assert!(UnverifiedCapability::parse(&std::fs::read(&file)?).is_ok());
        let shown = writ(&world, &["approval", "show", id, "-o", "json"]).await?;
        let shown: serde_json::Value = serde_json::from_str(&shown.out)?;
        assert_eq!((shown["state"].as_str(), shown["right"]["seconds"].as_u64()), (Some("used"), Some(300)));
        world.close().await;
        Ok(())
    })
}
