//! Nodes: readiness from leases, and what becomes of the pods of a lost one.

use model::{Kind, object};
use proto::state::v1::Remove;
use proto::state::v1::operation::Operation as Op;
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Node, NodeStatus, Object, ObjectMeta, Pod, PodStatus};

use super::{Lease, Plan, World, fence, set_status, unchanged};
use crate::conditions;
use crate::key::ObjectKey;
use crate::record::{PodRecord, controller, millis};

/// Nodes that are lost within this time are lost at once: one cause, such as a switch or this controller's own network.
const AT_ONCE_MS: i64 = 60_000;

/// Reason of a pod that is not ready since its node is lost.
const LOST: &str = "NodeLost";
/// Reason of a node that is not ready since its agent is silent.
pub(crate) const SILENT: &str = "NodeStatusUnknown";

/// The verdict over all lost nodes.
enum Replacement {
    /// Pods of lost nodes are started elsewhere.
    Goes,
    /// Over half of the nodes went at once: more likely the network than the nodes, so nothing is moved.
    Paused { message: String },
}

impl Plan<'_> {
    pub(super) fn nodes(&mut self, world: &World) {
        let replacement = replacement(self.state.nodes(), world);
        let mut operations = Vec::new();
        let mut ends = Vec::new();
        let mut fenced = Vec::new();
        for node in self.state.nodes() {
            let name = node.metadata.as_ref().map_or("", |meta| meta.name.as_str());
            let Some(lease) = world.leases.get(name) else {
                continue;
            };
            operations.extend(readiness(node, *lease, &replacement));
            if let Lease::Lost { past_ms, .. } = *lease {
                // What must not run twice goes only while the node is called lost: before it is granted a lease again, it is
                // called ready, and a decision that comes late finds another node than this.
                let past_ms = if is_lost(node) { past_ms } else { 0 };
                let (sure, rest) = self.ended(name, past_ms);
                ends.extend(rest.filter_map(|(key, pod)| lost_pod(key, pod, &replacement)));
                let sure = sure.filter(|(_, pod)| goes(pod, &replacement));
                let sure: Vec<Op> = sure.map(|(key, pod)| remove(key, pod)).collect();
                let meta = node.metadata.as_ref();
                let version = meta.map_or("", |meta| meta.resource_version.as_str());
                let key = ObjectKey::new(Kind::Node, "", name);
                fenced.push((unchanged(key.to_proto(), version), sure));
            }
        }
        // Pods of nodes that were deleted: no agent will ever say that they are gone. Nobody joins under the name meanwhile.
        for (name, _) in self.state.by_node.iter().filter(|(name, _)| !name.is_empty()) {
            if self.state.node(name).is_none() {
                let past_ms = match world.leases.get(name.as_ref()) {
                    Some(Lease::Lost { past_ms, .. }) => *past_ms,
                    Some(Lease::Live) | None => 0,
                };
                let (sure, rest) = self.ended(name, past_ms);
                let rest = rest.filter(|(_, pod)| !pod.holds_its_place());
                ends.extend(rest.chain(sure).map(|(key, pod)| remove(key, pod)));
            }
        }
        self.propose_each(&[], operations);
        self.propose_each(&[], ends);
        for (node, ends) in fenced {
            self.propose_each(&[node], ends);
        }
    }

    /// Of the pods of a node whose lease ended so long ago: those that must not run twice and have ended for certain, and the
    /// others.
    fn ended(
        &self,
        node: &str,
        past_ms: i64,
    ) -> (
        impl Iterator<Item = (&ObjectKey, &PodRecord)>,
        impl Iterator<Item = (&ObjectKey, &PodRecord)>,
    ) {
        let sure = move |(_, pod): &(&ObjectKey, &PodRecord)| {
            pod.holds_its_place() && past_ms >= fence::ended_after(pod)
        };
        let pods = || {
            let pods = self.state.pod_records_on(node);
            pods.map(|(key, pod)| (key, pod.as_ref()))
                .filter(|(_, pod)| !pod.is_kept())
        };
        (pods().filter(sure), pods().filter(move |pod| !sure(pod)))
    }
}

fn replacement<'a>(nodes: impl Iterator<Item = &'a Node>, world: &World) -> Replacement {
    let (mut count, mut lost) = (0, Vec::new());
    for node in nodes {
        let name = node.metadata.as_ref().map_or("", |meta| meta.name.as_str());
        let Some(lease) = world.leases.get(name) else {
            continue;
        };
        count += 1;
        if let Lease::Lost { since, .. } = lease {
            // A new leader misses all silent nodes at the same time; what was committed knows better.
            let there = node
                .status
                .as_ref()
                .and_then(|status| conditions::get(&status.conditions, "Ready"));
            let committed = there.filter(|ready| ready.reason == SILENT);
            let committed = committed.map(|ready| millis(ready.last_transition_time.as_ref()));
            lost.push(committed.unwrap_or(*since));
        }
    }
    let Some(last) = lost.iter().max() else {
        return Replacement::Goes;
    };
    let at_once = lost
        .iter()
        .filter(|since| **since >= last.saturating_sub(AT_ONCE_MS))
        .count();
    // Those that were lost long before no longer count among the nodes.
    let before = count - (lost.len() - at_once);
    if at_once * 2 <= before {
        return Replacement::Goes;
    }
    let message = format!(
        "{at_once} of {before} nodes were lost at once; their pods stay until some are back or deleted"
    );
    Replacement::Paused { message }
}

