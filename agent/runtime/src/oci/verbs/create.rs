//! `create`, `start` and `run`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, LinuxIntelRdt, LinuxNamespace, LinuxNamespaceType, LinuxResources, Spec,
};

use super::super::arguments::Arguments;
use super::super::config::read_config;
use super::super::hooks::{self, Point};
use super::super::notify::{Manager, Notify};
use super::super::state::{Directory, Record, Status, mount_of, start_time};
use super::super::{Globals, Log, OciError, filters, refused, rootless};
use super::console::{self, Console};
use super::{END_WAIT, end, json, open, passed_fds, protect_from, stdio, step, tell_pid};
use crate::capability;
use crate::cgroup::{Cgroup, Layout, wanted_owner};
use crate::container::{self, Hooks, Options, Running, Stdio};
use crate::rdt::Group;
use crate::spec::{CgroupSpec, ContainerSpec, Rootfs};
use crate::systemd::{Holder, Unit};

/// Where the container's processes are: the path as told, or one of our own; with `--systemd-cgroup` the scope that
/// systemd is asked for.
fn place(config: &Spec, id: &str, arguments: &Arguments) -> Result<(PathBuf, Option<Unit>), OciError> {
    let told = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_ref());
    let text = told.map_or(Some(""), |path| path.to_str());
    let text = text.ok_or_else(|| refused("linux.cgroupsPath is not UTF-8"))?;
    if arguments.is("systemd-cgroup") {
        let unit = Unit::parse(text, id)?;
        return Ok((unit.path(), Some(unit)));
    }
    let path = match text {
        "" => PathBuf::from(format!("/bulkhead-oci-{id}")),
        text => Path::new("/").join(text.trim_start_matches('/')),
    };
    Ok((path, None))
}

/// runtime-spec 1.2, config.md, Linux Process: a capability that "cannot be granted" "MUST be logged as a warning".
fn warn_of_capabilities(config: &Spec, log: &Log) {
    let linux = config.linux().as_ref();
    let own_users = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|list| list.iter().any(|one| one.typ() == LinuxNamespaceType::User));
    let sets = config
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().as_ref());
    let Some(sets) = sets.filter(|_| !own_users) else {
        return;
    };
    let wanted = [
        sets.bounding(),
        sets.effective(),
        sets.permitted(),
        sets.inheritable(),
        sets.ambient(),
    ]
    .into_iter()
    .flatten()
    .fold(0, |wanted, set| wanted | capability::mask(set));
    let raised = |set: &Option<Capabilities>| set.as_ref().map_or(0, capability::mask);
    let bare = raised(sets.ambient()) & !(raised(sets.inheritable()) & raised(sets.permitted()));
    for name in capability::names(bare) {
        log.warn(&format!(
            "can't raise ambient capability {name}: it is not both inheritable and permitted"
        ));
    }
    let lacking = capability::names(wanted & !capability::grantable());
    if !lacking.is_empty() {
        log.warn(&format!(
            "capabilities that this host lacks: {}",
            lacking.join(" ")
        ));
    }
}

/// What the root of a container without a mount namespace of its own comes to lie on.
fn mounted_over(config: &Spec, bundle: &Path) -> Result<Option<u64>, OciError> {
    let namespaces = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let own = |one: &LinuxNamespace| one.typ() == LinuxNamespaceType::Mount && one.path().is_none();
    match config.root() {
        Some(root) if !namespaces.is_some_and(|list| list.iter().any(own)) => {
            let root = bundle.join(root.path());
            let mount = mount_of(&root).map_err(|source| OciError::File {
                action: "open the root file system",
                path: root,
                source,
            })?;
            Ok(Some(mount))
        }
        _ => Ok(None),
    }
}

/// The class of service that is asked for; not yet made.
fn class(config: &Spec, id: &str) -> Result<Option<Group>, OciError> {
    let group = intel_rdt(config).map(|rdt| Group::find(rdt, id));
    Ok(group.transpose()?)
}

fn intel_rdt(config: &Spec) -> Option<&LinuxIntelRdt> {
    config.linux().as_ref()?.intel_rdt().as_ref()
}

