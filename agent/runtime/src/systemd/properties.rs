//! What systemd is told of a container: the scope's own properties, and the limits in systemd's words, each as runc and
//! crun put it. Pure. systemd writes them again whenever it likes; where they said less than the files, a reload of
//! systemd would undo a limit.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::wire::{Properties, Value};
use super::{SystemdError, flag, number, text};
use crate::cgroup::weight_of_shares;

/// The kernel's period of a CPU limit where none is told.
const PERIOD_US: u64 = 100_000;
/// systemd keeps a quota for each second in steps of this.
const QUOTA_STEP_US: u64 = 10_000;
/// Largest number of a CPU or memory node in a list: the kernel's own is 8192.
const LISTED_MAX: usize = 1 << 14;

/// The scope itself.
pub(super) fn of_scope(id: &str, slice: &str, pid: u32, v2: bool) -> Properties {
    let io = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
    vec![
        text("Description", &format!("bulkhead container {id}")),
        text("Slice", slice),
        ("PIDs".to_owned(), Value::Numbers(vec![pid])),
        // What is below belongs to the container, not to systemd.
        flag("Delegate", true),
        // Gone when its processes are, however they ended.
        text("CollectMode", "inactive-or-failed"),
        // Else it would be stopped with all others at the beginning of a shutdown, before its engine.
        flag("DefaultDependencies", false),
        flag("MemoryAccounting", true),
        flag("CPUAccounting", true),
        flag("TasksAccounting", true),
        flag(io, true),
    ]
}

/// The limits of a new container.
pub(super) fn of(resources: &LinuxResources, v2: bool, names: &str) -> Result<Properties, SystemdError> {
    let mut all = of_update(resources, v2)?;
    if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
        let defaults = crate::defaults::device_rules();
        let rules: Vec<_> = rules.iter().chain(&defaults).collect();
        all.extend(of_devices(&rules, names)?);
    }
    Ok(all)
}

/// The limits that can change later: all but devices.
pub(super) fn of_update(resources: &LinuxResources, v2: bool) -> Result<Properties, SystemdError> {
    let mut all = Vec::new();
    // systemd's word for no limit is the largest number.
    let bytes = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            let name = if v2 { "MemoryMax" } else { "MemoryLimit" };
            all.push(number(name, bytes(limit)));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0 && v2) {
            all.push(number("MemoryLow", bytes(low)));
        }
        match (memory.swap().filter(|swap| *swap != 0 && v2), limit) {
            (Some(..0), _) => all.push(number("MemorySwapMax", u64::MAX)),
            (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
                all.push(number("MemorySwapMax", bytes(swap - limit)));
            }
            // The file's own writing refuses what is left.
            _ => {}
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            all.push(match v2 {
                true => number("CPUWeight", weight_of_shares(shares)),
                false => number("CPUShares", shares),
            });
        }
        let period = cpu.period().filter(|period| *period != 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        if let Some(period) = period {
            all.push(number("CPUQuotaPeriodUSec", period));
        }
        // A period alone leaves the quota that there was: systemd knows it.
        if let Some(quota) = quota {
            let each_second = u64::try_from(quota).ok().map_or(u64::MAX, |quota| {
                let exact = quota.saturating_mul(1_000_000) / period.unwrap_or(PERIOD_US);
                exact.checked_next_multiple_of(QUOTA_STEP_US).unwrap_or(u64::MAX)
            });
            all.push(number("CPUQuotaPerSecUSec", each_second));
        }
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                all.push((name.to_owned(), Value::Bytes(mask(list)?)));
            }
        }
    }
    if let Some(pids) = resources.pids() {
        let limit = u64::try_from(pids.limit()).ok().filter(|limit| *limit > 0);
        all.push(number("TasksMax", limit.unwrap_or(u64::MAX)));
    }
    let weight = resources.block_io().as_ref().and_then(|block| block.weight());
    if let Some(weight) = weight.filter(|weight| *weight != 0) {
        let name = if v2 { "IOWeight" } else { "BlockIOWeight" };
        all.push(number(name, weight.into()));
    }
    Ok(all)
}

