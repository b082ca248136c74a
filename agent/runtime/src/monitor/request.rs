//! What each request does, and how bytes of a connection become requests and streams.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::connection::Mode;
use super::container::{self, Owned};
use super::exec::Exec;
use super::frame::{self, CHUNK_BYTES_MAX, FrameError, Stream};
use super::log::Output;
use super::protocol::{Ended, Reply, Request, stream};
use super::server::{CONTAINERS_MAX, Server};
use super::watch::{Input, Member, Source};
use crate::container::Stdio;
use crate::spec::ContainerSpec;

/// Longest time that a `State` waits: an agent asks again, and one that has gone is not kept for ever.
const STATE_WAIT_MAX: Duration = Duration::from_secs(300);
/// Exec'd processes at once.
const EXECS_MAX: usize = 64;

pub(super) fn failed(reason: &str, message: impl Into<String>) -> Reply {
    Reply::Failed {
        reason: reason.to_owned(),
        message: message.into(),
    }
}

impl Server {
    /// Carries a connection on: its frames as far as its use allows, its output as far as the other side takes it.
    pub(super) fn drive(&mut self, key: u64) {
        if let Err(error) = self.try_drive(key) {
            eprintln!("a connection ends: {error}");
            self.close(key);
        }
    }

    fn try_drive(&mut self, key: u64) -> Result<(), DriveError> {
        while self.wants_frames(key) {
            let Some(connection) = self.connections.get_mut(&key) else {
                return Ok(());
            };
            match connection.frame()? {
                Some(frame) => self.take(key, &frame)?,
                None => break,
            }
        }
        let readable = self.wants_frames(key);
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        connection.flush()?;
        let interest = (readable, connection.pending() > 0);
        if matches!(connection.mode, Mode::Closing) && !interest.1 {
            self.close(key);
            return Ok(());
        }
        if interest != connection.interest {
            self.watch
                .modify(connection.fd(), connection.token, interest.0, interest.1)?;
            connection.interest = interest;
        }
        if let (Mode::Exec(exec), true) = (&connection.mode, connection.has_room())
            && let Some(exec) = self.execs.iter_mut().find(|one| one.key == *exec)
        {
            exec.arm(true, &mut self.watch);
        }
        Ok(())
    }

    /// Whether the next frame of a connection can be taken now. What cannot is left in the socket.
    fn wants_frames(&self, key: u64) -> bool {
        let Some(connection) = self.connections.get(&key) else {
            return false;
        };
        let has_room = |input: Option<&Input>| input.is_none_or(Input::has_room);
        match connection.mode {
            Mode::Requests => connection.has_room(),
            Mode::Waiting { .. } | Mode::Shutdown | Mode::Closing => false,
            Mode::Exec(exec) => has_room(
                self.execs
                    .iter()
                    .find(|one| one.key == exec)
                    .and_then(|exec| exec.input.as_ref()),
            ),
            Mode::Attach(container) => {
                let container = self.containers.iter().find(|one| one.key == container);
                has_room(container.and_then(|container| container.input.as_ref()))
            }
        }
    }

    fn take(&mut self, key: u64, frame: &[u8]) -> Result<(), DriveError> {
        let Some(connection) = self.connections.get(&key) else {
            return Ok(());
        };
        match connection.mode {
            Mode::Requests => {
                let request = frame::decode_json(frame)?;
                if let Some(reply) = self.request(key, request)
                    && let Some(connection) = self.connections.get_mut(&key)
                {
                    connection.reply(&reply)?;
                }
            }
            Mode::Exec(exec) => {
                let Some(exec) = self.execs.iter_mut().find(|one| one.key == exec) else {
                    return Ok(());
                };
                match Stream::decode(frame)? {
                    Stream::Stdin(bytes) => exec.feed(&bytes, &mut self.watch),
                    Stream::Resize { columns, rows } => exec.resize(columns, rows)?,
                    _ => return Err(DriveError::Direction),
                }
            }
            Mode::Attach(container) => {
                let Some(container) = self.containers.iter_mut().find(|one| one.key == container) else {
                    return Ok(());
                };
                match Stream::decode(frame)? {
                    Stream::Stdin(bytes) => container.feed(&bytes, &mut self.watch),
                    Stream::Resize { columns, rows } => container.resize(columns, rows)?,
                    _ => return Err(DriveError::Direction),
                }
            }
            Mode::Waiting { .. } | Mode::Shutdown | Mode::Closing => {}
        }
        Ok(())
    }

    /// Queues an answer; a connection that cannot have it is closed.
    pub(super) fn answer(&mut self, key: u64, reply: &Reply) {
        if let Some(connection) = self.connections.get_mut(&key)
            && let Err(error) = connection.reply(reply)
        {
            eprintln!("failed to answer: {error}");
            self.close(key);
        }
    }

