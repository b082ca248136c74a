//! Where pods go. Filter: the node is ready, not cordoned, has the labels, the ports and the room. Score: few pods of the
//! same owner first, then much room.
//!
//! Pods of one template are placed as a group: the nodes are filtered once, and each pod takes the best of an ordered set,
//! so that a run costs the pods plus the groups times the nodes.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Kind, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Bind, Command, Key};
use proto::v1::{Condition, ObjectMeta, Pod, PodStatus};

use crate::conditions;
use crate::key::ObjectKey;
use crate::plan::{BATCH_MAX, set_status, transaction};
use crate::record::{PodRecord, Template, controller, millis, timestamp};
use crate::store::State;
use table::{Misfit, Slot, Table};

/// How long a reason that only differs in its figures stays: pending pods must not write the log full.
const REASON_MS: i64 = 10_000;

/// A pod that no node can take now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The pod.
    pub pod: Key,
    /// Why, as `0 of 5 nodes fit: 3 lack memory (need 2Gi, most free 1Gi), 2 cordoned`.
    pub message: String,
}

/// Why some nodes do not take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReason {
    /// Their names, in order; empty when it is about the cluster as a whole.
    pub nodes: Vec<String>,
    /// The reason, as `lack memory (need 2Gi, most free 1Gi)`.
    pub message: String,
}

/// Pods of one template that wait for a node.
struct Group<'a> {
    template: &'a Arc<Template>,
    pods: Vec<(&'a ObjectKey, &'a PodRecord)>,
}

/// Commands that bind every pod that fits somewhere, and say of every other why it does not; the latter also as values.
pub fn commands(state: &State, now: i64) -> (Vec<Command>, Vec<Unplaced>) {
    let groups = waiting(state);
    if groups.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let mut table = Table::of(state);
    let (mut binds, mut reasons, mut unplaced) = (Vec::new(), Vec::new(), Vec::new());
    for group in &groups {
        let mut places = place(state, &mut table, group);
        let rest = group.pods.get(places.len()..).unwrap_or_default();
        let bound = group.pods.iter().zip(places.drain(..));
        binds.extend(bound.map(|((key, pod), node)| {
            Op::Bind(Bind {
                pod: Some(key.to_proto()),
                uid: pod.uid.as_ref().to_owned(),
                node,
            })
        }));
        if rest.is_empty() {
            continue;
        }
        let message = summary(&table.reasons(group.template), table.considered(group.template));
        for (key, pod) in rest {
            unplaced.push(Unplaced {
                pod: key.to_proto(),
                message: message.clone(),
            });
            reasons.extend(say(key, pod, &message, now));
        }
    }
    let commands = [binds, reasons].into_iter().flat_map(|operations| {
        let batches: Vec<Vec<Op>> = operations.chunks(BATCH_MAX).map(<[Op]>::to_vec).collect();
        batches
            .into_iter()
            .map(|batch| transaction(now, Vec::new(), batch))
    });
    (commands.collect(), unplaced)
}

/// Why each group of nodes does not take this pod. Empty when it is bound, ended or gone, or when a node takes it.
pub fn explain(state: &State, pod: &Key) -> Vec<NodeReason> {
    let key = ObjectKey::from_proto(pod).filter(|key| key.kind == Kind::Pod);
    let Some(record) = key.and_then(|key| state.records.get(&key)?.pod().cloned()) else {
        return Vec::new();
    };
    if record.bound() || !record.active() {
        return Vec::new();
    }
    let table = Table::of(state);
    if table.slots.iter().any(|slot| slot.takes(&record.template)) {
        return Vec::new();
    }
    table.reasons(&record.template)
}

/// Why a node that is there does not take a pod of this template now.
pub(crate) fn misfit(state: &State, node: &str, template: &Template) -> Option<String> {
    let slot = Slot::of(state, state.node(node)?, node);
    let misfit = slot.misfit(template)?;
    Some(tell(&misfit, &[&slot], template))
}

/// Pods that wait, oldest first, with those of their template.
fn waiting(state: &State) -> Vec<Group<'_>> {
    let mut pods: Vec<(&ObjectKey, &PodRecord)> = state
        .pod_records_on("")
        .map(|(key, pod)| (key, pod.as_ref()))
        .filter(|(_, pod)| pod.active())
        .collect();
    pods.sort_by_key(|(key, pod)| (millis(pod.created.as_ref()), *key));
    let mut groups: Vec<Group> = Vec::new();
    let mut places = BTreeMap::new();
    for (key, pod) in pods {
        let place = *places.entry(Arc::as_ptr(&pod.template)).or_insert_with(|| {
            groups.push(Group {
                template: &pod.template,
                pods: Vec::new(),
            });
            groups.len() - 1
        });
        groups[place].pods.push((key, pod));
    }
    groups
}

