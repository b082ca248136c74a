//! Real monitors with real containers, watched from outside: needs root, busybox (static), and room for cgroups of its own.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod pod;
mod program;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use pod::{Pod, stderr_of, stdout_of};
use runtime::monitor::client::ClientError;
use runtime::monitor::frame::Stream;
use runtime::monitor::protocol::Request;

const LONG: Duration = Duration::from_secs(20);

fn exec(id: &str, args: &[&str], stdin: bool, tty: bool, timeout_ms: Option<u64>) -> Request {
    Request::Exec {
        id: id.into(),
        args: args.iter().map(|arg| (*arg).into()).collect(),
        stdin,
        tty,
        timeout_ms,
    }
}

#[test]
fn a_container_runs_logs_and_leaves_its_exit_code() {
    let pod = Pod::start("logs");
    let mut client = pod.client();
    client
        .start(pod.container("a", "echo out; echo err >&2; echo more > /dev/stdout; exit 7"))
        .unwrap();
    let exit = pod.wait_exit("a");
    assert_eq!((exit.code, exit.signal), (7, None));
    assert_eq!(exit.last_line, "err");
    assert_eq!(exit.stderr_tail, "err\n");
    let log = fs::read_to_string(pod.log("a")).unwrap();
    assert_eq!(log.lines().count(), 3, "{log}");
    for (line, end) in [(" stdout F out", 1), (" stderr F err", 1), (" stdout F more", 1)] {
        assert_eq!(
            log.lines().filter(|text| text.ends_with(line)).count(),
            end,
            "{log}"
        );
    }
    client.remove("a").unwrap();
    client.remove("a").unwrap();
    assert!(client.state(None, Duration::ZERO).unwrap().containers.is_empty());
    pod.shutdown();
}

