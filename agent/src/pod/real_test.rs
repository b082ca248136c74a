//! A pod's whole life with the real runtime: real monitors, containers, cgroups, a network of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use proto::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, ExecAction, ObjectMeta, Pod, PodSpec,
    PodStatus, Probe, Volume, VolumeMount,
};
use runtime::monitor::frame::Stream;
use runtime::monitor::protocol::Request;
use tokio::sync::watch;

use super::monitor::Client;
use super::{Desired, Handle, spawn};
use crate::account::Accounts;
use crate::configs::Configs;
use crate::image::{Registries, RootDefaults, Store};
use crate::ledger::Ledger;
use crate::network::{Backend, Network, NetworkConfig};
use crate::node::{ClusterFacts, Node};
use crate::settings::Settings;

/// How long a condition may take to come true on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The built runtime; none where only this crate was built.
fn program() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let target = test.parent()?.parent()?;
    let beside = [
        target.join("bulkhead-runtime"),
        target.join("../bin/bulkhead-runtime"),
    ];
    beside.into_iter().find(|path| path.exists())
}

/// A node with an image and a network, in directories of its own.
pub(super) struct Ground {
    pub(super) node: Arc<Node>,
    top: PathBuf,
    temp: tempfile::TempDir,
    _cluster: watch::Sender<Option<ClusterFacts>>,
    _network: watch::Sender<Option<Arc<Network>>>,
    lease: watch::Sender<u64>,
}

fn sh(words: &str) {
    let status = Command::new("sh").args(["-ec", words]).status().unwrap();
    assert!(status.success(), "{words}");
}

fn image(store: &Store) {
    let file = store.spool().unwrap();
    let mut archive = tar::Builder::new(&file.file);
    archive
        .append_path_with_name("/usr/bin/busybox", "bin/busybox")
        .unwrap();
    for applet in ["sh", "sleep", "cat", "echo", "id", "hostname"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    for directory in ["etc", "proc", "sys", "dev", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive
            .append_data(&mut header, directory, std::io::empty())
            .unwrap();
    }
    archive.finish().unwrap();
    let defaults = RootDefaults {
        cmd: vec!["sh".into()],
    };
    store.import(&file.file, Some("hello:1"), &defaults).unwrap();
}

impl Ground {
    pub(super) async fn new(runtime: PathBuf) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temp = tempfile::Builder::new()
            .prefix("bulkhead-pod-")
            .tempdir()
            .unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let top = PathBuf::from(format!("/bulkhead-test-pod-{}-{number}", std::process::id()));
        let settings = Settings {
            data_dir: temp.path().join("data"),
            config_dir: temp.path().join("config"),
            run_dir: temp.path().join("run"),
            log_dir: temp.path().join("log"),
            cgroup_parent: top.clone(),
            runtime,
            node_address: std::net::Ipv4Addr::new(192, 0, 2, 1),
            bridge: "bhtest0".into(),
            backend: Backend::HostGateway,
            metrics_address: ([127, 0, 0, 1], 0).into(),
        };
        fs::create_dir_all(&settings.data_dir).unwrap();
        fs::set_permissions(&settings.data_dir, fs::Permissions::from_mode(0o711)).unwrap();
        let range = "10.244.9.0/24".parse().unwrap();
        let facts = ClusterFacts {
            pod_range: range,
            cluster_range: "10.244.0.0/16".parse().unwrap(),
            domain: "cluster.local".into(),
        };
        let network = Network::open(NetworkConfig {
            bridge: settings.bridge.clone(),
            backend: settings.backend,
            range,
            cluster: facts.cluster_range,
            node_address: settings.node_address,
        });
        let network = Arc::new(network.await.unwrap());
        let store = Store::open(&settings.data_dir.join("images")).unwrap();
        image(&store);
        let ledger = Ledger::open(&settings.ledger_file(), &temp.path().join("claims")).unwrap();
        ledger.put_facts(&facts).unwrap();
        let (cluster_sender, cluster) = watch::channel(Some(facts));
        let (network_sender, network) = watch::channel(Some(network));
        let (lease_sender, lease) = watch::channel(0);
        let node = Node {
            name: "n1".into(),
            layout: runtime::cgroup::Layout::detect().unwrap(),
            idmapped_mounts: true,
            images: Arc::new(store),
            registries: Registries {
                dir: settings.registries_dir(),
            },
            ledger,
            events: crate::events::Events::new("n1"),
            cluster,
            lease,
            accounts: Accounts::new().0,
            network,
            settings,
        };
        Self {
            node: Arc::new(node),
            top,
            temp,
            _cluster: cluster_sender,
            _network: network_sender,
            lease: lease_sender,
        }
    }

    pub(super) fn start(&self, pod: &Pod) -> (watch::Sender<Desired>, Handle) {
        let (sender, receiver) = watch::channel(Desired {
            pod: Some(Arc::new(pod.clone())),
            configs: Arc::new(Configs::new(
                [("default/settings".to_owned(), settings_map("green"))].into(),
            )),
        });
        let uid = pod.metadata.as_ref().unwrap().uid.clone();
        let handle = spawn(Arc::clone(&self.node), uid, receiver);
        (sender, handle)
    }

    /// The reverse of `new`, checked: nothing of any pod is left.
    pub(super) fn end(self) {
        let settings = &self.node.settings;
        for directory in [settings.pods_dir(), settings.monitors_dir(), settings.logs_dir()] {
            let left: Vec<_> = fs::read_dir(&directory).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?} left in {}", directory.display());
        }
        assert!(self.node.ledger.uids().unwrap().is_empty());
        let group = runtime::cgroup::Cgroup::open(&self.node.layout, &self.top).unwrap();
        for directory in group.directories() {
            let below = fs::read_dir(&directory).into_iter().flatten().flatten();
            let left: Vec<_> = below
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        group.remove(PATIENCE).unwrap();
    }
}

