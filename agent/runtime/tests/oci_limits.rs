//! config-linux.md, Control groups, in the kernel's own files: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;
mod skip;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bundle::Bundle;
use runtime::cgroup::{Cgroup, Layout};
use serde_json::{Value, json};
use skip::skip;

fn layout() -> Layout {
    Layout::detect().unwrap()
}

fn directory(bundle: &Bundle, controller: &str) -> PathBuf {
    let group = Cgroup::open(&layout(), &bundle.cgroup.join("c")).unwrap();
    group.controller(controller).unwrap()
}

fn text(bundle: &Bundle, controller: &str, file: &str) -> String {
    let path = directory(bundle, controller).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cgroups Path: an absolute one is "relative to the cgroups mount point"; the same value is always the same place.
#[test]
fn a_path_of_a_group_is_below_the_mount_point() {
    let bundle = Bundle::new("cgpath", "exec sleep 1000");
    let mut seen = Vec::new();
    for path in [
        bundle.cgroup.join("c"),
        bundle.cgroup.join("c"),
        bundle.cgroup.strip_prefix("/").unwrap().join("c"),
    ] {
        bundle.change(|config| config["linux"]["cgroupsPath"] = json!(path));
        bundle.create(&["create", "c"]);
        let state: Value = serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap();
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
        let own = bundle.cgroup.join("c").display().to_string();
        assert!(
            groups.lines().filter(|line| line.ends_with(&own)).count() >= 1,
            "{groups}"
        );
        seen.push(groups);
        bundle.succeed(&["delete", "c"]);
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    for bad in ["/a/../../b", "/", "../x"] {
        bundle.change(|config| config["linux"]["cgroupsPath"] = json!(bad));
        assert!(bundle.fail(&["create", "c"]).contains("cgroup path"), "{bad}");
    }
}

/// Allowed Device list: "The runtime MUST apply entries in the listed order".
#[test]
fn device_rules_hold_in_their_order() {
    let bundle = Bundle::new(
        "rules",
        "head -c1 /dev/loop 2>&1 > /dev/null; echo; head -c1 /dev/null",
    );
    let deny = json!({ "allow": false, "access": "rwm" });
    let allow = json!({ "allow": true, "type": "b", "major": 7, "minor": 77, "access": "r" });
    for (rules, allowed) in [(json!([deny, allow]), true), (json!([allow, deny]), false)] {
        bundle.change(|config| {
            config["linux"]["devices"] =
                json!([{ "path": "/dev/loop", "type": "b", "major": 7, "minor": 77 }]);
            config["linux"]["resources"] = json!({ "devices": rules });
        });
        let out = bundle.run(0);
        // There is no such device: who may open it is told that, who may not something else.
        assert_eq!(!out.contains("not permitted"), allowed, "{rules}: {out}");
    }
}

/// Memory, checkBeforeUpdate: a limit below what is in use "MUST [be] reject[ed]".
#[test]
fn a_limit_below_what_is_in_use_is_rejected() {
    let bundle = Bundle::new("inuse", "exec sleep 1000");
    let limit = 256 << 20;
    bundle.change(|config| config["linux"]["resources"] = json!({ "memory": { "limit": limit } }));
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let file = if layout().is_v2() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    assert_eq!(text(&bundle, "memory", file).trim(), limit.to_string());
    let resources = bundle.path().join("resources");
    let low = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } });
    fs::write(&resources, low.to_string()).unwrap();
    let said = bundle.fail(&["update", "--resources", resources.to_str().unwrap(), "c"]);
    assert!(said.contains("in use"), "{said}");
    assert_eq!(text(&bundle, "memory", file).trim(), limit.to_string());
    assert_eq!(bundle.status(), "running");
}

/// A group whose parent has a limit of its own: whichever of quota and period is first, what is asked for in the end counts.
#[test]
fn a_quota_and_its_period_are_changed_together() {
    let bundle = Bundle::new("quota", "exec sleep 1000");
    let parent = Cgroup::open(&layout(), &bundle.cgroup).unwrap();
    bundle.change(|config| {
        config["linux"]["resources"] = json!({ "cpu": { "quota": 50_000, "period": 100_000 } });
    });
    bundle.create(&["create", "c"]);
    let half = json!({ "cpu": { "quota": 50_000, "period": 100_000 } });
    parent.update(&serde_json::from_value(half).unwrap()).unwrap();
    for (quota, period) in [(3000, 10_000), (40_000, 100_000), (1000, 2000)] {
        bundle.succeed(&[
            "update",
            "--cpu-period",
            &period.to_string(),
            "--cpu-quota",
            &quota.to_string(),
            "c",
        ]);
        let now = Cgroup::open(&layout(), &bundle.cgroup.join("c"))
            .unwrap()
            .values()
            .unwrap();
        assert_eq!(
            (now.cpu_quota_us, now.cpu_period_us.unwrap_or(period)),
            (Some(quota), period)
        );
        if !layout().is_v2() {
            assert_eq!(
                text(&bundle, "cpu", "cpu.cfs_period_us").trim(),
                period.to_string()
            );
        }
    }
    if !layout().is_v2() {
        // More than the parent has, whatever the order.
        let said = bundle.fail(&["update", "--cpu-quota", "600000", "c"]);
        assert!(said.contains("cpu.cfs_quota_us"), "{said}");
    }
}

