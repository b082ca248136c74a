//! The processes of a group: listing, killing and freezing them, and removing the group once they are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{EBUSY, ENOTEMPTY, EOPNOTSUPP, ESRCH, SIGKILL};

use super::{Cgroup, CgroupError, read, read_if_there, write, write_if_there};

/// Most entries listed of one group, and most depth below it: a container that makes more has our refusal, not our memory.
const LISTED_MAX: usize = 1 << 20;
const DEPTH_MAX: usize = 64;
/// How long a freeze may take: a process in an uninterruptible sleep holds it up.
const STATE_WAIT: Duration = Duration::from_secs(5);
/// How long killed processes have to go before those that came since are looked for.
const KILL_AGAIN: Duration = Duration::from_millis(100);
/// Between two looks at a state of which the kernel sends no word.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Process ids in the group and below.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for directory in self.directories() {
            for group in below(&directory)? {
                pids.extend(members(&group)?);
            }
        }
        Ok(pids.into_iter().collect())
    }

    /// SIGKILL for every process in the group and below, frozen ones too. They may take a moment to go.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(unified) = self.unified()
            && write_if_there(&unified.join("cgroup.kill"), "1")?
        {
            // v2 killed all in its own tree; a member of a v1 group alone is found below.
        }
        if !self.layout.is_v2() {
            // Frozen first, or a process that forks as fast as we read would never be caught.
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if self.unified().is_none() {
                self.freezer_v1("FROZEN")?;
            }
            for pid in self.pids()? {
                match sys::process::kill(pid, SIGKILL) {
                    Err(error) if error.raw_os_error() != Some(ESRCH) => {
                        return Err(CgroupError::File {
                            action: "kill a process of",
                            path: self.path(),
                            value: Some(pid.to_string()),
                            source: error,
                        });
                    }
                    _ => {}
                }
            }
            // A frozen process takes its SIGKILL only when thawed.
            self.freezer_v1("THAWED")?;
            self.take_back()?;
        }
        Ok(())
    }

    /// Moves members that somebody has put into another group of v1's freezer into ours, which is thawed: if that one is
    /// frozen they would never end.
    fn take_back(&self) -> Result<(), CgroupError> {
        let Some(freezer) = self.controller("freezer").filter(|path| path.exists()) else {
            return Ok(());
        };
        let mut ours = BTreeSet::new();
        for group in below(&freezer)? {
            ours.extend(members(&group)?);
        }
        for pid in self.pids()?.into_iter().filter(|pid| !ours.contains(pid)) {
            match write_if_there(&freezer.join("cgroup.procs"), &pid.to_string()) {
                // It has ended.
                Err(CgroupError::File { source, .. }) if source.raw_os_error() == Some(ESRCH) => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Stops every process in the group and below until `thaw`.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)
    }

    /// Lets them run again.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        if self.layout.is_v2() {
            let path = self.layout.mounts()[0].join(&self.path);
            write(&path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
            let want = if frozen { "frozen 1" } else { "frozen 0" };
            return self.wait_until("freeze", || {
                Ok(read(&path.join("cgroup.events"))?
                    .lines()
                    .any(|line| line == want))
            });
        }
        let state = if frozen { "FROZEN" } else { "THAWED" };
        if !self.freezer_v1(state)? {
            return Err(CgroupError::Unsupported {
                what: "freezing".into(),
            });
        }
        Ok(())
    }

    /// False when there is no freezer.
    fn freezer_v1(&self, state: &str) -> Result<bool, CgroupError> {
        let Some(directory) = self.controller("freezer") else {
            return Ok(false);
        };
        let file = directory.join("freezer.state");
        if !write_if_there(&file, state)? {
            return Ok(false);
        }
        self.wait_until("freeze", || {
            let now = read(&file)?;
            if now.trim() == state {
                return Ok(true);
            }
            // v1 may stay in FREEZING when a process forked meanwhile; writing again makes it try again.
            write(&file, state)?;
            Ok(false)
        })?;
        Ok(true)
    }

    /// Whether its processes are stopped.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        if self.layout.is_v2() {
            let path = self.layout.mounts()[0].join(&self.path).join("cgroup.events");
            return Ok(read_if_there(&path)?.is_some_and(|text| text.lines().any(|line| line == "frozen 1")));
        }
        match self.controller("freezer") {
            Some(path) => {
                Ok(read_if_there(&path.join("freezer.state"))?.is_some_and(|text| text.trim() == "FROZEN"))
            }
            None => Ok(false),
        }
    }

    /// Refuses a group that others are in or that is frozen (runtime-spec 1.2, config-linux.md, Control groups: a runtime may
    /// check and "MUST generate an error if such a check fails"). It would end them together with the container. In
    /// runc's words.
    pub(crate) fn check_unused(&self) -> Result<(), CgroupError> {
        let taken = |reason| {
            let path = self.path();
            Err(CgroupError::Taken { path, reason })
        };
        if !self.exists() {
            return Ok(());
        }
        if self.is_frozen()? {
            return taken("container's cgroup unexpectedly frozen");
        }
        if !self.pids()?.is_empty() {
            return taken("container's cgroup is not empty");
        }
        Ok(())
    }

    /// Looks again until it is so; the kernel tells nobody about these changes. Bounded by STATE_WAIT.
    fn wait_until(
        &self,
        action: &'static str,
        mut reached: impl FnMut() -> Result<bool, CgroupError>,
    ) -> Result<(), CgroupError> {
        let begin = Instant::now();
        while !reached()? {
            if begin.elapsed() > STATE_WAIT {
                let source = io::ErrorKind::TimedOut.into();
                return Err(CgroupError::File {
                    action,
                    path: self.path(),
                    value: None,
                    source,
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Removes the group and all below it, waiting for processes that are on their way out. Absent ones are no error.
    pub fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        let begin = Instant::now();
        for directory in self.directories() {
            // Most have nothing below.
            if remove_free(&directory)? {
                continue;
            }
            for group in below(&directory)?.iter().rev() {
                while !remove_free(group)? {
                    if begin.elapsed() >= patience {
                        return Err(CgroupError::Busy {
                            path: group.clone(),
                            waited_ms: begin.elapsed().as_millis(),
                        });
                    }
                    wait_for_members(group, patience.saturating_sub(begin.elapsed()))?;
                }
            }
        }
        Ok(())
    }

    /// Ends every process in the group and removes it.
    pub fn end(&self, patience: Duration) -> Result<(), CgroupError> {
        // Mostly all have ended already.
        let mut removed = self.remove(Duration::ZERO);
        let begin = Instant::now();
        while let Err(CgroupError::Busy { .. }) = removed
            && begin.elapsed() < patience
        {
            // Again and again: who was about to enter when we looked was not there to be killed.
            self.kill()?;
            removed = self.remove(KILL_AGAIN);
        }
        removed
    }

    /// Removes the parents that are empty now, up to but not including `top`.
    pub fn remove_empty_parents(&self, top: &Path) -> Result<(), CgroupError> {
        let mut path = self.path();
        while path.pop() && path != top && path != Path::new("/") {
            for directory in Self::open(&self.layout, &path)?.directories() {
                if !remove_free(&directory)? {
                    // Somebody else's child or process.
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Removes a group that has no processes and none below it; whether it is gone.
fn remove_free(group: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(group) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(EBUSY | ENOTEMPTY)) => Ok(false),
        Err(source) => Err(CgroupError::File {
            action: "remove",
            path: group.to_owned(),
            value: None,
            source,
        }),
    }
}

/// Waits until a member of a group has ended, or a moment when none can be named.
fn wait_for_members(group: &Path, patience: Duration) -> Result<(), CgroupError> {
    let Some(pid) = members(group)?.into_iter().find(|pid| *pid > 0) else {
        // The last thread is past its exit but not out of the group: the kernel does not say when.
        std::thread::sleep(POLL_INTERVAL);
        return Ok(());
    };
    match sys::process::pidfd_open(pid) {
        Ok(pidfd) => sys::fd::wait_readable(pidfd.as_fd(), Some(patience))
            .map(drop)
            .map_err(|source| CgroupError::File {
                action: "wait for a process of",
                path: group.to_owned(),
                value: None,
                source,
            }),
        Err(_) => Ok(()), // It has gone since.
    }
}

/// The processes of one group. A group of threads refuses to list them (EOPNOTSUPP); the domain above it has them all
/// (cgroup-v2.rst, Threads).
fn members(group: &Path) -> Result<Vec<i32>, CgroupError> {
    let text = match read_if_there(&group.join("cgroup.procs")) {
        Err(CgroupError::File { source, .. }) if source.raw_os_error() == Some(EOPNOTSUPP) => None,
        text => text?,
    };
    let text = text.unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.parse().ok());
    Ok(pids.take(LISTED_MAX).collect())
}

/// The directory and every group below it, parents first.
fn below(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    let depth = directory.components().count();
    while next < found.len() {
        let here = found[next].clone();
        next += 1;
        if here.components().count() - depth >= DEPTH_MAX || found.len() >= LISTED_MAX {
            continue;
        }
        let entries = match fs::read_dir(&here) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(CgroupError::File {
                    action: "list",
                    path: here,
                    value: None,
                    source,
                });
            }
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
