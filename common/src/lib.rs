//! Writ's decision core: what a capability says, what a policy answers, what a record holds.
//!
//! The story of a decision: bytes become a [`codec::Message`]; the capability in it becomes an
//! [`capability::UnverifiedCapability`] and, once its signatures hold under the [`keyset`], a
//! [`capability::Capability`]. Together with the [`control`] state it is [`decide::Evidence`] for a
//! [`request::Request`]. [`decide::decide`] asks the [`policy::PolicySet`] and returns a [`verdict::Verdict`]; an
//! allowing one makes a [`verdict::Permit`], the only thing a tool accepts. Whatever the answer, it becomes a
//! [`record::Record`].
//!
//! Nothing here reads a clock, draws randomness or touches a file or socket: all of that is passed in.

pub mod act;
pub mod admission;
pub mod approval;
pub mod budget;
mod bytes32;
pub mod capability;
pub mod cases;
pub mod codec;
pub mod contract;
pub mod control;
pub mod counts;
pub mod datalog;
pub mod decide;
pub mod diagnostic;
pub mod digest;
pub mod entropy;
pub mod epoch;
pub mod evidence;
pub mod flow;
pub mod fresh;
pub mod hold;
pub mod ids;
pub mod inspect;
pub mod json;
pub mod keys;
pub mod keyset;
pub mod label;
pub mod mcp;
pub mod ocsf;
pub mod part;
pub mod pointer;
pub mod policy;
pub mod reason;
pub mod record;
pub mod record_log;
pub mod recorder;
pub mod red;
pub mod replay;
pub mod request;
pub mod settings;
pub mod signed;
pub mod source;
pub mod subjects;
pub mod time;
pub mod tlog;
pub mod trace;
pub mod verdict;
pub mod visible;
pub mod wire;
