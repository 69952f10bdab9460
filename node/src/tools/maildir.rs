//! `draft`: a message into the drafts of a maildir; nothing is sent. `send`: a message into the outbox, another
//! maildir, from whose `new` the mail system takes it.
//!
//! Delivery is as in <https://cr.yp.to/proto/maildir.html>: write under `tmp`, flush, then rename into place, so
//! that no reader ever sees half a message. Drafts carry the flag `D`.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use lettre::message::Mailbox;
use writ_common::{
    datalog::Predicate, decide::Gate, digest::Digest, ids::Action, json::Value, reason::Reason,
    verdict::Permit,
};

use super::{Tool, ToolOutput, ToolSetupError, mail::Letter, tool_failed, unknown_action};
use crate::guard::ToolFailure;

/// A maildir that drafts are put into, and one that what is to be sent is put into.
pub struct Maildir {
    folder: PathBuf,
    outbox: Option<PathBuf>,
    from: Mailbox,
    counter: AtomicU64,
}

impl Maildir {
    /// Creates the three parts of each folder if need be. Without an `outbox` nothing can be sent.
    ///
    /// # Errors
    /// [`ToolSetupError`] if a folder cannot be written or the sender is no address.
    pub fn open(folder: &Path, outbox: Option<&Path>, from: &str) -> Result<Self, ToolSetupError> {
        let folders = std::iter::once(folder).chain(outbox);
        for path in folders.flat_map(|folder| ["tmp", "new", "cur"].map(|part| folder.join(part))) {
            fs::create_dir_all(&path)
                .map_err(|error| ToolSetupError::Path { path, why: error.to_string() })?;
        }
        let from =
            from.parse().map_err(|error| ToolSetupError::Setting(format!("`from = \"{from}\"`: {error}")))?;
        let (folder, outbox) = (folder.to_owned(), outbox.map(Path::to_owned));
        Ok(Self { folder, outbox, from, counter: AtomicU64::new(0) })
    }

    fn letter(&self, arguments: &Value) -> Result<Letter, Reason> {
        Letter::read(&self.from, arguments)
    }

    /// Puts a message into a maildir: as a draft, or as something new.
    fn deliver(&self, folder: &Path, is_draft: bool, message: &[u8]) -> std::io::Result<String> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.P{}Q{count}.writ", since.as_micros(), std::process::id());
        let tmp = folder.join("tmp").join(&name);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&tmp)?;
        file.write_all(message)?;
        file.sync_all()?;
        let (part, flagged) = if is_draft { ("cur", format!("{name}:2,D")) } else { ("new", name) };
        fs::rename(&tmp, folder.join(part).join(&flagged))?;
        Ok(flagged)
    }
}

impl Gate for Maildir {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        match action.as_str() {
            "draft" => {}
            "send" if self.outbox.is_some() => {}
            _ => return Err(unknown_action(action)),
        }
        Ok(self.letter(arguments)?.facts())
    }
}

#[async_trait]
impl Tool for Maildir {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let letter =
            self.letter(permit.arguments().value()).map_err(|reason| tool_failed(reason.for_caller()))?;
        let message = letter.message.formatted();
        let (folder, word) = match (permit.action().as_str(), &self.outbox) {
            ("send", Some(outbox)) => (outbox, "sent"),
            _ => (&self.folder, "draft"),
        };
        // A few kilobytes to a local folder: not worth a thread of their own.
        let name = self.deliver(folder, word == "draft", &message).map_err(tool_failed)?;
        let digest = Digest::plain(&message).to_string();
        let result: Value =
            [(word, Value::from(name)), ("sha256", Value::from(digest))].into_iter().collect();
        Ok(result.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_appear_whole_and_flagged() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::open(folder.path(), None, "support@acme.example").unwrap();
        let name = maildir.deliver(folder.path(), true, b"message").unwrap();
        assert!(name.ends_with(":2,D"));
        assert_eq!(fs::read(folder.path().join("cur").join(name)).unwrap(), b"message");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }
}
