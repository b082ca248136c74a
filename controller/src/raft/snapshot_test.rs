//! Snapshot files on a disk that crashes and rots, sealed and as the version before left them.

use std::path::Path;
use std::sync::LazyLock;

use super::*;
use crate::store::sim::{Fault, SimDir};
use seal::Key;

fn keys() -> Keys {
    static KEYS: LazyLock<Keys> =
        LazyLock::new(|| Keys::new(Path::new("storage.keys"), vec![Key::generate()]));
    KEYS.clone()
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| i as u8).collect()
}

fn meta(index: u64) -> SnapshotMeta {
    let last_log_id = Some(crate::raft::types::LogId::new_term_index(1, index));
    SnapshotMeta {
        last_log_id,
        ..SnapshotMeta::default()
    }
}

fn write<D: Dir>(dir: &D, index: u64, len: usize) -> Result<(), SnapshotError> {
    let snapshots = Snapshots::open(dir.clone(), keys())?;
    let file = snapshots.write(&meta(index), body(len).chunks(1000).map(<[u8]>::to_vec))?;
    snapshots.make_current(&meta(index), file).map(drop)
}

fn found<D: Dir>(dir: &D) -> Result<Option<(SnapshotMeta, Vec<u8>)>, SnapshotError> {
    let snapshots = Snapshots::open(dir.clone(), keys())?;
    let Some((_, file)) = snapshots.current() else {
        return Ok(None);
    };
    let (meta, mut reader) = snapshots.open_file(&file)?;
    let mut body = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        body.extend(chunk);
    }
    Ok(Some((meta, body)))
}

#[test]
fn what_is_written_is_read() {
    for len in [0, 1, 1000, 70_001] {
        let dir = SimDir::new(Fault::None, 1);
        assert_eq!(found(&dir).unwrap(), None);
        write(&dir, 7, len).unwrap();
        assert_eq!(found(&dir).unwrap(), Some((meta(7), body(len))));
    }
}

#[test]
fn an_older_snapshot_does_not_replace_a_newer_one() {
    let dir = SimDir::new(Fault::None, 1);
    write(&dir, 7, 700).unwrap();
    write(&dir, 6, 600).unwrap();
    assert_eq!(found(&dir).unwrap(), Some((meta(7), body(700))));
    assert_eq!(dir.list().unwrap(), [NAME]);
}

#[test]
fn any_flipped_bit_is_noticed() {
    let dir = SimDir::new(Fault::None, 1);
    write(&dir, 7, 300).unwrap();
    let len = dir.open(NAME).unwrap().len().unwrap();
    for offset in 0..len {
        dir.damage(NAME, offset as usize);
        assert!(found(&dir).is_err(), "byte {offset}");
        dir.damage(NAME, offset as usize);
    }
}

#[test]
fn a_crash_leaves_the_old_or_the_new_one() {
    for crash_at in 0..40 {
        let dir = SimDir::new(Fault::CrashAt(crash_at), crash_at);
        let told = [write(&dir, 1, 700).is_ok(), write(&dir, 2, 900).is_ok()];
        let len = found(&dir.after_crash(Fault::None))
            .unwrap()
            .map(|(_, body)| body.len());
        match told {
            [false, _] => assert!(matches!(len, None | Some(700)), "crash at {crash_at}: {len:?}"),
            [true, false] => assert!(matches!(len, Some(700 | 900)), "crash at {crash_at}: {len:?}"),
            [true, true] => assert_eq!(len, Some(900)),
        }
    }
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let dir = SimDir::new(Fault::None, 1);
    let snapshots = Snapshots::open(dir.clone(), keys()).unwrap();
    let mut incoming = snapshots.receive().unwrap();
    incoming.write(&[1; 10]).unwrap();
    drop(incoming);
    assert!(dir.list().unwrap().is_empty());
}

/// All bytes of every file.
fn raw(dir: &SimDir) -> Vec<u8> {
    let mut all = Vec::new();
    for name in dir.list().unwrap() {
        let file = dir.open(&name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        all.extend(bytes);
    }
    all
}

#[test]
fn what_is_received_is_sealed_before_it_is_on_disk() {
    let (from, to) = (SimDir::new(Fault::None, 1), SimDir::new(Fault::None, 2));
    write(&from, 7, 300_000).unwrap();
    let sender = Snapshots::open(from.clone(), keys()).unwrap();
    let (_, file) = sender.current().unwrap();
    let own = Keys::new(Path::new("storage.keys"), vec![Key::generate()]);
    let receiver = Snapshots::open(to.clone(), own.clone()).unwrap();
    let mut incoming = receiver.receive().unwrap();
    let sent = file.chunk(0).unwrap();
    assert_eq!(sent.len() as u64, file.len());
    let part = &body(300_000)[1000..1064];
    let in_the_clear = |bytes: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(in_the_clear(&sent), "it travels as it is");
    for piece in sent.chunks(70_000) {
        incoming.write(piece).unwrap();
        assert!(!in_the_clear(&raw(&to)));
    }
    assert!(raw(&to).len() > 200_000, "most of it is on disk");
    let received = incoming.finish().unwrap();
    assert_eq!(receiver.verify(&received).unwrap(), meta(7));
    receiver.make_current(&meta(7), received).unwrap();
    assert!(!in_the_clear(&raw(&to)));
    assert!(Snapshots::open(to.clone(), own).is_ok());
    let refused = Snapshots::open(to, keys())
        .err()
        .expect("the sender's key is another");
    assert!(matches!(refused, SnapshotError::Key { .. }), "{refused}");
}

#[test]
fn a_snapshot_of_the_version_before_is_read_and_the_next_one_sealed() {
    let dir = SimDir::new(Fault::None, 1);
    write(&dir, 7, 70_001).unwrap();
    let (_, file) = Snapshots::open(dir.clone(), keys()).unwrap().current().unwrap();
    let clear = file.chunk(0).unwrap();
    assert_eq!(
        clear[..12],
        *b"BHSNAPSH\x01\0\0\0",
        "what travels is what was on disk before"
    );
    crate::store::replace(&dir, NAME, &clear).unwrap();
    assert_eq!(raw(&dir), clear);
    assert_eq!(found(&dir).unwrap(), Some((meta(7), body(70_001))));
    write(&dir, 8, 70_001).unwrap();
    assert_eq!(found(&dir).unwrap(), Some((meta(8), body(70_001))));
    let part = &body(64)[..];
    assert!(!raw(&dir).windows(part.len()).any(|window| window == part));
}

#[test]
fn a_snapshot_sealed_with_an_older_key_is_read() {
    let dir = SimDir::new(Fault::None, 1);
    write(&dir, 7, 700).unwrap();
    let all = [vec![Key::generate()], keys().all().to_vec()].concat();
    let rotated = Keys::new(Path::new("storage.keys"), all.clone());
    let snapshots = Snapshots::open(dir.clone(), rotated).unwrap();
    let (_, file) = snapshots.current().unwrap();
    assert_eq!(snapshots.verify(&file).unwrap(), meta(7));
    let newer = snapshots.write(&meta(8), [body(10)]).unwrap();
    snapshots.make_current(&meta(8), newer).unwrap();
    let only_new = Keys::new(Path::new("storage.keys"), all[..1].to_vec());
    assert!(Snapshots::open(dir.clone(), only_new).is_ok());
    let refused = Snapshots::open(dir, keys()).err().expect("its key is gone");
    let told = std::error::Error::source(&refused).unwrap().to_string();
    assert!(told.contains("not in storage.keys"), "{told}");
}
