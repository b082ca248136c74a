//! Listeners: TCP, then TLS within a time, then who it is; a bounded number of each.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::identity::{Authenticated, Identity};
use super::revoked::Revoked;

/// A caller has this long for the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at a time: they cost signatures, and anyone can begin one. More wait in the kernel's backlog.
const HANDSHAKES_MAX: usize = 128;
/// Connections handed over but not yet taken by the server.
const HANDOVER_MAX: usize = 32;
/// After a failed accept (no descriptors left), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// An old connection is closed after this time, so that its peer shows its new certificate.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Who shows no certificate that is good may only join, which takes seconds, or has a token to show.
const STRANGER_AGE_MAX: Duration = Duration::from_secs(60);
/// Connections without a certificate at a time: whoever fills them keeps out nobody but those who join, or come with a token.
const ANONYMOUS_CONNECTIONS_MAX: usize = 512;
/// Connections of one node, controller or person at a time: nobody's programs take the place of all others.
const CONNECTIONS_OF_ONE_MAX: usize = 1024;

/// What a request's extensions hold about its connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub authenticated: Arc<Authenticated>,
    /// From where.
    pub address: SocketAddr,
    /// Of a connection without a certificate.
    pub(crate) stranger: Option<Arc<Stranger>>,
}

/// A connection that showed no certificate. It is anybody's, and for a short time, until a token says whose it is.
#[derive(Debug)]
pub(crate) struct Stranger {
    counts: Counts,
    counted: Mutex<Counted>,
    until: watch::Sender<Instant>,
}

impl Caller {
    /// The same caller, known by a token. Its connection counts as the first bearer's from then on and may stay as long as a
    /// token that it showed is good. None when that one has as many connections as one may have.
    pub(crate) fn recognised(&self, bearer: Authenticated, now: u64) -> Option<Self> {
        if let Some(stranger) = &self.stranger {
            stranger.recognise(&bearer, now)?;
        }
        Some(Self {
            authenticated: Arc::new(bearer),
            address: self.address,
            stranger: self.stranger.clone(),
        })
    }
}

impl Stranger {
    fn recognise(&self, bearer: &Authenticated, now: u64) -> Option<()> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.caller == Identity::Anonymous.to_string() {
            *counted = self.counts.one_more(&bearer.identity)?;
        }
        drop(counted);
        let until = Instant::now() + Duration::from_secs(bearer.not_after.saturating_sub(now));
        self.until.send_if_modified(|known| {
            let later = until > *known;
            *known = until.max(*known);
            later
        });
        Some(())
    }
}

/// Until a stranger has to leave.
async fn stay(mut until: watch::Receiver<Instant>) {
    loop {
        let end = *until.borrow_and_update();
        tokio::select! {
            biased;
            Ok(()) = until.changed() => {}
            () = tokio::time::sleep_until(end) => return,
        }
    }
}

/// One accepted connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// When it is to be cut, whoever uses it: a certificate may be revoked, and who has none may not stay.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Of one with a certificate.
    _counted: Option<Counted>,
    _permit: OwnedSemaphorePermit,
}

/// How many connections each caller has.
#[derive(Clone, Debug, Default)]
struct Counts(Arc<Mutex<HashMap<String, usize>>>);

/// One of them.
#[derive(Debug)]
struct Counted {
    counts: Counts,
    caller: String,
}

