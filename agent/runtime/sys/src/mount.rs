//! Mounts by descriptor (the API of Linux 5.2 and 5.12): a tree is made detached, changed, and attached last, so that no
//! path is looked up twice.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::{cvt, cvt_int, own};

pub use libc::{
    MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
};
/// The bits that say how access times are kept; to be cleared as a whole before one is set.
pub const MOUNT_ATTR_ATIME_BITS: u64 = 0x70;

const OPEN_TREE_CLONE: u32 = 1;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// A detached copy of the mount (with `recursive`, of all below it) at `path`, or at `dir` itself when that is empty.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the path is terminated.
    own(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches a detached tree at the place that `target` names.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(
        tree,
        target,
        c"",
        MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Attaches a detached tree at a path.
pub fn attach_at(tree: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    move_mount(tree, crate::path::here(), path, MOVE_MOUNT_F_EMPTY_PATH)
}

fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &CStr, flags: u32) -> io::Result<()> {
    // SAFETY: both paths are terminated.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            path.as_ptr(),
            flags,
        )
    };
    cvt(ret).map(drop)
}

/// A file system in the making.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Of this type.
    pub fn open(fstype: &CStr) -> io::Result<Self> {
        // SAFETY: the type is terminated.
        own(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) }).map(FsContext)
    }

    fn config(
        &self,
        command: u32,
        key: *const libc::c_char,
        value: *const libc::c_char,
        aux: i32,
    ) -> io::Result<()> {
        // SAFETY: the callers below pass terminated strings or null, as the command wants.
        cvt(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, aux) })
            .map(drop)
    }

    /// An option without a value.
    pub fn flag(&self, key: &CStr) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null(), 0)
    }

    /// An option with a value (at most 255 bytes).
    pub fn string(&self, key: &CStr, value: &CStr) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
    }

    /// An option whose value is an open file.
    pub fn fd(&self, key: &CStr, value: BorrowedFd<'_>) -> io::Result<()> {
        self.config(FSCONFIG_SET_FD, key.as_ptr(), std::ptr::null(), value.as_raw_fd())
    }

    /// Makes it, as a detached mount with these `MOUNT_ATTR_*`.
    pub fn mount(self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null(), 0)?;
        // SAFETY: integers.
        own(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes as u32,
            )
        })
    }

    /// The kernel's last words about it, for messages. Allocates.
    pub fn complaint(&self) -> Option<String> {
        let mut buffer = [0u8; 512];
        let count = crate::fd::read(std::os::fd::AsFd::as_fd(&self.0), &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..count]).trim().to_owned())
    }
}

/// What to change about a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and its kin; 0 to leave it.
    pub propagation: u64,
}

/// Changes the mount that `fd` is the root of, or with `recursive` all below it too.
pub fn change(fd: BorrowedFd<'_>, change: Change, recursive: bool) -> io::Result<()> {
    setattr(fd, change, recursive, 0)
}

/// Maps the ids of a detached mount (with `recursive`, of all below it) as the user namespace does.
pub fn idmap(fd: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let change = Change {
        set: MOUNT_ATTR_IDMAP,
        ..Change::default()
    };
    setattr(fd, change, recursive, users.as_raw_fd() as u64)
}

fn setattr(fd: BorrowedFd<'_>, change: Change, recursive: bool, users: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: users,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path is terminated; `attr` lives through the call and has the size told.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    cvt(ret).map(drop)
}

/// mount(2), for what the newer calls do not do.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |string: Option<&CStr>| string.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each string is terminated or null, which mount(2) takes for what a call does not use.
    let ret = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(fstype),
            flags as libc::c_ulong,
            pointer(data).cast(),
        )
    };
    cvt_int(ret).map(drop)
}

/// Detaches what is mounted at `path`; it goes when nobody uses it any more.
pub fn detach(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is terminated.
    cvt_int(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Detaches the mount that `fd` is the root of, as `detach` does. `proc` is a procfs and becomes the working directory:
/// umount2 takes a path only, and only a directory can be the working directory.
pub fn detach_fd(proc: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    // Without allocating: for children on their way to exec.
    let mut path = *b"self/fd/0000000000\0";
    let mut number = fd.as_raw_fd().unsigned_abs();
    let last = path.len() - 1;
    for digit in path[8..last].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    // procfs takes no leading zeros.
    let zeros = path[8..last - 1]
        .iter()
        .take_while(|digit| **digit == b'0')
        .count();
    path.copy_within(8 + zeros.., 8);
    crate::path::fchdir(proc)?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the path is terminated. The last part is procfs's link to the mount, which must be followed.
    cvt_int(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Makes the current directory, a mount's root, the root of the mount namespace, with the old one mounted over it.
pub fn pivot_here() -> io::Result<()> {
    // SAFETY: both paths are terminated.
    cvt(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}
