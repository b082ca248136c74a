//! One member of the cluster: the handle through which the rest of the process writes, reads and learns who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError};
use openraft::{Config, Raft, ReadPolicy, SnapshotPolicy};
use prometheus_client::metrics::histogram::Histogram;
use proto::state::v1::CommandReply;
use rpc::tls::TlsError;
use rpc::v1::ProgressReply;
use seal::Keys;
use state::{Revocations, SCHEMA_LEVEL, State};
use tokio::sync::{Semaphore, broadcast, watch};

use super::disk;
use super::forward::COMMAND_BYTES_MAX;
use super::gather::Gather;
use super::log::{LogError, LogStore, SEGMENT_BYTES, WriteBy};
use super::machine::{Applied, Changed, Published, StateMachine};
use super::network::Network;
use super::peers::{Channel, Lane, Peers};
use super::snapshot::{SnapshotError, Snapshots};
use super::types::{LogId, Member, MemberId, Proposal, Types};
use crate::figures::SECONDS;
use crate::store::{Dir, Disk, NearlyFull, Watched};

/// The leader gives a proposal this long; then its fate is unknown and the proposer asks again.
pub(super) const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// KiB of proposals that the leader works on at a time; more wait, and are refused when that takes too long.
const PROPOSALS_KIB_MAX: u32 = 64 << 10;
const _: () = assert!(
    PROPOSALS_KIB_MAX as usize > COMMAND_BYTES_MAX / 1024,
    "the largest one fits"
);
/// A restarted member waits this long for a leader before it serves what it has.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a member.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its number.
    pub id: MemberId,
    /// What it writes to the disk is sealed with these.
    pub keys: Keys,
    /// How often the leader says that it is there.
    pub heartbeat: Duration,
    /// Shortest and longest wait of a follower before it stands for election, beyond the longest.
    pub election: (Duration, Duration),
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot: members that lag less need no snapshot, and the library never purges what it is
    /// about to apply (its issue 2116).
    pub keep_entries: u64,
    /// Size of log segments.
    pub segment_bytes: u32,
    /// Who writes to the disk.
    pub write_by: WriteBy,
    /// The newest schema level that it takes part at: less than it knows only in tests of members of different versions.
    pub schema_level: u32,
}

impl NodeConfig {
    /// The defaults.
    pub fn new(id: MemberId, keys: Keys) -> Self {
        Self {
            id,
            keys,
            heartbeat: Duration::from_millis(50),
            // A leader is missed after 0.4 to 0.8 s: below a second, and above what a busy machine stalls.
            election: (Duration::from_millis(200), Duration::from_millis(400)),
            snapshot_entries: 20_000,
            keep_entries: 10_000,
            segment_bytes: SEGMENT_BYTES,
            write_by: WriteBy::Thread,
            schema_level: SCHEMA_LEVEL,
        }
    }

    fn library(&self) -> Result<Config, StartError> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        Config {
            cluster_name: "bulkhead".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election.0),
            election_timeout_max: millis(self.election.1),
            // A leader sends entries on before they are on its own disk, so that the disks of all work at once. One that is
            // killed between the two starts without what others may have: it must not go on leading in the same term,
            // where it would put other entries into the same places. It stands for election like everyone.
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true), // a member that comes back must not depose a leader that works
            // A leader that is heard and hears nobody would be followed for ever, and commit nothing: it falls silent for as
            // long as the others need to elect another one.
            quorum_loss_probe_interval: Some(3 * millis(self.election.1)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.keep_entries / 2,
            purge_batch_size: (self.keep_entries / 4).max(1),
            ..Config::default()
        }
        .validate()
        .map_err(|cause| StartError::Config(cause.to_string()))
    }
}

/// Why a member can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Timings that contradict each other, for example.
    #[error("the Raft settings are not usable: {0}")]
    Config(String),
    /// The log.
    #[error("failed to open the log")]
    Log(#[from] LogError),
    /// The snapshot.
    #[error("failed to open the snapshot")]
    Snapshot(#[from] SnapshotError),
    /// Replay of what is on disk.
    #[error("failed to start consensus: {0}")]
    Consensus(String),
}

/// Who leads, as far as this member knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// None while there is nobody.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: u64,
    /// This member. A new leader calls [`Node::read`] first: then all that was committed before it is applied here.
    pub is_me: bool,
}

/// The leader did it, or somebody else leads.
pub(super) enum At<T> {
    Leader(T),
    Other(Option<MemberId>),
}

