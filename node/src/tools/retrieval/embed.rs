//! Text to vectors, so that a query finds what says the same in other forms of its words.
//!
//! [`HashedGrams`] needs no model and no network: words and the letter trigrams within them, hashed into 1,024 places
//! (feature hashing: Weinberger et al., arXiv 0902.2206). It knows spelling, not meaning: `invoices` is near
//! `invoice`, `bill` is not. It is the same on every machine, since it uses nothing but operations that IEEE 754
//! rounds exactly, and it does not look at other chunks: a weight learned from the corpus would tell of chunks the
//! asker may not see. A service that embeds for you would be another [`Embedder`]; it would be told every text.

use std::collections::BTreeMap;

use super::words::words;

/// A direction: what one text is about, to whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector(Vec<i8>);

/// A vector to compare others with: its length is known.
pub struct Direction<'a> {
    places: &'a [i8],
    length: f64,
}

impl Vector {
    /// From the bytes a store holds.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| byte.cast_signed()).collect())
    }

    /// The bytes a store holds.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(|value| value.cast_unsigned()).collect()
    }

    /// The same, to compare many others with.
    #[must_use]
    pub fn direction(&self) -> Direction<'_> {
        // At most 127 * 127 a place: 16.6 million for 1,024.
        let squared: i32 = self.0.iter().map(|value| i32::from(*value) * i32::from(*value)).sum();
        Direction { places: &self.0, length: f64::from(squared).sqrt() }
    }
}

impl Direction<'_> {
    /// The cosine of the angle between it and the vector of these bytes, from -1 to 1; 0 if either is of no length, or
    /// they are of different kinds.
    #[must_use]
    pub fn similarity(&self, bytes: &[u8]) -> f64 {
        if bytes.len() != self.places.len() {
            return 0.0;
        }
        let (mut dot, mut other) = (0i32, 0i32);
        for (a, b) in self.places.iter().zip(bytes) {
            let (a, b) = (i32::from(*a), i32::from(b.cast_signed()));
            dot += a * b;
            other += b * b;
        }
        if self.length == 0.0 || other == 0 {
            return 0.0;
        }
        f64::from(dot) / (self.length * f64::from(other).sqrt())
    }
}

/// Makes vectors of texts.
pub trait Embedder: Send + Sync {
    /// What its vectors are compatible with; a store keeps it and refuses another.
    fn name(&self) -> &'static str;

    /// The vector of a text.
    fn embed(&self, text: &str) -> Vector;

    /// From which similarity on two texts have something to do with each other.
    fn similarity_min(&self) -> f64;
}

/// Hashed words and letter trigrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashedGrams;

/// Places of a vector; one that is no multiple of 64 would waste a cache line.
const PLACES: usize = 1024;

impl Embedder for HashedGrams {
    fn name(&self) -> &'static str {
        "hashed-grams-1024-v1"
    }

    fn embed(&self, text: &str) -> Vector {
        let mut counts: BTreeMap<(u64, u32), u32> = BTreeMap::new();
        for word in words(text) {
            let letters: Vec<char> = word.chars().collect();
            // Short words are mostly grammar, in most languages.
            let weight = u32::try_from(letters.len().min(6)).unwrap_or(6);
            *counts.entry((hash(b"w", word.as_bytes()), 2 * weight)).or_default() += 1;
            let framed = [&['^'], letters.as_slice(), &['$']].concat();
            for gram in framed.windows(3) {
                let gram: String = gram.iter().collect();
                *counts.entry((hash(b"g", gram.as_bytes()), weight)).or_default() += 1;
            }
        }
        let mut places = vec![0f64; PLACES];
        for ((feature, weight), count) in counts {
            // The tenth time a word is used says less than the first. sqrt, not ln: it is exact everywhere.
            let value = f64::from(weight) * f64::from(count).sqrt();
            let place = usize::try_from(feature % PLACES as u64).unwrap_or(0);
            if let Some(place) = places.get_mut(place) {
                // A sign of its own lets features that share a place cancel out instead of adding up.
                *place += if feature >> 63 == 0 { value } else { -value };
            }
        }
        let longest = places.iter().fold(0f64, |longest, value| longest.max(value.abs()));
        if longest == 0.0 {
            return Vector(vec![0; PLACES]);
        }
        #[expect(clippy::cast_possible_truncation, reason = "from -127 to 127, by the longest")]
        Vector(places.iter().map(|value| (value / longest * 127.0).round() as i8).collect())
    }

    fn similarity_min(&self) -> f64 {
        0.17
    }
}

/// FNV-1a, 64 bits, mixed once more for its weak upper bits.
fn hash(kind: &[u8], bytes: &[u8]) -> u64 {
    let hash = kind.iter().chain(bytes).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(a: &str, b: &str) -> f64 {
        HashedGrams.embed(a).direction().similarity(&HashedGrams.embed(b).to_bytes())
    }

    #[test]
    fn other_forms_of_a_word_are_near_and_other_words_are_not() {
        let text = "Invoices are paid within thirty days of delivery, by bank transfer.";
        for near in ["paying an invoice by bank transfers", "deliveries and invoices", "invoices delivered"] {
            assert!(
                similarity(near, text) >= HashedGrams.similarity_min(),
                "{near}: {}",
                similarity(near, text)
            );
        }
        for far in ["holiday calendar", "how do I reset my password", "team lunch on Friday", "zzz", "the"] {
            assert!(similarity(far, text) < HashedGrams.similarity_min(), "{far}: {}", similarity(far, text));
        }
        assert!(similarity(text, text) > 0.999);
    }

    #[test]
    fn vectors_are_the_same_everywhere() {
        let vector = HashedGrams.embed("Invoices are paid within thirty days.").to_bytes();
        let digest = writ_common::digest::Digest::plain(&vector);
        assert_eq!(digest.short(), "556b58199f7279d8");
        assert_eq!(Vector::from_bytes(&vector).to_bytes(), vector);
    }

    #[test]
    fn nothing_is_near_nothing() {
        assert_eq!(similarity("", "invoice"), 0.0);
        assert_eq!(similarity("...", "!!!"), 0.0);
        assert_eq!(HashedGrams.embed("invoice").direction().similarity(&[1, 2, 3]), 0.0);
    }
}
