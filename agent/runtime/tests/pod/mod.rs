//! A monitor started as an agent would, in directories and a cgroup of its own, all removed at the end of the test.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use runtime::cgroup::{Cgroup, Layout};
use runtime::monitor::READY;
use runtime::monitor::client::{Client, Session};
use runtime::monitor::frame::Stream;
use runtime::monitor::protocol::{Ended, Exit};
use runtime::spec::{
    CgroupSpec, ContainerSpec, FenceSpec, IdRange, LogSpec, PidShare, Rootfs, SandboxSpec, Share,
};
use tempfile::TempDir;

/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pod with its monitor.
pub(super) struct Pod {
    temp: TempDir,
    directory: PathBuf,
    pub(super) spec: SandboxSpec,
    child: RefCell<Child>,
    top: PathBuf,
}

impl Pod {
    pub(super) fn start(name: &str) -> Pod {
        Self::start_with(name, None)
    }

    /// One that must not run twice.
    pub(super) fn fenced(name: &str, grace_ms: u64) -> Pod {
        Self::start_with(name, Some(FenceSpec { grace_ms }))
    }

    fn start_with(name: &str, fence: Option<FenceSpec>) -> Pod {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let top = PathBuf::from(format!("/bulkhead-test-{}-{number}", std::process::id()));
        let temp = tempfile::Builder::new()
            .prefix("bulkhead-monitor-")
            .tempdir()
            .unwrap();
        // Processes of the pod's users pass here on their way to their roots.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let root = temp.path().join("image");
        for directory in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "sleep", "cat", "head", "tail", "echo", "stty", "tty", "true", "setsid",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let directory = temp.path().join("monitor");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let spec = SandboxSpec {
            id: format!("{name}-{number}"),
            hostname: Some(name.to_owned()),
            users: Some(IdRange {
                // By process too: nextest runs each test in one of its own, at the same time.
                start: 3_000_000 + (std::process::id() % 10_000 + number) * 65_536,
                count: 65_536,
            }),
            network: Share::Pod,
            ipc: Share::Pod,
            pid: PidShare::Container,
            cgroup: CgroupSpec {
                path: top.join("pod"),
                resources: Default::default(),
            },
            sysctls: Default::default(),
            fence,
        };
        fs::write(directory.join("sandbox.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let mut child = Command::new(crate::program::runtime())
            .arg("monitor")
            .arg("--dir")
            .arg(&directory)
            .envs([runtime::monitor::ALLOCATOR])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; READY.len()];
        let mut told = child.stdout.take().unwrap();
        told.read_exact(&mut word).unwrap_or_else(|_| {
            let log = fs::read_to_string(directory.join("monitor.log"));
            panic!("the monitor did not start: {}", log.unwrap_or_default())
        });
        Pod {
            temp,
            directory,
            spec,
            child: RefCell::new(child),
            top,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(self.directory()).unwrap()
    }

    pub(super) fn raw(&self) -> UnixStream {
        UnixStream::connect(self.directory().join("monitor.sock")).unwrap()
    }

    pub(super) fn monitor_pid(&self) -> u32 {
        self.child.borrow().id()
    }

    pub(super) fn monitor_log(&self) -> String {
        fs::read_to_string(self.directory().join("monitor.log")).unwrap_or_default()
    }

    /// A container that runs a shell script.
    pub(super) fn container(&self, id: &str, script: &str) -> ContainerSpec {
        let base = self.temp.path().join("containers").join(id);
        for directory in ["upper", "work", "log"] {
            fs::create_dir_all(base.join(directory)).unwrap();
        }
        let users = self.spec.users.unwrap();
        std::os::unix::fs::chown(base.join("upper"), Some(users.start), Some(users.start)).unwrap();
        let mut config = runtime::defaults::spec();
        let mut process = config.process().clone().unwrap_or_default();
        process.set_args(Some(vec!["/bin/sh".into(), "-c".into(), script.into()]));
        process.set_cwd("/".into());
        config.set_process(Some(process));
        let mut linux = config.linux().clone().unwrap_or_default();
        linux.set_cgroups_path(Some(self.spec.cgroup.path.join(id)));
        config.set_linux(Some(linux));
        ContainerSpec {
            id: id.to_owned(),
            config,
            rootfs: Rootfs::Overlay {
                lowers: vec![self.temp.path().join("image")],
                upper: base.join("upper"),
                work: base.join("work"),
            },
            log: Some(LogSpec {
                path: self.log(id),
                bytes_max: 10 << 20,
                files_max: 5,
            }),
            stdin: false,
            stop_signal: None,
        }
    }

    pub(super) fn log(&self, id: &str) -> PathBuf {
        self.temp.path().join("containers").join(id).join("log/0.log")
    }

    #[track_caller]
    pub(super) fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(
                begin.elapsed() < PATIENCE,
                "{what}: not within {PATIENCE:?}\n{}",
                self.monitor_log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn wait_log(&self, id: &str, text: &str) {
        self.wait_until(text, || {
            fs::read_to_string(self.log(id)).is_ok_and(|log| log.contains(text))
        });
    }

    pub(super) fn wait_exit(&self, id: &str) -> Exit {
        let mut client = self.client();
        let begin = Instant::now();
        let mut seen = None;
        loop {
            let state = client.state(seen, Duration::from_secs(5)).unwrap();
            let container = state
                .containers
                .iter()
                .find(|container| container.id == id)
                .unwrap();
            if let Some(exit) = &container.exit {
                assert_eq!(container.pid, 0);
                return exit.clone();
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{id} has not ended\n{}",
                self.monitor_log()
            );
            seen = Some(state.revision);
        }
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::open(&Layout::detect().unwrap(), &self.spec.cgroup.path).unwrap()
    }

    pub(super) fn cgroup_exists(&self) -> bool {
        self.cgroup().exists()
    }

    /// Names of the groups below the pod's.
    pub(super) fn cgroup_children(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .cgroup()
            .directories()
            .iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap())
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether a process of this pod's users has `text` in its command line.
    pub(super) fn finds_process(&self, text: &str) -> bool {
        use std::os::unix::fs::MetadataExt;
        let users = self.spec.users.unwrap();
        let range = users.start..users.start + users.count;
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            entry
                .metadata()
                .is_ok_and(|metadata| range.contains(&metadata.uid()))
                && fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        })
    }

    fn monitor_field(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.child.borrow().id())).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| {
                rest.trim_start_matches(':')
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .sum()
    }

