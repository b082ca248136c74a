//! Real containers, looked at from inside and from the kernel's files.

#![allow(clippy::unwrap_used)] // a test that fails

mod common;
mod skip;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use common::{Ground, RANGE};
use oci_spec::runtime::LinuxNamespaceType;
use runtime::cgroup::Cgroup;
use runtime::container::{self, StartError, Stdio};
use runtime::exec::{ExecTarget, exec};
use runtime::sandbox::{Sandbox, SandboxError};
use runtime::spec::{ContainerSpec, PidShare};
use runtime::{capability, inspect};
use serde_json::json;

#[test]
fn pod_container_runs_in_its_own_namespaces_with_mapped_ids() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "id -u; hostname; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'; ip -o link | wc -l; \
        for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup | grep -v ':/$'; echo end";
    let (code, output) = ground
        .run(&ground.container("web", script), Some(&sandbox), &cgroup)
        .unwrap();
    assert_eq!(code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1], "pod-host");
    let map: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(map, ["0", &RANGE.start.to_string(), &RANGE.count.to_string()]);
    assert_eq!(lines[4], "1", "only lo: {output}");
    for line in &lines[5..12] {
        let kind = line.split(':').next().unwrap();
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(own.to_str().unwrap(), *line, "{output}");
    }
    assert_eq!(lines[12], "end", "its cgroup is its root: {output}");
    sandbox.destroy().unwrap();
}

#[test]
fn observed_isolation_equals_the_specification_and_a_difference_shows() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let resources = json!({
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
        "memory": {"limit": 67108864, "reservation": 33554432, "swap": 67108864},
        "pids": {"limit": 42},
        "devices": [{"allow": false, "access": "rwm"}],
    });
    let cgroup = ground.cgroup("web", resources.clone());
    let mut spec = ground.container("web", "exec sleep 1000");
    spec.config
        .linux_mut()
        .as_mut()
        .unwrap()
        .set_resources(Some(serde_json::from_value(resources).unwrap()));
    let options = ground.options();
    let running = container::start(&spec, Some(&sandbox), &cgroup, Stdio::null().unwrap(), &options).unwrap();
    let rows = |spec: &_| {
        let observed = inspect::observe(running.pid, &cgroup, spec).unwrap();
        inspect::compare(spec, Some(&ground.sandbox_spec()), &observed)
    };
    let all = rows(&spec);
    for row in &all {
        assert!(row.isolated, "{row:?}");
    }
    for layer in [
        "user namespace",
        "mount namespace",
        "uts namespace",
        "ipc namespace",
        "pid namespace",
        "network namespace",
        "cgroup namespace",
        "uid map",
        "seccomp",
        "no_new_privs",
        "capabilities",
        "cpu",
        "memory",
        "pids",
        "block io",
        "masked paths",
        "read-only paths",
        "selinux",
    ] {
        assert!(all.iter().any(|row| row.layer == layer), "{layer} is a row");
    }
    // Somebody changes a limit behind our back.
    let change = serde_json::from_value(json!({"pids": {"limit": 43}})).unwrap();
    cgroup.update(&change).unwrap();
    let wrong: Vec<_> = rows(&spec).into_iter().filter(|row| !row.isolated).collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!(
        (wrong[0].layer, &*wrong[0].expected, &*wrong[0].observed),
        ("pids", "42", "43")
    );
    cgroup.kill().unwrap();
    assert_eq!(sys::process::wait(running.pidfd.as_fd()).unwrap().code(), 128 + 9);
    cgroup.remove(Duration::from_secs(5)).unwrap();
    sandbox.destroy().unwrap();
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let count = || {
        let fds = fs::read_dir("/proc/self/fd").unwrap().count();
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count();
        let children = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| {
            fs::read_to_string(task.path().join("children"))
                .unwrap_or_default()
                .split_whitespace()
                .count()
        });
        (fds, mounts, children.sum::<usize>(), cgroup.pids().unwrap().len())
    };
    // Once, so that what is made lazily is there.
    ground
        .run(&ground.container("first", "true"), Some(&sandbox), &cgroup)
        .unwrap();
    let before = count();
    type Break = fn(&mut ContainerSpec);
    let breaks: [(&str, Break, &str); 6] = [
        (
            "program",
            |spec| args(spec, &["nonsense"]),
            r#"exec: "nonsense": executable file not found in $PATH"#,
        ),
        (
            "path",
            |spec| args(spec, &["/no/such"]),
            r#"exec: "/no/such": stat /no/such: no such file or directory"#,
        ),
        (
            "not-executable",
            |spec| args(spec, &["/etc/passwd"]),
            r#"exec: "/etc/passwd": permission denied"#,
        ),
        (
            "cwd",
            |spec| {
                spec.config
                    .process_mut()
                    .as_mut()
                    .unwrap()
                    .set_cwd("/proc/nowhere".into());
            },
            r#"failed to chdir to cwd ("/proc/nowhere") set in config.json"#,
        ),
        (
            "mount",
            |spec| {
                let mount = json!({"destination": "/data", "type": "tmpfs", "source": "x", "options": ["size=nonsense"]});
                spec.config
                    .mounts_mut()
                    .as_mut()
                    .unwrap()
                    .push(serde_json::from_value(mount).unwrap());
            },
            "failed to make the file system for /data",
        ),
        (
            "source",
            |spec| {
                let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/x", "options": ["rbind"]});
                spec.config
                    .mounts_mut()
                    .as_mut()
                    .unwrap()
                    .push(serde_json::from_value(mount).unwrap());
            },
            "failed to open the source of a mount: /no/such/x",
        ),
    ];
    for (name, change, message) in breaks {
        let mut spec = ground.container(name, "true");
        change(&mut spec);
        let error = ground.run(&spec, Some(&sandbox), &cgroup).unwrap_err();
        assert_eq!(error.to_string(), message, "{name}");
        assert_eq!(count(), before, "{name}");
    }
    sandbox.destroy().unwrap();
}

