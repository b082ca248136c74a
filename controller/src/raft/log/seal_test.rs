//! The log on a disk that somebody reads or writes behind its back, with keys that change, and as the version before left it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::crash_test::{SEGMENT, append, block_on, entry, keys, open};
use super::*;
use crate::store::File;
use crate::store::sim::{Fault, SimDir, SimFile};
use seal::{Key, key_of};

/// A log that version 1 wrote: `init` of a new cluster, without the zeros behind it. Its last frame says what is committed.
const CLEAR: &str = "\
QkhSQUZUTEcBAAAAAAAAAAEAAAAAAAAAKrun+QAAAABCRlJNDQAAAAEAAAAAAAAA7QxsRgAAAAACAAAAAQAAAG2pUDUAAAAAQkZS\
TUUAAAACAAAAAAAAAAvkj+wAAAAABQAAACkAAABIbmY1AAACAQEBAQECYzEOMTI3LjAuMC4xOjc0NDMOMTI3LjAuMC4xOjc0NDQB\
AAAABAAAABxvsq4BAQEAAAAAQkZSTRAAAAADAAAAAAAAAJGNWroAAAAAAQAAAAQAAAAf7NlcAQEBAUJGUk0PAAAABAAAAAAAAAAT\
Z1XOAAAAAAUAAAADAAAAfYk+wAEBAABCRlJNlwAAAAUAAAAAAAAAv55nTQAAAAAFAAAAiwAAAN0of/ABAgGGAQokOGRiZGNiZGYt\
ZDIxMS00Mzk4LWI0YWYtYzNmNDFhNWMxN2JjEgYIsKuu2AYYATpUCiRhNjMzNDQ1Zi05ZjhkLTQyYWQtYmQ3YS03YzRkM2Q3NzM0\
MjQSDTEwLjI0NC4wLjAvMTYaDDEwLjk2LjAuMC8xNiINY2x1c3Rlci5sb2NhbCgYAEJGUk0PAAAABgAAAAAAAAB76VXnAAAAAAIA\
AAADAAAAA0ngPAEBAgA=";
/// Stands in it.
const CLEAR_TEXT: &[u8] = b"10.244.0.0/16";

fn bytes_of(dir: &SimDir, name: &str) -> (SimFile, Vec<u8>) {
    let file = dir.open(name).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    (file, bytes)
}

fn contains(dir: &SimDir, text: &[u8]) -> bool {
    let names = dir.list().unwrap();
    let mut all = names.iter().map(|name| bytes_of(dir, name).1);
    all.any(|bytes| bytes.windows(text.len()).any(|window| window == text))
}

/// Offsets of the frames of a segment.
fn frames(bytes: &[u8], number: u64) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = format::SEGMENT_HEADER;
    while let Ok(Some(frame)) = format::frame_at(bytes, number, at) {
        found.push((at, frame.len));
        at += frame.len;
    }
    found
}

/// Puts the body of a frame, which the checksum says is whole, in the place of another one of the same length.
fn put_in_place_of(frame: &[u8], bytes: &[u8], at: usize) -> Vec<u8> {
    let len = format::FRAME_HEADER + u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
    let mut moved = frame[..len].to_vec();
    moved[8..16].copy_from_slice(&bytes[at + 8..at + 16]); // the number that is due here
    let crc = format::frame_crc(&moved, 1, at as u32);
    moved[16..20].copy_from_slice(&crc.to_le_bytes());
    moved
}

async fn with_entries(dir: &SimDir, count: u64, keys: &Keys) {
    let mut store = LogStore::open(dir.clone(), SEGMENT, keys.clone(), WriteBy::Caller).unwrap();
    let first = store.last().map_or(0, |id| id.index + 1);
    for index in first..first + count {
        append(&mut store, vec![entry(1, index, 100)]).await.unwrap();
    }
}