/// A container that was built.
struct Made {
    directory: Directory,
    record: Record,
    running: Running,
    /// It waits for `release`.
    waits: bool,
    console: Option<Console>,
    /// Somebody waits for word that its program, which is to run at once, is ready.
    notify: Option<Notify>,
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
    let path = bundle.join(arguments.value("config").unwrap_or("config.json"));
    let text = json::text(&path)?;
    if nix::unistd::geteuid().is_root() {
        // Who is not has a user namespace, or is refused below.
        protect_from(&text)?;
    }
    let config = read_config(&text, &path, &mut |warning| globals.log.warn(warning))?;
    if !wait && config.process().is_none() {
        return Err(refused(NO_PROCESS));
    }
    warn_of_capabilities(&config, &globals.log);
    if globals.rootless {
        rootless::check(&config)?;
    }
    // What is to happen before its program runs and needs its process.
    let before = !Point::StartContainer.of(&config).is_empty() || intel_rdt(&config).is_some();
    let waits = wait || before;
    let terminal = config
        .process()
        .as_ref()
        .is_some_and(|process| process.terminal().unwrap_or(false));
    let (stdio, console) = stdio(terminal, detach, arguments)?;
    let (cgroup, unit) = place(&config, id, arguments)?;
    if unit.is_some() && !nix::unistd::geteuid().is_root() {
        return Err(refused(
            "--systemd-cgroup needs root: a user's own systemd is not asked; leave the flag out",
        ));
    }
    let layout = Layout::detect()?;
    let group = Cgroup::open(&layout, &cgroup)?;
    if unit.is_none() {
        group.check_unused()?;
    }
    let record = Record {
        id: id.to_owned(),
        mounted_over: mounted_over(&config, &bundle)?,
        bundle,
        creating: true,
        pid: 0,
        start_time: 0,
        cgroup,
        unit,
        no_cgroup: false,
        rdt: class(&config, id)?,
        created: jiff::Timestamp::now().to_string(),
        config,
    };
    let directory = Directory::create(&globals.root, id)?;
    // What is done from here on is done inside, with the same number of process.
    let inside = match globals.rootless {
        true => rootless::enter(&record.config),
        false => Ok(None),
    };
    let inside = match inside {
        Ok(inside) => inside,
        Err(error) => {
            directory.remove()?;
            return Err(error);
        }
    };
    // Before the record, which says that the scope is ours: one of this name may be another's. Should we be killed here, it
    // goes with its only process.
    let holder = match hold(&record, &layout) {
        Ok(holder) => holder,
        Err(error) => {
            directory.remove()?;
            return Err(error);
        }
    };
    // Before anything else is made: should we be killed, `delete --force` finds here what there is to remove.
    if let Err(error) = directory.write(&record.outline()) {
        directory.remove()?;
        return Err(error);
    }
    let building = Building {
        globals,
        arguments,
        directory: &directory,
        layout: &layout,
        inside,
        holder,
        waits,
        released_here: !wait,
    };
    match build(building, record.clone(), stdio) {
        Ok((record, running, notify)) => Ok(Made {
            directory,
            record,
            running,
            waits,
            console,
            notify,
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

fn resources(config: &Spec) -> LinuxResources {
    let linux = config.linux().as_ref();
    linux
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default()
}

/// Has systemd make the scope of a container that is to have one, with a process in it until the container's own is.
fn hold(record: &Record, layout: &Layout) -> Result<Option<Holder>, OciError> {
    let Some(unit) = &record.unit else {
        return Ok(None);
    };
    let resources = resources(&record.config);
    Ok(Some(unit.start(&record.id, &resources, layout.is_v2())?))
}

/// What `make` has gathered.
struct Building<'a> {
    globals: &'a Globals,
    arguments: &'a Arguments,
    directory: &'a Directory,
    layout: &'a Layout,
    /// What is left to do of the configuration inside of the user namespace that we are in.
    inside: Option<Spec>,
    holder: Option<Holder>,
    waits: bool,
    /// This command lets the program run.
    released_here: bool,
}

fn build(
    building: Building<'_>,
    mut record: Record,
    stdio: Stdio,
) -> Result<(Record, Running, Option<Notify>), OciError> {
    let Building {
        globals,
        arguments,
        directory,
        layout,
        inside,
        holder,
        waits,
        released_here,
    } = building;
    let group = CgroupSpec {
        path: record.cgroup.clone(),
        resources: resources(&record.config),
    };
    let cgroup = match holder {
        Some(_) => Cgroup::adopt(layout, &group)?,
        None => match Cgroup::create(layout, &group) {
            Err(error) if globals.rootless && error.is_denied() => {
                if rootless::limits(&group.resources) {
                    return Err(refused(format!(
                        "linux.resources: without root and without a cgroup that is ours to write there are no limits ({})",
                        crate::monitor::chain(&error)
                    )));
                }
                record.no_cgroup = true;
                record.cgroup()?
            }
            made => made?,
        },
    };
    if let (Some(group), Some(rdt)) = (&record.rdt, intel_rdt(&record.config)) {
        group.make(rdt)?;
    }
    if let Some(uid) = wanted_owner(&record.config).filter(|_| !globals.rootless && !record.no_cgroup) {
        cgroup.give_to(uid)?;
    }
    let inside_user = inside.is_some();
    let mut config = inside.unwrap_or_else(|| record.config.clone());
    let bare = config.process().is_none();
    let process = config.process_mut().get_or_insert_default();
    let preserve_fds = passed_fds(arguments, process)?;
    let mut notify = None;
    if let Some(manager) = Manager::of_environment(&globals.log) {
        manager.provide(directory, &mut config)?;
        if released_here {
            notify = manager.listen(directory, &globals.log)?;
        }
    }
    let spec = ContainerSpec {
        id: record.id.clone(),
        config,
        rootfs: Rootfs::Bundle,
        log: None,
        stdin: true,
        stop_signal: None,
    };
    let bundle = record.bundle.clone();
    let state = record.describe(Status::Creating);
    let filters = filters(globals);
    let options = Options {
        seccomp_cache: filters.as_deref(),
        state: Some(&state),
        preserve_fds,
        keep_keyring: arguments.is("no-new-keyring"),
        inside_user,
        no_program: bare,
        bundle: Some(&bundle),
        in_order: true,
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
        for (point, status) in [
            // As crun and runtime-tools' validation have it; runc says `creating` here too, and nobody asks for that.
            (Point::Prestart, Status::Created),
            (Point::CreateRuntime, Status::Creating),
            (Point::CreateContainer, Status::Creating),
        ] {
            hooks::run(&record, point, status).map_err(|error| crate::monitor::chain(&error))?;
        }
        Ok(())
    };
    let hooks: Option<&mut Hooks<'_>> = if wanted { Some(&mut call) } else { None };
    let running = if waits {
        container::create(&spec, None, &cgroup, stdio, &options, &directory.fifo(), hooks)?.running
    } else {
        container::run(&spec, None, &cgroup, stdio, &options, hooks)?
    };
    drop(holder);
    let kept = (|| {
        record.creating = false;
        record.pid = running.pid;
        record.start_time = start_time(running.pid).map_err(step("look at the container's process"))?;
        if let Some(group) = &record.rdt {
            // It waits: what it will run, and all that this makes, is in the class with it.
            group.enter(running.pid)?;
        }
        directory.write(&record)?;
        tell_pid(arguments, &running)
    })();
    match kept {
        Ok(()) => Ok((record, running, notify)),
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

/// runtime-spec 1.2, runtime.md, Start: "MUST generate an error if `process` was not set". Until then it need not be.
const NO_PROCESS: &str = "process: there is none to start";

pub(super) fn start(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (directory, record, status) = open(globals, arguments.id()?)?;
    match status {
        Status::Created if record.config.process().is_none() => Err(refused(NO_PROCESS)),
        Status::Created => {
            let notify = match Manager::of_environment(&globals.log) {
                Some(manager) => manager.listen(&directory, &globals.log)?,
                None => None,
            };
            let process = record.process()?;
            release(globals, directory, &record)?;
            if let (Some(notify), Some(process)) = (notify, process) {
                notify.wait(process.as_fd(), record.pid)?;
            }
            Ok(0)
        }
        Status::Stopped | Status::Creating => Err(refused("cannot start a container that has stopped")),
        Status::Running => Err(refused("cannot start an already running container")),
        Status::Paused => Err(refused("cannot start a container that is paused")),
    }
}

/// runtime-spec 1.2, runtime.md, Lifecycle 9: of a poststart hook that fails "the runtime MUST log a warning, but the
/// remaining hooks and lifecycle continue". 1.3: it "MUST generate an error, stop the container". A configuration has the
/// rules of its own version.
fn poststart_may_fail(config: &Spec) -> bool {
    let mut numbers = config
        .version()
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0u32));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) < (1, 3)
}

/// Ends a container's process.
fn stop(record: &Record) -> Result<(), OciError> {
    let Some(process) = record.process()? else {
        return Ok(());
    };
    match sys::process::pidfd_send_signal(process.as_fd(), super::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {} // ended meanwhile
        result => result.map_err(step("end the container's process"))?,
    }
    sys::fd::wait_readable(process.as_fd(), Some(END_WAIT))
        .map(drop)
        .map_err(step("wait for the container's end"))
}

/// Starts a created container, with the hooks around that.
fn release(globals: &Globals, directory: Directory, record: &Record) -> Result<(), OciError> {
    if let Err(error) = hooks::run(record, Point::StartContainer, Status::Created) {
        // runtime-spec 1.2, runtime.md, Lifecycle 7: "MUST generate an error, stop the container". What is left of it is
        // the caller's to delete, as with runc.
        stop(record)?;
        return Err(error.into());
    }
    let released = container::release(&directory.fifo())?;
    if !Point::Poststart.of(&record.config).is_empty() {
        released
            .wait()
            .map_err(step("wait for the container's program"))?;
    }
    started(globals, directory, record)
}

/// What comes when its program runs.
fn started(globals: &Globals, directory: Directory, record: &Record) -> Result<(), OciError> {
    // A poststart hook may call us for this container.
    drop(directory);
    if poststart_may_fail(&record.config) {
        hooks::run_all(record, Point::Poststart, Status::Running, &globals.log);
    } else if let Err(error) = hooks::run(record, Point::Poststart, Status::Running) {
        stop(record)?;
        return Err(error.into());
    }
    Ok(())
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
        notify,
    } = make(globals, arguments, detach, false)?;
    let released = if waits {
        release(globals, directory, &record)
    } else {
        started(globals, directory, &record)
    };
    let process = running.pidfd.as_fd();
    let ended = match (released, signals) {
        (Ok(()), None) => {
            if let Some(notify) = notify {
                notify.wait(process, running.pid)?;
            }
            return Ok(0);
        }
        (Ok(()), Some(signals)) => console::attend(console, &signals, process, notify),
        (Err(error), _) => {
            let (directory, record, _) = open(globals, arguments.id()?)?;
            end::destroy(globals, directory, record)?;
            return Err(error);
        }
    };
    if !arguments.is("keep") {
        match open(globals, arguments.id()?) {
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
    fn a_path_is_taken_as_it_is_unless_systemd_is_asked() {
        let mut config = Spec::default();
        let mut path = |text: &str, words: &[&str]| {
            let mut linux = config.linux().clone().unwrap_or_default();
            linux.set_cgroups_path(Some(text.into()));
            config.set_linux(Some(linux));
            let arguments = Arguments::parse(words.iter().map(Into::into).collect()).unwrap();
            place(&config, "id", &arguments)
        };
        let ours = ["create", "id"];
        for (text, expected) in [
            ("libpod/x", "/libpod/x"),
            ("/docker/x", "/docker/x"),
            ("system.slice:docker:abc", "/system.slice:docker:abc"),
            ("", "/bulkhead-oci-id"),
        ] {
            assert_eq!(path(text, &ours).unwrap(), (PathBuf::from(expected), None));
        }
        let systemds = ["--systemd-cgroup", "create", "id"];
        let (scope, unit) = path("system.slice:docker:abc", &systemds).unwrap();
        assert_eq!(scope, Path::new("/system.slice/docker-abc.scope"));
        assert_eq!(unit.unwrap().scope, "docker-abc.scope");
        let error = path("/docker/x", &systemds).unwrap_err().to_string();
        assert!(error.contains("slice:prefix:name"), "{error}");
    }
}
