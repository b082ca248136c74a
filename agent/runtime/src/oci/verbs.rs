//! What each verb does; here the choice among them and what several need.

mod console;
mod create;
mod describe;
mod end;
mod events;
mod exec;
mod limits;
mod look;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::arguments::Arguments;
use super::config::{CONFIG_BYTES_MAX, asks_for_users, parse};
use super::state::{Directory, Record, Status};
use super::{Globals, OciError, SPEC_VERSION, refused};
use crate::container::Stdio;
use console::Console;

/// How long a killed container may take to be gone.
const END_WAIT: Duration = Duration::from_secs(10);
/// Room for one of an engine's, so that it is read at once.
const CONFIG_ROOM: usize = 64 << 10;
const SIGKILL: i32 = nix::libc::SIGKILL;

const USAGE: &str = "\
usage: bulkhead-runtime [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] [--rootless BOOL] [--debug] \
COMMAND [FLAGS] ...
  create run [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] [--preserve-fds N] ID
  start state pause resume ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
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

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    parse(&read_text(path)?, path)
}

fn read_json_from<T: serde::de::DeserializeOwned>(from: impl io::Read, path: &Path) -> Result<T, OciError> {
    parse(&read_text_from(from, path)?, path)
}

fn read_text(path: &Path) -> Result<Vec<u8>, OciError> {
    let file = File::open(path).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    read_text_from(file, path)
}

fn read_text_from(from: impl io::Read, path: &Path) -> Result<Vec<u8>, OciError> {
    let mut text = Vec::with_capacity(CONFIG_ROOM);
    // One byte more than is allowed, which `parse` refuses.
    let mut limited = io::Read::take(from, CONFIG_BYTES_MAX as u64 + 1);
    io::Read::read_to_end(&mut limited, &mut text).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
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
            Ok((Stdio::Terminal { socket, size }, Some(console)))
        }
        (true, Some(path)) => {
            let socket = UnixStream::connect(path).map_err(|source| OciError::File {
                action: "connect to",
                path: PathBuf::from(path),
                source,
            })?;
            let socket = OwnedFd::from(socket);
            Ok((Stdio::Terminal { socket, size: None }, None))
        }
    }
}

/// How many descriptors from 3 on are passed: as told, after those that systemd passed us (sd_listen_fds(3)), of which
/// the process then hears as the first of its PID namespace.
fn passed_fds(arguments: &Arguments, process: &mut Process) -> Result<u32, OciError> {
    let told: u32 = arguments.number("preserve-fds")?.unwrap_or(0);
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let (Some(count), Some(pid)) = (number("LISTEN_FDS"), number("LISTEN_PID")) else {
        return Ok(told);
    };
    if pid != std::process::id() || count == 0 {
        return Ok(told);
    }
    process
        .env_mut()
        .get_or_insert_default()
        .extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
    told.checked_add(count)
        .filter(|count| *count < PASSED_MAX)
        .ok_or_else(|| refused(format!("{told} and {count} descriptors are too many to pass")))
}

/// A process's limit is rarely higher, and what is not open among them is an error anyway.
const PASSED_MAX: u32 = 1 << 16;

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
fn open(globals: &Globals, arguments: &Arguments) -> Result<(Directory, Record, Status), OciError> {
    let id = arguments.id()?;
    let directory = Directory::open(&globals.root, id)?;
    let Some(record) = directory.read()? else {
        return Err(OciError::NoContainer { id: id.to_owned() });
    };
    let status = directory.status(&record)?;
    Ok((directory, record, status))
}