async fn indexes(store: &LogStore<SimDir>) -> Vec<u64> {
    let mut reader = store.reader.clone();
    let entries = reader.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[test]
fn a_frame_of_another_place_or_log_is_refused() {
    block_on(async {
        let dir = SimDir::new(Fault::None, 1);
        let other = SimDir::new(Fault::None, 1);
        for dir in [&dir, &other] {
            with_entries(dir, 5, &keys()).await;
        }
        let name = format::segment_name(1);
        let (_, bytes) = bytes_of(&dir, &name);
        let (_, foreign) = bytes_of(&other, &name);
        let (at, len) = frames(&bytes, 1)[2];
        let (next, next_len) = frames(&bytes, 1)[3];
        assert_eq!(len, next_len);
        for frame in [&bytes[next..next + len], &foreign[at..at + len]] {
            let copy = dir.after_crash(Fault::None);
            let moved = put_in_place_of(frame, &bytes, at);
            let file = copy.open(&name).unwrap();
            file.write_at(&moved, at as u64).unwrap();
            match open(&copy).err().expect("refused") {
                LogError::Damaged { file, offset, what } => {
                    assert_eq!((file, offset), (name.clone(), at));
                    assert!(what.contains("altered or moved"), "{what}");
                }
                other => panic!("{other}"),
            }
        }
        // The same way of writing, of what belongs there, is taken.
        let own = put_in_place_of(&bytes[at..at + len], &bytes, at);
        let copy = dir.after_crash(Fault::None);
        copy.open(&name).unwrap().write_at(&own, at as u64).unwrap();
        assert_eq!(indexes(&open(&copy).unwrap()).await, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_new_key_seals_what_is_new_and_old_ones_open_what_is_old() {
    block_on(async {
        let dir = SimDir::new(Fault::None, 1);
        with_entries(&dir, 3, &keys()).await;
        let fresh = Key::generate();
        let all = [vec![fresh.clone()], keys().all().to_vec()].concat();
        let rotated = Keys::new(Path::new("storage.keys"), all);
        with_entries(&dir, 3, &rotated).await;
        let sealed_with = |number| key_of(&bytes_of(&dir, &format::segment_name(number)).1);
        assert_eq!(sealed_with(1), Some(keys().writing().id()));
        assert_eq!(sealed_with(2), Some(fresh.id()));
        let mut store = LogStore::open(dir.clone(), SEGMENT, rotated, WriteBy::Caller).unwrap();
        assert_eq!(indexes(&store).await, [0, 1, 2, 3, 4, 5]);
        assert_eq!(
            dir.list().unwrap().len(),
            2,
            "a start with the same key goes on where it was"
        );

        let only_fresh = || Keys::new(Path::new("storage.keys"), vec![fresh.clone()]);
        let opened = LogStore::open(dir.clone(), SEGMENT, only_fresh(), WriteBy::Caller);
        let refused = opened.err().expect("its key is missing");
        let LogError::Key { file, source } = &refused else {
            panic!("{refused}")
        };
        assert_eq!(*file, format::segment_name(1));
        assert!(
            source.to_string().contains("not in storage.keys: put back"),
            "{source}"
        );
        store.purge(LogId::new_term_index(1, 2)).await.unwrap();
        drop(store);
        let store = LogStore::open(dir.clone(), SEGMENT, only_fresh(), WriteBy::Caller).unwrap();
        assert_eq!(
            indexes(&store).await,
            [3, 4, 5],
            "nothing needs the old key any more"
        );
    });
}

fn clear_log() -> SimDir {
    let dir = SimDir::new(Fault::None, 1);
    let bytes = BASE64.decode(CLEAR).unwrap();
    crate::store::replace(&dir, &format::segment_name(1), &bytes).unwrap();
    dir
}

#[test]
fn a_log_of_the_version_before_is_read_and_sealed_from_there_on() {
    block_on(async {
        let dir = clear_log();
        assert!(contains(&dir, CLEAR_TEXT));
        let mut store = open(&dir).unwrap();
        assert_eq!(indexes(&store).await, [0, 1, 2]);
        assert_eq!(
            store.reader.read_vote().await.unwrap(),
            Some(Vote::new_committed(1, 1))
        );
        assert_eq!(store.read_committed().await.unwrap().unwrap().index, 2);
        append(&mut store, vec![entry(1, 3, 200)]).await.unwrap();
        drop(store);
        assert!(!contains(&dir, &[3; 32]), "what is new is sealed");
        let dir = dir.after_crash(Fault::None);
        let mut store = open(&dir).unwrap();
        assert_eq!(indexes(&store).await, [0, 1, 2, 3]);
        assert_eq!(dir.list().unwrap().len(), 2);
        store.purge(LogId::new_term_index(1, 2)).await.unwrap();
        assert!(!contains(&dir, CLEAR_TEXT), "it goes with what was purged");
    });
}

#[test]
fn a_torn_tail_of_the_version_before_is_cut_and_damage_told() {
    block_on(async {
        let torn = clear_log();
        let len = BASE64.decode(CLEAR).unwrap().len();
        torn.damage(&format::segment_name(1), len - 2);
        assert_eq!(indexes(&open(&torn).unwrap()).await, [0, 1, 2]);
        let damaged = clear_log();
        damaged.damage(&format::segment_name(1), 200);
        assert!(matches!(open(&damaged), Err(LogError::Damaged { .. })));
    });
}

#[test]
fn a_segment_that_is_not_sealed_is_refused_after_one_that_is() {
    block_on(async {
        let dir = SimDir::new(Fault::None, 1);
        with_entries(&dir, 1, &keys()).await;
        let mut clear = BASE64.decode(CLEAR).unwrap();
        clear[16] = 2; // its number
        let crc = crc32c::crc32c(&clear[..24]);
        clear[24..28].copy_from_slice(&crc.to_le_bytes());
        crate::store::replace(&dir, &format::segment_name(2), &clear).unwrap();
        let refused = open(&dir).err().expect("refused").to_string();
        assert!(
            refused.contains("2.log") && refused.contains("not sealed"),
            "{refused}"
        );
    });
}
