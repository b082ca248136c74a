//! The life of one `/bin/true` under our runtime, crun and runc, in turns: `run`, from the call to its end.
//!
//! Prints medians and ratios of the same run, for each configuration, with the budgets. Peers that refuse a configuration on
//! this machine are left out, and said so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tests::machine;

/// Lives of each kind; enough for a median on a machine that does other work too.
const ROUNDS: usize = 30;
/// Of crun's median, at most.
const BUDGET: f64 = 0.5;
/// Where a seccomp profile is loaded: crun compiles it again each time.
const BUDGET_SECCOMP: f64 = 0.35;
/// What a container of an engine usually may do, enough for a profile of ordinary size.
const CALLS: &[&str] = &[
    "accept",
    "access",
    "arch_prctl",
    "bind",
    "brk",
    "chdir",
    "chmod",
    "chown",
    "clock_gettime",
    "clone",
    "close",
    "connect",
    "dup",
    "dup2",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "fchmod",
    "fchown",
    "fcntl",
    "fork",
    "fstat",
    "fstatfs",
    "openat2",
    "close_range",
    "capget",
    "capset",
    "execveat",
    "mount",
    "fsync",
    "ftruncate",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpeername",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getsockname",
    "getsockopt",
    "gettid",
    "getuid",
    "inotify_add_watch",
    "inotify_init1",
    "ioctl",
    "kill",
    "lchown",
    "link",
    "listen",
    "lseek",
    "lstat",
    "madvise",
    "mkdir",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "pause",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "pselect6",
    "pwrite64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmsg",
    "rename",
    "rmdir",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "select",
    "sendfile",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setitimer",
    "setpgid",
    "setsid",
    "setsockopt",
    "setuid",
    "shutdown",
    "sigaltstack",
    "socket",
    "socketpair",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "sysinfo",
    "tgkill",
    "timerfd_create",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "utimensat",
    "vfork",
    "wait4",
    "waitid",
    "write",
    "writev",
];

struct Configuration {
    name: &'static str,
    users: bool,
    seccomp: bool,
    limits: bool,
}

const CONFIGURATIONS: &[Configuration] = &[
    Configuration {
        name: "plain",
        users: false,
        seccomp: false,
        limits: false,
    },
    Configuration {
        name: "user namespace",
        users: true,
        seccomp: false,
        limits: false,
    },
    Configuration {
        name: "seccomp",
        users: false,
        seccomp: true,
        limits: false,
    },
    Configuration {
        name: "all of it, with limits",
        users: true,
        seccomp: true,
        limits: true,
    },
];

fn main() {
    if !machine::can_run("runtime", &["crun", "runc", "busybox"]) {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let rootfs = directory.path().join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).expect("a root file system");
    for path in ["proc", "dev", "sys", "tmp"] {
        std::fs::create_dir(rootfs.join(path)).expect("a directory");
    }
    let busybox = machine::which("busybox").expect("found above");
    std::fs::copy(busybox, rootfs.join("bin/true")).expect("a program");
    let ours = machine::binaries().join("bulkhead-runtime");
    let runtimes = [ours, PathBuf::from("crun"), PathBuf::from("runc")];
    without_hybrid();
    for configuration in CONFIGURATIONS {
        measure(configuration, directory.path(), &runtimes);
    }
}

/// crun refuses a hybrid layout whose v2 tree holds a controller: here nobody sees that tree.
fn without_hybrid() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.exists() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .expect("private mounts");
    umount2(unified, MntFlags::MNT_DETACH).expect("the v2 tree is mounted there");
    println!("the v2 tree of the hybrid layout is hidden from all three, as crun refuses it");
}

fn measure(configuration: &Configuration, directory: &Path, runtimes: &[PathBuf]) {
    let config = config(configuration);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a configuration");
    if configuration.users {
        // The mapped root looks into it; what is in it belongs to others.
        let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(directory).status();
        assert!(opened.expect("chmod").success());
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); runtimes.len()];
    let mut refused = vec![false; runtimes.len()];
    for round in 0..=ROUNDS {
        for (index, runtime) in runtimes.iter().enumerate() {
            if refused[index] {
                continue;
            }
            match life(runtime, directory) {
                // The first of each warms caches.
                Ok(time) if round > 0 => times[index].push(time),
                Ok(_) => {}
                Err(why) => {
                    println!("{}: {} is left out: {why}", configuration.name, runtime.display());
                    refused[index] = true;
                }
            }
        }
    }
    let medians: Vec<Option<f64>> = times.into_iter().map(median).collect();
    let text = |median: Option<f64>| median.map_or("-".to_owned(), |median| format!("{median:.1} ms"));
    let ratio = |peer: usize| match (medians[0], medians[peer]) {
        (Some(own), Some(other)) => format!("{:.2}", own / other),
        _ => "-".to_owned(),
    };
    let budget = if configuration.seccomp {
        BUDGET_SECCOMP
    } else {
        BUDGET
    };
    println!(
        "{:<24} ours {}, crun {}, runc {}; {} of crun (budget {budget}), {} of runc",
        configuration.name,
        text(medians[0]),
        text(medians[1]),
        text(medians[2]),
        ratio(1),
        ratio(2)
    );
}

fn median(mut times: Vec<Duration>) -> Option<f64> {
    times.sort();
    times.get(times.len() / 2).map(|time| time.as_secs_f64() * 1000.0)
}

fn life(runtime: &Path, directory: &Path) -> Result<Duration, String> {
    let root = directory.join("state");
    let mut command = Command::new(runtime);
    command.arg("--root").arg(root);
    let started = Instant::now();
    let output = command
        .args(["run", "--bundle"])
        .arg(directory)
        .arg("bench")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let time = started.elapsed();
    match output.status.success() {
        true => Ok(time),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn config(configuration: &Configuration) -> Value {
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "mount"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "network"}),
        json!({"type": "cgroup"}),
    ];
    if configuration.users {
        namespaces.push(json!({"type": "user"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": format!("/bulkhead-bench-{}", std::process::id()),
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if configuration.users {
        let map = json!([{"containerID": 0, "hostID": 1_000_000, "size": 65_536}]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    if configuration.seccomp {
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{"names": CALLS, "action": "SCMP_ACT_ALLOW"}],
        });
    }
    if configuration.limits {
        linux["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50_000, "period": 100_000},
            "pids": {"limit": 64},
        });
    }
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": linux,
    })
}
