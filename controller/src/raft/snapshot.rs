//! Snapshots as files: written beside, synced, renamed; every chunk with its checksum.
//!
//! This is what travels to other members, in the clear but over TLS:
//!
//! | content |                                                              |
//! |---------|--------------------------------------------------------------|
//! | 0       | magic `BHSNAPSH`                                             |
//! | 8       | version, u32                                                 |
//! | 12      | length of the meta data, u32                                 |
//! | 16      | CRC-32C of the meta data, u32                                |
//! | 20      | meta data, in postcard's encoding                            |
//! | then    | chunks: length u32, CRC-32C u32, bytes                       |
//! | last    | an empty chunk, whose checksum is that of all bytes before   |
//!
//! On disk it is sealed, by who made it and by who received it, each with a key of their own: `store/blocks.rs`. Files of
//! version 1 are read as they are, until the next snapshot takes their place.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::types::SnapshotMeta;
use crate::store::blocks::{Blocks, BlocksError, BlocksWriter};
use crate::store::{Dir, File};
use seal::{HeaderError, KeyError, Keys};

const MAGIC: &[u8; 8] = b"BHSNAPSH";
const VERSION: u32 = 1;
const HEADER: usize = 20;
const CHUNK_HEADER: usize = 8;
/// Bytes sent at a time.
pub(super) const SEND_BYTES: usize = 1 << 20;
/// Largest chunk in the file: the state cuts them.
const CHUNK_BYTES: usize = state::CHUNK_BYTES_MAX;
/// A membership of hundreds fits.
const META_BYTES_MAX: usize = 1 << 20;
const NAME: &str = "snapshot";
const TMP: &str = ".snapshot.tmp";

/// Why a snapshot can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Bytes are not what was written.
    #[error(
        "the snapshot in {dir} is damaged at byte {offset}: {what}. This member must not go on from here: remove it \
         from the cluster, empty its data directory and join it again; if it is the only one, restore a backup"
    )]
    Damaged {
        /// Directory.
        dir: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by a newer program.
    #[error("the snapshot has format version {version}: it was written by a newer version of this program")]
    Version {
        /// Its version.
        version: u32,
    },
    /// The key that it is sealed with is not there.
    #[error("the snapshot in {dir} can't be opened")]
    Key {
        /// Directory.
        dir: String,
        /// Which key, and what to do.
        source: KeyError,
    },
    /// The operating system failed.
    #[error("failed to {what} the snapshot")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A bug: our own types always encode.
    #[error("failed to encode the snapshot's meta data")]
    Encode(#[source] postcard::Error),
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        Self::other(error)
    }
}

/// Where snapshots live. One is current; more may be under way.
pub(super) struct Snapshots<D: Dir> {
    dir: D,
    keys: Keys,
    shared: Arc<Shared<D>>,
}

struct Shared<D: Dir> {
    next: AtomicU64,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile<D>)>>,
}

impl<D: Dir> Clone for Snapshots<D> {
    fn clone(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            keys: self.keys.clone(),
            shared: self.shared.clone(),
        }
    }
}

/// A snapshot file, which stays readable when a newer one takes its name.
pub(super) struct SnapshotFile<D: Dir> {
    content: Blocks<D::File>,
    /// Not yet current: the name under which it waits.
    pending: Option<String>,
}

