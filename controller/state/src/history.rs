//! Who made what of an object, and when: earlier forms of everything but pods, within bounds. A change of the cluster's own
//! (a status, a plan) is none.

use std::fmt;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use model::object;
use prost::Message;
use proto::Timestamp;
use proto::state::v1::Past;
use proto::v1::{Object, ObjectMeta};

use crate::REVISION_ANNOTATION;
use crate::key::ObjectKey;
use crate::record::Record;

/// Forms of one object that are kept: twice Kubernetes' `revisionHistoryLimit`.
pub const FORMS_MAX: usize = 20;
/// Bytes of one object's forms: the largest object must not push out everybody else's; the last two stay in any case.
const OBJECT_BYTES_MAX: usize = 2 * crate::OBJECT_BYTES_MAX;
/// Forms of all objects.
pub const ALL_FORMS_MAX: usize = 20_000;
/// Bytes of all forms; the oldest go first.
pub const ALL_BYTES_MAX: usize = 32 << 20;
/// What an entry takes beside its object.
const ENTRY_BYTES: usize = 128;

/// The forms of all objects, by the revision at which each came to be.
#[derive(Clone, Default)]
pub(crate) struct History {
    entries: OrdMap<u64, Arc<Entry>>,
    by_key: OrdMap<ObjectKey, Forms>,
    bytes: usize,
}

/// Of one object.
#[derive(Clone, Default)]
struct Forms {
    /// Oldest first.
    revisions: Vector<u64>,
    /// What they take together.
    bytes: usize,
}

struct Entry {
    key: ObjectKey,
    time: Option<Timestamp>,
    actor: String,
    verb: String,
    created: bool,
    /// Encoded; none for a deletion.
    form: Option<Box<[u8]>>,
}

impl Entry {
    fn bytes(&self) -> usize {
        let form = self.form.as_ref().map_or(0, |form| form.len());
        ENTRY_BYTES + self.actor.len() + self.verb.len() + form
    }

    fn past(&self, revision: u64) -> Past {
        let form = self.form.as_ref();
        Past {
            key: Some(self.key.to_proto()),
            revision,
            time: self.time,
            actor: self.actor.clone(),
            verb: self.verb.clone(),
            created: self.created,
            object: form.map(|form| Object::decode(form.as_ref()).expect("it was encoded before")),
        }
    }
}

/// Who, when and by what.
pub(crate) struct Change<'a> {
    pub(crate) revision: u64,
    pub(crate) time: Option<Timestamp>,
    pub(crate) actor: &'a str,
    pub(crate) verb: &'a str,
    /// It was not there before.
    pub(crate) created: bool,
}

