//! Unpacks one layer of an image into a directory. The archive is hostile input.
//!
//! Nothing is done by path: each entry's parent directory is opened inside the root by openat2(2) with RESOLVE_IN_ROOT
//! and without magic links, and the entry itself is made by its last name alone, never through a link. Owners, modes and
//! times are set on descriptors. Whiteouts become what overlayfs reads (kernel, overlayfs.rst, "whiteouts and opaque
//! directories"). Device nodes are left out: a container has a /dev of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::archive::{self, TooLarge};
use super::entry::{Attributes, attributes, inside, link_name, shown};

/// Most entries of a layer; the largest public images have some 300,000.
const ENTRIES_MAX: u64 = 2_000_000;
/// Most bytes of a layer when unpacked.
const BYTES_MAX: u64 = 64 << 30;
/// Most bytes that one compressed byte may become beyond the first gigabyte; gzip itself ends at 1,032.
const RATIO_MAX: u64 = 1_100;
const RATIO_FREE_BYTES: u64 = 1 << 30;
/// Deepest directory: whoever removes a layer holds all that lead to one open.
const DEPTH_MAX: usize = 256;
/// Longest path of a directory in a layer: others go to it by path, which ends at 4096 with the store's own before it.
const PATH_BYTES_MAX: usize = 3072;
/// Most bytes of names of directories, all of which are remembered to set their times at the end. The largest public
/// images have some 30 MB.
const DIRECTORIES_BYTES_MAX: usize = 128 << 20;
/// Most of a layer's bytes kept in the page cache while copying.
const COPY_BYTES: usize = 128 << 10;

