//! `list`, `read` and `write` below one folder.
//!
//! Two locks. The gate takes a path only in its one plain form: names with slashes between them, nothing to resolve,
//! decode or fold. Then the path is walked, not handed over: each folder is opened below the one before it, and
//! symbolic links are not followed, so that whatever stands on the disk, the walk does not leave the root. What it
//! arrives at has to be a regular file or a folder.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use writ_common::{
    datalog::{Predicate, Term},
    decide::Gate,
    digest::Digest,
    ids::Action,
    json::Value,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    verdict::Permit,
    visible::is_invisible,
};

use super::{Tool, ToolOutput, ToolSetupError, tool_failed, unknown_action};
use crate::guard::ToolFailure;

/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 1_024;
/// Most names in a path.
const PATH_NAMES_MAX: usize = 32;
/// Longest name, in bytes; what common file systems take.
const NAME_BYTES_MAX: usize = 255;
/// How long the disk may take; a network file system may take for ever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a folder that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesSettings {
    /// The folder.
    pub root: PathBuf,
    /// Whether files may be written at all.
    pub is_writable: bool,
    /// Largest file that is read or written, in bytes.
    pub bytes_max: usize,
    /// Most entries of a list.
    pub entries_max: usize,
}

/// A folder that is served.
pub struct Files {
    root: Arc<OwnedFd>,
    settings: FilesSettings,
    counter: Arc<AtomicU64>,
}

impl Files {
    /// Opens the folder; what is renamed over it later is not followed.
    ///
    /// # Errors
    /// [`ToolSetupError::Path`] if it is no folder that can be opened.
    pub fn open(settings: FilesSettings) -> Result<Self, ToolSetupError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&settings.root, flags, Mode::empty())
            .map_err(|error| ToolSetupError::Path { path: settings.root.clone(), why: error.to_string() })?;
        Ok(Self { root: Arc::new(root), settings, counter: Arc::default() })
    }
}

/// A path below the root: plain names, at least none of which hides, leaves or hints at something else.
#[derive(Debug)]
struct PlainPath(Vec<String>);

impl PlainPath {
    /// # Errors
    /// `arg.path`
    fn parse(text: &str) -> Result<Self, Reason> {
        let refused = |why: &str| Err(Reason::new(ReasonCode::ArgPath).told(format_args!("`/path` {why}")));
        if writ_common::red::off("A04") {
            return Ok(Self(text.split('/').map(str::to_owned).collect()));
        }
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if text.len() > PATH_BYTES_MAX {
            return refused(&format!("is longer than {PATH_BYTES_MAX} bytes"));
        }
        if text.starts_with('/') {
            return refused("begins with a slash; paths are relative to the tool's folder");
        }
        if text.contains(is_invisible) {
            return refused("holds characters that do not show");
        }
        if text.contains(['\\', ':']) {
            return refused("holds a backslash or a colon; names are separated by `/`");
        }
        // Not decoded here, and so not by anything behind us either.
        let has_escape = text
            .split('%')
            .skip(1)
            .any(|rest| rest.chars().take(2).filter(char::is_ascii_hexdigit).count() == 2);
        if has_escape {
            return refused("holds a percent escape; write the character itself");
        }
        let names: Vec<String> = text.split('/').map(str::to_owned).collect();
        if names.len() > PATH_NAMES_MAX {
            return refused(&format!("has more than {PATH_NAMES_MAX} names"));
        }
        for name in &names {
            match name.as_str() {
                "" => return refused("has an empty name in it"),
                "." | ".." => return refused("has `.` or `..` in it; write the path as it is"),
                hidden if hidden.starts_with('.') => return refused("names something hidden"),
                long if long.len() > NAME_BYTES_MAX => return refused("has a name that is too long"),
                _ => {}
            }
        }
        Ok(Self(names))
    }

    fn fact(&self) -> Predicate {
        Predicate::new("path", [Term::str(self.0.join("/"))])
    }
}

/// What is asked for.
enum Request {
    List(PlainPath),
    Read(PlainPath),
    Write(PlainPath, Vec<u8>),
}

impl Request {
    fn path(&self) -> &PlainPath {
        match self {
            Self::List(path) | Self::Read(path) | Self::Write(path, _) => path,
        }
    }
}