impl Counts {
    /// None when this caller has as many as one may have.
    fn one_more(&self, identity: &Identity) -> Option<Counted> {
        let most = match identity {
            Identity::Anonymous => ANONYMOUS_CONNECTIONS_MAX,
            _ => CONNECTIONS_OF_ONE_MAX,
        };
        let caller = identity.to_string();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(caller.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        let counts = self.clone();
        Some(Counted { counts, caller })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

/// Who sends this request; refused when their certificate ended meanwhile.
pub fn identity_of<T>(request: &Request<T>) -> Result<Identity, Status> {
    identity_in(request.extensions())
}

/// As [`identity_of`], for layers that see the request's extensions only.
pub fn identity_in(extensions: &tonic::Extensions) -> Result<Identity, Status> {
    let caller = extensions
        .get::<Caller>()
        .ok_or_else(|| Status::unauthenticated("no TLS connection"))?;
    match caller.authenticated.current(super::unix_now()) {
        Ok(identity) => Ok(identity.clone()),
        Err(ended) => Err(Status::unauthenticated(ended.to_string())),
    }
}

/// Accepts until the stream is dropped; at most `connections_max` are open at a time, then callers wait. A connection
/// ends when its certificate is revoked.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    connections_max: usize,
    revoked: Revoked,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
    tokio::spawn(run(
        listener,
        TlsAcceptor::from(config),
        connections_max,
        revoked,
        sender,
    ));
    ReceiverStream::new(receiver)
}

async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections_max: usize,
    revoked: Revoked,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let counts = Counts::default();
    loop {
        let permits = async {
            let handshake = handshakes.clone().acquire_owned().await;
            (handshake, connections.clone().acquire_owned().await)
        };
        let (handshake, connection) = tokio::select! {
            biased;
            () = sender.closed() => return,
            permits = permits => permits,
        };
        let (Ok(handshake), Ok(permit)) = (handshake, connection) else {
            return;
        }; // never closed
        let accepted = tokio::select! {
            biased;
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(error = %cause, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, sender, counts) = (acceptor.clone(), sender.clone(), counts.clone());
        let revoked = revoked.clone();
        tokio::spawn(async move {
            let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake_with(&acceptor, stream))
                .await
            {
                Ok(Ok((stream, mut authenticated))) => {
                    let Some(counted) = counts.one_more(&authenticated.identity) else {
                        tracing::debug!(%address, caller = %authenticated.identity, "too many connections of one caller");
                        return;
                    };
                    authenticated.revoked = revoked.includes(&authenticated);
                    let authenticated = Arc::new(authenticated);
                    let mut stranger = None;
                    let mut known = None;
                    let end: Pin<Box<dyn Future<Output = ()> + Send>> = match &*authenticated {
                        Authenticated {
                            identity: Identity::Anonymous,
                            ..
                        } => {
                            let (until, end) = watch::channel(Instant::now() + STRANGER_AGE_MAX);
                            stranger = Some(Arc::new(Stranger {
                                counts,
                                counted: Mutex::new(counted),
                                until,
                            }));
                            Box::pin(stay(end))
                        }
                        certified => {
                            known = Some(counted);
                            match certified.revoked {
                                // It is told so, and then has nothing more to do here.
                                true => Box::pin(tokio::time::sleep(STRANGER_AGE_MAX)),
                                false => Box::pin(revoked.wait_for(authenticated.clone())),
                            }
                        }
                    };
                    let caller = Caller {
                        authenticated,
                        address,
                        stranger,
                    };
                    Connection {
                        stream,
                        caller,
                        end,
                        _counted: known,
                        _permit: permit,
                    }
                }
                Ok(Err(cause)) => {
                    tracing::debug!(%address, error = %cause, "refused a connection");
                    return;
                }
                Err(_) => {
                    tracing::debug!(%address, "gave up a connection that did not finish its handshake");
                    return;
                }
            };
            drop(handshake);
            if sender.send(Ok(connection)).await.is_err() {
                tracing::debug!(%address, "the listener has ended");
            }
        });
    }
}

async fn handshake_with(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, Authenticated)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let authenticated = match stream.get_ref().1.peer_certificates() {
        None | Some([]) => Authenticated::anonymous(),
        Some([leaf, ..]) => Authenticated::from_certificate(leaf).map_err(io::Error::other)?,
    };
    Ok((stream, authenticated))
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            // Not to be polled again, and over all the same.
            self.end = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(name: &str, not_after: u64) -> Authenticated {
        Authenticated {
            identity: Identity::User {
                name: name.to_owned(),
                groups: Vec::new(),
            },
            not_after,
            ..Authenticated::anonymous()
        }
    }

    #[tokio::test]
    async fn a_stranger_is_counted_as_its_first_bearer_and_stays_as_long_as_a_token_is_good() {
        let counts = Counts::default();
        let of = |name: &str| counts.0.lock().unwrap().get(name).copied().unwrap_or_default();
        let begun = Instant::now();
        let (until, end) = watch::channel(begun);
        let caller = Caller {
            authenticated: Arc::new(Authenticated::anonymous()),
            address: ([127, 0, 0, 1], 1).into(),
            stranger: Some(Arc::new(Stranger {
                counted: Mutex::new(counts.one_more(&Identity::Anonymous).unwrap()),
                counts: counts.clone(),
                until,
            })),
        };
        assert_eq!(of("system:anonymous"), 1);
        let known = caller.recognised(bearer("robot", 101), 100).unwrap();
        assert_eq!(known.authenticated.identity, bearer("robot", 0).identity);
        assert_eq!((of("system:anonymous"), of("robot")), (0, 1));
        // An earlier end takes nothing away.
        caller.recognised(bearer("other", 100), 100).unwrap();
        assert_eq!((of("robot"), of("other")), (1, 0));
        stay(end).await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        drop((caller, known));
        assert_eq!(of("robot"), 0);
    }

    #[test]
    fn a_bearer_with_as_many_connections_as_one_may_have_is_not_recognised_on_another() {
        let counts = Counts::default();
        let robot = bearer("robot", 200);
        let taken: Vec<_> = (0..CONNECTIONS_OF_ONE_MAX)
            .map(|_| counts.one_more(&robot.identity).unwrap())
            .collect();
        let stranger = Stranger {
            counted: Mutex::new(counts.one_more(&Identity::Anonymous).unwrap()),
            counts: counts.clone(),
            until: watch::channel(Instant::now()).0,
        };
        assert!(stranger.recognise(&robot, 100).is_none());
        drop(taken);
        stranger.recognise(&robot, 100).unwrap();
    }
}
