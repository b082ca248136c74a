//! The writer's side: frames, segments, their removal. One owner, no locks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::super::types::{LogId, Vote};
use super::format::{
    self, Cover, Encoded, FRAME_OVERHEAD, FrameBuilder, Place, RECORD_HEADER, Record, SEGMENT_HEADER,
};
use super::index::Source;
use super::{ENTRY_BYTES_MAX, LogError};
use crate::store::{Dir, File};
use seal::{Keys, TAG_BYTES};

/// Default size of a segment: two of the largest entries, small enough to be filled with zeros in passing.
pub const SEGMENT_BYTES: u32 = 16 << 20;
/// What the frame at the head of each segment takes, at most: vote, committed, purged.
const CHECKPOINT_BYTES_MAX: usize = 320;
/// Largest frame aimed at: what a disk writes in a few milliseconds; one larger record is a frame of its own.
pub(super) const FRAME_BYTES: usize = 4 << 20;
/// Zeros written at a time.
const FILL_BYTES: usize = 1 << 20;

const _: () = assert!(
    ENTRY_BYTES_MAX
        + CHECKPOINT_BYTES_MAX
        + SEGMENT_HEADER
        + 2 * FRAME_OVERHEAD
        + RECORD_HEADER
        + TAG_BYTES
        + 1024
        < SEGMENT_BYTES as usize,
    "the largest entry fits a segment"
);

pub(super) struct Core<D: Dir> {
    pub(super) dir: D,
    /// New segments are sealed with the first.
    pub(super) keys: Keys,
    /// Size of segments to come.
    pub(super) segment_bytes: u32,
    /// Size of the one that is written to; differs when the setting changed.
    pub(super) active_bytes: u32,
    pub(super) segments: VecDeque<Segment<D::File>>,
    /// Where the next frame goes, in the last segment.
    pub(super) offset: u32,
    pub(super) next_frame: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// `committed` is newer than what was written: it goes with the next frame.
    pub(super) committed_pending: bool,
    /// What was written of it, behind the entries that it is about. `committed` may be ahead of them: others had them first.
    pub(super) committed_written: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The next segment's file, filled with zeros ahead of its need; None where no real thread may work.
    pub(super) spare: Option<Spare<D::File>>,
    /// A write failed: the pages may be gone, and a second sync could succeed without them.
    pub(super) failed: bool,
}

pub(super) struct Segment<F> {
    pub(super) number: u64,
    pub(super) source: Source<F>,
    /// Largest index that was ever written into it.
    pub(super) last_index: Option<u64>,
}

/// A file that a thread fills.
pub(super) enum Spare<F> {
    /// Once half of the active segment is used, one is begun.
    Wanted,
    Filling {
        number: u64,
        thread: JoinHandle<io::Result<F>>,
    },
}

/// What a commit did, for the index.
pub(super) enum Effect<F> {
    Placed(u64, Place),
    Opened(u64, Source<F>),
    Removed(u64),
}

