//! A cluster begun, joined by nodes and a second controller, stopped and started: the verbs of the program in one
//! process, over loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use prost::Message;
use proto::state::v1::{Command, Token, TokenChange, UseToken, command, token_change};
use rcgen::{CertificateParams, KeyPair};
use rpc::token::JoinToken;
use rpc::v1::change_members_request::Change;
use rpc::v1::join_client::JoinClient;
use rpc::v1::raft_client::RaftClient;
use rpc::v1::{
    ChangeMembersRequest, JoinNodeRequest, JoinNodeResponse, ProposeRequest, change_members_reply,
    propose_reply,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::run::{RunError, RunOptions, run};
use crate::security::ca::{Authority, Subject};
use crate::security::identity::{Authenticated, Identity};
use crate::security::token::{Role, create};
use crate::security::{new_uuid, unix_now};
use crate::setup::{NewCluster, Places, SetupError, init, issue_admin, join};

/// Each controller has a loopback address of its own, so that no port is fought for.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x40, low, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

struct Controller {
    places: Places,
    ip: IpAddr,
    _tmp: tempfile::TempDir,
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Controller {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let places = Places {
            data: tmp.path().join("data"),
            config: tmp.path().join("config"),
        };
        Self {
            places,
            ip: address(),
            _tmp: tmp,
        }
    }

    fn api(&self) -> String {
        SocketAddr::new(self.ip, 7443).to_string()
    }

    fn peers(&self) -> String {
        SocketAddr::new(self.ip, 7444).to_string()
    }

    async fn begun() -> Self {
        let controller = Self::new();
        let new = NewCluster {
            name: "c1".into(),
            address: controller.api(),
            peer_address: controller.peers(),
            pod_cidr: "10.244.0.0/16".into(),
            service_cidr: "10.96.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
        };
        init(&controller.places, &new).await.unwrap();
        controller
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            places: self.places.clone(),
            api: SocketAddr::new(self.ip, 7443),
            peers: SocketAddr::new(self.ip, 7444),
            metrics: SocketAddr::new(self.ip, 7480),
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(300), Duration::from_millis(600)),
        }
    }

    fn run(&self) -> Running {
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or(()) };
        Running {
            stop,
            ended: tokio::spawn(run(self.options(), stopped)),
        }
    }

    /// As one of the members.
    fn member(&self, id: u64) -> RaftClient<Channel> {
        let ca = self.places.authority().unwrap();
        let issued = ca
            .issue(&Subject::Member { id, hosts: vec![] }, unix_now())
            .unwrap();
        let identity = (issued.certificate.as_str(), issued.key.as_str());
        RaftClient::new(rpc::tls::channel(&[self.peers()], ca.certificate(), Some(identity)).unwrap())
    }

    /// Waits until it takes writes, then makes this one.
    async fn write(&self, change: token_change::Change) {
        let command = Command {
            request_id: new_uuid(),
            time: Some(pbjson_types::Timestamp {
                seconds: unix_now() as i64,
                nanos: 0,
            }),
            level: 1,
            kind: Some(command::Kind::Token(TokenChange { change: Some(change) })),
            ..Default::default()
        };
        let request = ProposeRequest {
            commands: vec![command.encode_to_vec()],
        };
        eventually(async || {
            let reply = self.member(1).propose(request.clone()).await.ok()?.into_inner();
            matches!(reply.reply, Some(propose_reply::Reply::Done(_))).then_some(())
        })
        .await;
    }

    async fn token(&self, role: Role, name: &str) -> JoinToken {
        let (token, stored) = self.token_that(role, name);
        self.write(token_change::Change::Create(stored)).await;
        token
    }

    fn token_that(&self, role: Role, name: &str) -> (JoinToken, Token) {
        create(
            role,
            name,
            3600,
            1,
            self.places.authority().unwrap().sha256(),
            unix_now(),
        )
    }

    async fn join_node(&self, token: &JoinToken, name: &str) -> Result<JoinNodeResponse, Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec();
        let channel = rpc::tls::channel_pinned(&self.api(), token.ca_sha256).unwrap();
        let request = JoinNodeRequest {
            token: token.to_string(),
            name: name.into(),
            csr,
            labels: Default::default(),
        };
        JoinClient::new(channel)
            .join_node(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.ended)
            .await
            .expect("it stops")
            .unwrap()
            .unwrap();
    }
}

