//! config.md, Valid values: "Runtimes MUST generate an error when invalid or unsupported values are encountered"; and what is
//! no error. Needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;

use bundle::Bundle;
use serde_json::{Value, json};

/// Each value, put where it belongs, is refused at create, in words that hold these; and nothing is left.
#[track_caller]
fn refused(name: &str, values: &[(&str, Value, &str)]) {
    let bundle = Bundle::new(name, "true");
    let good = fs::read(bundle.path().join("config.json")).unwrap();
    for (place, value, words) in values {
        bundle.change(|config| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            if config.pointer(parent).is_none() {
                let (above, last) = parent.rsplit_once('/').unwrap();
                config.pointer_mut(above).unwrap()[last] = json!({});
            }
            config.pointer_mut(parent).unwrap()[key] = value.clone();
        });
        let said = bundle.fail(&["create", "c"]);
        assert!(said.contains(words), "{place} = {value}: {said}");
        let state = fs::read_dir(bundle.path().join("state"));
        assert_eq!(state.map_or(0, Iterator::count), 0, "{place} = {value}");
        fs::write(bundle.path().join("config.json"), &good).unwrap();
    }
}

/// config.md.
#[test]
fn invalid_values_of_the_configuration_are_errors() {
    let rlimit = |kind: &str, soft: u64| json!({ "type": kind, "soft": soft, "hard": 10 });
    refused(
        "values",
        &[
            ("/ociVersion", json!("1.0"), "ociVersion"),
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/root", Value::Null, "root"),
            ("/process/cwd", json!("tmp"), "process.cwd"),
            ("/process/args", json!([]), "process.args"),
            (
                "/process/rlimits",
                json!([rlimit("RLIMIT_NOPE", 1)]),
                "RLIMIT_NOPE",
            ),
            (
                "/process/rlimits",
                json!([rlimit("RLIMIT_CPU", 1), rlimit("RLIMIT_CPU", 2)]),
                "given twice",
            ),
            (
                "/process/rlimits",
                json!([rlimit("RLIMIT_CPU", 11)]),
                "RLIMIT_CPU",
            ),
            ("/process/oomScoreAdj", json!(1001), "oomScoreAdj"),
            (
                "/process/scheduler",
                json!({ "policy": "SCHED_NOPE" }),
                "SCHED_NOPE",
            ),
            (
                "/process/ioPriority",
                json!({ "class": "IOPRIO_CLASS_NOPE", "priority": 0 }),
                "IOPRIO_CLASS_NOPE",
            ),
            (
                "/process/execCPUAffinity",
                json!({ "initial": "x" }),
                "execCPUAffinity",
            ),
            ("/process/user", json!({ "uid": -1, "gid": 0 }), "malformed"),
            ("/annotations", json!({ "": "x" }), "annotations"),
            ("/annotations", json!({ "a": 1 }), "malformed"),
            ("/hostname", json!(["x"]), "malformed"),
        ],
    );
}

/// config-linux.md.
#[test]
fn invalid_values_of_the_linux_part_are_errors() {
    let own = json!({ "type": "uts" });
    refused(
        "linuxvalues",
        &[
            ("/linux/namespaces", json!([own, own]), "listed twice"),
            ("/linux/namespaces", json!([{ "type": "nope" }]), "nope"),
            (
                "/linux/namespaces",
                json!([{ "type": "uts", "path": "proc/self/ns/uts" }]),
                "linux.namespaces[0].path: must be absolute",
            ),
            ("/linux/rootfsPropagation", json!("sideways"), "rootfsPropagation"),
            ("/linux/maskedPaths", json!(["proc/kcore"]), "must be absolute"),
            ("/linux/readonlyPaths", json!(["proc/sys"]), "must be absolute"),
            ("/linux/personality", json!({ "domain": "NOPE" }), "NOPE"),
            (
                "/linux/personality",
                json!({ "domain": "LINUX", "flags": ["X"] }),
                "linux.personality.flags",
            ),
            (
                "/linux/devices",
                json!([{ "type": "x", "path": "/dev/x" }]),
                "malformed",
            ),
            (
                "/linux/resources/devices",
                json!([{ "allow": true, "access": "x" }]),
                "devices[0].access",
            ),
            (
                "/linux/resources/rdma",
                json!({ "mlx5_1": {} }),
                "linux.resources.rdma.mlx5_1",
            ),
            (
                "/linux/resources/blockIO",
                json!({ "weightDevice": [{ "major": 8, "minor": 0 }] }),
                "weightDevice[0]",
            ),
            (
                "/linux/resources/cpu",
                json!({ "quota": 1000, "burst": 2000, "period": 10_000 }),
                "cpu",
            ),
            ("/linux/resources/cpu", json!({ "cpus": "x" }), "cpuset.cpus"),
            (
                "/linux/resources/hugepageLimits",
                json!([{ "pageSize": "3MB", "limit": 1 }]),
                "hugetlb.3MB",
            ),
            (
                "/linux/timeOffsets",
                json!({ "realtime": {} }),
                "linux.timeOffsets",
            ),
            (
                "/linux/sysctl",
                json!({ "fs.file-max": "1" }),
                "linux.sysctl.fs.file-max",
            ),
        ],
    );
}

