//! A container that the monitor owns: its streams, its log, its end.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::libc;
use oci_spec::runtime::{LinuxSeccomp, Process};
use serde::{Deserialize, Serialize};
use sys::process::Ended;

use super::log::{LogError, LogWriter, Output};
use super::oom;
use super::protocol::{ContainerState, Exit, OomKill};
use super::tail::{self, Tail};
use super::watch::{Input, Member, Read, Source, Watch};
use crate::cgroup::{Cgroup, CgroupError};
use crate::container::{self, Options, Running, StartError, Stdio};
use crate::exec::{self, ExecTarget};
use crate::sandbox::Sandbox;
use crate::spec::{CgroupSpec, ContainerSpec};

/// How long after a process's end its pipes are read on when somebody else (a daemon of its own) keeps them open.
pub(super) const DRAIN: Duration = Duration::from_millis(250);
/// How long a container's last processes may take to go at removal.
const REMOVE_WAIT: Duration = Duration::from_secs(10);

/// Directory of compiled seccomp filters, in the monitor's environment; without it each start compiles its own.
pub const SECCOMP_CACHE: &str = "BULKHEAD_SECCOMP_CACHE";

/// Reason of a start that failed because an image's layers can't be idmapped here: with copies that the pod's ids own it
/// goes well.
pub const NEEDS_COPY: &str = "LayerNotIdmapped";

/// How containers of a pod are started: they die with their monitor, which alone has their streams and reaps them.
fn options() -> Options<'static> {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let cache = CACHE.get_or_init(|| std::env::var_os(SECCOMP_CACHE).map(PathBuf::from));
    Options {
        inside_user: false,
        seccomp_cache: cache.as_deref(),
        preserve_fds: 0,
        keep_keyring: false,
        bundle: None,
        in_order: false,
        bare_environment: false,
        personality: None,
        shared_mounts: false,
        die_with_parent: true,
        program: None,
        no_program: false,
        state: None,
    }
}

/// Why a container does not run; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("failed to {action}")]
    Streams { action: &'static str, source: io::Error },
    #[error("failed to make the container's cgroup")]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl OwnError {
    /// The word that Kubernetes has for it, if it has one.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            // The program: what the container was told to run, not how it was built.
            OwnError::Start(StartError::Program { .. } | StartError::Died { .. }) => "StartError",
            OwnError::Start(StartError::Step { .. }) => "RunContainerError",
            OwnError::Start(StartError::IdmapLayer { .. }) => NEEDS_COPY,
            _ => "CreateContainerError",
        }
    }
}

fn streams(action: &'static str) -> impl FnOnce(io::Error) -> OwnError {
    move |source| OwnError::Streams { action, source }
}

/// A container from its start to its removal.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) key: u64,
    pub(super) id: String,
    pub(super) running: Running,
    pub(super) cgroup: Cgroup,
    started_ms: i64,
    memory_limit: Option<u64>,
    /// `Program` as JSON: parsed, a seccomp profile of hundreds of names is many times as large, and it is read seldom.
    program: Vec<u8>,
    host_user: (u32, u32),
    terminal: bool,
    stdout: Option<Source>,
    stderr: Option<Source>,
    pub(super) input: Option<Input>,
    log: Option<LogWriter>,
    stdout_tail: Tail,
    stderr_tail: Tail,
    /// Keys of connections that follow its output.
    pub(super) followers: Vec<u64>,
    stop_signal: i32,
    /// It was ended because nobody said in time that it may run on.
    fenced: bool,
    phase: Phase,
}

/// What a further process in the container inherits from its configuration.
#[derive(Serialize, Deserialize)]
struct Program<'a> {
    process: Option<Cow<'a, Process>>,
    seccomp: Option<Cow<'a, LinuxSeccomp>>,
}

#[derive(Debug)]
enum Phase {
    Running,
    /// Its first process was reaped; its pipes are read until they end or `until`.
    Draining {
        ended: Ended,
        finished_ms: i64,
        until: Instant,
    },
    Exited(Exit),
}

