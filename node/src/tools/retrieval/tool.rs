//! The store as a tool of the node.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use writ_common::{
    datalog::Predicate,
    decide::Gate,
    ids::Action,
    json::Value,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

use super::{ANSWER_CHUNKS_MAX, Asker, Found, Store, StoreError, Wanted, read, search, words::words};
use crate::{
    guard::ToolFailure,
    tools::{Tool, ToolOutput, ToolSetupError, tool_failed, unknown_action},
};

/// Where the documents are, and how much of them is given at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrievalSettings {
    /// The store.
    pub file: PathBuf,
    /// Most chunks of one answer, and how many there are if the caller does not say.
    pub chunks_max: usize,
    /// Longest run of a question.
    pub timeout: Millis,
}

/// Questions at once.
const CONNECTIONS: usize = 4;
/// How long a question may take to notice that its time is up.
const GRACE: Duration = Duration::from_secs(2);
/// Longest query, in bytes.
const QUERY_BYTES_MAX: usize = 4_096;

/// A document store that can be asked.
pub struct Retrieval {
    idle: Arc<Mutex<Vec<Store>>>,
    /// One permit per store.
    permits: Arc<Semaphore>,
    settings: RetrievalSettings,
}

/// What is asked.
#[derive(Clone, Debug)]
enum Request {
    Search { query: String, limit: usize },
    Read(Wanted),
}

impl Retrieval {
    /// Opens the store read-only.
    ///
    /// # Errors
    /// [`ToolSetupError::Setting`] if there is no store that may be used.
    pub fn open(settings: RetrievalSettings) -> Result<Self, ToolSetupError> {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(
                Store::open(&settings.file).map_err(|error| ToolSetupError::Setting(error.to_string()))?,
            );
        }
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self { idle: Arc::new(Mutex::new(idle)), permits, settings })
    }

    fn request(&self, action: &Action, arguments: &Value) -> Result<Request, Reason> {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
        let invalid = |told: String| Reason::new(ReasonCode::ArgInvalid).told(told);
        match action.as_str() {
            "search" => {
                let query = text("query");
                if query.len() > QUERY_BYTES_MAX {
                    return Err(invalid(format!("`/query` is longer than {QUERY_BYTES_MAX} bytes")));
                }
                if words(query).next().is_none() {
                    return Err(invalid("`/query` holds no word".to_owned()));
                }
                let limit = match arguments.get("limit") {
                    None => self.settings.chunks_max,
                    Some(Value::Number(number)) => {
                        let wanted = number.as_i64().and_then(|number| usize::try_from(number).ok());
                        let wanted = wanted.filter(|wanted| (1..=ANSWER_CHUNKS_MAX).contains(wanted));
                        wanted.ok_or_else(|| {
                            invalid(format!("`/limit` is not from 1 to {ANSWER_CHUNKS_MAX}"))
                        })?
                    }
                    Some(_) => return Err(invalid("`/limit` is no number".to_owned())),
                };
                Ok(Request::Search { query: query.to_owned(), limit: limit.min(self.settings.chunks_max) })
            }
            "read" => {
                let wanted = text("id").parse().map_err(|why| invalid(format!("`/id` {why}")))?;
                Ok(Request::Read(wanted))
            }
            _ => Err(unknown_action(action)),
        }
    }

    /// The asker, from the permit alone: nothing in the arguments says who asks.
    fn asker(permit: &Permit) -> Option<Asker> {
        // The agent that gets the answer is one of them, whatever else is known of the way.
        let caller = permit.caller()?;
        let mut agents = permit.agents().to_vec();
        if agents.last() != Some(caller) {
            agents.push(caller.clone());
        }
        Some(Asker { user: permit.user()?.clone(), agents, clearance: permit.clearance().clone() })
    }

    async fn answer(&self, asker: Asker, request: Request) -> Result<ToolOutput, ToolFailure> {
        let timeout = self.settings.timeout.to_duration();
        let deadline = Instant::now() + timeout;
        let timed_out = |status| ToolFailure {
            reason: Reason::new(ReasonCode::ToolTimeout)
                .told(format_args!("longer than {}", self.settings.timeout)),
            status,
        };
        let waiting = tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(turn)) = waiting else { return Err(timed_out(OutcomeStatus::NotRun)) };
        let (idle, file) = (Arc::clone(&self.idle), self.settings.file.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            // A store that could not be opened again leaves its place empty, and the next question opens one.
            let taken = taken.map_or_else(|| Store::open(&file), Store::current);
            let mut store = taken.map_err(not_told)?;
            let answer = store.stop_at(deadline).and_then(|()| match &request {
                Request::Search { query, limit } => search(&store, &asker, query, *limit),
                Request::Read(wanted) => read(&store, &asker, *wanted),
            });
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(store);
            drop(turn);
            answer.map_err(not_told)
        });
        match tokio::time::timeout(timeout + GRACE, asking).await {
            Ok(Ok(Err(_))) if Instant::now() >= deadline => Err(timed_out(OutcomeStatus::Failed)),
            Ok(Ok(answer)) => answer.map(|found| output(&found)),
            Ok(Err(error)) => Err(tool_failed(error)),
            // It ends by itself; nothing a question does outlives it.
            Err(_) => Err(timed_out(OutcomeStatus::Failed)),
        }
    }
}

impl Gate for Retrieval {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        self.request(action, arguments).map(|_| Vec::new())
    }
}

