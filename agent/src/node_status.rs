//! What the node says of itself: its size, its addresses, its system, and the conditions that it alone can see.
//! Whether it is ready is the leader's to say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proto::Timestamp;
use proto::v1::{Condition, NodeAddress, NodeStatus, NodeSystemInfo, Quantity};

use crate::events::now;
use crate::settings::Settings;

/// Most pods of a node; a kubelet's default.
const PODS_MAX: u64 = 110;
/// Memory that is not given to pods: the agent, monitors and the system. Below it there is pressure (a kubelet's
/// `memory.available<100Mi`).
const MEMORY_RESERVED: u64 = 100 << 20;
/// Disk that is not given to pods, in percent; below it there is pressure (a kubelet's `nodefs.available<10%`).
const DISK_RESERVED_PERCENT: u64 = 10;
/// Tasks in percent of the machine's limit, above which there is pressure.
const TASKS_PERCENT: u64 = 90;

/// What the machine shows at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Measured {
    memory_available: u64,
    disk_bytes: u64,
    disk_available: u64,
    tasks: u64,
    tasks_max: u64,
}

/// Looks at the machine.
#[derive(Debug)]
pub(crate) struct NodeStatuses {
    settings: Settings,
    info: NodeSystemInfo,
    addresses: Vec<NodeAddress>,
    cpus: u64,
    memory: u64,
    conditions: Vec<Condition>,
}

impl NodeStatuses {
    pub(crate) fn new(name: &str, settings: Settings, info: NodeSystemInfo) -> Self {
        let address = |kind: &str, address: String| NodeAddress {
            r#type: kind.to_owned(),
            address,
        };
        Self {
            addresses: vec![
                address("InternalIP", settings.node_address.to_string()),
                address("Hostname", name.to_owned()),
            ],
            settings,
            info,
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            memory: meminfo("MemTotal").unwrap_or_default(),
            conditions: Vec::new(),
        }
    }

    /// The status as it is now.
    pub(crate) async fn look(&mut self) -> NodeStatus {
        let measured = measure(&self.settings.data_dir);
        self.conditions = conditions(&self.conditions, &measured, now());
        let quantities = |memory: u64, disk: u64| -> BTreeMap<String, Quantity> {
            let quantity = |text: String| Quantity { text };
            [
                ("cpu".to_owned(), quantity(self.cpus.to_string())),
                ("memory".to_owned(), quantity(format!("{}Ki", memory >> 10))),
                (
                    "ephemeral-storage".to_owned(),
                    quantity(format!("{}Ki", disk >> 10)),
                ),
                ("pods".to_owned(), quantity(PODS_MAX.to_string())),
            ]
            .into()
        };
        let disk = measured.disk_bytes;
        NodeStatus {
            capacity: quantities(self.memory, disk),
            allocatable: quantities(
                self.memory.saturating_sub(MEMORY_RESERVED),
                disk - disk / 100 * DISK_RESERVED_PERCENT,
            ),
            conditions: self.conditions.clone(),
            addresses: self.addresses.clone(),
            node_info: Some(self.info.clone()),
        }
    }
}

