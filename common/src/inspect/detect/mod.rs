//! What patterns and check digits find: cards, accounts, addresses, keys and tokens. Pure, and one pass over the text.
//!
//! A detector finds what is written plainly or in the disguises `fold` takes off. What was encoded, spelled out in
//! words, or spread over several values it does not find; nor names, addresses of houses or anything else that takes
//! understanding. What it finds may be none: one string of digits in ten passes the check of a card.

mod card;
mod email;
mod fold;
mod iban;
mod key;
mod phone;

use std::{collections::BTreeSet, ops::Range};

use super::{Answer, Finding, Part, Severity, span};
use crate::ids::{DetectorId, FindingKind, InspectorId};
use fold::Folded;

/// Most findings of one detector in one text; where there are more, there is nothing new to tell.
const FOUND_MAX: usize = 64;

/// A detector of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detect {
    /// Payment cards.
    Card,
    /// E-mail addresses.
    Email,
    /// International bank account numbers.
    Iban,
    /// Private keys.
    Key,
    /// Telephone numbers.
    Phone,
    /// Random-looking values beside a word such as `password`.
    Secret,
    /// Tokens and API keys.
    Token,
}

impl Detect {
    /// Every detector.
    pub const ALL: [Self; 7] =
        [Self::Card, Self::Email, Self::Iban, Self::Key, Self::Phone, Self::Secret, Self::Token];

    /// The kind of what it finds, as policies call it.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::Key => "key",
            Self::Phone => "phone",
            Self::Secret => "secret",
            Self::Token => "token",
        }
    }

    /// How bad it is to have it in the wrong place and how sure the detector is, in one number.
    const fn severity(self) -> Severity {
        Severity::new(match self {
            Self::Card => 90,
            Self::Email => 30,
            Self::Iban => 80,
            Self::Key | Self::Token => 100,
            Self::Phone => 40,
            Self::Secret => 50,
        })
    }
}

impl std::str::FromStr for Detect {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|one| one.kind() == text);
        found.ok_or("must be `card`, `email`, `iban`, `key`, `phone`, `secret` or `token`")
    }
}

/// Something found. It says where and not what: the text itself is in none of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By which detector.
    pub detect: Detect,
    /// In which way: the format, or the check that holds.
    pub detector: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Where, in bytes of the text; both ends are boundaries of characters.
    pub span: Range<usize>,
}

