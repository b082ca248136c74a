//! Hooks: programs of the configuration that run at six points of a container's life, the state on their standard input.
//!
//! | point | when | namespaces | path of |
//! |---|---|---|---|
//! | `prestart`, `createRuntime` | create, all mounted, before the pivot | ours | the host |
//! | `createContainer` | then | the container's | the host, as the root is not entered |
//! | `startContainer` | start, before the program | the container's | the container |
//! | `poststart` | the program runs | ours | the host |
//! | `poststop` | deleted | ours | the host |

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use oci_spec::runtime::{Hook, Process, Spec};
use sys::process::{self, CStrings, CloneArgs};
use sys::{cred, fd};

use super::state::{Record, Status};
use super::{Log, OciError, refused};
use crate::container::{Options, StartError, Stdio};
use crate::exec::{self, ExecTarget};

/// A point of the life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// As the configuration calls them.
    pub(super) const ALL: [(Point, &str); 6] = [
        (Point::Prestart, "prestart"),
        (Point::CreateRuntime, "createRuntime"),
        (Point::CreateContainer, "createContainer"),
        (Point::StartContainer, "startContainer"),
        (Point::Poststart, "poststart"),
        (Point::Poststop, "poststop"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Its hooks.
    pub(super) fn of(self, config: &Spec) -> &[Hook] {
        let Some(hooks) = config.hooks() else {
            return &[];
        };
        let list = match self {
            #[allow(deprecated)] // docker 20.10 still writes it
            Point::Prestart => hooks.prestart(),
            Point::CreateRuntime => hooks.create_runtime(),
            Point::CreateContainer => hooks.create_container(),
            Point::StartContainer => hooks.start_container(),
            Point::Poststart => hooks.poststart(),
            Point::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("error running {point} hook #{index}: failed to {action} {path:?}")]
    Step {
        point: &'static str,
        index: usize,
        action: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("error running {point} hook #{index}: failed to run {path:?} in the container")]
    Start {
        point: &'static str,
        index: usize,
        path: String,
        source: Box<StartError>,
    },
    #[error("error running {point} hook #{index}: {path:?} did not end in {seconds} s")]
    Timeout {
        point: &'static str,
        index: usize,
        path: String,
        seconds: i64,
    },
    #[error("error running {point} hook #{index}: {path:?} ended with {code}{output}")]
    Failed {
        point: &'static str,
        index: usize,
        path: String,
        code: i32,
        output: String,
    },
}

/// Refuses what the specification does, before anything is made.
pub(super) fn check(config: &Spec) -> Result<(), OciError> {
    for (point, name) in Point::ALL {
        for (index, hook) in point.of(config).iter().enumerate() {
            // runtime-spec 1.2, config.md, POSIX-platform Hooks: path "MUST be an absolute path", timeout "MUST be greater
            // than zero".
            if !hook.path().is_absolute() {
                return Err(refused(format!("hooks.{name}[{index}].path: must be absolute")));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(refused(format!(
                    "hooks.{name}[{index}].timeout: must be greater than zero"
                )));
            }
        }
    }
    Ok(())
}

/// Runs all hooks of a point in their order, up to the first that fails.
pub(super) fn run(record: &Record, point: Point, status: Status) -> Result<(), HookError> {
    let hooks = point.of(&record.config);
    hooks
        .iter()
        .enumerate()
        .try_for_each(|(index, hook)| one(record, point, index, hook, status))
}

/// Runs all hooks of a point; those that fail are told of and stop nothing.
pub(super) fn run_all(record: &Record, point: Point, status: Status, log: &Log) {
    for (index, hook) in point.of(&record.config).iter().enumerate() {
        if let Err(error) = one(record, point, index, hook, status) {
            log.warn(&crate::monitor::chain(&error));
        }
    }
}

fn one(record: &Record, point: Point, index: usize, hook: &Hook, status: Status) -> Result<(), HookError> {
    let name = point.name();
    let path = hook.path().display().to_string();
    let step = |action: &'static str| {
        let path = path.clone();
        move |source| HookError::Step {
            point: name,
            index,
            action,
            path,
            source,
        }
    };
    let mut state = record.describe(status);
    if matches!(point, Point::CreateContainer | Point::StartContainer) {
        // runtime-spec 1.2, runtime.md, State: for hooks of the container namespace `pid` is "as seen by the container".
        state["pid"] = inner_pid(record.pid)
            .map_err(step("find the container's own number of the process for"))?
            .into();
    }
    let state = state.to_string();
    let input = state_file(state.as_bytes()).map_err(step("write the state for"))?;
    let output: File = fd::memfd(c"hook")
        .map_err(step("make a file for the output of"))?
        .into();
    let pidfd = match point {
        Point::StartContainer => {
            in_container(record, hook, &input, &output).map_err(|error| match error {
                Failure::Io(source) => step("run")(source),
                Failure::Start(source) => HookError::Start {
                    point: name,
                    index,
                    path: path.clone(),
                    source: Box::new(source),
                },
            })?
        }
        Point::CreateContainer => {
            let (kinds, user) = exec::kinds(record.pid).map_err(step("find the namespaces for"))?;
            let target = process::pidfd_open(record.pid).map_err(step("find the namespaces for"))?;
            let root = record
                .config
                .root()
                .as_ref()
                .map(|root| record.bundle.join(root.path()));
            let root = root.map(|root| CString::new(root.as_os_str().as_bytes()));
            let inside = Inside {
                target: target.as_fd(),
                kinds,
                user,
                root: root.transpose().map_err(io::Error::from).map_err(step("run"))?,
            };
            spawn(hook, Some(inside), &input, &output).map_err(step("run"))?
        }
        _ => spawn(hook, None, &input, &output).map_err(step("run"))?,
    };
    let timeout = hook
        .timeout()
        .map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
    let ended = fd::wait_readable(pidfd.as_fd(), timeout).map_err(step("wait for"))?;
    if !ended {
        match process::pidfd_send_signal(pidfd.as_fd(), super::SIGKILL) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => return Err(step("end")(error)),
            _ => {}
        }
    }
    let code = process::wait(pidfd.as_fd()).map_err(step("wait for"))?.code();
    match (ended, code) {
        (false, _) => Err(HookError::Timeout {
            point: name,
            index,
            path,
            seconds: hook.timeout().unwrap_or_default(),
        }),
        (true, 0) => Ok(()),
        (true, code) => Err(HookError::Failed {
            point: name,
            index,
            path,
            code,
            output: last_words(output).map_err(|source| HookError::Step {
                point: name,
                index,
                action: "read the output of",
                path: hook.path().display().to_string(),
                source,
            })?,
        }),
    }
}

