//! What the log holds, as readers see it: where each entry is, and the newest ones themselves.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use openraft::EntryPayload;

use super::super::types::{Entry, LogId, Vote};
use super::format::{self, Cover, Place};
use crate::store::File;

/// Bytes of entries kept in memory for followers and for `apply`; older ones are read from their file.
pub(super) const CACHE_BYTES_MAX: usize = 8 << 20;
/// What an entry takes beside its command.
const ENTRY_OVERHEAD: usize = 96;

pub(super) struct Index<F> {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// The last entries; all that have no place yet are among them.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    files: BTreeMap<u64, Source<F>>,
}

/// A segment as it is read.
pub(super) struct Source<F> {
    pub(super) file: Arc<F>,
    pub(super) cover: Arc<Cover>,
}

impl<F> Clone for Source<F> {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            cover: self.cover.clone(),
        }
    }
}

struct Slot {
    term: u64,
    place: Option<Place>,
}

/// An entry in memory, or where to read it.
pub(super) enum Found<F> {
    Cached(Entry),
    OnDisk(Source<F>, Place),
}

pub(super) fn bytes_of(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => ENTRY_OVERHEAD + proposal.0.len(),
        EntryPayload::Blank => ENTRY_OVERHEAD,
        EntryPayload::Membership(_) => 8 * ENTRY_OVERHEAD, // about: a handful of members
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

impl<F: File> Index<F> {
    pub(super) fn new() -> Self {
        Self {
            vote: None,
            committed: None,
            purged: None,
            first: 0,
            slots: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            files: BTreeMap::new(),
        }
    }

    /// Index after the last entry, or after what was purged.
    pub(super) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub(super) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(log_id(slot.term, self.end() - 1)),
            None => self.purged,
        }
    }

    /// The first entry that is there, if any.
    pub(super) fn first(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    pub(super) fn add_file(&mut self, segment: u64, source: Source<F>) {
        self.files.insert(segment, source);
    }

    pub(super) fn remove_file(&mut self, segment: u64) {
        self.files.remove(&segment);
    }

    pub(super) fn push(&mut self, entry: Entry, place: Option<Place>) {
        let index = entry.log_id.index;
        if self.slots.is_empty() {
            self.first = index;
        }
        assert_eq!(index, self.end(), "entries follow each other");
        self.slots.push_back(Slot {
            term: entry.log_id.leader_id.term,
            place,
        });
        self.tail_bytes += bytes_of(&entry);
        self.tail.push_back(entry);
        self.evict();
    }

    /// The entry is on disk now and may leave memory. Nothing when it was purged or truncated meanwhile.
    pub(super) fn place(&mut self, index: u64, place: Place) {
        if let Some(slot) = index
            .checked_sub(self.first)
            .and_then(|at| self.slots.get_mut(at as usize))
        {
            slot.place = Some(place);
        }
    }

    pub(super) fn evict(&mut self) {
        while self.tail_bytes > CACHE_BYTES_MAX && !self.tail.is_empty() {
            let oldest = self.slots.len() - self.tail.len();
            if self.slots[oldest].place.is_none() {
                return; // not written yet: the writer's queue bounds how many these are
            }
            let entry = self.tail.pop_front().expect("not empty");
            self.tail_bytes -= bytes_of(&entry);
        }
    }

    /// Drops what comes after `index`; None: all.
    pub(super) fn truncate_after(&mut self, index: Option<u64>) {
        let keep = index.map_or(0, |index| (index + 1).saturating_sub(self.first)) as usize;
        while self.slots.len() > keep {
            self.slots.pop_back();
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= bytes_of(&entry);
            }
        }
    }

    /// Drops up to `upto`, inclusive.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged >= upto) {
            return;
        }
        self.purged = Some(upto);
        while self.first <= upto.index && !self.slots.is_empty() {
            if self.tail.len() == self.slots.len() {
                let entry = self.tail.pop_front().expect("as long as the slots");
                self.tail_bytes -= bytes_of(&entry);
            }
            self.slots.pop_front();
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.first = upto.index + 1;
        }
    }

    /// Entries of the range that are there, from its start on, at most `bytes_max` of them but at least one.
    pub(super) fn find(&self, range: Range<u64>, bytes_max: usize) -> Vec<Found<F>> {
        let start = range.start.max(self.first);
        let tail_first = self.end() - self.tail.len() as u64;
        let mut bytes = 0;
        let mut found = Vec::new();
        for index in start..range.end.min(self.end()) {
            let (entry, len) = match index.checked_sub(tail_first) {
                Some(at) => {
                    let entry = &self.tail[at as usize];
                    (Found::Cached(entry.clone()), bytes_of(entry))
                }
                None => {
                    let place = self.slots[(index - self.first) as usize]
                        .place
                        .expect("not in memory, so on disk");
                    (
                        Found::OnDisk(self.files[&place.segment].clone(), place),
                        place.len as usize,
                    )
                }
            };
            bytes += len;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        found
    }
}

impl<F: File> Found<F> {
    /// The entry, read and checked.
    pub(super) fn load(self) -> io::Result<Entry> {
        match self {
            Self::Cached(entry) => Ok(entry),
            Self::OnDisk(source, place) => {
                let mut head = vec![0; source.cover.frame_head()];
                source.file.read_at(&mut head, place.frame.into())?;
                let mut payload = vec![0; place.len as usize];
                source.file.read_at(&mut payload, place.offset.into())?;
                format::decode_entry(&source.cover, &place, &head, payload).map_err(|_| {
                    let name = format::segment_name(place.segment);
                    let offset = place.offset;
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{name} is damaged at byte {offset}"),
                    )
                })
            }
        }
    }
}
