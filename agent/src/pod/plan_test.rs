use proptest::prelude::*;

use super::*;

fn container(init: bool) -> Container {
    Container {
        init,
        image: Image::Wanted,
        state: State::New { retry_at: None },
        must_stop: None,
    }
}

fn pod(init: usize, main: usize) -> Observed {
    let containers = (0..init + main).map(|index| container(index < init));
    Observed {
        slot: false,
        sandbox: Sandbox::Absent,
        network: false,
        volumes: false,
        files: false,
        retry_at: None,
        tend_at: None,
        may_start: true,
        strays: Vec::new(),
        containers: containers.collect(),
    }
}

const RUN: Wanted = Wanted {
    restart: Restart::Always,
    network: true,
    stop: None,
    evicted: None,
};

/// Carries a step out as `execute` does, when it goes well.
fn apply(observed: &mut Observed, step: &Step, now: Millis) {
    match step {
        Step::Allot => observed.slot = true,
        Step::StartSandbox => {
            assert_eq!(observed.sandbox, Sandbox::Absent, "one monitor at a time");
            observed.sandbox = Sandbox::Starting;
            observed.files = true;
            for container in observed.containers.iter_mut().filter(|container| container.init) {
                container.state = State::New { retry_at: None };
            }
        }
        Step::PrepareVolumes => observed.volumes = true,
        Step::AttachNetwork => {
            assert_eq!(
                observed.sandbox,
                Sandbox::Up,
                "a network is attached to a namespace"
            );
            observed.network = true;
        }
        Step::FetchImage(index) => observed.containers[*index].image = Image::Here,
        Step::Start(index) => {
            let state = &mut observed.containers[*index].state;
            assert!(
                matches!(state, State::New { .. } | State::Finished { .. }),
                "never two runs of one container"
            );
            *state = State::Running { stop: None };
        }
        Step::Stop { container, grace, .. } => {
            let State::Running { stop } = &mut observed.containers[*container].state else {
                panic!("only what runs is stopped");
            };
            assert_eq!(*stop, None, "asked to end once");
            *stop = Some(Stopping {
                since: now,
                grace: *grace,
                killed: None,
            });
        }
        Step::Kill(index) => {
            let State::Running { stop: Some(stop) } = &mut observed.containers[*index].state else {
                panic!("only what was asked to end is killed");
            };
            stop.killed = Some(now);
        }
        Step::Collect(index) => {
            let retry_at = Some(now + 1_000);
            observed.containers[*index].state = State::Finished { ok: false, retry_at };
            observed.containers[*index].must_stop = None;
        }
        Step::KillStray(id) => {
            for stray in observed.strays.iter_mut().filter(|stray| stray.id == *id) {
                stray.killed = Some(now);
            }
        }
        Step::RemoveStray(id) => observed.strays.retain(|stray| stray.id != *id),
        Step::DetachNetwork => observed.network = false,
        Step::Shutdown => {
            assert!(!runs(observed), "a monitor goes after its containers");
            observed.sandbox = Sandbox::Absent;
            observed.strays.clear();
        }
        Step::CleanUp => {
            assert_eq!(observed.sandbox, Sandbox::Dead);
            observed.sandbox = Sandbox::Absent;
            observed.strays.clear();
            for container in &mut observed.containers {
                if matches!(container.state, State::Running { .. }) {
                    container.state = State::Ended;
                }
            }
        }
        Step::RemoveFiles => {
            assert_eq!(observed.sandbox, Sandbox::Absent);
            observed.files = false;
            observed.volumes = false;
        }
        Step::Release => {
            assert!(!observed.files && !observed.network && observed.sandbox == Sandbox::Absent);
            observed.slot = false;
        }
    }
}

/// Steps until there is nothing more to do now.
fn settle(wanted: &Wanted, observed: &mut Observed, now: Millis) -> (Vec<Step>, Next) {
    let mut steps = Vec::new();
    loop {
        match plan(wanted, observed, now) {
            Next::Do(step) => {
                apply(observed, &step, now);
                steps.push(step);
                assert!(steps.len() < 200, "the plan does not come to rest: {steps:?}");
            }
            next => return (steps, next),
        }
    }
}

