//! What of a configuration can be checked without making anything: the same functions that `plan` takes its parts from.

use oci_spec::runtime::Spec;

use super::plan::{check_namespaces, refuse_unsupported};
use super::program::limits;
use super::{StartError, interfaces, scheduling};
use super::{mounts, places};
use crate::{cgroup, rdt, seccomp};

/// Refuses by its field what no container can be made from, before there is a directory, a cgroup or a process.
pub(crate) fn examine(config: &Spec) -> Result<(), StartError> {
    if let Some(process) = config.process() {
        scheduling::scheduler(process)?;
        scheduling::io_priority(process)?;
        scheduling::exec_cpus(process)?;
        limits(process)?;
    }
    mounts::examine(config.mounts().as_deref().unwrap_or_default())?;
    let Some(linux) = config.linux() else {
        return Ok(());
    };
    refuse_unsupported(config, linux)?;
    check_namespaces(linux)?;
    if let Some(rdt) = linux.intel_rdt() {
        rdt::examine(rdt)?;
    }
    if let Some(profile) = linux.seccomp() {
        seccomp::examine(profile)?;
    }
    scheduling::time_offsets(linux)?;
    if let Some(policy) = linux.memory_policy() {
        scheduling::memory_policy(policy)?;
    }
    places::all_covered("linux.maskedPaths", linux.masked_paths())?;
    places::all_covered("linux.readonlyPaths", linux.readonly_paths())?;
    // Whether there is a network namespace to move them to is known when it has been opened.
    interfaces::plan(linux, true)?;
    if let Some(resources) = linux.resources() {
        cgroup::examine(resources)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({"ociVersion": "1.2.0", "linux": {},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"]}});
        change(&mut config);
        match examine(&serde_json::from_value(config).unwrap()) {
            Ok(()) => String::new(),
            Err(error) => crate::monitor::chain(&error),
        }
    }

    #[test]
    fn lists_and_places_have_bounds() {
        let mount = |place: String| json!([{"destination": place, "type": "tmpfs"}]);
        for (depth, good) in [(128, true), (129, false)] {
            let refusal = refusal(|config| config["mounts"] = mount("/d".repeat(depth)));
            assert_eq!(refusal.is_empty(), good, "{depth}: {refusal}");
        }
        let long = refusal(|config| config["mounts"] = mount(format!("/{}", "d".repeat(4095))));
        assert!(
            long.contains("longer than 4095 bytes") && long.len() < 300,
            "{long}"
        );
        let many = refusal(|config| config["linux"]["maskedPaths"] = json!(vec!["/x"; 1025]));
        assert!(many.contains("linux.maskedPaths"), "{many}");
        let one = mount("/x".into())[0].clone();
        let many = refusal(|config| config["mounts"] = json!(vec![one; 1025]));
        assert!(many.contains("mounts: more than 1024"), "{many}");
    }

    #[test]
    fn each_part_is_looked_at() {
        for (place, value, named) in [
            (
                "/process/scheduler",
                json!({"policy": "SCHED_ISO"}),
                "process.scheduler",
            ),
            (
                "/process/execCPUAffinity",
                json!({"initial": "8192"}),
                "process.execCPUAffinity.initial",
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
                "process.rlimits",
            ),
            (
                "/mounts",
                json!([{"destination": "/x", "type": "bind"}]),
                "mounts[0]",
            ),
            (
                "/mounts",
                json!([{"destination": "/x", "source": "a\u{0}"}]),
                "NUL byte",
            ),
            ("/linux/readonlyPaths", json!(["x"]), "must be absolute"),
            ("/linux/timeOffsets", json!({"realtime": {}}), "linux.timeOffsets"),
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "nodes": "z"}),
                "linux.memoryPolicy",
            ),
            ("/linux/netDevices", json!({"a/b": {}}), "linux.netDevices"),
            (
                "/linux/intelRdt",
                json!({"memBwSchema": "L3:0=f"}),
                "linux.intelRdt.memBwSchema",
            ),
            (
                "/linux/resources",
                json!({"devices": [{"allow": true, "access": "x"}]}),
                "devices[0].access",
            ),
        ] {
            let refusal = refusal(|config| {
                let (parent, key) = place.rsplit_once('/').unwrap();
                config.pointer_mut(parent).unwrap()[key] = value;
            });
            assert!(refusal.contains(named), "{place}: {refusal}");
        }
    }
}
