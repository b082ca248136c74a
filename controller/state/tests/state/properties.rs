//! Random commands: whatever comes, the invariants hold, copies agree, and bytes come back as the same state.

use proptest::prelude::*;
use prost::Message;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Apply, Bind, Command, CreatePods, DeleteOp, Key, NewPod, Operation, Put, RaiseLevel, Remove, Scale,
    SetStatus, Transaction,
};
use proto::v1::{Object, OwnerReference};
use state::plan::{Lease, World};
use state::{Outcome, State, invariant, plan, schedule};

use crate::support::*;

const KINDS: [&str; 6] = [
    "Namespace",
    "Node",
    "Pod",
    "ConfigMap",
    "Deployment",
    "ReplicaSet",
];

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "n1", "n2", "default"]).prop_map(str::to_owned)
}

fn any_namespace() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["default", "a", "b", ""]).prop_map(str::to_owned)
}

fn any_uid() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        (0..12).prop_map(|number| format!("u{number}"))
    ]
}

fn any_key() -> impl Strategy<Value = Key> {
    let kind = prop::sample::select([&KINDS[..], &["Event", "Nonsense"]].concat());
    (kind, any_namespace(), any_name()).prop_map(|(kind, namespace, name)| Key {
        kind: kind.to_owned(),
        namespace,
        name,
    })
}

fn any_finalizers() -> impl Strategy<Value = Vec<String>> {
    let names = vec!["x/a", "x/b", "foregroundDeletion"];
    let some = prop::sample::subsequence(names, 0..=2);
    let some = some.prop_map(|names| names.into_iter().map(str::to_owned).collect());
    prop_oneof![3 => Just(Vec::new()), 1 => some]
}

fn any_object() -> impl Strategy<Value = Object> {
    let parts = (
        any_name(),
        any_namespace(),
        any_uid(),
        prop::collection::vec(any_uid(), 0..3),
        any_finalizers(),
        0..6_usize,
        0..4_i32,
    );
    parts.prop_map(|(name, namespace, uid, owners, finalizers, kind, number)| {
        let mut object = match KINDS[kind] {
            "Namespace" => super::support::namespace("x"),
            "Node" => model::object::from(proto::v1::Node::default()),
            "Pod" => model::object::from(pod("x")),
            "ConfigMap" => config("x", &number.to_string()),
            "Deployment" => model::object::from(deployment("x", number, &format!("web:{}", number % 2))),
            _ => {
                let spec = deployment("x", number, "web:1").spec.unwrap();
                let spec = proto::v1::ReplicaSetSpec {
                    replicas: spec.replicas,
                    selector: spec.selector,
                    template: spec.template,
                    ..Default::default()
                };
                model::object::from(proto::v1::ReplicaSet {
                    spec: Some(spec),
                    ..Default::default()
                })
            }
        };
        let meta = model::object::meta_mut(&mut object);
        let controller = (number > 1).then_some(true);
        meta.owner_references = owners
            .into_iter()
            .map(|uid| OwnerReference {
                uid,
                controller,
                ..Default::default()
            })
            .collect();
        (meta.name, meta.namespace, meta.uid, meta.finalizers) = (name, namespace, uid, finalizers);
        object
    })
}

fn any_operation() -> impl Strategy<Value = Op> {
    let propagation = prop::sample::select(vec!["", "Background", "Foreground", "Orphan"]);
    prop_oneof![
        6 => any_object().prop_map(|object| Op::Put(Put { object: Some(object) })),
        3 => (any_object(), any_object(), 0..11_u32).prop_map(|(object, said, manager)| {
            let manager = if manager == 10 { String::new() } else { format!("m{manager}") };
            Op::Apply(Apply { object: Some(object), manager, said: Some(said) })
        }),
        3 => (any_key(), any_uid(), propagation, prop::option::of(-1..40_i32)).prop_map(|(key, uid, propagation, grace)| {
            Op::Delete(DeleteOp {
                key: Some(key),
                uid,
                propagation: propagation.to_owned(),
                grace_period_seconds: grace,
            })
        }),
        2 => (any_namespace(), any_name(), any_name()).prop_map(|(namespace, name, node)| {
            let key = Key { kind: "Pod".to_owned(), namespace, name };
            Op::Bind(Bind { pod: Some(key), uid: String::new(), node })
        }),
        1 => (any_key(), -2..5_i32).prop_map(|(key, replicas)| {
            Op::Scale(Scale { key: Some(key), uid: String::new(), replicas })
        }),
        1 => (any_key(), any_uid()).prop_map(|(key, uid)| Op::Remove(Remove { key: Some(key), uid })),
        1 => any_object().prop_map(|object| {
            Op::SetStatus(SetStatus { object: Some(object), remove_conditions: vec!["Ready".to_owned()] })
        }),
        1 => (any_namespace(), any_name(), any_name(), any_uid()).prop_map(|(namespace, owner, name, uid)| {
            let owner = Key { kind: "ReplicaSet".to_owned(), namespace, name: owner };
            Op::CreatePods(CreatePods { owner: Some(owner), uid: String::new(), pods: vec![NewPod { name, uid }] })
        }),
    ]
}