fn args(spec: &mut ContainerSpec, list: &[&str]) {
    let list = list.iter().map(|word| (*word).to_owned()).collect();
    spec.config.process_mut().as_mut().unwrap().set_args(Some(list));
}

#[test]
fn limits_are_in_the_kernels_files_and_hold() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let device = fs::read_to_string("/proc/partitions").unwrap();
    let device: Vec<i64> = device
        .lines()
        .nth(2)
        .unwrap()
        .split_whitespace()
        .take(2)
        .map(|n| n.parse().unwrap())
        .collect();
    let throttle = json!([{"major": device[0], "minor": device[1], "rate": 1048576}]);
    let cgroup = ground.cgroup(
        "web",
        json!({
            "cpu": {"quota": 20000, "period": 100000},
            "memory": {"limit": 33554432, "swap": 33554432},
            "pids": {"limit": 8},
            "blockIO": {"throttleReadBpsDevice": throttle},
        }),
    );
    let values = cgroup.values().unwrap();
    assert_eq!(values.cpu_quota_us, Some(20_000));
    assert_eq!(values.memory_max, Some(33_554_432));
    assert_eq!(values.pids_max, Some(8));
    assert_eq!((values.io[0].kind, values.io[0].rate), ("rbps", 1_048_576));
    let event = cgroup.oom_events().unwrap();
    // dd's buffer alone is beyond the limit; the shell is told that it was killed.
    let spec = ground.container("hungry", "dd if=/dev/zero of=/dev/null bs=100M count=1");
    let (code, _) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!(code, 128 + 9);
    assert!(cgroup.oom_kills().unwrap() > 0);
    if let Some(event) = event {
        assert!(sys::fd::wait_readable(event.as_fd(), Some(Duration::from_secs(5))).unwrap());
    }
    assert!(cgroup.memory_peak().unwrap().unwrap() > 16 << 20);
    let spec = ground.container(
        "forking",
        "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done 2>&1; wait; echo no",
    );
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert!(output.contains("fork"), "{output}");
    sandbox.destroy().unwrap();
}

#[test]
fn frozen_containers_die_and_stragglers_are_waited_for() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let spec = ground.container("web", "sleep 1000 & sleep 1000 & exec sleep 1000");
    let running = container::start(
        &spec,
        Some(&sandbox),
        &cgroup,
        Stdio::null().unwrap(),
        &ground.options(),
    )
    .unwrap();
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen().unwrap());
    cgroup.kill().unwrap();
    assert_eq!(sys::process::wait(running.pidfd.as_fd()).unwrap().code(), 128 + 9);
    cgroup.remove(Duration::from_secs(5)).unwrap();
    assert!(!cgroup.exists());
    cgroup.remove(Duration::from_secs(5)).unwrap();
    cgroup.kill().unwrap();
    sandbox.destroy().unwrap();
}

