use super::*;
use proto::v1::ObjectMeta;

const ALL: Want = Want {
    ids: true,
    address: true,
    categories: true,
};

struct Place {
    top: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            top: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> Result<Ledger, LedgerError> {
        Ledger::open(
            &self.top.path().join("ledger.redb"),
            &self.top.path().join("claims"),
        )
    }
}

fn facts() -> ClusterFacts {
    ClusterFacts {
        pod_range: "10.244.3.0/24".parse().unwrap(),
        cluster_range: "10.244.0.0/16".parse().unwrap(),
        domain: "cluster.local".to_owned(),
    }
}

fn pod(uid: &str) -> Pod {
    Pod {
        metadata: Some(ObjectMeta {
            name: format!("pod-{uid}"),
            uid: uid.to_owned(),
            ..ObjectMeta::default()
        }),
        ..Pod::default()
    }
}

fn map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ..ObjectMeta::default()
        }),
        ..ConfigMap::default()
    }
}

#[test]
fn everything_is_there_after_the_next_opening() {
    let place = Place::new();
    let ledger = place.open().unwrap();
    ledger.put_facts(&facts()).unwrap();
    let change = Change {
        revision: Some(7),
        pods: vec![pod("a"), pod("b")],
        config_maps: vec![map("settings")],
        peers: Some(vec![Peer {
            name: "n2".to_owned(),
            address: "10.0.0.2".to_owned(),
            pod_cidr: "10.244.4.0/24".to_owned(),
        }]),
        ..Change::default()
    };
    ledger.commit(&change).unwrap();
    let slot = ledger.allot("a", ALL).unwrap();
    ledger.put_record("a", b"once").unwrap();
    drop(ledger);

    let ledger = place.open().unwrap();
    assert_eq!(ledger.pods().unwrap(), change.pods);
    assert_eq!(ledger.revision().unwrap(), 7);
    assert_eq!(ledger.facts().unwrap(), Some(facts()));
    assert_eq!(Some(ledger.peers().unwrap()), change.peers);
    assert!(ledger.config_maps().unwrap().contains_key("default/settings"));
    assert_eq!(ledger.slot("a").unwrap(), Some(slot));
    assert_eq!(ledger.record("a").unwrap().as_deref(), Some(&b"once"[..]));
    assert_eq!(ledger.uids().unwrap(), ["a"]);
    // Asked again it has what it had.
    assert_eq!(ledger.allot("a", ALL).unwrap(), slot);
}

#[test]
fn a_second_agent_on_one_directory_is_refused() {
    let place = Place::new();
    let _first = place.open().unwrap();
    assert!(matches!(place.open(), Err(LedgerError::InUse { .. })));
}

#[test]
fn what_is_released_is_free_again() {
    let place = Place::new();
    let ledger = place.open().unwrap();
    ledger.put_facts(&facts()).unwrap();
    let a = ledger.allot("a", ALL).unwrap();
    let b = ledger.allot("b", ALL).unwrap();
    assert!(a.ids != b.ids && a.address != b.address && a.categories != b.categories);
    ledger.release("a").unwrap();
    assert_eq!(ledger.uids().unwrap(), ["b"]);
    let c = ledger.allot("c", ALL).unwrap();
    assert_eq!(c.ids, a.ids);
    assert!(
        c.address != a.address && c.address != b.address,
        "an address rests"
    );
}

#[test]
fn a_pod_without_network_needs_no_range() {
    let place = Place::new();
    let ledger = place.open().unwrap();
    assert!(matches!(ledger.allot("a", ALL), Err(LedgerError::NoRange)));
    let want = Want {
        address: false,
        ..ALL
    };
    assert!(ledger.allot("a", want).unwrap().ids.is_some());
}

#[test]
fn removed_pods_and_maps_are_forgotten() {
    let place = Place::new();
    let ledger = place.open().unwrap();
    let change = Change {
        pods: vec![pod("a"), pod("b")],
        config_maps: vec![map("x"), map("y")],
        ..Change::default()
    };
    ledger.commit(&change).unwrap();
    let change = Change {
        removed: vec!["a".to_owned(), "never-there".to_owned()],
        removed_config_maps: vec!["default/x".to_owned()],
        ..Change::default()
    };
    ledger.commit(&change).unwrap();
    assert_eq!(ledger.pods().unwrap(), [pod("b")]);
    assert_eq!(
        ledger.config_maps().unwrap().keys().collect::<Vec<_>>(),
        ["default/y"]
    );
    assert_eq!(ledger.revision().unwrap(), 0);
}

#[test]
fn another_cluster_begins_with_nothing_desired() {
    let place = Place::new();
    let ledger = place.open().unwrap();
    ledger.enter_cluster("one").unwrap();
    ledger.put_facts(&facts()).unwrap();
    let change = Change {
        revision: Some(7),
        pods: vec![pod("a")],
        ..Change::default()
    };
    ledger.commit(&change).unwrap();
    ledger.allot("a", ALL).unwrap();
    ledger.enter_cluster("one").unwrap();
    assert_eq!(ledger.revision().unwrap(), 7);
    ledger.enter_cluster("two").unwrap();
    assert_eq!((ledger.revision().unwrap(), ledger.facts().unwrap()), (0, None));
    assert!(ledger.pods().unwrap().is_empty());
    assert_eq!(ledger.uids().unwrap(), ["a"], "what it holds is to be cleared up");
}
