//! Calls that a client makes and this node carries out: logs, exec, inspect, describe, images.
//!
//! The session asks for a call by `Open`; the agent opens `Carry` for it and says its id first. Frames go both ways over
//! bounded channels. A failure is a `CallError` and the last frame; when the client leaves, the call stops and says nothing.

mod cri;
mod exec;
mod images;
mod logs;

use std::sync::Arc;
use std::time::Duration;

use rpc::v1::node_client::NodeClient;
use rpc::v1::{
    CallError, CarryDown, CarryUp, DescribeResponse, InspectResponse, Open, carry_down, carry_up, open,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::health::Health;
use crate::node::Node;
use crate::pod::Handle;
use crate::pods::Pods;

/// Calls at a time: followed logs and open shells stay for long. The next one is refused.
const CALLS_MAX: usize = 128;
/// Frames on their way to the controller; then whoever makes them waits.
const FRAMES_MAX: usize = 8;
/// The controller waits ten seconds for `Carry`.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A call that is over here is over at the controller as soon as it has read the last frame; a slow client reads it later.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Carries out calls. Clones are the same.
#[derive(Clone)]
pub(crate) struct Calls {
    node: Arc<Node>,
    pods: Arc<Pods>,
    health: Arc<Health>,
    places: Arc<Semaphore>,
}

/// Why a call goes no further.
pub(crate) enum Stop {
    /// To be told.
    Failed(Status),
    /// The client has left, or the connection: nobody listens.
    Left,
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// Frames to the client.
#[derive(Clone)]
pub(crate) struct Up(mpsc::Sender<CarryUp>);

impl Up {
    /// Waits until there is room.
    async fn send(&self, frame: carry_up::Frame) -> Result<(), Stop> {
        let frame = CarryUp { frame: Some(frame) };
        self.0.send(frame).await.map_err(|_| Stop::Left)
    }

    /// Returns when the connection is gone.
    async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Frames from the client.
pub(crate) struct Down {
    frames: Streaming<CarryDown>,
    ended: bool,
}

impl Down {
    /// The next frame; none when nothing more follows.
    async fn next(&mut self) -> Result<Option<carry_down::Frame>, Stop> {
        while !self.ended {
            match self.frames.message().await {
                Ok(Some(CarryDown { frame: Some(frame) })) => return Ok(Some(frame)),
                Ok(Some(_)) => {}
                Ok(None) => self.ended = true,
                Err(_) => return Err(Stop::Left),
            }
        }
        Ok(None)
    }

    /// Reads on until the controller has ended the call, too.
    async fn rest(&mut self) {
        while let Ok(Some(_)) = self.next().await {}
    }

    /// Returns when the client has left, for calls that take no input.
    async fn left(&mut self, up: &Up) {
        loop {
            tokio::select! {
                () = up.closed() => return,
                frame = self.next(), if !self.ended => if frame.is_err() { return },
            }
        }
    }
}

impl Calls {
    pub(crate) fn new(node: Arc<Node>, pods: Arc<Pods>, health: Arc<Health>) -> Self {
        Self {
            node,
            pods,
            health,
            places: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    /// Begins a call that the session asked for; it goes on by itself.
    pub(crate) fn open(&self, channel: Channel, open: Open) {
        let calls = self.clone();
        tokio::spawn(async move {
            let call_id = open.call_id.clone();
            if let Err(error) = calls.carry(channel, open).await {
                tracing::debug!(call_id, %error, "a call was not carried");
            }
        });
    }

    async fn carry(&self, channel: Channel, open: Open) -> Result<(), Status> {
        self.health.called();
        let (sender, frames) = mpsc::channel(FRAMES_MAX);
        let up = Up(sender);
        let first = carry_up::Frame::CallId(open.call_id);
        if up.send(first).await.is_err() {
            return Err(Status::cancelled("the connection is gone"));
        }
        let mut client = NodeClient::new(channel);
        let opening = client.carry(ReceiverStream::new(frames));
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opening).await;
        let frames = opened.map_err(|_| Status::deadline_exceeded("no answer to Carry"))??;
        let mut down = Down {
            frames: frames.into_inner(),
            ended: false,
        };
        let done = match (open.call, self.places.try_acquire()) {
            (None, _) => Err(Status::unimplemented("this agent does not know such a call").into()),
            (Some(_), Err(_)) => Err(Status::resource_exhausted(format!(
                "node {} carries out {CALLS_MAX} calls already",
                self.node.name
            ))
            .into()),
            (Some(call), Ok(_place)) => self.carry_out(call, &open.pod_uid, &up, &mut down).await,
        };
        if let Err(Stop::Failed(status)) = done {
            let error = CallError {
                code: status.code().into(),
                message: status.message().to_owned(),
            };
            if up.send(carry_up::Frame::Error(error)).await.is_err() {
                tracing::debug!(%status, "nobody hears of a call's failure");
            }
        }
        // A stream of which one half is dropped early is reset, and frames on their way are lost.
        drop(up);
        if tokio::time::timeout(END_TIMEOUT, down.rest()).await.is_err() {
            tracing::debug!("the controller did not end a call that is over");
        }
        Ok(())
    }

    async fn carry_out(&self, call: open::Call, uid: &str, up: &Up, down: &mut Down) -> Result<(), Stop> {
        match call {
            open::Call::Logs(request) => {
                let name = request
                    .pod
                    .as_ref()
                    .map(|pod| &*pod.container)
                    .unwrap_or_default();
                let pod = self.pod(uid)?;
                let sending = logs::send(&pod, name, &request, up);
                unless_left(sending, up, down).await
            }
            open::Call::Exec(start) => exec::run(&self.pod(uid)?, start, up, down).await,
            open::Call::Inspect(target) => {
                let pod = self.pod(uid)?;
                let reading = async {
                    let read = pod.inspect().await;
                    let read = read.map_err(|error| Status::unavailable(runtime::monitor::chain(&error)))?;
                    let answer = InspectResponse {
                        containers: only(read.containers, &target.container, |one| &one.container),
                    };
                    up.send(carry_up::Frame::Inspect(answer)).await
                };
                unless_left(reading, up, down).await
            }
            open::Call::Describe(target) => {
                let answer = DescribeResponse {
                    ends: only(self.pod(uid)?.ends(), &target.container, |end| &end.container),
                };
                up.send(carry_up::Frame::Describe(answer)).await
            }
            open::Call::ImportImage(start) => images::import(&self.node, start, up, down).await,
            open::Call::ListImages(_) => images::list(&self.node, up).await,
        }
    }

    fn pod(&self, uid: &str) -> Result<Handle, Status> {
        let gone = || Status::not_found(format!("the pod is not on node {} (any more)", self.node.name));
        self.pods.handle(uid).ok_or_else(gone)
    }
}

/// Does it, unless the client leaves first.
async fn unless_left(
    work: impl Future<Output = Result<(), Stop>>,
    up: &Up,
    down: &mut Down,
) -> Result<(), Stop> {
    tokio::select! {
        done = work => done,
        () = down.left(up) => Err(Stop::Left),
    }
}

/// Those of one container; all when none is named.
fn only<T>(all: Vec<T>, container: &str, name: impl Fn(&T) -> &String) -> Vec<T> {
    let wanted = |one: &T| container.is_empty() || name(one) == container;
    all.into_iter().filter(wanted).collect()
}
