//! A process run in a container on a client's behalf: its streams go over the client's connection, its end is told last.

use std::fs;
use std::io;
use std::time::Instant;

use nix::libc;
use sys::process::Ended;

use super::connection::Connection;
use super::container::DRAIN;
use super::frame::FrameError;
use super::log::Output;
use super::protocol::{self, stream};
use super::watch::{Input, Read, Source, Watch};
use crate::container::{Running, Size};

/// Processes of one exec that a kill by time looks at: more than a probe ever has; the rest goes with the container.
const TREE_MAX: usize = 4096;

/// One exec'd process.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) key: u64,
    /// Its client's connection; none once the client has left.
    pub(super) client: Option<u64>,
    pub(super) running: Running,
    pub(super) terminal: bool,
    pub(super) stdout: Option<Source>,
    pub(super) stderr: Option<Source>,
    pub(super) input: Option<Input>,
    /// When it is killed.
    pub(super) deadline: Option<Instant>,
    pub(super) timed_out: bool,
    /// Set once it was reaped: how it ended, and until when its pipes are read.
    pub(super) ended: Option<(Ended, Instant)>,
}

impl Exec {
    fn source(&mut self, output: Output) -> &mut Option<Source> {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }

    /// Reads once from a stream to the client, or leaves it in the pipe while the client is slow.
    pub(super) fn read(
        &mut self,
        output: Output,
        buffer: &mut [u8],
        client: &mut Connection,
        watch: &mut Watch,
    ) -> Result<(), FrameError> {
        if !client.has_room() {
            self.arm(false, watch);
            return Ok(());
        }
        let Some(source) = self.source(output) else {
            return Ok(());
        };
        match source.read(buffer) {
            Read::Nothing => Ok(()),
            Read::End => {
                if let Some(source) = self.source(output).take() {
                    source.close(watch);
                }
                Ok(())
            }
            Read::Bytes(count) => {
                let kind = if output == Output::Stdout {
                    stream::STDOUT
                } else {
                    stream::STDERR
                };
                client.chunk(kind, &buffer[..count])
            }
        }
    }

    /// Reads its output on, or not for now. What was left in a pipe gets its time after the process's end anew.
    pub(super) fn arm(&mut self, on: bool, watch: &mut Watch) {
        for source in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            if let Err(error) = source.arm(on, watch) {
                eprintln!("failed to wait for an exec's output: {error}");
            }
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

    /// Terminal's new size.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match (&self.stdout, self.terminal) {
            (Some(master), true) => sys::tty::set_size(master.fd(), Size { columns, rows }),
            _ => Ok(()),
        }
    }

    /// The client has left: hang up. With a terminal, closing its master does; without, the signal is all there is.
    pub(super) fn hang_up(&mut self, watch: &mut Watch) {
        self.client = None;
        self.close(watch);
        if self.ended.is_none() {
            signal_group(&self.running, libc::SIGHUP);
        }
    }

    /// Closes our ends of its streams.
    pub(super) fn close(&mut self, watch: &mut Watch) {
        for source in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            source.close(watch);
        }
        if let Some(input) = self.input.take() {
            input.close(watch);
        }
    }

    /// Its time is over: kills it and all it has started.
    pub(super) fn time_out(&mut self) {
        self.timed_out = true;
        self.deadline = None;
        let tree = descendants(self.running.pid);
        // Its own process first, which else could see a child's end and go on.
        signal_group(&self.running, libc::SIGKILL);
        for pid in tree {
            // A number taken from /proc a moment ago; one that has gone since is no error.
            if let Err(error) = sys::process::kill(pid, libc::SIGKILL)
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                eprintln!("failed to kill process {pid} of an exec: {error}");
            }
        }
    }

    /// It was reaped.
    pub(super) fn ended(&mut self, ended: Ended, now: Instant) {
        self.ended = Some((ended, now + DRAIN));
        self.deadline = None;
    }

    /// How it ended, once all its output was read; `slow` while the client does not take it.
    pub(super) fn result(&mut self, slow: bool, now: Instant) -> Option<protocol::Ended> {
        let (ended, until) = self.ended.as_mut()?;
        if self.stdout.is_some() || self.stderr.is_some() {
            if slow {
                *until = now + DRAIN;
            }
            if now < *until {
                return None;
            }
        }
        let error = self.timed_out.then(|| "timeout".to_owned());
        Some(protocol::Ended {
            code: ended.code(),
            error,
        })
    }

    /// When it next wants attention.
    pub(super) fn due(&self) -> Option<Instant> {
        self.deadline.or(self.ended.map(|(_, until)| until))
    }
}

/// Signals the process and the group that it leads (each exec begins a session).
fn signal_group(running: &Running, signal: i32) {
    // Not reaped by us yet, so neither number can be another's.
    for target in [-running.pid, running.pid] {
        if let Err(error) = sys::process::kill(target, signal)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            eprintln!("failed to signal an exec'd process: {error}");
        }
    }
}

/// Host process ids of everything that a process has started and that has not been orphaned.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() && found.len() < TREE_MAX {
        let parent = found[next];
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            // Gone meanwhile: nothing to kill.
            let Ok(children) = fs::read_to_string(thread.path().join("children")) else {
                continue;
            };
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<i32>().ok()),
            );
        }
    }
    found.remove(0);
    found
}
