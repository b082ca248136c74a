//! The one writer: a thread or a task with a bounded queue, or the caller itself.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use openraft::storage::IOFlushed;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{mpsc, oneshot};

use super::core::{Core, Effect, FRAME_BYTES, Spare};
use super::format::Record;
use super::index::Index;
use super::{LogError, WriteBy};
use crate::raft::types::{Entry, LogId, Types, Vote};
use crate::store::Dir;

/// Writes waiting for the disk; the next one waits for room.
const QUEUE_MAX: usize = 1024;
/// Writes that one sync serves at most.
const BATCH_MAX: usize = 1024;

/// Who is told when a write is durable.
pub(super) enum Done {
    Flushed(IOFlushed<Types>),
    Told(oneshot::Sender<Result<(), io::Error>>),
}

impl Done {
    fn tell(self, result: Result<(), io::Error>) {
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            Self::Told(sender) => {
                if sender.send(result).is_err() {
                    tracing::debug!("nobody waits for this write any more");
                }
            }
        }
    }
}

pub(super) enum Op {
    Append(Vec<Entry>, Done),
    Vote(Vote, Done),
    Committed(Option<LogId>),
    Truncate(Option<u64>, Done),
    Purge(LogId, Done),
}

pub(super) enum Writer<D: Dir> {
    Queue {
        ops: Option<mpsc::Sender<Op>>,
        /// None for a task: it ends with the queue.
        thread: Option<JoinHandle<()>>,
    },
    Caller(Box<Mutex<Hand<D>>>),
}

/// Core and index together: what carries out a batch.
pub(super) struct Hand<D: Dir> {
    core: Core<D>,
    index: Arc<Mutex<Index<D::File>>>,
    writes: Histogram,
}

impl<D: Dir> Writer<D> {
    pub(super) fn start(
        core: Core<D>,
        index: Arc<Mutex<Index<D::File>>>,
        write_by: WriteBy,
        writes: Histogram,
    ) -> Result<Self, LogError> {
        let mut hand = Hand { core, index, writes };
        match write_by {
            WriteBy::Caller => Ok(Self::Caller(Box::new(Mutex::new(hand)))),
            WriteBy::Thread => {
                hand.core.spare = Some(Spare::Wanted);
                let (ops, queue) = mpsc::channel(QUEUE_MAX);
                let thread = std::thread::Builder::new()
                    .name("log-writer".to_owned())
                    .spawn(move || hand.run(queue))
                    .map_err(LogError::Thread)?;
                Ok(Self::Queue {
                    ops: Some(ops),
                    thread: Some(thread),
                })
            }
            WriteBy::Task => {
                let (ops, queue) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(hand.run_in_simulated_time(queue));
                Ok(Self::Queue {
                    ops: Some(ops),
                    thread: None,
                })
            }
        }
    }

    pub(super) async fn send(&self, op: Op) -> Result<(), io::Error> {
        match self {
            Self::Caller(hand) => {
                hand.lock().expect("no holder panics").carry_out(vec![op]);
                Ok(())
            }
            Self::Queue { ops, .. } => {
                let ops = ops.as_ref().expect("taken only when dropped");
                ops.send(op)
                    .await
                    .map_err(|_| io::Error::other("the log's writer has ended"))
            }
        }
    }

    /// Waits until it is on disk.
    pub(super) async fn durably(&self, op: impl FnOnce(Done) -> Op) -> Result<(), io::Error> {
        let (sender, receiver) = oneshot::channel();
        self.send(op(Done::Told(sender))).await?;
        receiver
            .await
            .map_err(|_| io::Error::other("the log's writer has ended"))?
    }
}

impl<D: Dir> Drop for Writer<D> {
    fn drop(&mut self) {
        match self {
            Self::Caller(hand) => hand.get_mut().expect("no holder panics").finish(),
            Self::Queue { ops, thread } => {
                drop(ops.take()); // whoever writes ends after what is queued
                if let Some(thread) = thread.take()
                    && thread.join().is_err()
                {
                    tracing::error!("the log's writer panicked");
                }
            }
        }
    }
}

impl<D: Dir> Hand<D> {
    fn run(&mut self, mut queue: mpsc::Receiver<Op>) {
        while let Some(first) = queue.blocking_recv() {
            self.carry_out(batch(first, &mut queue));
        }
        self.finish();
    }

    async fn run_in_simulated_time(mut self, mut queue: mpsc::Receiver<Op>) {
        while let Some(first) = queue.recv().await {
            tokio::time::sleep(self.core.dir.latency()).await;
            self.carry_out(batch(first, &mut queue));
        }
        self.finish();
    }

    fn carry_out(&mut self, batch: Vec<Op>) {
        let mut records = Vec::new();
        let mut done = Vec::new();
        for op in batch {
            match op {
                Op::Append(entries, callback) => {
                    records.extend(entries.into_iter().map(Record::Entry));
                    done.push(callback);
                }
                Op::Vote(vote, callback) => {
                    records.push(Record::Vote(vote));
                    done.push(callback);
                }
                Op::Committed(id) => {
                    self.core.committed = id;
                    self.core.committed_pending = true;
                }
                Op::Truncate(after, callback) => {
                    records.push(Record::TruncatedAfter(after));
                    done.push(callback);
                }
                Op::Purge(id, callback) => {
                    records.push(Record::Purged(id));
                    done.push(callback);
                }
            }
        }
        if done.is_empty() {
            return; // only `committed`, which waits for company
        }
        match self.commit(records) {
            Ok(()) => done.into_iter().for_each(|done| done.tell(Ok(()))),
            Err(cause) => {
                let kind = io::Error::from(cause);
                tracing::error!(error = %chain(&kind), "the log can't be written");
                done.into_iter()
                    .for_each(|done| done.tell(Err(io::Error::new(kind.kind(), chain(&kind)))));
            }
        }
    }

    fn commit(&mut self, records: Vec<Record>) -> Result<(), LogError> {
        let began = Instant::now();
        let effects = self.core.commit(records)?;
        self.writes.observe(began.elapsed().as_secs_f64());
        let mut index = self.index.lock().expect("no holder panics");
        if let Some(purged) = self.core.purged {
            index.purge(purged); // before its files go, or a reader could look for one
        }
        for effect in effects {
            match effect {
                Effect::Placed(entry, place) => index.place(entry, place),
                Effect::Opened(segment, source) => index.add_file(segment, source),
                Effect::Removed(segment) => index.remove_file(segment),
            }
        }
        index.evict();
        Ok(())
    }

    /// A clean end: the next start knows all that is committed.
    fn finish(&mut self) {
        // Whoever opens the directory next finds nobody writing in it.
        if let Some(Spare::Filling { thread, .. }) = self.core.spare.take()
            && let Ok(Err(cause)) = thread.join()
        {
            tracing::debug!(error = %cause, "the next segment was not made");
        }
        if self.core.committed_pending
            && !self.core.failed
            && let Err(cause) = self.commit(Vec::new())
        {
            tracing::warn!(error = %chain(&cause), "failed to note what is committed; the next start asks the leader");
        }
    }
}

/// What was asked for meanwhile goes with it.
fn batch(first: Op, queue: &mut mpsc::Receiver<Op>) -> Vec<Op> {
    let mut bytes = first.bytes();
    let mut batch = vec![first];
    while bytes < FRAME_BYTES && batch.len() < BATCH_MAX {
        let Ok(op) = queue.try_recv() else { break };
        bytes += op.bytes();
        batch.push(op);
    }
    batch
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(entries, _) => entries.iter().map(super::index::bytes_of).sum(),
            _ => 64,
        }
    }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