#[test]
fn a_pod_comes_up_in_order_and_images_come_while_the_monitor_starts() {
    let mut observed = pod(1, 1);
    let (steps, next) = settle(&RUN, &mut observed, 0);
    assert_eq!(
        steps,
        [
            Step::Allot,
            Step::StartSandbox,
            Step::FetchImage(0),
            Step::FetchImage(1),
            Step::PrepareVolumes
        ]
    );
    assert_eq!(next, Next::Wait(None));
    observed.sandbox = Sandbox::Up;
    let (steps, _) = settle(&RUN, &mut observed, 0);
    assert_eq!(steps, [Step::AttachNetwork, Step::Start(0)]);
    observed.containers[0].state = State::Finished {
        ok: true,
        retry_at: None,
    };
    let (steps, next) = settle(&RUN, &mut observed, 0);
    assert_eq!((steps, next), (vec![Step::Start(1)], Next::Wait(None)));
}

fn running(stop: Option<Stop>) -> (Wanted, Observed) {
    let mut observed = pod(0, 1);
    settle(&RUN, &mut observed, 0);
    observed.sandbox = Sandbox::Up;
    settle(&RUN, &mut observed, 0);
    assert_eq!(observed.containers[0].state, State::Running { stop: None });
    (Wanted { stop, ..RUN }, observed)
}

#[test]
fn a_stop_waits_for_its_grace_then_kills() {
    let (wanted, mut observed) = running(Some(Stop {
        since: 100,
        grace: 2_000,
    }));
    let stop = Step::Stop {
        container: 0,
        grace: 2_000,
        replaced: false,
    };
    assert_eq!(
        settle(&wanted, &mut observed, 100),
        (vec![stop], Next::Wait(Some(2_100)))
    );
    assert_eq!(plan(&wanted, &observed, 2_099), Next::Wait(Some(2_100)));
    assert_eq!(plan(&wanted, &observed, 2_100), Next::Do(Step::Kill(0)));
    settle(&wanted, &mut observed, 2_100);
    observed.containers[0].state = State::Ended;
    let (steps, next) = settle(&wanted, &mut observed, 2_200);
    assert_eq!(
        steps,
        [
            Step::Collect(0),
            Step::DetachNetwork,
            Step::Shutdown,
            Step::RemoveFiles,
            Step::Release
        ]
    );
    assert_eq!(next, Next::Gone);
}

#[test]
fn no_grace_kills_at_once() {
    let (wanted, mut observed) = running(Some(Stop { since: 5, grace: 0 }));
    let (steps, _) = settle(&wanted, &mut observed, 5);
    assert!(
        matches!(steps[..], [Step::Stop { .. }, Step::Kill(0)]),
        "{steps:?}"
    );
}

#[test]
fn a_shortened_grace_holds_from_the_first_word() {
    let (mut wanted, mut observed) = running(Some(Stop {
        since: 0,
        grace: 30_000,
    }));
    settle(&wanted, &mut observed, 0);
    wanted.stop = Some(Stop {
        since: 0,
        grace: 1_000,
    });
    assert_eq!(plan(&wanted, &observed, 999), Next::Wait(Some(1_000)));
    assert_eq!(plan(&wanted, &observed, 1_000), Next::Do(Step::Kill(0)));
}

#[test]
fn a_container_that_ended_waits_for_its_time() {
    let (wanted, mut observed) = running(None);
    observed.containers[0].state = State::Ended;
    let (steps, next) = settle(&wanted, &mut observed, 10);
    assert_eq!((steps, next), (vec![Step::Collect(0)], Next::Wait(Some(1_010))));
    let (steps, _) = settle(&wanted, &mut observed, 1_010);
    assert_eq!(steps, [Step::Start(0)]);
}

