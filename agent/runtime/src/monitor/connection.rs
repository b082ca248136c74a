//! One agent's connection: its frames in, its bounded output, and what it is used for now.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::frame::{self, Decoder, FrameError};
use super::protocol::{Ended, Reply};

/// Output held for a reader that is slow. Beyond it nothing more is produced for this connection: an exec's pipes fill and
/// its process waits; an attached reader, who must not stop the container, is dropped.
pub(super) const OUT_BYTES_MAX: usize = 256 << 10;

/// What a connection is used for.
#[derive(Debug)]
pub(super) enum Mode {
    /// Requests, one after the other.
    Requests,
    /// A long poll for a state other than `seen`.
    Waiting { seen: u64, until: Instant },
    /// The stream of an exec'd process.
    Exec(u64),
    /// The stream of a container.
    Attach(u64),
    /// It asked for the end and is told when all is gone.
    Shutdown,
    /// Nothing more is read; it is closed when its output has gone out.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) token: u64,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    pub(super) mode: Mode,
    /// What epoll was last told to wait for.
    pub(super) interest: (bool, bool),
}

impl Connection {
    pub(super) fn new(stream: UnixStream, token: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream,
            token,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
            mode: Mode::Requests,
            interest: (true, false),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Output not yet taken by the other side.
    pub(super) fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether more output may be produced.
    pub(super) fn has_room(&self) -> bool {
        self.pending() < OUT_BYTES_MAX
    }

    /// Reads once; false when the other side has left.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.stream.read(buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.decoder.push(&buffer[..count]);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next whole frame.
    pub(super) fn frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        self.decoder.next()
    }

    pub(super) fn reply(&mut self, reply: &Reply) -> Result<(), FrameError> {
        frame::encode_json(reply, &mut self.out)
    }

    pub(super) fn chunk(&mut self, kind: u8, bytes: &[u8]) -> Result<(), FrameError> {
        frame::encode_chunk(kind, bytes, &mut self.out)
    }

    /// The last frame of a stream; what is still to be sent is, then the connection is closed.
    pub(super) fn end(&mut self, ended: Ended) -> Result<(), FrameError> {
        self.mode = Mode::Closing;
        frame::Stream::Exit(ended).encode(&mut self.out)
    }

    /// Sends as much as the other side takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.out.len() {
            self.out = Vec::new();
            self.sent = 0;
        } else if self.sent >= OUT_BYTES_MAX / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Sends the rest, waiting for a slow reader for so long.
    pub(super) fn flush_within(&mut self, time: std::time::Duration) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(time))?;
        self.stream.write_all(&self.out[self.sent..])
    }
}
