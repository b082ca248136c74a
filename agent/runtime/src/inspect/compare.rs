//! Expected against observed, layer by layer.

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxNamespaceType, LinuxResources};

use super::{MountLine, Observed};
use crate::capability;
use crate::cgroup::{IoThrottle, weight_of_shares};
use crate::spec::{ContainerSpec, PidShare, SandboxSpec, Share};

/// One layer of isolation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which.
    pub layer: &'static str,
    /// What the specification says.
    pub expected: String,
    /// What the kernel says.
    pub observed: String,
    /// Whether what the kernel has is at least what was asked for.
    pub isolated: bool,
}

fn row(layer: &'static str, expected: impl Into<String>, observed: impl Into<String>, isolated: bool) -> Row {
    Row {
        layer,
        expected: expected.into(),
        observed: observed.into(),
        isolated,
    }
}

/// Rows in the order in which a person asks: who it is, what it sees, what it may do, what it may use.
pub fn compare(spec: &ContainerSpec, sandbox: Option<&SandboxSpec>, observed: &Observed) -> Vec<Row> {
    let mut rows = namespaces(spec, sandbox, observed);
    rows.push(uid_map(spec, sandbox, observed));
    privileges(spec, observed, &mut rows);
    let empty = LinuxResources::default();
    let resources = spec
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .unwrap_or(&empty);
    limits(resources, observed, &mut rows);
    covered(spec, observed, &mut rows);
    rows
}

fn namespaces(spec: &ContainerSpec, sandbox: Option<&SandboxSpec>, observed: &Observed) -> Vec<Row> {
    let listed = |kind| {
        let linux = spec.config.linux().as_ref();
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .is_some_and(|list| list.iter().any(|one| one.typ() == kind))
    };
    let shared = |pod: Option<bool>| pod.unwrap_or(false);
    let of = |kind: LinuxNamespaceType, pod: Option<bool>| listed(kind) || shared(pod);
    let expected = [
        (
            "user namespace",
            "user",
            of(LinuxNamespaceType::User, sandbox.map(|pod| pod.users.is_some())),
        ),
        ("mount namespace", "mnt", of(LinuxNamespaceType::Mount, None)),
        (
            "uts namespace",
            "uts",
            of(LinuxNamespaceType::Uts, sandbox.map(|pod| pod.hostname.is_some())),
        ),
        (
            "ipc namespace",
            "ipc",
            of(LinuxNamespaceType::Ipc, sandbox.map(|pod| pod.ipc == Share::Pod)),
        ),
        (
            "pid namespace",
            "pid",
            of(
                LinuxNamespaceType::Pid,
                sandbox.map(|pod| pod.pid == PidShare::Pod),
            ),
        ),
        (
            "network namespace",
            "net",
            of(
                LinuxNamespaceType::Network,
                sandbox.map(|pod| pod.network == Share::Pod),
            ),
        ),
        ("cgroup namespace", "cgroup", of(LinuxNamespaceType::Cgroup, None)),
    ];
    expected
        .into_iter()
        .map(|(layer, kind, own)| {
            let word = if own { "own" } else { "host" };
            match observed.namespaces.get(kind) {
                Some(seen) if seen.host => row(layer, word, format!("host {}", seen.inode), !own),
                Some(seen) => row(layer, word, format!("own {}", seen.inode), true),
                None => row(layer, word, "-", false),
            }
        })
        .collect()
}

fn map_text(map: &[(u32, u32, u32)]) -> String {
    let parts: Vec<String> = map
        .iter()
        .map(|(inside, host, count)| format!("{inside}:{host}:{count}"))
        .collect();
    parts.join(",")
}

fn uid_map(spec: &ContainerSpec, sandbox: Option<&SandboxSpec>, observed: &Observed) -> Row {
    let own = spec
        .config
        .linux()
        .as_ref()
        .and_then(|linux| linux.uid_mappings().as_ref())
        .filter(|list| !list.is_empty());
    let expected = match (sandbox.and_then(|pod| pod.users), own) {
        (Some(range), _) => vec![(0, range.start, range.count)],
        (None, Some(list)) => list
            .iter()
            .map(|map| (map.container_id(), map.host_id(), map.size()))
            .collect(),
        (None, None) => vec![(0, 0, u32::MAX)],
    };
    row(
        "uid map",
        map_text(&expected),
        map_text(&observed.uid_map),
        expected == observed.uid_map,
    )
}

