//! The store of events: one for each thing that happened to an object, bounded in all and for each object. No clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use model::{name, object};
use proto::v1::{Event, Object, ObjectMeta, ObjectReference};
use sha2::{Digest, Sha256};
use state::Change;

use super::millis;

/// Events of one member: a few for each pod of a large cluster's hour.
pub(super) const EVENTS_MAX: usize = 10_000;
/// Events about one object: one that fails in ever new words must not drive out the others.
pub(super) const OF_OBJECT_MAX: usize = 50;
/// How long an event is kept after it last happened, in milliseconds (Kubernetes' own hour).
pub(super) const LIFE_MS: i64 = 60 * 60 * 1000;
/// Longest message and reason (Kubernetes' own limits).
const MESSAGE_BYTES_MAX: usize = 1024;
const REASON_BYTES_MAX: usize = 128;
/// Longest part of the object's name in the event's: together with the hash it is still a name.
const NAME_BYTES_MAX: usize = 200;
/// Events about objects that are in no namespace are here, as in Kubernetes.
const NAMESPACE: &str = "default";

pub(super) struct Store {
    revision: u64,
    events: BTreeMap<Place, Kept>,
    /// By revision: what did not happen again for longest comes first.
    order: BTreeMap<u64, Place>,
    /// Revisions of the events about each object.
    objects: HashMap<String, BTreeSet<u64>>,
}

/// Namespace and name.
type Place = (String, String);

struct Kept {
    object: Arc<Object>,
    revision: u64,
    seen_ms: i64,
    about: String,
}

