//! What each verb does.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::arguments::Arguments;
use super::state::{Directory, Record, Status, start_time};
use super::{OciError, SPEC_VERSION, refused};
use crate::cgroup::{Cgroup, Layout};
use crate::container::{self, Options, Running, Stdio};
use crate::exec::{self, ExecTarget};
use crate::spec::{CgroupSpec, ContainerSpec, Rootfs};

/// How long a killed container may take to be gone.
const END_WAIT: Duration = Duration::from_secs(10);
/// Largest configuration: the largest seccomp profiles are some 100 KiB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
const SIGKILL: i32 = nix::libc::SIGKILL;

/// Runs the verb; its exit code.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    if arguments.is("version") {
        // Exactly three lines: go-runc's parser fails at a fourth.
        println!("bulkhead-runtime version {}", env!("CARGO_PKG_VERSION"));
        println!("commit: {}", option_env!("BULKHEAD_COMMIT").unwrap_or("unknown"));
        println!("spec: {SPEC_VERSION}");
        return Ok(0);
    }
    match arguments.verb.as_deref() {
        Some("create") => create(root, arguments).map(|_| 0),
        Some("start") => start(root, arguments),
        Some("run") => run_container(root, arguments),
        Some("state") => state(root, arguments),
        Some("kill") => kill(root, arguments),
        Some("delete") => delete(root, arguments),
        Some("exec") => exec(root, arguments),
        Some("ps") => ps(root, arguments),
        Some("list") => list(root, arguments),
        Some("pause") => freeze(root, arguments, true),
        Some("resume") => freeze(root, arguments, false),
        Some("spec") => spec(arguments),
        Some("features") => features(),
        Some(verb @ ("update" | "events" | "checkpoint" | "restore")) => {
            Err(refused(format!("{verb} is not supported yet")))
        }
        Some(verb) => Err(refused(format!(
            "no command {verb:?}: see `bulkhead-runtime --help`"
        ))),
        None => {
            println!(
                "usage: bulkhead-runtime [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] [--debug] \
                 create|start|run|state|kill|delete|exec|ps|list|pause|resume|spec|features [FLAGS] ID\n       \
                 bulkhead-runtime monitor --dir DIR"
            );
            if arguments.is("help") {
                Ok(0)
            } else {
                Err(refused("no command given"))
            }
        }
    }
}

fn print(value: &serde_json::Value) {
    println!("{value:#}");
}

fn step(action: &'static str) -> impl FnOnce(io::Error) -> OciError {
    move |source| OciError::Step { action, source }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    let fail = |source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(File::open(path).map_err(fail)?, CONFIG_BYTES_MAX),
        &mut text,
    )
    .map_err(fail)?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Path of the cgroup: as told, systemd's `SLICE:PREFIX:NAME` as the scope that it would name, else one of our own.
fn cgroup_path(config: &Spec, id: &str) -> Result<PathBuf, OciError> {
    let told = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let Some(told) = told else {
        return Ok(Path::new("/bulkhead-oci").join(id));
    };
    let text = told
        .to_str()
        .ok_or_else(|| refused("linux.cgroupsPath is not UTF-8"))?;
    Ok(match text.split(':').collect::<Vec<_>>().as_slice() {
        [slice, prefix, name] => Path::new("/").join(slice).join(format!("{prefix}-{name}.scope")),
        _ => Path::new("/").join(text.trim_start_matches('/')),
    })
}

/// Streams of a process: ours, or a terminal whose master goes to the console socket.
fn stdio(terminal: bool, arguments: &Arguments) -> Result<Stdio, OciError> {
    match (terminal, arguments.value("console-socket")) {
        (false, None) => Stdio::inherit().map_err(step("copy the standard streams")),
        (false, Some(_)) => Err(refused(
            "cannot use console socket if the process has no terminal",
        )),
        (true, None) => Err(refused(
            "cannot allocate tty without a console socket: give --console-socket",
        )),
        (true, Some(path)) => {
            let socket = UnixStream::connect(path).map_err(|source| OciError::File {
                action: "connect to",
                path: PathBuf::from(path),
                source,
            })?;
            Ok(Stdio::Terminal {
                socket: OwnedFd::from(socket),
                size: None,
            })
        }
    }
}

fn preserve_fds(arguments: &Arguments) -> Result<u32, OciError> {
    match arguments.value("preserve-fds") {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| refused(format!("--preserve-fds {text:?} is not a number"))),
    }
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

