//! Fields of the OCI configuration, looked at from inside: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;
mod skip;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use bundle::Bundle;
use serde_json::{Value, json};
use skip::skip;

#[test]
fn names_scheduling_and_personality_are_what_was_asked() {
    // Fields 19 and 41 of stat are the nice value and the policy (proc_pid_stat(5)).
    let script =
        "hostname; cat /proc/sys/kernel/domainname; cut -d' ' -f19,41 /proc/$$/stat; ionice -p $$; uname -m";
    let bundle = Bundle::new("scheduling", script);
    bundle.change(|config| {
        config["hostname"] = json!("host-x");
        config["domainname"] = json!("domain.x");
        config["process"]["scheduler"] =
            json!({ "policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
        config["linux"]["seccomp"] = Value::Null;
    });
    let out = bundle.run(0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        ["host-x", "domain.x", "5 3", "best-effort: prio 6", "i686"]
    );
    for (field, value) in [
        ("scheduler", json!({ "policy": "SCHED_ISO" })),
        ("scheduler", json!({ "policy": "SCHED_OTHER", "nice": 20 })),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
    ] {
        bundle.change(|config| config["process"][field] = value);
        assert!(bundle.fail(&["run", "c"]).contains(&format!("process.{field}")));
        bundle.change(|config| config["process"][field] = Value::Null);
    }
    bundle.change(|config| config["linux"]["personality"]["flags"] = json!(["X"]));
    assert!(bundle.fail(&["run", "c"]).contains("linux.personality.flags"));
}

#[test]
fn memory_policy_holds_where_the_kernel_has_nodes() {
    let bundle = Bundle::new("mempolicy", "head -1 /proc/self/numa_maps | cut -d' ' -f2");
    if !fs::exists("/proc/self/numa_maps").unwrap() {
        skip(
            "memory_policy_holds_where_the_kernel_has_nodes",
            "the kernel has no NUMA",
        );
        return;
    }
    bundle.change(|config| {
        config["linux"]["memoryPolicy"] =
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
    });
    assert!(bundle.run(0).starts_with("bind"));
}

/// config.md, Linux Process: not for the container's own process, only for further ones.
#[test]
fn exec_cpu_affinity_is_for_exec() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let bundle = Bundle::new("affinity", "exec sleep 1000");
    bundle.change(|config| config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" }));
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let of = |who: &str| {
        let out = bundle.succeed(&[
            "exec",
            "c",
            "/bin/sh",
            "-c",
            &format!("grep Cpus_allowed_list /proc/{who}/status"),
        ]);
        out.split_whitespace().last().unwrap().to_owned()
    };
    assert_eq!(of("self"), "0");
    if cpus > 1 {
        assert_ne!(of("1"), "0");
    }
}

/// config.md, Mounts, and config-linux.md, Rootfs Mount Propagation.
#[test]
fn mounts_and_root_have_the_options_asked() {
    let bundle = Bundle::new(
        "mounts",
        "grep -E ' (/|/vol|/vol/below|/t|/c) ' /proc/self/mountinfo; ls /c; touch /c/new",
    );
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = bundle.path().join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    let root = bundle.path().join("rootfs");
    fs::create_dir(root.join("c")).unwrap();
    fs::write(root.join("c/of-the-image"), "x").unwrap();
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/vol", "source": volume, "options": ["rbind", "rro", "rnosuid", "rslave", "noatime"] }));
        mounts.push(json!({ "destination": "/t", "type": "tmpfs", "options": ["rnoexec", "size=64k", "unbindable"] }));
        mounts.push(json!({ "destination": "/c", "type": "tmpfs", "options": ["tmpcopyup", "mode=755"] }));
        config["linux"]["rootfsPropagation"] = json!("shared");
        config["root"]["readonly"] = json!(true);
    });
    let out = bundle.run(0);
    let line = |place: &str| {
        out.lines()
            .find(|line| line.split(' ').nth(4) == Some(place))
            .unwrap_or_else(|| panic!("{place}: {out}"))
            .to_owned()
    };
    for option in ["ro,", "nosuid", "noatime"] {
        assert!(line("/vol").contains(option), "{option}: {out}");
    }
    assert!(
        line("/t").contains("noexec") && line("/t").contains("unbindable"),
        "{out}"
    );
    assert!(
        line("/").contains("shared:") && line("/").contains(" ro,"),
        "{out}"
    );
    assert!(out.lines().any(|line| line == "of-the-image"), "{out}");
    assert!(!root.join("c/new").exists());
    for (propagation, sign) in [("private", ""), ("unbindable", "unbindable"), ("rslave", "")] {
        bundle.change(|config| config["linux"]["rootfsPropagation"] = json!(propagation));
        let out = bundle.run(0);
        let root = out
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"))
            .unwrap();
        assert!(
            !root.contains("shared:") && root.contains(sign),
            "{propagation}: {root}"
        );
    }
    bundle.change(|config| config["linux"]["rootfsPropagation"] = json!("sideways"));
    assert!(bundle.fail(&["run", "c"]).contains("linux.rootfsPropagation"));
}

