//! Who may make which call: every call of every service, as each identity, over TLS to a member with all its parts.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{Kind, object};
use prost::Message;
use prost_reflect::DescriptorPool;
use proto::state::v1::DeleteOp;
use proto::v1::{ConfigMap, Object, ObjectMeta, RoleBinding, RoleRef, ServiceAccount, Subject as Bound};
use rpc::v1::{
    AgentMessage, ApplyItem, ApplyRequest, BackupPart, CarryUp, CreateServiceAccountTokenRequest,
    CreateTokenRequest, DeleteRequest, ExecInput, ExecStart, GetRequest, HistoryRequest, ImportInput,
    ImportStart, IssueCertificateRequest, JoinMemberRequest, JoinNodeRequest, ListRequest, LogsRequest,
    PodRef, RemoveMemberRequest, ReviewAccessRequest, RevokeCertificatesRequest, RevokeTokenRequest,
    RollbackRequest, ScaleRequest, SetSchedulableRequest, UndoRequest, WatchRequest, carry_up, exec_input,
    import_input,
};
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::cluster_test::{Controller, cluster, key, meta};
use crate::api::service_test::Raw;
use crate::security::account_token::Claims;
use crate::security::ca::{ADMIN_LIFE, Authority, Subject};
use crate::security::unix_now;

/// Longer than any call here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// No certificate.
    Anonymous,
    /// An administrator's, of another cluster's CA.
    WrongCa,
    /// An administrator's that has ended.
    Expired,
    Node,
    /// A user whom no binding names.
    Stranger,
    /// A service account with a token of this cluster's, bound as the reader is.
    Account,
    /// The same one with a token that another cluster signed.
    ForgedToken,
    /// Bound to `view` in the namespace default.
    Reader,
    /// Bound to `admin` in the namespace default.
    NamespaceAdmin,
    Admin,
}

const EVERYBODY: [Who; 10] = [
    Who::Anonymous,
    Who::WrongCa,
    Who::Expired,
    Who::Node,
    Who::Stranger,
    Who::Account,
    Who::ForgedToken,
    Who::Reader,
    Who::NamespaceAdmin,
    Who::Admin,
];

/// Who is let into a call.
#[derive(Clone, Copy, Debug)]
enum May {
    /// Everybody who can connect: the call asks for a token.
    Anybody,
    /// Whoever has a user's certificate, or the token of a service account.
    Users,
    Readers,
    NamespaceAdmins,
    Admins,
    Nodes,
    /// Nobody here: only controllers.
    Members,
}

impl May {
    fn include(self, who: Who) -> bool {
        let rank = match who {
            // Not even a connection.
            Who::WrongCa | Who::Expired => return false,
            Who::Anonymous | Who::ForgedToken => return matches!(self, May::Anybody),
            Who::Node => return matches!(self, May::Anybody | May::Nodes),
            Who::Stranger => 0,
            Who::Reader | Who::Account => 1,
            Who::NamespaceAdmin => 2,
            Who::Admin => 3,
        };
        match self {
            May::Anybody => true,
            May::Users => true,
            May::Readers => rank >= 1,
            May::NamespaceAdmins => rank >= 2,
            May::Admins => rank >= 3,
            May::Nodes | May::Members => false,
        }
    }
}

