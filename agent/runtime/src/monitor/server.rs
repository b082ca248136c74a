//! The monitor's loop: one thread, one epoll set, no waiting anywhere else but in starting and removing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::stat::{Mode as FileMode, umask};
use sys::fd::{Event, SignalFd};

use super::connection::{Connection, Mode};
use super::container::Owned;
use super::exec::Exec;
use super::fence::Fence;
use super::frame::CHUNK_BYTES_MAX;
use super::protocol::{PodState, Reply, SandboxFds, VERSION};
use super::watch::{Member, Watch};
use super::{SOCKET, SOCKET_NEW};
use crate::sandbox::{Sandbox, SandboxError};

/// Connections at once: an agent, its probes and some people's terminals. Further ones wait in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Containers held at once, ended ones included: a pod's and their restarts not yet removed.
pub(super) const CONTAINERS_MAX: usize = 128;
/// How long killed containers may take to be gone at the end.
const END_WAIT: Duration = Duration::from_secs(10);
/// How long the asker for the end may take to read the answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Why a monitor could not be, or ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// `sandbox.json` or another file of its directory.
    #[error("failed to {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `sandbox.json` is no sandbox.
    #[error("{} is malformed", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A step of setting up the process or of its loop.
    #[error("failed to {action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The machine's cgroups.
    #[error("failed to find the machine's cgroups")]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The pod's shared parts.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Not all could be removed at the end.
    #[error("failed to remove all of the pod: {what}")]
    Left {
        /// What failed, joined.
        what: String,
    },
}

pub(super) fn step(action: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Step { action, source }
}

/// The end has been asked for.
#[derive(Debug)]
struct Ending {
    until: Instant,
}

/// The monitor.
#[derive(Debug)]
pub(super) struct Server {
    directory: PathBuf,
    pub(super) sandbox: Sandbox,
    pub(super) watch: Watch,
    listener: UnixListener,
    listener_token: Option<u64>,
    signals: SignalFd,
    /// In order of starting.
    pub(super) containers: Vec<Owned>,
    pub(super) execs: Vec<Exec>,
    pub(super) connections: BTreeMap<u64, Connection>,
    /// Of a pod that must not run twice.
    pub(super) fence: Option<Fence>,
    revision: u64,
    ending: Option<Ending>,
}