/// config-linux.md, Devices and Default Devices.
#[test]
fn devices_are_made_where_told_and_rules_decide() {
    let script = "stat -c '%t:%T %a %u:%g %F' /dev/mine /opt/zero; head -c 3 /opt/zero | wc -c; \
                  head -c 1 /dev/mine > /dev/null 2>&1 || echo refused; for n in null zero full random urandom tty; do test -c /dev/$n || echo no $n; done";
    let bundle = Bundle::new("devices", script);
    bundle.change(|config| {
        config["linux"]["devices"] = json!([
            { "path": "/dev/mine", "type": "b", "major": 7, "minor": 9, "fileMode": 0o640, "uid": 3, "gid": 4 },
            { "path": "/opt/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0 },
        ]);
        config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    });
    assert_eq!(
        bundle.run(0),
        "7:9 640 3:4 block special file\n1:5 666 0:0 character special file\n3\nrefused\n"
    );
    // Without a /dev of its own the image's directory gets them.
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        config["process"]["args"] = json!([
            "/bin/sh",
            "-c",
            "echo x > /dev/null; test -c /dev/urandom; readlink /dev/fd"
        ]);
        config["linux"]["devices"] = json!([]);
    });
    assert_eq!(bundle.run(0), "/proc/self/fd\n");
    assert!(fs::metadata(bundle.path().join("rootfs/dev/null")).is_ok());
}

