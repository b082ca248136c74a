//! A file that is there whole or not at all: written beside its place, synced, and moved there.
//!
//! | crash before | what is there                         |
//! |--------------|---------------------------------------|
//! | the move     | the old file or none, and a temporary |
//! | its sync     | the old file or none, or the new one  |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The temporary file; dropped before it is in its place it goes.
pub(crate) struct Target {
    path: PathBuf,
    temporary: PathBuf,
    done: bool,
}

impl Target {
    /// Begins beside `path`, with a file that only its owner reads.
    pub(crate) fn create(path: &Path) -> io::Result<(Self, File)> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("that is no name of a file"))?;
        let name = format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id());
        let temporary = path.with_file_name(name); // rename(2) works within one file system only
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let target = Self {
            path: path.to_owned(),
            temporary,
            done: false,
        };
        Ok((target, file))
    }

    /// Where it is until then.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Moves the file, which was synced, to its place, also over one that is there.
    pub(crate) fn replace(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.done = true;
        sync_directory_of(&self.path)
    }

    /// As [`Self::replace`], where nothing is.
    pub(crate) fn place(mut self) -> io::Result<()> {
        renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE)?;
        self.done = true;
        sync_directory_of(&self.path)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.done
            && let Err(cause) = fs::remove_file(&self.temporary)
        {
            eprintln!("warning: failed to remove {}: {cause}", self.temporary.display());
        }
    }
}

/// Makes a name durable (fsync(2): syncing a file does not sync its directory entry).
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn made(path: &Path, text: &str) -> Target {
        let (target, mut file) = Target::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        target
    }

    #[test]
    fn a_file_is_replaced_only_where_that_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let names = || fs::read_dir(directory.path()).unwrap().count();
        drop(made(&path, "given up"));
        assert_eq!(names(), 0, "what is given up leaves nothing");
        made(&path, "first").place().unwrap();
        assert!(made(&path, "second").place().is_err());
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), names()),
            ("first", 1)
        );
        made(&path, "third").replace().unwrap();
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), names()),
            ("third", 1)
        );
    }
}
