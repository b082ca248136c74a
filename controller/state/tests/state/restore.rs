//! A backup comes back: all of it or nothing, into an empty cluster, and nothing of the old machines.

use model::Kind;
use model::object::{from, meta};
use proptest::prelude::*;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::token_change::Change;
use proto::state::v1::{ClusterSettings, Command, Restore, Token, TokenChange};
use proto::v1::object::Object as Any;
use proto::v1::{Node, Object, Pod, PodStatus};
use state::{REVISION_JUMP, State, invariant};

use crate::properties::any_command;
use crate::simulation::Cluster;
use crate::support::*;

/// The commands that restore these parts, the first at this time.
fn restoring(id: &str, now: i64, parts: &[Vec<u8>]) -> Vec<Command> {
    let mut commands: Vec<Command> = (0..)
        .zip(parts)
        .map(|(part, records)| restore(id, now, part, records))
        .collect();
    let mut last = restore(id, now, parts.len() as u64, &[]);
    if let Some(Body::Restore(restore)) = &mut last.kind {
        restore.last = true;
    }
    commands.push(last);
    commands
}

fn restore(id: &str, now: i64, part: u64, records: &[u8]) -> Command {
    command(
        now,
        Body::Restore(Restore {
            id: id.to_owned(),
            part,
            records: records.to_vec(),
            ..Default::default()
        }),
    )
}

fn abandon(id: &str, now: i64) -> Command {
    command(
        now,
        Body::Restore(Restore {
            id: id.to_owned(),
            abandon: true,
            ..Default::default()
        }),
    )
}

fn parts(state: &State) -> Vec<Vec<u8>> {
    // Smaller than the encoder cuts them, at the ends of records.
    let bytes = bytes(&state.for_backup());
    let mut parts = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let mut body = rest;
        let length = prost::decode_length_delimiter(&mut body).unwrap();
        let (record, later) = rest.split_at(rest.len() - body.len() + length);
        parts.push(record.to_vec());
        rest = later;
    }
    parts
}

/// Restores into a cluster, as members do that all get the same commands, one of them by a snapshot in between.
#[track_caller]
fn restored_into(mut target: State, source: &State) -> State {
    let mut late = target.clone();
    for command in restoring("r", 5_000, &parts(source)) {
        late = State::decode(late.encode()).unwrap();
        let outcome = target.apply(&command);
        applied(&outcome);
        assert!(outcome.changes.is_empty(), "watches begin anew");
        assert_eq!(late.apply(&command), outcome);
        invariant::check(&target).unwrap();
    }
    assert_eq!(bytes(&late), bytes(&target));
    target
}

fn new_cluster() -> State {
    let mut state = State::new();
    let settings = ClusterSettings {
        cluster_id: "c2".to_owned(),
        ..settings()
    };
    applied(&state.apply(&command(0, Body::Settings(settings))));
    state
}

fn of_kind(state: &State, kind: Kind) -> Vec<Object> {
    state.list(kind, None, None).collect()
}

fn node(state: &State, name: &str) -> Node {
    match get(state, "Node", name).object {
        Some(Any::Node(node)) => node,
        other => panic!("{other:?}"),
    }
}

/// With a Deployment that runs on two nodes, a pod of nobody, one that has ended and one that goes.
fn old_cluster() -> Cluster {
    let mut old = Cluster::new(&["n1", "n2"]);
    let mut web = transaction(old.now, vec![put(from(deployment("web", 4, "web:1")))]);
    web.actor = "ada".to_owned();
    web.verb = "apply".to_owned();
    assert!(old.apply(&web));
    for name in ["lone", "done", "goes"] {
        old.put(from(pod(name)));
    }
    old.put(config("settings", "1"));
    old.settle(|_| {});
    let on = |name: &str| get_pod(&old.state, name).spec.unwrap().node_name;
    let ended = PodStatus {
        phase: "Succeeded".to_owned(),
        ..Default::default()
    };
    let ended = report(old.now, "done", &on("done"), ended);
    assert!(old.apply(&ended));
    let goes = transaction(old.now, vec![delete("Pod", "goes")]);
    assert!(old.apply(&goes));
    assert_eq!(old.counts().0, 6);
    old
}

