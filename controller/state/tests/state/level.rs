//! Schema levels: what needs which, and that a state keeps its own.

use model::object::from;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::{Bind, NodeStatusUpdate, RaiseLevel, StatusBatch};
use proto::v1::{NodeStatus, NodeSystemInfo, Pod, PodSpec};
use state::{SCHEMA_LEVEL, SCHEMA_LEVEL_MIN, State, level, schedule};

use crate::support::*;

/// A pod that asks for a token: of the newest level.
fn with_token(name: &str) -> Pod {
    Pod {
        spec: Some(PodSpec {
            automount_service_account_token: Some(true),
            ..pod_spec("web:1", &[])
        }),
        ..pod(name)
    }
}

fn agent_of_level(name: &str, level: u32) -> proto::state::v1::Command {
    let info = NodeSystemInfo {
        schema_level: level,
        ..Default::default()
    };
    let update = NodeStatusUpdate {
        name: name.to_owned(),
        status: Some(NodeStatus {
            node_info: Some(info),
            ..Default::default()
        }),
    };
    let batch = StatusBatch {
        nodes: vec![update],
        ..Default::default()
    };
    command(1, Body::Status(batch))
}

#[test]
fn a_command_needs_what_is_in_it() {
    let plain = transaction(0, vec![put(from(pod("a"))), put(config("b", "c"))]);
    assert_eq!(level::of(&plain), SCHEMA_LEVEL_MIN);
    let newer = transaction(0, vec![put(config("b", "c")), put(from(with_token("a")))]);
    assert_eq!(level::of(&newer), 4);
    assert_eq!(level::of(&agent_of_level("n1", 0)), SCHEMA_LEVEL_MIN);
    assert_eq!(level::of(&agent_of_level("n1", SCHEMA_LEVEL_MIN)), 4);
    let raise = command(0, Body::RaiseLevel(RaiseLevel { level: 7 }));
    assert_eq!(level::of(&raise), 7);
}

#[test]
fn a_level_is_raised_kept_in_snapshots_and_never_falls() {
    let mut state = cluster();
    assert_eq!(state.level(), SCHEMA_LEVEL_MIN);
    raise(&mut state, SCHEMA_LEVEL);
    raise(&mut state, SCHEMA_LEVEL_MIN);
    assert_eq!(state.level(), SCHEMA_LEVEL);
    let again = State::decode(state.encode()).unwrap();
    assert_eq!(again.level(), SCHEMA_LEVEL);
}

#[test]
fn a_pod_goes_only_where_the_agent_understands_it() {
    let mut state = cluster();
    raise(&mut state, SCHEMA_LEVEL);
    for name in ["n1", "n2"] {
        applied(&state.apply(&join(0, name)));
        make_ready(&mut state, name);
    }
    run(
        &mut state,
        1,
        vec![put(from(with_token("a"))), put(from(pod("b")))],
    );
    let place = |state: &mut State| {
        let (commands, unplaced) = schedule::commands(state, 2);
        for command in commands {
            applied(&state.apply(&command));
        }
        unplaced
            .into_iter()
            .map(|unplaced| unplaced.message)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        place(&mut state),
        ["0 of 2 nodes fit: 2 with an agent too old for what the pod asks"]
    );
    assert_ne!(get_pod(&state, "b").spec.unwrap().node_name, "");
    // A scheduler that saw an older state comes too late.
    let bind = Bind {
        pod: Some(key("Pod", "a")),
        uid: uid("a"),
        node: "n1".to_owned(),
    };
    let late = transaction(2, vec![proto::state::v1::operation::Operation::Bind(bind)]);
    assert_eq!(refused(&state.apply(&late)).0, "Conflict");
    applied(&state.apply(&agent_of_level("n2", SCHEMA_LEVEL)));
    assert_eq!(place(&mut state), [""; 0]);
    assert_eq!(get_pod(&state, "a").spec.unwrap().node_name, "n2");
    assert_eq!(
        [state.level_needed_on("n1"), state.level_needed_on("n2")],
        [SCHEMA_LEVEL_MIN, 4]
    );
}

#[test]
fn a_late_placement_finds_the_room_taken() {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    applied(&state.apply(&node_status(0, "n1", &[("cpu", "1"), ("memory", "1Gi")])));
    make_ready(&mut state, "n1");
    let asking = |name: &str| Pod {
        spec: Some(pod_spec("web:1", &[("cpu", "600m")])),
        ..pod(name)
    };
    run(
        &mut state,
        1,
        ["a", "b", "c"].map(|name| put(from(asking(name)))).to_vec(),
    );
    let bind = |name: &str| {
        let bind = Bind {
            pod: Some(key("Pod", name)),
            uid: uid(name),
            node: "n1".to_owned(),
        };
        transaction(2, vec![proto::state::v1::operation::Operation::Bind(bind)])
    };
    applied(&state.apply(&bind("a")));
    // Members of the version before look only at the pod.
    applied(&state.apply(&bind("b")));
    raise(&mut state, SCHEMA_LEVEL);
    let (reason, message) = refused(&state.apply(&bind("c")));
    assert_eq!(reason, "Conflict");
    assert!(message.contains("lack cpu (need 600m"), "{message}");
}
