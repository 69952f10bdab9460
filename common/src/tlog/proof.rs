//! A proof that one record is in a log, as one small text file (C2SP tlog-proof@v1): the way from the record to the
//! root, the checkpoint with its signatures, and the record's own envelope as the extra data.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{SignedCheckpoint, Tree, TreeError, leaf_hash, tree::check_proof};
use crate::digest::Digest;

const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// A way to the root of a tree of 2^64 leaves has 64 steps.
const STEPS_MAX: usize = 64;

/// Why a text is no proof, or proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not of the form.
    #[error("line {line}: {why}")]
    Malformed {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It does not lead to the root, or there is no such position.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// That a record is at a position of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// The record's signed envelope.
    pub envelope: Vec<u8>,
    /// Its position.
    pub position: u64,
    /// The hashes that lead to the root, from below.
    pub path: Vec<Digest>,
    /// The checkpoint they lead to.
    pub checkpoint: SignedCheckpoint,
}

impl InclusionProof {
    /// Proves a record from the whole tree.
    ///
    /// # Errors
    /// [`TreeError::NotThere`] if the checkpoint does not cover it.
    pub fn of(
        tree: &Tree,
        position: u64,
        envelope: Vec<u8>,
        checkpoint: SignedCheckpoint,
    ) -> Result<Self, TreeError> {
        let path = tree.prove(position, checkpoint.checkpoint().size)?;
        Ok(Self { envelope, position, path, checkpoint })
    }

    /// Checks that the path leads from the envelope to the checkpoint's root. Who signed the checkpoint and the
    /// envelope is for the caller to check.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn check(&self) -> Result<(), TreeError> {
        let said = self.checkpoint.checkpoint();
        if self.position >= said.size {
            return Err(TreeError::NotThere(self.position, said.size));
        }
        check_proof(&self.path, said.size, &said.root, self.position, &leaf_hash(&self.envelope))
    }

    /// Reads a proof. Nothing of it is checked yet.
    ///
    /// # Errors
    /// [`ProofError::Malformed`] with the line.
    pub fn parse(text: &str) -> Result<Self, ProofError> {
        let malformed = |line: usize, why: &str| ProofError::Malformed { line, why: why.to_owned() };
        let bytes =
            |line: usize, text: &str| STANDARD.decode(text).map_err(|_| malformed(line, "is not base64"));
        let (head, note) = text
            .split_once("\n\n")
            .ok_or_else(|| malformed(1, "there is no empty line with a checkpoint behind it"))?;
        let mut lines = head.lines().enumerate().map(|(index, line)| (index + 1, line));
        match lines.next() {
            Some((_, HEADER)) => {}
            _ => return Err(malformed(1, "is not `c2sp.org/tlog-proof@v1`")),
        }
        let envelope = match lines.next().and_then(|(line, text)| Some((line, text.strip_prefix("extra ")?)))
        {
            Some((line, extra)) => bytes(line, extra)?,
            None => return Err(malformed(2, "is not `extra ` with the record")),
        };
        let position = lines
            .next()
            .and_then(|(_, text)| text.strip_prefix("index ").filter(|digits| !digits.starts_with('+')))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| malformed(3, "is not `index ` with a position"))?;
        let mut path = Vec::new();
        for (line, text) in lines {
            let hash = <[u8; 32]>::try_from(bytes(line, text)?)
                .map_err(|_| malformed(line, "is no hash of 32 bytes"))?;
            if path.len() == STEPS_MAX {
                return Err(malformed(line, "is one step more than any tree has"));
            }
            path.push(Digest::from_bytes(hash));
        }
        let note_line = head.lines().count() + 2;
        let checkpoint =
            SignedCheckpoint::parse(note).map_err(|error| malformed(note_line, &error.to_string()))?;
        Ok(Self { envelope, position, path, checkpoint })
    }
}

impl fmt::Display for InclusionProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\nextra {}\nindex {}", STANDARD.encode(&self.envelope), self.position)?;
        for hash in &self.path {
            writeln!(f, "{}", STANDARD.encode(hash.as_bytes()))?;
        }
        write!(f, "\n{}", self.checkpoint.note())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys::PrivateKey,
        tlog::{Checkpoint, LogId},
    };

    fn proof() -> InclusionProof {
        let envelopes: Vec<Vec<u8>> = (0..11_u8).map(|number| vec![number; 5]).collect();
        let tree = Tree::of(envelopes.iter().map(|envelope| leaf_hash(envelope)));
        let checkpoint = Checkpoint {
            log: LogId::parse("writ-log/v1/acme/node/node-1/b-1").unwrap(),
            size: 10,
            root: tree.root_at(10).unwrap(),
            is_closed: false,
        };
        let checkpoint = SignedCheckpoint::sign(checkpoint, &PrivateKey::from_seed(&[1; 32])).unwrap();
        InclusionProof::of(&tree, 7, envelopes[7].clone(), checkpoint).unwrap()
    }

    #[test]
    fn a_proof_is_read_as_it_was_written_and_holds() {
        let text = proof().to_string();
        let read = InclusionProof::parse(&text).unwrap();
        assert_eq!(read, proof());
        read.check().unwrap();
    }

    #[test]
    fn a_proof_for_something_else_does_not_hold() {
        let mut other = proof();
        other.envelope[0] ^= 1;
        assert!(other.check().is_err());
        assert!(InclusionProof { position: 6, ..proof() }.check().is_err());
        assert!(InclusionProof { position: 10, ..proof() }.check().is_err());
        let mut shorter = proof();
        shorter.path.pop();
        assert!(shorter.check().is_err());
    }

    #[test]
    fn what_is_no_proof_is_told_by_line() {
        let text = proof().to_string();
        for (wrong, line) in [
            (text.replace("@v1", "@v2"), 1),
            (text.replace("extra ", "extra"), 2),
            (text.replace("index 7", "index -7"), 3),
            (text.replacen('=', "*", 2), 2),
            (text.replace("\n\n", "\n"), 1),
        ] {
            match InclusionProof::parse(&wrong) {
                Err(ProofError::Malformed { line: found, .. }) => assert_eq!(found, line, "{wrong}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
