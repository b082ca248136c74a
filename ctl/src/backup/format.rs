//! The file of a backup: a snapshot's records, sealed chunk by chunk with a key of the operator's.
//!
//! | content |                                                                                     |
//! |---------|-------------------------------------------------------------------------------------|
//! | 0       | header of a sealed file (crate `seal`), magic `BHBACKUP`                            |
//! | 80      | version of this format, u32                                                         |
//! | 84      | length of what follows, u32                                                         |
//! | 88      | what it is a backup of: `BackupStart`, in the clear                                 |
//! | then    | salt of the one part that the rest is, 32 bytes                                     |
//! | then    | CRC-32C of all before, u32                                                          |
//! | chunks  | length u32, sealed records with their tag, CRC-32C of both, u32                     |
//! | last    | a length of 0, the tag of an empty last chunk, SHA-256 of all before                |
//!
//! Numbers are little-endian. A chunk opens only with its own number, in the file with this very beginning, and as the last
//! or not the last: the tags show what was altered, moved, left out or cut off. The other checksums show damage to whoever
//! has no key; somebody who wants to deceive can make them anew.

use std::io::{self, Read, Write};

use prost::Message;
use rpc::v1::BackupStart;
use seal::{HEADER_BYTES, HeaderError, Key, KeyId, Keys, Opener, SALT_BYTES, Sealer, TAG_BYTES};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"BHBACKUP";
const VERSION: u32 = 1;
/// What a backup is of: an id, a time and a number for each kind.
const START_BYTES_MAX: usize = 64 << 10;
/// Largest chunk: what one message to the cluster may have.
pub(crate) const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Why a file can't be read as a backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    /// Something else.
    #[error("it is no backup of a cluster")]
    Other,
    /// Not what was written.
    #[error("it is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where in the file the piece begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Written by a newer version.
    #[error(
        "it has format version {version}, and this ctl reads {VERSION}: use the ctl that made it, or a newer one"
    )]
    Version {
        /// Its version.
        version: u32,
    },
    /// It is sealed with another key.
    #[error(
        "it is sealed with key {needed}, and the key that was named is {given}: name the one that it was made with"
    )]
    Key {
        /// The right one.
        needed: KeyId,
        /// The one that was tried.
        given: KeyId,
    },
    /// The operating system failed.
    #[error("failed to read it: {0}")]
    Io(#[source] io::Error),
}

fn damaged<T>(offset: u64, what: &'static str) -> Result<T, FormatError> {
    Err(FormatError::Damaged { offset, what })
}

/// Where a chunk belongs, beside its number.
fn place(head: &[u8; 32], last: bool) -> [u8; 33] {
    let mut place = [u8::from(last); 33];
    place[..32].copy_from_slice(head);
    place
}

/// A backup while it is written.
pub(crate) struct Writer<W> {
    out: W,
    sealer: Sealer,
    head: [u8; 32],
    hash: Sha256,
    /// Number of the next chunk.
    next: u32,
}

impl<W: Write> Writer<W> {
    /// Begins in an empty file.
    pub(crate) fn begin(out: W, key: &Key, start: &BackupStart) -> io::Result<Self> {
        let start = start.encode_to_vec();
        if start.len() > START_BYTES_MAX {
            return Err(io::Error::other("the cluster says too much of itself"));
        }
        let (header, key) = seal::begin_file(key, MAGIC, 0);
        let sealer = key.begin();
        let mut head = header.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((start.len() as u32).to_le_bytes());
        head.extend(start);
        head.extend(sealer.salt());
        head.extend(crc32c::crc32c(&head).to_le_bytes());
        let mut writer = Self {
            out,
            sealer,
            head: Sha256::digest(&head).into(),
            hash: Sha256::new(),
            next: 0,
        };
        writer.put(&head)?;
        Ok(writer)
    }

    /// Seals and writes some records.
    pub(crate) fn chunk(&mut self, mut records: Vec<u8>) -> io::Result<()> {
        if records.is_empty() || records.len() > CHUNK_BYTES_MAX {
            let bytes = records.len();
            return Err(io::Error::other(format!(
                "a part of {bytes} bytes is none of a backup"
            )));
        }
        let tag = self.seal(false, &mut records)?;
        let len = ((records.len() + TAG_BYTES) as u32).to_le_bytes();
        let crc = [&records[..], &tag]
            .iter()
            .fold(crc32c::crc32c(&len), |crc, bytes| {
                crc32c::crc32c_append(crc, bytes)
            });
        for piece in [&len[..], &records, &tag, &crc.to_le_bytes()] {
            self.put(piece)?;
        }
        Ok(())
    }