/// The conditions after a look; one that did not change keeps the time of its last change.
fn conditions(before: &[Condition], measured: &Measured, now: Timestamp) -> Vec<Condition> {
    let disk_low = measured.disk_available < measured.disk_bytes / 100 * DISK_RESERVED_PERCENT;
    let tasks_high = measured.tasks > measured.tasks_max / 100 * TASKS_PERCENT;
    let rows = [
        (
            "MemoryPressure",
            measured.memory_available < MEMORY_RESERVED,
            ("AgentHasInsufficientMemory", "AgentHasSufficientMemory"),
            ("less than 100Mi of memory are available", "memory is available"),
        ),
        (
            "DiskPressure",
            disk_low,
            ("AgentHasDiskPressure", "AgentHasNoDiskPressure"),
            (
                "less than 10 percent of the agent's disk are free",
                "the agent's disk has room",
            ),
        ),
        (
            "PIDPressure",
            tasks_high,
            ("AgentHasInsufficientPID", "AgentHasSufficientPID"),
            (
                "more than 90 percent of the machine's tasks are in use",
                "tasks are available",
            ),
        ),
    ];
    rows.iter()
        .map(|(kind, holds, reasons, messages)| {
            let status = if *holds { "True" } else { "False" };
            let old = before
                .iter()
                .find(|old| old.r#type == *kind && old.status == status);
            Condition {
                r#type: (*kind).to_owned(),
                status: status.to_owned(),
                reason: if *holds { reasons.0 } else { reasons.1 }.to_owned(),
                message: if *holds { messages.0 } else { messages.1 }.to_owned(),
                last_transition_time: old.map_or(Some(now), |old| old.last_transition_time),
                ..Condition::default()
            }
        })
        .collect()
}

fn measure(data_dir: &Path) -> Measured {
    let disk = rustix::fs::statvfs(data_dir);
    let (bytes, available) = disk.map_or((0, 0), |disk| {
        (
            disk.f_blocks.saturating_mul(disk.f_frsize),
            disk.f_bavail.saturating_mul(disk.f_frsize),
        )
    });
    // proc_loadavg(5), fourth field: RUNNABLE/ALL.
    let tasks = text("/proc/loadavg");
    let tasks = tasks
        .split_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok());
    Measured {
        // Without a figure there is no pressure to tell of.
        memory_available: meminfo("MemAvailable").unwrap_or(u64::MAX),
        disk_bytes: bytes,
        disk_available: available,
        tasks: tasks.unwrap_or_default(),
        tasks_max: text("/proc/sys/kernel/pid_max")
            .trim()
            .parse()
            .unwrap_or(u64::MAX),
    }
}

/// A row of /proc/meminfo, in bytes.
fn meminfo(row: &str) -> Option<u64> {
    meminfo_row(&text("/proc/meminfo"), row)
}

fn meminfo_row(text: &str, row: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(row)?.strip_prefix(':'))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A small file of the kernel's or the distribution's; empty where it has none.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What does not change while the machine runs.
pub(crate) fn system_info(layout: &runtime::cgroup::Layout, idmapped_mounts: bool) -> NodeSystemInfo {
    let line = |path: &str| text(path).trim().to_owned();
    let cgroup_mode = match layout {
        runtime::cgroup::Layout::V2 { .. } => "v2",
        runtime::cgroup::Layout::V1 { unified: Some(_), .. } => "hybrid",
        runtime::cgroup::Layout::V1 { unified: None, .. } => "v1",
    };
    let selinux = match &*line("/sys/fs/selinux/enforce") {
        "1" => "Enforcing",
        "0" => "Permissive",
        _ => "Disabled",
    };
    NodeSystemInfo {
        schema_level: proto::SCHEMA_LEVEL,
        machine_id: line("/etc/machine-id"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: os_image(&text("/etc/os-release")),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        operating_system: "linux".to_owned(),
        architecture: architecture(std::env::consts::ARCH).to_owned(),
        cgroup_mode: cgroup_mode.to_owned(),
        selinux: selinux.to_owned(),
        idmapped_mounts,
    }
}

/// PRETTY_NAME of os-release(5).
fn os_image(text: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

/// The name that images and Kubernetes have for it.
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Measured = Measured {
        memory_available: 1 << 30,
        disk_bytes: 1000,
        disk_available: 500,
        tasks: 100,
        tasks_max: 32_768,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    fn status<'a>(conditions: &'a [Condition], kind: &str) -> &'a Condition {
        conditions
            .iter()
            .find(|condition| condition.r#type == kind)
            .unwrap()
    }

    #[test]
    fn pressure_is_seen_and_its_begin_kept() {
        let calm = conditions(&[], &CALM, at(1));
        assert!(calm.iter().all(|condition| condition.status == "False"));
        let full = Measured {
            disk_available: 99,
            ..CALM
        };
        let first = conditions(&calm, &full, at(2));
        assert_eq!(status(&first, "DiskPressure").status, "True");
        assert_eq!(status(&first, "MemoryPressure").last_transition_time, Some(at(1)));
        let second = conditions(&first, &full, at(3));
        assert_eq!(second, first);
        let forks = Measured {
            tasks: 32_000,
            ..CALM
        };
        assert_eq!(
            status(&conditions(&[], &forks, at(1)), "PIDPressure").status,
            "True"
        );
        let small = Measured {
            memory_available: 1 << 20,
            ..CALM
        };
        assert_eq!(
            status(&conditions(&[], &small, at(1)), "MemoryPressure").status,
            "True"
        );
    }

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo_row(text, "MemTotal"), Some(16 << 20));
        assert_eq!(meminfo_row(text, "Mem"), None);
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }
}