/// In v1 a process is in a group of each controller's, and somebody may have moved it in one of them.
#[test]
fn a_container_that_others_froze_dies() {
    let ground = Ground::new();
    let (cgroup, other) = (ground.cgroup("web", json!({})), ground.cgroup("other", json!({})));
    let Some(freezer) = other
        .controller("freezer")
        .filter(|path| path.join("freezer.state").exists())
    else {
        return skip::skip(
            "a_container_that_others_froze_dies",
            "the freezer is v2's: who is moved there has left the container's group",
        );
    };
    let sandbox = ground.sandbox();
    let spec = ground.container("web", "exec sleep 1000");
    let (null, options) = (Stdio::null().unwrap(), ground.options());
    let running = container::start(&spec, Some(&sandbox), &cgroup, null, &options).unwrap();
    fs::write(freezer.join("cgroup.procs"), running.pid.to_string()).unwrap();
    other.freeze().unwrap();
    cgroup.kill().unwrap();
    let ended = sys::fd::wait_readable(running.pidfd.as_fd(), Some(Duration::from_secs(30))).unwrap();
    other.thaw().unwrap();
    assert!(ended, "it is frozen");
    assert_eq!(sys::process::wait(running.pidfd.as_fd()).unwrap().code(), 128 + 9);
    cgroup.remove(Duration::from_secs(5)).unwrap();
    other.remove(Duration::from_secs(5)).unwrap();
    sandbox.destroy().unwrap();
}

#[test]
fn shared_pid_namespace_has_an_init_that_shows_nothing_of_the_host() {
    let ground = Ground::new();
    let mut pod = ground.sandbox_spec();
    pod.pid = PidShare::Pod;
    let sandbox = Sandbox::create(&pod, &ground.layout).unwrap();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "cat /proc/1/comm; ls /proc/1/root/ 2>&1; readlink /proc/1/exe || echo hidden; \
        sh -c 'sleep 0.2 & ' ; sleep 0.5; ps -o stat,comm | grep -c '^Z'; grep CapEff /proc/1/status; echo $$";
    let mut spec = ground.container("web", script);
    let namespaces = spec
        .config
        .linux_mut()
        .as_mut()
        .unwrap()
        .namespaces_mut()
        .as_mut()
        .unwrap();
    namespaces.retain(|one| one.typ() != LinuxNamespaceType::Pid);
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "pod-init", "{output}");
    assert!(lines[1].contains("Permission denied"), "{output}");
    assert_eq!(lines[2], "hidden", "{output}");
    assert_eq!(lines[3], "0", "no zombies: {output}");
    assert!(lines[4].ends_with("0000000000000000"), "{output}");
    assert_ne!(lines[5], "1", "{output}");
    sandbox.destroy().unwrap();
}

#[test]
fn sysctls_of_the_pods_own_namespaces_are_set_and_others_refused() {
    let ground = Ground::new();
    let mut pod = ground.sandbox_spec();
    pod.sysctls
        .insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    pod.sysctls.insert("kernel.shmmax".into(), "65536".into());
    let sandbox = Sandbox::create(&pod, &ground.layout).unwrap();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax";
    let (_, output) = ground
        .run(&ground.container("web", script), Some(&sandbox), &cgroup)
        .unwrap();
    assert_eq!(output, "80\n65536\n");
    sandbox.destroy().unwrap();
    for name in [
        "vm.swappiness",
        "kernel.core_pattern",
        "net.ipv4..x",
        "net.ipv4/../../kernel/core_pattern",
        "",
    ] {
        let mut pod = ground.sandbox_spec();
        pod.sysctls.insert(name.into(), "1".into());
        assert!(
            matches!(
                Sandbox::create(&pod, &ground.layout),
                Err(SandboxError::Invalid { .. })
            ),
            "{name}"
        );
    }
    // Refused by the kernel: the group that was made for it is gone again.
    let mut pod = ground.sandbox_spec();
    pod.cgroup.path = ground.parent.path().join("refused");
    pod.sysctls
        .insert("net.ipv4.ip_unprivileged_port_start".into(), "nonsense".into());
    assert!(matches!(
        Sandbox::create(&pod, &ground.layout),
        Err(SandboxError::Sysctl { .. })
    ));
    assert!(!Cgroup::open(&ground.layout, &pod.cgroup.path).unwrap().exists());
}

