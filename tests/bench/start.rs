//! The agent's own start of a container, against a bare clone3: from the decision until the program runs (its exec).
//!
//! Bare: one clone3 with the same seven namespaces, ids mapped, a root of bind, proc, sysfs and tmpfs, pivot_root, exec.
//! Ours: a pod's monitor started, its sandbox made, and in it a container with limits, the default seccomp profile, masks,
//! an overlay; and the same in a pod that stands already, as an init container's successor or a restart finds it.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use runtime::cgroup::{Cgroup, Layout};
use runtime::monitor::client::Client;
use runtime::monitor::{ALLOCATOR, READY, SECCOMP_CACHE, SPEC};
use runtime::spec::{CgroupSpec, ContainerSpec, IdRange, LogSpec, PidShare, Rootfs, SandboxSpec, Share};
use serde_json::json;
use sys::mount::{self, FsContext};
use sys::path::{self, Resolve};
use sys::process::{self, CStrings, CloneArgs};
use sys::{cred, fd, socket};

/// Starts of each kind.
const ROUNDS: usize = 40;
/// Of the bare clone3's median, at most.
const BUDGET: f64 = 3.0;
const IDS: IdRange = IdRange {
    start: 900_000_000,
    count: 65_536,
};
/// Ends a pod's processes that something holds up.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: start: needs root");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).expect("its mode");
    // As the agent has it: monitors are in memory (/run), images, writable layers and logs on the disk.
    let run = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let image = directory.path().join("image");
    for path in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(image.join(path)).expect("a directory");
    }
    fs::copy("/usr/bin/busybox", image.join("bin/sleep")).expect("busybox-static is installed");
    let bare_plan = Bare::new(&image);
    let (mut bare, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let one = bare_plan.once().expect("a bare clone3");
        let (pod, container) = pod(run.path(), directory.path(), &image, round);
        // The first of each warms caches.
        if round > 0 {
            bare.push(one);
            cold.push(pod);
            warm.push(container);
        }
    }
    let (bare, cold, warm) = (middle(bare), middle(cold), middle(warm));
    println!(
        "start                    bare clone3 {bare:.1} ms; pod and container {cold:.1} ms, {:.2} of it (budget {BUDGET}); \
         container in a pod {warm:.1} ms, {:.2}",
        cold / bare,
        warm / bare
    );
}

fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// What a bare start needs, made before.
struct Bare {
    image: CString,
    arguments: CStrings,
    environment: CStrings,
}

impl Bare {
    fn new(image: &Path) -> Bare {
        Bare {
            image: CString::new(image.as_os_str().as_encoded_bytes()).expect("no NUL"),
            arguments: CStrings::new(vec![c"sleep".into(), c"1000".into()]),
            environment: CStrings::new(Vec::new()),
        }
    }

    fn once(&self) -> io::Result<Duration> {
        let started = Instant::now();
        let (ours, theirs) = socket::seqpacket_pair()?;
        let flags = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        let args = CloneArgs {
            flags: flags as u64,
            exit_signal: libc::SIGCHLD,
            cgroup: None,
        };
        let pid = process::spawn(args, || {
            fd::close_inherited(ours.as_fd());
            i32::from(self.child(&theirs).is_err())
        })?;
        drop(theirs);
        let ids = format!("0 {} {}\n", IDS.start, IDS.count);
        fs::write(format!("/proc/{pid}/uid_map"), &ids)?;
        fs::write(format!("/proc/{pid}/gid_map"), &ids)?;
        socket::send(ours.as_fd(), b"0")?;
        // Its end closes by exec.
        let told = fd::read(ours.as_fd(), &mut [0])?;
        let took = started.elapsed();
        process::kill(pid, libc::SIGKILL)?;
        let ended = process::wait_pid(pid)?;
        match (told, ended) {
            (0, process::Ended::Signaled(libc::SIGKILL)) => Ok(took),
            _ => Err(io::Error::other(format!("the bare child ended early: {ended:?}"))),
        }
    }

    fn child(&self, theirs: &OwnedFd) -> io::Result<()> {
        fd::read(theirs.as_fd(), &mut [0])?;
        cred::setgid(0)?;
        cred::setuid(0)?;
        mount::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        let root = mount::clone_tree(path::here(), &self.image, false)?;
        mount::attach_at(root.as_fd(), &self.image)?;
        for (kind, place) in [(c"proc", c"proc"), (c"tmpfs", c"dev"), (c"sysfs", c"sys")] {
            let tree = FsContext::open(kind)?.mount(0)?;
            let target = path::open(root.as_fd(), place, libc::O_PATH, 0, Resolve::InRoot)?;
            mount::attach(tree.as_fd(), target.as_fd())?;
        }
        path::fchdir(root.as_fd())?;
        mount::pivot_here()?;
        mount::detach(c".")?;
        Err(process::execve(c"/bin/sleep", &self.arguments, &self.environment))
    }
}

