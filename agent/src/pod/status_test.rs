use super::*;
use crate::pod::record::Eviction;
use proto::v1::{ObjectMeta, PodSpec};
use runtime::monitor::protocol::OomKill;

fn pod(init: &[&str], main: &[&str]) -> Pod {
    let of = |names: &[&str]| {
        names
            .iter()
            .map(|name| Container {
                name: (*name).to_owned(),
                image: "hello:1".into(),
                ..Container::default()
            })
            .collect()
    };
    Pod {
        metadata: Some(ObjectMeta {
            name: "web".into(),
            generation: 2,
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            init_containers: of(init),
            containers: of(main),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn fact(init: bool, live: Live) -> Fact {
    Fact {
        init,
        live,
        image_id: None,
    }
}

fn running(ready: bool) -> Live {
    Live::Running(Run {
        number: 0,
        started_ms: 1_500,
        image_id: "hello@sha256:ab".into(),
        started: true,
        ready,
        ..Run::default()
    })
}

fn waiting(reason: &str) -> Live {
    Live::Waiting {
        reason: reason.into(),
        message: "m".into(),
        next_try: Some(9_000),
    }
}

fn end(number: u32, code: i32) -> End {
    End {
        number,
        code,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        ..End::default()
    }
}

fn of(pod: &Pod, containers: &[Fact], restart: Restart, record: &mut Record) -> PodStatus {
    let facts = Facts {
        uid: "u1",
        pod,
        containers,
        host_ip: "192.0.2.1".into(),
        pod_ip: Some("10.244.0.2".into()),
        verdict: None,
        restart,
        now_ms: 10_000,
    };
    status(&facts, record)
}

fn condition_of(status: &PodStatus, kind: &str) -> Condition {
    let found = status
        .conditions
        .iter()
        .find(|condition| condition.r#type == kind);
    found.cloned().unwrap_or_default()
}

#[test]
fn a_pod_is_running_and_ready_when_its_containers_are() {
    let pod = pod(&[], &["a", "b"]);
    let mut record = Record::default();
    let facts = [fact(false, running(true)), fact(false, running(false))];
    let status = of(&pod, &facts, Restart::Always, &mut record);
    assert_eq!(status.phase, "Running");
    assert_eq!(status.observed_generation, 2);
    let ready = condition_of(&status, "Ready");
    assert_eq!((&*ready.status, &*ready.reason), ("False", "ContainersNotReady"));
    assert!(ready.message.contains("[b]"), "{}", ready.message);
    assert_eq!(condition_of(&status, "Initialized").status, "True");
    let first = &status.container_statuses[0];
    assert_eq!(first.container_id, "bulkhead://u1/a-0");
    assert_eq!(first.image_id, "hello@sha256:ab");
    let facts = [fact(false, running(true)), fact(false, running(true))];
    let status = of(&pod, &facts, Restart::Always, &mut record);
    assert_eq!(condition_of(&status, "Ready").status, "True");
}

#[test]
fn a_condition_keeps_the_time_of_its_change() {
    let pod = pod(&[], &["a"]);
    let mut record = Record::default();
    let facts = |ready| [fact(false, running(ready))];
    let at = |record: &mut Record, ready, now_ms| {
        let containers = facts(ready);
        let facts = Facts {
            uid: "u1",
            pod: &pod,
            containers: &containers,
            host_ip: String::new(),
            pod_ip: None,
            verdict: None,
            restart: Restart::Always,
            now_ms,
        };
        let status = status(&facts, record);
        condition_of(&status, "Ready")
            .last_transition_time
            .map(|time| time.seconds)
    };
    assert_eq!(at(&mut record, true, 1_000), Some(1));
    assert_eq!(at(&mut record, true, 5_000), Some(1));
    assert_eq!(at(&mut record, false, 6_000), Some(6));
}

#[test]
fn phases_are_kubernetes_own() {
    let one = pod(&[], &["a"]);
    let with_end = |code| {
        let mut record = Record::default();
        record.container("a").end(end(0, code), 0);
        record
    };
    for (live, restart, record, phase) in [
        (
            waiting("ContainerCreating"),
            Restart::Always,
            Record::default(),
            "Pending",
        ),
        (
            waiting("ErrImagePull"),
            Restart::Never,
            Record::default(),
            "Pending",
        ),
        (
            waiting("CrashLoopBackOff"),
            Restart::Always,
            with_end(1),
            "Running",
        ),
        (Live::Ended(end(0, 0)), Restart::Never, with_end(0), "Succeeded"),
        (Live::Ended(end(0, 3)), Restart::Never, with_end(3), "Failed"),
        (running(true), Restart::Never, Record::default(), "Running"),
    ] {
        let mut record = record;
        let status = of(&one, &[fact(false, live)], restart, &mut record);
        assert_eq!(status.phase, phase);
    }
    let two = pod(&["i"], &["a"]);
    for (live, restart, phase) in [
        (running(true), Restart::Always, "Pending"),
        (Live::Ended(end(0, 1)), Restart::Never, "Failed"),
    ] {
        let facts = [fact(true, live), fact(false, waiting("PodInitializing"))];
        let status = of(&two, &facts, restart, &mut Record::default());
        assert_eq!(status.phase, phase);
        assert_eq!(condition_of(&status, "Initialized").status, "False");
    }
}

#[test]
fn an_evicted_pod_has_failed_once_nothing_of_it_runs() {
    let pod = pod(&[], &["a", "b"]);
    let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"5Mi\".";
    let mut record = Record {
        evicted: Some(Eviction {
            since_ms: 5,
            message: message.into(),
        }),
        ..Record::default()
    };
    let facts = [fact(false, Live::Ended(end(0, 0))), fact(false, running(false))];
    let status = of(&pod, &facts, Restart::Always, &mut record);
    assert_eq!((&*status.phase, &*status.reason), ("Running", ""));
    // However they ended, and those too that never began.
    for live in [Live::Ended(end(0, 0)), waiting("ContainerCreating")] {
        let facts = [fact(false, Live::Ended(end(0, 0))), fact(false, live)];
        let status = of(&pod, &facts, Restart::Always, &mut record);
        let said = (&*status.phase, &*status.reason, &*status.message);
        assert_eq!(said, ("Failed", "Evicted", message));
        let ready = condition_of(&status, "Ready");
        assert_eq!((&*ready.status, &*ready.reason), ("False", "PodFailed"));
    }
}

#[test]
fn a_crash_keeps_its_reason() {
    let pod = pod(&[], &["a"]);
    let mut record = Record::default();
    record.container("a").end(
        End {
            number: 4,
            code: 137,
            signal: Some(9),
            reason: "OOMKilled".into(),
            message: "last words".into(),
            oom: Some(OomKill {
                kills: 1,
                victim: Some("tail".into()),
                limit: Some(1 << 24),
            }),
            memory_peak: Some(16 << 20),
            ..End::default()
        },
        0,
    );
    let facts = [fact(false, waiting("CrashLoopBackOff"))];
    let status = of(&pod, &facts, Restart::Always, &mut record);
    let container = &status.container_statuses[0];
    assert_eq!(container.restart_count, 4);
    let state = container.state.clone().unwrap().waiting.unwrap();
    assert_eq!(state.next_try_at.map(|time| time.seconds), Some(9));
    let last = container.last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.signal), (137, 9));
    assert_eq!((&*last.reason, &*last.oom_victim), ("OOMKilled", "tail"));
    assert_eq!(last.memory_peak.map(|peak| peak.text).as_deref(), Some("16Mi"));
}

#[test]
fn a_weak_layer_is_a_condition_and_messages_are_bounded() {
    let pod = pod(&[], &["a"]);
    let verdict = Verdict {
        weak: vec![
            "a: pids: expected 4096, observed max".into(),
            "\u{e4}".repeat(5_000),
        ],
    };
    let containers = [fact(false, running(true))];
    let facts = Facts {
        uid: "u1",
        pod: &pod,
        containers: &containers,
        host_ip: String::new(),
        pod_ip: None,
        verdict: Some(&verdict),
        restart: Restart::Always,
        now_ms: 0,
    };
    let status = status(&facts, &mut Record::default());
    let isolated = condition_of(&status, "Isolated");
    assert_eq!(isolated.status, "False");
    assert!(isolated.message.contains("pids") && isolated.message.len() <= MESSAGE_BYTES_MAX);
}