/// config-linux.md, Seccomp.
#[test]
fn invalid_values_of_a_profile_are_errors() {
    let profile = |more: Value| {
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        profile
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        profile
    };
    let rule = |more: Value| {
        let mut rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" });
        rule.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        profile(json!({ "syscalls": [rule] }))
    };
    let place = "/linux/seccomp";
    let mut values = vec![
        (place, profile(json!({ "defaultErrnoRet": 1 })), "errnoRet"),
        (place, rule(json!({ "names": [] })), "names"),
        (place, rule(json!({ "action": "SCMP_ACT_NOPE" })), "SCMP_ACT_NOPE"),
        (
            place,
            profile(json!({ "architectures": ["SCMP_ARCH_NOPE"] })),
            "SCMP_ARCH_NOPE",
        ),
        (
            place,
            profile(json!({ "flags": ["SECCOMP_NOPE"] })),
            "SECCOMP_NOPE",
        ),
        (
            place,
            profile(json!({ "listenerMetadata": "x" })),
            "listenerMetadata",
        ),
        (
            place,
            rule(json!({ "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_NOPE" }] })),
            "SCMP_CMP_NOPE",
        ),
        // "When the action doesn't support an errno, the runtime MUST print and error and fail".
        (
            place,
            rule(json!({ "action": "SCMP_ACT_NOTIFY", "errnoRet": 2 })),
            "errnoRet",
        ),
    ];
    for action in ["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "LOG"] {
        let action = format!("SCMP_ACT_{action}");
        values.push((
            place,
            rule(json!({ "action": action, "errnoRet": 2 })),
            "errnoRet",
        ));
    }
    refused("profilevalues", &values);
}

/// config-linux.md, IntelRdt: without a resctrl file system "the runtime MUST generate an error".
#[test]
fn a_class_of_service_is_refused_where_there_are_none() {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mountinfo.contains(" - resctrl ") {
        return; // what it does there is in `src/rdt_test.rs`
    }
    refused(
        "rdt",
        &[
            ("/linux/intelRdt", json!({}), "no resctrl file system is mounted"),
            (
                "/linux/intelRdt",
                json!({ "closID": "a/b" }),
                "linux.intelRdt.closID",
            ),
            (
                "/linux/intelRdt",
                json!({ "memBwSchema": "L3:0=f" }),
                "linux.intelRdt.memBwSchema",
            ),
        ],
    );
}

/// config.md, Extensibility: unknown properties "MUST otherwise [be] ignore[d]"; Annotations: unknown keys like them, values
/// "MAY be an empty string".
#[test]
fn what_nobody_knows_is_ignored() {
    let bundle = Bundle::new("unknown", "echo runs");
    bundle.change(|config| {
        config["x-new"] = json!({ "deep": [1] });
        for part in ["process", "root", "linux"] {
            config[part]["futureProperty"] = json!(true);
        }
        config["linux"]["resources"] = json!({ "future": { "limit": 1 } });
        config["mounts"][0]["future"] = json!("x");
        config["annotations"] = json!({ "org.opencontainers.nobody": "", "com.example.x": "y" });
        config["hooks"] = json!({ "future": [{ "path": "relative" }] });
    });
    assert_eq!(bundle.run(0), "runs\n");
}

/// glossary.md: JSON objects "MUST NOT include duplicate names", and are UTF-8.
#[test]
fn json_that_is_none_is_refused() {
    let bundle = Bundle::new("json", "true");
    let path = bundle.path().join("config.json");
    let good = fs::read_to_string(&path).unwrap();
    let twice = good.replacen('{', "{\"ociVersion\":\"1.0.0\",", 1);
    let binary = [&good.as_bytes()[..good.len() - 1], b",\"hostname\":\"\xff\"}"].concat();
    for bad in [
        twice.into_bytes(),
        binary,
        good.as_bytes()[..good.len() / 2].to_vec(),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(bundle.fail(&["create", "c"]).contains("malformed"));
    }
}

