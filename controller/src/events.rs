//! Events: what happened to objects, kept in memory on every member for an hour, outside the log.
//!
//! The same thing happening again is one event with a count. What is recorded here is sent to the other members; some may
//! get lost on the way, which costs nobody a pod.

mod store;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use model::object;
use proto::Timestamp;
use proto::v1::{Event, EventSource, Object, ObjectReference};
use rpc::v1::EventReports;
use rpc::v1::relay_client::RelayClient;
use tokio::sync::Notify;

use crate::clock;
use crate::raft::Node;
use crate::watch::Ring;
use store::Store;

/// Events that wait to be sent to the other members; beyond that the oldest are not sent.
const QUEUE_MAX: usize = 4096;
/// Events of one message to another member.
const BATCH_MAX: usize = 256;
/// Another member has this long to take a batch: then it does without.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How often what is too old is dropped when nothing happens.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// The events of this member; clones are the same ones.
#[derive(Clone)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    store: Mutex<Store>,
    ring: Ring,
    queue: Mutex<VecDeque<Event>>,
    queued: Notify,
}

impl Events {
    /// None yet.
    pub(crate) fn new() -> Self {
        // Higher than any revision of the process before: who comes with an old one lists again.
        let first = u64::try_from(clock::now_ms()).unwrap_or(1).max(1);
        Self {
            shared: Arc::new(Shared {
                store: Mutex::new(Store::new(first)),
                ring: Ring::new(first),
                queue: Mutex::default(),
                queued: Notify::new(),
            }),
        }
    }

    /// Recorded here: kept, and sent to the other members.
    pub(crate) fn record(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(events.iter().cloned());
        let surplus = queue.len().saturating_sub(QUEUE_MAX);
        if surplus > 0 {
            tracing::debug!(
                surplus,
                "events are recorded faster than they are sent to other members"
            );
            queue.drain(..surplus);
        }
        drop(queue);
        self.shared.queued.notify_one();
        self.keep(events);
    }

    /// Recorded by another member: kept only.
    pub(crate) fn record_remote(&self, events: Vec<Event>) {
        self.keep(events);
    }

    fn keep(&self, events: Vec<Event>) {
        let now = clock::now_ms();
        let mut store = self.store();
        let mut entries = store.expire(now);
        for event in events {
            entries.extend(store.add(event, now));
        }
        // Under the lock: the ring has them in the order of their revisions.
        self.shared.ring.push(entries);
    }

    /// Every event there is, by namespace and name, and the revision of that.
    pub(crate) fn list(&self) -> (Vec<Arc<Object>>, u64) {
        self.expire();
        let store = self.store();
        (store.list(), store.revision())
    }

    /// One event.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.expire();
        self.store().get(namespace, name)
    }

    /// Every event about the object with this uid, the latest last.
    pub(crate) fn about(&self, uid: &str) -> Vec<Event> {
        self.expire();
        let mut events: Vec<Event> = self.store().about(uid);
        events.sort_by_key(|event| millis(event.last_timestamp.as_ref()));
        events
    }

    /// The latest changes, for watches.
    pub(crate) fn ring(&self) -> &Ring {
        &self.shared.ring
    }

    fn expire(&self) {
        let mut store = self.store();
        let entries = store.expire(clock::now_ms());
        self.shared.ring.push(entries);
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is recorded here to all other members; runs until it is dropped.
    pub(crate) async fn forward(self, node: Node) {
        loop {
            let batch = self.next_batch().await;
            if batch.is_empty() {
                self.expire();
                continue;
            }
            let others = node.members().into_iter().filter(|member| member.id != node.id());
            let sends = others.filter_map(|member| {
                let channel = match node.peer_channel(member.id)? {
                    Ok(channel) => channel,
                    Err(cause) => {
                        tracing::warn!(error = %cause, member = member.id, "a member's address can't be used");
                        return None;
                    }
                };
                let events = batch.clone();
                Some(async move {
                    let mut client = RelayClient::new(channel);
                    let sent = client.record_events(EventReports { events });
                    match tokio::time::timeout(SEND_TIMEOUT, sent).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(status)) => {
                            tracing::debug!(member = member.id, %status, "a member did not take events");
                        }
                        Err(_) => tracing::debug!(member = member.id, "a member did not take events in time"),
                    }
                })
            });
            join_all(sends).await;
        }
    }

    /// What waits to be sent; nothing when there was nothing for a while.
    async fn next_batch(&self) -> Vec<Event> {
        loop {
            {
                let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if !queue.is_empty() {
                    let count = queue.len().min(BATCH_MAX);
                    return queue.drain(..count).collect();
                }
            }
            let queued = self.shared.queued.notified();
            if tokio::time::timeout(EXPIRY_INTERVAL, queued).await.is_err() {
                return Vec::new();
            }
        }
    }
}

/// An event about an object.
pub(crate) fn about(
    about: &Object,
    kind: &str,
    reason: &str,
    message: String,
    component: &str,
    now_ms: i64,
) -> Event {
    let meta = object::meta(about);
    let (api_version, object_kind) = match object::try_kind(about) {
        Some(kind) => (kind.api_version(), kind.as_str()),
        None => ("", ""),
    };
    let now: Timestamp = clock::timestamp(now_ms);
    Event {
        involved_object: Some(ObjectReference {
            kind: object_kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            api_version: api_version.to_owned(),
            resource_version: meta.resource_version.clone(),
            field_path: String::new(),
        }),
        reason: reason.to_owned(),
        message,
        source: Some(EventSource {
            component: component.to_owned(),
            host: String::new(),
        }),
        first_timestamp: Some(now),
        last_timestamp: Some(now),
        count: 1,
        r#type: kind.to_owned(),
        ..Event::default()
    }
}

/// Milliseconds since 1970; 0 for no time.
pub(crate) fn millis(time: Option<&Timestamp>) -> i64 {
    time.map_or(0, |time| {
        let millis = i64::from(time.nanos) / 1_000_000;
        time.seconds.saturating_mul(1000).saturating_add(millis)
    })
}
