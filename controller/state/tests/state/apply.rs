//! Settings, transactions, puts, scale, bind, joins.

use model::object::{from, meta, meta_mut};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{ClusterSettings, NodeJoin, Precondition, Scale};
use proto::v1::object::Object as Any;
use proto::v1::{Node, NodeSpec, NodeStatus, NodeSystemInfo, ObjectMeta};
use state::State;

use crate::support::*;

#[test]
fn settings_make_the_default_namespace_once() {
    let mut state = cluster();
    let before = bytes(&state);
    applied(&state.apply(&command(5, Body::Settings(settings()))));
    assert_eq!(bytes(&state), before);
    let other = ClusterSettings {
        cluster_id: "c2".to_owned(),
        ..settings()
    };
    assert_eq!(
        refused(&state.apply(&command(5, Body::Settings(other)))).0,
        "AlreadyExists"
    );
    assert_eq!(state.count(model::Kind::Namespace), 1);
}

#[test]
fn a_transaction_is_carried_out_whole_or_not_at_all() {
    let mut state = cluster();
    let before = bytes(&state);
    let outcome = state.apply(&transaction(
        1,
        vec![put(config("a", "1")), delete("ConfigMap", "missing")],
    ));
    assert_eq!(refused(&outcome).0, "NotFound");
    match outcome.reply.reply {
        Some(Reply::Refused(refused)) => assert_eq!(refused.index, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(bytes(&state), before);
}

#[test]
fn a_dry_run_answers_and_changes_nothing() {
    let mut state = cluster();
    let before = bytes(&state);
    let mut dry = transaction(1, vec![put(config("a", "1"))]);
    dry.request_id = "r".to_owned();
    if let Some(Body::Transaction(transaction)) = &mut dry.kind {
        transaction.dry_run = true;
    }
    let outcome = state.apply(&dry);
    assert!(outcome.changes.is_empty());
    match outcome.reply.reply {
        Some(Reply::Applied(applied)) => assert_eq!(meta(&applied.objects[0]).name, "a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bytes(&state), before);
}

#[test]
fn a_retry_gets_the_first_answer() {
    let mut state = cluster();
    let mut create = transaction(1, vec![put(config("a", "1"))]);
    create.request_id = "r1".to_owned();
    let first = state.apply(&create);
    run(&mut state, 2, vec![delete("ConfigMap", "a")]);
    let second = state.apply(&create);
    assert_eq!(first.reply, second.reply);
    assert!(second.changes.is_empty());
    assert!(state.get(&key("ConfigMap", "a")).is_none());
}

#[test]
fn a_put_that_changes_nothing_is_no_change() {
    let mut state = cluster();
    for object in [
        config("a", "1"),
        from(pod("p")),
        from(deployment("d", 2, "web:1")),
        namespace("n"),
    ] {
        run(&mut state, 1, vec![put(object.clone())]);
        let revision = state.revision();
        let outcome = run(&mut state, 2, vec![put(object.clone())]);
        assert_eq!(
            (state.revision(), outcome.changes.len()),
            (revision, 0),
            "{object:?}"
        );
        // What was read can be put back as well.
        let read = state.get(&model::object::key(&object)).unwrap();
        run(&mut state, 3, vec![put(read)]);
        assert_eq!(state.revision(), revision);
    }
}

#[test]
fn generation_rises_with_the_spec_alone() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(from(deployment("d", 2, "web:1")))]);
    let first = meta(&get(&state, "Deployment", "d")).clone();
    let mut labelled = from(deployment("d", 2, "web:1"));
    meta_mut(&mut labelled)
        .labels
        .insert("a".to_owned(), "b".to_owned());
    run(&mut state, 2, vec![put(labelled.clone())]);
    let second = meta(&get(&state, "Deployment", "d")).clone();
    assert_eq!((first.generation, second.generation), (1, 1));
    assert_ne!(first.resource_version, second.resource_version);
    run(&mut state, 3, vec![put(from(deployment("d", 3, "web:1")))]);
    let third = meta(&get(&state, "Deployment", "d")).clone();
    assert_eq!(third.generation, 2);
    assert_eq!((third.uid, third.creation_timestamp), (first.uid, Some(time(1))));
}

#[test]
fn each_changed_object_is_one_step_of_the_revision() {
    let mut state = cluster();
    let before = state.revision();
    let outcome = run(
        &mut state,
        1,
        vec![
            put(config("a", "1")),
            put(config("b", "1")),
            delete("ConfigMap", "a"),
        ],
    );
    let steps: Vec<u64> = outcome.changes.iter().map(|change| change.revision).collect();
    assert_eq!(steps, [before + 1, before + 2, before + 3]);
    let kinds: Vec<&str> = outcome
        .changes
        .iter()
        .map(|change| change.happened.as_str())
        .collect();
    assert_eq!(kinds, ["ADDED", "ADDED", "DELETED"]);
    for change in &outcome.changes {
        assert_eq!(
            meta(change.object()).resource_version,
            change.revision.to_string()
        );
    }
}

#[test]
fn preconditions_hold_or_nothing_happens() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(config("a", "1"))]);
    let version = meta(&get(&state, "ConfigMap", "a")).resource_version.clone();
    let cases = [
        (Expect::Absent(true), Some("AlreadyExists")),
        (Expect::Uid("other".to_owned()), Some("Conflict")),
        (Expect::Uid(uid("a")), None),
        (Expect::ResourceVersion("1".to_owned()), Some("Conflict")),
        (Expect::ResourceVersion(version), None),
    ];
    for (expect, reason) in cases {
        let mut command = transaction(2, vec![]);
        if let Some(Body::Transaction(transaction)) = &mut command.kind {
            let key = Some(key("ConfigMap", "a"));
            transaction.preconditions = vec![Precondition {
                key,
                expect: Some(expect.clone()),
            }];
        }
        let outcome = state.apply(&command);
        match reason {
            Some(reason) => assert_eq!(refused(&outcome).0, reason, "{expect:?}"),
            None => applied(&outcome),
        }
    }
}