#[async_trait]
impl Tool for Retrieval {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let not_run = |reason| ToolFailure { reason, status: OutcomeStatus::NotRun };
        let request = self.request(permit.action(), permit.arguments().value()).map_err(not_run)?;
        let asker = Self::asker(&permit)
            .ok_or_else(|| not_run(Reason::new(ReasonCode::ToolFailed).told("nobody is known to ask")))?;
        self.answer(asker, request).await
    }
}

/// The caller is told that the store could not be asked; paths and SQLite's words are for the operator.
fn not_told(error: StoreError) -> ToolFailure {
    let reason = Reason::new(ReasonCode::ToolFailed).told("the document store cannot be read").noted(error);
    ToolFailure { reason, status: OutcomeStatus::Failed }
}

fn output(found: &Found) -> ToolOutput {
    for id in &found.damaged {
        tracing::warn!("chunk {id} is damaged and was left out; ingest its document again");
    }
    ToolOutput { value: found.to_value(), label: Some(found.label()), manifest: found.manifest() }
}

#[cfg(test)]
mod tests {
    use writ_common::{label::Label, time::Timestamp};

    use super::*;
    use crate::tools::{
        retrieval::{Act, NewDocument, Readers},
        testing::permit,
    };

    /// What the permits of tests are for: user `s` of issuer `i`, agent `tester`.
    fn tool() -> (tempfile::TempDir, Retrieval) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("documents.db");
        let mut store = Store::create(&file).unwrap();
        for (source, text, reader, label) in [
            ("mine", "the plan of the merger", "user:i|s", Label::bottom()),
            ("theirs", "the plan of the party", "user:i|t", Label::bottom()),
            ("nobodys", "the plan of the plan", "user:*", Label::top()),
        ] {
            let readers = [reader, "agent:tester"].map(|entry| entry.parse().unwrap());
            let readers = Readers::new(&readers).unwrap();
            let document = NewDocument { source: source.into(), text: text.into(), label, readers };
            store.ingest(&document, Act { at: Timestamp::from_secs(1), by: "test" }).unwrap();
        }
        let settings = RetrievalSettings { file, chunks_max: 8, timeout: Millis::from_secs(5) };
        (folder, Retrieval::open(settings).unwrap())
    }

    #[tokio::test]
    async fn who_asks_is_who_the_permit_is_for() {
        let (_folder, tool) = tool();
        let output = tool.call(permit("tool.documents", "search", r#"{"query":"plan"}"#)).await.unwrap();
        let text = output.value.to_string();
        assert!(text.contains("merger") && !text.contains("party") && !text.contains("nobodys"), "{text}");
        assert_eq!(output.label, Some(Label::bottom()));
        assert_eq!(output.manifest.len(), 1);
        let theirs = super::super::DocumentId::of("theirs");
        let arguments = format!(r#"{{"id":"{theirs}"}}"#);
        let output = tool.call(permit("tool.documents", "read", &arguments)).await.unwrap();
        assert_eq!(output.value.to_string(), r#"{"chunks":[]}"#);
    }

    #[tokio::test]
    async fn r02_a_store_that_was_replaced_is_asked_and_not_the_one_before() {
        let (folder, tool) = tool();
        let search = async || {
            let asked = tool.call(permit("tool.documents", "search", r#"{"query":"merger"}"#)).await;
            asked
                .map(|output| output.manifest.len())
                .map_err(|failure| failure.reason.for_caller().to_owned())
        };
        assert_eq!(search().await, Ok(1));
        let file = folder.path().join("documents.db");
        std::fs::rename(&file, folder.path().join("before.db")).unwrap();
        assert_eq!(search().await, Err("the document store cannot be read".to_owned()));
        drop(Store::create(&file).unwrap());
        for _ in 0..2 * CONNECTIONS {
            assert_eq!(search().await, Ok(0));
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_before_anything_is_decided() {
        let (_folder, tool) = tool();
        let admit = |action: &str, arguments: &str| {
            let told = tool.admit(&Action::parse(action).unwrap(), &Value::parse(arguments).unwrap());
            told.map(|facts| facts.len()).map_err(|reason| reason.to_string())
        };
        assert_eq!(admit("search", r#"{"query":"plan","limit":32}"#), Ok(0));
        for (action, arguments, why) in [
            ("search", "{}", "holds no word"),
            ("search", r#"{"query":"?!"}"#, "holds no word"),
            ("search", r#"{"query":"plan","limit":0}"#, "`/limit` is not from 1 to 32"),
            ("search", r#"{"query":"plan","limit":33}"#, "`/limit` is not from 1 to 32"),
            ("search", r#"{"query":"plan","limit":"5"}"#, "`/limit` is no number"),
            ("read", r#"{"id":"mine"}"#, "is no document"),
            ("read", r#"{"id":"d-00112233445566778899aabbccddeeff#07"}"#, "is no chunk"),
            ("write", "{}", "tool.unknown"),
        ] {
            let told = admit(action, arguments).unwrap_err();
            assert!(told.contains(why), "{action} {arguments}: {told}");
        }
        let long = format!(r#"{{"query":"{}"}}"#, "a".repeat(5_000));
        assert!(admit("search", &long).is_err());
    }

    #[test]
    fn a_store_that_is_not_there_is_noticed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("documents.db");
        let settings = RetrievalSettings { file, chunks_max: 8, timeout: Millis::from_secs(5) };
        assert!(matches!(Retrieval::open(settings), Err(ToolSetupError::Setting(_))));
    }
}
