//! Inspectors, asked: in this process, over HTTP, over the bus.
//!
//! What is sent and what counts as an answer stands in [`writ_common::inspect`]. Here is what can take time: every
//! inspection ends by its inspector's deadline, so many questions are under way at once and no more, a silent inspector
//! is left alone for a while, and answers are remembered.

mod client;
mod settings;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use tokio::{sync::Semaphore, time::Instant};
use writ_bus::{Bus, SystemClock, SystemEntropy};
use writ_common::{
    digest::Digest,
    entropy::draw,
    ids::{InspectorId, TenantId},
    inspect::{
        Answer, BATCHES_MAX, Batch, Circuit, Failure, Inspection, Inspector, Question, Remembered,
        Subject as For, batches, detect,
    },
    subjects::Subject,
    time::Millis,
};

pub use settings::{InspectorKind, InspectorSettings, read_inspector};

use crate::{guard::Inspect, tools::ToolSetupError};
use client::Client;

/// Most batches of one inspection under way at once.
const BATCHES_AT_ONCE: usize = 4;
/// Longer texts are looked at beside the event loop's threads.
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// Every inspector of a node.
pub struct Panel {
    members: Vec<Arc<Member>>,
}

struct Member {
    inspector: Inspector,
    means: Means,
    /// What answers depend on beside the question.
    configuration: Digest,
    slots: Semaphore,
    state: Mutex<State>,
    clock: SystemClock,
    /// What came of asking, by [`RESULTS`].
    answers: [AtomicU64; 5],
}

/// What can come of asking an inspector.
const RESULTS: [&str; 5] = ["clean", "found", "invalid", "too_large", "unavailable"];

enum Means {
    Builtin(std::collections::BTreeSet<detect::Detect>),
    Bus { want: Vec<String> },
    Http { client: Client, want: Vec<String> },
    Nemo { client: Client, settings: writ_common::inspect::nemo::Settings },
    Presidio { client: Client, settings: writ_common::inspect::presidio::Settings },
}

#[derive(Default)]
struct State {
    circuit: Circuit,
    remembered: Remembered,
    /// The version that answered last.
    version: String,
}

impl Panel {
    /// Sets every inspector up. Nobody is asked yet: an inspector may come later than the node.
    ///
    /// # Errors
    /// [`ToolSetupError`]: certificates or a token that are not there.
    pub fn open(settings: &[InspectorSettings]) -> Result<Self, ToolSetupError> {
        let members = settings.iter().map(|settings| {
            let client = |at: &settings::Endpoint| Client::open(at, settings.inspector.deadline);
            let (means, configuration) = match &settings.kind {
                InspectorKind::Builtin(wanted) => (Means::Builtin(wanted.clone()), Digest::plain(b"")),
                InspectorKind::Bus { want } => (Means::Bus { want: want.clone() }, Digest::plain(b"bus")),
                InspectorKind::Http { endpoint, want } => {
                    let means = Means::Http { client: client(endpoint)?, want: want.clone() };
                    (means, Digest::plain(endpoint.url.as_str().as_bytes()))
                }
                InspectorKind::Nemo { endpoint, settings } => {
                    let means = Means::Nemo { client: client(endpoint)?, settings: settings.clone() };
                    (means, settings.digest())
                }
                InspectorKind::Presidio { endpoint, settings } => {
                    let means = Means::Presidio { client: client(endpoint)?, settings: settings.clone() };
                    (means, settings.digest())
                }
            };
            Ok(Arc::new(Member {
                inspector: settings.inspector.clone(),
                means,
                configuration,
                slots: Semaphore::new(settings.at_once),
                state: Mutex::default(),
                clock: SystemClock::new(),
                answers: Default::default(),
            }))
        });
        Ok(Self { members: members.collect::<Result<_, _>>()? })
    }

    /// What decisions have to know of the inspectors.
    #[must_use]
    pub fn inspectors(&self) -> Vec<Inspector> {
        self.members.iter().map(|member| member.inspector.clone()).collect()
    }

