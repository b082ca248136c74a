//! A further process in a running container.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::libc;
use oci_spec::runtime::{LinuxSeccomp, Process};
use sys::schedule::Cpus;

use crate::cgroup::Cgroup;
use crate::container::{self, Names, Options, Running, StartError, Stdio, Within};

/// The container to enter.
#[derive(Clone, Copy, Debug)]
pub struct ExecTarget<'a> {
    /// Its first process.
    pub pid: i32,
    /// The same by descriptor, so that a reused number cannot lead elsewhere.
    pub pidfd: BorrowedFd<'a>,
}

/// Runs a process in a container, as our child: its namespaces in one step, its cgroup, and whatever `process` and
/// `seccomp` say, which the caller takes from the container's own configuration. The terminal, if `stdio` is one, is made
/// in the container's devpts.
pub fn exec(
    target: ExecTarget<'_>,
    process: &Process,
    seccomp: Option<&LinuxSeccomp>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
) -> Result<Running, StartError> {
    let host = |action| {
        move |source| StartError::Host {
            action,
            path: None,
            source,
        }
    };
    let (kinds, user) = kinds(target.pid).map_err(host("look at the container's namespaces"))?;
    if kinds & libc::CLONE_NEWNS == 0 && !options.shared_mounts {
        // The caller's root would be the process's.
        return Err(host("enter the container's mount namespace")(
            io::Error::from_raw_os_error(libc::ESRCH),
        ));
    }
    let home = if options.bare_environment || container::has_variable(process, "HOME") {
        None
    } else {
        let path = format!("/proc/{}/root", target.pid);
        let root = fs::File::open(path).map_err(host("open the container's root"))?;
        Some(container::home(root.as_fd(), process.user().uid())?)
    };
    let within = Within::of(&target.pid.to_string(), user).map_err(host("look at the container's users"))?;
    let cgroup = cgroup.place_beside(target.pid)?;
    let mut plan = container::plan_process(process, seccomp, &cgroup, stdio, options, within, home)?;
    plan.joins_user = user;
    plan.process.personality = options.personality;
    (plan.initial_cpus, plan.final_cpus) = match container::exec_cpus(process)? {
        // The caller's are nobody's wish, as in `container::plan`.
        (None, None) => (None, Some(Cpus::all())),
        told => told,
    };
    let pidfd = target
        .pidfd
        .try_clone_to_owned()
        .map_err(host("hold the container's process"))?;
    if kinds != 0 {
        plan.joins.push((pidfd, kinds));
    }
    if options.shared_mounts {
        let root = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(format!("/proc/{}/root", target.pid));
        plan.chroot = Some(root.map_err(host("open the container's root"))?.into());
    }
    let names = Names {
        program: options
            .program
            .or_else(|| Some(process.args().as_ref()?.first()?.as_str()))
            .unwrap_or_default()
            .to_owned(),
        directory: process.cwd().display().to_string(),
    };
    container::launch(plan, &names, &mut |_| Ok(()))
}

const CLONE_NEWTIME: i32 = 0x80;

/// Which of its namespaces are not ours; whether its user namespace is among them. setns(2) refuses our own user
/// namespace.
pub(crate) fn kinds(pid: i32) -> io::Result<(i32, bool)> {
    let mut kinds = 0;
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", CLONE_NEWTIME),
    ] {
        let own = match fs::metadata(format!("/proc/self/ns/{name}")) {
            Ok(own) => own.ino(),
            // A kernel without this kind.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if fs::metadata(format!("/proc/{pid}/ns/{name}"))?.ino() != own {
            kinds |= flag;
        }
    }
    Ok((kinds, kinds & libc::CLONE_NEWUSER != 0))
}

impl<'a> ExecTarget<'a> {
    /// The container of a process that we hold.
    pub fn of(running: &'a Running) -> ExecTarget<'a> {
        ExecTarget {
            pid: running.pid,
            pidfd: running.pidfd.as_fd(),
        }
    }
}