pub(crate) fn any_command() -> impl Strategy<Value = Command> {
    let operations = prop::collection::vec(any_operation(), 0..4);
    let kind = prop_oneof![
        8 => (operations, prop::bool::weighted(0.1)).prop_map(|(operations, dry_run)| {
            let wrap = |operation| Operation { operation: Some(operation) };
            let operations = operations.into_iter().map(wrap).collect();
            Body::Transaction(Transaction { operations, dry_run, ..Default::default() })
        }),
        2 => (any_uid(), any_name(), any::<bool>(), any::<bool>()).prop_map(|(uid, node, ready, gone)| {
            report_by_uid(0, &uid, &node, Some(running(ready)), gone).kind.unwrap()
        }),
        1 => any_name().prop_map(|name| join(0, &name).kind.unwrap()),
        1 => Just(Body::Settings(settings())),
        1 => (0..=state::SCHEMA_LEVEL).prop_map(|level| Body::RaiseLevel(RaiseLevel { level })),
    ];
    let id = prop::option::weighted(0.3, 0..8_u32);
    let actor = prop::sample::select(vec!["", "", "ada", "bob"]);
    (kind, id, actor, 0..100_000_i64).prop_map(|(kind, id, actor, now)| {
        let mut command = command(now, kind);
        command.actor = actor.to_owned();
        command.request_id = id.map(|id| id.to_string()).unwrap_or_default();
        command
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_invariants_hold(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = cluster();
        applied(&state.apply(&join(0, "n1")));
        let mut copy = State::decode(state.encode()).unwrap();
        for command in &commands {
            let before = state.clone();
            let before_bytes = bytes(&before);
            let outcome = state.apply(command);
            prop_assert_eq!(&copy.apply(command), &outcome);
            invariant::check(&state).unwrap();
            // A step for each change, and none without.
            let steps: Vec<u64> = outcome.changes.iter().map(|change| change.revision).collect();
            prop_assert_eq!(steps, (before.revision() + 1..=state.revision()).collect::<Vec<_>>());
            prop_assert_eq!(bytes(&before), before_bytes, "a snapshot never changes");
        }
        let encoded = bytes(&state);
        prop_assert_eq!(&bytes(&copy), &encoded);
        let decoded = State::decode(encoded.chunks(7)).unwrap();
        invariant::check(&decoded).unwrap();
        prop_assert_eq!(bytes(&decoded), encoded);
    }

    #[test]
    fn commands_together_come_to_what_they_come_to_one_by_one(
        commands in prop::collection::vec(any_command(), 1..60),
        cut in 0..60_usize,
    ) {
        let mut one_by_one = cluster();
        let mut together = one_by_one.clone();
        let outcomes: Vec<Outcome> = commands.iter().map(|command| one_by_one.apply(command)).collect();
        let (first, second) = commands.split_at(cut.min(commands.len()));
        let mut all = together.apply_all(first);
        let between = together.clone();
        let between_bytes = bytes(&between);
        all.extend(together.apply_all(second));
        prop_assert_eq!(all, outcomes);
        invariant::check(&together).unwrap();
        prop_assert_eq!(bytes(&together), bytes(&one_by_one));
        prop_assert_eq!(bytes(&between), between_bytes, "a snapshot never changes");
    }

    /// From any state the plans come to rest, and what they say never breaks anything.
    #[test]
    fn the_plans_come_to_rest(commands in prop::collection::vec(any_command(), 1..60), lost in any::<bool>()) {
        let mut state = cluster();
        for command in &commands {
            state.apply(command);
        }
        let lease = if lost { Lease::Lost { since: 0, past_ms: 1 << 40 } } else { Lease::Live };
        let leases = ["n1", "a", "b"].map(|name| (name.to_owned(), lease));
        let world = World { leases: leases.into() };
        let mut now = 1_000_000;
        let mut quiet = 0;
        for _ in 0..400 {
            now += 1000;
            let mut commands = plan::commands(&state, now, &world);
            commands.extend(schedule::commands(&state, now).0);
            let before = state.revision();
            for command in commands {
                state.apply(&command);
                invariant::check(&state).unwrap();
            }
            quiet = if state.revision() == before { quiet + 1 } else { 0 };
            if quiet > 70 {
                return Ok(());
            }
        }
        prop_assert!(false, "the plans never rest");
    }

    #[test]
    fn no_bytes_make_the_state_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(command) = Command::decode(bytes.as_slice()) {
            let mut state = cluster();
            state.apply(&command);
            invariant::check(&state).unwrap();
        }
        // Refused or not: it must come back.
        drop(State::decode([bytes]));
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_is_a_state(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut state = cluster();
        applied(&state.apply(&join(0, "n1")));
        run(&mut state, 1, vec![put(model::object::from(pod("p"))), put(config("a", "1"))]);
        let mut encoded = bytes(&state);
        let index = at.index(encoded.len());
        encoded[index] ^= 1 << bit;
        drop(State::decode([&encoded]));
        prop_assert!(State::decode([&encoded[..index]]).is_err(), "a snapshot that is cut is refused");
    }
}

#[test]
fn chunks_are_bounded() {
    let mut state = cluster();
    for number in 0..40 {
        run(
            &mut state,
            1,
            vec![put(config(&format!("c{number}"), &"x".repeat(100_000)))],
        );
    }
    let sizes: Vec<usize> = state.encode().map(|chunk| chunk.len()).collect();
    assert!(sizes.len() > 10);
    assert!(sizes.iter().all(|size| *size < 400_000), "{sizes:?}");
}

#[test]
fn pods_of_one_template_share_it() {
    let mut state = cluster();
    let pods = (0..1000)
        .map(|number| put(model::object::from(pod(&format!("p{number}")))))
        .collect();
    run(&mut state, 1, pods);
    let template = model::object::from(pod("x")).encoded_len();
    assert!(
        bytes(&state).len() < 1000 * (template + 60),
        "a pod takes little more than its name and uid"
    );
}
