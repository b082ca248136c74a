//! The bytes of a segment.
//!
//! | segment header |                                 |
//! |----------------|---------------------------------|
//! | 0              | magic `BHRAFTLG`                |
//! | 8              | version, u32                    |
//! | 12             | zero, u32                       |
//! | 16             | number of the segment, u64      |
//! | 24             | CRC-32C of bytes 0 to 24, u32   |
//! | 28             | zero, u32                       |
//!
//! Frames follow, each at a multiple of 8; one is written and synced at a time. After the last one all is zero.
//!
//! | frame header |                                                                            |
//! |--------------|----------------------------------------------------------------------------|
//! | 0            | magic, u32                                                                 |
//! | 4            | length of the body, u32                                                    |
//! | 8            | number of the frame, u64: each one more than the last, across segments     |
//! | 16           | CRC-32C of segment number, offset, bytes 4 to 16 and body, u32             |
//! | 20           | zero, u32                                                                  |
//!
//! The body is records, each with a checksum of its own, as entries are read one by one later.
//!
//! | record |                                 |
//! |--------|---------------------------------|
//! | 0      | type, u32                       |
//! | 4      | length of the payload, u32      |
//! | 8      | CRC-32C of type and payload, u32 |
//! | 12     | payload, in postcard's encoding |

use super::super::types::{Entry, LogId, Vote};

pub(super) const SEGMENT_HEADER: usize = 32;
pub(super) const FRAME_HEADER: usize = 24;
pub(super) const RECORD_HEADER: usize = 12;
const SEGMENT_MAGIC: &[u8; 8] = b"BHRAFTLG";
const FRAME_MAGIC: u32 = 0x4d52_4642; // `BFRM`
const VERSION: u32 = 1;
const ALIGN: usize = 8;

/// One thing that the log remembers.
#[derive(Debug, Clone)]
pub(super) enum Record {
    Vote(Vote),
    Committed(Option<LogId>),
    Purged(LogId),
    /// Entries after this index are gone; None: all of them.
    TruncatedAfter(Option<u64>),
    Entry(Entry),
}

/// Where a record's payload is and how to know that it is whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// Why bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    SegmentHeader,
    /// Written by a newer version.
    Version(u32),
    Frame,
    Record,
}

pub(super) const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:020}.log")
}

/// None for files that are no segments.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 20)?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

pub(super) fn segment_header(number: u64) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&header[..24]);
    header[24..28].copy_from_slice(&crc.to_le_bytes());
    header
}

pub(super) fn check_segment_header(bytes: &[u8], number: u64) -> Result<(), Bad> {
    if bytes.len() < SEGMENT_HEADER || &bytes[..8] != SEGMENT_MAGIC {
        return Err(Bad::SegmentHeader);
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        other if crc32c::crc32c(&bytes[..24]) == u32_at(bytes, 24) => return Err(Bad::Version(other)),
        _ => return Err(Bad::SegmentHeader),
    }
    if bytes[..SEGMENT_HEADER] != segment_header(number) {
        return Err(Bad::SegmentHeader);
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A frame while it is filled.
pub(super) struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; FRAME_HEADER],
        }
    }

    /// Length with header and padding.
    pub(super) fn len(&self) -> usize {
        aligned(self.bytes.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER
    }

    /// Appends an encoded record; gives the offset of its payload in the frame, its length and its checksum.
    pub(super) fn push(&mut self, record: &Encoded) -> (u32, u32, u32) {
        self.bytes.extend_from_slice(&record.kind.to_le_bytes());
        self.bytes
            .extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
        let crc = record_crc(record.kind, &record.payload);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        let offset = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&record.payload);
        (offset, record.payload.len() as u32, crc)
    }

    /// The bytes to write at `offset` of the segment.
    pub(super) fn seal(mut self, segment: u64, offset: u32, number: u64) -> Vec<u8> {
        let body = (self.bytes.len() - FRAME_HEADER) as u32;
        self.bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&body.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&number.to_le_bytes());
        let crc = frame_crc(&self.bytes, segment, offset);
        self.bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(self.len(), 0);
        self.bytes
    }
}

/// `frame` without its padding.
fn frame_crc(frame: &[u8], segment: u64, offset: u32) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &frame[4..16]);
    crc32c::crc32c_append(crc, &frame[FRAME_HEADER..])
}

fn record_crc(kind: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&kind.to_le_bytes()), payload)
}

const KIND_VOTE: u32 = 1;
const KIND_COMMITTED: u32 = 2;
const KIND_PURGED: u32 = 3;
const KIND_TRUNCATED: u32 = 4;
const KIND_ENTRY: u32 = 5;

