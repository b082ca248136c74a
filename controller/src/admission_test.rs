//! What an apply comes to, one claim a test.

use model::Kind;
use proto::state::v1::{Applied, ClusterSettings, DeleteOp, NodeJoin, RaiseLevel};
use proto::v1::object::Object as Any;
use proto::v1::{
    ConfigMap, Container, Deployment, DeploymentSpec, LabelSelector, Namespace, Node, Object, ObjectMeta,
    OwnerReference, Pod, PodSpec, PodStatus, PodTemplateSpec,
};

use super::*;

const NOW: Timestamp = Timestamp {
    seconds: 1_700_000_000,
    nanos: 0,
};

pub(super) struct Cluster(pub(super) State);

impl Cluster {
    pub(super) fn new() -> Self {
        let mut cluster = Self(State::new());
        cluster.tell(Body::Settings(ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }));
        cluster.tell(Body::RaiseLevel(RaiseLevel {
            level: proto::SCHEMA_LEVEL,
        }));
        cluster
    }

    pub(super) fn tell(&mut self, kind: Body) -> Applied {
        let command = Command {
            time: Some(NOW),
            level: 1,
            kind: Some(kind),
            ..Default::default()
        };
        match self.0.apply(&command).reply.reply {
            Some(Reply::Applied(applied)) => applied,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn decide(&self, items: &[ApplyItem], request: &str) -> Result<Decision, Vec<Refusal>> {
        self.decide_as("ctl", items, request, None)
    }

    pub(super) fn decide_as(
        &self,
        manager: &str,
        items: &[ApplyItem],
        id: &str,
        prune: Option<&Prune>,
    ) -> Result<Decision, Vec<Refusal>> {
        let asked = Asked {
            items,
            id,
            manager,
            prune,
        };
        decide(&self.0, &asked, NOW)
    }

    /// As the API does it.
    pub(super) fn apply(&mut self, items: &[ApplyItem], request: &str) -> Vec<ApplyResult> {
        let decision = self.decide(items, request).unwrap();
        let written = if decision.transaction.operations.is_empty() {
            Applied::default()
        } else {
            self.tell(Body::Transaction(decision.transaction))
        };
        results(&self.0, items, request, &written)
    }

    pub(super) fn refusals(&self, items: &[ApplyItem]) -> Vec<(u32, String, String)> {
        let refusals = self.decide(items, "r").expect_err("it is refused");
        let told = |refusal: Refusal| (refusal.item, refusal.path, refusal.reason);
        refusals.into_iter().map(told).collect()
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> Object {
        self.0.get(&object::key_of(kind, "default", name)).unwrap()
    }
}

pub(super) fn item(object: Object) -> ApplyItem {
    ApplyItem {
        object: Some(object),
        ..Default::default()
    }
}

pub(super) fn in_mode(mode: &str, object: Object) -> ApplyItem {
    ApplyItem {
        mode: mode.to_owned(),
        ..item(object)
    }
}

fn meta(name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        ..Default::default()
    }
}

pub(super) fn map(name: &str, namespace: &str, value: &str) -> Object {
    object::from(ConfigMap {
        metadata: Some(meta(name, namespace)),
        data: [("key".to_owned(), value.to_owned())].into(),
        ..Default::default()
    })
}

fn namespace(name: &str) -> Object {
    object::from(Namespace {
        metadata: Some(meta(name, "")),
        ..Default::default()
    })
}

fn pod(name: &str, image: &str) -> Object {
    object::from(Pod {
        metadata: Some(meta(name, "")),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: image.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    })
}

pub(super) fn deployment(replicas: Option<i32>) -> Object {
    let labels = [("app".to_owned(), "web".to_owned())];
    let Some(Any::Pod(pod)) = pod("", "hello:1").object else {
        unreachable!()
    };
    object::from(Deployment {
        metadata: Some(meta("web", "")),
        spec: Some(DeploymentSpec {
            replicas,
            selector: Some(LabelSelector {
                match_labels: labels.clone().into(),
                ..Default::default()
            }),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels.into(),
                    ..Default::default()
                }),
                spec: pod.spec,
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

pub(super) fn outcomes(results: &[ApplyResult]) -> Vec<&str> {
    results.iter().map(|result| result.outcome.as_str()).collect()
}

pub(super) fn told(item: u32, path: &str, reason: &str) -> (u32, String, String) {
    (item, path.to_owned(), reason.to_owned())
}

#[test]
fn created_configured_unchanged() {
    let mut cluster = Cluster::new();
    let both = |value: &str| [item(map("a", "", value)), item(pod("p", "hello:1"))];
    assert_eq!(outcomes(&cluster.apply(&both("1"), "r1")), ["created", "created"]);
    let revision = cluster.0.revision();
    let again = cluster.decide(&both("1"), "r2").unwrap();
    assert!(again.transaction.operations.is_empty(), "nothing is written");
    assert_eq!(
        (outcomes(&again.results), again.revision),
        (vec!["unchanged"; 2], revision)
    );
    let results = cluster.apply(&both("2"), "r3");
    assert_eq!(outcomes(&results), ["configured", "unchanged"]);
    assert_eq!(cluster.0.revision(), revision + 1, "the pod was not touched");
    assert_eq!(object::meta(results[1].object.as_ref().unwrap()).name, "p");
}

#[test]
fn what_was_got_is_applied_again_without_a_change() {
    let mut cluster = Cluster::new();
    cluster.apply(
        &[
            item(map("a", "", "1")),
            item(pod("p", "hello:1")),
            item(deployment(Some(3))),
        ],
        "r1",
    );
    for (kind, name) in [
        (Kind::ConfigMap, "a"),
        (Kind::Pod, "p"),
        (Kind::Deployment, "web"),
    ] {
        let whole = cluster.get(kind, name);
        // As it is, and through YAML.
        let text = model::write::yaml(&whole);
        let read = model::read::manifests("a.yaml", text.as_bytes()).unwrap();
        for object in [whole.clone(), read[0].object.clone()] {
            let decision = cluster.decide(&[item(object)], "r2").unwrap();
            assert_eq!(outcomes(&decision.results), ["unchanged"], "{text}");
            assert_eq!(decision.results[0].object.as_ref(), Some(&whole));
        }
    }
}

#[test]
fn every_error_of_every_object_is_told_at_once() {
    let cluster = Cluster::new();
    let items = [
        item(map("Bad_Name", "", "1")),
        item(map("a", "nowhere", "1")),
        item(pod("p", "")),
        item(map("good", "", "1")),
    ];
    let refusals = cluster.refusals(&items);
    assert!(
        refusals.contains(&told(0, "metadata.name", "Invalid")),
        "{refusals:?}"
    );
    assert!(
        refusals.contains(&told(1, "metadata.namespace", "NotFound")),
        "{refusals:?}"
    );
    assert!(
        refusals.contains(&told(2, "spec.containers[0].image", "Invalid")),
        "{refusals:?}"
    );
    assert!(refusals.iter().all(|(item, ..)| *item != 3), "{refusals:?}");
}

#[test]
fn a_namespace_of_the_same_request_is_there_wherever_it_stands() {
    let mut cluster = Cluster::new();
    let items = [item(map("a", "new", "1")), item(namespace("new"))];
    let results = cluster.apply(&items, "r1");
    assert_eq!(outcomes(&results), ["created", "created"]);
    assert_eq!(object::meta(results[0].object.as_ref().unwrap()).name, "a");
    assert_eq!(object::meta(results[1].object.as_ref().unwrap()).name, "new");
    // Nothing new comes into one that goes.
    cluster.tell(Body::Transaction(Transaction {
        operations: vec![Operation {
            operation: Some(Op::Delete(DeleteOp {
                key: Some(object::key(&namespace("new"))),
                ..Default::default()
            })),
        }],
        ..Default::default()
    }));
    let refusals = cluster.refusals(&[item(map("b", "new", "1"))]);
    assert_eq!(refusals, [told(0, "metadata.namespace", "Forbidden")]);
}

#[test]
fn the_mode_says_whether_it_may_be_there() {
    let mut cluster = Cluster::new();
    let refused =
        |cluster: &Cluster, mode| cluster.refusals(&[in_mode(mode, map("a", "", "1"))])[0].2.clone();
    assert_eq!(refused(&cluster, "REPLACE"), "NotFound");
    assert_eq!(refused(&cluster, "UPSERT"), "Invalid");
    cluster.apply(&[in_mode("CREATE", map("a", "", "1"))], "r1");
    assert_eq!(refused(&cluster, "CREATE"), "AlreadyExists");
    let results = cluster.apply(&[in_mode("REPLACE", map("a", "", "2"))], "r2");
    assert_eq!(outcomes(&results), ["configured"]);
}

#[test]
fn an_older_resource_version_is_a_conflict() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(map("a", "", "1"))], "r1");
    let seen = cluster.get(Kind::ConfigMap, "a");
    cluster.apply(&[item(map("a", "", "2"))], "r2");
    assert_eq!(
        cluster.refusals(&[item(seen)]),
        [told(0, "metadata.resourceVersion", "Conflict")]
    );
    let mut newest = cluster.get(Kind::ConfigMap, "a");
    object::meta_mut(&mut newest)
        .labels
        .insert("new".to_owned(), "label".to_owned());
    assert_eq!(outcomes(&cluster.apply(&[item(newest)], "r3")), ["configured"]);
}

#[test]
fn what_a_decision_rests_on_is_a_precondition() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(map("a", "", "1"))], "r1");
    let version = object::meta(&cluster.get(Kind::ConfigMap, "a"))
        .resource_version
        .clone();
    let items = [item(map("a", "", "2")), item(map("b", "", "2"))];
    let decision = cluster.decide(&items, "r2").unwrap();
    let expected: Vec<_> = decision
        .transaction
        .preconditions
        .into_iter()
        .map(|it| it.expect.unwrap())
        .collect();
    assert_eq!(expected, [Expect::ResourceVersion(version), Expect::Absent(true)]);
}

