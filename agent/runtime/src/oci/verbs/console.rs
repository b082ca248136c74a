//! In the foreground: the caller's terminal joined with the container's, and the caller's signals passed on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use sys::fd::SignalFd;
use sys::process::{self, Ended};

use super::super::notify::Notify;
use crate::container::Size;

/// Signals that are the container's when somebody sends them to us.
const PASSED: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGWINCH,
];
/// Moved in one step; a pty holds as much.
const CHUNK_BYTES: usize = 4096;

/// Takes the signals to pass on; what comes before there is a container waits.
pub(super) fn signals() -> io::Result<SignalFd> {
    process::block_signals(&PASSED)?;
    SignalFd::new(&PASSED)
}

/// Our end of the socket over which a new terminal's master comes.
#[derive(Debug)]
pub(super) struct Console {
    socket: OwnedFd,
}

impl Console {
    /// Ours, and the end for the container's process.
    pub(super) fn pair() -> io::Result<(Console, OwnedFd)> {
        let (socket, theirs) = sys::socket::seqpacket_pair()?;
        Ok((Console { socket }, theirs))
    }

    /// The size of the caller's terminal, if standard input is one.
    pub(super) fn size() -> Option<Size> {
        sys::tty::size(io::stdin().as_fd()).ok()
    }

    fn master(self) -> io::Result<OwnedFd> {
        let mut text = [0; 64];
        let (_, mut fds) = sys::socket::recv_fds(self.socket.as_fd(), &mut text)?;
        fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// The caller's terminal in raw mode, until this goes.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> io::Result<Raw> {
        let input = io::stdin();
        let Ok(before) = termios::tcgetattr(&input) else {
            return Ok(Raw { before: None }); // no terminal
        };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Lines end with a bare newline (`Stdio::Terminal`): it is this terminal that returns the carriage.
        raw.output_flags |= OutputFlags::OPOST;
        termios::tcsetattr(&input, SetArg::TCSADRAIN, &raw)?;
        Ok(Raw { before: Some(before) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, before)
        {
            eprintln!("bulkhead-runtime: failed to restore the terminal: {error}\r");
        }
    }
}

/// Stays with a process to its end: carries its terminal, if it has one of ours, and passes signals on, and the word that it
/// is ready.
pub(super) fn attend(
    console: Option<Console>,
    signals: &SignalFd,
    running: BorrowedFd<'_>,
    mut notify: Option<Notify>,
) -> io::Result<Ended> {
    let master = console.map(Console::master).transpose()?;
    let _raw = master.as_ref().map(|_| Raw::enter()).transpose()?;
    if let Some(master) = &master {
        sys::fd::set_nonblocking(master.as_fd(), true)?;
    }
    let mut relay = Relay {
        master,
        input_open: true,
        typed: Vec::new(),
    };
    loop {
        let input = io::stdin();
        let mut polled = vec![
            PollFd::new(running, PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let mut add = |fd, wanted| {
            polled.push(PollFd::new(fd, wanted));
            polled.len() - 1
        };
        let (mut at_terminal, mut at_input) = (None, None);
        if let Some(master) = &relay.master {
            let mut wanted = PollFlags::POLLIN;
            if !relay.typed.is_empty() {
                wanted |= PollFlags::POLLOUT;
            } else if relay.input_open {
                at_input = Some(add(input.as_fd(), PollFlags::POLLIN));
            }
            at_terminal = Some(add(master.as_fd(), wanted));
        }
        let at_notify = notify
            .as_ref()
            .map(|notify| add(notify.as_fd(), PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        let is = |index: Option<usize>| {
            index.is_some_and(|index| polled[index].revents().is_some_and(|events| !events.is_empty()))
        };
        let (ended, signalled) = (is(Some(0)), is(Some(1)));
        let (shown, typed, told) = (is(at_terminal), is(at_input), is(at_notify));
        if signalled {
            relay.signals(signals, running)?;
        }
        if shown {
            relay.output()?;
            relay.flush()?;
        }
        if typed {
            relay.input()?;
        }
        if told || ended {
            notify = match notify {
                Some(notify) if !notify.pass_on(None)? => Some(notify),
                _ => None,
            };
        }
        if ended {
            // What it still said before its end.
            relay.output()?;
            return process::wait(running);
        }
    }
}

struct Relay {
    master: Option<OwnedFd>,
    input_open: bool,
    /// Read from the caller and not yet taken by the terminal.
    typed: Vec<u8>,
}

impl Relay {
    fn signals(&self, signals: &SignalFd, running: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(signal) = signals.next()? {
            match (&self.master, signal) {
                (Some(master), libc::SIGWINCH) => {
                    if let Some(size) = Console::size() {
                        sys::tty::set_size(master.as_fd(), size)?;
                    }
                }
                _ => match process::pidfd_send_signal(running, signal) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                    _ => {}
                },
            }
        }
        Ok(())
    }

    /// All that the terminal has to say now.
    fn output(&mut self) -> io::Result<()> {
        let mut bytes = [0; CHUNK_BYTES];
        while let Some(master) = &self.master {
            match sys::fd::read(master.as_fd(), &mut bytes) {
                Ok(0) => self.master = None,
                Ok(count) => io::Write::write_all(&mut RawOutput, &bytes[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // EIO: nobody has the other end open any more.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => self.master = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn input(&mut self) -> io::Result<()> {
        let mut bytes = [0; CHUNK_BYTES];
        match sys::fd::read(io::stdin().as_fd(), &mut bytes) {
            Ok(0) => self.input_open = false,
            Ok(count) => self.typed.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO)) => self.input_open = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while let (Some(master), false) = (&self.master, self.typed.is_empty()) {
            match sys::fd::write(master.as_fd(), &self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => self.master = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Standard output without a buffer: what a terminal says must show at once.
struct RawOutput;

impl io::Write for RawOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::fd::write(io::stdout().as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
