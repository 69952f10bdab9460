//! A real SMTP server for tests: aiosmtpd, from PyPI, on loopback; it keeps what it is given in a folder.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use writ::dev::nats_server::{Pins, cache_folder, install_wheels};

const REQUIREMENTS: &str = "\
aiosmtpd==1.4.6 --hash=sha256:72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475
atpublic==5.1 --hash=sha256:135783dbd887fbddb6ef032d104da70c124f2b44b9e2d79df07b9da5334825e3
attrs==25.3.0 --hash=sha256:427318ce031701fea540783410126f03899a97ffc6f61596ad581ac2e40e3bc3
";
const VERSION: &str = "aiosmtpd-1.4.6";
const SCRIPT: &str = include_str!("smtp_server.py");

/// A running server; it ends when dropped, and with this process.
pub struct SmtpServer {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl SmtpServer {
    /// Starts a server that keeps letters in `folder`. With a certificate it demands STARTTLS, and then the password
    /// `secret` of the user `support`.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub fn start(folder: &Path, certificate: Option<(&Path, &Path)>) -> Result<Self> {
        let installed = cache_folder()?.join(VERSION);
        let is_there = || installed.join("aiosmtpd").exists();
        if !is_there() {
            let missing = "aiosmtpd is not in the cache";
            install_wheels(&installed, REQUIREMENTS, Pins::Hashes, missing, is_there)?;
        }
        fs::create_dir_all(folder)?;
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).arg(folder).env("PYTHONPATH", &installed);
        if let Some((certificate, key)) = certificate {
            command.arg(certificate).arg(key);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("python3 does not start")?;
        let mut said = String::new();
        let stdout = child.stdout.take().context("the server has no output")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let port = said.trim().parse().with_context(|| format!("the SMTP server says {said:?}"))?;
        Ok(Self { child, port, folder: folder.to_owned() })
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it was given: for every letter its recipients, then the letter.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn letters(&self) -> Result<Vec<String>> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.folder)?.map(|item| Ok(item?.path())).collect::<Result<_>>()?;
        files.sort();
        files.into_iter().map(|file| Ok(fs::read_to_string(file)?)).collect()
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        // It ends when our end of its standard input closes, however we end.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
