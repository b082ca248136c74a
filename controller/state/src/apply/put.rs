//! Creating and replacing objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use proto::state::v1::{Apply, CreatePods};
use proto::v1::object::Object as Any;
use proto::v1::{
    DeploymentStatus, NamespaceStatus, NodeSpec, Object, ObjectMeta, OwnerReference, Pod, PodSpec, PodStatus,
    PodTemplateSpec, ReplicaSetStatus,
};

use super::{Reason, Refusal, Trial, refuse, transaction};
use crate::key::ObjectKey;
use crate::qos;
use crate::record::{PodRecord, Record, Status, Template};
use crate::{
    MANAGER_BYTES_MAX, MANAGERS_MAX, NODE_LABELS, OBJECT_BYTES_MAX, OPERATIONS_MAX, REVISION_ANNOTATION,
};
use model::{Kind, at_most_once, default, object};

/// Longest name of any kind (RFC 1123 subdomain, as Kubernetes').
const NAME_BYTES_MAX: usize = 253;
/// Longest uid: a UUID, with room for other makers of uids.
const UID_BYTES_MAX: usize = 128;

impl Trial {
    pub(super) fn put(&mut self, object: &Object) -> Result<(), Refusal> {
        let Some(key) = ObjectKey::of(object) else {
            return refuse(Reason::Invalid, "the object is empty");
        };
        self.write(&key, object)?;
        self.show(&key);
        Ok(())
    }

    /// A put, and what was said beside it. The reply shows the object when it changed.
    pub(super) fn apply_merged(&mut self, apply: &Apply) -> Result<(), Refusal> {
        let (Some(object), Some(said)) = (&apply.object, &apply.said) else {
            return refuse(Reason::Invalid, "the apply has no object, or not what was said");
        };
        let Some(key) = ObjectKey::of(object) else {
            return refuse(Reason::Invalid, "the object is empty");
        };
        let manager = apply.manager.as_str();
        if manager.is_empty() || manager.len() > MANAGER_BYTES_MAX {
            let message = format!("the manager's name has from 1 to {MANAGER_BYTES_MAX} bytes");
            return refuse(Reason::Invalid, message);
        }
        if said.object.is_none() || said.encoded_len() > OBJECT_BYTES_MAX {
            return refuse(
                Reason::Invalid,
                format!("what was said of {key} is nothing, or too large"),
            );
        }
        let revision = self.state.revision;
        self.write(&key, object)?;
        // It goes when the last finalizer is taken out, and nobody's word outlives it.
        let there = self.state.records.contains_key(&key);
        if there && !self.state.said.set(&key, manager, said) {
            let message = format!(
                "{key} is applied by {MANAGERS_MAX} managers already: apply it as one of them (--field-manager)"
            );
            return refuse(Reason::Invalid, message);
        }
        if self.state.revision != revision {
            self.show(&key);
        }
        Ok(())
    }

    fn write(&mut self, key: &ObjectKey, object: &Object) -> Result<(), Refusal> {
        check(key, object)?;
        match self.state.records.get(key).cloned() {
            None => self.create(key, object),
            Some(Record::Pod(pod)) => self.replace_pod(key, &pod, object),
            Some(Record::Whole(old)) => self.replace(key, &old, object),
        }
    }

    fn create(&mut self, key: &ObjectKey, object: &Object) -> Result<(), Refusal> {
        let uid = &object::meta(object).uid;
        if uid.is_empty() || uid.len() > UID_BYTES_MAX {
            return refuse(Reason::Invalid, format!("{key} needs a uid"));
        }
        if self.state.by_uid.contains_key(uid.as_str()) {
            return refuse(Reason::Conflict, format!("the uid of {key} is taken"));
        }
        if key.kind == Kind::Node {
            return refuse(
                Reason::Forbidden,
                format!("{key} does not exist; nodes come by joining"),
            );
        }
        if key.kind.namespaced() {
            self.require_namespace(key)?;
        }
        if let Some(Any::Pod(pod)) = &object.object {
            self.create_pod(key, pod);
            return Ok(());
        }
        let mut object = object.clone();
        object::set_type_meta(&mut object);
        let meta = object::meta_mut(&mut object);
        stamp(meta, key);
        meta.generation = i32::from(key.kind.has_status());
        meta.creation_timestamp = Some(self.time);
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        match &mut object.object {
            Some(Any::Namespace(namespace)) => {
                namespace.status = Some(NamespaceStatus {
                    phase: "Active".to_owned(),
                    conditions: Vec::new(),
                });
            }
            Some(Any::Deployment(deployment)) => deployment.status = Some(DeploymentStatus::default()),
            Some(Any::ReplicaSet(set)) => set.status = Some(ReplicaSetStatus::default()),
            _ => {}
        }
        self.store(key.clone(), object);
        Ok(())
    }

