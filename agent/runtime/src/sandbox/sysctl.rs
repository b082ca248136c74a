//! Sysctls of a pod's own namespaces.

use std::io;
use std::os::fd::AsFd;

use nix::libc;
use sys::path::Resolve;
use sys::process::CloneArgs;
use sys::{fd, path, process, socket};

use super::{Sandbox, SandboxError, c_string, errno_of, join_user, message, step, tell};
use crate::spec::SandboxSpec;

/// The namespace that a sysctl belongs to; none for the host's own and for names that are none (CVE-2022-0811).
pub(crate) fn sysctl_namespace(name: &str) -> Option<i32> {
    let sane = name.split(['.', '/']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    });
    if !sane {
        return None;
    }
    let ipc = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    match name {
        name if name.starts_with("net.") => Some(libc::CLONE_NEWNET),
        name if ipc.contains(&name) || name.starts_with("fs.mqueue.") => Some(libc::CLONE_NEWIPC),
        "kernel.domainname" | "kernel.hostname" => Some(libc::CLONE_NEWUTS),
        _ => None,
    }
}

/// The path below /proc of a sysctl whose name `sysctl_namespace` knows.
pub(crate) fn sysctl_path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

/// A child in the pod's network and IPC namespaces writes them.
pub(super) fn set(sandbox: &Sandbox, spec: &SandboxSpec) -> Result<(), SandboxError> {
    let proc = crate::container::open_proc().map_err(step("open /proc"))?;
    let mut writes = Vec::new();
    for (name, value) in &spec.sysctls {
        writes.push((
            c_string("sysctl", &sysctl_path(name))?,
            c_string("sysctl value", value)?,
        ));
    }
    let (ours, theirs) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
    let user = sandbox.user();
    let mut done = vec![false; writes.len()];
    let namespaces = [
        (sandbox.net(), libc::CLONE_NEWNET),
        (sandbox.ipc(), libc::CLONE_NEWIPC),
    ];
    let body = || {
        for (namespace, kind) in namespaces {
            if let Some(namespace) = namespace
                && let Err(error) = process::setns(namespace, kind)
            {
                return i32::from(tell(theirs.as_fd(), Err(error)).is_err());
            }
        }
        // As the host's root, then those that it may not write as the pod's: which of them owns the files of the IPC
        // namespace has changed between kernels.
        for pass in 0..2 {
            for (index, (name, value)) in writes.iter().enumerate() {
                if done[index] {
                    continue;
                }
                let written = path::open(proc.as_fd(), name, libc::O_WRONLY, 0, Resolve::Free)
                    .and_then(|file| fd::write(file.as_fd(), value.to_bytes()));
                match written {
                    Ok(_) => done[index] = true,
                    Err(error)
                        if pass == 0 && user.is_some() && error.raw_os_error() == Some(libc::EACCES) => {}
                    Err(error) => {
                        let answer = message(error.raw_os_error().unwrap_or(libc::EIO), index as u32);
                        return i32::from(socket::send(theirs.as_fd(), &answer).is_err());
                    }
                }
            }
            if done.iter().all(|done| *done) {
                break;
            }
            if let Err(error) = join_user(user) {
                return i32::from(tell(theirs.as_fd(), Err(error)).is_err());
            }
        }
        i32::from(tell(theirs.as_fd(), Ok(())).is_err())
    };
    let args = CloneArgs {
        flags: 0,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    let pid = process::spawn(args, body).map_err(step("start a helper process"))?;
    drop(theirs);
    let mut answer = [0; 8];
    let count = fd::read(ours.as_fd(), &mut answer);
    process::wait_pid(pid).map_err(step("end a helper process"))?;
    if count.map_err(step("set sysctls"))? != answer.len() {
        return Err(step("set sysctls")(io::ErrorKind::UnexpectedEof.into()));
    }
    match errno_of(answer) {
        0 => Ok(()),
        errno => {
            let index = u32::from_le_bytes([answer[4], answer[5], answer[6], answer[7]]) as usize;
            let name = spec.sysctls.keys().nth(index).cloned().unwrap_or_default();
            Err(SandboxError::Sysctl {
                name,
                source: io::Error::from_raw_os_error(errno),
            })
        }
    }
}
