//! Objects and commands as tests write them.

use std::collections::BTreeMap;

use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Bind, ClusterSettings, Command, DeleteOp, Key, NodeJoin, NodeStatusUpdate, Operation, PodStatusUpdate,
    Put, RaiseLevel, SetStatus, StatusBatch, Transaction,
};
use proto::v1::object::Object as Any;
use proto::v1::{
    Condition, ConfigMap, Container, Deployment, DeploymentSpec, LabelSelector, Namespace, Node, NodeStatus,
    Object, ObjectMeta, OwnerReference, Pod, PodSpec, PodStatus, PodTemplateSpec, Quantity,
    ResourceRequirements,
};
use state::plan::{World, commands};
use state::{Outcome, State, invariant};

pub(crate) fn time(millis: i64) -> Timestamp {
    Timestamp {
        seconds: millis / 1000,
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap(),
    }
}

pub(crate) fn command(now: i64, kind: Body) -> Command {
    Command {
        time: Some(time(now)),
        level: 1,
        kind: Some(kind),
        ..Default::default()
    }
}

pub(crate) fn transaction(now: i64, operations: Vec<Op>) -> Command {
    let operations = operations
        .into_iter()
        .map(|operation| Operation {
            operation: Some(operation),
        })
        .collect();
    command(
        now,
        Body::Transaction(Transaction {
            operations,
            ..Default::default()
        }),
    )
}

pub(crate) fn put(object: Object) -> Op {
    Op::Put(Put { object: Some(object) })
}

pub(crate) fn delete(kind: &str, name: &str) -> Op {
    Op::Delete(DeleteOp {
        key: Some(key(kind, name)),
        ..Default::default()
    })
}

pub(crate) fn key(kind: &str, name: &str) -> Key {
    let namespace = if matches!(kind, "Namespace" | "Node") {
        ""
    } else {
        "default"
    };
    Key {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

pub(crate) fn settings() -> ClusterSettings {
    ClusterSettings {
        cluster_id: "c1".to_owned(),
        pod_cidr: "10.244.0.0/16".to_owned(),
        service_cidr: "10.96.0.0/16".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        node_prefix: 24,
    }
}

/// A cluster with its settings and the namespace default.
pub(crate) fn cluster() -> State {
    let mut state = State::new();
    applied(&state.apply(&command(0, Body::Settings(settings()))));
    state
}

/// A uid that looks like one, from a name.
pub(crate) fn uid(name: &str) -> String {
    format!("uid-{name}")
}

pub(crate) fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: uid(name),
        ..Default::default()
    }
}

pub(crate) fn namespace(name: &str) -> Object {
    let metadata = ObjectMeta {
        namespace: String::new(),
        ..meta(name)
    };
    model::object::from(Namespace {
        metadata: Some(metadata),
        ..Default::default()
    })
}

pub(crate) fn config(name: &str, value: &str) -> Object {
    let data = [("key".to_owned(), value.to_owned())].into();
    model::object::from(ConfigMap {
        metadata: Some(meta(name)),
        data,
        ..Default::default()
    })
}

