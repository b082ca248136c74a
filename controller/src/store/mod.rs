//! Directories and files as the log and the snapshots use them: the operating system's, and a simulated disk that
//! crashes, tears, fills up and fails as real ones do. What is sealed (crate `seal`) nobody reads without this member's key.

pub mod blocks;
mod disk;
pub mod os;
mod room;
pub mod sim;

use std::io;
use std::time::Duration;

pub use disk::{Disk, DiskFile};
pub(crate) use room::Watched;
pub use room::{NearlyFull, Room};

/// One flat directory that this process owns.
pub trait Dir: Clone + Send + Sync + 'static {
    /// A file of it.
    type File: File;
    /// Creates an empty file, replacing one of this name.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Names of the regular files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Renames within the directory, replacing the target.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync(&self) -> io::Result<()>;
    /// What is free of the disk.
    fn room(&self) -> io::Result<Room>;
    /// Where it is, for messages.
    fn display(&self) -> String;
    /// How long the next batch of writes takes in simulated time; a real disk takes its own.
    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}

/// An open file; readers and the one writer share it.
pub trait File: Send + Sync + 'static {
    /// Reads exactly `buf.len()` bytes.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`, growing the file if need be.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes what was written durable, with the length.
    fn sync(&self) -> io::Result<()>;
}

/// Replaces `name`. After a crash at any point one finds the old bytes or the new ones, whole.
///
/// | crash         | on disk                      | a later open                  |
/// |---------------|------------------------------|-------------------------------|
/// | before 3      | old; none to all of `.tmp`   | takes the old                 |
/// | before 4 ends | the old entry or the new one | takes it: nobody was told yet |
/// | after 4       | new                          | takes the new                 |
pub fn replace<D: Dir>(dir: &D, name: &str, bytes: &[u8]) -> io::Result<()> {
    let tmp = format!("{name}.tmp"); // beside its target: rename(2) works within one file system only
    let file = dir.create(&tmp)?;
    file.write_at(bytes, 0)?; // 1
    file.sync()?; // 2. or 3 could reach the disk ahead of the bytes
    dir.rename(&tmp, name)?; // 3
    dir.sync() // 4. fsync(2): syncing a file does not sync its directory entry
}

/// Reads a whole file of at most `limit` bytes; None when there is none.
pub fn read<D: Dir>(dir: &D, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match dir.open(name) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name} has {len} bytes, more than {limit}"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}
