//! The last part of the way from clone to exec, in the child: nothing here allocates. Streams, labels, limits, ids,
//! capabilities, filter, program.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc::{EACCES, ENOENT, ENOTDIR, O_PATH};
use sys::path::Resolve;
use sys::{cred, fd, path, process, schedule};

use super::child::write_file;
use super::recipe::{Plan, ProcessPlan};
use super::report::{Failure, Record, Step, at};
use super::streams::connect_stdio;

/// Becomes the process.
pub(super) fn run(whole: &Plan, terminal: Option<OwnedFd>, status: BorrowedFd<'_>) -> Result<(), Failure> {
    let plan = &whole.process;
    connect_stdio(plan, terminal)?;
    write_labels(whole)?;
    if plan.release.is_some() {
        // While we wait for the release we are still the runtime, with the host's files open, and others may run in the
        // container by then: an exec, a hook. None of them may look into us (as CVE-2016-9962, CVE-2019-5736).
        at(Step::Ready, 4, process::set_dumpable(false))?;
    }
    for (index, limit) in plan.limits.iter().enumerate() {
        at(Step::Limit, index, cred::setrlimit(*limit))?;
    }
    if let Some(persona) = plan.personality {
        at(Step::Personality, 0, cred::set_personality(persona))?;
    }
    if let Some((class, level)) = plan.io_priority {
        at(Step::IoPriority, 0, schedule::set_io_priority(class, level))?;
    }
    if let Some(policy) = &plan.memory_policy {
        at(Step::MemoryPolicy, 0, policy.apply())?;
    }
    if let Some(scheduler) = plan.scheduler {
        // Before the rights for it go with the ids and capabilities.
        at(Step::Scheduler, 0, schedule::set_scheduler(scheduler))?;
    }
    // As root first, as the user may lack the right to pass a parent; as the user below, if only he may.
    let entered = path::chdir(&plan.directory);
    if plan.no_new_privs {
        at(Step::NoNewPrivs, 0, process::set_no_new_privs())?;
    }
    for (index, capability) in plan.unbound.iter().enumerate() {
        at(Step::Capabilities, index, cred::drop_bounding(*capability))?;
    }
    at(Step::Ids, 0, cred::set_keep_caps(true))?;
    if let Some(groups) = &plan.groups {
        at(Step::Ids, 1, cred::setgroups(groups))?;
    }
    at(Step::Ids, 2, cred::setgid(plan.gid))?;
    at(Step::Ids, 3, cred::setuid(plan.uid))?;
    at(Step::Ids, 4, cred::set_keep_caps(false))?;
    at(Step::Capabilities, 100, cred::clear_ambient())?;
    at(Step::Capabilities, 101, cred::capset(until_filter(plan)))?;
    for capability in &plan.ambient {
        at(Step::Capabilities, 102, cred::raise_ambient(*capability))?;
    }
    if plan.die_with_parent {
        // After the last change of ids and capabilities, each of which forgets it (prctl(2), PR_SET_PDEATHSIG).
        at(Step::Ids, 5, process::set_parent_death_signal(nix::libc::SIGKILL))?;
    }
    match entered {
        Err(error) if error.raw_os_error() == Some(EACCES) => {
            at(Step::Directory, 0, path::chdir(&plan.directory))?;
        }
        result => at(Step::Directory, 0, result)?,
    }
    // CVE-2024-21626: /proc/self/fd/N as a working directory would be a directory of the host's.
    if !at(Step::Directory, 1, path::cwd_is_inside())? {
        return at(
            Step::DirectoryOutside,
            0,
            Err(io::Error::from_raw_os_error(EACCES)),
        );
    }
    // Who has none to be waits for a release that does not come.
    let program = match plan.candidates.is_empty() {
        true => c"",
        false => search(&plan.candidates)?,
    };
    path::umask(plan.umask);
    // Close-on-exec and not closed, so that an exec that fails can still be told. Below are those that are passed on, and
    // our own fillers of numbers that are free, which close themselves.
    at(Step::CloseFds, 0, fd::cloexec_from(3 + plan.preserve_fds))?;
    if let Some(release) = &plan.release {
        // Who may trace everybody in the container shall find nothing of the host's while we wait.
        let keep = [release.as_fd(), status];
        at(Step::CloseFds, 2, fd::close_but(3 + plan.preserve_fds, keep))?;
    }
    // From the filter on only calls that every profile of a program's life allows, as old as Linux: profiles are lists of
    // what is allowed, and older ones have no openat2, faccessat2 or close_range.
    if plan.listener {
        // Here, as the parent of a container that waits for its release is gone afterwards.
        load_filter(plan, status)?;
    }
    if let Some(release) = &plan.release {
        at(Step::Ready, 0, Record::Ready.send(status))?;
        // The parent listens no more.
        at(Step::Ready, 5, fd::close(status))?;
        let mut byte = [0];
        if at(Step::Ready, 1, fd::read(release.as_fd(), &mut byte))? == 0 {
            return at(
                Step::Ready,
                2,
                Err(io::Error::from_raw_os_error(nix::libc::ECANCELED)),
            );
        }
    } else {
        at(Step::Ready, 3, Record::Exec.send(status))?;
    }
    if !plan.listener {
        load_filter(plan, status)?;
    }
    let error = process::execve(program, &plan.arguments, &plan.environment);
    at(Step::Exec, 0, Err(error))
}

