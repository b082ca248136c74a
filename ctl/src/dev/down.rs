//! `ctl dev down`: ends every process of a cluster and removes every mount, cgroup, interface and file of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MntFlags;
use nix::sys::signal::Signal;

use super::layout::{Cluster, Layout};
use super::{network, process};
use crate::config::Config;
use crate::error::CtlError;
use crate::output::Output;

/// How long agents and controllers may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How long all that was killed may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(30);

/// Removes the cluster. Goes on past what fails and returns all of it.
pub(super) async fn down(layout: &Layout, config: &Path, out: &mut Output) -> Result<(), CtlError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CtlError::refused(
            "`ctl dev down` removes namespaces and cgroups: run it as root",
        ));
    }
    let mut problems: Vec<String> = Vec::new();
    let mut done = |result: Result<(), CtlError>| {
        if let Err(error) = result {
            problems.push(error.to_string());
        }
    };
    match Cluster::read(layout) {
        // Agents first, or they would report their pods' ends.
        Ok(Some(cluster)) => {
            for process in cluster.processes.iter().rev() {
                done(process::stop(process, GRACE));
            }
        }
        Ok(None) => {}
        Err(error) => done(Err(error)),
    }
    done(kill_strays(layout));
    done(remove_cgroups(layout));
    done(remove_mounts(layout));
    if let Ok(names) = std::fs::read_dir(layout.run.join("netns")) {
        for name in names.flatten() {
            done(network::remove_netns(&name.path()));
        }
    }
    done(network::remove_bridge(&layout.bridge).await);
    done(release_claims(layout));
    for directory in [&layout.run, &layout.data, &layout.log] {
        done(remove_tree(directory));
    }
    done(forget_context(layout, config));
    if problems.is_empty() {
        out.note(format_args!("cluster {} is gone", layout.name));
        return Ok(());
    }
    Err(CtlError::Refused(problems))
}

/// Kills what works for the cluster and is in no record: monitors, and processes of a start that was cut off.
fn kill_strays(layout: &Layout) -> Result<(), CtlError> {
    let stray = || -> Vec<i32> { processes().filter(|pid| belongs(*pid, layout)).collect() };
    for pid in stray() {
        process::signal(pid, Signal::SIGKILL)?;
    }
    // Containers end with their monitor; whatever has left its process tree is still in its cgroup.
    let members = || -> Vec<i32> {
        let groups = cgroup_directories(layout).into_iter();
        groups
            .flat_map(|group| members_below(&group))
            .filter(|pid| process::start_time(*pid).is_some())
            .collect()
    };
    let ended = process::wait_gone(
        || {
            let left = members();
            left.iter()
                .all(|pid| process::signal(*pid, Signal::SIGKILL).is_ok())
                && left.is_empty()
                && stray().is_empty()
        },
        KILL_WAIT,
    );
    if ended {
        Ok(())
    } else {
        Err(CtlError::refused(format!("processes {:?} do not end", members())))
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// One of our binaries that was told one of the cluster's directories.
fn belongs(pid: i32, layout: &Layout) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let Some(program) = words
        .first()
        .and_then(|word| Path::new(word).file_name()?.to_str())
    else {
        return false;
    };
    if !matches!(
        program,
        "bulkhead-controller" | "bulkhead-agent" | "bulkhead-runtime"
    ) {
        return false;
    }
    if process::start_time(pid).is_none() {
        return false;
    }
    words.iter().any(|word| {
        let word = word.rsplit('=').next().unwrap_or(word);
        [&layout.run, &layout.data]
            .iter()
            .any(|directory| Path::new(word).starts_with(directory))
    })
}

/// The cluster's group in every hierarchy where it exists.
fn cgroup_directories(layout: &Layout) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2")
            .then(|| left.split(' ').nth(4))
            .flatten()
    });
    let groups = hierarchies.map(|root| PathBuf::from(format!("{root}{}", layout.cgroup())));
    groups.filter(|group| group.is_dir()).collect()
}

fn members_below(group: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    for child in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members_below(&child.path()));
        }
    }
    pids
}

fn remove_cgroups(layout: &Layout) -> Result<(), CtlError> {
    cgroup_directories(layout)
        .iter()
        .try_for_each(|group| remove_group(group))
}

fn remove_group(group: &Path) -> Result<(), CtlError> {
    let failed = || format!("failed to remove cgroup {}", group.display());
    for child in std::fs::read_dir(group)
        .map_err(CtlError::io(failed()))?
        .flatten()
    {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&child.path())?;
        }
    }
    // EBUSY for a moment after the last process was killed.
    let removed = process::wait_gone(
        || std::fs::remove_dir(group).is_ok() || !group.exists(),
        KILL_WAIT,
    );
    if removed {
        Ok(())
    } else {
        Err(CtlError::refused(failed()))
    }
}

/// Unmounts what agents mounted below the cluster's directories, the innermost first.
fn remove_mounts(layout: &Layout) -> Result<(), CtlError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(CtlError::io("failed to read /proc/self/mountinfo"))?;
    let targets = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let mut ours: Vec<PathBuf> = targets
        .filter(|target| {
            [&layout.run, &layout.data]
                .iter()
                .any(|directory| target.starts_with(directory))
        })
        .collect();
    ours.reverse();
    for target in ours {
        nix::mount::umount2(&target, MntFlags::MNT_DETACH)
            .map_err(|error| CtlError::io(format!("failed to unmount {}", target.display()))(error.into()))?;
    }
    Ok(())
}

/// Gives back the parts of the machine's user ids that the cluster's agents have claimed: links to their ledgers.
fn release_claims(layout: &Layout) -> Result<(), CtlError> {
    let directory = layout.data.with_file_name(".claims");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(CtlError::io(format!("failed to list {}", directory.display()))(
                error,
            ));
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if std::fs::read_link(&path).is_ok_and(|ledger| ledger.starts_with(&layout.data)) {
            std::fs::remove_file(&path)
                .map_err(CtlError::io(format!("failed to remove {}", path.display())))?;
        }
    }
    match std::fs::remove_dir(&directory) {
        // Another cluster's, or an agent's that is making one.
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound
            ) =>
        {
            Err(CtlError::io(format!("failed to remove {}", directory.display()))(
                error,
            ))
        }
        _ => Ok(()),
    }
}

/// Removes a directory, and its parent too when nothing else is in it.
fn remove_tree(directory: &Path) -> Result<(), CtlError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CtlError::io(format!("failed to remove {}", directory.display()))(
                error,
            ));
        }
        _ => {}
    }
    match directory.parent().map(std::fs::remove_dir) {
        Some(Err(error))
            if !matches!(
                error.kind(),
                std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound
            ) =>
        {
            Err(CtlError::io(format!(
                "failed to remove the parent of {}",
                directory.display()
            ))(error))
        }
        _ => Ok(()),
    }
}

fn forget_context(layout: &Layout, path: &Path) -> Result<(), CtlError> {
    let mut config = Config::read(path)?;
    if config.contexts.iter().any(|context| context.name == layout.name) {
        config.forget(&layout.name);
        config.write(path)?;
    }
    Ok(())
}