    fn create_pod(&mut self, key: &ObjectKey, pod: &Pod) {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = first_status(&spec);
        let meta = pod.metadata.clone().unwrap_or_default();
        let uid: Arc<str> = meta.uid.as_str().into();
        let template = self.state.intern(template(meta, Some(spec)));
        self.store_new_pod(key.clone(), uid, template, status);
    }

    fn store_new_pod(&mut self, key: ObjectKey, uid: Arc<str>, template: Arc<Template>, status: Status) {
        let record = PodRecord {
            template,
            uid,
            resource_version: 0,
            desired_revision: 0,
            generation: 1,
            created: Some(self.time),
            deleted: None,
            grace: None,
            node: "".into(),
            status,
        };
        self.store_pod(key, record);
    }

    /// Pods from a ReplicaSet's template. The reply does not show them.
    pub(super) fn create_pods(&mut self, create: &CreatePods) -> Result<(), Refusal> {
        let owner = transaction::key(create.owner.as_ref())?;
        if create.pods.len() > OPERATIONS_MAX {
            return refuse(Reason::Invalid, format!("more than {OPERATIONS_MAX} pods"));
        }
        let record = self.find(&owner, &create.uid)?;
        let Some(set) = record.replica_set() else {
            return refuse(Reason::Invalid, format!("{owner} is no ReplicaSet"));
        };
        if record.deleting() {
            return refuse(Reason::Conflict, format!("{owner} is being deleted"));
        }
        let content = set
            .spec
            .as_ref()
            .and_then(|spec| spec.template.clone())
            .unwrap_or_default();
        if let Some(spec) = &content.spec {
            let account = ObjectKey::new(Kind::ServiceAccount, &owner.namespace, &spec.service_account_name);
            self.require_account(&account)?;
        }
        let mut meta = content.metadata.unwrap_or_default();
        if at_most_once::is_asked(&meta.annotations) {
            self.require_room(&owner, &record, create.pods.len())?;
        }
        meta.owner_references = vec![OwnerReference {
            api_version: owner.kind.api_version().to_owned(),
            kind: owner.kind.as_str().to_owned(),
            name: owner.name.as_ref().to_owned(),
            uid: record.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }];
        let spec = content.spec.unwrap_or_default();
        let status = first_status(&spec);
        let template = self.state.intern(template(meta, Some(spec)));
        for pod in &create.pods {
            let key = ObjectKey::new(Kind::Pod, &owner.namespace, &pod.name);
            if !named(&key.name) || pod.uid.is_empty() || pod.uid.len() > UID_BYTES_MAX {
                return refuse(Reason::Invalid, "a new pod needs a name and a uid");
            }
            if self.state.records.contains_key(&key) || self.state.by_uid.contains_key(pod.uid.as_str()) {
                return refuse(Reason::AlreadyExists, format!("{key} or its uid exists already"));
            }
            self.require_namespace(&key)?;
            self.store_new_pod(key, pod.uid.as_str().into(), template.clone(), status.clone());
        }
        Ok(())
    }

    /// Of pods that must not run twice there never are more than there are to be, those included that have not ended yet:
    /// whatever a leader of before decided.
    fn require_room(&self, key: &ObjectKey, owner: &Record, new: usize) -> Result<(), Refusal> {
        let wanted = owner.replica_set().and_then(|set| set.spec.as_ref()?.replicas);
        let wanted = usize::try_from(wanted.unwrap_or(1)).unwrap_or(0);
        let pods = self.state.owned(owner.uid());
        let there = pods.filter(|(_, record)| {
            let pod = record.pod();
            pod.is_some_and(|pod| pod.active() || pod.holds_its_place())
        });
        let there = there.count();
        if there + new > wanted {
            return refuse(
                Reason::Conflict,
                format!("{key} is to have {wanted} pods and has {there} that run or may still run"),
            );
        }
        Ok(())
    }

