//! Capabilities: names, numbers, and the set that a container starts from.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// Every capability in the order of its number (linux/capability.h), with its name.
pub const ALL: [(Capability, &str); 41] = [
    (Capability::Chown, "CAP_CHOWN"),
    (Capability::DacOverride, "CAP_DAC_OVERRIDE"),
    (Capability::DacReadSearch, "CAP_DAC_READ_SEARCH"),
    (Capability::Fowner, "CAP_FOWNER"),
    (Capability::Fsetid, "CAP_FSETID"),
    (Capability::Kill, "CAP_KILL"),
    (Capability::Setgid, "CAP_SETGID"),
    (Capability::Setuid, "CAP_SETUID"),
    (Capability::Setpcap, "CAP_SETPCAP"),
    (Capability::LinuxImmutable, "CAP_LINUX_IMMUTABLE"),
    (Capability::NetBindService, "CAP_NET_BIND_SERVICE"),
    (Capability::NetBroadcast, "CAP_NET_BROADCAST"),
    (Capability::NetAdmin, "CAP_NET_ADMIN"),
    (Capability::NetRaw, "CAP_NET_RAW"),
    (Capability::IpcLock, "CAP_IPC_LOCK"),
    (Capability::IpcOwner, "CAP_IPC_OWNER"),
    (Capability::SysModule, "CAP_SYS_MODULE"),
    (Capability::SysRawio, "CAP_SYS_RAWIO"),
    (Capability::SysChroot, "CAP_SYS_CHROOT"),
    (Capability::SysPtrace, "CAP_SYS_PTRACE"),
    (Capability::SysPacct, "CAP_SYS_PACCT"),
    (Capability::SysAdmin, "CAP_SYS_ADMIN"),
    (Capability::SysBoot, "CAP_SYS_BOOT"),
    (Capability::SysNice, "CAP_SYS_NICE"),
    (Capability::SysResource, "CAP_SYS_RESOURCE"),
    (Capability::SysTime, "CAP_SYS_TIME"),
    (Capability::SysTtyConfig, "CAP_SYS_TTY_CONFIG"),
    (Capability::Mknod, "CAP_MKNOD"),
    (Capability::Lease, "CAP_LEASE"),
    (Capability::AuditWrite, "CAP_AUDIT_WRITE"),
    (Capability::AuditControl, "CAP_AUDIT_CONTROL"),
    (Capability::Setfcap, "CAP_SETFCAP"),
    (Capability::MacOverride, "CAP_MAC_OVERRIDE"),
    (Capability::MacAdmin, "CAP_MAC_ADMIN"),
    (Capability::Syslog, "CAP_SYSLOG"),
    (Capability::WakeAlarm, "CAP_WAKE_ALARM"),
    (Capability::BlockSuspend, "CAP_BLOCK_SUSPEND"),
    (Capability::AuditRead, "CAP_AUDIT_READ"),
    (Capability::Perfmon, "CAP_PERFMON"),
    (Capability::Bpf, "CAP_BPF"),
    (Capability::CheckpointRestore, "CAP_CHECKPOINT_RESTORE"),
];

/// The number of a capability.
pub fn number(capability: Capability) -> u32 {
    // ALL has every variant of the enum; a test walks the names.
    ALL.iter()
        .position(|(one, _)| *one == capability)
        .map_or(u32::MAX, |index| index as u32)
}

/// The capability of a name, with or without `CAP_`, in either case.
pub fn parse(name: &str) -> Option<Capability> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    ALL.iter()
        .find(|(_, full)| full[4..] == *name)
        .map(|(capability, _)| *capability)
}

/// Names of the numbers set in a mask, as /proc/PID/status gives one; unknown ones as `CAP_N`.
pub fn names(mask: u64) -> Vec<String> {
    (0..64u32)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| {
            ALL.get(bit as usize)
                .map_or_else(|| format!("CAP_{bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

/// A set as a mask by number.
pub fn mask(set: &Capabilities) -> u64 {
    set.iter()
        .map(|capability| number(*capability))
        .filter(|bit| *bit < 64)
        .fold(0, |mask, bit| mask | 1 << bit)
}

/// What this process can give to a container in its own user namespace, as a mask; in a user namespace of the container's
/// own every capability can be given. Asking for others is no error, they are left out: a caller with somebody to tell
/// should.
pub fn grantable() -> u64 {
    let has = |number: &u32| sys::cred::has_bounding(*number);
    (0..64)
        .map_while(|number| has(&number).ok().map(|has| u64::from(has) << number))
        .fold(0, |mask, bit| mask | bit)
}

/// The set that a container starts from: Docker's without NET_RAW (spoofing on the pod network; ping needs only
/// net.ipv4.ping_group_range), without MKNOD (device nodes of one's own making are of no use in a user namespace and a
/// danger outside one) and without AUDIT_WRITE (lets a container write records into the host's audit log).
pub const DEFAULT: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Setfcap,
];

/// The five sets for a process with these capabilities: inheritable and ambient stay empty (CVE-2022-24769), so that a
/// program gains nothing from its file's inheritable bits. A process that is not root gets them at an exec from files
/// only; a pod that wants them ambient must say so.
pub fn sets(capabilities: impl IntoIterator<Item = Capability>) -> LinuxCapabilities {
    let set: Capabilities = capabilities.into_iter().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (capability, bit) in [
            (Capability::Chown, 0),
            (Capability::Setpcap, 8),
            (Capability::NetRaw, 13),
            (Capability::SysAdmin, 21),
            (Capability::Mknod, 27),
            (Capability::Syslog, 34),
            (Capability::CheckpointRestore, 40),
        ] {
            assert_eq!(number(capability), bit);
        }
        for (capability, name) in ALL {
            assert_eq!(parse(name), Some(capability));
            assert_eq!(parse(&name[4..].to_lowercase()), Some(capability));
        }
        assert_eq!(parse("CAP_NONSENSE"), None);
    }

    #[test]
    fn grantable_is_the_bounding_set_of_ours() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .unwrap()
            .trim();
        assert_eq!(grantable(), u64::from_str_radix(bounding, 16).unwrap());
    }

    #[test]
    fn default_set_has_none_of_the_dangerous() {
        for capability in [
            Capability::NetRaw,
            Capability::Mknod,
            Capability::SysAdmin,
            Capability::AuditWrite,
        ] {
            assert!(!DEFAULT.contains(&capability));
        }
    }
}
