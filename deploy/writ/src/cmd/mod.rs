//! The command line: one file per noun.

mod adopt;
mod agent;
mod approval;
mod audit;
mod capability;
mod config;
mod doctor;
mod documents;
mod enforce;
mod explain;
mod halt;
mod key;
mod label;
mod login;
mod mcp;
mod policy;
mod policy_folder;
mod scan;
mod server;
mod task;
mod tools;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::{
    exit::{Exit, code_of},
    operator::{Operator, OperatorProfile},
    view::{Colour, findings},
};

/// The runtime authority layer for AI agents.
#[derive(Parser)]
#[command(name = "writ", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options every command has.
#[derive(Args, Clone)]
pub struct Common {
    /// How to write what is asked for
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The operator's profile
    #[arg(long, global = true, env = "WRIT_PROFILE", default_value = ".writ/operator.toml")]
    profile: PathBuf,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For spreadsheets; only where the answer is a table
    Csv,
    /// For people
    Table,
    /// One JSON value
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine: bus, broker, node, sample tools, identity provider
    Dev(server::Dev),
    /// Run a broker
    Broker(server::Broker),
    /// Run a node
    Node(server::Node),
    /// Look at, narrow and delegate capabilities
    #[command(subcommand)]
    Capability(capability::Capability),
    /// Agents and their keys
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Tasks
    #[command(subcommand)]
    Task(task::Task),
    /// Tools and their contracts
    #[command(subcommand)]
    Tools(tools::Tools),
    /// What waits for people, and their answers
    #[command(subcommand)]
    Approval(approval::Approval),
    /// What a task holds, where that came from, and letting one call pass in spite of it
    #[command(subcommand)]
    Label(label::Label),
    /// What was decided, and why
    #[command(subcommand)]
    Audit(audit::Audit),
    /// An MCP server for an agent
    Mcp(Box<mcp::Mcp>),
    /// Which MCP servers are configured on this machine, and which of them are governed
    Scan(scan::Scan),
    /// Documents that agents may search
    #[command(subcommand)]
    Documents(documents::Documents),
    /// Policies
    #[command(subcommand)]
    Policy(policy::Policy),
    /// End observing: rules about these tools are obeyed from now on
    Enforce(enforce::Enforce),
    /// Get a user's token from an OIDC issuer, and keep it beside the profile
    Login(login::Login),
    /// Forget the login, here and at the issuer
    Logout(login::Logout),
    /// Keys
    #[command(subcommand)]
    Key(key::Key),
    /// Configuration files
    #[command(subcommand)]
    Config(config::Config),
    /// Stop everything, or let it go on
    Halt(halt::Halt),
    /// Check bus, broker, nodes and streams
    Doctor(doctor::Doctor),
    /// What a reason code means, what brings it about, and what to do
    Explain(explain::Explain),
}

impl Cli {
    /// Refuses a form the answer cannot have, before anything is done.
    fn checked(self) -> Result<Self, clap::Error> {
        let is_table = matches!(&self.command, Command::Audit(audit) if audit.is_table());
        if self.common.output == Output::Csv && !is_table {
            let why = "this command's answer is no table; write it with `-o table` or `-o json`";
            return Err(Self::command().error(clap::error::ErrorKind::ArgumentConflict, why));
        }
        Ok(self)
    }
}

impl Common {
    fn profile_file(&self) -> &Path {
        &self.profile
    }

    fn output(&self) -> Output {
        self.output
    }

    fn profile(&self) -> Result<OperatorProfile> {
        OperatorProfile::load(&self.profile)
    }

    async fn operator(&self) -> Result<Operator> {
        Operator::connect(&self.profile()?).await
    }

