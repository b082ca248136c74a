//! Members with all their parts, and agents that talk to them over mTLS on loopback, for the stories beside.

use std::sync::Arc;
use std::time::Duration;

use model::object;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{ClusterSettings, Command, DeleteOp, Key, NodeJoin, Operation, Put, Transaction};
use proto::v1::{
    Container, Node as NodeObject, NodeStatus, Object, ObjectMeta, Pod, PodSpec, PodStatus, Quantity,
};
use rpc::v1::agent_message::Message as Up;
use rpc::v1::controller_message::Message as Down;
use rpc::v1::node_client::NodeClient;
use rpc::v1::{
    AgentMessage, CarryDown, CarryUp, ControllerMessage, Desired, HeldPod, Hello, Open, PodReport,
    PodReports, Welcome, carry_up,
};
use state::SCHEMA_LEVEL;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server};
use tonic::{Status, Streaming};

use crate::audit::Audit;
use crate::raft::{Member, MemberId, Node, NodeConfig};
use crate::run::Parts;
use crate::security::ca::{Authority, Subject};
use crate::security::listen;
use crate::security::live::{ClientAuth, LiveCertificate};
use crate::security::revoked::Revoked;
use crate::security::{new_uuid, unix_now};
use crate::store::Disk;
use crate::store::os::OsDir;
use seal::Keys;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Controller {
    pub(super) node: Node,
    pub(super) parts: Parts,
    pub(super) api: String,
    peers: String,
    _running: watch::Sender<bool>,
    _tmp: tempfile::TempDir,
    _loops: JoinSet<()>,
}

impl Controller {
    pub(super) async fn start(ca: &Arc<Authority>, id: MemberId) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let issued = ca
            .issue(&Subject::Member { id, hosts: vec![] }, unix_now())
            .unwrap();
        let live = LiveCertificate::new(&issued).unwrap();
        let open = |name: &str| Disk::from(OsDir::open(&tmp.path().join(name)).unwrap());
        let config = NodeConfig {
            segment_bytes: 8 << 20,
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(300), Duration::from_millis(600)),
            ..NodeConfig::new(id, Keys::new(tmp.path(), vec![seal::Key::generate()]))
        };
        let client = live.client_config(ca.certificate()).unwrap();
        let node = Node::start(config, open("log"), open("snapshots"), client)
            .await
            .unwrap();
        let parts = Parts::new(&node);
        let mut loops = JoinSet::new();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peers = listener.local_addr().unwrap().to_string();
        let tls = live
            .server_config(ca.certificate(), ClientAuth::Required)
            .unwrap();
        let (serving, more) = (node.clone(), parts.relay(&node));
        loops.spawn(async move {
            serving
                .serve(listener, tls, more, std::future::pending())
                .await
                .unwrap()
        });

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = listener.local_addr().unwrap().to_string();
        let tls = live
            .server_config(ca.certificate(), ClientAuth::Optional)
            .unwrap();
        let incoming = listen::accept(listener, Arc::new(tls), 64, Revoked::new(node.revocations()));
        let (running, stopped) = watch::channel(false);
        let audit = Audit::open(&tmp.path().join("audit"), &format!("c{id}")).unwrap();
        let routes = parts.start(&node, ca.clone(), audit, &mut loops, stopped);
        loops.spawn(async move {
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming(incoming)
                .await
                .unwrap()
        });
        Self {
            node,
            parts,
            api,
            peers,
            _running: running,
            _tmp: tmp,
            _loops: loops,
        }
    }

    pub(super) fn member(&self) -> Member {
        Member {
            name: format!("c{}", self.node.id()),
            address: self.api.clone(),
            peer_address: self.peers.clone(),
        }
    }

    pub(super) async fn write(&self, kind: Body) {
        let command = Command {
            request_id: new_uuid(),
            time: Some(crate::clock::timestamp(crate::clock::now_ms())),
            level: SCHEMA_LEVEL,
            kind: Some(kind),
            ..Default::default()
        };
        let reply = self.node.propose(command).await.unwrap().reply.unwrap();
        assert!(matches!(reply, Reply::Applied(_)), "{reply:?}");
    }

    pub(super) async fn operate(&self, operation: Op) {
        let operation = Operation {
            operation: Some(operation),
        };
        self.write(Body::Transaction(Transaction {
            operations: vec![operation],
            ..Default::default()
        }))
        .await;
    }

    pub(super) async fn put(&self, object: Object) {
        self.operate(Op::Put(Put { object: Some(object) })).await;
    }

    pub(super) async fn delete(&self, kind: &str, name: &str) {
        let namespace = if kind == "Node" { "" } else { "default" };
        self.operate(Op::Delete(DeleteOp {
            key: Some(key(kind, namespace, name)),
            ..Default::default()
        }))
        .await;
    }

    pub(super) async fn join(&self, name: &str) {
        let metadata = ObjectMeta {
            name: name.to_owned(),
            uid: new_uuid(),
            ..Default::default()
        };
        let node = NodeObject {
            metadata: Some(metadata),
            ..Default::default()
        };
        self.write(Body::NodeJoin(NodeJoin { node: Some(node) })).await;
    }

    /// Waits until the state here is so.
    pub(super) async fn until<T>(&self, what: &str, look: impl Fn(&state::State) -> Option<T>) -> T {
        let mut applied = self.node.applied();
        let looking = async {
            loop {
                if let Some(found) = look(&applied.borrow_and_update().state) {
                    return found;
                }
                applied.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, looking)
            .await
            .unwrap_or_else(|_| panic!("{what}"))
    }
}

