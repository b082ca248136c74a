//! Each layer of isolation in turn is weaker than specified: the comparison names it, and nothing that still holds.

#![allow(clippy::unwrap_used)] // a test that fails

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use common::{Ground, RANGE};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use oci_spec::runtime::{Capability, LinuxNamespaceType, LinuxResources, Root};
use runtime::cgroup::{Cgroup, Layout};
use runtime::container::{self, Running, Stdio};
use runtime::sandbox::Sandbox;
use runtime::spec::{CgroupSpec, ContainerSpec, IdRange, PidShare, SandboxSpec, Share};
use runtime::{capability, defaults, inspect};
use serde_json::json;

/// What the containers are specified to have.
fn strict(ground: &Ground, id: &str) -> (SandboxSpec, ContainerSpec) {
    let mut spec = ground.container(id, "exec sleep 1000");
    let limits: LinuxResources = serde_json::from_value(json!({
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
        "memory": {"limit": 67108864, "reservation": 33554432, "swap": 67108864},
        "pids": {"limit": 42},
        "devices": [{"allow": false, "access": "rwm"}],
    }))
    .unwrap();
    linux(&mut spec).set_resources(Some(limits));
    (ground.sandbox_spec(), spec)
}

fn linux(spec: &mut ContainerSpec) -> &mut oci_spec::runtime::Linux {
    spec.config.linux_mut().as_mut().unwrap()
}

fn process(spec: &mut ContainerSpec) -> &mut oci_spec::runtime::Process {
    spec.config.process_mut().as_mut().unwrap()
}

fn without(spec: &mut ContainerSpec, kind: LinuxNamespaceType) {
    let linux = linux(spec);
    let mut namespaces = linux.namespaces().clone().unwrap();
    namespaces.retain(|namespace| namespace.typ() != kind);
    linux.set_namespaces(Some(namespaces));
}

/// One running container and what it is compared with.
struct Weak {
    ground: Ground,
    sandbox: Sandbox,
    cgroup: Cgroup,
    running: Running,
    wanted: (SandboxSpec, ContainerSpec),
}

impl Weak {
    /// Builds what `change` makes of the strict specification.
    fn new(change: impl FnOnce(&mut SandboxSpec, &mut ContainerSpec)) -> Weak {
        let ground = Ground::new();
        let wanted = strict(&ground, "web");
        let (mut pod, mut spec) = wanted.clone();
        change(&mut pod, &mut spec);
        let sandbox = Sandbox::create(&pod, &ground.layout).unwrap();
        let resources = linux(&mut spec).resources().clone().unwrap();
        let cgroup = Cgroup::create(
            &ground.layout,
            &CgroupSpec {
                path: ground.parent.path().join("pod/web"),
                resources,
            },
        )
        .unwrap();
        let running = container::start(
            &spec,
            Some(&sandbox),
            &cgroup,
            Stdio::null().unwrap(),
            &ground.options(),
        )
        .unwrap();
        Weak {
            ground,
            sandbox,
            cgroup,
            running,
            wanted,
        }
    }

    /// The layers that are not as specified.
    fn named(&self) -> BTreeSet<&'static str> {
        let (pod, spec) = &self.wanted;
        let observed = inspect::observe(self.running.pid, &self.cgroup, spec).unwrap();
        let rows = inspect::compare(spec, Some(pod), &observed);
        rows.iter()
            .filter(|row| !row.isolated)
            .map(|row| row.layer)
            .collect()
    }

    /// Does something in the container's mount namespace, with the host's rights.
    fn in_its_mounts(&self, work: impl FnOnce() + Send + 'static) {
        let namespace = fs::File::open(format!("/proc/{}/ns/mnt", self.running.pid)).unwrap();
        let entered = std::thread::spawn(move || {
            // A thread that shares its root and working directory with others may not enter.
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
            work();
        });
        entered.join().unwrap();
    }

    fn end(self) {
        self.cgroup.kill().unwrap();
        sys::process::wait(self.running.pidfd.as_fd()).unwrap();
        self.cgroup.remove(Duration::from_secs(5)).unwrap();
        self.sandbox.destroy().unwrap();
        drop(self.ground);
    }
}

/// Takes the read-only flag from a mount.
fn writable(point: &str) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).unwrap();
}

