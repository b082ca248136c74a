//! `create`, `start` and `run`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::super::arguments::Arguments;
use super::super::config::read_config;
use super::super::hooks::{self, Point};
use super::super::state::{Directory, Record, Status, start_time};
use super::super::{Globals, OciError, filters, refused};
use super::console::{self, Console};
use super::{END_WAIT, end, open, passed_fds, protect_from, read_text, stdio, step, write_pid};
use crate::cgroup::{Cgroup, Layout};
use crate::container::{self, Hooks, Options, Running, Stdio};
use crate::spec::{CgroupSpec, ContainerSpec, Rootfs};

/// Path of the cgroup: as told, systemd's `SLICE:PREFIX:NAME` as the scope that it would name, else one of our own.
fn cgroup_path(config: &Spec, id: &str) -> Result<PathBuf, OciError> {
    let told = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone())
        .filter(|path| !path.as_os_str().is_empty());
    let Some(told) = told else {
        return Ok(PathBuf::from(format!("/bulkhead-oci-{id}")));
    };
    let text = told
        .to_str()
        .ok_or_else(|| refused("linux.cgroupsPath is not UTF-8"))?;
    Ok(match text.split(':').collect::<Vec<_>>().as_slice() {
        [slice, prefix, name] => {
            let unit = if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            };
            slice_path(slice).join(unit)
        }
        _ => Path::new("/").join(text.trim_start_matches('/')),
    })
}

/// Where systemd puts a slice: `a-b.slice` lies below `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    if name == "-" {
        return path;
    }
    for (at, _) in name.match_indices('-').filter(|(at, _)| *at > 0) {
        path.push(format!("{}.slice", &name[..at]));
    }
    path.push(format!("{name}.slice"));
    path
}

/// A container that was built.
struct Made {
    directory: Directory,
    record: Record,
    running: Running,
    /// It waits for `release`.
    waits: bool,
    console: Option<Console>,
}

fn make(globals: &Globals, arguments: &Arguments, detach: bool, wait: bool) -> Result<Made, OciError> {
    let id = arguments.id()?;
    let bundle = match arguments.value("bundle").filter(|bundle| !bundle.is_empty()) {
        Some(bundle) => PathBuf::from(bundle),
        None => std::env::current_dir().map_err(step("find the working directory"))?,
    };
    let bundle = bundle.canonicalize().map_err(|source| OciError::File {
        action: "find",
        path: bundle.clone(),
        source,
    })?;
    let path = bundle.join("config.json");
    let text = read_text(&path)?;
    protect_from(&text)?;
    let config = read_config(&text, &path)?;
    let waits = wait || !Point::StartContainer.of(&config).is_empty();
    let terminal = config
        .process()
        .as_ref()
        .is_some_and(|process| process.terminal().unwrap_or(false));
    let (stdio, console) = stdio(terminal, detach, arguments)?;
    let cgroup = cgroup_path(&config, id)?;
    let layout = Layout::detect()?;
    Cgroup::open(&layout, &cgroup)?;
    let record = Record {
        id: id.to_owned(),
        bundle,
        creating: true,
        pid: 0,
        start_time: 0,
        cgroup,
        created: jiff::Timestamp::now().to_string(),
        config,
    };
    let directory = Directory::create(&globals.root, id)?;
    // Before anything else is made: should we be killed, `delete --force` finds here what there is to remove.
    if let Err(error) = directory.write(&record.outline()) {
        directory.remove()?;
        return Err(error);
    }
    match build(&directory, record.clone(), &layout, stdio, arguments, waits) {
        Ok((record, running)) => Ok(Made {
            directory,
            record,
            running,
            waits,
            console,
        }),
        Err(error) => {
            // Whatever was made goes again; the first error is the one to tell.
            if let Err(also) = end::destroy(globals, directory, record) {
                globals.log.warn(&format!(
                    "failed to remove a container that was not made: {}",
                    crate::monitor::chain(&also)
                ));
            }
            Err(error)
        }
    }
}

