//! Private key files: readable by their owner and by nobody else, or not read at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use writ_common::keys::PrivateKey;
use zeroize::Zeroizing;

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Its content is no key.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could read or replace it.
    #[error("{}: {why}; repair it with `{repair}`", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// The command that repairs it.
        repair: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> KeyFileError {
    let path = path.to_owned();
    move |source| KeyFileError::Io { path, source }
}

/// Reads a secret file that only its owner, this process's user, can read. Symbolic links are not followed.
///
/// # Errors
/// [`KeyFileError::Unsafe`] names what is wrong and the command that repairs it.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let flags =
        i32::try_from((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits()).unwrap_or(0);
    let open = if writ_common::red::off("K01") {
        File::open(path)
    } else {
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let mut file = open.map_err(|source| {
        if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            KeyFileError::Unsafe {
                path: path.to_owned(),
                why: "is a symbolic link".to_owned(),
                repair: format!("mv \"$(readlink -f {0})\" {0}", path.display()),
            }
        } else {
            KeyFileError::Io { path: path.to_owned(), source }
        }
    })?;
    // Of the file that is open, not of the name, which could point elsewhere by now.
    let metadata = file.metadata().map_err(io_error(path))?;
    let unsafe_file =
        |why: String, repair: String| Err(KeyFileError::Unsafe { path: path.to_owned(), why, repair });
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return unsafe_file("is no regular file".to_owned(), format!("writ key new {}", path.display()));
    }
    if metadata.uid() != own && !writ_common::red::off("K01") {
        let why = format!("belongs to user {}, not to {own}", metadata.uid());
        return unsafe_file(why, format!("chown {own} {}", path.display()));
    }
    if metadata.mode() & 0o077 != 0 && !writ_common::red::off("K01") {
        let why = format!("has mode {:04o}, so others can read it", metadata.mode() & 0o7777);
        return unsafe_file(why, format!("chmod 600 {}", path.display()));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(io_error(path))?;
    Ok(text)
}

/// Reads an Ed25519 private key: `ed25519-private:<64 hex digits>`.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_key(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let text = read_secret(path)?;
    let content = |why| KeyFileError::Content { path: path.to_owned(), why };
    let hex_digits = text
        .trim()
        .strip_prefix("ed25519-private:")
        .ok_or_else(|| content("is no Ed25519 private key; it should begin with `ed25519-private:`"))?;
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(hex_digits, seed.as_mut_slice()).map_err(|_| content("holds no 64 hex digits"))?;
    Ok(PrivateKey::from_seed(&seed))
}

/// Reads a NATS user key: its encoded seed.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_user(path: &Path) -> Result<crate::NatsUser, KeyFileError> {
    let text = read_secret(path)?;
    crate::NatsUser::parse(&text)
        .map_err(|_| KeyFileError::Content { path: path.to_owned(), why: "is no NATS user seed (`SU…`)" })
}

/// Writes a secret to a new file that only its owner can read.
///
/// # Errors
/// [`KeyFileError::Io`], among others if the file exists: keys are never overwritten.
pub fn write_secret(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(io_error(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error(path))
}

/// Writes an Ed25519 private key to a new file.
///
/// # Errors
/// As [`write_secret`].
pub fn write_key(path: &Path, key: &PrivateKey) -> Result<(), KeyFileError> {
    let text = Zeroizing::new(format!("ed25519-private:{}\n", hex::encode(key.seed().as_slice())));
    write_secret(path, &text)
}

/// Makes a folder for secrets that only its owner can look into.
///
/// # Errors
/// [`KeyFileError::Io`].
pub fn make_private_folder(path: &Path) -> Result<(), KeyFileError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn k01_only_private_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        write_key(&path, &PrivateKey::from_seed(&[7; 32])).unwrap();
        assert_eq!(read_key(&path).unwrap().public(), PrivateKey::from_seed(&[7; 32]).public());
        assert!(write_key(&path, &PrivateKey::from_seed(&[8; 32])).is_err(), "overwritten");

        for mode in [0o644, 0o640, 0o660, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_key(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("b.key");
        symlink(&path, &link).unwrap();
        assert!(matches!(read_key(&link), Err(KeyFileError::Unsafe { .. })));
        assert!(read_key(folder.path()).is_err());

        let empty = folder.path().join("c.key");
        write_secret(&empty, "ed25519-private:00\n").unwrap();
        assert!(matches!(read_key(&empty), Err(KeyFileError::Content { .. })));
    }
}
