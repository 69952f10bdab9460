//! Time as it is passed in. Nothing here reads a clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point on the wall clock: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Reads RFC 3339 in UTC and whole seconds, `2026-01-31T12:00:00Z`; `None` for anything else, and for days that
    /// do not exist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let number =
            |text: &str, length: usize| (text.len() == length).then(|| text.parse::<u64>().ok()).flatten();
        let mut date = date.split('-');
        let (year, month, day) =
            (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
        let mut time = time.split(':');
        let (hour, minute, second) =
            (number(time.next()?, 2)?, number(time.next()?, 2)?, number(time.next()?, 2)?);
        let in_range = date.next().is_none()
            && time.next().is_none()
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && year >= 1970
            && hour < 24
            && minute < 60
            && second < 60;
        if !in_range {
            return None;
        }
        let secs = days_from_civil(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second;
        // A day that does not exist (31 April) comes back as another one.
        let shown = Self::from_secs(secs).to_string();
        shown.starts_with(text.strip_suffix('Z')?).then(|| Self::from_secs(secs))
    }

    /// Reads a time as it is printed, with milliseconds, or without them as [`Timestamp::parse`] does.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let Some((whole, millis)) = text.strip_suffix('Z')?.split_once('.') else { return Self::parse(text) };
        let is_millis = millis.len() == 3 && millis.bytes().all(|digit| digit.is_ascii_digit());
        let millis = is_millis.then(|| millis.parse().ok()).flatten()?;
        Some(Self::parse(&format!("{whole}Z"))?.after(Millis(millis)))
    }

    /// The day of the week, in UTC: 1 is Monday, 7 is Sunday (ISO 8601).
    #[must_use]
    pub const fn weekday(self) -> u64 {
        // 1970-01-01 was a Thursday.
        (self.as_secs() / 86_400 + 3) % 7 + 1
    }

    /// The hour of the day, in UTC: 0 to 23.
    #[must_use]
    pub const fn hour(self) -> u64 {
        self.as_secs() / 3_600 % 24
    }

    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// From seconds since the epoch; saturates.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }

    /// This long after; saturates.
    #[must_use]
    pub const fn after(self, millis: Millis) -> Self {
        Self(self.0.saturating_add(millis.0))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    /// How far apart two points are, whichever comes first.
    #[must_use]
    pub const fn distance(self, other: Self) -> Millis {
        Millis(self.0.abs_diff(other.0))
    }
}

/// RFC 3339 in UTC with milliseconds, for people and for sorting as text.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.as_secs();
        let (days, rest) = (secs / 86_400, secs % 86_400);
        let (year, month, day) = civil_from_days(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            rest / 3_600,
            rest / 60 % 60,
            rest % 60,
            self.0 % 1_000
        )
    }
}

/// Days since 1970-01-01 to year, month, day in the proleptic Gregorian calendar.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Inverse of [`civil_from_days`]; same source.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_index = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_index + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// From whole seconds; saturates.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// As a standard duration.
    #[must_use]
    pub const fn to_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis if millis < 1_000 => write!(f, "{millis} ms"),
            millis if millis < 120_000 => write!(f, "{}.{} s", millis / 1_000, millis % 1_000 / 100),
            millis => write!(f, "{} min", millis / 60_000),
        }
    }
}

/// A point on a clock that only moves forward; its zero has no meaning.
///
/// Ages and leases are counted on it, never on the wall clock, which people and NTP can set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(u64);

impl Monotonic {
    /// From milliseconds since the clock's own zero.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    /// This long after; saturates.
    #[must_use]
    pub const fn after(self, millis: Millis) -> Self {
        Self(self.0.saturating_add(millis.0))
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// What the wall says; goes into records and expiry checks.
    pub wall: Timestamp,
    /// What ages are counted on.
    pub monotonic: Monotonic,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weekday_and_hour_are_those_of_the_calendar() {
        let at = |text| Timestamp::parse(text).map(|at| (at.weekday(), at.hour()));
        assert_eq!(at("1970-01-01T00:00:00Z"), Some((4, 0)));
        assert_eq!(at("2026-11-21T23:59:59Z"), Some((6, 23)));
        assert_eq!(at("2026-11-22T07:00:00Z"), Some((7, 7)));
        assert_eq!(at("2026-02-30T00:00:00Z"), None);
    }

    #[test]
    fn timestamps_print_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_763_683_199_999, "2025-11-20T23:59:59.999Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn what_is_printed_is_read() {
        for millis in [0, 1, 1_700_000_000_123, 1_790_000_000_990] {
            let time = Timestamp::from_secs(0).after(Millis(millis));
            assert_eq!(Timestamp::read(&time.to_string()), Some(time));
        }
        for text in ["", "2026-01-31T12:00:00.1Z", "2026-01-31T12:00:00.+12Z", "2026-02-31T12:00:00.000Z"] {
            assert_eq!(Timestamp::read(text), None, "{text}");
        }
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(end.after(Millis(1)), end);
        assert_eq!(Timestamp::from_millis(1).since(end), Millis(0));
    }
}
