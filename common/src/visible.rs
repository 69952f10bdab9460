//! Text for human eyes: what hides, re-orders or imitates is shown for what it is.

/// Whether a character is not seen, or changes how others are seen: control characters, bidirectional overrides,
/// zero-width and tag characters, fillers, and every space but the usual one.
#[must_use]
pub fn is_invisible(character: char) -> bool {
    character.is_control()
        || (character.is_whitespace() && character != ' ')
        || matches!(u32::from(character),
            0x00ad | 0x034f | 0x061c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
            | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0
            | 0xfff9..=0xfffb | 0xe0000..=0xe0fff)
}

/// The text with every invisible character escaped (`\u{202e}`).
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            _ if is_invisible(character) && !crate::red::off("H06") => {
                shown.extend(character.escape_unicode());
            }
            _ => shown.push(character),
        }
    }
    shown
}

/// What a reader could be deceived by: invisible characters, and words that mix ASCII letters with others that may
/// look like them (Unicode UTS 39, section 5: mixed scripts, coarsely).
#[must_use]
pub fn deceptive(text: &str) -> Vec<String> {
    let named = |character: char| format!("U+{:04X}", u32::from(character));
    let mut found: Vec<String> = Vec::new();
    let invisible: Vec<String> = text.chars().filter(|c| is_invisible(*c)).map(named).collect();
    if !invisible.is_empty() {
        found.push(format!("has characters that are not seen: {}", invisible.join(" ")));
    }
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        let other: Vec<String> =
            word.chars().filter(|c| c.is_alphabetic() && !is_latin(*c)).map(named).collect();
        if !other.is_empty() && word.chars().any(|c| c.is_ascii_alphabetic()) {
            found.push(format!("`{word}` mixes alphabets: {}", other.join(" ")));
        }
    }
    found
}

/// ASCII, Latin-1 and the Latin extensions: letters people of one alphabet use together.
fn is_latin(character: char) -> bool {
    character.is_ascii()
        || matches!(u32::from(character), 0x00c0..=0x024f | 0x1e00..=0x1eff | 0x2c60..=0x2c7f | 0xa720..=0xa7ff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_what_hides_is_shown() {
        assert_eq!(visible("a\u{202e}b\u{200b}c\u{a0}d"), "a\\u{202e}b\\u{200b}c\\u{a0}d");
        assert_eq!(visible("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn h06_what_imitates_is_told() {
        // The second letter is Cyrillic.
        let found = deceptive("p\u{0430}ypal.example");
        assert_eq!(found, ["`p\u{0430}ypal` mixes alphabets: U+0430"]);
        assert!(deceptive("Grüße an Zoë").is_empty());
        assert_eq!(deceptive("a\u{2066}b"), ["has characters that are not seen: U+2066"]);
    }
}