impl<D: Dir> Clone for SnapshotFile<D> {
    fn clone(&self) -> Self {
        Self {
            content: self.content.clone(),
            pending: self.pending.clone(),
        }
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { what, source }
}

impl<D: Dir> Snapshots<D> {
    /// Finds the current one and removes what a crash left half-made.
    pub(super) fn open(dir: D, keys: Keys) -> Result<Self, SnapshotError> {
        for name in dir.list().map_err(io_error("list"))? {
            if name.ends_with(TMP) {
                dir.remove(&name).map_err(io_error("clean up"))?;
            }
        }
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            current: Mutex::new(None),
        });
        let snapshots = Self { dir, keys, shared };
        let found = snapshots.find()?;
        *snapshots
            .shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = found;
        Ok(snapshots)
    }

    fn create(&self) -> Result<(BlocksWriter<D::File>, String), SnapshotError> {
        let name = format!("{}{TMP}", self.shared.next.fetch_add(1, Ordering::Relaxed));
        let file = self.dir.create(&name).map_err(io_error("create"))?;
        let file = BlocksWriter::begin(file, self.keys.writing(), MAGIC).map_err(io_error("write"))?;
        Ok((file, name))
    }

    /// Writes the chunks as a file that waits to become current.
    pub(super) fn write(
        &self,
        meta: &SnapshotMeta,
        body: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<SnapshotFile<D>, SnapshotError> {
        let (file, name) = self.create()?;
        let meta = postcard::to_stdvec(meta).map_err(SnapshotError::Encode)?;
        assert!(meta.len() <= META_BYTES_MAX, "members are few");
        let mut writer = Writer { file, crc: 0 };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&(meta.len() as u32).to_le_bytes())?;
        writer.put(&crc32c::crc32c(&meta).to_le_bytes())?;
        writer.put(&meta)?;
        // An empty chunk would be the end.
        for chunk in body.into_iter().filter(|chunk| !chunk.is_empty()) {
            assert!(
                chunk.len() <= CHUNK_BYTES,
                "the state is cut into chunks that fit"
            );
            writer.put(&(chunk.len() as u32).to_le_bytes())?;
            writer.put(&crc32c::crc32c(&chunk).to_le_bytes())?;
            writer.put(&chunk)?;
        }
        let total = writer.crc;
        writer.put(&0u32.to_le_bytes())?;
        writer.put(&total.to_le_bytes())?;
        Ok(SnapshotFile {
            content: writer.file.finish().map_err(io_error("sync"))?,
            pending: Some(name),
        })
    }

    /// A file to be filled with what another member sends.
    pub(super) fn receive(&self) -> Result<Incoming<D>, SnapshotError> {
        let (file, name) = self.create()?;
        Ok(Incoming {
            dir: self.dir.clone(),
            file: Some(file),
            name,
        })
    }

    /// Makes it the one that a start finds, unless a newer one came meanwhile.
    pub(super) fn make_current(
        &self,
        meta: &SnapshotMeta,
        mut file: SnapshotFile<D>,
    ) -> Result<SnapshotFile<D>, SnapshotError> {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = file.pending.take() {
            if current
                .as_ref()
                .is_some_and(|(newest, _)| newest.last_log_id > meta.last_log_id)
            {
                self.dir.remove(&name).map_err(io_error("remove"))?;
                return Ok(file);
            }
            self.dir.rename(&name, NAME).map_err(io_error("rename"))?;
            self.dir.sync().map_err(io_error("sync the directory of"))?;
        }
        *current = Some((meta.clone(), file.clone()));
        Ok(file)
    }

    /// The current one with its meta data, if there is any.
    pub(super) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile<D>)> {
        self.shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn find(&self) -> Result<Option<(SnapshotMeta, SnapshotFile<D>)>, SnapshotError> {
        let file = match self.dir.open(NAME) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotError::Io { what: "open", source }),
        };
        let content = Blocks::open(file, MAGIC, &self.keys).map_err(|cause| match cause {
            BlocksError::Header(HeaderError::Version(version)) => SnapshotError::Version { version },
            BlocksError::Header(HeaderError::Key(source)) => SnapshotError::Key {
                dir: self.dir.display(),
                source,
            },
            BlocksError::Io(source) => SnapshotError::Io { what: "read", source },
            BlocksError::Header(HeaderError::Damaged) | BlocksError::Altered => SnapshotError::Damaged {
                dir: self.dir.display(),
                offset: 0,
                what: "its header is bad",
            },
        })?;
        let file = SnapshotFile {
            content,
            pending: None,
        };
        let (meta, _) = self.read_meta(&file)?;
        Ok(Some((meta, file)))
    }

    fn read_meta(&self, file: &SnapshotFile<D>) -> Result<(SnapshotMeta, Reader<'_, D>), SnapshotError> {
        let mut reader = Reader {
            content: file.content.clone(),
            offset: 0,
            crc: 0,
            dir: &self.dir,
        };
        let header = reader.take(HEADER)?;
        if &header[..8] != MAGIC {
            return Err(reader.damaged("it is no snapshot"));
        }
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if number(8) != VERSION {
            return Err(SnapshotError::Version { version: number(8) });
        }
        let len = number(12) as usize;
        if len > META_BYTES_MAX {
            return Err(reader.damaged("its header is bad"));
        }
        let bytes = reader.take(len)?;
        if crc32c::crc32c(&bytes) != number(16) {
            return Err(reader.damaged("its header is bad"));
        }
        let meta = postcard::from_bytes(&bytes).map_err(|_| reader.damaged("its header is bad"))?;
        Ok((meta, reader))
    }

    /// Reads the meta data, checked; the chunks follow by [`Reader::next_chunk`].
    pub(super) fn open_file(
        &self,
        file: &SnapshotFile<D>,
    ) -> Result<(SnapshotMeta, Reader<'_, D>), SnapshotError> {
        self.read_meta(file)
    }

    /// Checks all of it.
    pub(super) fn verify(&self, file: &SnapshotFile<D>) -> Result<SnapshotMeta, SnapshotError> {
        let (meta, mut reader) = self.read_meta(file)?;
        while reader.next_chunk()?.is_some() {}
        Ok(meta)
    }
}