    /// Writes an answer: `text` for people, `json` for programs.
    fn say(&self, text: impl std::fmt::Display, json: &Value) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Table => {
                let text = text.to_string();
                out.write_all(text.trim_end().as_bytes())?;
            }
            // Asked for as CSV, an answer that is no table does not get here (`Cli::checked`).
            Output::Csv | Output::Json => serde_json::to_writer_pretty(&mut out, json)?,
        }
        out.write_all(b"\n")?;
        Ok(())
    }

    fn is_for_people(&self) -> bool {
        self.output == Output::Table
    }

    fn colour(&self) -> Colour {
        match self.output {
            Output::Table => Colour::detect(),
            Output::Csv | Output::Json => Colour::Off,
        }
    }
}

/// Parses the command line, does what it says, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is a usage error (clap would say 2, which is `denied`).
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            drop(error.print());
            return exit.into();
        }
    };
    // One provider for TLS in the whole process; a second call in tests is refused and does not matter.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()).into(),
    };
    let exit = match runtime.block_on(run(cli)) {
        Ok(exit) => exit,
        Err(error) => report(&error),
    };
    runtime.shutdown_background();
    exit.into()
}

fn report(error: &anyhow::Error) -> Exit {
    let exit = code_of(error);
    let mut err = std::io::stderr().lock();
    // Findings have their own form; everything else is one line with its causes.
    let written = match error.downcast_ref::<crate::exit::Invalid>() {
        Some(invalid) => match Colour::of_stderr() {
            Some(colour) => writeln!(err, "{}", findings::render(&invalid.0, colour)),
            None => writeln!(err, "{invalid}"),
        },
        None => writeln!(err, "error: {error:#}"),
    };
    drop(written);
    exit
}

async fn run(cli: Cli) -> Result<Exit> {
    let common = cli.common;
    match cli.command {
        Command::Dev(dev) => dev.run(&common).await,
        Command::Broker(broker) => broker.run().await,
        Command::Node(node) => node.run().await,
        Command::Capability(capability) => capability.run(&common).await,
        Command::Agent(agent) => agent.run(&common).await,
        Command::Task(task) => task.run(&common).await,
        Command::Tools(tools) => tools.run(&common).await,
        Command::Approval(approval) => approval.run(&common).await,
        Command::Label(label) => label.run(&common).await,
        Command::Audit(audit) => audit.run(&common).await,
        Command::Mcp(mcp) => mcp.run(&common).await,
        Command::Scan(scan) => scan.run(&common),
        Command::Documents(documents) => documents.run(&common),
        Command::Policy(policy) => policy.run(&common).await,
        Command::Enforce(enforce) => enforce.run(&common).await,
        Command::Login(login) => login.run(&common).await,
        Command::Logout(logout) => logout.run(&common).await,
        Command::Key(key) => key.run(&common),
        Command::Config(config) => config.run(&common),
        Command::Halt(halt) => halt.run(&common).await,
        Command::Doctor(doctor) => doctor.run(&common).await,
        Command::Explain(explain) => explain.run(&common),
    }
}

#[cfg(test)]
mod tests {
    use writ_common::reason::ReasonCode;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command an explanation tells people to run exists.
    #[test]
    fn explanations_name_commands_that_exist() {
        for code in ReasonCode::ALL {
            let page = code.page();
            for text in [page.meaning, page.cause, page.next] {
                for quoted in text.split('`').skip(1).step_by(2) {
                    let Some(command) = quoted.strip_prefix("writ ") else { continue };
                    let words = command.split_whitespace().map(|word| match word {
                        "<id>" | "<task>" => "t-1",
                        "<name>" | "<agent>" => "planner",
                        "<tool>" => "tool.crm",
                        "<folder>" | "<file>" => "/tmp/x",
                        other => other,
                    });
                    let parsed = Cli::try_parse_from(std::iter::once("writ").chain(words));
                    if let Err(error) = parsed {
                        use clap::error::ErrorKind::{DisplayHelp, MissingRequiredArgument};
                        // Naming a command without what it needs is fine; naming one that is not there is not.
                        let exists = matches!(error.kind(), DisplayHelp | MissingRequiredArgument);
                        assert!(exists, "{code}: `{quoted}`: {error}");
                    }
                }
            }
        }
    }
}
