//! What people are told of the leader's steps, as Kubernetes' controllers and scheduler name it. Pure.

use model::{Kind, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Bind, Command, CreatePods, Key, Put, Remove, Scale, SetStatus, command};
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Event, Object, ObjectMeta, Pod, ReplicaSet};
use state::State;

use crate::events::about;

/// Pods that one command creates or deletes of one owner are told one by one up to here; of the rest the number.
const EACH_MAX: usize = 10;

const CONTROLLER: &str = "controller";
const SCHEDULER: &str = "scheduler";

/// The events of a command that was carried out on `before`.
pub(super) fn events(before: &State, command: &Command, now_ms: i64) -> Vec<Event> {
    let Some(command::Kind::Transaction(transaction)) = &command.kind else {
        return Vec::new();
    };
    let mut told = Told {
        before,
        now_ms,
        events: Vec::new(),
        deleted: Vec::new(),
    };
    for operation in &transaction.operations {
        match &operation.operation {
            Some(Op::Bind(bind)) => told.bind(bind),
            Some(Op::CreatePods(create)) => told.create(create),
            Some(Op::Delete(delete)) => told.delete(delete.key.as_ref()),
            Some(Op::Scale(scale)) => told.scale(scale),
            Some(Op::Put(put)) => told.put(put),
            // The leader's loop puts; people apply, and see the answer.
            Some(Op::Apply(_)) => {}
            Some(Op::SetStatus(set)) => told.status(set),
            Some(Op::Remove(remove)) => told.remove(remove),
            None => {}
        }
    }
    told.deletions();
    told.events
}

struct Told<'a> {
    before: &'a State,
    now_ms: i64,
    events: Vec<Event>,
    /// Pods with the owner that deletes them.
    deleted: Vec<(Object, String)>,
}

