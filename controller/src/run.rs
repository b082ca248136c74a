//! The process of a controller: every listener and loop, from start to stop.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rpc::v1::join_server::JoinServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::metrics;
use crate::raft::{MemberId, Node, NodeConfig, StartError};
use crate::security::ca::SHORT_LIFE;
use crate::security::join::JoinService;
use crate::security::listen::{self, CONNECTION_AGE_MAX};
use crate::security::live::ClientAuth;
use crate::security::unix_now;
use crate::setup::{Identity, Loaded, Places, SetupError, member_subject};

/// Connections to the API: thousands of agents and some people.
const API_CONNECTIONS_MAX: usize = 16_384;
/// Calls at a time on one connection.
const API_STREAMS_MAX: u32 = 256;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Open calls get this long when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A learner asks for its vote this often until it has it.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(500);
/// It asks once it lags by no more than this many entries.
const PROMOTE_LAG_MAX: u64 = 100;
/// Own certificate: again after a failure.
const RENEW_RETRY: Duration = Duration::from_secs(60);

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
}

/// Runs a member until `stop` resolves or something essential fails.
pub async fn run(options: RunOptions, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let places = options.places.clone();
    let Loaded {
        identity,
        authority,
        live,
    } = places.load()?;
    let ca = authority.certificate().to_owned();
    let api_listener = bind(options.api).await?;
    let peer_listener = bind(options.peers).await?;
    let metrics_listener = bind(options.metrics).await?;
    let (log, snapshots) = places.open_store()?;
    let config = NodeConfig {
        heartbeat: options.heartbeat,
        election: options.election,
        ..NodeConfig::new(identity.id)
    };
    let node = Node::start(config, log, snapshots, live.client_config(&ca)?).await?;
    if identity.began && node.is_new().await? {
        return Err(RunError::LogLost { name: identity.name });
    }

    let (stopping, stopped) = watch::channel(false);
    let peer_tls = live.server_config(&ca, ClientAuth::Required)?;
    let peers = {
        let (node, stopped) = (node.clone(), wait(stopped.clone()));
        tokio::spawn(async move {
            node.serve(peer_listener, peer_tls, Routes::default(), stopped)
                .await
        })
    };
    node.recovered().await;
    if !identity.began {
        tokio::spawn(note_beginning(node.clone(), places.clone(), identity.clone()));
    }
    let renewal = tokio::spawn({
        let (authority, live, identity) = (authority.clone(), live.clone(), identity.clone());
        async move {
            let mut pause = SHORT_LIFE / 2;
            loop {
                tokio::time::sleep(pause).await;
                let renewed = authority
                    .issue(&member_subject(&identity), unix_now())
                    .map_err(|cause| cause.to_string())
                    .and_then(|issued| live.replace(&issued).map_err(|cause| cause.to_string()));
                pause = match renewed {
                    Ok(()) => SHORT_LIFE / 2,
                    Err(cause) => {
                        tracing::error!(%cause, "failed to renew the own certificate");
                        RENEW_RETRY
                    }
                };
            }
        }
    });
    let promotion = tokio::spawn(ask_for_a_vote(node.clone()));
    let metrics = tokio::spawn(metrics::serve(metrics_listener, node.clone()));

    let join = JoinServer::new(JoinService::new(node.clone(), authority.clone()));
    let routes = Routes::new(join);
    let api_tls = Arc::new(live.server_config(&ca, ClientAuth::Optional)?);
    let incoming = listen::accept(api_listener, api_tls, API_CONNECTIONS_MAX);
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
        cause = node.ended() => Some(cause),
    };
    notify("STOPPING=1");
    renewal.abort();
    promotion.abort();
    metrics.abort();
    if ended.is_none() {
        hand_over(&node).await;
    }
    stopping.send_replace(true);
    for (name, server) in [("API", api), ("members' port", peers)] {
        match tokio::time::timeout(DRAIN_TIMEOUT, server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(cause)) => tracing::error!(error = %cause, "the {name} ended badly"),
            Err(_) => tracing::info!("calls to the {name} were cut off"),
        }
    }
    node.shutdown().await;
    ended.map_or(Ok(()), |cause| Err(RunError::Ended(cause)))
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
async fn ask_for_a_vote(node: Node) {
    let me = |node: &Node| node.members().into_iter().find(|member| member.id == node.id());
    loop {
        match me(&node) {
            Some(member) if member.voter => return,
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

/// Tells the service manager, if there is one (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = || -> io::Result<()> {
        let bytes = path.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => UnixAddress::from_abstract_name(name)?,
            None => UnixAddress::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?
            .send_to_addr(state.as_bytes(), &address)
            .map(drop)
    };
    if let Err(cause) = sent() {
        tracing::warn!(error = %cause, "failed to tell the service manager");
    }
}
