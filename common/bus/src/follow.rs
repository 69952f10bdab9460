//! Following streams for good: through reconnects, from where it got to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use writ_common::{
    ids::{PartId, TenantId},
    subjects::{filter, part_stream},
};

use crate::{Bus, StoredMessage};

/// Pause before a lost tail is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(250);
/// Most messages about approvals that wait for the one who is told.
const TOLD_AHEAD: usize = 1_024;

/// What comes of following.
#[derive(Debug)]
pub enum News {
    /// A message.
    Message(StoredMessage),
    /// Everything that was there when it began has been told. Comes once.
    Read,
}

/// Follows a stream from its first message. Ends when nobody listens to `events` any more.
pub async fn follow<E: Send>(
    bus: Bus,
    stream: String,
    filter: String,
    events: mpsc::Sender<E>,
    wake: impl Fn(News) -> E + Send,
) {
    follow_from(bus, stream, filter, 1, events, wake).await;
}

async fn follow_from<E: Send>(
    bus: Bus,
    stream: String,
    filter: String,
    from: u64,
    events: mpsc::Sender<E>,
    wake: impl Fn(News) -> E + Send,
) {
    let (mut next, mut is_read) = (from, false);
    loop {
        if let Ok(mut tail) = bus.tail(&stream, &filter, next).await {
            let mut pending = tail.pending;
            loop {
                if pending == 0
                    && !std::mem::replace(&mut is_read, true)
                    && events.send(wake(News::Read)).await.is_err()
                {
                    return;
                }
                let Ok(message) = tail.next().await else { break };
                (next, pending) = (message.sequence + 1, message.pending);
                if events.send(wake(News::Message(message))).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
}

/// Follows requests, answers and claims of every part there is, as [`follow_parts`] does: until all are read, an approval
/// may seem free that is not.
pub async fn follow_approvals<E: Send + 'static>(
    bus: Bus,
    tenant: TenantId,
    parts: watch::Receiver<Vec<PartId>>,
    events: mpsc::Sender<E>,
    wake: impl Fn(News) -> E + Send,
) {
    let filters = |tenant: &TenantId, part: &PartId| {
        vec![filter::approval_claims(tenant, part), filter::approvals(tenant, part)]
    };
    follow_parts(bus, tenant, parts, filters, BTreeMap::new(), events, wake).await;
}

/// Follows what `filters` name in every part there is, each from the sequence `starts` says, or from its first message.
/// That all are read is told once, when those of the parts known first are. `parts` is empty until they are known. Ends
/// when nobody listens to `events` any more.
pub async fn follow_parts<E: Send + 'static>(
    bus: Bus,
    tenant: TenantId,
    mut parts: watch::Receiver<Vec<PartId>>,
    filters: impl Fn(&TenantId, &PartId) -> Vec<String> + Send,
    starts: BTreeMap<PartId, u64>,
    events: mpsc::Sender<E>,
    wake: impl Fn(News) -> E + Send,
) {
    let (each, mut all) = mpsc::channel::<((PartId, usize), News)>(TOLD_AHEAD);
    let mut tails = JoinSet::new();
    let mut followed: BTreeMap<PartId, Vec<AbortHandle>> = BTreeMap::new();
    let mut unread: Option<BTreeSet<(PartId, usize)>> = None;
    loop {
        let wanted = parts.borrow_and_update().clone();
        followed.retain(|part, tails| {
            let is_there = wanted.contains(part);
            if !is_there {
                tails.iter().for_each(AbortHandle::abort);
            }
            is_there
        });
        for part in &wanted {
            if followed.contains_key(part) {
                continue;
            }
            let from = starts.get(part).copied().unwrap_or(1);
            let handles = filters(&tenant, part).into_iter().enumerate().map(|(number, filter)| {
                let name = (part.clone(), number);
                let told = move |news| (name.clone(), news);
                let stream = part_stream(&tenant, part);
                tails.spawn(follow_from(bus.clone(), stream, filter, from, each.clone(), told))
            });
            followed.insert(part.clone(), handles.collect());
        }
        let mut is_read = false;
        if !wanted.is_empty() {
            let names = |(part, tails): (&PartId, &Vec<AbortHandle>)| {
                let part = part.clone();
                (0..tails.len()).map(move |number| (part.clone(), number))
            };
            let unread = unread.get_or_insert_with(|| followed.iter().flat_map(names).collect());
            let before = unread.len();
            unread.retain(|(part, _)| wanted.contains(part));
            is_read = before > 0 && unread.is_empty();
        }
        while !is_read {
            tokio::select! {
                changed = parts.changed() => match changed {
                    Ok(()) => break,
                    // Nobody is left to say which parts there are.
                    Err(_) => return,
                },
                news = all.recv() => match (news, &mut unread) {
                    (Some((tail, News::Read)), Some(unread)) => is_read = unread.remove(&tail) && unread.is_empty(),
                    (Some((_, news)), _) => if events.send(wake(news)).await.is_err() {
                        return;
                    },
                    (None, _) => return,
                },
            }
        }
        if is_read && events.send(wake(News::Read)).await.is_err() {
            return;
        }
        while tails.try_join_next().is_some() {}
    }
}
