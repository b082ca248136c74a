//! A pod's user, network, IPC and UTS namespaces: made by a helper process, which ends once they have been opened.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use sys::process::CloneArgs;
use sys::{cred, fd, process, socket};

use super::{IdMaps, SandboxError, become_root, c_string, errno_of, open_namespace, step, tell};
use crate::spec::{SandboxSpec, Share};

/// Those that are the pod's own.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) user: Option<OwnedFd>,
    pub(super) net: Option<OwnedFd>,
    pub(super) ipc: Option<OwnedFd>,
    pub(super) uts: Option<OwnedFd>,
}

/// Namespaces on their way: a child in a new user namespace leaves the others for new ones once its ids are mapped, and
/// stays until we have opened them all.
pub(super) struct Making {
    pid: i32,
    ours: OwnedFd,
    flags: i32,
    started: Result<(), SandboxError>,
}

impl Making {
    /// Begins; none when all of them are the host's. `finish` must be called.
    pub(super) fn start(spec: &SandboxSpec) -> Result<Option<Making>, SandboxError> {
        let mut flags = 0;
        if spec.network == Share::Pod {
            flags |= libc::CLONE_NEWNET;
        }
        if spec.ipc == Share::Pod {
            flags |= libc::CLONE_NEWIPC;
        }
        if spec.hostname.is_some() {
            flags |= libc::CLONE_NEWUTS;
        }
        if flags == 0 && spec.users.is_none() {
            return Ok(None);
        }
        let hostname = spec
            .hostname
            .as_deref()
            .map(|name| c_string("hostname", name))
            .transpose()?;
        let (ours, theirs) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
        let ids = spec.users.map(|range| {
            let ids = vec![(0, range.start, range.count)];
            IdMaps {
                uids: ids.clone(),
                gids: ids,
            }
        });
        let body = || {
            fd::close_inherited(ours.as_fd());
            let mapped = if ids.is_some() {
                await_ids(theirs.as_fd())
            } else {
                Ok(())
            };
            let made = mapped
                .and_then(|()| process::unshare(flags))
                .and_then(|()| hostname.as_deref().map_or(Ok(()), cred::sethostname))
                .and_then(|()| {
                    if flags & libc::CLONE_NEWNET != 0 {
                        socket::loopback_up()
                    } else {
                        Ok(())
                    }
                });
            tell_and_wait(theirs.as_fd(), made)
        };
        let user = ids.as_ref().map_or(0, |_| libc::CLONE_NEWUSER);
        let args = CloneArgs {
            flags: user as u64,
            exit_signal: libc::SIGCHLD,
            cgroup: None,
        };
        let pid = process::spawn(args, body).map_err(step("start a helper process"))?;
        drop(theirs);
        let started = ids.as_ref().map_or(Ok(()), |ids| {
            ids.write(pid)
                .and_then(|()| socket::send(ours.as_fd(), b"0"))
                .map_err(step("map the ids of a user namespace"))
        });
        Ok(Some(Making {
            pid,
            ours,
            flags: flags | user,
            started,
        }))
    }

    /// Waits for them, and for the end of the helper.
    pub(super) fn finish(self) -> Result<Namespaces, SandboxError> {
        let Making {
            pid,
            ours,
            flags,
            started,
        } = self;
        let made = started.and_then(|()| told(&ours).map_err(step("make the pod's namespaces")));
        let opened = made.and_then(|()| {
            let open = |flag, name| match flags & flag {
                0 => Ok(None),
                _ => open_namespace(pid, name)
                    .map(Some)
                    .map_err(step("open the pod's namespaces")),
            };
            Ok(Namespaces {
                user: open(libc::CLONE_NEWUSER, "user")?,
                net: open(libc::CLONE_NEWNET, "net")?,
                ipc: open(libc::CLONE_NEWIPC, "ipc")?,
                uts: open(libc::CLONE_NEWUTS, "uts")?,
            })
        });
        // It waits for this.
        drop(ours);
        process::wait_pid(pid).map_err(step("end a helper process"))?;
        opened
    }
}

/// What the helper says of its work.
fn told(ours: &OwnedFd) -> io::Result<()> {
    let mut answer = [0; 8];
    match fd::read(ours.as_fd(), &mut answer)? {
        8 => match errno_of(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Tells, then stays until the parent closes its end.
fn tell_and_wait(socket: BorrowedFd<'_>, result: io::Result<()>) -> i32 {
    let told = tell(socket, result);
    let mut byte = [0];
    i32::from(told.and_then(|()| fd::read(socket, &mut byte)).is_err())
}

/// In a new user namespace: waits until the parent has mapped its ids.
fn await_ids(socket: BorrowedFd<'_>) -> io::Result<()> {
    if fd::read(socket, &mut [0])? == 0 {
        return Err(io::Error::from_raw_os_error(libc::ECANCELED));
    }
    become_root()
}
