//! One connection at a time to the first address that answers.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CONNECT_TIMEOUT;

/// No address answered: each with its reason.
#[derive(Debug)]
pub struct ConnectError {
    failures: Vec<(String, io::Error)>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot reach ")?;
        for (i, (address, cause)) in self.failures.iter().enumerate() {
            let comma = if i == 0 { "" } else { "; " };
            write!(f, "{comma}{address}: {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failures.last().map(|(_, cause)| cause as _)
    }
}

/// What tonic calls whenever it needs a new connection.
#[derive(Clone)]
pub(super) struct Connector {
    shared: Arc<Shared>,
}

struct Shared {
    addresses: Vec<String>,
    /// Where to begin: after the address that answered last, as a new connection is asked for when that one failed.
    first: AtomicUsize,
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl Connector {
    pub(super) fn new(addresses: Vec<String>, config: Arc<ClientConfig>, name: ServerName<'static>) -> Self {
        let shared = Shared {
            addresses,
            first: AtomicUsize::new(0),
            tls: TlsConnector::from(config),
            name,
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.connect().await.map(TokioIo::new) })
    }
}

impl Shared {
    async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let count = self.addresses.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for index in (0..count).map(|i| (first + i) % count) {
            let address = &self.addresses[index];
            match tokio::time::timeout(CONNECT_TIMEOUT, self.connect_to(address)).await {
                Ok(Ok(stream)) => {
                    self.first.store((index + 1) % count, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(cause)) => failures.push((address.clone(), cause)),
                Err(_) => failures.push((address.clone(), io::ErrorKind::TimedOut.into())),
            }
        }
        Err(ConnectError { failures })
    }

    async fn connect_to(&self, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.tls.connect(self.name.clone(), stream).await
    }
}