/// Looks for these in a text. `name` is what the text is called, such as the last part of its JSON Pointer.
#[must_use]
pub fn detect(name: &str, text: &str, wanted: &BTreeSet<Detect>) -> Vec<Found> {
    let text = Folded::new(text);
    let mut found: Vec<(Detect, &'static str, Range<usize>)> = Vec::new();
    for one in wanted {
        let mut plain: Vec<Range<usize>> = Vec::new();
        let mut named: Vec<(&'static str, Range<usize>)> = Vec::new();
        let detector = match one {
            Detect::Card => {
                card::scan(&text, &mut plain);
                "luhn"
            }
            Detect::Email => {
                email::scan(&text, &mut plain);
                "address"
            }
            Detect::Iban => {
                iban::scan(&text, &mut plain);
                "mod97"
            }
            Detect::Key => {
                key::scan_keys(&text, &mut named);
                ""
            }
            Detect::Phone => {
                phone::scan_international(&text, &mut plain);
                let mut national = Vec::new();
                phone::scan_north_american(&text, &mut national);
                named.extend(national.into_iter().map(|range| ("nanp", range)));
                "e164"
            }
            Detect::Secret => {
                key::scan_secrets(name, &text, &mut plain);
                "entropy"
            }
            Detect::Token => {
                key::scan_tokens(&text, &mut named);
                ""
            }
        };
        plain.truncate(FOUND_MAX);
        // A number that is one in more than one way is told once.
        named.retain(|(_, range)| {
            plain.iter().all(|known| known.end <= range.start || range.end <= known.start)
        });
        named.truncate(FOUND_MAX);
        found.extend(plain.into_iter().map(|range| (*one, detector, range)));
        found.extend(named.into_iter().map(|(detector, range)| (*one, detector, range)));
    }
    let told = found.into_iter().map(|(detect, detector, range)| Found {
        detect,
        detector,
        severity: detect.severity(),
        span: text.span(&range),
    });
    told.collect()
}

/// What the detectors say about these texts, as an inspector's answer.
#[must_use]
pub fn inspect(inspector: &InspectorId, parts: &[Part], wanted: &BTreeSet<Detect>) -> Answer {
    let findings = parts.iter().flat_map(|part| {
        detect(part.name(), &part.text, wanted).into_iter().map(|found| Finding {
            path: part.path.clone(),
            kind: FindingKind::fixed(found.detect.kind()),
            inspector: inspector.clone(),
            detector: DetectorId::fixed(found.detector),
            severity: found.severity,
            span: Some(span(&found.span)),
        })
    });
    Answer { findings: findings.collect(), add_tags: BTreeSet::new(), version: String::new() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::string_slice, reason = "of ASCII, or at places that are being tested")]

    use proptest::prelude::*;

    use super::*;

    /// What is found in a text, as `kind.detector=matched`.
    fn found(text: &str) -> Vec<String> {
        named("", text)
    }

    fn named(name: &str, text: &str) -> Vec<String> {
        let found = detect(name, text, &Detect::ALL.into());
        found
            .iter()
            .map(|one| format!("{}.{}={}", one.detect.kind(), one.detector, &text[one.span.clone()]))
            .collect()
    }

    fn check(kind: &str, yes: &[&str], no: &[&str]) {
        for text in yes {
            let found = found(text);
            assert!(found.iter().any(|one| one.starts_with(kind)), "{text}: {found:?}");
        }
        for text in no {
            let found = found(text);
            assert!(!found.iter().any(|one| one.starts_with(kind)), "{text}: {found:?}");
        }
    }

    #[test]
    fn cards_are_told_from_other_figures() {
        check(
            "card.luhn",
            &[
                // The networks' own test numbers.
                "4111111111111111",
                "4111 1111 1111 1111",
                "4111-1111-1111-1111",
                "4222222222222",
                "5555 5555 5555 4444",
                "2223003122003222",
                "3782 822463 10005",
                "371449635398431",
                "6011111111111117",
                "3056 9309 0259 04",
                "3530111333300000",
                "6200000000000005",
                "card: 4111111111111111.",
                "(4111111111111111)",
                "1,4111111111111111,5555555555554444",
                "卡号4111111111111111是",
                "４１１１１１１１１１１１１１１１",
                "4111\u{200b}1111\u{200b}1111\u{200b}1111",
                "4111\u{2011}1111\u{2011}1111\u{2011}1111",
                "4111\u{a0}1111\u{a0}1111\u{a0}1111",
                "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
                "41111111 11111111 4111111111111111",
            ],
            &[
                "4111111111111112",
                "411111111111111",
                "1234567890123456",
                "0000000000000000",
                "x4111111111111111",
                "4111111111111111a",
                "94111111111111111111111",
                "0.4111111111111111",
                "4111111111111111.5",
                "4111 1111-1111 1111",
                "4111  1111  1111  1111",
                "41 11 11 11 11 11 11 11",
                "2026-11-21 14:55:00",
                "1763736900000",
                "550e8400-e29b-41d4-a716-446655440000",
                "",
            ],
        );
        assert_eq!(
            found("a 5555 5555 5555 4444, b 4111111111111111"),
            ["card.luhn=5555 5555 5555 4444", "card.luhn=4111111111111111"]
        );
    }

    #[test]
    fn accounts_are_told_by_country_and_check() {
        check(
            "iban.mod97",
            &[
                "DE89370400440532013000",
                "DE89 3704 0044 0532 0130 00",
                "de89 3704 0044 0532 0130 00",
                "GB82 WEST 1234 5698 7654 32 please",
                "GB29-NWBK-6016-1331-9268-19",
                "FR1420041010050500013M02606",
                "NO9386011117947",
                "MT84MALT011000012345MTLCAST001S",
                "IBAN:CH9300762011623852957.",
            ],
            &[
                "DE89370400440532013001",
                "DE8937040044053201300",
                "DE893704004405320130001",
                "XX89370400440532013000",
                "ADE89370400440532013000",
                "DE89  3704 0044 0532 0130 00",
                "in 12 months we will have 4 more of these things",
            ],
        );
    }

    #[test]
    fn addresses_are_told_from_what_has_an_at_in_it() {
        check(
            "email.address",
            &[
                "kim@example.com",
                "Kim <kim.o'neil+tag@mail.example.co.uk>,",
                "mailto:kim@example.com?subject=x",
                "kim@bücher.example",
                "kim＠example。com",
                "k\u{200b}im@example.com",
                "\"kim@example.com\"",
                "kim@xn--bcher-kva.xn--p1ai",
            ],
            &[
                "kim@localhost",
                "@kim",
                "kim@",
                "kim at example.com",
                "logo@2x.png",
                "pkg@1.2.3",
                "a..b@example.com",
                "kim@-example.com",
                "kim@example.c",
                "kim@.com",
                "npm i pkg@latest",
            ],
        );
        assert_eq!(found("to kim@example.com."), ["email.address=kim@example.com"]);
    }

    #[test]
    fn numbers_with_a_country_code_and_north_american_ones_are_telephones() {
        check(
            "phone.",
            &[
                "+49 30 901820",
                "+1 (415) 555-2671",
                "+44 20 7946 0958",
                "tel:+14155552671",
                "+٤٩ ٣٠ ٩٠١٨٢٠",
                "(415) 555-2671",
                "415-555-2671",
                "415.555.2671",
                "1-415-555-2671",
            ],
            &[
                "+1.5 %",
                "1+23456789012",
                "+0123456789",
                "12:00:00+01:00",
                "+1234567890123456",
                "115-555-2671",
                "415-155-2671",
                "2415-555-2671",
                "415-555-26712",
                "415-555-2671-9",
                "192.168.100.1000",
                "2026-11-21",
                "x = 3 + 12345",
            ],
        );
        assert_eq!(found("+1 415-555-2671"), ["phone.e164=+1 415-555-2671"], "told once");
    }

    /// Text in two halves, so that no whole key stands in this file.
    fn halves(one: &str, other: &str) -> String {
        format!("{one}{other}")
    }

    #[test]
    fn private_keys_are_told_by_what_stands_around_them() {
        let pem = |label: &str| halves("-----BEGIN ", &format!("{label}-----\nMIIE\n-----END {label}-----"));
        for label in [
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "ENCRYPTED PRIVATE KEY",
            "PGP PRIVATE KEY BLOCK",
        ] {
            assert!(found(&pem(label))[0].starts_with("key.pem=-----BEGIN "), "{label}");
        }
        for label in ["PUBLIC KEY", "CERTIFICATE", "private key"] {
            assert_eq!(found(&pem(label)), [""; 0], "{label}");
        }
        let seed = "0123456789abcdef".repeat(4);
        assert!(found(&format!("ed25519-private:{seed}"))[0].starts_with("key.ed25519="));
        assert_eq!(found(&format!("ed25519-private:{}", &seed[1..])), [""; 0]);
        // The seed of the nkeys documentation.
        let nkey = halves("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USD", "XIEDNPPQYYYCU3VY");
        assert_eq!(found(&nkey), [format!("key.nkey={nkey}")]);
        assert_eq!(found(&nkey.replace("DXKF", "DXKG")), [""; 0], "the check does not hold");
    }

    #[test]
    fn tokens_are_told_by_their_issuers_formats() {
        let letters = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7";
        for (detector, text) in [
            ("aws", halves("AK", "IAIOSFODNN7EXAMPLE")),
            ("github", halves("ghp_", &letters[..36])),
            ("gitlab", halves("glpat-", &letters[..20])),
            ("google", halves("AI", &format!("za{}", &letters[..35]))),
            ("npm", halves("npm_", &letters[..36])),
            ("slack", halves("xoxb-", "2401-2402-abcdefghijkl")),
            ("slack", halves("https://hooks.slack.com/", "services/T0/B0/abcdef")),
            ("stripe", halves("sk_live_", &letters[..24])),
            ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln".to_owned()),
            ("jwt", "eyJhbGciOiJub25lIn0.e30.".to_owned()),
        ] {
            let text = format!("use \"{text}\" now");
            assert!(found(&text).iter().any(|one| one.starts_with(&format!("token.{detector}="))), "{text}");
        }
        check(
            "token.",
            &[],
            &[
                "ghp_short",
                "sk_live_",
                "eyJhbGciOiJIUzI1NiJ9",
                "eyJhbGciOiJIUzI1NiJ9.x",
                "eyJ4IjoxfQ.eyJzdWIiOiJ4In0.c2ln",
                "eyJ.eyJ.eyJ",
                &format!("x{}", halves("AK", "IAIOSFODNN7EXAMPLE")),
                &halves("AK", "IAIOSFODNN7EXAMPLEX"),
                &"E".repeat(400),
                &"12".repeat(400),
            ],
        );
    }

    #[test]
    fn random_values_beside_a_word_for_a_secret_are_secrets() {
        check(
            "secret.",
            &[
                "password = \"k3Jx9QzT7vLw2Rb8\"",
                "API_KEY: k3Jx9QzT7vLw2Rb8mN",
                "client-secret=k3Jx9QzT7vLw2Rb8",
                r#"{"dbPassword":"k3Jx9QzT7vLw2Rb8"}"#,
            ],
            &[
                "password = \"short1\"",
                "password: correct horse battery staple",
                "password = aaaaaaaaaaaaaaaa1",
                "commit = \"k3Jx9QzT7vLw2Rb8\"",
                "password reset page: https",
            ],
        );
        assert_eq!(named("api_key", "k3Jx9QzT7vLw2Rb8"), ["secret.entropy=k3Jx9QzT7vLw2Rb8"]);
        assert_eq!(named("title", "k3Jx9QzT7vLw2Rb8"), [""; 0]);
    }

    /// Text that would take long if a detector went back over it, and does not.
    #[test]
    fn no_text_takes_long() {
        for piece in [
            "eyJ-",
            "+1",
            "a@",
            "@",
            "4",
            "4 ",
            "DE12",
            "-----BEGIN ",
            "password=",
            "E_",
            "1-",
            "ghp_",
            ".",
            ": ",
            "hooks.slack.com/services/T/",
            "+ ",
            "eyJ.",
        ] {
            let text = piece.repeat(60_000 / piece.len());
            assert!(detect("password", &text, &Detect::ALL.into()).len() <= 8 * FOUND_MAX);
        }
    }

    #[test]
    fn one_kind_does_not_hide_another_and_only_what_is_wanted_is_looked_for() {
        let text = format!("{} 4111111111111111", "a@b.cd ".repeat(500));
        let kinds: BTreeSet<Detect> =
            detect("", &text, &Detect::ALL.into()).iter().map(|one| one.detect).collect();
        assert_eq!(kinds, [Detect::Card, Detect::Email].into());
        assert_eq!(detect("", &text, &[Detect::Iban].into()), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_text_is_read_and_places_are_those_of_characters(text in any::<String>()) {
            for one in detect("password", &text, &Detect::ALL.into()) {
                prop_assert!(text.get(one.span.clone()).is_some_and(|found| !found.is_empty()), "{:?}", one);
            }
        }

        #[test]
        fn text_that_looks_like_something_is_read_too(
            text in "([+@.:= (-]|[0-9]{1,4}|[a-zA-Z]{1,3}|é|\u{200b}|４|DE|eyJ|-----BEGIN |password|\n){0,60}"
        ) {
            for one in detect("", &text, &Detect::ALL.into()) {
                prop_assert!(text.get(one.span.clone()).is_some_and(|found| !found.is_empty()), "{:?}", one);
            }
        }

        #[test]
        fn a_card_is_found_wherever_it_stands(before in "[a-z ,.;:]{0,30} ", after in " [a-z ,.;:]{0,30}") {
            let text = format!("{before}4111 1111 1111 1111{after}");
            prop_assert!(found(&text).contains(&"card.luhn=4111 1111 1111 1111".to_owned()));
        }
    }
}
