//! What is written is read again; whatever is altered, cut or moved is found, with the key and without.

use proptest::prelude::*;
use rpc::v1::KindCount;

use super::*;

fn start() -> BackupStart {
    BackupStart {
        cluster_id: "a-cluster".to_owned(),
        revision: 17,
        schema_level: 3,
        counts: vec![KindCount {
            kind: "Pod".to_owned(),
            count: 2,
        }],
        ..Default::default()
    }
}

fn written(key: &Key, chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), key, &start()).unwrap();
    for chunk in chunks {
        writer.chunk(chunk.clone()).unwrap();
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8], key: Option<&Key>) -> Result<(BackupStart, Vec<Chunk>), FormatError> {
    let mut reader = Reader::open(bytes, key)?;
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next()? {
        chunks.push(chunk);
    }
    assert_eq!(reader.offset(), bytes.len() as u64, "all of it was looked at");
    Ok((reader.start().clone(), chunks))
}

/// Two chunks as they stand in the file: from where to where.
fn chunks_of(bytes: &[u8], sizes: [usize; 2]) -> [std::ops::Range<usize>; 2] {
    let ends = bytes.len() - (4 + TAG_BYTES + 32);
    let whole = sizes.map(|size| 4 + size + TAG_BYTES + 4);
    let second = ends - whole[1]..ends;
    [second.start - whole[0]..second.start, second]
}

#[test]
fn every_flipped_bit_is_found_with_the_key_and_without() {
    let key = Key::generate();
    let bytes = written(&key, &[b"some records".to_vec(), vec![7; 90]]);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            for key in [None, Some(&key)] {
                assert!(
                    read(&flipped, key).is_err(),
                    "bit {bit} of byte {at}, key: {}",
                    key.is_some()
                );
            }
        }
    }
}

#[test]
fn every_cut_and_everything_that_is_added_is_found() {
    let key = Key::generate();
    let bytes = written(&key, &[b"some records".to_vec(), vec![7; 90]]);
    for key in [None, Some(&key)] {
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len], key).is_err(), "cut at {len}");
        }
        assert!(read(&[&bytes[..], &[0]].concat(), key).is_err());
        assert!(read(&[&bytes[..], &bytes].concat(), key).is_err());
    }
}

#[test]
fn whoever_makes_the_checksums_anew_is_found_by_the_key() {
    let key = Key::generate();
    let bytes = written(&key, &[vec![1; 40], vec![2; 40]]);
    let [first, second] = chunks_of(&bytes, [40, 40]);
    let (head, body) = (&bytes[..first.start], bytes.len() - 32);
    let with_hash = |parts: &[&[u8]]| {
        let mut forged = parts.concat();
        let hash = Sha256::digest(&forged);
        forged.extend(hash);
        forged
    };
    let end = &bytes[second.end..body];
    let (one, two) = (&bytes[first.clone()], &bytes[second.clone()]);
    assert!(
        read(&with_hash(&[head, one, two, end]), Some(&key)).is_ok(),
        "it is put together rightly"
    );
    for (what, forged) in [
        ("exchanged", with_hash(&[head, two, one, end])),
        ("left out", with_hash(&[head, one, end])),
        ("the first left out", with_hash(&[head, two, end])),
        ("twice", with_hash(&[head, one, one, two, end])),
        ("no chunk", with_hash(&[head, end])),
    ] {
        assert!(
            read(&forged, None).is_ok(),
            "{what}: nobody can see it without the key"
        );
        assert!(read(&forged, Some(&key)).is_err(), "{what}");
    }
    // A chunk of another backup under the same key.
    let other = written(&key, &[vec![1; 40], vec![2; 40]]);
    let [of_other, _] = chunks_of(&other, [40, 40]);
    let moved = with_hash(&[head, &other[of_other], two, end]);
    assert!(read(&moved, Some(&key)).is_err());
    // What it is a backup of is bound to the chunks.
    let mut lie = head[..head.len() - 4].to_vec();
    let at = lie.windows(9).position(|some| some == b"a-cluster").unwrap();
    lie[at] = b'b';
    let crc = crc32c::crc32c(&lie).to_le_bytes();
    let lie = with_hash(&[&lie, &crc, one, two, end]);
    assert_eq!(read(&lie, None).unwrap().0.cluster_id, "b-cluster");
    assert!(read(&lie, Some(&key)).is_err());
}

#[test]
fn another_key_is_told_from_damage() {
    let (key, other) = (Key::generate(), Key::generate());
    let bytes = written(&key, &[vec![1; 40]]);
    match read(&bytes, Some(&other)) {
        Err(FormatError::Key { needed, given }) => assert_eq!((needed, given), (key.id(), other.id())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn something_else_is_no_backup() {
    for bytes in [&[0; 200][..], &b"apiVersion: v1\n".repeat(20)] {
        assert!(matches!(read(bytes, None), Err(FormatError::Other)));
    }
    assert!(matches!(
        read(b"", None),
        Err(FormatError::Damaged { offset: 0, .. })
    ));
}

#[test]
fn nothing_of_the_content_is_in_the_clear() {
    let secret = b"zq9-hidden-zq9";
    let bytes = written(&Key::generate(), &[secret.repeat(20)]);
    assert!(!bytes.windows(6).any(|some| some == &secret[..6]));
}

#[test]
fn a_part_that_is_none_is_not_written() {
    let mut writer = Writer::begin(Vec::new(), &Key::generate(), &start()).unwrap();
    assert!(writer.chunk(Vec::new()).is_err());
    assert!(writer.chunk(vec![0; CHUNK_BYTES_MAX + 1]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..500), 0..8)) {
        let key = Key::generate();
        let bytes = written(&key, &chunks);
        let (was, read_chunks) = read(&bytes, Some(&key)).unwrap();
        prop_assert_eq!(was, start());
        prop_assert_eq!(read(&bytes, None).unwrap().1.len(), chunks.len());
        let chunks: Vec<Chunk> = chunks.into_iter().map(Chunk::Records).collect();
        prop_assert_eq!(read_chunks, chunks);
    }

    #[test]
    fn damage_anywhere_is_found(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..500), 1..5),
        at in any::<prop::sample::Index>(),
        flips in prop::collection::vec(1..=255_u8, 1..9),
    ) {
        let key = Key::generate();
        let mut bytes = written(&key, &chunks);
        let at = at.index(bytes.len());
        for (byte, flip) in bytes[at..].iter_mut().zip(flips) {
            *byte ^= flip;
        }
        prop_assert!(read(&bytes, Some(&key)).is_err());
        prop_assert!(read(&bytes, None).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [&MAGIC[..], &bytes].concat();
        prop_assert!(read(&bytes, None).is_err());
    }
}
