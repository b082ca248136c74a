//! The maps and their indices, and what readers ask of them.

use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use model::{Kind, object};
use proto::state::v1::{ClusterSettings, CommandReply, Key, Past, Revocation, Token};
use proto::v1::object::Object as Any;
use proto::v1::{Deployment, Namespace, Node, Object, Pod, PodTemplateSpec, ReplicaSet};

use crate::apply::restore::Stage;
use crate::history::History;
use crate::key::ObjectKey;
use crate::plan;
use crate::record::{PodRecord, Record, Template, controller};
use crate::replies::Replies;
use crate::said::Said;

/// Certificates that are refused, by identity.
pub type Revocations = OrdMap<String, Arc<Revocation>>;

/// The whole replicated state. A clone is a snapshot: it shares everything with the original until one of them changes.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) revision: u64,
    /// See `level`; 0 where nobody ever raised it.
    pub(crate) level: u32,
    pub(crate) settings: Option<Arc<ClusterSettings>>,
    pub(crate) records: OrdMap<ObjectKey, Record>,
    /// Templates by hash, with the number of pods that use each.
    pub(crate) templates: OrdMap<u64, Vec<(Arc<Template>, usize)>>,
    pub(crate) by_uid: OrdMap<Arc<str>, ObjectKey>,
    /// Dependents by their owners' uids.
    pub(crate) by_owner: OrdMap<Arc<str>, OrdSet<ObjectKey>>,
    /// Uids in `by_owner` that are not in `by_uid`.
    pub(crate) ownerless: OrdSet<Arc<str>>,
    /// Pods by node; those that are not bound under the empty name.
    pub(crate) by_node: OrdMap<Arc<str>, OrdSet<ObjectKey>>,
    /// Objects whose deletion was asked for.
    pub(crate) deleting: OrdSet<ObjectKey>,
    /// Pods and ReplicaSets that no owner manages.
    pub(crate) unmanaged: OrdSet<ObjectKey>,
    pub(crate) tokens: OrdMap<String, Arc<Token>>,
    pub(crate) revocations: Revocations,
    pub(crate) replies: Replies,
    pub(crate) said: Said,
    pub(crate) history: History,
    /// A restore that is under way.
    pub(crate) stage: Option<Arc<Stage>>,
}

impl State {
    /// A cluster without settings: it takes nothing but `ClusterSettings` that would need them.
    pub fn new() -> State {
        State::default()
    }

    /// The counter at the last change of an object.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What was fixed when the cluster was made; `None` before that.
    pub fn settings(&self) -> Option<&ClusterSettings> {
        self.settings.as_deref()
    }

    /// The object under this key; `None` also for a kind that is none of ours.
    pub fn get(&self, key: &Key) -> Option<Object> {
        let key = ObjectKey::from_proto(key)?;
        Some(self.records.get(&key)?.object(&key))
    }

