//! Pseudo-terminals made inside a container's own devpts, and their sizes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::path::{self, Resolve};
use crate::{cvt_int, own};

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Opens a new pair below `root`: master, slave. ENODEV unless its /dev/pts is a real devpts: the root belongs to
/// somebody who may have put a file there instead.
pub fn open_pair(root: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = path::open(root, c"dev/pts/ptmx", flags, 0, Resolve::NoLinks)?;
    let stat = path::stat(std::os::fd::AsFd::as_fd(&master))?;
    let devpts = path::fs_magic(std::os::fd::AsFd::as_fd(&master))? == path::DEVPTS_MAGIC;
    if !devpts || !stat.is_char_device() || stat.rdev != path::makedev(5, 2) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    cvt_int(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: TIOCGPTPEER takes the flags of the new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags | libc::O_CLOEXEC) };
    Ok((master, own(slave.into())?))
}

/// Makes it this session's controlling terminal.
pub fn set_controlling(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an integer: do not steal it from another session.
    cvt_int(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// The size of a terminal; ENOTTY when it is none.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut raw = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes a winsize, for which there is room.
    cvt_int(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut raw) })?;
    Ok(Size {
        columns: raw.ws_col,
        rows: raw.ws_row,
    })
}

/// Ends its lines with a bare newline: whoever reads the output in a pipe gets what the program wrote.
pub fn set_bare_newlines(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: termios is plain data, for which zero is valid.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes a termios, for which there is room.
    cvt_int(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) })?;
    settings.c_oflag &= !libc::ONLCR;
    // SAFETY: the call reads a termios, which lives through it.
    cvt_int(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings) }).map(drop)
}

/// Sets the size; the foreground programs get SIGWINCH.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let raw = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize, which lives through the call.
    cvt_int(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const raw) }).map(drop)
}
