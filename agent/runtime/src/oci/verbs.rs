//! What each verb does; here the choice among them and what several need.

mod console;
mod create;
mod describe;
mod end;
mod events;
mod exec;
mod json;
mod limits;
mod look;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::arguments::Arguments;
use super::config::asks_for_users;
use super::state::{Directory, Record, Status};
use super::{Globals, OciError, SPEC_VERSION, refused};
use crate::container::{Running, Stdio};
use console::Console;

/// How long a killed container may take to be gone.
const END_WAIT: Duration = Duration::from_secs(10);
const SIGKILL: i32 = nix::libc::SIGKILL;

const USAGE: &str = "\
usage: bulkhead-runtime [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] [--rootless true|false|auto] [--debug] \
COMMAND [FLAGS] ...
  create run [--bundle DIR] [--config FILE] [--pid-file FILE] [--console-socket SOCKET] [--pidfd-socket SOCKET] [--preserve-fds N] ID
  start state pause resume ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID | --regex PATTERN
  exec [--process FILE] [--tty] [--detach] [--user UID[:GID]] [--cwd DIR] [--env NAME=VALUE] [--cap NAME] ID [PROGRAM ...]
  ps [--format table|json] ID [PS OPTIONS]
  list [--format table|json] [--quiet]
  update [--resources FILE|-] [--memory BYTES] [--cpu-quota US] [--pids-limit N] ... ID
  events [--stats] [--interval 5s] ID
  features
  spec [--bundle DIR] [--rootless]
bulkhead-runtime monitor --dir DIR
";

/// Runs the verb; its exit code.
pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    if arguments.is("version") {
        // Exactly three lines: go-runc's parser fails at a fourth.
        println!("bulkhead-runtime version {}", env!("CARGO_PKG_VERSION"));
        println!("commit: {}", option_env!("BULKHEAD_COMMIT").unwrap_or("unknown"));
        println!("spec: {SPEC_VERSION}");
        return Ok(0);
    }
    if arguments.is("help") || matches!(arguments.verb.as_deref(), Some("help")) {
        print!("{USAGE}");
        return Ok(0);
    }
    let Some(verb) = arguments.verb.as_deref() else {
        eprint!("{USAGE}");
        return Err(refused("no command given"));
    };
    let (least, most) = match verb {
        "delete" if arguments.value("regex").is_some() => (0, 0),
        "create" | "run" | "start" | "state" | "delete" | "pause" | "resume" | "update" | "events"
        | "checkpoint" | "restore" => (1, 1),
        "kill" => (1, 2),
        "exec" | "ps" => (1, usize::MAX),
        _ => (0, 0),
    };
    let known = [
        "create",
        "run",
        "start",
        "state",
        "delete",
        "pause",
        "resume",
        "update",
        "events",
        "checkpoint",
        "restore",
        "kill",
        "exec",
        "ps",
        "list",
        "spec",
        "features",
    ];
    if !known.contains(&verb) {
        return Err(OciError::NoVerb {
            verb: verb.to_owned(),
        });
    }
    arguments.expect(least, most)?;
    match verb {
        "create" => create::create(globals, arguments),
        "start" => create::start(globals, arguments),
        "run" => create::run(globals, arguments),
        "state" => look::state(globals, arguments),
        "kill" => end::kill(globals, arguments),
        "delete" => end::delete(globals, arguments),
        "exec" => exec::exec(globals, arguments).map_err(|error| OciError::Exec(Box::new(error))),
        "ps" => look::ps(globals, arguments),
        "list" => look::list(globals, arguments),
        "pause" => limits::pause(globals, arguments),
        "resume" => limits::resume(globals, arguments),
        "update" => limits::update(globals, arguments),
        "events" => events::events(globals, arguments),
        "spec" => describe::spec(arguments),
        "features" => describe::features(),
        // A process tree on disk is beyond this runtime: engines that ask for it are told so.
        verb => Err(refused(format!(
            "{verb} is not supported: there is no CRIU in this runtime"
        ))),
    }
}

fn print(value: &serde_json::Value) {
    println!("{value:#}");
}

fn step(action: &'static str) -> impl FnOnce(io::Error) -> OciError {
    move |source| OciError::Step { action, source }
}