#[test]
fn a_finished_pod_gives_up_its_sandbox_and_keeps_its_files() {
    for (restart, ok, finished) in [
        (Restart::Never, false, Some(false)),
        (Restart::Never, true, Some(true)),
        (Restart::OnFailure, true, Some(true)),
        (Restart::OnFailure, false, None),
        (Restart::Always, true, None),
    ] {
        let (_, mut observed) = running(None);
        let wanted = Wanted { restart, ..RUN };
        observed.containers[0].state = State::Finished { ok, retry_at: None };
        assert_eq!(outcome(restart, &observed), finished, "{restart:?} {ok}");
        let (steps, _) = settle(&wanted, &mut observed, 0);
        if finished.is_some() {
            assert_eq!(steps, [Step::DetachNetwork, Step::Shutdown]);
            assert!(observed.files && observed.slot);
        } else {
            assert_eq!(steps, [Step::Start(0)]);
        }
    }
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut observed = pod(2, 1);
    let failed = State::Finished {
        ok: false,
        retry_at: Some(1_000),
    };
    observed.containers[0].state = failed;
    assert_eq!(outcome(Restart::Never, &observed), Some(false));
    assert_eq!(outcome(Restart::OnFailure, &observed), None);
}

#[test]
fn an_evicted_pod_ends_its_containers_and_stays_until_it_is_deleted() {
    let (mut wanted, mut observed) = running(None);
    wanted.evicted = Some(Stop {
        since: 100,
        grace: 2_000,
    });
    let stop = Step::Stop {
        container: 0,
        grace: 2_000,
        replaced: false,
    };
    let waits = Next::Wait(Some(2_100));
    assert_eq!(settle(&wanted, &mut observed, 100), (vec![stop], waits));
    assert_eq!(plan(&wanted, &observed, 2_100), Next::Do(Step::Kill(0)));
    observed.containers[0].state = State::Ended;
    let (steps, next) = settle(&wanted, &mut observed, 200);
    assert_eq!(steps, [Step::Collect(0), Step::DetachNetwork, Step::Shutdown]);
    assert_eq!(next, Next::Wait(None));
    // Whatever its restart policy, and however long ago.
    let later = settle(&wanted, &mut observed, 1_000_000);
    assert_eq!(later, (vec![], Next::Wait(None)));
    assert!(observed.files && observed.slot);
    wanted.stop = Some(Stop {
        since: 2_000_000,
        grace: 2_000,
    });
    let (steps, next) = settle(&wanted, &mut observed, 2_000_000);
    assert_eq!(
        (steps, next),
        (vec![Step::RemoveFiles, Step::Release], Next::Gone)
    );
}

#[test]
fn an_evicted_pod_that_is_deleted_has_what_is_left_of_the_shorter_grace() {
    for (deleted_at, grace, kill_at) in [(4_000, 500, 4_500), (1_000, 30_000, 5_000), (2_000, 0, 2_000)] {
        let (mut wanted, mut observed) = running(None);
        wanted.evicted = Some(Stop {
            since: 0,
            grace: 5_000,
        });
        settle(&wanted, &mut observed, 0);
        wanted.stop = Some(Stop {
            since: deleted_at,
            grace,
        });
        assert_eq!(
            plan(&wanted, &observed, kill_at - 1),
            Next::Wait(Some(kill_at)),
            "{deleted_at}"
        );
        assert_eq!(plan(&wanted, &observed, kill_at), Next::Do(Step::Kill(0)));
    }
}

#[test]
fn a_pod_that_is_evicted_before_it_began_never_begins() {
    let mut observed = pod(1, 1);
    settle(&RUN, &mut observed, 0);
    assert_eq!(observed.sandbox, Sandbox::Starting);
    let wanted = Wanted {
        evicted: Some(Stop { since: 0, grace: 0 }),
        ..RUN
    };
    assert_eq!(settle(&wanted, &mut observed, 0), (vec![], Next::Wait(None)));
    observed.sandbox = Sandbox::Up;
    let (steps, next) = settle(&wanted, &mut observed, 0);
    assert_eq!((steps, next), (vec![Step::Shutdown], Next::Wait(None)));
}