/// "`-1` for unlimited memory": of the sum with swap too, which cannot be below it.
#[test]
fn no_limit_of_memory_is_none_of_swap() {
    let bundle = Bundle::new("unlimited", "exec sleep 1000");
    bundle.change(|config| {
        config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } });
    });
    bundle.create(&["create", "c"]);
    let (memory, swap) = match layout().is_v2() {
        true => ("memory.max", "memory.swap.max"),
        false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    };
    if directory(&bundle, "memory").join(swap).exists() {
        bundle.succeed(&["update", "--memory-swap", "96M", "--memory", "64M", "c"]);
    }
    bundle.succeed(&["update", "--memory", "-1", "c"]);
    let now = Cgroup::open(&layout(), &bundle.cgroup.join("c"))
        .unwrap()
        .values()
        .unwrap();
    assert_eq!((now.memory_max, now.swap_max), (None, None), "{memory} {swap}");
}

/// oomScoreAdj: set, "the runtime MUST set `oom_score_adj`"; not set, it "MUST NOT change" it.
#[test]
fn the_oom_score_is_what_was_said_or_the_callers() {
    let bundle = Bundle::new("oomscore", "cat /proc/self/oom_score_adj");
    for (said, seen) in [
        (json!(100), "100\n"),
        (Value::Null, "321\n"),
        (json!(321), "321\n"),
        (json!(500), "500\n"),
    ] {
        bundle.change(|config| config["process"]["oomScoreAdj"] = said);
        // As who was given another score himself.
        let script = format!(
            "echo 321 > /proc/self/oom_score_adj; exec {} --root {} run c",
            bundle::runtime(),
            bundle.path().join("state").display()
        );
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(bundle.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), seen, "{output:?}");
    }
}

/// POSIX process, rlimits: getrlimit "MUST succeed", `rlim_cur` and `rlim_max` "MUST match the configured value".
#[test]
fn every_resource_limit_is_what_was_said() {
    const KINDS: [(&str, &str); 16] = [
        ("RLIMIT_AS", "Max address space"),
        ("RLIMIT_CORE", "Max core file size"),
        ("RLIMIT_CPU", "Max cpu time"),
        ("RLIMIT_DATA", "Max data size"),
        ("RLIMIT_FSIZE", "Max file size"),
        ("RLIMIT_LOCKS", "Max file locks"),
        ("RLIMIT_MEMLOCK", "Max locked memory"),
        ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
        ("RLIMIT_NICE", "Max nice priority"),
        ("RLIMIT_NOFILE", "Max open files"),
        ("RLIMIT_NPROC", "Max processes"),
        ("RLIMIT_RSS", "Max resident set"),
        ("RLIMIT_RTPRIO", "Max realtime priority"),
        ("RLIMIT_RTTIME", "Max realtime timeout"),
        ("RLIMIT_SIGPENDING", "Max pending signals"),
        ("RLIMIT_STACK", "Max stack size"),
    ];
    let bundle = Bundle::new("rlimits", "cat /proc/self/limits");
    let of = |text: &str, name: &str| -> [String; 2] {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line
            .unwrap_or_else(|| panic!("{name}: {text}"))
            .split_whitespace();
        [words.next().unwrap().to_owned(), words.next().unwrap().to_owned()]
    };
    // Not above what we have: to raise it is not every root's right.
    let ours = fs::read_to_string("/proc/self/limits").unwrap();
    let wanted = KINDS.iter().enumerate().map(|(index, (_, name))| {
        let most = of(&ours, name)[1].parse().unwrap_or(u64::MAX);
        let hard = most.min((64 << 20) - index as u64);
        (hard.saturating_sub(1), hard)
    });
    let wanted: Vec<(u64, u64)> = wanted.collect();
    bundle.change(|config| {
        let limits = KINDS.iter().zip(&wanted);
        let limits =
            limits.map(|((kind, _), (soft, hard))| json!({ "type": kind, "soft": soft, "hard": hard }));
        config["process"]["rlimits"] = limits.collect();
    });
    let out = bundle.run(0);
    for ((kind, name), (soft, hard)) in KINDS.iter().zip(wanted) {
        assert_eq!(
            of(&out, name),
            [soft.to_string(), hard.to_string()],
            "{kind}: {out}"
        );
    }
}