/// The number of a process in its own PID namespace (`NSpid` of proc_pid_status(5), whose last is the innermost).
fn inner_pid(pid: i32) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("NSpid:")?
                .split_whitespace()
                .last()?
                .parse()
                .ok()
        })
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The state as a file: a hook that does not read it holds nobody up, however long it is.
fn state_file(state: &[u8]) -> io::Result<File> {
    let mut file: File = fd::memfd(c"state")?.into();
    file.write_all(state)?;
    file.rewind()?;
    Ok(file)
}

/// Most of a hook's output that an error message carries.
const OUTPUT_BYTES_MAX: u64 = 4096;

fn last_words(mut output: File) -> io::Result<String> {
    let length = output.seek(io::SeekFrom::End(0))?;
    output.seek(io::SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    Ok(if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    })
}

fn c_strings(list: &[String]) -> io::Result<Vec<CString>> {
    list.iter()
        .map(|one| CString::new(one.as_str()).map_err(io::Error::from))
        .collect()
}

/// Arguments of a hook: without any, its path, as execv(3) wants one.
fn arguments(hook: &Hook) -> Vec<String> {
    match hook.args().as_deref() {
        Some(list) if !list.is_empty() => list.to_vec(),
        _ => vec![hook.path().display().to_string()],
    }
}

/// Where a hook of the container's namespaces runs.
struct Inside<'a> {
    target: BorrowedFd<'a>,
    kinds: i32,
    user: bool,
    /// Its working directory, as with runc: the container's root, not yet entered.
    root: Option<CString>,
}