/// Streams of a process: ours; a terminal whose master goes to the console socket; or one whose master comes to us.
fn stdio(terminal: bool, detach: bool, arguments: &Arguments) -> Result<(Stdio, Option<Console>), OciError> {
    match (terminal, arguments.value("console-socket")) {
        (false, None) => Ok((Stdio::inherit().map_err(step("copy the standard streams"))?, None)),
        (false, Some(_)) => Err(refused(
            "cannot use console socket if the process has no terminal",
        )),
        (true, None) if detach => Err(refused(
            "cannot allocate tty if the runtime will detach without setting console socket",
        )),
        (true, None) => {
            let (console, socket) = Console::pair().map_err(step("make a socket pair"))?;
            let size = Console::size();
            // As with runc.
            let stdio = Stdio::Terminal {
                socket,
                size,
                bare_newlines: true,
            };
            Ok((stdio, Some(console)))
        }
        (true, Some(path)) => {
            let socket = UnixStream::connect(path).map_err(|source| OciError::File {
                action: "connect to",
                path: PathBuf::from(path),
                source,
            })?;
            let socket = OwnedFd::from(socket);
            // Whoever gets it sees to its settings.
            let stdio = Stdio::Terminal {
                socket,
                size: None,
                bare_newlines: false,
            };
            Ok((stdio, None))
        }
    }
}

/// How many descriptors from 3 on are passed: as told, after those that systemd passed us (sd_listen_fds(3)), of which
/// the process then hears as the first of its PID namespace.
fn passed_fds(arguments: &Arguments, process: &mut Process) -> Result<u32, OciError> {
    let told: u32 = arguments.number("preserve-fds")?.unwrap_or(0);
    let Some(count) = listened() else {
        return Ok(told);
    };
    process
        .env_mut()
        .get_or_insert_default()
        .extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
    told.checked_add(count)
        .filter(|count| *count < PASSED_MAX)
        .ok_or_else(|| refused(format!("{told} and {count} descriptors are too many to pass")))
}

/// Descriptors that systemd passed us. A caller that was passed them itself may take LISTEN_PID away, as crun expects.
fn listened() -> Option<u32> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = std::env::var_os("LISTEN_PID").is_none() || number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|count| ours && *count > 0)
}

/// Fills the numbers that are to be passed on and are not open: what we open ourselves must not come among them. To be
/// called before that, and held until the process is made.
pub(super) fn fill_passed(arguments: &Arguments) -> Result<Vec<OwnedFd>, OciError> {
    let told: u32 = arguments.number("preserve-fds")?.unwrap_or(0);
    let end = told.saturating_add(listened().unwrap_or(0)).saturating_add(3);
    let mut fillers = Vec::new();
    if end == 3 {
        return Ok(fillers);
    }
    if end >= PASSED_MAX {
        return Err(refused(format!("{} descriptors are too many to pass", end - 3)));
    }
    let null = File::open("/dev/null").map_err(step("open /dev/null"))?;
    let mut next = OwnedFd::from(null);
    // The lowest free number each time.
    while (next.as_raw_fd() as u32) < end {
        let above = sys::fd::dup_above(next.as_fd(), 3).map_err(step("hold a descriptor's number"))?;
        fillers.push(std::mem::replace(&mut next, above));
    }
    Ok(fillers)
}

/// A process's limit is rarely higher, and what is not open among them is an error anyway.
const PASSED_MAX: u32 = 1 << 16;

/// For who wants to watch the process by more than its number: the pid file, and the descriptor over `--pidfd-socket`.
fn tell_pid(arguments: &Arguments, running: &Running) -> Result<(), OciError> {
    write_pid(arguments, running.pid)?;
    let Some(path) = arguments.value("pidfd-socket") else {
        return Ok(());
    };
    UnixStream::connect(path)
        .and_then(|socket| sys::socket::send_fds(socket.as_fd(), b"pidfd", &[running.pidfd.as_fd()]))
        .map_err(|source| OciError::File {
            action: "send the process's descriptor to",
            path: PathBuf::from(path),
            source,
        })
}

fn write_pid(arguments: &Arguments, pid: i32) -> Result<(), OciError> {
    let Some(path) = arguments.value("pid-file").map(PathBuf::from) else {
        return Ok(());
    };
    // Under another name first: engines read it as soon as it is there.
    let mut new = path.clone().into_os_string();
    new.push(".new");
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|source| OciError::File {
            action: "write",
            path,
            source,
        })
}

/// A container without a user namespace could write to our own file; nothing has been done yet that would be repeated.
fn protect(config: &Spec) -> Result<(), OciError> {
    let namespaces = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let own = namespaces.is_some_and(|list| list.iter().any(|one| one.typ() == LinuxNamespaceType::User));
    if own {
        return Ok(());
    }
    crate::binary::protect().map_err(step("run from a read-only mount"))
}

/// `protect`, before a configuration is read in whole, as that would be done twice.
fn protect_from(config: &[u8]) -> Result<(), OciError> {
    if asks_for_users(config) {
        return Ok(());
    }
    crate::binary::protect().map_err(step("run from a read-only mount"))
}

/// The container, locked: for verbs that change it.
fn open(globals: &Globals, id: &str) -> Result<(Directory, Record, Status), OciError> {
    let directory = Directory::open(&globals.root, id)?;
    let Some(record) = directory.read()? else {
        return Err(OciError::NoContainer { id: id.to_owned() });
    };
    let status = directory.status(&record)?;
    Ok((directory, record, status))
}