#[test]
fn fields_of_the_cluster_are_refused_with_other_values() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(pod("p", "hello:1"))], "r1");
    let mut forged = pod("p", "hello:1");
    object::meta_mut(&mut forged).generation = 7;
    object::meta_mut(&mut forged).creation_timestamp = Some(Timestamp { seconds: 5, nanos: 0 });
    if let Some(Any::Pod(pod)) = &mut forged.object {
        pod.status = Some(PodStatus {
            phase: "Running".to_owned(),
            ..Default::default()
        });
    }
    let mut expected = [
        told(0, "metadata.creationTimestamp", "Invalid"),
        told(0, "metadata.generation", "Invalid"),
        told(0, "status", "Invalid"),
    ];
    expected.sort();
    assert_eq!(cluster.refusals(&[item(forged.clone())]), expected);
    object::meta_mut(&mut forged).name = "new".to_owned();
    assert_eq!(cluster.refusals(&[item(forged)]), expected);
    let mut other = pod("p", "hello:1");
    object::meta_mut(&mut other).uid = "of another".to_owned();
    assert_eq!(
        cluster.refusals(&[item(other)]),
        [told(0, "metadata.uid", "Conflict")]
    );
    // A status that says nothing is none.
    let mut empty = pod("p", "hello:1");
    if let Some(Any::Pod(pod)) = &mut empty.object {
        pod.status = Some(PodStatus::default());
    }
    assert!(cluster.decide(&[item(empty)], "r2").is_ok());
}

