//! Security of pods and containers.

use std::collections::BTreeSet;

use proto::v1::{PodSecurityContext, PodSpec, SecurityContext};

use super::Errors;

/// Ids of a pod with a user namespace of its own: 0 to 65535 inside.
const ID_RANGE: u32 = 65_536;

/// Capabilities of Linux 6.
const CAPABILITIES: [&str; 42] = [
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

/// Sysctls that concern the pod alone: Kubernetes 1.34, "Using sysctls in a Kubernetes Cluster", safe sysctls.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

const PROFILES: [&str; 3] = ["RuntimeDefault", "Unconfined", "Localhost"];

pub(super) fn pod(errors: &mut Errors, path: &str, context: &PodSecurityContext, spec: &PodSpec) {
    id(errors, format!("{path}.runAsUser"), context.run_as_user, spec);
    id(errors, format!("{path}.runAsGroup"), context.run_as_group, spec);
    id(errors, format!("{path}.fsGroup"), context.fs_group, spec);
    for (index, group) in context.supplemental_groups.iter().enumerate() {
        id(
            errors,
            format!("{path}.supplementalGroups[{index}]"),
            Some(*group),
            spec,
        );
    }
    for (field, text, allowed) in [
        (
            "supplementalGroupsPolicy",
            &context.supplemental_groups_policy,
            ["", "Merge", "Strict"],
        ),
        (
            "fsGroupChangePolicy",
            &context.fs_group_change_policy,
            ["", "Always", "OnRootMismatch"],
        ),
        (
            "seLinuxChangePolicy",
            &context.se_linux_change_policy,
            ["", "MountOption", "Recursive"],
        ),
    ] {
        errors.one_of(format!("{path}.{field}"), text, &allowed);
    }
    sysctls(errors, path, context, spec);
    if let Some(seccomp) = &context.seccomp_profile {
        profile(
            errors,
            &format!("{path}.seccompProfile"),
            &seccomp.r#type,
            &seccomp.localhost_profile,
        );
    }
    if let Some(armor) = &context.app_armor_profile {
        profile(
            errors,
            &format!("{path}.appArmorProfile"),
            &armor.r#type,
            &armor.localhost_profile,
        );
    }
}

fn sysctls(errors: &mut Errors, path: &str, context: &PodSecurityContext, spec: &PodSpec) {
    let mut names = BTreeSet::new();
    for (index, sysctl) in context.sysctls.iter().enumerate() {
        let path = format!("{path}.sysctls[{index}].name");
        // Both forms are allowed: `net.ipv4.x` and `net/ipv4/x`.
        let dotted = sysctl.name.replace('/', ".");
        if !SYSCTLS.contains(&dotted.as_str()) {
            let hint = crate::schema::hint(crate::schema::nearest(&dotted, SYSCTLS).as_deref());
            errors.add(
                &path,
                format!("not supported yet: not one of the sysctls that concern the pod alone{hint}"),
            );
        }
        if spec.host_network && dotted.starts_with("net.") {
            errors.add(
                &path,
                "would change the node's network: not with hostNetwork: true",
            );
        }
        if spec.host_ipc && dotted.starts_with("kernel.") {
            errors.add(&path, "would change the node's IPC: not with hostIPC: true");
        }
        if !names.insert(dotted) {
            errors.add(&path, format!("`{}` is written twice", sysctl.name));
        }
    }
}

/// Beyond the pod's range of ids there is nobody to run as.
fn id(errors: &mut Errors, path: String, id: Option<u32>, spec: &PodSpec) {
    let Some(id) = id else { return };
    if id > i32::MAX as u32 {
        errors.add(path, format!("must be from 0 to {}, is {id}", i32::MAX));
    } else if id >= ID_RANGE && spec.host_users == Some(false) {
        let message = format!(
            "{id} is outside of the pod's user namespace (0 to {}); choose a smaller one or set hostUsers: true",
            ID_RANGE - 1
        );
        errors.add(path, message);
    }
}

fn profile(errors: &mut Errors, path: &str, kind: &str, localhost: &str) {
    if !errors.required(format!("{path}.type"), kind) {
        return;
    }
    errors.one_of(format!("{path}.type"), kind, &PROFILES);
    let path = format!("{path}.localhostProfile");
    if kind == "Localhost" {
        if localhost.is_empty() {
            errors.add(path, "is required with type: Localhost");
        } else if localhost.starts_with('/') || localhost.split('/').any(|part| part == "..") {
            errors.add(path, "must be a relative path without `..`");
        }
    } else if !localhost.is_empty() {
        errors.add(path, "is for type: Localhost only");
    }
}

pub(super) fn container(errors: &mut Errors, path: &str, context: &SecurityContext, spec: &PodSpec) {
    let pod = spec.security_context.as_ref();
    id(errors, format!("{path}.runAsUser"), context.run_as_user, spec);
    id(errors, format!("{path}.runAsGroup"), context.run_as_group, spec);
    let user = context.run_as_user.or(pod.and_then(|pod| pod.run_as_user));
    let not_root = context
        .run_as_non_root
        .or(pod.and_then(|pod| pod.run_as_non_root));
    if user == Some(0) && not_root == Some(true) {
        errors.add(
            format!("{path}.runAsUser"),
            "must not be 0 with runAsNonRoot: true",
        );
    }
    let mut admin = false;
    if let Some(sets) = &context.capabilities {
        for (field, names) in [("add", &sets.add), ("drop", &sets.drop)] {
            for (index, name) in names.iter().enumerate() {
                let short = name.strip_prefix("CAP_").unwrap_or(name);
                if !CAPABILITIES.contains(&short) {
                    let hint = crate::schema::hint(crate::schema::nearest(short, CAPABILITIES).as_deref());
                    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
                    let path = format!("{path}.capabilities.{field}[{index}]");
                    errors.add(path, format!("`{shown}` is not a capability of Linux{hint}"));
                }
                admin |= field == "add" && short == "SYS_ADMIN";
            }
        }
    }
    let privileged = context.privileged == Some(true);
    if context.allow_privilege_escalation == Some(false) && (privileged || admin) {
        let with = if privileged {
            "privileged: true"
        } else {
            "the capability SYS_ADMIN"
        };
        errors.add(
            format!("{path}.allowPrivilegeEscalation"),
            format!("must not be false with {with}"),
        );
    }
    if privileged && spec.host_users == Some(false) {
        errors.add(
            format!("{path}.privileged"),
            "must not be true with hostUsers: false",
        );
    }
    errors.one_of(
        format!("{path}.procMount"),
        &context.proc_mount,
        &["", "Default", "Unmasked"],
    );
    if context.proc_mount == "Unmasked" && spec.host_users != Some(false) {
        errors.add(
            format!("{path}.procMount"),
            "may be Unmasked with hostUsers: false only",
        );
    }
    if let Some(seccomp) = &context.seccomp_profile {
        profile(
            errors,
            &format!("{path}.seccompProfile"),
            &seccomp.r#type,
            &seccomp.localhost_profile,
        );
    }
    if let Some(armor) = &context.app_armor_profile {
        profile(
            errors,
            &format!("{path}.appArmorProfile"),
            &armor.r#type,
            &armor.localhost_profile,
        );
    }
}
