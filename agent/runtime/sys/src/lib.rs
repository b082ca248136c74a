//! Every unsafe line of the runtime: syscalls behind safe functions that own their descriptors.
//!
//! Where to start: `process` makes children and waits for them, `mount` builds file systems, `cred` changes who a process
//! is. What a function returns it owns; what it borrows it does not keep. No function here allocates unless it says so,
//! so that all of them may run between clone and exec; errors are the kernel's, as `io::Error`, which for an errno does
//! not allocate either.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod allocation;
pub mod bpf;
pub mod cred;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod path;
pub mod process;
pub mod schedule;
pub mod seccomp;
pub mod socket;
pub mod time;
pub mod tty;

use std::io;

/// The result of a syscall that says -1 for "see errno".
fn cvt(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// As `cvt`, for the calls that return an `int`.
fn cvt_int(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Takes ownership of the descriptor that a syscall has just returned.
fn own(ret: libc::c_long) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let fd = cvt(ret)?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor to our caller and nobody else holds it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}
