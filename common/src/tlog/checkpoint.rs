//! Checkpoints: a log's size and root as its recorder signed them, and as a witness cosigned them.
//!
//! A checkpoint is a C2SP signed note over three lines (origin, size, root), and a fourth, `closed`, on the last
//! one of a run. The recorder signs as `<origin>` with its record key, Ed25519 (note algorithm 1). A witness signs
//! as `writ-witness/v1/<tenant>/<broker>` with the broker's record key, over a time too (cosignature/v1, algorithm
//! 4). No text of either begins like another signed thing of Writ's: those all begin with `writ/v1/`.

use signed_note::{Note, Signer, Verifier, VerifierList, key_id};
use tlog_tiles::{Checkpoint as Body, Hash};

use super::LogId;
use crate::{
    control::ControlState,
    digest::Digest,
    ids::{BrokerId, TenantId},
    keys::{PrivateKey, PublicKey},
    record::Origin,
    time::Timestamp,
};

/// Note algorithm of a plain Ed25519 signature (C2SP signed-note).
const ED25519: u8 = 1;
/// Note algorithm of a cosignature with a time (C2SP tlog-cosignature).
const COSIGNATURE: u8 = 4;
/// The line that ends a run's last checkpoint.
const CLOSED: &str = "closed\n";
/// Most bytes of a checkpoint's note.
pub(super) const NOTE_BYTES_MAX: usize = 4 * 1024;

/// Why a note is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note, or not over a checkpoint.
    #[error("is no signed checkpoint: {0}")]
    Malformed(String),
    /// Signed by nobody who may, or not over this text.
    #[error("is not signed by {0}")]
    NotSigned(String),
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub log: LogId,
    /// How many leaves.
    pub size: u64,
    /// Their root.
    pub root: Digest,
    /// Whether the run has ended and there will be no more.
    pub is_closed: bool,
}

/// A witness's name: a broker of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessName<'a>(pub &'a TenantId, pub &'a BrokerId);

impl std::fmt::Display for WitnessName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "writ-witness/v1/{}/{}", self.0, self.1)
    }
}

/// A name and a key as notes know them.
struct NoteKey<'a> {
    name: String,
    algorithm: u8,
    key: PublicKey,
    private: Option<(&'a PrivateKey, Timestamp)>,
}

impl NoteKey<'_> {
    fn id(&self) -> u32 {
        let mut material = vec![self.algorithm];
        material.extend_from_slice(self.key.as_bytes());
        key_id(&self.name, &material)
    }

    /// What is really signed: with a time, that and the note (C2SP tlog-cosignature).
    fn message(&self, text: &[u8], seconds: u64) -> Vec<u8> {
        match self.algorithm {
            COSIGNATURE => [format!("cosignature/v1\ntime {seconds}\n").as_bytes(), text].concat(),
            _ => text.to_vec(),
        }
    }
}

impl Signer for NoteKey<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id()
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, ed25519_dalek::SignatureError> {
        let (private, at) = self.private.ok_or_else(ed25519_dalek::SignatureError::new)?;
        let seconds = at.as_millis() / 1000;
        let signature = private.sign_note(&self.message(text, seconds));
        Ok(match self.algorithm {
            COSIGNATURE => [seconds.to_be_bytes().as_slice(), signature.as_bytes()].concat(),
            _ => signature.as_bytes().to_vec(),
        })
    }
}

impl Verifier for NoteKey<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id()
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let (seconds, signature) = match self.algorithm {
            COSIGNATURE => match signature.split_first_chunk::<8>() {
                Some((seconds, rest)) => (u64::from_be_bytes(*seconds), rest),
                None => return false,
            },
            _ => (0, signature),
        };
        let Ok(signature) = <[u8; 64]>::try_from(signature) else { return false };
        self.key.verify_note(&self.message(text, seconds), &signature).is_ok()
    }
}

/// A note's key for programs that check notes (C2SP signed-note verifier keys).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey(pub String);

impl VerifierKey {
    /// The key a log's checkpoints are signed with.
    #[must_use]
    pub fn of_log(log: &LogId, key: PublicKey) -> Self {
        Self::of(&NoteKey { name: log.to_string(), algorithm: ED25519, key, private: None })
    }

