//! How long nobody can write when the leader of three is killed under load, and what a planned stop of it costs.
//!
//! Writers apply one ConfigMap each, again and again, with `ctl`: its start (some 15 ms, more on a busy machine) is in the
//! figures. A gap is from the kill until a write that began after it is acknowledged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Cluster, can_run, kernel, wait_for};

/// Leaders that are killed.
const KILLS: usize = 50;
/// Leaders that are stopped as an upgrade does it.
const STOPS: usize = 5;
/// Who writes at the same time.
const WRITERS: usize = 4;
/// Of the gap after a kill, in seconds.
const MEDIAN_BUDGET: f64 = 1.0;
const WORST_BUDGET: f64 = 2.0;
/// Longer is a failure, not a figure.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the writers have seen.
#[derive(Default)]
struct Seen {
    /// The latest beginning of an acknowledged write.
    acknowledged: Mutex<Option<Instant>>,
    writes: AtomicUsize,
    failures: AtomicUsize,
    /// What they said.
    reasons: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
}

fn main() {
    if !can_run("failover", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(3, 1, &[]);
    let seen = Seen::default();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (cluster, seen) = (&cluster, &seen);
            scope.spawn(move || write(cluster, seen, writer));
        }
        // Writers end also when a step below panics.
        let _stop = StopAtEnd(&seen.stop);
        let (kills, refused) = kills(&cluster, &seen);
        println!(
            "failover               {KILLS} leaders killed: next write after {:.2} s in the median, {:.2} s at worst \
             (budget {MEDIAN_BUDGET} and {WORST_BUDGET}); {refused} writes of {} failed",
            kills[kills.len() / 2],
            kills[kills.len() - 1],
            seen.writes.load(Ordering::Relaxed),
        );
        seen.tell_reasons();
        let (writes, refused) = stops(&cluster, &seen);
        println!(
            "planned stop           {STOPS} leaders stopped: {refused} of {writes} writes failed (budget 0)"
        );
        seen.tell_reasons();
    });
}

impl Seen {
    fn tell_reasons(&self) {
        let reasons = std::mem::take(&mut *self.reasons.lock().expect("no writer panics with it"));
        for (reason, count) in reasons {
            println!("                       {count} times: {}", reason.trim_end());
        }
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(cluster: &Cluster, seen: &Seen, writer: usize) {
    for value in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: writer-{writer}\ndata:\n  value: \"{value}\"\n"
        );
        let path = cluster.manifest(&format!("writer-{writer}.yaml"), &text);
        let began = Instant::now();
        let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
        seen.writes.fetch_add(1, Ordering::Relaxed);
        if output.code == 0 {
            let mut latest = seen.acknowledged.lock().expect("no writer panics with it");
            *latest = (*latest).max(Some(began));
        } else {
            seen.failures.fetch_add(1, Ordering::Relaxed);
            let mut reasons = seen.reasons.lock().expect("no writer panics with it");
            *reasons.entry(output.stderr).or_default() += 1;
        }
    }
}

/// Waits for a write that began after this moment; how long it took from then.
fn next_write(seen: &Seen, after: Instant) -> Duration {
    wait_for("a write", PATIENCE, || {
        let latest = *seen.acknowledged.lock().expect("no writer panics with it");
        latest.is_some_and(|began| began > after).then(|| after.elapsed())
    })
}

/// Seconds of each gap, sorted; and how many writes failed.
fn kills(cluster: &Cluster, seen: &Seen) -> (Vec<f64>, usize) {
    let mut gaps = Vec::with_capacity(KILLS);
    for _ in 0..KILLS {
        let leader = whole(cluster);
        let pid = Pid::from_raw(cluster.process(&leader).pid);
        let killed = Instant::now();
        kill(pid, Signal::SIGKILL).expect("it runs");
        gaps.push(next_write(seen, killed).as_secs_f64());
        cluster.bring_up();
    }
    gaps.sort_by(f64::total_cmp);
    (gaps, seen.failures.load(Ordering::Relaxed))
}

/// How many writes there were, and how many failed.
fn stops(cluster: &Cluster, seen: &Seen) -> (usize, usize) {
    whole(cluster);
    let before = [&seen.writes, &seen.failures].map(|count| count.load(Ordering::Relaxed));
    for _ in 0..STOPS {
        let leader = whole(cluster);
        let pid = cluster.process(&leader).pid;
        let stopped = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
        wait_for("its end", PATIENCE, || (!kernel::runs(pid)).then_some(()));
        next_write(seen, stopped);
        cluster.bring_up();
    }
    next_write(seen, Instant::now());
    let after = [&seen.writes, &seen.failures].map(|count| count.load(Ordering::Relaxed));
    (after[0] - before[0], after[1] - before[1])
}

/// Waits until all three have what the leader has; who leads.
fn whole(cluster: &Cluster) -> String {
    wait_for("three members without lag", PATIENCE, || {
        let members = cluster.ctl(&["cluster", "members"]).stdout;
        // LAG stands before HEALTH.
        let lags: Vec<&str> = members
            .lines()
            .map(str::trim_end)
            .skip(1)
            .filter_map(|line| line.strip_suffix("ok")?.split_whitespace().last())
            .collect();
        // Writes go on meanwhile: some are on their way.
        let close = |lag: &&str| lag.parse::<u32>().is_ok_and(|lag| lag < 100);
        (lags.len() == 3 && lags.iter().all(close)).then_some(())
    });
    cluster.leader()
}
