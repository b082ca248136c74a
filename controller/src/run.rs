//! The process of a controller: every listener and loop, from start to stop.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rpc::v1::join_server::JoinServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::audit::Audit;
use crate::calls::Calls;
use crate::drive::Drive;
use crate::events::Events;
use crate::figures::Figures;
use crate::leases::{self, Leases, Renewals};
use crate::metrics::{self, Sources};
use crate::raft::{MemberId, Node, NodeConfig, StartError};
use crate::security::ca::Authority;
use crate::security::join::JoinService;
use crate::security::listen::{self, CONNECTION_AGE_MAX};
use crate::security::live::ClientAuth;
use crate::security::revoked::Revoked;
use crate::security::unix_now;
use crate::session::{self, Desk, Sessions};
use crate::setup::{Identity, Loaded, Places, SetupError, member_subject};
use crate::status::Reports;
use crate::{api, relay, storage_keys};

/// Connections to the API: thousands of agents and some people.
const API_CONNECTIONS_MAX: usize = 16_384;
/// Calls at a time on one connection.
const API_STREAMS_MAX: u32 = 256;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Open calls get this long when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for other members, whose streams never end by themselves, and whose calls are made again elsewhere.
const PEER_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// A learner asks for its vote this often until it has it.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(500);
/// It asks once it lags by no more than this many entries.
const PROMOTE_LAG_MAX: u64 = 100;

/// Settings of the process.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Directories.
    pub places: Places,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where members are listened to.
    pub peers: SocketAddr,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
    /// Raft's heartbeat.
    pub heartbeat: Duration,
    /// Raft's election timeouts, shortest and longest.
    pub election: (Duration, Duration),
}