#[test]
fn a_dead_monitor_is_cleaned_up_and_all_starts_again() {
    let (wanted, mut observed) = running(None);
    observed.sandbox = Sandbox::Dead;
    let (steps, _) = settle(&wanted, &mut observed, 0);
    assert_eq!(
        steps,
        [
            Step::CleanUp,
            Step::Collect(0),
            Step::DetachNetwork,
            Step::StartSandbox
        ]
    );
    observed.sandbox = Sandbox::Up;
    let (steps, _) = settle(&wanted, &mut observed, 5_000);
    assert_eq!(steps, [Step::AttachNetwork, Step::Start(0)]);
}

#[test]
fn a_changed_container_is_replaced_and_the_others_go_on() {
    let mut observed = pod(0, 2);
    settle(&RUN, &mut observed, 0);
    observed.sandbox = Sandbox::Up;
    settle(&RUN, &mut observed, 0);
    observed.containers[1].must_stop = Some(3_000);
    let stop = Step::Stop {
        container: 1,
        grace: 3_000,
        replaced: true,
    };
    assert_eq!(
        settle(&RUN, &mut observed, 50),
        (vec![stop], Next::Wait(Some(3_050)))
    );
}

#[test]
fn strays_are_ended_and_removed() {
    let (wanted, mut observed) = running(None);
    observed.strays.push(Stray {
        id: "old-3".into(),
        running: true,
        killed: None,
    });
    let (steps, next) = settle(&wanted, &mut observed, 0);
    assert_eq!(steps, [Step::KillStray("old-3".into())]);
    assert_eq!(next, Next::Wait(Some(KILL_AGAIN_MS)));
    observed.strays[0].running = false;
    let (steps, _) = settle(&wanted, &mut observed, 1);
    assert_eq!(steps, [Step::RemoveStray("old-3".into())]);
}

#[test]
fn a_pod_that_failed_waits_but_its_containers_are_looked_after() {
    let (wanted, mut observed) = running(Some(Stop { since: 0, grace: 0 }));
    observed.retry_at = Some(9_000);
    let (steps, next) = settle(&wanted, &mut observed, 0);
    assert_eq!(steps.len(), 2, "stop and kill: {steps:?}");
    assert_eq!(next, Next::Wait(Some(9_000)));
}

#[derive(Clone, Debug)]
enum Event {
    MonitorAnswers,
    MonitorDies,
    ContainerEnds(usize),
    PullFails(usize),
    StepFails,
    Changed(usize),
    Later(Millis),
    Stray,
    Delete(Millis),
    Evict(Millis),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::MonitorAnswers),
        1 => Just(Event::MonitorDies),
        3 => (0usize..4).prop_map(Event::ContainerEnds),
        1 => (0usize..4).prop_map(Event::PullFails),
        1 => Just(Event::StepFails),
        1 => (0usize..4).prop_map(Event::Changed),
        3 => (1i64..70_000).prop_map(Event::Later),
        1 => Just(Event::Stray),
        1 => (0i64..5_000).prop_map(Event::Delete),
        1 => (0i64..5_000).prop_map(Event::Evict),
    ]
}