/// Block IO: weights of devices, in BFQ's file, which has them of devices that BFQ serves.
#[test]
fn a_weight_of_a_device_is_in_its_file() {
    const NAME: &str = "a_weight_of_a_device_is_in_its_file";
    let bundle = Bundle::new("deviceweight", "exec sleep 1000");
    let file = fs::File::create(bundle.path().join("disk")).unwrap();
    file.set_len(8 << 20).unwrap();
    let Some(device) = LoopDevice::of(&bundle.path().join("disk")) else {
        return skip(NAME, "no loop devices, or no BFQ");
    };
    let (major, minor) = device.number;
    bundle.change(|config| {
        let weights = json!([{ "major": major, "minor": minor, "weight": 321 }]);
        config["linux"]["resources"] = json!({ "blockIO": { "weight": 200, "weightDevice": weights } });
    });
    let out = bundle.path().join("out");
    let created = bundle
        .command(&["create", "c"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(fs::File::create(&out).unwrap())
        .status();
    if !created.unwrap().success() {
        assert!(
            bundle
                .out()
                .contains("this machine cannot limit block I/O weight"),
            "{}",
            bundle.out()
        );
        return skip(NAME, "the kernel has no block I/O weights");
    }
    let (controller, file) = if layout().is_v2() {
        ("io", "io.bfq.weight")
    } else {
        ("blkio", "blkio.bfq.weight_device")
    };
    let text = text(&bundle, controller, file);
    assert!(
        text.lines().any(|line| line == format!("{major}:{minor} 321")),
        "{text}"
    );
    assert!(text.contains("default 200"), "{text}");
}

/// A device of the test's own, served by BFQ.
struct LoopDevice {
    path: PathBuf,
    number: (u64, u64),
    before: String,
}

impl LoopDevice {
    fn of(file: &Path) -> Option<LoopDevice> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        let number = fs::metadata(&path)
            .ok()
            .filter(|_| output.status.success())?
            .rdev();
        let mut device = LoopDevice {
            number: (nix::libc::major(number).into(), nix::libc::minor(number).into()),
            path,
            before: "none".to_owned(),
        };
        let text = fs::read_to_string(device.scheduler()).ok()?;
        let now = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        device.before = now.unwrap_or("none").to_owned();
        fs::write(device.scheduler(), "bfq").ok()?;
        Some(device)
    }

    fn scheduler(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        Path::new("/sys/block").join(name).join("queue/scheduler")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        fs::write(self.scheduler(), &self.before).unwrap();
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.unwrap().success());
    }
}

/// Unified: "Configuration unknown to the runtime MUST still be written to the relevant file", with the controllers that it
/// needs; of one that is not there "the runtime MUST generate an error", as where "the conversion is not possible".
#[test]
fn files_of_v2_are_written_whether_known_or_not() {
    let bundle = Bundle::new("unified", "exec sleep 1000");
    let unified =
        |value: Value| bundle.change(|config| config["linux"]["resources"] = json!({ "unified": value }));
    if !layout().is_v2() {
        unified(json!({ "memory.high": "1000" }));
        assert!(bundle.fail(&["create", "c"]).contains("unified"));
        return skip(
            "files_of_v2_are_written_whether_known_or_not",
            "cgroup v1 has no such files",
        );
    }
    unified(
        json!({ "memory.high": "67108864", "pids.max": "77", "cgroup.max.depth": "5", "cpu.weight": "55" }),
    );
    bundle.create(&["create", "c"]);
    for (file, value) in [
        ("memory.high", "67108864"),
        ("pids.max", "77"),
        ("cgroup.max.depth", "5"),
        ("cpu.weight", "55"),
    ] {
        assert_eq!(text(&bundle, "", file).trim(), value, "{file}");
    }
    bundle.succeed(&["delete", "c"]);
    for (file, value) in [("no_such.max", "1"), ("memory.no_such", "1"), ("pids.max", "x")] {
        unified(json!({ file: value }));
        let said = bundle.fail(&["create", "c"]);
        assert!(said.contains(file), "{said}");
        assert!(!directory(&bundle, "").exists());
    }
}

/// Cgroup ownership: the one who is root of the container, or whoever its process is, owns the group that it can write to.
#[test]
fn a_group_that_is_writable_belongs_to_its_user() {
    if !layout().is_v2() {
        return skip(
            "a_group_that_is_writable_belongs_to_its_user",
            "cgroup v1 is not safe to delegate",
        );
    }
    let bundle = Bundle::new("cgowner", "exec sleep 1000");
    for (writable, owner) in [(false, 0), (true, 1234)] {
        bundle.change(|config| {
            config["process"]["user"]["uid"] = json!(1234);
            let mounts = config["mounts"].as_array_mut().unwrap();
            let own = mounts
                .iter_mut()
                .find(|mount| mount["destination"] == "/sys/fs/cgroup")
                .unwrap();
            own["source"] = json!("cgroup");
            own["options"] = if writable {
                json!(["nosuid"])
            } else {
                json!(["nosuid", "ro"])
            };
        });
        bundle.create(&["create", "c"]);
        let uid = |file: &str| fs::metadata(directory(&bundle, "").join(file)).unwrap().uid();
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            assert_eq!(uid(file), owner, "{file}");
        }
        assert_eq!(uid("cgroup.max.depth"), 0);
        bundle.succeed(&["delete", "c"]);
    }
}
