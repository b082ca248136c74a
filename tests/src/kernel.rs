//! What the kernel says about processes and cgroups: the only witness that scenarios trust.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every process of the machine.
pub fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The words of a process's command line; empty when it is gone.
pub fn command_line(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// Fields of /proc/PID/status; empty when it is gone.
pub fn status(pid: i32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Whether it runs: not gone and no zombie. One whose first thread has ended before others still holds its files.
pub fn runs(pid: i32) -> bool {
    let status = status(pid);
    let ended = |state: &String| state.starts_with(['Z', 'X']);
    let threads: u32 = status
        .get("Threads")
        .and_then(|threads| threads.parse().ok())
        .unwrap_or(0);
    status
        .get("State")
        .is_some_and(|state| !ended(state) || threads > 1)
}

/// The inode of one of a process's namespaces, as `net:[4026531840]`.
pub fn namespace(pid: i32, kind: &str) -> String {
    let link =
        std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace of a running process");
    link.display().to_string()
}

/// Where each cgroup hierarchy is mounted: its v1 controllers, or `unified`.
pub fn hierarchies() -> Vec<(String, PathBuf)> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let point = PathBuf::from(left.split(' ').nth(4).expect("a mount point"));
        let mut fields = right.split(' ');
        match fields.next() {
            Some("cgroup2") => found.push(("unified".to_owned(), point)),
            Some("cgroup") => {
                let options = fields.nth(1).unwrap_or_default();
                found.push((options.to_owned(), point));
            }
            _ => {}
        }
    }
    found
}

/// The directory of a group in the hierarchy of `controller`, on v1 and v2.
pub fn group(controller: &str, path: &str) -> Option<PathBuf> {
    let hierarchies = hierarchies();
    let of_v1 = hierarchies
        .iter()
        .find(|(options, _)| options.split(',').any(|option| option == controller));
    let chosen = of_v1.or_else(|| hierarchies.iter().find(|(options, _)| options == "unified"));
    let directory = chosen?.1.join(path.trim_start_matches('/'));
    directory.is_dir().then_some(directory)
}

/// Whether `controller` is one of v1's here.
pub fn is_v1(controller: &str) -> bool {
    hierarchies()
        .iter()
        .any(|(options, _)| options.split(',').any(|option| option == controller))
}

/// Every group below `directory`, itself included.
pub fn groups_below(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    for child in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(groups_below(&child.path()));
        }
    }
    all
}

/// Processes in a group itself.
pub fn members(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
