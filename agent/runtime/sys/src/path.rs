//! Paths: opened below a root that they cannot leave, and made by descriptor.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::{cvt, cvt_int, own};

/// How a path may be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// As any open: symbolic links and `..` lead anywhere.
    Free,
    /// The directory is the root: links and `..` stay in it, and links of procfs are refused.
    InRoot,
    /// As `InRoot`, and no symbolic link at all.
    NoLinks,
}

/// The file system of procfs (`PROC_SUPER_MAGIC`).
pub const PROC_MAGIC: i64 = libc::PROC_SUPER_MAGIC;
/// The file system of sysfs.
pub const SYSFS_MAGIC: i64 = 0x6265_6572;
/// The file system of devpts.
pub const DEVPTS_MAGIC: i64 = 0x1cd1;
/// The file system of cgroup v2.
pub const CGROUP2_MAGIC: i64 = libc::CGROUP2_SUPER_MAGIC;

/// Opens, close-on-exec.
pub fn open(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
    resolve: Resolve,
) -> io::Result<OwnedFd> {
    // SAFETY: open_how is plain integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = match resolve {
        Resolve::Free => 0,
        Resolve::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        Resolve::NoLinks => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS,
    };
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: the path is terminated; `how` lives through the call and has the size told.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match own(ret) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && resolve != Resolve::Free => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// openat2(2): a scoped resolution that met a rename says EAGAIN and may be tried again; somebody who renames without end
/// must not hold us.
const ATTEMPTS_MAX: u32 = 64;

/// The current directory as a starting point for `open` and its kin.
pub fn here() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is no descriptor that could be closed; the kernel takes it wherever it takes a directory.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

/// Makes a directory; an existing one is an error.
pub fn mkdir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: the name is terminated.
    cvt_int(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Makes a device node, FIFO or empty file.
pub fn mknod(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> io::Result<()> {
    // SAFETY: the name is terminated.
    cvt_int(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// A device's number.
pub fn makedev(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// Makes a symbolic link.
pub fn symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: both strings are terminated.
    cvt_int(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Changes owner and group of `name` in `dir`, not following a link; of `dir` itself when the name is empty.
pub fn chown(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> io::Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: the name is terminated.
    cvt_int(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
}

/// Changes the mode of an open file.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: integers.
    cvt_int(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// What is known of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number.
    pub inode: u64,
    /// Device on which it lies.
    pub device: u64,
    /// Number of the device that it is, if it is one.
    pub rdev: u64,
}

impl Stat {
    /// A directory?
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// A regular file?
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// A character device?
    pub fn is_char_device(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR
    }

    /// A pipe or a socket, which belong to whoever holds them?
    pub fn is_pipe_or_socket(&self) -> bool {
        matches!(self.mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK)
    }
}

/// Looks at an open file.
pub fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    // SAFETY: struct stat is plain integers, for which zero is valid.
    let mut raw: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is ours and lives through the call.
    cvt_int(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut raw) })?;
    Ok(Stat {
        mode: raw.st_mode,
        uid: raw.st_uid,
        gid: raw.st_gid,
        inode: raw.st_ino,
        device: raw.st_dev,
        rdev: raw.st_rdev,
    })
}

/// The magic number of the file system on which an open file lies.
pub fn fs_magic(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: struct statfs is plain integers, for which zero is valid.
    let mut raw: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is ours and lives through the call.
    cvt_int(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut raw) })?;
    Ok(raw.f_type)
}

/// Whether the mount (or its file system) through which a file was opened is read-only.
pub fn is_readonly(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: struct statvfs is plain integers, for which zero is valid.
    let mut raw: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is ours and lives through the call.
    cvt_int(unsafe { libc::fstatvfs(fd.as_raw_fd(), &raw mut raw) })?;
    Ok(raw.f_flag & libc::ST_RDONLY != 0)
}

/// Whether the effective user may execute `path`.
pub fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is terminated.
    cvt_int(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) }).map(drop)
}

/// Changes the current directory.
pub fn chdir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is terminated.
    cvt_int(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Changes the current directory to an open one.
pub fn fchdir(dir: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an integer.
    cvt_int(unsafe { libc::fchdir(dir.as_raw_fd()) }).map(drop)
}

/// Changes the root to the current directory; for callers that then have no other way out.
pub fn chroot_here() -> io::Result<()> {
    // SAFETY: the path is terminated.
    cvt_int(unsafe { libc::chroot(c".".as_ptr()) }).map(drop)
}

/// Whether the current directory can be reached from the root: the kernel writes `(unreachable)` before one that cannot.
pub fn cwd_is_inside() -> io::Result<bool> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is ours and as long as told. The raw call, as the C library turns "unreachable" into ENOENT.
    let ret = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    cvt(ret)?;
    Ok(buffer[0] == b'/')
}

/// Sets an extended attribute of an open file.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is terminated; the value lives through the call and is as long as told.
    cvt_int(unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
    .map(drop)
}

/// Sets the mask of permission bits taken away from new files; returns the one before.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: an integer; cannot fail.
    unsafe { libc::umask(mask) }
}