#[test]
fn nothing_is_created_without_a_live_namespace() {
    let mut state = cluster();
    let mut object = config("a", "1");
    meta_mut(&mut object).namespace = "prod".to_owned();
    assert_eq!(
        refused(&state.apply(&transaction(1, vec![put(object.clone())]))).0,
        "NotFound"
    );
    run(&mut state, 2, vec![put(namespace("prod")), put(object)]);
    run(&mut state, 3, vec![delete("Namespace", "prod")]);
    let mut late = config("b", "1");
    meta_mut(&mut late).namespace = "prod".to_owned();
    let (reason, message) = refused(&state.apply(&transaction(4, vec![put(late)])));
    assert_eq!(reason, "Forbidden");
    assert!(message.contains("being deleted"), "{message}");
}

#[test]
fn senseless_objects_are_refused() {
    let mut state = cluster();
    let mut nameless = config("a", "1");
    meta_mut(&mut nameless).name.clear();
    let mut anonymous = config("a", "1");
    meta_mut(&mut anonymous).uid.clear();
    let large = config("a", &"x".repeat(state::OBJECT_BYTES_MAX));
    let event = from(proto::v1::Event {
        metadata: Some(ObjectMeta {
            name: "e".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    for object in [nameless, anonymous, large, event, proto::v1::Object::default()] {
        assert_eq!(
            refused(&state.apply(&transaction(1, vec![put(object)]))).0,
            "Invalid"
        );
    }
    let node = from(Node {
        metadata: Some(meta_of_node("n1")),
        ..Default::default()
    });
    assert_eq!(
        refused(&state.apply(&transaction(1, vec![put(node)]))).0,
        "Forbidden"
    );
    let many = vec![delete("ConfigMap", "a"); state::OPERATIONS_MAX + 1];
    assert_eq!(refused(&state.apply(&transaction(1, many))).0, "Invalid");
}

fn meta_of_node(name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: String::new(),
        ..crate::support::meta(name)
    }
}

#[test]
fn another_object_under_the_same_name_is_a_conflict() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(config("a", "1"))]);
    let mut other = config("a", "2");
    meta_mut(&mut other).uid = "new".to_owned();
    assert_eq!(
        refused(&state.apply(&transaction(2, vec![put(other)]))).0,
        "Conflict"
    );
}

#[test]
fn scale_sets_replicas_and_nothing_else() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(from(deployment("d", 2, "web:1")))]);
    let scale = |replicas| {
        Op::Scale(Scale {
            key: Some(key("Deployment", "d")),
            replicas,
            ..Default::default()
        })
    };
    run(&mut state, 2, vec![scale(5)]);
    match get(&state, "Deployment", "d").object {
        Some(Any::Deployment(deployment)) => assert_eq!(deployment.spec.unwrap().replicas, Some(5)),
        other => panic!("{other:?}"),
    }
    assert_eq!(run(&mut state, 3, vec![scale(5)]).changes.len(), 0);
    assert_eq!(
        refused(&state.apply(&transaction(4, vec![scale(-1)]))).0,
        "Invalid"
    );
}