    /// Does a request; none when the answer comes later.
    fn request(&mut self, key: u64, request: Request) -> Option<Reply> {
        match request {
            Request::State { seen, wait_ms } => match seen {
                Some(seen) if seen == self.revision() && wait_ms > 0 => {
                    let wait = Duration::from_millis(wait_ms.into()).min(STATE_WAIT_MAX);
                    self.set_mode(
                        key,
                        Mode::Waiting {
                            seen,
                            until: Instant::now() + wait,
                        },
                    );
                    None
                }
                _ => Some(Reply::State(self.state())),
            },
            Request::Start { spec } => Some(self.start(*spec)),
            Request::Signal { id, signal } => Some(match self.container(&id) {
                Err(reply) => reply,
                Ok(container) => match container.signal(signal) {
                    Ok(()) => Reply::Done,
                    Err(error) => failed("SignalError", format!("failed to send signal {signal}: {error}")),
                },
            }),
            Request::Kill { id } => Some(match self.container(&id) {
                Err(reply) => reply,
                Ok(container) if container.exit().is_some() => Reply::Done,
                Ok(container) => match container.cgroup.kill() {
                    Ok(()) => Reply::Done,
                    Err(error) => failed("KillError", super::chain(&error)),
                },
            }),
            Request::Remove { id } => Some(self.remove(&id)),
            Request::Exec {
                id,
                args,
                stdin,
                tty,
                timeout_ms,
            } => match self.exec(key, &id, args, stdin, tty, timeout_ms.map(Duration::from_millis)) {
                Ok(exec) => {
                    self.set_mode(key, Mode::Exec(exec));
                    Some(Reply::Streaming)
                }
                Err(reply) => Some(reply),
            },
            Request::Attach { id } => {
                let Some(container) = self.containers.iter_mut().find(|one| one.id == id) else {
                    return Some(no_such(&id));
                };
                if container.exit().is_some() {
                    return Some(failed("ContainerNotRunning", format!("container {id} has ended")));
                }
                container.followers.push(key);
                let container = container.key;
                self.set_mode(key, Mode::Attach(container));
                Some(Reply::Streaming)
            }
            Request::Renew { until_ms } => Some(self.renew(until_ms)),
            Request::Shutdown => {
                self.set_mode(key, Mode::Shutdown);
                self.begin_end();
                None
            }
        }
    }

