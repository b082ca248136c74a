//! A container's cgroups: one directory in cgroup v2, or one in each hierarchy of v1 with, where the machine mounts both,
//! one in v2's tree for killing and freezing.
//!
//! Plain files: `Layout` finds the hierarchies once, `Cgroup` is a path below all of them. Writing limits is in `limits`,
//! reading them back in `values`. A process is put into its group by itself (v1, see `Entry`) or by clone3 (v2).

mod devices;
mod limits;
mod values;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

pub use limits::weight_of_shares;
pub use values::{IoThrottle, Stats, Values};

use crate::spec::CgroupSpec;

/// Why something about a cgroup could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// No hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted")]
    None,
    /// The path is relative, the root, or leaves it.
    #[error("cgroup path {} must be absolute, not the root, and without '..'", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory of the kernel's refused.
    #[error("failed to {action} {}{}", .path.display(), .value.as_ref().map(|value| format!(" ({value})")).unwrap_or_default())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What was to be written.
        value: Option<String>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The machine has no such limit.
    #[error("this machine cannot limit {what}")]
    Unsupported {
        /// The field of the specification.
        what: String,
    },
    /// Processes stayed after the time allowed.
    #[error("cgroup {} still has processes after {waited_ms} ms", .path.display())]
    Busy {
        /// The group.
        path: PathBuf,
        /// How long was waited.
        waited_ms: u128,
    },
}

/// One mounted hierarchy of v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers, or `name=NAME` for one without.
    pub controllers: BTreeSet<String>,
}

/// Which hierarchies the machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// cgroup v2 alone.
    V2 {
        /// Where it is mounted.
        mount: PathBuf,
    },
    /// cgroup v1, with v2's tree beside it on hybrid machines.
    V1 {
        /// Every v1 hierarchy.
        hierarchies: Vec<Hierarchy>,
        /// v2's tree; it carries no limits of ours.
        unified: Option<PathBuf>,
    },
}

/// Names that /proc/self/mountinfo gives as super options of v1 mounts and that are no controllers.
const V1_OPTIONS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "none",
    "favordynmods",
    "cpuset_v2_mode",
];

impl Layout {
    /// Finds the hierarchies of this mount namespace.
    pub fn detect() -> Result<Layout, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|source| CgroupError::File {
            action: "read",
            path: path.to_owned(),
            value: None,
            source,
        })?;
        Self::parse(&text)
    }

    /// The hierarchies in the text of a mountinfo file (proc_pid_mountinfo(5)).
    pub fn parse(mountinfo: &str) -> Result<Layout, CgroupError> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4) else {
                continue;
            };
            let mount = PathBuf::from(crate::inspect::unescape(mount));
            let mut right = right.split(' ');
            let fstype = right.next().unwrap_or_default();
            let options = right.nth(1).unwrap_or_default();
            match fstype {
                "cgroup2" if unified.is_none() => unified = Some(mount),
                "cgroup" => {
                    let controllers: BTreeSet<String> = options
                        .split(',')
                        .filter(|option| {
                            !V1_OPTIONS.contains(option) && !option.starts_with("release_agent=")
                        })
                        .map(str::to_owned)
                        .collect();
                    if !hierarchies.iter().any(|known| known.controllers == controllers) {
                        hierarchies.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        // A lone `name=systemd` beside v2 limits nothing: such a machine is v2.
        let limiting = hierarchies
            .iter()
            .any(|one| one.controllers.iter().any(|name| !name.starts_with("name=")));
        match (limiting, unified) {
            (true, unified) => Ok(Layout::V1 { hierarchies, unified }),
            (false, Some(mount)) => Ok(Layout::V2 { mount }),
            (false, None) => Err(CgroupError::None),
        }
    }

    /// Whether limits are v2's.
    pub fn is_v2(&self) -> bool {
        matches!(self, Layout::V2 { .. })
    }

    /// Every mount, v2's last.
    fn mounts(&self) -> Vec<&Path> {
        match self {
            Layout::V2 { mount } => vec![mount],
            Layout::V1 { hierarchies, unified } => hierarchies
                .iter()
                .map(|one| one.mount.as_path())
                .chain(unified.as_deref())
                .collect(),
        }
    }

    /// The mount that has a controller.
    fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Layout::V2 { mount } => Some(mount),
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .find(|one| one.controllers.contains(name))
                .map(|one| one.mount.as_path()),
        }
    }

    /// v2's tree, for killing and freezing.
    fn unified(&self) -> Option<&Path> {
        match self {
            Layout::V2 { mount } => Some(mount),
            Layout::V1 { unified, .. } => unified.as_deref(),
        }
    }
}

/// The controllers that pods use; a machine's others are left as they are.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// Most entries listed of one group, and most depth below it: a container that makes more has our refusal, not our memory.
const LISTED_MAX: usize = 1 << 20;
const DEPTH_MAX: usize = 64;