#[test]
fn what_may_not_change_does_not() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(pod("p", "hello:1"))], "r1");
    let mut changed = pod("p", "hello:1");
    if let Some(Any::Pod(Pod { spec: Some(spec), .. })) = &mut changed.object {
        spec.restart_policy = "Never".to_owned();
    }
    assert_eq!(
        cluster.refusals(&[item(changed)]),
        [told(0, "spec.restartPolicy", "Invalid")]
    );
    assert_eq!(
        outcomes(&cluster.apply(&[item(pod("p", "hello:2"))], "r2")),
        ["configured"]
    );
}

#[test]
fn what_people_do_not_write_they_can_not_apply() {
    let cluster = Cluster::new();
    let set = object::from(proto::v1::ReplicaSet::default());
    assert_eq!(cluster.refusals(&[item(set)]), [told(0, "kind", "Forbidden")]);
    assert_eq!(
        cluster.refusals(&[ApplyItem::default()]),
        [told(0, "", "Invalid")]
    );
    assert_eq!(cluster.refusals(&[]), [told(0, "", "Invalid")]);
    let mut liar = map("a", "", "1");
    if let Some(Any::ConfigMap(map)) = &mut liar.object {
        map.kind = "Pod".to_owned();
    }
    assert_eq!(cluster.refusals(&[item(liar)]), [told(0, "kind", "Invalid")]);
    let node = object::from(Node {
        metadata: Some(meta("n1", "")),
        ..Default::default()
    });
    assert_eq!(
        cluster.refusals(&[item(node)]),
        [told(0, "metadata.name", "Forbidden")]
    );
}