impl Drop for Ground {
    /// After a failure: no monitor of the test's, nor its containers, may go on.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let directories = fs::read_dir(self.node.settings.monitors_dir())
            .into_iter()
            .flatten();
        for directory in directories.flatten().map(|entry| entry.path()) {
            for pid in super::monitor::processes(&directory).unwrap_or_default() {
                eprintln!("ending monitor {pid}");
                let pid = nix::unistd::Pid::from_raw(pid);
                if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                    eprintln!("monitor {pid}: {error}");
                }
            }
        }
        drop(super::files::unmount_below(self.temp.path()));
        if let Ok(group) = runtime::cgroup::Cgroup::open(&self.node.layout, &self.top) {
            drop(group.kill());
            drop(group.remove(Duration::from_secs(10)));
        }
    }
}

pub(super) fn settings_map(colour: &str) -> ConfigMap {
    ConfigMap {
        data: [("colour".to_owned(), colour.to_owned())].into(),
        ..ConfigMap::default()
    }
}

pub(super) fn pod(script: &str) -> Pod {
    let mut pod = Pod {
        metadata: Some(ObjectMeta {
            name: "web".into(),
            namespace: "default".into(),
            uid: format!(
                "6d2e1f60-0000-4000-8000-{:012}",
                NUMBER.fetch_add(1, Ordering::Relaxed)
            ),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            termination_grace_period_seconds: Some(1),
            containers: vec![Container {
                name: "main".into(),
                image: "hello:1".into(),
                command: ["sh", "-c", script].map(str::to_owned).into(),
                image_pull_policy: "Never".into(),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        ..Pod::default()
    };
    if let Some(spec) = &mut pod.spec {
        model::default::pod_spec(spec);
    }
    pod
}

pub(super) async fn until(handle: &Handle, what: &str, holds: impl Fn(&PodStatus) -> bool) -> PodStatus {
    let mut report = handle.report();
    let waited = tokio::time::timeout(PATIENCE, async {
        let found = report
            .wait_for(|report| report.status.as_ref().is_some_and(&holds))
            .await;
        found.unwrap().status.clone().unwrap()
    });
    match waited.await {
        Ok(status) => status,
        Err(_) => panic!("{what}: {:#?}", handle.report().borrow()),
    }
}

pub(super) fn is_ready(status: &PodStatus) -> bool {
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.r#type == "Ready");
    ready.is_some_and(|condition| condition.status == "True")
}

async fn output(handle: &Handle, words: &[&str]) -> String {
    let container = handle.container("").unwrap();
    let client = Client::connect(&container.monitor_dir).await.unwrap();
    let request = Request::Exec {
        id: container.id.unwrap(),
        args: words.iter().map(|word| (*word).to_owned()).collect(),
        stdin: false,
        tty: false,
        timeout_ms: Some(10_000),
    };
    let mut session = client.stream(&request).await.unwrap();
    let mut text = Vec::new();
    loop {
        match session.receive().await.unwrap() {
            Stream::Stdout(bytes) => text.extend(bytes),
            Stream::Exit(_) => return String::from_utf8(text).unwrap().trim().to_owned(),
            _ => {}
        }
    }
}

pub(super) async fn delete(sender: &watch::Sender<Desired>, handle: Handle) {
    sender.send_modify(|desired| {
        let mut pod = desired.pod.as_deref().cloned().unwrap();
        let meta = pod.metadata.as_mut().unwrap();
        meta.deletion_timestamp = Some(crate::events::now());
        desired.pod = Some(Arc::new(pod));
    });
    let mut report = handle.report();
    let gone = tokio::time::timeout(PATIENCE, report.wait_for(|report| report.gone));
    assert!(gone.await.is_ok(), "not gone: {:#?}", handle.report().borrow());
    handle.join().await;
}

/// Runs a test in a network namespace of its own, on a runtime whose one thread is inside.
pub(super) fn in_own_network<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce(PathBuf) -> F + Send + 'static,
) {
    let Some(program) = program().filter(|_| nix::unistd::geteuid().is_root()) else {
        eprintln!("skipped: {name}: needs root and a built bulkhead-runtime");
        return;
    };
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh(
            "ip link set lo up; ip link add out type veth peer name far; ip addr add 192.0.2.1/24 dev out; ip link set out up; ip link set far up",
        );
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work(program));
    });
    thread.join().unwrap();
}

