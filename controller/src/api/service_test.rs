//! The service over a real member of one: its log on disk, its state, its watches.

use std::time::Duration;

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use model::{Kind, object};
use proto::state::v1::{ClusterSettings, DeleteOp, command};
use proto::v1::{ConfigMap, ObjectMeta};
use rpc::v1::api_client::ApiClient;
use rpc::v1::api_server::Api;
use rpc::v1::{ApplyItem, MembersRequest};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Server};

use super::*;
use crate::figures::Figures;
use crate::raft::{Member, NodeConfig};
use crate::security::ca::Subject;
use crate::security::identity::{ADMINS, Identity};
use crate::security::listen::accept;
use crate::security::live::{ClientAuth, LiveCertificate};
use crate::security::revoked::Revoked;
use crate::security::{new_uuid, unix_now};
use crate::session::Sessions;
use crate::status::Reports;
use crate::store::Disk;
use crate::store::os::OsDir;
use seal::{Key, Keys};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A call as the guard hands it on.
pub(super) fn by<T>(name: &str, groups: &[&str], message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Identity::User {
        name: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    });
    request
}

pub(super) fn by_admin<T>(message: T) -> Request<T> {
    by("admin", &[ADMINS], message)
}

pub(super) struct One {
    pub(super) service: Service,
    authority: Arc<Authority>,
    live: LiveCertificate,
    _running: watch::Sender<bool>,
    tmp: tempfile::TempDir,
}

impl One {
    /// Where it keeps everything.
    pub(super) fn directory(&self) -> &std::path::Path {
        self.tmp.path()
    }

    pub(super) async fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::generate("test", unix_now()).unwrap());
        let subject = Subject::Member {
            id: 1,
            hosts: vec!["127.0.0.1".to_owned()],
        };
        let live = LiveCertificate::new(&authority.issue(&subject, unix_now()).unwrap()).unwrap();
        let config = NodeConfig {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(300), Duration::from_millis(600)),
            segment_bytes: 8 << 20,
            ..NodeConfig::new(1, Keys::new(tmp.path(), vec![Key::generate()]))
        };
        let open = |name: &str| Disk::from(OsDir::open(&tmp.path().join(name)).unwrap());
        let tls = live.client_config(authority.certificate()).unwrap();
        let node = Node::start(config, open("log"), open("snapshots"), tls)
            .await
            .unwrap();
        let me = Member {
            name: "c1".to_owned(),
            address: "127.0.0.1:7443".to_owned(),
            peer_address: "127.0.0.1:7444".to_owned(),
        };
        node.initialize(me).await.unwrap();
        let reports = Reports::default();
        let calls = Calls::new(node.clone(), Sessions::new(reports));
        let (running, stopped) = watch::channel(false);
        let audit = Audit::open(&tmp.path().join("audit"), "c1").unwrap();
        let service = Service::new(node, Events::new(), calls, authority.clone(), audit, stopped);
        let settings = ClusterSettings {
            cluster_id: "the-cluster".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        };
        let body = command::Kind::Settings(settings);
        let by = By {
            actor: String::new(),
            verb: String::new(),
        };
        service.propose(&by, new_uuid(), body).await.unwrap().unwrap();
        Self {
            service,
            authority,
            live,
            _running: running,
            tmp,
        }
    }

    async fn apply(&self, objects: Vec<Object>, request: &str) -> Result<ApplyResponse, Status> {
        let items = objects.into_iter().map(|object| ApplyItem {
            object: Some(object),
            ..Default::default()
        });
        let request = ApplyRequest {
            items: items.collect(),
            request_id: request.to_owned(),
            ..Default::default()
        };
        self.service
            .apply(by_admin(request))
            .await
            .map(Response::into_inner)
    }

    async fn watch(&self, revision: u64, labels: &str) -> BoxStream<'static, Result<WatchEvent, Status>> {
        let request = WatchRequest {
            kind: "ConfigMap".to_owned(),
            label_selector: labels.to_owned(),
            revision,
            ..Default::default()
        };
        self.service.watch(by_admin(request)).await.unwrap().into_inner()
    }

    async fn list(&self, limit: u32, go_on: &str) -> Result<ListResponse, Status> {
        let request = ListRequest {
            kind: "ConfigMap".to_owned(),
            namespace: "default".to_owned(),
            limit,
            r#continue: go_on.to_owned(),
            ..Default::default()
        };
        self.service
            .list(by_admin(request))
            .await
            .map(Response::into_inner)
    }

    async fn get(&self, name: &str) -> Result<Object, Status> {
        let request = GetRequest {
            key: Some(object::key_of(Kind::ConfigMap, "", name)),
            stale: false,
        };
        self.service
            .get(by_admin(request))
            .await
            .map(Response::into_inner)
    }

    async fn delete(&self, name: &str, dry_run: bool) -> Result<DeleteResponse, Status> {
        let request = DeleteRequest {
            targets: vec![DeleteOp {
                key: Some(object::key_of(Kind::ConfigMap, "default", name)),
                ..Default::default()
            }],
            dry_run,
            request_id: String::new(),
        };
        self.service
            .delete(by_admin(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn client(&self, subject: Option<Subject>) -> ApiClient<Channel> {
        ApiClient::new(self.channel(subject).await)
    }

    /// Over TLS, with a certificate of this subject or none.
    async fn channel(&self, subject: Option<Subject>) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ca = self.authority.certificate();
        let tls = self.live.server_config(ca, ClientAuth::Optional).unwrap();
        let server = ApiServer::new(self.service.clone()).max_decoding_message_size(wire::MESSAGE_BYTES_MAX);
        let bearers = Bearers::new(self.service.node.clone(), self.authority.account_key().clone());
        let serving = Server::builder()
            .add_routes(Routes::new(Guard::new(
                server,
                bearers,
                self.service.audit.clone(),
                Figures::default(),
            )))
            .serve_with_incoming(accept(listener, tls.into(), 16, Revoked::nothing()));
        tokio::spawn(serving);
        let issued = subject.map(|subject| self.authority.issue(&subject, unix_now()).unwrap());
        let identity = issued
            .as_ref()
            .map(|issued| (issued.certificate.as_str(), issued.key.as_str()));
        rpc::tls::channel(&[address], ca, identity).unwrap()
    }
}

fn map(name: &str, value: &str, colour: &str) -> Object {
    object::from(ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            labels: [("colour".to_owned(), colour.to_owned())].into(),
            ..Default::default()
        }),
        data: [("key".to_owned(), value.to_owned())].into(),
        ..Default::default()
    })
}

