//! What a start finds on disk, and what it does with it.
//!
//! | found                                                    | done                                     |
//! |----------------------------------------------------------|------------------------------------------|
//! | no segment                                               | a new log begins                         |
//! | `.tmp` files                                             | removed: a crash while one was made      |
//! | last segment ends in bad bytes, no whole frame after     | torn tail: zeroed, synced                |
//! | anything else bad: header, frame, record, number, a gap  | refused, with file and offset            |
//! | a segment whose key is missing, or another               | refused, with file and key               |
//! | last segment is not sealed, or not with the first key    | a new one begins                         |
//! | a segment that is not sealed after one that is           | refused: nobody writes such              |

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::LogError;
use super::core::{Core, Effect, Segment};
use super::format::{self, Bad, Cover, Record};
use super::index::{Index, Source};
use crate::store::{Dir, File};
use seal::Keys;

/// Bytes that are looked at together for the end of what is in a segment.
const CHUNK_BYTES: usize = 64 << 10;
/// Read behind that end: what ends with a few zeros of its own, as checksums may.
const SLACK: usize = 4096;

pub(super) fn open<D: Dir>(
    dir: D,
    segment_bytes: u32,
    keys: Keys,
) -> Result<(Core<D>, Index<D::File>), LogError> {
    let mut recovery = Recovery {
        index: Index::new(),
        core: Core {
            dir,
            keys,
            segment_bytes,
            active_bytes: segment_bytes,
            segments: VecDeque::new(),
            offset: 0,
            next_frame: 1,
            vote: None,
            committed: None,
            committed_pending: false,
            committed_written: None,
            purged: None,
            spare: None,
            failed: false,
        },
    };
    let numbers = recovery.segments()?;
    for (i, number) in numbers.iter().enumerate() {
        recovery.read_segment(*number, i == 0, i + 1 == numbers.len())?;
    }
    recovery.finish()
}

struct Recovery<D: Dir> {
    core: Core<D>,
    index: Index<D::File>,
}

fn damaged(file: String, offset: usize, what: &'static str) -> LogError {
    LogError::Damaged { file, offset, what }
}

/// Bytes of a file before nothing but zeros. A segment is made as long as it may become, and a member that has just begun
/// should not hold the memory that all of it takes.
fn used(file: &impl File, len: usize) -> io::Result<usize> {
    let mut chunk = vec![0; len.min(CHUNK_BYTES)];
    let mut end = len;
    while end > 0 {
        let part = &mut chunk[..end.min(CHUNK_BYTES)];
        file.read_at(part, (end - part.len()) as u64)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(end - part.len() + last + 1);
        }
        end -= part.len();
    }
    Ok(0)
}

fn read_error(file: &str) -> impl FnOnce(io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Read { file, source }
}

