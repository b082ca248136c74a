//! What is said of objects that are not as they should be.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Bind, ClusterSettings, Command, DeleteOp, NodeJoin, NodeStatusUpdate, Operation, PodStatusUpdate, Put,
    SetStatus, StatusBatch, Transaction,
};
use proto::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, Deployment,
    DeploymentSpec, LabelSelector, Namespace, Node, NodeStatus, ObjectMeta, Pod, PodSpec, PodStatus,
    PodTemplateSpec, Quantity, ResourceRequirements,
};
use state::{plan, schedule};

use super::*;
use crate::clock::timestamp;

const NOW_MS: i64 = 1_700_000_000_000;

struct Cluster(State);

impl Cluster {
    /// With one ready node of 1 GiB.
    fn new() -> Self {
        let mut cluster = Self(State::new());
        cluster.tell(Body::Settings(ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }));
        let node = Node {
            metadata: Some(ObjectMeta {
                name: "n1".to_owned(),
                uid: "uid-n1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        cluster.tell(Body::NodeJoin(NodeJoin { node: Some(node) }));
        let quantity = |text: &str| Quantity {
            text: text.to_owned(),
        };
        let status = NodeStatus {
            allocatable: [
                ("cpu".to_owned(), quantity("2")),
                ("memory".to_owned(), quantity("1Gi")),
            ]
            .into(),
            ..Default::default()
        };
        cluster.tell(Body::Status(StatusBatch {
            nodes: vec![NodeStatusUpdate {
                name: "n1".to_owned(),
                status: Some(status),
            }],
            ..Default::default()
        }));
        cluster.node_is("True", "AgentReady", "the agent answers");
        cluster
    }

    fn tell(&mut self, kind: Body) {
        let outcome = self.0.apply(&Command {
            time: Some(timestamp(NOW_MS)),
            level: 1,
            kind: Some(kind),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
    }

    fn transaction(&mut self, operation: Op) {
        self.tell(Body::Transaction(Transaction {
            operations: vec![Operation {
                operation: Some(operation),
            }],
            ..Default::default()
        }));
    }

    fn node_is(&mut self, ready: &str, reason: &str, message: &str) {
        let node = Node {
            metadata: Some(ObjectMeta {
                name: "n1".to_owned(),
                ..Default::default()
            }),
            status: Some(NodeStatus {
                conditions: vec![Condition {
                    r#type: "Ready".to_owned(),
                    status: ready.to_owned(),
                    reason: reason.to_owned(),
                    message: message.to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        self.transaction(Op::SetStatus(SetStatus {
            object: Some(object::from(node)),
            ..Default::default()
        }));
    }

    fn put(&mut self, mut object: Object) {
        let meta = object::meta_mut(&mut object);
        meta.uid = format!("uid-{}", meta.name);
        model::default::object(&mut object);
        self.transaction(Op::Put(Put { object: Some(object) }));
    }

    fn settle(&mut self) {
        for _ in 0..5 {
            let mut commands = plan::commands(&self.0, NOW_MS, &plan::World::default());
            commands.extend(schedule::commands(&self.0, NOW_MS).0);
            for command in commands {
                self.0.apply(&command);
            }
        }
    }

    fn report(&mut self, pod: &str, status: PodStatus) {
        let uid = object::meta(&self.get(Kind::Pod, pod)).uid.clone();
        self.tell(Body::Status(StatusBatch {
            pods: vec![PodStatusUpdate {
                uid,
                node: "n1".to_owned(),
                status: Some(status),
                gone: false,
            }],
            ..Default::default()
        }));
    }

    /// A bound pod that reports this state of its container.
    fn running(&mut self, name: &str, container: ContainerStatus) {
        self.put(pod(name, "64Mi"));
        self.transaction(Op::Bind(Bind {
            pod: Some(object::key(&pod(name, ""))),
            uid: String::new(),
            node: "n1".to_owned(),
        }));
        let status = PodStatus {
            phase: "Running".to_owned(),
            container_statuses: vec![ContainerStatus {
                name: "main".to_owned(),
                ..container
            }],
            ..Default::default()
        };
        self.report(name, status);
    }

    fn get(&self, kind: Kind, name: &str) -> Object {
        self.0.get(&object::key_of(kind, "default", name)).unwrap()
    }

    fn why(&self, kind: Kind, name: &str) -> Vec<Reason> {
        self.why_with(kind, name, Vec::new())
    }

    fn why_with(&self, kind: Kind, name: &str, events: Vec<Event>) -> Vec<Reason> {
        let look = Look {
            state: &self.0,
            events: &|_: &str| events.clone(),
            now_ms: NOW_MS + 60_000,
        };
        look.reasons(&self.get(kind, name))
    }
}

fn pod(name: &str, memory: &str) -> Object {
    let requests = [(
        "memory".to_owned(),
        Quantity {
            text: memory.to_owned(),
        },
    )];
    object::from(Pod {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "hello:1".to_owned(),
                resources: Some(ResourceRequirements {
                    requests: requests.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn waiting(reason: &str, message: &str) -> ContainerStatus {
    ContainerStatus {
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: reason.to_owned(),
                message: message.to_owned(),
                next_try_at: Some(timestamp(NOW_MS + 70_000)),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_pod_that_fits_nowhere_says_what_each_node_lacks() {
    let mut cluster = Cluster::new();
    cluster.put(pod("huge", "900Ti"));
    cluster.settle();
    let reasons = cluster.why(Kind::Pod, "huge");
    assert_eq!(reasons[0].reason, "Unschedulable");
    assert!(reasons[0].message.contains("0 of 1 nodes fit"), "{reasons:?}");
    assert_eq!(reasons[1].severity, "error");
    assert!(reasons[1].message.starts_with("n1: lack memory"), "{reasons:?}");
    assert!(reasons[1].hint.contains("resources.requests"), "{reasons:?}");
}

#[test]
fn a_crash_loop_tells_the_last_end_and_the_next_try() {
    let mut cluster = Cluster::new();
    let mut crashing = waiting("CrashLoopBackOff", "back-off 10s restarting failed container");
    crashing.last_state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 3,
            reason: "Error".to_owned(),
            message: "the disk is on fire".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    cluster.running("crash", crashing);
    let reasons = cluster.why(Kind::Pod, "crash");
    assert_eq!(
        (reasons[0].severity.as_str(), reasons[0].reason.as_str()),
        ("error", "CrashLoopBackOff")
    );
    for part in ["exit code 3", "the disk is on fire", "next try in 10s"] {
        assert!(reasons[0].message.contains(part), "{part}: {reasons:?}");
    }
    assert!(
        reasons[0].hint.contains("ctl logs crash -c main --previous"),
        "{reasons:?}"
    );
}

#[test]
fn a_missing_image_and_its_remedy_are_named() {
    let mut cluster = Cluster::new();
    cluster.running(
        "absent",
        waiting("ErrImagePull", "127.0.0.1:1 refused the connection"),
    );
    let reasons = cluster.why(Kind::Pod, "absent");
    assert!(reasons[0].message.contains("127.0.0.1:1"), "{reasons:?}");
    assert!(reasons[0].hint.contains("ctl image import"), "{reasons:?}");
}

#[test]
fn a_failing_probe_is_told_with_its_last_warning() {
    let mut cluster = Cluster::new();
    let unready = ContainerStatus {
        state: Some(ContainerState {
            running: Some(ContainerStateRunning::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    cluster.running("slow", unready);
    let object = cluster.get(Kind::Pod, "slow");
    let message = "Readiness probe failed: HTTP 503".to_owned();
    let event = crate::events::about(&object, "Warning", "Unhealthy", message, "agent", NOW_MS);
    let reasons = cluster.why_with(Kind::Pod, "slow", vec![event]);
    assert_eq!(
        (reasons[0].severity.as_str(), reasons[0].reason.as_str()),
        ("waiting", "NotReady")
    );
    assert_eq!(reasons[1].reason, "Unhealthy");
    assert!(reasons[1].message.contains("HTTP 503"), "{reasons:?}");
}

#[test]
fn a_weak_isolation_is_an_error() {
    let mut cluster = Cluster::new();
    cluster.running("weak", ContainerStatus::default());
    let status = PodStatus {
        phase: "Running".to_owned(),
        conditions: vec![Condition {
            r#type: "Isolated".to_owned(),
            status: "False".to_owned(),
            message: "pids: expected 100, observed max".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    cluster.report("weak", status);
    let reasons = cluster.why(Kind::Pod, "weak");
    assert_eq!(
        (reasons[0].severity.as_str(), reasons[0].reason.as_str()),
        ("error", "NotIsolated")
    );
    assert!(reasons[0].message.contains("pids"), "{reasons:?}");
}

#[test]
fn a_lost_node_comes_before_what_its_pods_say() {
    let mut cluster = Cluster::new();
    cluster.running("web", waiting("ContainerCreating", ""));
    cluster.node_is(
        "Unknown",
        "NodeStatusUnknown",
        "the agent stopped sending heartbeats",
    );
    let reasons = cluster.why(Kind::Pod, "web");
    assert_eq!(reasons[0].subject, "node/n1");
    assert_eq!(reasons[1].severity, "waiting");
    let node = cluster.why(Kind::Node, "n1");
    assert!(node[0].message.contains("heartbeats"), "{node:?}");
}

#[test]
fn a_deletion_that_waits_says_how_long_it_may() {
    let mut cluster = Cluster::new();
    cluster.running("polite", ContainerStatus::default());
    cluster.transaction(Op::Delete(DeleteOp {
        key: Some(object::key(&pod("polite", ""))),
        ..Default::default()
    }));
    let reasons = cluster.why(Kind::Pod, "polite");
    // Asked for a minute ago, with 30 s.
    assert_eq!(
        (reasons[0].severity.as_str(), reasons[0].reason.as_str()),
        ("error", "Terminating")
    );
    assert!(reasons[0].hint.contains("--force"), "{reasons:?}");
}

#[test]
fn a_deployment_tells_the_reasons_of_its_pods_once() {
    let mut cluster = Cluster::new();
    let labels = [("app".to_owned(), "web".to_owned())];
    let Some(Any::Pod(template)) = pod("", "900Ti").object else {
        unreachable!()
    };
    cluster.put(object::from(Deployment {
        metadata: Some(ObjectMeta {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        }),
        spec: Some(DeploymentSpec {
            replicas: Some(3),
            selector: Some(LabelSelector {
                match_labels: labels.clone().into(),
                ..Default::default()
            }),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels.into(),
                    ..Default::default()
                }),
                spec: template.spec,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }));
    cluster.settle();
    let reasons = cluster.why(Kind::Deployment, "web");
    let unschedulable: Vec<&Reason> = reasons.iter().filter(|it| it.reason == "Unschedulable").collect();
    assert_eq!(unschedulable.len(), 1, "{reasons:?}");
    assert!(
        unschedulable[0].message.ends_with("(and 2 more pods)"),
        "{reasons:?}"
    );
    assert!(reasons.iter().any(|it| it.reason == "Unavailable"), "{reasons:?}");
}

#[test]
fn a_namespace_that_goes_names_what_is_left() {
    let mut cluster = Cluster::new();
    cluster.put(object::from(Namespace {
        metadata: Some(ObjectMeta {
            name: "old".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }));
    let mut there = pod("last", "1Mi");
    object::meta_mut(&mut there).namespace = "old".to_owned();
    cluster.put(there);
    cluster.transaction(Op::Delete(DeleteOp {
        key: Some(object::key_of(Kind::Namespace, "", "old")),
        ..Default::default()
    }));
    let reasons = cluster.why(Kind::Namespace, "old");
    assert!(reasons[0].message.contains("1 pods"), "{reasons:?}");
}

#[test]
fn of_what_is_as_it_should_be_that_is_said() {
    let cluster = Cluster::new();
    let reasons = cluster.why(Kind::Node, "n1");
    assert_eq!((reasons.len(), reasons[0].severity.as_str()), (1, "info"));
}

#[test]
fn what_is_kept_by_finalizers_says_whose() {
    let mut cluster = Cluster::new();
    let mut kept = pod("kept", "");
    object::meta_mut(&mut kept).finalizers = vec!["example.com/backup".to_owned()];
    let key = object::key(&kept);
    cluster.put(kept);
    cluster.transaction(Op::Delete(DeleteOp {
        key: Some(key),
        ..Default::default()
    }));
    let reasons = cluster.why(Kind::Pod, "kept");
    let told = reasons
        .iter()
        .find(|reason| reason.message.contains("example.com/backup"));
    assert_eq!(
        told.map(|reason| reason.reason.as_str()),
        Some("Terminating"),
        "{reasons:?}"
    );
}