/// A record as bytes.
pub(super) struct Encoded {
    kind: u32,
    payload: Vec<u8>,
}

impl Encoded {
    /// Bytes that it takes in a frame.
    pub(super) fn len(&self) -> usize {
        RECORD_HEADER + self.payload.len()
    }
}

impl Record {
    pub(super) fn encode(&self) -> Result<Encoded, postcard::Error> {
        let (kind, payload) = match self {
            Self::Vote(vote) => (KIND_VOTE, postcard::to_stdvec(vote)?),
            Self::Committed(id) => (KIND_COMMITTED, postcard::to_stdvec(id)?),
            Self::Purged(id) => (KIND_PURGED, postcard::to_stdvec(id)?),
            Self::TruncatedAfter(index) => (KIND_TRUNCATED, postcard::to_stdvec(index)?),
            Self::Entry(entry) => (KIND_ENTRY, postcard::to_stdvec(entry)?),
        };
        Ok(Encoded { kind, payload })
    }

    fn decode(kind: u32, payload: &[u8]) -> Result<Self, Bad> {
        let record = match kind {
            KIND_VOTE => postcard::from_bytes(payload).map(Self::Vote),
            KIND_COMMITTED => postcard::from_bytes(payload).map(Self::Committed),
            KIND_PURGED => postcard::from_bytes(payload).map(Self::Purged),
            KIND_TRUNCATED => postcard::from_bytes(payload).map(Self::TruncatedAfter),
            KIND_ENTRY => postcard::from_bytes(payload).map(Self::Entry),
            _ => return Err(Bad::Record),
        };
        record.map_err(|_| Bad::Record)
    }
}

/// One entry's payload, read alone.
pub(super) fn decode_entry(payload: &[u8], crc: u32) -> Result<Entry, Bad> {
    if record_crc(KIND_ENTRY, payload) != crc {
        return Err(Bad::Record);
    }
    postcard::from_bytes(payload).map_err(|_| Bad::Record)
}

/// A frame that was found whole.
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    /// Length with header and padding.
    pub(super) len: usize,
    offset: usize,
    body: &'a [u8],
}

/// The frame at `offset` of a segment's bytes; None where there is only zero.
pub(super) fn frame_at(bytes: &[u8], segment: u64, offset: usize) -> Result<Option<Frame<'_>>, Bad> {
    let rest = &bytes[offset..];
    if rest.len() < FRAME_HEADER || rest[..FRAME_HEADER].iter().all(|b| *b == 0) {
        return if rest.iter().all(|b| *b == 0) {
            Ok(None)
        } else {
            Err(Bad::Frame)
        };
    }
    if u32_at(rest, 0) != FRAME_MAGIC {
        return Err(Bad::Frame);
    }
    let end = FRAME_HEADER + u32_at(rest, 4) as usize;
    if aligned(end) > rest.len() || frame_crc(&rest[..end], segment, offset as u32) != u32_at(rest, 16) {
        return Err(Bad::Frame);
    }
    Ok(Some(Frame {
        number: u64_at(rest, 8),
        len: aligned(end),
        offset,
        body: &rest[FRAME_HEADER..end],
    }))
}

/// Whether any whole frame begins after `offset`: then what is bad before it is damage, not a torn tail.
pub(super) fn frame_after(bytes: &[u8], segment: u64, offset: usize) -> bool {
    let mut at = aligned(offset + 1);
    while at + FRAME_HEADER <= bytes.len() {
        if u32_at(bytes, at) == FRAME_MAGIC && matches!(frame_at(bytes, segment, at), Ok(Some(_))) {
            return true;
        }
        at += ALIGN;
    }
    false
}

impl Frame<'_> {
    /// Its records, each with the place of its payload.
    pub(super) fn records(&self, segment: u64) -> Result<Vec<(Record, Place)>, Bad> {
        let mut records = Vec::new();
        let mut at = 0;
        while at < self.body.len() {
            let rest = &self.body[at..];
            if rest.len() < RECORD_HEADER {
                return Err(Bad::Record);
            }
            let (kind, len, crc) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8));
            let payload = rest
                .get(RECORD_HEADER..RECORD_HEADER + len as usize)
                .ok_or(Bad::Record)?;
            if record_crc(kind, payload) != crc {
                return Err(Bad::Record);
            }
            let offset = (self.offset + FRAME_HEADER + at + RECORD_HEADER) as u32;
            records.push((
                Record::decode(kind, payload)?,
                Place {
                    segment,
                    offset,
                    len,
                    crc,
                },
            ));
            at += RECORD_HEADER + len as usize;
        }
        Ok(records)
    }
}