/// What a hole reads as.
static ZEROS: [u8; COPY_BYTES] = [0; COPY_BYTES];

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is not readable.
    #[error("the archive is damaged")]
    Archive {
        /// Cause.
        source: io::Error,
    },
    /// The archive holds what no image may hold.
    #[error("entry `{}` is refused: {reason}", .path.display())]
    Refused {
        /// The entry's name as it stands in the archive.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The archive is larger than is allowed.
    #[error("the layer is refused: {reason}")]
    TooLarge {
        /// Which limit.
        reason: String,
    },
    /// The file system refused.
    #[error("failed to write `{}`", .path.display())]
    Write {
        /// The entry's name.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl UnpackError {
    /// Why the archive could not be read on.
    pub(super) fn archive(source: io::Error) -> Self {
        match TooLarge::of(&source) {
            Some(reason) => Self::TooLarge {
                reason: reason.to_owned(),
            },
            None => Self::Archive { source },
        }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Bytes of file content.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub devices_left_out: u64,
}

/// Unpacks an uncompressed tar stream of a layer into `root`, an empty directory. `compressed_bytes` is the size of the
/// archive as it was sent, against which its growth is judged. On an error the directory holds a part, for the caller to
/// remove.
pub(super) fn unpack(
    root: BorrowedFd,
    layer: impl Read,
    compressed_bytes: u64,
) -> Result<Unpacked, UnpackError> {
    let mut target = Target {
        root,
        place: place(root).map_err(|source| UnpackError::Write {
            path: PathBuf::from("/"),
            source,
        })?,
        done: Unpacked::default(),
        directories: Vec::new(),
        directories_bytes: 0,
        entries: 0,
    };
    let limit = bytes_max(compressed_bytes);
    let mut bytes = 0u64;
    archive::walk(layer, UnpackError::archive, |entry| {
        // Of every entry: what is not a file's is read over, and holes of a sparse file take their time too.
        bytes = bytes.saturating_add(entry.size());
        if bytes > limit {
            return Err(UnpackError::TooLarge {
                reason: format!("{bytes} bytes and more from an archive of {compressed_bytes}"),
            });
        }
        target.count()?;
        target.entry(entry)?;
        Ok(ControlFlow::Continue(()))
    })?;
    target.finish_directories()?;
    Ok(target.done)
}

/// Most bytes that an archive of a size may become.
pub(super) fn bytes_max(compressed_bytes: u64) -> u64 {
    compressed_bytes
        .saturating_mul(RATIO_MAX)
        .saturating_add(RATIO_FREE_BYTES)
        .min(BYTES_MAX)
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    /// Where that is.
    place: PathBuf,
    done: Unpacked,
    /// Directories and their times, which the making of their entries changes: set at the end.
    directories: Vec<(PathBuf, Timespec)>,
    directories_bytes: usize,
    /// Of the archive, and directories that it left out.
    entries: u64,
}

impl Target<'_> {
    fn entry(&mut self, entry: &mut Entry<impl Read>) -> Result<(), UnpackError> {
        let raw = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let shown = shown(&raw);
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = inside(&raw, &shown)?;
        let attributes = attributes(entry, &shown)?;
        let failed = |source: Errno| UnpackError::Write {
            path: shown.clone(),
            source: source.into(),
        };
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself.
            if kind == EntryType::Directory {
                let root = open_directory(self.root, Path::new(".")).map_err(failed)?;
                set(root.as_fd(), attributes).map_err(failed)?;
                self.remember(PathBuf::from("."), attributes.time)?;
            }
            return Ok(());
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path, &shown)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(parent.as_fd(), hidden, &shown);
        }
        let existing = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW);
        let existing = existing.ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
        let keeps = existing == Some(FileType::Directory) && kind == EntryType::Directory;
        if existing.is_some() && !keeps {
            remove(parent.as_fd(), &name, 0).map_err(failed)?;
        }
        match kind {
            EntryType::Directory => {
                if !keeps {
                    self.check_depth(parent.as_fd(), &name, &shown)?;
                    mkdirat(&parent, &name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat(&parent, &name, flags, Mode::empty()).map_err(failed)?;
                set(directory.as_fd(), attributes).map_err(failed)?;
                self.xattrs(entry, directory.as_fd(), &shown)?;
                self.remember(path, attributes.time)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, parent.as_fd(), &name, attributes, &shown)?;
            }
            EntryType::Symlink => {
                let link = link_name(entry, &shown)?;
                symlinkat(&link, &parent, &name).map_err(failed)?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                chownat(&parent, &name, Some(attributes.uid), Some(attributes.gid), flags).map_err(failed)?;
                utimensat(&parent, &name, &times(attributes.time), flags).map_err(failed)?;
            }
            EntryType::Link => {
                let link = inside(Path::new(&link_name(entry, &shown)?), &shown)?;
                let refused = |reason: String| UnpackError::Refused {
                    path: shown.clone(),
                    reason,
                };
                let Some(link_file) = link.file_name() else {
                    return Err(refused("a hard link to the root".to_owned()));
                };
                let source = open_directory(self.root, link.parent().unwrap_or(Path::new("")));
                let source =
                    source.map_err(|error| refused(format!("a hard link to {}: {error}", link.display())))?;
                // No AT_SYMLINK_FOLLOW: a link to a symbolic link is one more name of that link.
                linkat(&source, link_file, &parent, &name, AtFlags::empty())
                    .map_err(|error| refused(format!("a hard link to {}: {error}", link.display())))?;
            }
            EntryType::Fifo => {
                mknodat(&parent, &name, FileType::Fifo, attributes.mode, 0).map_err(failed)?;
                chownat(
                    &parent,
                    &name,
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .map_err(failed)?;
            }
            EntryType::Char | EntryType::Block => self.done.devices_left_out += 1,
            other => {
                let reason = format!("entries of type {:?} are not known", char::from(other.as_byte()));
                return Err(UnpackError::Refused { path: shown, reason });
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &mut Entry<impl Read>,
        parent: BorrowedFd,
        name: &OsStr,
        attributes: Attributes,
        shown: &Path,
    ) -> Result<(), UnpackError> {
        let failed = |source: Errno| UnpackError::Write {
            path: shown.to_owned(),
            source: source.into(),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?);
        let mut buffer = vec![0; COPY_BYTES];
        let (mut hole, mut size) = (false, 0);
        loop {
            let count = entry.read(&mut buffer).map_err(UnpackError::archive)?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            // Zeros are left out, or a small archive would fill the disk with them.
            hole = ZEROS.starts_with(chunk);
            let written = if hole {
                io::Seek::seek_relative(&mut file, chunk.len() as i64)
            } else {
                io::Write::write_all(&mut file, chunk)
            };
            written.map_err(|source| UnpackError::Write {
                path: shown.to_owned(),
                source,
            })?;
            self.done.bytes += chunk.len() as u64;
            size += chunk.len() as u64;
        }
        if hole {
            rustix::fs::ftruncate(&file, size).map_err(failed)?;
        }
        // Owner, then mode, then attributes: chown(2) takes away set-user-id bits and file capabilities.
        set(file.as_fd(), attributes).map_err(failed)?;
        self.xattrs(entry, file.as_fd(), shown)?;
        futimens(&file, &times(attributes.time)).map_err(failed)
    }

    /// Extended attributes of a layer: capabilities and the user's own. `trusted.overlay.*` would reach overlayfs, others
    /// the host's security modules: refused by leaving nothing of the layer.
    fn xattrs(
        &self,
        entry: &mut Entry<impl Read>,
        file: BorrowedFd,
        shown: &Path,
    ) -> Result<(), UnpackError> {
        let Some(extensions) = entry.pax_extensions().map_err(UnpackError::archive)? else {
            return Ok(());
        };
        for extension in extensions {
            let extension = extension.map_err(UnpackError::archive)?;
            let Some(name) = extension
                .key()
                .ok()
                .and_then(|key| key.strip_prefix("SCHILY.xattr."))
            else {
                continue;
            };
            if name == "security.selinux" {
                continue; // the builder's label means nothing here; the container's comes with its mount
            }
            if name != "security.capability" && !name.starts_with("user.") {
                let reason = format!("the attribute {name} is not allowed in an image");
                return Err(UnpackError::Refused {
                    path: shown.to_owned(),
                    reason,
                });
            }
            fsetxattr(file, name, extension.value_bytes(), XattrFlags::empty()).map_err(|source| {
                UnpackError::Write {
                    path: shown.to_owned(),
                    source: source.into(),
                }
            })?;
        }
        Ok(())
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that its directory has there (OCI image
    /// specification 1.1, layer.md, "Whiteouts").
    fn whiteout(&self, parent: BorrowedFd, hidden: &[u8], shown: &Path) -> Result<(), UnpackError> {
        let failed = |source: Errno| UnpackError::Write {
            path: shown.to_owned(),
            source: source.into(),
        };
        if hidden == b".wh..opq" {
            let directory = openat(
                parent,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let directory = directory.map_err(failed)?;
            return fsetxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(failed);
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // aufs's own book-keeping, as .wh..wh.plnk
        }
        let hidden = OsStr::from_bytes(hidden);
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            let reason = "a whiteout of no file".to_owned();
            return Err(UnpackError::Refused {
                path: shown.to_owned(),
                reason,
            });
        }
        match mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            // The same layer has the file: it is newer than what the whiteout hides.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Counts one that is made.
    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(UnpackError::TooLarge {
                reason: format!("more than {ENTRIES_MAX} entries"),
            });
        }
        Ok(())
    }

    fn remember(&mut self, path: PathBuf, time: Timespec) -> Result<(), UnpackError> {
        self.directories_bytes += path.as_os_str().len() + size_of::<(PathBuf, Timespec)>();
        if self.directories_bytes > DIRECTORIES_BYTES_MAX {
            return Err(UnpackError::TooLarge {
                reason: format!("more than {DIRECTORIES_BYTES_MAX} bytes of names of directories"),
            });
        }
        self.directories.push((path, time));
        Ok(())
    }

    /// Refuses a directory too deep. Links on the way to it do not count, but where they led does.
    fn check_depth(&self, parent: BorrowedFd, name: &OsStr, shown: &Path) -> Result<(), UnpackError> {
        let refused = |reason: String| UnpackError::Refused {
            path: shown.to_owned(),
            reason,
        };
        let too_long = || {
            refused(format!(
                "its directory's path is longer than {PATH_BYTES_MAX} bytes"
            ))
        };
        let parent = match place(parent) {
            // readlink(2) of a descriptor's link: a path beyond a page.
            Err(error) if error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) => {
                return Err(too_long());
            }
            parent => parent.map_err(|source| UnpackError::Write {
                path: shown.to_owned(),
                source,
            })?,
        };
        let below = parent.strip_prefix(&self.place).unwrap_or(&parent);
        if below.components().count() >= DEPTH_MAX {
            return Err(refused(format!("deeper than {DEPTH_MAX} directories")));
        }
        if below.as_os_str().len() + name.len() > PATH_BYTES_MAX {
            return Err(too_long());
        }
        Ok(())
    }

    /// The directory that an entry goes to; what is missing of it is made, owned by root, as in an archive that leaves
    /// its directories out.
    fn parent(&mut self, path: &Path, shown: &Path) -> Result<OwnedFd, UnpackError> {
        let failed = |source: Errno| UnpackError::Write {
            path: shown.to_owned(),
            source: source.into(),
        };
        match open_directory(self.root, path) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(failed),
        }
        let mut so_far = PathBuf::new();
        let mut above = open_directory(self.root, &so_far).map_err(failed)?;
        for part in path.components() {
            so_far.push(part);
            above = match open_directory(self.root, &so_far) {
                Err(Errno::NOENT) => {
                    self.count()?;
                    self.check_depth(above.as_fd(), part.as_os_str(), shown)?;
                    mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)).map_err(failed)?;
                    open_directory(self.root, &so_far).map_err(failed)?
                }
                other => other.map_err(failed)?,
            };
        }
        Ok(above)
    }

    fn finish_directories(&self) -> Result<(), UnpackError> {
        for (path, time) in self.directories.iter().rev() {
            let set = |directory: OwnedFd| futimens(&directory, &times(*time));
            match open_directory(self.root, path).and_then(set) {
                // A later entry replaced it.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(source) => {
                    return Err(UnpackError::Write {
                        path: path.clone(),
                        source: source.into(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Where a directory is.
fn place(directory: BorrowedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Opens a directory inside the root; links on the way are followed as inside the container, never out of it.
fn open_directory(root: BorrowedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

fn set(file: BorrowedFd, attributes: Attributes) -> Result<(), Errno> {
    fchown(file, Some(attributes.uid), Some(attributes.gid))?;
    fchmod(file, attributes.mode)
}

fn times(time: Timespec) -> Timestamps {
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Removes a file, or a directory with all that is in it.
fn remove(parent: BorrowedFd, name: &OsStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    if depth >= DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    let mut entries = rustix::fs::Dir::read_from(&directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove(directory.as_fd(), name, depth + 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod tests;
