//! The operating system's files.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dir, File, Room};

/// A directory of the operating system, locked for this process.
#[derive(Clone, Debug)]
pub struct OsDir {
    path: PathBuf,
    /// Locked as long as one clone lives; the kernel releases it when the process ends, however it ends.
    _lock: Arc<fs::File>,
}

/// Holds the lock; never removed, or two processes could lock two files of one name.
const LOCK: &str = "lock";

impl OsDir {
    /// Creates it if need be (mode 0700) and locks it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))?;
        lock.try_lock().map_err(|cause| match cause {
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process", path.display()),
            ),
            fs::TryLockError::Error(cause) => cause,
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: Arc::new(lock),
        })
    }
}

impl Dir for OsDir {
    type File = fs::File;

    fn create(&self, name: &str) -> io::Result<fs::File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }

    fn room(&self) -> io::Result<Room> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(Room {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            total: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }

    fn display(&self) -> String {
        self.path.display().to_string()
    }
}

impl File for fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data() // fdatasync(2) includes the length when it changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = OsDir::open(dir.path()).unwrap();
        let refused = OsDir::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
        drop(first);
        OsDir::open(dir.path()).unwrap();
    }

    #[test]
    fn replace_leaves_the_new_bytes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = OsDir::open(dir.path()).unwrap();
        crate::store::replace(&dir, "a", b"one").unwrap();
        crate::store::replace(&dir, "a", b"two").unwrap();
        assert_eq!(crate::store::read(&dir, "a", 10).unwrap().unwrap(), b"two");
        assert_eq!(dir.list().unwrap(), ["a", LOCK]);
        assert!(crate::store::read(&dir, "a", 2).is_err());
        assert_eq!(crate::store::read(&dir, "b", 2).unwrap(), None);
    }
}
