//! The keys of an issuer that publishes them: when to fetch, and how long they count. No I/O; the clock is passed in.
//!
//! Age counts from when the fetch that brought the keys *began*, on the clock that only moves forward: a slow answer
//! does not make keys younger than they are.

use writ_common::time::{Millis, Monotonic};

use crate::jwks::{KeySet, VerifyingKey};

/// Shortest time from the beginning of one fetch to that of the next, whatever tokens ask for.
const FETCH_GAP: Millis = Millis(10_000);

/// How old keys may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyBounds {
    /// They are fetched again at this age: a withdrawn key is refused after that and the time of one fetch.
    pub refresh: Millis,
    /// Beyond this age they are not used any more.
    pub age_max: Millis,
}

/// Why there is no key for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// There are no keys, or they are too old.
    Stale,
    /// The keys are young enough, and none has this name.
    Unknown,
}

/// What is known of an issuer's keys.
#[derive(Debug)]
pub struct KeyCache {
    bounds: KeyBounds,
    held: Option<(KeySet, Monotonic)>,
    /// When the last fetch began.
    begun: Option<Monotonic>,
    is_under_way: bool,
    /// Whether a token named a key that is not there since the last fetch that came back well.
    is_wanted: bool,
}

impl KeyCache {
    /// Knows no keys yet.
    #[must_use]
    pub fn new(bounds: KeyBounds) -> Self {
        Self { bounds, held: None, begun: None, is_under_way: false, is_wanted: false }
    }

    /// Whether to begin a fetch now; if so, it counts as begun until [`KeyCache::fetched`].
    pub fn begin(&mut self, now: Monotonic) -> bool {
        let is_due = self.is_wanted || self.age(now).is_none_or(|age| age >= self.bounds.refresh);
        if !is_due || self.is_under_way || !self.is_gap_over(now) {
            return false;
        }
        (self.begun, self.is_under_way) = (Some(now), true);
        true
    }

    /// A flood of made-up key names must not become a flood of fetches (J17).
    fn is_gap_over(&self, now: Monotonic) -> bool {
        let gap = FETCH_GAP.min(self.bounds.refresh);
        self.begun.is_none_or(|begun| now.since(begun) >= gap) || writ_common::red::off("J17")
    }

    /// The fetch that was under way ended. Without keys, those held stay until they are too old.
    pub fn fetched(&mut self, keys: Option<KeySet>) {
        self.is_under_way = false;
        if let Some((keys, begun)) = keys.zip(self.begun) {
            self.held = Some((keys, begun));
            self.is_wanted = false;
        }
    }

    /// Whether a fetch is under way or may begin, so that it is worth waiting.
    #[must_use]
    pub fn may_learn(&self, now: Monotonic) -> bool {
        self.is_under_way || self.is_gap_over(now)
    }

    /// Age of the keys, if there are any.
    #[must_use]
    pub fn age(&self, now: Monotonic) -> Option<Millis> {
        self.held.as_ref().map(|(_, since)| now.since(*since))
    }

    /// The key a token names.
    ///
    /// # Errors
    /// [`NoKey`]; the keys are wanted anew then.
    pub fn find(&mut self, kid: Option<&str>, now: Monotonic) -> Result<&VerifyingKey, NoKey> {
        let age_max = self.bounds.age_max;
        let is_young = |since: Monotonic| now.since(since) <= age_max || writ_common::red::off("J17");
        let Some((keys, _)) = self.held.as_ref().filter(|(_, since)| is_young(*since)) else {
            self.is_wanted = true;
            return Err(NoKey::Stale);
        };
        self.is_wanted |= keys.find(kid).is_none();
        keys.find(kid).ok_or(NoKey::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFRESH: u64 = 300;

    fn at(secs: u64) -> Monotonic {
        Monotonic::from_millis(secs * 1_000)
    }

    fn keys(kids: &[&str]) -> Option<KeySet> {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let keys: Vec<serde_json::Value> = kids
            .iter()
            .map(|kid| serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid}))
            .collect();
        Some(KeySet::parse(&serde_json::json!({ "keys": keys }).to_string()).unwrap())
    }