    pub(super) fn monitor_rss_kib(&self) -> u64 {
        self.monitor_field("status", "VmRSS")
    }

    /// Memory that the monitor shares with nobody.
    pub(super) fn monitor_private_kib(&self) -> u64 {
        self.monitor_field("smaps_rollup", "Private_Dirty")
    }

    pub(super) fn kill_monitor(&self) {
        self.child.borrow_mut().kill().unwrap();
        self.child.borrow_mut().wait().unwrap();
    }

    pub(super) fn monitor_exit(&self) -> Option<i32> {
        self.child.borrow_mut().wait().unwrap().code()
    }

    /// The regular end, and nothing is left.
    pub(super) fn shutdown(self) {
        self.client().shutdown().unwrap();
        assert_eq!(self.monitor_exit(), Some(0), "{}", self.monitor_log());
        assert!(!self.cgroup_exists());
        assert!(!self.finds_process(""));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self
            .child
            .borrow_mut()
            .try_wait()
            .is_ok_and(|ended| ended.is_none())
        {
            self.kill_monitor();
        }
        if std::thread::panicking() {
            eprintln!("monitor's log:\n{}", self.monitor_log());
        }
        runtime::monitor::cleanup(&self.spec, self.directory()).unwrap();
        let top = Cgroup::open(&Layout::detect().unwrap(), &self.top).unwrap();
        top.remove(PATIENCE).unwrap();
    }
}

pub(super) fn set_args(spec: &mut ContainerSpec, args: &[&str]) {
    let mut process = spec.config.process().clone().unwrap();
    process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
    spec.config.set_process(Some(process));
}

pub(super) fn limit_memory(spec: &mut ContainerSpec, bytes: i64) {
    let mut linux = spec.config.linux().clone().unwrap();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut memory = resources.memory().unwrap_or_default();
    memory.set_limit(Some(bytes));
    resources.set_memory(Some(memory));
    linux.set_resources(Some(resources));
    spec.config.set_linux(Some(linux));
}

/// Every frame up to the exit.
pub(super) fn all(session: &mut Session) -> Vec<Stream> {
    let mut frames = Vec::new();
    loop {
        let frame = session.receive().unwrap();
        let last = matches!(frame, Stream::Exit(_));
        frames.push(frame);
        if last {
            return frames;
        }
    }
}

pub(super) fn ended(frames: &[Stream]) -> Ended {
    match frames.last() {
        Some(Stream::Exit(ended)) => ended.clone(),
        other => panic!("the last frame is {other:?}"),
    }
}

pub(super) fn stdout_of(frames: &[Stream]) -> String {
    text_of(frames, |frame| {
        if let Stream::Stdout(bytes) = frame {
            bytes
        } else {
            &[]
        }
    })
}

pub(super) fn stderr_of(frames: &[Stream]) -> String {
    text_of(frames, |frame| {
        if let Stream::Stderr(bytes) = frame {
            bytes
        } else {
            &[]
        }
    })
}

fn text_of(frames: &[Stream], bytes: impl Fn(&Stream) -> &[u8]) -> String {
    String::from_utf8(frames.iter().flat_map(|frame| bytes(frame).to_vec()).collect()).unwrap()
}
