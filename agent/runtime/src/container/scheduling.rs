//! When and where the process runs: `scheduler`, `ioPriority`, `execCPUAffinity`, `memoryPolicy`, `timeOffsets`.

use std::ffi::CString;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};
use sys::schedule::{Cpus, MemoryPolicy, Scheduler};

use super::StartError;
use super::program::{c_string, invalid};

/// linux/sched.h
fn policy(policy: LinuxSchedulerPolicy) -> Option<u32> {
    match policy {
        LinuxSchedulerPolicy::SchedOther => Some(0),
        LinuxSchedulerPolicy::SchedFifo => Some(1),
        LinuxSchedulerPolicy::SchedRr => Some(2),
        LinuxSchedulerPolicy::SchedBatch => Some(3),
        // Reserved in the kernel and never made.
        LinuxSchedulerPolicy::SchedIso => None,
        LinuxSchedulerPolicy::SchedIdle => Some(5),
        LinuxSchedulerPolicy::SchedDeadline => Some(6),
    }
}

fn flag(flag: LinuxSchedulerFlag) -> Option<u64> {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => Some(0x01),
        LinuxSchedulerFlag::SchedFlagReclaim => Some(0x02),
        LinuxSchedulerFlag::SchedFlagDLOverrun => Some(0x04),
        LinuxSchedulerFlag::SchedFlagKeepPolicy => Some(0x08),
        LinuxSchedulerFlag::SchedFlagKeepParams => Some(0x10),
        // The specification has no field for the values that they announce.
        LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => None,
    }
}

pub(super) fn scheduler(process: &Process) -> Result<Option<Scheduler>, StartError> {
    let Some(told) = process.scheduler() else {
        return Ok(None);
    };
    let mut scheduler = Scheduler::default();
    scheduler.policy = policy(*told.policy())
        .ok_or_else(|| invalid("process.scheduler.policy", "the kernel has no such policy"))?;
    for one in told.flags().iter().flatten() {
        scheduler.flags |=
            flag(*one).ok_or_else(|| invalid("process.scheduler.flags", format!("{one} cannot be set")))?;
    }
    let nice = told.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid("process.scheduler.nice", "must be -20 to 19"));
    }
    scheduler.nice = nice;
    let priority = told.priority().unwrap_or(0);
    scheduler.priority =
        u32::try_from(priority).map_err(|_| invalid("process.scheduler.priority", "must not be negative"))?;
    scheduler.runtime = told.runtime().unwrap_or(0);
    scheduler.deadline = told.deadline().unwrap_or(0);
    scheduler.period = told.period().unwrap_or(0);
    Ok(Some(scheduler))
}

pub(super) fn io_priority(process: &Process) -> Result<Option<(u16, u16)>, StartError> {
    let Some(told) = process.io_priority() else {
        return Ok(None);
    };
    let class = match told.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u16::try_from(told.priority()).ok().filter(|level| *level < 8);
    let level = level.ok_or_else(|| invalid("process.ioPriority.priority", "must be 0 to 7"))?;
    Ok(Some((class, level)))
}

/// Numbers as `0-3,7`, fewer than `most`.
fn numbers(field: &str, text: &str, most: usize) -> Result<Vec<usize>, StartError> {
    let wrong = || invalid(field, format!("{text:?} is no list of numbers below {most}"));
    let mut found = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        // As many as there are: a longer list says the same again, and would be held whole.
        if first > last || last >= most || found.len() + (last - first) >= most {
            return Err(wrong());
        }
        found.extend(first..=last);
    }
    Ok(found)
}

/// CPUs of a further process before and after it enters the container's cgroup (runtime-spec 1.2, config.md, Linux
/// Process: "not applicable to the container's init process").
pub(crate) fn exec_cpus(process: &Process) -> Result<(Option<Cpus>, Option<Cpus>), StartError> {
    let Some(told) = process.exec_cpu_affinity() else {
        return Ok((None, None));
    };
    let set = |field: &str, text: &Option<String>| -> Result<Option<Cpus>, StartError> {
        match text.as_deref().filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => Ok(Cpus::new(numbers(field, text, sys::schedule::CPUS_MAX)?)),
        }
    };
    Ok((
        set("process.execCPUAffinity.initial", told.initial())?,
        set("process.execCPUAffinity.final", told.cpu_affinity_final())?,
    ))
}

pub(super) fn memory_policy(told: &LinuxMemoryPolicy) -> Result<MemoryPolicy, StartError> {
    // linux/mempolicy.h
    let mut mode = match told.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    for flag in told.flags().iter().flatten() {
        mode |= match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        };
    }
    let field = "linux.memoryPolicy.nodes";
    let nodes = match told.nodes().as_deref().filter(|nodes| !nodes.is_empty()) {
        Some(text) => numbers(field, text, sys::schedule::NODES_MAX)?,
        None => Vec::new(),
    };
    MemoryPolicy::new(mode, nodes).ok_or_else(|| invalid(field, "too many"))
}

/// What /proc/PID/timens_offsets takes; empty without offsets.
pub(super) fn time_offsets(linux: &Linux) -> Result<CString, StartError> {
    let mut lines = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let field = format!("linux.timeOffsets.{clock}");
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid(field, "only monotonic and boottime can be moved"));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(invalid(field, "nanosecs must be below 1000000000"));
        }
        lines.push_str(&format!("{clock} {} {nanoseconds}\n", offset.secs().unwrap_or(0)));
    }
    c_string("linux.timeOffsets", &lines)
}

/// The execution domain by the kernel's number.
pub(crate) fn personality(linux: &Linux) -> Result<Option<u64>, StartError> {
    let Some(personality) = linux.personality() else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(invalid(
            "linux.personality.flags",
            "the specification has none yet",
        ));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_have_bounds() {
        assert_eq!(numbers("x", "0-2,5", 8).unwrap(), [0, 1, 2, 5]);
        assert_eq!(numbers("x", "0-3,4-7", 8).unwrap().len(), 8);
        assert!(numbers("x", "0-7,0", 8).is_err(), "more than there are");
        for text in ["", "8", "3-1", "-", "1-", "a", "0-99999999999999999999"] {
            assert!(numbers("x", text, 8).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_the_kernel_has_not_is_refused() {
        let with = |key: &str, value: serde_json::Value| -> Process {
            let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"]});
            process[key] = value;
            serde_json::from_value(process).unwrap()
        };
        assert!(scheduler(&with("scheduler", json!({"policy": "SCHED_ISO"}))).is_err());
        assert!(scheduler(&with("scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}))).is_err());
        let fifo = scheduler(&with("scheduler", json!({"policy": "SCHED_FIFO", "priority": 3}))).unwrap();
        assert_eq!(fifo.unwrap().priority, 3);
        let bad = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
        assert!(io_priority(&with("ioPriority", bad)).is_err());
        let good = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        assert_eq!(io_priority(&with("ioPriority", good)).unwrap(), Some((3, 0)));
        let linux: Linux = serde_json::from_value(json!({"timeOffsets": {"realtime": {"secs": 1}}})).unwrap();
        assert!(time_offsets(&linux).is_err());
    }
}