/// How a process gets into a group: v1's `tasks` files, to which the child writes itself, and v2's directory for clone3.
#[derive(Debug)]
pub struct Entry {
    /// Open for writing; the single-threaded child writes "0" to each, which takes no lock of the kernel's.
    pub tasks: Vec<OwnedFd>,
    /// For `CLONE_INTO_CGROUP`.
    pub unified: Option<OwnedFd>,
}

/// A group: the same path below every hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    layout: Layout,
    /// Without the leading slash.
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group where it is missing, with its parents, and sets its limits. After an error the directories that
    /// this call made are gone again.
    pub fn create(layout: &Layout, spec: &CgroupSpec) -> Result<Cgroup, CgroupError> {
        let group = Self::open(layout, &spec.path)?;
        let mut made = Vec::new();
        let result = group
            .make(&mut made)
            .and_then(|()| group.set(&spec.resources, limits::When::Creation));
        match result {
            Ok(()) => Ok(group),
            Err(error) => {
                for path in made.iter().rev() {
                    // The first error is the one to tell. These directories are empty and ours, so this cannot fail but
                    // by somebody else's doing, who then owns them.
                    drop(fs::remove_dir(path));
                }
                Err(error)
            }
        }
    }

    /// Names a group that may exist.
    pub fn open(layout: &Layout, path: &Path) -> Result<Cgroup, CgroupError> {
        let refuse = || CgroupError::Path {
            path: path.to_owned(),
        };
        let inside = path.strip_prefix("/").map_err(|_| refuse())?;
        let normal = inside
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !normal || inside.as_os_str().is_empty() {
            return Err(refuse());
        }
        Ok(Cgroup {
            layout: layout.clone(),
            path: inside.to_owned(),
        })
    }

    /// The path below the root of each hierarchy, with its leading slash.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// The hierarchies that it is in.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A group directly below.
    pub fn child(&self, name: &str) -> Result<Cgroup, CgroupError> {
        Self::open(&self.layout, &self.path().join(name))
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|directory| directory.exists())
    }

    /// Its directory in each hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.layout
            .mounts()
            .iter()
            .map(|mount| mount.join(&self.path))
            .collect()
    }

    /// Its directory where a controller is.
    pub fn controller(&self, name: &str) -> Option<PathBuf> {
        self.layout.controller(name).map(|mount| mount.join(&self.path))
    }

    fn unified(&self) -> Option<PathBuf> {
        self.layout.unified().map(|mount| mount.join(&self.path))
    }

    fn make(&self, made: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
        for mount in self.layout.mounts() {
            let cpuset = !self.layout.is_v2() && self.layout.controller("cpuset") == Some(mount);
            let mut directory = mount.to_owned();
            for part in self.path.components() {
                if self.layout.is_v2() {
                    enable_controllers(&directory)?;
                }
                let parent = directory.clone();
                directory.push(part);
                match fs::create_dir(&directory) {
                    Ok(()) => made.push(directory.clone()),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => {
                        return Err(CgroupError::File {
                            action: "make",
                            path: directory,
                            value: None,
                            source,
                        });
                    }
                }
                if cpuset {
                    inherit_cpuset(&parent, &directory)?;
                }
            }
        }
        Ok(())
    }

    /// Changes limits of a living group; absent ones stay.
    pub fn update(&self, resources: &oci_spec::runtime::LinuxResources) -> Result<(), CgroupError> {
        self.set(resources, limits::When::Later)
    }

    /// Opens what a new member needs.
    pub fn entry(&self) -> Result<Entry, CgroupError> {
        let unified = match self.unified() {
            Some(path) => {
                Some(open(&path, fs::OpenOptions::new().read(true).custom_flags(O_DIRECTORY))?.into())
            }
            None => None,
        };
        let mut tasks = Vec::new();
        if let Layout::V1 { hierarchies, .. } = &self.layout {
            for hierarchy in hierarchies {
                let path = hierarchy.mount.join(&self.path).join("tasks");
                tasks.push(open(&path, fs::OpenOptions::new().write(true))?.into());
            }
        }
        Ok(Entry { tasks, unified })
    }

    /// Process ids in the group and below.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for directory in self.directories() {
            for group in below(&directory)? {
                let Some(text) = read_if_there(&group.join("cgroup.procs"))? else {
                    continue;
                };
                pids.extend(
                    text.lines()
                        .take(LISTED_MAX)
                        .filter_map(|line| line.parse::<i32>().ok()),
                );
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
            for group in below(&directory)?.iter().rev() {
                loop {
                    match fs::remove_dir(group) {
                        Ok(()) => break,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                        Err(error) if error.raw_os_error() == Some(EBUSY) => {
                            if begin.elapsed() >= patience {
                                return Err(CgroupError::Busy {
                                    path: group.clone(),
                                    waited_ms: begin.elapsed().as_millis(),
                                });
                            }
                            wait_for_members(group, patience.saturating_sub(begin.elapsed()))?;
                        }
                        Err(source) => {
                            return Err(CgroupError::File {
                                action: "remove",
                                path: group.clone(),
                                value: None,
                                source,
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes the parents that are empty now, up to but not including `top`.
    pub fn remove_empty_parents(&self, top: &Path) -> Result<(), CgroupError> {
        let mut path = self.path();
        while path.pop() && path != top && path != Path::new("/") {
            for directory in Self::open(&self.layout, &path)?.directories() {
                match fs::remove_dir(&directory) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Somebody else's child or process.
                    Err(error) if matches!(error.raw_os_error(), Some(EBUSY | ENOTEMPTY)) => return Ok(()),
                    Err(source) => {
                        return Err(CgroupError::File {
                            action: "remove",
                            path: directory,
                            value: None,
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let (file, key) = if self.layout.is_v2() {
            ("memory.events", "oom_kill")
        } else {
            ("memory.oom_control", "oom_kill")
        };
        let Some(directory) = self.controller("memory") else {
            return Ok(0);
        };
        let text = read_if_there(&directory.join(file))?.unwrap_or_default();
        Ok(values::keyed(&text, key).unwrap_or(0))
    }

    /// A descriptor that becomes readable at an out-of-memory event: v1's eventfd (which also fires when the group goes:
    /// ask `oom_kills`). v2 has none; its `memory.events` raises POLLPRI and a watcher of exits reads it at the end.
    pub fn oom_events(&self) -> Result<Option<OwnedFd>, CgroupError> {
        if self.layout.is_v2() {
            return Ok(None);
        }
        let Some(directory) = self.controller("memory") else {
            return Ok(None);
        };
        let fail = |source| CgroupError::File {
            action: "watch",
            path: directory.join("memory.oom_control"),
            value: None,
            source,
        };
        let event = sys::fd::eventfd().map_err(fail)?;
        let control = fs::File::open(directory.join("memory.oom_control")).map_err(fail)?;
        write(
            &directory.join("cgroup.event_control"),
            &format!("{} {}", number(event.as_fd()), number(control.as_fd())),
        )?;
        Ok(Some(event))
    }
}

fn number(fd: BorrowedFd<'_>) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}

const SIGKILL: i32 = 9;
const ESRCH: i32 = nix::errno::Errno::ESRCH as i32;
const EBUSY: i32 = nix::errno::Errno::EBUSY as i32;
const ENOTEMPTY: i32 = nix::errno::Errno::ENOTEMPTY as i32;
const O_DIRECTORY: i32 = nix::fcntl::OFlag::O_DIRECTORY.bits();
/// How long a freeze may take: a process in an uninterruptible sleep holds it up.
const STATE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at a state of which the kernel sends no word.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Enables our controllers for the children of a v2 group, as far as the group has them.
fn enable_controllers(directory: &Path) -> Result<(), CgroupError> {
    let have = read(&directory.join("cgroup.controllers"))?;
    let on = read(&directory.join("cgroup.subtree_control"))?;
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| have.split_whitespace().any(|word| word == **name))
        .filter(|name| !on.split_whitespace().any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    write(&directory.join("cgroup.subtree_control"), &missing.join(" "))
}

/// A new v1 cpuset is empty and takes no task: it gets what its parent has, unless it has something.
fn inherit_cpuset(parent: &Path, directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        if read(&own)?.trim().is_empty() {
            write(&own, read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Waits until a member of a group has ended, or a moment when none can be named.
fn wait_for_members(group: &Path, patience: Duration) -> Result<(), CgroupError> {
    let text = read_if_there(&group.join("cgroup.procs"))?.unwrap_or_default();
    let first = text
        .lines()
        .find_map(|line| line.parse::<i32>().ok())
        .filter(|pid| *pid > 0);
    let Some(pid) = first else {
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

fn open(path: &Path, options: &fs::OpenOptions) -> Result<fs::File, CgroupError> {
    options.open(path).map_err(|source| CgroupError::File {
        action: "open",
        path: path.to_owned(),
        value: None,
        source,
    })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File {
        action: "read",
        path: path.to_owned(),
        value: None,
        source,
    })
}

fn read_if_there(path: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the group was removed between open and read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV) => {
            Ok(None)
        }
        Err(source) => Err(CgroupError::File {
            action: "read",
            path: path.to_owned(),
            value: None,
            source,
        }),
    }
}

const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;

/// One write, as the kernel wants; never makes the file.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let fail = |source| CgroupError::File {
        action: "write",
        path: path.to_owned(),
        value: Some(value.to_owned()),
        source,
    };
    let file = fs::OpenOptions::new().write(true).open(path).map_err(fail)?;
    sys::fd::write(file.as_fd(), value.as_bytes())
        .map(drop)
        .map_err(fail)
}

/// As `write`; false when there is no such file.
fn write_if_there(path: &Path, value: &str) -> Result<bool, CgroupError> {
    match write(path, value) {
        Ok(()) => Ok(true),
        Err(CgroupError::File { source, .. })
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(ENODEV) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
