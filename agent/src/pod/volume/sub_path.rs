//! A part of a volume. What lies in a volume is the container's, links too, so the way is walked with the volume as its root
//! (CVE-2017-1002101, CVE-2021-25741); the mount's source is the descriptor that was opened, not its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, chownat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::pod::files::Owner;

fn open_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), within)
}

/// Opens a part of a volume; directories that are missing are made where the volume may be written, as root's inside
/// when `give` says so.
pub(super) fn open(
    volume: &Path,
    sub_path: &str,
    writable: bool,
    give: Option<&Owner>,
) -> io::Result<OwnedFd> {
    let root = File::open(volume)?;
    let mut path = PathBuf::new();
    let mut here: OwnedFd = root.try_clone()?.into();
    for part in Path::new(sub_path).components() {
        let Component::Normal(name) = part else { continue };
        path.push(name);
        here = match open_in(root.as_fd(), &path) {
            Ok(found) => found,
            Err(Errno::NOENT) if writable => {
                let mut label = None;
                match mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        if let Some(owner) = give {
                            let (uid, gid) = (Uid::from_raw(owner.root), Gid::from_raw(owner.root));
                            chownat(&here, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                            label = give;
                        }
                    }
                    // Made meanwhile, or a link into nowhere: the open below tells.
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let made = open_in(root.as_fd(), &path)?;
                if let Some(owner) = label {
                    // A new file has its directory's type but its maker's level: ours, without the pod's categories.
                    owner.mark_open(made.as_fd())?;
                }
                made
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(here)
}

/// A name under which another process of root's finds what this process holds open.
pub(super) fn name(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}