fn privileges(spec: &ContainerSpec, observed: &Observed, rows: &mut Vec<Row>) {
    let linux = spec.config.linux().as_ref();
    let process = spec.config.process().as_ref();
    let filter = linux.is_some_and(|linux| linux.seccomp().is_some());
    let seen = match (observed.seccomp_mode, observed.seccomp_filters) {
        (0, _) => "none".to_owned(),
        (1, _) => "strict".to_owned(),
        (_, Some(count)) => format!("{count} filter(s)"),
        (_, None) => "filter".to_owned(),
    };
    let enforced = observed.seccomp_mode != 0 && observed.seccomp_filters != Some(0);
    rows.push(row(
        "seccomp",
        if filter { "filter" } else { "none" },
        seen,
        !filter || enforced,
    ));

    let wanted = process
        .and_then(|process| process.no_new_privileges())
        .unwrap_or(false);
    let word = |on: bool| if on { "yes" } else { "no" };
    rows.push(row(
        "no_new_privs",
        word(wanted),
        word(observed.no_new_privs),
        !wanted || observed.no_new_privs,
    ));

    let sets = process.and_then(|process| process.capabilities().as_ref());
    let bounding = sets
        .and_then(|sets| sets.bounding().as_ref())
        .map_or(0, capability::mask);
    let permitted = sets
        .and_then(|sets| sets.permitted().as_ref())
        .map_or(0, capability::mask);
    let names = |mask: u64| match capability::names(mask) {
        names if names.is_empty() => "none".to_owned(),
        names => names
            .iter()
            .map(|name| name.trim_start_matches("CAP_"))
            .collect::<Vec<_>>()
            .join(","),
    };
    // A program may give up what it had, and gain by exec what the bounding set allows; never more.
    let within = observed.bounding & !bounding == 0
        && (observed.effective | observed.permitted) & !(permitted | bounding) == 0;
    rows.push(row(
        "capabilities",
        names(bounding),
        names(observed.bounding | observed.permitted),
        within,
    ));

    let label = process
        .and_then(|process| process.selinux_label().as_deref())
        .filter(|label| !label.is_empty());
    let seen = observed.label.as_deref().filter(|label| !label.is_empty());
    rows.push(row(
        "selinux",
        label.unwrap_or("none"),
        seen.unwrap_or("none"),
        label.is_none() || label == seen || (seen.is_some() && observed.label_specified.as_deref() == seen),
    ));
}

fn number(value: Option<u64>) -> String {
    value.map_or("max".to_owned(), |value| value.to_string())
}

/// A limit of the specification: absent, zero and negative ones are none.
fn wanted(value: Option<i64>) -> Option<u64> {
    value
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value != 0)
}

/// The kernel counts memory in pages.
const PAGE_BYTES: u64 = 4096;

fn pages(value: Option<u64>) -> Option<u64> {
    value.map(|value| value / PAGE_BYTES)
}

fn limits(resources: &LinuxResources, observed: &Observed, rows: &mut Vec<Row>) {
    let seen = &observed.limits;
    let expected = observed.cgroup_expected.to_string_lossy().into_owned();
    // Below the group all of its limits hold too: that is where an init system puts itself.
    let within = |path: &String| Path::new(path).starts_with(&expected);
    let inside = !observed.cgroups.is_empty() && observed.cgroups.iter().all(within);
    let paths: Vec<&str> = observed.cgroups.iter().map(String::as_str).collect();
    rows.push(row("cgroup", &*expected, paths.join(","), inside));

    let cpu = resources.cpu().as_ref();
    let quota = wanted(cpu.and_then(|cpu| cpu.quota()));
    let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period != 0);
    let shares = cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares != 0);
    let text = |quota: Option<u64>, period: Option<u64>, share: Option<String>| {
        let period = if quota.is_some() {
            format!("/{}", number(period))
        } else {
            String::new()
        };
        let share = share.map_or(String::new(), |share| format!(" {share}"));
        format!("{}{period}{share}", number(quota))
    };
    let share = |v1: Option<u64>, v2: Option<u64>| match observed.cgroup_v2 {
        true => v2.map(|weight| format!("weight {weight}")),
        false => v1.map(|shares| format!("shares {shares}")),
    };
    let share_wanted = share(shares, shares.map(weight_of_shares));
    let share_seen = share(seen.cpu_shares, seen.cpu_weight);
    let same = quota == seen.cpu_quota_us
        && (period.is_none() || period == seen.cpu_period_us)
        && (share_wanted.is_none() || share_wanted == share_seen);
    rows.push(row(
        "cpu",
        text(quota, period.or(seen.cpu_period_us), share_wanted),
        text(seen.cpu_quota_us, seen.cpu_period_us, share_seen),
        same,
    ));

    let memory = resources.memory().as_ref();
    let limit = wanted(memory.and_then(|memory| memory.limit()));
    let low = wanted(memory.and_then(|memory| memory.reservation()));
    let text = |limit, low: Option<u64>| match low {
        Some(low) => format!("{} soft {low}", number(limit)),
        None => number(limit),
    };
    let same =
        pages(limit) == pages(seen.memory_max) && (low.is_none() || pages(low) == pages(seen.memory_low));
    rows.push(row(
        "memory",
        text(limit, low),
        text(seen.memory_max, seen.memory_low),
        same,
    ));

    let pids = resources
        .pids()
        .as_ref()
        .and_then(|pids| wanted(Some(pids.limit())));
    rows.push(row(
        "pids",
        number(pids),
        number(seen.pids_max),
        pids == seen.pids_max,
    ));

    let io = resources.block_io().as_ref().map(throttles).unwrap_or_default();
    rows.push(row("block io", io_text(&io), io_text(&seen.io), io == seen.io));
}

