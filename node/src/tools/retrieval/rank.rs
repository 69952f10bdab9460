//! Which of the chunks the asker may see fit the query best. Pure, and fed with nothing but those chunks.
//!
//! BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009) counts in how many chunks a word
//! occurs. FTS5's own `bm25()` counts over the whole index, so that a score would tell how often a word occurs in
//! chunks the asker may not see; here the counts are of the visible chunks. The two orders, by words and by vectors,
//! are merged by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009), which needs no common scale.

use std::cmp::Ordering;

/// How soon another occurrence of a word in a chunk says nothing new.
const SATURATION: f64 = 1.2;
/// How much a long chunk has to pay for its length.
const LENGTH_WEIGHT: f64 = 0.75;
/// How little the very first ranks count above those that follow.
const FUSION_RANKS: f64 = 60.0;

/// A chunk, as far as ranking needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Visible {
    /// The row.
    pub row: i64,
    /// The document and the place in it: the order of chunks that fit equally well. Rows are no such order, since they
    /// are numbered across all chunks.
    pub place: ([u8; 16], u32),
    /// How many words it has.
    pub words: u32,
    /// The similarity of its vector to the query's.
    pub similarity: f64,
}

/// The occurrences of one word of the query: row, and how often. Only of visible chunks.
pub type Occurrences = Vec<(i64, u32)>;

/// The rows in the order of how well they fit. Chunks with none of the words and less than `similarity_min` are left
/// out: what has nothing to do with the query would only raise the task's label.
#[must_use]
pub fn rank(visible: &[Visible], query: &[Occurrences], similarity_min: f64) -> Vec<i64> {
    let by_words = order(visible, &lexical_scores(visible, query), f64::MIN_POSITIVE);
    let similarities: Vec<f64> = visible.iter().map(|chunk| chunk.similarity).collect();
    let by_vectors = order(visible, &similarities, similarity_min);
    let mut fused = vec![0f64; visible.len()];
    for order in [by_words, by_vectors] {
        for (rank, index) in (1u32..).zip(order) {
            if let Some(score) = fused.get_mut(index) {
                *score += 1.0 / (FUSION_RANKS + f64::from(rank));
            }
        }
    }
    let best = order(visible, &fused, f64::MIN_POSITIVE);
    best.into_iter().filter_map(|index| visible.get(index)).map(|chunk| chunk.row).collect()
}

/// BM25 of every visible chunk. `visible` is sorted by row.
fn lexical_scores(visible: &[Visible], query: &[Occurrences]) -> Vec<f64> {
    let mut scores = vec![0f64; visible.len()];
    let count = to_f64(visible.len());
    let all_words: f64 = visible.iter().map(|chunk| f64::from(chunk.words)).sum();
    let mean_words = (all_words / count.max(1.0)).max(1.0);
    for occurrences in query {
        let found = to_f64(occurrences.len());
        let weight = (1.0 + (count - found + 0.5) / (found + 0.5)).ln();
        for (row, times) in occurrences {
            let Ok(index) = visible.binary_search_by_key(row, |chunk| chunk.row) else { continue };
            if let Some((score, chunk)) = scores.get_mut(index).zip(visible.get(index)) {
                let times = f64::from(*times);
                let length = 1.0 - LENGTH_WEIGHT + LENGTH_WEIGHT * f64::from(chunk.words) / mean_words;
                *score += weight * times * (SATURATION + 1.0) / (times + SATURATION * length);
            }
        }
    }
    scores
}

/// The indices of the chunks with at least `least`, best first.
fn order(visible: &[Visible], scores: &[f64], least: f64) -> Vec<usize> {
    let mut found: Vec<(usize, f64, ([u8; 16], u32))> = visible
        .iter()
        .zip(scores)
        .enumerate()
        .filter(|(_, (_, score))| **score >= least)
        .map(|(index, (chunk, score))| (index, *score, chunk.place))
        .collect();
    found.sort_by(|(_, a, a_place), (_, b, b_place)| match b.total_cmp(a) {
        Ordering::Equal => a_place.cmp(b_place),
        different => different,
    });
    found.into_iter().map(|(index, ..)| index).collect()
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(row: i64, words: u32, similarity: f64) -> Visible {
        Visible { row, place: ([u8::try_from(row).unwrap(); 16], 0), words, similarity }
    }

    #[test]
    fn rare_words_count_more_and_long_chunks_less() {
        let chunks: Vec<Visible> =
            (1..=10).map(|row| visible(row, if row == 3 { 400 } else { 100 }, 0.0)).collect();
        let common: Occurrences = (1..=9).map(|row| (row, 1)).collect();
        let rare: Occurrences = vec![(3, 1), (4, 1)];
        assert_eq!(rank(&chunks, &[common, rare], 0.5)[..3], [4, 3, 1]);
    }

    #[test]
    fn both_orders_count() {
        let chunks = [visible(1, 10, 0.9), visible(2, 10, 0.6), visible(3, 10, 0.1)];
        assert_eq!(rank(&chunks, &[vec![(2, 1), (3, 1)]], 0.5), [2, 1, 3]);
        assert_eq!(rank(&chunks, &[], 0.5), [1, 2]);
        assert_eq!(rank(&chunks, &[], 0.95), Vec::<i64>::new());
        assert_eq!(rank(&[], &[vec![]], 0.5), Vec::<i64>::new());
    }

    #[test]
    fn equals_stand_by_place_and_not_by_row() {
        let mut chunks = [visible(1, 10, 0.0), visible(2, 10, 0.0)];
        chunks[0].place.0 = [9; 16];
        assert_eq!(rank(&chunks, &[vec![(1, 1), (2, 1)]], 0.5), [2, 1]);
    }
}
