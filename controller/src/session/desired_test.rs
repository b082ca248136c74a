//! Whatever happens to the state and to an agent, its differences bring it to what the state wants of its node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Kind, object};
use proptest::prelude::*;
use prost::Message;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Bind, ClusterSettings, Command, DeleteOp, Key, NodeJoin, Operation, PodStatusUpdate, Put, StatusBatch,
    Transaction,
};
use proto::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, EnvFromSource, Node, Object, ObjectMeta, Pod, PodSpec,
    PodStatus, Secret, SecretEnvSource, Volume,
};
use rpc::v1::{Desired, HeldPod, Peer};
use state::State;

use super::desired::{Known, Peers, look_up};

const NODE: &str = "n1";

fn command(kind: Body) -> Command {
    Command {
        level: 1,
        kind: Some(kind),
        ..Default::default()
    }
}

fn transaction(operation: Op) -> Command {
    let operation = Operation {
        operation: Some(operation),
    };
    command(Body::Transaction(Transaction {
        operations: vec![operation],
        ..Default::default()
    }))
}

fn put(object: Object) -> Command {
    transaction(Op::Put(Put { object: Some(object) }))
}

fn named(kind: &str, name: &str) -> Key {
    Key {
        kind: kind.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn delete(kind: &str, name: &str) -> Command {
    transaction(Op::Delete(DeleteOp {
        key: Some(named(kind, name)),
        ..Default::default()
    }))
}

/// Puts a pod and binds it.
fn place(state: &mut State, name: &str, uid: &str, node: &str, config_map: &str) {
    state.apply(&put(pod(name, uid, config_map)));
    state.apply(&transaction(Op::Bind(Bind {
        pod: Some(named("Pod", name)),
        uid: uid.to_owned(),
        node: node.to_owned(),
    })));
}

fn meta(name: &str, uid: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: uid.to_owned(),
        ..Default::default()
    })
}