fn outcomes(answer: &ApplyResponse) -> Vec<&str> {
    answer
        .results
        .iter()
        .map(|result| result.outcome.as_str())
        .collect()
}

async fn next(stream: &mut BoxStream<'static, Result<WatchEvent, Status>>) -> (String, String) {
    let event = tokio::time::timeout(PATIENCE, stream.next())
        .await
        .expect("something is shown");
    let event = event.unwrap().unwrap();
    let name = event.object.map(|object| object::meta(&object).name.clone());
    (event.r#type, name.unwrap_or_default())
}

fn shown(happened: &str, name: &str) -> (String, String) {
    (happened.to_owned(), name.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_is_got_listed_watched_and_deleted() {
    let one = One::new().await;
    let mut all = one.watch(0, "").await;
    assert_eq!(next(&mut all).await, shown("BOOKMARK", ""));
    let answer = one
        .apply(vec![map("a", "1", "red"), map("b", "1", "red")], "r1")
        .await
        .unwrap();
    assert_eq!(outcomes(&answer), ["created", "created"]);
    assert_eq!(next(&mut all).await, shown("ADDED", "a"));
    assert_eq!(next(&mut all).await, shown("ADDED", "b"));
    let got = one.get("a").await.unwrap();
    assert_eq!(object::meta(&got).namespace, "default");
    assert!(!object::meta(&got).uid.is_empty());

    // From the revision of a list on, by label.
    let listed = one.list(0, "").await.unwrap();
    assert_eq!((listed.items.len(), listed.revision), (2, answer.revision));
    let mut red = one.watch(listed.revision, "colour=red").await;
    one.apply(vec![map("a", "1", "blue")], "r2").await.unwrap();
    assert_eq!(next(&mut red).await, shown("DELETED", "a"));
    one.apply(vec![map("a", "2", "blue")], "r3").await.unwrap();
    one.apply(vec![map("a", "2", "red")], "r4").await.unwrap();
    assert_eq!(next(&mut red).await, shown("ADDED", "a"));

    one.delete("a", true).await.unwrap();
    assert!(one.get("a").await.is_ok(), "a dry run changes nothing");
    one.delete("a", false).await.unwrap();
    assert_eq!(next(&mut red).await, shown("DELETED", "a"));
    let gone = one.get("a").await.unwrap_err();
    assert_eq!(
        (gone.code(), gone.message()),
        (Code::NotFound, "configmap a not found in namespace default")
    );
    assert_eq!(one.delete("a", false).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_writes_once_and_a_refusal_changes_nothing() {
    let one = One::new().await;
    let first = one.apply(vec![map("a", "1", "red")], "r1").await.unwrap();
    let again = one.apply(vec![map("a", "1", "red")], "r1").await.unwrap();
    assert_eq!(first, again);
    let mut nowhere = map("lost", "1", "red");
    object::meta_mut(&mut nowhere).namespace = "nowhere".to_owned();
    let refused = one
        .apply(vec![map("b", "1", "red"), nowhere], "r2")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("nowhere"), "{}", refused.message());
    assert_eq!(one.get("b").await.unwrap_err().code(), Code::NotFound);
    let dry = ApplyRequest {
        items: vec![ApplyItem {
            object: Some(map("b", "1", "red")),
            ..Default::default()
        }],
        dry_run: true,
        request_id: "r3".to_owned(),
        ..Default::default()
    };
    let answer = one.service.apply(by_admin(dry)).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), ["created"]);
    assert_eq!(one.get("b").await.unwrap_err().code(), Code::NotFound);
}

/// What it has itself may be out of date: only what is written rests on it.
#[tokio::test]
async fn an_apply_that_writes_nothing_is_not_answered_from_what_one_member_has() {
    let one = One::new().await;
    one.apply(vec![map("a", "1", "red")], "r1").await.unwrap();
    one.service.node.clone().shutdown().await;
    let mut elsewhere = map("b", "1", "red");
    object::meta_mut(&mut elsewhere).namespace = "absent".to_owned();
    for (object, request) in [(map("a", "1", "red"), "r2"), (elsewhere, "r3")] {
        let refused = one.apply(vec![object], request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_one_object_all_get_through() {
    let one = Arc::new(One::new().await);
    one.apply(vec![map("a", "0", "red")], "").await.unwrap();
    let writers = (0..8).map(|number| {
        let one = one.clone();
        tokio::spawn(async move { one.apply(vec![map("a", &number.to_string(), "red")], "").await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_at_the_revision_at_which_it_began() {
    let one = One::new().await;
    let maps = (0..5).map(|number| map(&format!("m{number}"), "1", "red"));
    one.apply(maps.collect(), "").await.unwrap();
    let first = one.list(2, "").await.unwrap();
    assert_eq!(first.items.len(), 2);
    one.delete("m4", false).await.unwrap();
    let second = one.list(2, &first.r#continue).await.unwrap();
    let third = one.list(2, &second.r#continue).await.unwrap();
    assert_eq!(third.revision, first.revision);
    assert_eq!(object::meta(&third.items[0]).name, "m4");
    assert!(third.r#continue.is_empty());
    let gone = one.list(2, "1:1:default/m1").await.unwrap_err();
    assert_eq!(gone.code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_made_shown_without_hash_and_revoked() {
    let one = One::new().await;
    let request = CreateTokenRequest {
        role: "node".to_owned(),
        ..Default::default()
    };
    let made = one
        .service
        .create_token(by_admin(request))
        .await
        .unwrap()
        .into_inner();
    let text: rpc::token::JoinToken = made.token.parse().unwrap();
    assert_eq!(text.ca_sha256, one.authority.sha256());
    let list = || async {
        let listed = one.service.list_tokens(by_admin(ListTokensRequest {})).await;
        listed.unwrap().into_inner().tokens
    };
    let listed = list().await;
    assert_eq!((listed.len(), listed[0].secret_hash.len()), (1, 0));
    let revoke = || {
        let request = RevokeTokenRequest { id: text.id.clone() };
        one.service.revoke_token(by_admin(request))
    };
    revoke().await.unwrap();
    assert!(list().await.is_empty());
    assert_eq!(revoke().await.unwrap_err().code(), Code::NotFound);
    let members = one
        .service
        .members(by_admin(MembersRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.cluster_id, "the-cluster");
    assert_eq!(members.members[0].role, "leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_listed_and_watched_like_objects() {
    let one = One::new().await;
    one.apply(vec![map("a", "1", "red")], "").await.unwrap();
    let about = one.get("a").await.unwrap();
    let event =
        |reason: &str| crate::events::about(&about, "Normal", reason, "said".to_owned(), "controller", 5_000);
    one.service.events.record(vec![event("One")]);
    let fields = "involvedObject.kind=ConfigMap,involvedObject.name=a";
    let request = ListRequest {
        kind: "Event".to_owned(),
        field_selector: fields.to_owned(),
        ..Default::default()
    };
    let listed = one.service.list(by_admin(request)).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 1);
    let request = WatchRequest {
        kind: "Event".to_owned(),
        namespace: "default".to_owned(),
        field_selector: fields.to_owned(),
        revision: listed.revision,
        ..Default::default()
    };
    let mut watched = one.service.watch(by_admin(request)).await.unwrap().into_inner();
    one.service.events.record(vec![event("Two"), event("Two")]);
    assert_eq!(next(&mut watched).await.0, "ADDED");
    assert_eq!(next(&mut watched).await.0, "MODIFIED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_users_call() {
    let one = One::new().await;
    let admin = Subject::Admin {
        name: "admin".to_owned(),
    };
    let version = async |subject: Option<Subject>| {
        let mut client = one.client(subject).await;
        client.version(VersionRequest {}).await.map(Response::into_inner)
    };
    assert_eq!(
        version(Some(admin.clone())).await.unwrap().schema_level,
        SCHEMA_LEVEL
    );
    assert_eq!(version(None).await.unwrap_err().code(), Code::Unauthenticated);
    let node = Subject::Node {
        name: "n1".to_owned(),
    };
    assert_eq!(
        version(Some(node)).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let mut client = one.client(Some(admin)).await;
    let items = vec![ApplyItem {
        object: Some(map("wire", "1", "red")),
        ..Default::default()
    }];
    let request = ApplyRequest {
        items,
        ..Default::default()
    };
    let answer = client.apply(request).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), ["created"]);
    let request = HistoryRequest {
        key: Some(object::key_of(Kind::ConfigMap, "default", "wire")),
        revision: 0,
    };
    let history = client.history(request).await.unwrap().into_inner().entries;
    let by: Vec<_> = history
        .iter()
        .map(|it| (it.actor.as_str(), it.verb.as_str()))
        .collect();
    assert_eq!(by, [("admin", "apply")], "the name of the certificate");
    let request = WatchRequest {
        kind: "ConfigMap".to_owned(),
        ..Default::default()
    };
    let mut watched = client.watch(request).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().r#type, "ADDED");
}

/// Messages as bytes, as a client of a newer schema may send them.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_of_a_newer_schema_is_refused_in_one_message_and_in_many() {
    let one = One::new().await;
    let admin = Subject::Admin {
        name: "admin".to_owned(),
    };
    let mut client = Grpc::new(one.channel(Some(admin)).await);
    let path = PathAndQuery::from_static;
    let newer = vec![0x9a, 0x06, 1, b'x']; // field 99
    client.ready().await.unwrap();
    let refused = client
        .unary(
            Request::new(newer.clone()),
            path("/bulkhead.rpc.v1.Api/Members"),
            Raw,
        )
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("#99"), "{}", refused.message());
    client.ready().await.unwrap();
    let understood = client
        .unary(
            Request::new(Vec::new()),
            path("/bulkhead.rpc.v1.Api/Members"),
            Raw,
        )
        .await;
    assert!(understood.is_ok(), "{understood:?}");
    client.ready().await.unwrap();
    let many = tokio_stream::iter([newer]);
    let refused = client
        .streaming(Request::new(many), path("/bulkhead.rpc.v1.Api/Exec"), Raw)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("#99"), "{}", refused.message());
}
