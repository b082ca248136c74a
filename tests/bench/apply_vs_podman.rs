//! `ctl apply --wait` of one pod against `podman run -d` of the same image, in turns; and what the idle processes hold.
//!
//! Prints both figures of the same run, their ratio, the spread, and the budget. Figures of a machine that does other work
//! are only good as ratios.

use std::process::Command;
use std::time::{Duration, Instant};

use tests::{Cluster, can_run, kernel, wait_for};

/// Starts of each kind; enough for a median on a machine that does other work too.
const ROUNDS: usize = 15;
/// At most this part of podman's time.
const BUDGET: f64 = 0.3;
/// How long nothing is done before memory is read: an agent gives back what work has left every half minute.
const QUIET: Duration = Duration::from_secs(35);
/// A monitor does so after a second.
const MONITOR_QUIET: Duration = Duration::from_secs(3);
/// Monitors that share their program's pages.
const MONITORS: usize = 4;

fn main() {
    if !can_run("apply_vs_podman", &["ip", "nft", "podman"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    idle(&cluster);
    let Some(podman) = Podman::new(&cluster) else {
        return;
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (own, other) = (apply(&cluster, round), podman.run(round));
        // The first of each warms caches.
        if round > 0 {
            ours.push(own);
            theirs.push(other);
        }
    }
    let (own, other) = (Figures::of(ours), Figures::of(theirs));
    println!("ctl apply to running   {own}");
    println!("podman run -d          {other}");
    let ratio = own.median / other.median;
    println!("ratio of the medians   {ratio:.2} (budget {BUDGET})");
}

/// Milliseconds of many starts.
struct Figures {
    median: f64,
    least: f64,
    most: f64,
}

impl Figures {
    fn of(times: Vec<Duration>) -> Self {
        let mut times: Vec<f64> = times
            .into_iter()
            .map(|time| time.as_secs_f64() * 1000.0)
            .collect();
        times.sort_by(f64::total_cmp);
        Self {
            median: times[times.len() / 2],
            least: times[0],
            most: times[times.len() - 1],
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "median {:.0} ms, {:.0} to {:.0}",
            self.median, self.least, self.most
        )
    }
}

fn apply(cluster: &Cluster, round: usize) -> Duration {
    let path = cluster.manifest(
        "bench.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bench-{round}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n    - name: main\n      image: hello:1\n      command: [sleep, \"3600\"]\n      \
             resources:\n        limits: {{cpu: 500m, memory: 64Mi}}\n"
        ),
    );
    let path = path.display().to_string();
    let started = Instant::now();
    cluster.ok(&["apply", "--wait", "-f", &path]);
    let time = started.elapsed();
    cluster.ok(&["delete", &format!("pod/bench-{round}")]);
    time
}

/// A podman with storage of its own, gone with this value.
struct Podman {
    directory: tempfile::TempDir,
    runtime: &'static str,
}

impl Podman {
    fn new(cluster: &Cluster) -> Option<Self> {
        // On a disk: overlayfs cannot have its upper layer on every temporary file system.
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let image = cluster.directory().join("hello-image");
        let archive = directory.path().join("hello.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&image)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        assert!(packed.expect("tar").success());
        for runtime in ["crun", "runc"] {
            let podman = Self {
                directory: tempfile::tempdir_in("/var/tmp").expect("a directory"),
                runtime,
            };
            let archive = archive.display().to_string();
            podman.ok(&["import", "-q", &archive, "hello:1"]);
            let first = podman.command(&[
                "run",
                "--rm",
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=4096:4096",
                "hello:1",
                "true",
            ]);
            match first {
                Ok(_) => return Some(podman),
                // crun refuses the hybrid layout of cgroups.
                Err(error) => println!("podman with {runtime} does not run here: {error}"),
            }
        }
        tests::machine::skip("apply_vs_podman", "podman starts no container here");
        None
    }

    fn command(&self, words: &[&str]) -> Result<String, String> {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let output = Command::new("podman")
            .args(["--root", &path("root"), "--runroot", &path("run")])
            .args(["--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"])
            .args(["--events-backend", "none", "--runtime", self.runtime])
            .args(words)
            .output()
            .expect("podman");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.command(words)
            .unwrap_or_else(|error| panic!("podman {}: {error}", words.join(" ")))
    }

    fn run(&self, round: usize) -> Duration {
        let name = format!("bench-{round}");
        let words = ["run", "-d", "--name", &name, "--cpus", "0.5", "--memory", "64m"];
        let rest = [
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
            "hello:1",
            "sleep",
            "3600",
        ];
        let words = [&words[..], &rest[..]].concat();
        let started = Instant::now();
        self.ok(&words);
        let time = started.elapsed();
        self.ok(&["rm", "-f", "-t", "0", &name]);
        time
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.command(&["rm", "-f", "-t", "0", "-a"]) {
            eprintln!("podman rm: {error}");
        }
        // It keeps its storage mounted on itself; an error means that it did not.
        let storage = self.directory.path().join("root/overlay");
        if let Err(error) = nix::mount::umount2(&storage, nix::mount::MntFlags::MNT_DETACH)
            && error != nix::errno::Errno::EINVAL
        {
            eprintln!("{}: {error}", storage.display());
        }
        // Its firewall, in the network of this run alone.
        for table in ["filter", "nat"] {
            let deleted = Command::new("nft")
                .args(["delete", "table", "ip", table])
                .output();
            match deleted {
                Ok(output) if output.status.success() => {}
                other => eprintln!("nft delete table ip {table}: {other:?}"),
            }
        }
        // The group that podman makes for all its containers and leaves.
        for (_, root) in kernel::hierarchies() {
            let top = root.join("libpod_parent");
            if top.is_dir()
                && kernel::groups_below(&top)
                    .iter()
                    .all(|group| kernel::members(group).is_empty())
            {
                for group in kernel::groups_below(&top).iter().rev() {
                    if let Err(error) = std::fs::remove_dir(group) {
                        eprintln!("{}: {error}", group.display());
                    }
                }
            }
        }
    }
}

/// KiB that a process holds: as shared out among those who map the same pages, and its own alone.
struct Held {
    shared_out: u64,
    private: u64,
}

impl Held {
    fn of(pid: i32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .expect("smaps_rollup of a running process");
        let of = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .expect("a number of KiB")
        };
        Self {
            shared_out: of("Pss:"),
            private: of("Private_Dirty:"),
        }
    }
}

/// The monitor of a pod.
fn monitor(cluster: &Cluster, pod: &str) -> i32 {
    cluster.ok(&[
        "run",
        "--name",
        pod,
        "--command",
        "hello:1",
        "--",
        "sleep",
        "3600",
    ]);
    let pod = cluster.ready(pod);
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    wait_for("the pod's monitor", Duration::from_secs(5), || {
        kernel::processes().into_iter().find(|pid| {
            let line = kernel::command_line(*pid);
            line.first()
                .is_some_and(|word| word.ends_with("bulkhead-runtime"))
                && line.iter().any(|word| word.contains(uid))
        })
    })
}

/// What each process holds when nothing happens, with one pod on the node; then a monitor beside others.
fn idle(cluster: &Cluster) {
    let first = monitor(cluster, "idle-0");
    std::thread::sleep(QUIET); // what is measured is a time without work
    for (what, pid, budget) in [
        ("agent", cluster.process("node-1").pid, 12 << 10),
        ("controller", cluster.process("controller-1").pid, 25 << 10),
        ("monitor", first, 300),
    ] {
        let Held { shared_out, private } = Held::of(pid);
        println!(
            "{what:<10} holds {shared_out:>6} KiB (PSS; private {private}), budget {budget} KiB: {:.2}",
            shared_out as f64 / f64::from(budget)
        );
    }
    for number in 1..MONITORS {
        monitor(cluster, &format!("idle-{number}"));
    }
    std::thread::sleep(MONITOR_QUIET);
    let Held { shared_out, private } = Held::of(first);
    println!("monitor    holds {shared_out:>6} KiB (PSS; private {private}) as one of {MONITORS}");
    for number in 0..MONITORS {
        cluster.ok(&["delete", &format!("pod/idle-{number}")]);
    }
}
