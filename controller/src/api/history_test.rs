//! What an undo goes back to, one claim a test.

use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{ClusterSettings, Command, DeleteOp, Operation, Put, Transaction};
use proto::v1::{ConfigMap, ObjectMeta, Secret};

use super::*;

struct Cluster(State);

impl Cluster {
    fn new() -> Self {
        let mut state = State::new();
        let settings = ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        };
        let outcome = state.apply(&Command {
            time: Some(clock::timestamp(1_000)),
            level: 1,
            kind: Some(Body::Settings(settings)),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
        Self(state)
    }

    /// The revision after it.
    fn write(&mut self, actor: &str, operation: Op) -> u64 {
        let transaction = Transaction {
            operations: vec![Operation {
                operation: Some(operation),
            }],
            ..Default::default()
        };
        self.carry_out(actor, transaction)
    }

    fn carry_out(&mut self, actor: &str, transaction: Transaction) -> u64 {
        let outcome = self.0.apply(&Command {
            time: Some(clock::timestamp(2_000)),
            level: 3,
            kind: Some(Body::Transaction(transaction)),
            actor: actor.to_owned(),
            verb: "apply".to_owned(),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
        self.0.revision()
    }

    fn undo(&mut self, request: &UndoRequest) -> Result<u64, Status> {
        let (decision, revision) = decide(&self.0, request, "undo")?;
        self.carry_out("bob", decision.transaction);
        Ok(revision)
    }

    fn value(&self) -> Option<String> {
        let object = self.0.get(&key())?;
        object::into::<ConfigMap>(object)?.data.remove("key")
    }
}

fn key() -> Key {
    object::key_of(model::Kind::ConfigMap, "default", "a")
}

fn map(value: &str) -> Op {
    let meta = ObjectMeta {
        name: "a".to_owned(),
        namespace: "default".to_owned(),
        uid: "uid-a".to_owned(),
        ..Default::default()
    };
    let map = ConfigMap {
        metadata: Some(meta),
        data: [("key".to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    Op::Put(Put {
        object: Some(object::from(map)),
    })
}

fn delete() -> Op {
    Op::Delete(DeleteOp {
        key: Some(key()),
        ..Default::default()
    })
}

fn last() -> UndoRequest {
    UndoRequest {
        key: Some(key()),
        ..Default::default()
    }
}

#[test]
fn the_last_change_is_taken_back_and_so_is_that() {
    let mut cluster = Cluster::new();
    let first = cluster.write("ada", map("1"));
    let second = cluster.write("ada", map("2"));
    assert_eq!(cluster.undo(&last()).unwrap(), first);
    assert_eq!(cluster.value().as_deref(), Some("1"));
    assert_eq!(cluster.undo(&last()).unwrap(), second);
    assert_eq!(cluster.value().as_deref(), Some("2"));
    let told = entries(&cluster.0.history(&key()));
    let told: Vec<_> = told
        .iter()
        .map(|it| (it.actor.as_str(), it.what.as_str(), it.paths.join(" ")))
        .collect();
    assert_eq!(
        told,
        [
            ("ada", "created", String::new()),
            ("ada", "changed", "data[key]".to_owned()),
            ("bob", "changed", "data[key]".to_owned()),
            ("bob", "changed", "data[key]".to_owned())
        ]
    );
}

#[test]
fn a_revision_is_enough_when_it_is_the_last_of_its_object() {
    let mut cluster = Cluster::new();
    let first = cluster.write("ada", map("1"));
    let second = cluster.write("ada", map("2"));
    cluster.write("ada", map("3"));
    let of = |revision| UndoRequest {
        revision,
        ..Default::default()
    };
    let refused = cluster.undo(&of(second)).unwrap_err();
    assert!(
        refused.message().contains("--to-revision"),
        "{}",
        refused.message()
    );
    assert_eq!(cluster.undo(&of(second + 1)).unwrap(), second);
    assert_eq!(cluster.undo(&of(99)).unwrap_err().code(), tonic::Code::NotFound);
    let to = UndoRequest {
        to_revision: first,
        ..last()
    };
    assert_eq!(cluster.undo(&to).unwrap(), first);
    assert_eq!(cluster.value().as_deref(), Some("1"));
}

#[test]
fn what_was_deleted_comes_back_as_another_object() {
    let mut cluster = Cluster::new();
    let first = cluster.write("ada", map("1"));
    let deleted = cluster.write("ada", delete());
    assert_eq!(cluster.value(), None);
    let to_nothing = UndoRequest {
        to_revision: deleted,
        ..last()
    };
    assert!(cluster.undo(&to_nothing).is_err());
    assert_eq!(cluster.undo(&last()).unwrap(), first);
    assert_eq!(cluster.value().as_deref(), Some("1"));
    let uid = object::meta(&cluster.0.get(&key()).unwrap()).uid.clone();
    assert_ne!(uid, "uid-a");
}

#[test]
fn what_was_never_changed_can_not_be_undone() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.undo(&last()).unwrap_err().code(), tonic::Code::NotFound);
    cluster.write("ada", map("1"));
    let refused = cluster.undo(&last()).unwrap_err();
    assert!(
        refused.message().contains("ctl delete configmap/a"),
        "{}",
        refused.message()
    );
}

#[test]
fn of_a_secret_the_keys_alone_are_shown() {
    let secret = Secret {
        data: [("password".to_owned(), b"hunter2".to_vec())].into(),
        ..Default::default()
    };
    let shown = model::write::yaml(&without_values(object::from(secret)));
    assert!(
        shown.contains("password") && !shown.contains("aHVudGVyMg"),
        "{shown}"
    );
}