/// Binds under another name and renames, so that a socket that is there answers. Only root may connect.
fn bind(directory: &Path) -> io::Result<UnixListener> {
    let short = super::short_path(directory)?;
    let new = short.path().join(SOCKET_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = umask(FileMode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&new);
    umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    fs::rename(&new, short.path().join(SOCKET))?;
    Ok(listener)
}

impl Server {
    /// Signals must be blocked: their descriptor is made here.
    pub(super) fn new(
        directory: &Path,
        sandbox: Sandbox,
        signals: SignalFd,
        fence: Option<Fence>,
    ) -> Result<Server, (Sandbox, io::Error)> {
        let parts = (|| {
            let mut watch = Watch::new()?;
            watch.add(signals.as_fd(), Member::Signals)?;
            if let Some(fence) = &fence {
                watch.add(fence.fd(), Member::Fence)?;
            }
            let listener = bind(directory)?;
            let token = watch.add(listener.as_fd(), Member::Listener)?;
            Ok((watch, listener, token))
        })();
        match parts {
            Ok((watch, listener, token)) => Ok(Server {
                directory: directory.to_owned(),
                sandbox,
                watch,
                listener,
                listener_token: Some(token),
                signals,
                containers: Vec::new(),
                execs: Vec::new(),
                connections: BTreeMap::new(),
                fence,
                revision: 1,
                ending: None,
            }),
            Err(error) => Err((sandbox, error)),
        }
    }

    /// Serves until the end is asked for and done.
    pub(super) fn run(mut self) -> Result<(), MonitorError> {
        loop {
            let now = Instant::now();
            self.tick(now);
            if let Some(ending) = &self.ending
                && (self.containers.iter().all(|container| container.exit().is_some()) || now >= ending.until)
            {
                return self.end();
            }
            let events = self.watch.wait(self.timeout()).map_err(step("wait for events"))?;
            for event in events {
                self.handle(event);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let waits = self
            .connections
            .values()
            .filter_map(|connection| match connection.mode {
                Mode::Waiting { until, .. } => Some(until),
                _ => None,
            });
        let next = self
            .containers
            .iter()
            .filter_map(Owned::deadline)
            .chain(self.execs.iter().filter_map(Exec::due))
            .chain(waits)
            .chain(self.ending.as_ref().map(|ending| ending.until))
            .min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, event: Event) {
        // Gone since the wait: another event of the same batch ended it.
        let Some(member) = self.watch.member(event.token) else {
            return;
        };
        match member {
            Member::Listener => self.accept(),
            Member::Signals => self.take_signals(),
            Member::Fence => {} // the next tick looks
            Member::Connection(key) => self.on_connection(key, event),
            Member::Output(key, output) => {
                self.container_output(key, output);
            }
            Member::Input(key) => self.container_input(key),
            Member::ExecOutput(key, output) => self.exec_output(key, output),
            Member::ExecInput(key) => self.exec_input(key),
        }
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(stream, _)| {
            let key = self.watch.key();
            let token = self.watch.add(stream.as_fd(), Member::Connection(key))?;
            Ok((key, Connection::new(stream, token)?))
        });
        match accepted {
            Ok((key, connection)) => {
                self.connections.insert(key, connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => eprintln!("failed to accept a connection: {error}"),
        }
        if self.connections.len() >= CONNECTIONS_MAX
            && let Some(token) = self.listener_token.take()
        {
            self.watch.remove(self.listener.as_fd(), token);
        }
    }

    fn on_connection(&mut self, key: u64, event: Event) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if event.readable && connection.interest.0 {
            match connection.read(&mut [0; CHUNK_BYTES_MAX]) {
                Ok(true) => {}
                Ok(false) => return self.close(key),
                Err(error) => {
                    eprintln!("failed to read from a connection: {error}");
                    return self.close(key);
                }
            }
        } else if event.closed {
            return self.close(key);
        }
        self.drive(key);
    }

    /// Ends a connection; what it was used for hears of it.
    pub(super) fn close(&mut self, key: u64) {
        let Some(connection) = self.connections.remove(&key) else {
            return;
        };
        self.watch.remove(connection.fd(), connection.token);
        match connection.mode {
            Mode::Exec(exec) => {
                if let Some(exec) = self.execs.iter_mut().find(|one| one.key == exec) {
                    exec.hang_up(&mut self.watch);
                }
            }
            Mode::Attach(container) => {
                if let Some(container) = self.containers.iter_mut().find(|one| one.key == container) {
                    container.followers.retain(|follower| *follower != key);
                }
            }
            _ => {}
        }
        if self.listener_token.is_none() && self.connections.len() < CONNECTIONS_MAX {
            match self.watch.add(self.listener.as_fd(), Member::Listener) {
                Ok(token) => self.listener_token = Some(token),
                Err(error) => eprintln!("failed to go on accepting connections: {error}"),
            }
        }
    }

    fn take_signals(&mut self) {
        loop {
            match self.signals.next() {
                Ok(Some(libc::SIGCHLD)) => self.reap(),
                // Asked from outside (the machine goes down, a person): as by `Shutdown`.
                Ok(Some(_)) => self.begin_end(),
                Ok(None) => return,
                Err(error) => return eprintln!("failed to read signals: {error}"),
            }
        }
    }

    /// Takes every child that has ended: our containers, execs, and orphans from the pod.
    fn reap(&mut self) {
        let now = Instant::now();
        loop {
            match sys::process::reap_any() {
                Ok(Some((pid, ended))) => {
                    if let Some(container) = self
                        .containers
                        .iter_mut()
                        .find(|one| one.is_running() && one.running.pid == pid)
                    {
                        container.ended(ended, now);
                        self.revision += 1;
                    } else if let Some(exec) = self
                        .execs
                        .iter_mut()
                        .find(|one| one.ended.is_none() && one.running.pid == pid)
                    {
                        exec.ended(ended, now);
                    }
                }
                Ok(None) => return,
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return,
                Err(error) => return eprintln!("failed to reap: {error}"),
            }
        }
    }

    /// What is due by time, or follows from what has just happened.
    fn tick(&mut self, now: Instant) {
        self.tick_fence();
        let mut finished = Vec::new();
        for container in &mut self.containers {
            if container.finish(now, &mut self.watch) {
                self.revision += 1;
                finished.push((
                    container.exit().map_or(0, |exit| exit.code),
                    std::mem::take(&mut container.followers),
                ));
            }
        }
        for (code, followers) in finished {
            for follower in followers {
                self.end_stream(follower, super::protocol::Ended { code, error: None });
            }
        }
        self.tick_execs(now);
        self.wake(now);
    }

    /// Answers the long polls that have something to hear.
    fn wake(&mut self, now: Instant) {
        let revision = self.revision;
        let due: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                matches!(connection.mode, Mode::Waiting { seen, until } if seen != revision || now >= until)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let reply = Reply::State(self.state());
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.mode = Mode::Requests;
            }
            self.answer(key, &reply);
            self.drive(key);
        }
    }

    pub(super) fn changed(&mut self) {
        self.revision += 1;
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn state(&self) -> PodState {
        let number = |fd: Option<BorrowedFd<'_>>| fd.map(|fd| fd.as_raw_fd());
        PodState {
            version: VERSION,
            revision: self.revision,
            pid: sys::process::getpid(),
            namespaces: SandboxFds {
                user: number(self.sandbox.user()),
                net: number(self.sandbox.net()),
                ipc: number(self.sandbox.ipc()),
                uts: number(self.sandbox.uts()),
                pid: number(self.sandbox.pid()),
            },
            containers: self.containers.iter().map(Owned::state).collect(),
        }
    }

    /// Kills all and waits, in the loop, for its end.
    pub(super) fn begin_end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending {
            until: Instant::now() + END_WAIT,
        });
        if let Err(error) = self.sandbox.cgroup().kill() {
            eprintln!("failed to kill the pod: {error}");
        }
    }

    /// Removes all in the reverse order of its making, goes on after a failure, answers, and tells what failed.
    fn end(mut self) -> Result<(), MonitorError> {
        let mut failed = Vec::new();
        for container in self.containers.iter().rev() {
            if let Err(error) = container.remove() {
                failed.push(super::chain(&error));
            }
        }
        if let Err(error) = self.sandbox.destroy() {
            failed.push(super::chain(&error));
        }
        let socket = self.directory.join(SOCKET);
        if let Err(error) = fs::remove_file(&socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            failed.push(format!("failed to remove {}: {error}", socket.display()));
        }
        let what = failed.join("; ");
        let reply = match failed.is_empty() {
            true => Reply::Done,
            false => Reply::Failed {
                reason: "ShutdownError".to_owned(),
                message: what.clone(),
            },
        };
        for connection in self.connections.values_mut() {
            if matches!(connection.mode, Mode::Shutdown) {
                let told = connection.reply(&reply).map_err(io::Error::other);
                if let Err(error) = told.and_then(|()| connection.flush_within(ANSWER_WAIT)) {
                    eprintln!("failed to answer that the pod is gone: {error}");
                }
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(MonitorError::Left { what })
        }
    }
}
