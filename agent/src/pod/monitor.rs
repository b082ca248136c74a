//! A pod's monitor as the agent sees it: starting one, and asking it, without blocking.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use runtime::monitor::frame::{self, Decoder, FrameError, HEADER_BYTES, Stream};
use runtime::monitor::protocol::{PodState, Reply, Request};
use runtime::monitor::{ALLOCATOR, LOG, READY, SECCOMP_CACHE, SOCKET, SPEC};
use runtime::spec::{ContainerSpec, SandboxSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStdout, Command};

/// How long a monitor may take to answer a request that does not wait: it starts and removes containers meanwhile, and
/// removal waits for processes up to ten seconds each.
const ANSWER_WAIT: Duration = Duration::from_secs(120);
/// How long a fresh monitor may take until it answers: namespaces and groups on a loaded machine.
const START_WAIT: Duration = Duration::from_secs(30);
/// How much of a monitor's own log explains why it did not start.
const WORDS_BYTES_MAX: u64 = 1024;
/// Longest directory that a socket's name fits behind (unix(7): 108 bytes).
const DIRECTORY_BYTES_MAX: usize = 80;
/// One read of a stream: a frame of output and a bit.
const READ_BYTES: usize = 20 << 10;

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The connection; when it cannot be made, there is no monitor.
    #[error("failed to talk to the pod's monitor")]
    Io(#[from] io::Error),
    /// The answer was no message.
    #[error("the answer of the pod's monitor is malformed")]
    Frame(#[from] FrameError),
    /// It could not be done.
    #[error("{message}")]
    Failed {
        /// A word in CamelCase.
        reason: String,
        /// The causes.
        message: String,
    },
    /// An answer to another question.
    #[error("the pod's monitor answered something else")]
    Unexpected,
    /// No answer in time.
    #[error("the pod's monitor does not answer")]
    Silent,
    /// A new monitor ended instead of answering.
    #[error("the pod's monitor did not start: {words}")]
    NotStarted {
        /// Its last words.
        words: String,
    },
    /// Its directory.
    #[error("failed to {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The specification could not be written down.
    #[error("failed to write the pod's specification")]
    Json(#[source] serde_json::Error),
}

impl MonitorError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Whether it says that nobody listens: the monitor has ended.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
            ),
            _ => false,
        }
    }
}