fn bytes(message: impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

fn config(name: &str) -> Object {
    object::from(ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn apply(object: Object) -> Vec<u8> {
    bytes(ApplyRequest {
        items: vec![ApplyItem {
            object: Some(object),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn get(kind: &str, namespace: &str) -> Vec<u8> {
    bytes(GetRequest {
        key: Some(key(kind, namespace, "absent")),
        stale: false,
    })
}

fn list(kind: &str, namespace: &str) -> Vec<u8> {
    bytes(ListRequest {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        ..Default::default()
    })
}

fn watch(kind: &str, namespace: &str) -> Vec<u8> {
    bytes(WatchRequest {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        ..Default::default()
    })
}

fn binding(name: &str, role: &str, user: &str) -> Object {
    object::from(RoleBinding {
        metadata: meta(name),
        role_ref: Some(RoleRef {
            api_group: model::default::RBAC_GROUP.to_owned(),
            kind: "ClusterRole".to_owned(),
            name: role.to_owned(),
        }),
        subjects: vec![Bound {
            kind: "User".to_owned(),
            api_group: model::default::RBAC_GROUP.to_owned(),
            name: user.to_owned(),
            namespace: String::new(),
        }],
        ..Default::default()
    })
}

/// Of a pod that is not there: who is let in is told so.
fn absent() -> PodRef {
    PodRef {
        namespace: "default".to_owned(),
        name: "absent".to_owned(),
        container: String::new(),
    }
}

/// Service, method, a request, who is let in. A call may have several rows.
fn table() -> Vec<(&'static str, &'static str, Vec<u8>, May)> {
    let some_key = |kind: &str| Some(key(kind, "default", "absent"));
    let delete = |kind: &str| {
        bytes(DeleteRequest {
            targets: vec![DeleteOp {
                key: some_key(kind),
                ..Default::default()
            }],
            ..Default::default()
        })
    };
    let review = |user: &str| {
        bytes(ReviewAccessRequest {
            verb: "get".to_owned(),
            resource: "pods".to_owned(),
            user: user.to_owned(),
            ..Default::default()
        })
    };
    let token = |role: &str| {
        bytes(CreateTokenRequest {
            role: role.to_owned(),
            ..Default::default()
        })
    };
    let account_token = |namespace: &str| {
        bytes(CreateServiceAccountTokenRequest {
            namespace: namespace.to_owned(),
            name: "absent".to_owned(),
            ..Default::default()
        })
    };
    let exec = exec_input::Input::Start(ExecStart {
        pod: Some(absent()),
        command: vec!["true".to_owned()],
        ..Default::default()
    });
    let import = import_input::Input::Start(ImportStart::default());
    let too_many_labels = (0..100).map(|number| (number.to_string(), String::new()));
    vec![
        ("Api", "Apply", apply(config("a")), May::NamespaceAdmins),
        (
            "Api",
            "Apply",
            apply(binding("more", "view", "friend")),
            May::NamespaceAdmins,
        ),
        (
            "Api",
            "Apply",
            apply(binding("root", "cluster-admin", "friend")),
            May::Admins,
        ),
        ("Api", "Get", get("Pod", "default"), May::Readers),
        ("Api", "Get", get("Secret", "default"), May::NamespaceAdmins),
        ("Api", "Get", get("Pod", "other"), May::Admins),
        ("Api", "Get", get("Node", ""), May::Admins),
        ("Api", "List", list("Pod", "default"), May::Readers),
        ("Api", "List", list("Pod", ""), May::Admins),
        ("Api", "List", list("Secret", "default"), May::NamespaceAdmins),
        ("Api", "Watch", watch("Pod", "default"), May::Readers),
        ("Api", "Watch", watch("Pod", ""), May::Admins),
        ("Api", "Watch", watch("Secret", "default"), May::NamespaceAdmins),
        ("Api", "Delete", delete("ConfigMap"), May::NamespaceAdmins),
        ("Api", "Delete", delete("Node"), May::Admins),
        (
            "Api",
            "Scale",
            bytes(ScaleRequest {
                key: some_key("Deployment"),
                ..Default::default()
            }),
            May::NamespaceAdmins,
        ),
        (
            "Api",
            "SetSchedulable",
            bytes(SetSchedulableRequest {
                nodes: vec!["n1".to_owned()],
                unschedulable: false,
            }),
            May::Admins,
        ),
        (
            "Api",
            "Rollback",
            bytes(RollbackRequest {
                key: some_key("Deployment"),
                revision: 0,
            }),
            May::NamespaceAdmins,
        ),
        (
            "Api",
            "History",
            bytes(HistoryRequest {
                key: some_key("Deployment"),
                revision: 0,
            }),
            May::Readers,
        ),
        (
            "Api",
            "History",
            bytes(HistoryRequest {
                key: some_key("Secret"),
                revision: 0,
            }),
            May::NamespaceAdmins,
        ),
        (
            "Api",
            "Undo",
            bytes(UndoRequest {
                key: some_key("Deployment"),
                ..Default::default()
            }),
            May::NamespaceAdmins,
        ),
        ("Api", "Why", get("Pod", "default"), May::Readers),
        ("Api", "Why", get("Secret", "default"), May::NamespaceAdmins),
        (
            "Api",
            "Logs",
            bytes(LogsRequest {
                pod: Some(absent()),
                ..Default::default()
            }),
            May::Readers,
        ),
        (
            "Api",
            "Exec",
            bytes(ExecInput { input: Some(exec) }),
            May::NamespaceAdmins,
        ),
        ("Api", "Inspect", bytes(absent()), May::Readers),
        ("Api", "Describe", bytes(absent()), May::Readers),
        (
            "Api",
            "ImportImage",
            bytes(ImportInput { input: Some(import) }),
            May::Admins,
        ),
        ("Api", "ListImages", Vec::new(), May::Admins),
        ("Api", "CreateToken", token("node"), May::Admins),
        ("Api", "CreateToken", token("member"), May::Admins),
        (
            "Api",
            "CreateServiceAccountToken",
            account_token("default"),
            May::NamespaceAdmins,
        ),
        (
            "Api",
            "CreateServiceAccountToken",
            account_token("other"),
            May::Admins,
        ),
        ("Api", "ListTokens", Vec::new(), May::Admins),
        (
            "Api",
            "RevokeToken",
            bytes(RevokeTokenRequest {
                id: "absent".to_owned(),
            }),
            May::Admins,
        ),
        (
            "Api",
            "RevokeCertificates",
            bytes(RevokeCertificatesRequest {
                identity: "nobody".to_owned(),
            }),
            May::Admins,
        ),
        ("Api", "ListRevocations", Vec::new(), May::Admins),
        ("Api", "Members", Vec::new(), May::Admins),
        (
            "Api",
            "RemoveMember",
            bytes(RemoveMemberRequest {
                name: "absent".to_owned(),
                force: false,
            }),
            May::Admins,
        ),
        ("Api", "Backup", Vec::new(), May::Admins),
        ("Api", "Restore", bytes(BackupPart::default()), May::Admins),
        ("Api", "Version", Vec::new(), May::Users),
        (
            "Api",
            "IssueCertificate",
            bytes(IssueCertificateRequest {
                name: "friend".to_owned(),
                ..Default::default()
            }),
            May::Admins,
        ),
        ("Api", "ReviewAccess", review(""), May::Users),
        ("Api", "ReviewAccess", review("friend"), May::Admins),
        ("Api", "WhoAmI", Vec::new(), May::Users),
        (
            "Join",
            "JoinNode",
            bytes(JoinNodeRequest {
                labels: too_many_labels.collect(),
                ..Default::default()
            }),
            May::Anybody,
        ),
        (
            "Join",
            "JoinMember",
            bytes(JoinMemberRequest::default()),
            May::Anybody,
        ),
        ("Node", "Session", bytes(AgentMessage::default()), May::Nodes),
        (
            "Node",
            "Carry",
            bytes(CarryUp {
                frame: Some(carry_up::Frame::CallId("absent".to_owned())),
            }),
            May::Nodes,
        ),
        ("Node", "Renew", Vec::new(), May::Nodes),
        ("Node", "PodToken", Vec::new(), May::Nodes),
        ("Raft", "Append", Vec::new(), May::Members),
        ("Raft", "Vote", Vec::new(), May::Members),
        ("Raft", "PreVote", Vec::new(), May::Members),
        ("Raft", "Transfer", Vec::new(), May::Members),
        ("Raft", "Snapshot", Vec::new(), May::Members),
        ("Raft", "Propose", Vec::new(), May::Members),
        ("Raft", "ReadIndex", Vec::new(), May::Members),
        ("Raft", "ChangeMembers", Vec::new(), May::Members),
        ("Raft", "Progress", Vec::new(), May::Members),
        ("Relay", "RenewLeases", Vec::new(), May::Members),
        ("Relay", "Call", Vec::new(), May::Members),
        ("Relay", "RecordEvents", Vec::new(), May::Members),
    ]
}

/// A connection to one of the member's ports.
fn channel(ca: &Authority, address: &str, who: Who) -> Channel {
    let user = |name: &str| Subject::User {
        name: name.to_owned(),
        groups: Vec::new(),
        life: Duration::from_secs(3600),
    };
    let admin = Subject::Admin {
        name: "root".to_owned(),
    };
    let now = unix_now();
    let issue = |ca: &Authority, subject: &Subject, at: u64| Some(ca.issue(subject, at).unwrap());
    let issued = match who {
        Who::Anonymous | Who::Account | Who::ForgedToken => None,
        Who::WrongCa => issue(&Authority::generate("other", now).unwrap(), &admin, now),
        Who::Expired => issue(ca, &admin, now - 2 * ADMIN_LIFE.as_secs()),
        Who::Node => issue(
            ca,
            &Subject::Node {
                name: "n1".to_owned(),
            },
            now,
        ),
        Who::Stranger => issue(ca, &user("stranger"), now),
        Who::Reader => issue(ca, &user("reader"), now),
        Who::NamespaceAdmin => issue(ca, &user("lead"), now),
        Who::Admin => issue(ca, &admin, now),
    };
    let identity = issued
        .as_ref()
        .map(|issued| (issued.certificate.as_str(), issued.key.as_str()));
    rpc::tls::channel(&[address.to_owned()], ca.certificate(), identity).unwrap()
}

/// What became of a call, as far as getting in goes.
fn let_in(answer: Result<(), &Status>) -> bool {
    match answer {
        Ok(()) => true,
        // The connection, not the call, was refused.
        Err(status) if std::error::Error::source(status).is_some() => false,
        Err(status) => !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
    }
}

/// What a caller shows beside its connection.
fn token(ca: &Authority, state: &state::State, who: Who) -> Option<AsciiMetadataValue> {
    let now = unix_now();
    let other = Authority::generate("other", now).unwrap();
    let key = match who {
        Who::Account => ca.account_key(),
        Who::ForgedToken => other.account_key(),
        _ => return None,
    };
    let claims = Claims::new(state, "default", "robot", None, 3600, now).unwrap();
    Some(format!("Bearer {}", key.sign(&claims)).parse().unwrap())
}

async fn call(
    channel: Channel,
    token: Option<&AsciiMetadataValue>,
    path: &str,
    request: Vec<u8>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|cause| Status::from_error(Box::new(cause)))?;
    let mut request = Request::new(tokio_stream::iter([request]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.clone());
    }
    let path = path.parse().unwrap();
    let calling = client.streaming(request, path, Raw);
    let answer = tokio::time::timeout(PATIENCE, calling).await.expect("an answer");
    answer.map(|_| ())
}

/// A member that has its default roles, with a reader and an administrator of the namespace default.
async fn with_users() -> (std::sync::Arc<Authority>, Vec<Controller>) {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let roles = |state: &state::State| state.get(&object::key_of(Kind::ClusterRole, "", "view"));
    controller.until("the default roles are made", roles).await;
    controller.put(binding("reader", "view", "reader")).await;
    controller.put(binding("lead", "admin", "lead")).await;
    let robot = ServiceAccount {
        metadata: meta("robot"),
        ..Default::default()
    };
    controller.put(object::from(robot)).await;
    let of_robot = RoleBinding {
        subjects: vec![Bound {
            kind: "ServiceAccount".to_owned(),
            name: "robot".to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        }],
        ..object::into(binding("robot", "view", "")).unwrap()
    };
    controller.put(object::from(of_robot)).await;
    (ca, controllers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_lets_in_whom_the_table_says() {
    let table = table();
    let pool = DescriptorPool::decode(rpc::DESCRIPTORS).unwrap();
    let calls: BTreeSet<(String, String)> = pool
        .services()
        .flat_map(|service| {
            let methods: Vec<_> = service.methods().collect();
            methods
                .into_iter()
                .map(move |method| (service.name().to_owned(), method.name().to_owned()))
        })
        .collect();
    let rows: BTreeSet<(String, String)> = table
        .iter()
        .map(|(service, method, ..)| ((*service).to_owned(), (*method).to_owned()))
        .collect();
    assert_eq!(calls, rows, "each call of the schema needs a row");

    let (ca, controllers) = with_users().await;
    let controller = &controllers[0];
    let peers = controller.member().peer_address;
    let mut wrong = Vec::new();
    for who in EVERYBODY {
        let (to_api, to_peers) = (channel(&ca, &controller.api, who), channel(&ca, &peers, who));
        let token = token(&ca, &controller.node.stale(), who);
        for (service, method, request, may) in &table {
            let channel = match *service {
                "Raft" | "Relay" => &to_peers,
                _ => &to_api,
            };
            let path = format!("/bulkhead.rpc.v1.{service}/{method}");
            let answer = call(channel.clone(), token.as_ref(), &path, request.clone()).await;
            let found = let_in(answer.as_ref().map(|_| ()));
            if found != may.include(who) {
                wrong.push(format!("{service}.{method} as {who:?}: {may:?} may; {answer:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