    fn set_mode(&mut self, key: u64, mode: Mode) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = mode;
        }
    }

    fn container(&self, id: &str) -> Result<&Owned, Reply> {
        self.containers
            .iter()
            .find(|one| one.id == id)
            .ok_or_else(|| no_such(id))
    }

    fn start(&mut self, spec: ContainerSpec) -> Reply {
        if self.containers.iter().any(|one| one.id == spec.id) {
            return Reply::State(self.state());
        }
        if self.is_ending() {
            return failed("ShuttingDown", "the pod is being removed");
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return failed(
                "TooManyContainers",
                format!("the pod has {CONTAINERS_MAX} containers; remove ended ones"),
            );
        }
        if let Err(reason) = crate::name::check(&spec.id) {
            return failed(
                "CreateContainerError",
                format!("container id {:?} {reason}", spec.id),
            );
        }
        if let Some(refusal) = self.refuse_start() {
            return refusal;
        }
        match Owned::start(spec, &self.sandbox, &mut self.watch) {
            Ok(owned) => {
                self.containers.push(owned);
                self.changed();
                Reply::State(self.state())
            }
            Err(error) => failed(error.reason(), super::chain(&error)),
        }
    }

    fn remove(&mut self, id: &str) -> Reply {
        let Some(index) = self.containers.iter().position(|one| one.id == id) else {
            return Reply::Done;
        };
        if self.containers[index].exit().is_none() {
            return failed("ContainerRunning", format!("container {id} has not ended"));
        }
        if let Err(error) = self.containers[index].remove() {
            return failed("RemoveError", super::chain(&error));
        }
        self.containers.remove(index);
        self.changed();
        Reply::Done
    }

    fn exec(
        &mut self,
        client: u64,
        id: &str,
        args: Vec<String>,
        stdin: bool,
        tty: bool,
        timeout: Option<Duration>,
    ) -> Result<u64, Reply> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(failed("ContainerNotRunning", format!("container {id} has ended")));
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(failed(
                "TooManyExecs",
                format!("the pod runs {EXECS_MAX} exec'd processes already"),
            ));
        }
        let refuse = |error: &dyn std::error::Error| failed("ExecError", super::chain(error));
        let io = |error: std::io::Error| refuse(&error);
        let (running, input, stdout, stderr) = if tty {
            let (ours, theirs) = sys::socket::seqpacket_pair().map_err(io)?;
            let running = container
                .exec(
                    args,
                    Stdio::Terminal {
                        socket: theirs,
                        size: None,
                        bare_newlines: false,
                    },
                )
                .map_err(|error| refuse(&error))?;
            let master = container::receive_master(&ours);
            match master.and_then(|master| Ok((sys::fd::dup_above(master.as_fd(), 3)?, master))) {
                Ok((input, stdout)) => (running, stdin.then_some(input), stdout, None),
                Err(error) => {
                    container::end(&running);
                    return Err(io(error));
                }
            }
        } else {
            let (stdio, input, stdout, stderr) =
                container::exec_pipes(container.host_user(), stdin).map_err(io)?;
            let running = container.exec(args, stdio).map_err(|error| refuse(&error))?;
            (running, input, stdout, stderr)
        };
        let key = self.watch.key();
        let mut exec = Exec {
            key,
            client: Some(client),
            running,
            terminal: tty,
            stdout: None,
            stderr: None,
            input: None,
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            timed_out: false,
            ended: None,
        };
        let connected = (|| {
            exec.stdout = Some(Source::new(
                stdout,
                Member::ExecOutput(key, Output::Stdout),
                &mut self.watch,
            )?);
            if let Some(stderr) = stderr {
                exec.stderr = Some(Source::new(
                    stderr,
                    Member::ExecOutput(key, Output::Stderr),
                    &mut self.watch,
                )?);
            }
            if let Some(input) = input {
                exec.input = Some(Input::new(input, Member::ExecInput(key), tty)?);
            }
            Ok(())
        })();
        if let Err(error) = connected {
            container::end(&exec.running);
            exec.close(&mut self.watch);
            return Err(failed("ExecError", super::chain::<std::io::Error>(&error)));
        }
        self.execs.push(exec);
        Ok(key)
    }

    /// Reads once from a container for its log and those who follow it.
    pub(super) fn container_output(&mut self, key: u64, output: Output) {
        let Some(container) = self.containers.iter_mut().find(|one| one.key == key) else {
            return;
        };
        let mut buffer = [0; CHUNK_BYTES_MAX];
        let Some(count) = container.read(output, &mut buffer, &mut self.watch) else {
            return;
        };
        let kind = if output == Output::Stdout {
            stream::STDOUT
        } else {
            stream::STDERR
        };
        for follower in container.followers.clone() {
            let Some(connection) = self.connections.get_mut(&follower) else {
                continue;
            };
            // A follower that is too slow is dropped: the container must not wait for it.
            let kept = connection.has_room() && connection.chunk(kind, &buffer[..count]).is_ok();
            if kept {
                self.drive(follower)
            } else {
                self.close(follower)
            }
        }
    }

    pub(super) fn container_input(&mut self, key: u64) {
        let Some(container) = self.containers.iter_mut().find(|one| one.key == key) else {
            return;
        };
        container.feed_on(&mut self.watch);
        for follower in container.followers.clone() {
            self.drive(follower);
        }
    }

    pub(super) fn exec_output(&mut self, key: u64, output: Output) {
        let Some(exec) = self.execs.iter_mut().find(|one| one.key == key) else {
            return;
        };
        let Some(client) = exec.client else { return };
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        match exec.read(output, &mut [0; CHUNK_BYTES_MAX], connection, &mut self.watch) {
            Ok(()) => self.drive(client),
            Err(error) => {
                eprintln!("failed to pass output on: {error}");
                self.close(client);
            }
        }
    }

    pub(super) fn exec_input(&mut self, key: u64) {
        let Some(exec) = self.execs.iter_mut().find(|one| one.key == key) else {
            return;
        };
        exec.feed_on(&mut self.watch);
        if let Some(client) = exec.client {
            self.drive(client);
        }
    }

    /// Ends the execs whose time is over, and tells of those that have ended.
    pub(super) fn tick_execs(&mut self, now: Instant) {
        let mut results = Vec::new();
        for exec in &mut self.execs {
            if exec.deadline.is_some_and(|deadline| now >= deadline) {
                exec.time_out();
            }
            let slow = exec
                .client
                .and_then(|client| self.connections.get(&client))
                .is_some_and(|connection| !connection.has_room());
            if let Some(ended) = exec.result(slow, now) {
                exec.close(&mut self.watch);
                results.push((exec.key, exec.client, ended));
            }
        }
        for (key, client, ended) in results {
            self.execs.retain(|exec| exec.key != key);
            if let Some(client) = client {
                self.end_stream(client, ended);
            }
        }
    }

    /// Sends a stream's last frame.
    pub(super) fn end_stream(&mut self, key: u64, ended: Ended) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match connection.end(ended) {
            Ok(()) => self.drive(key),
            Err(error) => {
                eprintln!("failed to tell of an end: {error}");
                self.close(key);
            }
        }
    }
}

fn no_such(id: &str) -> Reply {
    failed("NoSuchContainer", format!("there is no container {id}"))
}

/// Why a connection ends from our side.
#[derive(Debug, thiserror::Error)]
enum DriveError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a frame of a kind that only monitors send")]
    Direction,
}
