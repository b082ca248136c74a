//! A controller as a machine of its own: everything that its process runs, over a simulated disk and network.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::fence::Monitors;
use super::history::History;
use super::network::{Host, Network, Port};
use crate::audit::Audit;
use crate::raft::log::WriteBy;
use crate::raft::peers::{Channel, Lane, Peers, Transport};
use crate::raft::{Member, MemberId, Node, NodeConfig};
use crate::run::{Parts, ask_for_a_vote};
use crate::security::ca::Authority;
use crate::security::identity::{Authenticated, Identity};
use crate::security::listen::Caller;
use crate::simulated::Random;
use crate::store::Disk;
use crate::store::sim::{Fault, SimDir};
use rpc::tls::TlsError;
use seal::{Key, Keys};

/// A process that has ended, with its life's number and why.
pub(super) type Ended = (MemberId, u64, String);

/// What all machines of a world share.
#[derive(Clone)]
pub(super) struct World {
    pub(super) network: Network,
    pub(super) history: History,
    pub(super) monitors: Monitors,
    pub(super) authority: Arc<Authority>,
    pub(super) ended: mpsc::Sender<Ended>,
    /// Entries after which a snapshot is made, and entries kept behind it.
    pub(super) snapshots: (u64, u64),
    pub(super) endpoints: Endpoints,
    /// Longest that members take to decide something.
    pub(super) busy: Duration,
}

/// The members that agents and clients ask. Clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Endpoints(Arc<Mutex<Vec<MemberId>>>);

impl Endpoints {
    fn lock(&self) -> MutexGuard<'_, Vec<MemberId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: MemberId) {
        self.lock().push(id);
    }

    pub(super) fn forget(&self, id: MemberId) {
        self.lock().retain(|other| *other != id);
    }

    /// Any of them; there always is one.
    pub(super) fn any(&self, random: &mut Random) -> MemberId {
        let ids = self.lock();
        ids[random.below(ids.len() as u64) as usize]
    }
}

/// Who calls, as TLS would say.
pub(super) fn caller(identity: Identity) -> Caller {
    Caller {
        authenticated: Arc::new(Authenticated {
            identity,
            not_after: u64::MAX,
            issued: 0,
            revoked: false,
        }),
        address: ([127, 0, 0, 1], 1).into(),
        stranger: None,
    }
}

struct Links {
    network: Network,
    from: (Host, u64),
}

impl Transport for Links {
    fn channel(&self, id: MemberId, _: &Member, _: Lane) -> Result<Channel, TlsError> {
        let me = caller(Identity::Member(self.from.0));
        Ok(Channel::new(self.network.link(self.from, id, Port::Members, me)))
    }
}

/// A member's machine: its disks outlive its processes.
pub(super) struct Machine {
    pub(super) id: MemberId,
    keys: Keys,
    log: SimDir,
    snapshots: SimDir,
    process: Option<Process>,
    /// The newest schema level that the installed version knows.
    pub(super) level: u32,
}

struct Process {
    life: u64,
    /// None until it has read its disks.
    node: Arc<Mutex<Option<Node>>>,
    runs: JoinHandle<()>,
    _stop: watch::Sender<bool>,
}

impl Machine {
    pub(super) fn new(id: MemberId, level: u32, random: &mut Random) -> Self {
        Self {
            id,
            level,
            keys: Keys::new(Path::new("storage.keys"), vec![Key::generate()]),
            log: SimDir::new(Fault::None, random.next()),
            snapshots: SimDir::new(Fault::None, random.next()),
            process: None,
        }
    }

    /// The member of this name.
    pub(super) fn member(name: &str) -> Member {
        Member {
            name: name.to_owned(),
            address: format!("{name}:7443"),
            peer_address: format!("{name}:7444"),
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn is_life(&self, life: u64) -> bool {
        self.process.as_ref().is_some_and(|process| process.life == life)
    }

    /// The member, once its process has begun to take part.
    pub(super) fn node(&self) -> Option<Node> {
        let process = self.process.as_ref()?;
        let node = process.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.clone()
    }

    /// Both disks, for faults.
    pub(super) fn disks(&self) -> [&SimDir; 2] {
        [&self.log, &self.snapshots]
    }

    /// A process begins with what the disks have.
    pub(super) fn start(&mut self, world: &World) {
        assert!(self.process.is_none(), "one process a machine");
        let life = world.network.begin(self.id);
        let node = Arc::new(Mutex::new(None));
        let (stop, stopped) = watch::channel(false);
        let (snapshot_entries, keep_entries) = world.snapshots;
        let config = NodeConfig {
            snapshot_entries,
            keep_entries,
            segment_bytes: 64 << 10,
            write_by: WriteBy::Task,
            schema_level: self.level,
            ..NodeConfig::new(self.id, self.keys.clone())
        };
        let disks = (Disk::from(self.log.clone()), Disk::from(self.snapshots.clone()));
        let work = run(world.clone(), life, config, disks, node.clone(), stopped);
        self.process = Some(Process {
            life,
            node,
            runs: world.network.spawn(self.id, work),
            _stop: stop,
        });
    }

    /// The machine loses power: what was not synced may be gone.
    pub(super) fn crash(&mut self, world: &World, silent: bool) {
        let Some(process) = self.process.take() else {
            return;
        };
        world.network.end(self.id, silent);
        self.log = self.log.after_crash(Fault::None);
        self.snapshots = self.snapshots.after_crash(Fault::None);
        process.runs.abort();
        let node = process.node.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(node) = node {
            // Nothing that it still does reaches a disk or another host.
            drop(world.network.spawn(self.id, node.shutdown()));
        }
    }

    pub(super) fn set_latency(&self, max: Duration) {
        self.disks().into_iter().for_each(|disk| disk.set_latency(max));
    }
}

/// What `run::run` does, without listeners, certificates and a service manager.
async fn run(
    world: World,
    life: u64,
    config: NodeConfig,
    (log, snapshots): (Disk, Disk),
    there: Arc<Mutex<Option<Node>>>,
    stopped: watch::Receiver<bool>,
) {
    let id = config.id;
    let links = Links {
        network: world.network.clone(),
        from: (id, life),
    };
    let why = match Node::start(config, log, snapshots, Peers::new(links)).await {
        Err(cause) => format!("it can't start: {}", chain(&cause)),
        Ok(node) => {
            *there.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
            world.history.follow(&world.network, id, life, &node);
            let parts = Parts::new(&node);
            let members = node.routes(parts.relay(&node));
            world.network.serve(id, Port::Members, members);
            node.recovered().await;
            let mut asks = JoinSet::new(); // ends with this process
            asks.spawn(ask_for_a_vote(node.clone()));
            let mut loops = JoinSet::new();
            let api = parts.start(
                &node,
                world.authority.clone(),
                Audit::nowhere(),
                &mut loops,
                stopped,
            );
            world.network.serve(id, Port::Api, api);
            tokio::select! {
                biased;
                cause = node.ended() => format!("consensus has ended: {cause}"),
                part = loops.join_next() => format!("a part has ended: {part:?}"),
            }
        }
    };
    if world.ended.send((id, life, why)).await.is_err() {
        tracing::trace!("the world has ended");
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
