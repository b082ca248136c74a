//! `Node.Carry`: the agent opens one call that its session was asked for.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use rpc::v1::{CarryDown, CarryUp, carry_up};
use tonic::{Status, Streaming};

use super::registry::Sessions;
use crate::calls::{self, Down, Downward};

/// The first frame says which call; it is there when the agent opens the stream.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// The frames for the agent of `node`.
pub(super) fn carry(
    sessions: Sessions,
    node: String,
    inbound: Streaming<CarryUp>,
) -> impl Stream<Item = Result<CarryDown, Status>> {
    stream::once(begin(sessions, node, inbound)).flat_map(|begun| match begun {
        Ok(downward) => stream::unfold(Some(downward), next).left_stream(),
        Err(status) => stream::iter([Err(status)]).right_stream(),
    })
}

async fn begin(
    sessions: Sessions,
    node: String,
    mut inbound: Streaming<CarryUp>,
) -> Result<Downward, Status> {
    let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the first frame did not come"))??;
    let Some(carry_up::Frame::CallId(call_id)) = first.and_then(|frame| frame.frame) else {
        return Err(Status::invalid_argument("the first frame has to be callID"));
    };
    let waiting = sessions.take(&node, &call_id);
    let waiting = waiting.ok_or_else(|| Status::not_found("nobody waits for this call"))?;
    let (call, downward) = calls::join(inbound);
    match waiting.send(call) {
        Ok(()) => Ok(downward),
        Err(_) => Err(Status::cancelled("the client has left")),
    }
}

async fn next(downward: Option<Downward>) -> Option<(Result<CarryDown, Status>, Option<Downward>)> {
    let mut downward = downward?;
    match downward.next().await {
        Down::Frame(frame) => Some((Ok(frame), Some(downward))),
        Down::GivenUp => Some((Err(Status::cancelled("the client has left")), None)),
        Down::Finish | Down::Ended => None,
    }
}