/// The monitor's ends of a container's streams.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Owned {
    /// Starts it.
    pub(super) fn start(
        spec: ContainerSpec,
        sandbox: &Sandbox,
        watch: &mut Watch,
    ) -> Result<Owned, OwnError> {
        let log = spec.log.clone().map(LogWriter::open).transpose()?;
        let linux = spec.config.linux().as_ref();
        let cgroup = CgroupSpec {
            path: match linux.and_then(|linux| linux.cgroups_path().clone()) {
                Some(path) => path,
                None => sandbox.cgroup().path().join(&spec.id),
            },
            resources: linux
                .and_then(|linux| linux.resources().clone())
                .unwrap_or_default(),
        };
        let memory_limit = cgroup
            .resources
            .memory()
            .and_then(|memory| u64::try_from(memory.limit()?).ok());
        let cgroup = Cgroup::create(sandbox.cgroup().layout(), &cgroup)?;
        match Self::run(spec, sandbox, watch, cgroup.clone(), log, memory_limit) {
            Ok(owned) => Ok(owned),
            Err(error) => {
                if let Err(also) = cgroup.remove(REMOVE_WAIT) {
                    eprintln!("failed to remove the cgroup of a container that did not start: {also}");
                }
                Err(error)
            }
        }
    }

    fn run(
        spec: ContainerSpec,
        sandbox: &Sandbox,
        watch: &mut Watch,
        cgroup: Cgroup,
        log: Option<LogWriter>,
        memory_limit: Option<u64>,
    ) -> Result<Owned, OwnError> {
        let process = spec.config.process().as_ref();
        let seccomp = spec
            .config
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref());
        let program = Program {
            process: process.map(Cow::Borrowed),
            seccomp: seccomp.map(Cow::Borrowed),
        };
        let program =
            serde_json::to_vec(&program).map_err(|error| streams("keep the configuration")(error.into()))?;
        let terminal = process.is_some_and(|process| process.terminal().unwrap_or(false));
        let user = process.map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
        let host_user = host_ids(sandbox, user);
        let (running, ends) = if terminal {
            let (ours, theirs) = sys::socket::seqpacket_pair().map_err(streams("make a socket pair"))?;
            let stdio = Stdio::Terminal {
                socket: theirs,
                size: None,
                bare_newlines: false,
            };
            let running = container::start(&spec, Some(sandbox), &cgroup, stdio, &options())?;
            match receive_master(&ours)
                .and_then(|master| Ok((sys::fd::dup_above(master.as_fd(), 3)?, master)))
            {
                Ok((stdin, stdout)) => (
                    running,
                    Ends {
                        stdin: spec.stdin.then_some(stdin),
                        stdout,
                        stderr: None,
                    },
                ),
                Err(error) => {
                    end(&running);
                    return Err(streams("receive the terminal")(error));
                }
            }
        } else {
            let (stdio, ends) = pipes(host_user, spec.stdin).map_err(streams("make pipes"))?;
            (
                container::start(&spec, Some(sandbox), &cgroup, stdio, &options())?,
                ends,
            )
        };
        let key = watch.key();
        let mut owned = Owned {
            key,
            id: spec.id,
            running,
            cgroup,
            started_ms: Timestamp::now().as_millisecond(),
            memory_limit,
            program,
            host_user,
            terminal,
            stdout: None,
            stderr: None,
            input: None,
            log,
            stdout_tail: Tail::new(tail::STDOUT_BYTES_MAX),
            stderr_tail: Tail::new(tail::STDERR_BYTES_MAX),
            followers: Vec::new(),
            stop_signal: spec.stop_signal.unwrap_or(libc::SIGTERM),
            fenced: false,
            phase: Phase::Running,
        };
        match owned.connect(ends, watch) {
            Ok(()) => Ok(owned),
            Err(error) => {
                end(&owned.running);
                owned.close(watch);
                Err(streams("wait for the container's output")(error))
            }
        }
    }

    fn connect(&mut self, ends: Ends, watch: &mut Watch) -> io::Result<()> {
        self.stdout = Some(Source::new(
            ends.stdout,
            Member::Output(self.key, Output::Stdout),
            watch,
        )?);
        if let Some(stderr) = ends.stderr {
            self.stderr = Some(Source::new(
                stderr,
                Member::Output(self.key, Output::Stderr),
                watch,
            )?);
        }
        if let Some(stdin) = ends.stdin {
            self.input = Some(Input::new(stdin, Member::Input(self.key), self.terminal)?);
        }
        Ok(())
    }

    fn source(&mut self, output: Output) -> &mut Option<Source> {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }

    /// Reads once from a stream into the log and the tails; how many bytes of `buffer` are new, none when there was
    /// nothing now.
    pub(super) fn read(&mut self, output: Output, buffer: &mut [u8], watch: &mut Watch) -> Option<usize> {
        let read = self.source(output).as_ref()?.read(buffer);
        match read {
            Read::Nothing => None,
            Read::End => {
                if let Some(source) = self.source(output).take() {
                    source.close(watch);
                }
                if let Some(log) = &mut self.log {
                    log.flush(output, Timestamp::now());
                }
                None
            }
            Read::Bytes(count) => {
                let bytes = &buffer[..count];
                match output {
                    Output::Stdout => self.stdout_tail.push(bytes),
                    Output::Stderr => self.stderr_tail.push(bytes),
                }
                if let Some(log) = &mut self.log {
                    log.write(output, bytes, Timestamp::now());
                }
                Some(count)
            }
        }
    }

    /// Terminal's new size.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match (&self.stdout, self.terminal) {
            (Some(master), true) => sys::tty::set_size(master.fd(), container::Size { columns, rows }),
            _ => Ok(()),
        }
    }

    /// Takes input for the process.
    pub(super) fn feed(&mut self, bytes: &[u8], watch: &mut Watch) {
        if let Some(input) = &mut self.input {
            input.push(bytes);
            self.feed_on(watch);
        }
    }

    /// Goes on writing input.
    pub(super) fn feed_on(&mut self, watch: &mut Watch) {
        if let Some(input) = &mut self.input
            && !input.write(watch)
            && let Some(input) = self.input.take()
        {
            input.close(watch);
        }
    }

    /// Runs a further process in it.
    pub(super) fn exec(&self, args: Vec<String>, stdio: Stdio) -> Result<Running, StartError> {
        let invalid = |reason: String| StartError::Invalid {
            field: "process".to_owned(),
            reason,
        };
        let program: Program<'_> =
            serde_json::from_slice(&self.program).map_err(|error| invalid(error.to_string()))?;
        let Some(process) = program.process else {
            return Err(invalid("the container has none".to_owned()));
        };
        let mut process = process.into_owned();
        let terminal = matches!(stdio, Stdio::Terminal { .. });
        process.set_args(Some(args));
        process.set_terminal(Some(terminal));
        if terminal {
            let env = process.env_mut().get_or_insert_default();
            if !env.iter().any(|variable| variable.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
        }
        let target = ExecTarget::of(&self.running);
        exec::exec(
            target,
            &process,
            program.seccomp.as_deref(),
            &self.cgroup,
            stdio,
            &options(),
        )
    }

    /// The host's ids of its user.
    pub(super) fn host_user(&self) -> (u32, u32) {
        self.host_user
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    pub(super) fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// When `finish` is due, if it waits only for time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Its first process was reaped.
    pub(super) fn ended(&mut self, ended: Ended, now: Instant) {
        assert!(self.is_running(), "a process ends once");
        let finished_ms = Timestamp::now().as_millisecond();
        self.phase = Phase::Draining {
            ended,
            finished_ms,
            until: now + DRAIN,
        };
        // Without a PID namespace of its own, others of it may have survived.
        if let Err(error) = self.cgroup.kill() {
            eprintln!("failed to end the rest of container {}: {error}", self.id);
        }
    }

    /// Reports the end once all output is there; true when it is new.
    pub(super) fn finish(&mut self, now: Instant, watch: &mut Watch) -> bool {
        let Phase::Draining {
            ended,
            finished_ms,
            until,
        } = self.phase
        else {
            return false;
        };
        if (self.stdout.is_some() || self.stderr.is_some()) && now < until {
            return false;
        }
        self.close(watch);
        if let Some(log) = &mut self.log {
            log.flush(Output::Stdout, Timestamp::now());
            log.flush(Output::Stderr, Timestamp::now());
        }
        self.log = None;
        let signal = match ended {
            Ended::Signaled(signal) => Some(signal),
            Ended::Exited(_) => None,
        };
        let exit = Exit {
            code: ended.code(),
            signal,
            finished_ms,
            oom: told("read who ran out of memory", self.oom()).flatten(),
            memory_peak: told("read the most memory used", self.cgroup.memory_peak()).flatten(),
            last_line: self
                .stderr_tail
                .last_line()
                .or_else(|| self.stdout_tail.last_line())
                .unwrap_or_default(),
            stderr_tail: self.stderr_tail.text(),
            fenced: self.fenced,
        };
        self.stdout_tail = Tail::new(tail::STDOUT_BYTES_MAX);
        self.stderr_tail = Tail::new(tail::STDERR_BYTES_MAX);
        self.phase = Phase::Exited(exit);
        true
    }

    fn oom(&self) -> Result<Option<OomKill>, CgroupError> {
        let kills = self.cgroup.oom_kills()?;
        if kills == 0 {
            return Ok(None);
        }
        let victim = told("read the kernel's log", oom::victim(&self.cgroup.path())).flatten();
        Ok(Some(OomKill {
            kills,
            victim,
            limit: self.memory_limit,
        }))
    }

    /// Stops reading and writing its streams.
    fn close(&mut self, watch: &mut Watch) {
        for source in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            source.close(watch);
        }
        if let Some(input) = self.input.take() {
            input.close(watch);
        }
    }

    /// Removes what it leaves in the kernel.
    pub(super) fn remove(&self) -> Result<(), CgroupError> {
        self.cgroup.remove(REMOVE_WAIT)
    }

    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::process::pidfd_send_signal(self.running.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// It may run no longer.
    pub(super) fn fence(&mut self, kill: bool) {
        self.fenced = true;
        let ended = match kill {
            true => self.cgroup.kill().map_err(|error| super::chain(&error)),
            false => self.signal(self.stop_signal).map_err(|error| error.to_string()),
        };
        told("end a container that may run no longer", ended);
    }

    pub(super) fn state(&self) -> ContainerState {
        let exit = self.exit().cloned();
        ContainerState {
            id: self.id.clone(),
            pid: if self.is_running() { self.running.pid } else { 0 },
            started_ms: self.started_ms,
            exit,
        }
    }
}

/// A fact for the record that cannot be had is told in the log, not made up.
fn told<T, E: std::fmt::Display>(action: &str, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            eprintln!("failed to {action}: {error}");
            None
        }
    }
}