impl Store {
    pub(super) fn new(revision: u64) -> Self {
        Self {
            revision,
            events: BTreeMap::new(),
            order: BTreeMap::new(),
            objects: HashMap::new(),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn list(&self) -> Vec<Arc<Object>> {
        self.events.values().map(|kept| kept.object.clone()).collect()
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let kept = self.events.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(kept.object.clone())
    }

    pub(super) fn about(&self, uid: &str) -> Vec<Event> {
        let revisions = self.objects.get(uid).into_iter().flatten();
        let kept = revisions.filter_map(|revision| self.events.get(self.order.get(revision)?));
        kept.filter_map(|kept| object::of::<Event>(&kept.object).cloned())
            .collect()
    }

    /// Takes an event in; what changed by it. One about nothing is dropped.
    pub(super) fn add(&mut self, mut event: Event, now_ms: i64) -> Vec<Change> {
        let Some(about) = event
            .involved_object
            .clone()
            .filter(|about| !about.name.is_empty())
        else {
            return Vec::new();
        };
        cut(&mut event.message, MESSAGE_BYTES_MAX);
        cut(&mut event.reason, REASON_BYTES_MAX);
        if event.r#type.is_empty() {
            "Normal".clone_into(&mut event.r#type);
        }
        event.count = event.count.max(1);
        let digest = digest(&event, &about);
        let namespace = match about.namespace.as_str() {
            "" => NAMESPACE.to_owned(),
            namespace => namespace.to_owned(),
        };
        let mut short = about.name.clone();
        cut(&mut short, NAME_BYTES_MAX);
        let place = (namespace, format!("{short}.{}", hex::encode(&digest[..8])));

        let old = self.events.get(&place).map(|kept| kept.object.clone());
        if let Some(before) = old.as_deref().and_then(object::of::<Event>) {
            event.count = event.count.saturating_add(before.count);
            if millis(before.first_timestamp.as_ref()) < millis(event.first_timestamp.as_ref()) {
                event.first_timestamp = before.first_timestamp;
            }
            if millis(before.last_timestamp.as_ref()) > millis(event.last_timestamp.as_ref()) {
                event.last_timestamp = before.last_timestamp;
            }
        }
        self.revision += 1;
        let mut uid = [0; 16];
        uid.copy_from_slice(&digest[..16]);
        event.metadata = Some(ObjectMeta {
            name: place.1.clone(),
            namespace: place.0.clone(),
            uid: name::uid(uid),
            resource_version: self.revision.to_string(),
            creation_timestamp: event.first_timestamp,
            ..ObjectMeta::default()
        });
        let object = Arc::new(object::from(event));
        let kept = Kept {
            object: object.clone(),
            revision: self.revision,
            seen_ms: now_ms,
            about: identity(&about),
        };
        let about = kept.about.clone();
        self.unlink(&place);
        self.order.insert(self.revision, place.clone());
        self.objects
            .entry(about.clone())
            .or_default()
            .insert(self.revision);
        self.events.insert(place, kept);
        let mut changes = vec![Change::of_put(self.revision, old, object)];
        changes.extend(self.bound(&about));
        changes
    }

    /// Drops what did not happen for too long.
    pub(super) fn expire(&mut self, now_ms: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((_, place)) = self.order.first_key_value() {
            let place = place.clone();
            let old = self
                .events
                .get(&place)
                .is_none_or(|kept| kept.seen_ms.saturating_add(LIFE_MS) <= now_ms);
            if !old {
                break;
            }
            changes.extend(self.drop_event(&place));
        }
        changes
    }

    fn bound(&mut self, about: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        let of_object = self.objects.get(about);
        if let Some(oldest) = of_object
            .filter(|of| of.len() > OF_OBJECT_MAX)
            .and_then(BTreeSet::first)
            && let Some(place) = self.order.get(oldest).cloned()
        {
            changes.extend(self.drop_event(&place));
        }
        if self.events.len() > EVENTS_MAX
            && let Some((_, place)) = self.order.first_key_value()
        {
            let place = place.clone();
            changes.extend(self.drop_event(&place));
        }
        changes
    }

    fn drop_event(&mut self, place: &Place) -> Option<Change> {
        self.unlink(place);
        let kept = self.events.remove(place)?;
        self.revision += 1;
        Some(Change::of_erased(self.revision, kept.object))
    }

    /// Takes an event out of the indices.
    fn unlink(&mut self, place: &Place) {
        let Some(kept) = self.events.get(place) else {
            return;
        };
        self.order.remove(&kept.revision);
        if let Some(of_object) = self.objects.get_mut(&kept.about) {
            of_object.remove(&kept.revision);
            if of_object.is_empty() {
                self.objects.remove(&kept.about);
            }
        }
    }
}

/// What an object is known by here: its uid, or its name where nobody said the uid.
fn identity(about: &ObjectReference) -> String {
    match about.uid.as_str() {
        "" => format!("{}/{}/{}", about.kind, about.namespace, about.name),
        uid => uid.to_owned(),
    }
}

/// The same for the same thing that happens again, on whichever member.
fn digest(event: &Event, about: &ObjectReference) -> [u8; 32] {
    let source = event.source.clone().unwrap_or_default();
    let mut hasher = Sha256::new();
    for part in [
        &about.kind,
        &about.namespace,
        &about.name,
        &about.uid,
        &about.field_path,
        &event.r#type,
        &event.reason,
        &event.message,
        &source.component,
        &source.host,
    ] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

#[cfg(test)]
mod tests {
    use proto::v1::Pod;
    use state::Happened;

    use super::*;
    use crate::events::about;

    fn pod(name: &str) -> Object {
        object::from(Pod {
            metadata: Some(ObjectMeta {
                name: name.to_owned(),
                namespace: "web".to_owned(),
                uid: format!("uid-{name}"),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn event(name: &str, message: &str, now_ms: i64) -> Event {
        about(
            &pod(name),
            "Warning",
            "BackOff",
            message.to_owned(),
            "agent",
            now_ms,
        )
    }

    fn of(change: &Change) -> Event {
        object::of::<Event>(change.object()).cloned().unwrap()
    }

    #[test]
    fn what_happens_again_is_one_event_with_a_count() {
        let mut store = Store::new(100);
        store.add(event("a", "it failed", 1_000), 1_000);
        let again = Event {
            count: 3,
            ..event("a", "it failed", 5_000)
        };
        let changes = store.add(again, 5_000);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].happened, Happened::Modified);
        let merged = of(&changes[0]);
        assert_eq!(merged.count, 4);
        assert_eq!(millis(merged.first_timestamp.as_ref()), 1_000);
        assert_eq!(millis(merged.last_timestamp.as_ref()), 5_000);
        let meta = merged.metadata.unwrap();
        assert_eq!(
            (meta.namespace.as_str(), meta.resource_version.as_str()),
            ("web", "102")
        );
        assert!(meta.name.starts_with("a."), "{}", meta.name);
        store.add(event("a", "it failed otherwise", 6_000), 6_000);
        assert_eq!(store.list().len(), 2);
        assert_eq!(store.about("uid-a").len(), 2);
    }

    #[test]
    fn every_member_gives_the_same_name() {
        let (mut here, mut there) = (Store::new(1), Store::new(50));
        let name = |changes: &[Change]| of(&changes[0]).metadata.unwrap().name;
        let first = name(&here.add(event("a", "it failed", 1), 1));
        there.add(event("b", "other", 1), 1);
        assert_eq!(name(&there.add(event("a", "it failed", 9), 9)), first);
    }

    #[test]
    fn events_of_cluster_wide_objects_are_in_the_default_namespace() {
        let mut store = Store::new(1);
        let mut event = event("n1", "gone", 1);
        event.involved_object.as_mut().unwrap().namespace.clear();
        let added = of(&store.add(event, 1)[0]);
        assert_eq!(added.metadata.unwrap().namespace, "default");
        assert!(store.add(Event::default(), 1).is_empty(), "about nothing");
    }

    #[test]
    fn an_hour_after_it_last_happened_an_event_is_gone() {
        let mut store = Store::new(1);
        store.add(event("a", "once", 0), 0);
        store.add(event("b", "twice", 0), 0);
        store.add(event("b", "twice", LIFE_MS - 1), LIFE_MS - 1);
        assert!(store.expire(LIFE_MS - 1).is_empty());
        let gone = store.expire(LIFE_MS);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].happened, Happened::Deleted);
        assert_eq!(of(&gone[0]).message, "once");
        assert_eq!(
            of(&gone[0]).metadata.unwrap().resource_version,
            store.revision().to_string()
        );
        assert_eq!(store.list().len(), 1);
        assert!(store.about("uid-a").is_empty());
    }

    #[test]
    fn one_object_drives_no_other_out_and_all_are_bounded() {
        let mut store = Store::new(1);
        store.add(event("quiet", "once", 0), 0);
        for number in 0..OF_OBJECT_MAX * 3 {
            store.add(event("loud", &format!("attempt {number}"), 1), 1);
        }
        assert_eq!(store.about("uid-loud").len(), OF_OBJECT_MAX);
        assert_eq!(store.about("uid-quiet").len(), 1);
        for number in 0..EVENTS_MAX {
            store.add(event(&format!("pod-{number}"), "started", 2), 2);
        }
        assert_eq!(store.list().len(), EVENTS_MAX);
        assert_eq!((store.order.len(), store.objects.len()), (EVENTS_MAX, EVENTS_MAX));
        assert!(store.about("uid-quiet").is_empty(), "the oldest went");
    }

    #[test]
    fn long_texts_are_cut_at_a_letter() {
        let mut store = Store::new(1);
        let added = of(&store.add(event(&"a".repeat(253), &"\u{e9}".repeat(2000), 1), 1)[0]);
        assert!(added.message.len() <= MESSAGE_BYTES_MAX);
        assert!(name::dns1123_subdomain(&added.metadata.unwrap().name).is_ok());
    }
}
