//! Snapshots as files: written beside, synced, renamed; every chunk with its checksum.
//!
//! | file   |                                                              |
//! |--------|--------------------------------------------------------------|
//! | 0      | magic `BHSNAPSH`                                             |
//! | 8      | version, u32                                                 |
//! | 12     | length of the meta data, u32                                 |
//! | 16     | CRC-32C of the meta data, u32                                |
//! | 20     | meta data, in postcard's encoding                            |
//! | then   | chunks: length u32, CRC-32C u32, bytes                       |
//! | last   | an empty chunk, whose checksum is that of all bytes before   |

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::types::SnapshotMeta;
use crate::store::{Dir, File};

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
            shared: self.shared.clone(),
        }
    }
}

/// A snapshot file, which stays readable when a newer one takes its name.
pub(super) struct SnapshotFile<D: Dir> {
    file: Arc<D::File>,
    len: u64,
    /// Not yet current: the name under which it waits.
    pending: Option<String>,
}

impl<D: Dir> Clone for SnapshotFile<D> {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            len: self.len,
            pending: self.pending.clone(),
        }
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { what, source }
}

impl<D: Dir> Snapshots<D> {
    /// Finds the current one and removes what a crash left half-made.
    pub(super) fn open(dir: D) -> Result<Self, SnapshotError> {
        for name in dir.list().map_err(io_error("list"))? {
            if name.ends_with(TMP) {
                dir.remove(&name).map_err(io_error("clean up"))?;
            }
        }
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            current: Mutex::new(None),
        });
        let snapshots = Self { dir, shared };
        let found = snapshots.find()?;
        *snapshots
            .shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = found;
        Ok(snapshots)
    }

    fn create(&self) -> Result<(D::File, String), SnapshotError> {
        let name = format!("{}{TMP}", self.shared.next.fetch_add(1, Ordering::Relaxed));
        Ok((self.dir.create(&name).map_err(io_error("create"))?, name))
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
        let mut writer = Writer {
            file: &file,
            offset: 0,
            crc: 0,
        };
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
        let len = writer.offset;
        file.sync().map_err(io_error("sync"))?;
        Ok(SnapshotFile {
            file: Arc::new(file),
            len,
            pending: Some(name),
        })
    }

    /// A file to be filled with what another member sends.
    pub(super) fn receive(&self) -> Result<Incoming<D>, SnapshotError> {
        let (file, name) = self.create()?;
        Ok(Incoming {
            dir: self.dir.clone(),
            file: Some(file),
            len: 0,
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
        let len = file.len().map_err(io_error("read"))?;
        let file = SnapshotFile {
            file: Arc::new(file),
            len,
            pending: None,
        };
        let (meta, _) = self.read_meta(&file)?;
        Ok(Some((meta, file)))
    }

    fn read_meta(&self, file: &SnapshotFile<D>) -> Result<(SnapshotMeta, Reader<'_, D>), SnapshotError> {
        let mut reader = Reader {
            file: file.file.clone(),
            len: file.len,
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

struct Writer<'a, F> {
    file: &'a F,
    offset: u64,
    crc: u32,
}

impl<F: File> Writer<'_, F> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file
            .write_at(bytes, self.offset)
            .map_err(io_error("write"))?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

pub(super) struct Reader<'a, D: Dir> {
    file: Arc<D::File>,
    len: u64,
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
            0 if crc == total && self.offset == self.len => return Ok(None),
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
        if self.offset + len as u64 > self.len {
            return Err(self.damaged("it ends too early"));
        }
        let mut bytes = vec![0; len];
        self.file
            .read_at(&mut bytes, self.offset)
            .map_err(io_error("read"))?;
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
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The raw bytes at `offset`, for sending; empty at the end.
    pub(super) fn chunk(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (self.len.saturating_sub(offset)).min(SEND_BYTES as u64) as usize];
        self.file.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// A snapshot on its way in. Dropped before its end it leaves nothing.
pub(super) struct Incoming<D: Dir> {
    dir: D,
    file: Option<D::File>,
    len: u64,
    name: String,
}

impl<D: Dir> Incoming<D> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let file = self.file.as_ref().expect("taken at the end only");
        file.write_at(bytes, self.len).map_err(io_error("write"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// All is there; synced, and waiting to be installed.
    pub(super) fn finish(mut self) -> Result<SnapshotFile<D>, SnapshotError> {
        let file = self.file.as_ref().expect("taken here only");
        file.sync().map_err(io_error("sync"))?;
        let file = self.file.take().expect("just used");
        Ok(SnapshotFile {
            file: Arc::new(file),
            len: self.len,
            pending: Some(self.name.clone()),
        })
    }
}

impl<D: Dir> Drop for Incoming<D> {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Err(cause) = self.dir.remove(&self.name)
        {
            tracing::warn!(error = %cause, name = self.name, "failed to remove an unfinished snapshot");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sim::{Fault, SimDir};

    fn body(len: usize) -> Vec<u8> {
        (0..len).map(|i| i as u8).collect()
    }

    fn meta(index: u64) -> SnapshotMeta {
        let last_log_id = Some(crate::raft::types::LogId::new_term_index(1, index));
        SnapshotMeta {
            last_log_id,
            ..SnapshotMeta::default()
        }
    }

    fn write<D: Dir>(dir: &D, index: u64, len: usize) -> Result<(), SnapshotError> {
        let snapshots = Snapshots::open(dir.clone())?;
        let file = snapshots.write(&meta(index), body(len).chunks(1000).map(<[u8]>::to_vec))?;
        snapshots.make_current(&meta(index), file).map(drop)
    }

    fn found<D: Dir>(dir: &D) -> Result<Option<(SnapshotMeta, Vec<u8>)>, SnapshotError> {
        let snapshots = Snapshots::open(dir.clone())?;
        let Some((_, file)) = snapshots.current() else {
            return Ok(None);
        };
        let (meta, mut reader) = snapshots.open_file(&file)?;
        let mut body = Vec::new();
        while let Some(chunk) = reader.next_chunk()? {
            body.extend(chunk);
        }
        Ok(Some((meta, body)))
    }

    #[test]
    fn what_is_written_is_read() {
        for len in [0, 1, 1000, 70_001] {
            let dir = SimDir::new(Fault::None, 1);
            assert_eq!(found(&dir).unwrap(), None);
            write(&dir, 7, len).unwrap();
            assert_eq!(found(&dir).unwrap(), Some((meta(7), body(len))));
        }
    }

    #[test]
    fn an_older_snapshot_does_not_replace_a_newer_one() {
        let dir = SimDir::new(Fault::None, 1);
        write(&dir, 7, 700).unwrap();
        write(&dir, 6, 600).unwrap();
        assert_eq!(found(&dir).unwrap(), Some((meta(7), body(700))));
        assert_eq!(dir.list().unwrap(), [NAME]);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let dir = SimDir::new(Fault::None, 1);
        write(&dir, 7, 300).unwrap();
        let len = dir.open(NAME).unwrap().len().unwrap();
        for offset in 0..len {
            dir.damage(NAME, offset as usize);
            assert!(found(&dir).is_err(), "byte {offset}");
            dir.damage(NAME, offset as usize);
        }
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new_one() {
        for crash_at in 0..40 {
            let dir = SimDir::new(Fault::CrashAt(crash_at), crash_at);
            let told = [write(&dir, 1, 700).is_ok(), write(&dir, 2, 900).is_ok()];
            let len = found(&dir.after_crash(Fault::None))
                .unwrap()
                .map(|(_, body)| body.len());
            match told {
                [false, _] => assert!(matches!(len, None | Some(700)), "crash at {crash_at}: {len:?}"),
                [true, false] => assert!(matches!(len, Some(700 | 900)), "crash at {crash_at}: {len:?}"),
                [true, true] => assert_eq!(len, Some(900)),
            }
        }
    }

    #[test]
    fn an_unfinished_snapshot_leaves_nothing() {
        let dir = SimDir::new(Fault::None, 1);
        let snapshots = Snapshots::open(dir.clone()).unwrap();
        let mut incoming = snapshots.receive().unwrap();
        incoming.write(&[1; 10]).unwrap();
        drop(incoming);
        assert!(dir.list().unwrap().is_empty());
    }
}
