//! A pod's shared parts: one user namespace that owns its network, IPC and UTS namespaces, a PID namespace if the pod
//! shares one, and the pod's cgroup. All are held by descriptors; no process stays, but the minimal init of a shared PID
//! namespace, which cannot be without one.

mod namespaces;
mod sysctl;
mod users;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use sys::mount::FsContext;
use sys::process::CloneArgs;
use sys::{cred, fd, mount, path, process, socket};

use crate::cgroup::{Cgroup, CgroupError, Layout};
use crate::spec::{IdRange, PidShare, SandboxSpec, Share};
use namespaces::{Making, Namespaces};
pub(crate) use sysctl::{sysctl_namespace, sysctl_path};
pub(crate) use users::{IdMaps, make_user_namespace, root_of};

/// Why a sandbox could not be made; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Its cgroup.
    #[error("failed to set up the pod's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A combination that the kernel does not have.
    #[error("{reason}")]
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// A name with a NUL byte, or a sysctl that is not one of the pod's own namespaces.
    #[error("invalid {what}: {value:?}")]
    Invalid {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A step of the kernel's.
    #[error("failed to {action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A sysctl that the kernel refused.
    #[error("failed to set sysctl {name}")]
    Sysctl {
        /// Its dotted name.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn step(action: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Step { action, source }
}

/// How long `destroy` waits for the last processes of a pod.
pub const DESTROY_WAIT: Duration = Duration::from_secs(10);

/// A pod's shared parts.
#[derive(Debug)]
pub struct Sandbox {
    users: Option<IdRange>,
    namespaces: Namespaces,
    pid: Option<OwnedFd>,
    /// First process of the shared PID namespace.
    init: Option<(i32, OwnedFd)>,
    cgroup: Cgroup,
}

impl Sandbox {
    /// Makes it.
    pub fn create(spec: &SandboxSpec, layout: &Layout) -> Result<Sandbox, SandboxError> {
        check(spec)?;
        // Namespaces and groups take the kernel about as long: they are made beside each other.
        let making = Making::start(spec)?;
        let cgroup = Cgroup::create(layout, &spec.cgroup);
        let namespaces = making.map_or(Ok(Namespaces::default()), Making::finish);
        let cgroup = cgroup?;
        match namespaces.and_then(|namespaces| Self::build(spec, namespaces, cgroup.clone())) {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                cgroup.remove(DESTROY_WAIT)?;
                Err(error)
            }
        }
    }

    fn build(spec: &SandboxSpec, namespaces: Namespaces, cgroup: Cgroup) -> Result<Sandbox, SandboxError> {
        let mut sandbox = Sandbox {
            users: spec.users,
            namespaces,
            pid: None,
            init: None,
            cgroup,
        };
        if !spec.sysctls.is_empty() {
            sysctl::set(&sandbox, spec)?;
        }
        if spec.pid == PidShare::Pod
            && let Err(error) = sandbox.start_init()
        {
            sandbox.end_init()?;
            return Err(error);
        }
        Ok(sandbox)
    }

    /// The first process of a shared PID namespace: reaps what nobody else does, in an empty root, without any right.
    fn start_init(&mut self) -> Result<(), SandboxError> {
        // A leaf of its own: v2 allows no process in a group whose children have limits.
        let leaf = self.cgroup.child("sandbox")?;
        let leaf = Cgroup::create(
            leaf.layout(),
            &crate::spec::CgroupSpec {
                path: leaf.path(),
                resources: Default::default(),
            },
        )?;
        let entry = leaf.entry()?;
        let (ours, theirs) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
        let user = self.user();
        let highest = (0..64)
            .take_while(|bit| cred::has_bounding(*bit).is_ok())
            .last()
            .unwrap_or(0);
        let init = || {
            let ready = empty_root()
                .and_then(|()| give_up_rights(highest))
                .and_then(|()| process::reset_signals());
            // wait(2): the children of one who ignores SIGCHLD leave no zombies; orphans become ours.
            let ready = ready.and_then(|()| process::ignore_children());
            let failed = ready.is_err();
            if tell(theirs.as_fd(), ready).is_err() || failed || fd::close_from(0).is_err() {
                return 127;
            }
            loop {
                process::pause();
            }
        };
        let body = || {
            fd::close_inherited(ours.as_fd());
            let entered = entry
                .tasks
                .iter()
                .try_for_each(|tasks| fd::write(tasks.as_fd(), b"0").map(drop));
            let made = entered
                .and_then(|()| process::set_dumpable(false))
                .and_then(|()| join_user(user))
                .and_then(|()| {
                    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_PARENT) as u64;
                    process::spawn(
                        CloneArgs {
                            flags,
                            exit_signal: 0,
                            cgroup: None,
                        },
                        init,
                    )
                });
            match made {
                Ok(pid) => i32::from(socket::send(theirs.as_fd(), &pid.to_le_bytes()).is_err()),
                Err(error) => i32::from(tell(theirs.as_fd(), Err(error)).is_err()),
            }
        };
        let args = CloneArgs {
            flags: 0,
            exit_signal: libc::SIGCHLD,
            cgroup: entry.unified.as_ref().map(AsFd::as_fd),
        };
        let helper = process::spawn(args, body).map_err(step("start a helper process"))?;
        drop(theirs);
        // Two messages in either order: the helper's with the process id, the init's own.
        let mut pid = None;
        let mut ready = false;
        let mut failure = None;
        while failure.is_none() && (pid.is_none() || !ready) {
            let mut message = [0; 8];
            match fd::read(ours.as_fd(), &mut message).map_err(step("start the pod's init"))? {
                4 => {
                    pid = Some(i32::from_le_bytes([
                        message[0], message[1], message[2], message[3],
                    ]))
                }
                8 => match errno_of(message) {
                    0 => ready = true,
                    errno => failure = Some(io::Error::from_raw_os_error(errno)),
                },
                _ => failure = Some(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        process::wait_pid(helper).map_err(step("end a helper process"))?;
        if let Some(pid) = pid {
            self.init = Some((
                pid,
                process::pidfd_open(pid).map_err(step("name the pod's init"))?,
            ));
        }
        match (failure, pid) {
            (None, Some(pid)) => {
                self.pid = Some(open_namespace(pid, "pid").map_err(step("open the pod's namespaces"))?);
                Ok(())
            }
            (failure, _) => {
                let source = failure.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                Err(SandboxError::Step {
                    action: "start the pod's init",
                    source,
                })
            }
        }
    }

    fn end_init(&mut self) -> Result<(), SandboxError> {
        self.pid = None;
        let Some((_, pidfd)) = self.init.take() else {
            return Ok(());
        };
        match process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result.map_err(step("end the pod's init"))?,
        }
        match process::wait(pidfd.as_fd()) {
            // ECHILD: our caller reaps all its children itself and was faster.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(()),
            result => result.map(drop).map_err(step("end the pod's init")),
        }
    }

    /// The host ids of its user namespace.
    pub fn users(&self) -> Option<IdRange> {
        self.users
    }

    /// Its user namespace.
    pub fn user(&self) -> Option<BorrowedFd<'_>> {
        self.namespaces.user.as_ref().map(AsFd::as_fd)
    }

    /// Its network namespace.
    pub fn net(&self) -> Option<BorrowedFd<'_>> {
        self.namespaces.net.as_ref().map(AsFd::as_fd)
    }

    /// Its IPC namespace.
    pub fn ipc(&self) -> Option<BorrowedFd<'_>> {
        self.namespaces.ipc.as_ref().map(AsFd::as_fd)
    }

    /// Its UTS namespace.
    pub fn uts(&self) -> Option<BorrowedFd<'_>> {
        self.namespaces.uts.as_ref().map(AsFd::as_fd)
    }

    /// Its shared PID namespace.
    pub fn pid(&self) -> Option<BorrowedFd<'_>> {
        self.pid.as_ref().map(AsFd::as_fd)
    }

    /// Process id of the shared PID namespace's init, a child of the caller of `create`: its end is the pod's.
    pub fn init_pid(&self) -> Option<i32> {
        self.init.as_ref().map(|(pid, _)| *pid)
    }

    /// The pod's cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Ends what still runs in the pod, lets its namespaces go and removes its cgroup. Goes on after a failure and tells
    /// the first.
    pub fn destroy(mut self) -> Result<(), SandboxError> {
        let killed = self.cgroup.kill();
        let ended = self.end_init();
        let removed = self.cgroup.remove(DESTROY_WAIT);
        killed?;
        ended?;
        Ok(removed?)
    }
}

