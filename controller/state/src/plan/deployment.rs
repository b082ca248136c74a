//! Deployment: a ReplicaSet for each revision of the template, and how many pods each is to have.

mod rollout;
mod status;

use model::{Kind, object, template_hash};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Precondition, Put, Scale};
use proto::v1::{Deployment, DeploymentSpec, ObjectMeta, PodTemplateSpec, ReplicaSet, ReplicaSetSpec};

use super::replica_set::{Counts, adoptable, counts, reference};
use super::{Plan, delete, unchanged};
use crate::REVISION_ANNOTATION;
use crate::identity;
use crate::key::ObjectKey;
use crate::record::{controller, millis};
use crate::store::State;

/// Old revisions that are kept when the spec does not say.
const HISTORY: i32 = 10;

/// One revision: its ReplicaSet as it is, and what it is to have.
struct Revision<'a> {
    key: &'a ObjectKey,
    set: &'a ReplicaSet,
    counts: Counts,
    /// Replicas that its spec asks for now.
    asked: i32,
    /// Replicas that it is to ask for.
    wanted: i32,
}

impl Revision<'_> {
    fn meta(&self) -> Option<&ObjectMeta> {
        self.set.metadata.as_ref()
    }

    fn number(&self) -> u64 {
        revision_of(self.meta())
    }

    /// Pods that count against what the strategy allows: those that it asks for, or those that it still has, when nothing may
    /// run beside them.
    fn held(&self) -> i32 {
        self.asked.max(self.counts.fenced)
    }

    /// Pods that will still be available once its surplus is gone; not available ones go first.
    fn available(&self) -> i32 {
        self.counts.available.min(self.wanted)
    }
}

impl Plan<'_> {
    pub(super) fn deployments(&mut self) {
        let state = self.state;
        for (key, record) in state.entries(Kind::Deployment, None, None) {
            let Some(deployment) = record.deployment() else {
                continue;
            };
            let leaving = state.namespace(&key.namespace).is_none_or(|namespace| {
                namespace
                    .metadata
                    .as_ref()
                    .is_some_and(|meta| meta.deletion_timestamp.is_some())
            });
            if !record.deleting() && !leaving {
                self.deployment(key, deployment);
            }
        }
    }

    fn deployment(&mut self, key: &ObjectKey, deployment: &Deployment) {
        let (Some(meta), Some(spec)) = (&deployment.metadata, &deployment.spec) else {
            return;
        };
        let Some(template) = &spec.template else { return };
        if let Some(selector) = &spec.selector {
            for (orphan, record) in adoptable(self.state, Kind::ReplicaSet, &key.namespace, selector) {
                self.put_owned(orphan, record.object(orphan), Kind::Deployment, meta);
            }
        }
        let mut old = revisions(self.state, &meta.uid, self.now);
        let place = old
            .iter()
            .position(|revision| same_template(revision.set, template));
        let mut current = place.map(|place| old.remove(place));
        let mut turn = Turn {
            state: self.state,
            now: self.now,
            key,
            deployment,
            meta,
            spec,
            operations: Vec::new(),
            preconditions: Vec::new(),
            changed: Vec::new(),
        };
        let made = turn.rollout(&mut old, &mut current, template);
        turn.status(&old, current.as_ref(), made.as_deref());
        let Turn {
            operations,
            mut preconditions,
            changed,
            ..
        } = turn;
        self.changed.extend(changed);
        if !operations.is_empty() {
            preconditions.push(unchanged(key.to_proto(), &meta.resource_version));
            self.propose(preconditions, operations);
        }
    }
}

/// The ReplicaSets that a Deployment manages, oldest first.
fn revisions<'a>(state: &'a State, uid: &str, now: i64) -> Vec<Revision<'a>> {
    let owned = state.owned(uid).filter(|(_, record)| {
        !record.deleting() && controller(record.owners()).is_some_and(|owner| owner.uid == uid)
    });
    let mut revisions: Vec<Revision> = owned
        .filter_map(|(key, record)| {
            let set = record.replica_set()?;
            let asked = set
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .unwrap_or(1)
                .max(0);
            Some(Revision {
                key,
                set,
                counts: counts(state, set, now),
                asked,
                wanted: asked,
            })
        })
        .collect();
    revisions.sort_by_key(|revision| {
        let created = revision
            .meta()
            .map_or(0, |meta| millis(meta.creation_timestamp.as_ref()));
        (created, revision.number(), revision.key)
    });
    revisions
}

/// What one look at one Deployment comes to: one transaction.
struct Turn<'a> {
    state: &'a State,
    now: i64,
    key: &'a ObjectKey,
    deployment: &'a Deployment,
    meta: &'a ObjectMeta,
    spec: &'a DeploymentSpec,
    operations: Vec<Op>,
    preconditions: Vec<Precondition>,
    /// Uids of ReplicaSets that are changed.
    changed: Vec<String>,
}

