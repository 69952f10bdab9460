//! Writ for agents.
//!
//! An [`Agent`] is a connection with an identity. It starts a [`Task`] with a user's token, or is handed one in an
//! [`Invocation`] when it serves others. A task calls tools, hands parts of itself to other agents, and renews
//! its capability by itself. Every answer comes with a node's receipt, checked before the answer is handed out.
//!
//! ```no_run
//! use writ_sdk::{Agent, Identity, NewTask, json};
//!
//! # async fn run() -> Result<(), writ_sdk::Error> {
//! let agent = Agent::connect(Identity::load("planner")?).await?;
//! let task = agent.start_task(NewTask::new("customer-answer", "…the user's token…", "Answer Ada.")).await?;
//! let rows = task.call("tool.crm", "read", json::object([("sql", "SELECT name FROM customers".into())])).await?;
//! # Ok(())
//! # }
//! ```

mod agent;
mod approval;
mod call;
mod delegate;
mod enroll;
mod error;
mod identity;
pub mod json;
mod offer;
mod receipts;
mod right;
mod serve;
mod spans;
mod task;

pub use agent::{Agent, NewTask};
pub use approval::Held;
pub use call::Labelled;
pub use delegate::Delegation;
pub use enroll::enroll;
pub use error::{Denial, Error};
pub use identity::Identity;
pub use offer::Offer;
pub use right::RequestedRight;
pub use serve::{Invocation, Server};
pub use task::Task;
pub use writ_common::{
    approval::Need,
    capability::{DelegationChain, Narrowing, Right, UnverifiedCapability},
    ids::{AgentId, ApprovalId, TaskId},
    json::Value,
    reason::{Advice, ReasonCode},
    record::{OutcomeStatus, Receipt},
    wire::OfferedTool,
};