    fn require_namespace(&self, key: &ObjectKey) -> Result<(), Refusal> {
        let Some(namespace) = self.state.namespace(&key.namespace) else {
            return refuse(
                Reason::NotFound,
                format!("namespace {} does not exist", key.namespace),
            );
        };
        let deleting = namespace
            .metadata
            .as_ref()
            .is_some_and(|meta| meta.deletion_timestamp.is_some());
        if deleting {
            let message = format!(
                "namespace {} is being deleted; nothing new can be created in it",
                key.namespace
            );
            return refuse(Reason::Forbidden, message);
        }
        Ok(())
    }

    fn replace_pod(&mut self, key: &ObjectKey, old: &PodRecord, object: &Object) -> Result<(), Refusal> {
        same_uid(key, &old.uid, object)?;
        let Some(Any::Pod(pod)) = &object.object else {
            return refuse(Reason::Invalid, "the object is no pod");
        };
        let mut spec = pod.spec.clone().unwrap_or_default();
        if old.bound() {
            if !spec.node_name.is_empty() && spec.node_name != *old.node {
                return refuse(
                    Reason::Invalid,
                    format!("{key} is bound to {} and cannot move", old.node),
                );
            }
            // What was asked for at first, as the template keeps it.
            let asked = old.template.spec().map(|spec| spec.node_name.as_str());
            asked.unwrap_or_default().clone_into(&mut spec.node_name);
        }
        let new = template(pod.metadata.clone().unwrap_or_default(), Some(spec));
        if new == old.template.content {
            return Ok(());
        }
        let finalizers = new.metadata.as_ref().map_or(&[][..], |meta| &meta.finalizers);
        let before = old.template.finalizers();
        may_keep(key, old.deleted.is_some(), before, finalizers)?;
        let mut record = old.clone();
        if new.spec != old.template.content.spec {
            record.generation = record.generation.saturating_add(1);
        }
        record.template = self.state.intern(new);
        self.store_pod(key.clone(), record);
        self.finalized(key, before);
        Ok(())
    }

    fn replace(&mut self, key: &ObjectKey, old: &Object, object: &Object) -> Result<(), Refusal> {
        let before = object::meta(old);
        same_uid(key, &before.uid, object)?;
        let mut new = object.clone();
        object::set_type_meta(&mut new);
        let meta = object::meta_mut(&mut new);
        stamp(meta, key);
        meta.uid.clone_from(&before.uid);
        meta.resource_version.clone_from(&before.resource_version);
        meta.generation = before.generation;
        meta.creation_timestamp.clone_from(&before.creation_timestamp);
        meta.deletion_timestamp.clone_from(&before.deletion_timestamp);
        meta.deletion_grace_period_seconds = before.deletion_grace_period_seconds;
        keep_own(meta, before, key.kind);
        let spec_changed = carry_over(key, &mut new, old)?;
        if new == *old {
            return Ok(());
        }
        let going = before.deletion_timestamp.is_some();
        may_keep(key, going, &before.finalizers, &object::meta(&new).finalizers)?;
        if spec_changed {
            let meta = object::meta_mut(&mut new);
            meta.generation = meta.generation.saturating_add(1);
        }
        self.store(key.clone(), new);
        self.finalized(key, &before.finalizers);
        Ok(())
    }
}

/// What is to go gets no new finalizer: whoever has done his part would wait for ever.
fn may_keep(key: &ObjectKey, going: bool, before: &[String], new: &[String]) -> Result<(), Refusal> {
    match new.iter().find(|finalizer| !before.contains(finalizer)) {
        Some(finalizer) if going => refuse(
            Reason::Forbidden,
            format!("{key} is being deleted: no finalizer can be added, as {finalizer} would be"),
        ),
        _ => Ok(()),
    }
}