proptest! {
    /// Whatever happens, the plan comes to rest (`settle`), starts no container twice, stops only what runs (`apply`), kills
    /// nobody before the grace's end, and a deletion ends with nothing left.
    #[test]
    fn every_history_comes_to_rest_and_a_deletion_leaves_nothing(
        init in 0usize..3,
        main in 1usize..3,
        restart in prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)],
        network: bool,
        history in prop::collection::vec(event(), 0..40),
    ) {
        let mut wanted = Wanted { restart, network, stop: None, evicted: None };
        let mut observed = pod(init, main);
        let mut now = 0;
        let mut stopped_at = None;
        for event in history.into_iter().chain([Event::Delete(1_000)]) {
            match event {
                Event::MonitorAnswers if observed.sandbox == Sandbox::Starting => observed.sandbox = Sandbox::Up,
                Event::MonitorDies if observed.sandbox != Sandbox::Absent => observed.sandbox = Sandbox::Dead,
                Event::ContainerEnds(index) => {
                    let at = index % observed.containers.len();
                    if matches!(observed.containers[at].state, State::Running { .. }) {
                        observed.containers[at].state = State::Ended;
                    }
                }
                Event::PullFails(index) => {
                    let at = index % observed.containers.len();
                    observed.containers[at].image = Image::Failed { retry_at: now + 2_000 };
                }
                Event::StepFails => observed.retry_at = Some(now + 1_000),
                Event::Changed(index) => {
                    let at = index % observed.containers.len();
                    if matches!(observed.containers[at].state, State::Running { .. }) {
                        observed.containers[at].must_stop = Some(500);
                    }
                }
                Event::Later(time) => now += time,
                Event::Stray if observed.sandbox == Sandbox::Up => {
                    observed.strays.push(Stray { id: "old-7".into(), running: true, killed: None });
                }
                Event::Delete(grace) => {
                    let stop = wanted.stop.get_or_insert(Stop { since: now, grace });
                    stop.grace = stop.grace.min(grace);
                    stopped_at.get_or_insert(now);
                }
                Event::Evict(grace) if wanted.stop.is_none() => {
                    wanted.evicted.get_or_insert(Stop { since: now, grace });
                }
                _ => {}
            }
            let (steps, _) = settle(&wanted, &mut observed, now);
            let killed = steps.iter().any(|step| matches!(step, Step::Kill(_)));
            let started = steps.iter().any(|step| matches!(step, Step::Start(_) | Step::StartSandbox));
            prop_assert!(!started || wanted.ending().is_none(), "nothing begins in a pod that ends");
            if let (true, Some(stop)) = (killed, wanted.ending()) {
                let own = observed.containers.iter().any(|container| container.must_stop.is_some());
                prop_assert!(own || now >= stop.since + stop.grace, "killed before the grace's end");
            }
        }
        // What was asked to end does so, at the latest when it is killed.
        for _ in 0..50 {
            match settle(&wanted, &mut observed, now).1 {
                Next::Gone => {
                    prop_assert_eq!(plan(&wanted, &observed, now), Next::Gone, "no step after the end");
                    prop_assert!(!observed.slot && !observed.files && !observed.network);
                    return Ok(());
                }
                Next::Wait(until) => {
                    if observed.sandbox == Sandbox::Starting {
                        observed.sandbox = Sandbox::Up;
                    }
                    for container in &mut observed.containers {
                        if matches!(container.state, State::Running { stop: Some(Stopping { killed: Some(_), .. }) }) {
                            container.state = State::Ended;
                        }
                    }
                    for stray in &mut observed.strays {
                        stray.running &= stray.killed.is_none();
                    }
                    now = until.map_or(now, |until| until.max(now));
                }
                Next::Do(_) => unreachable!("settle ends without a step"),
            }
        }
        prop_assert!(false, "the pod never goes: {observed:?}");
    }
}

#[test]
fn what_must_not_run_twice_is_made_ready_and_waits_for_its_monitor_to_be_told() {
    let mut observed = pod(1, 1);
    observed.may_start = false;
    let (steps, next) = settle(&RUN, &mut observed, 0);
    assert!(
        !steps.iter().any(|step| matches!(step, Step::Start(_))),
        "{steps:?}"
    );
    assert_eq!(next, Next::Wait(None));
    observed.sandbox = Sandbox::Up;
    let (steps, next) = settle(&RUN, &mut observed, 0);
    assert_eq!((steps, next), (vec![Step::AttachNetwork], Next::Wait(None)));
    observed.may_start = true;
    let (steps, _) = settle(&RUN, &mut observed, 0);
    assert_eq!(steps, [Step::Start(0)]);
}
