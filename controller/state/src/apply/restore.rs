//! A backup comes back. Its parts are put aside as they come; the last one puts what they hold into the place of a state
//! that is empty yet, or is refused. So nobody ever sees half of it, and an attempt that breaks off leaves the cluster empty.
//!
//! What is of the old machines does not come back, and what the new ones have made meanwhile stays:
//!
//! | of the backup | becomes |
//! |---|---|
//! | objects, history, what was said by applies | come back as they are, with their uids and resourceVersions |
//! | settings, join tokens, answers to requests | stay those of the new cluster |
//! | Nodes | labels, annotations and cordon; no status, until the machine joins under the name |
//! | Pods that run or wait | wait for a node, with no status |
//! | Pods that have ended | are on no node and have ended: nobody starts them again |
//! | Pods that were being deleted | are gone: so are their containers |
//! | the revision | jumps by [`REVISION_JUMP`]: what any watch of the old cluster has seen is too old now |

use std::fmt;
use std::sync::{Arc, LazyLock};

use imbl::Vector;
use proto::Timestamp;
use proto::state::v1::{Restore, StoredRestore};
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Node, NodeStatus};

use super::put::first_status;
use super::{Reason, Refusal, Trial, refuse};
use crate::cidr::Ranges;
use crate::key::ObjectKey;
use crate::plan::SILENT;
use crate::rbac::defaults;
use crate::record::{PodRecord, Record, millis};
use crate::snapshot::REVISION_MAX;
use crate::store::State;
use crate::{NODE_LABELS, REQUEST_ID_BYTES_MAX, invariant};
use model::{Kind, default};

/// How far the revision jumps: more changes than the old cluster can have made since its backup (etcd's operators are told
/// the same figure, for a week at 1,500 writes a second).
pub const REVISION_JUMP: u64 = 1_000_000_000;
/// Bytes that are put aside: several times the state of the largest cluster. Every member holds them until the last part.
pub const RESTORE_BYTES_MAX: usize = 1 << 30;
/// An attempt of which nothing was heard for so long is over, and what it put aside is dropped. Milliseconds.
const ABANDONED_MS: i64 = 10 * 60_000;
/// What a part takes beside its bytes.
const PART_BYTES: usize = 64;

/// The parts of one attempt, so far.
#[derive(Clone)]
pub(crate) struct Stage {
    id: String,
    /// Of its last command.
    time: Timestamp,
    parts: Vector<Arc<[u8]>>,
    bytes: usize,
}

impl Stage {
    fn begin(id: &str, time: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            time,
            parts: Vector::new(),
            bytes: 0,
        }
    }

    /// False when it is too much.
    fn push(&mut self, records: &[u8]) -> bool {
        self.bytes += records.len() + PART_BYTES;
        self.parts.push_back(records.into());
        self.bytes <= RESTORE_BYTES_MAX
    }

    /// For a snapshot.
    pub(crate) fn stored(self) -> impl Iterator<Item = StoredRestore> + Send {
        let Self { id, time, parts, .. } = self;
        parts.into_iter().map(move |records| StoredRestore {
            id: id.clone(),
            time: Some(time),
            records: records.to_vec(),
        })
    }

    /// The next part of a snapshot; false when it does not fit to those before.
    pub(crate) fn take(stage: &mut Option<Arc<Stage>>, stored: &StoredRestore) -> bool {
        let begun =
            stage.get_or_insert_with(|| Arc::new(Stage::begin(&stored.id, stored.time.unwrap_or_default())));
        begun.id == stored.id && Arc::make_mut(begun).push(&stored.records)
    }
}

/// How much, not what: Secrets are among it.
impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Stage({}: {} parts, {} bytes)",
            self.id,
            self.parts.len(),
            self.bytes
        )
    }
}

impl State {
    /// What of it goes into a backup: all but join tokens, which would let machines in, and answers to requests, which
    /// nobody repeats in another cluster.
    pub fn for_backup(&self) -> State {
        State {
            tokens: Default::default(),
            replies: Default::default(),
            stage: None,
            ..self.clone()
        }
    }

    /// Why nothing can be restored into this state: it has something that a new cluster does not have.
    pub fn occupied(&self) -> Option<String> {
        let mut objects = self.records.keys().filter(|key| !is_of_a_new_cluster(key));
        let first = objects.next()?;
        let more = match objects.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "the cluster is not empty: it has {first}{more}. A backup goes into a new cluster, before anything is applied to it"
        ))
    }
}