#[test]
fn a_pod_comes_up_is_adopted_survives_its_monitor_and_goes_without_a_trace() {
    in_own_network("a_pod_comes_up", |program| async move {
        let ground = Ground::new(program).await;
        let mut wanted = pod("trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done");
        if let Some(spec) = &mut wanted.spec {
            spec.volumes = vec![
                Volume {
                    name: "scratch".into(),
                    empty_dir: Some(EmptyDirVolumeSource::default()),
                    ..Volume::default()
                },
                Volume {
                    name: "memory".into(),
                    empty_dir: Some(EmptyDirVolumeSource {
                        medium: "Memory".into(),
                        ..EmptyDirVolumeSource::default()
                    }),
                    ..Volume::default()
                },
                Volume {
                    name: "settings".into(),
                    config_map: Some(ConfigMapVolumeSource {
                        name: "settings".into(),
                        ..ConfigMapVolumeSource::default()
                    }),
                    ..Volume::default()
                },
            ];
            spec.containers[0].volume_mounts = ["scratch", "memory", "settings"]
                .map(|name| VolumeMount {
                    name: name.into(),
                    mount_path: format!("/{name}"),
                    ..VolumeMount::default()
                })
                .into();
            spec.containers[0].readiness_probe = Some(Probe {
                exec: Some(ExecAction {
                    command: vec!["sh".into(), "-c".into(), "test -e /scratch".into()],
                }),
                period_seconds: 1,
                ..Probe::default()
            });
            model::default::pod_spec(spec);
        }
        let began = Instant::now();
        let (sender, handle) = ground.start(&wanted);
        let running = until(&handle, "running", |status| status.phase == "Running").await;
        eprintln!("running after {} ms", began.elapsed().as_millis());
        let status = until(&handle, "ready", is_ready).await;
        assert!(running.pod_ip.starts_with("10.244.9."), "{running:#?}");
        assert!(status.container_statuses[0].image_id.contains("sha256:"));
        assert_eq!(output(&handle, &["id", "-u"]).await, "0");
        assert_eq!(output(&handle, &["hostname"]).await, "web");
        assert_eq!(output(&handle, &["cat", "/settings/colour"]).await, "green");
        let script = "echo x > /scratch/x && echo y > /memory/y && echo z > /dev/termination-log && cat /scratch/x /memory/y";
        assert_eq!(output(&handle, &["sh", "-c", script]).await, "x\ny");
        let hosts = output(&handle, &["cat", "/etc/hosts"]).await;
        assert!(hosts.contains(&format!("{}\tweb", running.pod_ip)), "{hosts}");

        let isolation = handle.inspect().await.unwrap();
        let weak: Vec<_> = isolation.containers[0]
            .rows
            .iter()
            .filter(|row| !row.isolated)
            .collect();
        assert!(weak.is_empty(), "{weak:#?}");
        until(&handle, "isolated", |status| {
            status
                .conditions
                .iter()
                .any(|one| one.r#type == "Isolated" && one.status == "True")
        })
        .await;
        let pid = isolation.containers[0].pid;

        sender.send_modify(|desired| {
            desired.configs = Arc::new(Configs::new(
                [("default/settings".to_owned(), settings_map("red"))].into(),
            ));
        });
        let began = Instant::now();
        while output(&handle, &["cat", "/settings/colour"]).await != "red" {
            assert!(began.elapsed() < PATIENCE, "the volume does not change");
        }

        // The agent ends; the next one finds the pod.
        drop(sender);
        tokio::time::timeout(PATIENCE, handle.join()).await.unwrap();
        let (sender, handle) = ground.start(&wanted);
        let adopted = until(&handle, "adopted", is_ready).await;
        assert_eq!(adopted.container_statuses[0].restart_count, 0);
        assert_eq!(handle.inspect().await.unwrap().containers[0].pid, pid);

        // The monitor dies: one restart.
        let uid = &wanted.metadata.as_ref().unwrap().uid;
        let directory = ground.node.settings.monitor_dir(uid);
        let began = Instant::now();
        // A child of its that is about to execute a probe still looks like it.
        let monitor = loop {
            match super::monitor::processes(&directory).unwrap().as_slice() {
                [monitor] => break nix::unistd::Pid::from_raw(*monitor),
                monitors => assert!(began.elapsed() < PATIENCE, "{monitors:?}"),
            }
            tokio::task::yield_now().await;
        };
        nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).unwrap();
        let back = until(&handle, "back again", |status| {
            is_ready(status) && status.container_statuses[0].restart_count == 1
        })
        .await;
        assert_eq!(back.pod_ip, running.pod_ip);
        let began = Instant::now();
        // Killed, it takes a moment to end, and is reaped by whoever inherited it.
        while fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
            let state = status.lines().find_map(|line| line.strip_prefix("State:"));
            state.is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']))
        }) {
            assert!(began.elapsed() < PATIENCE, "the orphaned container goes on");
            tokio::task::yield_now().await;
        }
        assert_eq!(output(&handle, &["cat", "/scratch/x"]).await, "x", "volumes stay");

        let began = Instant::now();
        delete(&sender, handle).await;
        eprintln!("gone after {} ms", began.elapsed().as_millis());
        ground.end();
    });
}

