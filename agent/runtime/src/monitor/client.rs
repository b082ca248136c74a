//! A blocking client of a monitor, for tests and tools. The agent has its own, asynchronous, over `frame`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::SOCKET;
use super::frame::{self, FrameError, HEADER_BYTES, Stream};
use super::protocol::{PodState, Reply, Request};
use crate::spec::ContainerSpec;

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection.
    #[error("failed to talk to the monitor")]
    Io(#[from] io::Error),
    /// The answer was no message.
    #[error("the monitor's answer is malformed")]
    Frame(#[from] FrameError),
    /// It could not be done.
    #[error("{reason}: {message}")]
    Failed {
        /// A word in CamelCase.
        reason: String,
        /// The causes.
        message: String,
    },
    /// An answer to another question.
    #[error("the monitor answered {reply:?}")]
    Unexpected {
        /// The answer.
        reply: Box<Reply>,
    },
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the monitor of this directory.
    pub fn connect(directory: &Path) -> io::Result<Self> {
        Ok(Client {
            stream: UnixStream::connect(super::short_path(directory)?.path().join(SOCKET))?,
        })
    }

    /// Sends a request and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut bytes = Vec::new();
        frame::encode_json(request, &mut bytes)?;
        self.stream.write_all(&bytes)?;
        Ok(frame::decode_json(&read_frame(&mut self.stream)?)?)
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            reply => Err(refused(reply)),
        }
    }

    fn state_of(&mut self, request: &Request) -> Result<PodState, ClientError> {
        match self.ask(request)? {
            Reply::State(state) => Ok(state),
            reply => Err(refused(reply)),
        }
    }

    /// The pod's state, when it differs from `seen` or after `wait`.
    pub fn state(&mut self, seen: Option<u64>, wait: Duration) -> Result<PodState, ClientError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.state_of(&Request::State { seen, wait_ms })
    }

    /// Starts a container.
    pub fn start(&mut self, spec: ContainerSpec) -> Result<PodState, ClientError> {
        self.state_of(&Request::Start { spec: Box::new(spec) })
    }

    /// Signals a container's first process.
    pub fn signal(&mut self, id: &str, signal: i32) -> Result<(), ClientError> {
        self.done(&Request::Signal {
            id: id.to_owned(),
            signal,
        })
    }

    /// Kills a container.
    pub fn kill(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(&Request::Kill { id: id.to_owned() })
    }

    /// Removes an ended container.
    pub fn remove(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(&Request::Remove { id: id.to_owned() })
    }

    /// Containers of a pod with a fence may run until then, in milliseconds since the machine started.
    pub fn renew(&mut self, until_ms: u64) -> Result<(), ClientError> {
        self.done(&Request::Renew { until_ms })
    }

    /// Ends the monitor and all that it has.
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Shutdown)
    }

    /// Makes this connection the stream of an exec'd process or of a container (`Request::Exec`, `Request::Attach`).
    pub fn stream(mut self, request: &Request) -> Result<Session, ClientError> {
        match self.ask(request)? {
            Reply::Streaming => Ok(Session { stream: self.stream }),
            reply => Err(refused(reply)),
        }
    }
}

fn refused(reply: Reply) -> ClientError {
    match reply {
        Reply::Failed { reason, message } => ClientError::Failed { reason, message },
        reply => ClientError::Unexpected {
            reply: Box::new(reply),
        },
    }
}

fn read_frame(stream: &mut UnixStream) -> Result<Vec<u8>, ClientError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; frame::decode_header(header)?];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}

/// The stream of a process.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
}

impl Session {
    /// Sends input, a new size, or (empty input) the end of input.
    pub fn send(&mut self, frame: &Stream) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    /// The next frame; `Stream::Exit` is the last.
    pub fn receive(&mut self) -> Result<Stream, ClientError> {
        Ok(Stream::decode(&read_frame(&mut self.stream)?)?)
    }

    /// Another handle of the same stream, to send from one thread while another receives.
    pub fn try_clone(&self) -> io::Result<Session> {
        Ok(Session {
            stream: self.stream.try_clone()?,
        })
    }
}
