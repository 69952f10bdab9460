//! What the user's own words name.

use std::collections::BTreeSet;

use super::{
    address, calendar,
    entity::{Form, VALUE_BYTES_MAX},
    quantity,
    text::{Case, Standing, Text, bare, is_plain},
};
use crate::ids::EntityType;

/// Longest instruction that is searched, in bytes; a longer one names nothing.
pub const INSTRUCTION_BYTES_MAX: usize = 64 * 1024;

/// How an instruction names a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention {
    /// Not at all, or only as a part of something else.
    None,
    /// Together with others of its type, so that an outsider may choose among them.
    OneOfSeveral,
    /// It and no other of its type.
    Only,
}

/// The user's instruction, parsed once.
///
/// Addresses, accounts, numbers and dates are read out of the text, so that all of a type are known. For words (names,
/// titles, paths, ids, secrets) only the value at hand can be looked for; what else the text quotes or calls by a
/// capital then counts as another candidate.
#[derive(Clone, Debug)]
pub struct Instruction {
    text: Text,
    emails: BTreeSet<String>,
    urls: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// Hosts and URLs of words that do not say that they are one.
    loose_hosts: BTreeSet<String>,
    loose_urls: BTreeSet<String>,
    ibans: BTreeSet<String>,
    phones: BTreeSet<String>,
    amounts: BTreeSet<String>,
    dates: BTreeSet<String>,
}

/// Whether a word says by itself that it is a URL.
fn says_url(word: &str) -> bool {
    word.contains("://") || word.starts_with("www.")
}

impl Instruction {
    /// Reads the instruction. Longer than [`INSTRUCTION_BYTES_MAX`], it names nothing.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let text = Text::new(if text.len() > INSTRUCTION_BYTES_MAX { "" } else { text });
        let words: Vec<String> = text.words().collect();
        let each = |read: fn(&str) -> Option<String>| -> BTreeSet<String> {
            words.iter().filter(|word| is_plain(word)).filter_map(|word| read(word)).collect()
        };
        // A name such as `report.zip` is a file to people and a host to whoever registers it: without a scheme it is one
        // reading of several, at most.
        let (urls, loose): (BTreeSet<String>, BTreeSet<String>) = {
            let read = |is_full: bool| {
                let worded = words.iter().filter(|word| is_plain(word) && says_url(word) == is_full);
                worded.filter_map(|word| address::url(word)).collect()
            };
            (read(true), read(false))
        };
        let hosts_of = |urls: &BTreeSet<String>| -> BTreeSet<String> {
            urls.iter().filter_map(|url| address::host_of(url)).map(str::to_owned).collect()
        };
        Self {
            loose_hosts: hosts_of(&loose),
            loose_urls: loose,
            emails: words
                .iter()
                .flat_map(|word| word.split([',', ';']))
                .map(|word| word.strip_prefix("mailto:").unwrap_or(word))
                .filter(|word| is_plain(word))
                .filter_map(address::email)
                .collect(),
            hosts: hosts_of(&urls),
            urls,
            ibans: runs(&words, quantity::iban, is_account_group),
            phones: runs(&words, dialled, is_phone_group),
            amounts: each(quantity::amount),
            dates: runs(&words, calendar::date, |_| true),
            text,
        }
    }

    /// How the instruction names a value, given in its canonical form.
    #[must_use]
    pub fn names(&self, entity: &EntityType, canonical: &str) -> Mention {
        let among = |candidates: &BTreeSet<String>| match candidates.len() {
            _ if !candidates.contains(canonical) => Mention::None,
            1 => Mention::Only,
            _ => Mention::OneOfSeveral,
        };
        match Form::of(entity) {
            Form::Amount => among(&self.amounts),
            Form::Date => among(&self.dates),
            Form::Email => among(&self.emails),
            Form::Host if self.loose_hosts.contains(canonical) && !self.hosts.contains(canonical) => {
                Mention::OneOfSeveral
            }
            Form::Host => among(&self.hosts),
            Form::Phone => among(&self.phones),
            Form::Url if self.loose_urls.contains(canonical) && !self.urls.contains(canonical) => {
                Mention::OneOfSeveral
            }
            Form::Url => among(&self.urls),
            Form::Iban if quantity::iban(canonical).is_some() => among(&self.ibans),
            // A payee by name, where an account is named as well, is a second candidate.
            Form::Iban if !self.ibans.is_empty() => {
                self.words_name(canonical, Case::Exact, None).min_several()
            }
            Form::Iban | Form::Exact => self.words_name(canonical, Case::Exact, None),
            Form::ExactId => self.words_name(canonical, Case::Exact, Some(entity)),
            Form::Name => self.words_name(canonical, Case::Folded, None),
        }
    }

    /// Whether the instruction calls something by this name, so that it may be told from others: the name is quoted, or
    /// has several words, or a sign or digit in it. A single common word could stand there for any reason.
    #[must_use]
    pub fn calls(&self, name: &str) -> bool {
        let distinct = name.chars().any(|c| !c.is_alphabetic());
        let plain =
            !name.is_empty() && name.len() <= VALUE_BYTES_MAX && is_plain(name) && name.trim() == name;
        plain
            && match self.text.find(name, Case::Folded).0 {
                Standing::Absent => false,
                Standing::Quoted => true,
                Standing::Unclear | Standing::Whole => distinct,
            }
    }

    fn words_name(&self, value: &str, case: Case, numbered: Option<&EntityType>) -> Mention {
        let (standing, before) = self.text.find(value, case);
        let is_number = value.bytes().all(|b| b.is_ascii_digit());
        // "Book 5 hours" names no event 5: a bare number needs a word that says what it numbers.
        let introduced = |entity: &EntityType| before.iter().any(|word| introduces(word, entity));
        if is_number && numbered.is_some_and(|entity| !introduced(entity)) {
            return Mention::None;
        }
        // So does a word that could be any: what is quoted, has a capital, a digit or a sign in it is meant as a name.
        let marked = value.chars().any(|c| !c.is_lowercase() && c != ' ');
        let is_same = |other: &str, value: &str| match case {
            Case::Exact => other == value,
            Case::Folded => other.to_lowercase() == value.to_lowercase(),
        };
        // A quotation that is a part of the value is a value too: after "'cust' and 'customers'" it could be either.
        let quotes_another = || self.text.quotations().any(|other| !is_same(&other, value));
        let own: Vec<String> = value.split(' ').map(|word| bare(&word.chars().collect::<Vec<_>>())).collect();
        let is_own = |word: &str| is_same(word, value) || own.iter().any(|own| is_same(word, own));
        let calls_another = || self.text.proper_words().any(|word| !is_own(&word));
        let several = match standing {
            Standing::Absent => return Mention::None,
            Standing::Unclear => true,
            Standing::Quoted => quotes_another(),
            Standing::Whole => !marked || quotes_another() || calls_another(),
        };
        if several { Mention::OneOfSeveral } else { Mention::Only }
    }
}