    /// The key a witness cosigns with.
    #[must_use]
    pub fn of_witness(name: &WitnessName<'_>, key: PublicKey) -> Self {
        Self::of(&NoteKey { name: name.to_string(), algorithm: COSIGNATURE, key, private: None })
    }

    fn of(key: &NoteKey<'_>) -> Self {
        let mut material = vec![key.algorithm];
        material.extend_from_slice(key.key.as_bytes());
        Self(format!("{}+{:08x}+{}", key.name, key.id(), base64(&material)))
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A checkpoint as a signed note: what was said is known, who said it is for [`SignedCheckpoint::check`] to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    note: String,
    checkpoint: Checkpoint,
}

impl SignedCheckpoint {
    /// Signs as the log's recorder.
    ///
    /// # Errors
    /// [`NoteError`] never: the text of a checkpoint is a note's.
    pub fn sign(checkpoint: Checkpoint, key: &PrivateKey) -> Result<Self, NoteError> {
        let extension = if checkpoint.is_closed { CLOSED } else { "" };
        let root = Hash(*checkpoint.root.as_bytes());
        let body = Body::new(&checkpoint.log.to_string(), checkpoint.size, root, extension)
            .map_err(|error| NoteError::Malformed(error.to_string()))?;
        let mut note = Note::new(&body.to_bytes(), &[]).map_err(malformed)?;
        let signer = NoteKey {
            name: checkpoint.log.to_string(),
            algorithm: ED25519,
            key: key.public(),
            private: Some((key, Timestamp::from_secs(0))),
        };
        note.add_sigs(&[&signer]).map_err(malformed)?;
        Ok(Self { note: text(&note), checkpoint })
    }

    /// Reads a note. Nothing is verified yet.
    ///
    /// # Errors
    /// [`NoteError::Malformed`].
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Malformed(format!("{} bytes, at most {NOTE_BYTES_MAX}", note.len())));
        }
        let parsed = Note::from_bytes(note.as_bytes()).map_err(malformed)?;
        let body =
            Body::from_bytes(parsed.text()).map_err(|error| NoteError::Malformed(error.to_string()))?;
        let is_closed = match body.extension() {
            "" => false,
            CLOSED => true,
            other => return Err(NoteError::Malformed(format!("an unknown line {other:?}"))),
        };
        let log = LogId::parse(body.origin()).map_err(|error| NoteError::Malformed(error.to_string()))?;
        let root = Digest::from_bytes(body.hash().0);
        Ok(Self { note: note.to_owned(), checkpoint: Checkpoint { log, size: body.size(), root, is_closed } })
    }

    /// What it says.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The note.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Checks that the log's recorder signed it with this key.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`].
    pub fn check(&self, key: &PublicKey) -> Result<(), NoteError> {
        let name = self.checkpoint.log.to_string();
        self.verified(NoteKey { name, algorithm: ED25519, key: *key, private: None }).map(drop)
    }

    /// When this witness cosigned it with this key.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`].
    pub fn check_witness(&self, name: &WitnessName<'_>, key: &PublicKey) -> Result<Timestamp, NoteError> {
        let name = name.to_string();
        let signature =
            self.verified(NoteKey { name: name.clone(), algorithm: COSIGNATURE, key: *key, private: None })?;
        let (seconds, _) =
            signature.signature().split_first_chunk::<8>().ok_or(NoteError::NotSigned(name))?;
        Ok(Timestamp::from_secs(u64::from_be_bytes(*seconds)))
    }

    /// Whether it is of the tenant of this control state, and signed by its recorder with a record key enrolled there.
    #[must_use]
    pub fn is_recorders(&self, control: &ControlState) -> bool {
        let log = &self.checkpoint.log;
        log.tenant == *control.tenant() && control.record_keys(&log.origin).any(|key| self.check(key).is_ok())
    }

    /// Which broker of the tenant cosigned it, and when; the first one found if several did.
    #[must_use]
    pub fn witness<'c>(&self, control: &'c ControlState) -> Option<(&'c BrokerId, Timestamp)> {
        control.brokers().keys().find_map(|broker| {
            let name = WitnessName(control.tenant(), broker);
            let origin = Origin::Broker(broker.clone());
            let at = control.record_keys(&origin).find_map(|key| self.check_witness(&name, key).ok())?;
            Some((broker, at))
        })
    }

    /// Whether it has the witness it needs: a node's needs a broker, a broker's own log is signed by itself alone.
    #[must_use]
    pub fn is_witnessed(&self, control: &ControlState) -> bool {
        matches!(self.checkpoint.log.origin, Origin::Broker(_)) || self.witness(control).is_some()
    }

    fn verified(&self, key: NoteKey<'static>) -> Result<signed_note::Signature, NoteError> {
        let name = key.name.clone();
        let note = Note::from_bytes(self.note.as_bytes()).map_err(malformed)?;
        let verified = note.verify(&VerifierList::new(vec![Box::new(key)]));
        let signatures = verified.map_err(|_| NoteError::NotSigned(name.clone()))?.0;
        signatures.into_iter().next().ok_or(NoteError::NotSigned(name))
    }

    /// Adds a witness's cosignature.
    ///
    /// # Errors
    /// [`NoteError`] never for a checkpoint that was read or signed here.
    pub fn cosign(
        &mut self,
        name: &WitnessName<'_>,
        key: &PrivateKey,
        at: Timestamp,
    ) -> Result<(), NoteError> {
        let mut note = Note::from_bytes(self.note.as_bytes()).map_err(malformed)?;
        let signer = NoteKey {
            name: name.to_string(),
            algorithm: COSIGNATURE,
            key: key.public(),
            private: Some((key, at)),
        };
        note.add_sigs(&[&signer]).map_err(malformed)?;
        self.note = text(&note);
        Ok(())
    }
}