/// The leader could not do it.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may still happen.
    Unknown(String),
    /// It can't be done.
    Invalid(String),
    /// Too much is under way; nothing happened.
    Overloaded,
    /// The disk is nearly full; nothing happened.
    NearlyFull(String),
    /// This member's consensus has ended.
    Stopped(String),
}

/// The handle; clones are the same member.
pub struct Node<D: Dir = Disk> {
    pub(super) inner: Arc<Inner<D>>,
}

impl<D: Dir> Clone for Node<D> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

/// How long consensus takes, in seconds.
#[derive(Clone, Debug)]
pub struct Timings {
    /// Of commands, from this member's asking to the answer.
    pub proposals: Histogram,
    /// Of writes to the log's disk, with their sync.
    pub log_writes: Histogram,
}

pub(super) struct Inner<D: Dir> {
    pub(super) id: MemberId,
    write_by: WriteBy,
    schema_level: u32,
    raft: Raft<Types, StateMachine<D>>,
    snapshots: Snapshots<D>,
    pub(super) published: Published,
    pub(super) peers: Peers,
    pub(super) leadership: watch::Receiver<Leadership>,
    proposals: Semaphore,
    pub(super) gather: Gather,
    pub(super) timings: Timings,
    /// Of the log. Whoever holds it keeps other processes out: only this does.
    pub(super) directory: D,
    pub(super) room: Watched,
    /// Why no entry would find a place on most of the voters' disks, on the leader.
    pub(super) full_majority: ArcSwapOption<String>,
}

