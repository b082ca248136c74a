//! What the monitor waits for: one epoll set, whose members say whose they are.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use sys::fd::{Epoll, Event};

use super::log::Output;

/// So long without an event, and a monitor keeps nothing that it does not need to wait on: short, as most pods are quiet,
/// and long against what it costs to come back, some tens of microseconds.
const QUIET: Duration = Duration::from_secs(1);

/// Whose descriptor it is. Numbers are keys of containers, execs and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Listener,
    Signals,
    Fence,
    Connection(u64),
    /// Output of a container.
    Output(u64, Output),
    /// Input of a container.
    Input(u64),
    /// Output of an exec'd process.
    ExecOutput(u64, Output),
    /// Input of an exec'd process.
    ExecInput(u64),
}

/// The set.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    members: BTreeMap<u64, Member>,
    next: u64,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Watch {
            epoll: Epoll::new()?,
            members: BTreeMap::new(),
            next: 1,
        })
    }

    /// A number that was never given before: late events of something gone find nothing under it.
    pub(super) fn key(&mut self) -> u64 {
        let key = self.next;
        self.next += 1;
        key
    }

    /// Waits for events; when none come for a while, in the least memory.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let first = timeout.map_or(QUIET, |timeout| timeout.min(QUIET));
        let events = self.epoll.wait(Some(first))?;
        if !events.is_empty() || timeout == Some(first) {
            return Ok(events);
        }
        self.epoll.rest(timeout.map(|timeout| timeout - first))
    }

    pub(super) fn member(&self, token: u64) -> Option<Member> {
        self.members.get(&token).copied()
    }

    /// Begins to wait for reading.
    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, member: Member) -> io::Result<u64> {
        let token = self.key();
        self.epoll.add(fd, token, true, false)?;
        self.members.insert(token, member);
        Ok(token)
    }

    pub(super) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: u64,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        self.epoll.modify(fd, token, readable, writable)
    }

    pub(super) fn remove(&mut self, fd: BorrowedFd<'_>, token: u64) {
        self.members.remove(&token);
        if let Err(error) = self.epoll.remove(fd) {
            eprintln!("failed to stop waiting for a descriptor: {error}");
        }
    }
}

/// Output that is read, or not for now.
#[derive(Debug)]
pub(super) struct Source {
    fd: OwnedFd,
    token: u64,
    armed: bool,
}

/// What one read gave.
pub(super) enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Source {
    /// Begins to read it, without waiting.
    pub(super) fn new(fd: OwnedFd, member: Member, watch: &mut Watch) -> io::Result<Self> {
        sys::fd::set_nonblocking(fd.as_fd(), true)?;
        let token = watch.add(fd.as_fd(), member)?;
        Ok(Source {
            fd,
            token,
            armed: true,
        })
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> Read {
        match sys::fd::read(self.fd.as_fd(), buffer) {
            Ok(0) => Read::End,
            Ok(count) => Read::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Nothing,
            // EIO: a terminal whose other side everybody has closed.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Read::End,
            Err(error) => {
                eprintln!("failed to read a process's output: {error}");
                Read::End
            }
        }
    }

    /// Reads on, or leaves the rest in the pipe. An epoll member that waits for nothing still tells of hang-ups, for
    /// ever, so it is taken out.
    pub(super) fn arm(&mut self, on: bool, watch: &mut Watch) -> io::Result<()> {
        if on == self.armed {
            return Ok(());
        }
        if on {
            watch.epoll.add(self.fd.as_fd(), self.token, true, false)?;
        } else {
            watch.epoll.remove(self.fd.as_fd())?;
        }
        self.armed = on;
        Ok(())
    }

    pub(super) fn close(self, watch: &mut Watch) {
        if self.armed {
            watch.remove(self.fd.as_fd(), self.token);
        } else {
            watch.members.remove(&self.token);
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Input held for a process that does not read; beyond it its client's frames are left in the socket.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// End of file as a terminal's line discipline has it by default (VEOF, Control-D).
const TERMINAL_END: u8 = 4;

/// Input on its way to a process.
#[derive(Debug)]
pub(super) struct Input {
    fd: OwnedFd,
    /// While there is something to write.
    token: Option<u64>,
    held: Vec<u8>,
    ending: bool,
    terminal: bool,
    member: Member,
}

impl Input {
    pub(super) fn new(fd: OwnedFd, member: Member, terminal: bool) -> io::Result<Self> {
        sys::fd::set_nonblocking(fd.as_fd(), true)?;
        Ok(Input {
            fd,
            token: None,
            held: Vec::new(),
            ending: false,
            terminal,
            member,
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.held.len() < INPUT_BYTES_MAX
    }

    /// Takes input; empty is its end.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.ending {
            return;
        }
        if bytes.is_empty() {
            self.ending = true;
            if self.terminal {
                self.held.push(TERMINAL_END);
            }
        } else {
            self.held.extend_from_slice(bytes);
        }
    }

    /// Writes what the process takes. False when it takes no more, ever: close it.
    pub(super) fn write(&mut self, watch: &mut Watch) -> bool {
        while !self.held.is_empty() {
            match sys::fd::write(self.fd.as_fd(), &self.held) {
                Ok(count) => {
                    self.held.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // EPIPE: it has closed its input; EIO: its terminal has hung up. Neither is ours to complain about.
                Err(_) => return false,
            }
        }
        if self.held.is_empty() {
            self.held = Vec::new();
            self.disarm(watch);
            // A terminal's master stays: closing it would hang up on the process.
            return !self.ending || self.terminal;
        }
        self.token.is_some() || self.watch(watch).is_ok()
    }

    fn watch(&mut self, watch: &mut Watch) -> io::Result<()> {
        let token = watch.add(self.fd.as_fd(), self.member)?;
        watch.modify(self.fd.as_fd(), token, false, true)?;
        self.token = Some(token);
        Ok(())
    }

    fn disarm(&mut self, watch: &mut Watch) {
        if let Some(token) = self.token.take() {
            watch.remove(self.fd.as_fd(), token);
        }
    }

    pub(super) fn close(mut self, watch: &mut Watch) {
        self.disarm(watch);
    }
}