#[test]
fn what_was_backed_up_comes_back_with_uids_order_and_history() {
    let old = old_cluster().state;
    let state = restored_into(new_cluster(), &old);
    for kind in [
        Kind::Namespace,
        Kind::ConfigMap,
        Kind::Deployment,
        Kind::ReplicaSet,
        Kind::ClusterRole,
        Kind::ClusterRoleBinding,
        Kind::ServiceAccount,
    ] {
        assert_eq!(of_kind(&state, kind), of_kind(&old, kind), "{}", kind.as_str());
    }
    let web = key("Deployment", "web");
    assert_eq!(state.history(&web), old.history(&web));
    assert_eq!(state.history(&web).len(), 1);
    assert_eq!(state.settings().unwrap().cluster_id, "c2");
    assert!(state.revision() > old.revision() + REVISION_JUMP);
    let uids = |state: &State| -> Vec<(String, String)> {
        let pods = of_kind(state, Kind::Pod);
        let named = pods
            .iter()
            .map(|pod| (meta(pod).name.clone(), meta(pod).uid.clone()));
        named.filter(|(name, _)| name != "goes").collect()
    };
    assert_eq!(uids(&state), uids(&old));
}

#[test]
fn no_pod_is_believed_to_run_before_its_node_has_joined() {
    let old = old_cluster().state;
    let mut state = restored_into(new_cluster(), &old);
    assert!(
        state.get(&key("Pod", "goes")).is_none(),
        "its node was asked to end it"
    );
    for pod in of_kind(&state, Kind::Pod) {
        let Some(Any::Pod(Pod { spec, status, .. })) = pod.object.clone() else {
            panic!("{pod:?}")
        };
        let name = &meta(&pod).name;
        assert_eq!(spec.unwrap().node_name, "", "{name}");
        let expected = if name == "done" { "Succeeded" } else { "Pending" };
        assert_eq!(status.unwrap().phase, expected, "{name}");
        let version: u64 = meta(&pod).resource_version.parse().unwrap();
        assert!(version > old.revision() + REVISION_JUMP, "{name} has changed");
    }
    // Of the old nodes nothing is heard: nothing is placed, and nothing is removed.
    let mut cluster = Cluster::new(&[]);
    cluster.state = state.clone();
    cluster.silence("n1");
    cluster.silence("n2");
    cluster.now += 10_000_000;
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (6, 0));
    assert_eq!(
        cluster.spread().len(),
        1,
        "none is on a node: {:?}",
        cluster.spread()
    );
    let ready = node(&cluster.state, "n1").status.unwrap().conditions;
    let ready = ready
        .iter()
        .find(|condition| condition.r#type == "Ready")
        .unwrap();
    assert_eq!(ready.status, "Unknown");
    assert!(
        ready.message.contains("has not joined since"),
        "{}",
        ready.message
    );
    // One joins under its name: all that runs goes there, and what has ended stays so.
    assert!(cluster.apply(&join(cluster.now, "n2")));
    let room = [("cpu", "8"), ("memory", "16Gi"), ("pods", "110")];
    assert!(cluster.apply(&node_status(cluster.now, "n2", &room)));
    cluster.wake("n2");
    cluster.settle(|_| {});
    assert_eq!(cluster.spread()["n2"], 5);
    assert_eq!(cluster.spread()[""], 1);
    assert_eq!(get_pod(&cluster.state, "done").status.unwrap().phase, "Succeeded");
    // Nodes themselves can be taken away.
    run(&mut state, 9_000, vec![delete("Node", "n1")]);
}

#[test]
fn nodes_keep_what_people_set_and_have_ranges_of_the_new_cluster() {
    let mut old = cluster();
    for name in ["n1", "n2", "n3"] {
        applied(&old.apply(&join(0, name)));
    }
    let mut labelled = get(&old, "Node", "n1");
    model::object::meta_mut(&mut labelled)
        .labels
        .insert("disk".to_owned(), "ssd".to_owned());
    let mut cordoned = node(&old, "n3");
    cordoned.spec.as_mut().unwrap().unschedulable = true;
    run(&mut old, 1, vec![put(labelled), put(from(cordoned))]);
    // In the new cluster two have joined, one under a name of before, and have the first two ranges.
    let mut new = new_cluster();
    applied(&new.apply(&join(0, "n9")));
    applied(&new.apply(&join(0, "n3")));
    let state = restored_into(new, &old);
    let range = |name: &str| node(&state, name).spec.unwrap().pod_cidr;
    assert_eq!(range("n9"), "10.244.0.0/24");
    assert_eq!(range("n3"), "10.244.1.0/24", "as its agent knows it");
    assert!(node(&state, "n3").spec.unwrap().unschedulable);
    assert_eq!(node(&state, "n1").metadata.unwrap().labels["disk"], "ssd");
    let mut others = [range("n1"), range("n2")];
    others.sort();
    assert_eq!(others, ["10.244.2.0/24", "10.244.3.0/24"], "theirs are taken");

    let narrow = ClusterSettings {
        pod_cidr: "10.9.0.0/23".to_owned(),
        ..settings()
    };
    let mut full = State::new();
    applied(&full.apply(&command(0, Body::Settings(narrow))));
    let mut last = None;
    for command in restoring("r", 1, &parts(&old)) {
        last = Some(full.apply(&command));
    }
    let (reason, message) = refused(&last.unwrap());
    assert_eq!(reason, "Forbidden");
    assert!(message.contains("10.9.0.0/23"), "{message}");
}