#[test]
fn a_node_is_labelled_without_losing_what_it_has() {
    let mut cluster = Cluster::new();
    let node = Node {
        metadata: Some(ObjectMeta {
            uid: "uid-n1".to_owned(),
            ..meta("n1", "")
        }),
        ..Default::default()
    };
    cluster.tell(Body::NodeJoin(NodeJoin { node: Some(node) }));
    let mut labelled = object::from(Node {
        metadata: Some(meta("n1", "")),
        ..Default::default()
    });
    object::meta_mut(&mut labelled)
        .labels
        .insert("disk".to_owned(), "fast".to_owned());
    let results = cluster.apply(&[item(labelled)], "r1");
    assert_eq!(outcomes(&results), ["configured"]);
    let Some(Any::Node(node)) = results.into_iter().next().unwrap().object.unwrap().object else {
        panic!("a node")
    };
    assert!(!node.spec.unwrap().pod_cidr.is_empty());
    assert!(
        node.metadata.unwrap().labels.len() > 1,
        "the cluster's own labels stay"
    );
}

#[test]
fn an_owner_has_to_be_there_and_stays_when_it_is_not_named() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(map("owner", "", "1"))], "r1");
    let uid = object::meta(&cluster.get(Kind::ConfigMap, "owner")).uid.clone();
    let owned = |uid: &str, name: &str| {
        let mut owned = map("owned", "", "1");
        object::meta_mut(&mut owned).owner_references = vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..Default::default()
        }];
        owned
    };
    let wrong = [told(0, "metadata.ownerReferences[0].uid", "Invalid")];
    assert_eq!(cluster.refusals(&[item(owned("nobody", "owner"))]), wrong);
    assert_eq!(cluster.refusals(&[item(owned(&uid, "other"))]), wrong);
    cluster.apply(&[item(map("owned", "", "1"))], "r2");
    cluster.apply(&[in_mode("REPLACE", owned(&uid, "owner"))], "r2b");
    assert_eq!(
        outcomes(&cluster.apply(&[item(map("owned", "", "1"))], "r3")),
        ["unchanged"]
    );
}

#[test]
fn one_object_is_in_a_request_once() {
    let cluster = Cluster::new();
    let items = [item(map("a", "", "1")), item(map("a", "default", "2"))];
    assert_eq!(cluster.refusals(&items), [told(1, "metadata.name", "Invalid")]);
}