fn create(root: &Path, arguments: &Arguments) -> Result<(Directory, Running), OciError> {
    let id = arguments.id()?;
    let bundle = match arguments.value("bundle") {
        Some(bundle) => PathBuf::from(bundle),
        None => std::env::current_dir().map_err(step("find the working directory"))?,
    };
    let bundle = bundle.canonicalize().map_err(|source| OciError::File {
        action: "find",
        path: bundle.clone(),
        source,
    })?;
    let config: Spec = read_json(&bundle.join("config.json"))?;
    check(&config)?;
    protect(&config)?;
    let terminal = config
        .process()
        .as_ref()
        .is_some_and(|process| process.terminal().unwrap_or(false));
    let stdio = stdio(terminal, arguments)?;
    let path = cgroup_path(&config, id)?;
    let resources = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default();
    let directory = Directory::create(root, id)?;
    let made = (|| {
        let cgroup = Cgroup::create(
            &Layout::detect()?,
            &CgroupSpec {
                path: path.clone(),
                resources,
            },
        )?;
        let spec = ContainerSpec {
            id: id.to_owned(),
            config,
            rootfs: Rootfs::Bundle,
            log: None,
            stdin: true,
        };
        match build(&spec, &cgroup, stdio, &bundle, arguments, &directory) {
            Ok(running) => Ok((spec.config, running, cgroup)),
            Err(error) => {
                if let Err(also) = cgroup.remove(END_WAIT) {
                    eprintln!("failed to remove the cgroup of a container that was not made: {also}");
                }
                Err(error)
            }
        }
    })();
    let (config, running, cgroup) = match made {
        Ok(made) => made,
        Err(error) => {
            directory.remove()?;
            return Err(error);
        }
    };
    let kept = (|| {
        let record = Record {
            id: id.to_owned(),
            bundle,
            pid: running.pid,
            start_time: start_time(running.pid).map_err(step("look at the container's process"))?,
            cgroup: path,
            created: jiff::Timestamp::now().to_string(),
            config,
        };
        directory.write(&record)?;
        write_pid(arguments, running.pid)
    })();
    if let Err(error) = kept {
        cgroup.kill()?;
        sys::process::wait(running.pidfd.as_fd()).map_err(step("end the container's process"))?;
        cgroup.remove(END_WAIT)?;
        directory.remove()?;
        return Err(error);
    }
    Ok((directory, running))
}

