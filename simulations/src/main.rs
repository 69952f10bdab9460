//! `cargo run --release -p writ-simulations -- bench`: what a governed call costs on this machine, and
//! `agentdojo <file>`: what Writ lets through of recorded attacks.
//!
//! Real parts on loopback, each in a process of its own. Started under the name `writ` this program is `writ`, so
//! that broker and node can be measured as processes without looking for another binary.

mod agentdojo;
mod audit_index;
mod audit_verify;
mod bench;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

/// The name under which this program is `writ`.
const WRIT: &str = "writ";

/// What Writ costs, measured
#[derive(Parser)]
#[command(name = "writ-simulations")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Decide recorded tasks and attacks
    Agentdojo(Agentdojo),
    /// Measure building the auditors' index, and each question asked of it
    AuditIndex(AuditIndex),
    /// Measure verifying an export
    AuditVerify(AuditIndex),
    /// Measure calls, processes and what they are made of
    Bench(Bench),
    /// Measure a tool of an MCP server, called directly and governed
    Mcp(Bench),
    /// Measure what a record costs on the way of a call
    Record(Bench),
    /// Serves the tool of an MCP server that is measured
    #[command(hide = true)]
    Echo(Echo),
    /// Answers raw requests, as the far end of the baseline
    #[command(hide = true)]
    Responder(Responder),
}

#[derive(Args)]
struct Agentdojo {
    /// The traces, as JSON, gzipped or not
    file: PathBuf,
    /// Have a broker and a node decide, over a nats-server started for it, instead of this process
    #[arg(long)]
    bus: bool,
    /// A folder of rules in place of those that come with this program
    #[arg(long)]
    policy: Option<PathBuf>,
    /// What capabilities hold
    #[arg(long, value_enum, default_value = "oracle")]
    mint: agentdojo::Mint,
    /// One JSON object on standard output instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct AuditIndex {
    /// How many messages the stream has
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    records: u64,
    /// One JSON object on standard output instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Bench {
    /// One JSON object on standard output instead of a table
    #[arg(long)]
    json: bool,
    /// How long each measurement under load takes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

#[derive(Args)]
struct Echo {
    /// On a port of loopback, instead of standard input and output
    #[arg(long)]
    listen: bool,
}

#[derive(Args)]
struct Responder {
    /// The set-up's folder
    #[arg(long)]
    folder: PathBuf,
    /// Bytes of every answer
    #[arg(long)]
    bytes: usize,
}

fn main() -> ExitCode {
    let started_as = std::env::args_os().next();
    if started_as.is_some_and(|name| Path::new(&name) == Path::new(WRIT)) {
        return writ::main();
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().context("no threads to run on");
    match runtime.and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone there is nobody to tell.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Agentdojo(Agentdojo { file, bus, policy, mint, json }) => {
            let place = if bus { agentdojo::Place::Bus } else { agentdojo::Place::InProcess };
            let report = agentdojo::run(&file, policy.as_deref(), mint, place).await?;
            let text = if json { report.json().to_string() } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(())
        }
        Command::AuditIndex(AuditIndex { records, json }) => {
            let report = audit_index::run(records)?;
            let text = if json { serde_json::to_string(&report)? } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(())
        }
        Command::AuditVerify(AuditIndex { records, json }) => {
            let report = audit_verify::run(records)?;
            let text = if json { serde_json::to_string(&report)? } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(())
        }
        Command::Bench(Bench { json, seconds }) => {
            let telemetry = writ_telemetry::init("writ-simulations", writ_telemetry::LogFormat::Lines)?;
            let report = bench::run(std::time::Duration::from_secs(seconds)).await?;
            let text = if json { serde_json::to_string(&report)? } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            telemetry.shutdown();
            Ok(())
        }
        Command::Mcp(Bench { json, seconds }) => {
            let report = bench::mcp::run(std::time::Duration::from_secs(seconds)).await?;
            let text = if json { serde_json::to_string(&report)? } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(())
        }
        Command::Record(Bench { json, seconds }) => {
            let report = bench::record::run(std::time::Duration::from_secs(seconds)).await?;
            let text = if json { serde_json::to_string(&report)? } else { report.table() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(())
        }
        Command::Echo(Echo { listen }) => bench::mcp::echo(listen).await,
        Command::Responder(Responder { folder, bytes }) => bench::baseline::respond(&folder, bytes).await,
    }
}
