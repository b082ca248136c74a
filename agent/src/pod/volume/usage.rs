//! What a volume holds on its disk. Its files are the container's, which may change them while they are counted: every
//! directory is opened below the volume's root, without links and on the root's own file system, and only there looked into.
//!
//! A file that is deleted but open is not seen, as with the kubelet's own walk.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat};
use rustix::io::Errno;

/// Bytes of a block of stat(2), whatever the file system's own.
const BLOCK_BYTES: u64 = 512;
/// Files that are looked at, so that a walk takes seconds at most; a volume with more cannot be measured.
const FILES_MAX: usize = 2_000_000;
/// Bytes of the paths of directories that wait to be looked into: the memory of a walk.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pod) enum Usage {
    Within,
    Above,
    /// More files, or deeper ones, than a walk looks at; as far as it went they are within the limit.
    Uncounted,
}

/// Bounds of a walk.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    files: usize,
    pending_bytes: usize,
}

/// Whether a volume holds more than `limit` bytes; one that is not there holds none.
pub(in crate::pod) fn measure(volume: &Path, limit: u64) -> io::Result<Usage> {
    let bounds = Bounds {
        files: FILES_MAX,
        pending_bytes: PENDING_BYTES_MAX,
    };
    match File::open(volume) {
        Ok(root) => Ok(walk(root.as_fd(), limit, bounds)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Usage::Within),
        Err(error) => Err(error),
    }
}

/// A file with several names counts once.
#[derive(Debug)]
struct Count {
    device: u64,
    bytes: u64,
    links: HashSet<u64>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.links.insert(stat.st_ino) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }
}

fn walk(root: BorrowedFd<'_>, limit: u64, bounds: Bounds) -> Result<Usage, Errno> {
    let top = fstat(root)?;
    let mut count = Count {
        device: top.st_dev,
        bytes: 0,
        links: HashSet::new(),
    };
    count.add(&top);
    let mut files = 0;
    let mut pending = vec![c".".to_owned()];
    let mut pending_bytes = 1;
    let mut uncounted = false;
    while let Some(path) = pending.pop() {
        pending_bytes -= path.as_bytes().len();
        let mut directory = match open(root, &path) {
            Ok(directory) => directory,
            Err(error) if is_changed(error) => continue,
            // Nested deeper than a path can say (PATH_MAX).
            Err(Errno::NAMETOOLONG) => {
                uncounted = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            files += 1;
            if files > bounds.files {
                return Ok(Usage::Uncounted);
            }
            let stat = match statat(
                directory.fd()?,
                name,
                AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
            ) {
                Ok(stat) if stat.st_dev == count.device => stat,
                Ok(_) => continue, // another file system
                Err(error) if is_changed(error) => continue,
                Err(error) => return Err(error),
            };
            count.add(&stat);
            if count.bytes > limit {
                return Ok(Usage::Above);
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            let bytes = [path.as_bytes(), b"/", name.to_bytes()].concat();
            pending_bytes += bytes.len();
            if pending_bytes > bounds.pending_bytes {
                return Ok(Usage::Uncounted);
            }
            // Names of directory entries have no NUL.
            pending.push(CString::new(bytes).map_err(|_| Errno::INVAL)?);
        }
    }
    Ok(match (count.bytes > limit, uncounted) {
        (true, _) => Usage::Above,
        (false, true) => Usage::Uncounted,
        (false, false) => Usage::Within,
    })
}

fn open(root: BorrowedFd<'_>, path: &CString) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Dir::new(openat2(root, path, flags, Mode::empty(), below)?)
}

/// What was there a moment ago is gone, or is something else; the next walk sees it.
fn is_changed(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const ALL: Bounds = Bounds {
        files: 1_000,
        pending_bytes: 10_000,
    };

    fn usage(volume: &Path, limit: u64, bounds: Bounds) -> Usage {
        walk(File::open(volume).unwrap().as_fd(), limit, bounds).unwrap()
    }

    #[test]
    fn what_lies_anywhere_in_a_volume_counts_and_links_out_of_it_do_not() {
        let temp = tempfile::tempdir().unwrap();
        let (volume, outside) = (temp.path().join("v"), temp.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("large"), vec![1; 1 << 20]).unwrap();
        symlink(&outside, volume.join("directory")).unwrap();
        symlink(outside.join("large"), volume.join("file")).unwrap();
        assert_eq!(usage(&volume, 256 << 10, ALL), Usage::Within);
        fs::write(volume.join("a/b/own"), vec![1; 512 << 10]).unwrap();
        assert_eq!(usage(&volume, 256 << 10, ALL), Usage::Above);
        assert_eq!(measure(&volume, 256 << 10).unwrap(), Usage::Above);
        // A second name is no second file.
        fs::hard_link(volume.join("a/b/own"), volume.join("again")).unwrap();
        assert_eq!(usage(&volume, 768 << 10, ALL), Usage::Within);
    }

    #[test]
    fn holes_take_no_room() {
        let temp = tempfile::tempdir().unwrap();
        let file = File::create(temp.path().join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(usage(temp.path(), 1 << 20, ALL), Usage::Within);
    }

    #[test]
    fn a_volume_that_is_not_there_holds_nothing() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(measure(&temp.path().join("none"), 0).unwrap(), Usage::Within);
    }

    #[test]
    fn more_than_a_walk_looks_at_is_not_said_to_be_within() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        let limit = 1 << 30;
        assert_eq!(usage(temp.path(), limit, ALL), Usage::Within);
        assert_eq!(
            usage(temp.path(), limit, Bounds { files: 2, ..ALL }),
            Usage::Uncounted
        );
        let small = Bounds {
            pending_bytes: 5,
            ..ALL
        };
        assert_eq!(usage(temp.path(), limit, small), Usage::Uncounted);
    }
}