/// Why the process ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Files of this member.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Its log is gone.
    #[error(
        "the log of this controller is empty but was not always: it could vote a second time. Remove it from the \
         cluster (`ctl cluster remove {name}`), empty its directories and join it again"
    )]
    LogLost {
        /// Its name.
        name: String,
    },
    /// Consensus did not start.
    #[error("failed to start consensus")]
    Start(#[from] StartError),
    /// A port is taken, say.
    #[error("failed to listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// Certificates.
    #[error("failed to set up TLS")]
    Tls(#[from] rpc::tls::TlsError),
    /// A server ended.
    #[error("a listener failed")]
    Serve(#[from] tonic::transport::Error),
    /// Consensus ended; a restart brings this member back.
    #[error("consensus has ended: {0}")]
    Ended(String),
    /// A loop of this process died; a restart brings it back.
    #[error("a part of this controller has ended: {0}")]
    Part(String),
}

/// Runs a member until `stop` resolves or something essential fails.
pub async fn run(
    options: RunOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    begin(options, Box::pin(stop)).await
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Neither generic nor of a nameless type, so that the whole process is compiled once, with this crate.
fn begin(options: RunOptions, stop: Boxed<()>) -> Boxed<Result<(), RunError>> {
    Box::pin(run_until(options, stop))
}

async fn run_until(options: RunOptions, stop: Boxed<()>) -> Result<(), RunError> {
    let places = options.places.clone();
    let Loaded {
        identity,
        authority,
        live,
        keys,
    } = places.load()?;
    let ca = authority.certificate().to_owned();
    let api_listener = bind(options.api).await?;
    let peer_listener = bind(options.peers).await?;
    let metrics_listener = bind(options.metrics).await?;
    let audit = places.open_audit(&identity.name)?;
    let (log, snapshots) = places.open_store()?;
    let config = NodeConfig {
        heartbeat: options.heartbeat,
        election: options.election,
        ..NodeConfig::new(identity.id, keys.clone())
    };
    let node = Node::start(config, log, snapshots, live.client_config(&ca)?).await?;
    if identity.began && node.is_new().await? {
        return Err(RunError::LogLost { name: identity.name });
    }

    let parts = Parts::new(&node);
    let (stopping, stopped) = watch::channel(false);
    let (leaving, left) = watch::channel(false);
    let peer_tls = live.server_config(&ca, ClientAuth::Required)?;
    let peers = {
        let (node, left) = (node.clone(), wait(left));
        let more = parts.relay(&node);
        tokio::spawn(async move { node.serve(peer_listener, peer_tls, more, left).await })
    };
    node.recovered().await;
    if !identity.began {
        tokio::spawn(note_beginning(node.clone(), places.clone(), identity.clone()));
    }
    let renewal = tokio::spawn({
        let (authority, subject) = (authority.clone(), member_subject(&identity));
        live.clone()
            .keep(move |now| authority.issue(&subject, now), unix_now)
    });
    let promotion = tokio::spawn(ask_for_a_vote(node.clone()));
    let dropping = tokio::spawn(storage_keys::drop_unused(places, keys));
    let mut loops = JoinSet::new();
    let routes = parts.start(&node, authority, audit.clone(), &mut loops, stopped.clone());
    let sources = Sources {
        node: node.clone(),
        sessions: parts.sessions.clone(),
        figures: parts.figures.clone(),
        audit,
    };
    loops.spawn(metrics::serve(metrics_listener, sources));
    let api_tls = Arc::new(live.server_config(&ca, ClientAuth::Optional)?);
    let revoked = Revoked::new(node.revocations());
    let incoming = listen::accept(api_listener, api_tls, API_CONNECTIONS_MAX, revoked);
    let api = tokio::spawn(
        Server::builder()
            .max_connection_age(CONNECTION_AGE_MAX)
            .max_concurrent_streams(API_STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, wait(stopped)),
    );

    notify("READY=1");
    tracing::info!(name = identity.name, id = identity.id, api = %options.api, peers = %options.peers, "ready");
    let ended = tokio::select! {
        biased;
        () = stop => None,
        never = rpc::service::stay_small(sys::memory::give_back, holds) => match never {},
        never = rpc::service::watchdog(untold) => match never {},
        cause = node.ended() => Some(RunError::Ended(cause)),
        part = loops.join_next() => Some(RunError::Part(match part {
            Some(Err(cause)) => cause.to_string(),
            Some(Ok(())) | None => "it had nothing more to do".to_owned(),
        })),
    };
    notify("STOPPING=1");
    renewal.abort();
    promotion.abort();
    dropping.abort();
    if ended.is_none() {
        hand_over(&node).await;
    }
    // Agents go to another controller; the servers need not wait for them.
    parts
        .sessions
        .close_all(Status::unavailable("this controller is stopping"));
    loops.abort_all();
    // One after the other: a call that is still answered may wait for what the new leader has to bring to this member.
    stopping.send_replace(true);
    drain("API", api, DRAIN_TIMEOUT).await?;
    leaving.send_replace(true);
    drain("members' port", peers, PEER_DRAIN_TIMEOUT).await?;
    node.shutdown().await;
    ended.map_or(Ok(()), Err)
}

/// Waits for a server's calls, which it was told to end with.
async fn drain<E>(name: &str, server: JoinHandle<Result<(), E>>, wait: Duration) -> Result<(), RunError>
where
    RunError: From<E>,
{
    match tokio::time::timeout(wait, server).await {
        Ok(Ok(served)) => served?,
        Ok(Err(cause)) => tracing::error!(error = %cause, "the {name} ended badly"),
        Err(_) => tracing::info!("calls to the {name} were cut off"),
    }
    Ok(())
}

/// What the listeners and the loops of a member share.
pub(crate) struct Parts {
    leases: Leases,
    events: Events,
    pub(crate) sessions: Sessions,
    pub(crate) calls: Calls,
    figures: Figures,
}

impl Parts {
    pub(crate) fn new(node: &Node) -> Self {
        let sessions = Sessions::new(Reports::default());
        Self {
            leases: Leases::default(),
            events: Events::new(),
            calls: Calls::new(node.clone(), sessions.clone()),
            sessions,
            figures: Figures::default(),
        }
    }

    /// For the members' port.
    pub(crate) fn relay(&self, node: &Node) -> Routes {
        relay::routes(
            node.clone(),
            self.leases.clone(),
            self.events.clone(),
            self.calls.clone(),
        )
    }

    /// Begins the loops; gives what the API's port serves.
    pub(crate) fn start(
        &self,
        node: &Node,
        authority: Arc<Authority>,
        audit: Audit,
        loops: &mut JoinSet<()>,
        stopped: watch::Receiver<bool>,
    ) -> Routes {
        let (renewals, renewed) = Renewals::new();
        let (desk, dispatch) = Desk::new(node.clone(), self.sessions.clone(), renewals, self.events.clone());
        let drive = Drive {
            node: node.clone(),
            leases: self.leases.clone(),
            events: self.events.clone(),
            figures: self.figures.clone(),
        };
        loops.spawn(dispatch);
        loops.spawn(drive.run());
        loops.spawn(self.figures.clone().follow_pods(node.clone()));
        loops.spawn(leases::forward(renewed, node.clone(), self.leases.clone()));
        loops.spawn(self.sessions.reports().clone().propose(node.clone()));
        loops.spawn(self.events.clone().forward(node.clone()));
        let join = JoinServer::new(JoinService::new(node.clone(), authority.clone(), audit.clone()));
        let (events, calls) = (self.events.clone(), self.calls.clone());
        let figures = self.figures.clone();
        api::routes(
            node.clone(),
            events,
            calls,
            authority.clone(),
            audit,
            figures,
            stopped,
        )
        .add_service(join)
        .add_service(session::server(desk, authority))
    }
}

/// On `[::]` both families are heard, unless the machine has no IPv6.
async fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    let bound = match TcpListener::bind(address).await {
        Err(cause) if without_ipv6(&cause) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| RunError::Listen { address, source })
}

fn without_ipv6(cause: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97; // Linux, include/uapi/asm-generic/errno.h
    cause.kind() == io::ErrorKind::AddrNotAvailable || cause.raw_os_error() == Some(EAFNOSUPPORT)
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        tracing::debug!("whoever stops the listeners is gone");
    }
}

/// A leader that stops for a while lets another one lead first: nobody waits for an election.
async fn hand_over(node: &Node) {
    if !node.leadership().borrow().is_me {
        return;
    }
    let other = node
        .members()
        .into_iter()
        .find(|member| member.voter && member.id != node.id());
    let Some(other) = other else { return };
    let mut leadership = node.leadership();
    let handed = async {
        if let Err(cause) = node.transfer_leadership(other.id).await {
            tracing::info!(%cause, "leadership was not handed over");
            return;
        }
        if leadership.wait_for(|now| !now.is_me).await.is_err() {
            tracing::debug!("consensus ended meanwhile");
        }
    };
    if tokio::time::timeout(Duration::from_secs(1), handed)
        .await
        .is_err()
    {
        tracing::info!("nobody took over leadership in time");
    }
}

/// From its first entry on a member has a log to lose.
async fn note_beginning(node: Node, places: Places, identity: Identity) {
    let mut applied = node.applied();
    if applied
        .wait_for(|applied| applied.log_id.is_some())
        .await
        .is_err()
    {
        return; // it stops before it began
    }
    if let Err(cause) = places.write_identity(&Identity {
        began: true,
        ..identity
    }) {
        tracing::error!(error = %cause, "failed to note that the log has begun");
    }
}

/// A member that joined learns first; when it has caught up it asks for its vote.
pub(crate) async fn ask_for_a_vote(node: Node) {
    let me = |node: &Node| node.members().into_iter().find(|member| member.id == node.id());
    loop {
        match me(&node) {
            // Not while that is half done: the leader may be gone that was to do the rest.
            Some(member) if member.voter && node.settled() => return,
            Some(_) if caught_up(&node) => match node.promote(node.id()).await {
                Ok(()) => tracing::info!("this controller has a vote now"),
                Err(cause) => tracing::info!(%cause, "this controller has no vote yet"),
            },
            _ => {}
        }
        tokio::time::sleep(PROMOTE_INTERVAL).await;
    }
}

fn caught_up(node: &Node) -> bool {
    let progress = node.progress();
    let leader: Option<MemberId> = node.leadership().borrow().leader;
    leader.is_some() && progress.applied_index + PROMOTE_LAG_MAX >= progress.last_log_index
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
