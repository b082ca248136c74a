//! Calls of clients that a pod's node carries out, whichever member holds its session.
//!
//! The member asks the node's agent over its session to open `Node.Carry`; when another member holds the session, that one is
//! asked by `Relay.Call`. Either way two bounded channels come of it, and leaving is told in both directions.

use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt};
use rpc::v1::relay_client::RelayClient;
use rpc::v1::{CallDown, CallOpen, CallerIdentity, CarryDown, CarryUp, Open, call_down, carry_up, open};
use state::rbac::Who;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Code, Status, Streaming};

use crate::raft::{Channel, MemberId, Node};
use crate::security::new_uuid;
use crate::session::Sessions;

/// An agent opens a call that it is asked for in this time.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Another member answers a little later than its agent.
const RELAY_TIMEOUT: Duration = Duration::from_secs(12);
/// Frames on their way in one direction; then whoever sends waits.
const FRAMES_MAX: usize = 16;

/// Carries one call of a client to a pod's node, whichever member holds its session.
#[derive(Clone)]
pub(crate) struct Calls {
    node: Node,
    sessions: Sessions,
}

/// One call under way. A call that is given up drops `up` first, or both at once as this value.
#[derive(Debug)]
pub(crate) struct Call {
    /// From the node; dropped: the client left. A failure of the call arrives as `Err`, and is the last.
    pub(crate) up: mpsc::Receiver<Result<CarryUp, Status>>,
    /// To the node; dropped while `up` is not: nothing more follows.
    pub(crate) down: mpsc::Sender<CarryDown>,
}

impl Calls {
    /// Over this member's sessions, and those of the others.
    pub(crate) fn new(node: Node, sessions: Sessions) -> Self {
        Self { node, sessions }
    }

    /// Begins a call at a node; UNAVAILABLE when it has no session anywhere or does not answer in time.
    pub(crate) async fn open(
        &self,
        who: &Who,
        node: &str,
        call: open::Call,
        pod_uid: &str,
    ) -> Result<Call, Status> {
        let open = Open {
            call_id: new_uuid(),
            pod_uid: pod_uid.to_owned(),
            call: Some(call),
        };
        match self.open_here(node, open.clone()).await {
            Err(status) if status.code() == Code::NotFound => self.open_elsewhere(who, node, open).await,
            opened => opened,
        }
    }

