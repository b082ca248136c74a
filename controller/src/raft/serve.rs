//! The members' port.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rpc::v1::raft_server::RaftServer;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;

use super::network::MESSAGE_BYTES_MAX;
use super::node::Node;
use super::service::PeerService;
use crate::security::listen::{self, CONNECTION_AGE_MAX};
use crate::security::revoked::Revoked;
use crate::store::Dir;

/// Connections of other members: a few lanes each, and those that are being replaced.
const CONNECTIONS_MAX: usize = 256;
/// Calls at a time on one of them.
const STREAMS_MAX: u32 = 1024;
/// Bytes on their way: a snapshot's chunks and large entries should not wait for the window.
const WINDOW_BYTES: u32 = 4 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

impl<D: Dir> Node<D> {
    /// What other members call, beside `more`.
    pub(crate) fn routes(&self, more: Routes) -> Routes {
        let service = RaftServer::new(PeerService { node: self.clone() })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        more.add_service(service)
    }

    /// Serves the other members until `stop` resolves, with `more` services of other parts of this process beside
    /// consensus. The TLS configuration must require certificates.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: ServerConfig,
        more: Routes,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let revoked = Revoked::new(self.revocations());
        let incoming = listen::accept(listener, Arc::new(tls), CONNECTIONS_MAX, revoked);
        Server::builder()
            .max_connection_age(CONNECTION_AGE_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_routes(self.routes(more))
            .serve_with_incoming_shutdown(incoming, stop)
            .await
    }
}