    /// Whether there is an object under this key.
    pub fn contains(&self, key: &Key) -> bool {
        ObjectKey::from_proto(key).is_some_and(|key| self.records.contains_key(&key))
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Object> {
        let key = self.by_uid.get(uid)?;
        Some(self.records.get(key)?.object(key))
    }

    /// The key of the object with this uid.
    pub fn key_by_uid(&self, uid: &str) -> Option<Key> {
        self.by_uid.get(uid).map(ObjectKey::to_proto)
    }

    /// Objects of one kind, of one namespace or of all, by namespace and name; only those behind `after`, to go on with a
    /// list that was cut there.
    pub fn list<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
        after: Option<&Key>,
    ) -> impl Iterator<Item = Object> + 'a {
        self.entries(kind, namespace, after)
            .map(|(key, record)| record.object(key))
    }

    /// How many objects of this kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.entries(kind, None, None).count()
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.entries(Kind::Node, None, None)
            .filter_map(|(_, record)| record.node())
    }

    /// Whether a node is there and is not called lost. A lease is worth something to a node only as long as this holds: what
    /// must not run twice is replaced only on nodes of which it does not.
    pub fn is_heard(&self, node: &str) -> bool {
        self.node(node).is_some_and(|node| !plan::is_lost(node))
    }

    /// A pod that must not run twice and may still run on a node that was deleted: until it is gone, no machine may take the
    /// node's name.
    pub fn may_still_run_on(&self, node: &str) -> Option<Key> {
        if self.node(node).is_some() {
            return None;
        }
        let mut pods = self.pod_records_on(node);
        let found = pods.find(|(_, pod)| pod.holds_its_place());
        found.map(|(key, _)| key.to_proto())
    }

    /// Pods that are bound to a node, as they are to be there.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = Pod> + 'a {
        self.pod_records_on(node).map(|(key, pod)| pod.assemble(key))
    }

    /// Pods that are bound to a node and whose desired form changed after a revision: what an agent that was told
    /// everything up to there has to hear. A change of the status alone, which the agent reported itself, is none.
    pub fn pods_changed_on<'a>(&'a self, node: &str, after: u64) -> impl Iterator<Item = Pod> + 'a {
        let pods = self
            .pod_records_on(node)
            .filter(move |(_, pod)| pod.desired_revision > after);
        pods.map(|(key, pod)| pod.assemble(key))
    }

    /// Uids of the pods that are bound to a node, with the revision of the last change that the node has to know of: what
    /// it holds with that resourceVersion or a later one is up to date.
    pub fn pod_versions_on<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a str, u64)> + 'a {
        self.pod_records_on(node)
            .map(|(_, pod)| (pod.uid.as_ref(), pod.desired_revision))
    }

    /// Objects that name this uid among their owners.
    pub fn owned_by<'a>(&'a self, uid: &str) -> impl Iterator<Item = Object> + 'a {
        self.owned(uid).map(|(key, record)| record.object(key))
    }

    /// Join tokens, with the hashes of their secrets.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.values().map(AsRef::as_ref)
    }

    /// One join token.
    pub fn token(&self, id: &str) -> Option<&Token> {
        self.tokens.get(id).map(AsRef::as_ref)
    }

    /// Certificates that are refused, by identity.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The answer to a request that was carried out or refused lately, by its request id.
    pub fn reply(&self, request_id: &str) -> Option<CommandReply> {
        self.replies.get(request_id)
    }

    /// What each manager's last apply of an object said, as `model::merge::said` has it.
    pub fn said(&self, key: &Key) -> Vec<(String, Object)> {
        let Some(key) = ObjectKey::from_proto(key) else {
            return Vec::new();
        };
        let said = self.said.of(&key);
        said.map(|(manager, said)| (manager.to_owned(), said)).collect()
    }

    /// What somebody made of an object, oldest first, as far as it is kept; also of one that is gone.
    pub fn history(&self, key: &Key) -> Vec<Past> {
        let key = ObjectKey::from_proto(key);
        key.map_or_else(Vec::new, |key| self.history.of(&key).collect())
    }

    /// The change that has this revision, if it is kept.
    pub fn past(&self, revision: u64) -> Option<Past> {
        self.history.at(revision)
    }

    pub(crate) fn entries<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
        after: Option<&Key>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Record)> + 'a {
        let first = Bound::Included(ObjectKey::new(kind, namespace.unwrap_or(""), ""));
        let start = match after {
            Some(after) => first_after(first, ObjectKey::new(kind, &after.namespace, &after.name)),
            None => first,
        };
        self.records
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| {
                let wanted = !kind.namespaced()
                    || namespace.is_none_or(|namespace| key.namespace.as_ref() == namespace);
                key.kind == kind && wanted
            })
    }

    pub(crate) fn owned<'a>(&'a self, uid: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Record)> + 'a {
        let keys = self.by_owner.get(uid).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.records.get(key)?)))
    }

    pub(crate) fn pod_records_on<'a>(
        &'a self,
        node: &str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<PodRecord>)> + 'a {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.records.get(key)?.pod()?)))
    }

    pub(crate) fn has_record(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.records.contains_key(&ObjectKey::new(kind, namespace, name))
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.records.get(&ObjectKey::new(Kind::Node, "", name))?.node()
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.records
            .get(&ObjectKey::new(Kind::Namespace, "", name))?
            .namespace()
    }

    /// The shared template of this content: the one that is there, or a new one.
    pub(crate) fn intern(&self, content: PodTemplateSpec) -> Arc<Template> {
        let template = Template::new(content);
        let same = self.templates.get(&template.hash).into_iter().flatten();
        let same = same
            .map(|(there, _)| there)
            .find(|there| there.content == template.content);
        same.cloned().unwrap_or_else(|| Arc::new(template))
    }

    /// Stores a record and keeps every index true.
    pub(crate) fn insert(&mut self, key: ObjectKey, record: Record) {
        // Most changes are of a kind that no index speaks of, and an index that is touched is copied.
        let known = self
            .records
            .get(&key)
            .is_some_and(|old| found_alike(old, &record));
        if !known {
            self.unindex(&key);
            self.index(&key, &record);
        }
        self.records.insert(key, record);
    }

    /// Takes a record away and keeps every index true.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<Record> {
        self.unindex(key);
        self.said.forget(key);
        self.records.remove(key)
    }

    fn index(&mut self, key: &ObjectKey, record: &Record) {
        let uid: Arc<str> = record.uid().into();
        self.ownerless.remove(&uid);
        self.by_uid.insert(uid, key.clone());
        for owner in record.owners() {
            let owner: Arc<str> = owner.uid.as_str().into();
            if !self.by_uid.contains_key(&owner) {
                self.ownerless.insert(owner.clone());
            }
            self.by_owner.entry(owner).or_default().insert(key.clone());
        }
        if record.deleting() {
            self.deleting.insert(key.clone());
        }
        if matches!(key.kind, Kind::Pod | Kind::ReplicaSet) && controller(record.owners()).is_none() {
            self.unmanaged.insert(key.clone());
        }
        if let Record::Pod(pod) = record {
            self.by_node
                .entry(pod.node.clone())
                .or_default()
                .insert(key.clone());
            let same = self.templates.entry(pod.template.hash).or_default();
            match same
                .iter_mut()
                .find(|(there, _)| Arc::ptr_eq(there, &pod.template))
            {
                Some((_, users)) => *users += 1,
                None => same.push((pod.template.clone(), 1)),
            }
        }
    }

    fn unindex(&mut self, key: &ObjectKey) {
        let Some(record) = self.records.get(key).cloned() else {
            return;
        };
        let uid: Arc<str> = record.uid().into();
        self.by_uid.remove(&uid);
        if self.by_owner.contains_key(&uid) {
            self.ownerless.insert(uid);
        }
        for owner in record.owners() {
            if drop_from(&mut self.by_owner, &owner.uid, key) {
                self.ownerless.remove(owner.uid.as_str());
            }
        }
        self.deleting.remove(key);
        self.unmanaged.remove(key);
        if let Record::Pod(pod) = &record {
            drop_from(&mut self.by_node, &pod.node, key);
            if let Some(same) = self.templates.get_mut(&pod.template.hash) {
                for (there, users) in same.iter_mut() {
                    if Arc::ptr_eq(there, &pod.template) {
                        *users -= 1;
                    }
                }
                same.retain(|(_, users)| *users > 0);
                if same.is_empty() {
                    self.templates.remove(&pod.template.hash);
                }
            }
        }
    }
}