    /// Begins a call at a node whose session is here; NOT_FOUND when it isn't.
    pub(crate) async fn open_here(&self, node: &str, open: Open) -> Result<Call, Status> {
        let carried = self.sessions.ask(node, open)?;
        match tokio::time::timeout(OPEN_TIMEOUT, carried).await {
            Ok(Ok(call)) => Ok(call),
            Ok(Err(_)) => Err(Status::unavailable(format!(
                "the session of node {node} has ended"
            ))),
            Err(_) => Err(Status::unavailable(format!(
                "the agent of node {node} did not answer within {} s",
                OPEN_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Asks every other member at once: one of them may hold the session.
    async fn open_elsewhere(&self, who: &Who, node: &str, open: Open) -> Result<Call, Status> {
        let members = self.node.members().into_iter().map(|info| info.id);
        let others: Vec<MemberId> = members.filter(|id| *id != self.node.id()).collect();
        let mut tries: FuturesUnordered<_> = others
            .into_iter()
            .map(|id| self.open_at(id, who, node, open.clone()))
            .collect();
        let mut failed = Status::unavailable(format!(
            "node {node} has no session with any controller: its agent is not running or can't reach them"
        ));
        while let Some(opened) = tries.next().await {
            match opened {
                Ok(call) => return Ok(call),
                // Not there, or a member that is down: another one may hold it.
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => {
                    tracing::debug!(node, %status, "another controller did not carry a call");
                    // Without a cause below it is the member's own answer, not the connection's failure.
                    if std::error::Error::source(&status).is_none() {
                        failed = status;
                    }
                }
            }
        }
        Err(failed)
    }

    async fn open_at(&self, id: MemberId, who: &Who, node: &str, open: Open) -> Result<Call, Status> {
        let unusable = || Status::not_found(format!("controller {id} can't be reached"));
        let channel: Channel = self
            .node
            .peer_channel(id)
            .and_then(Result::ok)
            .ok_or_else(unusable)?;
        let open = CallOpen {
            node: node.to_owned(),
            open: Some(open),
            caller: Some(CallerIdentity {
                name: who.name.clone(),
                groups: who.groups.clone(),
            }),
        };
        let (begin, begun) = oneshot::channel();
        let mut client = RelayClient::new(channel);
        let calling = client.call(frames_to_member(open, begun));
        let answer = tokio::time::timeout(RELAY_TIMEOUT, calling).await;
        let answer = answer.map_err(|_| Status::unavailable(format!("controller {id} did not answer")))??;
        let (call, downward) = join(answer.into_inner());
        if begin.send(downward).is_err() {
            return Err(Status::unavailable(format!("controller {id} ended the call")));
        }
        Ok(call)
    }
}

/// What another member gets of a call: `open`, then, once it has begun, the frames; `finish` unless the client left.
fn frames_to_member(open: CallOpen, begun: oneshot::Receiver<Downward>) -> impl Stream<Item = CallDown> {
    enum Feed {
        Waiting(oneshot::Receiver<Downward>),
        Going(Downward),
        Over,
    }
    let frame = |frame| CallDown { frame: Some(frame) };
    let first = stream::iter([frame(call_down::Frame::Open(open))]);
    first.chain(stream::unfold(Feed::Waiting(begun), move |feed| async move {
        let mut downward = match feed {
            Feed::Waiting(begun) => begun.await.ok()?, // the call never began
            Feed::Going(downward) => downward,
            Feed::Over => return None,
        };
        match downward.next().await {
            Down::Frame(next) => Some((frame(call_down::Frame::Down(next)), Feed::Going(downward))),
            Down::Finish => Some((frame(call_down::Frame::Finish(true)), Feed::Over)),
            Down::GivenUp | Down::Ended => None,
        }
    }))
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    NotYet,
    /// The client left.
    Left,
    /// The node has said everything.
    Ended,
}

/// What comes next for the node.
pub(crate) enum Down {
    /// This.
    Frame(CarryDown),
    /// Nothing more; the node may go on answering.
    Finish,
    /// The client left.
    GivenUp,
    /// The node's side has ended.
    Ended,
}

/// The frames that go to the node.
pub(crate) struct Downward {
    frames: mpsc::Receiver<CarryDown>,
    /// Of the other direction, to see whether the client is still there.
    up: mpsc::WeakSender<Result<CarryUp, Status>>,
    over: watch::Receiver<Over>,
}

impl Downward {
    pub(crate) async fn next(&mut self) -> Down {
        tokio::select! {
            biased;
            end = ended(&mut self.over) => end,
            frame = self.frames.recv() => match frame {
                Some(frame) => Down::Frame(frame),
                None => match self.up.upgrade() {
                    // Who leaves drops both ends: that must not look like a good end.
                    Some(up) if up.is_closed() => Down::GivenUp,
                    Some(_) => Down::Finish,
                    // The other direction has just ended, and is about to say how.
                    None => ended(&mut self.over).await,
                },
            },
        }
    }
}

/// How the other direction ended, once it has.
async fn ended(over: &mut watch::Receiver<Over>) -> Down {
    match over.wait_for(|over| *over != Over::NotYet).await.as_deref() {
        Ok(Over::Left) => Down::GivenUp,
        Ok(Over::Ended | Over::NotYet) | Err(_) => Down::Ended,
    }
}

/// Both directions of a call whose answers arrive on `inbound`.
pub(crate) fn join(inbound: Streaming<CarryUp>) -> (Call, Downward) {
    let (down, frames) = mpsc::channel(FRAMES_MAX);
    let (answers, up) = mpsc::channel(FRAMES_MAX);
    let (over, ended) = watch::channel(Over::NotYet);
    let downward = Downward {
        frames,
        up: answers.downgrade(),
        over: ended,
    };
    tokio::spawn(async move {
        let end = upward(inbound, answers).await;
        over.send_replace(end);
    });
    (Call { up, down }, downward)
}

async fn upward(mut inbound: Streaming<CarryUp>, up: mpsc::Sender<Result<CarryUp, Status>>) -> Over {
    loop {
        let message = tokio::select! {
            biased;
            () = up.closed() => return Over::Left,
            message = inbound.message() => message,
        };
        let answer = match message {
            Ok(None) => return Over::Ended,
            Ok(Some(frame)) => answer(frame),
            Err(status) => Err(status),
        };
        let last = answer.is_err();
        if up.send(answer).await.is_err() {
            return Over::Left;
        }
        if last {
            return Over::Ended;
        }
    }
}

/// A frame of an agent, or the failure that it tells.
fn answer(frame: CarryUp) -> Result<CarryUp, Status> {
    match frame.frame {
        Some(carry_up::Frame::Error(error)) => Err(match Code::from_i32(error.code) {
            Code::Ok => Status::internal("the node failed without a reason"),
            code => Status::new(code, error.message),
        }),
        Some(carry_up::Frame::CallId(_)) | None => Err(Status::internal("the node sent an empty frame")),
        Some(_) => Ok(frame),
    }
}

#[cfg(test)]
mod tests {
    use rpc::v1::CallError;

    use super::*;

    fn error(code: i32) -> Result<CarryUp, Status> {
        answer(CarryUp {
            frame: Some(carry_up::Frame::Error(CallError {
                code,
                message: "why".to_owned(),
            })),
        })
    }

    #[test]
    fn a_nodes_failure_becomes_the_calls() {
        let status = error(5).unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "why"));
        assert_eq!(error(0).unwrap_err().code(), Code::Internal);
        assert_eq!(error(99).unwrap_err().code(), Code::Unknown);
        assert!(answer(CarryUp { frame: None }).is_err());
    }

    fn ends() -> (
        Call,
        Downward,
        mpsc::Sender<Result<CarryUp, Status>>,
        watch::Sender<Over>,
    ) {
        let (down, frames) = mpsc::channel(FRAMES_MAX);
        let (answers, up) = mpsc::channel(FRAMES_MAX);
        let (over, ended) = watch::channel(Over::NotYet);
        let downward = Downward {
            frames,
            up: answers.downgrade(),
            over: ended,
        };
        (Call { up, down }, downward, answers, over)
    }

    #[tokio::test]
    async fn a_dropped_end_is_good_while_the_client_listens_and_given_up_otherwise() {
        let (call, mut downward, _answers, _over) = ends();
        call.down.send(CarryDown::default()).await.unwrap();
        drop(call.down);
        assert!(matches!(downward.next().await, Down::Frame(_)));
        assert!(matches!(downward.next().await, Down::Finish));
        drop(call.up);

        let (call, mut downward, _answers, _over) = ends();
        drop(call);
        assert!(matches!(downward.next().await, Down::GivenUp));
    }

    #[tokio::test]
    async fn leaving_is_not_taken_for_a_good_end_before_it_is_told() {
        let (call, mut downward, answers, over) = ends();
        drop(call);
        drop(answers); // what `upward` does first when it returns
        let (next, _) = tokio::join!(biased; downward.next(), async { over.send_replace(Over::Left) });
        assert!(matches!(next, Down::GivenUp));
    }

    #[tokio::test]
    async fn leaving_comes_before_frames_that_wait() {
        let (call, mut downward, _answers, over) = ends();
        call.down.send(CarryDown::default()).await.unwrap();
        over.send_replace(Over::Left);
        assert!(matches!(downward.next().await, Down::GivenUp));
        over.send_replace(Over::Ended);
        assert!(matches!(downward.next().await, Down::Ended));
    }
}
