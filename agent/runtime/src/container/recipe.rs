//! What the child carries out: made whole by the parent, so that the child need not allocate.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use sys::cred::{CapSets, Rlimit};
use sys::mount::Change;
use sys::path::Resolve;
use sys::process::CStrings;
use sys::schedule::{Cpus, MemoryPolicy, Scheduler};
use sys::tty;

use super::interfaces::Interface;
use super::notify::Notify;
use crate::cgroup::Entry;
use crate::sandbox::IdMaps;

/// A place below the container's root, component by component so that what is missing can be made.
#[derive(Debug)]
pub(crate) struct Target {
    /// `a`, `a/b`, `a/b/c`.
    pub(crate) prefixes: Vec<CString>,
    /// `a`, `b`, `c`.
    pub(crate) names: Vec<CString>,
    /// How links on the way are taken.
    pub(crate) resolve: Resolve,
    /// The magic number of the file system it must lie on, for places below /proc and /sys.
    pub(crate) magic: Option<i64>,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum What {
    /// A tree that the parent made.
    Tree {
        tree: OwnedFd,
        directory: bool,
        /// Set last, as such a mount cannot be copied: MS_UNBINDABLE, and whether of all below too.
        unbindable: Option<bool>,
        /// The child has made a mount before this one: it takes a copy, which is the younger of the two.
        again: bool,
    },
    /// A file system that only a member of the container's namespaces can make.
    New {
        fstype: CString,
        options: Vec<(CString, Option<CString>)>,
        attributes: u64,
        propagation: u64,
        /// SELinux label of its root directory, where an option cannot say it.
        label: Option<CString>,
    },
    /// A change of what is there already.
    Change { change: Change, recursive: bool },
}

/// One mount.
#[derive(Debug)]
pub(crate) struct MountPlan {
    pub(crate) target: Target,
    pub(crate) what: What,
}

/// The container's view of the file system and what else belongs to its namespaces.
#[derive(Debug)]
pub(crate) struct RootPlan {
    /// Detached.
    pub(crate) root: OwnedFd,
    /// The mount namespace is not the container's own: its root is left where it is attached, and entered by chroot.
    pub(crate) shared: bool,
    /// An existing directory of the host's, covered in the container's mount namespace until the pivot.
    pub(crate) place: CString,
    pub(crate) mounts: Vec<MountPlan>,
    /// The process's working directory, to be made where the image has none.
    pub(crate) directory: Target,
    pub(crate) masked: Vec<Target>,
    pub(crate) readonly: Vec<Target>,
    pub(crate) readonly_root: bool,
    pub(crate) propagation: u64,
    /// Of the root in the end, `MS_*` and whether of all below too; none leaves it as it was made.
    pub(crate) root_propagation: Option<(u64, bool)>,
    pub(crate) loopback: bool,
    pub(crate) hostname: Option<CString>,
    pub(crate) domainname: Option<CString>,
    /// Path below /proc, value.
    pub(crate) sysctls: Vec<(CString, CString)>,
    pub(crate) hooks: bool,
}

/// Standard streams.
#[derive(Debug)]
pub(crate) enum StdioPlan {
    Fds([OwnedFd; 3]),
    Terminal {
        socket: OwnedFd,
        size: Option<tty::Size>,
        bare_newlines: bool,
    },
}

/// The process itself.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: CStrings,
    pub(crate) environment: CStrings,
    pub(crate) directory: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// None keeps the caller's: asked for, or in a user namespace of one's own making, where they cannot be changed.
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: u32,
    pub(crate) limits: Vec<Rlimit>,
    pub(crate) personality: Option<u64>,
    pub(crate) scheduler: Option<Scheduler>,
    /// Class and level.
    pub(crate) io_priority: Option<(u16, u16)>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// Capabilities to take out of the bounding set.
    pub(crate) unbound: Vec<u32>,
    pub(crate) capabilities: CapSets,
    pub(crate) ambient: Vec<u32>,
    pub(crate) no_new_privs: bool,
    /// SIGKILL at the death of the caller of `start`.
    pub(crate) die_with_parent: bool,
    pub(crate) seccomp: Option<(Vec<sys::seccomp::Instruction>, u32)>,
    /// The filter asks a supervisor: its listener goes to the parent.
    pub(crate) listener: bool,
    /// File below /proc/thread-self and what to write: the label of the next exec.
    pub(crate) labels: Vec<(CString, CString)>,
    pub(crate) stdio: StdioPlan,
    pub(crate) preserve_fds: u32,
    pub(crate) new_keyring: bool,
    /// SELinux label of the new keyring.
    pub(crate) key_label: Option<CString>,
    /// Readable once the process may begin; none to begin at once.
    pub(crate) release: Option<OwnedFd>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) entry: Entry,
    /// The host's procfs, verified.
    pub(crate) proc: OwnedFd,
    pub(crate) oom_score_adj: Option<CString>,
    pub(crate) raise: Vec<Rlimit>,
    /// Where a further process runs before and after it enters the cgroup.
    pub(crate) initial_cpus: Option<Cpus>,
    pub(crate) final_cpus: Option<Cpus>,
    /// With the kinds; a user namespace last, as joining the others takes the host's rights or those of their owner.
    pub(crate) joins: Vec<(OwnedFd, i32)>,
    /// For the parent, whom to give a listener.
    pub(crate) notify: Option<Notify>,
    /// For the parent, what to move into the network namespace before the hooks.
    pub(crate) interfaces: Vec<Interface>,
    /// A user namespace is among `joins`: ids must be set to be anybody.
    pub(crate) joins_user: bool,
    /// The caller is in the container's user namespace, under whatever id.
    pub(crate) inside_user: bool,
    /// Of the user namespace that the container's process is made in: the parent writes them while it waits.
    pub(crate) ids: Option<IdMaps>,
    /// `CLONE_NEW*` of what it leaves once its ids are mapped: made at once with the user namespace, message queues and
    /// interfaces would belong to nobody.
    pub(crate) unshare: i32,
    /// `CLONE_NEW*` of the container's process.
    pub(crate) clone_flags: u64,
    /// A time namespace to make, with what /proc/PID/timens_offsets takes.
    pub(crate) time: Option<CString>,
    pub(crate) cgroup_namespace: bool,
    pub(crate) root: Option<RootPlan>,
    /// Of a further process, a root that is not that of the mount namespace it joins.
    pub(crate) chroot: Option<OwnedFd>,
    pub(crate) process: ProcessPlan,
}

impl Plan {
    /// Whether a first process must join namespaces and make the container's process as its sibling: setns of a user
    /// namespace comes before making the others, and of a PID namespace is for children only.
    pub(crate) fn needs_first(&self) -> bool {
        // Clocks are moved before the namespace has its first process.
        !self.joins.is_empty() || self.time.is_some() || self.chroot.is_some()
    }
}
