//! `pause ID`, `resume ID` and `update [--resources FILE|-] [--memory N ...] ID`.

use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxIntelRdt, LinuxMemory, LinuxPids, LinuxResources};
use serde_json::{Map, Value};

use super::super::arguments::Arguments;
use super::super::state::{Record, Status};
use super::super::{Globals, OciError, refused};
use super::{json, open};

pub(super) fn pause(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (_directory, record, status) = open(globals, arguments.id()?)?;
    match status {
        Status::Running | Status::Created if record.no_cgroup => {
            return Err(refused("cannot pause: this rootless container has no cgroup"));
        }
        Status::Running | Status::Created => record.cgroup()?.freeze()?,
        Status::Paused => return Err(refused("container is paused already")),
        Status::Stopped | Status::Creating => return Err(refused("container not running")),
    }
    Ok(0)
}

pub(super) fn resume(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (_directory, record, status) = open(globals, arguments.id()?)?;
    match status {
        Status::Paused => record.cgroup()?.thaw()?,
        _ => return Err(refused("container not paused")),
    }
    Ok(0)
}

pub(super) fn update(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let resources = match arguments.value("resources") {
        Some("-") => json::read_from(io::stdin().lock(), Path::new("standard input"), &globals.log)?,
        Some(path) => json::read(Path::new(path), &globals.log)?,
        None => from_flags(arguments)?,
    };
    let (directory, mut record, status) = open(globals, arguments.id()?)?;
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(refused("container not running"));
    }
    if record.no_cgroup {
        return Err(refused(
            "cannot set limits: this rootless container has no cgroup",
        ));
    }
    let cgroup = record.cgroup()?;
    if let Some(unit) = &record.unit {
        // First: systemd writes some of the files itself, more coarsely than we do.
        unit.set(&resources, cgroup.layout().is_v2())?;
    }
    cgroup.update(&resources)?;
    remember(&mut record, &resources)?;
    if let Some(schemata) = schemata(arguments) {
        let Some(group) = &record.rdt else {
            return Err(refused("Intel RDT is not in use by this container"));
        };
        group.update(&schemata)?;
    }
    directory.write(&record)?;
    Ok(0)
}

/// Bytes, as runc's flags take them: a number with or without a unit of 1024's powers; -1 is no limit.
fn bytes(flag: &str, text: &str) -> Result<i64, OciError> {
    let wrong = || refused(format!("invalid value for {flag}: {text:?}"));
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower
        .strip_suffix("ib")
        .or(lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (digits, shift) = match lower.strip_suffix(['k', 'm', 'g', 't', 'p']) {
        Some(digits) => (
            digits,
            match lower.as_bytes().last() {
                Some(b'k') => 10,
                Some(b'm') => 20,
                Some(b'g') => 30,
                Some(b't') => 40,
                _ => 50,
            },
        ),
        None => (lower, 0),
    };
    let number: i64 = digits.trim().parse().map_err(|_| wrong())?;
    if number < 0 {
        return Err(wrong());
    }
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// What runc's flags for Intel RDT say, if anything.
fn schemata(arguments: &Arguments) -> Option<LinuxIntelRdt> {
    let value = |flag: &str| arguments.value(flag).map(str::to_owned);
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_l3_cache_schema(value("l3-cache-schema"))
        .set_mem_bw_schema(value("mem-bw-schema"));
    (rdt != LinuxIntelRdt::default()).then_some(rdt)
}

/// runc's single flags.
fn from_flags(arguments: &Arguments) -> Result<LinuxResources, OciError> {
    let memory = |flag: &str| arguments.value(flag).map(|text| bytes(flag, text)).transpose();
    let mut resources = LinuxResources::default();
    let mut limits = LinuxMemory::default();
    limits
        .set_limit(memory("memory")?)
        .set_reservation(memory("memory-reservation")?)
        .set_swap(memory("memory-swap")?);
    if limits != LinuxMemory::default() {
        resources.set_memory(Some(limits));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(arguments.number("cpu-share")?)
        .set_quota(arguments.number("cpu-quota")?)
        .set_burst(arguments.number("cpu-burst")?)
        .set_period(arguments.number("cpu-period")?)
        .set_realtime_runtime(arguments.number("cpu-rt-runtime")?)
        .set_realtime_period(arguments.number("cpu-rt-period")?)
        .set_idle(arguments.number("cpu-idle")?)
        .set_cpus(arguments.value("cpuset-cpus").map(str::to_owned))
        .set_mems(arguments.value("cpuset-mems").map(str::to_owned));
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = arguments.number("pids-limit")? {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = arguments.number("blkio-weight")? {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

/// Puts what was changed into the container's record, field by field.
fn remember(record: &mut Record, changed: &LinuxResources) -> Result<(), OciError> {
    let json = |source| OciError::Json {
        path: "linux.resources".into(),
        source,
    };
    let mut linux = record.config.linux().clone().unwrap_or_default();
    let mut whole = serde_json::to_value(linux.resources().clone().unwrap_or_default()).map_err(json)?;
    merge(&mut whole, serde_json::to_value(changed).map_err(json)?);
    linux.set_resources(Some(serde_json::from_value(whole).map_err(json)?));
    record.config.set_linux(Some(linux));
    Ok(())
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(from) => {
            if !into.is_object() {
                *into = Value::Object(Map::new());
            }
            for (key, value) in from {
                merge(&mut into[key], value);
            }
        }
        Value::Null => {}
        value => *into = value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, value) in [
            ("-1", -1),
            ("0", 0),
            ("4096", 4096),
            ("64M", 64 << 20),
            ("1gb", 1 << 30),
            ("2KiB", 2048),
        ] {
            assert_eq!(bytes("memory", text).unwrap(), value, "{text}");
        }
        for text in ["", "M", "-2", "1.5G", "99999999999P", "1x"] {
            assert!(bytes("memory", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let mut whole = serde_json::json!({"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}});
        merge(
            &mut whole,
            serde_json::json!({"memory": {"limit": 9, "swap": null}, "cpu": {"shares": 4}}),
        );
        assert_eq!(
            whole,
            serde_json::json!({"memory": {"limit": 9, "swap": 2}, "pids": {"limit": 3}, "cpu": {"shares": 4}})
        );
    }
}
