//! What watchers are shown, whatever the order in which states and changes arrive.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{ClusterSettings, Command, DeleteOp, Operation, Put, Transaction};
use proto::v1::{ConfigMap, ObjectMeta};

use super::*;

fn entry(revision: u64, happened: Happened, object: Object, before: Option<Object>) -> Entry {
    Entry {
        revision,
        happened,
        object: Held::Own(Arc::new(object)),
        before: before.map(|before| Held::Own(Arc::new(before))),
    }
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
    let shown = |happened, now: &str, before: Option<&str>| {
        let entry = entry(7, happened, map("a", now), before.map(|before| map("a", before)));
        entry.shown(red).map(|(happened, _)| happened)
    };
    assert_eq!(shown(Happened::Added, "red", None), Some(Happened::Added));
    assert_eq!(shown(Happened::Added, "blue", None), None);
    assert_eq!(
        shown(Happened::Modified, "red", Some("red")),
        Some(Happened::Modified)
    );
    assert_eq!(
        shown(Happened::Modified, "red", Some("blue")),
        Some(Happened::Added)
    );
    assert_eq!(
        shown(Happened::Modified, "blue", Some("red")),
        Some(Happened::Deleted)
    );
    assert_eq!(shown(Happened::Modified, "blue", Some("blue")), None);
    assert_eq!(shown(Happened::Deleted, "red", None), Some(Happened::Deleted));
    assert_eq!(shown(Happened::Deleted, "blue", None), None);
    let left = entry(9, Happened::Modified, map("a", "blue"), Some(map("a", "red")));
    let (_, object) = left.shown(red).unwrap();
    assert!(red(&object), "it is shown as it was");
    assert_eq!(object::meta(&object).resource_version, "9");
}

#[test]
fn a_reader_behind_the_oldest_change_lists_again() {
    let ring = Ring::new(10);
    assert!(ring.after(10, 100).unwrap().is_empty());
    assert!(ring.after(9, 100).is_err());
    ring.push(vec![entry(11, Happened::Added, map("a", "red"), None)]);
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
    ring.push(
        (1..=many)
            .map(|revision| entry(revision, Happened::Added, map("a", "red"), None))
            .collect(),
    );
    assert!(ring.after(99, 1).is_err());
    assert_eq!(ring.after(100, usize::MAX).unwrap().len(), CHANGES_MAX);
    let big = object::from(ConfigMap {
        data: [("key".to_owned(), "x".repeat(BYTES_MAX / 4))].into(),
        ..Default::default()
    });
    for revision in 1..=8 {
        ring.push(vec![entry(many + revision, Happened::Added, big.clone(), None)]);
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
fn what_was_before_is_known_however_far_the_state_runs_ahead() {
    let mut told = Told::new();
    told.put("a", "red");
    told.put("a", "blue");
    told.put("b", "red");
    told.put("a", "red");
    told.delete("a");
    told.put("a", "blue");
    told.put("a", "green");
    // The state that a look finds is ahead of the change by this many sets.
    for ahead in 0..told.sets.len() {
        for first in 0..told.sets.len() {
            let mut follow = Follow::new(told.sets[first].1.clone());
            for (index, (set, _)) in told.sets.iter().enumerate() {
                let seen = (index + ahead).max(first).min(told.sets.len() - 1);
                let entries = follow.take(set.clone(), || told.sets[seen].1.clone());
                assert_eq!(entries.is_empty(), index <= first, "taken once, {first} {index}");
                for entry in entries {
                    let before = (index > 0).then(|| &told.sets[index - 1].1);
                    let key = object::key(entry.object.get().unwrap());
                    let expected = before.and_then(|state| state.get(&key));
                    let expected = expected.filter(|_| entry.happened == Happened::Modified);
                    let found = entry.before.as_ref().and_then(Held::get).cloned();
                    assert_eq!(found, expected, "ahead {ahead}, first {first}, set {index}");
                }
            }
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
