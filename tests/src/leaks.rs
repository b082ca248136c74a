//! What a cluster has on the machine, by its name; after `ctl dev down` it has nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::kernel;

/// Each trace as a line of text, so that a difference reads by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(pub BTreeSet<String>);

impl Traces {
    /// Looks for the cluster `name`; interfaces and nftables tables are those of the calling thread's network.
    pub fn of(name: &str) -> Self {
        let mut found = BTreeSet::new();
        let group = format!("/bulkhead-{name}");
        let directories = directories(name);
        for pid in kernel::processes() {
            let line = kernel::command_line(pid);
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let ours = line
                .iter()
                .any(|word| directories.iter().any(|path| word.contains(path.as_str())));
            let inside = groups.lines().any(|line| {
                let path = line.splitn(3, ':').nth(2).unwrap_or_default();
                path == group || path.starts_with(&format!("{group}/"))
            });
            let own = pid == std::process::id().cast_signed();
            if (ours || inside) && !own && kernel::runs(pid) {
                found.insert(format!("process {pid}: {}", line.join(" ")));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
        for line in mounts.lines() {
            if directories
                .iter()
                .any(|path| line.contains(&format!("{path}/")) || line.contains(&format!("{path} ")))
            {
                found.insert(format!("mount {line}"));
            }
        }
        for (_, root) in kernel::hierarchies() {
            let top = root.join(group.trim_start_matches('/'));
            if top.is_dir() {
                for below in kernel::groups_below(&top) {
                    found.insert(format!("cgroup {}", below.display()));
                }
            }
        }
        for interface in interfaces() {
            found.insert(format!("interface {interface}"));
        }
        for table in nft_tables() {
            found.insert(format!("nftables {table}"));
        }
        for path in &directories {
            if Path::new(path).exists() {
                found.insert(format!("directory {path}"));
            }
        }
        Self(found)
    }
}

/// Directories that hold everything of a cluster.
pub fn directories(name: &str) -> [String; 3] {
    ["/run", "/var/lib", "/var/log"].map(|top| format!("{top}/bulkhead/{name}"))
}

/// Interfaces of the calling thread's network, without loopback.
pub fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc/thread-self/net/dev");
    text.lines()
        .skip(2) // two lines of heading
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name != "lo")
        .collect()
}

fn nft_tables() -> Vec<String> {
    let output = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .expect("nft");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}
