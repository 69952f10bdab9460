//! Following everything about approvals, for whoever asks people: nodes and brokers.

use std::time::Duration;

use tokio::sync::mpsc;
use writ_common::{
    ids::{PartId, TenantId},
    subjects::{filter, part_stream},
};

use crate::{Bus, StoredMessage};

/// Pause before a lost tail is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(250);

/// What comes of following approvals.
#[derive(Debug)]
pub enum ApprovalNews {
    /// A request, an answer or a claim.
    Message(StoredMessage),
    /// Everything that was there when it began has been told.
    Read,
}

/// Follows requests, answers and claims for good: claims first, so that no approval seems free that is not. Ends when
/// nobody listens to `events` any more.
pub async fn follow_approvals<E: Send + 'static>(
    bus: Bus,
    tenant: TenantId,
    events: mpsc::Sender<E>,
    wake: impl Fn(ApprovalNews) -> E + Copy + Send,
) {
    let part = PartId::first();
    let filters = [filter::approval_claims(&tenant, &part), filter::approvals(&tenant, &part)];
    let stream = part_stream(&tenant, &part);
    let (read, mut unread) = mpsc::channel::<()>(1);
    let follow = filters.map(|filter| {
        let (bus, stream, events, read) = (bus.clone(), stream.clone(), events.clone(), read.clone());
        async move {
            let (mut next, mut read) = (1, Some(read));
            loop {
                if let Ok(mut tail) = bus.tail(&stream, &filter, next).await {
                    if tail.pending == 0 {
                        drop(read.take());
                    }
                    while let Ok(message) = tail.next().await {
                        next = message.sequence + 1;
                        let is_last = message.pending == 0;
                        if events.send(wake(ApprovalNews::Message(message))).await.is_err() {
                            return;
                        }
                        if is_last {
                            drop(read.take());
                        }
                    }
                }
                tokio::time::sleep(REOPEN_AFTER).await;
            }
        }
    });
    drop(read);
    let [claims, approvals] = follow;
    let report = async {
        // Nothing is ever sent: it ends when both have dropped their end.
        let _ = unread.recv().await;
        drop(events.send(wake(ApprovalNews::Read)).await);
    };
    tokio::join!(claims, approvals, report);
}
