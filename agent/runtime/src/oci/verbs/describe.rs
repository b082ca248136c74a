//! `features` and `spec`: what this runtime can, and a configuration to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::super::arguments::Arguments;
use super::super::hooks::Point;
use super::super::{OciError, SPEC_VERSION_MAX};
use super::print;
use crate::cgroup::Layout;
use crate::{capability, container, defaults};

/// Of seccomp profiles.
const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const ARCHITECTURES: [&str; 19] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
/// The JSON of the specification's features.md, 1.2.
pub(super) fn features() -> Result<i32, OciError> {
    // What is compiled in, not what this machine has (features-linux.md: "regardless of the host"): but for cgroups, whose
    // absence a caller asks about before it starts anything.
    Layout::detect()?;
    let capabilities: Vec<&str> = capability::ALL.iter().map(|(_, name)| *name).collect();
    print(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION_MAX,
        "hooks": Point::ALL.map(|(_, name)| name),
        "mountOptions": container::mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": ARCHITECTURES,
                "knownFlags": FLAGS,
                "supportedFlags": FLAGS,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": { "io.bulkhead.runtime.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": [],
    }));
    Ok(0)
}

/// A configuration to begin with, as `runc spec` writes one.
pub(super) fn spec(arguments: &Arguments) -> Result<i32, OciError> {
    let path = Path::new(arguments.value("bundle").unwrap_or(".")).join("config.json");
    let v2 = Layout::detect()?.is_v2();
    let config = if arguments.is("rootless") {
        rootless(config(v2))
    } else {
        config(v2)
    };
    let text = format!("{config:#}\n");
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| OciError::File {
            action: "write",
            path,
            source,
        })?;
    Ok(0)
}

/// As runc's: a view of its own of the cgroups is for v2.
fn config(v2: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let kinds = &kinds[..if v2 { 6 } else { 5 }];
    json!({
        "ociVersion": SPEC_VERSION_MAX,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [format!("PATH={}", defaults::PATH), "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bulkhead",
        "mounts": defaults::mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": kinds.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>(),
            "maskedPaths": defaults::MASKED,
            "readonlyPaths": defaults::READONLY,
        },
    })
}

/// What a user without rights may have: a user namespace of one id, the host's network and so its sysfs, no limits.
fn rootless(mut config: Value) -> Value {
    let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    let linux = &mut config["linux"];
    linux["resources"] = json!({});
    linux["uidMappings"] = map(nix::unistd::geteuid().as_raw());
    linux["gidMappings"] = map(nix::unistd::getegid().as_raw());
    if let Some(kinds) = linux["namespaces"].as_array_mut() {
        kinds.retain(|kind| kind["type"] != "network");
        kinds.push(json!({ "type": "user" }));
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        for mount in mounts {
            match mount["destination"].as_str() {
                Some("/sys") => {
                    *mount = json!({
                        "destination": "/sys",
                        "type": "none",
                        "source": "/sys",
                        "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
                    });
                }
                // Group 5 is not mapped.
                Some("/dev/pts") => {
                    mount["options"] =
                        json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
                }
                _ => {}
            }
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn both_configurations_are_valid() {
        for config in [config(true), config(false), rootless(config(true))] {
            let spec: Spec = serde_json::from_value(config).unwrap();
            assert!(spec.process().is_some() && spec.root().is_some());
        }
        let rootless = rootless(config(false)).to_string();
        assert!(rootless.contains("\"user\"") && !rootless.contains("\"network\""));
    }
}