/// Runs a hook with our rights and exactly its environment, if it has one, in our namespaces or in those of a process.
fn spawn(hook: &Hook, inside: Option<Inside<'_>>, input: &File, output: &File) -> io::Result<OwnedFd> {
    let path = CString::new(hook.path().as_os_str().as_bytes())?;
    let arguments = CStrings::new(c_strings(&arguments(hook))?);
    // None given: ours, as with runc and crun. An empty list is one.
    let environment = match hook.env() {
        Some(environment) => c_strings(environment)?,
        None => std::env::vars_os()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<_, _>>()?,
    };
    let environment = CStrings::new(environment);
    let args = CloneArgs {
        flags: 0,
        exit_signal: nix::libc::SIGCHLD,
        cgroup: None,
    };
    let become_hook = || -> io::Result<()> {
        process::reset_signals()?;
        fd::dup_onto(input.as_fd(), 0)?;
        fd::dup_onto(output.as_fd(), 1)?;
        fd::dup_onto(output.as_fd(), 2)?;
        fd::cloexec_from(3)?;
        Err(process::execve(&path, &arguments, &environment))
    };
    let fail = |result: io::Result<()>| {
        if let Err(error) = result {
            complain(output, &error);
        }
        EXIT_CANNOT
    };
    let body = || {
        let Some(Inside {
            target,
            kinds,
            user,
            root,
        }) = &inside
        else {
            return fail(become_hook());
        };
        // The PID namespace is for children only: the hook is one, and dies with us.
        let enter = || -> io::Result<i32> {
            if *kinds != 0 {
                process::setns(*target, *kinds)?;
            }
            if let Some(root) = root {
                sys::path::chdir(root)?;
            }
            if *user {
                cred::setgroups(&[])?;
                cred::setgid(0)?;
                cred::setuid(0)?;
            }
            process::spawn(args, || {
                fail(process::set_parent_death_signal(super::SIGKILL).and_then(|()| become_hook()))
            })
        };
        match enter().and_then(process::wait_pid) {
            Ok(ended) => ended.code(),
            Err(error) => fail(Err(error)),
        }
    };
    let pid = process::spawn(args, body)?;
    // Our own child and not reaped, so the number is still its.
    process::pidfd_open(pid)
}

/// What shells exit with when a program cannot be run.
const EXIT_CANNOT: i32 = 127;

/// Writes an error's number among the hook's output, without allocating: we may be a child on its way to exec.
fn complain(output: &File, error: &io::Error) {
    let mut text = *b"cannot be run: error 000";
    let number = error.raw_os_error().unwrap_or(0).unsigned_abs();
    for (place, divisor) in [(21, 100), (22, 10), (23, 1)] {
        text[place] = b'0' + (number / divisor % 10) as u8;
    }
    // There is nobody else to tell.
    drop(fd::write(output.as_fd(), &text));
}

enum Failure {
    Io(io::Error),
    Start(StartError),
}

/// Runs a hook of the container's own as its program would run: same user, rights, filter and cgroup. Its file is the
/// image's, which nobody has vouched for.
fn in_container(record: &Record, hook: &Hook, input: &File, output: &File) -> Result<OwnedFd, Failure> {
    let target = record
        .process()
        .map_err(|error| Failure::Io(io::Error::other(error)))?
        .ok_or_else(|| Failure::Io(io::Error::from_raw_os_error(nix::libc::ESRCH)))?;
    let mut process: Process = record.config.process().clone().unwrap_or_default();
    process.set_args(Some(arguments(hook))).set_terminal(Some(false));
    if let Some(environment) = hook.env() {
        process.set_env(Some(environment.clone()));
    }
    let above = |file: &File| fd::dup_above(file.as_fd(), 3).map_err(Failure::Io);
    let stdio = Stdio::Fds([above(input)?, above(output)?, above(output)?]);
    let seccomp = record
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let path = hook.path().display().to_string();
    let state = record.describe(Status::Created);
    let options = Options {
        program: Some(&path),
        bare_environment: hook.env().is_some(),
        shared_mounts: record.mounted_over.is_some(),
        state: Some(&state),
        ..Options::default()
    };
    let target = ExecTarget {
        pid: record.pid,
        pidfd: target.as_fd(),
    };
    let cgroup = record
        .cgroup()
        .map_err(|error| Failure::Io(io::Error::other(error)))?;
    let running = exec::exec(target, &process, seccomp, &cgroup, stdio, &options).map_err(Failure::Start)?;
    Ok(running.pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_that_the_specification_forbids_are_refused() {
        let with = |hook: serde_json::Value| -> Spec {
            let mut spec = Spec::default();
            spec.set_hooks(Some(
                serde_json::from_value(serde_json::json!({ "poststop": [hook] })).unwrap(),
            ));
            spec
        };
        assert!(check(&with(serde_json::json!({"path": "/bin/x", "timeout": 1}))).is_ok());
        assert!(check(&with(serde_json::json!({"path": "bin/x"}))).is_err());
        assert!(check(&with(serde_json::json!({"path": "/bin/x", "timeout": 0}))).is_err());
        for (index, (point, _)) in Point::ALL.iter().enumerate() {
            assert_eq!(*point as usize, index, "the table is in the order of the enum");
        }
    }
}
