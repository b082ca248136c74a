//! Descriptors: pipes, events, memory files, epoll and signalfd, and closing what must not be inherited.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::{cvt, cvt_int, own};

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Closes every descriptor from `first` on but two.
pub fn close_but(first: u32, keep: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut keep = keep.map(|fd| fd.as_raw_fd() as u32);
    keep.sort_unstable();
    let mut from = first;
    for number in keep {
        if number > from {
            close_between(from, number - 1, 0)?;
        }
        from = from.max(number + 1);
    }
    close_from(from)
}

/// Closes a descriptor that another part of a child on its way to exec holds.
pub fn close(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as in `close_between`.
    cvt_int(unsafe { libc::close(fd.as_raw_fd()) }).map(drop)
}

/// Sets close-on-exec on every descriptor from `first` on, so that an exec that fails can still be told.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    close_between(first, u32::MAX, flags)
}

fn close_between(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: integers. Closing a descriptor that an OwnedFd of this process still holds is the caller's matter of order:
    // it makes later calls fail with EBADF and touches no memory. Only children on their way to exec call this.
    cvt(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Makes `target` the same open file as `fd`, not closed on exec. For 0, 1 and 2 in a child.
pub fn dup_onto(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        return set_cloexec(fd, false);
    }
    // SAFETY: two integers; the child on its way to exec owns the numbers it overwrites.
    cvt_int(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Duplicates onto a number of at least `min`, close-on-exec.
pub fn dup_above(fd: BorrowedFd<'_>, min: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers; the result is a new descriptor.
    own(libc::c_long::from(unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, min)
    }))
}

/// Whether an exec closes it.
pub fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: integers.
    cvt_int(unsafe {
        libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFD,
            if on { libc::FD_CLOEXEC } else { 0 },
        )
    })
    .map(drop)
}

/// Whether reads and writes return instead of waiting.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: integers.
    let flags = cvt_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    // SAFETY: integers.
    cvt_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// A pipe: reading end, writing end; both closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two numbers.
    cvt_int(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(ends[0].into())?, own(ends[1].into())?))
}

/// Reads once, again after a signal.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is ours and as long as told.
        let ret = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match cvt(ret as libc::c_long) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result.map(|count| count as usize),
        }
    }
}

/// Writes once, again after a signal.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the bytes live through the call and are as many as told.
        match cvt(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as libc::c_long)
        {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result.map(|count| count as usize),
        }
    }
}

/// Writes all to standard error; a failure to complain has nobody to be told to.
pub fn complain(bytes: &[u8]) {
    // SAFETY: the bytes live through the call and are as many as told.
    unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) };
}

/// An event counter, closed on exec, non-blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: integers.
    own(libc::c_long::from(unsafe {
        libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
    }))
}

/// A file in memory that can be sealed.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is terminated.
    own(libc::c_long::from(unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    }))
}

/// No write, growth or shrinking any more, and no more seals.
pub fn seal(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: integers.
    cvt_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// Signals as something to read; block them first. Non-blocking.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Watches these signals.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = crate::process::sigset(signals)?;
        // SAFETY: `set` lives through the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        own(fd.into()).map(SignalFd)
    }

    /// The next signal's number; `None` when there is none now.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
        match read(std::os::fd::AsFd::as_fd(&self.0), &mut buffer) {
            // struct signalfd_siginfo begins with ssi_signo, a u32 (signalfd(2)).
            Ok(count) if count == buffer.len() => {
                Ok(Some(
                    u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as i32,
                ))
            }
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An epoll set; each member has a number of the caller's.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The member's number.
    pub token: u64,
    /// Can be read, or has hung up.
    pub readable: bool,
    /// Can be written.
    pub writable: bool,
    /// Hung up or failed.
    pub closed: bool,
}

/// Events taken by one wait.
pub const EVENTS_MAX: usize = 32;

impl Epoll {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: an integer.
        own(libc::c_long::from(unsafe {
            libc::epoll_create1(libc::EPOLL_CLOEXEC)
        }))
        .map(Epoll)
    }

    /// Adds a member.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, readable: bool, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, readable, writable)
    }

    /// Changes what a member waits for.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, readable: bool, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, readable, writable)
    }

    /// Removes a member; do so before closing it.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, false, false)
    }

    fn control(
        &self,
        op: i32,
        fd: BorrowedFd<'_>,
        token: u64,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        let events = if readable {
            libc::EPOLLIN | libc::EPOLLRDHUP
        } else {
            0
        } | if writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: token,
        };
        // SAFETY: `event` lives through the call.
        cvt_int(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd.as_raw_fd(), &raw mut event) }).map(drop)
    }

    /// Waits for events, at most `timeout` (none: for ever). Allocates. A signal ends it early with no events.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: `events` has room for EVENTS_MAX.
        let ret = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                milliseconds(timeout),
            )
        };
        taken(&events, cvt_int(ret).map(|count| count as usize))
    }

    /// As `wait`, in the least memory: for a wait that is expected to be long.
    pub fn rest(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        crate::memory::give_back_data();
        let count = crate::memory::wait_without_code(self.0.as_raw_fd(), &mut events, milliseconds(timeout));
        taken(&events, count)
    }
}

fn milliseconds(timeout: Option<Duration>) -> libc::c_int {
    // Rounded up: a wait that ends a fraction early would spin.
    timeout.map_or(-1, |time| {
        i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    })
}

fn taken(events: &[libc::epoll_event], count: io::Result<usize>) -> io::Result<Vec<Event>> {
    let count = match count {
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => 0,
        count => count?,
    };
    Ok(events[..count]
        .iter()
        .map(|event| {
            let bits = event.events as i32;
            Event {
                token: event.u64,
                readable: bits & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0,
                writable: bits & libc::EPOLLOUT != 0,
                closed: bits & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) != 0,
            }
        })
        .collect())
}

impl std::os::fd::AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` can be read (a pidfd: until the process has ended); false when `timeout` passed first.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|time| std::time::Instant::now() + time);
    loop {
        let left = match deadline {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(std::time::Instant::now());
                i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, ours, as told.
        match cvt_int(unsafe { libc::poll(&raw mut poll, 1, left) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(count > 0),
        }
    }
}

/// Closes a copy, inherited by a child, of what the parent goes on holding; in the child nobody uses it again.
pub fn close_inherited(fd: BorrowedFd<'_>) {
    // SAFETY: an integer. The caller is a child that never returns, so the OwnedFd behind `fd` is not dropped here.
    unsafe { libc::close(fd.as_raw_fd()) };
}
