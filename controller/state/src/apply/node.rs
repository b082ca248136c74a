//! A node joins: it gets the next free range of pod addresses, or comes back to its own.

use std::collections::BTreeMap;

use prost::Message;
use proto::state::v1::NodeJoin;
use proto::v1::object::Object as Any;
use proto::v1::{Node, NodeSpec, NodeSystemInfo, Object, ObjectMeta};

use super::{Reason, Refusal, Trial, refuse};
use crate::cidr::Ranges;
use crate::key::ObjectKey;
use crate::record::Record;
use crate::{NODE_LABELS, OBJECT_BYTES_MAX};
use model::{Kind, object};

/// What a node runs until it says so itself.
const OPERATING_SYSTEM: &str = "linux";

impl Trial {
    pub(super) fn join(&mut self, join: &NodeJoin) -> Result<(), Refusal> {
        let Some(joining) = &join.node else {
            return refuse(Reason::Invalid, "the node is missing");
        };
        let meta = joining.metadata.clone().unwrap_or_default();
        if meta.name.is_empty() || meta.name.contains('/') || joining.encoded_len() > OBJECT_BYTES_MAX {
            return refuse(Reason::Invalid, "the node has no name or is too large");
        }
        let Some(settings) = self.state.settings.clone() else {
            return refuse(Reason::Conflict, "the cluster has no settings yet");
        };
        let key = ObjectKey::new(Kind::Node, "", &meta.name);
        let info = joining
            .status
            .as_ref()
            .and_then(|status| status.node_info.clone())
            .unwrap_or_default();
        if let Some(Record::Whole(there)) = self.state.records.get(&key).cloned() {
            let mut object = there.as_ref().clone();
            let labels = &mut object::meta_mut(&mut object).labels;
            labels.extend(meta.labels);
            label(labels, &meta.name, &info);
            if object != *there {
                self.store(key.clone(), object);
            }
            self.show(&key);
            return Ok(());
        }
        if let Some(pod) = self.state.may_still_run_on(&meta.name) {
            let (namespace, pod) = (pod.namespace, pod.name);
            let message = format!(
                "node {} was deleted, and its pod {namespace}/{pod}, which must not run twice, may still run there: it is \
                 gone within lease and grace period",
                meta.name
            );
            return refuse(Reason::Conflict, message);
        }
        if meta.uid.is_empty() || self.state.by_uid.contains_key(meta.uid.as_str()) {
            return refuse(Reason::Invalid, format!("{key} needs a uid of its own"));
        }
        let ranges = match Ranges::of(&settings) {
            Ok(ranges) => ranges,
            Err(message) => return refuse(Reason::Invalid, message),
        };
        let taken = self
            .state
            .nodes()
            .filter_map(|node| Some(node.spec.as_ref()?.pod_cidr.as_str()));
        let Some(pod_cidr) = ranges.free(taken) else {
            let message = format!("every range of podCIDR {} is taken by a node", settings.pod_cidr);
            return refuse(Reason::Forbidden, message);
        };
        let mut labels = meta.labels;
        label(&mut labels, &meta.name, &info);
        let unschedulable = joining.spec.as_ref().is_some_and(|spec| spec.unschedulable);
        let mut status = joining.status.clone().unwrap_or_default();
        status.conditions.clear();
        let node = Node {
            metadata: Some(ObjectMeta {
                name: meta.name,
                uid: meta.uid,
                generation: 1,
                creation_timestamp: Some(self.time),
                labels,
                annotations: meta.annotations,
                ..Default::default()
            }),
            spec: Some(NodeSpec {
                pod_cidr,
                unschedulable,
            }),
            status: Some(status),
            ..Default::default()
        };
        let mut object = Object {
            object: Some(Any::Node(node)),
        };
        object::set_type_meta(&mut object);
        self.store(key.clone(), object);
        self.show(&key);
        Ok(())
    }
}

/// The labels that every node has; nobody else sets them.
pub(super) fn label(labels: &mut BTreeMap<String, String>, name: &str, info: &NodeSystemInfo) {
    let os = if info.operating_system.is_empty() {
        OPERATING_SYSTEM
    } else {
        &info.operating_system
    };
    for (label, value) in NODE_LABELS.into_iter().zip([name, os, &info.architecture]) {
        // The architecture is known once the agent has reported.
        if !value.is_empty() {
            labels.insert(label.to_owned(), value.to_owned());
        }
    }
}