struct Writer<F> {
    file: BlocksWriter<F>,
    crc: u32,
}

impl<F: File> Writer<F> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file.write(bytes).map_err(io_error("write"))?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }
}

pub(super) struct Reader<'a, D: Dir> {
    content: Blocks<D::File>,
    offset: u64,
    crc: u32,
    dir: &'a D,
}

impl<D: Dir> Reader<'_, D> {
    /// The next chunk, checked; None after the last, when the whole file is as it was written.
    pub(super) fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let total = self.crc;
        let header = self.take(CHUNK_HEADER)?;
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (len, crc) = (number(0) as usize, number(4));
        match len {
            0 if crc == total && self.offset == self.content.len() => return Ok(None),
            0 => return Err(self.damaged("its end is bad")),
            1..=CHUNK_BYTES => {}
            _ => return Err(self.damaged("a chunk is too long")),
        }
        let chunk = self.take(len)?;
        if crc32c::crc32c(&chunk) == crc {
            Ok(Some(chunk))
        } else {
            Err(self.damaged("a chunk is bad"))
        }
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, SnapshotError> {
        if self.offset + len as u64 > self.content.len() {
            return Err(self.damaged("it ends too early"));
        }
        let bytes = self.content.read(self.offset, len).map_err(|cause| match cause {
            BlocksError::Io(source) => SnapshotError::Io { what: "read", source },
            _ => self.damaged("a block was altered or moved: it does not open here"),
        })?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        self.offset += len as u64;
        Ok(bytes)
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged {
            dir: self.dir.display(),
            offset: self.offset,
            what,
        }
    }
}

impl<D: Dir> SnapshotFile<D> {
    /// Length of what is sent.
    pub(super) fn len(&self) -> u64 {
        self.content.len()
    }

    /// What is sent from `offset` on; empty at the end.
    pub(super) fn chunk(&self, offset: u64) -> io::Result<Vec<u8>> {
        let len = (self.len().saturating_sub(offset)).min(SEND_BYTES as u64) as usize;
        self.content.read(offset, len).map_err(|cause| match cause {
            BlocksError::Io(cause) => cause,
            _ => io::Error::new(io::ErrorKind::InvalidData, "the snapshot is damaged"),
        })
    }
}

/// A snapshot on its way in: sealed before it is on disk. Dropped before its end it leaves nothing.
pub(super) struct Incoming<D: Dir> {
    dir: D,
    /// None once it is finished.
    file: Option<BlocksWriter<D::File>>,
    name: String,
}

impl<D: Dir> Incoming<D> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let file = self.file.as_mut().expect("taken at the end only");
        file.write(bytes).map_err(io_error("write"))
    }

    /// All is there; synced, and waiting to be installed.
    pub(super) fn finish(mut self) -> Result<SnapshotFile<D>, SnapshotError> {
        let file = self.file.take().expect("taken here only");
        match file.finish() {
            Ok(content) => Ok(SnapshotFile {
                content,
                pending: Some(self.name.clone()),
            }),
            Err(source) => {
                self.remove();
                Err(SnapshotError::Io { what: "sync", source })
            }
        }
    }

    fn remove(&self) {
        if let Err(cause) = self.dir.remove(&self.name) {
            tracing::warn!(error = %cause, name = self.name, "failed to remove an unfinished snapshot");
        }
    }
}

impl<D: Dir> Drop for Incoming<D> {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.remove();
        }
    }
}

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod tests;
