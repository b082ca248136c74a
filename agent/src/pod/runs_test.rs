//! How runs end and what is kept of them.

use super::*;
use runtime::monitor::protocol::OomKill;

fn exit(code: i32) -> Exit {
    Exit {
        code,
        signal: None,
        finished_ms: 9,
        oom: None,
        memory_peak: Some(1),
        last_line: "the disk is on fire".into(),
        stderr_tail: "all of it".into(),
        fenced: false,
    }
}

#[test]
fn the_termination_message_comes_before_the_last_line() {
    let run = Run::default();
    assert_eq!(ended(&run, &exit(3), None).message, "the disk is on fire");
    assert_eq!(ended(&run, &exit(3), Some("own".into())).message, "own");
    assert_eq!(ended(&run, &exit(0), None).message, "");
    assert_eq!(ended(&run, &exit(0), None).reason, "Completed");
}

#[test]
fn an_oom_kill_is_the_reason_unless_it_ended_well_all_the_same() {
    let oom = Some(OomKill {
        kills: 1,
        victim: None,
        limit: None,
    });
    let with = |code| Exit {
        oom: oom.clone(),
        ..exit(code)
    };
    assert_eq!(ended(&Run::default(), &with(137), None).reason, "OOMKilled");
    assert_eq!(ended(&Run::default(), &with(0), None).reason, "Completed");
}

#[test]
fn what_the_fence_ended_has_failed_whatever_it_says() {
    for (code, shown) in [(0, 143), (3, 3), (137, 137)] {
        let fenced = Exit {
            fenced: true,
            ..exit(code)
        };
        let end = ended(&Run::default(), &fenced, Some("own".into()));
        assert_eq!(
            (end.code, &*end.reason, &*end.message),
            (shown, "Fenced", fence::ENDED)
        );
    }
}

#[test]
fn logs_of_earlier_runs_go_and_rotated_ones_with_them() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["0.log", "1.log", "1.log.20260101-000000", "2.log", "other"] {
        std::fs::write(temp.path().join(name), "").unwrap();
    }
    remove_logs(temp.path(), 2).unwrap();
    remove_logs(&temp.path().join("none"), 2).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(temp.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["2.log", "other"]);
}
