//! Lengths of time as people write them: `30m`, `12h`, `7d`, `2w`.

use writ_common::time::Millis;

/// The units, the longest first, in seconds.
const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Reads a length; nothing for what is none.
#[must_use]
pub fn parse(text: &str) -> Option<Millis> {
    let (unit, secs) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit))?;
    let number = text.strip_suffix(unit)?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| number.parse().ok()).flatten()?;
    Some(Millis::from_secs(number.checked_mul(secs)?))
}

/// As [`parse`], for options of commands.
///
/// # Errors
/// What it should look like.
pub fn read(text: &str) -> Result<Millis, String> {
    parse(text).ok_or_else(|| "is no length of time; write `400d`, `52w` or `12h`".to_owned())
}

/// Writes a length in days, or in the longest smaller unit that tells it whole; rounds down to seconds.
#[must_use]
pub fn text(length: Millis) -> String {
    let secs = length.0 / 1_000;
    let whole =
        UNITS.into_iter().filter(|(unit, _)| *unit != 'w').find(|(_, unit)| secs.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{secs}s"), |(name, unit)| format!("{}{name}", secs / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_written() {
        for (written, secs) in [("400d", 34_560_000), ("25h", 90_000), ("90m", 5_400), ("61s", 61), ("0d", 0)]
        {
            assert_eq!(parse(written), Some(Millis::from_secs(secs)));
            assert_eq!(text(Millis::from_secs(secs)), written);
        }
        assert_eq!(parse("2w"), Some(Millis::from_secs(1_209_600)));
        for text in
            ["", "d", "4", "-1d", "+1d", "1.5d", "1 d", "1y", "99999999999999999999d", "99999999999999999d"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
