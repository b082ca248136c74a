//! How objects are kept: a pod as its template's reference and what is its own, everything else whole.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use model::{Kind, at_most_once, object};
use prost::Message;
use proto::Timestamp;
use proto::v1::object::Object as Any;
use proto::v1::{Object, ObjectMeta, OwnerReference, Pod, PodSpec, PodStatus, PodTemplateSpec};

use crate::key::ObjectKey;
use crate::quantity::Requests;

/// What pods of one origin share: labels, annotations, owners, finalizers and spec.
#[derive(Debug)]
pub(crate) struct Template {
    /// Of the content; only finds the template, never decides anything.
    pub(crate) hash: u64,
    /// Only labels, annotations, owner references and finalizers of the metadata are used.
    pub(crate) content: PodTemplateSpec,
    /// What the scheduler counts.
    pub(crate) requests: Requests,
    /// Its pods must not run twice: one is followed by another only once it is known to have ended.
    pub(crate) fenced: bool,
    /// What the content takes, encoded.
    bytes: usize,
}

impl Template {
    pub(crate) fn new(content: PodTemplateSpec) -> Template {
        let mut hasher = DefaultHasher::new();
        let encoded = content.encode_to_vec();
        encoded.hash(&mut hasher);
        let requests = Requests::of(content.spec.as_ref().unwrap_or(&PodSpec::default()));
        Template {
            fenced: content
                .metadata
                .as_ref()
                .is_some_and(|meta| at_most_once::is_asked(&meta.annotations)),
            hash: hasher.finish(),
            content,
            requests,
            bytes: encoded.len(),
        }
    }

    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.content.metadata.as_ref().map_or(&NONE, |meta| &meta.labels)
    }

    pub(crate) fn owners(&self) -> &[OwnerReference] {
        self.content
            .metadata
            .as_ref()
            .map_or(&[], |meta| &meta.owner_references)
    }

    pub(crate) fn finalizers(&self) -> &[String] {
        self.content
            .metadata
            .as_ref()
            .map_or(&[], |meta| &meta.finalizers)
    }

    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.content.spec.as_ref()
    }
}

/// A pod without what its template says. Its key holds namespace and name.
#[derive(Clone, Debug)]
pub(crate) struct PodRecord {
    pub(crate) template: Arc<Template>,
    pub(crate) uid: Arc<str>,
    pub(crate) resource_version: u64,
    /// The revision at its last change that its node has to know of: any but of its status.
    pub(crate) desired_revision: u64,
    pub(crate) generation: i32,
    pub(crate) created: Option<Timestamp>,
    pub(crate) deleted: Option<Timestamp>,
    pub(crate) grace: Option<i32>,
    /// The node it is bound to; empty before.
    pub(crate) node: Arc<str>,
    pub(crate) status: Status,
}

/// A pod's status, encoded: a tenth of the size of the decoded form; with what plans look at beside it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    bytes: Arc<[u8]>,
    pub(crate) finished: bool,
    /// The Ready condition is True.
    pub(crate) ready: bool,
    /// Since when, in milliseconds.
    pub(crate) ready_since: i64,
}

impl Status {
    pub(crate) fn new(status: &PodStatus) -> Status {
        let ready = status
            .conditions
            .iter()
            .find(|c| c.r#type == "Ready" && c.status == "True");
        Status {
            bytes: status.encode_to_vec().into(),
            finished: is_finished(&status.phase),
            ready: ready.is_some(),
            ready_since: ready.map_or(0, |c| millis(c.last_transition_time.as_ref())),
        }
    }

    pub(crate) fn decoded(&self) -> PodStatus {
        PodStatus::decode(self.bytes.as_ref()).expect("encoded by `new`")
    }
}

/// Whether a pod in this phase has nothing left to run.
pub(crate) fn is_finished(phase: &str) -> bool {
    phase == "Succeeded" || phase == "Failed"
}

/// Milliseconds since 1970; 0 for none.
pub(crate) fn millis(time: Option<&Timestamp>) -> i64 {
    time.map_or(0, |time| {
        time.seconds
            .saturating_mul(1000)
            .saturating_add(i64::from(time.nanos) / 1_000_000)
    })
}

/// The time of so many milliseconds since 1970.
pub(crate) fn timestamp(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).expect("below a thousand million");
    Timestamp {
        seconds: millis.div_euclid(1000),
        nanos,
    }
}

impl PodRecord {
    pub(crate) fn bound(&self) -> bool {
        !self.node.is_empty()
    }

