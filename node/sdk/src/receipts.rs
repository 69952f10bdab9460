//! Receipts that are kept: each is a node's signed word that a record exists. Whoever has them can show that a node left
//! one out (`writ audit verify --receipts`).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use writ_common::{codec::encode, record::Receipt, signed::Signed};

/// A file of receipts, one a line; or none.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Mutex<Option<File>>);

impl Receipts {
    /// Begins to keep them at the end of a file.
    pub(crate) fn keep_in(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Keeps a receipt that was checked.
    pub(crate) fn keep(&self, receipt: &Signed<Receipt>) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = file.as_mut() else { return };
        // One write for a line: several processes may share the file. The call is over, so its result is not kept back.
        if let Err(error) = file.write_all(format!("{}\n", STANDARD.encode(encode(receipt))).as_bytes()) {
            tracing::error!("a receipt cannot be kept: {error}");
        }
    }
}
