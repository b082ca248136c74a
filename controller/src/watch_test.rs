//! What watchers are shown, whatever the order in which states and changes arrive.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{ClusterSettings, Command, DeleteOp, Operation, Put, Transaction};
use proto::v1::{ConfigMap, ObjectMeta};

use state::State;

use super::*;

fn put(revision: u64, object: Object, before: Option<Object>) -> Change {
    Change::of_put(revision, before.map(Arc::new), Arc::new(object))
}

fn map(name: &str, colour: &str) -> Object {
    object::from(ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: format!("uid-{name}"),
            labels: [("colour".to_owned(), colour.to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn red(object: &Object) -> bool {
    object::meta(object)
        .labels
        .get("colour")
        .is_some_and(|colour| colour == "red")
}

#[test]
fn an_object_that_begins_to_match_is_added_and_one_that_stops_is_deleted() {
    let happened = |change: &Change| shown(change, red).map(|(happened, _)| happened);
    let added = |colour: &str| happened(&put(7, map("a", colour), None));
    let modified = |before: &str, now: &str| happened(&put(7, map("a", now), Some(map("a", before))));
    let deleted = |colour: &str| happened(&Change::of_erased(7, Arc::new(map("a", colour))));
    assert_eq!(added("red"), Some(Happened::Added));
    assert_eq!(added("blue"), None);
    assert_eq!(modified("red", "red"), Some(Happened::Modified));
    assert_eq!(modified("blue", "red"), Some(Happened::Added));
    assert_eq!(modified("red", "blue"), Some(Happened::Deleted));
    assert_eq!(modified("blue", "blue"), None);
    assert_eq!(deleted("red"), Some(Happened::Deleted));
    assert_eq!(deleted("blue"), None);
    let left = put(9, map("a", "blue"), Some(map("a", "red")));
    let (_, object) = shown(&left, red).unwrap();
    assert!(red(&object), "it is shown as it was");
    assert_eq!(object::meta(&object).resource_version, "9");
}

#[test]
fn a_reader_behind_the_oldest_change_lists_again() {
    let ring = Ring::new(10);
    assert!(ring.after(10, 100).unwrap().is_empty());
    assert!(ring.after(9, 100).is_err());
    ring.push([put(11, map("a", "red"), None)]);
    assert_eq!(ring.after(10, 100).unwrap().len(), 1);
    assert!(ring.after(11, 100).unwrap().is_empty());
    assert!(
        ring.after(500, 100).unwrap().is_empty(),
        "what is to come is waited for"
    );
    ring.reset(20);
    assert_eq!(
        ring.after(11, 100).unwrap_err(),
        TooOld {
            after: 11,
            oldest: 20
        }
    );
}

#[test]
fn the_ring_is_bounded() {
    let ring = Ring::new(0);
    let many = CHANGES_MAX as u64 + 100;
    ring.push((1..=many).map(|revision| put(revision, map("a", "red"), None)));
    assert!(ring.after(99, 1).is_err());
    assert_eq!(ring.after(100, usize::MAX).unwrap().len(), CHANGES_MAX);
    let big = object::from(ConfigMap {
        data: [("key".to_owned(), "x".repeat(BYTES_MAX / 4))].into(),
        ..Default::default()
    });
    for revision in 1..=8 {
        ring.push([put(many + revision, big.clone(), None)]);
    }
    assert!(ring.after(many + 4, 10).is_err());
    assert!(ring.lock().bytes <= BYTES_MAX);
}

/// A state with what it was told to do, and the sets of changes that came of it.
struct Told {
    state: State,
    sets: Vec<(Arc<[Change]>, State)>,
}

impl Told {
    fn new() -> Self {
        let mut told = Self {
            state: State::new(),
            sets: Vec::new(),
        };
        told.tell(Body::Settings(ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }));
        told
    }

    fn tell(&mut self, kind: Body) {
        let outcome = self.state.apply(&Command {
            level: 1,
            kind: Some(kind),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
        self.sets.push((outcome.changes.into(), self.state.clone()));
    }

    fn transaction(&mut self, operations: Vec<Op>) {
        let operations = operations.into_iter().map(|operation| Operation {
            operation: Some(operation),
        });
        self.tell(Body::Transaction(Transaction {
            operations: operations.collect(),
            ..Default::default()
        }));
    }

    fn put(&mut self, name: &str, colour: &str) {
        self.transaction(vec![Op::Put(Put {
            object: Some(map(name, colour)),
        })]);
    }

    fn delete(&mut self, name: &str) {
        self.transaction(vec![Op::Delete(DeleteOp {
            key: Some(object::key(&map(name, ""))),
            ..Default::default()
        })]);
    }
}

#[test]
fn what_was_before_is_known() {
    let mut told = Told::new();
    told.put("a", "red");
    told.put("a", "blue");
    told.put("b", "red");
    told.delete("a");
    told.put("a", "green");
    for (index, (set, after)) in told.sets.iter().enumerate() {
        for change in set.iter() {
            let key = object::key(change.object());
            let before = index
                .checked_sub(1)
                .and_then(|index| told.sets[index].1.get(&key));
            let happened = match (&before, after.get(&key)) {
                (None, Some(_)) => Happened::Added,
                (Some(_), Some(_)) => Happened::Modified,
                (_, None) => Happened::Deleted,
            };
            assert_eq!(change.happened, happened, "set {index}");
            let before = before.filter(|_| happened == Happened::Modified);
            assert_eq!(change.before(), before.as_ref(), "set {index}");
        }
    }
}

#[tokio::test]
async fn a_ring_follows_what_is_applied() {
    let mut told = Told::new();
    let (applied, receiver) = watch::channel(Applied {
        state: told.state.clone(),
        log_id: None,
    });
    let (changes, _) = broadcast::channel(2);
    let ring = Ring::new(0);
    let feeding = tokio::spawn(feed(ring.clone(), receiver, changes.subscribe()));
    let mut head = ring.head();
    let start = told.state.revision();
    head.wait_for(|head| *head == start).await.unwrap();
    told.put("a", "red");
    let (set, state) = told.sets.last().unwrap();
    applied.send_replace(Applied {
        state: state.clone(),
        log_id: None,
    });
    changes.send(Changed::By(set.clone())).unwrap();
    head.wait_for(|head| *head == start + 1).await.unwrap();
    assert_eq!(ring.after(start, 10).unwrap().len(), 1);
    // A snapshot took the place of everything.
    changes.send(Changed::All).unwrap();
    drop(changes);
    feeding.await.unwrap();
    assert!(ring.after(start, 10).is_err());
    assert!(ring.after(start + 1, 10).unwrap().is_empty());
}
