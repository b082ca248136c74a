//! Images without a registry: an archive to many nodes at once, and what each node has.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, future};
use model::{Kind, object};
use proto::v1::Node;
use rpc::v1::carry_up::Frame as Up;
use rpc::v1::import_input::Input;
use rpc::v1::{
    CarryDown, CarryUp, ImportInput, ImportProgress, ImportStart, ListImagesRequest, ListImagesResponse,
    NodeImages, carry_down, open,
};
use state::State;
use state::rbac::Who;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Service;
use super::carry::START_TIMEOUT;
use super::status::{Reason, refusal, refused};
use crate::calls::Call;

/// Pieces of the archive that wait for one node; the client is read no faster than the slowest node takes them.
const PIECES_MAX: usize = 4;
/// A node that takes no piece for this long is given up, so that it holds up no other.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A node that has the whole archive says something at least this often: unpacking takes minutes at most.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Steps that wait for the client to read them.
const STEPS_MAX: usize = 64;
/// Nodes asked at a time.
const ASKED_MAX: usize = 64;
/// A call that is given up tells its node so within this time.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A piece for one node. Without `Whole` before it ends, the archive is not whole.
enum Piece {
    Data(Vec<u8>),
    Whole,
}

/// How long a node may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For one piece.
    stall: Duration,
    /// From one word to the next.
    silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: STALL_TIMEOUT,
            silence: SILENCE_TIMEOUT,
        }
    }
}

impl Service {
    pub(super) async fn do_import(
        &self,
        who: &Who,
        mut input: Streaming<ImportInput>,
    ) -> Result<BoxStream<'static, Result<ImportProgress, Status>>, Status> {
        let first = tokio::time::timeout(START_TIMEOUT, input.message()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("the call did not say what it imports in time"))??;
        let Some(Input::Start(start)) = first.and_then(|first| first.input) else {
            return Err(Status::invalid_argument(
                "the first message of an import is `start`",
            ));
        };
        let nodes = chosen(&self.state().await?, &start.nodes)?;
        let (steps, progress) = mpsc::channel(STEPS_MAX);
        let opened = stream::iter(nodes).map(|node| {
            let start = ImportStart {
                reference: start.reference.clone(),
                nodes: vec![node.clone()],
            };
            async move {
                let call = self
                    .calls
                    .open(who, &node, open::Call::ImportImage(start), "")
                    .await;
                (node, call)
            }
        });
        let opened: Vec<_> = opened.buffer_unordered(ASKED_MAX).collect().await;
        let mut pieces = Vec::new();
        for (node, call) in opened {
            match call {
                Ok(call) => {
                    let (sender, receiver) = mpsc::channel(PIECES_MAX);
                    pieces.push(sender);
                    tokio::spawn(one_node(node, call, receiver, steps.clone(), Patience::default()));
                }
                Err(status) => {
                    let step = failed(&node, status.message());
                    let steps = steps.clone();
                    // The client reads only once this call has answered.
                    tokio::spawn(async move { tell(&steps, step).await });
                }
            }
        }
        tokio::spawn(distribute(input, pieces, steps));
        Ok(ReceiverStream::new(progress).boxed())
    }

    pub(super) async fn do_list_images(
        &self,
        who: &Who,
        request: ListImagesRequest,
    ) -> Result<ListImagesResponse, Status> {
        let state = self.state().await?;
        let mut names: Vec<String> = request.nodes;
        if names.is_empty() {
            names = state
                .nodes()
                .filter_map(|node| Some(node.metadata.as_ref()?.name.clone()))
                .collect();
        }
        let asked = stream::iter(names).map(|node| {
            let there = state.get(&object::key_of(Kind::Node, "", &node)).is_some();
            async move {
                if !there {
                    return error(&node, "there is no such node");
                }
                let question = open::Call::ListImages(ListImagesRequest {
                    nodes: vec![node.clone()],
                });
                match self.ask(who, &node, question, "").await {
                    Ok(Up::Images(images)) => NodeImages { node, ..images },
                    Ok(_) => error(&node, "the node's answer is none to this call"),
                    Err(status) => error(&node, status.message()),
                }
            }
        });
        Ok(ListImagesResponse {
            nodes: asked.buffered(ASKED_MAX).collect().await,
        })
    }
}

fn error(node: &str, message: &str) -> NodeImages {
    NodeImages {
        node: node.to_owned(),
        error: message.to_owned(),
        images: Vec::new(),
    }
}

fn failed(node: &str, message: &str) -> ImportProgress {
    ImportProgress {
        node: node.to_owned(),
        state: "failed".to_owned(),
        message: message.to_owned(),
        references: Vec::new(),
    }
}