/// What `init` and the leader make by themselves, and nodes that have joined.
fn is_of_a_new_cluster(key: &ObjectKey) -> bool {
    static ROLES: LazyLock<Vec<ObjectKey>> =
        LazyLock::new(|| defaults::objects().iter().filter_map(ObjectKey::of).collect());
    match key.kind {
        Kind::Node => true,
        Kind::Namespace => key.name.as_ref() == default::NAMESPACE,
        Kind::ServiceAccount => {
            key.namespace.as_ref() == default::NAMESPACE && key.name.as_ref() == default::SERVICE_ACCOUNT
        }
        _ => ROLES.contains(key),
    }
}

impl Trial {
    /// What an attempt that is over has put aside.
    pub(super) fn drop_abandoned(&mut self) {
        let now = millis(Some(&self.time));
        let over = |stage: &Arc<Stage>| now > millis(Some(&stage.time)).saturating_add(ABANDONED_MS);
        if self.state.stage.as_ref().is_some_and(over) {
            self.touched = true;
            self.state.stage = None;
        }
    }

    pub(super) fn restore(&mut self, restore: &Restore) -> Result<(), Refusal> {
        if restore.id.is_empty() || restore.id.len() > REQUEST_ID_BYTES_MAX {
            return refuse(Reason::Invalid, "a restore needs an id, which is not too long");
        }
        if restore.abandon {
            if self
                .state
                .stage
                .as_ref()
                .is_some_and(|stage| stage.id == restore.id)
            {
                self.state.stage = None;
            }
            return Ok(());
        }
        if self.state.settings.is_none() {
            return refuse(Reason::Conflict, "the cluster has no settings yet");
        }
        if let Some(message) = self.state.occupied() {
            return refuse(Reason::Conflict, message);
        }
        let mut stage = match self.state.stage.take() {
            _ if restore.part == 0 => Stage::begin(&restore.id, self.time),
            Some(stage) if stage.id == restore.id => Arc::unwrap_or_clone(stage),
            _ => {
                return refuse(
                    Reason::Conflict,
                    "another restore was begun, or this one was given up",
                );
            }
        };
        if stage.parts.len() as u64 != restore.part {
            return refuse(Reason::Conflict, "a part of the backup is missing");
        }
        stage.time = self.time;
        if !stage.push(&restore.records) {
            let message = format!("the backup has more than {RESTORE_BYTES_MAX} bytes");
            return refuse(Reason::Invalid, message);
        }
        if !restore.last {
            self.state.stage = Some(Arc::new(stage));
            return Ok(());
        }
        match State::decode(&stage.parts) {
            Ok(backup) => self.replace_by(backup),
            Err(cause) => refuse(Reason::Invalid, format!("it is no whole backup: {cause}")),
        }
    }

    fn replace_by(&mut self, backup: State) -> Result<(), Refusal> {
        if backup.settings.is_none() {
            return refuse(Reason::Invalid, "it is a backup of no cluster");
        }
        if backup.level() > self.state.level() {
            return refuse(
                Reason::Invalid,
                format!(
                    "it has schema level {}, and not every member of the cluster knows more than {}",
                    backup.level(),
                    self.state.level()
                ),
            );
        }
        let newest = backup.revision.max(self.state.revision);
        let revision = newest.checked_add(REVISION_JUMP);
        let Some(revision) = revision.filter(|revision| *revision < REVISION_MAX / 2) else {
            return refuse(Reason::Invalid, "its revision is senseless");
        };
        let new = std::mem::replace(&mut self.state, backup);
        self.state.level = new.level;
        self.state.settings = new.settings.clone();
        self.state.tokens = new.tokens.clone();
        self.state.replies = new.replies.clone();
        self.state.stage = None;
        self.state.revision = revision;
        self.restore_pods();
        self.restore_nodes(&new)?;
        self.replaced = true;
        // Nobody vouches for the bytes but whoever sent them.
        match invariant::check(&self.state) {
            Ok(()) => Ok(()),
            Err(violation) => refuse(
                Reason::Invalid,
                format!("it is a backup of no state: {violation}"),
            ),
        }
    }

