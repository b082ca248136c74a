//! The process's standard streams, in the child: nothing here allocates.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc::{ENOENT, O_DIRECTORY, O_NOFOLLOW, O_PATH};
use sys::path::Resolve;
use sys::{fd, mount, path, socket, tty};

use super::recipe::{ProcessPlan, StdioPlan};
use super::report::{Failure, Step, at};

/// Makes a terminal in the container's own devpts, hands its master over, and with `root` mounts its slave on
/// /dev/console. Without `root` we are inside already.
pub(super) fn open_terminal(
    stdio: &StdioPlan,
    root: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    let StdioPlan::Terminal {
        socket,
        size,
        bare_newlines,
    } = stdio
    else {
        return Ok(None);
    };
    let inside;
    let from = match root {
        Some(root) => root,
        None => {
            inside = at(
                Step::Console,
                0,
                path::open(path::here(), c"/", O_PATH | O_DIRECTORY, 0, Resolve::Free),
            )?;
            inside.as_fd()
        }
    };
    let (master, slave) = at(Step::Console, 1, tty::open_pair(from))?;
    if let Some(size) = size {
        at(Step::Console, 2, tty::set_size(master.as_fd(), *size))?;
    }
    if *bare_newlines {
        at(Step::Console, 7, tty::set_bare_newlines(slave.as_fd()))?;
    }
    if let Some(root) = root {
        // By descriptors on both sides, and no link at the end (CVE-2025-52565).
        match path::open(root, c"dev/console", O_PATH | O_NOFOLLOW, 0, Resolve::NoLinks) {
            Ok(console) => {
                let tree = at(Step::Console, 3, mount::clone_tree(slave.as_fd(), c"", false))?;
                at(Step::Console, 4, mount::attach(tree.as_fd(), console.as_fd()))?;
            }
            Err(error) if error.raw_os_error() == Some(ENOENT) => {}
            Err(error) => return at(Step::Console, 5, Err(error)),
        }
    }
    // go-runc's and conmon's receivers take the message's text as the terminal's name.
    at(
        Step::Console,
        6,
        socket::send_fds(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()]),
    )?;
    Ok(Some(slave))
}

/// Puts the streams at their numbers.
pub(super) fn connect_stdio(plan: &ProcessPlan, terminal: Option<OwnedFd>) -> Result<(), Failure> {
    match (&plan.stdio, terminal) {
        (StdioPlan::Fds(fds), _) => {
            for (number, one) in fds.iter().enumerate() {
                at(Step::Stdio, 1, fd::dup_onto(one.as_fd(), number as i32))?;
            }
        }
        (StdioPlan::Terminal { .. }, Some(slave)) => {
            at(Step::Stdio, 2, tty::set_controlling(slave.as_fd()))?;
            // A terminal of ours alone; a device of the host's is never given away.
            at(
                Step::Stdio,
                3,
                path::chown(slave.as_fd(), c"", plan.uid, TTY_GROUP_KEEP),
            )?;
            for number in 0..3 {
                at(Step::Stdio, 4, fd::dup_onto(slave.as_fd(), number))?;
            }
        }
        (StdioPlan::Terminal { .. }, None) => {
            return at(
                Step::Stdio,
                5,
                Err(io::Error::from_raw_os_error(nix::libc::ENOTTY)),
            );
        }
    }
    Ok(())
}

/// fchownat(2): -1 leaves the group as devpts set it.
const TTY_GROUP_KEEP: u32 = u32::MAX;
