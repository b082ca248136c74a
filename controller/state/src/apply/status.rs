//! Status: what agents observed, and what controllers know.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::{NodeStatusUpdate, PodStatusUpdate, SetStatus, StatusBatch};
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Object, PodStatus};

use super::{Reason, Refusal, Trial, node, refuse};
use crate::key::ObjectKey;
use crate::record::{PodRecord, Record, Status, is_finished};
use crate::{NODE_OWN_CONDITIONS, STATUS_BYTES_MAX, conditions};
use model::{Kind, object};

/// The phases that there are.
const PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];

impl Trial {
    /// Nothing in a batch is refused: what no longer fits (the pod is gone, or bound elsewhere) is out of date and skipped.
    pub(super) fn status_batch(&mut self, batch: &StatusBatch) {
        for update in &batch.pods {
            self.pod_status(update);
        }
        for update in &batch.nodes {
            self.node_status(update);
        }
    }

    fn pod_status(&mut self, update: &PodStatusUpdate) {
        let Some(key) = self.state.by_uid.get(update.uid.as_str()).cloned() else {
            return;
        };
        let Some(Record::Pod(pod)) = self.state.records.get(&key).cloned() else {
            return;
        };
        if !pod.bound() || pod.node.as_ref() != update.node {
            return;
        }
        if update.gone && pod.deleted.is_some() {
            match pod.template.finalizers() {
                [] => self.erase(&key),
                _ => self.finish_pod(&key, &pod, pod.as_ref().clone()),
            }
            return;
        }
        let Some(status) = &update.status else { return };
        // The session bounds it too; a status that is larger would make the log grow without use.
        if status.encoded_len() > STATUS_BYTES_MAX {
            return;
        }
        let old = pod.status.decoded();
        let mut new = status.clone();
        let known = PHASES.contains(&new.phase.as_str());
        if !known || (pod.status.finished && !is_finished(&new.phase)) {
            new.phase.clone_from(&old.phase);
        }
        if new.qos_class.is_empty() {
            new.qos_class.clone_from(&old.qos_class);
        }
        // The scheduler's, not the agent's.
        new.conditions
            .retain(|condition| condition.r#type != "PodScheduled");
        let mut merged: Vec<Condition> = conditions::get(&old.conditions, "PodScheduled")
            .cloned()
            .into_iter()
            .collect();
        merged.extend(conditions::replaced(&old.conditions, &new.conditions, &self.time));
        new.conditions = merged;
        self.set_pod_status(key, &pod, &new);
    }

    fn set_pod_status(&mut self, key: ObjectKey, pod: &Arc<PodRecord>, status: &PodStatus) {
        let status = Status::new(status);
        if status != pod.status {
            let mut changed = pod.as_ref().clone();
            changed.status = status;
            self.store_pod_status(key, changed);
        }
    }

    fn node_status(&mut self, update: &NodeStatusUpdate) {
        let key = ObjectKey::new(Kind::Node, "", &update.name);
        let Some(Record::Whole(object)) = self.state.records.get(&key).cloned() else {
            return;
        };
        let Some(status) = &update.status else { return };
        if status.encoded_len() > STATUS_BYTES_MAX {
            return;
        }
        let mut changed = object.as_ref().clone();
        let Some(Any::Node(node)) = &mut changed.object else {
            return;
        };
        let old = node.status.take().unwrap_or_default();
        let mut new = status.clone();
        // Those that the leader decides by leases are not the agent's.
        let own = |condition: &Condition| NODE_OWN_CONDITIONS.contains(&condition.r#type.as_str());
        new.conditions.retain(|condition| !own(condition));
        let mut merged: Vec<Condition> = old
            .conditions
            .iter()
            .filter(|condition| own(condition))
            .cloned()
            .collect();
        merged.extend(conditions::replaced(&old.conditions, &new.conditions, &self.time));
        new.conditions = merged;
        if let Some(info) = &new.node_info {
            node::label(
                &mut node.metadata.get_or_insert_default().labels,
                &update.name,
                info,
            );
        }
        node.status = Some(new);
        self.store_changed(key, &object, changed);
    }

    fn store_changed(&mut self, key: ObjectKey, old: &Object, new: Object) {
        if new != *old {
            self.store(key, new);
        }
    }

    pub(super) fn set_status(&mut self, set: &SetStatus) -> Result<(), Refusal> {
        let Some(given) = &set.object else {
            return refuse(Reason::Invalid, "the status has no object");
        };
        let Some(key) = ObjectKey::of(given) else {
            return refuse(Reason::Invalid, "the object is empty");
        };
        if given.encoded_len() > STATUS_BYTES_MAX {
            return refuse(Reason::Invalid, format!("the status of {key} is too large"));
        }
        let record = self.find(&key, &object::meta(given).uid)?;
        let time = self.time;
        // What stays and what was given, by condition; `removed` are taken away.
        let merge = |old: &[Condition], new: &[Condition]| {
            let mut merged = conditions::with(old, new, &time);
            merged.retain(|condition| !set.remove_conditions.contains(&condition.r#type));
            merged
        };
        let old = match record {
            Record::Pod(pod) => {
                let Some(Any::Pod(given)) = &given.object else {
                    return refuse(Reason::Invalid, "no pod");
                };
                let given = given.status.clone().unwrap_or_default();
                let mut status = pod.status.decoded();
                status.conditions = merge(&status.conditions, &given.conditions);
                if !given.reason.is_empty() {
                    status.reason = given.reason;
                    status.message = given.message;
                }
                self.set_pod_status(key, &pod, &status);
                return Ok(());
            }
            Record::Whole(object) => object,
        };
        let mut new = old.as_ref().clone();
        match (&mut new.object, &given.object) {
            (Some(Any::Deployment(deployment)), Some(Any::Deployment(given))) => {
                let before = deployment.status.take().unwrap_or_default();
                let mut status = given.status.clone().unwrap_or_default();
                status.conditions = conditions::replaced(&before.conditions, &status.conditions, &time);
                deployment.status = Some(status);
            }
            (Some(Any::ReplicaSet(replica_set)), Some(Any::ReplicaSet(given))) => {
                let before = replica_set.status.take().unwrap_or_default();
                let mut status = given.status.clone().unwrap_or_default();
                status.conditions = conditions::replaced(&before.conditions, &status.conditions, &time);
                replica_set.status = Some(status);
            }
            (Some(Any::Node(node)), Some(Any::Node(given))) => {
                let given = given.status.as_ref().map_or(&[][..], |status| &status.conditions);
                let status = node.status.get_or_insert_default();
                status.conditions = merge(&status.conditions, given);
            }
            (Some(Any::Namespace(namespace)), Some(Any::Namespace(given))) => {
                let given = given.status.as_ref().map_or(&[][..], |status| &status.conditions);
                let status = namespace.status.get_or_insert_default();
                status.conditions = merge(&status.conditions, given);
            }
            _ => return refuse(Reason::Invalid, format!("{key} has no status")),
        }
        self.store_changed(key, &old, new);
        Ok(())
    }
}
