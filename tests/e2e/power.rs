//! The power is lost: what is on no disk is gone. While every process stands still its folders are copied without what the
//! kernel has not written yet, and everything is started again from the copy.

use std::{collections::BTreeSet, fs, io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use writ_tests::{PowerLoss, World, WorldOptions, WritProcess, eventually, read, run};

use crate::{
    faults::{broker, copy, node},
    outage::{Evidence, some_calls, whole},
};

/// What broker, node and nats-server keep.
const FOLDERS: [&str; 3] = ["nats/jetstream", "broker", "node-1"];

/// A set-up that was working when the power went.
struct Outage {
    world: World,
    /// Every record the stream had acknowledged.
    acknowledged: BTreeSet<Vec<u8>>,
    /// Bytes that were on no disk.
    bytes: u64,
}

impl Outage {
    /// Works for a while with everything set to `sync`, and loses the power. Nothing where that cannot be told.
    async fn make(sync: Sync) -> Result<Option<Self>> {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let root = world.state();
        let Sync { journals, server } = sync;
        for (file, section) in [("broker.toml", "[broker]"), ("node-1.toml", "[node]")] {
            World::edit(&root.join(file), section, &format!("{section}\nsync = \"{journals}\""))?;
        }
        let memory = "max_memory_store: 256MB";
        World::edit(&root.join("nats/server.conf"), memory, &format!("{memory}{server}"))?;
        world.restart_server(1)?;
        let running = Running::start(&world)?;
        eventually("the broker enrolls", async || Ok(world.enroll_missing().await.is_ok())).await?;
        serves(&world).await?;
        let folders = FOLDERS.map(|folder| root.join(folder));
        running.signal(&world, Signal::STOP)?;
        let Some(power) = PowerLoss::note(root.join("then"), folders.to_vec())? else {
            writeln!(std::io::stderr(), "skipped: this kernel or file system does not say what is written")?;
            return Ok(None);
        };
        running.signal(&world, Signal::CONT)?;
        some_calls(&world, 30).await?;
        let before = whole(&world).await?;
        // The last calls are answered just now; the kernel writes on its own only after seconds.
        some_calls(&world, 1).await?;
        running.signal(&world, Signal::STOP)?;
        let lost = root.join("lost");
        let bytes = power.cut(&lost)?;
        running.kill()?;
        world.nats.signal(Signal::KILL)?;
        for folder in folders {
            fs::remove_dir_all(&folder)?;
            copy(&lost.join(folder.file_name().context("a name")?), &folder)?;
        }
        world.restart_server(1)?;
        let acknowledged = before.messages.into_iter().map(|message| message.bytes).collect();
        Ok(Some(Self { world, acknowledged, bytes }))
    }

    /// How many of the records that had been acknowledged the stream does not have any more.
    async fn lost(&self) -> usize {
        // A stream that is gone altogether has none.
        let left = Evidence::read(&self.world).await.map(|evidence| evidence.messages).unwrap_or_default();
        let left: BTreeSet<Vec<u8>> = left.into_iter().map(|message| message.bytes).collect();
        self.acknowledged.difference(&left).count()
    }
}

/// Waits until broker and node do.
async fn serves(world: &World) -> Result<()> {
    eventually("they serve", async || {
        let served = async {
            let (_planner, task) = world.task().await?;
            anyhow::Ok(read(&task, "SELECT 1").await?)
        };
        // What never comes up is not waited for by every attempt.
        Ok(matches!(tokio::time::timeout(Duration::from_secs(1), served).await, Ok(Ok(_))))
    })
    .await
}

/// When a write counts as written.
struct Sync {
    /// In journals.
    journals: &'static str,
    /// What is added to the settings of the server's streams.
    server: &'static str,
}

struct Running(Vec<WritProcess>);

impl Running {
    fn start(world: &World) -> Result<Self> {
        Ok(Self(vec![broker(world)?, node(world, "node-1")?]))
    }

    /// Signals them and the server.
    fn signal(&self, world: &World, signal: Signal) -> Result<()> {
        self.0.iter().try_for_each(|process| process.signal(signal))?;
        world.nats.signal(signal)
    }

    fn kill(self) -> Result<()> {
        self.0.into_iter().try_for_each(WritProcess::kill)
    }
}

#[test]
fn power_lost_everywhere_takes_nothing_that_was_acknowledged_if_every_write_waits_for_the_disk() -> Result<()>
{
    run(async {
        let sync = Sync { journals: "always", server: ", sync_interval: always" };
        let Some(outage) = Outage::make(sync).await? else { return Ok(()) };
        assert_eq!(outage.lost().await, 0, "{} bytes were not on the disk", outage.bytes);
        // Broker and node take up their folders as they are, and everything goes on.
        let world = &outage.world;
        let running = Running::start(world)?;
        serves(world).await?;
        let after = whole(world).await?;
        assert!(after.messages.len() > outage.acknowledged.len());
        running.kill()?;
        Ok(())
    })
}

/// Without that, it does: what the test above shows is not for want of looking.
#[test]
fn power_lost_with_the_defaults_takes_records_that_were_acknowledged() -> Result<()> {
    run(async {
        let Some(outage) = Outage::make(Sync { journals: "kernel", server: "" }).await? else {
            return Ok(());
        };
        assert!(outage.lost().await > 0, "{} bytes were not on the disk", outage.bytes);
        Ok(())
    })
}
