//! Members in one process, over loopback with mTLS, on real disks.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use proto::state::v1::{
    Command, CommandReply, Operation, Put, Token, TokenChange, Transaction, command, command_reply,
    operation, token_change,
};
use proto::v1::{ConfigMap, Namespace, Object, ObjectMeta, object};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use super::forward::COMMAND_BYTES_MAX;
use super::*;
use crate::security::ca::{Authority, Subject};
use crate::security::live::{ClientAuth, LiveCertificate};
use crate::security::unix_now;
use crate::store::Dir;
use crate::store::os::OsDir;
use crate::store::sim::{Fault, SimDir};
use seal::{Key, Keys};

/// A member that runs, with what ends it.
pub(super) struct Running<D: Dir = OsDir> {
    pub(super) node: Node<D>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

pub(super) struct Cluster {
    pub(super) ca: Authority,
    /// Of each member, by its number.
    keys: Vec<Keys>,
    pub(super) tmp: tempfile::TempDir,
    addresses: Vec<(MemberId, String)>,
    snapshot_entries: u64,
    /// Members that know less than this version.
    pub(super) levels: BTreeMap<MemberId, u32>,
}

/// More than any test has.
const MEMBERS_MAX: usize = 10;
/// How long a member that was stopped may go on with a snapshot that it was writing.
const UNLOCK_MAX: Duration = Duration::from_secs(10);

/// A member that starts again in another process finds its directories unlocked; in this one the worker of the member before
/// holds them until the snapshot that it was writing is done.
async fn open_dir(path: &Path) -> OsDir {
    let end = tokio::time::Instant::now() + UNLOCK_MAX;
    loop {
        match OsDir::open(path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::ResourceBusy => {
                assert!(tokio::time::Instant::now() < end, "{cause}");
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

pub(super) async fn open_dirs(path: &Path) -> (OsDir, OsDir) {
    (
        open_dir(&path.join("log")).await,
        open_dir(&path.join("snapshots")).await,
    )
}

impl Cluster {
    pub(super) fn new(snapshot_entries: u64) -> Self {
        let ca = Authority::generate("test", unix_now()).unwrap();
        Self {
            ca,
            keys: (0..MEMBERS_MAX)
                .map(|_| Keys::new(Path::new("storage.keys"), vec![Key::generate()]))
                .collect(),
            tmp: tempfile::tempdir().unwrap(),
            addresses: Vec::new(),
            snapshot_entries,
            levels: BTreeMap::new(),
        }
    }

    pub(super) fn config(&self, id: MemberId) -> NodeConfig {
        NodeConfig {
            snapshot_entries: self.snapshot_entries,
            keep_entries: self.snapshot_entries / 2,
            segment_bytes: 8 << 20,
            // Debug builds on a loaded machine: slower than the defaults, the same relations.
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(300), Duration::from_millis(600)),
            schema_level: self.levels.get(&id).copied().unwrap_or(state::SCHEMA_LEVEL),
            ..NodeConfig::new(id, self.keys[id as usize].clone())
        }
    }

    pub(super) fn member(&self, id: MemberId) -> Member {
        let (_, address) = self.addresses.iter().find(|(other, _)| *other == id).unwrap();
        Member {
            name: format!("c{id}"),
            address: String::new(),
            peer_address: address.clone(),
        }
    }

    pub(super) async fn start(&mut self, id: MemberId) -> Running {
        let (log, snapshots) = open_dirs(&self.tmp.path().join(id.to_string())).await;
        self.start_on(id, log, snapshots).await.unwrap()
    }

    pub(super) async fn start_on<D: Dir>(
        &mut self,
        id: MemberId,
        log: D,
        snapshots: D,
    ) -> Result<Running<D>, StartError> {
        let known = self
            .addresses
            .iter()
            .find(|(other, _)| *other == id)
            .map(|(_, address)| address.clone());
        let listener = TcpListener::bind(known.as_deref().unwrap_or("127.0.0.1:0"))
            .await
            .unwrap();
        if known.is_none() {
            self.addresses
                .push((id, listener.local_addr().unwrap().to_string()));
        }
        let issued = self
            .ca
            .issue(&Subject::Member { id, hosts: vec![] }, unix_now())
            .unwrap();
        let live = LiveCertificate::new(&issued).unwrap();
        let client = live.client_config(self.ca.certificate()).unwrap();
        let node = Node::start(self.config(id), log, snapshots, client).await?;
        let tls = live
            .server_config(self.ca.certificate(), ClientAuth::Required)
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = node.clone();
        let server = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or(()) };
            serving
                .serve(listener, tls, Routes::default(), stopped)
                .await
                .unwrap();
        });
        Ok(Running { node, stop, server })
    }

    /// Three voters.
    pub(super) async fn three(snapshot_entries: u64) -> (Self, Vec<Running>) {
        let mut cluster = Self::new(snapshot_entries);
        let running = cluster.start_three().await;
        (cluster, running)
    }

    /// Three voters, the first of them leads.
    pub(super) async fn start_three(&mut self) -> Vec<Running> {
        let first = self.start(1).await;
        first.node.initialize(self.member(1)).await.unwrap();
        let mut running = vec![first];
        for id in [2, 3] {
            running.push(self.start(id).await);
            running[0].node.add_learner(id, self.member(id)).await.unwrap();
            running[0].node.promote(id).await.unwrap();
        }
        running
    }
}

impl<D: Dir> Running<D> {
    /// Gone at once, as after a kill: nobody is told.
    pub(super) async fn kill(self) {
        self.server.abort();
        drop(self.stop);
        self.node.shutdown().await;
        assert!(self.server.await.unwrap_err().is_cancelled());
    }
}

pub(super) fn write(id: &str) -> Command {
    let token = Token {
        id: id.to_owned(),
        secret_hash: vec![7; 32],
        role: "node".to_owned(),
        uses_left: 1,
        expires: Some(pbjson_types::Timestamp {
            seconds: 1_700_003_600,
            nanos: 0,
        }),
        ..Token::default()
    };
    Command {
        request_id: format!("request-{id}"),
        time: Some(pbjson_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        level: 1,
        kind: Some(command::Kind::Token(TokenChange {
            change: Some(token_change::Change::Create(token)),
        })),
        ..Default::default()
    }
}

/// A namespace, once, and a ConfigMap in it that holds this many bytes.
pub(super) fn large_write(id: &str, bytes: usize) -> Command {
    let put = |object| Operation {
        operation: Some(operation::Operation::Put(Put {
            object: Some(Object { object: Some(object) }),
        })),
    };
    let meta = |name: &str, namespace: &str| ObjectMeta {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: format!("uid-{name}"),
        ..ObjectMeta::default()
    };
    let namespace = Namespace {
        metadata: Some(meta("test", "")),
        ..Namespace::default()
    };
    let data = [("key".to_owned(), "x".repeat(bytes))].into();
    let map = ConfigMap {
        metadata: Some(meta(id, "test")),
        data,
        ..ConfigMap::default()
    };
    let operations = vec![
        put(object::Object::Namespace(namespace)),
        put(object::Object::ConfigMap(map)),
    ];
    let transaction = Transaction {
        operations,
        ..Transaction::default()
    };
    Command {
        kind: Some(command::Kind::Transaction(transaction)),
        ..write(id)
    }
}

pub(super) fn applied(reply: CommandReply) {
    assert!(
        matches!(reply.reply, Some(command_reply::Reply::Applied(_))),
        "{reply:?}"
    );
}

pub(super) fn has(state: &state::State, id: &str) -> bool {
    let key = proto::state::v1::Key {
        kind: "ConfigMap".into(),
        namespace: "test".into(),
        name: id.into(),
    };
    state.token(id).is_some() || state.get(&key).is_some()
}

async fn leader(nodes: &[Running]) -> usize {
    let mut leadership = nodes[0].node.leadership();
    let found = leadership.wait_for(|now| {
        now.leader
            .is_some_and(|id| nodes.iter().any(|node| node.node.id() == id))
    });
    let id = tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .expect("someone leads")
        .unwrap()
        .leader;
    nodes.iter().position(|node| Some(node.node.id()) == id).unwrap()
}

/// Waits until this member has applied it too.
pub(super) async fn arrives(node: &Running, id: &str) {
    let mut applied = node.node.applied();
    let arrived = applied.wait_for(|applied| has(&applied.state, id));
    tokio::time::timeout(Duration::from_secs(20), arrived)
        .await
        .expect("it arrives")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_at_any_member_are_read_at_any_other() {
    let (_cluster, nodes) = Cluster::three(1000).await;
    for (i, node) in nodes.iter().enumerate() {
        applied(node.node.propose(write(&format!("t{i}"))).await.unwrap());
        for other in &nodes {
            assert!(has(&other.node.read().await.unwrap(), &format!("t{i}")));
        }
    }
    let members = nodes[2].node.members();
    assert_eq!(
        members
            .iter()
            .map(|member| (member.id, member.voter))
            .collect::<Vec<_>>(),
        [(1, true), (2, true), (3, true)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_changes_nothing_more() {
    let (_cluster, nodes) = Cluster::three(1000).await;
    let first = nodes[0].node.propose(write("a")).await.unwrap();
    let again = nodes[1].node.propose(write("a")).await.unwrap();
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_goes_on_without_its_leader_and_takes_it_back() {
    let (mut cluster, mut nodes) = Cluster::three(1000).await;
    applied(nodes[1].node.propose(write("before")).await.unwrap());
    let killed = nodes.swap_remove(leader(&nodes).await);
    let id = killed.node.id();
    killed.kill().await;
    let begun = Instant::now();
    applied(nodes[0].node.propose(write("after")).await.unwrap());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(has(&nodes[1].node.read().await.unwrap(), "before"));
    let back = cluster.start(id).await;
    arrives(&back, "after").await;
    assert!(has(&back.node.read().await.unwrap(), "before"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_members_keeps_everything() {
    let (mut cluster, nodes) = Cluster::three(20).await;
    for i in 0..100 {
        applied(nodes[i % 3].node.propose(write(&format!("t{i}"))).await.unwrap());
    }
    let before = nodes[0].node.read().await.unwrap();
    for node in nodes {
        node.kill().await;
    }
    let mut nodes = Vec::new();
    for id in [1, 2, 3] {
        nodes.push(cluster.start(id).await);
    }
    for node in &nodes {
        node.node.recovered().await;
        let after = node.node.read().await.unwrap();
        assert_eq!(after.revision(), before.revision());
        assert!((0..100).all(|i| has(&after, &format!("t{i}"))));
    }
}

/// A leader sends entries on before they are on its own disk. One that is killed in between has lost what the others have
/// committed; leading on as if nothing had been there, it would put other entries into the same places of the same term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_what_others_have_does_not_lead_on() {
    let mut cluster = Cluster::new(1000);
    let log = SimDir::new(Fault::None, 1);
    let snapshots = SimDir::new(Fault::None, 2);
    let first = cluster.start_on(1, log.clone(), snapshots.clone()).await.unwrap();
    first.node.initialize(cluster.member(1)).await.unwrap();
    let mut others = Vec::new();
    for id in [2, 3] {
        others.push(cluster.start(id).await);
        first.node.add_learner(id, cluster.member(id)).await.unwrap();
        first.node.promote(id).await.unwrap();
    }
    applied(first.node.propose(write("before")).await.unwrap());
    log.stall();
    let leader = first.node.clone();
    let sent = tokio::spawn(async move { leader.propose(write("sent")).await });
    // On two disks of three: committed, whatever becomes of the leader's own.
    for other in &others {
        let mut metrics = other.node.raft().metrics();
        let before = first.node.progress().applied_index;
        let reached = async {
            while metrics.borrow_watched().last_log_index <= Some(before) {
                metrics.changed().await.unwrap();
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
        reached.expect("the entry goes to the others before it is on the leader's disk");
    }
    let (log, snapshots) = (log.after_crash(Fault::None), snapshots.after_crash(Fault::None));
    first.kill().await;
    drop(sent.await.unwrap()); // nobody was told, or everybody: both are right
    let first = cluster.start_on(1, log, snapshots).await.unwrap();
    applied(first.node.propose(write("after")).await.unwrap());
    let state = first.node.read().await.unwrap();
    assert!(has(&state, "sent"), "two of three had it on their disks");
    for other in &others {
        let theirs = other.node.read().await.unwrap();
        assert!(["before", "sent", "after"].iter().all(|id| has(&theirs, id)));
        assert_eq!(theirs.revision(), state.revision());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_alone_leads_again() {
    let mut cluster = Cluster::new(1000);
    let first = cluster.start(1).await;
    first.node.initialize(cluster.member(1)).await.unwrap();
    applied(first.node.propose(write("before")).await.unwrap());
    first.kill().await;
    let first = cluster.start(1).await;
    first.node.recovered().await;
    assert!(has(&first.node.read().await.unwrap(), "before"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_learner_gets_a_snapshot() {
    let mut cluster = Cluster::new(20);
    let first = cluster.start(1).await;
    first.node.initialize(cluster.member(1)).await.unwrap();
    for i in 0..200 {
        applied(
            first
                .node
                .propose(large_write(&format!("t{i}"), 20_000))
                .await
                .unwrap(),
        );
    }
    // The log's beginning is gone, so that a snapshot is the only way.
    let mut metrics = first.node.raft().metrics();
    let purged = async {
        while metrics.borrow_watched().purged.is_none() {
            metrics.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), purged)
        .await
        .expect("the log is purged");
    let late = cluster.start(7).await;
    let mut changes = late.node.changes();
    first.node.add_learner(7, cluster.member(7)).await.unwrap();
    arrives(&late, "t199").await;
    assert!(has(&late.node.stale(), "t0"));
    assert!(matches!(changes.recv().await.unwrap(), Changed::All));
    let mut metrics = late.node.raft().server_metrics();
    let listed = async {
        while late.node.members().len() < 2 {
            metrics.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listed)
        .await
        .expect("it learns who is there");
    assert!(!late.node.members()[1].voter);
    // It votes once promoted, and knows the rest after the first is gone.
    first.node.promote(7).await.unwrap();
    late.node.transfer_leadership(7).await.unwrap();
    let mut leadership = late.node.leadership();
    let leads = leadership.wait_for(|now| now.is_me);
    tokio::time::timeout(Duration::from_secs(20), leads)
        .await
        .expect("it leads")
        .unwrap();
    late.node.remove(1).await.unwrap();
    first.kill().await;
    applied(late.node.propose(write("alone")).await.unwrap());
}

#[tokio::test]
async fn a_member_that_has_stopped_looks_for_no_leader() {
    let mut cluster = Cluster::new(1000);
    let only = cluster.start(1).await;
    only.node.initialize(cluster.member(1)).await.unwrap();
    only.node.propose(write("a")).await.unwrap();
    let node = only.node.clone();
    only.kill().await;
    let mut leadership = node.leadership();
    while leadership.changed().await.is_ok() {} // nothing comes of it any more
    let read = node.read().await.err().unwrap();
    assert!(matches!(read, ReadError::Stopped { .. }), "{read}");
    let written = node.propose(write("b")).await.unwrap_err();
    assert!(matches!(written, ProposeError::Stopped { .. }), "{written}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_most_members_nothing_is_acknowledged() {
    let (_cluster, mut nodes) = Cluster::three(1000).await;
    nodes.pop().unwrap().kill().await;
    nodes.pop().unwrap().kill().await;
    let fourth = Member {
        name: "c4".to_owned(),
        ..Member::default()
    };
    let (written, added, read) = tokio::join!(
        nodes[0].node.propose(write("lost")),
        nodes[0].node.add_learner(4, fourth),
        nodes[0].node.read()
    );
    // Also not when it is asked for again and stands in the leader's own log already.
    assert!(matches!(added, Err(ChangeError::Unknown(_))), "{added:?}");
    assert!(
        matches!(
            written,
            Err(ProposeError::NoLeader | ProposeError::Unknown { .. })
        ),
        "{written:?}"
    );
    assert!(matches!(read, Err(ReadError::NoLeader)), "{:?}", read.map(|_| ()));
    assert!(!has(&nodes[0].node.stale(), "lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_the_largest_size_is_taken_and_one_byte_more_refused() {
    let (_cluster, nodes) = Cluster::three(1000).await;
    let overhead = prost::Message::encoded_len(&large_write("a", 1 << 22)) - (1 << 22);
    // Replicated and applied, which says that an object may not be so large.
    let reply = nodes[0]
        .node
        .propose(large_write("a", COMMAND_BYTES_MAX - overhead))
        .await
        .unwrap();
    assert!(
        matches!(reply.reply, Some(command_reply::Reply::Refused(_))),
        "{reply:?}"
    );
    applied(nodes[2].node.propose(write("b")).await.unwrap());
    let refused = nodes[0]
        .node
        .propose(large_write("b", COMMAND_BYTES_MAX - overhead + 1))
        .await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_may_speak_to_members() {
    let mut cluster = Cluster::new(1000);
    let first = cluster.start(1).await;
    first.node.initialize(cluster.member(1)).await.unwrap();
    first.node.read().await.unwrap();
    let call = async |subject: Subject| {
        let issued = cluster.ca.issue(&subject, unix_now()).unwrap();
        let identity = (issued.certificate.as_str(), issued.key.as_str());
        let endpoints = [cluster.member(1).peer_address];
        let channel = rpc::tls::channel(&endpoints, cluster.ca.certificate(), Some(identity)).unwrap();
        let mut client = rpc::v1::raft_client::RaftClient::new(channel);
        client
            .read_index(rpc::v1::ReadIndexRequest {})
            .await
            .map_err(|status| status.code())
    };
    assert!(call(Subject::Member { id: 1, hosts: vec![] }).await.is_ok());
    for other in [
        Subject::Node { name: "n1".into() },
        Subject::Admin { name: "admin".into() },
        Subject::Member { id: 9, hosts: vec![] }, // removed, or never added
    ] {
        assert_eq!(call(other).await.unwrap_err(), tonic::Code::PermissionDenied);
    }
}
