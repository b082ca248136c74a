//! The owner of a container's group: with cgroup v2 an init system in a container may divide its own group.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use super::{Cgroup, CgroupError, Layout};

/// Which files of a group its owner needs, as the kernel tells.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// runtime-spec 1.2, config-linux.md, Cgroup ownership: if there is no such file "the runtime MUST fall back to" these.
const FILES: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// Host id of the one who shall own the group. The same section: only with a cgroup namespace of the container's own and
/// where its mount of `cgroup` on /sys/fs/cgroup is not read-only.
pub(crate) fn wanted(config: &Spec) -> Option<u32> {
    let linux = config.linux().as_ref()?;
    let own = |kind: LinuxNamespaceType| {
        let mut all = linux.namespaces().iter().flatten();
        all.any(|one| one.typ() == kind && one.path().as_ref().is_none_or(|path| path.as_os_str().is_empty()))
    };
    let writable = config.mounts().iter().flatten().any(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.source().as_deref() == Some(Path::new("cgroup"))
            && mount.destination() == Path::new("/sys/fs/cgroup")
            && !options.iter().any(|option| option == "ro")
    });
    if !own(LinuxNamespaceType::Cgroup) || !writable {
        return None;
    }
    let uid = config
        .process()
        .as_ref()
        .map_or(0, |process| process.user().uid());
    if !own(LinuxNamespaceType::User) {
        // Without a map it is the host's id; in a namespace of somebody else's making nobody says what it is there.
        let joined = linux
            .namespaces()
            .iter()
            .flatten()
            .any(|one| one.typ() == LinuxNamespaceType::User);
        return (!joined).then_some(uid);
    }
    host_id(linux.uid_mappings().as_deref().unwrap_or_default(), uid)
}

fn host_id(maps: &[LinuxIdMapping], id: u32) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = id
            .checked_sub(map.container_id())
            .filter(|offset| *offset < map.size())?;
        map.host_id().checked_add(offset)
    })
}

/// The files that go to the owner, by the text of `DELEGATE`.
fn files(told: Option<&str>) -> Vec<&str> {
    told.unwrap_or(FILES)
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.contains('/'))
        .collect()
}

fn give(directory: &Path, files: &[&str], uid: u32) -> Result<(), CgroupError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| CgroupError::File {
            action: "give",
            path,
            value: Some(uid.to_string()),
            source,
        }
    };
    chown(directory, Some(uid), None).map_err(fail(directory))?;
    for path in files.iter().map(|name| directory.join(name)) {
        match chown(&path, Some(uid), None) {
            // "not all files listed [...] necessarily exist in every cgroup. Runtimes MUST NOT fail in this scenario".
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            given => given.map_err(fail(&path))?,
        }
    }
    Ok(())
}

impl Cgroup {
    /// Gives the group to a user, with cgroup v2; v1 is not safe to delegate.
    pub(crate) fn give_to(&self, uid: u32) -> Result<(), CgroupError> {
        let Layout::V2 { mount } = self.layout() else {
            return Ok(());
        };
        let path = PathBuf::from(DELEGATE);
        let told = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => Some(text.map_err(|source| CgroupError::File {
                action: "read",
                path,
                value: None,
                source,
            })?),
        };
        give(&mount.join(&self.path), &files(told.as_deref()), uid)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use serde_json::{Value, json};

    use super::*;

    fn owner(change: impl FnOnce(&mut Value)) -> Option<u32> {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 5, "gid": 0}, "cwd": "/", "args": ["x"]},
            "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}],
            "linux": {"namespaces": [{"type": "cgroup"}]},
        });
        change(&mut config);
        wanted(&serde_json::from_value(config).unwrap())
    }

    /// config-linux.md, Cgroup ownership: "if and only if".
    #[test]
    fn a_group_goes_to_who_can_use_it_alone() {
        assert_eq!(owner(|_| {}), Some(5));
        let maps = json!([{"containerID": 0, "hostID": 1000, "size": 3}, {"containerID": 5, "hostID": 70, "size": 1}]);
        assert_eq!(
            owner(|config| {
                config["linux"]["namespaces"] = json!([{"type": "cgroup"}, {"type": "user"}]);
                config["linux"]["uidMappings"] = maps.clone();
            }),
            Some(70)
        );
        let none: [fn(&mut Value); 5] = [
            |config| config["mounts"][0]["options"] = json!(["ro"]),
            |config| config["mounts"][0]["destination"] = json!("/cgroup"),
            |config| config["mounts"][0]["source"] = json!("x"),
            |config| config["linux"]["namespaces"] = json!([]),
            |config| config["linux"]["namespaces"] = json!([{"type": "cgroup", "path": "/x"}]),
        ];
        for change in none {
            assert_eq!(owner(change), None);
        }
    }

    #[test]
    fn files_that_are_missing_are_no_error_and_others_stay() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::skip("files_that_are_missing_are_no_error_and_others_stay", "not root");
        }
        assert_eq!(
            files(None),
            ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        );
        let told = "cgroup.procs\nmemory.oom.group\nmemory.reclaim\n";
        assert_eq!(
            files(Some(told)),
            ["cgroup.procs", "memory.oom.group", "memory.reclaim"]
        );
        let group = tempfile::tempdir().unwrap();
        for name in ["cgroup.procs", "memory.max"] {
            fs::write(group.path().join(name), "").unwrap();
        }
        give(group.path(), &files(Some(told)), 77).unwrap();
        let owner = |name: &str| fs::metadata(group.path().join(name)).unwrap().uid();
        assert_eq!(
            (owner(""), owner("cgroup.procs"), owner("memory.max")),
            (77, 77, 0)
        );
    }
}