#[test]
fn an_end_keeps_its_reason_and_a_finished_pod_holds_no_process() {
    in_own_network("an_end_keeps_its_reason", |program| async move {
        let ground = Ground::new(program).await;
        let mut wanted = pod("echo the disk is on fire >&2; exit 3");
        if let Some(spec) = &mut wanted.spec {
            spec.restart_policy = "Never".into();
        }
        let (sender, handle) = ground.start(&wanted);
        let failed = until(&handle, "failed", |status| status.phase == "Failed").await;
        let state = failed.container_statuses[0]
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!((state.exit_code, &*state.reason), (3, "Error"));
        assert_eq!(state.message, "the disk is on fire");
        assert_eq!(handle.ends()[0].stderr_tail, "the disk is on fire\n");
        let log = handle.container("main").unwrap().log(0);
        assert!(fs::read_to_string(log).unwrap().contains("the disk is on fire"));
        let directory = ground
            .node
            .settings
            .monitor_dir(&wanted.metadata.as_ref().unwrap().uid);
        let began = Instant::now();
        while !super::monitor::processes(&directory).unwrap().is_empty() {
            assert!(began.elapsed() < PATIENCE, "a finished pod has a monitor");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        delete(&sender, handle).await;

        // A crash is repeated, later and later; a program that is not there is one.
        let mut wanted = pod("exit 1");
        if let Some(spec) = &mut wanted.spec {
            spec.containers[0].command = vec!["/bin/no-such-program".into()];
        }
        let (sender, handle) = ground.start(&wanted);
        let crashed = until(&handle, "a second crash", |status| {
            status.container_statuses[0].restart_count >= 1
        })
        .await;
        let container = &crashed.container_statuses[0];
        let waiting = container.state.clone().unwrap().waiting.unwrap();
        assert_eq!(waiting.reason, "CrashLoopBackOff");
        assert!(waiting.next_try_at.is_some() && waiting.message.contains("back-off 2s"));
        let last = container.last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, &*last.reason), (128, "StartError"));
        assert!(last.message.contains("no-such-program"), "{}", last.message);
        delete(&sender, handle).await;
        ground.end();
    });
}