/// A list as `0-2,7` in bits, the first in the lowest.
fn mask(list: &str) -> Result<Vec<u8>, SystemdError> {
    let wrong = || SystemdError::Invalid(format!("{list:?} is no list of CPUs or memory nodes"));
    let mut bits = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let read = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let (first, last) = (read(first)?, read(last)?);
        if first > last || last >= LISTED_MAX {
            return Err(wrong());
        }
        if bits.len() <= last / 8 {
            bits.resize(last / 8 + 1, 0);
        }
        for one in first..=last {
            bits[one / 8] |= 1 << (one % 8);
        }
    }
    Ok(bits)
}

/// systemd knows a list of what is allowed, all else being refused; so rules that refuse only part of what those before
/// them allowed cannot be told.
fn of_devices(rules: &[&LinuxDeviceCgroup], names: &str) -> Result<Properties, SystemdError> {
    let mut everything = true;
    let mut allowed: Vec<(String, String)> = Vec::new();
    for rule in rules {
        let access = rule.access().as_deref().filter(|access| !access.is_empty());
        let access = access.unwrap_or("rwm");
        let (major, minor) = (
            rule.major().filter(|major| *major >= 0),
            rule.minor().filter(|minor| *minor >= 0),
        );
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => "block",
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "char",
            _ if major.is_none() && minor.is_none() && access.len() == 3 => {
                everything = rule.allow();
                allowed.clear();
                continue;
            }
            _ => {
                return Err(SystemdError::Invalid(
                    "a device rule for all types, but not for all devices, cannot be told to systemd".into(),
                ));
            }
        };
        if everything && rule.allow() {
            continue;
        }
        let node = match (major, minor) {
            (None, None) => format!("{kind}-*"),
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => match group(names, kind, major) {
                Some(name) => format!("{kind}-{name}"),
                // The kernel has no such devices: nothing is lost.
                None => continue,
            },
            (None, Some(_)) => {
                return Err(SystemdError::Invalid(
                    "a device rule with a minor number alone cannot be told to systemd".into(),
                ));
            }
        };
        if rule.allow() {
            allowed.push((node, access.to_owned()));
        } else if everything || allowed.iter().any(|(one, _)| *one != node && covers(one, &node)) {
            return Err(SystemdError::Invalid(format!(
                "a device rule that refuses {node} out of what one before it allows cannot be told to systemd"
            )));
        } else {
            for (_, rights) in allowed.iter_mut().filter(|(one, _)| *one == node) {
                rights.retain(|right| !access.contains(right));
            }
            allowed.retain(|(_, rights)| !rights.is_empty());
        }
    }
    let policy = text("DevicePolicy", if everything { "auto" } else { "strict" });
    Ok(vec![policy, ("DeviceAllow".to_owned(), Value::Pairs(allowed))])
}

/// Whether a node may be among those of another entry; groups are compared with single nodes by their type.
fn covers(entry: &str, node: &str) -> bool {
    let kind = |text: &str| text.contains("block");
    kind(entry) == kind(node) && (!entry.starts_with('/') || !node.starts_with('/'))
}