/// What the kernel has no answer for.
fn check(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let host = spec.network == Share::Host || spec.ipc == Share::Host || spec.pid == PidShare::Host;
    if spec.users.is_some() && host {
        return Err(SandboxError::Unsupported {
            reason: "a pod with a user namespace of its own cannot use the host's network, IPC or PID namespace",
        });
    }
    if let Some(range) = spec.users
        && (range.count == 0 || range.start == 0 || range.start.checked_add(range.count).is_none())
    {
        return Err(SandboxError::Unsupported {
            reason: "the range of user ids is empty, overflows or begins at root",
        });
    }
    for name in spec.sysctls.keys() {
        let namespaced = sysctl_namespace(name);
        let own = match namespaced {
            Some(libc::CLONE_NEWNET) => spec.network == Share::Pod,
            Some(libc::CLONE_NEWIPC) => spec.ipc == Share::Pod,
            _ => false,
        };
        if !own {
            return Err(SandboxError::Invalid {
                what: "sysctl",
                value: name.clone(),
            });
        }
    }
    Ok(())
}

fn c_string(what: &'static str, value: &str) -> Result<CString, SandboxError> {
    CString::new(value).map_err(|_| SandboxError::Invalid {
        what,
        value: value.to_owned(),
    })
}

/// A message of a helper: errno (0: done), a number.
fn message(errno: i32, index: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&errno.to_le_bytes());
    bytes[4..].copy_from_slice(&index.to_le_bytes());
    bytes
}

