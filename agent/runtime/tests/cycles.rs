//! Lives of containers again and again, and commands killed at random: nothing is left of them. A few in each run of the
//! tests; `tests/run cycles` asks for as many as the variables say.

#![allow(clippy::unwrap_used)] // a test that fails

mod bundle;
mod program;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bundle::Bundle;
use runtime::cgroup::{Cgroup, Layout};

fn wanted(variable: &str, else_: u64) -> u64 {
    std::env::var(variable).map_or(else_, |text| text.parse().expect("a number"))
}

/// What there is of a bundle's containers: processes, mounts, cgroups, files of state; and our own descriptors.
fn traces(bundle: &Bundle) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let state = bundle.path().join("state");
    let group = bundle.cgroup.to_str().unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let text = |name: &str| fs::read(path.join(name)).unwrap_or_default(); // it may end meanwhile
        let (line, groups, stat) = (text("cmdline"), text("cgroup"), text("stat"));
        // A zombie is gone but for its number, which the machine's init gives back when it comes to it.
        let zombie = contains(&stat, ") Z ");
        let ours = contains(&line, state.to_str().unwrap()) || contains(&groups, group);
        if ours && !zombie && entry.file_name().to_string_lossy().parse::<u32>().is_ok() {
            let of = String::from_utf8_lossy(if line.is_empty() { &groups } else { &line }).into_owned();
            found.insert(format!("process {}: {of:?}", entry.file_name().to_string_lossy()));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        if line.contains(bundle.path().to_str().unwrap()) {
            found.insert(format!("mount {line}"));
        }
    }
    let cgroup = Cgroup::open(&Layout::detect().unwrap(), &bundle.cgroup.join("c")).unwrap();
    for directory in cgroup.directories() {
        if directory.exists() {
            found.insert(format!("cgroup {}", directory.display()));
        }
    }
    below(&state, &mut found);
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        found.insert(format!("descriptor {}", entry.file_name().to_string_lossy()));
    }
    found
}

/// Waits for what is on its way out: a child that has just lost its parent ends at its next word to it.
#[track_caller]
fn expect(bundle: &Bundle, before: &BTreeSet<String>, told: &str) {
    let begin = Instant::now();
    loop {
        let now = traces(bundle);
        if now == *before {
            return;
        }
        let late = begin.elapsed() > Duration::from_secs(10);
        assert!(!late, "{told}: {:?}", now.symmetric_difference(before));
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

fn below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.insert(format!("file {}", entry.path().display()));
        below(&entry.path(), found);
    }
}

#[test]
fn lives_leave_nothing() {
    let bundle = Bundle::new("lives", "exec sleep 1000");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["delete", "--force", "c"]);
    let before = traces(&bundle);
    for cycle in 0..wanted("BULKHEAD_CYCLES", 30) {
        bundle.create(&["create", "c"]);
        bundle.succeed(&["start", "c"]);
        bundle.succeed(&["kill", "c", "KILL"]);
        bundle.wait_status("stopped");
        bundle.succeed(&["delete", "c"]);
        expect(&bundle, &before, &format!("cycle {cycle}"));
    }
}

#[test]
fn commands_killed_at_random_leave_nothing_that_force_does_not_remove() {
    let seed = wanted("BULKHEAD_SEED", RandomState::new().hash_one(0));
    let mut random = seed | 1;
    let mut below = |bound: u64| {
        // Marsaglia's xorshift: any seed will do to pick a moment.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let bundle = Bundle::new("killed", "sleep 1000 & exec sleep 1000");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["delete", "--force", "c"]);
    let before = traces(&bundle);
    let mut longest = Duration::from_millis(20);
    for cycle in 0..wanted("BULKHEAD_KILLED", 30) {
        let verbs: [&[&str]; 6] = [
            &["create", "c"],
            &["run", "--detach", "c"],
            &["start", "c"],
            &["exec", "c", "true"],
            &["kill", "c", "KILL"],
            &["delete", "--force", "c"],
        ];
        let verb = verbs[below(6) as usize];
        match verb[0] {
            "create" | "run" => {}
            "start" => bundle.create(&["create", "c"]),
            _ => bundle.create(&["run", "--detach", "c"]),
        }
        let begin = Instant::now();
        let mut command = bundle
            .command(verb)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moment = Duration::from_micros(below(longest.as_micros() as u64));
        while begin.elapsed() < moment {
            std::hint::spin_loop();
        }
        command.kill().unwrap();
        if command.wait().unwrap().success() {
            // All of its moments, also on a machine that is slow today.
            longest = longest.mul_f64(0.9).max(Duration::from_millis(5));
        } else {
            longest = longest.mul_f64(1.1).min(Duration::from_millis(100));
        }
        bundle.succeed(&["delete", "--force", "c"]);
        let told = format!("cycle {cycle} of seed {seed}: {verb:?} killed after {moment:?}");
        expect(&bundle, &before, &told);
        assert!(bundle.fail(&["state", "c"]).contains("does not exist"), "{told}");
    }
}