/// What holds for every put object, whoever sends it.
fn check(key: &ObjectKey, object: &Object) -> Result<(), Refusal> {
    if key.kind == Kind::Event {
        return refuse(Reason::Invalid, "events are kept outside the log");
    }
    if !named(&key.name) || (key.kind.namespaced() && !named(&key.namespace)) {
        return refuse(
            Reason::Invalid,
            format!("{} needs a name and a namespace", key.kind.as_str()),
        );
    }
    let size = object.encoded_len();
    if size > OBJECT_BYTES_MAX {
        return refuse(
            Reason::Invalid,
            format!("{key} has {size} bytes; the limit is {OBJECT_BYTES_MAX}"),
        );
    }
    Ok(())
}

fn named(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('/')
}

/// What is known of a pod before anybody looked at it.
pub(super) fn first_status(spec: &PodSpec) -> Status {
    Status::new(&PodStatus {
        phase: "Pending".to_owned(),
        qos_class: qos::class(spec).to_owned(),
        ..Default::default()
    })
}

fn same_uid(key: &ObjectKey, there: &str, object: &Object) -> Result<(), Refusal> {
    let uid = &object::meta(object).uid;
    if !uid.is_empty() && uid != there {
        return refuse(
            Reason::Conflict,
            format!("{key} is another one: its uid is {there}"),
        );
    }
    Ok(())
}

/// What every stored object's metadata has in common.
fn stamp(meta: &mut ObjectMeta, key: &ObjectKey) {
    meta.generate_name.clear();
    key.namespace.as_ref().clone_into(&mut meta.namespace);
}

/// What pods of one origin share. The service account that every pod has is added where a pod is shown.
pub(crate) fn template(meta: ObjectMeta, mut spec: Option<PodSpec>) -> PodTemplateSpec {
    if let Some(spec) = &mut spec
        && spec.service_account_name == default::SERVICE_ACCOUNT
    {
        spec.service_account_name.clear();
    }
    let shared = ObjectMeta {
        labels: meta.labels,
        annotations: meta.annotations,
        owner_references: meta.owner_references,
        finalizers: meta.finalizers,
        ..Default::default()
    };
    PodTemplateSpec {
        metadata: Some(shared),
        spec,
    }
}

/// Labels and annotations that the cluster itself sets stay when a manifest does not speak of them.
fn keep_own(meta: &mut ObjectMeta, before: &ObjectMeta, kind: Kind) {
    let keep = |new: &mut BTreeMap<String, String>, old: &BTreeMap<String, String>, names: &[&str]| {
        let kept = old.iter().filter(|(name, _)| names.contains(&name.as_str()));
        for (name, value) in kept {
            new.entry(name.clone()).or_insert_with(|| value.clone());
        }
    };
    match kind {
        Kind::Node => keep(&mut meta.labels, &before.labels, &NODE_LABELS),
        Kind::Deployment | Kind::ReplicaSet => {
            keep(&mut meta.annotations, &before.annotations, &[REVISION_ANNOTATION]);
        }
        _ => {}
    }
}

/// Takes over what a put does not change; whether the spec differs.
fn carry_over(key: &ObjectKey, new: &mut Object, old: &Object) -> Result<bool, Refusal> {
    Ok(match (&mut new.object, &old.object) {
        (Some(Any::Namespace(new)), Some(Any::Namespace(old))) => {
            new.status.clone_from(&old.status);
            new.spec != old.spec
        }
        (Some(Any::Node(new)), Some(Any::Node(old))) => {
            new.status.clone_from(&old.status);
            let before: &NodeSpec = match &old.spec {
                Some(spec) => spec,
                None => &NodeSpec::default(),
            };
            let spec = new.spec.get_or_insert_default();
            if !spec.pod_cidr.is_empty() && spec.pod_cidr != before.pod_cidr {
                return refuse(
                    Reason::Invalid,
                    format!("the podCIDR of {key} is {} and cannot change", before.pod_cidr),
                );
            }
            spec.pod_cidr.clone_from(&before.pod_cidr);
            spec != before
        }
        (Some(Any::Deployment(new)), Some(Any::Deployment(old))) => {
            new.status.clone_from(&old.status);
            new.spec != old.spec
        }
        (Some(Any::ReplicaSet(new)), Some(Any::ReplicaSet(old))) => {
            new.status.clone_from(&old.status);
            new.spec != old.spec
        }
        _ => false,
    })
}