impl Files {
    /// # Errors
    /// Why not, by arguments and settings alone.
    fn request(&self, action: &Action, arguments: &Value) -> Result<Request, Reason> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or_default();
        let path = PlainPath::parse(text("path"))?;
        let is_root = path.0.is_empty();
        let no_file = || Reason::new(ReasonCode::ArgPath).told("`/path` names no file");
        match action.as_str() {
            "list" => Ok(Request::List(path)),
            "read" | "write" if is_root => Err(no_file()),
            "read" => Ok(Request::Read(path)),
            "write" if !self.settings.is_writable => {
                Err(Reason::new(ReasonCode::ArgInvalid).told("this folder is served for reading only"))
            }
            "write" => {
                let content = text("text").as_bytes().to_vec();
                if content.len() > self.settings.bytes_max {
                    return Err(Reason::new(ReasonCode::ArgInvalid)
                        .told(format_args!("`/text` has more than {} bytes", self.settings.bytes_max)));
                }
                Ok(Request::Write(path, content))
            }
            _ => Err(unknown_action(action)),
        }
    }
}

impl Gate for Files {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        Ok(vec![self.request(action, arguments)?.path().fact()])
    }
}

#[async_trait]
impl Tool for Files {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let request = self.request(permit.action(), permit.arguments().value()).map_err(not_run)?;
        let changes_something = matches!(request, Request::Write(..));
        let (root, settings, counter) =
            (Arc::clone(&self.root), self.settings.clone(), Arc::clone(&self.counter));
        let work = tokio::task::spawn_blocking(move || match request {
            Request::List(path) => list(&root, &path, settings.entries_max),
            Request::Read(path) => read(&root, &path, settings.bytes_max),
            Request::Write(path, content) => {
                let turn = counter.fetch_add(1, Ordering::Relaxed);
                write(&root, &path, &content, turn)
            }
        });
        match tokio::time::timeout(TIMEOUT, work).await {
            Ok(Ok(result)) => result.map(ToolOutput::from),
            Ok(Err(error)) => Err(tool_failed(error)),
            Err(_) => Err(ToolFailure {
                reason: Reason::new(ReasonCode::ToolTimeout).told("the disk does not answer"),
                status: if changes_something { OutcomeStatus::UnknownOutcome } else { OutcomeStatus::Failed },
            }),
        }
    }
}

fn not_run(reason: Reason) -> ToolFailure {
    ToolFailure { reason, status: OutcomeStatus::NotRun }
}

fn elsewhere(why: &str) -> ToolFailure {
    not_run(Reason::new(ReasonCode::ArgPath).told(format_args!("`/path` {why}")))
}

/// What a step of the walk says if it fails; nothing was done yet.
fn stuck(error: Errno) -> ToolFailure {
    match error {
        // Of O_NOFOLLOW with and without O_DIRECTORY, by system.
        Errno::LOOP | Errno::MLINK => elsewhere("leads over a symbolic link"),
        Errno::NOTDIR => elsewhere("leads over something that is no folder"),
        Errno::NOENT => tool_failed("there is nothing at this path"),
        error => tool_failed(error),
    }
}

fn follow() -> OFlags {
    if writ_common::red::off("A04") { OFlags::empty() } else { OFlags::NOFOLLOW }
}

/// Opens the folder these names lead to.
fn walk(root: &OwnedFd, names: &[String]) -> Result<OwnedFd, ToolFailure> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | follow();
    let mut folder = root.try_clone().map_err(tool_failed)?;
    for name in names {
        check_kind(&folder, name, FileType::Directory)?;
        folder = rustix::fs::openat(&folder, name.as_str(), flags, Mode::empty()).map_err(stuck)?;
    }
    Ok(folder)
}

/// Looks before opening: to open a device is to do something to it already.
fn check_kind(folder: &OwnedFd, name: &str, wanted: FileType) -> Result<(), ToolFailure> {
    if writ_common::red::off("A04") {
        return Ok(());
    }
    let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(stuck)?;
    match FileType::from_raw_mode(found.st_mode) {
        kind if kind == wanted => Ok(()),
        FileType::Symlink => Err(elsewhere("leads over a symbolic link")),
        FileType::Directory => Err(elsewhere("names a folder, not a file")),
        FileType::RegularFile => Err(elsewhere("leads over something that is no folder")),
        _ => Err(elsewhere("names no regular file")),
    }
}

fn split(path: &PlainPath) -> Result<(&[String], &str), ToolFailure> {
    match path.0.as_slice() {
        [folders @ .., name] => Ok((folders, name)),
        [] => Err(elsewhere("names no file")),
    }
}

fn list(root: &OwnedFd, path: &PlainPath, entries_max: usize) -> Result<Value, ToolFailure> {
    let folder = walk(root, &path.0)?;
    let mut entries = Vec::new();
    let mut truncated = false;
    for entry in Dir::read_from(&folder).map_err(tool_failed)? {
        let entry = entry.map_err(tool_failed)?;
        // A name that no path could give is not shown.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if PlainPath::parse(name).is_err() {
            continue;
        }
        let Ok(found) = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => "folder",
            FileType::RegularFile => "file",
            _ => continue,
        };
        if entries.len() == entries_max {
            truncated = true;
            break;
        }
        entries.push((name.to_owned(), kind, found.st_size));
    }
    entries.sort();
    let entries = entries.into_iter().map(|(name, kind, bytes)| {
        [("name", Value::from(name)), ("kind", Value::from(kind)), ("bytes", Value::from(bytes))]
            .into_iter()
            .collect()
    });
    Ok([("entries", Value::Array(entries.collect())), ("truncated", Value::Bool(truncated))]
        .into_iter()
        .collect())
}

