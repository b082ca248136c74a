//! What a container uses, read from the kernel's files and put into the fields that runc prints.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::cgroup::Cgroup;
use crate::oci::OciError;

/// The kernel's files of a group; absent ones read as nothing.
struct Files<'a>(&'a Cgroup);

impl Files<'_> {
    fn text(&self, controller: &str, name: &str) -> Result<Option<String>, OciError> {
        let Some(path) = self
            .0
            .controller(controller)
            .map(|directory| directory.join(name))
        else {
            return Ok(None);
        };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    // ENODEV: the group went meanwhile; EOPNOTSUPP: a file of a kernel that has no such counter.
                    || matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EOPNOTSUPP)) =>
            {
                Ok(None)
            }
            Err(source) => Err(OciError::File {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// A file of one number; v2's `max` is the largest.
    fn number(&self, controller: &str, name: &str) -> Result<Option<u64>, OciError> {
        Ok(self.text(controller, name)?.and_then(|text| match text.trim() {
            "max" => Some(u64::MAX),
            number => number.parse().ok(),
        }))
    }

    fn numbers(&self, controller: &str, name: &str) -> Result<Vec<u64>, OciError> {
        let text = self.text(controller, name)?.unwrap_or_default();
        Ok(text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect())
    }

    /// Lines `key number`.
    fn keyed(&self, controller: &str, name: &str) -> Result<Map<String, Value>, OciError> {
        let text = self.text(controller, name)?.unwrap_or_default();
        Ok(text
            .lines()
            .filter_map(|line| {
                let (key, number) = line.split_once(' ')?;
                Some((key.to_owned(), number.trim().parse::<u64>().ok()?.into()))
            })
            .collect())
    }

    /// Limit, usage, peak and failures of a counter of v1's memory controller.
    fn memory_v1(&self, prefix: &str) -> Result<Value, OciError> {
        let of = |name: &str| self.number("memory", &format!("memory.{prefix}{name}"));
        Ok(json!({
            "limit": of("limit_in_bytes")?.unwrap_or(0),
            "usage": of("usage_in_bytes")?.unwrap_or(0),
            "max": of("max_usage_in_bytes")?.unwrap_or(0),
            "failcnt": of("failcnt")?.unwrap_or(0),
        }))
    }

    /// Lines `MAJOR:MINOR OP COUNT` of v1's block controller.
    fn block_v1(&self, name: &str) -> Result<Vec<Value>, OciError> {
        let text = self.text("blkio", name)?.unwrap_or_default();
        Ok(text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (major, minor) = words.next()?.split_once(':')?;
                let (op, value) = match (words.next()?, words.next()) {
                    (op, Some(value)) => (op, value),
                    (value, None) => ("", value),
                };
                entry(major, minor, op, value)
            })
            .collect())
    }
}

fn entry(major: &str, minor: &str, op: &str, value: &str) -> Option<Value> {
    Some(json!({
        "major": major.parse::<u64>().ok()?,
        "minor": minor.parse::<u64>().ok()?,
        "op": op,
        "value": value.parse::<u64>().ok()?,
    }))
}

/// A list of numbers as `0-2,5`.
fn spread(text: &str) -> Vec<u64> {
    text.trim()
        .split(',')
        .filter_map(|part| match part.split_once('-') {
            Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
            None => {
                let one: u64 = part.parse().ok()?;
                Some(one..=one)
            }
        })
        .flatten()
        .take(NUMBERS_MAX)
        .collect()
}

/// More CPUs than a kernel can have (CONFIG_NR_CPUS is at most 8192).
const NUMBERS_MAX: usize = 8192;

