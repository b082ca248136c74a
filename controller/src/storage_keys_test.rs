//! The file of keys: made, rotated, emptied of what nobody needs, and missed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use openraft::storage::RaftLogStorage;

use crate::raft::log::{LogStore, WriteBy};
use crate::raft::types::{LogId, Vote};
use crate::setup::{Places, SetupError};
use crate::storage_keys::{StorageKeysError, rotate};
use crate::store::Disk;
use seal::{KEYS_MAX, Keys};

fn places() -> (tempfile::TempDir, Places) {
    let tmp = tempfile::tempdir().unwrap();
    let places = Places {
        data: tmp.path().join("data"),
        config: tmp.path().join("config"),
    };
    fs::create_dir(&places.config).unwrap();
    (tmp, places)
}

fn log(places: &Places, keys: &Keys) -> LogStore<Disk> {
    let (log, _) = places.open_store().unwrap();
    LogStore::open(log, 1 << 20, keys.clone(), WriteBy::Caller).unwrap()
}

fn lines(places: &Places) -> usize {
    let text = fs::read_to_string(places.config.join("storage.keys")).unwrap();
    text.lines().count()
}

#[test]
fn the_first_start_makes_a_key_for_its_owner_only_and_later_ones_find_it() {
    let (_tmp, places) = places();
    let made = places.storage_keys().unwrap();
    let mode = fs::metadata(places.config.join("storage.keys"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let found = places.storage_keys().unwrap();
    assert_eq!(found.all().len(), 1);
    assert_eq!(found.writing().line(), made.writing().line());
}

#[test]
fn a_lost_file_of_keys_is_not_made_anew_over_what_it_sealed() {
    let (_tmp, places) = places();
    drop(log(&places, &places.storage_keys().unwrap()));
    fs::remove_file(places.config.join("storage.keys")).unwrap();
    let refused = places.storage_keys().unwrap_err();
    let SetupError::StorageKeys(cause @ StorageKeysError::Lost { .. }) = refused else {
        panic!("{refused}")
    };
    let told = cause.to_string();
    assert!(told.contains("config/storage.keys does not exist"), "{told}");
    assert!(told.contains("log/00000000000000000001.log"), "{told}");
    assert!(!places.config.join("storage.keys").exists());
}

#[tokio::test]
async fn a_rotated_key_goes_when_no_file_needs_it() {
    let (_tmp, places) = places();
    let before = places.storage_keys().unwrap();
    let mut store = log(&places, &before);
    store.save_vote(&Vote::new(1, 7)).await.unwrap();
    let id = rotate(&places.config).unwrap();
    // The process that runs still writes with the old one.
    assert_eq!(places.drop_unused_storage_keys(&before).unwrap(), 2);
    drop(store);

    let after = places.storage_keys().unwrap();
    assert_eq!(after.writing().id(), id);
    assert_eq!(after.all()[1].id(), before.writing().id());
    let mut store = log(&places, &after);
    assert_eq!(
        places.drop_unused_storage_keys(&after).unwrap(),
        2,
        "a segment needs it"
    );
    store.purge(LogId::new_term_index(1, 7)).await.unwrap();
    assert_eq!(places.drop_unused_storage_keys(&after).unwrap(), 1);
    assert_eq!(lines(&places), 1);
    drop(store);
    let mut store = log(&places, &places.storage_keys().unwrap());
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(LogId::new_term_index(1, 7)));
}

#[test]
fn keys_pile_up_to_a_limit_and_a_bad_line_is_named() {
    let (_tmp, places) = places();
    assert!(matches!(rotate(&places.config), Err(SetupError::Missing { .. })));
    places.storage_keys().unwrap();
    for _ in 1..KEYS_MAX {
        rotate(&places.config).unwrap();
    }
    let refused = rotate(&places.config).unwrap_err();
    assert!(matches!(
        refused,
        SetupError::StorageKeys(StorageKeysError::TooMany { .. })
    ));
    assert_eq!(lines(&places), KEYS_MAX);
    let path = places.config.join("storage.keys");
    let text = fs::read_to_string(&path).unwrap();
    let first = text.lines().next().unwrap();
    for (bad, told) in [
        (format!("{first}\nnonsense\n"), "line 2: not `ID BASE64`"),
        (format!("{first}\n{first}\n"), "stands here twice"),
        (String::new(), "there is no key"),
    ] {
        fs::write(&path, bad).unwrap();
        let SetupError::StorageKeys(cause) = places.storage_keys().unwrap_err() else {
            panic!("{told}")
        };
        assert!(cause.to_string().contains(told), "{cause}");
    }
}
