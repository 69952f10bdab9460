//! Where archives are: a folder or an S3-compatible bucket, behind the same five verbs.
//!
//! What is put is never overwritten with something else; only `deleted.json`, a list that grows, is replaced. There is
//! no lock: whoever writes says so by what it puts, and one that finds other bytes stops.

mod bucket;
mod folder;

use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use writ_common::visible::visible;

use bucket::Bucket;
use folder::Folder;

/// Most bytes of a key; S3 takes 1,024, and a prefix may stand before it.
const KEY_BYTES_MAX: usize = 512;

/// A place for archives. Its text and its `Debug` say where, never with which credentials.
pub struct Store {
    place: Place,
    shown: String,
}

enum Place {
    Bucket(Box<Bucket>),
    Folder(Folder),
}

/// A file of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its key: names with `/` between them.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// The variables of the environment by their names; those that are empty are not there.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Store {
    /// Opens `s3://bucket/prefix` or a folder, which need not be there yet. Credentials of a bucket come from the
    /// environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` or the file `AWS_SECRET_ACCESS_KEY_FILE` names,
    /// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`. Nothing is asked for yet.
    ///
    /// # Errors
    /// What is missing or not of its form, without any secret.
    pub fn open(text: &str) -> Result<Self> {
        Self::open_in(text, &|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// As [`Store::open`], with another environment.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(text: &str, environment: Environment<'_>) -> Result<Self> {
        let place = match text.split_once("://") {
            Some(("s3", rest)) => Place::Bucket(Box::new(
                Bucket::open(rest, environment).with_context(|| format!("the archive {}", visible(text)))?,
            )),
            Some((scheme, _)) => bail!(
                "an archive is a folder or `s3://bucket/prefix`; `{}://` is not known here",
                visible(scheme)
            ),
            None if text.trim().is_empty() => {
                bail!("an archive is a folder or `s3://bucket/prefix`, not nothing")
            }
            None => Place::Folder(Folder::new(text.into())),
        };
        Ok(Self { place, shown: text.trim_end_matches('/').to_owned() })
    }

    /// Puts a file that is not there, or is there with the same bytes.
    ///
    /// # Errors
    /// [`Taken`] if it is there with others; or if the store cannot be written.
    pub async fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        check_key(key)?;
        let is_new = match &self.place {
            Place::Bucket(bucket) => bucket.put_new(key, bytes).await,
            Place::Folder(folder) => folder.put_new(key, bytes),
        };
        if is_new.with_context(|| self.name(key))? {
            return Ok(());
        }
        let bytes_max = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match self.read(key, bytes_max).await? {
            Read::Whole(there) if there == bytes => Ok(()),
            Read::Whole(_) | Read::Larger => Err(Taken(self.name(key)).into()),
            Read::Nothing => bail!("{}: was there and is gone; is somebody else writing?", self.name(key)),
        }
    }

    /// Puts a file in place of what is there, in one step as others see it.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn replace(&self, key: &str, bytes: &[u8]) -> Result<()> {
        check_key(key)?;
        let done = match &self.place {
            Place::Bucket(bucket) => bucket.replace(key, bytes).await,
            Place::Folder(folder) => folder.replace(key, bytes),
        };
        done.with_context(|| self.name(key))
    }

    /// The bytes of a file; nothing if it is not there.
    ///
    /// # Errors
    /// If it is larger than `bytes_max`, or the store cannot be read.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        match self.read(key, bytes_max).await? {
            Read::Whole(bytes) => Ok(Some(bytes)),
            Read::Nothing => Ok(None),
            Read::Larger => bail!("{}: is larger than the {bytes_max} bytes it may have", self.name(key)),
        }
    }

    /// The bytes of a file, if it has no more than `bytes_max`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn read(&self, key: &str, bytes_max: u64) -> Result<Read> {
        check_key(key)?;
        let read = match &self.place {
            Place::Bucket(bucket) => bucket.read(key, bytes_max).await,
            Place::Folder(folder) => folder.read(key, bytes_max),
        };
        read.with_context(|| self.name(key))
    }

    /// Every file whose key begins with this folder's name (`tenant/part`), or every file, in the order of keys.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, folder: Option<&str>) -> Result<Vec<Listed>> {
        folder.map_or(Ok(()), check_key)?;
        let listed = match &self.place {
            Place::Bucket(bucket) => bucket.list(folder).await,
            Place::Folder(place) => place.list(folder),
        };
        let mut listed = listed.with_context(|| format!("{self} cannot be listed"))?;
        listed.sort();
        Ok(listed)
    }

    /// Deletes a file; one that is not there is deleted already.
    ///
    /// # Errors
    /// If the store does not let it go.
    pub async fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let done = match &self.place {
            Place::Bucket(bucket) => bucket.delete(key).await,
            Place::Folder(folder) => folder.delete(key),
        };
        done.with_context(|| self.name(key))
    }

    /// A file's name for people.
    #[must_use]
    pub fn name(&self, key: &str) -> String {
        format!("{self}/{key}")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&visible(&self.shown))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({self})")
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// It has more bytes than it may have.
    Larger,
    /// There is no such file.
    Nothing,
    /// All of it.
    Whole(Vec<u8>),
}