/// features.md and features-linux.md: each element of these lists "the runtime MUST recognize" in a configuration, both
/// versions it "MUST accept".
#[test]
fn what_features_tells_is_taken_in_a_configuration() {
    let bundle = Bundle::new("recognized", "true");
    let features: Value = serde_json::from_str(&bundle.succeed(&["features"])).unwrap();
    let list = |place: &str| features.pointer(place).unwrap().as_array().unwrap().clone();
    let version = |place: &str| -> Vec<u32> {
        let text = features[place].as_str().unwrap();
        text.split('.').map(|part| part.parse().unwrap()).collect()
    };
    assert!(version("ociVersionMin") <= version("ociVersionMax"));
    for end in ["ociVersionMin", "ociVersionMax"] {
        bundle.change(|config| config["ociVersion"] = features[end].clone());
        bundle.run(0);
    }
    // "MUST NOT contain properties that are not defined in this version".
    let known = |place: &str, names: &str| {
        for name in features.pointer(place).unwrap().as_object().unwrap().keys() {
            assert!(names.split(' ').any(|known| known == name), "{place}: {name}");
        }
    };
    known(
        "",
        "ociVersionMin ociVersionMax hooks mountOptions linux annotations potentiallyUnsafeConfigAnnotations",
    );
    known(
        "/linux",
        "namespaces capabilities cgroup seccomp apparmor selinux intelRdt memoryPolicy mountExtensions netDevices",
    );
    let kinds = list("/linux/namespaces");
    bundle.change(|config| {
        let namespaces = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        config["linux"]["namespaces"] = Value::Array(namespaces);
        let map = json!([{ "containerID": 0, "hostID": 0, "size": 65_536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        for set in ["bounding", "permitted", "effective"] {
            config["process"]["capabilities"][set] = features["linux"]["capabilities"].clone();
        }
        let hooks = list("/hooks")
            .into_iter()
            .map(|name| (name.as_str().unwrap().to_owned(), json!([])));
        config["hooks"] = Value::Object(hooks.collect());
    });
    bundle.run(0);
    for architecture in list("/linux/seccomp/archs") {
        bundle.change(|config| {
            config["linux"]["seccomp"] =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture] });
        });
        // A program of another one cannot run by such a profile alone.
        let output = bundle.call(&["run", "c"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !said.contains("linux.seccomp") && !said.contains("malformed"),
            "{architecture}: {said}"
        );
    }
    let notify = json!("SCMP_ACT_NOTIFY");
    let rules = |actions: &[Value], operators: &[Value]| {
        let mut rules = Vec::new();
        for (action, name) in actions.iter().filter(|action| **action != notify).zip([
            "acct", "swapon", "swapoff", "reboot", "vhangup", "iopl", "ioperm", "quotactl",
        ]) {
            rules.push(json!({ "names": [name], "action": action }));
        }
        for (operator, name) in operators
            .iter()
            .zip(["pause", "tee", "splice", "vmsplice", "sync", "syncfs", "fsync"])
        {
            let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": operator }]);
            rules.push(json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "args": args }));
        }
        rules
    };
    bundle.change(|config| {
        // Waiting for an answer is for profiles that ask.
        let flags = list("/linux/seccomp/knownFlags");
        let flags: Vec<_> = flags
            .iter()
            .filter(|flag| !flag.as_str().unwrap().contains("WAIT"))
            .collect();
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": flags,
            "syscalls": rules(&list("/linux/seccomp/actions"), &list("/linux/seccomp/operators")),
        });
    });
    bundle.run(0);
    assert_eq!(
        features["linux"]["seccomp"]["knownFlags"],
        features["linux"]["seccomp"]["supportedFlags"]
    );
    let annotations = features["annotations"].as_object().unwrap();
    assert!(
        annotations
            .iter()
            .all(|(key, value)| !key.is_empty() && value.is_string())
    );
}

/// Every cause is said once, whatever the way it came.
#[test]
fn an_error_says_its_cause_once() {
    let bundle = Bundle::new("once", "true");
    let good = fs::read(bundle.path().join("config.json")).unwrap();
    let changes: [fn(&mut Value); 9] = [
        |config| config["process"]["args"] = json!(["/etc"]),
        |config| config["process"]["args"] = json!(["/nowhere"]),
        |config| config["process"]["args"] = json!(["nowhere"]),
        |config| config["process"]["cwd"] = json!("/proc/x"),
        |config| config["root"]["path"] = json!("nowhere"),
        |config| config["mounts"][0]["type"] = json!("nosuchfs"),
        |config| config["linux"]["cgroupsPath"] = json!("x\u{0}"),
        |config| config["linux"]["resources"] = json!({ "cpu": { "cpus": "99999" } }),
        |config| config["hooks"] = json!({ "createRuntime": [{ "path": "/no/such" }] }),
    ];
    for change in changes {
        bundle.change(change);
        let said = bundle.fail(&["run", "c"]).trim().to_ascii_lowercase();
        assert!(said.matches("os error").count() < 2, "{said}");
        let parts: Vec<&str> = said
            .split(": ")
            .map(|part| part.split(" (os error").next().unwrap())
            .collect();
        for (index, part) in parts.iter().enumerate() {
            assert!(!parts[..index].contains(part), "{part:?} twice in {said}");
        }
        fs::write(bundle.path().join("config.json"), &good).unwrap();
    }
}
