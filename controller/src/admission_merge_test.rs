//! What an apply makes of what is there, and what it prunes; one claim a test.

use model::Kind;
use proto::state::v1::Scale;
use proto::v1::Object;
use proto::v1::object::Object as Any;

use super::tests::{Cluster, deployment, in_mode, item, map, outcomes, told};
use super::*;

#[test]
fn the_number_of_replicas_stays_where_a_manifest_leaves_it_out() {
    let mut cluster = Cluster::new();
    let replicas = |cluster: &Cluster| {
        let Some(Any::Deployment(deployment)) = cluster.get(Kind::Deployment, "web").object else {
            unreachable!()
        };
        deployment.spec.unwrap().replicas
    };
    let scale = |replicas| {
        let scale = Scale {
            key: Some(object::key_of(Kind::Deployment, "default", "web")),
            uid: String::new(),
            replicas,
        };
        Body::Transaction(Transaction {
            operations: vec![Operation {
                operation: Some(Op::Scale(scale)),
            }],
            ..Default::default()
        })
    };
    cluster.apply(&[item(deployment(None))], "r1");
    assert_eq!(replicas(&cluster), Some(1));
    cluster.tell(scale(4));
    assert_eq!(
        outcomes(&cluster.apply(&[item(deployment(None))], "r2")),
        ["unchanged"]
    );
    assert_eq!(replicas(&cluster), Some(4));
    // Mentioned, it is taken over; then left out, it is the default again.
    cluster.apply(&[item(deployment(Some(3)))], "r3");
    assert_eq!(replicas(&cluster), Some(3));
    cluster.apply(&[item(deployment(None))], "r4");
    assert_eq!(replicas(&cluster), Some(1));
    cluster.tell(scale(4));
    cluster.apply(&[in_mode("REPLACE", deployment(None))], "r5");
    assert_eq!(replicas(&cluster), Some(1));
}

#[test]
fn what_was_said_is_remembered_also_where_it_changes_nothing() {
    let mut cluster = Cluster::new();
    cluster.apply(&[in_mode("CREATE", map("a", "", "1"))], "r1");
    assert_eq!(cluster.0.said(&object::key(&map("a", "default", ""))), []);
    let revision = cluster.0.revision();
    assert_eq!(
        outcomes(&cluster.apply(&[item(map("a", "", "1"))], "r2")),
        ["unchanged"]
    );
    assert_eq!(cluster.0.revision(), revision);
    let mut without = map("a", "", "1");
    if let Some(Any::ConfigMap(map)) = &mut without.object {
        map.data.clear();
    }
    assert_eq!(outcomes(&cluster.apply(&[item(without)], "r3")), ["configured"]);
    let Some(Any::ConfigMap(map)) = cluster.get(Kind::ConfigMap, "a").object else {
        panic!("a config map")
    };
    assert!(map.data.is_empty());
}

#[test]
fn a_field_that_is_mentioned_as_empty_has_to_be_one() {
    let cluster = Cluster::new();
    let with = |paths: &[&str]| {
        [ApplyItem {
            empty: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..item(deployment(None))
        }]
    };
    assert!(
        cluster
            .decide(&with(&["spec.paused", "spec.replicas"]), "r")
            .is_ok()
    );
    let refusals = cluster.refusals(&with(&["spec.selector", "spec.pause"]));
    assert_eq!(
        refusals,
        [
            told(0, "spec.pause", "Invalid"),
            told(0, "spec.selector", "Invalid")
        ]
    );
}

fn labelled(name: &str, set: &str) -> Object {
    let mut map = map(name, "", "1");
    let labels = &mut object::meta_mut(&mut map).labels;
    labels.insert("set".to_owned(), set.to_owned());
    map
}

#[test]
fn prune_removes_what_this_manager_applied_of_the_set_and_nothing_else() {
    let mut cluster = Cluster::new();
    cluster.apply(
        &[
            item(labelled("keep", "web")),
            item(labelled("go", "web")),
            item(labelled("other-set", "db")),
            in_mode("CREATE", labelled("made", "web")),
        ],
        "r1",
    );
    let items = [item(labelled("theirs", "web"))];
    let theirs = cluster.decide_as("ci", &items, "r2", None).unwrap();
    cluster.tell(Body::Transaction(theirs.transaction));
    let prune = Prune {
        label_selector: "set=web".to_owned(),
        namespaces: Vec::new(),
    };
    let items = [item(labelled("keep", "web"))];
    let decision = cluster.decide_as("ctl", &items, "r3", Some(&prune)).unwrap();
    assert_eq!(outcomes(&decision.results), ["unchanged", "pruned"]);
    let applied = cluster.tell(Body::Transaction(decision.transaction));
    let answer = results(&cluster.0, &items, "r3", &applied);
    assert_eq!(outcomes(&answer), ["unchanged", "pruned"]);
    assert_eq!(object::meta(answer[1].object.as_ref().unwrap()).name, "go");
    let left = cluster.0.list(Kind::ConfigMap, None, None);
    let left: Vec<String> = left.map(|object| object::meta(&object).name.clone()).collect();
    assert_eq!(left, ["keep", "made", "other-set", "theirs"]);
}

#[test]
fn prune_is_refused_without_a_set_and_for_what_is_outside_of_it() {
    let cluster = Cluster::new();
    let refused = |selector: &str| {
        let prune = Prune {
            label_selector: selector.to_owned(),
            namespaces: Vec::new(),
        };
        let items = [item(labelled("a", "web"))];
        let refusals = cluster.decide_as("ctl", &items, "r", Some(&prune)).unwrap_err();
        refusals[0].message.clone()
    };
    assert!(refused("").contains("needs a label selector"));
    assert!(refused("a in (").contains("is not one"));
    assert!(refused("set=db").contains("does not have the labels"));
}

#[test]
fn finalizers_of_others_stay() {
    let mut cluster = Cluster::new();
    let apply = |cluster: &mut Cluster, manager: &str, names: &[&str], request: &str| {
        let mut object = map("a", "", "1");
        object::meta_mut(&mut object).finalizers = names.iter().map(|name| (*name).to_owned()).collect();
        let decision = cluster
            .decide_as(manager, &[item(object)], request, None)
            .unwrap();
        cluster.tell(Body::Transaction(decision.transaction));
        let live = cluster.get(Kind::ConfigMap, "a");
        object::meta(&live).finalizers.join(" ")
    };
    let mut told =
        |manager: &str, names: &[&str], request: &str| apply(&mut cluster, manager, names, request);
    assert_eq!(told("one", &["x/a", "x/b"], "r1"), "x/a x/b");
    assert_eq!(told("two", &["x/b", "x/c"], "r2"), "x/a x/b x/c");
    // Of the first alone, of both, of the second alone.
    assert_eq!(told("one", &["x/d"], "r3"), "x/b x/c x/d");
    assert_eq!(told("two", &[], "r4"), "x/d");
}