pub(crate) fn pod_spec(image: &str, requests: &[(&str, &str)]) -> PodSpec {
    let requests = requests.iter().map(|(name, text)| {
        (
            (*name).to_owned(),
            Quantity {
                text: (*text).to_owned(),
            },
        )
    });
    PodSpec {
        containers: vec![Container {
            name: "main".to_owned(),
            image: image.to_owned(),
            resources: Some(ResourceRequirements {
                requests: requests.collect(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        restart_policy: "Always".to_owned(),
        ..Default::default()
    }
}

pub(crate) fn pod(name: &str) -> Pod {
    Pod {
        metadata: Some(meta(name)),
        spec: Some(pod_spec("web:1", &[])),
        ..Default::default()
    }
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Deployment {
    let labels: BTreeMap<String, String> = [("app".to_owned(), name.to_owned())].into();
    Deployment {
        metadata: Some(meta(name)),
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
                spec: Some(pod_spec(image, &[])),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn join(now: i64, name: &str) -> Command {
    let metadata = ObjectMeta {
        namespace: String::new(),
        ..meta(name)
    };
    command(
        now,
        Body::NodeJoin(NodeJoin {
            node: Some(Node {
                metadata: Some(metadata),
                ..Default::default()
            }),
        }),
    )
}

pub(crate) fn node_status(now: i64, name: &str, amounts: &[(&str, &str)]) -> Command {
    let allocatable = amounts.iter().map(|(name, text)| {
        (
            (*name).to_owned(),
            Quantity {
                text: (*text).to_owned(),
            },
        )
    });
    let status = NodeStatus {
        allocatable: allocatable.collect(),
        ..Default::default()
    };
    let nodes = vec![NodeStatusUpdate {
        name: name.to_owned(),
        status: Some(status),
    }];
    command(
        now,
        Body::Status(StatusBatch {
            nodes,
            ..Default::default()
        }),
    )
}

pub(crate) fn report(now: i64, pod: &str, node: &str, status: PodStatus) -> Command {
    report_by_uid(now, &uid(pod), node, Some(status), false)
}

pub(crate) fn gone(now: i64, pod: &str, node: &str) -> Command {
    report_by_uid(now, &uid(pod), node, None, true)
}

pub(crate) fn report_by_uid(
    now: i64,
    uid: &str,
    node: &str,
    status: Option<PodStatus>,
    gone: bool,
) -> Command {
    let pods = vec![PodStatusUpdate {
        uid: uid.to_owned(),
        node: node.to_owned(),
        status,
        gone,
    }];
    command(
        now,
        Body::Status(StatusBatch {
            pods,
            ..Default::default()
        }),
    )
}

pub(crate) fn condition(kind: &str, status: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status: status.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn running(ready: bool) -> PodStatus {
    let ready = condition("Ready", if ready { "True" } else { "False" });
    PodStatus {
        phase: "Running".to_owned(),
        conditions: vec![ready],
        ..Default::default()
    }
}

pub(crate) fn bind(pod: &str, node: &str) -> Op {
    Op::Bind(Bind {
        pod: Some(key("Pod", pod)),
        uid: uid(pod),
        node: node.to_owned(),
    })
}

#[track_caller]
pub(crate) fn applied(outcome: &Outcome) {
    assert!(outcome.applied(), "{:?}", outcome.reply);
}

/// The reason and text of a refusal.
#[track_caller]
pub(crate) fn refused(outcome: &Outcome) -> (String, String) {
    assert!(outcome.changes.is_empty(), "a refused command changes nothing");
    match &outcome.reply.reply {
        Some(Reply::Refused(refused)) => (refused.reason.clone(), refused.message.clone()),
        other => panic!("not refused: {other:?}"),
    }
}

/// Applies operations that are to succeed.
#[track_caller]
pub(crate) fn run(state: &mut State, now: i64, operations: Vec<Op>) -> Outcome {
    let outcome = state.apply(&transaction(now, operations));
    applied(&outcome);
    invariant::check(state).unwrap();
    outcome
}

#[track_caller]
pub(crate) fn get(state: &State, kind: &str, name: &str) -> Object {
    state
        .get(&key(kind, name))
        .unwrap_or_else(|| panic!("{kind} {name} does not exist"))
}

pub(crate) fn get_pod(state: &State, name: &str) -> Pod {
    match get(state, "Pod", name).object {
        Some(Any::Pod(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

/// A cluster with a node n1 that has room, and a pod bound to it.
pub(crate) fn cluster_with_bound_pod(name: &str) -> State {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    run(&mut state, 1000, vec![put(model::object::from(pod(name)))]);
    run(&mut state, 2000, vec![bind(name, "n1")]);
    state
}

pub(crate) fn bytes(state: &State) -> Vec<u8> {
    state.encode().flatten().collect()
}

/// As the leader does once it hears the node's agent.
pub(crate) fn make_ready(state: &mut State, name: &str) {
    let ready = Node {
        metadata: Some(ObjectMeta {
            namespace: String::new(),
            ..meta(name)
        }),
        status: Some(NodeStatus {
            conditions: vec![condition("Ready", "True")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let set = SetStatus {
        object: Some(model::object::from(ready)),
        ..Default::default()
    };
    run(state, 0, vec![Op::SetStatus(set)]);
}

/// Every member knows that much from now on.
pub(crate) fn raise(state: &mut State, level: u32) {
    applied(&state.apply(&command(1, Body::RaiseLevel(RaiseLevel { level }))));
}

/// Carries out what the plans say until they say nothing.
pub(crate) fn settle(state: &mut State) {
    for _ in 0..50 {
        let commands = commands(state, 100_000, &World::default());
        if commands.is_empty() {
            return;
        }
        for command in commands {
            state.apply(&command);
            invariant::check(state).unwrap();
        }
    }
    panic!("the plans never rest");
}

/// A ConfigMap that belongs to another one.
pub(crate) fn owned(name: &str, owner: &str) -> Object {
    let mut object = config(name, "1");
    model::object::meta_mut(&mut object).owner_references = vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: owner.to_owned(),
        uid: uid(owner),
        ..Default::default()
    }];
    object
}