/// The name of a major number in /proc/devices.
fn group<'a>(names: &'a str, kind: &str, major: i64) -> Option<&'a str> {
    let heading = if kind == "block" {
        "Block devices:"
    } else {
        "Character devices:"
    };
    let mut lines = names.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.trim().split_once(' '))
        .find_map(|(number, name)| (number.parse() == Ok(major)).then_some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn resources(json: Json) -> LinuxResources {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_are_said_in_systemds_words() {
        let all = resources(json!({
            "memory": { "limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20 },
            "cpu": { "shares": 1024, "quota": 25_500, "period": 50_000, "cpus": "0-1,9", "mems": "0" },
            "pids": { "limit": 20 },
            "blockIO": { "weight": 500 },
        }));
        assert_eq!(
            of_update(&all, true).unwrap(),
            [
                number("MemoryMax", 64 << 20),
                number("MemoryLow", 32 << 20),
                number("MemorySwapMax", 32 << 20),
                number("CPUWeight", 39),
                number("CPUQuotaPeriodUSec", 50_000),
                number("CPUQuotaPerSecUSec", 510_000),
                ("AllowedCPUs".to_owned(), Value::Bytes(vec![3, 2])),
                ("AllowedMemoryNodes".to_owned(), Value::Bytes(vec![1])),
                number("TasksMax", 20),
                number("IOWeight", 500),
            ]
        );
        let names: Vec<String> = of_update(&all, false)
            .unwrap()
            .into_iter()
            .map(|one| one.0)
            .collect();
        assert_eq!(
            names,
            [
                "MemoryLimit",
                "CPUShares",
                "CPUQuotaPeriodUSec",
                "CPUQuotaPerSecUSec",
                "AllowedCPUs",
                "AllowedMemoryNodes",
                "TasksMax",
                "BlockIOWeight"
            ]
        );
        let none = resources(json!({
            "memory": { "limit": -1, "swap": -1 }, "cpu": { "quota": -1 }, "pids": { "limit": -1 },
        }));
        let names = ["MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax"];
        assert_eq!(
            of_update(&none, true).unwrap(),
            names.map(|name| number(name, u64::MAX))
        );
        // A quota that is no multiple is rounded up.
        let odd = resources(json!({ "cpu": { "quota": 1_234 } }));
        assert_eq!(
            of_update(&odd, true).unwrap(),
            [number("CPUQuotaPerSecUSec", 20_000)]
        );
        for list in ["", "x", "1-", "3-1", "0-99999999", "-1"] {
            assert!(mask(list).is_err(), "{list:?}");
        }
    }

    const NAMES: &str =
        "Character devices:\n  1 mem\n  5 /dev/tty\n136 pts\n\nBlock devices:\n  8 sd\n136 other\n";

    fn devices(rules: Json) -> Result<Properties, SystemdError> {
        of(&resources(json!({ "devices": rules })), true, NAMES)
    }

    #[test]
    fn device_rules_become_a_list_of_what_is_allowed() {
        let mut all = devices(json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 8, "access": "r" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" },
            { "allow": false, "type": "c", "major": 10, "minor": 229, "access": "w" },
            { "allow": true, "type": "c", "major": 99, "access": "rwm" },
        ]))
        .unwrap();
        assert_eq!(all[0], text("DevicePolicy", "strict"));
        let Some((name, Value::Pairs(list))) = all.pop() else {
            panic!("{all:?}");
        };
        assert_eq!(name, "DeviceAllow");
        let pair = |node: &str, access: &str| (node.to_owned(), access.to_owned());
        assert_eq!(list[..2], [pair("block-sd", "r"), pair("/dev/char/10:229", "rm")]);
        for one in [
            pair("char-*", "m"),
            pair("block-*", "m"),
            pair("char-pts", "rwm"),
            pair("/dev/char/1:3", "rwm"),
        ] {
            assert!(list.contains(&one), "{one:?} not in {list:?}");
        }
        let open = devices(json!([{ "allow": true, "access": "rwm" }])).unwrap();
        let none = ("DeviceAllow".to_owned(), Value::Pairs(Vec::new()));
        assert_eq!(open, [text("DevicePolicy", "auto"), none]);
    }

    #[test]
    fn device_rules_that_cannot_be_told_are_refused() {
        for rules in [
            json!([{ "allow": false, "access": "w" }]),
            json!([{ "allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm" }]),
            json!([{ "allow": false }, { "allow": true, "type": "c", "minor": 3, "access": "rwm" }]),
            json!([
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "access": "rwm" },
                { "allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            ]),
        ] {
            assert!(devices(rules.clone()).is_err(), "{rules}");
        }
    }
}
