//! Who may read a chunk: its access list and its label, together its class.
//!
//! Pure. Whatever cannot be read admits nobody: a list that is no list, a label that is no label.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use writ_common::{
    digest::Digest,
    ids::{AgentId, UserId},
    label::Label,
};

/// Most users and most agents one access list names.
pub const READERS_MAX: usize = 256;

/// Who asks: for whom, through whom, and how much may be told to whoever gets the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The user of the task.
    pub user: UserId,
    /// Every agent the task went through, the one that calls last.
    pub agents: Vec<AgentId>,
    /// The most that may be told to the agent that calls.
    pub clearance: Label,
}

/// Everybody, or those who are named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Named<T: Ord> {
    /// Everybody.
    All,
    /// These and nobody else.
    These(BTreeSet<T>),
}

impl<T: Ord> Named<T> {
    fn admits(&self, one: &T) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(one),
        }
    }

    fn add(&mut self, one: T) {
        if let Self::These(names) = self {
            names.insert(one);
        }
    }

    fn is_nobody(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }

    fn is_too_long(&self) -> bool {
        matches!(self, Self::These(names) if names.len() > READERS_MAX)
    }
}

/// An access list: the users who may be told, and the agents that may be given it on their behalf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readers {
    /// The users.
    pub users: Named<UserId>,
    /// The agents.
    pub agents: Named<AgentId>,
}

/// One entry of an access list, as operators write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// `user:*`
    AnyUser,
    /// `user:<issuer>|<subject>`
    User(UserId),
    /// `agent:*`
    AnyAgent,
    /// `agent:<name>`
    Agent(AgentId),
}

/// Why a text is no entry of an access list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {why}")]
pub struct InvalidReader {
    text: String,
    why: String,
}

impl FromStr for Reader {
    type Err = InvalidReader;
    fn from_str(text: &str) -> Result<Self, InvalidReader> {
        let invalid = |why: String| InvalidReader { text: text.to_owned(), why };
        match text.split_once(':') {
            Some(("user", "*")) => Ok(Self::AnyUser),
            Some(("agent", "*")) => Ok(Self::AnyAgent),
            Some(("agent", name)) => AgentId::parse(name)
                .map(Self::Agent)
                .map_err(|error| invalid(format!("names no agent: {error}"))),
            Some(("user", user)) => {
                // A subject is the issuer's own word and may hold a bar; an issuer is a URL and holds none.
                let (issuer, subject) = user.split_once('|').ok_or_else(|| {
                    invalid(
                        "names no user: write `user:<issuer>|<subject>`, as the user's token has them".into(),
                    )
                })?;
                let user = UserId::parse(issuer, subject);
                user.map(Self::User).map_err(|error| invalid(format!("names no user: {error}")))
            }
            _ => Err(invalid(
                "is no reader: write `user:<issuer>|<subject>`, `user:*`, `agent:<name>` or `agent:*`".into(),
            )),
        }
    }
}

/// Why readers are no access list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReaders {
    /// Nobody could read it.
    #[error("no {0} may read it: name one, or write `{0}:*` for every {0}")]
    Nobody(&'static str),
    /// More than `READERS_MAX`.
    #[error("more than 256 {0}s: use a label and the agents' clearance for groups that large")]
    TooMany(&'static str),
}

impl Readers {
    /// An access list of these entries. Both kinds have to be there: nobody means everybody by saying nothing.
    ///
    /// # Errors
    /// [`InvalidReaders`].
    pub fn new(entries: &[Reader]) -> Result<Self, InvalidReaders> {
        let mut readers =
            Self { users: Named::These(BTreeSet::new()), agents: Named::These(BTreeSet::new()) };
        for entry in entries {
            match entry {
                Reader::AnyUser => readers.users = Named::All,
                Reader::AnyAgent => readers.agents = Named::All,
                Reader::User(user) => readers.users.add(user.clone()),
                Reader::Agent(agent) => readers.agents.add(agent.clone()),
            }
        }
        for (what, is_nobody, is_too_long) in [
            ("user", readers.users.is_nobody(), readers.users.is_too_long()),
            ("agent", readers.agents.is_nobody(), readers.agents.is_too_long()),
        ] {
            if is_nobody {
                return Err(InvalidReaders::Nobody(what));
            }
            if is_too_long {
                return Err(InvalidReaders::TooMany(what));
            }
        }
        Ok(readers)
    }

    /// Whether the user may be told, and every agent on the way may be given it.
    fn admits(&self, asker: &Asker) -> bool {
        let user = self.users.admits(&asker.user) || writ_common::red::off("F12-user");
        let agents = asker.agents.iter().all(|agent| self.agents.admits(agent));
        let agents = (agents && !asker.agents.is_empty()) || writ_common::red::off("F12-agent");
        user && agents
    }
}

/// For people: `user:*, agent:researcher`.
impl fmt::Display for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users: Vec<String> = match &self.users {
            Named::All => vec!["user:*".to_owned()],
            Named::These(users) => {
                users.iter().map(|user| format!("user:{}|{}", user.issuer(), user.subject())).collect()
            }
        };
        let agents: Vec<String> = match &self.agents {
            Named::All => vec!["agent:*".to_owned()],
            Named::These(agents) => agents.iter().map(|agent| format!("agent:{agent}")).collect(),
        };
        f.write_str(&[users, agents].concat().join(", "))
    }
}

/// A label and an access list. Chunks with the same of both share a class, so that who may read what is decided here,
/// once per class, and the database is only asked for the classes that were let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What reading it adds to the task label.
    pub label: Label,
    /// Who may read it; `None` is a list nobody can read, which admits nobody.
    pub readers: Option<Readers>,
}

