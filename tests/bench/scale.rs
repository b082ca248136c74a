//! What 150,000 pods on 5,000 nodes cost a member: memory, a snapshot written and read, the commands that made them.
//!
//! The state is the controller's own crate in this process: machines for so many agents are not at hand. Each pod is of a
//! ReplicaSet of 10,000, bound, and reported running with a ready container and an address.

use std::fs;
use std::time::{Duration, Instant};

use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Bind, ClusterSettings, Command, CreatePods, Key, NewPod, NodeJoin, Operation, PodStatusUpdate, Put,
    StatusBatch, Transaction,
};
use proto::v1::{
    Condition, Container, ContainerStatus, Node, Object, ObjectMeta, PodSpec, PodStatus, PodTemplateSpec,
    ReplicaSet, ReplicaSetSpec, object,
};
use state::State;

const PODS: usize = 150_000;
const NODES: usize = 5_000;
/// Pods of one ReplicaSet, and of one command.
const EACH: usize = 10_000;
/// Of a pod with all that belongs to it, in bytes.
const MEMORY_BUDGET: f64 = 2048.0;
/// From the snapshot's bytes to the state.
const READ_BUDGET: Duration = Duration::from_secs(3);

fn main() {
    let mut state = State::new();
    carry_out(
        &mut state,
        Body::Settings(ClusterSettings {
            cluster_id: "scale".to_owned(),
            pod_cidr: "10.0.0.0/8".to_owned(),
            service_cidr: "172.16.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }),
    );
    // The account that every pod needs is made by the leader; here nobody leads.
    put(&mut state, account());
    for number in 0..NODES {
        carry_out(
            &mut state,
            Body::NodeJoin(NodeJoin {
                node: Some(node(number)),
            }),
        );
    }
    let before = resident();
    let begin = Instant::now();
    for set in 0..PODS / EACH {
        pods(&mut state, set);
    }
    let made = begin.elapsed();
    let a_pod = (resident() - before) / PODS as f64;

    let begin = Instant::now();
    let chunks: Vec<_> = state.encode().collect();
    let written = begin.elapsed();
    let bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let begin = Instant::now();
    let read = State::decode(chunks).expect("it was written a moment ago");
    let took = begin.elapsed();
    assert_eq!(read.count(model::Kind::Pod), PODS);
    println!(
        "scale                  {PODS} pods on {NODES} nodes: {a_pod:.0} bytes a pod (budget {MEMORY_BUDGET}); made in {:.1} s \
         ({:.0} us a pod: created, bound, running); snapshot of {} MiB written in {:.1} s, read in {:.1} s (budget {})",
        made.as_secs_f64(),
        made.as_secs_f64() * 1e6 / PODS as f64,
        bytes >> 20,
        written.as_secs_f64(),
        took.as_secs_f64(),
        READ_BUDGET.as_secs(),
    );
}

/// Memory of this process, in bytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .expect("VmRSS in kB");
    kib * 1024.0
}

fn carry_out(state: &mut State, kind: Body) {
    let outcome = state.apply(&Command {
        time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        level: state::SCHEMA_LEVEL,
        kind: Some(kind),
        ..Default::default()
    });
    assert!(outcome.applied(), "{:?}", outcome.reply);
}

fn operations(state: &mut State, operations: impl Iterator<Item = Op>) {
    let operations = operations.map(|operation| Operation {
        operation: Some(operation),
    });
    carry_out(
        state,
        Body::Transaction(Transaction {
            operations: operations.collect(),
            ..Default::default()
        }),
    );
}

fn put(state: &mut State, object: object::Object) {
    let object = Some(Object { object: Some(object) });
    operations(state, std::iter::once(Op::Put(Put { object })));
}

fn meta(name: String) -> ObjectMeta {
    ObjectMeta {
        uid: format!("{name:0>36}"),
        name,
        namespace: "default".to_owned(),
        ..Default::default()
    }
}

fn account() -> object::Object {
    object::Object::ServiceAccount(proto::v1::ServiceAccount {
        metadata: Some(meta("default".to_owned())),
        ..Default::default()
    })
}

fn node(number: usize) -> Node {
    Node {
        metadata: Some(ObjectMeta {
            namespace: String::new(),
            ..meta(node_name(number))
        }),
        ..Default::default()
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// A ReplicaSet with its pods, which run.
fn pods(state: &mut State, set: usize) {
    let labels = [("app".to_owned(), format!("app-{set}"))];
    let name = format!("app-{set}-5d4f8c7b9");
    let owner = ReplicaSet {
        metadata: Some(meta(name.clone())),
        spec: Some(ReplicaSetSpec {
            replicas: Some(EACH as i32),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels.into(),
                    ..Default::default()
                }),
                spec: Some(PodSpec {
                    containers: vec![Container {
                        name: "main".to_owned(),
                        image: "registry.example/app:1".to_owned(),
                        ..Default::default()
                    }],
                    service_account_name: "default".to_owned(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let uid = format!("{name:0>36}");
    put(state, object::Object::ReplicaSet(owner));
    let named: Vec<NewPod> = (0..EACH)
        .map(|number| {
            let name = format!("{name}-{number:05}");
            NewPod {
                uid: format!("{name:0>36}"),
                name,
            }
        })
        .collect();
    let create = CreatePods {
        owner: Some(key("ReplicaSet", &name)),
        uid,
        pods: named.clone(),
    };
    operations(state, std::iter::once(Op::CreatePods(create)));
    let place = |number: usize| node_name((set * EACH + number) % NODES);
    let binds = named.iter().enumerate().map(|(number, pod)| {
        Op::Bind(Bind {
            pod: Some(key("Pod", &pod.name)),
            uid: pod.uid.clone(),
            node: place(number),
        })
    });
    operations(state, binds);
    let reports = named.iter().enumerate().map(|(number, pod)| PodStatusUpdate {
        uid: pod.uid.clone(),
        node: place(number),
        status: Some(running(number)),
        gone: false,
    });
    carry_out(
        state,
        Body::Status(StatusBatch {
            pods: reports.collect(),
            nodes: Vec::new(),
        }),
    );
}

fn key(kind: &str, name: &str) -> Key {
    Key {
        kind: kind.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn running(number: usize) -> PodStatus {
    let since = Timestamp {
        seconds: 1_700_000_001,
        nanos: 0,
    };
    let condition = |name: &str| Condition {
        r#type: name.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(since),
        ..Default::default()
    };
    PodStatus {
        phase: "Running".to_owned(),
        pod_ip: format!("10.{}.{}.7", number / 250 % 250, number % 250),
        start_time: Some(since),
        conditions: [
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
            "Isolated",
        ]
        .map(condition)
        .into(),
        container_statuses: vec![ContainerStatus {
            name: "main".to_owned(),
            image: "registry.example/app:1".to_owned(),
            ready: true,
            started: Some(true),
            ..Default::default()
        }],
        ..Default::default()
    }
}
