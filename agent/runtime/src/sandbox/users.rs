//! User namespaces: their ids, and making one that stays without a process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use sys::process::CloneArgs;
use sys::{fd, process, socket};

use super::{SandboxError, open_namespace, step};

/// Host ids of root in a user namespace: a child of ours in it shows its maps.
pub(crate) fn root_of(users: &OwnedFd) -> Result<(u32, u32), SandboxError> {
    let (ours, theirs) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
    let body = || {
        fd::close_inherited(ours.as_fd());
        let mut byte = [0];
        let joined = process::setns(users.as_fd(), libc::CLONE_NEWUSER);
        let told = joined.and_then(|()| socket::send(theirs.as_fd(), b"0"));
        i32::from(told.and_then(|()| fd::read(theirs.as_fd(), &mut byte)).is_err())
    };
    let args = CloneArgs {
        flags: 0,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    let pid = process::spawn(args, body).map_err(step("join a user namespace"))?;
    drop(theirs);
    let mut byte = [0];
    let result = match fd::read(ours.as_fd(), &mut byte) {
        Ok(1) => first_id(pid, "uid_map").and_then(|uid| Ok((uid, first_id(pid, "gid_map")?))),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EPERM)),
        Err(error) => Err(error),
    };
    drop(ours);
    process::wait_pid(pid).map_err(step("end a helper process"))?;
    result.map_err(step("find root of a user namespace"))
}

/// Where id 0 is mapped to (user_namespaces(7): lines of first id inside, first outside, how many).
fn first_id(pid: i32, map: &str) -> io::Result<u32> {
    fs::read_to_string(format!("/proc/{pid}/{map}"))?
        .lines()
        .find_map(|line| {
            let mut numbers = line.split_whitespace();
            let inside: u32 = numbers.next()?.parse().ok()?;
            let outside = numbers.next()?.parse().ok()?;
            (inside == 0).then_some(outside)
        })
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The ids of a user namespace: (first id inside, first on the host, how many).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uids: Vec<(u32, u32, u32)>,
    pub(crate) gids: Vec<(u32, u32, u32)>,
}

impl IdMaps {
    /// Maps the ids of a process that was made in a new user namespace and waits.
    pub(crate) fn write(&self, pid: i32) -> io::Result<()> {
        let lines = |maps: &[(u32, u32, u32)]| -> String {
            maps.iter()
                .map(|(inside, host, count)| format!("{inside} {host} {count}\n"))
                .collect()
        };
        fs::write(format!("/proc/{pid}/uid_map"), lines(&self.uids))?;
        fs::write(format!("/proc/{pid}/gid_map"), lines(&self.gids))
    }
}

/// A user namespace with these ids.
pub(crate) fn make_user_namespace(maps: &IdMaps) -> Result<OwnedFd, SandboxError> {
    let (ours, theirs) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
    let body = || {
        fd::close_inherited(ours.as_fd());
        let mut byte = [0];
        i32::from(fd::read(theirs.as_fd(), &mut byte).is_err())
    };
    let args = CloneArgs {
        flags: libc::CLONE_NEWUSER as u64,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    let pid = process::spawn(args, body).map_err(step("make a user namespace"))?;
    drop(theirs);
    let result = maps.write(pid).and_then(|()| open_namespace(pid, "user"));
    drop(ours);
    process::wait_pid(pid).map_err(step("end a helper process"))?;
    result.map_err(step("map the ids of a user namespace"))
}