    /// No pod is on a node: what the old nodes ran, nobody here knows.
    fn restore_pods(&mut self) {
        let pods = self.state.entries(Kind::Pod, None, None);
        let pods: Vec<(ObjectKey, Arc<PodRecord>)> = pods
            .filter_map(|(key, record)| Some((key.clone(), record.pod()?.clone())))
            .filter(|(_, pod)| pod.bound() || pod.deleted.is_some())
            .collect();
        for (key, pod) in pods {
            if pod.deleted.is_some() && pod.template.finalizers().is_empty() {
                self.state.remove(&key);
                continue;
            }
            let mut pod = Arc::unwrap_or_clone(pod);
            pod.node = "".into();
            if !pod.status.finished {
                pod.status = first_status(pod.template.spec().unwrap_or(&Default::default()));
            }
            self.state.revision += 1;
            pod.resource_version = self.state.revision;
            pod.desired_revision = self.state.revision;
            self.state.insert(key, Record::Pod(Arc::new(pod)));
        }
    }

    /// Nodes that have joined the new cluster stay as they are, with what people had set on those of their names. The
    /// others wait for their machines, with their ranges of addresses as far as these are free.
    fn restore_nodes(&mut self, new: &State) -> Result<(), Refusal> {
        let settings = self.state.settings.clone().unwrap_or_default();
        let ranges = Ranges::of(&settings).or_else(|message| refuse(Reason::Invalid, message))?;
        let nodes = |state: &State| -> Vec<(ObjectKey, Node)> {
            let nodes = state.entries(Kind::Node, None, None);
            nodes
                .filter_map(|(key, record)| Some((key.clone(), record.node()?.clone())))
                .collect()
        };
        let joined = nodes(new);
        let mut taken: Vec<String> = joined.iter().map(|(_, node)| range(node)).collect();
        let (mut kept, mut moved) = (Vec::new(), Vec::new());
        for (key, node) in nodes(&self.state) {
            if new.records.contains_key(&key) {
                continue;
            }
            let range = range(&node);
            if ranges.has(&range) && !taken.contains(&range) {
                taken.push(range);
                kept.push((key, node));
            } else {
                moved.push((key, node));
            }
        }
        for (_, node) in &mut moved {
            let Some(range) = ranges.free(taken.iter().map(String::as_str)) else {
                let message = format!(
                    "podCIDR {} has no range for each node of the backup",
                    settings.pod_cidr
                );
                return refuse(Reason::Forbidden, message);
            };
            taken.push(range.clone());
            node.spec.get_or_insert_default().pod_cidr = range;
        }
        for (key, mut node) in kept.into_iter().chain(moved) {
            node.status = Some(NodeStatus {
                conditions: vec![self.not_joined()],
                ..Default::default()
            });
            self.set_node(key, node);
        }
        for (key, node) in joined {
            let before = self.state.records.get(&key).and_then(Record::node).cloned();
            let node = before.map_or_else(|| node.clone(), |before| with_settings_of(node.clone(), before));
            self.set_node(key, node);
        }
        Ok(())
    }

    fn not_joined(&self) -> Condition {
        Condition {
            r#type: "Ready".to_owned(),
            status: "Unknown".to_owned(),
            reason: SILENT.to_owned(),
            message: "the node has not joined since the cluster was restored".to_owned(),
            last_transition_time: Some(self.time),
            ..Default::default()
        }
    }

    fn set_node(&mut self, key: ObjectKey, mut node: Node) {
        self.state.revision += 1;
        node.metadata.get_or_insert_default().resource_version = self.state.revision.to_string();
        let object = proto::v1::Object {
            object: Some(Any::Node(node)),
        };
        self.state.insert(key, Record::Whole(Arc::new(object)));
    }
}

fn range(node: &Node) -> String {
    node.spec
        .as_ref()
        .map(|spec| spec.pod_cidr.clone())
        .unwrap_or_default()
}

/// What people set on a node, on the one that has joined under its name.
fn with_settings_of(mut node: Node, before: Node) -> Node {
    let before_meta = before.metadata.unwrap_or_default();
    let meta = node.metadata.get_or_insert_default();
    for (label, value) in before_meta.labels {
        if !NODE_LABELS.contains(&label.as_str()) {
            meta.labels.insert(label, value);
        }
    }
    meta.annotations.extend(before_meta.annotations);
    let cordoned = before.spec.is_some_and(|spec| spec.unschedulable);
    node.spec.get_or_insert_default().unschedulable |= cordoned;
    node
}