#[track_caller]
fn names(layers: &[&'static str], change: impl FnOnce(&mut SandboxSpec, &mut ContainerSpec)) {
    let weak = Weak::new(change);
    assert_eq!(weak.named(), BTreeSet::from_iter(layers.iter().copied()));
    weak.end();
}

#[test]
fn what_is_as_specified_is_not_named() {
    names(&[], |_, _| {});
}

#[test]
fn a_namespace_of_the_hosts_is_named() {
    // Without a user namespace there is no map either.
    names(&["uid map", "user namespace"], |pod, _| pod.users = None);
    names(&["uts namespace"], |pod, _| pod.hostname = None);
    // A pod with ids of its own cannot have these from the host.
    names(&["network namespace", "uid map", "user namespace"], |pod, _| {
        (pod.users, pod.network) = (None, Share::Host);
    });
    names(&["ipc namespace", "uid map", "user namespace"], |pod, _| {
        (pod.users, pod.ipc) = (None, Share::Host);
    });
    names(&["pid namespace", "uid map", "user namespace"], |pod, spec| {
        (pod.users, pod.pid) = (None, PidShare::Host);
        without(spec, LinuxNamespaceType::Pid);
    });
    names(&["cgroup namespace"], |_, spec| {
        without(spec, LinuxNamespaceType::Cgroup)
    });
}

#[test]
fn other_ids_are_named() {
    names(&["uid map"], |pod, _| {
        pod.users = Some(IdRange {
            start: RANGE.start + RANGE.count,
            count: RANGE.count,
        });
    });
}

#[test]
fn privileges_that_were_not_asked_for_are_named() {
    names(&["seccomp"], |_, spec| {
        linux(spec).set_seccomp(None);
    });
    names(&["no_new_privs"], |_, spec| {
        process(spec).set_no_new_privileges(Some(false));
    });
    names(&["capabilities"], |_, spec| {
        let more = capability::DEFAULT.into_iter().chain([Capability::SysAdmin]);
        process(spec).set_capabilities(Some(capability::sets(more)));
    });
}

#[test]
fn limits_that_were_lifted_are_named() {
    for (layer, resources) in [
        ("pids", json!({"pids": {"limit": 43}})),
        ("cpu", json!({"cpu": {"quota": 60000, "period": 100000}})),
        (
            "memory",
            json!({"memory": {"limit": 134217728, "swap": 134217728}}),
        ),
    ] {
        let weak = Weak::new(|_, _| {});
        weak.cgroup
            .update(&serde_json::from_value(resources).unwrap())
            .unwrap();
        assert_eq!(weak.named(), BTreeSet::from([layer]));
        weak.end();
    }
}

#[test]
fn a_process_in_another_group_is_named() {
    let weak = Weak::new(|_, _| {});
    let other = Cgroup::create(
        &Layout::detect().unwrap(),
        &CgroupSpec {
            path: weak.ground.parent.path().join("other"),
            resources: LinuxResources::default(),
        },
    )
    .unwrap();
    let enter = |group: &Cgroup| {
        for directory in group.directories() {
            fs::write(directory.join("cgroup.procs"), weak.running.pid.to_string()).unwrap();
        }
    };
    enter(&other);
    assert_eq!(weak.named(), BTreeSet::from(["cgroup"]));
    enter(&weak.cgroup);
    other.remove(Duration::from_secs(5)).unwrap();
    assert_eq!(weak.named(), BTreeSet::new());
    weak.end();
}

#[test]
fn a_mask_that_was_lifted_is_named() {
    let weak = Weak::new(|_, _| {});
    weak.in_its_mounts(|| {
        // Which of them there are depends on the kernel.
        let lifted = defaults::MASKED
            .iter()
            .any(|path| umount2(*path, MntFlags::MNT_DETACH).is_ok());
        assert!(lifted, "nothing is masked");
    });
    assert_eq!(weak.named(), BTreeSet::from(["masked paths"]));
    weak.in_its_mounts(|| writable("/proc/sys"));
    assert_eq!(weak.named(), BTreeSet::from(["masked paths", "read-only paths"]));
    weak.end();
}

#[test]
fn a_root_that_became_writable_is_named() {
    let root: Root = serde_json::from_value(json!({"path": "/", "readonly": true})).unwrap();
    let mut weak = Weak::new(|_, spec| {
        spec.config.set_root(Some(root.clone()));
    });
    weak.wanted.1.config.set_root(Some(root));
    assert_eq!(weak.named(), BTreeSet::new());
    weak.in_its_mounts(|| writable("/"));
    assert_eq!(weak.named(), BTreeSet::from(["root file system"]));
    weak.end();
}

#[test]
fn a_label_that_is_not_there_is_named() {
    let mut weak = Weak::new(|_, _| {});
    // Where the kernel enforces, the process has another one; elsewhere it has none.
    process(&mut weak.wanted.1).set_selinux_label(Some("system_u:system_r:container_t:s0:c1,c2".into()));
    assert_eq!(weak.named(), BTreeSet::from(["selinux"]));
    weak.end();
}

#[test]
fn a_block_io_limit_that_was_lifted_is_named() {
    let mut weak = Weak::new(|_, _| {});
    let device = fs::metadata(weak.ground.temp.path()).unwrap();
    let device = std::os::unix::fs::MetadataExt::dev(&device);
    let throttle = json!({"blockIO": {"throttleWriteBpsDevice": [
        {"major": nix::libc::major(device), "minor": nix::libc::minor(device), "rate": 1048576},
    ]}});
    let mut wanted = serde_json::to_value(linux(&mut weak.wanted.1).resources()).unwrap();
    wanted["blockIO"] = throttle["blockIO"].clone();
    linux(&mut weak.wanted.1).set_resources(Some(serde_json::from_value(wanted).unwrap()));
    assert_eq!(weak.named(), BTreeSet::from(["block io"]), "none is set");
    weak.end();
}