/// Asks until there is an answer.
async fn eventually<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .expect("it happens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_node_in_once() {
    let controller = Controller::begun().await;
    let running = controller.run();
    let token = controller.token(Role::Node, "").await;
    let joined = controller.join_node(&token, "n1").await.unwrap();
    let certificate = rpc::tls::certificates(&joined.certificate, "").unwrap().remove(0);
    let identity = Authenticated::from_certificate(&certificate).unwrap().identity;
    assert_eq!(identity, Identity::Node("n1".into()));
    assert_eq!(joined.endpoints, [controller.api()]);

    let refusal = async |token: &JoinToken, name: &str| {
        let status = controller.join_node(token, name).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let (code, message) = refusal(&token, "n2").await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(
        message.contains("already used") || message.contains("not known"),
        "{message}"
    );

    // The name of a node that is there is taken only by a token made out to it.
    let unbound = controller.token(Role::Node, "").await;
    assert_eq!(refusal(&unbound, "n1").await.0, Code::AlreadyExists);
    let bound = controller.token(Role::Node, "n1").await;
    assert_eq!(refusal(&bound, "n3").await.0, Code::PermissionDenied);
    controller.join_node(&bound, "n1").await.unwrap();

    let member = controller.token(Role::Member, "").await;
    assert_eq!(refusal(&member, "n4").await.0, Code::PermissionDenied);
    assert_eq!(refusal(&unbound, "Not A Name").await.0, Code::InvalidArgument);
    let (never_stored, _) = controller.token_that(Role::Node, "");
    assert_eq!(refusal(&never_stored, "n4").await.0, Code::Unauthenticated);
    let (expired, mut stored) = controller.token_that(Role::Node, "");
    stored.expires = Some(pbjson_types::Timestamp {
        seconds: unix_now() as i64 - 1,
        nanos: 0,
    });
    controller.write(token_change::Change::Create(stored)).await;
    let (code, message) = refusal(&expired, "n4").await;
    assert!(
        code == Code::Unauthenticated && message.contains("expired"),
        "{message}"
    );
    let other = Authority::generate("other", unix_now()).unwrap();
    let misled = JoinToken {
        ca_sha256: other.sha256(),
        ..unbound.clone()
    };
    assert_eq!(refusal(&misled, "n4").await.0, Code::Unavailable);
    // None of these cost the token its use.
    controller.join_node(&unbound, "n4").await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_controller_joins_gets_a_vote_and_leads() {
    let first = Controller::begun().await;
    let running = first.run();
    let token = first.token(Role::Member, "").await.to_string();
    let second = Controller::new();
    let identity = join(
        &second.places,
        &first.api(),
        &token,
        "c2",
        &second.api(),
        &second.peers(),
    )
    .await
    .unwrap();
    let third = Controller::new();
    let again = join(
        &third.places,
        &first.api(),
        &token,
        "c3",
        &third.api(),
        &third.peers(),
    )
    .await;
    assert!(matches!(again, Err(SetupError::Refused { .. })), "{again:?}");

    let running_second = second.run();
    // Only a voter can be handed leadership.
    eventually(async || {
        let request = ChangeMembersRequest {
            change: Some(Change::TransferTo(identity.id)),
        };
        let reply = first.member(1).change_members(request).await.ok()?.into_inner();
        matches!(reply.reply, Some(change_members_reply::Reply::Done(_))).then_some(())
    })
    .await;
    let use_token = UseToken {
        id: "none".into(),
        role: "node".into(),
        name: String::new(),
    };
    second.write(token_change::Change::Use(use_token)).await;
    running_second.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_is_set_up_once_and_notices_that_its_log_is_gone() {
    let controller = Controller::begun().await;
    let new = NewCluster {
        name: "c1".into(),
        address: controller.api(),
        peer_address: controller.peers(),
        pod_cidr: String::new(),
        service_cidr: String::new(),
        cluster_domain: String::new(),
    };
    assert!(matches!(
        init(&controller.places, &new).await,
        Err(SetupError::Exists { .. })
    ));
    let nowhere = Controller::new();
    let missing = run(nowhere.options(), std::future::pending()).await;
    assert!(
        matches!(missing, Err(RunError::Setup(SetupError::Missing { .. }))),
        "{missing:?}"
    );
    let running = controller.run();
    controller.token(Role::Node, "").await;
    let second = run(controller.options(), std::future::pending()).await;
    assert!(matches!(second, Err(RunError::Listen { .. })), "{second:?}");
    running.stop().await;
    std::fs::remove_dir_all(controller.places.data.join("log")).unwrap();
    let lost = run(controller.options(), std::future::pending()).await;
    assert!(matches!(lost, Err(RunError::LogLost { .. })), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_networks_are_refused_and_leave_no_controller() {
    let controller = Controller::new();
    let new = NewCluster {
        name: "c1".into(),
        address: controller.api(),
        peer_address: controller.peers(),
        pod_cidr: "not a network".into(),
        service_cidr: "10.96.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
    };
    let refused = init(&controller.places, &new).await;
    assert!(matches!(refused, Err(SetupError::Settings(_))), "{refused:?}");
    assert!(matches!(
        controller.places.identity(),
        Err(SetupError::Missing { .. })
    ));
    init(
        &controller.places,
        &NewCluster {
            pod_cidr: "10.244.0.0/16".into(),
            ..new
        },
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_is_made_on_a_controllers_machine_and_writes_over_nothing() {
    let controller = Controller::begun().await;
    let file = controller.places.config.join("rescue.yaml");
    issue_admin(&controller.places, "rescue", &file).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&controller.api()), "{text}");
    let (_, rest) = text.split_once("cert: |\n").unwrap();
    let (certificate, _) = rest.split_once("key: |").unwrap();
    let certificate: String = certificate
        .lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let der = rpc::tls::certificates(&certificate, "").unwrap().remove(0);
    let made = Authenticated::from_certificate(&der).unwrap();
    assert!(made.identity.is_admin() && made.identity.to_string() == "rescue");
    let before = std::fs::read(&file).unwrap();
    let again = issue_admin(&controller.places, "rescue", &file).unwrap_err();
    assert!(matches!(again, SetupError::InTheWay { .. }), "{again}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
