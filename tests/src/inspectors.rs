//! Real inspectors for tests, from PyPI into an environment of their own in the cache folder, on loopback.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use writ::dev::nats_server;

const PRESIDIO: &str = "presidio-analyzer==2.2.366";
const NEMO: &str = "nemoguardrails[server]==0.24.1";
/// One regular expression each way, and no model.
const RAILS: &str = r#"
models: []
rails:
  config:
    regex_detection:
      input: { patterns: ["(?i)ignore (all )?previous instructions"] }
      output: { patterns: ["\\bproject-[0-9]{4}\\b"] }
  input: { flows: ["regex check input"] }
  output: { flows: ["regex check output"] }
"#;

/// A running inspector; it ends when dropped, and with this process.
pub struct InspectorServer {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl InspectorServer {
    /// Presidio's analyzer, with what it recognizes by patterns.
    ///
    /// # Errors
    /// If it cannot be installed or does not start.
    pub fn presidio() -> Result<Self> {
        Self::start("presidio-2.2.366", PRESIDIO, include_str!("presidio_server.py"), tempfile::tempdir()?)
    }

    /// `NeMo` Guardrails, with rails of regular expressions in the configuration `rails`.
    ///
    /// # Errors
    /// If it cannot be installed or does not start.
    pub fn nemo() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("rails"))?;
        fs::write(folder.path().join("rails/config.yml"), RAILS)?;
        Self::start("nemoguardrails-0.24.1", NEMO, include_str!("nemo_server.py"), folder)
    }

    fn start(name: &str, package: &str, script: &str, folder: TempDir) -> Result<Self> {
        let environment = nats_server::cache_folder()?.join(name);
        let python = environment.join("bin/python");
        if !environment.join("installed").exists() {
            done(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
            done(Command::new(&python).args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--only-binary",
                ":all:",
                package,
            ]))?;
            fs::write(environment.join("installed"), package)?;
        }
        let mut child = Command::new(&python)
            .args(["-c", script])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", python.display()))?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut said)?;
        let port = said.trim().parse().with_context(|| format!("{name} says {said:?}"))?;
        Ok(Self { child, port, _folder: folder })
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", Path::new(command.get_program()).display(), said.lines().last().unwrap_or("nothing"));
    }
    Ok(())
}

impl Drop for InspectorServer {
    fn drop(&mut self) {
        // It ends when our end of its standard input closes, however we end.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
