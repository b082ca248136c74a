//! What members do for each other beside consensus: renew leases at the leader, carry calls to a node, pass events on.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rpc::v1::relay_server::{Relay, RelayServer};
use rpc::v1::{
    CallDown, CallerIdentity, CarryDown, CarryUp, EventReports, Open, RecordEventsResponse,
    RenewLeasesRequest, RenewLeasesResponse, call_down,
};
use state::rbac::Who;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::api::access;
use crate::api::admit::check_again;
use crate::api::status::reading;
use crate::calls::{Call, Calls};
use crate::events::Events;
use crate::leases::Leases;
use crate::raft::Node;
use crate::security::identity::Identity;
use crate::security::listen::identity_of;

/// The first frame of a call is there when the stream is opened.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// Events in one call: as many as a member keeps ready to send.
const EVENTS_MAX: usize = 10_000;

/// For the members' port, beside consensus.
pub(crate) fn routes(node: Node, leases: Leases, events: Events, calls: Calls) -> Routes {
    Routes::new(RelayServer::new(Service {
        node,
        leases,
        events,
        calls,
    }))
}

struct Service {
    node: Node,
    leases: Leases,
    events: Events,
    calls: Calls,
}

impl Service {
    /// Only who is a member now: one that was removed keeps its certificate for a while.
    fn member<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match identity_of(request)? {
            Identity::Member(id) if self.node.members().iter().any(|found| found.id == id) => Ok(()),
            other => Err(Status::permission_denied(format!(
                "{other} is no member of this cluster"
            ))),
        }
    }
}

impl Service {
    /// Who may not do it by what this member knows does not do it by way of another one that knows less.
    async fn authorize_again(&self, caller: Option<CallerIdentity>, asked: &Open) -> Result<(), Status> {
        let Some(caller) = caller else {
            return Err(Status::permission_denied(
                "the controller that passes the call on does not say whose it is: upgrade it",
            ));
        };
        let who = Who::authenticated(caller.name, &caller.groups);
        if who.is_admin() {
            return Ok(());
        }
        let call = asked
            .call
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("open has no call"))?;
        let state = self.node.read().await.map_err(reading)?;
        let Some(access) = access::passed_on(&state, call, &asked.pod_uid) else {
            return Err(Status::unavailable("the pod of this call is not there"));
        };
        check_again(&state, &who, &access)
    }
}

#[tonic::async_trait]
impl Relay for Service {
    type CallStream = Pin<Box<dyn Stream<Item = Result<CarryUp, Status>> + Send>>;

    async fn renew_leases(
        &self,
        request: Request<RenewLeasesRequest>,
    ) -> Result<Response<RenewLeasesResponse>, Status> {
        self.member(&request)?;
        let leads = self.node.leads().await;
        let granted = leads && self.leases.renew(request.into_inner().nodes);
        Ok(Response::new(RenewLeasesResponse { granted }))
    }

    async fn call(
        &self,
        request: Request<Streaming<CallDown>>,
    ) -> Result<Response<Self::CallStream>, Status> {
        self.member(&request)?;
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the first frame did not come"))??;
        let Some(call_down::Frame::Open(open)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("the first frame has to be open"));
        };
        let asked = open
            .open
            .ok_or_else(|| Status::invalid_argument("open is empty"))?;
        self.authorize_again(open.caller, &asked).await?;
        let Call { up, down } = self.calls.open_here(&open.node, asked).await?;
        let (give_up, given_up) = oneshot::channel();
        tokio::spawn(feed(frames, down, give_up));
        let given_up = async move {
            if given_up.await.is_err() {
                std::future::pending::<()>().await; // it went on to a good end
            }
        };
        Ok(Response::new(Box::pin(
            ReceiverStream::new(up).take_until(Box::pin(given_up)),
        )))
    }

    async fn record_events(
        &self,
        request: Request<EventReports>,
    ) -> Result<Response<RecordEventsResponse>, Status> {
        self.member(&request)?;
        let mut events = request.into_inner().events;
        events.truncate(EVENTS_MAX);
        self.events.record_remote(events);
        Ok(Response::new(RecordEventsResponse {}))
    }
}

/// Passes a client's frames on; says so when the client gave up.
async fn feed(mut frames: Streaming<CallDown>, down: mpsc::Sender<CarryDown>, give_up: oneshot::Sender<()>) {
    loop {
        match frames
            .message()
            .await
            .map(|frame| frame.and_then(|frame| frame.frame))
        {
            Ok(Some(call_down::Frame::Down(frame))) => {
                if down.send(frame).await.is_err() {
                    return; // the node's side has ended
                }
            }
            Ok(Some(call_down::Frame::Finish(_))) => return,
            Ok(Some(call_down::Frame::Open(_)) | None) | Err(_) => {
                if give_up.send(()).is_err() {
                    tracing::trace!("the call has ended");
                }
                // Dropped before the answers are, `down` would look like a good end.
                down.closed().await;
                return;
            }
        }
    }
}
