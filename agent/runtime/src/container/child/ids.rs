//! Becoming somebody in the container's user namespace.

use std::io;
use std::os::fd::BorrowedFd;

use sys::{cred, fd, process};

use super::super::recipe::Plan;
use super::super::report::{Failure, Step, at};

/// In a user namespace of our own, of which the parent has yet to map the ids.
pub(super) fn await_ids(plan: &Plan, status: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut byte = [0];
    if at(Step::MapIds, 0, fd::read(status, &mut byte))? == 0 {
        return at(
            Step::MapIds,
            1,
            Err(io::Error::from_raw_os_error(nix::libc::ECANCELED)),
        );
    }
    // As in `first`: until the program runs, nobody may trace us or open our files.
    at(Step::JoinNamespace, 0, process::set_dumpable(false))?;
    become_root(plan)
}

/// Root of the container's user namespace; without the groups of whoever called, unless he may not leave them.
pub(super) fn become_root(plan: &Plan) -> Result<(), Failure> {
    if plan.process.groups.is_some() {
        at(Step::BecomeRoot, 0, cred::setgroups(&[]))?;
    }
    at(Step::BecomeRoot, 1, cred::setgid(0))?;
    at(Step::BecomeRoot, 2, cred::setuid(0))
}