/// Starts a pod with a container, then a further container in it; how long each took.
fn pod(run: &Path, directory: &Path, image: &Path, round: usize) -> (Duration, Duration) {
    let top = PathBuf::from(format!("/bulkhead-bench-{}-{round}", std::process::id()));
    let home = directory.join(round.to_string());
    let first = container(&home, image, &top, "first");
    let second = container(&home, image, &top, "second");
    let started = Instant::now();
    let monitor_home = run.join(round.to_string());
    fs::create_dir(&monitor_home).expect("a directory");
    let sandbox = sandbox(&top);
    let mut monitor = Monitor::start(&monitor_home, &run.join("cache"), &sandbox);
    let mut client = Client::connect(&monitor_home).expect("the monitor listens");
    client.start(first).expect("a container");
    let pod = started.elapsed();
    let started = Instant::now();
    client.start(second).expect("a further container");
    let container = started.elapsed();
    for id in ["first", "second"] {
        client.kill(id).expect("it runs");
    }
    client.shutdown().expect("the monitor ends");
    monitor.end();
    let layout = Layout::detect().expect("cgroups");
    Cgroup::open(&layout, &top)
        .and_then(|cgroup| cgroup.end(PATIENCE))
        .expect("the pod's groups go");
    (pod, container)
}

fn sandbox(top: &Path) -> SandboxSpec {
    SandboxSpec {
        id: "bench".into(),
        hostname: Some("bench".into()),
        users: Some(IDS),
        network: Share::Pod,
        ipc: Share::Pod,
        pid: PidShare::Container,
        cgroup: CgroupSpec {
            path: top.join("pod"),
            resources: Default::default(),
        },
        sysctls: Default::default(),
        fence: None,
    }
}

/// A monitor, ended with all that it has when something else fails.
struct Monitor(Child);

impl Monitor {
    /// Starts one as the agent does, and waits until it listens.
    fn start(home: &Path, cache: &Path, sandbox: &SandboxSpec) -> Monitor {
        let text = serde_json::to_vec(sandbox).expect("JSON");
        fs::write(home.join(SPEC), text).expect("the specification");
        let program = std::env::var_os("BULKHEAD_BIN").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_bulkhead-runtime")),
            |bin| PathBuf::from(bin).join("bulkhead-runtime"),
        );
        let mut monitor = Command::new(program)
            .arg("monitor")
            .arg("--dir")
            .arg(home)
            .env_clear()
            .env(SECCOMP_CACHE, cache)
            .envs([ALLOCATOR])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Monitor)
            .expect("the monitor");
        let told = monitor.0.stdout.as_mut().expect("a pipe");
        told.read_exact(&mut [0; READY.len()])
            .expect("the monitor listens");
        monitor
    }

    fn end(&mut self) {
        let status = self.0.wait().expect("our child");
        assert!(status.success(), "the monitor: {status}");
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let ended = process::kill(self.0.id() as i32, libc::SIGTERM).and_then(|()| self.0.wait());
            println!("start: ended a monitor: {ended:?}");
        }
    }
}

/// With limits and the default profile.
fn container(home: &Path, image: &Path, top: &Path, id: &str) -> ContainerSpec {
    let base = home.join(id);
    for path in ["upper", "work", "log"] {
        fs::create_dir_all(base.join(path)).expect("a directory");
    }
    let mut config = runtime::defaults::spec();
    let mut process = config.process().clone().unwrap_or_default();
    process.set_args(Some(vec!["/bin/sleep".into(), "1000".into()]));
    process.set_cwd("/".into());
    config.set_process(Some(process));
    let mut linux = config.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(top.join("pod").join(id)));
    let resources = json!({
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": 50_000, "period": 100_000},
        "pids": {"limit": 64},
    });
    linux.set_resources(Some(serde_json::from_value(resources).expect("resources")));
    config.set_linux(Some(linux));
    ContainerSpec {
        id: id.to_owned(),
        config,
        rootfs: Rootfs::Overlay {
            lowers: vec![image.to_owned()],
            upper: base.join("upper"),
            work: base.join("work"),
        },
        log: Some(LogSpec {
            path: base.join("log/0.log"),
            bytes_max: 10 << 20,
            files_max: 5,
        }),
        stdin: false,
        stop_signal: None,
    }
}
