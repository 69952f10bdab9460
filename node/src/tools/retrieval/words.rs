//! Text to words, the same way for the index, for queries and for vectors.

/// Longest word, in bytes; the rest of a longer one is left out.
pub const WORD_BYTES_MAX: usize = 64;

/// The words of a text in small letters: runs of letters and digits of any script.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(|word| {
        let mut lower = word.to_lowercase();
        while lower.len() > WORD_BYTES_MAX {
            lower.pop();
        }
        lower
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_and_digits_in_small() {
        let found: Vec<String> = words("Straße 12, O'Neil\u{0}x_y ÉTÉ 東京").collect();
        assert_eq!(found, ["straße", "12", "o", "neil", "x", "y", "été", "東京"]);
        assert_eq!(words(&"ä".repeat(100)).next().unwrap().len(), WORD_BYTES_MAX);
        assert_eq!(words(" ,;\n").count(), 0);
    }
}
