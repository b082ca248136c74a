//! `tmpcopyup`: a tmpfs that begins with what the image has at its place. Owners are copied as numbers of the host's, so
//! that they mean the same inside a user namespace.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::dir::Dir;
use nix::libc;
use sys::path::{self, Resolve};

/// Most files copied: what the image has there is somebody else's choice, and all of it becomes memory.
const ENTRIES_MAX: usize = 100_000;
/// Deepest directory.
const DEPTH_MAX: usize = 64;

/// Copies what lies at `place` below `root` into the new file system; nothing when there is no such directory.
pub(super) fn copy(root: BorrowedFd<'_>, place: &CStr, into: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let from = match path::open(root, place, flags, 0, Resolve::InRoot) {
        Ok(from) => from,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let into = path::open(into, c".", flags, 0, Resolve::NoLinks)?;
    let mut left = ENTRIES_MAX;
    tree(from.as_fd(), into.as_fd(), DEPTH_MAX, &mut left)
}

/// Copies a directory's owner, mode and entries.
fn tree(from: BorrowedFd<'_>, into: BorrowedFd<'_>, depth: usize, left: &mut usize) -> io::Result<()> {
    let too_much = || io::Error::other("too many files to copy into a tmpfs");
    let depth = depth.checked_sub(1).ok_or_else(too_much)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let mut entries = Dir::from_fd(path::open(from, c".", flags, 0, Resolve::NoLinks)?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(too_much)?;
        let found = path::open(from, name, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::Free)?;
        let stat = path::stat(found.as_fd())?;
        if stat.is_dir() {
            path::mkdir(into, name, 0o700)?;
            let (inner, target) = (
                path::open(from, name, flags, 0, Resolve::NoLinks)?,
                path::open(into, name, flags, 0, Resolve::NoLinks)?,
            );
            tree(inner.as_fd(), target.as_fd(), depth, left)?;
        } else if stat.is_file() {
            let source = path::open(from, name, libc::O_RDONLY, 0, Resolve::NoLinks)?;
            let create = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            let target = path::open(into, name, create, 0o600, Resolve::NoLinks)?;
            let mut target = File::from(target);
            io::copy(&mut File::from(source), &mut target)?;
            own(target.as_fd(), &stat)?;
        } else if stat.mode & libc::S_IFMT == libc::S_IFLNK {
            let target = nix::fcntl::readlinkat(from, name)?;
            let target = std::ffi::CString::new(target.as_encoded_bytes())?;
            path::symlink(&target, into, name)?;
            path::chown(into, name, stat.uid, stat.gid)?;
        } else {
            return Err(io::Error::other(
                "a device, pipe or socket of the image cannot be copied into a tmpfs",
            ));
        }
    }
    own(into, &path::stat(from)?)
}

/// Owner first: a change of owner takes the set-id bits away.
fn own(file: BorrowedFd<'_>, stat: &path::Stat) -> io::Result<()> {
    path::chown(file, c"", stat.uid, stat.gid)?;
    path::chmod(file, stat.mode & 0o7777)
}