impl<D: Dir> Node<D> {
    /// Opens what is on disk and begins to take part. `log` and `snapshots` are directories of this member's own; `peers`
    /// is how it reaches the others. A new cluster also needs [`Node::initialize`].
    pub async fn start(
        config: NodeConfig,
        log: D,
        snapshots: D,
        peers: impl Into<Peers>,
    ) -> Result<Self, StartError> {
        let library = Arc::new(config.library()?);
        let published = Published::new();
        let peers = peers.into();
        let (segment_bytes, write_by) = (config.segment_bytes, config.write_by);
        let keys = config.keys;
        let room = Watched::default();
        disk::look(&room, &log, config.id);
        let directory = log.clone();
        let open = move || -> Result<_, StartError> {
            // The log last: it may begin a segment, and with a key missing nothing is to be written.
            let snapshots = Snapshots::open(snapshots, keys.clone())?;
            Ok((LogStore::open(log, segment_bytes, keys, write_by)?, snapshots))
        };
        let opened = match write_by {
            WriteBy::Caller | WriteBy::Task => open(),
            WriteBy::Thread => match tokio::task::spawn_blocking(open).await {
                Ok(opened) => opened,
                Err(cause) => return Err(StartError::Consensus(cause.to_string())),
            },
        };
        let (store, snapshots) = opened?;
        let timings = Timings {
            proposals: Histogram::new(SECONDS),
            log_writes: store.writes().clone(),
        };
        let machine = StateMachine::new(
            snapshots.clone(),
            write_by,
            config.schema_level,
            published.clone(),
        );
        let network = Network {
            peers: peers.clone(),
            disk: PhantomData,
        };
        let raft = Raft::new(config.id, library, network, store, machine).await;
        let raft = raft.map_err(|cause| StartError::Consensus(cause.to_string()))?;
        let leadership = follow(&raft, config.id);
        // A member that is alone has nobody to wait for; the others' timers find out who leads.
        let alone = BTreeSet::from([config.id]);
        let metrics = raft.server_metrics();
        let voters: BTreeSet<MemberId> = metrics.borrow_watched().membership_config.voter_ids().collect();
        if voters == alone {
            let elected = raft.trigger().elect(true).await;
            elected.map_err(|cause| StartError::Consensus(cause.to_string()))?;
        }
        let (gather, gathered) = Gather::new();
        let inner = Arc::new(Inner {
            id: config.id,
            write_by,
            schema_level: config.schema_level,
            raft,
            snapshots,
            published,
            peers,
            leadership,
            proposals: Semaphore::new(PROPOSALS_KIB_MAX as usize),
            gather,
            timings,
            directory,
            room,
            full_majority: ArcSwapOption::empty(),
        });
        gathered.carry(&Arc::downgrade(&inner));
        tokio::spawn(disk::watch(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Makes this the first and only member of a new cluster; nothing when it already is in one.
    pub async fn initialize(&self, me: Member) -> Result<(), StartError> {
        let stopped = |cause: String| StartError::Consensus(cause);
        if self
            .raft()
            .is_initialized()
            .await
            .map_err(|cause| stopped(cause.to_string()))?
        {
            return Ok(());
        }
        let members = BTreeMap::from([(self.inner.id, me)]);
        self.raft()
            .initialize(members)
            .await
            .map_err(|cause| stopped(cause.to_string()))
    }

    /// Whether nothing was ever written here.
    pub async fn is_new(&self) -> Result<bool, StartError> {
        let initialized = self.raft().is_initialized().await;
        initialized
            .map(|initialized| !initialized)
            .map_err(|cause| StartError::Consensus(cause.to_string()))
    }

    /// After a restart: returns when what was committed before is applied again, or when nobody leads for so long that
    /// serving what is here is better than nothing.
    pub async fn recovered(&self) {
        if let Err(cause) = self.raft().wait_for_recovery(Some(RECOVERY_TIMEOUT)).await {
            tracing::warn!(error = %cause, "serving before a leader was found: reads may be behind");
        }
    }

    /// This member's number.
    pub fn id(&self) -> MemberId {
        self.inner.id
    }

    /// How long consensus takes.
    pub fn timings(&self) -> &Timings {
        &self.inner.timings
    }

    /// The newest schema level that this member can apply.
    pub(crate) fn schema_level(&self) -> u32 {
        self.inner.schema_level
    }

    /// What this member has applied: possibly behind the leader.
    pub fn stale(&self) -> State {
        self.inner.published.applied.borrow().state.clone()
    }

    /// Certificates that are refused, as far as this member has applied, as they change.
    pub(crate) fn revocations(&self) -> watch::Receiver<Revocations> {
        self.inner.published.revocations.subscribe()
    }

    /// What this member has applied, as it moves.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.inner.published.applied.subscribe()
    }

    /// Every change from now on. Take this first, then [`Node::stale`]: what is in both has the same revision. A reader
    /// that lags too far gets `Lagged` and lists again.
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.inner.published.changes.subscribe()
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// How far this member is.
    pub fn progress(&self) -> ProgressReply {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        ProgressReply {
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            term: metrics.current_term,
            nearly_full: self.nearly_full().is_some(),
            schema_level: self.inner.schema_level,
        }
    }

    /// The connection for calls to another member; None when it is not in the cluster.
    pub fn peer_channel(&self, id: MemberId) -> Option<Result<Channel, TlsError>> {
        let member = self.members().into_iter().find(|member| member.id == id)?.member;
        Some(self.inner.peers.channel(id, &member, Lane::Calls))
    }

    /// Resolves when consensus has ended in this process, with the reason: the process has to end too.
    pub async fn ended(&self) -> String {
        let mut metrics = self.raft().metrics();
        loop {
            if let Err(cause) = &metrics.borrow_watched().running_state {
                return cause.to_string();
            }
            if metrics.changed().await.is_err() {
                return "consensus has stopped".to_owned();
            }
        }
    }

    /// Stops taking part and closes the log.
    pub async fn shutdown(self) {
        if let Err(cause) = self.raft().shutdown().await {
            tracing::warn!(error = %cause, "consensus did not stop cleanly");
        }
    }

    /// This member's disk, when it is nearly full: then it does not lead if another one can, and takes no writes.
    pub(crate) fn nearly_full(&self) -> Option<NearlyFull> {
        self.inner.room.nearly_full(self.id())
    }

    /// Likewise, when it does not even take what the leader has taken.
    pub(super) fn exhausted(&self) -> Option<NearlyFull> {
        self.inner.room.exhausted(self.id())
    }

    /// What is free of this member's disk, in bytes.
    pub(crate) fn disk_free(&self) -> u64 {
        self.inner.room.free()
    }

    pub(super) fn raft(&self) -> &Raft<Types, StateMachine<D>> {
        &self.inner.raft
    }

    pub(super) fn snapshots(&self) -> &Snapshots<D> {
        &self.inner.snapshots
    }

    pub(super) fn write_by(&self) -> WriteBy {
        self.inner.write_by
    }

    /// Commits encoded commands here, as one entry, if this member leads. A reply for each.
    pub(super) async fn propose_here(
        &self,
        commands: Vec<Vec<u8>>,
    ) -> Result<At<Vec<CommandReply>>, Refusal> {
        if let Some(full) = self.nearly_full() {
            return Err(Refusal::NearlyFull(full.to_string()));
        }
        if let Some(full) = self.inner.full_majority.load_full() {
            return Err(Refusal::NearlyFull(Arc::unwrap_or_clone(full)));
        }
        let count = commands.len();
        let proposal = Proposal::of(commands);
        if proposal.0.len() > COMMAND_BYTES_MAX || count == 0 {
            return Err(Refusal::Invalid(format!(
                "an entry of {} bytes",
                proposal.0.len()
            )));
        }
        let kib = (proposal.0.len() / 1024 + 1) as u32;
        let permits = tokio::time::timeout(LEADER_TIMEOUT, self.inner.proposals.acquire_many(kib)).await;
        let Ok(Ok(_permits)) = permits else {
            return Err(Refusal::Overloaded);
        };
        match within(self.raft().client_write(proposal)).await? {
            Ok(response) if response.data.0.len() == count => Ok(At::Leader(response.data.0)),
            Ok(response) => Err(Refusal::Stopped(format!(
                "{count} commands were applied with {} answers",
                response.data.0.len()
            ))),
            Err(cause) => write_failed(cause),
        }
    }

    /// The index that a read begun now has to wait for, if this member leads.
    pub(super) async fn read_index_here(&self) -> Result<At<u64>, Refusal> {
        Ok(match self.read_id_here().await? {
            At::Leader(id) => At::Leader(id.index),
            At::Other(leader) => At::Other(leader),
        })
    }

    async fn read_id_here(&self) -> Result<At<LogId>, Refusal> {
        match within(self.raft().get_read_linearizer(ReadPolicy::ReadIndex)).await? {
            Ok(linearizer) => Ok(At::Leader(*linearizer.read_log_id().log_id())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Ok(At::Other(forward.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(cause))) => {
                Err(Refusal::Unknown(cause.to_string()))
            }
            Err(RaftError::Fatal(cause)) => Err(Refusal::Stopped(cause.to_string())),
        }
    }

    /// Whether this member leads, as most of them confirm now: one that is cut off does not know that another one does.
    pub(crate) async fn leads(&self) -> bool {
        matches!(self.read_index_here().await, Ok(At::Leader(_)))
    }

    /// Likewise, and in this term: what it has seen committed is of no later one.
    pub(crate) async fn leads_in(&self, term: u64) -> bool {
        // What a read waits for is of the leader's own term: at least the entry that it began with.
        matches!(self.read_id_here().await, Ok(At::Leader(id)) if id.leader_id.term == term)
    }
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> Result<T, Refusal> {
    let timed = tokio::time::timeout(LEADER_TIMEOUT, work).await;
    timed.map_err(|_| Refusal::Unknown("the leader could not reach most of the members in time".to_owned()))
}

pub(super) fn write_failed<T>(cause: RaftError<Types, ClientWriteError<Types>>) -> Result<At<T>, Refusal> {
    match cause {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => Ok(At::Other(forward.leader_id)),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(cause)) => {
            Err(Refusal::Unknown(cause.to_string()))
        }
        // Another change is under way, or the leader is too new: it passes.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            cause @ (ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)),
        )) => Err(Refusal::Unknown(cause.to_string())),
        RaftError::APIError(cause) => Err(Refusal::Invalid(cause.to_string())),
        RaftError::Fatal(cause) => Err(Refusal::Stopped(cause.to_string())),
    }
}

/// Keeps a channel of ours up to date with the library's view of who leads.
fn follow<D: Dir>(raft: &Raft<Types, StateMachine<D>>, id: MemberId) -> watch::Receiver<Leadership> {
    let mut metrics = raft.server_metrics();
    let (sender, receiver) = watch::channel(Leadership::default());
    tokio::spawn(async move {
        loop {
            let now = {
                let metrics = metrics.borrow_watched();
                let leader = metrics.current_leader;
                Leadership {
                    leader,
                    term: metrics.vote.leader_id.term,
                    is_me: leader == Some(id),
                }
            };
            if sender.send_if_modified(|before| std::mem::replace(before, now) != now) {
                match now.leader {
                    Some(leader) => {
                        tracing::info!(member = id, leader, term = now.term, "a controller leads")
                    }
                    None => tracing::info!(member = id, term = now.term, "no controller leads"),
                }
            }
            if metrics.changed().await.is_err() {
                sender.send_replace(Leadership {
                    leader: None,
                    is_me: false,
                    ..now
                });
                return;
            }
        }
    });
    receiver
}