#[test]
fn a_pod_is_bound_once() {
    let mut state = cluster_with_bound_pod("p");
    let pod = get_pod(&state, "p");
    assert_eq!(pod.spec.unwrap().node_name, "n1");
    let conditions = pod.status.unwrap().conditions;
    assert_eq!(
        (conditions[0].r#type.as_str(), conditions[0].status.as_str()),
        ("PodScheduled", "True")
    );
    assert_eq!(
        refused(&state.apply(&transaction(3, vec![bind("p", "n1")]))).0,
        "Conflict"
    );
    assert_eq!(state.pods_on("n1").count(), 1);
    run(&mut state, 4, vec![put(from(crate::support::pod("q")))]);
    assert_eq!(
        refused(&state.apply(&transaction(5, vec![bind("q", "n9")]))).0,
        "NotFound"
    );
}

#[test]
fn a_bound_pod_does_not_move() {
    let mut state = cluster_with_bound_pod("p");
    let mut moved = pod("p");
    moved.spec.as_mut().unwrap().node_name = "n2".to_owned();
    assert_eq!(
        refused(&state.apply(&transaction(3, vec![put(from(moved))]))).0,
        "Invalid"
    );
    let revision = state.revision();
    run(&mut state, 4, vec![put(from(pod("p")))]);
    assert_eq!(
        state.revision(),
        revision,
        "the manifest without nodeName is no change"
    );
}

#[test]
fn nodes_get_the_next_free_range_and_keep_it() {
    let mut state = cluster();
    for name in ["n1", "n2", "n3"] {
        applied(&state.apply(&join(1, name)));
    }
    assert_eq!(cidrs(&state), ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
    run(&mut state, 2, vec![delete("Node", "n2")]);
    let before = bytes(&state);
    applied(&state.apply(&join(3, "n3")));
    assert_eq!(bytes(&state), before, "joining again changes nothing");
    applied(&state.apply(&join(4, "n4")));
    assert_eq!(cidrs(&state), ["10.244.0.0/24", "10.244.2.0/24", "10.244.1.0/24"]);
    let mut moved = get(&state, "Node", "n1");
    if let Some(Any::Node(node)) = &mut moved.object {
        node.spec = Some(NodeSpec {
            pod_cidr: "10.0.0.0/24".to_owned(),
            unschedulable: true,
        });
    }
    assert_eq!(
        refused(&state.apply(&transaction(5, vec![put(moved)]))).0,
        "Invalid"
    );
}

fn cidrs(state: &State) -> Vec<&str> {
    state
        .nodes()
        .map(|node| node.spec.as_ref().unwrap().pod_cidr.as_str())
        .collect()
}

#[test]
fn a_node_carries_the_usual_labels() {
    let mut state = cluster();
    let info = NodeSystemInfo {
        architecture: "arm64".to_owned(),
        ..Default::default()
    };
    let status = Some(NodeStatus {
        node_info: Some(info),
        ..Default::default()
    });
    let mut metadata = meta_of_node("n1");
    metadata.labels.insert("disk".to_owned(), "ssd".to_owned());
    let node = Node {
        metadata: Some(metadata),
        status,
        ..Default::default()
    };
    applied(&state.apply(&command(1, Body::NodeJoin(NodeJoin { node: Some(node) }))));
    let labels = meta(&get(&state, "Node", "n1")).labels.clone();
    let labels: Vec<(&str, &str)> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        labels,
        [
            ("disk", "ssd"),
            ("kubernetes.io/arch", "arm64"),
            ("kubernetes.io/hostname", "n1"),
            ("kubernetes.io/os", "linux"),
        ]
    );
}

#[test]
fn ranges_run_out_with_a_message() {
    let mut state = State::new();
    let small = ClusterSettings {
        pod_cidr: "10.0.0.0/23".to_owned(),
        ..settings()
    };
    assert_eq!(
        refused(&state.apply(&join(0, "n0"))).0,
        "Conflict",
        "not before there are settings"
    );
    applied(&state.apply(&command(0, Body::Settings(small))));
    applied(&state.apply(&join(1, "n1")));
    applied(&state.apply(&join(2, "n2")));
    let (reason, message) = refused(&state.apply(&join(3, "n3")));
    assert_eq!(reason, "Forbidden");
    assert!(message.contains("10.0.0.0/23"), "{message}");
}

#[test]
fn lists_go_by_name_and_can_be_cut() {
    let mut state = cluster();
    run(
        &mut state,
        1,
        vec![
            put(namespace("other")),
            put(config("c", "1")),
            put(config("a", "1")),
        ],
    );
    let mut elsewhere = config("b", "1");
    meta_mut(&mut elsewhere).namespace = "other".to_owned();
    run(&mut state, 2, vec![put(elsewhere)]);
    let names = |namespace: Option<&str>, after: Option<&str>| -> Vec<String> {
        let after = after.map(|name| key("ConfigMap", name));
        let list = state.list(model::Kind::ConfigMap, namespace, after.as_ref());
        list.map(|object| meta(&object).name.clone()).collect()
    };
    assert_eq!(names(None, None), ["a", "c", "b"]);
    assert_eq!(names(Some("default"), None), ["a", "c"]);
    assert_eq!(names(None, Some("a")), ["c", "b"]);
    assert_eq!(names(Some("other"), Some("c")), ["b"]);
}

#[test]
fn a_command_of_a_newer_schema_is_refused() {
    let mut state = cluster();
    let mut newer = transaction(1, vec![put(config("a", "1"))]);
    newer.level = state::SCHEMA_LEVEL + 1;
    assert_eq!(refused(&state.apply(&newer)).0, "Invalid");
}