    /// What came of asking each of them so far: how often each result.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&InspectorId, [(&'static str, u64); 5])> {
        self.members.iter().map(|member| {
            let mut answers = RESULTS.map(|result| (result, 0));
            for ((_, count), counted) in answers.iter_mut().zip(&member.answers) {
                *count = counted.load(Ordering::Relaxed);
            }
            (&member.inspector.name, answers)
        })
    }

    /// Asks every inspector that is to be asked, all at once. Takes as long as the longest deadline at most.
    pub fn inspect(
        &self,
        bus: Bus,
        tenant: TenantId,
        inspect: Inspect,
    ) -> impl Future<Output = Inspection> + Send + 'static {
        let asked: Vec<Arc<Member>> = self
            .members
            .iter()
            .filter(|member| member.inspector.is_asked(inspect.direction, &inspect.resource))
            .cloned()
            .collect();
        let inspect = Arc::new(inspect);
        async move {
            let mut questions = Vec::new();
            for member in asked {
                let (bus, tenant, inspect) = (bus.clone(), tenant.clone(), Arc::clone(&inspect));
                questions.push(async move { (member.say(&bus, &tenant, &inspect).await, member) });
            }
            let mut inspection = Inspection::default();
            for (said, member) in futures_util::future::join_all(questions).await {
                member.count(&said);
                if let Err(failure) = &said {
                    tracing::warn!(inspector = %member.inspector.name, "{failure}");
                }
                inspection.add(&member.inspector, said);
            }
            inspection
        }
    }
}

fn late() -> Failure {
    Failure::Unavailable("no answer in time".to_owned())
}