    /// Counts for its owner: not finished and not on its way out.
    pub(crate) fn active(&self) -> bool {
        !self.status.finished && self.deleted.is_none()
    }

    /// It must not run twice, and something of it may run: nothing may take its place yet.
    pub(crate) fn holds_its_place(&self) -> bool {
        self.template.fenced && self.bound() && !self.status.finished
    }

    /// Nobody has to be waited for that it ends, but for its finalizers.
    pub(crate) fn goes_at_once(&self, grace: i32) -> bool {
        // Without grace a pod goes before its node has ended it; what must not run twice is killed at once, but goes only then.
        (grace == 0 && !self.holds_its_place()) || !self.bound() || self.status.finished
    }

    /// It is to go and nothing of it runs: only its finalizers keep it.
    pub(crate) fn is_kept(&self) -> bool {
        self.deleted.is_some() && self.status.finished && !self.template.finalizers().is_empty()
    }

    /// Ready, and has been for that long.
    pub(crate) fn available(&self, min_ready_seconds: i32, now: i64) -> bool {
        let wait = i64::from(min_ready_seconds.max(0)) * 1000;
        self.status.ready && (wait == 0 || self.status.ready_since.saturating_add(wait) <= now)
    }

    /// What it takes put together, encoded; but for its names.
    pub(crate) fn bytes(&self) -> usize {
        self.template.bytes + self.status.bytes.len()
    }

    pub(crate) fn meta(&self, key: &ObjectKey) -> ObjectMeta {
        let mut meta = self.template.content.metadata.clone().unwrap_or_default();
        meta.name = key.name.as_ref().to_owned();
        meta.namespace = key.namespace.as_ref().to_owned();
        meta.uid = self.uid.as_ref().to_owned();
        meta.resource_version = self.resource_version.to_string();
        meta.generation = self.generation;
        meta.creation_timestamp = self.created;
        meta.deletion_timestamp = self.deleted;
        meta.deletion_grace_period_seconds = self.grace;
        meta
    }

    pub(crate) fn assemble(&self, key: &ObjectKey) -> Pod {
        let mut spec = self.template.content.spec.clone();
        let content = spec.get_or_insert_default();
        if content.service_account_name.is_empty() {
            model::default::SERVICE_ACCOUNT.clone_into(&mut content.service_account_name);
        }
        if self.bound() {
            self.node.as_ref().clone_into(&mut content.node_name);
        }
        Pod {
            api_version: Kind::Pod.api_version().to_owned(),
            kind: Kind::Pod.as_str().to_owned(),
            metadata: Some(self.meta(key)),
            spec,
            status: Some(self.status.decoded()),
        }
    }
}

/// What is stored under a key.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Pod(Arc<PodRecord>),
    /// Any other kind; never an empty `Object`, always with metadata, apiVersion and kind.
    Whole(Arc<Object>),
}

impl Record {
    pub(crate) fn object(&self, key: &ObjectKey) -> Object {
        match self {
            Record::Pod(pod) => Object {
                object: Some(Any::Pod(pod.assemble(key))),
            },
            Record::Whole(object) => object.as_ref().clone(),
        }
    }

    pub(crate) fn uid(&self) -> &str {
        match self {
            Record::Pod(pod) => &pod.uid,
            Record::Whole(object) => &object::meta(object).uid,
        }
    }

    pub(crate) fn owners(&self) -> &[OwnerReference] {
        match self {
            Record::Pod(pod) => pod.template.owners(),
            Record::Whole(object) => &object::meta(object).owner_references,
        }
    }

    pub(crate) fn finalizers(&self) -> &[String] {
        match self {
            Record::Pod(pod) => pod.template.finalizers(),
            Record::Whole(object) => &object::meta(object).finalizers,
        }
    }

    pub(crate) fn resource_version(&self) -> u64 {
        match self {
            Record::Pod(pod) => pod.resource_version,
            Record::Whole(object) => object::meta(object).resource_version.parse().unwrap_or(0),
        }
    }

    pub(crate) fn created(&self) -> Option<Timestamp> {
        match self {
            Record::Pod(pod) => pod.created,
            Record::Whole(object) => object::meta(object).creation_timestamp,
        }
    }

    pub(crate) fn deleting(&self) -> bool {
        match self {
            Record::Pod(pod) => pod.deleted.is_some(),
            Record::Whole(object) => object::meta(object).deletion_timestamp.is_some(),
        }
    }
}

/// The owner that manages an object.
pub(crate) fn controller(owners: &[OwnerReference]) -> Option<&OwnerReference> {
    owners.iter().find(|owner| owner.controller == Some(true))
}