    fn cache() -> KeyCache {
        KeyCache::new(KeyBounds { refresh: Millis::from_secs(REFRESH), age_max: Millis::from_secs(3_600) })
    }

    /// A cache that fetched `kids` at 0.
    fn fresh(kids: &[&str]) -> KeyCache {
        let mut cache = cache();
        assert!(cache.begin(at(0)));
        cache.fetched(keys(kids));
        cache
    }

    fn found(cache: &mut KeyCache, kid: &str, now: u64) -> Result<(), NoKey> {
        cache.find(Some(kid), at(now)).map(drop)
    }

    #[test]
    fn nothing_is_known_before_the_first_fetch_and_one_is_due_at_once() {
        let mut cache = cache();
        assert_eq!(found(&mut cache, "a", 0), Err(NoKey::Stale));
        assert!(cache.may_learn(at(0)) && cache.begin(at(0)));
        assert!(!cache.begin(at(500)), "one at a time");
        cache.fetched(keys(&["a"]));
        assert_eq!(found(&mut cache, "a", 1), Ok(()));
    }

    #[test]
    fn j17_a_new_key_is_fetched_for_once_and_a_flood_of_names_fetches_no_more() {
        let mut cache = fresh(&["old"]);
        assert!(!cache.begin(at(20)), "nobody asked for more");
        assert_eq!(found(&mut cache, "new", 20), Err(NoKey::Unknown));
        assert!(cache.begin(at(20)));
        cache.fetched(keys(&["old", "new"]));
        assert_eq!(found(&mut cache, "new", 21), Ok(()));
        let mut begun = 0;
        for second in 21..=120 {
            for random in 0..50 {
                assert_eq!(found(&mut cache, &format!("x{random}"), second), Err(NoKey::Unknown));
                if cache.begin(at(second)) {
                    begun += 1;
                    cache.fetched(keys(&["old", "new"]));
                }
            }
        }
        assert_eq!(begun, 10, "one in ten seconds");
    }

    #[test]
    fn j17_a_withdrawn_key_is_refused_once_the_keys_were_refreshed() {
        let mut cache = fresh(&["old", "new"]);
        assert!(!cache.begin(at(REFRESH - 1)));
        assert_eq!(found(&mut cache, "old", REFRESH - 1), Ok(()));
        assert!(cache.begin(at(REFRESH)));
        cache.fetched(keys(&["new"]));
        assert_eq!(found(&mut cache, "old", REFRESH + 1), Err(NoKey::Unknown));
        assert_eq!(found(&mut cache, "new", REFRESH + 1), Ok(()));
    }

    #[test]
    fn j17_failures_keep_the_last_keys_until_they_are_too_old() {
        let mut cache = fresh(&["a"]);
        let mut tries = 0;
        for second in REFRESH..=3_600 {
            if cache.begin(at(second)) {
                tries += 1;
                cache.fetched(None);
            }
            assert_eq!(found(&mut cache, "a", second), Ok(()));
        }
        assert_eq!(tries, (3_600 - REFRESH) / 10 + 1, "tried again, every ten seconds");
        assert_eq!(found(&mut cache, "a", 3_601), Err(NoKey::Stale));
        assert!(cache.begin(at(3_620)));
        cache.fetched(keys(&["a"]));
        assert_eq!(found(&mut cache, "a", 3_621), Ok(()));
    }

    #[test]
    fn age_counts_from_the_beginning_of_the_fetch() {
        let mut cache = cache();
        assert!(cache.begin(at(100)));
        cache.fetched(keys(&["a"]));
        assert_eq!(cache.age(at(104)), Some(Millis::from_secs(4)));
    }
}
