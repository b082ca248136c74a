//! What the kernel says of a group: limits as they hold, usage, counters.

use super::{Cgroup, CgroupError, read_if_there};

/// Limits as read back; none where there is no limit or no such file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Microseconds of CPU time in a period.
    pub cpu_quota_us: Option<u64>,
    /// The period.
    pub cpu_period_us: Option<u64>,
    /// v1's shares.
    pub cpu_shares: Option<u64>,
    /// v2's weight.
    pub cpu_weight: Option<u64>,
    /// Hard limit of memory, in bytes.
    pub memory_max: Option<u64>,
    /// Soft limit: protected (v2 `memory.low`) or given back first (v1 `memory.soft_limit_in_bytes`), in bytes.
    pub memory_low: Option<u64>,
    /// Memory and swap together (v1) or swap alone (v2), in bytes.
    pub swap_max: Option<u64>,
    /// Most tasks.
    pub pids_max: Option<u64>,
    /// Block I/O throttles.
    pub io: Vec<IoThrottle>,
    /// CPUs.
    pub cpus: Option<String>,
    /// Memory nodes.
    pub mems: Option<String>,
}

/// One throttle of one device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoThrottle {
    /// Device number.
    pub device: (u64, u64),
    /// `rbps`, `wbps`, `riops` or `wiops`.
    pub kind: &'static str,
    /// Bytes or operations a second.
    pub rate: u64,
}

/// Usage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used, in microseconds.
    pub cpu_usage_us: u64,
    /// Periods in which it was held back.
    pub cpu_throttled_periods: u64,
    /// Time held back, in microseconds.
    pub cpu_throttled_us: u64,
    /// Memory charged, page cache included, in bytes.
    pub memory_usage: u64,
    /// Memory not given back easily: usage without inactive file pages, in bytes.
    pub memory_working_set: u64,
    /// Most memory ever charged, in bytes.
    pub memory_peak: Option<u64>,
    /// Tasks.
    pub pids: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Bytes read from and written to block devices.
    pub io_bytes: (u64, u64),
}

/// v1 writes "no limit" as the largest multiple of the page size.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

