//! What a pod's container starts from: mounts, masks, devices, namespaces, process. The agent fills in the rest.

use std::path::PathBuf;

use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, Mount, Process, Spec,
};

use crate::capability;

/// Hidden from containers: what tells of the host or reaches its hardware.
pub const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// To be read only, also by root.
pub const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Nodes in every /dev: name, major, minor (runtime-spec 1.2, config-linux.md, Default Devices).
pub const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// PATH of a process whose environment has none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The deny-all rule to begin a list of device rules with; `device_rules` follow it of themselves.
pub fn deny_all_devices() -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(false)
        .set_typ(Some(LinuxDeviceType::A))
        .set_access(Some("rwm".into()));
    rule
}

/// What every container may do with devices: use the default ones and terminals. Making nodes of others is allowed by
/// the device group, as image tools do it; using them is not.
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.into()));
        rule
    };
    let mut rules = vec![
        rule(LinuxDeviceType::C, None, None, "m"),
        rule(LinuxDeviceType::B, None, None, "m"),
        rule(LinuxDeviceType::C, Some(5), Some(1), "rwm"),
        rule(LinuxDeviceType::C, Some(5), Some(2), "rwm"),
        rule(LinuxDeviceType::C, Some(136), None, "rwm"),
    ];
    for (_, major, minor) in DEVICES {
        rules.push(rule(
            LinuxDeviceType::C,
            Some(major.into()),
            Some(minor.into()),
            "rwm",
        ));
    }
    rules
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(kind)))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// The mounts of every container.
pub fn mounts() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

/// A container of a pod: its own mount, PID and cgroup namespaces, the others its sandbox's; the default mounts, masks,
/// capabilities and seccomp profile, no new privileges. The agent sets arguments, environment, user, resources, volumes.
/// A pod that shares a PID namespace takes `LinuxNamespaceType::Pid` out of the list.
pub fn spec() -> Spec {
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(None);
        namespace
    };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(
            [
                LinuxNamespaceType::Mount,
                LinuxNamespaceType::Pid,
                LinuxNamespaceType::Cgroup,
            ]
            .map(namespace)
            .into(),
        ))
        .set_masked_paths(Some(MASKED.map(str::to_owned).into()))
        .set_readonly_paths(Some(READONLY.map(str::to_owned).into()))
        .set_devices(None)
        .set_resources(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_seccomp(Some(crate::seccomp::default_profile(&capability::DEFAULT)));
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_cwd(PathBuf::from("/"))
        .set_args(None)
        .set_env(Some(vec![format!("PATH={PATH}")]))
        .set_capabilities(Some(capability::sets(capability::DEFAULT)))
        .set_rlimits(None)
        .set_no_new_privileges(Some(true));
    let mut spec = Spec::default();
    spec.set_process(Some(process))
        .set_hostname(None)
        .set_root(None)
        .set_mounts(Some(mounts()))
        .set_linux(Some(linux));
    spec
}