/// The nodes that are named, or all that are ready.
fn chosen(state: &State, named: &[String]) -> Result<BTreeSet<String>, Status> {
    if named.is_empty() {
        let ready: BTreeSet<String> = state
            .nodes()
            .filter(|node| is_ready(node))
            .filter_map(name)
            .collect();
        if ready.is_empty() {
            return Err(Status::failed_precondition(
                "no node is ready to take an image; `ctl get nodes` shows them",
            ));
        }
        return Ok(ready);
    }
    let missing = named.iter().enumerate().filter_map(|(item, name)| {
        let key = object::key_of(Kind::Node, "", name);
        let gone = state.get(&key).is_none();
        gone.then(|| refusal(item, "", Reason::NotFound, super::not_found(Kind::Node, &key)))
    });
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        return Err(refused(missing));
    }
    Ok(named.iter().cloned().collect())
}

fn name(node: &Node) -> Option<String> {
    Some(node.metadata.as_ref()?.name.clone())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions
        .iter()
        .any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

/// Whether the client still reads.
async fn tell(steps: &mpsc::Sender<Result<ImportProgress, Status>>, step: ImportProgress) -> bool {
    steps.send(Ok(step)).await.is_ok()
}

/// Gives every piece of the archive to every node that still takes them.
async fn distribute(
    mut input: Streaming<ImportInput>,
    mut nodes: Vec<mpsc::Sender<Piece>>,
    steps: mpsc::Sender<Result<ImportProgress, Status>>,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = steps.closed() => return,
            message = input.message() => message,
        };
        let failed = match message {
            Ok(Some(ImportInput {
                input: Some(Input::Data(data)),
            })) => {
                give(&mut nodes, || Piece::Data(data.clone())).await;
                if nodes.is_empty() {
                    return; // each has said why
                }
                continue;
            }
            Ok(Some(_)) => Status::invalid_argument("after `start` an import has data only"),
            Ok(None) => return give(&mut nodes, || Piece::Whole).await,
            Err(status) => status,
        };
        // Without `Whole` the nodes throw away what they have.
        if steps.send(Err(failed)).await.is_err() {
            tracing::trace!("the client has left");
        }
        return;
    }
}

async fn give(nodes: &mut Vec<mpsc::Sender<Piece>>, piece: impl Fn() -> Piece) {
    let sent = future::join_all(nodes.iter().map(|node| node.send(piece()))).await;
    let mut sent = sent.into_iter();
    nodes.retain(|_| sent.next().is_some_and(|sent| sent.is_ok()));
}