fn build(
    spec: &ContainerSpec,
    cgroup: &Cgroup,
    stdio: Stdio,
    bundle: &Path,
    arguments: &Arguments,
    directory: &Directory,
) -> Result<Running, OciError> {
    let options = Options {
        preserve_fds: preserve_fds(arguments)?,
        keep_keyring: arguments.is("no-new-keyring"),
        bundle: Some(bundle),
        ..Options::default()
    };
    Ok(container::create(spec, None, cgroup, stdio, &options, &directory.fifo(), None)?.running)
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

/// What we would have to ignore is refused.
fn check(config: &Spec) -> Result<(), OciError> {
    if config.process().is_none() {
        return Err(refused("process: a container needs one"));
    }
    let Some(hooks) = config.hooks() else {
        return Ok(());
    };
    let lists = [
        #[allow(deprecated)] // docker 20.10 still writes it
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    if lists.into_iter().flatten().any(|list| !list.is_empty()) {
        return Err(refused("hooks: not supported yet"));
    }
    Ok(())
}

fn open(root: &Path, arguments: &Arguments) -> Result<(Directory, Record, Status), OciError> {
    let id = arguments.id()?;
    let directory = Directory::open(root, id)?;
    let Some(record) = directory.read()? else {
        return Err(OciError::NoContainer { id: id.to_owned() });
    };
    let status = directory.status(&record)?;
    Ok((directory, record, status))
}

fn start(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let (directory, _, status) = open(root, arguments)?;
    match status {
        Status::Created => {
            container::release(&directory.fifo())?;
            Ok(0)
        }
        Status::Stopped => Err(refused("cannot start a container that has stopped")),
        Status::Running | Status::Paused => Err(refused("cannot start an already running container")),
    }
}

fn run_container(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let (directory, running) = create(root, arguments)?;
    container::release(&directory.fifo())?;
    if arguments.is("detach") {
        return Ok(0);
    }
    // Others may look at it, signal it and run in it meanwhile.
    drop(directory);
    let ended =
        sys::process::wait(running.pidfd.as_fd()).map_err(step("wait for the container's process"))?;
    if !arguments.is("keep") {
        let (directory, record, _) = open(root, arguments)?;
        destroy(directory, &record)?;
    }
    Ok(ended.code())
}

fn state(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let (_, record, status) = open(root, arguments)?;
    print(&record.describe(status));
    Ok(0)
}

/// A signal by number or name, with or without `SIG`.
fn signal(text: &str) -> Result<i32, OciError> {
    let unknown = || refused(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

fn kill(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let signal = signal(arguments.words.get(1).map_or("SIGTERM", String::as_str))?;
    let (_, record, status) = open(root, arguments)?;
    if arguments.is("all") {
        let cgroup = record.cgroup()?;
        if signal == SIGKILL {
            cgroup.kill()?;
        } else if cgroup.exists() {
            for pid in cgroup.pids()? {
                send(pid, signal)?;
            }
        }
        return Ok(0);
    }
    // runtime-spec 1.2, runtime.md, Kill: neither created nor running "MUST generate an error".
    let process = if status == Status::Stopped {
        None
    } else {
        record.process()?
    };
    let Some(process) = process else {
        return Err(refused("container not running"));
    };
    sys::process::pidfd_send_signal(process.as_fd(), signal)
        .map_err(step("signal the container's process"))?;
    if signal == SIGKILL && status == Status::Paused {
        // cgroup v1: a frozen process is not ended by SIGKILL until it thaws.
        record.cgroup()?.thaw()?;
    }
    Ok(0)
}

fn send(pid: i32, signal: i32) -> Result<(), OciError> {
    match sys::process::kill(pid, signal) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        result => result.map_err(step("signal a process of the container")),
    }
}

fn delete(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let id = arguments.id()?;
    let force = arguments.is("force");
    let directory = match Directory::open(root, id) {
        // As runc: forced, what is not there is gone.
        Err(OciError::NoContainer { .. }) if force => return Ok(0),
        result => result?,
    };
    let Some(record) = directory.read()? else {
        directory.remove()?;
        return Ok(0);
    };
    let status = directory.status(&record)?;
    // runtime-spec 1.2, runtime.md, Delete: not stopped "MUST have no effect on the container and MUST generate an error".
    // Deviation: one that was created and never started may be deleted, as with runc, on which engines rely.
    if !matches!(status, Status::Stopped | Status::Created) && !force {
        return Err(refused(format!(
            "cannot delete container {id} that is not stopped: it is running"
        )));
    }
    destroy(directory, &record)?;
    Ok(0)
}

fn destroy(directory: Directory, record: &Record) -> Result<(), OciError> {
    let cgroup = record.cgroup()?;
    if cgroup.exists() {
        cgroup.kill()?;
    }
    if let Some(process) = record.process()? {
        sys::process::pidfd_send_signal(process.as_fd(), SIGKILL)
            .map_err(step("end the container's process"))?;
        sys::fd::wait_readable(process.as_fd(), Some(END_WAIT))
            .map_err(step("wait for the container's end"))?;
    }
    cgroup.remove(END_WAIT)?;
    directory.remove()
}

/// The process of an exec: a whole one from a file, or the container's own with another program.
fn exec_process(arguments: &Arguments, record: &Record) -> Result<Process, OciError> {
    if let Some(path) = arguments.value("process") {
        return read_json(Path::new(path));
    }
    let program = arguments.words.get(1..).unwrap_or_default();
    if program.is_empty() {
        return Err(refused("process args cannot be empty"));
    }
    for flag in [
        "user",
        "apparmor",
        "process-label",
        "cap",
        "additional-gids",
        "cgroup",
    ] {
        if arguments.value(flag).is_some() {
            return Err(refused(format!(
                "exec --{flag} is not supported yet: give --process"
            )));
        }
    }
    let mut process = record.config.process().clone().unwrap_or_default();
    process
        .set_args(Some(program.to_vec()))
        .set_terminal(Some(arguments.is("tty")));
    if let Some(cwd) = arguments.value("cwd") {
        process.set_cwd(PathBuf::from(cwd));
    }
    if !arguments.values("env").is_empty() {
        process
            .env_mut()
            .get_or_insert_default()
            .extend_from_slice(arguments.values("env"));
    }
    Ok(process)
}

fn exec(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let (directory, record, status) = open(root, arguments)?;
    // Only what it needs is read under the lock: an exec may last.
    drop(directory);
    let target = if status == Status::Running {
        record.process()?
    } else {
        None
    };
    let Some(target) = target else {
        return Err(refused(format!(
            "cannot exec in a container that is not running: {}: container not running",
            record.id
        )));
    };
    protect(&record.config)?;
    let process = exec_process(arguments, &record)?;
    let stdio = stdio(process.terminal().unwrap_or(false), arguments)?;
    let seccomp = record
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let options = Options {
        preserve_fds: preserve_fds(arguments)?,
        ..Options::default()
    };
    let target = ExecTarget {
        pid: record.pid,
        pidfd: target.as_fd(),
    };
    let running = exec::exec(target, &process, seccomp, &record.cgroup()?, stdio, &options)?;
    write_pid(arguments, running.pid)?;
    if arguments.is("detach") {
        return Ok(0);
    }
    let ended = sys::process::wait(running.pidfd.as_fd()).map_err(step("wait for the process"))?;
    Ok(ended.code())
}

fn ps(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let (_, record, _) = open(root, arguments)?;
    let pids = record.cgroup()?.pids()?;
    match arguments.value("format") {
        Some("json") => println!("{}", serde_json::json!(pids)),
        None | Some("table") => {
            println!("PID");
            for pid in pids {
                println!("{pid}");
            }
        }
        Some(other) => {
            return Err(refused(format!(
                "invalid format option {other:?}: json and table are known"
            )));
        }
    }
    Ok(0)
}

fn list(root: &Path, arguments: &Arguments) -> Result<i32, OciError> {
    let mut found = Vec::new();
    let fail = |source| OciError::File {
        action: "read",
        path: root.to_owned(),
        source,
    };
    match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => {
            for entry in result.map_err(fail)? {
                let Ok(id) = entry.map_err(fail)?.file_name().into_string() else {
                    continue;
                };
                let directory = match Directory::open(root, &id) {
                    Err(OciError::NoContainer { .. }) => continue, // deleted meanwhile
                    result => result?,
                };
                if let Some(record) = directory.read()? {
                    let status = directory.status(&record)?;
                    found.push(record.describe(status));
                }
            }
        }
    }
    found.sort_by_key(|one| one["id"].as_str().map(str::to_owned));
    match arguments.value("format") {
        Some("json") => println!("{}", serde_json::Value::Array(found)),
        None | Some("table") if arguments.is("quiet") => {
            for one in found {
                println!("{}", one["id"].as_str().unwrap_or_default());
            }
        }
        None | Some("table") => {
            println!(
                "{:<24} {:<8} {:<8} {:<40} CREATED",
                "ID", "PID", "STATUS", "BUNDLE"
            );
            for one in found {
                let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
                println!(
                    "{:<24} {:<8} {:<8} {:<40} {}",
                    text("id"),
                    one["pid"],
                    text("status"),
                    text("bundle"),
                    text("created")
                );
            }
        }
        Some(other) => {
            return Err(refused(format!(
                "invalid format option {other:?}: json and table are known"
            )));
        }
    }
    Ok(0)
}

fn freeze(root: &Path, arguments: &Arguments, on: bool) -> Result<i32, OciError> {
    let (_, record, status) = open(root, arguments)?;
    match (on, status) {
        (true, Status::Running | Status::Created) => record.cgroup()?.freeze()?,
        (false, Status::Paused) => record.cgroup()?.thaw()?,
        (true, _) => return Err(refused("container not running")),
        (false, _) => return Err(refused("container not paused")),
    }
    Ok(0)
}

/// A configuration to begin with, as `runc spec` writes it.
fn spec(arguments: &Arguments) -> Result<i32, OciError> {
    let path = Path::new(arguments.value("bundle").unwrap_or(".")).join("config.json");
    let mut spec = Spec::default();
    if let Some(process) = spec.process_mut() {
        process
            .set_args(Some(vec!["sh".to_owned()]))
            .set_terminal(Some(true));
    }
    spec.set_version(SPEC_VERSION.to_owned());
    let text = serde_json::to_vec_pretty(&spec).map_err(|source| OciError::Json {
        path: path.clone(),
        source,
    })?;
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut file| io::Write::write_all(&mut file, &text))
        .map_err(|source| OciError::File {
            action: "write",
            path,
            source,
        })?;
    Ok(0)
}

fn features() -> Result<i32, OciError> {
    let layout = Layout::detect()?;
    print(&serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": !layout.is_v2(), "v2": layout.is_v2(), "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": {},
    }));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_number_and_name() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(signal(text).unwrap(), 9);
        }
        for text in ["0", "65", "-1", "SIGNOPE", ""] {
            assert!(signal(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_systemd_path_becomes_its_scope() {
        let mut config = Spec::default();
        let mut path = |text: &str| {
            let mut linux = config.linux().clone().unwrap_or_default();
            linux.set_cgroups_path(Some(text.into()));
            config.set_linux(Some(linux));
            cgroup_path(&config, "id").unwrap()
        };
        assert_eq!(
            path("system.slice:docker:abc"),
            Path::new("/system.slice/docker-abc.scope")
        );
        assert_eq!(path("libpod/x"), Path::new("/libpod/x"));
        assert_eq!(path("/docker/x"), Path::new("/docker/x"));
    }
}