#[test]
fn what_is_missing_is_waited_for() {
    in_own_network("what_is_missing", |program| async move {
        let ground = Ground::new(program).await;
        let mut wanted = pod("exec sleep 1000");
        if let Some(spec) = &mut wanted.spec {
            spec.containers[0].image = "absent:1".into();
        }
        let (sender, handle) = ground.start(&wanted);
        let waiting = until(&handle, "the refusal", |status| {
            let state = status.container_statuses[0].state.clone().unwrap_or_default();
            state
                .waiting
                .is_some_and(|waiting| waiting.reason == "ErrImageNeverPull")
        })
        .await;
        assert_eq!(waiting.phase, "Pending");
        // Another image: it runs at once.
        sender.send_modify(|desired| {
            let mut pod = desired.pod.as_deref().cloned().unwrap();
            pod.spec.as_mut().unwrap().containers[0].image = "hello:1".into();
            desired.pod = Some(Arc::new(pod));
        });
        until(&handle, "running", |status| status.phase == "Running").await;
        delete(&sender, handle).await;
        ground.end();
    });
}

#[test]
fn what_must_not_run_twice_runs_only_while_its_node_is_confirmed() {
    in_own_network("fenced", |program| async move {
        let ground = Ground::new(program).await;
        let mut pod = pod("sleep 1000");
        let asked = (model::at_most_once::ANNOTATION, model::at_most_once::ASKED);
        let annotations = &mut pod.metadata.as_mut().unwrap().annotations;
        annotations.insert(asked.0.to_owned(), asked.1.to_owned());
        let (sender, handle) = ground.start(&pod);
        let reason = |status: &PodStatus| {
            let state = status.container_statuses[0].state.clone().unwrap_or_default();
            state.waiting.map(|waiting| waiting.reason)
        };
        until(&handle, "waits", |status| {
            reason(status).as_deref() == Some("Fenced")
        })
        .await;
        // As heartbeats do, however long the start takes.
        let mut beats = tokio::time::interval(Duration::from_millis(500));
        let confirmed = async {
            loop {
                beats.tick().await;
                ground.lease.send_replace(sys::time::boottime_ms() + 3000);
            }
        };
        tokio::select! {
            () = confirmed => {}
            _ = until(&handle, "ready", is_ready) => {}
        }
        // Nobody moves it on.
        let ended = until(&handle, "ended", |status| {
            status.container_statuses[0].last_state.is_some() && !is_ready(status)
        });
        let last = ended.await.container_statuses[0].last_state.clone().unwrap();
        assert_eq!(last.terminated.unwrap().reason, "Fenced");
        delete(&sender, handle).await;
        ground.end();
    });
}
