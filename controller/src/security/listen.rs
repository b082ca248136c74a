//! Listeners: TCP, then TLS within a time, then who it is; a bounded number of each.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::identity::{Authenticated, Identity};

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

/// What a request's extensions hold about its connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub authenticated: Arc<Authenticated>,
    /// From where.
    pub address: SocketAddr,
}

/// One accepted connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
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
        Err(expired) => Err(Status::unauthenticated(expired.to_string())),
    }
}

/// Accepts until the stream is dropped; at most `connections_max` are open at a time, then callers wait.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    connections_max: usize,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
    tokio::spawn(run(listener, TlsAcceptor::from(config), connections_max, sender));
    ReceiverStream::new(receiver)
}

async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections_max: usize,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
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
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let connection =
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake_with(&acceptor, stream)).await {
                    Ok(Ok((stream, authenticated))) => {
                        let caller = Caller {
                            authenticated: Arc::new(authenticated),
                            address,
                        };
                        Connection {
                            stream,
                            caller,
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
