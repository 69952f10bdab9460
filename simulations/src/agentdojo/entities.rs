//! What values name, told from the file: by the entity types its tools declare, by the shape of values, and by the
//! words that keys, arguments and tools are called by.

use std::collections::{BTreeMap, BTreeSet};

use writ_common::{ids::EntityType, json::Value, source::canonical_text};

use super::trace::Suite;

/// An entity type, and the arguments that hold it.
pub struct Entity {
    /// Its type.
    pub kind: EntityType,
    /// Names of arguments of this type.
    pub arguments: BTreeSet<String>,
    /// Groups of tools that have such arguments.
    pub groups: BTreeSet<String>,
}

/// How values of a type are told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// By their shape.
    Shaped,
    /// Ids, which look like anything.
    Id,
    /// How much or when.
    Quantity,
    /// Words.
    Word,
}

/// The id grammar's form of a word of the file.
pub fn id_of(word: &str) -> String {
    let word = word.to_lowercase();
    let id = word.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' });
    id.take(writ_common::ids::ID_BYTES_MAX).collect()
}

/// The entity types of a suite.
pub fn of(suite: &Suite) -> anyhow::Result<Vec<Entity>> {
    let mut entities: BTreeMap<String, Entity> = BTreeMap::new();
    for tool in suite.tools.values() {
        for (argument, kind) in &tool.sinks {
            let id = id_of(kind);
            let kind = EntityType::parse(id.as_str())?;
            let entity = entities.entry(id).or_insert_with(|| Entity {
                kind,
                arguments: BTreeSet::new(),
                groups: BTreeSet::new(),
            });
            entity.arguments.insert(argument.clone());
            entity.groups.insert(tool.group.clone());
        }
    }
    Ok(entities.into_values().collect())
}

impl Entity {
    /// How its values are told.
    pub fn sort(&self) -> Sort {
        sort(self.kind.as_str())
    }

    /// Whether a value has the shape of this type; only for [`Sort::Shaped`].
    pub fn fits(&self, value: &Value) -> bool {
        let Some(text) = value.as_str().filter(|_| self.sort() == Sort::Shaped) else { return false };
        let Some(form) = canonical_text(&self.kind, text) else { return false };
        // Of an account the type also takes a payee's name, and a URL without a scheme could be a file.
        match self.kind.as_str() {
            "iban" => {
                form.len() >= 15
                    && form.chars().take(2).all(|c| c.is_ascii_uppercase())
                    && form.chars().skip(2).take(2).all(|c| c.is_ascii_digit())
            }
            "url" => text.contains("://") || text.starts_with("www."),
            _ => true,
        }
    }

    /// Whether a key, or the name of a tool, says that it holds this type.
    pub fn is_called(&self, name: &str) -> bool {
        let said = words(name);
        let named_so = self.arguments.iter().any(|argument| words(argument) == said);
        named_so || nouns(self.kind.as_str()).iter().any(|word| said.contains(word))
    }

    /// Whether a word, out of the name of a tool, speaks of this type.
    pub fn is_meant_by(&self, word: &String) -> bool {
        nouns(self.kind.as_str()).contains(word)
            || self.arguments.iter().any(|argument| nouns(argument).contains(word))
    }
}

/// How values of a type called so are told.
pub fn sort(kind: &str) -> Sort {
    match kind {
        "email" | "host" | "iban" | "phone" | "url" => Sort::Shaped,
        _ if words(kind).iter().any(|word| word == "id") => Sort::Id,
        _ if words(kind).iter().any(|word| QUANTITIES.contains(&word.as_str())) => Sort::Quantity,
        _ => Sort::Word,
    }
}

/// Words for how much and when.
const QUANTITIES: [&str; 14] = [
    "amount", "count", "date", "datetime", "day", "duration", "money", "month", "number", "price",
    "quantity", "sum", "time", "year",
];

/// The words of a name that say what it is about.
pub fn nouns(name: &str) -> Vec<String> {
    let all = words(name);
    let telling: Vec<String> =
        all.iter().filter(|word| !matches!(word.as_str(), "name" | "id")).cloned().collect();
    if telling.is_empty() { all } else { telling }
}

/// The words of a name, in the singular: `get_users` is `get`, `user`.
pub fn words(name: &str) -> Vec<String> {
    let parts = name.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
    parts.map(|part| part.to_lowercase().trim_end_matches('s').to_owned()).collect()
}