fn malformed(error: impl std::fmt::Display) -> NoteError {
    NoteError::Malformed(error.to_string())
}

fn text(note: &Note) -> String {
    String::from_utf8_lossy(&note.to_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BootId, NodeId};

    fn log() -> LogId {
        LogId {
            tenant: TenantId::parse("acme").unwrap(),
            origin: Origin::Node(NodeId::parse("node-1").unwrap()),
            boot: BootId::parse("b-1").unwrap(),
        }
    }

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint { log: log(), size, root: Digest::plain(&size.to_be_bytes()), is_closed: size == 9 }
    }

    #[test]
    fn a_checkpoint_says_what_was_signed_and_cosigned() {
        let (key, witness) = (PrivateKey::from_seed(&[1; 32]), PrivateKey::from_seed(&[2; 32]));
        let (tenant, broker) = (TenantId::parse("acme").unwrap(), BrokerId::parse("broker-1").unwrap());
        let name = WitnessName(&tenant, &broker);
        for size in [3, 9] {
            let mut signed = SignedCheckpoint::sign(checkpoint(size), &key).unwrap();
            let at = Timestamp::from_secs(1_700_000_000);
            assert!(signed.check_witness(&name, &witness.public()).is_err());
            signed.cosign(&name, &witness, at).unwrap();
            let read = SignedCheckpoint::parse(signed.note()).unwrap();
            assert_eq!(read.checkpoint(), &checkpoint(size));
            read.check(&key.public()).unwrap();
            assert_eq!(read.check_witness(&name, &witness.public()).unwrap(), at);
            assert!(read.check(&witness.public()).is_err());
            assert!(read.check_witness(&name, &key.public()).is_err());
        }
    }

    #[test]
    fn nothing_of_a_checkpoint_can_be_changed() {
        let key = PrivateKey::from_seed(&[1; 32]);
        let signed = SignedCheckpoint::sign(checkpoint(9), &key).unwrap();
        for (index, _) in signed.note().char_indices() {
            let mut bytes = signed.note().as_bytes().to_vec();
            bytes[index] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let accepted = SignedCheckpoint::parse(&text).is_ok_and(|read| read.check(&key.public()).is_ok());
            assert!(!accepted, "{text}");
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_not_read() {
        let key = PrivateKey::from_seed(&[1; 32]);
        let note = SignedCheckpoint::sign(checkpoint(3), &key).unwrap().note().to_owned();
        for wrong in [
            String::new(),
            note.replace("writ-log/v1", "writ-log/v2"),
            note.replace("\n3\n", "\n03\n"),
            note.replace("\n\n", "\nopen\n\n"),
            note.trim_end().to_owned(),
            format!("{note}{}", "x".repeat(NOTE_BYTES_MAX)),
        ] {
            assert!(SignedCheckpoint::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
