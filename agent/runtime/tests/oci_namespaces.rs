//! Namespaces of the OCI configuration, looked at from inside: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;
mod skip;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use bundle::Bundle;
use serde_json::{Value, json};

fn namespace(config: &mut Value, namespace: Value) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|one| one["type"] != namespace["type"]);
    list.push(namespace);
}

/// config-linux.md, Offset for Time Namespace.
#[test]
fn clocks_are_moved_in_a_time_namespace() {
    let bundle = Bundle::new("time", "cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time");
    bundle.change(|config| {
        namespace(config, json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": 7_000_000, "nanosecs": 5 }, "monotonic": { "secs": 1 } });
    });
    let out = bundle.run(0);
    let (uptime, inside) = out.trim().split_once('\n').unwrap();
    assert!(uptime.parse::<u64>().unwrap() >= 7_000_000, "{out}");
    let own = fs::read_link("/proc/self/ns/time").unwrap();
    assert_ne!(own.to_str(), Some(inside));
    // An exec sees the same clocks.
    bundle.change(|config| config["process"]["args"] = json!(["/bin/sleep", "1000"]));
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let uptime = bundle.succeed(&["exec", "c", "/bin/sh", "-c", "cut -d. -f1 /proc/uptime"]);
    assert!(uptime.trim().parse::<u64>().unwrap() >= 7_000_000, "{uptime}");
    bundle.succeed(&["delete", "--force", "c"]);
    for (offsets, own) in [
        (json!({ "realtime": { "secs": 1 } }), true),
        (json!({ "boottime": { "nanosecs": 1_000_000_000 } }), true),
        (json!({ "boottime": { "secs": 1 } }), false),
    ] {
        bundle.change(|config| {
            config["linux"]["timeOffsets"] = offsets;
            if !own {
                let list = config["linux"]["namespaces"].as_array_mut().unwrap();
                list.retain(|one| one["type"] != "time");
            }
        });
        assert!(bundle.fail(&["run", "c"]).contains("linux.timeOffsets"));
    }
}

/// config-linux.md, Namespaces: "path ... the runtime MUST place the container process in the namespace".
#[test]
fn namespaces_are_joined_by_path() {
    let other = Command::new("unshare")
        .args([
            "--net",
            "--uts",
            "--ipc",
            "sh",
            "-c",
            "hostname other; echo ready; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn();
    let mut other = other.unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let bundle = Bundle::new(
        "join",
        "hostname; readlink /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_forward",
    );
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", other.id());
    bundle.change(|config| {
        for (kind, file) in [("network", "net"), ("uts", "uts"), ("ipc", "ipc")] {
            namespace(config, json!({ "type": kind, "path": path(file) }));
        }
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });
    let link = fs::read_link(path("net")).unwrap();
    let out = bundle.call(&["run", "c"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        format!("other\n{}\n1\n", link.display()),
        "{out:?}"
    );
    // The host's own: its sysctls are not the container's to set.
    bundle.change(|config| namespace(config, json!({ "type": "network", "path": "/proc/self/ns/net" })));
    bundle.change(|config| {
        for kind in ["uts", "ipc"] {
            namespace(config, json!({ "type": kind }));
        }
    });
    assert!(
        bundle
            .fail(&["run", "c"])
            .contains("linux.sysctl.net.ipv4.ip_forward")
    );
}

/// config-linux.md, Namespaces: without a path "the runtime MUST create a new container namespace"; of a kind that is not
/// listed "the container MUST inherit the runtime namespace".
#[test]
fn each_kind_of_namespace_is_new_or_the_runtimes() {
    let bundle = Bundle::new(
        "kinds",
        "cd /proc/self/ns; for n in pid net mnt ipc uts user cgroup time; do readlink $n; done",
    );
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let kinds = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];
    let links = ["pid", "net", "mnt", "ipc", "uts", "user", "cgroup", "time"];
    for (kind, link) in kinds.iter().zip(links) {
        bundle.change(|config| {
            // The mount namespace is what the others are looked at in; a user namespace asks for its own of the rest.
            let list = match *kind {
                "user" => kinds.to_vec(),
                "mount" => vec!["mount"],
                kind => vec!["mount", kind],
            };
            config["linux"]["namespaces"] = list.iter().map(|kind| json!({ "type": kind })).collect();
            if *kind == "user" {
                let map = json!([{ "containerID": 0, "hostID": 700_000, "size": 65_536 }]);
                config["linux"]["uidMappings"] = map.clone();
                config["linux"]["gidMappings"] = map;
            } else {
                config["linux"]["uidMappings"] = Value::Null;
                config["linux"]["gidMappings"] = Value::Null;
            }
        });
        let listed: Vec<String> = {
            let config: Value =
                serde_json::from_slice(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
            let list = config["linux"]["namespaces"].as_array().unwrap().clone();
            list.iter()
                .map(|one| one["type"].as_str().unwrap().to_owned())
                .collect()
        };
        let out = bundle.run(0);
        let seen: Vec<&str> = out.lines().collect();
        for (index, other) in kinds.iter().enumerate() {
            let own = fs::read_link(format!("/proc/self/ns/{}", links[index])).unwrap();
            let new = listed.iter().any(|one| one == other);
            assert_eq!(
                own.to_str() != Some(seen[index]),
                new,
                "{other} when {kind} ({link}) is listed: {out}"
            );
        }
    }
}

/// The same section: "MUST generate an error if `path` is not associated with a namespace of type `type`".
#[test]
fn a_path_to_another_kind_of_namespace_is_an_error() {
    let bundle = Bundle::new("wrongkind", "true");
    for (kind, file) in [
        ("network", "uts"),
        ("uts", "ipc"),
        ("ipc", "net"),
        ("pid", "mnt"),
        ("mount", "pid"),
        ("cgroup", "net"),
        ("time", "net"),
        ("user", "net"),
    ] {
        let path = format!("/proc/self/ns/{file}");
        bundle.change(|config| namespace(config, json!({ "type": kind, "path": path })));
        let said = bundle.fail(&["create", "c"]);
        assert!(said.contains("namespace"), "{kind} {file}: {said}");
        bundle.fail(&["state", "c"]);
        bundle.change(|config| {
            let list = config["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|one| one["type"] != kind);
            if kind == "mount" {
                list.push(json!({ "type": "mount" }));
            }
        });
    }
    for path in ["/no/such", "/etc/hostname"] {
        bundle.change(|config| namespace(config, json!({ "type": "uts", "path": path })));
        assert!(bundle.fail(&["create", "c"]).contains("namespace"), "{path}");
    }
}

/// config-linux.md, User namespace mappings; config.md, Mounts, idmap and ridmap.
#[test]
fn what_belongs_to_a_new_user_namespace_is_its_roots() {
    let bundle = Bundle::new(
        "owner",
        "stat -c %u:%g /dev/mqueue /sys/class/net/lo/mtu /proc/sys/net/ipv4/ip_forward /proc/self/status /dev/shm",
    );
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.change(|config| {
        namespace(config, json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 700_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    let out = bundle.run(0);
    assert_eq!(out.lines().collect::<Vec<_>>(), ["0:0"; 5], "{out}");
}

#[test]
fn volumes_are_idmapped_into_a_user_namespace() {
    let bundle = Bundle::new(
        "idmap",
        "stat -c %u:%g /vol /own; touch /vol/made; cat /proc/self/uid_map",
    );
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = bundle.path().join("volume");
    // Root of the namespace owns nothing of the image and can make nothing in it.
    for directory in [
        &volume,
        &bundle.path().join("rootfs/vol"),
        &bundle.path().join("rootfs/own"),
    ] {
        fs::create_dir(directory).unwrap();
    }
    bundle.change(|config| {
        namespace(config, json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 700_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/vol", "source": volume, "options": ["rbind", "ridmap"] }));
        let shifted = json!([{ "containerID": 0, "hostID": 700_007, "size": 10 }]);
        mounts.push(json!({
            "destination": "/own", "source": volume, "options": ["bind", "idmap", "ro"],
            "uidMappings": shifted, "gidMappings": shifted,
        }));
    });
    let out = bundle.run(0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..2], ["0:0", "7:7"], "{out}");
    assert!(lines[2].contains("700000"), "{out}");
    assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 0);
}

/// config-linux.md, Network Devices (1.2.1): moved, renamed, up, with MTU and lasting addresses of global scope.
#[test]
fn network_devices_are_moved_with_their_addresses() {
    let bundle = Bundle::new("netdev", "ip -o addr show dev inside; ip -o link show dev inside");
    // In a network namespace of the test's own: the runtime's is where the device comes from.
    let binary = bundle::runtime();
    let set_up = "ip link add outside type veth peer name other && ip link set other up && ip link set outside mtu 1400 up && \
                  ip addr add 10.9.8.7/24 dev outside && ip addr add fd00::7/64 dev outside nodad";
    let run = |what: &str| {
        Command::new("unshare")
            .args(["--net", "sh", "-c", what])
            .current_dir(bundle.path())
            .output()
            .unwrap()
    };
    if !run(set_up).status.success() {
        skip::skip(
            "network_devices_are_moved_with_their_addresses",
            "no veth interfaces, or no ip",
        );
        return;
    }
    bundle.change(|config| config["linux"]["netDevices"] = json!({ "outside": { "name": "inside" } }));
    let out = run(&format!("{set_up} && {binary} --root state run c && ip -o link"));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{out:?}");
    for word in ["10.9.8.7/24", "fd00::7/64", "mtu 1400", "UP"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("outside"), "{text}");
    // The host's namespace is not the container's.
    bundle.change(|config| namespace(config, json!({ "type": "network", "path": "/proc/self/ns/net" })));
    assert!(bundle.fail(&["run", "c"]).contains("linux.netDevices.outside"));
}