#[test]
fn starting_twice_is_starting_once_and_a_failed_start_leaves_nothing() {
    let pod = Pod::start("idem");
    let mut client = pod.client();
    let first = client.start(pod.container("a", "sleep 1000")).unwrap();
    let again = client.start(pod.container("a", "sleep 1000")).unwrap();
    assert_eq!(first, again);
    let mut broken = pod.container("b", "");
    pod::set_args(&mut broken, &["/no/such"]);
    match client.start(broken) {
        Err(ClientError::Failed { reason, message }) => {
            assert_eq!(reason, "StartError");
            assert!(message.contains("no such file or directory"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let state = client.state(None, Duration::ZERO).unwrap();
    assert_eq!(state.containers.len(), 1);
    assert_eq!(pod.cgroup_children(), ["a"]);
    pod.shutdown();
}

#[test]
fn a_state_poll_hears_of_the_end_and_signals_end_a_container() {
    let pod = Pod::start("poll");
    let mut client = pod.client();
    let state = client
        .start(pod.container(
            "a",
            "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ))
        .unwrap();
    pod.wait_log("a", "ready");
    let begin = Instant::now();
    let same = client
        .state(Some(state.revision), Duration::from_millis(200))
        .unwrap();
    assert_eq!(same, state);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    pod.client().signal("a", 15).unwrap();
    let exit = pod.wait_exit("a");
    assert_eq!(exit.code, 3);
    assert!(exit.finished_ms >= state.containers[0].started_ms);
    client.signal("a", 15).unwrap();
    client.start(pod.container("b", "sleep 1000")).unwrap();
    client.kill("b").unwrap();
    let exit = pod.wait_exit("b");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    pod.shutdown();
}

/// KiB of its own code that a process has in memory.
fn code_held(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = text
        .lines()
        .skip_while(|line| !(line.contains(" r-xp ") && line.ends_with("/bulkhead-runtime")));
    let held = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    held.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_quiet_monitor_holds_next_to_none_of_its_code_and_goes_on() {
    let pod = Pod::start("quiet");
    let mut client = pod.client();
    client.start(pod.container("a", "sleep 1000")).unwrap();
    // Of a few MiB, the mappings around one wait.
    pod.wait_until("the monitor rests", || code_held(pod.monitor_pid()) <= 512);
    client.start(pod.container("b", "echo more")).unwrap();
    assert_eq!(pod.wait_exit("b").code, 0);
    pod.shutdown();
}

#[test]
fn exec_has_its_own_streams_and_exit_code() {
    let pod = Pod::start("exec");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    let request = exec(
        "a",
        &[
            "/bin/sh",
            "-c",
            "read line; echo got $line; echo bad >&2; cat; exit 5",
        ],
        true,
        false,
        None,
    );
    let mut session = pod.client().stream(&request).unwrap();
    session.send(&Stream::Stdin(b"hello\nrest".to_vec())).unwrap();
    session.send(&Stream::Stdin(Vec::new())).unwrap();
    let frames = pod::all(&mut session);
    assert_eq!(stdout_of(&frames), "got hello\nrest");
    assert_eq!(stderr_of(&frames), "bad\n");
    assert_eq!(pod::ended(&frames).code, 5);
    let missing = pod
        .client()
        .stream(&exec("a", &["nothing-like-it"], false, false, None));
    match missing {
        Err(ClientError::Failed { reason, message }) => {
            assert_eq!(reason, "ExecError");
            assert!(
                message.contains("executable file not found in $PATH"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        pod.client().stream(&exec("b", &["true"], false, false, None)),
        Err(ClientError::Failed { reason, .. }) if reason == "NoSuchContainer"
    ));
    pod.shutdown();
}

#[test]
fn exec_with_a_terminal_is_resized_and_hung_up() {
    let pod = Pod::start("tty");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    let request = exec("a", &["/bin/sh"], true, true, None);
    let mut session = pod.client().stream(&request).unwrap();
    session
        .send(&Stream::Resize {
            columns: 91,
            rows: 33,
        })
        .unwrap();
    session
        .send(&Stream::Stdin(b"stty size; tty; exit 4\n".to_vec()))
        .unwrap();
    let frames = pod::all(&mut session);
    let text = stdout_of(&frames);
    assert!(text.contains("33 91") && text.contains("/dev/pts/"), "{text}");
    assert_eq!(pod::ended(&frames).code, 4);

    let mut session = pod
        .client()
        .stream(&exec("a", &["/bin/sleep", "4321"], true, true, None))
        .unwrap();
    session
        .send(&Stream::Resize {
            columns: 10,
            rows: 10,
        })
        .unwrap();
    pod.wait_until("the exec'd process runs", || pod.finds_process("4321"));
    drop(session);
    pod.wait_until("the exec'd process is hung up", || !pod.finds_process("4321"));
    pod.shutdown();
}

#[test]
fn an_exec_that_takes_too_long_is_killed_with_its_children() {
    let pod = Pod::start("timeout");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    let begin = Instant::now();
    let request = exec(
        "a",
        &["/bin/sh", "-c", "setsid sleep 5432 & sleep 5433; true"],
        false,
        false,
        Some(300),
    );
    let mut session = pod.client().stream(&request).unwrap();
    let frames = pod::all(&mut session);
    let ended = pod::ended(&frames);
    assert_eq!((ended.code, ended.error.as_deref()), (137, Some("timeout")));
    assert!(begin.elapsed() < LONG);
    pod.wait_until("all of it is gone", || {
        !pod.finds_process("5432") && !pod.finds_process("5433")
    });
    assert!(
        pod.client().state(None, Duration::ZERO).unwrap().containers[0]
            .exit
            .is_none()
    );
    pod.shutdown();
}

#[test]
fn a_slow_client_holds_an_exec_back_and_loses_nothing() {
    let pod = Pod::start("slow");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    let request = exec(
        "a",
        &["/bin/sh", "-c", "head -c 8000000 /dev/zero; echo done >&2"],
        false,
        false,
        None,
    );
    let mut session = pod.client().stream(&request).unwrap();
    // Others are served meanwhile.
    for _ in 0..1000 {
        pod.client().state(None, Duration::ZERO).unwrap();
    }
    assert!(
        pod.monitor_rss_kib() < 16 << 10,
        "output of a slow client is bounded"
    );
    let frames = pod::all(&mut session);
    let bytes: usize = frames
        .iter()
        .map(|frame| {
            if let Stream::Stdout(bytes) = frame {
                bytes.len()
            } else {
                0
            }
        })
        .sum();
    assert_eq!(bytes, 8_000_000);
    assert_eq!(pod::ended(&frames).code, 0);
    pod.shutdown();
}

#[test]
fn attach_follows_output_and_feeds_input() {
    let pod = Pod::start("attach");
    let mut spec = pod.container("a", "while read line; do echo got $line; done; echo bye; exit 2");
    spec.stdin = true;
    pod.client().start(spec).unwrap();
    let mut session = pod.client().stream(&Request::Attach { id: "a".into() }).unwrap();
    session.send(&Stream::Stdin(b"one\ntwo\n".to_vec())).unwrap();
    session.send(&Stream::Stdin(Vec::new())).unwrap();
    let frames = pod::all(&mut session);
    assert_eq!(stdout_of(&frames), "got one\ngot two\nbye\n");
    assert_eq!(pod::ended(&frames).code, 2);
    pod.shutdown();
}

#[test]
fn running_out_of_memory_names_victim_limit_and_peak() {
    let pod = Pod::start("oom");
    let mut spec = pod.container(
        "a",
        "echo filling; head -c 100000000 /dev/zero | tail -c 90000000 > /dev/null",
    );
    pod::limit_memory(&mut spec, 16 << 20);
    pod::set_args(&mut spec, &["/bin/sh", "-c", "exec tail -c 90000000 /dev/zero"]);
    pod.client().start(spec).unwrap();
    let exit = pod.wait_exit("a");
    assert_eq!(exit.signal, Some(9));
    let oom = exit.oom.unwrap();
    assert!(oom.kills >= 1);
    assert_eq!(oom.limit, Some(16 << 20));
    assert!(oom.victim.as_deref().is_none_or(|name| name == "tail"), "{oom:?}");
    let peak = exit.memory_peak.unwrap();
    assert!((8 << 20..=17 << 20).contains(&peak), "{peak}");
    pod.shutdown();
}

#[test]
fn logs_rotate_while_the_container_writes() {
    let pod = Pod::start("rotate");
    let mut spec = pod.container(
        "a",
        "i=0; while [ $i -lt 3000 ]; do echo line $i of the log; i=$((i+1)); done",
    );
    spec.log.as_mut().unwrap().bytes_max = 40_000;
    spec.log.as_mut().unwrap().files_max = 3;
    pod.client().start(spec).unwrap();
    assert_eq!(pod.wait_exit("a").code, 0);
    let mut files = runtime::monitor::log::rotated(&pod.log("a")).unwrap();
    assert_eq!(files.len(), 2);
    files.push(pod.log("a"));
    let text: String = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert!(text.ends_with("line 2999 of the log\n"));
    pod.shutdown();
}

#[test]
fn malformed_input_ends_only_its_own_connection() {
    let pod = Pod::start("malformed");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x02\0\0\0{]",
        b"\x04\0\0\0null",
        b"\x0d\0\0\0{\"frobnicate\":1}",
    ] {
        let mut stream = pod.raw();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
    // Half a frame, and nobody waits for the rest.
    let mut half = pod.raw();
    half.write_all(b"\x10\0\0\0{").unwrap();
    let many: Vec<_> = (0..80).map(|_| pod.raw()).collect();
    drop(many);
    let mut client = pod.client();
    for _ in 0..1000 {
        assert_eq!(client.state(None, Duration::ZERO).unwrap().containers.len(), 1);
    }
    pod.shutdown();
}

#[test]
fn a_daemon_that_keeps_the_pipe_does_not_keep_the_exit() {
    let pod = Pod::start("daemon");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    let request = exec(
        "a",
        &["/bin/sh", "-c", "sleep 6543 & echo started"],
        false,
        false,
        None,
    );
    let mut session = pod.client().stream(&request).unwrap();
    let begin = Instant::now();
    let frames = pod::all(&mut session);
    assert_eq!(
        (stdout_of(&frames).as_str(), pod::ended(&frames).code),
        ("started\n", 0)
    );
    assert!(begin.elapsed() < LONG);
    assert!(pod.finds_process("6543"), "a daemon goes on");
    pod.shutdown();
}

#[test]
fn a_killed_monitor_takes_its_containers_along_and_cleanup_removes_the_rest() {
    let pod = Pod::start("kill9");
    let state = pod
        .client()
        .start(pod.container("a", "sleep 7654 & sleep 7655; true"))
        .unwrap();
    pod.wait_until("its processes run", || {
        pod.finds_process("7654") && pod.finds_process("7655")
    });
    pod.kill_monitor();
    pod.wait_until("its processes are gone", || {
        !pod.finds_process("7654") && !pod.finds_process("7655")
    });
    assert!(state.containers[0].pid > 0);
    for _ in 0..2 {
        runtime::monitor::cleanup(&pod.spec, pod.directory()).unwrap();
    }
    assert!(!pod.cgroup_exists() && !pod.directory().join("monitor.sock").exists());
}

#[test]
fn shutdown_kills_removes_and_answers() {
    let pod = Pod::start("shutdown");
    let mut client = pod.client();
    for id in ["a", "b", "c"] {
        client
            .start(pod.container(id, "sleep 8765 & sleep 8766; true"))
            .unwrap();
    }
    let session = pod
        .client()
        .stream(&exec("a", &["sleep", "8767"], false, false, None))
        .unwrap();
    client.shutdown().unwrap();
    drop(session);
    assert!(!pod.cgroup_exists() && !pod.finds_process("876"));
    assert!(!pod.directory().join("monitor.sock").exists());
    assert_eq!(pod.monitor_exit(), Some(0));
}

#[test]
fn an_idle_monitor_is_small() {
    let pod = Pod::start("small");
    pod.client().start(pod.container("a", "sleep 1000")).unwrap();
    // A build for tests is linked to run at any place: its relocated data alone is more than the installed one has in all.
    pod.wait_until("an idle monitor is small", || pod.monitor_private_kib() <= 1024);
    pod.shutdown();
}

/// Milliseconds since the machine started.
fn now_ms() -> u64 {
    sys::time::boottime_ms()
}

#[test]
fn a_fenced_container_starts_only_when_it_may_and_is_asked_to_end_when_nobody_moves_the_end_on() {
    let pod = Pod::fenced("fence", 60_000);
    let mut client = pod.client();
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    match client.start(pod.container("a", script)) {
        Err(ClientError::Failed { reason, .. }) => assert_eq!(reason, "Fenced"),
        other => panic!("{other:?}"),
    }
    assert!(client.state(None, Duration::ZERO).unwrap().containers.is_empty());
    client.renew(now_ms() + 5000).unwrap();
    client.start(pod.container("a", script)).unwrap();
    pod.wait_until("ready", || {
        pod.client().renew(now_ms() + 2000).unwrap();
        fs::read_to_string(pod.log("a")).is_ok_and(|log| log.contains("ready"))
    });
    let exit = pod.wait_exit("a");
    assert_eq!((exit.code, exit.fenced), (3, true), "{}", pod.monitor_log());
    client.remove("a").unwrap();
    client.renew(now_ms() + 60_000).unwrap();
    client.start(pod.container("b", "exit 4")).unwrap();
    let exit = pod.wait_exit("b");
    assert_eq!((exit.code, exit.fenced), (4, false));
    pod.shutdown();
}

#[test]
fn what_was_told_to_end_is_killed_whatever_is_said_later() {
    let pod = Pod::fenced("late", 1500);
    let mut client = pod.client();
    client.renew(now_ms() + 5000).unwrap();
    client
        .start(pod.container("a", "trap '' TERM; while :; do sleep 0.05; done"))
        .unwrap();
    pod.wait_until("the end of its time", || {
        pod.monitor_log()
            .contains("no controller has confirmed the node in time")
    });
    client.renew(now_ms() + 60_000).unwrap();
    let exit = pod.wait_exit("a");
    assert_eq!((exit.signal, exit.fenced), (Some(9), true));
    client.start(pod.container("b", "sleep 1000")).unwrap();
    pod.shutdown();
}

#[test]
fn a_monitor_that_was_stopped_takes_its_fenced_containers_along() {
    let pod = Pod::fenced("stopped", 0);
    let mut client = pod.client();
    client.renew(now_ms() + 5000).unwrap();
    client
        .start(pod.container("a", "sleep 9753 & sleep 9754; true"))
        .unwrap();
    sys::process::kill(i32::try_from(pod.monitor_pid()).unwrap(), 19).unwrap();
    pod.wait_until("its processes are gone", || !pod.finds_process("975"));
    assert_eq!(pod.monitor_exit(), None, "the kernel killed it");
}

#[test]
fn a_pod_without_a_fence_has_no_end_to_move_on() {
    let pod = Pod::start("free");
    match pod.client().renew(now_ms() + 1000) {
        Err(ClientError::Failed { reason, .. }) => assert_eq!(reason, "NotFenced"),
        other => panic!("{other:?}"),
    }
    pod.shutdown();
}
