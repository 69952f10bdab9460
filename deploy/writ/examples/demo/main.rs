//! `cargo demo`: a user's task through three agents, what they may do, and what they are refused.
//!
//! Everything is real: a nats-server, a broker, a node, an `SQLite` file, a maildir. The agents are a program instead
//! of a model, so that every run tells the same story.

mod attempts;
mod clock;
mod report;
mod story;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use report::Report;
use story::{Story, Voice};
use writ::{
    dev::{DevOptions, DevStack},
    view::Colour,
};

/// Runs the sample story on a set-up of its own.
#[derive(Parser)]
#[command(name = "cargo demo --")]
struct Options {
    /// One JSON object on standard output instead of the story
    #[arg(long)]
    json: bool,
    /// Leave everything running afterwards, with its state in ./.writ-demo
    #[arg(long)]
    keep: bool,
    /// Have bob answer by himself; without it, and on a terminal, the mail waits for an answer from another one
    #[arg(long)]
    yes: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new();
    let result = runtime.context("no threads to run on").and_then(|runtime| runtime.block_on(run(&options)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // With standard error gone there is nobody to tell.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let voice = Voice { is_quiet: options.json, colour: Colour::detect() };
    let is_asked = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let answers_himself = options.yes || options.json || !is_asked;
    let telemetry = writ_telemetry::init("writ-demo", writ_telemetry::LogFormat::Lines)?;
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let folder = if options.keep { fresh_folder()? } else { temporary.path().join(".writ") };
    // A server somebody else wrote, where one can be had.
    let clock = match clock::fetch() {
        Ok(installed) => clock::serve(&folder, &installed).await,
        Err(error) => Err(error),
    };
    let begin = Instant::now();
    let stack = DevStack::start(DevOptions::new(&folder)).await?;
    let ready = begin.elapsed();
    voice.say(format_args!(
        "writ demo: nats-server, broker, node and three agents on this machine, ready in {} ms\n",
        ready.as_millis()
    ))?;
    let task = Box::pin(Story::play(&stack, voice, answers_himself)).await?;
    match &clock {
        Ok(()) => clock::ask(&stack, &stack.agent("planner").await?, story::KIND, voice).await?,
        Err(error) => voice
            .say(format_args!("\nNo MCP server is part of this, since it could not be had: {error:#}"))?,
    }
    let report = Report::read(&stack, &task, &folder.join("evidence"), begin.elapsed()).await?;
    if options.json {
        report.print_json()?;
    } else {
        report.print(voice, options.keep)?;
    }
    if options.keep {
        tokio::signal::ctrl_c().await.context("signals cannot be watched")?;
    }
    stack.stop().await;
    telemetry.shutdown();
    Ok(())
}

/// The folder of `--keep`, empty: each run tells the story from its beginning.
fn fresh_folder() -> Result<PathBuf> {
    let folder = PathBuf::from(".writ-demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("{} of an earlier run cannot be removed", folder.display()))?;
    }
    Ok(folder)
}