impl History {
    /// What is known of an object, oldest first.
    pub(crate) fn of<'a>(&'a self, key: &ObjectKey) -> impl Iterator<Item = Past> + 'a {
        let forms = self.by_key.get(key).into_iter();
        let revisions = forms.flat_map(|forms| &forms.revisions);
        revisions.filter_map(|revision| self.at(*revision))
    }

    /// The change that has this revision.
    pub(crate) fn at(&self, revision: u64) -> Option<Past> {
        self.entries.get(&revision).map(|entry| entry.past(revision))
    }

    /// Of every form that is kept, in their order.
    pub(crate) fn revisions(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// Notes a change of an object from `before` to `after`, unless both are the same but for what the cluster sets.
    pub(crate) fn note(
        &mut self,
        key: &ObjectKey,
        before: Option<Record>,
        after: Option<Record>,
        change: &Change<'_>,
    ) {
        let form = |record: &Record| form(record.object(key)).encode_to_vec().into_boxed_slice();
        let new = after.as_ref().map(form);
        let last = self.by_key.get(key).and_then(|forms| forms.revisions.back());
        let last = last.and_then(|revision| self.entries.get(revision));
        // Mostly the last form is another one, and what there was before need not be looked at.
        if last.is_none_or(|last| last.form == new) {
            let known = last.is_some();
            let old = before.as_ref().map(form);
            if old == new {
                return;
            }
            // Of what was there before anybody was noted, at least the last form is known then.
            if let Some(before) = before.filter(|_| !known) {
                let unknown = Change {
                    revision: before.resource_version(),
                    time: before.created(),
                    actor: "",
                    verb: "",
                    created: false,
                };
                self.push(key, old, &unknown);
            }
        }
        self.push(key, new, change);
    }

    /// Takes an entry of a snapshot; false when it does not fit.
    pub(crate) fn take(&mut self, past: &Past) -> bool {
        let Some(key) = past.key.as_ref().and_then(ObjectKey::from_proto) else {
            return false;
        };
        let last = self.entries.get_max().map_or(0, |(revision, _)| *revision);
        if past.revision <= last {
            return false;
        }
        let change = Change {
            revision: past.revision,
            time: past.time,
            actor: &past.actor,
            verb: &past.verb,
            created: past.created,
        };
        let form = past.object.as_ref().map(Message::encode_to_vec);
        self.push(&key, form.map(Vec::into_boxed_slice), &change);
        true
    }

    fn push(&mut self, key: &ObjectKey, form: Option<Box<[u8]>>, change: &Change<'_>) {
        let entry = Entry {
            key: key.clone(),
            time: change.time,
            actor: change.actor.to_owned(),
            verb: change.verb.to_owned(),
            created: change.created,
            form,
        };
        let bytes = entry.bytes();
        self.bytes += bytes;
        self.entries.insert(change.revision, Arc::new(entry));
        let forms = self.by_key.entry(key.clone()).or_default();
        forms.bytes += bytes;
        forms.revisions.push_back(change.revision);
        while let Some(forms) = self.by_key.get(key).filter(|forms| forms.too_many()) {
            self.drop(forms.revisions.front().copied());
        }
        while self.entries.len() > ALL_FORMS_MAX || self.bytes > ALL_BYTES_MAX {
            let oldest = self.entries.get_min().map(|(revision, _)| *revision);
            self.drop(oldest);
        }
    }

    fn drop(&mut self, revision: Option<u64>) {
        let Some(entry) = revision.and_then(|revision| self.entries.remove(&revision)) else {
            return;
        };
        self.bytes -= entry.bytes();
        let Some(forms) = self.by_key.get_mut(&entry.key) else {
            return;
        };
        forms.bytes -= entry.bytes();
        forms.revisions.retain(|other| Some(*other) != revision);
        if forms.revisions.is_empty() {
            self.by_key.remove(&entry.key);
        }
    }

    /// Whether it is within its bounds and its two maps agree.
    pub(crate) fn is_sound(&self) -> bool {
        let listed: usize = self.by_key.values().map(|forms| forms.revisions.len()).sum();
        let bytes: usize = self.entries.values().map(|entry| entry.bytes()).sum();
        let owned = self.by_key.iter().all(|(key, Forms { revisions, bytes })| {
            let rising = revisions.iter().zip(revisions.iter().skip(1)).all(|(a, b)| a < b);
            let entries = revisions.iter().filter_map(|revision| self.entries.get(revision));
            let entries: Vec<&Arc<Entry>> = entries.filter(|entry| entry.key == *key).collect();
            rising
                && revisions.len() <= FORMS_MAX
                && entries.len() == revisions.len()
                && entries.iter().map(|entry| entry.bytes()).sum::<usize>() == *bytes
        });
        owned
            && listed == self.entries.len()
            && bytes == self.bytes
            && bytes <= ALL_BYTES_MAX
            && listed <= ALL_FORMS_MAX
    }
}

impl Forms {
    fn too_many(&self) -> bool {
        let count = self.revisions.len();
        count > FORMS_MAX || (self.bytes > OBJECT_BYTES_MAX && count > 2)
    }
}

/// How many, not what: the forms of Secrets are among them.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "History({} forms, {} bytes)", self.entries.len(), self.bytes)
    }
}

/// An object without what the cluster sets.
fn form(mut form: Object) -> Object {
    object::clear_status(&mut form);
    let meta = object::meta_mut(&mut form);
    meta.annotations.remove(REVISION_ANNOTATION);
    *meta = ObjectMeta {
        name: std::mem::take(&mut meta.name),
        namespace: std::mem::take(&mut meta.namespace),
        labels: std::mem::take(&mut meta.labels),
        annotations: std::mem::take(&mut meta.annotations),
        owner_references: std::mem::take(&mut meta.owner_references),
        ..ObjectMeta::default()
    };
    form
}
