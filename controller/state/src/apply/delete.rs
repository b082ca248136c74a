//! Deleting: at once, with grace, or behind what an object owns.

use std::sync::Arc;

use proto::state::v1::DeleteOp;
use proto::v1::object::Object as Any;

use super::{Reason, Refusal, Trial, refuse, transaction};
use crate::key::ObjectKey;
use crate::level;
use crate::record::{PodRecord, Record, Status};
use model::Kind;
use model::object::{self, FOREGROUND};

/// Seconds that a pod gets when neither it nor the request says.
const GRACE_SECONDS: i32 = 30;
/// The namespace that every cluster has.
const DEFAULT_NAMESPACE: &str = "default";

/// What becomes of the objects that a deleted one owns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay, without this owner.
    Orphan,
}

impl Trial {
    pub(super) fn delete(&mut self, delete: &DeleteOp) -> Result<(), Refusal> {
        let key = transaction::key(delete.key.as_ref())?;
        let propagation = match delete.propagation.as_str() {
            "" | "Background" => Propagation::Background,
            "Foreground" => Propagation::Foreground,
            "Orphan" => Propagation::Orphan,
            other => return refuse(Reason::Invalid, format!("unknown propagation `{other}`")),
        };
        if delete.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            return refuse(Reason::Invalid, "gracePeriodSeconds is below 0");
        }
        let record = self.find(&key, &delete.uid)?;
        if propagation == Propagation::Orphan {
            self.orphan(record.uid());
        }
        match (&record, key.kind) {
            (Record::Pod(pod), _) => self.delete_pod(&key, pod, delete.grace_period_seconds),
            (_, Kind::Namespace) => return self.delete_namespace(&key, &record),
            (_, Kind::Node) => self.let_go(&key, &record, false),
            _ => {
                let owns = self.state.by_owner.contains_key(record.uid());
                self.let_go(&key, &record, propagation == Propagation::Foreground && owns);
            }
        }
        Ok(())
    }

    /// Takes an object away, or marks it where something keeps it: its finalizers, and in the foreground what it owns.
    fn let_go(&mut self, key: &ObjectKey, record: &Record, foreground: bool) {
        let mut finalizers = record.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != FOREGROUND);
        if foreground && self.state.level() >= level::FINALIZERS {
            finalizers.push(FOREGROUND.to_owned());
        }
        if finalizers.is_empty() && !foreground {
            self.erase(key);
        } else {
            self.mark(key, record, finalizers);
        }
    }

    fn delete_pod(&mut self, key: &ObjectKey, pod: &PodRecord, grace: Option<i32>) {
        let own = pod
            .template
            .spec()
            .and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace.or(own).unwrap_or(GRACE_SECONDS).max(0);
        if pod.template.finalizers().is_empty() && pod.goes_at_once(grace) {
            self.erase(key);
            return;
        }
        // A second request may only shorten the time of the first.
        if pod.grace.is_some_and(|granted| granted <= grace) && pod.deleted.is_some() {
            return;
        }
        let mut ending = pod.clone();
        ending.deleted.get_or_insert(self.time);
        ending.grace = Some(grace);
        self.store_pod(key.clone(), ending);
    }

    fn delete_namespace(&mut self, key: &ObjectKey, record: &Record) -> Result<(), Refusal> {
        if key.name.as_ref() == DEFAULT_NAMESPACE {
            return refuse(Reason::Forbidden, "the namespace default cannot be deleted");
        }
        if self.occupied(&key.name) {
            self.mark(key, record, record.finalizers().to_vec());
        } else {
            self.let_go(key, record, false);
        }
        Ok(())
    }

    /// Marks an object as being deleted; plans remove what holds it, then the object.
    fn mark(&mut self, key: &ObjectKey, record: &Record, finalizers: Vec<String>) {
        if record.deleting() && record.finalizers() == finalizers {
            return;
        }
        let mut object = record.object(key);
        let meta = object::meta_mut(&mut object);
        meta.deletion_timestamp.get_or_insert(self.time);
        meta.deletion_grace_period_seconds = Some(0);
        meta.finalizers = finalizers;
        if let Some(Any::Namespace(namespace)) = &mut object.object {
            "Terminating".clone_into(&mut namespace.status.get_or_insert_default().phase);
        }
        self.store(key.clone(), object);
    }

    /// Takes an owner off everything that it owns.
    fn orphan(&mut self, uid: &str) {
        let keys: Vec<ObjectKey> = self.state.owned(uid).map(|(key, _)| key.clone()).collect();
        for key in keys {
            match self.state.records.get(&key).cloned() {
                Some(Record::Pod(pod)) => {
                    let mut content = pod.template.content.clone();
                    content
                        .metadata
                        .get_or_insert_default()
                        .owner_references
                        .retain(|owner| owner.uid != uid);
                    let mut free = pod.as_ref().clone();
                    free.template = self.state.intern(content);
                    self.store_pod(key, free);
                }
                Some(Record::Whole(object)) => {
                    let mut object = Arc::unwrap_or_clone(object);
                    object::meta_mut(&mut object)
                        .owner_references
                        .retain(|owner| owner.uid != uid);
                    self.store(key, object);
                }
                None => {}
            }
        }
    }

    /// Removes at once, without waiting for an agent or for dependents.
    /// Finalizers keep what they keep, but nothing of it runs any more.
    pub(super) fn remove(&mut self, key: &ObjectKey, uid: &str) -> Result<(), Refusal> {
        let record = self.find(key, uid)?;
        if key.kind == Kind::Namespace {
            if key.name.as_ref() == DEFAULT_NAMESPACE {
                return refuse(Reason::Forbidden, "the namespace default cannot be deleted");
            }
            if self.occupied(&key.name) {
                return refuse(Reason::Conflict, format!("{key} is not empty"));
            }
        }
        match &record {
            Record::Pod(pod) if !pod.template.finalizers().is_empty() => {
                let mut ending = pod.as_ref().clone();
                ending.deleted.get_or_insert(self.time);
                ending.grace = Some(0);
                self.finish_pod(key, pod, ending);
            }
            _ => self.let_go(key, &record, false),
        }
        Ok(())
    }

    /// Keeps a pod that is to go and of which nothing runs any more, for its finalizers.
    pub(super) fn finish_pod(&mut self, key: &ObjectKey, before: &PodRecord, mut ended: PodRecord) {
        if !ended.status.finished {
            let mut status = ended.status.decoded();
            "Failed".clone_into(&mut status.phase);
            ended.status = Status::new(&status);
        }
        let of = |pod: &PodRecord| (pod.deleted, pod.grace, pod.status.clone());
        if of(before) != of(&ended) {
            self.store_pod(key.clone(), ended);
        }
    }

    /// What is to go does, if the last of its finalizers has been taken out and nothing else keeps it.
    pub(super) fn finalized(&mut self, key: &ObjectKey, before: &[String]) {
        let Some(record) = self.state.records.get(key) else {
            return;
        };
        if before.is_empty() || !record.deleting() || !record.finalizers().is_empty() {
            return;
        }
        let goes = match record {
            Record::Pod(pod) => pod.goes_at_once(pod.grace.unwrap_or(GRACE_SECONDS)),
            Record::Whole(_) => key.kind != Kind::Namespace || !self.occupied(&key.name),
        };
        if goes {
            self.erase(key);
        }
    }

    /// Whether anything lives in a namespace.
    fn occupied(&self, namespace: &str) -> bool {
        let mut kinds = Kind::ALL.into_iter().filter(|kind| kind.namespaced());
        kinds.any(|kind| self.state.entries(kind, Some(namespace), None).next().is_some())
    }
}