#[test]
fn tokens_and_answers_of_the_old_cluster_do_not_come_back_and_those_of_the_new_stay() {
    let token = |id: &str| {
        let token = Token {
            id: id.to_owned(),
            secret_hash: b"zq9-hash-zq9".to_vec(),
            role: "node".to_owned(),
            ..Default::default()
        };
        command(
            0,
            Body::Token(TokenChange {
                change: Some(Change::Create(token)),
            }),
        )
    };
    let mut old = cluster();
    applied(&old.apply(&token("old")));
    let mut asked = transaction(1, vec![put(config("a", "1"))]);
    asked.request_id = "request-of-old".to_owned();
    applied(&old.apply(&asked));
    let backup = bytes(&old.for_backup());
    for word in ["zq9-hash-zq9", "request-of-old"] {
        assert!(
            !backup.windows(word.len()).any(|some| some == word.as_bytes()),
            "{word}"
        );
    }
    let mut new = new_cluster();
    applied(&new.apply(&token("new")));
    // Whoever makes a backup by hand gets nothing by it either.
    let mut by_hand = new.clone();
    applied(&by_hand.apply(&restore("h", 1, 0, &bytes(&old))));
    let last = Restore {
        id: "h".to_owned(),
        part: 1,
        last: true,
        ..Default::default()
    };
    applied(&by_hand.apply(&command(1, Body::Restore(last))));
    for state in [restored_into(new, &old), by_hand] {
        let ids: Vec<&str> = state.tokens().map(|token| token.id.as_str()).collect();
        assert_eq!(ids, ["new"]);
        assert!(state.reply("request-of-old").is_none());
        assert!(state.contains(&key("ConfigMap", "a")));
    }
}

#[test]
fn a_cluster_that_has_something_is_left_alone() {
    let old = old_cluster().state;
    let mut new = new_cluster();
    run(&mut new, 1, vec![put(config("mine", "1"))]);
    let before = bytes(&new);
    for command in restoring("r", 2, &parts(&old)) {
        let (reason, message) = refused(&new.apply(&command));
        assert_eq!(reason, "Conflict");
        assert!(message.contains("ConfigMap default/mine"), "{message}");
    }
    assert_eq!(bytes(&new), before);
    // What the leader makes by itself, and nodes, are nothing.
    let mut own = Cluster::new(&["n1"]);
    own.settle(|_| {});
    assert!(own.state.occupied().is_none());
    restored_into(own.state, &old);
    let mut none = State::new();
    assert_eq!(refused(&none.apply(&restore("r", 1, 0, b""))).0, "Conflict");
}

#[test]
fn something_that_comes_during_a_restore_stops_it() {
    let old = old_cluster().state;
    let mut new = new_cluster();
    let mut commands = restoring("r", 2, &parts(&old));
    let last = commands.pop().unwrap();
    for command in &commands {
        applied(&new.apply(command));
    }
    run(&mut new, 3, vec![put(config("mine", "1"))]);
    assert_eq!(refused(&new.apply(&last)).0, "Conflict");
    assert!(new.contains(&key("ConfigMap", "mine")));
    assert!(!new.contains(&key("Deployment", "web")));
}

#[test]
fn until_the_last_part_the_cluster_is_as_empty_as_before_and_what_was_put_aside_goes() {
    let old = old_cluster().state;
    let parts = parts(&old);
    let before = new_cluster();
    let part = |state: &mut State, id: &str, now, number: usize| {
        let command = restore(id, now, number as u64, &parts[number]);
        state.apply(&command)
    };
    let mut begun = before.clone();
    for number in 0..3 {
        applied(&part(&mut begun, "r", 1, number));
    }
    assert_eq!(begun.revision(), before.revision());
    assert_eq!(begun.list(Kind::Pod, None, None).count(), 0);
    assert_ne!(
        bytes(&begun),
        bytes(&before),
        "a member that joins now gets the parts too"
    );

    // Given up, also by somebody who was late.
    let mut given_up = begun.clone();
    applied(&given_up.apply(&abandon("other", 2)));
    assert_eq!(bytes(&given_up), bytes(&begun));
    applied(&given_up.apply(&abandon("r", 2)));
    assert_eq!(bytes(&given_up), bytes(&before));

    // Another one takes its place; the first finds out.
    let mut other = begun.clone();
    applied(&part(&mut other, "s", 2, 0));
    assert_eq!(refused(&part(&mut other, "r", 2, 3)).0, "Conflict");
    applied(&part(&mut other, "s", 2, 1));

    // A part is missing, or comes twice.
    assert_eq!(refused(&part(&mut begun, "r", 2, 4)).0, "Conflict");
    assert_eq!(refused(&part(&mut begun, "r", 2, 2)).0, "Conflict");
    applied(&part(&mut begun, "r", 2, 3));

    // Nobody goes on with it for ten minutes.
    let tick = |now| command(now, Body::Status(Default::default()));
    applied(&begun.apply(&tick(600_002)));
    applied(&part(&mut begun.clone(), "r", 600_002, 4));
    applied(&begun.apply(&tick(600_003)));
    assert_eq!(bytes(&begun), bytes(&before));
    assert_eq!(refused(&part(&mut begun, "r", 600_003, 4)).0, "Conflict");
}

