//! `exec ID PROGRAM ...` or `exec --process FILE ID`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process};

use super::super::arguments::Arguments;
use super::super::state::{Record, Status};
use super::super::{Globals, Log, OciError, filters, refused};
use super::{SIGKILL, console, json, open, passed_fds, protect, stdio, step, tell_pid};
use crate::capability;
use crate::cgroup::Cgroup;
use crate::container::{self, Options};
use crate::exec::{self, ExecTarget};

/// A whole process from a file, or the container's own with another program and what the flags change.
fn process(arguments: &Arguments, record: &Record, log: &Log) -> Result<Process, OciError> {
    if let Some(path) = arguments.value("process") {
        let mut process: Process = json::read(Path::new(path), log)?;
        if arguments.is("tty") {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let program = arguments.words.get(1..).unwrap_or_default();
    if program.is_empty() {
        return Err(refused("process args cannot be empty"));
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
    if let Some(label) = arguments.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if let Some(profile) = arguments.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if arguments.is("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    user(arguments, &mut process)?;
    let mut added = Capabilities::new();
    for name in arguments.values("cap") {
        match capability::parse(name) {
            Some(capability) => drop(added.insert(capability)),
            None => log.warn(&format!("capability ignored: {name:?} is unknown")),
        }
    }
    if !added.is_empty() {
        process.set_capabilities(Some(add(process.capabilities().as_ref(), &added)));
    }
    Ok(process)
}

fn user(arguments: &Arguments, process: &mut Process) -> Result<(), OciError> {
    let number = |flag: &str, text: &str| {
        text.parse::<u32>()
            .map_err(|_| refused(format!("--{flag} {text:?}: not a number of a user or group")))
    };
    if let Some(text) = arguments.value("user") {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(number("user", gid)?)),
            None => (text, None),
        };
        let user = process.user_mut();
        user.set_uid(number("user", uid)?);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    let groups = arguments
        .values("additional-gids")
        .iter()
        .flat_map(|list| list.split(','))
        .map(|text| number("additional-gids", text))
        .collect::<Result<Vec<_>, _>>()?;
    if !groups.is_empty() {
        process
            .user_mut()
            .additional_gids_mut()
            .get_or_insert_default()
            .extend(groups);
    }
    Ok(())
}

/// The sets with more in them. Inheritable stays (CVE-2022-29162); ambient grows only where inheritable already lets it.
fn add(sets: Option<&LinuxCapabilities>, added: &Capabilities) -> LinuxCapabilities {
    let mut sets = sets.cloned().unwrap_or_else(|| capability::sets([]));
    let with = |set: &Option<Capabilities>| -> Option<Capabilities> {
        Some(set.iter().flatten().chain(added).copied().collect())
    };
    let (bounding, effective, permitted, ambient) = (
        with(sets.bounding()),
        with(sets.effective()),
        with(sets.permitted()),
        with(sets.ambient()),
    );
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_ambient(ambient);
    sets
}

fn personality(record: &Record) -> Result<Option<u64>, OciError> {
    let linux = record.config.linux().as_ref();
    Ok(linux.map(container::personality).transpose()?.flatten())
}

/// The container's cgroup, or an existing one below it.
fn cgroup(arguments: &Arguments, record: &Record) -> Result<Cgroup, OciError> {
    let whole = record.cgroup()?;
    let Some(name) = arguments.value("cgroup") else {
        return Ok(whole);
    };
    if name.contains(':') {
        return Err(refused(format!(
            "--cgroup {name:?}: one controller's group alone is not supported, name one in all of them"
        )));
    }
    let name = name.trim_matches('/');
    if name.is_empty() {
        return Ok(whole);
    }
    Ok(whole.child(name)?)
}

pub(super) fn exec(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    // Only what it needs is read under the lock: an exec may last.
    let (record, status) = open(globals, arguments.id()?).map(|(_, record, status)| (record, status))?;
    match status {
        Status::Stopped | Status::Creating => {
            return Err(refused(
                "cannot exec in a stopped container: container not running",
            ));
        }
        Status::Paused if !arguments.is("ignore-paused") => {
            return Err(refused(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        _ => {}
    }
    let Some(target) = record.process()? else {
        return Err(refused(
            "cannot exec in a stopped container: container not running",
        ));
    };
    protect(&record.config)?;
    let mut process = process(arguments, &record, &globals.log)?;
    let preserve_fds = passed_fds(arguments, &mut process)?;
    let detach = arguments.is("detach");
    let signals = if detach {
        None
    } else {
        Some(console::signals().map_err(step("take the signals"))?)
    };
    let (stdio, console) = stdio(process.terminal().unwrap_or(false), detach, arguments)?;
    let seccomp = record
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let state = record.describe(status);
    let filters = filters(globals);
    let options = Options {
        seccomp_cache: filters.as_deref(),
        state: Some(&state),
        preserve_fds,
        shared_mounts: record.mounted_over.is_some(),
        personality: personality(&record)?,
        ..Options::default()
    };
    let target = ExecTarget {
        pid: record.pid,
        pidfd: target.as_fd(),
    };
    let cgroup = cgroup(arguments, &record)?;
    let running = exec::exec(target, &process, seccomp, &cgroup, stdio, &options)?;
    if let Err(error) = tell_pid(arguments, &running) {
        // Nobody would know of it.
        sys::process::pidfd_send_signal(running.pidfd.as_fd(), SIGKILL).map_err(step("end the process"))?;
        sys::process::wait(running.pidfd.as_fd()).map_err(step("end the process"))?;
        return Err(error);
    }
    let Some(signals) = signals else {
        return Ok(0);
    };
    let ended = console::attend(console, &signals, running.pidfd.as_fd(), None)
        .map_err(step("wait for the process"))?;
    Ok(ended.code())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn added_capabilities_are_never_inheritable() {
        let added: Capabilities = [Capability::NetRaw].into();
        let sets = add(Some(&capability::sets([Capability::Chown])), &added);
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 2);
        assert!(sets.inheritable().as_ref().unwrap().is_empty());
        assert!(
            add(None, &added)
                .permitted()
                .as_ref()
                .unwrap()
                .contains(&Capability::NetRaw)
        );
    }
}
