//! The process of an agent, from start to stop.
//!
//! It takes up what the ledger knows before it has spoken to anyone: a node without controllers starts its pods. At the
//! end it leaves monitors and containers as they are; the next one adopts them.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::account::{self, Accounts};
use crate::calls::Calls;
use crate::events::Events;
use crate::health::Health;
use crate::identity::IdentityError;
use crate::image::{ImageError, Registries, Store};
use crate::ledger::{Ledger, LedgerError};
use crate::link::Link;
use crate::metrics::{self, Shown};
use crate::network::Network;
use crate::node::{ClusterFacts, Node};
use crate::node_status::{NodeStatuses, system_info};
use crate::pods::{Found, Pods};
use crate::session::Session;
use crate::settings::Settings;
use crate::wiring::Wiring;
use crate::{garbage, idmap, ledger, renew, wiring};

/// How long pods' actors wait for a network that is likely to stand already.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Namespaces, mounts and groups are root's.
    #[error("the agent makes namespaces, mounts and cgroups: run it as root")]
    NotRoot,
    /// Not joined, or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A directory.
    #[error("failed to create {}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The image store.
    #[error("failed to open the store of images")]
    Images(#[from] ImageError),
    /// No cgroups.
    #[error("failed to find the machine's cgroups")]
    Cgroup(#[from] runtime::cgroup::CgroupError),
    /// A port is taken, say.
    #[error("failed to listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The runtime's program.
    #[error("{} is no program; give the path of bulkhead-runtime with --runtime", .path.display())]
    Runtime {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The node's address is not known.
    #[error("failed to find this node's own address; give it with --node-address")]
    Address,
}

/// Settings, before what the machine says is filled in.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// All of them; `node_address` is replaced when none was given.
    pub settings: Settings,
    /// Whether `settings.node_address` was given.
    pub address_given: bool,
}

/// Runs the agent until `stop` resolves.
pub async fn run(options: RunOptions, stop: impl Future<Output = ()> + 'static) -> Result<(), RunError> {
    begin(options, Box::pin(stop)).await
}

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// Neither generic nor of a nameless type, so that the whole process is compiled once, with this crate.
fn begin(options: RunOptions, stop: Boxed<()>) -> Boxed<Result<(), RunError>> {
    Box::pin(run_until(options, stop))
}

async fn run_until(options: RunOptions, stop: Boxed<()>) -> Result<(), RunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    let mut settings = options.settings;
    let link = Arc::new(Link::load(settings.config_dir.clone())?);
    let identity = link.identity();
    if !options.address_given {
        settings.node_address = own_address(&identity.endpoints).ok_or(RunError::Address)?;
    }
    if !settings.runtime.is_file() {
        let path = settings.runtime;
        return Err(RunError::Runtime { path });
    }
    let directories = [
        (&settings.data_dir, 0o700),
        (&settings.run_dir, 0o711),
        (&settings.monitors_dir(), 0o700),
        (&settings.logs_dir(), 0o755),
    ];
    for (path, mode) in directories {
        directory(path, mode)?;
    }
    let layout = runtime::cgroup::Layout::detect()?;
    // The ledger is the lock of the data directory: whoever has it open is the only agent here.
    let ledger = Ledger::open(&settings.ledger_file(), Path::new(ledger::CLAIMS))?;
    ledger.enter_cluster(&identity.cluster_id)?;
    let images = Arc::new(Store::open(&settings.images_dir())?);
    let idmapped_mounts = idmap::probe(&settings.images_dir());
    let metrics_listener = TcpListener::bind(settings.metrics_address).await;
    let metrics_listener = metrics_listener.map_err(|source| RunError::Listen {
        address: settings.metrics_address,
        source,
    })?;

    let (facts, cluster) = watch::channel(ledger.facts()?);
    let (peers, peers_told) = watch::channel(ledger.peers()?);
    let found = Found::look(&ledger, &settings, &layout)?;
    // Before the pods' actors, which else would wait for it at first; what fails here is tried again by `wiring`.
    let known = facts.borrow().clone();
    let told = peers.borrow().clone();
    let opened = match &known {
        Some(facts) => first_network(&settings, facts, &found, &told).await,
        None => None,
    };
    let open = known.filter(|_| opened.is_some());
    let (lease_sender, lease) = watch::channel(0);
    let (network_sender, network) = watch::channel(opened);
    let info = system_info(&layout, idmapped_mounts);
    tracing::info!(
        name = identity.name,
        address = %settings.node_address,
        cgroups = info.cgroup_mode,
        idmapped_mounts,
        selinux = info.selinux,
        "starting"
    );
    let (accounts, asked) = Accounts::new();
    let node = Arc::new(Node {
        name: identity.name.clone(),
        layout,
        idmapped_mounts,
        images,
        registries: Registries {
            dir: settings.registries_dir(),
        },
        ledger,
        events: Events::new(&identity.name),
        cluster: cluster.clone(),
        lease,
        accounts,
        network,
        settings: settings.clone(),
    });
    let pods = Pods::adopt(node.clone(), found)?;
    let counts = pods.counts();
    tracing::info!(
        pods = counts.desired,
        left = counts.going,
        "took up what the ledger knows"
    );
    let wiring = Wiring {
        settings: settings.clone(),
        pods: pods.clone(),
        facts: cluster,
        peers: peers_told,
        network: network_sender,
    };
    let health = Arc::new(Health::default());
    let session = Session {
        node: node.clone(),
        pods: pods.clone(),
        link: link.clone(),
        calls: Calls::new(node.clone(), pods.clone(), health.clone()),
        statuses: NodeStatuses::new(&node.name, settings, info),
        facts,
        peers,
        lease: lease_sender,
        health: health.clone(),
    };
    let shown = Shown {
        node: node.clone(),
        pods: pods.clone(),
        health,
    };
    notify("READY=1");
    tokio::select! {
        biased;
        () = stop => {}
        // None of these returns.
        () = session.run() => {}
        () = wiring.run(open) => {}
        () = account::answer(link.clone(), asked) => {}
        () = renew::run(link) => {}
        () = garbage::run(node, pods) => {}
        () = metrics::serve(metrics_listener, shown) => {}
        never = rpc::service::stay_small(sys::memory::give_back, holds) => match never {},
        never = rpc::service::watchdog(untold) => match never {},
    }
    notify("STOPPING=1");
    tracing::info!("stopping; pods go on");
    Ok(())
}

