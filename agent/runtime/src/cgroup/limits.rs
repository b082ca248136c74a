//! Limits of the OCI specification written into the kernel's files.

use std::path::{Path, PathBuf};

use nix::libc::EINVAL;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Cgroup, CgroupError, devices, read_if_there, write};

/// Whether the group is new: device rules can only be replaced as a whole before it has children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// By `Cgroup::create`.
    Creation,
    /// By `Cgroup::update`.
    Later,
}

/// v2's weight (1..10000) for v1's shares (2..262144), as runc and crun convert.
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9_999) / 262_142
}

/// How the kernel's v2 files write "no limit".
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

impl Cgroup {
    pub(super) fn set(&self, resources: &LinuxResources, when: When) -> Result<(), CgroupError> {
        devices::examine(resources)?;
        if let Some(cpu) = resources.cpu() {
            self.set_cpu(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            if self.layout.is_v2() {
                self.set_memory_v2(memory)?
            } else {
                self.set_memory_v1(memory)?
            }
        }
        if let Some(pids) = resources.pids() {
            // runtime-spec 1.2, config-linux.md, PIDs: -1 is no limit; runc and crun take 0 for that too.
            let value = if pids.limit() <= 0 {
                "max".to_owned()
            } else {
                pids.limit().to_string()
            };
            write(&self.file("pids", "pids.max")?, &value)?;
        }
        if let Some(block) = resources.block_io() {
            self.set_block_io(block)?;
        }
        if let Some(rules) = resources.devices()
            && !rules.is_empty()
            && when == When::Creation
        {
            self.set_devices(rules)?;
        }
        for (name, value) in resources.unified().iter().flatten() {
            let Some(directory) = self.layout.is_v2().then(|| self.controller("")).flatten() else {
                return Err(CgroupError::Unified { name: name.clone() });
            };
            if name.contains('/') || name.starts_with('.') {
                return Err(CgroupError::Unsupported {
                    what: format!("unified {name}"),
                });
            }
            if let Some((controller, _)) = name.split_once('.') {
                self.enable(controller)?;
            }
            write(&directory.join(name), value)?;
        }
        self.set_rare(resources)
    }

    /// A file of a controller; `Unsupported` where the machine lacks the controller.
    pub(super) fn file(&self, controller: &str, name: &str) -> Result<PathBuf, CgroupError> {
        let unsupported = || CgroupError::Unsupported {
            what: name.to_owned(),
        };
        let path = self.controller(controller).ok_or_else(unsupported)?.join(name);
        if path.exists() {
            Ok(path)
        } else {
            Err(unsupported())
        }
    }

    fn set_cpu(&self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        let v2 = self.layout.is_v2();
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            match v2 {
                true => write(
                    &self.file("cpu", "cpu.weight")?,
                    &weight_of_shares(shares).to_string(),
                )?,
                false => write(&self.file("cpu", "cpu.shares")?, &shares.to_string())?,
            }
        }
        let period = cpu.period().filter(|period| *period != 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        if v2 {
            if period.is_some() || quota.is_some() {
                let file = self.file("cpu", "cpu.max")?;
                let now = read_if_there(&file)?.unwrap_or_default();
                let mut now = now.split_whitespace();
                let quota = quota.map_or_else(|| now.next().unwrap_or("max").to_owned(), or_max);
                let period = period.map_or_else(String::new, |period| format!(" {period}"));
                write(&file, &format!("{quota}{period}"))?;
            }
            let real_time = cpu.realtime_runtime().is_some_and(|runtime| runtime != 0);
            if real_time || cpu.realtime_period().is_some_and(|period| period != 0) {
                return Err(CgroupError::Unsupported {
                    what: "realtime scheduling with cgroup v2".into(),
                });
            }
        } else {
            self.set_quota_v1(period, quota)?;
            if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
                write(&self.file("cpu", "cpu.rt_period_us")?, &period.to_string())?;
            }
            if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
                write(&self.file("cpu", "cpu.rt_runtime_us")?, &runtime.to_string())?;
            }
        }
        if let Some(burst) = cpu.burst() {
            let name = if v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            write(&self.file("cpu", name)?, &burst.to_string())?;
        }
        if let Some(idle) = cpu.idle() {
            write(&self.file("cpu", "cpu.idle")?, &idle.to_string())?;
        }
        for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                write(&self.file("cpuset", name)?, value)?;
            }
        }
        Ok(())
    }

    /// Two files of v1: with either first, what holds in between may be more than the parent has, and is refused with EINVAL.
    fn set_quota_v1(&self, period: Option<u64>, quota: Option<i64>) -> Result<(), CgroupError> {
        let set_period = || match period {
            Some(period) => write(&self.file("cpu", "cpu.cfs_period_us")?, &period.to_string()),
            None => Ok(()),
        };
        let again = match (set_period(), quota) {
            (Err(CgroupError::File { source, .. }), Some(_)) if source.raw_os_error() == Some(EINVAL) => true,
            (first, _) => {
                first?;
                false
            }
        };
        if let Some(quota) = quota {
            write(&self.file("cpu", "cpu.cfs_quota_us")?, &quota.to_string())?;
        }
        if again { set_period() } else { Ok(()) }
    }

    fn set_memory_v1(&self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let limit = memory.limit().filter(|limit| *limit != 0);
        self.check_before(memory)?;
        // A limit without a word about swap allows none on top, where swap is accounted; no limit leaves none of the sum, as
        // with runc: the sum never lies below the part.
        let swap = memory.swap().filter(|swap| *swap != 0);
        let swap = swap.or(limit.filter(|limit| *limit < 0));
        let limit_file = self.file("memory", "memory.limit_in_bytes")?;
        let swap_file = self
            .controller("memory")
            .map(|path| path.join("memory.memsw.limit_in_bytes"));
        let swap_file = swap_file.filter(|path| path.exists());
        match (limit, swap, swap_file) {
            (limit, Some(swap), Some(swap_file)) => {
                let old = read_if_there(&swap_file)?
                    .and_then(|text| text.trim().parse::<i64>().ok())
                    .unwrap_or(-1);
                // The sum never lies below the part: raise it first, lower it last.
                let raising = swap < 0 || (old >= 0 && swap > old);
                if raising {
                    write(&swap_file, &swap.to_string())?;
                }
                if let Some(limit) = limit {
                    write(&limit_file, &limit.to_string())?;
                }
                if !raising {
                    write(&swap_file, &swap.to_string())?;
                }
            }
            (limit, Some(swap), None) if swap > 0 && limit != Some(swap) => {
                return Err(CgroupError::Unsupported { what: "swap".into() });
            }
            (Some(limit), _, _) => write(&limit_file, &limit.to_string())?,
            (None, _, _) => {}
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            write(
                &self.file("memory", "memory.soft_limit_in_bytes")?,
                &low.to_string(),
            )?;
        }
        if let Some(swappiness) = memory.swappiness() {
            write(
                &self.file("memory", "memory.swappiness")?,
                &swappiness.to_string(),
            )?;
        }
        if memory.disable_oom_killer() == Some(true) {
            write(&self.file("memory", "memory.oom_control")?, "1")?;
        }
        if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
            write(
                &self.file("memory", "memory.kmem.tcp.limit_in_bytes")?,
                &tcp.to_string(),
            )?;
        }
        // `kernel`: the specification deprecates it and the kernel ignores what is written.
        Ok(())
    }

    fn set_memory_v2(&self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let limit = memory.limit().filter(|limit| *limit != 0);
        self.check_before(memory)?;
        let swap = memory.swap().filter(|swap| *swap != 0);
        if let Some(swap) = swap.or(limit.filter(|limit| *limit < 0)) {
            let value = match (swap, limit) {
                (..0, _) => "max".to_owned(),
                // v1's figure is memory and swap together; v2's is swap alone.
                (_, Some(limit)) if limit > 0 && swap >= limit => (swap - limit).to_string(),
                _ => {
                    return Err(CgroupError::Unsupported {
                        what: format!("swap {swap} without a memory limit below"),
                    });
                }
            };
            write(&self.file("memory", "memory.swap.max")?, &value)?;
        }
        if let Some(limit) = limit {
            write(&self.file("memory", "memory.max")?, &or_max(limit))?;
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            write(&self.file("memory", "memory.low")?, &or_max(low))?;
        }
        if memory.swappiness().is_some() || memory.disable_oom_killer() == Some(true) {
            return Err(CgroupError::Unsupported {
                what: "swappiness or disableOOMKiller with cgroup v2".into(),
            });
        }
        Ok(())
    }

    fn set_devices(&self, rules: &[oci_spec::runtime::LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        // Engines list what they add; the specification's default devices (config-linux.md, Default Devices) are ours.
        let defaults = crate::defaults::device_rules();
        let all = rules.iter().chain(&defaults);
        if self.layout.is_v2() {
            let directory = self.controller("").unwrap_or_default();
            return attach_device_program(&directory, &devices::program(all));
        }
        let (allow, deny) = (
            self.file("devices", "devices.allow")?,
            self.file("devices", "devices.deny")?,
        );
        for rule in all {
            write(if rule.allow() { &allow } else { &deny }, &devices::line(rule))?;
        }
        Ok(())
    }
}

fn attach_device_program(directory: &Path, program: &[sys::bpf::Instruction]) -> Result<(), CgroupError> {
    use std::os::fd::AsFd;
    let fail = |source| CgroupError::File {
        action: "set the device program of",
        path: directory.to_owned(),
        value: None,
        source,
    };
    let group = std::fs::File::open(directory).map_err(fail)?;
    let program = sys::bpf::load_device_program(program).map_err(fail)?;
    sys::bpf::attach_device_program(group.as_fd(), program.as_fd()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_span_the_weights() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }
}