    /// Writes the end. Syncing is the caller's.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        let tag = self.seal(true, &mut [])?;
        self.put(&0u32.to_le_bytes())?;
        self.put(&tag)?;
        let hash = self.hash.finalize();
        self.out.write_all(&hash)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn seal(&mut self, last: bool, bytes: &mut [u8]) -> io::Result<[u8; TAG_BYTES]> {
        let number = self.next;
        let next = number.checked_add(1);
        self.next = next.ok_or_else(|| io::Error::other("the backup has too many parts"))?;
        Ok(self.sealer.seal(number, &place(&self.head, last), bytes))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

/// One chunk, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// What is in it.
    Records(Vec<u8>),
    /// There is no key: only its checksum was looked at.
    Sealed,
}

/// A backup while it is read, from its start to its end.
pub(crate) struct Reader<R> {
    input: R,
    start: BackupStart,
    key: KeyId,
    opener: Option<Opener>,
    head: [u8; 32],
    hash: Sha256,
    offset: u64,
    next: u32,
}

impl<R: Read> Reader<R> {
    /// Reads and checks what it is a backup of. Without a key the chunks stay closed.
    pub(crate) fn open(mut input: R, key: Option<&Key>) -> Result<Self, FormatError> {
        let mut head = vec![0; HEADER_BYTES + 8];
        fill(&mut input, &mut head, 0)?;
        if !head.starts_with(MAGIC) {
            return Err(FormatError::Other);
        }
        let header = head[..HEADER_BYTES].to_vec();
        let number =
            |head: &[u8], at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let len = number(&head, HEADER_BYTES + 4) as usize;
        if len > START_BYTES_MAX {
            return damaged(0, "its beginning is not what was written");
        }
        head.resize(HEADER_BYTES + 8 + len + SALT_BYTES + 4, 0);
        fill(
            &mut input,
            &mut head[HEADER_BYTES + 8..],
            (HEADER_BYTES + 8) as u64,
        )?;
        let salt_at = HEADER_BYTES + 8 + len;
        let crc_at = salt_at + SALT_BYTES;
        let Some(id) =
            seal::key_of(&header).filter(|_| crc32c::crc32c(&head[..crc_at]) == number(&head, crc_at))
        else {
            return damaged(0, "its beginning is not what was written");
        };
        match number(&head, HEADER_BYTES) {
            VERSION => {}
            version => return Err(FormatError::Version { version }),
        }
        let Ok(start) = BackupStart::decode(&head[HEADER_BYTES + 8..salt_at]) else {
            return damaged(0, "what it is a backup of can't be read");
        };
        let salt: [u8; SALT_BYTES] = head[salt_at..crc_at].try_into().expect("as long as a salt");
        let opener = match key {
            None => None,
            Some(key) => Some(opener(&header, key, id, &salt)?),
        };
        let mut hash = Sha256::new();
        hash.update(&head);
        Ok(Self {
            input,
            start,
            key: id,
            opener,
            offset: head.len() as u64,
            head: Sha256::digest(&head).into(),
            hash,
            next: 0,
        })
    }

    /// What it is a backup of; proved by the first chunk that opens.
    pub(crate) fn start(&self) -> &BackupStart {
        &self.start
    }

    /// The key that it is sealed with.
    pub(crate) fn key(&self) -> KeyId {
        self.key
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next chunk; None once all of the file is as it was written.
    pub(crate) fn next(&mut self) -> Result<Option<Chunk>, FormatError> {
        let begin = self.offset;
        let len = self.take(4)?;
        let number = u32::from_le_bytes(len[..].try_into().expect("four bytes")) as usize;
        if number == 0 {
            return self.end(begin).map(|()| None);
        }
        if number <= TAG_BYTES || number > CHUNK_BYTES_MAX + TAG_BYTES {
            return damaged(begin, "the length of a part is none");
        }
        let mut sealed = self.take(number)?;
        let crc = self.take(4)?;
        if crc32c::crc32c_append(crc32c::crc32c(&len), &sealed).to_le_bytes() != crc[..] {
            return damaged(begin, "a part is not what was written");
        }
        let number = self.number(begin)?;
        let Some(opener) = &self.opener else {
            return Ok(Some(Chunk::Sealed));
        };
        match opener.open(number, &place(&self.head, false), &mut sealed) {
            Ok(()) => Ok(Some(Chunk::Records(sealed))),
            Err(_) => damaged(begin, "a part does not open here: it was altered or moved"),
        }
    }

    fn end(&mut self, begin: u64) -> Result<(), FormatError> {
        let mut tag = self.take(TAG_BYTES)?;
        let expected: [u8; 32] = self.hash.clone().finalize().into();
        let number = self.number(begin)?;
        if self.take(32)? != expected {
            return damaged(begin, "its checksum over all is not that of what is here");
        }
        let mut opened = |opener: &Opener| opener.open(number, &place(&self.head, true), &mut tag);
        if self.opener.as_ref().is_some_and(|opener| opened(opener).is_err()) {
            return damaged(begin, "its end does not open here: it was altered or moved");
        }
        let mut more = [0];
        loop {
            match self.input.read(&mut more) {
                Ok(0) => return Ok(()),
                Ok(_) => return damaged(self.offset, "something follows its end"),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(FormatError::Io(cause)),
            }
        }
    }

    /// Of the chunk that begins there.
    fn number(&mut self, begin: u64) -> Result<u32, FormatError> {
        let number = self.next;
        match number.checked_add(1) {
            Some(next) => self.next = next,
            None => return damaged(begin, "it has too many parts"),
        }
        Ok(number)
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, FormatError> {
        let mut bytes = vec![0; len];
        fill(&mut self.input, &mut bytes, self.offset)?;
        self.hash.update(&bytes);
        self.offset += len as u64;
        Ok(bytes)
    }
}

fn opener(header: &[u8], key: &Key, needed: KeyId, salt: &[u8; SALT_BYTES]) -> Result<Opener, FormatError> {
    let keys = Keys::new("".as_ref(), vec![key.clone()]);
    match seal::open_file(header, MAGIC, 0, &keys) {
        Ok(file) => Ok(file.opener(salt)),
        Err(HeaderError::Key(_)) => Err(FormatError::Key {
            needed,
            given: key.id(),
        }),
        Err(HeaderError::Version(version)) => Err(FormatError::Version { version }),
        Err(HeaderError::Damaged) => damaged(0, "its beginning is not what was written"),
    }
}

fn fill(input: &mut impl Read, bytes: &mut [u8], offset: u64) -> Result<(), FormatError> {
    input.read_exact(bytes).map_err(|cause| match cause.kind() {
        io::ErrorKind::UnexpectedEof => FormatError::Damaged {
            offset,
            what: "it ends here or soon after: the rest is missing",
        },
        _ => FormatError::Io(cause),
    })
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