async fn first_network(
    settings: &Settings,
    facts: &ClusterFacts,
    found: &Found,
    peers: &[rpc::v1::Peer],
) -> Option<Arc<Network>> {
    let uids = found.uids();
    let opening = wiring::open(settings, facts, &uids, peers);
    match tokio::time::timeout(NETWORK_TIMEOUT, opening).await {
        Ok(Ok(network)) => return Some(Arc::new(network)),
        Ok(Err(error)) => {
            let cause = runtime::monitor::chain(&error);
            tracing::warn!(cause, "the node's network is not up yet");
        }
        Err(_) => tracing::warn!("the node's network is not up yet: it takes long"),
    }
    None
}

fn directory(path: &Path, mode: u32) -> Result<(), RunError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| RunError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// The address that packets to a controller carry. Nothing is sent: connecting a UDP socket only looks up the route.
fn own_address(endpoints: &[String]) -> Option<Ipv4Addr> {
    endpoints.iter().find_map(|endpoint| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(endpoint.trim_start_matches("https://")).ok()?;
        match socket.local_addr().ok()? {
            SocketAddr::V4(address) if !address.ip().is_unspecified() => Some(*address.ip()),
            _ => None,
        }
    })
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    rpc::service::notify(state).unwrap_or_else(untold);
}

fn holds(cause: io::Error) {
    tracing::warn!(error = %cause, "failed to give memory back");
}

fn untold(cause: io::Error) {
    tracing::warn!(error = %cause, "failed to tell the service manager");
}
