//! Trees: the frontier a recorder and its witness keep, and the whole tree proofs come from.

use serde::{Deserialize, Serialize};
use tlog_tiles::{Hash, HashReader, Tile, node_hash, prove_record, record_hash, split_stored_hash_index};

use crate::digest::Digest;

/// Tiles are 256 hashes wide, as C2SP tlog-tiles has them.
const TILE_HEIGHT: u8 = 8;

/// Why something does not follow from a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A position that is not in the tree.
    #[error("position {0} is not in a tree of {1}")]
    NotThere(u64, u64),
    /// A proof that does not lead to the root.
    #[error("the proof does not lead from this record to the root")]
    Proof,
}

/// The hash of a leaf: SHA-256 over a zero byte and the record's envelope (RFC 6962, section 2.1).
#[must_use]
pub fn leaf_hash(envelope: &[u8]) -> Digest {
    Digest::from_bytes(record_hash(envelope).0)
}

fn node(left: &Digest, right: &Digest) -> Digest {
    Digest::from_bytes(node_hash(Hash(*left.as_bytes()), Hash(*right.as_bytes())).0)
}

/// What is needed of a tree to add leaves to it: the roots of its perfect subtrees, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontier {
    size: u64,
    roots: Vec<Digest>,
}

impl Frontier {
    /// How many leaves the tree has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it has as many subtrees as a tree of its size does; one that was sent may not.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.roots.len() == self.size.count_ones() as usize
    }

    /// Adds a leaf by its hash.
    pub fn append(&mut self, leaf: Digest) {
        let mut hash = leaf;
        // Every trailing one of the size is a perfect subtree that the new one completes to a larger.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root (RFC 6962, section 2.1); of an empty tree SHA-256 of nothing.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut roots = self.roots.iter().rev().copied();
        let Some(last) = roots.next() else { return Digest::plain(b"") };
        roots.fold(last, |right, left| node(&left, &right))
    }
}

/// A whole tree in memory: 64 bytes a leaf.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// By level, the hashes of all perfect subtrees of that height.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree over these leaf hashes.
    #[must_use]
    pub fn of(leaves: impl IntoIterator<Item = Digest>) -> Self {
        let mut tree = Self::default();
        leaves.into_iter().for_each(|leaf| tree.append(leaf));
        tree
    }

    /// Adds a leaf by its hash.
    pub fn append(&mut self, leaf: Digest) {
        let mut hash = Hash(*leaf.as_bytes());
        for level in 0.. {
            if self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(level) else { return };
            hashes.push(hash);
            match hashes.as_slice() {
                [.., left, right] if hashes.len() % 2 == 0 => hash = node_hash(*left, *right),
                _ => return,
            }
        }
    }

    /// How many leaves it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, Vec::len) as u64
    }

    /// The hash of a leaf.
    #[must_use]
    pub fn leaf(&self, position: u64) -> Option<Digest> {
        let leaf = self.levels.first()?.get(usize::try_from(position).ok()?)?;
        Some(Digest::from_bytes(leaf.0))
    }

    /// The root the tree had when it had `size` leaves.
    ///
    /// # Errors
    /// [`TreeError::NotThere`] if it never had so many.
    pub fn root_at(&self, size: u64) -> Result<Digest, TreeError> {
        let root = tlog_tiles::tree_hash(size, self).map_err(|_| TreeError::NotThere(size, self.size()))?;
        Ok(Digest::from_bytes(root.0))
    }

    /// What leads from the leaf at `position` to the root of the first `size` leaves.
    ///
    /// # Errors
    /// [`TreeError::NotThere`].
    pub fn prove(&self, position: u64, size: u64) -> Result<Vec<Digest>, TreeError> {
        let not_there = || TreeError::NotThere(position, size.min(self.size()));
        if position >= size || size > self.size() {
            return Err(not_there());
        }
        let proof = prove_record(size, position, self).map_err(|_| not_there())?;
        Ok(proof.iter().map(|hash| Digest::from_bytes(hash.0)).collect())
    }

    /// The tiles of the first `size` leaves, each with its path (C2SP tlog-tiles).
    ///
    /// # Errors
    /// [`TreeError::NotThere`] if there are not so many.
    pub fn tiles(&self, size: u64) -> Result<Vec<(String, Vec<u8>)>, TreeError> {
        if size > self.size() {
            return Err(TreeError::NotThere(size, self.size()));
        }
        let tiles = Tile::new_tiles(TILE_HEIGHT, 0, size).into_iter().map(|tile| {
            let bytes = tile.read_data(self).map_err(|_| TreeError::NotThere(size, self.size()))?;
            Ok((tile_path(tile.level(), tile.level_index(), tile.width()), bytes))
        });
        tiles.collect()
    }
}

