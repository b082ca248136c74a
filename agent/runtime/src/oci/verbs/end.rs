//! `kill [--all] ID [SIGNAL]` and `delete [--force] ID`.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::LinuxNamespaceType;

use super::super::arguments::Arguments;
use super::super::hooks::{self, Point};
use super::super::state::{Directory, Record, Status, ids, look, mount_of};
use super::super::{Globals, OciError, refused};
use super::{END_WAIT, SIGKILL, open, step};

/// A signal by number or name, with or without `SIG`; `RTMIN+3` and its kin too.
fn signal(text: &str) -> Result<i32, OciError> {
    let unknown = || refused(format!("unknown signal {text:?}"));
    let real_time = |number: i32| {
        (nix::libc::SIGRTMIN()..=nix::libc::SIGRTMAX())
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown)
    };
    if let Ok(number) = text.parse::<i32>() {
        // 0 only asks whether there is somebody.
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (base, first) in [("RTMIN", nix::libc::SIGRTMIN()), ("RTMAX", nix::libc::SIGRTMAX())] {
        if let Some(offset) = name.strip_prefix(base) {
            let offset: i32 = match offset {
                "" => 0,
                offset => offset.parse().map_err(|_| unknown())?,
            };
            return real_time(first.saturating_add(offset));
        }
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

pub(super) fn kill(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let signal = signal(arguments.words.get(1).map_or("SIGTERM", String::as_str))?;
    // Without the lock: a start that hangs in a hook can still be ended.
    let (record, status) = look(&globals.root, arguments.id()?)?;
    if arguments.is("all") {
        let cgroup = record.cgroup()?;
        if signal == SIGKILL && !record.no_cgroup {
            cgroup.kill()?;
        } else if cgroup.exists() || record.no_cgroup {
            for pid in record.pids()? {
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
    if signal == SIGKILL && !has_own_pids(&record) {
        // Nobody's end takes the others along where there is no PID namespace to end.
        record.cgroup()?.kill()?;
    } else if signal == SIGKILL && status == Status::Paused {
        // cgroup v1: a frozen process is not ended by SIGKILL until it thaws.
        record.cgroup()?.thaw()?;
    }
    Ok(0)
}

/// Whether its first process is the first of a PID namespace.
fn has_own_pids(record: &Record) -> bool {
    let linux = record.config.linux().as_ref();
    let mut namespaces = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    namespaces.any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_none())
}

fn send(pid: i32, signal: i32) -> Result<(), OciError> {
    match sys::process::kill(pid, signal) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        result => result.map_err(step("signal a process of the container")),
    }
}

pub(super) fn delete(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let force = arguments.is("force");
    let Some(pattern) = arguments.value("regex") else {
        delete_one(globals, arguments.id()?, force)?;
        return Ok(0);
    };
    let pattern = regex_lite::Regex::new(pattern)
        .map_err(|error| refused(format!("invalid value {pattern:?} for flag --regex: {error}")))?;
    let mut failed = None;
    for id in ids(&globals.root)?.iter().filter(|id| pattern.is_match(id)) {
        if let Err(error) = delete_one(globals, id, force) {
            // One that cannot go does not keep the others.
            globals
                .log
                .warn(&format!("container {id}: {}", crate::monitor::chain(&error)));
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(0), Err)
}

fn delete_one(globals: &Globals, id: &str, force: bool) -> Result<(), OciError> {
    let (directory, record, status) = match open(globals, id) {
        // As runc: forced, what is not there is gone.
        Err(OciError::NoContainer { .. }) if force => {
            return match Directory::open(&globals.root, id) {
                // Its creation ended before there was anything to record.
                Ok(directory) => directory.remove(),
                Err(OciError::NoContainer { .. }) => Directory::remove_empty(&globals.root, id),
                Err(error) => Err(error),
            };
        }
        result => result?,
    };
    // runtime-spec 1.2, runtime.md, Delete: not stopped "MUST have no effect on the container and MUST generate an error".
    // Deviation: one that was created and never started may be deleted, as with runc, on which engines rely.
    if !matches!(status, Status::Stopped | Status::Created) && !force {
        return Err(refused(format!(
            "cannot delete container {id} that is not stopped: it is {status}"
        )));
    }
    destroy(globals, directory, record)
}

/// Ends and removes what is left of a container, then tells its poststop hooks.
pub(super) fn destroy(globals: &Globals, directory: Directory, record: Record) -> Result<(), OciError> {
    let cgroup = record.cgroup()?;
    if let Some(process) = record.process()? {
        sys::process::pidfd_send_signal(process.as_fd(), SIGKILL)
            .map_err(step("end the container's process"))?;
        if cgroup.exists() {
            // All at once, and also one that is frozen.
            cgroup.kill()?;
        }
        sys::fd::wait_readable(process.as_fd(), Some(END_WAIT))
            .map_err(step("wait for the container's end"))?;
    }
    if let Some(unit) = &record.unit {
        // Before its directories go: those are systemd's.
        unit.stop()?;
    }
    cgroup.end(END_WAIT)?;
    if let Some(group) = &record.rdt {
        group.remove()?;
    }
    unmount(&record)?;
    directory.remove()?;
    // runtime-spec 1.2, runtime.md, Lifecycle 13: of a poststop hook that fails the runtime "MUST log a warning, but the
    // remaining hooks and lifecycle continue as if the hook had succeeded".
    hooks::run_all(&record, Point::Poststop, Status::Stopped, &globals.log);
    Ok(())
}

/// Unmounts the root of a container that had no mount namespace of its own: nobody else's end does.
fn unmount(record: &Record) -> Result<(), OciError> {
    let (Some(below), Some(root)) = (record.mounted_over, record.config.root()) else {
        return Ok(());
    };
    let root = record.bundle.join(root.path());
    let fail = |action| {
        let path = root.clone();
        move |source| OciError::File { action, path, source }
    };
    match mount_of(&root) {
        // Its mounts were another namespace's, or somebody was faster.
        Ok(mount) if mount == below => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail("look at")(error)),
        Ok(_) => {
            let path = CString::new(root.as_os_str().as_bytes())
                .map_err(|error| fail("unmount")(io::Error::from(error)))?;
            sys::mount::detach(&path).map_err(fail("unmount"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals_are_read_by_number_and_name() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(signal(text).unwrap(), 9);
        }
        assert_eq!(signal("0").unwrap(), 0);
        assert_eq!(signal("SIGRTMIN+3").unwrap(), 37);
        assert_eq!(signal("rtmax-1").unwrap(), 63);
        for text in ["65", "-1", "SIGNOPE", "", "SIG", "RTMIN-1", "RTMAX+1", "RTMIN+x"] {
            assert!(signal(text).is_err(), "{text:?}");
        }
    }
}