/// The number after `key ` in a file of lines `key number`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Cgroup {
    fn text(&self, controller: &str, name: &str) -> Result<Option<String>, CgroupError> {
        match self.controller(controller) {
            Some(directory) => read_if_there(&directory.join(name)),
            None => Ok(None),
        }
    }

    /// A file of one number; none for `max`, -1, v1's "no limit" and an absent file.
    fn number(&self, controller: &str, name: &str) -> Result<Option<u64>, CgroupError> {
        let value = self
            .text(controller, name)?
            .and_then(|text| text.trim().parse::<u64>().ok());
        Ok(value.filter(|value| *value < V1_UNLIMITED))
    }

    /// The limits that hold.
    pub fn values(&self) -> Result<Values, CgroupError> {
        let mut values = Values {
            pids_max: self.number("pids", "pids.max")?,
            ..Values::default()
        };
        let word = |text: Option<String>| {
            text.map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        values.cpus = word(self.text("cpuset", "cpuset.cpus")?);
        values.mems = word(self.text("cpuset", "cpuset.mems")?);
        if self.layout().is_v2() {
            let max = self.text("cpu", "cpu.max")?.unwrap_or_default();
            let mut max = max.split_whitespace();
            values.cpu_quota_us = max.next().and_then(|quota| quota.parse().ok());
            values.cpu_period_us = max.next().and_then(|period| period.parse().ok());
            values.cpu_weight = self.number("cpu", "cpu.weight")?;
            values.memory_max = self.number("memory", "memory.max")?;
            values.memory_low = self.number("memory", "memory.low")?.filter(|low| *low > 0);
            values.swap_max = self.number("memory", "memory.swap.max")?;
            values.io = io_max(&self.text("io", "io.max")?.unwrap_or_default());
        } else {
            values.cpu_quota_us = self.number("cpu", "cpu.cfs_quota_us")?;
            values.cpu_period_us = self.number("cpu", "cpu.cfs_period_us")?;
            values.cpu_shares = self.number("cpu", "cpu.shares")?;
            values.memory_max = self.number("memory", "memory.limit_in_bytes")?;
            values.memory_low = self.number("memory", "memory.soft_limit_in_bytes")?;
            values.swap_max = self.number("memory", "memory.memsw.limit_in_bytes")?;
            for (kind, name) in [
                ("rbps", "blkio.throttle.read_bps_device"),
                ("wbps", "blkio.throttle.write_bps_device"),
                ("riops", "blkio.throttle.read_iops_device"),
                ("wiops", "blkio.throttle.write_iops_device"),
            ] {
                let text = self.text("blkio", name)?.unwrap_or_default();
                values.io.extend(text.lines().filter_map(|line| {
                    let (device, rate) = line.split_once(' ')?;
                    Some(IoThrottle {
                        device: device_number(device)?,
                        kind,
                        rate: rate.trim().parse().ok()?,
                    })
                }));
            }
        }
        values.io.sort();
        Ok(values)
    }

    /// Usage now.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats {
            oom_kills: self.oom_kills()?,
            ..Stats::default()
        };
        stats.pids = self.number("pids", "pids.current")?.unwrap_or(0);
        let cpu = self.text("cpu", "cpu.stat")?.unwrap_or_default();
        stats.cpu_throttled_periods = keyed(&cpu, "nr_throttled").unwrap_or(0);
        let memory = self.text("memory", "memory.stat")?.unwrap_or_default();
        let inactive;
        if self.layout().is_v2() {
            stats.cpu_usage_us = keyed(&cpu, "usage_usec").unwrap_or(0);
            stats.cpu_throttled_us = keyed(&cpu, "throttled_usec").unwrap_or(0);
            stats.memory_usage = self.number("memory", "memory.current")?.unwrap_or(0);
            inactive = keyed(&memory, "inactive_file").unwrap_or(0);
            for line in self.text("io", "io.stat")?.unwrap_or_default().lines() {
                for word in line.split_whitespace() {
                    match word.split_once('=') {
                        Some(("rbytes", count)) => stats.io_bytes.0 += count.parse::<u64>().unwrap_or(0),
                        Some(("wbytes", count)) => stats.io_bytes.1 += count.parse::<u64>().unwrap_or(0),
                        _ => {}
                    }
                }
            }
        } else {
            stats.cpu_usage_us = self.number("cpuacct", "cpuacct.usage")?.unwrap_or(0) / 1_000;
            stats.cpu_throttled_us = keyed(&cpu, "throttled_time").unwrap_or(0) / 1_000;
            stats.memory_usage = self.number("memory", "memory.usage_in_bytes")?.unwrap_or(0);
            inactive = keyed(&memory, "total_inactive_file").unwrap_or(0);
            let text = self
                .text("blkio", "blkio.throttle.io_service_bytes")?
                .unwrap_or_default();
            for line in text.lines() {
                let mut words = line.split_whitespace().skip(1);
                match (
                    words.next(),
                    words.next().and_then(|count| count.parse::<u64>().ok()),
                ) {
                    (Some("Read"), Some(count)) => stats.io_bytes.0 += count,
                    (Some("Write"), Some(count)) => stats.io_bytes.1 += count,
                    _ => {}
                }
            }
        }
        stats.memory_working_set = stats.memory_usage.saturating_sub(inactive);
        stats.memory_peak = self.memory_peak()?;
        Ok(stats)
    }

    /// Most memory ever charged, in bytes; none where the kernel does not say (v2 before 5.19).
    pub fn memory_peak(&self) -> Result<Option<u64>, CgroupError> {
        let name = if self.layout().is_v2() {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        self.number("memory", name)
    }
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines as `254:0 rbps=1048576 wbps=max riops=max wiops=max`.
fn io_max(text: &str) -> Vec<IoThrottle> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(device_number) else {
            continue;
        };
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let Some(kind) = ["rbps", "wbps", "riops", "wiops"]
                .into_iter()
                .find(|kind| *kind == key)
            else {
                continue;
            };
            if let Ok(rate) = value.parse() {
                found.push(IoThrottle { device, kind, rate });
            }
        }
    }
    found
}
