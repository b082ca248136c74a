//! The bytes of a segment.
//!
//! It begins with the header of the crate `seal`, in which its number stands. Frames follow, each at a multiple of 8; one is
//! written and synced at a time. After the last one all is zero.
//!
//! | frame header |                                                                            |
//! |--------------|----------------------------------------------------------------------------|
//! | 0            | magic, u32                                                                 |
//! | 4            | length of the body, u32                                                    |
//! | 8            | number of the frame, u64: each one more than the last, across segments     |
//! | 16           | CRC-32C of segment number, offset, bytes 4 to 16 and body, u32             |
//! | 20           | zero, u32                                                                  |
//!
//! The body is a salt and records. A frame is a part of its own in the sense of `seal`: what a crash leaves of one
//! takes no nonce from the frame that is written over it later. Each record is sealed by itself, as entries are read one by
//! one later, and bound to its segment, its frame and its place in that. The checksums are over what is on disk: whether a
//! tail is torn is decided without a key.
//!
//! | record |                                                  |
//! |--------|--------------------------------------------------|
//! | 0      | type, u32                                        |
//! | 4      | length of the payload, u32                       |
//! | 8      | CRC-32C of type and payload, u32                 |
//! | 12     | payload: postcard's encoding, sealed, with a tag |
//!
//! Segments of version 1 are read and never written: they have a header of 32 bytes, with its CRC at 24, and neither salts
//! nor tags.

use super::super::types::{Entry, LogId, Vote};
use seal::{FileKey, HEADER_BYTES, HeaderError, Key, KeyError, Keys, SALT_BYTES, TAG_BYTES};

pub(super) const SEGMENT_HEADER: usize = HEADER_BYTES;
const CLEAR_SEGMENT_HEADER: usize = 32;
pub(super) const FRAME_HEADER: usize = 24;
pub(super) const RECORD_HEADER: usize = 12;
const SEGMENT_MAGIC: &[u8; 8] = b"BHRAFTLG";
/// Where the checksum stands in a record's header.
const RECORD_CRC_AT: usize = 8;
const FRAME_MAGIC: u32 = 0x4d52_4642; // `BFRM`
const CLEAR_VERSION: u32 = 1;
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
    /// Where its frame begins.
    pub(super) frame: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// What hides the records of a segment.
pub(super) enum Cover {
    /// Nothing: version 1.
    Clear,
    Sealed(FileKey),
}

/// Why bytes are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bad {
    SegmentHeader,
    /// Written by a newer version.
    Version(u32),
    /// The key is not there.
    Key(KeyError),
    Frame,
    Record,
    /// Whole, but not sealed for this place.
    Altered,
}

impl Bad {
    /// What is wrong with a frame.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Altered => "a record was altered or moved: it does not open here",
            _ => "a record is bad",
        }
    }
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

/// The header of a new segment, and what seals its records.
pub(super) fn segment_header(number: u64, key: &Key) -> ([u8; SEGMENT_HEADER], FileKey) {
    seal::begin_file(key, SEGMENT_MAGIC, number)
}

/// Opens a segment by its first bytes.
pub(super) fn open_segment(bytes: &[u8], number: u64, keys: &Keys) -> Result<Cover, Bad> {
    if bytes.len() < CLEAR_SEGMENT_HEADER || &bytes[..8] != SEGMENT_MAGIC {
        return Err(Bad::SegmentHeader);
    }
    if u32_at(bytes, 8) != CLEAR_VERSION {
        return match seal::open_file(bytes, SEGMENT_MAGIC, number, keys) {
            Ok(key) => Ok(Cover::Sealed(key)),
            Err(HeaderError::Damaged) => Err(Bad::SegmentHeader),
            Err(HeaderError::Version(version)) => Err(Bad::Version(version)),
            Err(HeaderError::Key(cause)) => Err(Bad::Key(cause)),
        };
    }
    let whole = crc32c::crc32c(&bytes[..24]) == u32_at(bytes, 24)
        && u64_at(bytes, 16) == number
        && [12, 28].iter().all(|reserved| u32_at(bytes, *reserved) == 0);
    whole.then_some(Cover::Clear).ok_or(Bad::SegmentHeader)
}

impl Cover {
    /// Where the first frame stands.
    pub(super) fn first_frame(&self) -> usize {
        match self {
            Self::Clear => CLEAR_SEGMENT_HEADER,
            Self::Sealed(_) => SEGMENT_HEADER,
        }
    }

    fn salt_bytes(&self) -> usize {
        match self {
            Self::Clear => 0,
            Self::Sealed(_) => SALT_BYTES,
        }
    }

    /// Bytes at the start of a frame that its records need to be opened.
    pub(super) fn frame_head(&self) -> usize {
        FRAME_HEADER + self.salt_bytes()
    }
}

/// Where sealed records stand: with their own offset in the frame, which is the nonce, all of it. `head` is the frame's.
fn binding(segment: u64, frame: u32, head: &[u8], record: &[u8]) -> Vec<u8> {
    [
        &segment.to_le_bytes()[..],
        &frame.to_le_bytes(),
        &head[4..16],             // length and number
        &record[..RECORD_CRC_AT], // type and length
    ]
    .concat()
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
    /// Offset of each record, and of its end.
    records: Vec<(usize, usize)>,
}

/// What a frame takes beside its records.
pub(super) const FRAME_OVERHEAD: usize = FRAME_HEADER + SALT_BYTES;

