//! The SDK's examples, as programs of their own.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;
use writ_tests::{World, eventually, run};

use crate::WRIT;

/// `cargo test --workspace` has built it; for this package alone, Cargo has to be asked.
fn example(name: &str) -> Command {
    let built = Path::new(WRIT).with_file_name("examples").join(name);
    if built.exists() {
        return Command::new(built);
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "writ-sdk", "--example", name, "--"]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    cargo
}

#[test]
fn the_examples_of_the_sdk_run() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let token = world.tokens.token_for("alice")?;
        let planner = world.layout.agent("planner");
        let run_one = |name: &'static str| {
            let (token, planner) = (token.clone(), planner.clone());
            async move {
                tokio::task::spawn_blocking(move || {
                    example(name).arg(planner).env("WRIT_USER_TOKEN", token).output()
                })
                .await?
                .map_err(anyhow::Error::from)
            }
        };
        let output = run_one("hello").await?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut serving =
            example("serve").arg(world.layout.agent("researcher")).stdout(Stdio::null()).spawn()?;
        let done =
            eventually("the researcher serves", async || Ok(run_one("delegate").await?.status.success()))
                .await;
        serving.kill()?;
        serving.wait()?;
        done?;
        world.close().await;
        Ok(())
    })
}