/// Usage now.
pub(super) fn stats(cgroup: &Cgroup) -> Result<Value, OciError> {
    let files = Files(cgroup);
    let v2 = cgroup.layout().is_v2();
    let mut data = if v2 { stats_v2(&files)? } else { stats_v1(&files)? };
    data["hugetlb"] = Value::Object(huge_pages(&files, v2)?);
    let limit = files
        .number("pids", "pids.max")?
        .filter(|limit| *limit != u64::MAX);
    data["pids"] = json!({
        "current": files.number("pids", "pids.current")?.unwrap_or(0),
        "limit": limit.unwrap_or(0),
    });
    data["intel_rdt"] = json!({});
    data["network_interfaces"] = Value::Null;
    Ok(data)
}

fn stats_v1(files: &Files<'_>) -> Result<Value, OciError> {
    /// USER_HZ, in which cpuacct.stat counts: 100 on every architecture of ours.
    const TICK_NS: u64 = 10_000_000;
    let ticks = files.keyed("cpuacct", "cpuacct.stat")?;
    let of = |name: &str| {
        ticks
            .get(name)
            .and_then(Value::as_u64)
            .unwrap_or(0)
            .saturating_mul(TICK_NS)
    };
    let throttling = files.keyed("cpu", "cpu.stat")?;
    let set = |name: &str| files.number("cpuset", &format!("cpuset.{name}"));
    let relax = files
        .text("cpuset", "cpuset.sched_relax_domain_level")?
        .and_then(|text| text.trim().parse::<i64>().ok());
    let raw = files.keyed("memory", "memory.stat")?;
    let cache = raw.get("cache").cloned().unwrap_or(0.into());
    Ok(json!({
        "cpu": {
            "usage": {
                "total": files.number("cpuacct", "cpuacct.usage")?.unwrap_or(0),
                "percpu": files.numbers("cpuacct", "cpuacct.usage_percpu")?,
                "percpu_kernel": files.numbers("cpuacct", "cpuacct.usage_percpu_sys")?,
                "percpu_user": files.numbers("cpuacct", "cpuacct.usage_percpu_user")?,
                "kernel": of("system"),
                "user": of("user"),
            },
            "throttling": throttled(&throttling, "throttled_time", 1),
        },
        "cpuset": {
            "cpus": spread(&files.text("cpuset", "cpuset.cpus")?.unwrap_or_default()),
            "cpu_exclusive": set("cpu_exclusive")?.unwrap_or(0),
            "mems": spread(&files.text("cpuset", "cpuset.mems")?.unwrap_or_default()),
            "mem_hardwall": set("mem_hardwall")?.unwrap_or(0),
            "mem_exclusive": set("mem_exclusive")?.unwrap_or(0),
            "memory_migrate": set("memory_migrate")?.unwrap_or(0),
            "memory_spread_page": set("memory_spread_page")?.unwrap_or(0),
            "memory_spread_slab": set("memory_spread_slab")?.unwrap_or(0),
            "memory_pressure": set("memory_pressure")?.unwrap_or(0),
            "sched_load_balance": set("sched_load_balance")?.unwrap_or(0),
            "sched_relax_domain_level": relax.unwrap_or(0),
        },
        "memory": {
            "cache": cache,
            "usage": files.memory_v1("")?,
            "swap": files.memory_v1("memsw.")?,
            "kernel": files.memory_v1("kmem.")?,
            "kernelTCP": files.memory_v1("kmem.tcp.")?,
            "raw": raw,
        },
        "blkio": {
            "ioServiceBytesRecursive": files.block_v1("blkio.throttle.io_service_bytes_recursive")?,
            "ioServicedRecursive": files.block_v1("blkio.throttle.io_serviced_recursive")?,
        },
    }))
}

fn throttled(stat: &Map<String, Value>, time: &str, nanoseconds: u64) -> Value {
    let of = |name: &str| stat.get(name).and_then(Value::as_u64).unwrap_or(0);
    json!({
        "periods": of("nr_periods"),
        "throttledPeriods": of("nr_throttled"),
        "throttledTime": of(time).saturating_mul(nanoseconds),
    })
}