pub(super) fn key(kind: &str, namespace: &str, name: &str) -> Key {
    Key {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

pub(super) fn meta(name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: new_uuid(),
        ..Default::default()
    })
}

pub(super) fn spec() -> Option<PodSpec> {
    Some(PodSpec {
        containers: vec![Container {
            name: "main".to_owned(),
            image: "web:1".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

pub(super) fn pod(name: &str) -> Object {
    object::from(Pod {
        metadata: meta(name),
        spec: spec(),
        ..Default::default()
    })
}

pub(super) fn find_pod(state: &state::State, name: &str) -> Option<Pod> {
    object::into(state.get(&key("Pod", "default", name))?)
}

/// A cluster of so many voters, with the first one's settings and nodes n1 and n2.
pub(super) async fn cluster(members: MemberId) -> (Arc<Authority>, Vec<Controller>) {
    let ca = Arc::new(Authority::generate("test", unix_now()).unwrap());
    let first = Controller::start(&ca, 1).await;
    first.node.initialize(first.member()).await.unwrap();
    first
        .write(Body::Settings(ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }))
        .await;
    for name in ["n1", "n2"] {
        first.join(name).await;
    }
    let mut controllers = vec![first];
    for id in 2..=members {
        let next = Controller::start(&ca, id).await;
        controllers[0].node.add_learner(id, next.member()).await.unwrap();
        controllers[0].node.promote(id).await.unwrap();
        next.until("it learns", |state| state.settings().map(|_| ()))
            .await;
        controllers.push(next);
    }
    (ca, controllers)
}

pub(super) fn client(ca: &Authority, controller: &Controller, node: &str) -> NodeClient<Channel> {
    let subject = Subject::Node {
        name: node.to_owned(),
    };
    let issued = ca.issue(&subject, unix_now()).unwrap();
    let identity = (issued.certificate.as_str(), issued.key.as_str());
    NodeClient::new(
        rpc::tls::channel(
            std::slice::from_ref(&controller.api),
            ca.certificate(),
            Some(identity),
        )
        .unwrap(),
    )
}

pub(super) struct Agent {
    pub(super) client: NodeClient<Channel>,
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<ControllerMessage>,
}

impl Agent {
    /// A session of `node`, as far as its Hello.
    pub(super) async fn hello(client: NodeClient<Channel>, held: Vec<HeldPod>, revision: u64) -> Self {
        let allocatable = [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")].map(|(name, text)| {
            let quantity = Quantity {
                text: text.to_owned(),
            };
            (name.to_owned(), quantity)
        });
        let hello = Hello {
            version: "test".to_owned(),
            schema_level: SCHEMA_LEVEL,
            revision,
            pods: held,
            node: Some(NodeStatus {
                allocatable: allocatable.into(),
                ..Default::default()
            }),
            address: "127.0.0.1".to_owned(),
        };
        let (up, messages) = mpsc::channel(16);
        let mut agent = Self {
            down: client
                .clone()
                .session(ReceiverStream::new(messages))
                .await
                .unwrap()
                .into_inner(),
            client,
            up,
        };
        agent.say(Up::Hello(hello)).await;
        agent
    }

    pub(super) async fn begin(
        ca: &Authority,
        controller: &Controller,
        node: &str,
    ) -> (Self, Welcome, Desired) {
        let mut agent = Self::hello(client(ca, controller, node), Vec::new(), 0).await;
        let Down::Welcome(welcome) = agent.next().await else {
            panic!()
        };
        let desired = agent.desired().await;
        assert!(desired.complete && desired.peers_changed);
        (agent, welcome, desired)
    }

    pub(super) async fn say(&mut self, message: Up) {
        self.up
            .send(AgentMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    pub(super) async fn try_next(&mut self) -> Result<Option<Down>, Status> {
        let message = tokio::time::timeout(PATIENCE, self.down.message())
            .await
            .expect("a message");
        message.map(|message| message.map(|message| message.message.unwrap()))
    }

    pub(super) async fn next(&mut self) -> Down {
        self.try_next().await.unwrap().expect("the session goes on")
    }

    /// The next difference, of pods.
    pub(super) async fn desired(&mut self) -> Desired {
        loop {
            if let Down::Desired(desired) = self.next().await {
                return desired;
            }
        }
    }

    /// The next pod that comes.
    pub(super) async fn pod(&mut self) -> Pod {
        loop {
            if let Some(pod) = self.desired().await.pods.pop() {
                return pod;
            }
        }
    }

    pub(super) async fn open(&mut self) -> Open {
        loop {
            if let Down::Open(open) = self.next().await {
                return open;
            }
        }
    }

    /// Opens a call as this agent.
    pub(super) async fn carry(&self, call_id: &str) -> (mpsc::Sender<CarryUp>, Streaming<CarryDown>) {
        let (up, frames) = mpsc::channel(16);
        up.send(frame(carry_up::Frame::CallId(call_id.to_owned())))
            .await
            .unwrap();
        let down = self
            .client
            .clone()
            .carry(ReceiverStream::new(frames))
            .await
            .unwrap()
            .into_inner();
        (up, down)
    }

    pub(super) async fn report(&mut self, uid: &str, status: Option<PodStatus>, gone: bool) {
        let report = PodReport {
            uid: uid.to_owned(),
            status,
            gone,
        };
        self.say(Up::Pods(PodReports { pods: vec![report] })).await;
    }
}

pub(super) fn frame(frame: carry_up::Frame) -> CarryUp {
    CarryUp { frame: Some(frame) }
}
