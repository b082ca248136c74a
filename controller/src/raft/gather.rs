//! Many calls in few messages: commands that are proposed at the same time become one entry of the log, and reads that begin
//! at the same time ask once who leads. What comes while one is under way goes with the next.

use std::sync::Weak;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::state::v1::CommandReply;
use tokio::sync::{mpsc, oneshot};

use super::forward::Try;
use super::node::{Inner, LEADER_TIMEOUT, Node};
use super::types::MemberId;
use crate::store::Dir;

/// Calls that wait to be taken up; the next one waits for room.
const QUEUE_MAX: usize = 4096;
/// Commands that one entry holds.
const BATCH_COMMANDS_MAX: usize = 256;
/// Bytes after which nothing more is added to an entry; a single command may be larger.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Entries of this member that are under way: the disks work on one while the next one is gathered.
const BATCHES_MAX: usize = 2;

/// A call that waits for its answer.
pub(super) struct Asked<Q, A> {
    what: Q,
    /// Who leads, as somebody else said.
    hint: Option<MemberId>,
    answer: oneshot::Sender<Try<A>>,
}

/// An encoded command.
type Proposed<A> = Asked<Vec<u8>, A>;

/// Where calls are gathered.
pub(super) struct Gather {
    proposals: mpsc::Sender<Proposed<CommandReply>>,
    reads: mpsc::Sender<Asked<(), u64>>,
}

/// The other ends.
pub(super) struct Gathered {
    proposals: mpsc::Receiver<Proposed<CommandReply>>,
    reads: mpsc::Receiver<Asked<(), u64>>,
}

impl Gather {
    pub(super) fn new() -> (Self, Gathered) {
        let (proposals, proposed) = mpsc::channel(QUEUE_MAX);
        let (reads, read) = mpsc::channel(QUEUE_MAX);
        let here = Self { proposals, reads };
        let there = Gathered {
            proposals: proposed,
            reads: read,
        };
        (here, there)
    }

    /// One try to commit an encoded command.
    pub(super) async fn propose(&self, command: Vec<u8>, hint: Option<MemberId>) -> Try<CommandReply> {
        ask(&self.proposals, command, hint).await
    }

    /// One try to learn what a read that begins now has to wait for.
    pub(super) async fn read_index(&self, hint: Option<MemberId>) -> Try<u64> {
        ask(&self.reads, (), hint).await
    }
}

async fn ask<Q, A>(queue: &mpsc::Sender<Asked<Q, A>>, what: Q, hint: Option<MemberId>) -> Try<A> {
    let (answer, answered) = oneshot::channel();
    match tokio::time::timeout(LEADER_TIMEOUT, queue.send(Asked { what, hint, answer })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return stopped(),
        Err(_) => return Try::Overloaded,
    }
    answered.await.unwrap_or_else(|_| stopped())
}

fn stopped<T>() -> Try<T> {
    Try::Stopped("its calls are not taken up any more".to_owned())
}

impl Gathered {
    /// Begins to carry calls, until the member is gone.
    pub(super) fn carry<D: Dir>(self, member: &Weak<Inner<D>>) {
        tokio::spawn(proposals(member.clone(), self.proposals));
        tokio::spawn(reads(member.clone(), self.reads));
    }
}

async fn proposals<D: Dir>(member: Weak<Inner<D>>, mut queue: mpsc::Receiver<Proposed<CommandReply>>) {
    let mut under_way = FuturesUnordered::new();
    // What had no room in the last entry.
    let mut held = None;
    loop {
        let next = async {
            match held.take() {
                Some(held) => Some(held),
                None => queue.recv().await,
            }
        };
        tokio::select! {
            biased;
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            first = next, if under_way.len() < BATCHES_MAX => {
                let (Some(first), Some(inner)) = (first, member.upgrade()) else {
                    return;
                };
                let (batch, rest) = batch(first, &mut queue);
                held = rest;
                under_way.push(propose(Node { inner }, batch));
            }
        }
    }
}

/// What waits, up to what one entry is to hold; and what was taken and had no room.
fn batch<A>(
    first: Proposed<A>,
    queue: &mut mpsc::Receiver<Proposed<A>>,
) -> (Vec<Proposed<A>>, Option<Proposed<A>>) {
    let mut bytes = first.what.len();
    let mut batch = vec![first];
    while batch.len() < BATCH_COMMANDS_MAX {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.what.len();
        if bytes > BATCH_BYTES_MAX {
            return (batch, Some(next));
        }
        batch.push(next);
    }
    (batch, None)
}

async fn propose<D: Dir>(node: Node<D>, batch: Vec<Proposed<CommandReply>>) {
    let hint = batch.first().and_then(|first| first.hint);
    let (commands, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|asked| (asked.what, asked.answer)).unzip();
    let tried = match node.target(hint) {
        None => Try::Elsewhere(None),
        Some(leader) if leader == node.id() => node.propose_here(commands).await.into(),
        Some(leader) => while_it_leads(&node, leader, node.propose_at(leader, commands)).await,
    };
    match tried {
        Try::Done(replies) if replies.len() == answers.len() => {
            for (answer, reply) in answers.into_iter().zip(replies) {
                tell(
                    answer,
                    match reply.reply {
                        Some(_) => Try::Done(reply),
                        None => Try::Unknown("the answer was too large to be sent with others".to_owned()),
                    },
                );
            }
        }
        Try::Done(replies) => {
            let cause = format!("{} answers to {} commands", replies.len(), answers.len());
            for answer in answers {
                tell(answer, Try::Unknown(cause.clone()));
            }
        }
        failed => {
            for answer in answers {
                tell(answer, failed.without_answer());
            }
        }
    }
}

async fn reads<D: Dir>(member: Weak<Inner<D>>, mut queue: mpsc::Receiver<Asked<(), u64>>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE_MAX).await > 0 {
        let Some(inner) = member.upgrade() else { return };
        let node = Node { inner };
        let hint = waiting.iter().find_map(|asked| asked.hint);
        let tried = match node.target(hint) {
            None => Try::Elsewhere(None),
            Some(leader) if leader == node.id() => node.read_index_here().await.into(),
            Some(leader) => while_it_leads(&node, leader, node.read_index_at(leader)).await,
        };
        for asked in waiting.drain(..) {
            tell(
                asked.answer,
                match tried {
                    Try::Done(index) => Try::Done(index),
                    ref failed => failed.without_answer(),
                },
            );
        }
    }
}

/// A leader that is cut off gives no answer for a while: once there is another one, nobody waits for it.
async fn while_it_leads<D: Dir, T>(
    node: &Node<D>,
    leader: MemberId,
    call: impl Future<Output = Try<T>>,
) -> Try<T> {
    let mut leadership = node.leadership();
    tokio::select! {
        biased;
        tried = call => tried,
        Ok(now) = leadership.wait_for(|now| now.leader.is_some_and(|now| now != leader)) => {
            Try::Unknown(format!("member {} leads now", now.leader.unwrap_or_default()))
        }
    }
}

fn tell<A>(answer: oneshot::Sender<Try<A>>, tried: Try<A>) {
    if answer.send(tried).is_err() {
        tracing::debug!("nobody waits for this call any more");
    }
}