impl Turn<'_> {
    /// Says what each ReplicaSet is to have, and which revision the current one is.
    fn commit(&mut self, revisions: &[&Revision], current: Option<(&Revision, u64)>) {
        for revision in revisions {
            let Some(meta) = revision.meta() else { continue };
            let mut set = revision.set.clone();
            let spec = set.spec.get_or_insert_default();
            spec.min_ready_seconds = self.spec.min_ready_seconds;
            if let Some((_, number)) = current.filter(|(current, _)| current.key == revision.key) {
                let annotations = &mut set.metadata.get_or_insert_default().annotations;
                annotations.insert(REVISION_ANNOTATION.to_owned(), number.to_string());
            }
            if set != *revision.set {
                set.spec.get_or_insert_default().replicas = Some(revision.wanted);
                self.operations.push(Op::Put(Put {
                    object: Some(object::from(set)),
                }));
            } else if revision.wanted != revision.asked {
                self.operations.push(Op::Scale(Scale {
                    key: Some(revision.key.to_proto()),
                    uid: meta.uid.clone(),
                    replicas: revision.wanted,
                }));
            } else {
                continue;
            }
            self.preconditions
                .push(unchanged(revision.key.to_proto(), &meta.resource_version));
            self.changed.push(meta.uid.clone());
        }
    }

    /// The Deployment says which revision is current.
    fn mark(&mut self, number: u64) {
        let number = number.to_string();
        if self.meta.annotations.get(REVISION_ANNOTATION) != Some(&number) {
            let mut marked = self.deployment.clone();
            marked
                .metadata
                .get_or_insert_default()
                .annotations
                .insert(REVISION_ANNOTATION.to_owned(), number);
            self.operations.push(Op::Put(Put {
                object: Some(object::from(marked)),
            }));
        }
    }

    /// Makes the ReplicaSet of a template; its name.
    fn create(&mut self, template: &PodTemplateSpec, replicas: i32, number: u64) -> String {
        let hash = template_hash::of(template);
        let key_of = |name: &str| ObjectKey::new(Kind::ReplicaSet, &self.key.namespace, name);
        let revision = self.state.revision.to_string();
        let mut name = format!("{}-{hash}", self.meta.name);
        for counter in 0_u64.. {
            if !self.state.records.contains_key(&key_of(&name)) {
                break;
            }
            // Somebody else's, or another template with the same hash.
            let parts = [self.meta.uid.as_str(), hash.as_str(), &counter.to_string()];
            name = identity::name(&format!("{}-", self.meta.name), &parts);
        }
        let mut template = template.clone();
        let labels = &mut template.metadata.get_or_insert_default().labels;
        labels.insert(template_hash::LABEL.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone().unwrap_or_default();
        selector
            .match_labels
            .insert(template_hash::LABEL.to_owned(), hash);
        let set = ReplicaSet {
            metadata: Some(ObjectMeta {
                namespace: self.meta.namespace.clone(),
                uid: identity::uid(&[&self.meta.uid, &name, &revision]),
                name: name.clone(),
                labels,
                annotations: [(REVISION_ANNOTATION.to_owned(), number.to_string())].into(),
                owner_references: vec![reference(Kind::Deployment, self.meta)],
                ..Default::default()
            }),
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector: Some(selector),
                template: Some(template),
            }),
            ..Default::default()
        };
        let key = key_of(&name).to_proto();
        self.preconditions.push(Precondition {
            key: Some(key),
            expect: Some(Expect::Absent(true)),
        });
        self.operations.push(Op::Put(Put {
            object: Some(object::from(set)),
        }));
        name
    }

    /// Forgets the oldest revisions that nobody runs, beyond the limit.
    fn forget(&mut self, old: &[Revision]) {
        let limit = self.spec.revision_history_limit.unwrap_or(HISTORY);
        let mut idle: Vec<&Revision> = old
            .iter()
            .filter(|old| old.asked == 0 && old.wanted == 0 && old.counts.running == 0)
            .collect();
        idle.sort_by_key(|old| old.number());
        let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for revision in idle.into_iter().take(surplus) {
            let Some(meta) = revision.meta() else { continue };
            self.operations
                .push(delete(revision.key.to_proto(), &meta.uid, "Background"));
            self.changed.push(meta.uid.clone());
        }
    }
}

/// The number in the revision annotation; 0 without one.
fn revision_of(meta: Option<&ObjectMeta>) -> u64 {
    meta.and_then(|meta| meta.annotations.get(REVISION_ANNOTATION)?.parse().ok())
        .unwrap_or(0)
}

/// Whether a ReplicaSet was made from this template: equal but for the hash label.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(made) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
        return false;
    };
    let strip = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        template
            .metadata
            .get_or_insert_default()
            .labels
            .remove(template_hash::LABEL);
        template
    };
    made.spec == template.spec && strip(made) == strip(template)
}
