//! What an agent and a pod's monitor say to each other on `monitor.sock`: frames of a 4-byte little-endian length and
//! that many bytes. The first frame of a connection is a JSON `Request`; the answer is a JSON `Reply`. After
//! `Request::Exec` and `Request::Attach` were answered with `Reply::Streaming`, the connection carries `Stream` frames
//! (one kind byte, then the payload) until the exit frame. All other requests may follow each other on one connection.
//!
//! The protocol is level-triggered: `State` answers with everything, at once or when it differs from `seen`, so that an
//! agent that was away misses nothing.

use serde::{Deserialize, Serialize};

use crate::spec::ContainerSpec;

/// Largest frame either side accepts; a larger one ends the connection.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Version of this protocol; a monitor outlives upgrades of its agent.
pub const VERSION: u32 = 1;

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// The pod's state: at once when its revision is not `seen`, else when it changes, at the latest after `wait_ms`.
    State {
        /// Revision that the asker has; none for "answer at once".
        seen: Option<u64>,
        /// How long to wait for a change, in milliseconds.
        wait_ms: u32,
    },
    /// Make and start a container. Idempotent by `spec.id`: one that exists already is answered with its state.
    Start {
        /// What to start.
        spec: Box<ContainerSpec>,
    },
    /// Send a signal to a container's first process; no error when it has ended.
    Signal {
        /// The container's id.
        id: String,
        /// Signal number.
        signal: i32,
    },
    /// SIGKILL for everything in the container's cgroup.
    Kill {
        /// The container's id.
        id: String,
    },
    /// Forget an ended container and remove its cgroup and mounts. Idempotent.
    Remove {
        /// The container's id.
        id: String,
    },
    /// Run a process in a running container; the connection becomes its stream.
    Exec {
        /// The container's id.
        id: String,
        /// Program and arguments.
        args: Vec<String>,
        /// Connect standard input.
        stdin: bool,
        /// Give it a terminal.
        tty: bool,
        /// Kill it after this time, in milliseconds (probes); none for no limit.
        timeout_ms: Option<u64>,
    },
    /// Follow a running container's output from now on; its input too when it was started with `stdin`.
    Attach {
        /// The container's id.
        id: String,
    },
    /// Containers of a pod with a fence may run until this time; an earlier one than before changes nothing. What was told to end
    /// because the time before was over ends all the same.
    Renew {
        /// Milliseconds since the machine started (CLOCK_BOOTTIME).
        until_ms: u64,
    },
    /// End the monitor: kill what still runs, remove every container, the sandbox and its cgroup, answer, exit.
    Shutdown,
}

/// What a monitor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// Done.
    Done,
    /// To `State` and `Start`.
    State(PodState),
    /// To `Exec` and `Attach`: stream frames follow.
    Streaming,
    /// It could not be done; nothing of it is left.
    Failed {
        /// A word in CamelCase for conditions and events, as `StartError`, `NoSuchContainer`.
        reason: String,
        /// The chain of causes in one line.
        message: String,
    },
}

/// A pod as its monitor sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Version of the protocol.
    pub version: u32,
    /// Rises with every change below.
    pub revision: u64,
    /// The monitor's own process id.
    pub pid: i32,
    /// Descriptor numbers of the sandbox's namespaces in the monitor: `/proc/PID/fd/N` opens them.
    pub namespaces: SandboxFds,
    /// Every container started and not yet removed, in order of starting.
    pub containers: Vec<ContainerState>,
}

/// Where a monitor holds its pod's namespaces; none where the pod uses the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxFds {
    /// User namespace.
    pub user: Option<i32>,
    /// Network namespace.
    pub net: Option<i32>,
    /// IPC namespace.
    pub ipc: Option<i32>,
    /// UTS namespace.
    pub uts: Option<i32>,
    /// PID namespace, when the pod shares one.
    pub pid: Option<i32>,
}

/// A container as its monitor sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Host process id of its first process; 0 once it has ended.
    pub pid: i32,
    /// When it started, in milliseconds since 1970.
    pub started_ms: i64,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code; 128 plus the signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When, in milliseconds since 1970.
    pub finished_ms: i64,
    /// The kernel killed a process of the container for want of memory.
    pub oom: Option<OomKill>,
    /// Most memory its cgroup ever used, in bytes.
    pub memory_peak: Option<u64>,
    /// Last line written to standard error (else to standard output), cut to 512 bytes.
    pub last_line: String,
    /// The last 4 KiB of standard error.
    pub stderr_tail: String,
    /// Its pod has a fence, and nobody said in time that it may run on.
    #[serde(default)]
    pub fenced: bool,
}

/// What is known of an out-of-memory kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OomKill {
    /// How many processes were killed.
    pub kills: u64,
    /// Name of the process last killed, where the kernel tells.
    pub victim: Option<String>,
    /// The limit that was met, in bytes.
    pub limit: Option<u64>,
}

/// Kinds of stream frames; the payload follows the kind byte.
pub mod stream {
    /// Client to monitor: input. An empty payload closes it.
    pub const STDIN: u8 = 0;
    /// Monitor to client: output, also a terminal's.
    pub const STDOUT: u8 = 1;
    /// Monitor to client: error output.
    pub const STDERR: u8 = 2;
    /// Client to monitor: terminal size, columns then rows, each u16 little-endian.
    pub const RESIZE: u8 = 3;
    /// Monitor to client, last: a JSON `super::Ended`.
    pub const EXIT: u8 = 4;
}

/// Payload of the exit frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Exit code, 128 plus the signal when a signal ended it.
    pub code: i32,
    /// Why it could not run or was ended (`timeout`), if so.
    pub error: Option<String>,
}