impl<D: Dir> Core<D> {
    /// Writes the records in order and syncs; returns when they are durable, or fails for ever.
    pub(super) fn commit(&mut self, records: Vec<Record>) -> Result<Vec<Effect<D::File>>, LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        let result = self.try_commit(records);
        self.failed = result.is_err();
        result
    }

    fn try_commit(&mut self, records: Vec<Record>) -> Result<Vec<Effect<D::File>>, LogError> {
        let mut effects = Vec::new();
        let mut frame = FrameBuilder::new();
        let mut placed = Vec::new();
        let mut purges = false;
        for record in records {
            match &record {
                Record::Vote(vote) => self.vote = Some(*vote),
                Record::Committed(id) => self.committed = *id,
                Record::Purged(id) => {
                    self.purged = Some(*id);
                    purges = true;
                }
                Record::TruncatedAfter(_) | Record::Entry(_) => {}
            }
            let encoded = record.encode().map_err(LogError::Encode)?;
            if !frame.is_empty() && frame.len() + encoded.len() > FRAME_BYTES.min(self.frame_max()) {
                let full = std::mem::replace(&mut frame, FrameBuilder::new());
                self.write_frame(full, &mut placed, &mut effects)?;
            }
            if FRAME_OVERHEAD + encoded.len() > self.frame_max() {
                return Err(LogError::TooLarge { bytes: encoded.len() });
            }
            let at = frame.push(&encoded);
            if let Record::Entry(entry) = &record {
                placed.push((entry.log_id.index, at));
            }
        }
        if self.committed_pending {
            frame.push(
                &Record::Committed(self.committed)
                    .encode()
                    .map_err(LogError::Encode)?,
            );
            self.committed_pending = false;
        }
        if !frame.is_empty() {
            self.write_frame(frame, &mut placed, &mut effects)?;
            self.committed_written = self.committed;
        }
        if purges {
            self.remove_segments(&mut effects)?;
        }
        Ok(effects)
    }

    /// Largest frame, with header, that fits behind the checkpoint of a fresh segment.
    fn frame_max(&self) -> usize {
        self.segment_bytes as usize - SEGMENT_HEADER - CHECKPOINT_BYTES_MAX - 64
    }

    /// `placed`: index of each entry in the frame, with its place among the frame's records. Emptied.
    fn write_frame(
        &mut self,
        frame: FrameBuilder,
        placed: &mut Vec<(u64, usize)>,
        effects: &mut Vec<Effect<D::File>>,
    ) -> Result<(), LogError> {
        if self.offset as usize + frame.len() > self.active_bytes as usize {
            self.roll(effects)?;
        }
        let offset = self.offset;
        let segment = self.segments.back_mut().expect("there is always one");
        let Cover::Sealed(key) = &*segment.source.cover else {
            panic!("a start goes on in a new segment after one that is not sealed");
        };
        let (bytes, places) = frame.seal(key, segment.number, offset, self.next_frame);
        let file = &segment.source.file;
        let written = file.write_at(&bytes, offset.into()).and_then(|()| file.sync());
        written.map_err(|source| LogError::Write {
            file: format::segment_name(segment.number),
            source,
        })?;
        for (index, at) in placed.drain(..) {
            segment.last_index = segment.last_index.max(Some(index));
            effects.push(Effect::Placed(index, places[at]));
        }
        self.offset += bytes.len() as u32;
        self.next_frame += 1;
        self.begin_spare();
        Ok(())
    }

    /// Zeros take time: a thread writes them before they are needed.
    fn begin_spare(&mut self) {
        let next = self.segments.back().map_or(1, |last| last.number + 1);
        if self.offset < self.active_bytes / 2 || !matches!(self.spare, Some(Spare::Wanted)) {
            return;
        }
        let (dir, bytes) = (self.dir.clone(), self.segment_bytes);
        let thread = std::thread::Builder::new()
            .name("log-spare".to_owned())
            .spawn(move || fill(&dir, next, bytes));
        match thread {
            Ok(thread) => self.spare = Some(Spare::Filling { number: next, thread }),
            Err(cause) => {
                tracing::warn!(error = %cause, "no thread for the next segment: it is made when needed")
            }
        }
    }

    /// The zero-filled file of a segment, ready or made now.
    fn filled(&mut self, number: u64) -> io::Result<D::File> {
        match self.spare.take() {
            Some(Spare::Filling {
                number: ready,
                thread,
            }) if ready == number => {
                self.spare = Some(Spare::Wanted);
                thread
                    .join()
                    .map_err(|_| io::Error::other("the thread that fills segments panicked"))?
            }
            other => {
                self.spare = other;
                fill(&self.dir, number, self.segment_bytes)
            }
        }
    }

    /// Goes on in a new segment. Its first frame repeats what must outlive the removal of older ones.
    pub(super) fn roll(&mut self, effects: &mut Vec<Effect<D::File>>) -> Result<(), LogError> {
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let mut checkpoint = FrameBuilder::new();
        let records = [
            self.vote.map(Record::Vote),
            // Before the entries of the next frame: a start after a crash between the two would take others for committed.
            Some(Record::Committed(self.committed_written)),
            self.purged.map(Record::Purged),
        ];
        let encoded: Vec<Encoded> = records
            .iter()
            .flatten()
            .map(Record::encode)
            .collect::<Result<_, _>>()
            .map_err(LogError::Encode)?;
        for record in &encoded {
            checkpoint.push(record);
        }
        assert!(
            checkpoint.len() <= CHECKPOINT_BYTES_MAX,
            "vote and log ids are small"
        );
        let (header, key) = format::segment_header(number, self.keys.writing());
        let (bytes, _) = checkpoint.seal(&key, number, SEGMENT_HEADER as u32, self.next_frame);
        let name = format::segment_name(number);
        let file = self
            .create_segment(&name, number, &[&header[..], &bytes].concat())
            .map_err(|source| LogError::Write { file: name, source })?;
        let source = Source {
            file: Arc::new(file),
            cover: Arc::new(Cover::Sealed(key)),
        };
        self.segments.push_back(Segment {
            number,
            source: source.clone(),
            last_index: None,
        });
        self.offset = (SEGMENT_HEADER + bytes.len()) as u32;
        self.active_bytes = self.segment_bytes;
        self.next_frame += 1;
        effects.push(Effect::Opened(number, source));
        Ok(())
    }

    /// A segment appears under its name only whole: zeros, header and checkpoint are synced before the rename.
    fn create_segment(&mut self, name: &str, number: u64, start: &[u8]) -> io::Result<D::File> {
        let file = self.filled(number)?;
        file.write_at(start, 0)?;
        file.sync()?;
        self.dir.rename(&format!("{name}.tmp"), name)?;
        self.dir.sync()?;
        Ok(file)
    }

    /// Oldest first, so that a crash leaves no gap; never the last, which is written to.
    fn remove_segments(&mut self, effects: &mut Vec<Effect<D::File>>) -> Result<(), LogError> {
        let purged = self.purged.map(|id| id.index);
        let mut removed = false;
        while self.segments.len() > 1 && self.segments[0].last_index <= purged {
            let segment = self.segments.pop_front().expect("more than one");
            let name = format::segment_name(segment.number);
            self.dir
                .remove(&name)
                .map_err(|source| LogError::Write { file: name, source })?;
            effects.push(Effect::Removed(segment.number));
            removed = true;
        }
        if removed {
            let synced = self.dir.sync();
            synced.map_err(|source| LogError::Write {
                file: self.dir.display(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A file of zeros under the segment's temporary name, synced.
fn fill<D: Dir>(dir: &D, number: u64, bytes: u32) -> io::Result<D::File> {
    let file = dir.create(&format!("{}.tmp", format::segment_name(number)))?;
    let zeros = vec![0; FILL_BYTES.min(bytes as usize)];
    let mut at = 0;
    while at < bytes as usize {
        let len = zeros.len().min(bytes as usize - at);
        file.write_at(&zeros[..len], at as u64)?;
        at += len;
    }
    file.sync()?;
    Ok(file)
}
