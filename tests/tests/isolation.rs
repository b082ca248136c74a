//! What a container is kept from, read from the kernel.

use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tests::cluster::text;
use tests::{Cluster, can_run, kernel, wait_for};

const LIMITED: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: limited
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: hello:1
      command: ["sleep", "3600"]
      resources:
        requests: {memory: 500Mi}
        limits: {cpu: 500m, memory: 1Gi}
"#;

fn read(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

#[test]
fn limits_stand_in_the_cgroup_files() {
    if !can_run("limits_stand_in_the_cgroup_files", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(LIMITED);
    let pod = cluster.ready("limited");
    let cpu = cluster.container_group(&pod, "main", "cpu");
    let memory = cluster.container_group(&pod, "main", "memory");
    if kernel::is_v1("cpu") {
        assert_eq!(read(&cpu.join("cpu.cfs_quota_us")), "50000");
        assert_eq!(read(&cpu.join("cpu.cfs_period_us")), "100000");
    } else {
        assert_eq!(read(&cpu.join("cpu.max")), "50000 100000");
    }
    if kernel::is_v1("memory") {
        assert_eq!(
            read(&memory.join("memory.limit_in_bytes")),
            (1_u64 << 30).to_string()
        );
        assert_eq!(
            read(&memory.join("memory.soft_limit_in_bytes")),
            (500_u64 << 20).to_string()
        );
    } else {
        assert_eq!(read(&memory.join("memory.max")), (1_u64 << 30).to_string());
        assert_eq!(read(&memory.join("memory.low")), (500_u64 << 20).to_string());
    }
    let pids = cluster.container_group(&pod, "main", "pids");
    assert_ne!(
        read(&pids.join("pids.max")),
        "max",
        "without a limit a fork bomb takes the node"
    );
    let own = cluster.first_processes(&pod);
    assert_eq!(own.len(), 1);
    assert!(
        kernel::members(&memory).contains(&own[0]),
        "the process is in its group"
    );
}

#[test]
fn root_inside_is_nobody_outside_and_alone() {
    if !can_run("root_inside_is_nobody_outside_and_alone", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(LIMITED);
    let pod = cluster.ready("limited");
    let pid = cluster.first_processes(&pod)[0];
    let status = kernel::status(pid);
    let outside: u32 = status["Uid"]
        .split_whitespace()
        .next()
        .expect("a uid")
        .parse()
        .expect("a uid");
    assert!(outside >= 65_536, "root inside is uid {outside} outside");
    assert_eq!(cluster.ok(&["exec", "limited", "--", "id", "-u"]).trim(), "0");
    assert_eq!(status["Seccomp"], "2");
    assert_eq!(status["NoNewPrivs"], "1");
    for kind in ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        let own = kernel::namespace(std::process::id().cast_signed(), kind);
        assert_ne!(kernel::namespace(pid, kind), own, "shares the {kind} namespace");
    }
    let inside = |script: &str| cluster.ok(&["exec", "limited", "--", "sh", "-c", script]);
    assert_eq!(inside("hostname").trim(), "limited");
    let processes = inside("ps -o pid,args");
    assert!(
        processes.lines().count() <= 5,
        "sees processes of others:\n{processes}"
    );
    let interfaces = inside("cat /proc/net/dev | tail -n +3 | cut -d: -f1");
    let mut interfaces: Vec<&str> = interfaces.split_whitespace().collect();
    interfaces.sort_unstable();
    assert_eq!(interfaces, ["eth0", "lo"]);
    let host = std::process::Command::new("hostname").output().expect("hostname");
    assert_ne!(
        inside("hostname").trim(),
        String::from_utf8_lossy(&host.stdout).trim()
    );
}

#[test]
fn privileged_calls_fail_inside() {
    if !can_run("privileged_calls_fail_inside", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(LIMITED);
    cluster.ready("limited");
    for (what, script) in [
        (
            "set the clock",
            // busybox says so and ends with 0 all the same.
            "if date -s 2001-01-01 2>&1 | grep -q \"can't set\"; then exit 1; fi",
        ),
        ("load a module", "insmod /bin/busybox"),
        ("make a user namespace", "unshare -U true"),
        ("make a mount", "mount -t tmpfs none /tmp"),
        ("make a device", "mknod /tmp/disk b 8 0"),
        ("change a sysctl of the kernel", "echo 1 > /proc/sys/kernel/panic"),
        ("write to /sys", "echo 1 > /sys/kernel/profiling"),
        ("reboot", "reboot -f"),
        ("use a raw socket", "traceroute -I -m 1 -w 1 127.0.0.1"),
    ] {
        let output = cluster.ctl(&["exec", "limited", "--", "sh", "-c", script]);
        assert_ne!(
            output.code, 0,
            "a container can {what}: {}{}",
            output.stdout, output.stderr
        );
    }
    // The container itself is none the worse.
    assert_eq!(
        cluster.ok(&["exec", "limited", "--", "echo", "alive"]).trim(),
        "alive"
    );
}

#[test]
fn inspect_shows_the_kernels_values() {
    if !can_run("inspect_shows_the_kernels_values", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(LIMITED);
    let pod = cluster.ready("limited");
    let table = cluster.ok(&["inspect", "pod/limited"]);
    println!("{table}");
    let pid = cluster.first_processes(&pod)[0];
    assert!(table.contains(&format!("pid {pid}")), "{table}");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() >= 10, "few layers:\n{table}");
    assert!(rows.iter().all(|row| row.contains(" yes ")), "{table}");
}

/// With limits of every kind, so that each can be lifted.
const HELD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: held
  annotations: {kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 10M}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: hello:1
      command: ["sleep", "3600"]
      securityContext: {readOnlyRootFilesystem: true}
      resources:
        requests: {memory: 500Mi}
        limits: {cpu: 500m, memory: 1Gi, bulkhead.io/write-bps: 10Mi}
"#;

/// A layer, and what somebody with the host's rights does to it.
type Weakening<'a> = (&'static str, Box<dyn Fn() + 'a>);

/// Takes the read-only flag from a mount of the calling thread's.
fn writable(point: &str) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).expect("a remount");
}

/// What a program prints in the network of the process.
fn on_node(pid: i32, command: &[&str]) -> String {
    let output = std::process::Command::new("nsenter")
        .args(["--net", "--target", &pid.to_string(), "--"])
        .args(command)
        .output()
        .expect("nsenter");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Layers that a process has for life (namespaces, ids, seccomp, capabilities) cannot be weakened from outside; that they
/// are named too is tested where weaker containers can be built, in `agent/runtime/tests/weakened.rs`.
#[test]
fn each_layer_weakened_from_outside_is_named() {
    if !can_run(
        "each_layer_weakened_from_outside_is_named",
        &["ip", "nft", "tc", "nsenter"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(HELD);
    let pod = cluster.ready("held");
    let pid = cluster.first_processes(&pod)[0];
    let group = |controller: &str| cluster.container_group(&pod, "main", controller);
    let write = |path: std::path::PathBuf, text: &str| {
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    // A limit cannot be above that of the group above it on v1.
    let lift = |controller: &str, file: &str, text: &str| {
        let own = group(controller);
        let above = own.parent().expect("the pod's group").to_owned();
        write(above.join(file), text);
        write(own.join(file), text);
    };
    let inside = |work: fn()| {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt")).expect("its mounts");
        let entered = std::thread::spawn(move || {
            // A thread that shares its root and working directory with others may not enter.
            unshare(CloneFlags::CLONE_FS).expect("a root of its own");
            setns(&namespace, CloneFlags::CLONE_NEWNS).expect("its mounts");
            work();
        });
        entered.join().expect("a thread");
    };
    let agent = cluster.process("node-1").pid;
    let device = |prefix: &str| {
        let links = on_node(agent, &["ip", "-o", "link"]);
        let names = links
            .split_whitespace()
            .map(|word| word.split([':', '@']).next().unwrap_or(word));
        let found = names.into_iter().find(|name| name.starts_with(prefix));
        found
            .unwrap_or_else(|| panic!("no {prefix}* in\n{links}"))
            .to_owned()
    };
    let v1 = kernel::is_v1("pids");
    let weakenings: Vec<Weakening<'_>> = vec![
        ("pids", Box::new(|| lift("pids", "pids.max", "max"))),
        (
            "cpu",
            Box::new(|| match v1 {
                true => lift("cpu", "cpu.cfs_quota_us", "-1"),
                false => lift("cpu", "cpu.max", "max 100000"),
            }),
        ),
        (
            "memory",
            Box::new(|| match v1 {
                true => {
                    lift("memory", "memory.memsw.limit_in_bytes", "-1");
                    lift("memory", "memory.limit_in_bytes", "-1");
                }
                false => lift("memory", "memory.max", "max"),
            }),
        ),
        (
            "block io",
            Box::new(|| match v1 {
                true => {
                    let file = group("blkio").join("blkio.throttle.write_bps_device");
                    for line in read(&file).lines() {
                        let device = line.split(' ').next().expect("a device");
                        write(file.clone(), &format!("{device} 0"));
                    }
                }
                false => {
                    let file = group("io").join("io.max");
                    for line in read(&file).lines() {
                        let device = line.split(' ').next().expect("a device");
                        write(file.clone(), &format!("{device} wbps=max"));
                    }
                }
            }),
        ),
        (
            "network ingress",
            Box::new(|| {
                on_node(agent, &["tc", "qdisc", "del", "dev", &device("bh-"), "root"]);
            }),
        ),
        (
            "network egress",
            Box::new(|| {
                on_node(agent, &["tc", "qdisc", "del", "dev", &device("bh-"), "ingress"]);
            }),
        ),
        (
            "masked paths",
            Box::new(|| {
                inside(|| {
                    // Which of them there are depends on the kernel.
                    let paths = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];
                    let lifted = paths
                        .iter()
                        .filter(|path| umount2(**path, MntFlags::MNT_DETACH).is_ok());
                    assert!(lifted.count() > 0, "nothing is masked");
                });
            }),
        ),
        ("read-only paths", Box::new(|| inside(|| writable("/proc/sys")))),
        ("root file system", Box::new(|| inside(|| writable("/")))),
        (
            "cgroup",
            Box::new(|| {
                let above = group("pids")
                    .parent()
                    .expect("the pod's group")
                    .join("cgroup.procs");
                write(above, &pid.to_string());
            }),
        ),
    ];
    assert_eq!(cluster.ctl(&["inspect", "pod/held"]).code, 0);
    for (layer, weaken) in &weakenings {
        weaken();
        let output = cluster.ctl(&["inspect", "pod/held"]);
        assert_eq!(output.code, 1, "{layer}: {}{}", output.stdout, output.stderr);
        assert!(output.stderr.contains(layer), "{layer}: {}", output.stderr);
        // Two spaces end a column: `cgroup` is not `cgroup namespace`.
        let cell = format!("{layer}  ");
        let row = output.stdout.lines().find(|row| row.starts_with(&cell));
        assert!(
            row.is_some_and(|row| row.contains(" NO ")),
            "{layer}: {}",
            output.stdout
        );
        wait_for(
            &format!("Isolated=False for {layer}"),
            Duration::from_secs(90),
            || {
                let pod = cluster.get("pod/held");
                let conditions = pod["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let isolated = conditions
                    .into_iter()
                    .find(|condition| condition["type"] == "Isolated")?;
                let message = text(&isolated, "/message");
                (isolated["status"] == "False" && message.contains(layer)).then_some(())
            },
        );
    }
}

#[test]
fn a_quick_container_has_a_random_id_as_its_hostname() {
    if !can_run(
        "a_quick_container_has_a_random_id_as_its_hostname",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.ok(&[
        "run",
        "--name",
        "web",
        "--command",
        "hello:1",
        "--",
        "sleep",
        "3600",
    ]);
    cluster.ready("web");
    let name = cluster.ok(&["exec", "web", "--", "hostname"]);
    let name = name.trim();
    assert_eq!(name.len(), 12, "{name}");
    assert!(name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    // The order in which people who come from Kubernetes type it.
    let words = [
        "run",
        "named",
        "--image",
        "hello:1",
        "--command",
        "--",
        "sleep",
        "3600",
    ];
    cluster.ok(&words);
    cluster.ready("named");
}
