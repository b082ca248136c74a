//! Our runtime, crun and runc, in turns: the life of one `/bin/true` (`run`, from the call to its end), `exec` into a running
//! container, and lives a second, one and four at once.
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
/// Starts a second, of crun's, at least.
const BUDGET_RATE: f64 = 2.0;
/// Lives for a rate.
const BATCH: usize = 32;
/// Where podman's package has the profile that it gives to every container.
const PROFILE: &str = "/usr/share/containers/seccomp.json";
/// What the container may do: podman's default without what needs more of the network.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
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
    if !machine::can_run("runtime", &["crun", "runc", "busybox", "podman"]) {
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
    std::os::unix::fs::symlink("true", rootfs.join("bin/sleep")).expect("a link");
    let ours = machine::binaries().join("bulkhead-runtime");
    let runtimes = [ours, PathBuf::from("crun"), PathBuf::from("runc")];
    without_hybrid();
    let profile = profile();
    for configuration in CONFIGURATIONS {
        prepare(configuration, directory.path(), &profile);
        measure(configuration, directory.path(), &runtimes);
    }
    exec(directory.path(), &runtimes);
    for at_once in [1, 4] {
        rate(at_once, directory.path(), &runtimes);
    }
}

/// podman's profile as it reaches a runtime on this architecture, for a container with CAPABILITIES.
fn profile() -> Value {
    let text = std::fs::read(PROFILE).expect("the package that podman brings has the profile");
    let whole: Value = serde_json::from_slice(&text).expect("JSON");
    let list = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten();
        texts
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let held = |caps: &[String]| caps.iter().any(|name| CAPABILITIES.contains(&name.as_str()));
    let mut calls = Vec::new();
    for rule in whole["syscalls"].as_array().expect("rules") {
        let arches = list(&rule["includes"]["arches"]);
        let needs = list(&rule["includes"]["caps"]);
        let here = arches.is_empty() || arches.iter().any(|arch| arch == "amd64");
        if !here || (!needs.is_empty() && !held(&needs)) || held(&list(&rule["excludes"]["caps"])) {
            continue;
        }
        let mut call = json!({"names": rule["names"], "action": rule["action"]});
        for key in ["args", "errnoRet"] {
            if !rule[key].is_null() {
                call[key] = rule[key].clone();
            }
        }
        calls.push(call);
    }
    json!({
        "defaultAction": whole["defaultAction"],
        "defaultErrnoRet": whole["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": calls,
    })
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

fn prepare(configuration: &Configuration, directory: &Path, profile: &Value) {
    let config = config(configuration, profile, &["/bin/true"]);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a configuration");
    if configuration.users {
        // The mapped root looks into it; what is in it belongs to others.
        let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(directory).status();
        assert!(opened.expect("chmod").success());
    }
}

fn measure(configuration: &Configuration, directory: &Path, runtimes: &[PathBuf]) {
    let budget = if configuration.seccomp {
        BUDGET_SECCOMP
    } else {
        BUDGET
    };
    in_turns(configuration.name, budget, runtimes, |runtime| {
        call(
            runtime,
            directory,
            &["run", "--bundle", &text(directory), "bench"],
        )
    });
}

/// Into a container of each runtime's own, with everything.
fn exec(directory: &Path, runtimes: &[PathBuf]) {
    let everything = CONFIGURATIONS.last().expect("there are some");
    let config = config(everything, &profile(), &["/bin/sleep", "1000"]);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a configuration");
    let id = |runtime: &Path| format!("exec-{}", runtime.file_name().unwrap_or_default().display());
    for runtime in runtimes {
        let bundle = text(directory);
        let run = ["run", "--detach", "--bundle", &bundle, &id(runtime)];
        if let Err(why) = call(runtime, directory, &run) {
            println!("exec: {} is left out: {why}", runtime.display());
        }
    }
    in_turns("exec", BUDGET_SECCOMP, runtimes, |runtime| {
        call(runtime, directory, &["exec", &id(runtime), "/bin/true"])
    });
    for runtime in runtimes {
        // One that was left out has nothing to delete, which is no error when forced.
        call(runtime, directory, &["delete", "--force", &id(runtime)]).expect("its container is deleted");
    }
}

/// Lives a second, so many at once, each with everything.
fn rate(at_once: usize, directory: &Path, runtimes: &[PathBuf]) {
    prepare(
        CONFIGURATIONS.last().expect("there are some"),
        directory,
        &profile(),
    );
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); runtimes.len()];
    for _ in 0..5 {
        for (runtime, rates) in runtimes.iter().zip(&mut rates) {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for worker in 0..at_once {
                    scope.spawn(move || {
                        for life in 0..BATCH / at_once {
                            let id = format!("bench-{worker}-{life}");
                            call(runtime, directory, &["run", "--bundle", &text(directory), &id])
                                .expect("it ran before");
                        }
                    });
                }
            });
            rates.push(BATCH as f64 / started.elapsed().as_secs_f64());
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(middle).collect();
    println!(
        "{at_once} at once              ours {:.0}/s, crun {:.0}/s, runc {:.0}/s; {:.2} of crun (budget {BUDGET_RATE} at \
         least), {:.2} of runc",
        medians[0],
        medians[1],
        medians[2],
        medians[0] / medians[1],
        medians[0] / medians[2]
    );
}

fn in_turns(name: &str, budget: f64, runtimes: &[PathBuf], once: impl Fn(&Path) -> Result<Duration, String>) {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); runtimes.len()];
    let mut refused = vec![false; runtimes.len()];
    for round in 0..=ROUNDS {
        for (index, runtime) in runtimes.iter().enumerate() {
            if refused[index] {
                continue;
            }
            match once(runtime) {
                // The first of each warms caches.
                Ok(time) if round > 0 => times[index].push(time.as_secs_f64() * 1000.0),
                Ok(_) => {}
                Err(why) => {
                    println!("{name}: {} is left out: {why}", runtime.display());
                    refused[index] = true;
                }
            }
        }
    }
    let medians: Vec<f64> = times.into_iter().map(middle).collect();
    println!(
        "{name:<24} ours {:.1} ms, crun {:.1} ms, runc {:.1} ms; {:.2} of crun (budget {budget}), {:.2} of runc",
        medians[0],
        medians[1],
        medians[2],
        medians[0] / medians[1],
        medians[0] / medians[2]
    );
}

/// The median; not a number when there is none.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn call(runtime: &Path, directory: &Path, arguments: &[&str]) -> Result<Duration, String> {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(directory.join("state"));
    let started = Instant::now();
    // Into files: a container that goes on would keep a pipe open.
    let log = std::fs::File::create(directory.join("log")).map_err(|error| error.to_string())?;
    let status = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .map_err(|error| error.to_string())?;
    let time = started.elapsed();
    match status.success() {
        true => Ok(time),
        false => Err(std::fs::read_to_string(directory.join("log")).unwrap_or_default()),
    }
}

fn config(configuration: &Configuration, profile: &Value, arguments: &[&str]) -> Value {
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
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if configuration.users {
        let map = json!([{"containerID": 0, "hostID": 1_000_000, "size": 65_536}]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    if configuration.seccomp {
        linux["seccomp"] = profile.clone();
    }
    if configuration.limits {
        linux["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50_000, "period": 100_000},
            "pids": {"limit": 64},
        });
    }
    let capabilities = json!(CAPABILITIES);
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
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
