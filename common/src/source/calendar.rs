//! Dates.

/// A day as `2026-05-15`, with `T10:00` or `T10:00:30` if the value has a time of day.
///
/// Read: ISO 8601's extended form, with a space or `T` before the time, and days written out in English (`May 15th,
/// 2026`, `15 May 2026`). `05/06/2026` is two days and refused.
pub(super) fn date(value: &str) -> Option<String> {
    let (day, time) = match value.split_once(['T', ' ']) {
        Some((day, time)) if time.contains(':') && day.contains('-') => (day, Some(time)),
        _ => (value, None),
    };
    let day = iso(day).or_else(|| written(day))?;
    match time {
        Some(time) => Some(format!("{day}T{}", clock(time)?)),
        None => Some(day),
    }
}

fn iso(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return None };
    (year.len() == 4 && month.len() == 2 && day.len() == 2)
        .then(|| ymd(number(year)?, number(month)?, number(day)?))
        .flatten()
}

fn written(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let [a, b, year] = words.as_slice() else { return None };
    let (month, day) = match (month(a), month(b)) {
        (Some(month), None) => (month, b),
        (None, Some(month)) => (month, a),
        _ => return None,
    };
    let ending = ["st", "nd", "rd", "th"].iter().find_map(|ending| day.strip_suffix(ending));
    ymd(number(year).filter(|_| year.len() == 4)?, month, number(ending.unwrap_or(day))?)
}

fn month(word: &str) -> Option<u32> {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let word = word.trim_end_matches('.').to_lowercase();
    let place =
        MONTHS.iter().position(|month| *month == word || (word.len() == 3 && month.starts_with(&word)))?;
    u32::try_from(place + 1).ok()
}

fn ymd(year: u32, month: u32, day: u32) -> Option<String> {
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then(|| format!("{year:04}-{month:02}-{day:02}"))
}

fn clock(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split(':').collect();
    let two = |text: &&str, limit: u32| text.len() == 2 && number(text).is_some_and(|value| value < limit);
    let sane = match parts.as_slice() {
        [hour, minute] => two(hour, 24) && two(minute, 60),
        [hour, minute, second] => two(hour, 24) && two(minute, 60) && two(second, 60),
        _ => false,
    };
    // Seconds of zero say nothing.
    sane.then(|| text.strip_suffix(":00").filter(|_| parts.len() == 3).unwrap_or(text).to_owned())
}

fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}