const SYS_ADMIN: u64 = 1 << 21;

/// The capabilities until the filter is loaded. Without no_new_privs its load takes CAP_SYS_ADMIN (seccomp(2)), which is
/// then only permitted: nothing before the load may use it.
fn until_filter(plan: &ProcessPlan) -> cred::CapSets {
    let mut sets = plan.capabilities;
    if plan.seccomp.is_some() && !plan.no_new_privs {
        sets.permitted |= SYS_ADMIN;
    }
    sets
}

/// Loads the filter, if any; one that asks a supervisor has a listener, which goes to the parent.
fn load_filter(plan: &ProcessPlan, status: BorrowedFd<'_>) -> Result<(), Failure> {
    let Some((program, flags)) = &plan.seccomp else {
        return Ok(());
    };
    // The process's own right to it spares the calls, which the filter may refuse.
    let lacks = !plan.no_new_privs && plan.capabilities.effective & SYS_ADMIN == 0;
    if lacks {
        let mut sets = until_filter(plan);
        sets.effective |= SYS_ADMIN;
        at(Step::Capabilities, 103, cred::capset(sets))?;
    }
    if plan.listener {
        let listener = at(
            Step::Seccomp,
            0,
            sys::seccomp::load_with_listener(program, *flags),
        )?;
        at(
            Step::Seccomp,
            1,
            Record::Listener.send_with(status, listener.as_fd()),
        )?;
    } else {
        at(Step::Seccomp, 2, sys::seccomp::load(program, *flags))?;
    }
    if lacks {
        at(Step::Capabilities, 104, cred::capset(plan.capabilities))?;
    }
    Ok(())
}

fn write_labels(whole: &Plan) -> Result<(), Failure> {
    if whole.process.labels.is_empty() {
        return Ok(());
    }
    // The files of a process that nobody may trace belong to the host's root. We have every capability still, so nobody
    // in the container may trace us in this moment.
    at(Step::Label, 0, process::set_dumpable(true))?;
    for (index, (name, value)) in whole.process.labels.iter().enumerate() {
        // Through the host's verified procfs (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881).
        at(
            Step::Label,
            index,
            write_file(whole.proc.as_fd(), name, value.to_bytes()),
        )?;
    }
    at(Step::Label, 0, process::set_dumpable(false))
}

/// The first candidate that can be executed, as execvp(3) chooses.
fn search(candidates: &[CString]) -> Result<&CStr, Failure> {
    let mut refused = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let result = path::open(path::here(), candidate, O_PATH, 0, Resolve::Free)
            .and_then(|file| path::stat(file.as_fd()))
            .and_then(|stat| {
                if stat.is_dir() {
                    Err(io::Error::from_raw_os_error(EACCES))
                } else {
                    Ok(())
                }
            })
            .and_then(|()| path::may_execute(candidate));
        match result {
            Ok(()) => return Ok(candidate),
            Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR)) => {}
            Err(error) => refused = Some((index, error)),
        }
    }
    match refused {
        Some((index, error)) => at(Step::Find, index, Err(error)),
        None => at(Step::Find, 0, Err(io::Error::from_raw_os_error(ENOENT))),
    }
}