/// A connection to a monitor: one request at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the monitor of this directory.
    pub async fn connect(directory: &Path) -> io::Result<Self> {
        let stream = if directory.as_os_str().len() <= DIRECTORY_BYTES_MAX {
            UnixStream::connect(directory.join(SOCKET)).await?
        } else {
            use std::os::fd::AsRawFd;
            let file = File::open(directory)?;
            let short = format!("/proc/self/fd/{}/{SOCKET}", file.as_raw_fd());
            UnixStream::connect(short).await?
        };
        Ok(Client { stream })
    }

    async fn ask_within(&mut self, request: &Request, wait: Duration) -> Result<Reply, MonitorError> {
        let exchange = async {
            let mut bytes = Vec::new();
            frame::encode_json(request, &mut bytes)?;
            self.stream.write_all(&bytes).await?;
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header).await?;
            let mut payload = vec![0; frame::decode_header(header)?];
            self.stream.read_exact(&mut payload).await?;
            Ok(frame::decode_json(&payload)?)
        };
        match tokio::time::timeout(wait, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(MonitorError::Silent),
        }
    }

    /// Sends a request and waits for the answer.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, MonitorError> {
        self.ask_within(request, ANSWER_WAIT).await
    }

    async fn done(&mut self, request: &Request) -> Result<(), MonitorError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            reply => Err(refused(reply)),
        }
    }

    /// The pod's state, when it differs from `seen` or after `wait`.
    pub async fn state(&mut self, seen: Option<u64>, wait: Duration) -> Result<PodState, MonitorError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = Request::State { seen, wait_ms };
        match self
            .ask_within(&request, wait.saturating_add(ANSWER_WAIT))
            .await?
        {
            Reply::State(state) => Ok(state),
            reply => Err(refused(reply)),
        }
    }

    /// Starts a container.
    pub async fn start(&mut self, spec: ContainerSpec) -> Result<PodState, MonitorError> {
        match self.ask(&Request::Start { spec: Box::new(spec) }).await? {
            Reply::State(state) => Ok(state),
            reply => Err(refused(reply)),
        }
    }

    /// Signals a container's first process.
    pub async fn signal(&mut self, id: &str, signal: i32) -> Result<(), MonitorError> {
        let id = id.to_owned();
        self.done(&Request::Signal { id, signal }).await
    }

    /// Kills a container.
    pub async fn kill(&mut self, id: &str) -> Result<(), MonitorError> {
        self.done(&Request::Kill { id: id.to_owned() }).await
    }

    /// Removes an ended container.
    pub async fn remove(&mut self, id: &str) -> Result<(), MonitorError> {
        self.done(&Request::Remove { id: id.to_owned() }).await
    }

    /// Containers of a pod with a fence may run until then, in milliseconds since the machine started.
    pub async fn renew(&mut self, until_ms: u64) -> Result<(), MonitorError> {
        self.done(&Request::Renew { until_ms }).await
    }

    /// Ends the monitor and all that it has.
    pub async fn shutdown(&mut self) -> Result<(), MonitorError> {
        self.done(&Request::Shutdown).await
    }

    /// Makes this connection the stream of an exec'd process or of a container (`Request::Exec`, `Request::Attach`).
    pub async fn stream(mut self, request: &Request) -> Result<Session, MonitorError> {
        match self.ask(request).await? {
            Reply::Streaming => {
                let (read, write) = self.stream.into_split();
                Ok(Session {
                    receiver: SessionReceiver {
                        read,
                        decoder: Decoder::default(),
                    },
                    sender: SessionSender { write },
                })
            }
            reply => Err(refused(reply)),
        }
    }
}

fn refused(reply: Reply) -> MonitorError {
    match reply {
        Reply::Failed { reason, message } => MonitorError::Failed { reason, message },
        _ => MonitorError::Unexpected,
    }
}

/// The stream of a process.
#[derive(Debug)]
pub struct Session {
    sender: SessionSender,
    receiver: SessionReceiver,
}

impl Session {
    /// Sends input, a new size, or (empty input) the end of input.
    pub async fn send(&mut self, frame: &Stream) -> Result<(), MonitorError> {
        self.sender.send(frame).await
    }

    /// The next frame; `Stream::Exit` is the last. May be dropped while it waits: nothing is lost.
    pub async fn receive(&mut self) -> Result<Stream, MonitorError> {
        self.receiver.receive().await
    }

    /// Both directions for themselves.
    pub fn split(self) -> (SessionSender, SessionReceiver) {
        (self.sender, self.receiver)
    }
}

/// Input of a process.
#[derive(Debug)]
pub struct SessionSender {
    write: OwnedWriteHalf,
}

impl SessionSender {
    /// Sends input, a new size, or (empty input) the end of input.
    pub async fn send(&mut self, frame: &Stream) -> Result<(), MonitorError> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes)?;
        Ok(self.write.write_all(&bytes).await?)
    }
}

/// Output of a process.
#[derive(Debug)]
pub struct SessionReceiver {
    read: OwnedReadHalf,
    decoder: Decoder,
}

impl SessionReceiver {
    /// The next frame; `Stream::Exit` is the last. May be dropped while it waits: nothing is lost.
    pub async fn receive(&mut self) -> Result<Stream, MonitorError> {
        loop {
            if let Some(payload) = self.decoder.next()? {
                return Ok(Stream::decode(&payload)?);
            }
            let mut bytes = Vec::with_capacity(READ_BYTES);
            if self.read.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.decoder.push(&bytes);
        }
    }
}

/// A monitor on its way.
#[derive(Debug)]
pub(super) struct Starting {
    directory: PathBuf,
    child: Child,
    /// Says when it answers, and ends with it. (A look-out for its socket by inotify would do, but to close one takes the
    /// kernel 10 to 20 ms.)
    told: ChildStdout,
}

