//! What happens to pods, on its way to the controllers: repeated events are one with a count, and when nobody takes them
//! the oldest are dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::Timestamp;
use proto::v1::{Event, EventSource, ObjectMeta, ObjectReference, Pod};
use tokio::sync::Notify;

/// Events that wait for a session. Enough for a burst of a full node (a dozen for each of 110 pods would be more, but the
/// oldest of those say least); beyond it the oldest is dropped.
const WAITING_MAX: usize = 1024;
/// Longest message; Kubernetes' limit.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Events of this node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events {
    node: Arc<str>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    dropped: u64,
}

impl Events {
    /// For the node of this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            shared: Arc::default(),
        }
    }

    /// Something happened to a pod. `kind` is Normal or Warning.
    pub fn record(&self, pod: &Pod, kind: &str, reason: &str, mut message: String) {
        let now = now();
        truncate(&mut message, MESSAGE_BYTES_MAX);
        let Some(meta) = &pod.metadata else {
            return;
        };
        let mut queue = self.lock();
        let same = |event: &&mut Event| {
            event.message == message
                && event.reason == reason
                && event.r#type == kind
                && event
                    .involved_object
                    .as_ref()
                    .is_some_and(|about| about.uid == meta.uid)
        };
        if let Some(event) = queue.waiting.iter_mut().find(same) {
            event.count = event.count.saturating_add(1);
            event.last_timestamp = Some(now);
            return;
        }
        // Its name, and the count over all that were sent, are the controllers' business.
        queue.push(Event {
            api_version: "v1".to_owned(),
            kind: "Event".to_owned(),
            metadata: Some(ObjectMeta {
                namespace: meta.namespace.clone(),
                ..ObjectMeta::default()
            }),
            involved_object: Some(ObjectReference {
                kind: "Pod".to_owned(),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                api_version: "v1".to_owned(),
                resource_version: meta.resource_version.clone(),
                field_path: String::new(),
            }),
            reason: reason.to_owned(),
            message,
            source: Some(EventSource {
                component: "agent".to_owned(),
                host: self.node.to_string(),
            }),
            first_timestamp: Some(now),
            last_timestamp: Some(now),
            count: 1,
            r#type: kind.to_owned(),
        });
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// Takes up to `most` events to send. A session that fails meanwhile loses them, which costs nobody a pod.
    pub(crate) fn take(&self, most: usize) -> Vec<Event> {
        let mut queue = self.lock();
        let count = most.min(queue.waiting.len());
        let taken: Vec<Event> = queue.waiting.drain(..count).collect();
        let dropped = std::mem::take(&mut queue.dropped);
        drop(queue);
        if dropped > 0 {
            tracing::warn!(dropped, "events were dropped: nobody took them");
        }
        taken
    }

    /// Returns when there may be something to take.
    pub(crate) async fn filled(&self) {
        self.shared.filled.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic elsewhere leaves the queue whole: each change is one push or removal.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, event: Event) {
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(event);
    }
}

/// Cuts at a character's boundary.
fn truncate(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
}

/// The time as objects carry it.
pub(crate) fn now() -> Timestamp {
    let now = jiff::Timestamp::now();
    Timestamp {
        seconds: now.as_second(),
        nanos: now.subsec_nanosecond(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: name.to_owned(),
                namespace: "default".to_owned(),
                uid: format!("uid-{name}"),
                ..ObjectMeta::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn a_repeated_event_is_one_with_a_count() {
        let events = Events::new("n1");
        for _ in 0..3 {
            events.record(&pod("web"), "Warning", "BackOff", "again".to_owned());
        }
        events.record(&pod("web"), "Warning", "BackOff", "otherwise".to_owned());
        let taken = events.take(10);
        assert_eq!(taken.iter().map(|event| event.count).collect::<Vec<_>>(), [3, 1]);
        // What was sent is counted by the controllers.
        events.record(&pod("web"), "Warning", "BackOff", "again".to_owned());
        assert_eq!(events.take(10)[0].count, 1);
    }

    #[test]
    fn the_oldest_are_dropped_when_nobody_takes_them() {
        let events = Events::new("n1");
        for number in 0..WAITING_MAX + 5 {
            events.record(&pod("web"), "Normal", "Started", format!("{number}"));
        }
        let taken = events.take(usize::MAX);
        assert_eq!(taken.len(), WAITING_MAX);
        assert_eq!(taken[0].message, "5");
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let mut text = "a".repeat(1023) + "\u{e9}";
        truncate(&mut text, 1024);
        assert_eq!(text.len(), 1023);
    }
}
