//! A container's cgroups: one directory in cgroup v2, or one in each hierarchy of v1 with, where the machine mounts both,
//! one in v2's tree for killing and freezing.
//!
//! Plain files: `Layout` finds the hierarchies once, `Cgroup` is a path below all of them. Writing limits is in `limits`,
//! reading them back in `values`, killing, freezing and removing in `lifecycle`. A process is put into its group by itself (v1, see `Entry`) or by clone3 (v2).

mod block;
mod devices;
mod layout;
mod lifecycle;
mod limits;
mod owner;
mod rare;
mod values;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

pub(crate) use devices::examine;
pub use layout::{Hierarchy, Layout};
pub use limits::weight_of_shares;
pub(crate) use owner::wanted as wanted_owner;
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
    #[error("cgroup path {} must be absolute, not the root, and without '..' and NUL", .path.display())]
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
    /// Already used more than the new limit.
    #[error("memory limit {limit} is below the {usage} bytes in use")]
    InUse {
        /// What was asked.
        limit: i64,
        /// What is charged now.
        usage: u64,
    },
    /// Processes of others would be the container's, or it could not start.
    #[error("{reason}: {}", .path.display())]
    Taken {
        /// The group.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// Asked for in the words of another version of cgroups.
    #[error("invalid configuration: unified {name} needs cgroup v2")]
    Unified {
        /// The file.
        name: String,
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

impl CgroupError {
    /// Whether it is for want of rights.
    pub fn is_denied(&self) -> bool {
        matches!(self, CgroupError::File { source, .. }
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
    }
}

/// The controllers that pods use; a machine's others are enabled for the groups that ask for a limit of theirs.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

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

    /// Sets the limits of a group that systemd made: in v2 the whole of it, in v1 its own hierarchy and those that the
    /// limits in its unit need; the others are made here. What this call made is gone again after an error.
    pub fn adopt(layout: &Layout, spec: &CgroupSpec) -> Result<Cgroup, CgroupError> {
        if !layout.is_v2() {
            return Self::create(layout, spec);
        }
        let group = Self::open(layout, &spec.path)?;
        group.set(&spec.resources, limits::When::Creation)?;
        Ok(group)
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
        // No file of the kernel's has one in its name: nothing could be made there, nor removed.
        let nul = inside.as_os_str().as_bytes().contains(&0);
        if !normal || nul || inside.as_os_str().is_empty() {
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
                    enable_controllers(&directory, &CONTROLLERS)?;
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

    /// Has a controller that few ask for, where v2 has it, down to this group. v1's need nothing.
    fn enable(&self, controller: &str) -> Result<(), CgroupError> {
        let Layout::V2 { mount } = &self.layout else {
            return Ok(());
        };
        let mut directory = mount.clone();
        for part in self.path.components() {
            enable_controllers(&directory, &[controller])?;
            directory.push(part);
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

    /// Where a further process of the group must go. v2 lets none into a group that has divided its controllers among
    /// groups below (cgroup-v2.rst, No Internal Process Constraint), as an init system in a container does: then to where
    /// `member`, its first process, is.
    pub fn place_beside(&self, member: i32) -> Result<Cgroup, CgroupError> {
        let Layout::V2 { mount } = &self.layout else {
            return Ok(self.clone());
        };
        let control = mount.join(&self.path).join("cgroup.subtree_control");
        if read_if_there(&control)?.unwrap_or_default().trim().is_empty() {
            return Ok(self.clone());
        }
        let text = read_if_there(Path::new(&format!("/proc/{member}/cgroup")))?.unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        match own.map(Path::new).filter(|own| own.starts_with(self.path())) {
            Some(own) => Self::open(&self.layout, own),
            None => Ok(self.clone()), // it has gone, or is elsewhere: the kernel's refusal tells that best
        }
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

const O_DIRECTORY: i32 = nix::fcntl::OFlag::O_DIRECTORY.bits();

/// Enables controllers for the children of a v2 group, as far as the group has them.
fn enable_controllers(directory: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let have = read(&directory.join("cgroup.controllers"))?;
    let on = read(&directory.join("cgroup.subtree_control"))?;
    let missing: Vec<String> = controllers
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

fn open(path: &Path, options: &fs::OpenOptions) -> Result<fs::File, CgroupError> {
    options.open(path).map_err(|source| CgroupError::File {
        action: "open",
        path: path.to_owned(),
        value: None,
        source,
    })
}

/// The text of a file of the kernel's, whose size nobody knows before: into room for most of them, as each further read
/// makes the kernel write the text again.
fn text(path: &Path) -> io::Result<String> {
    const ROOM: usize = 8 << 10;
    let mut text = String::with_capacity(ROOM);
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, TEXT_MAX), &mut text)?;
    Ok(text)
}

/// Process ids of a million processes, or all that a container could put into its groups.
const TEXT_MAX: u64 = 16 << 20;

fn read(path: &Path) -> Result<String, CgroupError> {
    text(path).map_err(|source| CgroupError::File {
        action: "read",
        path: path.to_owned(),
        value: None,
        source,
    })
}

fn read_if_there(path: &Path) -> Result<Option<String>, CgroupError> {
    match text(path) {
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