/// A file that is there with other bytes, and is never overwritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: is there already with other bytes, and an archive is never overwritten")]
pub struct Taken(pub String);

/// Names come from manifests too, and whoever wrote those may be who is under suspicion: nothing leads out of the
/// archive, and nothing means one thing in a folder and another in a bucket.
fn check_key(key: &str) -> Result<()> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    ensure!(
        key.len() <= KEY_BYTES_MAX && key.split('/').all(is_name),
        "`{}` is no name of a file in an archive",
        visible(key)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str, variables: &[(&str, &str)]) -> String {
        let environment = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        format!("{:#}", Store::open_in(text, &environment).unwrap_err())
    }

    #[test]
    fn keys_lead_nowhere_else() {
        for key in ["acme/p0/manifest.json", "acme/p0/leaves/node.node-1.b-1", "a_b"] {
            check_key(key).unwrap();
        }
        let long = "a".repeat(KEY_BYTES_MAX + 1);
        for key in [
            "", "/", "a//b", "../a", "a/..", "a/./b", "/a", "a/", "a\\b", "a b", "a\n", "é", ".hidden", &long,
        ] {
            check_key(key).unwrap_err();
        }
    }

    #[test]
    fn what_is_missing_is_named_and_no_secret_is() {
        let key = ("AWS_ACCESS_KEY_ID", "the-key-id");
        let secret = ("AWS_SECRET_ACCESS_KEY", "the-secret");
        let region = ("AWS_REGION", "eu-central-1");
        for (text, variables, said) in [
            ("", &[][..], "not nothing"),
            ("gs://bucket", &[], "`gs://` is not known here"),
            ("s3://bucket", &[secret, region], "AWS_ACCESS_KEY_ID"),
            ("s3://bucket", &[key, region], "AWS_SECRET_ACCESS_KEY"),
            ("s3://bucket", &[key, secret], "AWS_REGION"),
            ("s3://Bucket", &[key, secret, region], "no name of a bucket"),
            ("s3:///prefix", &[key, secret, region], "no name of a bucket"),
            ("s3://bucket/a b", &[key, secret, region], "no name of a file"),
            ("s3://bucket", &[key, secret, ("AWS_ENDPOINT_URL", "http://example.com")], "loopback"),
            (
                "s3://bucket",
                &[key, secret, ("AWS_ENDPOINT_URL", "https://the-key-id:the-secret@x.example")],
                "credentials",
            ),
            ("s3://bucket", &[key, secret, ("AWS_ENDPOINT_URL", "https://x.example/?the-secret")], "a query"),
            ("s3://bucket", &[key, secret, ("AWS_ENDPOINT_URL", "the-secret")], "is no URL"),
            ("s3://bucket", &[key, secret, ("AWS_SECRET_ACCESS_KEY_FILE", "/f"), region], "both"),
            ("s3://bucket", &[key, ("AWS_SECRET_ACCESS_KEY_FILE", "/no/such/file"), region], "/no/such/file"),
        ] {
            let error = error_of(text, variables);
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains("the-secret"), "{error}");
        }
    }

    #[test]
    fn nothing_shows_credentials() {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "the-key-id"),
            ("AWS_SECRET_ACCESS_KEY", "the-secret"),
            ("AWS_SESSION_TOKEN", "the-token"),
            ("AWS_REGION", "eu-central-1"),
        ];
        let environment = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        let store = Store::open_in("s3://bucket/prefix/", &environment).unwrap();
        assert_eq!(format!("{store} {store:?}"), "s3://bucket/prefix Store(s3://bucket/prefix)");
    }

    #[tokio::test]
    async fn a_folder_keeps_what_it_was_given() {
        let place = tempfile::tempdir().unwrap();
        let where_ = place.path().join("new");
        let store = Store::open(where_.to_str().unwrap()).unwrap();
        assert_eq!(store.list(None).await.unwrap(), Vec::new());
        assert_eq!(store.get("a/b", 10).await.unwrap(), None);
        store.put("a/b", b"one").await.unwrap();
        store.put("a/b", b"one").await.unwrap();
        for other in [b"two".as_slice(), b"on", b"one and more"] {
            let error = store.put("a/b", other).await.unwrap_err();
            assert!(error.is::<Taken>(), "{error:#}");
        }
        assert_eq!(store.get("a/b", 3).await.unwrap(), Some(b"one".to_vec()));
        assert_eq!(store.read("a/b", 2).await.unwrap(), Read::Larger);
        store.replace("a/c", b"1").await.unwrap();
        store.replace("a/c", b"22").await.unwrap();
        store.put("ab/c", b"").await.unwrap();
        let listed = store.list(Some("a")).await.unwrap();
        let of = |key: &str, bytes| Listed { key: key.to_owned(), bytes };
        assert_eq!(listed, [of("a/b", 3), of("a/c", 2)]);
        assert_eq!(store.list(None).await.unwrap().len(), 3);
        store.delete("a/b").await.unwrap();
        store.delete("a/b").await.unwrap();
        assert_eq!(store.list(Some("a")).await.unwrap(), [of("a/c", 2)]);
    }
}