fn errno_of(message: [u8; 8]) -> i32 {
    i32::from_le_bytes([message[0], message[1], message[2], message[3]])
}

fn tell(socket: BorrowedFd<'_>, result: io::Result<()>) -> io::Result<()> {
    let errno = result
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    socket::send(socket, &message(errno, 0))
}

fn join_user(user: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(user) = user else { return Ok(()) };
    process::setns(user, libc::CLONE_NEWUSER)?;
    become_root()
}

fn become_root() -> io::Result<()> {
    cred::setgroups(&[])?;
    cred::setgid(0)?;
    cred::setuid(0)
}

/// Nothing of the host's file system stays in reach of the pod's init.
fn empty_root() -> io::Result<()> {
    mount::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    let attributes = mount::MOUNT_ATTR_RDONLY
        | mount::MOUNT_ATTR_NOSUID
        | mount::MOUNT_ATTR_NODEV
        | mount::MOUNT_ATTR_NOEXEC;
    let root = FsContext::open(c"tmpfs")?.mount(attributes)?;
    mount::attach_at(root.as_fd(), crate::container::PLACE)?;
    path::fchdir(root.as_fd())?;
    mount::pivot_here()?;
    mount::detach(c".")?;
    path::chdir(c"/")
}

fn give_up_rights(highest: u32) -> io::Result<()> {
    process::set_name(c"pod-init")?;
    process::setsid()?;
    for capability in 0..=highest {
        cred::drop_bounding(capability)?;
    }
    cred::capset(cred::CapSets::default())?;
    process::set_no_new_privs()
}

fn open_namespace(pid: i32, name: &str) -> io::Result<OwnedFd> {
    Ok(fs::File::open(format!("/proc/{pid}/ns/{name}"))?.into())
}
