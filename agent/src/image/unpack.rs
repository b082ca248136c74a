//! Unpacks one layer of an image into a directory. The archive is hostile input.
//!
//! Nothing is done by path: each entry's parent directory is opened inside the root by openat2(2) with RESOLVE_IN_ROOT
//! and without magic links, and the entry itself is made by its last name alone, never through a link. Owners, modes and
//! times are set on descriptors. Whiteouts become what overlayfs reads (kernel, overlayfs.rst, "whiteouts and opaque
//! directories"). Device nodes are left out: a container has a /dev of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

/// Most entries of a layer; the largest public images have some 300,000.
const ENTRIES_MAX: u64 = 2_000_000;
/// Most bytes of a layer when unpacked.
const BYTES_MAX: u64 = 64 << 30;
/// Most bytes that one compressed byte may become beyond the first gigabyte; gzip itself ends at 1,032.
const RATIO_MAX: u64 = 1_100;
const RATIO_FREE_BYTES: u64 = 1 << 30;
/// Largest id that exists in a container: pods have 65,536.
const ID_MAX: u64 = 65_535;
/// Deepest directory removed when an entry replaces it.
const DEPTH_MAX: u32 = 256;
/// Most of a layer's bytes kept in the page cache while copying.
const COPY_BYTES: usize = 128 << 10;

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
        done: Unpacked::default(),
        directories: Vec::new(),
    };
    let limit = compressed_bytes
        .saturating_mul(RATIO_MAX)
        .saturating_add(RATIO_FREE_BYTES)
        .min(BYTES_MAX);
    let mut archive = Archive::new(layer);
    archive.set_ignore_zeros(false);
    let entries = archive
        .entries()
        .map_err(|source| UnpackError::Archive { source })?;
    let mut count = 0;
    for entry in entries {
        let mut entry = entry.map_err(|source| UnpackError::Archive { source })?;
        count += 1;
        if count > ENTRIES_MAX {
            return Err(UnpackError::TooLarge {
                reason: format!("more than {ENTRIES_MAX} entries"),
            });
        }
        let after = target.done.bytes.saturating_add(entry.size());
        if after > limit {
            return Err(UnpackError::TooLarge {
                reason: format!("{after} bytes and more from an archive of {compressed_bytes}"),
            });
        }
        target.entry(&mut entry)?;
    }
    target.finish_directories()?;
    Ok(target.done)
}

/// A tar stream with zeros after its end up to a whole block: some tools (umoci's `insert`) leave the padding of the last
/// entry out, and docker and podman take that.
pub(super) struct Padded<R> {
    stream: R,
    bytes: u64,
}

/// Bytes of a tar block.
const BLOCK_BYTES: u64 = 512;

impl<R: Read> Padded<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, bytes: 0 }
    }
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.stream.read(buffer)?;
        if count == 0 {
            let missing = self.bytes.next_multiple_of(BLOCK_BYTES) - self.bytes;
            count = buffer.len().min(usize::try_from(missing).unwrap_or(0));
            if let Some(padding) = buffer.get_mut(..count) {
                padding.fill(0);
            }
        }
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }
}

/// Owner, mode and time of an entry.
#[derive(Clone, Copy)]
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    time: Timespec,
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    done: Unpacked,
    /// Directories and their times, which the making of their entries changes: set at the end.
    directories: Vec<(PathBuf, Timespec)>,
}

impl Target<'_> {
    fn entry(&mut self, entry: &mut Entry<impl Read>) -> Result<(), UnpackError> {
        let shown = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = inside(&shown)?;
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
                self.directories.push((PathBuf::from("."), attributes.time));
            }
            return Ok(());
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path).map_err(failed)?;
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
                    mkdirat(&parent, &name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat(&parent, &name, flags, Mode::empty()).map_err(failed)?;
                set(directory.as_fd(), attributes).map_err(failed)?;
                self.xattrs(entry, directory.as_fd(), &shown)?;
                self.directories.push((path, attributes.time));
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
                let link = inside(Path::new(&link_name(entry, &shown)?))?;
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
        loop {
            let count = entry
                .read(&mut buffer)
                .map_err(|source| UnpackError::Archive { source })?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            io::Write::write_all(&mut file, chunk).map_err(|source| UnpackError::Write {
                path: shown.to_owned(),
                source,
            })?;
            self.done.bytes += chunk.len() as u64;
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
        let Some(extensions) = entry
            .pax_extensions()
            .map_err(|source| UnpackError::Archive { source })?
        else {
            return Ok(());
        };
        for extension in extensions {
            let extension = extension.map_err(|source| UnpackError::Archive { source })?;
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

    /// The directory that an entry goes to; what is missing of it is made, owned by root, as in an archive that leaves
    /// its directories out.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        match open_directory(self.root, path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut so_far = PathBuf::new();
        for part in path.components() {
            let above = open_directory(self.root, &so_far)?;
            so_far.push(part);
            match open_directory(self.root, &so_far) {
                Ok(_) => {}
                Err(Errno::NOENT) => mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755))?,
                Err(error) => return Err(error),
            }
        }
        open_directory(self.root, path)
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

/// The entry's path below the root; leading slashes and `.` mean nothing, `..` is refused even where it would stay inside.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let refused = |reason: &str| UnpackError::Refused {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(refused("its name has a NUL byte"));
    }
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(refused("its name has `..` in it")),
        }
    }
    Ok(clean)
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

fn link_name(entry: &Entry<impl Read>, shown: &Path) -> Result<OsString, UnpackError> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(OsStr::from_bytes(&name).to_owned()),
        _ => Err(UnpackError::Refused {
            path: shown.to_owned(),
            reason: "a link to nothing".to_owned(),
        }),
    }
}

fn attributes(entry: &Entry<impl Read>, shown: &Path) -> Result<Attributes, UnpackError> {
    let header = entry.header();
    let number = |value: io::Result<u64>| value.map_err(|source| UnpackError::Archive { source });
    let (uid, gid) = (number(header.uid())?, number(header.gid())?);
    if uid > ID_MAX || gid > ID_MAX {
        let reason = format!("its owner {uid}:{gid} is beyond {ID_MAX}, the last id of a container");
        return Err(UnpackError::Refused {
            path: shown.to_owned(),
            reason,
        });
    }
    let mode = header.mode().map_err(|source| UnpackError::Archive { source })?;
    let seconds = i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX);
    // Both checked to be below 65,536.
    let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
    Ok(Attributes {
        uid: Uid::from_raw(id(uid)),
        gid: Gid::from_raw(id(gid)),
        mode: Mode::from_raw_mode(mode & 0o7777),
        time: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    })
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
fn remove(parent: BorrowedFd, name: &OsStr, depth: u32) -> Result<(), Errno> {
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