impl Mention {
    fn min_several(self) -> Self {
        if self == Self::Only { Self::OneOfSeveral } else { self }
    }
}

/// Whether a word says that the number after it is the id of such an entity: `id 24`, `# 24`, `event 24`.
fn introduces(word: &str, entity: &EntityType) -> bool {
    matches!(word, "id" | "ids" | "no" | "nr" | "number" | "#")
        || entity.as_str().split(['_', '-']).any(|part| part == word)
}

/// Reads values that may be written with spaces: every single word, and every run of words that belong together.
fn runs(words: &[String], read: fn(&str) -> Option<String>, belongs: fn(&str) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < words.len() {
        let rest = words.get(at..).unwrap_or_default();
        let length = rest.iter().take(RUN_WORDS_MAX).take_while(|word| belongs(word)).count().max(1);
        // The longest run that reads as one; its parts are then no values of their own.
        let longest = (1..=length).rev().find_map(|count| {
            let text = rest.get(..count)?.join(" ");
            if is_plain(&text) { read(&text).map(|value| (value, count)) } else { None }
        });
        match longest {
            Some((value, count)) => {
                found.insert(value);
                at += count;
            }
            None => at += 1,
        }
    }
    found
}

/// An IBAN of 34 characters in groups of four has nine.
const RUN_WORDS_MAX: usize = 9;

fn is_account_group(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-')
        && (word.len() >= 15 || word.bytes().any(|b| b.is_ascii_digit()))
}

/// A telephone number that is no date.
fn dialled(text: &str) -> Option<String> {
    quantity::phone(text).filter(|_| calendar::date(text).is_none())
}

fn is_phone_group(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_digit() || b"+()-./".contains(&b))
}
