//! The log on disk: entries, vote and what is committed, in segments of one append-only file format.
//!
//! One writer thread takes what was asked for meanwhile, writes it as one frame, syncs once, then answers all of it
//! (group commit). Entries are readable as soon as `append` returns; they count as stored only after the sync. After a
//! write that failed nothing is written any more: the process has to end and to start again from what is on disk. What is
//! on disk is sealed with this member's key.

mod core;
mod format;
mod index;
mod recover;
mod writer;

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod seal_test;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prometheus_client::metrics::histogram::Histogram;

use self::index::Index;
use self::writer::{Done, Op, Writer};
use super::types::{Entry, LogId, Types, Vote};
use crate::figures::SECONDS;
use crate::store::Dir;
use seal::{KeyError, Keys};

pub use self::core::SEGMENT_BYTES;

/// Largest entry: the proposer refuses what is larger.
pub const ENTRY_BYTES_MAX: usize = 6 << 20;
/// Most bytes of entries that are read for one message to a follower, or handed to `apply` at once; one larger entry
/// goes alone.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Entries read at once for `apply`.
const READ_ENTRIES_MAX: u64 = 512;

/// Why the log can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes on disk are not what was written.
    #[error(
        "the log is damaged: {file}, byte {offset}: {what}. This member must not go on from here: remove it from the \
         cluster, empty its data directory and join it again; if it is the only one, restore a backup"
    )]
    Damaged {
        /// File, or directory.
        file: String,
        /// Where in it.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by a newer program.
    #[error(
        "{file} has format version {version}: it was written by a newer version of this program; install that"
    )]
    Version {
        /// File.
        file: String,
        /// Its version.
        version: u32,
    },
    /// The key that it is sealed with is not there.
    #[error("{file} can't be opened")]
    Key {
        /// File.
        file: String,
        /// Which key, and what to do.
        source: KeyError,
    },
    /// Reading failed.
    #[error("failed to read {file}")]
    Read {
        /// File, or directory.
        file: String,
        /// Cause.
        source: io::Error,
    },
    /// Writing or syncing failed.
    #[error("failed to write {file}; the log takes no more writes until the process starts again")]
    Write {
        /// File, or directory.
        file: String,
        /// Cause.
        source: io::Error,
    },
    /// After a failed write.
    #[error("an earlier write to the log failed")]
    Failed,
    /// A bug: our own types always encode.
    #[error("failed to encode a record")]
    Encode(#[source] postcard::Error),
    /// The proposer lets no such entry through.
    #[error("a record of {bytes} bytes does not fit a segment")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No thread could be started.
    #[error("failed to start the log's writer")]
    Thread(#[source] io::Error),
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Read { source, .. } | LogError::Write { source, .. } => source.kind(),
            LogError::Damaged { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Who carries out the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteBy {
    /// A thread of its own.
    Thread,
    /// The caller, at once.
    Caller,
    /// A task that takes the disk's latency: as the thread, under a simulated clock, where no real thread may work.
    Task,
}

/// The log of one member.
pub struct LogStore<D: Dir> {
    reader: Reader<D>,
    writer: Writer<D>,
    writes: Histogram,
}

/// Reads entries, from memory or from their files.
pub struct Reader<D: Dir> {
    index: Arc<Mutex<Index<D::File>>>,
}

impl<D: Dir> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self {
            index: self.index.clone(),
        }
    }
}

impl<D: Dir> LogStore<D> {
    /// Opens or begins the log in `dir`, checking all of it.
    pub fn open(dir: D, segment_bytes: u32, keys: Keys, write_by: WriteBy) -> Result<Self, LogError> {
        let (core, index) = recover::open(dir, segment_bytes, keys)?;
        let index = Arc::new(Mutex::new(index));
        let writes = Histogram::new(SECONDS);
        let writer = Writer::start(core, index.clone(), write_by, writes.clone())?;
        Ok(Self {
            reader: Reader { index },
            writer,
            writes,
        })
    }

    /// How long writes to the disk take, their sync included, in seconds.
    pub(super) fn writes(&self) -> &Histogram {
        &self.writes
    }

    /// Where the log ends, and what is committed as far as the disk knows.
    pub fn last(&self) -> Option<LogId> {
        self.reader.lock().last()
    }
}

impl<D: Dir> Reader<D> {
    fn lock(&self) -> MutexGuard<'_, Index<D::File>> {
        self.index.lock().expect("no holder panics")
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let found = self.lock().find(range, bytes_max);
        found.into_iter().map(|entry| entry.load()).collect()
    }
}

fn bounds(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<D: Dir> RaftLogReader<Types> for Reader<D> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(bounds(range), usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }

    /// What `apply` gets: read piece by piece, as a restart may have to apply more than fits memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let reader = self.clone();
        let pieces = stream::unfold(bounds(range), move |range| {
            let piece = next_piece(&reader, range);
            async move { piece }
        });
        pieces.flat_map(|piece| match piece {
            Ok(entries) => stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(cause) => stream::iter(vec![Err(cause)]),
        })
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES_MAX)
    }
}

type Piece = (io::Result<Vec<Entry>>, Range<u64>);

fn next_piece<D: Dir>(reader: &Reader<D>, range: Range<u64>) -> Option<Piece> {
    if range.is_empty() {
        return None;
    }
    let end = range.end.min(range.start + READ_ENTRIES_MAX);
    match reader.read(range.start..end, READ_BYTES_MAX) {
        Ok(entries) if entries.is_empty() => None,
        Ok(entries) => {
            let next = entries.last().expect("not empty").log_id.index + 1;
            Some((Ok(entries), next..range.end))
        }
        Err(cause) => Some((Err(cause), range.end..range.end)), // the error, then the end
    }
}

impl<D: Dir> RaftLogStorage<Types> for LogStore<D> {
    type LogReader = Reader<D>;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let index = self.reader.lock();
        Ok(LogState {
            last_purged_log_id: index.purged,
            last_log_id: index.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Reader<D> {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.writer.durably(|done| Op::Vote(*vote, done)).await?;
        self.reader.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.reader.lock().committed = committed;
        self.writer.send(Op::Committed(committed)).await // rides with the next frame: a start needs only a lower bound
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.reader.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut index = self.reader.lock();
            for entry in &entries {
                index.push(entry.clone(), None);
            }
        }
        self.writer
            .send(Op::Append(entries, Done::Flushed(callback)))
            .await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let after = last_log_id.map(|id| id.index());
        self.writer.durably(|done| Op::Truncate(after, done)).await?;
        self.reader.lock().truncate_after(after);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.writer.durably(|done| Op::Purge(log_id, done)).await
    }
}