/// One node's import, from its first piece to its last step.
async fn one_node(
    node: String,
    call: Call,
    mut pieces: mpsc::Receiver<Piece>,
    steps: mpsc::Sender<Result<ImportProgress, Status>>,
    patience: Patience,
) {
    let Call { down, mut up } = call;
    let mut down = Some(down);
    let mut waiting: Option<CarryDown> = None;
    let mut deadline = Instant::now() + patience.silence;
    let cause = loop {
        let sender = down.clone().filter(|_| waiting.is_some());
        let room = async move {
            match sender {
                Some(down) => down.reserve_owned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = steps.closed() => break None,
            frame = up.recv() => match frame {
                Some(Ok(CarryUp { frame: Some(Up::ImportImage(step)) })) => {
                    let last = matches!(step.state.as_str(), "done" | "failed");
                    let reads = tell(&steps, ImportProgress { node: node.clone(), ..step }).await;
                    if last {
                        return;
                    }
                    if !reads {
                        break None;
                    }
                    if waiting.is_none() {
                        deadline = Instant::now() + patience.silence;
                    }
                }
                Some(Ok(_)) => break Some("the node's answer is none to this call".to_owned()),
                Some(Err(status)) => break Some(status.message().to_owned()),
                None => break Some("the node ended the call".to_owned()),
            },
            room = room => match (room, waiting.take()) {
                (Ok(room), Some(frame)) => {
                    drop(room.send(frame));
                    deadline = Instant::now() + patience.silence;
                }
                // The node takes nothing more: its reason comes up.
                _ => down = None,
            },
            piece = pieces.recv(), if down.is_some() && waiting.is_none() => match piece {
                Some(Piece::Data(data)) => {
                    let data = ImportInput { input: Some(Input::Data(data)) };
                    waiting = Some(CarryDown { frame: Some(carry_down::Frame::ImportImage(data)) });
                    deadline = Instant::now() + patience.stall;
                }
                Some(Piece::Whole) => down = None,
                None => break None,
            },
            () = sleep_until(deadline) => {
                let what = if waiting.is_some() { "took no more of the archive" } else { "said nothing" };
                break Some(format!("the node {what} for too long"));
            }
        }
    };
    // Up first: the node hears that the call is given up, not that the archive is whole.
    drop(up);
    if let Some(cause) = cause {
        tell(&steps, failed(&node, &cause)).await;
    }
    drop(steps);
    if let Some(down) = down
        && tokio::time::timeout(CANCEL_TIMEOUT, down.closed()).await.is_err()
    {
        tracing::warn!(node, "an import that was given up was not ended in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (Started, mpsc::Receiver<Result<ImportProgress, Status>>) {
        with_patience(Patience::default())
    }

    fn with_patience(patience: Patience) -> (Started, mpsc::Receiver<Result<ImportProgress, Status>>) {
        let (down, to_node) = mpsc::channel(1);
        let (from_node, up) = mpsc::channel(4);
        let (pieces, receiver) = mpsc::channel(PIECES_MAX);
        let (steps, progress) = mpsc::channel(STEPS_MAX);
        tokio::spawn(one_node(
            "n1".to_owned(),
            Call { down, up },
            receiver,
            steps,
            patience,
        ));
        let started = Started {
            to_node,
            from_node,
            pieces,
        };
        (started, progress)
    }

    struct Started {
        to_node: mpsc::Receiver<CarryDown>,
        from_node: mpsc::Sender<Result<CarryUp, Status>>,
        pieces: mpsc::Sender<Piece>,
    }

    fn step(state: &str) -> Result<CarryUp, Status> {
        Ok(CarryUp {
            frame: Some(Up::ImportImage(ImportProgress {
                state: state.to_owned(),
                ..Default::default()
            })),
        })
    }

    #[tokio::test]
    async fn a_whole_archive_ends_normally_and_its_steps_bear_the_nodes_name() {
        let (mut call, mut progress) = started();
        call.pieces.send(Piece::Data(vec![1])).await.unwrap();
        call.pieces.send(Piece::Whole).await.unwrap();
        assert!(call.to_node.recv().await.is_some());
        assert!(call.to_node.recv().await.is_none(), "it ends");
        assert!(!call.from_node.is_closed(), "and is not given up");
        call.from_node.send(step("unpacking")).await.unwrap();
        call.from_node.send(step("done")).await.unwrap();
        let first = progress.recv().await.unwrap().unwrap();
        assert_eq!((first.node.as_str(), first.state.as_str()), ("n1", "unpacking"));
        assert_eq!(progress.recv().await.unwrap().unwrap().state, "done");
        assert!(progress.recv().await.is_none());
    }

    #[tokio::test]
    async fn half_an_archive_is_given_up_before_it_ends() {
        let (mut call, mut progress) = started();
        call.pieces.send(Piece::Data(vec![1])).await.unwrap();
        assert!(call.to_node.recv().await.is_some());
        drop(call.pieces);
        call.from_node.closed().await;
        assert!(
            matches!(call.to_node.try_recv(), Err(mpsc::error::TryRecvError::Empty)),
            "it does not look whole"
        );
        drop(call.to_node);
        assert!(progress.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_call() {
        let (call, progress) = started();
        drop(progress);
        call.from_node.closed().await;
    }

    #[tokio::test]
    async fn one_nodes_failure_is_told_and_holds_up_nobody() {
        let (call, mut progress) = started();
        call.from_node
            .send(Err(Status::internal("disk full")))
            .await
            .unwrap();
        let told = progress.recv().await.unwrap().unwrap();
        assert_eq!(
            (told.state.as_str(), told.message.as_str()),
            ("failed", "disk full")
        );
        drop(call.to_node);
        let (other, mut takes) = mpsc::channel(PIECES_MAX);
        call.pieces.closed().await;
        let mut nodes = vec![call.pieces, other];
        give(&mut nodes, || Piece::Data(vec![1])).await;
        assert_eq!(nodes.len(), 1);
        assert!(takes.recv().await.is_some());
    }

    #[tokio::test]
    async fn a_node_that_takes_nothing_is_given_up() {
        let (call, mut progress) = with_patience(Patience {
            stall: Duration::from_millis(10),
            ..Patience::default()
        });
        for _ in 0..3 {
            call.pieces.send(Piece::Data(vec![1])).await.unwrap();
        }
        let told = progress.recv().await.unwrap().unwrap();
        assert_eq!(told.state, "failed");
        assert!(told.message.contains("took no more"), "{}", told.message);
    }
}