/// Nodes for the first pods of the group, as many as fit; they are taken in the table.
fn place(state: &State, table: &mut Table, group: &Group) -> Vec<String> {
    let siblings = siblings(state, group.template);
    let mut best = BTreeSet::new();
    for (index, slot) in table.slots.iter().enumerate() {
        if slot.takes(group.template) {
            let near = siblings.get(slot.name).copied().unwrap_or(0);
            best.insert((near, slot.used(), slot.pods, index));
        }
    }
    let mut places = Vec::new();
    while places.len() < group.pods.len() {
        let Some((near, _, _, index)) = best.pop_first() else {
            break;
        };
        let slot: &mut Slot = &mut table.slots[index];
        slot.take(&group.template.requests);
        places.push(slot.name.to_owned());
        if slot.takes(group.template) {
            best.insert((near + 1, slot.used(), slot.pods, index));
        }
    }
    places
}

/// How many pods of the same owner each node has.
fn siblings<'a>(state: &'a State, template: &Template) -> BTreeMap<&'a str, usize> {
    let mut count = BTreeMap::new();
    let Some(owner) = controller(template.owners()) else {
        return count;
    };
    for (_, record) in state.owned(&owner.uid) {
        if let Some(pod) = record.pod().filter(|pod| pod.active() && pod.bound()) {
            *count.entry(pod.node.as_ref()).or_default() += 1;
        }
    }
    count
}

fn summary(reasons: &[NodeReason], considered: usize) -> String {
    let parts: Vec<String> = reasons
        .iter()
        .map(|reason| match reason.nodes.len() {
            0 => reason.message.clone(),
            count => format!("{count} {}", reason.message),
        })
        .collect();
    match considered {
        0 => parts.join(", "),
        _ => format!("0 of {considered} nodes fit: {}", parts.join(", ")),
    }
}

/// The condition PodScheduled=False, when it says something new.
fn say(key: &ObjectKey, pod: &PodRecord, message: &str, now: i64) -> Option<Op> {
    let status = pod.status.decoded();
    if let Some(there) = conditions::get(&status.conditions, "PodScheduled")
        && there.status == "False"
    {
        let recent = now < millis(there.last_update_time.as_ref()).saturating_add(REASON_MS);
        if there.message == message || recent {
            return None;
        }
    }
    let condition = Condition {
        r#type: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: "Unschedulable".to_owned(),
        message: message.to_owned(),
        last_update_time: Some(timestamp(now)),
        ..Default::default()
    };
    let pod = Pod {
        metadata: Some(ObjectMeta {
            name: key.name.as_ref().to_owned(),
            namespace: key.namespace.as_ref().to_owned(),
            uid: pod.uid.as_ref().to_owned(),
            ..Default::default()
        }),
        status: Some(PodStatus {
            conditions: vec![condition],
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(set_status(object::from(pod), Vec::new()))
}

/// The misfits in the order in which they are told, with what is said of each.
fn tell(misfit: &Misfit, slots: &[&Slot], template: &Template) -> String {
    use crate::quantity::{show_bytes, show_cpu};
    let requests = &template.requests;
    let most = |of: fn(&Slot) -> i64| slots.iter().map(|slot| of(slot)).max().unwrap_or(0).max(0);
    match misfit {
        Misfit::NotReady => "not ready".to_owned(),
        Misfit::Cordoned => "cordoned".to_owned(),
        Misfit::Older => "with an agent too old for what the pod asks".to_owned(),
        Misfit::Label { key, value } => format!("without the label {key}={value}"),
        Misfit::Port { protocol, port } => format!("with host port {port}/{protocol} taken"),
        Misfit::Memory => format!(
            "lack memory (need {}, most free {})",
            show_bytes(requests.memory),
            show_bytes(most(|slot| slot.free_memory()))
        ),
        Misfit::Cpu => {
            format!(
                "lack cpu (need {}, most free {})",
                show_cpu(requests.cpu),
                show_cpu(most(|slot| slot.free_cpu()))
            )
        }
        Misfit::Pods => "full of pods".to_owned(),
    }
}
