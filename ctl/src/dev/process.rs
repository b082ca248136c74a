//! The processes of a development cluster: started in the background, recognised later, ended.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::Process;
use super::network;
use crate::error::CtlError;

/// How long a process may take to end after SIGKILL: a busy disk can hold it in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(20);
/// How often to look whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs a program to its end; its error output is the error.
pub(super) fn run_to_end(command: &[String]) -> Result<(), CtlError> {
    let shown = command.join(" ");
    let (program, args) = split(command)?;
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(CtlError::io(format!("failed to run {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(CtlError::refused(format!(
        "`{shown}` ended with {}: {}",
        output.status,
        text.trim()
    )))
}

/// Starts a program in the background, its output appended to `log`, inside `netns` when one is given.
pub(super) fn start(command: &[String], log: &Path, netns: Option<&Path>) -> Result<i32, CtlError> {
    let (program, args) = split(command)?;
    let opened = |log: &Path| OpenOptions::new().create(true).append(true).open(log);
    let what = format!("failed to open {}", log.display());
    let stdout = opened(log).map_err(CtlError::io(what))?;
    let stderr = stdout
        .try_clone()
        .map_err(CtlError::io("failed to copy a descriptor"))?;
    let mut child = Command::new(program);
    child
        .args(args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .current_dir("/");
    let what = format!("failed to start {program}");
    let spawned = match netns {
        None => child.spawn(),
        Some(path) => {
            let netns: OwnedFd = File::open(path)
                .map_err(CtlError::io(format!("failed to open {}", path.display())))?
                .into();
            network::in_netns(&netns, move || child.spawn())?
        }
    };
    let child = spawned.map_err(CtlError::io(what))?;
    i32::try_from(child.id()).map_err(|_| CtlError::refused("a process id does not fit"))
}

fn split(command: &[String]) -> Result<(&String, &[String]), CtlError> {
    command
        .split_first()
        .ok_or_else(|| CtlError::refused("an empty command"))
}

/// Start time of a process in clock ticks since boot; none when it is gone or a zombie (proc(5), stat fields 3, 20 and 22).
/// One whose first thread has ended before others is no zombie yet: it holds its files and ports.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also spaces and parentheses: fields are counted from its last one.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if matches!(state, "Z" | "X") && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

/// Whether the process that was started still runs.
pub(super) fn is_running(process: &Process) -> bool {
    start_time(process.pid) == Some(process.started)
}

/// SIGTERM, and SIGKILL when that does not help within `grace`.
pub(super) fn stop(process: &Process, grace: Duration) -> Result<(), CtlError> {
    if !is_running(process) {
        return Ok(());
    }
    signal(process.pid, Signal::SIGTERM)?;
    if !wait_gone(|| !is_running(process), grace) {
        signal(process.pid, Signal::SIGKILL)?;
        if !wait_gone(|| !is_running(process), KILL_WAIT) {
            return Err(CtlError::refused(format!(
                "{} (pid {}) does not end",
                process.name, process.pid
            )));
        }
    }
    Ok(())
}

/// Sends a signal; fine when the process has gone.
pub(super) fn signal(pid: i32, signal: Signal) -> Result<(), CtlError> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(CtlError::io(format!("failed to signal process {pid}"))(
            error.into(),
        )),
    }
}

/// Looks until `gone` or the time is over.
pub(super) fn wait_gone(gone: impl Fn() -> bool, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        reap();
        if gone() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Takes the exit status of children of this very `ctl` that have ended, so that none stays a zombie while it waits.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