/// Starts a monitor. It goes on when the agent ends. `cache` is where it keeps compiled seccomp filters.
pub(super) fn start(
    program: &Path,
    directory: &Path,
    cache: &Path,
    spec: &SandboxSpec,
) -> Result<Starting, MonitorError> {
    let path = directory.join(SPEC);
    let text = serde_json::to_vec(spec).map_err(MonitorError::Json)?;
    fs::write(&path, text).map_err(MonitorError::file("write", &path))?;
    let log = directory.join(LOG);
    let words = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(MonitorError::file("open", &log))?;
    let failed = MonitorError::file("start", program);
    let mut child = Command::new(program)
        .arg("monitor")
        .arg("--dir")
        .arg(directory)
        .env_clear()
        .env(SECCOMP_CACHE, cache)
        .envs([ALLOCATOR])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(words)
        .spawn();
    let told = child.as_mut().ok().and_then(|child| child.stdout.take());
    match (child, told) {
        (Ok(child), Some(told)) => Ok(Starting {
            directory: directory.to_owned(),
            child,
            told,
        }),
        (Err(error), _) => Err(failed(error)),
        (Ok(_), None) => Err(failed(io::ErrorKind::BrokenPipe.into())),
    }
}

impl Starting {
    /// Returns once it answers. A monitor that did not start has removed what it made.
    pub(super) async fn ready(mut self) -> Result<(), MonitorError> {
        let wait = async {
            let mut word = [0; READY.len()];
            match self.told.read_exact(&mut word).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error.into()),
            }
            self.child.wait().await?;
            let words = last_words(&self.directory.join(LOG));
            Err(MonitorError::NotStarted { words })
        };
        match tokio::time::timeout(START_WAIT, wait).await {
            Ok(result) => result,
            Err(_) => Err(MonitorError::Silent),
        }
        // The child is dropped here and not killed; tokio reaps it when it ends.
    }
}

/// The last line of a monitor's log, without its name for itself.
fn last_words(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let line = text.lines().rev().find(|line| !line.trim().is_empty());
            let line = line.unwrap_or("it ended without a word");
            line.trim_start_matches("bulkhead-runtime monitor: ").to_owned()
        }
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

/// Processes that run as the monitor of a directory but do not answer yet, left by an agent that was killed while it
/// started one.
pub(super) fn processes(directory: &Path) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone since it was listed, or a kernel thread: not ours.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let wanted = [OsStr::new("monitor"), OsStr::new("--dir"), directory.as_os_str()];
        if let Some(rest) = words.get(1..4)
            && rest
                .iter()
                .zip(wanted)
                .all(|(word, wanted)| *word == wanted.as_encoded_bytes())
        {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_fails_explains_itself() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("monitor.log");
        fs::write(
            &log,
            "old\nbulkhead-runtime monitor: failed to set up: no space\n\n",
        )
        .unwrap();
        assert_eq!(last_words(&log), "failed to set up: no space");
        fs::write(&log, "").unwrap();
        assert_eq!(last_words(&log), "it ended without a word");
    }

    #[tokio::test]
    async fn a_monitor_that_ends_at_once_is_told_of() {
        let temp = tempfile::tempdir().unwrap();
        let spec = SandboxSpec {
            id: "x".into(),
            hostname: None,
            users: None,
            network: runtime::spec::Share::Host,
            ipc: runtime::spec::Share::Host,
            pid: runtime::spec::PidShare::Host,
            cgroup: runtime::spec::CgroupSpec {
                path: "/x".into(),
                resources: Default::default(),
            },
            sysctls: Default::default(),
            fence: None,
        };
        let starting = start(Path::new("/bin/false"), temp.path(), temp.path(), &spec).unwrap();
        let error = starting.ready().await.unwrap_err();
        assert!(matches!(error, MonitorError::NotStarted { .. }), "{error}");
        let error = Client::connect(temp.path()).await.unwrap_err();
        assert!(MonitorError::from(error).is_gone());
    }

    #[test]
    fn only_the_monitor_of_this_directory_is_found() {
        assert_eq!(
            processes(Path::new("/nonexistent/pod")).unwrap(),
            Vec::<i32>::new()
        );
    }
}