fn pod(name: &str, uid: &str, config_map: &str) -> Object {
    let volume = Volume {
        name: "v".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    object::from(Pod {
        metadata: meta(name, uid),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "web:1".to_owned(),
                ..Default::default()
            }],
            volumes: vec![volume],
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn config_map(name: &str, uid: &str, value: &str) -> Object {
    object::from(ConfigMap {
        metadata: meta(name, uid),
        data: [("key".to_owned(), value.to_owned())].into(),
        ..Default::default()
    })
}

fn cluster() -> State {
    let mut state = State::new();
    state.apply(&command(Body::Settings(ClusterSettings {
        cluster_id: "c".to_owned(),
        pod_cidr: "10.244.0.0/16".to_owned(),
        service_cidr: "10.96.0.0/16".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        node_prefix: 24,
    })));
    for name in [NODE, "n2"] {
        let metadata = ObjectMeta {
            name: name.to_owned(),
            uid: name.to_owned(),
            ..Default::default()
        };
        let node = Node {
            metadata: Some(metadata),
            ..Default::default()
        };
        state.apply(&command(Body::NodeJoin(NodeJoin { node: Some(node) })));
    }
    state
}

/// What an agent makes of what it is told; forgets ConfigMaps that nothing of it uses.
#[derive(Default)]
struct Agent {
    revision: u64,
    pods: BTreeMap<String, Pod>,
    config_maps: BTreeMap<String, ConfigMap>,
    peers: Vec<Peer>,
}

fn key(config_map: &ConfigMap) -> String {
    let meta = config_map.metadata.as_ref().unwrap();
    format!("{}/{}", meta.namespace, meta.name)
}

fn used(pod: &Pod) -> String {
    format!(
        "default/{}",
        pod.spec.as_ref().unwrap().volumes[0]
            .config_map
            .as_ref()
            .unwrap()
            .name
    )
}

impl Agent {
    fn known(&self) -> Known {
        let held = self.pods.iter().map(|(uid, pod)| HeldPod {
            uid: uid.clone(),
            resource_version: pod.metadata.as_ref().unwrap().resource_version.clone(),
        });
        Known::new(self.revision, held.collect())
    }

    fn hear(&mut self, part: Desired) {
        assert!(part.encoded_len() < 4 << 20);
        assert!(part.revision >= self.revision);
        self.revision = part.revision;
        if part.complete {
            self.pods.retain(|uid, _| part.uids.contains(uid));
        }
        for pod in part.pods {
            self.pods.insert(pod.metadata.as_ref().unwrap().uid.clone(), pod);
        }
        for uid in &part.removed {
            assert!(self.pods.remove(uid).is_some());
        }
        for config_map in part.config_maps {
            self.config_maps.insert(key(&config_map), config_map);
        }
        for key in &part.removed_config_maps {
            self.config_maps.remove(key);
        }
        if part.peers_changed {
            self.peers = part.peers;
        }
    }

    fn forget(&mut self) {
        let used: BTreeSet<String> = self.pods.values().map(used).collect();
        self.config_maps.retain(|key, _| used.contains(key));
    }

    fn check(&self, state: &State) {
        let plain = |mut pod: Pod| {
            pod.status = None;
            pod.metadata.as_mut().unwrap().resource_version.clear();
            pod
        };
        let wanted: Vec<Pod> = state.pods_on(NODE).map(plain).collect();
        let mut held: Vec<Pod> = self.pods.values().cloned().map(plain).collect();
        held.sort_by_key(|pod| pod.metadata.as_ref().unwrap().name.clone());
        assert_eq!(held, wanted);
        for pod in &wanted {
            let name = used(pod);
            let wanted = look_up(state, &(Kind::ConfigMap, name.clone())).and_then(object::into);
            assert_eq!(self.config_maps.get(&name), wanted.as_ref());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    PutPod {
        pod: u8,
        node: bool,
        config_map: u8,
    },
    DeletePod(u8),
    Gone(u8),
    Status(u8),
    PutConfigMap {
        config_map: u8,
        value: u8,
    },
    DeleteConfigMap(u8),
    Peers(u8),
    Compare,
    /// The agent starts again, after so many of the parts that it would be told.
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..4, prop::bool::weighted(0.8), 0_u8..3)
            .prop_map(|(pod, node, config_map)| Step::PutPod { pod, node, config_map }),
        2 => (0_u8..4).prop_map(Step::DeletePod),
        2 => (0_u8..4).prop_map(Step::Gone),
        1 => (0_u8..4).prop_map(Step::Status),
        2 => (0_u8..3, 0_u8..3).prop_map(|(config_map, value)| Step::PutConfigMap { config_map, value }),
        1 => (0_u8..3).prop_map(Step::DeleteConfigMap),
        1 => (0_u8..3).prop_map(Step::Peers),
        3 => Just(Step::Compare),
        1 => (0_usize..4).prop_map(Step::Restart),
    ]
}

struct World {
    state: State,
    agent: Agent,
    known: Known,
    peers: Arc<Peers>,
    used_changed: bool,
    /// Of the next object.
    uid: u32,
}

impl World {
    fn new() -> Self {
        let agent = Agent::default();
        Self {
            state: cluster(),
            known: agent.known(),
            agent,
            peers: Arc::default(),
            used_changed: true,
            uid: 0,
        }
    }

    /// Of an object that is there, or a new one.
    fn uid(&mut self, kind: &str, name: &str) -> String {
        self.uid += 1;
        let there = self.state.get(&named(kind, name));
        there.map_or(format!("uid-{}", self.uid), |there| {
            object::meta(&there).uid.clone()
        })
    }

    fn status(&mut self, name: &str, gone: bool) {
        let pods = self
            .state
            .pods_on(NODE)
            .filter(|pod| pod.metadata.as_ref().unwrap().name == name);
        let update = |pod: Pod| PodStatusUpdate {
            uid: pod.metadata.unwrap().uid,
            node: NODE.to_owned(),
            status: Some(PodStatus {
                phase: "Running".to_owned(),
                ..Default::default()
            }),
            gone,
        };
        let pods = pods.map(update).collect();
        self.state.apply(&command(Body::Status(StatusBatch {
            pods,
            nodes: Vec::new(),
        })));
    }

    fn compare(&mut self) -> Vec<Desired> {
        let changed = std::mem::take(&mut self.used_changed);
        let parts = self.known.difference(&self.state, NODE, &self.peers, changed);
        let before = self.agent.revision;
        for part in parts.iter().rev().skip(1) {
            assert_eq!(
                part.revision, before,
                "only the last part carries the new revision"
            );
        }
        parts
    }

    fn tell(&mut self) {
        for part in self.compare() {
            self.agent.hear(part);
        }
        self.agent.forget();
        self.agent.check(&self.state);
        let own = self.agent.peers.iter().any(|peer| peer.name == NODE);
        assert!(!own);
        let others = self.peers.keys().filter(|name| *name != NODE).count();
        assert_eq!(self.agent.peers.len(), others);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::PutPod {
                pod: number,
                node,
                config_map,
            } => {
                let name = format!("p{number}");
                let uid = self.uid("Pod", &name);
                let node = if node { NODE } else { "n2" };
                place(&mut self.state, &name, &uid, node, &format!("c{config_map}"));
            }
            Step::DeletePod(number) => {
                self.state.apply(&delete("Pod", &format!("p{number}")));
            }
            Step::Gone(number) => self.status(&format!("p{number}"), true),
            Step::Status(number) => self.status(&format!("p{number}"), false),
            Step::PutConfigMap {
                config_map: number,
                value,
            } => {
                let name = format!("c{number}");
                let uid = self.uid("ConfigMap", &name);
                self.used_changed = true;
                self.state
                    .apply(&put(config_map(&name, &uid, &value.to_string())));
            }
            Step::DeleteConfigMap(number) => {
                self.used_changed = true;
                self.state.apply(&delete("ConfigMap", &format!("c{number}")));
            }
            Step::Peers(number) => {
                let peers = [(NODE, 0), ("n2", number), ("n3", 7)].map(|(name, address)| {
                    let peer = Peer {
                        name: name.to_owned(),
                        address: format!("10.0.0.{address}"),
                        pod_cidr: String::new(),
                    };
                    (name.to_owned(), peer)
                });
                self.peers = Arc::new(peers.into_iter().take(usize::from(number) + 1).collect());
            }
            Step::Compare => self.tell(),
            Step::Restart(heard) => {
                for part in self.compare().into_iter().take(heard) {
                    self.agent.hear(part);
                }
                self.agent.forget();
                self.known = self.agent.known();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_agent_comes_to_what_the_state_wants_of_its_node(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.tell();
        prop_assert!(world.compare().is_empty(), "who knows everything is told nothing");
    }
}

#[test]
fn what_the_agent_holds_is_not_sent_again() {
    let mut world = World::new();
    place(&mut world.state, "p0", "a", NODE, "c0");
    place(&mut world.state, "p1", "b", NODE, "c0");
    world.tell();
    assert_eq!(world.agent.pods.len(), 2);
    world.status("p0", false);
    assert!(world.compare().is_empty(), "a status alone is no news");
    world.state.apply(&delete("Pod", "p1"));
    world.known = world.agent.known();
    let parts = world.compare();
    let [part] = parts.as_slice() else {
        panic!("{} parts", parts.len())
    };
    assert!(part.complete);
    assert_eq!(part.uids, ["a", "b"]);
    let sent: Vec<&str> = part
        .pods
        .iter()
        .map(|pod| pod.metadata.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(sent, ["p1"]);
    assert!(
        part.pods[0]
            .metadata
            .as_ref()
            .unwrap()
            .deletion_timestamp
            .is_some()
    );
}

#[test]
fn a_large_difference_comes_in_parts_with_config_maps_first() {
    let mut world = World::new();
    let large = "x".repeat(900 << 10);
    for number in 0..8 {
        let (map, of) = (format!("c{number}"), format!("p{number}"));
        assert!(
            world
                .state
                .apply(&put(config_map(&map, &format!("m{number}"), &large)))
                .applied()
        );
        place(&mut world.state, &of, &format!("u{number}"), NODE, &map);
    }
    let parts = world.compare();
    assert!(parts.len() >= 4, "{} parts", parts.len());
    assert!(parts[0].complete && parts[0].uids.len() == 8 && parts[0].pods.is_empty());
    assert!(
        parts
            .iter()
            .skip(1)
            .all(|part| !part.complete && part.uids.is_empty())
    );
    let last = parts.last().unwrap();
    assert_eq!((last.pods.len(), last.revision), (8, world.state.revision()));
    for part in parts {
        world.agent.hear(part);
    }
    world.agent.check(&world.state);
}

#[test]
fn only_pods_that_it_was_told_of_are_known() {
    let mut world = World::new();
    place(&mut world.state, "p0", "a", NODE, "c0");
    place(&mut world.state, "p1", "b", "n2", "c0");
    let held = ["a", "gone"].map(|uid| HeldPod {
        uid: uid.to_owned(),
        resource_version: "1".to_owned(),
    });
    let mut known = Known::new(0, held.to_vec());
    assert!(!known.has("gone"), "nothing is known before the first difference");
    known.difference(&world.state, NODE, &world.peers, true);
    let has = ["a", "b", "gone"].map(|uid| known.has(uid));
    assert_eq!(has, [true, false, false]);
}

#[test]
fn a_node_is_told_the_secrets_of_its_pods_and_no_others() {
    let mut world = World::new();
    for (name, uid) in [("mine", "s1"), ("theirs", "s2"), ("nobodys", "s3")] {
        let secret = Secret {
            metadata: Some(meta(name, uid)),
            data: [("key".to_owned(), name.as_bytes().to_vec())].into(),
            ..Default::default()
        };
        assert!(world.state.apply(&put(object::from(secret))).applied());
    }
    place(&mut world.state, "p0", "a", NODE, "c0");
    place(&mut world.state, "p1", "b", "n2", "c0");
    for (pod, secret) in [("p0", "mine"), ("p1", "theirs")] {
        let key = object::key_of(Kind::Pod, "default", pod);
        let mut pod: Pod = world.state.get(&key).and_then(object::into).unwrap();
        let spec = pod.spec.as_mut().unwrap();
        spec.containers = vec![Container {
            name: "main".to_owned(),
            env_from: vec![EnvFromSource {
                secret_ref: Some(SecretEnvSource {
                    name: secret.to_owned(),
                    optional: None,
                }),
                ..Default::default()
            }],
            ..Default::default()
        }];
        assert!(world.state.apply(&put(object::from(pod))).applied());
    }
    let told = world.compare();
    let told: Vec<&Secret> = told.iter().flat_map(|part| &part.secrets).collect();
    let names: Vec<&str> = told
        .iter()
        .map(|secret| &*secret.metadata.as_ref().unwrap().name)
        .collect();
    assert_eq!(names, ["mine"]);
    world.state.apply(&delete("Secret", "mine"));
    world.used_changed = true;
    let told = world.compare();
    assert_eq!(told[0].removed_secrets, ["default/mine"]);
}
