//! ReplicaSet: as many pods of its template as it says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use model::selector::Labels;
use model::{Kind, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{CreatePods, NewPod, Put};
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Object, ObjectMeta, OwnerReference, ReplicaSet, ReplicaSetStatus};

use super::{BATCH_MAX, BATCHES_MAX, Plan, delete, set_status, unchanged};
use crate::key::ObjectKey;
use crate::record::{PodRecord, Record, controller, millis, timestamp};
use crate::store::State;
use crate::{conditions, identity, rbac};

/// The condition of a ReplicaSet whose pods can't be created.
const FAILURE: &str = "ReplicaFailure";
/// Finished pods that a ReplicaSet keeps for whoever looks for the reason.
const FINISHED_KEPT: usize = 5;
/// Wait after one pod that ended for good (its node refused it), doubled for each further one.
const RETRY_MS: i64 = 1000;
/// Longest such wait.
const RETRY_MS_MAX: i64 = 60_000;

/// The pods of a ReplicaSet, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Neither finished nor on their way out.
    pub(super) active: i32,
    pub(super) labelled: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    /// Those on their way out included.
    pub(super) running: i32,
    /// On their way out, and not to be replaced before they are gone.
    pub(super) leaving: i32,
    /// Of those that must not run twice: active or leaving.
    pub(super) fenced: i32,
}

/// The pods that a ReplicaSet manages.
fn pods<'a>(state: &'a State, uid: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a PodRecord)> {
    state.owned(uid).filter_map(move |(key, record)| {
        let Record::Pod(pod) = record else { return None };
        let managed = controller(pod.template.owners()).is_some_and(|owner| owner.uid == uid);
        managed.then_some((key, pod.as_ref()))
    })
}

pub(super) fn counts(state: &State, set: &ReplicaSet, now: i64) -> Counts {
    let uid = set.metadata.as_ref().map_or("", |meta| meta.uid.as_str());
    let spec = set.spec.as_ref();
    let min_ready = spec.map_or(0, |spec| spec.min_ready_seconds);
    let template = spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref());
    let mut counts = Counts::default();
    for (_, pod) in pods(state, uid) {
        counts.running += i32::from(!pod.status.finished);
        if !pod.active() {
            counts.leaving += i32::from(pod.holds_its_place());
            counts.fenced += i32::from(pod.holds_its_place());
            continue;
        }
        counts.fenced += i32::from(pod.template.fenced);
        let labels = pod.template.labels();
        let labelled = template.is_none_or(|meta| {
            meta.labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        });
        counts.active += 1;
        counts.labelled += i32::from(labelled);
        counts.ready += i32::from(pod.status.ready);
        counts.available += i32::from(pod.available(min_ready, now));
    }
    counts
}