#[test]
fn process_is_who_the_specification_says() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "id -u; id -g; id -G; umask; echo $HOME; pwd; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; \
        ulimit -n; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l; awk '/SigIgn|SigBlk/' /proc/self/status; touch /tmp/x; ls -n /tmp/x";
    let mut spec = ground.container("web", script);
    fs::set_permissions(ground.layer().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let process = spec.config.process_mut().as_mut().unwrap();
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [1002, 1003], "umask": 0o27});
    process
        .set_user(serde_json::from_value(user).unwrap())
        .set_cwd("/tmp".into())
        .set_rlimits(Some(
            serde_json::from_value(json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}])).unwrap(),
        ))
        .set_oom_score_adj(Some(500));
    let (code, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!(code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines[..6],
        ["1000", "1001", "1001 1002 1003", "0027", "/home/web", "/tmp"],
        "{output}"
    );
    assert!(
        lines[6].ends_with("0000000000000000"),
        "no capability for a user: {output}"
    );
    let bounding = capability::mask(&capability::DEFAULT.into_iter().collect());
    assert!(lines[7].ends_with(&format!("{bounding:016x}")), "{output}");
    assert_eq!(lines[8].split_whitespace().last(), Some("1"));
    assert_eq!(lines[9].split_whitespace().last(), Some("2"));
    assert_eq!(lines[10], "100");
    assert_eq!(lines[11], "500");
    assert_eq!(
        lines[12], "4",
        "its three streams and the directory being listed: {output}"
    );
    for line in &lines[13..15] {
        assert!(line.ends_with("0000000000000000"), "{output}");
    }
    assert!(
        lines[15].starts_with("-rw-r-----") && lines[15].contains("1000     1001"),
        "{output}"
    );
    sandbox.destroy().unwrap();
}

#[test]
fn volumes_are_idmapped_and_keep_their_options() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let volume = ground.temp.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    let script = "cat /vol/a/file; echo; stat -c %u /vol/a/file; echo new > /vol/a/new; echo no > /ro/new; cat /one; \
        grep -E ' /(vol/a|ro|one) ' /proc/self/mountinfo";
    let mut spec = ground.container("web", script);
    let mounts = spec.config.mounts_mut().as_mut().unwrap();
    for mount in [
        json!({"destination": "/vol/a", "type": "bind", "source": volume, "options": ["rbind", "idmap", "nosuid"]}),
        json!({"destination": "/ro", "type": "bind", "source": volume, "options": ["rbind", "idmap", "ro", "nodev"]}),
        json!({"destination": "/one", "type": "bind", "source": volume.join("file"), "options": ["bind", "idmap", "ro"]}),
    ] {
        mounts.push(serde_json::from_value(mount).unwrap());
    }
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert!(output.starts_with("content\n0\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert_eq!(output.matches("content").count(), 2, "{output}");
    assert_eq!(
        output
            .lines()
            .filter(|line| line.contains(" / ") || line.contains("idmapped"))
            .count(),
        3,
        "{output}"
    );
    assert_eq!(
        fs::metadata(volume.join("new")).unwrap().uid(),
        0,
        "its own id on disk"
    );
    // A file system without idmapped mounts is refused with a word about it.
    let mut spec = ground.container("sys", "true");
    let mount =
        json!({"destination": "/data", "type": "bind", "source": "/proc/bus", "options": ["bind", "idmap"]});
    spec.config
        .mounts_mut()
        .as_mut()
        .unwrap()
        .push(serde_json::from_value(mount).unwrap());
    assert!(matches!(
        ground.run(&spec, Some(&sandbox), &cgroup),
        Err(StartError::Idmap { .. })
    ));
    sandbox.destroy().unwrap();
}

#[test]
fn further_processes_join_everything() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let spec = ground.container("web", "exec sleep 1000");
    let options = ground.options();
    let init = container::start(&spec, Some(&sandbox), &cgroup, Stdio::null().unwrap(), &options).unwrap();
    let mut process = spec.config.process().clone().unwrap();
    let script = "for n in user mnt pid net ipc uts cgroup; do test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) \
        || echo differs $n; done; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; ls /proc/self/fd | wc -l; id -u; exit 7";
    process.set_args(Some(["sh", "-c", script].map(str::to_owned).into()));
    let (read, write) = sys::fd::pipe().unwrap();
    let stdio = Stdio::Fds([
        fs::File::open("/dev/null").unwrap().into(),
        write.try_clone().unwrap(),
        write,
    ]);
    let seccomp = spec.config.linux().as_ref().unwrap().seccomp().as_ref();
    let running = exec(ExecTarget::of(&init), &process, seccomp, &cgroup, stdio, &options).unwrap();
    let (code, output) = common::finish(&running, read);
    assert_eq!(code, 7, "{output}");
    assert_eq!(output, "NoNewPrivs:\t1\nSeccomp:\t2\n4\n0\n");
    process.set_args(Some(vec!["nonsense".into()]));
    let error = exec(
        ExecTarget::of(&init),
        &process,
        seccomp,
        &cgroup,
        Stdio::null().unwrap(),
        &options,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"exec: "nonsense": executable file not found in $PATH"#
    );
    assert_eq!(error.exit_code(), Some(127));
    cgroup.kill().unwrap();
    sys::process::wait(init.pidfd.as_fd()).unwrap();
    sandbox.destroy().unwrap();
}