impl Told<'_> {
    fn tell(&mut self, object: &Object, kind: &str, reason: &str, message: String, component: &str) {
        let event = about(object, kind, reason, message, component, self.now_ms);
        self.events.push(event);
    }

    fn normal(&mut self, object: &Object, reason: &str, message: String) {
        self.tell(object, "Normal", reason, message, CONTROLLER);
    }

    fn find(&self, key: Option<&Key>) -> Option<Object> {
        self.before.get(key?)
    }

    fn bind(&mut self, bind: &Bind) {
        let Some(pod) = self.find(bind.pod.as_ref()) else {
            return;
        };
        let meta = object::meta(&pod);
        let message = format!(
            "Successfully assigned {}/{} to {}",
            meta.namespace, meta.name, bind.node
        );
        self.tell(&pod, "Normal", "Scheduled", message, SCHEDULER);
    }

    fn create(&mut self, create: &CreatePods) {
        let Some(owner) = self.find(create.owner.as_ref()) else {
            return;
        };
        let names = create.pods.iter().map(|pod| pod.name.clone()).collect();
        self.pods(&owner, "SuccessfulCreate", "Created", names);
    }

    fn pods(&mut self, owner: &Object, reason: &str, verb: &str, names: Vec<String>) {
        let more = names.len().saturating_sub(EACH_MAX);
        for name in names.into_iter().take(EACH_MAX) {
            self.normal(owner, reason, format!("{verb} pod: {name}"));
        }
        if more > 0 {
            self.normal(owner, reason, format!("{verb} {more} more pods"));
        }
    }

    fn delete(&mut self, key: Option<&Key>) {
        let Some(pod) = self.find(key).and_then(object::into::<Pod>) else {
            return;
        };
        let Some(meta) = pod.metadata else { return };
        let name = meta.name.clone();
        if let Some(owner) = self.owner(&meta) {
            self.deleted.push((owner, name));
        }
    }

    fn deletions(&mut self) {
        let mut deleted = std::mem::take(&mut self.deleted);
        while let Some((owner, name)) = deleted.pop() {
            let uid = object::meta(&owner).uid.clone();
            let mut names = vec![name];
            deleted.retain(|(other, name)| {
                let same = object::meta(other).uid == uid;
                if same {
                    names.push(name.clone());
                }
                !same
            });
            self.pods(&owner, "SuccessfulDelete", "Deleted", names);
        }
    }

    fn owner(&self, meta: &ObjectMeta) -> Option<Object> {
        let owner = meta
            .owner_references
            .iter()
            .find(|owner| owner.controller == Some(true))?;
        self.before.by_uid(&owner.uid)
    }

    fn scale(&mut self, scale: &Scale) {
        let Some(set) = self.find(scale.key.as_ref()).and_then(object::into::<ReplicaSet>) else {
            return;
        };
        let from = replicas(&set);
        if let Some(meta) = set.metadata {
            self.scaled(&meta, from, scale.replicas);
        }
    }

    fn scaled(&mut self, set: &ObjectMeta, from: i32, to: i32) {
        let direction = match from.cmp(&to) {
            std::cmp::Ordering::Less => "up",
            std::cmp::Ordering::Greater => "down",
            std::cmp::Ordering::Equal => return,
        };
        if let Some(owner) = self.owner(set) {
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name);
            self.normal(&owner, "ScalingReplicaSet", message);
        }
    }

    /// A new revision of a Deployment comes with its first replicas.
    fn put(&mut self, put: &Put) {
        let Some(set) = put.object.as_ref().and_then(object::of::<ReplicaSet>) else {
            return;
        };
        let Some(meta) = &set.metadata else { return };
        let key = Key {
            kind: Kind::ReplicaSet.as_str().to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        };
        let before = self.find(Some(&key)).and_then(object::into::<ReplicaSet>);
        let from = before.as_ref().map_or(0, replicas);
        self.scaled(meta, from, replicas(set));
    }

    fn status(&mut self, set: &SetStatus) {
        let Some(given) = &set.object else { return };
        let conditions: Vec<Condition> = match &given.object {
            Some(Any::Node(node)) => node.status.as_ref().map(|status| status.conditions.clone()),
            Some(Any::Pod(pod)) => pod.status.as_ref().map(|status| status.conditions.clone()),
            _ => None,
        }
        .unwrap_or_default();
        let kind = object::try_kind(given);
        // Of the object only name and uid are given, which is what an event shows.
        for condition in conditions {
            let text = condition.message.clone();
            match (kind, condition.r#type.as_str(), condition.status.as_str()) {
                (Some(Kind::Pod), "PodScheduled", "False") => {
                    self.tell(given, "Warning", "FailedScheduling", text, SCHEDULER);
                }
                (Some(Kind::Pod), "Ready", "False") => {
                    self.tell(given, "Warning", "NodeNotReady", text, CONTROLLER)
                }
                (Some(Kind::Node), "Ready", "True") => {
                    let message = format!("Node {} is ready: {text}", object::meta(given).name);
                    self.normal(given, "NodeReady", message);
                }
                (Some(Kind::Node), "Ready", _) => {
                    let message = format!("Node {} is not ready: {text}", object::meta(given).name);
                    self.tell(given, "Warning", "NodeNotReady", message, CONTROLLER);
                }
                (Some(Kind::Node), "ReplacementPaused", "True") => {
                    self.tell(given, "Warning", "ReplacementPaused", text, CONTROLLER);
                }
                _ => {}
            }
        }
    }

    /// Pods that nobody can end any more: their node is lost or was deleted.
    fn remove(&mut self, remove: &Remove) {
        let Some(pod) = self.find(remove.key.as_ref()) else {
            return;
        };
        if let Some(node) = object::of::<Pod>(&pod).and_then(|pod| Some(pod.spec.as_ref()?.node_name.clone()))
            && !node.is_empty()
        {
            let message = format!("Removed the pod: its node {node} is lost or was deleted");
            self.tell(&pod, "Warning", "NodeLost", message, CONTROLLER);
        }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::state::v1::{
        ClusterSettings, NodeJoin, NodeStatusUpdate, Operation, StatusBatch, Transaction,
    };
    use proto::v1::{
        Container, Deployment, DeploymentSpec, LabelSelector, Node, NodeStatus, PodSpec, PodTemplateSpec,
        Quantity,
    };
    use state::plan::{Lease, World};
    use state::{plan, schedule};

    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    struct Leader {
        state: State,
        world: World,
        now: i64,
    }

    impl Leader {
        fn new() -> Self {
            let mut leader = Self {
                state: State::new(),
                world: World::default(),
                now: NOW,
            };
            leader.apply(command::Kind::Settings(ClusterSettings {
                cluster_id: "c".to_owned(),
                pod_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/16".to_owned(),
                cluster_domain: "cluster.local".to_owned(),
                node_prefix: 24,
            }));
            leader
        }

        fn apply(&mut self, kind: command::Kind) {
            let command = Command {
                kind: Some(kind),
                ..Default::default()
            };
            assert!(self.state.apply(&command).applied());
        }

        fn join(&mut self, name: &str) {
            let metadata = ObjectMeta {
                name: name.to_owned(),
                uid: name.to_owned(),
                ..Default::default()
            };
            let node = Node {
                metadata: Some(metadata),
                ..Default::default()
            };
            self.apply(command::Kind::NodeJoin(NodeJoin { node: Some(node) }));
            let allocatable = [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")].map(|(name, text)| {
                let quantity = Quantity {
                    text: text.to_owned(),
                };
                (name.to_owned(), quantity)
            });
            let status = NodeStatus {
                allocatable: allocatable.into(),
                ..Default::default()
            };
            self.apply(command::Kind::Status(StatusBatch {
                nodes: vec![NodeStatusUpdate {
                    name: name.to_owned(),
                    status: Some(status),
                }],
                pods: Vec::new(),
            }));
            self.world.leases.insert(name.to_owned(), Lease::Live);
        }

        fn deploy(&mut self, replicas: i32) {
            let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
            let deployment = Deployment {
                metadata: Some(ObjectMeta {
                    name: "web".to_owned(),
                    namespace: "default".to_owned(),
                    uid: "web".to_owned(),
                    ..Default::default()
                }),
                spec: Some(DeploymentSpec {
                    replicas: Some(replicas),
                    selector: Some(LabelSelector {
                        match_labels: labels.clone(),
                        ..Default::default()
                    }),
                    template: Some(PodTemplateSpec {
                        metadata: Some(ObjectMeta {
                            labels,
                            ..Default::default()
                        }),
                        spec: Some(PodSpec {
                            containers: vec![Container {
                                name: "main".to_owned(),
                                image: "web:1".to_owned(),
                                ..Default::default()
                            }],
                            ..Default::default()
                        }),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let put = Op::Put(Put {
                object: Some(object::from(deployment)),
            });
            self.apply(command::Kind::Transaction(Transaction {
                operations: vec![Operation { operation: Some(put) }],
                ..Default::default()
            }));
        }

        /// What is told until nothing follows, as (kind, reason, message).
        fn run(&mut self) -> Vec<(String, String, String)> {
            let mut told = Vec::new();
            for _ in 0..10 {
                self.now += 1000;
                let commands = plan::commands(&self.state, self.now, &self.world);
                self.carry_out(commands, &mut told);
                let commands = schedule::commands(&self.state, self.now).0;
                self.carry_out(commands, &mut told);
            }
            told
        }

        fn carry_out(&mut self, commands: Vec<Command>, told: &mut Vec<(String, String, String)>) {
            for command in commands {
                let before = self.state.clone();
                if self.state.apply(&command).applied() {
                    told.extend(events(&before, &command, self.now).into_iter().map(|event| {
                        let about = event.involved_object.unwrap_or_default();
                        (about.kind, event.reason, event.message)
                    }));
                }
            }
        }
    }

    fn reasons<'a>(told: &'a [(String, String, String)], kind: &str) -> Vec<&'a str> {
        let of_kind = told.iter().filter(|(of, _, _)| of == kind);
        of_kind.map(|(_, reason, _)| reason.as_str()).collect()
    }

    #[test]
    fn a_deployment_is_told_as_kubernetes_tells_it() {
        let mut leader = Leader::new();
        leader.deploy(2);
        let told = leader.run();
        assert_eq!(reasons(&told, "Deployment"), ["ScalingReplicaSet"]);
        assert!(told[0].2.starts_with("Scaled up replica set web-") && told[0].2.ends_with(" from 0 to 2"));
        assert_eq!(reasons(&told, "ReplicaSet"), ["SuccessfulCreate"; 2]);
        assert_eq!(reasons(&told, "Pod"), ["FailedScheduling"; 2], "{told:?}");
        leader.join("n1");
        leader.now += 60_000;
        let told = leader.run();
        assert_eq!(reasons(&told, "Node"), ["NodeReady"]);
        assert_eq!(reasons(&told, "Pod"), ["Scheduled"; 2]);
        let assigned = told.iter().find(|(_, reason, _)| reason == "Scheduled").unwrap();
        assert!(
            assigned.2.starts_with("Successfully assigned default/web-") && assigned.2.ends_with(" to n1")
        );
        leader.deploy(1);
        let told = leader.run();
        assert_eq!(reasons(&told, "Deployment"), ["ScalingReplicaSet"]);
        assert_eq!(reasons(&told, "ReplicaSet"), ["SuccessfulDelete"]);
    }

    #[test]
    fn of_many_pods_the_number_is_told() {
        let mut leader = Leader::new();
        leader.deploy(300);
        let told = leader.run();
        assert_eq!(reasons(&told, "ReplicaSet").len(), EACH_MAX + 1);
        assert!(
            told.iter()
                .any(|(_, _, message)| message == "Created 290 more pods")
        );
    }

    #[test]
    fn a_lost_node_and_what_it_had_are_told() {
        let mut leader = Leader::new();
        for name in ["n1", "n2", "n3"] {
            leader.join(name);
        }
        leader.deploy(3);
        leader.run();
        let lost = Lease::Lost {
            since: leader.now,
            past_ms: 0,
        };
        leader.world.leases.insert("n1".to_owned(), lost);
        let told = leader.run();
        assert_eq!(reasons(&told, "Node"), ["NodeNotReady"]);
        assert!(reasons(&told, "Pod").contains(&"NodeLost"), "{told:?}");
    }
}