fn build(
    directory: &Directory,
    mut record: Record,
    layout: &Layout,
    stdio: Stdio,
    arguments: &Arguments,
    waits: bool,
) -> Result<(Record, Running), OciError> {
    let resources = record
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default();
    let cgroup = Cgroup::create(
        layout,
        &CgroupSpec {
            path: record.cgroup.clone(),
            resources,
        },
    )?;
    let mut config = record.config.clone();
    let preserve_fds = match config.process_mut() {
        Some(process) => passed_fds(arguments, process)?,
        None => 0,
    };
    let spec = ContainerSpec {
        id: record.id.clone(),
        config,
        rootfs: Rootfs::Bundle,
        log: None,
        stdin: true,
    };
    let bundle = record.bundle.clone();
    let state = record.describe(Status::Creating);
    let filters = filters();
    let options = Options {
        seccomp_cache: filters.as_deref(),
        state: Some(&state),
        preserve_fds,
        keep_keyring: arguments.is("no-new-keyring"),
        bundle: Some(&bundle),
        ..Options::default()
    };
    let wanted = [Point::Prestart, Point::CreateRuntime, Point::CreateContainer]
        .iter()
        .any(|point| !point.of(&record.config).is_empty());
    let mut call = |pid: i32| -> Result<(), String> {
        record.pid = pid;
        record.start_time =
            start_time(pid).map_err(|error| format!("failed to look at the process: {error}"))?;
        // A hook may ask for the state.
        directory
            .write(&record.outline())
            .map_err(|error| crate::monitor::chain(&error))?;
        for point in [Point::Prestart, Point::CreateRuntime, Point::CreateContainer] {
            hooks::run(&record, point, Status::Creating).map_err(|error| crate::monitor::chain(&error))?;
        }
        Ok(())
    };
    let hooks: Option<&mut Hooks<'_>> = if wanted { Some(&mut call) } else { None };
    let running = if waits {
        container::create(&spec, None, &cgroup, stdio, &options, &directory.fifo(), hooks)?.running
    } else {
        container::run(&spec, None, &cgroup, stdio, &options, hooks)?
    };
    let kept = (|| {
        record.creating = false;
        record.pid = running.pid;
        record.start_time = start_time(running.pid).map_err(step("look at the container's process"))?;
        directory.write(&record)?;
        write_pid(arguments, running.pid)
    })();
    match kept {
        Ok(()) => Ok((record, running)),
        Err(error) => {
            // `destroy` kills by what the record on disk says, which may be the old one.
            cgroup.kill()?;
            sys::fd::wait_readable(running.pidfd.as_fd(), Some(END_WAIT))
                .map_err(step("end the container's process"))?;
            Err(error)
        }
    }
}

pub(super) fn create(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    make(globals, arguments, true, true).map(|_| 0)
}

pub(super) fn start(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (directory, record, status) = open(globals, arguments)?;
    match status {
        Status::Created => {
            release(globals, directory, &record)?;
            Ok(0)
        }
        Status::Stopped | Status::Creating => Err(refused("cannot start a container that has stopped")),
        Status::Running => Err(refused("cannot start an already running container")),
        Status::Paused => Err(refused("cannot start a container that is paused")),
    }
}

/// Starts a created container, with the hooks around that.
fn release(globals: &Globals, directory: Directory, record: &Record) -> Result<(), OciError> {
    if let Err(error) = hooks::run(record, Point::StartContainer, Status::Created) {
        // runtime-spec 1.2, runtime.md, Lifecycle 7: "MUST generate an error, stop the container". What is left of it is
        // the caller's to delete, as with runc.
        if let Some(process) = record.process()? {
            sys::process::pidfd_send_signal(process.as_fd(), super::SIGKILL)
                .map_err(step("end the container's process"))?;
            sys::fd::wait_readable(process.as_fd(), Some(END_WAIT))
                .map_err(step("wait for the container's end"))?;
        }
        return Err(error.into());
    }
    let released = container::release(&directory.fifo())?;
    if !Point::Poststart.of(&record.config).is_empty() {
        released
            .wait()
            .map_err(step("wait for the container's program"))?;
    }
    started(globals, directory, record);
    Ok(())
}

/// What comes when its program runs.
fn started(globals: &Globals, directory: Directory, record: &Record) {
    // A poststart hook may call us for this container.
    drop(directory);
    hooks::run_all(record, Point::Poststart, Status::Running, &globals.log);
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let detach = arguments.is("detach");
    // Before there is anybody to pass them to, so that none is lost.
    let signals = if detach {
        None
    } else {
        Some(console::signals().map_err(step("take the signals"))?)
    };
    let Made {
        directory,
        record,
        running,
        waits,
        console,
    } = make(globals, arguments, detach, false)?;
    let released = if waits {
        release(globals, directory, &record)
    } else {
        started(globals, directory, &record);
        Ok(())
    };
    let ended = match (released, signals) {
        (Ok(()), None) => return Ok(0),
        (Ok(()), Some(signals)) => console::attend(console, &signals, running.pidfd.as_fd()),
        (Err(error), _) => {
            let (directory, record, _) = open(globals, arguments)?;
            end::destroy(globals, directory, record)?;
            return Err(error);
        }
    };
    if !arguments.is("keep") {
        match open(globals, arguments) {
            Ok((directory, record, _)) => end::destroy(globals, directory, record)?,
            Err(OciError::NoContainer { .. }) => {} // somebody was faster
            Err(error) => return Err(error),
        }
    }
    Ok(ended.map_err(step("wait for the container's process"))?.code())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            path("user-1000.slice:libpod:abc"),
            Path::new("/user.slice/user-1000.slice/libpod-abc.scope")
        );
        assert_eq!(path(":x:abc"), Path::new("/system.slice/x-abc.scope"));
        assert_eq!(path("-.slice:x:abc"), Path::new("/x-abc.scope"));
        assert_eq!(path("libpod/x"), Path::new("/libpod/x"));
        assert_eq!(path("/docker/x"), Path::new("/docker/x"));
        assert_eq!(path(""), Path::new("/bulkhead-oci-id"));
    }
}