impl Member {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, said: &Result<Vec<Answer>, Failure>) {
        let result = match said {
            Ok(answers) if answers.iter().all(|answer| answer.findings.is_empty()) => "clean",
            Ok(_) => "found",
            Err(Failure::Invalid(_)) => "invalid",
            Err(Failure::TooLarge(_)) => "too_large",
            Err(Failure::Unavailable(_)) => "unavailable",
        };
        for (name, count) in RESULTS.iter().zip(&self.answers) {
            count.fetch_add(u64::from(*name == result), Ordering::Relaxed);
        }
    }

    async fn say(
        &self,
        bus: &Bus,
        tenant: &TenantId,
        inspect: &Arc<Inspect>,
    ) -> Result<Vec<Answer>, Failure> {
        let deadline = Instant::now() + self.inspector.deadline.to_duration();
        if let Means::Builtin(wanted) = &self.means {
            return self.detect(wanted, inspect, deadline).await.map(|answer| vec![answer]);
        }
        let batches = batches(&inspect.parts);
        if batches.len() > BATCHES_MAX {
            let why = format!("{} pieces of text, at most {BATCHES_MAX} are sent", batches.len());
            return Err(Failure::TooLarge(why));
        }
        let mut answers: Vec<BoxFuture<'_, Result<Answer, Failure>>> = Vec::new();
        for batch in &batches {
            answers.push(Box::pin(self.answer(bus, tenant, inspect, batch, deadline)));
        }
        stream::iter(answers).buffered(BATCHES_AT_ONCE).try_collect().await
    }

    async fn detect(
        &self,
        wanted: &std::collections::BTreeSet<detect::Detect>,
        inspect: &Arc<Inspect>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let name = &self.inspector.name;
        if inspect.parts.iter().map(|part| part.text.len()).sum::<usize>() <= INLINE_BYTES_MAX {
            return Ok(detect::inspect(name, &inspect.parts, wanted));
        }
        let (name, inspect, wanted) = (name.clone(), Arc::clone(inspect), wanted.clone());
        let looking = tokio::task::spawn_blocking(move || detect::inspect(&name, &inspect.parts, &wanted));
        match tokio::time::timeout_at(deadline, looking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure::Unavailable(error.to_string())),
            Err(_) => Err(late()),
        }
    }

    /// The answer about one batch: the one that is remembered, or a new one.
    async fn answer(
        &self,
        bus: &Bus,
        tenant: &TenantId,
        inspect: &Inspect,
        batch: &Batch<'_>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let id = hex::encode(draw::<16>(&mut SystemEntropy));
        let left = deadline.saturating_duration_since(Instant::now());
        let trace = inspect.trace.as_ref().map(ToString::to_string);
        let want = match &self.means {
            Means::Bus { want } | Means::Http { want, .. } => want.as_slice(),
            Means::Builtin(_) | Means::Nemo { .. } | Means::Presidio { .. } => &[],
        };
        let question = Question {
            id: &id,
            direction: inspect.direction,
            subject: For { user: &inspect.user, agent: &inspect.agent, task: &inspect.task },
            resource: &inspect.resource,
            labels: &inspect.labels,
            want,
            batch,
            deadline: Millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            traceparent: trace.as_deref(),
        };
        let key = self.key(inspect, &question);
        let now = self.clock.now().monotonic;
        {
            let mut state = self.state();
            if let Some(answer) = state.remembered.get(&key, now) {
                return Ok(answer.clone());
            }
            if !state.circuit.admits(now) {
                return Err(Failure::Unavailable(
                    "it failed repeatedly and is left alone for some seconds".to_owned(),
                ));
            }
        }
        let slot = tokio::time::timeout_at(deadline, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            return Err(Failure::Unavailable("too many questions are under way".to_owned()));
        };
        let said = tokio::time::timeout_at(deadline, self.ask(bus, tenant, inspect, &question)).await;
        let said = said.unwrap_or_else(|_| Err(late()));
        let now = self.clock.now().monotonic;
        let mut state = self.state();
        match said {
            Ok(answer) => {
                state.circuit.answered();
                if state.version != answer.version {
                    state.version.clone_from(&answer.version);
                }
                drop(state);
                let key = self.key(inspect, &question);
                self.state().remembered.keep(key, answer.clone(), now);
                Ok(answer)
            }
            Err(failure) => {
                match failure {
                    Failure::Unavailable(_) => state.circuit.failed(now),
                    Failure::Invalid(_) | Failure::TooLarge(_) => state.circuit.answered(),
                }
                Err(failure)
            }
        }
    }

    /// What an answer depends on.
    fn key(&self, inspect: &Inspect, question: &Question<'_>) -> Digest {
        let name = &self.inspector.name;
        match &self.means {
            // They are told the texts and nothing else; what is found goes to the path of its text.
            Means::Nemo { .. } | Means::Presidio { .. } => {
                let direction = inspect.direction.as_str();
                let mut parts = vec![self.configuration.as_bytes().as_slice(), direction.as_bytes()];
                for piece in question.batch {
                    parts.extend([piece.path.as_bytes(), piece.text.as_bytes()]);
                }
                Digest::of("writ/v1/inspect-text", &parts)
            }
            Means::Builtin(_) | Means::Bus { .. } | Means::Http { .. } => {
                let version = self.state().version.clone();
                question.digest(name, &version, &self.configuration)
            }
        }
    }

    async fn ask(
        &self,
        bus: &Bus,
        tenant: &TenantId,
        inspect: &Inspect,
        question: &Question<'_>,
    ) -> Result<Answer, Failure> {
        let name = &self.inspector.name;
        let own_fault = || Failure::Unavailable("it says that it failed".to_owned());
        match &self.means {
            Means::Builtin(wanted) => Ok(detect::inspect(name, &inspect.parts, wanted)),
            Means::Bus { .. } => {
                let subject = Subject::Inspect(name.clone()).of(tenant);
                let timeout = question.deadline.to_duration().max(Duration::from_millis(1));
                let payload = question.to_json().into_bytes();
                let reply = bus.request(subject, payload, inspect.trace.as_ref(), timeout).await;
                let reply = reply.map_err(|error| Failure::Unavailable(error.to_string()))?;
                Answer::read(&reply.payload, name, question)?.ok_or_else(own_fault)
            }
            Means::Http { client, .. } => {
                let bytes = client.post(question.to_json()).await?;
                Answer::read(&bytes, name, question)?.ok_or_else(own_fault)
            }
            Means::Nemo { client, settings } => {
                let bytes = client.post(settings.request(inspect.direction, question.batch)).await?;
                Ok(settings.read(&bytes, name, question.batch)?)
            }
            Means::Presidio { client, settings } => {
                let bytes = client.post(settings.request(question.batch)).await?;
                Ok(settings.read(&bytes, name, question.batch)?)
            }
        }
    }
}