impl<D: Dir> Recovery<D> {
    /// Numbers of the segments, which follow each other; left-overs of a crash are removed.
    fn segments(&mut self) -> Result<Vec<u64>, LogError> {
        let dir = &self.core.dir;
        let mut numbers = Vec::new();
        for name in dir.list().map_err(read_error(&dir.display()))? {
            if name
                .strip_suffix(".tmp")
                .and_then(format::segment_number)
                .is_some()
            {
                dir.remove(&name)
                    .map_err(|source| LogError::Write { file: name, source })?;
            } else if let Some(number) = format::segment_number(&name) {
                if numbers.last().is_some_and(|last| last + 1 != number) {
                    return Err(damaged(name, 0, "the segment before it is missing"));
                }
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    fn read_segment(&mut self, number: u64, first: bool, last: bool) -> Result<(), LogError> {
        let name = format::segment_name(number);
        let file = self.core.dir.open(&name).map_err(read_error(&name))?;
        let len = file.len().map_err(read_error(&name))?;
        if len > u64::from(u32::MAX) {
            return Err(damaged(name, 0, "it is longer than any segment"));
        }
        let len = len as usize;
        let used = used(&file, len).map_err(read_error(&name))?;
        let mut bytes = vec![0; len.min(used + SLACK)];
        file.read_at(&mut bytes, 0).map_err(read_error(&name))?;
        let cover = match format::open_segment(&bytes, number, &self.core.keys) {
            Ok(cover) => Arc::new(cover),
            Err(Bad::Version(version)) => return Err(LogError::Version { file: name, version }),
            Err(Bad::Key(source)) => return Err(LogError::Key { file: name, source }),
            Err(_) => return Err(damaged(name, 0, "its header is bad")),
        };
        let before = self.core.segments.back();
        if matches!(*cover, Cover::Clear)
            && before.is_some_and(|before| matches!(*before.source.cover, Cover::Sealed(_)))
        {
            return Err(damaged(name, 0, "it is not sealed, as the one before it is"));
        }
        let first_frame = cover.first_frame();
        let mut segment = Segment {
            number,
            source: Source {
                file: Arc::new(file),
                cover: cover.clone(),
            },
            last_index: None,
        };
        self.index.add_file(number, segment.source.clone());
        let mut offset = first_frame;
        loop {
            match format::frame_at(&bytes, number, offset) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if first && offset == first_frame {
                        self.core.next_frame = frame.number; // older segments were removed
                    }
                    if frame.number != self.core.next_frame {
                        return Err(damaged(name, offset, "frames before it are missing"));
                    }
                    self.core.next_frame += 1;
                    let records = frame.records(number, &cover);
                    for (record, place) in records.map_err(|bad| damaged(name.clone(), offset, bad.what()))? {
                        if let Record::Entry(entry) = &record {
                            segment.last_index = segment.last_index.max(Some(entry.log_id.index));
                        }
                        self.replay(record, place)
                            .map_err(|what| damaged(name.clone(), offset, what))?;
                    }
                    offset += frame.len;
                }
                // It may end with zeros of its own.
                Err(_) if bytes.len() < len => bytes.resize(len, 0),
                Err(_) if last && offset > first_frame && !format::frame_after(&bytes, number, offset) => {
                    tracing::warn!(
                        file = name,
                        offset,
                        "cutting the torn tail that a crash left in the log"
                    );
                    self.zero_tail(&segment.source.file, &mut bytes, offset)
                        .map_err(|source| LogError::Write {
                            file: name.clone(),
                            source,
                        })?;
                    break;
                }
                Err(_) => return Err(damaged(name, offset, "a frame is bad")),
            }
        }
        if offset == first_frame {
            return Err(damaged(name, offset, "its first frame is missing")); // it was there before the name was
        }
        self.core.active_bytes = len as u32;
        self.core.offset = offset as u32;
        self.core.segments.push_back(segment);
        Ok(())
    }

    /// Nothing of a frame that was never acknowledged may stand behind the next one.
    fn zero_tail(&self, file: &D::File, bytes: &mut [u8], offset: usize) -> io::Result<()> {
        let tail = &mut bytes[offset..];
        tail.fill(0);
        file.write_at(tail, offset as u64)?;
        file.sync()
    }

    fn replay(&mut self, record: Record, place: format::Place) -> Result<(), &'static str> {
        match record {
            Record::Vote(vote) => self.index.vote = Some(vote),
            Record::Committed(id) => self.index.committed = id,
            Record::Purged(id) => self.index.purge(id),
            Record::TruncatedAfter(index) => self.index.truncate_after(index),
            Record::Entry(entry) => {
                if self.index.first().is_some() && entry.log_id.index != self.index.end() {
                    return Err("an entry is out of order");
                }
                self.index.push(entry, Some(place));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Core<D>, Index<D::File>), LogError> {
        let expected = self.index.purged.map_or(0, |id| id.index + 1);
        if self.index.first().is_some_and(|first| first != expected) {
            return Err(damaged(
                self.core.dir.display(),
                0,
                "entries between the purged and the first are missing",
            ));
        }
        self.core.vote = self.index.vote;
        self.core.committed = self.index.committed;
        self.core.committed_written = self.index.committed;
        self.core.purged = self.index.purged;
        let writing = self.core.keys.writing().id();
        let goes_on = self
            .core
            .segments
            .back()
            .is_some_and(|last| match &*last.source.cover {
                Cover::Clear => false,
                Cover::Sealed(key) => key.id() == writing, // else the old key would be needed until it is full
            });
        if !goes_on {
            let mut effects = Vec::new();
            self.core.roll(&mut effects)?;
            for effect in effects {
                if let Effect::Opened(segment, source) = effect {
                    self.index.add_file(segment, source);
                }
            }
        }
        Ok((self.core, self.index))
    }
}
