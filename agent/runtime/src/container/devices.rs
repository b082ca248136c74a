//! Device nodes: in the /dev that we make, or where the configuration puts them in the image's own files.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use sys::mount;
use sys::path::{self, Resolve};

use super::mounts::{Context, clean, fill};

/// A node, or the same one that is there already.
pub(super) fn node(
    dir: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    device: u64,
    uid: u32,
    gid: u32,
) -> io::Result<()> {
    match path::mknod(dir, name, mode, device) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = path::open(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::NoLinks)?;
            let stat = path::stat(found.as_fd())?;
            if stat.mode & libc::S_IFMT != mode & libc::S_IFMT || stat.rdev != device {
                return Err(error);
            }
        }
        result => result?,
    }
    path::chown(dir, name, uid, gid)
}

/// A node to be bound from the host, which the caller may not make: in a user namespace nobody may.
#[derive(Debug)]
pub(super) struct Bound {
    /// Where, from the container's root.
    pub(super) place: PathBuf,
    kind: u32,
    device: u64,
}

impl Bound {
    /// The host's node of the same path and number, as a tree of its own.
    pub(super) fn tree(&self) -> io::Result<OwnedFd> {
        let name = CString::new(self.place.as_os_str().as_encoded_bytes())?;
        let file = path::open(path::here(), &name, libc::O_PATH, 0, Resolve::Free)?;
        let stat = path::stat(file.as_fd())?;
        if stat.mode & libc::S_IFMT != self.kind || stat.rdev != self.device {
            return Err(io::Error::other(format!(
                "the host's {} is another device, and none can be made in a user namespace",
                self.place.display()
            )));
        }
        mount::clone_tree(file.as_fd(), c"", false)
    }
}

/// A device's node, or that it is to be bound.
pub(super) fn node_or_bound(
    dir: BorrowedFd<'_>,
    name: &CStr,
    place: PathBuf,
    node: Node,
    context: &Context<'_>,
) -> io::Result<()> {
    match self::node(dir, name, node.mode, node.device, node.uid, node.gid) {
        Err(error)
            if error.raw_os_error() == Some(libc::EPERM) && node.mode & libc::S_IFMT != libc::S_IFIFO =>
        {
            context.bound.borrow_mut().push(Bound {
                place,
                kind: node.mode & libc::S_IFMT,
                device: node.device,
            });
            // What it is to be bound over, now: the /dev around it may become read-only.
            self::node(dir, name, libc::S_IFREG, 0, node.uid, node.gid)
        }
        made => made,
    }
}

/// What mknod(2) and chown(2) are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) device: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What is there already need not be made.
pub(super) fn there(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Makes one below a directory, with the directories on the way; no link on it is followed.
pub(super) fn make(
    below: BorrowedFd<'_>,
    inside: &Path,
    device: &LinuxDevice,
    context: &Context<'_>,
) -> io::Result<()> {
    let own = |id: u32, root: u32| root.checked_add(id).ok_or(io::ErrorKind::InvalidInput);
    let open = |dir: BorrowedFd<'_>, name: &CStr| {
        path::open(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0, Resolve::NoLinks)
    };
    let names: Vec<CString> = inside
        .components()
        .map(|part| CString::new(part.as_os_str().as_encoded_bytes()))
        .collect::<Result<_, _>>()?;
    if names.iter().any(|name| name.as_c_str() == c"..") {
        return Err(io::Error::other(format!(
            "device {} has a '..'",
            device.path().display()
        )));
    }
    let Some((last, parents)) = names.split_last() else {
        return Ok(());
    };
    let mut dir = open(below, c".")?;
    for name in parents {
        there(path::mkdir(dir.as_fd(), name, 0o755))?;
        dir = open(dir.as_fd(), name)?;
    }
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        _ => libc::S_IFCHR,
    };
    let number = match device.typ() {
        LinuxDeviceType::P => 0,
        _ => path::makedev(device.major() as u32, device.minor() as u32),
    };
    let mode = kind | device.file_mode().unwrap_or(0o666) & 0o7777;
    let uid = own(device.uid().unwrap_or(0), context.root_uid)?;
    let gid = own(device.gid().unwrap_or(0), context.root_gid)?;
    let node = Node {
        mode,
        device: number,
        uid,
        gid,
    };
    node_or_bound(dir.as_fd(), last, clean(device.path()), node, context)
}

/// Devices that the configuration puts elsewhere than into /dev, and all of them where nothing is mounted on /dev: in the
/// root file system itself. A /dev that is somebody else's, by a bind mount, is left as it is.
pub(super) fn outside(mounts: &[Mount], context: &Context<'_>) -> io::Result<()> {
    let mounted = mounts
        .iter()
        .any(|mount| clean(mount.destination()) == Path::new("/dev"));
    let old = path::umask(0); // the nodes are for everybody
    let made = (|| {
        if !mounted {
            there(path::mkdir(context.root, c"dev", 0o755))?;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let dev = path::open(context.root, c"dev", flags, 0, Resolve::NoLinks)?;
            fill(dev.as_fd(), context)?;
        }
        for device in context.devices {
            let place = clean(device.path());
            if !place.starts_with("/dev") {
                let inside = place.strip_prefix("/").map_err(|_| {
                    io::Error::other(format!("device path {} is not absolute", place.display()))
                })?;
                make(context.root, inside, device, context)?;
            }
        }
        Ok(())
    })();
    path::umask(old);
    made
}
