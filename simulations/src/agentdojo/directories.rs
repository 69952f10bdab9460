//! The directories of a file, and which of them outsiders fill.
//!
//! A file does not say who writes a list. The records in it do: a list with somebody who is only ever seen as the
//! sender of what came in, and whom the owner never wrote to or paid, is collected from what came in. Such a list is
//! no trusted source.

use std::collections::BTreeSet;

use writ_common::{
    ids::EntityType,
    json::Value,
    source::{Directory, canonical_text},
};

use super::{
    entities::{Entity, Sort, id_of, words},
    trace::Suite,
};

/// A directory as it goes into the inventory.
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it lists.
    pub entity: EntityType,
    /// The values.
    pub values: Vec<String>,
    /// Domains whose addresses it covers.
    pub domains: Vec<String>,
    /// Whether outsiders fill it.
    pub outsiders_write: bool,
}

/// The directories of a suite.
pub fn of(suite: &Suite, entities: &[Entity]) -> anyhow::Result<Vec<Listed>> {
    let own = Own::of(suite)?;
    let inbound = inbound_only(suite, &own);
    let mut listed = Vec::new();
    for (key, value) in &suite.directories {
        let mut texts = Vec::new();
        value.for_each_leaf(&mut |_, leaf| texts.extend(leaf.as_str().map(str::to_owned)));
        let is_domain = words(key).iter().any(|word| word == "domain");
        for entity in entities {
            let addressed = matches!(entity.kind.as_str(), "email" | "host" | "url");
            let covers = is_domain && addressed;
            let lists = !is_domain
                && match entity.sort() {
                    Sort::Shaped => texts.iter().any(|text| entity.fits(&Value::from(text.as_str()))),
                    Sort::Word => words(key).iter().any(|word| entity.is_meant_by(word)),
                    Sort::Id | Sort::Quantity => false,
                };
            if !covers && !lists {
                continue;
            }
            let known = texts.iter().filter(|text| canonical_text(&entity.kind, text).is_some() || covers);
            let known: Vec<String> = known.cloned().collect();
            // Anybody has an address; nobody becomes a member or a channel by writing.
            let outsiders_write = lists
                && entity.sort() == Sort::Shaped
                && known.iter().any(|text| inbound.contains(&text.to_lowercase()));
            let name: String = id_of(&format!("{key}-{}", entity.kind));
            let (values, domains) = if covers { (Vec::new(), known) } else { (known, Vec::new()) };
            // What has no canonical form after all vouches for nothing; the file is not wrong for that.
            if Directory::new(&name, entity.kind.clone(), &values, &domains, outsiders_write).is_ok() {
                listed.push(Listed { name, entity: entity.kind.clone(), values, domains, outsiders_write });
            }
        }
    }
    Ok(listed)
}

/// What the file says of the owner: whatever it calls `own`.
struct Own {
    values: BTreeSet<String>,
    domains: BTreeSet<String>,
}

impl Own {
    fn of(suite: &Suite) -> anyhow::Result<Self> {
        let (mut values, mut domains) = (BTreeSet::from(["me".to_owned()]), BTreeSet::new());
        for (key, value) in &suite.directories {
            let words = words(key);
            if !words.iter().any(|word| matches!(word.as_str(), "own" | "my" | "self" | "owner")) {
                continue;
            }
            let of = if words.iter().any(|word| word == "domain") { &mut domains } else { &mut values };
            value.for_each_leaf(&mut |_, leaf| of.extend(leaf.as_str().map(str::to_lowercase)));
        }
        Ok(Self { values, domains })
    }

    fn is(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let domain = text.rsplit_once('@').map(|(_, domain)| domain.to_owned());
        self.values.contains(&text) || domain.is_some_and(|domain| self.domains.contains(&domain))
    }
}

/// Everybody who sent something that outsiders can write, and to whom nothing was sent.
fn inbound_only(suite: &Suite, own: &Own) -> BTreeSet<String> {
    let (mut senders, mut addressed) = (BTreeSet::new(), BTreeSet::new());
    let outside =
        suite.calls().filter(|call| suite.tools.get(&call.tool).is_some_and(|tool| tool.outsiders_write));
    let mut seen = BTreeSet::new();
    for call in outside {
        // Many calls share one result.
        if seen.insert(std::sync::Arc::as_ptr(&call.result)) {
            records(&call.result, own, &mut senders, &mut addressed);
        }
    }
    senders.retain(|sender| !addressed.contains(sender) && !own.is(sender));
    senders
}

fn records(value: &Value, own: &Own, senders: &mut BTreeSet<String>, addressed: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| records(item, own, senders, addressed)),
        Value::Object(fields) => {
            let of_sender = |key: &str| {
                let sends =
                    |word: &String| matches!(word.as_str(), "sender" | "from" | "author" | "organizer");
                words(key).iter().any(sends)
            };
            let (from, others): (Vec<_>, Vec<_>) = fields.iter().partition(|(key, _)| of_sender(key));
            let from: Vec<&str> = from.iter().filter_map(|(_, value)| value.as_str()).collect();
            senders.extend(from.iter().map(|sender| sender.to_lowercase()));
            if !from.is_empty() && from.iter().all(|sender| own.is(sender)) {
                for (_, value) in &others {
                    value
                        .for_each_leaf(&mut |_, leaf| addressed.extend(leaf.as_str().map(str::to_lowercase)));
                }
            }
            others.iter().for_each(|(_, value)| records(value, own, senders, addressed));
        }
        _ => {}
    }
}