fn throttles(block: &LinuxBlockIo) -> Vec<IoThrottle> {
    let mut all: Vec<IoThrottle> = [
        ("rbps", block.throttle_read_bps_device()),
        ("wbps", block.throttle_write_bps_device()),
        ("riops", block.throttle_read_iops_device()),
        ("wiops", block.throttle_write_iops_device()),
    ]
    .into_iter()
    .flat_map(|(kind, list)| {
        list.iter()
            .flatten()
            .filter(|device| device.rate() != 0)
            .map(move |device| IoThrottle {
                device: (device.major() as u64, device.minor() as u64),
                kind,
                rate: device.rate(),
            })
    })
    .collect();
    all.sort();
    all
}

fn io_text(list: &[IoThrottle]) -> String {
    if list.is_empty() {
        return "max".to_owned();
    }
    let parts: Vec<String> = list
        .iter()
        .map(|one| format!("{}:{} {}={}", one.device.0, one.device.1, one.kind, one.rate))
        .collect();
    parts.join(", ")
}

/// The mount that shows at a path: the last of the longest point that is a prefix.
fn shown<'a>(mounts: &'a [MountLine], path: &Path) -> Option<&'a MountLine> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

fn covered(spec: &ContainerSpec, observed: &Observed, rows: &mut Vec<Row>) {
    let linux = spec.config.linux().as_ref();
    let masked = |path: &str| {
        shown(&observed.mounts, Path::new(path)).is_some_and(|mount| {
            mount.point == Path::new(path)
                && ((mount.root == "/null" && matches!(mount.fstype.as_str(), "devtmpfs" | "tmpfs"))
                    || (mount.fstype == "tmpfs" && mount.options.contains("ro")))
        })
    };
    let readonly = |path: &str| {
        shown(&observed.mounts, Path::new(path)).is_some_and(|mount| mount.options.contains("ro"))
    };
    let lists = [
        (
            "masked paths",
            linux.and_then(|linux| linux.masked_paths().as_ref()),
            &masked as &dyn Fn(&str) -> bool,
        ),
        (
            "read-only paths",
            linux.and_then(|linux| linux.readonly_paths().as_ref()),
            &readonly,
        ),
    ];
    for (layer, list, holds) in lists {
        let list: Vec<&String> = list.into_iter().flatten().collect();
        let there: Vec<&&String> = list
            .iter()
            .filter(|path| !observed.absent.contains(**path))
            .collect();
        let missing: Vec<&str> = there
            .iter()
            .filter(|path| !holds(path))
            .map(|path| path.as_str())
            .collect();
        let seen = match missing.is_empty() {
            true => format!("{} covered, {} absent", there.len(), list.len() - there.len()),
            false => format!("not covered: {}", missing.join(",")),
        };
        rows.push(row(layer, list.len().to_string(), seen, missing.is_empty()));
    }
    let wanted = spec
        .config
        .root()
        .as_ref()
        .and_then(|root| root.readonly())
        .unwrap_or(false);
    let seen = shown(&observed.mounts, Path::new("/")).is_some_and(|mount| mount.options.contains("ro"));
    let word = |ro: bool| if ro { "read-only" } else { "writable" };
    rows.push(row("root file system", word(wanted), word(seen), !wanted || seen));
}