/// Kills and reaps a process that has just been started and cannot be kept.
pub(super) fn end(running: &Running) {
    let ended = sys::process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL)
        .and_then(|()| sys::process::wait(running.pidfd.as_fd()));
    told("end a process", ended);
}

/// The master of a terminal that a starting process made.
pub(super) fn receive_master(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0; 64];
    let (_, mut fds) = sys::socket::recv_fds(socket.as_fd(), &mut byte)?;
    match fds.len() {
        1 => Ok(fds.remove(0)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The host's ids of a container's user.
fn host_ids(sandbox: &Sandbox, (uid, gid): (u32, u32)) -> (u32, u32) {
    match sandbox.users() {
        // Beyond the range it maps to nobody: the start itself will say so.
        Some(range) => (range.start.saturating_add(uid), range.start.saturating_add(gid)),
        None => (uid, gid),
    }
}

/// Pipes for output and, if wanted, input. They belong to the container's user, so that it can open /dev/stdout.
fn pipes(owner: (u32, u32), stdin: bool) -> io::Result<(Stdio, Ends)> {
    let (stdout, their_stdout) = sys::fd::pipe()?;
    let (stderr, their_stderr) = sys::fd::pipe()?;
    let (their_stdin, stdin) = if stdin {
        let (theirs, ours) = sys::fd::pipe()?;
        std::os::unix::fs::fchown(&theirs, Some(owner.0), Some(owner.1))?;
        (theirs, Some(ours))
    } else {
        (fs::File::open("/dev/null")?.into(), None)
    };
    // Both ends of a pipe are one inode.
    std::os::unix::fs::fchown(&their_stdout, Some(owner.0), Some(owner.1))?;
    std::os::unix::fs::fchown(&their_stderr, Some(owner.0), Some(owner.1))?;
    Ok((
        Stdio::Fds([their_stdin, their_stdout, their_stderr]),
        Ends {
            stdin,
            stdout,
            stderr: Some(stderr),
        },
    ))
}

/// Pipes for an exec'd process: its streams; ours for input (if wanted), output, error output.
pub(super) fn exec_pipes(
    owner: (u32, u32),
    stdin: bool,
) -> io::Result<(Stdio, Option<OwnedFd>, OwnedFd, Option<OwnedFd>)> {
    let (stdio, ends) = pipes(owner, stdin)?;
    Ok((stdio, ends.stdin, ends.stdout, ends.stderr))
}
