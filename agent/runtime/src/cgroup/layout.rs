//! Which hierarchies a machine has, and where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::CgroupError;

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
        Self::parse(&super::read(path)?)
    }

    /// No hierarchy at all: of a container that stays where its creator is. Every limit is refused.
    pub fn none() -> Layout {
        Layout::V1 {
            hierarchies: Vec::new(),
            unified: None,
        }
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
    pub(super) fn mounts(&self) -> Vec<&Path> {
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
    pub(super) fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Layout::V2 { mount } => Some(mount),
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .find(|one| one.controllers.contains(name))
                .map(|one| one.mount.as_path()),
        }
    }

    /// v2's tree, for killing and freezing.
    pub(super) fn unified(&self) -> Option<&Path> {
        match self {
            Layout::V2 { mount } => Some(mount),
            Layout::V1 { unified, .. } => unified.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_has_each_hierarchy_once_and_the_unified_tree() {
        let layout = Layout::parse(HYBRID).unwrap();
        assert!(!layout.is_v2());
        assert_eq!(layout.mounts().len(), 4);
        assert_eq!(
            layout.controller("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(
            layout.controller("name=systemd"),
            Some(Path::new("/sys/fs/cgroup/systemd"))
        );
        assert_eq!(layout.controller("pids"), None);
        assert_eq!(layout.unified(), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_named_hierarchy_beside_v2_is_v2() {
        let text: String = HYBRID
            .lines()
            .filter(|line| line.contains("systemd") || line.contains("cgroup2"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            Layout::parse(&text).unwrap(),
            Layout::V2 {
                mount: "/sys/fs/cgroup/unified".into()
            }
        );
        assert!(matches!(Layout::parse("nonsense\n"), Err(CgroupError::None)));
    }
}
