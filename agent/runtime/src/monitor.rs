//! The pod monitor: one small single-threaded process that is the parent of its pod's containers.
//!
//! It holds the pod's namespaces and its containers' standard streams, writes their logs, collects their ends, and
//! answers on `monitor.sock` in its directory (`protocol`). Agents come and go; it stays. It restarts nothing on its own.
//! Where to start: `run`, then `server` (the loop) and `request` (what each request does).

pub mod cleanup;
pub mod client;
mod connection;
mod container;
mod exec;
mod fence;
pub mod frame;
pub mod log;
mod oom;
pub mod protocol;
mod request;
mod server;
pub mod tail;
mod watch;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use sys::fd::SignalFd;

pub use cleanup::{CleanupError, cleanup};
pub use container::{NEEDS_COPY, SECCOMP_CACHE};
pub use fence::FENCED;
pub use server::MonitorError;

use crate::cgroup::Layout;
use crate::sandbox::Sandbox;
use crate::spec::SandboxSpec;
use fence::Fence;
use server::{Server, step};

/// The allocator's setting (mallopt(3) has none for it) in the environment of a monitor that is to be small: without
/// caches of freed pieces, each of which keeps the page that it lies in.
pub const ALLOCATOR: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
/// What the pod is to be, in the monitor's directory.
pub const SPEC: &str = "sandbox.json";
/// Where the monitor answers, in its directory.
pub const SOCKET: &str = "monitor.sock";
/// The socket before it answers.
const SOCKET_NEW: &str = "monitor.sock.new";
/// What a monitor writes to its standard output, once, when it answers.
pub const READY: &[u8] = b"ready\n";
/// The monitor's own words.
pub const LOG: &str = "monitor.log";
/// Largest `sandbox.json`: a pod's names, limits and sysctls are a few hundred bytes.
const SPEC_BYTES_MAX: u64 = 1 << 20;

/// The monitor's whole life: returns when the pod was ended and removed. The process must be single-threaded and fresh
/// (started by exec). Its standard output gets `READY` and is closed.
pub fn run(directory: &Path) -> Result<(), MonitorError> {
    let spec = read_spec(directory)?;
    if spec.users.is_none() {
        crate::binary::protect().map_err(step("run from a read-only mount"))?;
    }
    let told = sys::fd::dup_above(io::stdout().as_fd(), 3).map_err(step("keep standard output"))?;
    become_daemon(directory)?;
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT];
    sys::process::block_signals(&signals).map_err(step("block signals"))?;
    let signals = SignalFd::new(&signals).map_err(step("watch signals"))?;
    sys::process::set_child_subreaper().map_err(step("become the parent of orphans"))?;
    let layout = Layout::detect()?;
    let fence = spec.fence.map(Fence::new).transpose();
    let fence = fence.map_err(step("make timers"))?;
    let sandbox = Sandbox::create(&spec, &layout)?;
    drop(spec);
    match Server::new(directory, sandbox, signals, fence) {
        Ok(server) => {
            // Who started us may have ended meanwhile; its successor finds the socket.
            drop(sys::fd::write(told.as_fd(), READY));
            drop(told);
            server.run()
        }
        Err((sandbox, error)) => {
            sandbox.destroy()?;
            Err(step("open the monitor's socket")(error))
        }
    }
}

fn read_spec(directory: &Path) -> Result<SandboxSpec, MonitorError> {
    let path = directory.join(SPEC);
    let fail = |source| MonitorError::File {
        action: "read",
        path: path.clone(),
        source,
    };
    let file = File::open(&path).map_err(fail)?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, SPEC_BYTES_MAX), &mut text).map_err(fail)?;
    serde_json::from_str(&text).map_err(|source| MonitorError::Spec { path, source })
}

/// Leaves the agent's session and streams, so that nothing that ends the agent ends us.
fn become_daemon(directory: &Path) -> Result<(), MonitorError> {
    match sys::process::setsid() {
        // EPERM: we lead a group already, as one does whom the agent has started that way.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        result => result.map_err(step("begin a session"))?,
    }
    let path = directory.join(LOG);
    let fail = |source| MonitorError::File {
        action: "open",
        path: path.clone(),
        source,
    };
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    let null = File::open("/dev/null").map_err(|source| MonitorError::File {
        action: "open",
        path: PathBuf::from("/dev/null"),
        source,
    })?;
    let streams = [(null.as_fd(), 0), (log.as_fd(), 1), (log.as_fd(), 2)];
    for (fd, number) in streams {
        sys::fd::dup_onto(fd, number).map_err(step("redirect the standard streams"))?;
    }
    // A directory that is unmounted or removed some day is not to be kept by us.
    std::env::set_current_dir("/").map_err(step("leave the working directory"))
}

/// A directory's path short enough for a socket's name in it (108 bytes, unix(7)).
pub(crate) struct ShortPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl ShortPath {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Longest directory named as it is: 107 bytes less the socket's name.
const DIRECTORY_BYTES_MAX: usize = 80;

pub(crate) fn short_path(directory: &Path) -> io::Result<ShortPath> {
    if directory.as_os_str().len() <= DIRECTORY_BYTES_MAX {
        return Ok(ShortPath {
            path: directory.to_owned(),
            _directory: None,
        });
    }
    let file = File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", raw(file.as_fd())));
    Ok(ShortPath {
        path,
        _directory: Some(file),
    })
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    fd.as_raw_fd()
}

/// An error and its causes in one line.
pub fn chain<E: std::error::Error + ?Sized>(error: &E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Libraries' errors may end with their own cause.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