#[test]
fn limits_that_the_machine_lacks_are_refused_by_name() {
    let bundle = Bundle::new("lacks", "true");
    let unified = match runtime::cgroup::Layout::detect().unwrap().is_v2() {
        true => (json!({ "unified": { "no.such": "1000" } }), "no.such"),
        false => (json!({ "unified": { "memory.high": "1000" } }), "unified"),
    };
    for (resources, word) in [
        (json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }), "rdma"),
        (json!({ "network": { "classID": 1_048_577 } }), "net_cls"),
        (
            json!({ "network": { "priorities": [{ "name": "lo", "priority": 3 }] } }),
            "net_prio",
        ),
        unified,
        (json!({ "unified": { "../x": "1000" } }), "unified"),
        (
            json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }),
            "hugetlb.3MB",
        ),
    ] {
        bundle.change(|config| config["linux"]["resources"] = resources.clone());
        let said = bundle.fail(&["run", "c"]);
        assert!(said.contains(word), "{resources}: {said}");
    }
    bundle.change(|config| {
        config["linux"]["resources"] = Value::Null;
        config["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    });
    assert!(bundle.fail(&["run", "c"]).contains("linux.uidMappings"));
    bundle.change(|config| config["linux"]["uidMappings"] = Value::Null);
    for (field, value) in [
        ("intelRdt", json!({ "closID": "x" })),
        ("netDevices", json!({ "no-such": {} })),
    ] {
        bundle.change(|config| {
            config["linux"]["resources"] = Value::Null;
            config["linux"][field] = value;
        });
        let said = bundle.fail(&["run", "c"]);
        assert!(
            said.contains("linux.intelRdt") || said.contains("network interface no-such"),
            "{said}"
        );
        bundle.change(|config| config["linux"][field] = Value::Null);
    }
}

/// config-linux.md, Seccomp, `listenerPath`, and The Container Process State.
#[test]
fn a_seccomp_listener_goes_to_its_supervisor() {
    let bundle = Bundle::new("notify", "mkdir /made; echo after");
    let path = bundle.path().join("supervisor");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.change(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "words",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    for privileges in [true, false] {
        bundle.change(|config| config["process"]["noNewPrivileges"] = json!(!privileges));
        bundle.create(&["create", "c"]);
        let (socket, _) = listener.accept().unwrap();
        let mut buffer = [0; 16384];
        let (count, fds) = sys::socket::recv_fds(std::os::fd::AsFd::as_fd(&socket), &mut buffer).unwrap();
        let mut text = buffer[..count].to_vec();
        std::io::Read::read_to_end(&mut { socket }, &mut text).unwrap();
        let told: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&told["fds"], &told["metadata"]),
            (&json!(["seccompFd"]), &json!("words"))
        );
        assert_eq!(
            (&told["state"]["id"], &told["state"]["status"]),
            (&json!("c"), &json!("creating"))
        );
        assert!(
            told["pid"].as_i64().unwrap() > 1 && told["pid"] == told["state"]["pid"],
            "{told}"
        );
        let number = std::os::fd::AsRawFd::as_raw_fd(&fds[0]);
        let link = fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        assert_eq!(link.to_str(), Some("anon_inode:seccomp notify"));
        // Nobody to ask any more: the call does not exist.
        drop(fds);
        bundle.succeed(&["start", "c"]);
        bundle.wait_status("stopped");
        assert!(
            bundle.out().contains("not implemented") && bundle.out().ends_with("after\n"),
            "{}",
            bundle.out()
        );
        bundle.succeed(&["delete", "c"]);
    }
    for (field, value) in [
        ("listenerPath", Value::Null),
        ("defaultAction", json!("SCMP_ACT_NOTIFY")),
        (
            "syscalls",
            json!([{ "names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY" }]),
        ),
    ] {
        bundle.change(|config| config["linux"]["seccomp"][field] = value);
        assert!(bundle.fail(&["run", "c"]).contains("linux.seccomp"), "{field}");
    }
}

/// config-linux.md, Seccomp, `listenerPath`: without the action the "value is ignored"; when it is used, exactly one state a
/// connection, and an error when nobody takes it.
#[test]
fn a_listener_is_for_profiles_that_ask() {
    let bundle = Bundle::new("notifyerrors", "mkdir /made; echo after");
    let path = bundle.path().join("nobody");
    let profile = |action: &str, path: &Path| {
        bundle.change(|config| {
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": path,
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": action }],
            });
        });
    };
    profile("SCMP_ACT_ERRNO", &path);
    assert_eq!(bundle.run(0), "after\n");
    // Nobody listens; a socket of another type; no socket at all.
    profile("SCMP_ACT_NOTIFY", &path);
    assert!(bundle.fail(&["create", "c"]).contains("seccomp listener"));
    bundle.fail(&["state", "c"]);
    let other = bundle.path().join("datagram");
    let _datagram = std::os::unix::net::UnixDatagram::bind(&other).unwrap();
    profile("SCMP_ACT_NOTIFY", &other);
    assert!(bundle.fail(&["create", "c"]).contains("seccomp listener"));
    let listener = UnixListener::bind(&path).unwrap();
    profile("SCMP_ACT_NOTIFY", &path);
    bundle.create(&["create", "c"]);
    let mut texts = Vec::new();
    listener.set_nonblocking(true).unwrap();
    while let Ok((mut socket, _)) = listener.accept() {
        socket.set_nonblocking(false).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
        texts.push(text);
    }
    // One connection, one object, and then its end.
    assert_eq!(texts.len(), 1);
    let told: Value = serde_json::from_str(&texts[0]).unwrap();
    for field in ["ociVersion", "fds", "pid", "state"] {
        assert!(!told[field].is_null(), "{field}: {told}");
    }
}