#[test]
fn a_name_is_made_where_it_is_left_to_the_cluster() {
    let mut cluster = Cluster::new();
    let unnamed = || {
        let mut map = map("", "", "1");
        object::meta_mut(&mut map).generate_name = "job-".to_owned();
        item(map)
    };
    let results = cluster.apply(&[unnamed(), unnamed()], "r1");
    let names: BTreeSet<String> = results
        .iter()
        .map(|result| object::meta(result.object.as_ref().unwrap()).name.clone())
        .collect();
    assert_eq!(names.len(), 2);
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("job-") && name.len() == 9),
        "{names:?}"
    );
}

#[test]
fn a_retry_is_answered_as_the_first_was() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(map("there", "", "1")), item(map("same", "", "1"))], "r0");
    let mut unnamed = map("", "", "1");
    object::meta_mut(&mut unnamed).generate_name = "job-".to_owned();
    let items = [
        item(map("new", "", "1")),
        item(map("there", "", "2")),
        item(map("same", "", "1")),
        item(unnamed),
    ];
    let decision = cluster.decide(&items, "r1").unwrap();
    let written = cluster.tell(Body::Transaction(decision.transaction));
    let first = results(&cluster.0, &items, "r1", &written);
    assert_eq!(
        outcomes(&first),
        ["created", "configured", "unchanged", "created"]
    );
    assert_eq!(first, decision.results, "as it was decided");
    // Something else happened meanwhile; the answer is the one that was kept.
    cluster.apply(&[item(map("new", "", "3"))], "r2");
    assert_eq!(results(&cluster.0, &items, "r1", &written), first);
}

#[test]
fn what_is_being_deleted_is_not_applied() {
    let mut cluster = Cluster::new();
    cluster.apply(&[item(namespace("old")), item(map("a", "old", "1"))], "r1");
    cluster.tell(Body::Transaction(Transaction {
        operations: vec![Operation {
            operation: Some(Op::Delete(DeleteOp {
                key: Some(object::key(&namespace("old"))),
                ..Default::default()
            })),
        }],
        ..Default::default()
    }));
    assert_eq!(
        cluster.refusals(&[item(namespace("old"))]),
        [told(0, "metadata.name", "Conflict")]
    );
    assert_eq!(
        cluster.refusals(&[in_mode("CREATE", namespace("old"))]),
        [told(0, "metadata.name", "AlreadyExists")]
    );
}

#[test]
fn what_is_being_deleted_can_lose_finalizers_alone() {
    let mut cluster = Cluster::new();
    let kept = |names: &[&str]| {
        let mut object = map("a", "", "1");
        object::meta_mut(&mut object).finalizers = names.iter().map(|name| (*name).to_owned()).collect();
        item(object)
    };
    let both = ["example.com/a", "example.com/b"];
    cluster.apply(&[kept(&both)], "r1");
    cluster.tell(Body::Transaction(Transaction {
        operations: vec![Operation {
            operation: Some(Op::Delete(DeleteOp {
                key: Some(object::key(&map("a", "default", ""))),
                ..Default::default()
            })),
        }],
        ..Default::default()
    }));
    for refused in [
        kept(&both),
        kept(&["example.com/c"]),
        kept(&["example.com/a", "example.com/c"]),
    ] {
        let refusals = cluster.decide(&[refused], "r").expect_err("it is refused");
        assert_eq!(refusals[0].reason, "Conflict");
        assert!(refusals[0].message.contains("example.com/b"), "{refusals:?}");
    }
    assert_eq!(
        outcomes(&cluster.apply(&[kept(&["example.com/b"])], "r2")),
        ["configured"]
    );
    // Left out by who had said it before.
    let items = [item(map("a", "", "1"))];
    let decision = cluster.decide(&items, "r3").unwrap();
    let written = cluster.tell(Body::Transaction(decision.transaction));
    let gone = results(&cluster.0, &items, "r3", &written);
    assert_eq!(outcomes(&gone), ["configured"]);
    assert!(cluster.0.get(&object::key(&map("a", "default", ""))).is_none());
    assert_eq!(results(&cluster.0, &items, "r3", &written), gone, "a retry");
}