impl HashReader for Tree {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let found = indexes.iter().map(|index| {
            let (level, number) = split_stored_hash_index(*index);
            let hashes = self.levels.get(usize::from(level))?;
            hashes.get(usize::try_from(number).ok()?).copied()
        });
        found.collect::<Option<_>>().ok_or(tlog_tiles::Error::IndexesNotInTree)
    }
}

/// Checks that a leaf is in a tree.
///
/// # Errors
/// [`TreeError::Proof`].
pub(super) fn check_proof(
    proof: &[Digest],
    size: u64,
    root: &Digest,
    position: u64,
    leaf: &Digest,
) -> Result<(), TreeError> {
    let proof: Vec<Hash> = proof.iter().map(|hash| Hash(*hash.as_bytes())).collect();
    let (root, leaf) = (Hash(*root.as_bytes()), Hash(*leaf.as_bytes()));
    tlog_tiles::check_record(&proof, size, root, position, leaf).map_err(|_| TreeError::Proof)
}

/// The path of a tile: `tile/<level>/<number>[.p/<width>]`, the number in groups of three digits, all but the last
/// with an `x` before them.
#[must_use]
pub fn tile_path(level: u8, number: u64, width: u32) -> String {
    let mut groups = format!("{:03}", number % 1000);
    let mut rest = number / 1000;
    while rest > 0 {
        groups = format!("x{:03}/{groups}", rest % 1000);
        rest /= 1000;
    }
    let partial = if width < 1 << TILE_HEIGHT { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{groups}{partial}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u64) -> Digest {
        leaf_hash(&number.to_be_bytes())
    }

    /// RFC 6962 as it is written: split at the largest power of two below the size.
    fn by_the_book(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::plain(b""),
            [one] => *one,
            _ => {
                let half = leaves.len().next_power_of_two() / 2;
                node(&by_the_book(&leaves[..half]), &by_the_book(&leaves[half..]))
            }
        }
    }

    #[test]
    fn frontier_tree_and_definition_agree_at_every_size() {
        let leaves: Vec<Digest> = (0..300).map(leaf).collect();
        let (mut frontier, mut tree) = (Frontier::default(), Tree::default());
        for size in 0..=leaves.len() {
            let expected = by_the_book(&leaves[..size]);
            assert_eq!(frontier.root(), expected, "{size}");
            assert!(frontier.is_sound());
            assert_eq!(tree.root_at(size as u64).unwrap(), expected, "{size}");
            if let Some(next) = leaves.get(size) {
                frontier.append(*next);
                tree.append(*next);
            }
        }
        assert_eq!(tree.root_at(77).unwrap(), by_the_book(&leaves[..77]));
        assert!(tree.root_at(301).is_err());
    }

    #[test]
    fn every_leaf_is_proved_and_no_other_passes_for_it() {
        for size in [1, 2, 3, 7, 8, 9, 255, 256, 257] {
            let tree = Tree::of((0..size).map(leaf));
            let root = tree.root_at(size).unwrap();
            for position in 0..size {
                let proof = tree.prove(position, size).unwrap();
                assert!(check_proof(&proof, size, &root, position, &leaf(position)).is_ok());
                assert!(check_proof(&proof, size, &root, position, &leaf(position + 1)).is_err());
                assert!(check_proof(&proof, size, &leaf(0), position, &leaf(position)).is_err() || size == 1);
            }
            assert!(tree.prove(size, size).is_err());
        }
    }

    #[test]
    fn tiles_hold_the_hashes_in_their_order() {
        let tree = Tree::of((0..70_000).map(leaf));
        let tiles = tree.tiles(70_000).unwrap();
        let paths: Vec<&str> = tiles.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths.first(), Some(&"tile/0/000"));
        assert!(paths.contains(&"tile/0/273.p/112") && paths.contains(&"tile/1/001.p/17"), "{paths:?}");
        assert!(paths.contains(&"tile/2/000.p/1"));
        assert_eq!(&tiles[0].1[32..64], leaf(1).as_bytes());
        assert_eq!(tile_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
    }
}