fn read(root: &OwnedFd, path: &PlainPath, bytes_max: usize) -> Result<Value, ToolFailure> {
    let (folders, name) = split(path)?;
    let folder = walk(root, folders)?;
    check_kind(&folder, name, FileType::RegularFile)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | follow();
    let opened = rustix::fs::openat(&folder, name, flags, Mode::empty()).map_err(stuck)?;
    // Of what is open, which may not be what stood there a moment ago.
    let found = rustix::fs::fstat(&opened).map_err(tool_failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile && !writ_common::red::off("A04") {
        return Err(elsewhere("names no regular file"));
    }
    let mut content = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    File::from(opened).take(limit).read_to_end(&mut content).map_err(tool_failed)?;
    if content.len() > bytes_max {
        return Err(ToolFailure {
            reason: Reason::new(ReasonCode::ToolResultTooLarge)
                .told(format_args!("the file has more than {bytes_max} bytes")),
            status: OutcomeStatus::Failed,
        });
    }
    let (bytes, digest) = (content.len(), Digest::plain(&content).to_string());
    let content = match String::from_utf8(content) {
        Ok(text) => ("text", text),
        Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
    };
    Ok([
        ("bytes", Value::from(i64::try_from(bytes).unwrap_or(i64::MAX))),
        ("sha256", Value::from(digest)),
        (content.0, Value::from(content.1)),
    ]
    .into_iter()
    .collect())
}

/// Writes beside, then renames into place: readers see the old file or the new one.
fn write(root: &OwnedFd, path: &PlainPath, content: &[u8], turn: u64) -> Result<Value, ToolFailure> {
    let (folders, name) = split(path)?;
    let folder = walk(root, folders)?;
    match check_kind(&folder, name, FileType::RegularFile) {
        Err(failure) if failure.reason.code() == ReasonCode::ArgPath => return Err(failure),
        // A file that is there is replaced, one that is not is made.
        _ => {}
    }
    let beside = format!(".writ-{}-{turn}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let opened = rustix::fs::openat(&folder, &*beside, flags, mode).map_err(stuck)?;
    let mut file = File::from(opened);
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| Ok(rustix::fs::renameat(&folder, &*beside, &folder, name)?));
    if let Err(error) = renamed {
        // What is left behind is hidden, and no path leads to it.
        rustix::fs::unlinkat(&folder, &*beside, AtFlags::empty()).unwrap_or_default();
        return Err(tool_failed(error));
    }
    if rustix::fs::fsync(&folder).is_err() {
        return Err(ToolFailure {
            reason: Reason::new(ReasonCode::ToolFailed).told("written, and may be gone after a power cut"),
            status: OutcomeStatus::UnknownOutcome,
        });
    }
    Ok([
        ("bytes", Value::from(i64::try_from(content.len()).unwrap_or(i64::MAX))),
        ("sha256", Value::from(Digest::plain(content).to_string())),
    ]
    .into_iter()
    .collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::tools::testing::permit;

    fn folder() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("reports/old")).unwrap();
        fs::write(root.join("reports/q3.txt"), "up").unwrap();
        fs::write(root.join("reports/raw"), [0xff, 0x00]).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let settings = FilesSettings { root, is_writable: true, bytes_max: 100, entries_max: 3 };
        let files = Files::open(settings).unwrap();
        (folder, files)
    }

    async fn call(files: &Files, action: &str, arguments: Value) -> Result<String, String> {
        let permit = permit("tool.files", action, &arguments.to_string());
        let result = files.call(permit).await;
        result.map(|output| output.value.to_string()).map_err(|failure| failure.reason.to_string())
    }

    fn at(path: &str) -> Value {
        [("path", Value::from(path))].into_iter().collect()
    }

    fn text_at(path: &str, text: &str) -> Value {
        [("path", Value::from(path)), ("text", Value::from(text))].into_iter().collect()
    }

    #[tokio::test]
    async fn files_are_listed_read_and_written() {
        let (folder, files) = folder();
        let listed = call(&files, "list", at("reports")).await.unwrap();
        for entry in [r#""kind":"folder","name":"old""#, r#"{"bytes":2,"kind":"file","name":"q3.txt"}"#] {
            assert!(listed.contains(entry), "{listed}");
        }
        assert!(listed.ends_with(r#""truncated":false}"#), "{listed}");
        assert!(call(&files, "read", at("reports/q3.txt")).await.unwrap().contains(r#""text":"up""#));
        assert!(call(&files, "read", at("reports/raw")).await.unwrap().contains(r#""base64":"/wA=""#));
        call(&files, "write", text_at("reports/q4.txt", "down")).await.unwrap();
        call(&files, "write", text_at("reports/q3.txt", "changed")).await.unwrap();
        assert_eq!(fs::read(folder.path().join("root/reports/q4.txt")).unwrap(), b"down");
        assert_eq!(fs::read(folder.path().join("root/reports/q3.txt")).unwrap(), b"changed");
        assert!(call(&files, "list", at("reports")).await.unwrap().ends_with(r#""truncated":true}"#));
        assert!(call(&files, "list", at("")).await.unwrap().contains("reports"));
        assert_eq!(fs::read_dir(folder.path().join("root/reports")).unwrap().count(), 4, "nothing beside");
        assert!(
            call(&files, "write", text_at("new/x", "1")).await.unwrap_err().contains("nothing at this path")
        );
    }

    #[test]
    fn a04_a_path_has_one_plain_form() {
        let (_folder, files) = folder();
        let action = Action::parse("read").unwrap();
        for path in [
            "../secret",
            "reports/../../secret",
            "reports/..",
            "./reports/q3.txt",
            "reports/./q3.txt",
            "reports//q3.txt",
            "reports/",
            "",
            "/etc/passwd",
            "//host/share",
            "\\\\host\\share",
            "..\\secret",
            "C:\\secret",
            "C:/secret",
            "file:///etc/passwd",
            "%2e%2e/secret",
            "%2E%2E%2fsecret",
            "reports/q3.txt%00.png",
            "reports/q3.txt\0",
            "reports\n",
            ".ssh/id_ed25519",
            "reports/.hidden",
            "re\u{200b}ports/q3.txt",
            "\u{202e}txt.3q",
        ] {
            let refused = files.admit(&action, &at(path)).map_err(|reason| reason.code());
            assert_eq!(refused, Err(ReasonCode::ArgPath), "{path:?}");
        }
        for path in [&"x".repeat(2_000), &"x/".repeat(40), &"x".repeat(300)] {
            assert!(files.admit(&action, &at(path)).is_err());
        }
        let facts = files.admit(&action, &at("reports/100% sure…/q3.txt")).unwrap();
        assert_eq!(facts[0].to_string(), r#"path("reports/100% sure…/q3.txt")"#);
    }

    /// A04: what stands on the disk cannot lead out either.
    #[tokio::test]
    async fn a04_links_and_devices_lead_nowhere() {
        let (folder, files) = folder();
        let root = folder.path().join("root");
        symlink(folder.path(), root.join("out")).unwrap();
        symlink(folder.path().join("secret"), root.join("link")).unwrap();
        symlink("q3.txt", root.join("reports/inside")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in ["out/secret", "link", "reports/inside", "pipe", "reports", "reports/q3.txt/x"] {
            let refused = call(&files, "read", at(path)).await;
            assert!(refused.as_ref().is_err_and(|text| text.starts_with("arg.path")), "{path}: {refused:?}");
        }
        for path in ["out/new", "link", "pipe", "reports"] {
            let refused = call(&files, "write", text_at(path, "x")).await;
            assert!(refused.as_ref().is_err_and(|text| text.starts_with("arg.path")), "{path}: {refused:?}");
        }
        assert!(call(&files, "list", at("out")).await.unwrap_err().starts_with("arg.path"));
        let listed = call(&files, "list", at("")).await.unwrap();
        assert!(!listed.contains("link") && !listed.contains("pipe") && !listed.contains("out"), "{listed}");
        assert_eq!(fs::read(folder.path().join("secret")).unwrap(), b"secret");
        assert!(!folder.path().join("new").exists());
    }

    #[tokio::test]
    async fn sizes_are_bounded_and_writing_has_to_be_switched_on() {
        let (folder, files) = folder();
        fs::write(folder.path().join("root/long"), "x".repeat(101)).unwrap();
        assert!(call(&files, "read", at("long")).await.unwrap_err().starts_with("tool.result_too_large"));
        let long = text_at("new", &"x".repeat(101));
        assert!(call(&files, "write", long).await.unwrap_err().starts_with("arg.invalid"));
        let settings = FilesSettings { is_writable: false, ..files.settings.clone() };
        let files = Files::open(settings).unwrap();
        assert!(call(&files, "write", text_at("new", "x")).await.unwrap_err().contains("reading only"));
        assert!(!folder.path().join("root/new").exists());
        let missing = FilesSettings { root: folder.path().join("missing"), ..files.settings };
        assert!(Files::open(missing).is_err());
    }
}
