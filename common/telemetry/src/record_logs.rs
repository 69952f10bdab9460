//! Records as OTLP logs, for systems that collect logs.
//!
//! An entry waits in a bounded queue for the exporter's thread. A full queue drops, and so does a collector that takes
//! nothing until the exporter gives up; both are counted. Nobody waits for either: the audit stream is the evidence.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    InstrumentationScope, SpanId, TraceId,
    logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{
        BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord, SdkLogger,
        SdkLoggerProvider,
    },
};
use writ_common::{
    digest::Digest,
    record::Record,
    record_log::{LogBody, LogSeverity, RecordLog},
    trace::AttributeValue,
};

use crate::export::to_system_time;

/// Most entries waiting, unless `OTEL_BLRP_MAX_QUEUE_SIZE` says otherwise.
const QUEUE_ENTRIES_MAX: usize = 2_048;

/// What was set up for this process, for whoever records.
static INSTALLED: RwLock<Option<RecordLogs>> = RwLock::new(None);

/// Hands records to the log exporter, if there is one.
#[derive(Clone, Debug, Default)]
pub struct RecordLogs(Option<Arc<Out>>);

#[derive(Debug)]
struct Out {
    logger: SdkLogger,
    provider: SdkLoggerProvider,
    body: LogBody,
    queue: Arc<Queue>,
}

/// How many entries did not leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogLosses {
    /// Too many were waiting.
    pub queue_full: u64,
    /// The collector did not take them.
    pub not_exported: u64,
}

impl RecordLogs {
    /// What [`init`](crate::init) set up in this process; takes nothing if it set up none.
    #[must_use]
    pub fn installed() -> Self {
        INSTALLED.read().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    pub(crate) fn install(logs: &Self) {
        *INSTALLED.write().unwrap_or_else(PoisonError::into_inner) = Some(logs.clone());
    }

    /// Entries with this body to an exporter; at most `queue_max` wait.
    pub(crate) fn to<E>(exporter: E, queue_max: usize, resource: Resource, body: LogBody) -> Self
    where
        E: LogExporter + 'static,
    {
        let queue = Arc::new(Queue { max: queue_max, ..Queue::default() });
        let exporter = Counted { exporter, queue: Arc::clone(&queue) };
        let config = BatchConfigBuilder::default().with_max_queue_size(queue_max).build();
        let batches = BatchLogProcessor::builder(exporter).with_batch_config(config).build();
        let processor = Bounded { batches, queue: Arc::clone(&queue) };
        let provider =
            SdkLoggerProvider::builder().with_log_processor(processor).with_resource(resource).build();
        let logger = provider.logger("writ");
        Self(Some(Arc::new(Out { logger, provider, body, queue })))
    }

    /// Hands over a record that is in the audit stream; never waits.
    pub fn emit(&self, record: &Record, digest: &Digest) {
        let Some(out) = &self.0 else { return };
        let RecordLog { name, at, severity, trace, body, attributes } =
            RecordLog::of(record, digest, out.body);
        let mut entry = out.logger.create_log_record();
        entry.set_event_name(name);
        entry.set_timestamp(to_system_time(at));
        let (number, text) = match severity {
            LogSeverity::Info => (Severity::Info, "INFO"),
            LogSeverity::Warn => (Severity::Warn, "WARN"),
            LogSeverity::Error => (Severity::Error, "ERROR"),
        };
        entry.set_severity_number(number);
        entry.set_severity_text(text);
        entry.set_body(body.into());
        if let Some(trace) = trace
            && let (Ok(id), Ok(span)) = (TraceId::from_hex(&trace.trace), SpanId::from_hex(&trace.span))
        {
            entry.set_trace_context(id, span, None);
        }
        entry.add_attributes(attributes.into_iter().map(|(name, value)| (name, to_value(value))));
        out.logger.emit(entry);
    }

    /// How many entries of this process did not leave.
    #[must_use]
    pub fn losses(&self) -> LogLosses {
        self.0.as_ref().map(|out| out.queue.losses()).unwrap_or_default()
    }

    /// Sends what is left and stops.
    pub(crate) fn shutdown(&self) {
        if let Some(out) = &self.0 {
            // A collector that is gone at the end is no reason to fail.
            drop(out.provider.shutdown());
        }
    }
}

/// The queue's bound as the standard variable has it.
pub(crate) fn queue_max() -> usize {
    let set = std::env::var("OTEL_BLRP_MAX_QUEUE_SIZE").ok().and_then(|text| text.parse().ok());
    set.filter(|max| *max > 0).unwrap_or(QUEUE_ENTRIES_MAX)
}

fn to_value(value: AttributeValue) -> AnyValue {
    match value {
        AttributeValue::Integer(number) => number.into(),
        AttributeValue::Text(text) => text.into(),
        AttributeValue::Texts(texts) => texts.into_iter().collect(),
    }
}

/// Entries between the event loops and the collector, counted here because the SDK's own count of what it drops
/// cannot be read.
#[derive(Debug, Default)]
struct Queue {
    max: usize,
    waiting: AtomicUsize,
    queue_full: AtomicU64,
    not_exported: AtomicU64,
}

impl Queue {
    fn enter(&self) -> bool {
        let room = |waiting| (waiting < self.max).then_some(waiting + 1);
        let entered = self.waiting.try_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        if !entered {
            self.queue_full.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    fn losses(&self) -> LogLosses {
        LogLosses {
            queue_full: self.queue_full.load(Ordering::Relaxed),
            not_exported: self.not_exported.load(Ordering::Relaxed),
        }
    }
}

/// Lets in what there is room for. The SDK's queue has the same bound and holds no more than what was let in, so that
/// nothing is dropped there.
#[derive(Debug)]
struct Bounded {
    batches: BatchLogProcessor,
    queue: Arc<Queue>,
}

impl LogProcessor for Bounded {
    fn emit(&self, data: &mut SdkLogRecord, instrumentation: &InstrumentationScope) {
        if self.queue.enter() {
            self.batches.emit(data, instrumentation);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what leaves the queue, and what does not arrive.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    queue: Arc<Queue>,
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let entries = batch.iter().count();
        self.queue.waiting.fetch_sub(entries, Ordering::AcqRel);
        let exported = self.exporter.export(batch).await;
        if exported.is_err() {
            self.queue.not_exported.fetch_add(entries as u64, Ordering::Relaxed);
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests;