impl FrameBuilder {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; FRAME_OVERHEAD],
            records: Vec::new(),
        }
    }

    /// Length with header and padding.
    pub(super) fn len(&self) -> usize {
        aligned(self.bytes.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Appends an encoded record; gives which one of the frame it is.
    pub(super) fn push(&mut self, record: &Encoded) -> usize {
        let at = self.bytes.len();
        let len = record.payload.len() + TAG_BYTES;
        self.bytes.extend_from_slice(&record.kind.to_le_bytes());
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; RECORD_HEADER - RECORD_CRC_AT]);
        self.bytes.extend_from_slice(&record.payload);
        self.bytes.extend_from_slice(&[0; TAG_BYTES]);
        self.records.push((at, self.bytes.len()));
        self.records.len() - 1
    }

    /// The bytes to write at `offset` of the segment, and where each record's payload is then.
    pub(super) fn seal(self, key: &FileKey, segment: u64, offset: u32, number: u64) -> (Vec<u8>, Vec<Place>) {
        let (len, mut bytes) = (self.len(), self.bytes);
        let mut sealer = key.begin();
        let (head, _) = bytes.split_at_mut(FRAME_OVERHEAD);
        let body = (self.records.last().map_or(FRAME_OVERHEAD, |(_, end)| *end) - FRAME_HEADER) as u32;
        head[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&body.to_le_bytes());
        head[8..16].copy_from_slice(&number.to_le_bytes());
        head[FRAME_HEADER..].copy_from_slice(sealer.salt());
        let head = head.to_vec();
        let mut places = Vec::with_capacity(self.records.len());
        for (at, end) in self.records {
            let (header, payload) = bytes[at..end].split_at_mut(RECORD_HEADER);
            let (plain, tag) = payload.split_at_mut(payload.len() - TAG_BYTES);
            let place = binding(segment, offset, &head, header);
            tag.copy_from_slice(&sealer.seal(at as u32, &place, plain));
            let crc = record_crc(u32_at(header, 0), payload);
            header[RECORD_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            places.push(Place {
                segment,
                frame: offset,
                offset: offset + (at + RECORD_HEADER) as u32,
                len: (end - at - RECORD_HEADER) as u32,
                crc,
            });
        }
        let crc = frame_crc(&bytes, segment, offset);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(len, 0);
        (bytes, places)
    }
}

/// `frame` without its padding.
pub(super) fn frame_crc(frame: &[u8], segment: u64, offset: u32) -> u32 {
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
        RECORD_HEADER + self.payload.len() + TAG_BYTES
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

/// One entry's payload, read alone, with the head of its frame.
pub(super) fn decode_entry(
    cover: &Cover,
    place: &Place,
    head: &[u8],
    mut payload: Vec<u8>,
) -> Result<Entry, Bad> {
    if record_crc(KIND_ENTRY, &payload) != place.crc {
        return Err(Bad::Record);
    }
    if let Cover::Sealed(key) = cover {
        let header = [KIND_ENTRY.to_le_bytes(), place.len.to_le_bytes()].concat();
        let place_bytes = binding(place.segment, place.frame, head, &header);
        let salt = head[FRAME_HEADER..].try_into().expect("as long as a salt");
        let position = place.offset - place.frame - RECORD_HEADER as u32;
        let opened = key.opener(salt).open(position, &place_bytes, &mut payload);
        opened.map_err(|_| Bad::Altered)?;
    }
    postcard::from_bytes(&payload).map_err(|_| Bad::Record)
}

/// A frame that was found whole.
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    /// Length with header and padding.
    pub(super) len: usize,
    offset: usize,
    /// Header and body.
    bytes: &'a [u8],
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
        bytes: &rest[..end],
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
    pub(super) fn records(&self, segment: u64, cover: &Cover) -> Result<Vec<(Record, Place)>, Bad> {
        let mut at = cover.frame_head();
        let head = self.bytes.get(..at).ok_or(Bad::Record)?;
        let opener = match cover {
            Cover::Clear => None,
            Cover::Sealed(key) => {
                let salt = head[FRAME_HEADER..].try_into().expect("as long as a salt");
                Some(key.opener(salt))
            }
        };
        let mut records = Vec::new();
        while at < self.bytes.len() {
            let rest = &self.bytes[at..];
            if rest.len() < RECORD_HEADER {
                return Err(Bad::Record);
            }
            let (kind, len, crc) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, RECORD_CRC_AT));
            let payload = rest
                .get(RECORD_HEADER..RECORD_HEADER + len as usize)
                .ok_or(Bad::Record)?;
            if record_crc(kind, payload) != crc {
                return Err(Bad::Record);
            }
            let frame = self.offset as u32;
            let record = match &opener {
                None => Record::decode(kind, payload)?,
                Some(opener) => {
                    let mut payload = payload.to_vec();
                    let place = binding(segment, frame, head, rest);
                    let opened = opener.open(at as u32, &place, &mut payload);
                    opened.map_err(|_| Bad::Altered)?;
                    Record::decode(kind, &payload)?
                }
            };
            let place = Place {
                segment,
                frame,
                offset: frame + (at + RECORD_HEADER) as u32,
                len,
                crc,
            };
            records.push((record, place));
            at += RECORD_HEADER + len as usize;
        }
        Ok(records)
    }
}