/// Whether two records of one key are found in the same places.
fn found_alike(old: &Record, new: &Record) -> bool {
    let same = old.uid() == new.uid() && old.owners() == new.owners() && old.deleting() == new.deleting();
    same && match (old, new) {
        (Record::Pod(old), Record::Pod(new)) => {
            old.node == new.node && Arc::ptr_eq(&old.template, &new.template)
        }
        (Record::Whole(_), Record::Whole(_)) => true,
        _ => false,
    }
}

/// Takes `key` out of the set under `name`; whether that set is gone with it.
fn drop_from(sets: &mut OrdMap<Arc<str>, OrdSet<ObjectKey>>, name: &str, key: &ObjectKey) -> bool {
    let Some(set) = sets.get_mut(name) else {
        return true;
    };
    set.remove(key);
    let empty = set.is_empty();
    if empty {
        sets.remove(name);
    }
    empty
}

fn first_after(first: Bound<ObjectKey>, after: ObjectKey) -> Bound<ObjectKey> {
    match first {
        Bound::Included(first) if first > after => Bound::Included(first),
        _ => Bound::Excluded(after),
    }
}

impl Record {
    pub(crate) fn pod(&self) -> Option<&Arc<PodRecord>> {
        match self {
            Record::Pod(pod) => Some(pod),
            Record::Whole(_) => None,
        }
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        match self.whole()? {
            Any::Node(node) => Some(node),
            _ => None,
        }
    }

    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        match self.whole()? {
            Any::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    pub(crate) fn deployment(&self) -> Option<&Deployment> {
        match self.whole()? {
            Any::Deployment(deployment) => Some(deployment),
            _ => None,
        }
    }

    pub(crate) fn replica_set(&self) -> Option<&ReplicaSet> {
        match self.whole()? {
            Any::ReplicaSet(set) => Some(set),
            _ => None,
        }
    }

    fn whole(&self) -> Option<&Any> {
        match self {
            Record::Pod(_) => None,
            Record::Whole(object) => object.object.as_ref(),
        }
    }

    pub(crate) fn labels(&self) -> &std::collections::BTreeMap<String, String> {
        match self {
            Record::Pod(pod) => pod.template.labels(),
            Record::Whole(object) => &object::meta(object).labels,
        }
    }
}
