//! What agents call: their one session, the calls that it asks for, the renewal of their certificates, tokens for their pods.
//!
//! | file          | what                                                                |
//! |---------------|---------------------------------------------------------------------|
//! | `desired.rs`  | what an agent has to hear, as a difference; pure                    |
//! | `account.rs`  | which pods get a token of their service account; pure               |
//! | `reported.rs` | what an agent may say; pure                                         |
//! | `talk.rs`     | one session, from Welcome to its end                                |
//! | `registry.rs` | the sessions of this member, and the calls that wait for agents     |
//! | `dispatch.rs` | tells sessions what changed                                         |
//! | `carry.rs`    | one call, opened by the agent                                       |

mod account;
mod carry;
mod desired;
mod dispatch;
mod registry;
mod reported;
mod talk;

#[cfg(test)]
mod account_test;
#[cfg(test)]
mod carry_test;
#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod desired_test;
#[cfg(test)]
mod identities_test;
#[cfg(test)]
mod revocation_test;
#[cfg(test)]
mod session_test;
#[cfg(test)]
mod stolen_test;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use proto::state::v1::Key;
use rpc::v1::node_server::{Node as NodeApi, NodeServer};
use rpc::v1::{
    AgentMessage, CarryDown, CarryUp, ControllerMessage, PodTokenRequest, PodTokenResponse, RenewRequest,
    RenewResponse,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::events::Events;
use crate::leases::Renewals;
use crate::raft::Node;
use crate::security::account_token::LIFE_SECONDS;
use crate::security::ca::{Authority, CaError, Subject};
use crate::security::identity::Identity;
use crate::security::listen::{Caller, identity_of};
use crate::security::revoked::issuing_time;
use crate::security::unix_now;
use crate::status::Reports;

use desired::Peers;
pub(crate) use registry::Sessions;

/// Largest message of an agent: a batch of reports, a chunk of output.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Sessions that open at a time: each asks the leader and gathers everything of its node. More wait.
const OPENINGS_MAX: usize = 64;
/// The leader answers in this time, or the agent goes to another member.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What sessions need of the rest of this member; clones are the same.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) node: Node,
    pub(crate) sessions: Sessions,
    pub(crate) reports: Reports,
    pub(crate) renewals: Renewals,
    pub(crate) events: Events,
    peers: watch::Receiver<Arc<Peers>>,
    openings: Arc<Semaphore>,
}

impl Desk {
    /// The desk, and the work that keeps its sessions up to date until it is dropped.
    pub(crate) fn new(
        node: Node,
        sessions: Sessions,
        renewals: Renewals,
        events: Events,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (told, peers) = watch::channel(Arc::default());
        let dispatch = dispatch::dispatch(node.clone(), sessions.clone(), told);
        let desk = Self {
            node,
            reports: sessions.reports().clone(),
            sessions,
            renewals,
            events,
            peers,
            openings: Arc::new(Semaphore::new(OPENINGS_MAX)),
        };
        (desk, dispatch)
    }
}

/// The service, for the API's port.
pub(crate) fn server(desk: Desk, authority: Arc<Authority>) -> NodeServer<impl NodeApi> {
    NodeServer::new(Service { desk, authority })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

struct Service {
    desk: Desk,
    authority: Arc<Authority>,
}

/// The name in a node's certificate: whatever it says itself, it acts as this one.
fn node_name<T>(request: &Request<T>) -> Result<String, Status> {
    match identity_of(request)? {
        Identity::Node(name) => Ok(name),
        other => Err(Status::permission_denied(format!("{other} is no node"))),
    }
}

pub(crate) fn node_key(name: &str) -> Key {
    Key {
        kind: model::Kind::Node.as_str().to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
    }
}

/// The state, as new as anything that was acknowledged.
async fn read(node: &Node) -> Result<state::State, Status> {
    let read = tokio::time::timeout(READ_TIMEOUT, node.read()).await;
    let behind =
        |cause: String| Status::unavailable(format!("this controller can't serve agents now: {cause}"));
    let read = read.map_err(|_| behind("no leader answers".to_owned()))?;
    read.map_err(|cause| behind(cause.to_string()))
}

#[tonic::async_trait]
impl NodeApi for Service {
    type SessionStream = ReceiverStream<Result<ControllerMessage, Status>>;
    type CarryStream = Pin<Box<dyn Stream<Item = Result<CarryDown, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let name = node_name(&request)?;
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no TLS connection"))?;
        // One message waits for the stream: an agent that reads slowly gets the newest state when it reads on.
        let (outbox, messages) = mpsc::channel(1);
        tokio::spawn(talk::serve(
            self.desk.clone(),
            name,
            caller.authenticated,
            request.into_inner(),
            outbox,
        ));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn carry(
        &self,
        request: Request<Streaming<CarryUp>>,
    ) -> Result<Response<Self::CarryStream>, Status> {
        let name = node_name(&request)?;
        let frames = carry::carry(self.desk.sessions.clone(), name, request.into_inner());
        Ok(Response::new(Box::pin(frames)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let name = node_name(&request)?;
        let state = read(&self.desk.node).await?;
        if state.get(&node_key(&name)).is_none() {
            return Err(dispatch::deleted(&name));
        }
        let now = issuing_time(&state, &Identity::Node(name.clone()).to_string(), unix_now());
        let subject = Subject::Node { name: name.clone() };
        let signed = self.authority.sign(&request.into_inner().csr, &subject, now);
        let certificate = signed.map_err(|cause| match cause {
            CaError::Request(_) | CaError::RequestTooLarge { .. } | CaError::Name { .. } => {
                Status::invalid_argument(cause.to_string())
            }
            cause => {
                tracing::error!(error = %cause, node = name, "failed to sign a certificate");
                Status::internal("the certificate could not be signed")
            }
        })?;
        Ok(Response::new(RenewResponse {
            certificate,
            ca: self.authority.certificate().to_owned(),
            endpoints: endpoints(&self.desk.node),
        }))
    }

    async fn pod_token(
        &self,
        request: Request<PodTokenRequest>,
    ) -> Result<Response<PodTokenResponse>, Status> {
        let name = node_name(&request)?;
        let state = read(&self.desk.node).await?;
        let claims = account::claims(&state, &name, &request.get_ref().pod_uid, unix_now())?;
        Ok(Response::new(PodTokenResponse {
            token: self.authority.account_key().sign(&claims),
            life_seconds: LIFE_SECONDS,
        }))
    }
}

/// Where agents reach the members.
fn endpoints(node: &Node) -> Vec<String> {
    node.members()
        .into_iter()
        .map(|info| info.member.address)
        .collect()
}