impl Class {
    /// From the texts in the store. `digest` is what names the class; texts it was not made of are worth nothing.
    #[must_use]
    pub fn read(digest: &[u8], label: &str, readers: &str) -> Self {
        if digest != Self::digest_of(label, readers).as_bytes() && !writ_common::red::off("F12-digest") {
            return Self { label: Label::top(), readers: None };
        }
        Self {
            label: serde_json::from_str(label).unwrap_or_else(|_| Label::top()),
            readers: serde_json::from_str(readers).ok(),
        }
    }

    /// The texts as the store keeps them, and the digest that names them.
    ///
    /// # Errors
    /// Never for labels and lists that were made by their constructors.
    pub fn write(label: &Label, readers: &Readers) -> Result<(Digest, String, String), serde_json::Error> {
        let (label, readers) = (serde_json::to_string(label)?, serde_json::to_string(readers)?);
        Ok((Self::digest_of(&label, &readers), label, readers))
    }

    fn digest_of(label: &str, readers: &str) -> Digest {
        Digest::of("writ/v1/document-class", &[label.as_bytes(), readers.as_bytes()])
    }

    /// Whether the asker may be given what has this class.
    #[must_use]
    pub fn admits(&self, asker: &Asker) -> bool {
        let is_cleared = self.label.flows_to(&asker.clearance) || writ_common::red::off("F12-clearance");
        is_cleared && self.readers.as_ref().is_some_and(|readers| readers.admits(asker))
    }
}

#[cfg(test)]
mod tests {
    use writ_common::label::{Confidentiality, Integrity, Tag};

    use super::*;

    fn asker(user: &str, agents: &[&str], tags: &[&str]) -> Asker {
        Asker {
            user: UserId::parse("https://idp", user).unwrap(),
            agents: agents.iter().map(|agent| AgentId::parse(*agent).unwrap()).collect(),
            clearance: label(tags, Integrity::Untrusted),
        }
    }

    fn label(tags: &[&str], integrity: Integrity) -> Label {
        let tags = tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect();
        Label { confidentiality: Confidentiality::Tags(tags), integrity }
    }

    fn class(label: &Label, readers: &[&str]) -> Class {
        let entries: Vec<Reader> = readers.iter().map(|reader| reader.parse().unwrap()).collect();
        let (digest, label, readers) = Class::write(label, &Readers::new(&entries).unwrap()).unwrap();
        Class::read(digest.as_bytes(), &label, &readers)
    }

    #[test]
    fn f12_user_another_user_reads_nothing() {
        let class = class(&Label::bottom(), &["user:https://idp|kim", "agent:*"]);
        assert!(class.admits(&asker("kim", &["researcher"], &[])));
        assert!(!class.admits(&asker("lou", &["researcher"], &[])));
        let elsewhere = Asker {
            user: UserId::parse("https://other", "kim").unwrap(),
            ..asker("kim", &["researcher"], &[])
        };
        assert!(!class.admits(&elsewhere));
    }

    #[test]
    fn f12_agent_every_agent_of_the_chain_has_to_be_on_the_list() {
        let class = class(&Label::bottom(), &["user:*", "agent:researcher", "agent:planner"]);
        assert!(class.admits(&asker("kim", &["planner", "researcher"], &[])));
        assert!(!class.admits(&asker("kim", &["stranger", "researcher"], &[])));
        assert!(!class.admits(&asker("kim", &["researcher", "stranger"], &[])));
        assert!(!class.admits(&asker("kim", &[], &[])));
    }

    #[test]
    fn f12_clearance_what_does_not_flow_to_the_agent_is_not_there() {
        let class = class(&label(&["hr"], Integrity::Trusted), &["user:*", "agent:*"]);
        assert!(class.admits(&asker("kim", &["a"], &["crm", "hr"])));
        assert!(!class.admits(&asker("kim", &["a"], &["crm"])));
    }

    #[test]
    fn f12_digest_what_cannot_be_read_admits_nobody() {
        let (digest, label, readers) =
            Class::write(&Label::bottom(), &Readers::new(&[Reader::AnyUser, Reader::AnyAgent]).unwrap())
                .unwrap();
        let asker = asker("kim", &["a"], &[]);
        assert!(Class::read(digest.as_bytes(), &label, &readers).admits(&asker));
        let wider = label.replace("trusted", "untrusted");
        assert!(!Class::read(digest.as_bytes(), &wider, &readers).admits(&asker));
        assert!(!Class::read(b"", &label, &readers).admits(&asker));
        for (label, readers) in [
            ("{}", readers.as_str()),
            (&label, "{}"),
            (&label, r#"{"users":"all","agents":"all","roles":"all"}"#),
        ] {
            let digest = Class::digest_of(label, readers);
            assert!(!Class::read(digest.as_bytes(), label, readers).admits(&asker), "{label} {readers}");
        }
        let nobody = Class::read(b"", "", "");
        assert_eq!(nobody.label, Label::top());
    }

    #[test]
    fn lists_say_who() {
        let entries = ["user:https://idp|a|b", "agent:researcher"].map(|text| text.parse().unwrap());
        let readers = Readers::new(&entries).unwrap();
        assert_eq!(readers.to_string(), "user:https://idp|a|b, agent:researcher");
        assert!(matches!(&entries[0], Reader::User(user) if user.subject() == "a|b"));
        assert_eq!(
            Readers::new(&entries[1..]).unwrap_err().to_string(),
            "no user may read it: name one, or write `user:*` for every user"
        );
        assert!(Readers::new(&entries[..1]).is_err());
        for wrong in ["kim", "user:kim", "role:sales", "agent:", "agent:A", "user:|kim", "*"] {
            assert!(wrong.parse::<Reader>().is_err(), "{wrong}");
        }
    }
}