impl Plan<'_> {
    pub(super) fn replica_sets(&mut self) {
        let state = self.state;
        for (key, record) in state.entries(Kind::ReplicaSet, None, None) {
            let Some(set) = record.replica_set() else { continue };
            let owner = controller(record.owners());
            let abandoned = owner.is_some_and(|owner| !state.by_uid.contains_key(owner.uid.as_str()));
            let leaving = state.namespace(&key.namespace).is_none_or(|namespace| {
                namespace
                    .metadata
                    .as_ref()
                    .is_some_and(|meta| meta.deletion_timestamp.is_some())
            });
            if record.deleting() || abandoned || leaving || self.changed.contains(record.uid()) {
                continue;
            }
            self.replica_set(key, set);
        }
    }

    fn replica_set(&mut self, key: &ObjectKey, set: &ReplicaSet) {
        let meta = set.metadata.clone().unwrap_or_default();
        let wanted = set
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
            .max(0);
        let counts = counts(self.state, set, self.now);
        let unchanged = [unchanged(key.to_proto(), &meta.resource_version)];
        self.adopt(key, set);
        self.clear_finished(&meta.uid);
        let account = self.missing_account(key, set);
        if counts.active < wanted {
            let missing = usize::try_from(wanted - counts.active - counts.leaving).unwrap_or(0);
            if missing > 0 && account.is_none() && !self.backs_off(&meta.uid) {
                self.create(key, &meta, missing, &unchanged);
            }
        } else {
            let surplus = usize::try_from(counts.active - wanted).unwrap_or(0);
            let victims = self.victims(&meta.uid, surplus);
            let deletes: Vec<Op> = victims
                .into_iter()
                .map(|(key, pod)| delete(key.to_proto(), &pod.uid, "Background"))
                .collect();
            self.propose_each(&unchanged, deletes);
        }
        let status = ReplicaSetStatus {
            replicas: counts.active,
            fully_labeled_replicas: counts.labelled,
            ready_replicas: counts.ready,
            available_replicas: counts.available,
            observed_generation: meta.generation,
            conditions: self.conditions(set, account.filter(|_| counts.active < wanted)),
        };
        if set.status.as_ref() != Some(&status) {
            let mut object = ReplicaSet {
                status: Some(status),
                ..Default::default()
            };
            object.metadata = Some(ObjectMeta {
                uid: meta.uid,
                name: meta.name,
                namespace: meta.namespace,
                ..Default::default()
            });
            self.propose(Vec::new(), vec![set_status(object::from(object), Vec::new())]);
        }
    }

    /// Why no pod of the template could be created.
    fn missing_account(&self, key: &ObjectKey, set: &ReplicaSet) -> Option<String> {
        let spec = set.spec.as_ref()?.template.as_ref()?.spec.as_ref()?;
        let name = &spec.service_account_name;
        (!self.state.has_account(&key.namespace, name)).then(|| rbac::no_account(&key.namespace, name))
    }

    /// Kubernetes' ReplicaFailure while pods can't be created, and what else stands there.
    fn conditions(&self, set: &ReplicaSet, failure: Option<String>) -> Vec<Condition> {
        let there = set.status.as_ref().map_or(&[][..], |status| &status.conditions);
        match failure {
            None => there.iter().filter(|it| it.r#type != FAILURE).cloned().collect(),
            Some(message) => {
                let failed = Condition {
                    r#type: FAILURE.to_owned(),
                    status: "True".to_owned(),
                    reason: "FailedCreate".to_owned(),
                    message,
                    ..Default::default()
                };
                conditions::with(there, &[failed], &timestamp(self.now))
            }
        }
    }

    /// Names and uids come from the ReplicaSet, the revision and a counter: another run over the same state makes the same
    /// pods, so that a late command of an old leader creates nothing twice.
    fn create(
        &mut self,
        key: &ObjectKey,
        meta: &ObjectMeta,
        missing: usize,
        unchanged: &[proto::state::v1::Precondition],
    ) {
        let revision = self.state.revision.to_string();
        let prefix = format!("{}-", key.name);
        let mut taken = BTreeSet::new();
        let mut new = Vec::new();
        for counter in 0_u64.. {
            if new.len() == missing.min(BATCH_MAX * BATCHES_MAX) {
                break;
            }
            let counter = counter.to_string();
            let parts = [meta.uid.as_str(), revision.as_str(), counter.as_str()];
            let name = identity::name(&prefix, &parts);
            let free = !self
                .state
                .records
                .contains_key(&ObjectKey::new(Kind::Pod, &key.namespace, &name));
            if free && taken.insert(name.clone()) {
                new.push(NewPod {
                    uid: identity::uid(&parts),
                    name,
                });
            }
        }
        for pods in new.chunks(BATCH_MAX) {
            let create = CreatePods {
                owner: Some(key.to_proto()),
                uid: meta.uid.clone(),
                pods: pods.to_vec(),
            };
            self.propose(unchanged.to_vec(), vec![Op::CreatePods(create)]);
        }
    }

    /// Whether pods that ended for good make the next ones wait.
    fn backs_off(&self, uid: &str) -> bool {
        let finished = pods(self.state, uid).filter(|(_, pod)| pod.status.finished && pod.deleted.is_none());
        let (count, last) = finished.fold((0_u32, i64::MIN), |(count, last), (_, pod)| {
            (count + 1, last.max(millis(pod.created.as_ref())))
        });
        let wait = RETRY_MS
            .saturating_mul(1 << count.saturating_sub(1).min(16))
            .min(RETRY_MS_MAX);
        count > 0 && self.now < last.saturating_add(wait)
    }

    fn clear_finished(&mut self, uid: &str) {
        let mut finished: Vec<_> = pods(self.state, uid)
            .filter(|(_, pod)| pod.status.finished && pod.deleted.is_none())
            .collect();
        finished.sort_by_key(|(key, pod)| (Reverse(millis(pod.created.as_ref())), *key));
        let old = finished.into_iter().skip(FINISHED_KEPT);
        let deletes: Vec<Op> = old
            .map(|(key, pod)| delete(key.to_proto(), &pod.uid, "Background"))
            .collect();
        self.propose_each(&[], deletes);
    }

    /// Who goes first, as in Kubernetes: not bound, not running, not ready, many on one node, ready for the shortest time,
    /// newest.
    fn victims<'a>(&'a self, uid: &'a str, count: usize) -> Vec<(&'a ObjectKey, &'a PodRecord)> {
        if count == 0 {
            return Vec::new();
        }
        let mut active: Vec<_> = pods(self.state, uid).filter(|(_, pod)| pod.active()).collect();
        let mut on_node: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, pod) in &active {
            *on_node.entry(&pod.node).or_default() += 1;
        }
        active.sort_by_cached_key(|(key, pod)| {
            let running = pod.status.decoded().phase == "Running";
            let neighbours = on_node.get(pod.node.as_ref()).copied().unwrap_or(0);
            let since = if pod.status.ready {
                pod.status.ready_since
            } else {
                0
            };
            let created = millis(pod.created.as_ref());
            let order = (pod.bound(), running, pod.status.ready, Reverse(neighbours));
            (order, Reverse(since), Reverse(created), key.name.clone())
        });
        active.truncate(count);
        active
    }

    /// Pods without a manager that the selector means.
    fn adopt(&mut self, key: &ObjectKey, set: &ReplicaSet) {
        let Some(selector) = set.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
            return;
        };
        let Some(owner) = set.metadata.as_ref() else {
            return;
        };
        let adopted = adoptable(self.state, Kind::Pod, &key.namespace, selector);
        for (orphan, record) in adopted {
            let Record::Pod(pod) = record else { continue };
            if pod.active() {
                let object = Object {
                    object: Some(Any::Pod(pod.assemble(orphan))),
                };
                self.put_owned(orphan, object, Kind::ReplicaSet, owner);
            }
        }
    }

    /// Puts an object with an owner more that manages it.
    pub(super) fn put_owned(&mut self, key: &ObjectKey, mut object: Object, kind: Kind, owner: &ObjectMeta) {
        let meta = object::meta_mut(&mut object);
        meta.owner_references.push(reference(kind, owner));
        let unchanged = unchanged(key.to_proto(), &meta.resource_version.clone());
        self.propose(vec![unchanged], vec![Op::Put(Put { object: Some(object) })]);
    }
}

/// Objects of a kind that nobody manages and a selector means; none for a selector that means everything.
pub(super) fn adoptable<'a>(
    state: &'a State,
    kind: Kind,
    namespace: &str,
    selector: &proto::v1::LabelSelector,
) -> Vec<(&'a ObjectKey, &'a Record)> {
    let labels = match Labels::from_selector(selector) {
        Ok(labels) if !labels.is_empty() => labels,
        // Validated before it was stored; what is not a selector means nothing.
        Ok(_) | Err(_) => return Vec::new(),
    };
    let first = ObjectKey::new(kind, namespace, "");
    let near = state
        .unmanaged
        .range(first..)
        .take_while(|key| key.kind == kind && key.namespace.as_ref() == namespace);
    near.filter_map(|key| Some((key, state.records.get(key)?)))
        .filter(|(_, record)| !record.deleting() && labels.matches(record.labels()))
        .collect()
}

/// How an object names the owner that manages it.
pub(super) fn reference(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version().to_owned(),
        kind: kind.as_str().to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