#[test]
fn a_backup_that_is_damaged_or_cut_changes_nothing() {
    let old = old_cluster().state;
    let whole = parts(&old);
    let tried = |parts: &[Vec<u8>]| {
        let mut state = new_cluster();
        let mut last = None;
        for command in restoring("r", 1, parts) {
            last = Some(state.apply(&command));
        }
        (state, last.unwrap())
    };
    assert!(tried(&whole).1.applied());
    let without_end = whole[..whole.len() - 1].to_vec();
    let without_one = [&whole[..3], &whole[4..]].concat();
    let exchanged = [&whole[1..], &whole[..1]].concat();
    let twice = [&whole[..], &whole].concat();
    for parts in [
        Vec::new(),
        without_end,
        without_one,
        exchanged,
        twice,
        vec![vec![0xff; 20]],
    ] {
        let (mut state, outcome) = tried(&parts);
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, "Invalid");
        assert!(message.starts_with("it is no whole backup"), "{message}");
        applied(&state.apply(&abandon("r", 1)));
        assert_eq!(bytes(&state), bytes(&new_cluster()));
    }
}

#[test]
fn a_state_that_never_was_is_refused() {
    // An object whose namespace is not in it: every record can be read, and together they are no state.
    let mut old = cluster();
    run(&mut old, 1, vec![put(namespace("a"))]);
    let mut inside = config("c", "1");
    "a".clone_into(&mut model::object::meta_mut(&mut inside).namespace);
    run(&mut old, 2, vec![put(inside)]);
    let whole = parts(&old);
    let bare: Vec<Vec<u8>> = whole
        .iter()
        .filter(|part| {
            let text = String::from_utf8_lossy(part);
            !(text.contains("Namespace") && text.contains("uid-a"))
        })
        .cloned()
        .collect();
    assert_eq!(bare.len(), whole.len() - 1);
    // The end counts the records.
    let mut bare = bare;
    let end = bare.pop().unwrap();
    let at = end.len() - 1;
    let mut end = end;
    end[at] -= 1;
    bare.push(end);
    let mut new = new_cluster();
    let mut last = None;
    for command in restoring("r", 1, &bare) {
        last = Some(new.apply(&command));
    }
    let (reason, message) = refused(&last.unwrap());
    assert_eq!(reason, "Invalid");
    assert!(message.contains("its namespace does not exist"), "{message}");
}

#[test]
fn restores_without_an_id_or_with_a_senseless_one_are_refused() {
    let mut new = new_cluster();
    for id in ["", &"x".repeat(state::REQUEST_ID_BYTES_MAX + 1)] {
        assert_eq!(refused(&new.apply(&restore(id, 1, 0, b""))).0, "Invalid");
        assert_eq!(refused(&new.apply(&abandon(id, 1))).0, "Invalid");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever state there was: it comes back, the invariants hold, and nothing of it is newer than the jump.
    #[test]
    fn every_state_comes_back(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut old = cluster();
        applied(&old.apply(&join(0, "n1")));
        for command in &commands {
            old.apply(command);
        }
        let mut target = new_cluster();
        raise(&mut target, old.level());
        let new = restored_into(target, &old);
        prop_assert!(new.revision() >= old.revision() + REVISION_JUMP);
        for kind in Kind::ALL {
            let (was, is) = (old.count(kind), new.count(kind));
            prop_assert!(is == was || (kind == Kind::Pod && is < was), "{}: {was}, {is}", kind.as_str());
        }
        prop_assert_eq!(new.pods_on("n1").count(), 0);
    }

    #[test]
    fn no_bytes_of_a_restore_break_the_state(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut state = new_cluster();
        for command in restoring("r", 1, &pieces) {
            state.apply(&command);
            invariant::check(&state).unwrap();
        }
        let mut altered = bytes(&old_small().for_backup());
        let at = at.index(altered.len());
        altered[at] ^= flip;
        for command in restoring("s", 1, &[altered]) {
            state.apply(&command);
            invariant::check(&state).unwrap();
        }
    }
}

fn old_small() -> State {
    let mut state = cluster_with_bound_pod("p");
    run(&mut state, 3_000, vec![put(config("c", "1"))]);
    state
}