fn stats_v2(files: &Files<'_>) -> Result<Value, OciError> {
    let cpu = files.keyed("cpu", "cpu.stat")?;
    let ns = |name: &str| {
        cpu.get(name)
            .and_then(Value::as_u64)
            .unwrap_or(0)
            .saturating_mul(1000)
    };
    let raw = files.keyed("memory", "memory.stat")?;
    let events = files.keyed("memory", "memory.events")?;
    let count = |map: &Map<String, Value>, name: &str| map.get(name).and_then(Value::as_u64).unwrap_or(0);
    let of = |name: &str| files.number("memory", name);
    let (usage, swap) = (
        of("memory.current")?.unwrap_or(0),
        of("memory.swap.current")?.unwrap_or(0),
    );
    let (limit, swap_limit) = (
        of("memory.max")?.unwrap_or(0),
        of("memory.swap.max")?.unwrap_or(0),
    );
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in files.text("io", "io.stat")?.unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            list.extend(entry(major, minor, op, value));
        }
    }
    Ok(json!({
        "cpu": {
            "usage": { "total": ns("usage_usec"), "kernel": ns("system_usec"), "user": ns("user_usec") },
            "throttling": throttled(&cpu, "throttled_usec", 1000),
        },
        "cpuset": {
            "cpus": spread(&files.text("cpuset", "cpuset.cpus.effective")?.unwrap_or_default()),
            "mems": spread(&files.text("cpuset", "cpuset.mems.effective")?.unwrap_or_default()),
        },
        "memory": {
            "cache": raw.get("file").cloned().unwrap_or(0.into()),
            "usage": {
                "limit": limit,
                "usage": usage,
                "max": of("memory.peak")?.unwrap_or(0),
                "failcnt": count(&events, "max"),
            },
            // As v1 counts: memory and swap together.
            "swap": { "limit": limit.saturating_add(swap_limit), "usage": usage.saturating_add(swap), "max": 0, "failcnt": 0 },
            "kernel": { "limit": 0, "usage": count(&raw, "kernel"), "max": 0, "failcnt": 0 },
            "kernelTCP": { "limit": 0, "usage": count(&raw, "sock"), "max": 0, "failcnt": 0 },
            "raw": raw,
        },
        "blkio": { "ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations },
    }))
}

/// Usage by page size, from the files that the group has.
fn huge_pages(files: &Files<'_>, v2: bool) -> Result<Map<String, Value>, OciError> {
    let mut found = Map::new();
    let Some(directory) = files.0.controller("hugetlb") else {
        return Ok(found);
    };
    let (usage, max, failures) = if v2 {
        (".current", None, ".events")
    } else {
        (".usage_in_bytes", Some(".max_usage_in_bytes"), ".failcnt")
    };
    let fail = |path: PathBuf| {
        move |source| OciError::File {
            action: "list",
            path,
            source,
        }
    };
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        result => result.map_err(fail(directory.clone()))?,
    };
    for entry in entries {
        let name = entry.map_err(fail(directory.clone()))?.file_name();
        let size = name.to_str().and_then(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
            (!size.contains('.')).then_some(size)
        });
        let Some(size) = size else {
            continue;
        };
        let of = |suffix: &str| files.number("hugetlb", &format!("hugetlb.{size}{suffix}"));
        let failed = if v2 {
            let events = files.keyed("hugetlb", &format!("hugetlb.{size}{failures}"))?;
            events.get("max").and_then(Value::as_u64)
        } else {
            of(failures)?
        };
        let one = json!({
            "usage": of(usage)?.unwrap_or(0),
            "max": max.map(of).transpose()?.flatten().unwrap_or(0),
            "failcnt": failed.unwrap_or(0),
        });
        found.insert(size.to_owned(), one);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_spread() {
        assert_eq!(spread("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(spread(""), Vec::<u64>::new());
        assert!(spread("0-99999999999").len() <= NUMBERS_MAX);
    }
}
