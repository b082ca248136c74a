//! What a member keeps its files on: the machine's disk, or a simulated one.

use std::fs;
use std::io;
use std::time::Duration;

use super::os::OsDir;
use super::sim::{SimDir, SimFile};
use super::{Dir, File, Room};

/// One of the two.
#[derive(Clone, Debug)]
pub enum Disk {
    /// The machine's.
    Os(OsDir),
    /// In memory, with faults.
    Simulated(SimDir),
}

/// A file of it.
#[derive(Debug)]
pub enum DiskFile {
    /// The machine's.
    Os(fs::File),
    /// In memory, with faults.
    Simulated(SimFile),
}

impl From<OsDir> for Disk {
    fn from(dir: OsDir) -> Self {
        Self::Os(dir)
    }
}

impl From<SimDir> for Disk {
    fn from(dir: SimDir) -> Self {
        Self::Simulated(dir)
    }
}

/// The same of whichever it is.
macro_rules! either {
    ($this:expr, $it:ident => $call:expr) => {
        match $this {
            Self::Os($it) => $call,
            Self::Simulated($it) => $call,
        }
    };
}

impl Dir for Disk {
    type File = DiskFile;

    fn create(&self, name: &str) -> io::Result<DiskFile> {
        match self {
            Self::Os(dir) => dir.create(name).map(DiskFile::Os),
            Self::Simulated(dir) => dir.create(name).map(DiskFile::Simulated),
        }
    }

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        match self {
            Self::Os(dir) => dir.open(name).map(DiskFile::Os),
            Self::Simulated(dir) => dir.open(name).map(DiskFile::Simulated),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        either!(self, dir => dir.list())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        either!(self, dir => dir.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        either!(self, dir => dir.remove(name))
    }

    fn sync(&self) -> io::Result<()> {
        either!(self, dir => dir.sync())
    }

    fn room(&self) -> io::Result<Room> {
        either!(self, dir => dir.room())
    }

    fn display(&self) -> String {
        either!(self, dir => dir.display())
    }

    fn latency(&self) -> Duration {
        either!(self, dir => dir.latency())
    }
}

impl File for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        either!(self, file => file.read_at(buf, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        either!(self, file => file.write_at(bytes, offset))
    }

    fn len(&self) -> io::Result<u64> {
        either!(self, file => File::len(file))
    }

    fn sync(&self) -> io::Result<()> {
        either!(self, file => File::sync(file))
    }
}