/// What of a node's conditions has to change.
fn readiness(node: &Node, lease: Lease, replacement: &Replacement) -> Option<Op> {
    let there = node.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let condition = |kind: &str, status: &str, reason: &str, message: &str| Condition {
        r#type: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..Default::default()
    };
    let mut wanted = vec![match lease {
        Lease::Live => condition("Ready", "True", "AgentReady", "the agent answers"),
        Lease::Lost { .. } => {
            // Of a node that never joined it is said already why it is silent.
            let told = conditions::get(there, "Ready").filter(|ready| ready.reason == SILENT);
            let message = told.map_or("the agent stopped sending heartbeats", |ready| &ready.message);
            condition("Ready", "Unknown", SILENT, message)
        }
    }];
    let mut removed = Vec::new();
    match (lease, replacement) {
        (Lease::Lost { .. }, Replacement::Paused { message }) => {
            wanted.push(condition("ReplacementPaused", "True", "MassNodeLoss", message));
        }
        _ if conditions::get(there, "ReplacementPaused").is_some() => {
            removed.push("ReplacementPaused".to_owned())
        }
        _ => {}
    }
    wanted.retain(|wanted| {
        conditions::get(there, &wanted.r#type).is_none_or(|there| {
            (&there.status, &there.reason, &there.message)
                != (&wanted.status, &wanted.reason, &wanted.message)
        })
    });
    if wanted.is_empty() && removed.is_empty() {
        return None;
    }
    let meta = node.metadata.clone().unwrap_or_default();
    let object = Node {
        metadata: Some(ObjectMeta {
            name: meta.name,
            uid: meta.uid,
            ..Default::default()
        }),
        status: Some(NodeStatus {
            conditions: wanted,
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(set_status(object::from(object), removed))
}

/// Whether it is committed that a node is lost.
pub(crate) fn is_lost(node: &Node) -> bool {
    let conditions = node.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions::get(conditions, "Ready").is_some_and(|ready| ready.reason == SILENT)
}

/// Whether a pod on a node that is lost goes: one that something replaces does, and so does one that was to go anyway.
fn goes(pod: &PodRecord, replacement: &Replacement) -> bool {
    let replaced =
        controller(pod.template.owners()).is_some_and(|owner| owner.kind == Kind::ReplicaSet.as_str());
    let replaced = matches!(replacement, Replacement::Goes) && replaced && !pod.status.finished;
    pod.deleted.is_some() || replaced
}

/// A pod on a node that is lost goes at once, or stays and is not ready: a bare one, since nobody would start it again, and one
/// that must not run twice, until it has ended for certain.
fn lost_pod(key: &ObjectKey, pod: &PodRecord, replacement: &Replacement) -> Option<Op> {
    if pod.is_kept() {
        return None;
    }
    if goes(pod, replacement) && !pod.holds_its_place() {
        return Some(remove(key, pod));
    }
    let told = || {
        let conditions = pod.status.decoded().conditions;
        conditions::get(&conditions, "Ready").is_some_and(|ready| ready.reason == LOST)
    };
    if pod.status.finished || told() {
        return None;
    }
    let unknown = match pod.holds_its_place() {
        true => "the pod must not run twice, and nothing follows it before it has ended for certain",
        false => "what became of the pod is not known",
    };
    let lost = Condition {
        r#type: "Ready".to_owned(),
        status: "False".to_owned(),
        reason: LOST.to_owned(),
        message: format!("node {} is lost; {unknown}", pod.node),
        ..Default::default()
    };
    let pod = Pod {
        metadata: Some(ObjectMeta {
            uid: pod.uid.as_ref().to_owned(),
            ..name_of(key)
        }),
        status: Some(PodStatus {
            conditions: vec![lost],
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(set_status(
        Object {
            object: Some(Any::Pod(pod)),
        },
        Vec::new(),
    ))
}

fn remove(key: &ObjectKey, pod: &PodRecord) -> Op {
    Op::Remove(Remove {
        key: Some(key.to_proto()),
        uid: pod.uid.as_ref().to_owned(),
    })
}

fn name_of(key: &ObjectKey) -> ObjectMeta {
    ObjectMeta {
        name: key.name.as_ref().to_owned(),
        namespace: key.namespace.as_ref().to_owned(),
        ..Default::default()
    }
}
