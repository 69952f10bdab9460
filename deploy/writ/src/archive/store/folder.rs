//! An archive in a folder. Files appear whole or not at all, and are on the disk before anybody is told so.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use super::{Listed, Read};

/// A folder.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// It need not be there yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Puts a file; false if there is one of that name.
    pub(super) fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        let (path, file) = self.write(key, bytes)?;
        match file.persist_noclobber(&path) {
            Ok(_) => sync(&path).map(|()| true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error).context("cannot be written"),
        }
    }

    /// Puts a file in the place of another.
    pub(super) fn replace(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let (path, file) = self.write(key, bytes)?;
        file.persist(&path).map_err(|error| error.error).context("cannot be written")?;
        sync(&path)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(PathBuf, NamedTempFile)> {
        let path = self.0.join(key);
        let folder = path.parent().context("has no folder")?;
        // What people wrote and saw is in here: nobody else on the machine needs to read it.
        DirBuilder::new().recursive(true).mode(0o700).create(folder).context("its folder cannot be made")?;
        let mut file = tempfile::Builder::new()
            .prefix(".next-")
            .tempfile_in(folder)
            .context("its folder cannot be written")?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).context("cannot be written")?;
        Ok((path, file))
    }

    /// Reads a file.
    pub(super) fn read(&self, key: &str, bytes_max: u64) -> Result<Read> {
        let file = match File::open(self.0.join(key)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::Nothing),
            Err(error) => return Err(error).context("cannot be read"),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).context("cannot be read")?;
        let is_larger = u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max;
        Ok(if is_larger { Read::Larger } else { Read::Whole(bytes) })
    }

    /// Every file, in no order.
    pub(super) fn list(&self, folder: Option<&str>) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        let mut folders: Vec<String> = vec![folder.unwrap_or_default().to_owned()];
        while let Some(folder) = folders.pop() {
            let items = match fs::read_dir(self.0.join(&folder)) {
                Ok(items) => items,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            for item in items {
                let item = item?;
                let name = item.file_name();
                let name = name.to_string_lossy();
                // Half a file of a run that was killed: it never was one of the archive.
                if name.starts_with(".next-") {
                    continue;
                }
                let key = if folder.is_empty() { name.into_owned() } else { format!("{folder}/{name}") };
                if item.file_type()?.is_dir() {
                    folders.push(key);
                } else {
                    listed.push(Listed { key, bytes: item.metadata()?.len() });
                }
            }
        }
        Ok(listed)
    }

    /// Deletes a file.
    pub(super) fn delete(&self, key: &str) -> Result<()> {
        let path = self.0.join(key);
        match fs::remove_file(&path) {
            Ok(()) => sync(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context("cannot be deleted"),
        }
    }
}

/// A name is on the disk once its folder is.
fn sync(path: &Path) -> Result<()> {
    let folder = path.parent().context("has no folder")?;
    File::open(folder).and_then(|folder| folder.sync_all()).context("its folder cannot be written")
}
