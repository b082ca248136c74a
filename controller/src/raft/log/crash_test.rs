//! The log against a disk that crashes, fails, fills up and rots.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::type_config::TypeConfigExt;
use proptest::prelude::*;

use super::*;
use crate::raft::types::Proposal;
use crate::store::File;
use crate::store::os::OsDir;
use crate::store::sim::{Fault, SimDir};
use seal::{Key, SALT_BYTES};

/// Small, so that a short workload goes through several.
pub(super) const SEGMENT: u32 = 4096;

pub(super) fn entry(term: u64, index: u64, len: usize) -> Entry {
    Entry {
        log_id: LogId::new_term_index(term, index),
        payload: EntryPayload::Normal(Proposal(Bytes::from(vec![index as u8; len]))),
    }
}

/// What a log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<(LogId, usize)>,
}

impl Model {
    fn end(&self) -> u64 {
        let purged = self.purged.map_or(0, |id| id.index + 1);
        self.entries.last().map_or(purged, |(id, _)| id.index + 1)
    }

    async fn of<D: Dir>(store: &mut LogStore<D>) -> Self {
        let mut reader = store.get_log_reader().await;
        let entries = reader.try_get_log_entries(..).await.unwrap();
        let entries = entries.iter().map(|entry| match &entry.payload {
            EntryPayload::Normal(proposal) => {
                assert!(proposal.0.iter().all(|b| *b == entry.log_id.index as u8));
                (entry.log_id, proposal.0.len())
            }
            other => panic!("never written: {other:?}"),
        });
        Self {
            vote: reader.read_vote().await.unwrap(),
            purged: store.get_log_state().await.unwrap().last_purged_log_id,
            entries: entries.collect(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Vote,
    Append {
        count: u64,
        len: usize,
    },
    Truncate {
        keep: u64,
    },
    Purge {
        share: u64,
    },
    /// A snapshot from the leader that is ahead of the log.
    Jump {
        by: u64,
    },
    Committed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::Vote),
        6 => (1..4u64, 0..900usize).prop_map(|(count, len)| Step::Append { count, len }),
        1 => (0..4u64).prop_map(|keep| Step::Truncate { keep }),
        2 => (1..5u64).prop_map(|share| Step::Purge { share }),
        1 => (1..4u64).prop_map(|by| Step::Jump { by }),
        1 => Just(Step::Committed),
    ];
    proptest::collection::vec(step, 1..14)
}

/// Runs one step on the model, then on the store.
async fn run<D: Dir>(step: Step, model: &mut Model, store: &mut LogStore<D>) -> io::Result<()> {
    let term = model.vote.map_or(0, |vote| vote.leader_id.term);
    match step {
        Step::Vote => {
            let vote = Vote::new(term + 1, 7);
            model.vote = Some(vote);
            store.save_vote(&vote).await
        }
        Step::Append { count, len } => {
            let first = model.end();
            let entries: Vec<Entry> = (first..first + count)
                .map(|index| entry(term, index, len))
                .collect();
            model
                .entries
                .extend(entries.iter().map(|entry| (entry.log_id, len)));
            append(store, entries).await
        }
        Step::Truncate { keep } => {
            let Some(at) = model.entries.len().checked_sub(keep as usize + 1) else {
                return Ok(());
            };
            let after = at.checked_sub(1).map(|at| model.entries[at].0).or(model.purged);
            model.entries.truncate(at);
            store.truncate_after(after).await
        }
        Step::Purge { share } => {
            let Some((upto, _)) = model.entries.get(model.entries.len() / share as usize).copied() else {
                return Ok(());
            };
            model.purged = Some(upto);
            model.entries.retain(|(id, _)| *id > upto);
            store.purge(upto).await
        }
        Step::Jump { by } => {
            let upto = LogId::new_term_index(term, model.end() + by);
            model.purged = Some(upto);
            model.entries.clear();
            store.purge(upto).await
        }
        Step::Committed => {
            store
                .save_committed(model.entries.last().map(|(id, _)| *id).or(model.purged))
                .await
        }
    }
}

pub(super) async fn append<D: Dir>(store: &mut LogStore<D>, entries: Vec<Entry>) -> io::Result<()> {
    let (sender, receiver) = Types::oneshot();
    store.append(entries, IOFlushed::signal(sender)).await?;
    receiver.await.expect("always called")
}

pub(super) fn keys() -> Keys {
    static KEYS: LazyLock<Keys> =
        LazyLock::new(|| Keys::new(Path::new("storage.keys"), vec![Key::generate()]));
    KEYS.clone()
}

pub(super) fn open<D: Dir>(dir: &D) -> Result<LogStore<D>, LogError> {
    LogStore::open(dir.clone(), SEGMENT, keys(), WriteBy::Caller)
}

/// Runs until something fails; gives the states that a start may find: the last acknowledged one, and the one that was
/// being written.
async fn run_until_failure(steps: &[Step], dir: &SimDir) -> Vec<Model> {
    let mut model = Model::default();
    let Ok(mut store) = open(dir) else {
        return vec![model];
    };
    for step in steps {
        let before = model.clone();
        if run(*step, &mut model, &mut store).await.is_err() {
            // Latched: whatever comes later is refused too, also when the disk works again.
            assert!(store.save_vote(&Vote::new(9999, 7)).await.is_err());
            return vec![before, model];
        }
    }
    vec![model]
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

async fn check_recovery(steps: &[Step], fault: Fault, seed: u64) {
    let dir = SimDir::new(fault, seed);
    let allowed = run_until_failure(steps, &dir).await;
    let after = dir.after_crash(Fault::None);
    let mut store = open(&after).expect("a crash is not damage");
    let mut found = Model::of(&mut store).await;
    assert!(
        allowed.contains(&found),
        "{fault:?}, seed {seed}: found {found:?}, allowed {allowed:?}"
    );
    // And it goes on from there, over what the crash left.
    for step in [
        Step::Append { count: 3, len: 700 },
        Step::Vote,
        Step::Append { count: 2, len: 900 },
    ] {
        run(step, &mut found, &mut store).await.unwrap();
    }
    drop(store);
    let mut store = open(&after.after_crash(Fault::None)).unwrap();
    assert_eq!(Model::of(&mut store).await, found, "{fault:?}, seed {seed}");
}

/// Notes every whole frame by the salt that its key is from: a second one of the same salt would take its nonces again.
fn note_frames(dir: &SimDir, seen: &mut BTreeMap<[u8; SALT_BYTES], Vec<u8>>) {
    for name in dir.list().unwrap() {
        let Some(number) = format::segment_number(name.trim_end_matches(".tmp")) else {
            continue;
        };
        let file = dir.open(&name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        let mut at = format::SEGMENT_HEADER;
        while at < bytes.len()
            && let Ok(Some(frame)) = format::frame_at(&bytes, number, at)
        {
            let whole = bytes[at..at + frame.len].to_vec();
            let salt = whole[format::FRAME_HEADER..][..SALT_BYTES].try_into().unwrap();
            let before = seen.entry(salt).or_insert_with(|| whole.clone());
            assert_eq!(*before, whole, "{name}, byte {at}: another frame had this salt");
            at += frame.len;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_writes_survive_a_crash_at_any_disk_operation(steps in steps(), seed in any::<u32>()) {
        block_on(async {
            let calm = SimDir::new(Fault::None, 0);
            run_until_failure(&steps, &calm).await;
            for crash_at in 0..=calm.operations() {
                check_recovery(&steps, Fault::CrashAt(crash_at), seed.into()).await;
            }
        });
    }

    #[test]
    fn a_failed_operation_latches_the_log_and_loses_nothing(steps in steps(), seed in any::<u32>()) {
        block_on(async {
            let calm = SimDir::new(Fault::None, 0);
            run_until_failure(&steps, &calm).await;
            for fail_at in 0..calm.operations() {
                check_recovery(&steps, Fault::FailAt(fail_at), seed.into()).await;
            }
        });
    }

    #[test]
    fn no_nonce_is_used_twice_over_crashes(steps in steps(), crashes in proptest::collection::vec(0..60u64, 3), seed in any::<u32>()) {
        block_on(async {
            let mut seen = BTreeMap::new();
            let mut dir = SimDir::new(Fault::CrashAt(crashes[0]), seed.into());
            for crash in crashes[1..].iter().chain([&u64::MAX]) {
                if let Ok(mut store) = open(&dir) {
                    let mut model = Model::of(&mut store).await;
                    for step in &steps {
                        if run(*step, &mut model, &mut store).await.is_err() {
                            break;
                        }
                    }
                }
                note_frames(&dir, &mut seen); // also what the crash is about to tear
                dir = dir.after_crash(Fault::CrashAt(*crash));
                note_frames(&dir, &mut seen);
            }
        });
    }

    #[test]
    fn a_full_disk_stops_the_log_and_loses_nothing(steps in steps(), capacity in 0..60_000u64) {
        block_on(check_recovery(&steps, Fault::Capacity(capacity), capacity));
    }
}

/// Others may have entries first, so that they are known to be committed before they are on this disk. A start applies what is
/// committed: it has to be there, also when the crash came as a new segment began.
#[test]
fn what_is_committed_is_in_the_log_after_a_crash_at_any_disk_operation() {
    async fn workload(dir: &SimDir) -> io::Result<()> {
        let mut store = open(dir).map_err(io::Error::from)?;
        for index in 0..20 {
            store
                .save_committed(Some(LogId::new_term_index(1, index)))
                .await?;
            append(&mut store, vec![entry(1, index, 700)]).await?;
        }
        Ok(())
    }
    block_on(async {
        let calm = SimDir::new(Fault::None, 0);
        workload(&calm).await.unwrap();
        for crash_at in 0..calm.operations() {
            let dir = SimDir::new(Fault::CrashAt(crash_at), 7);
            assert!(workload(&dir).await.is_err(), "{crash_at}");
            let mut store = open(&dir.after_crash(Fault::None)).expect("a crash is not damage");
            let committed = store.read_committed().await.unwrap();
            let last = store.get_log_state().await.unwrap().last_log_id;
            assert!(
                committed <= last,
                "crash at {crash_at}: {committed:?} is committed, the log ends at {last:?}"
            );
        }
    });
}

#[test]
fn any_flipped_bit_before_the_last_frame_refuses_to_start() {
    block_on(async {
        let dir = SimDir::new(Fault::None, 1);
        let mut store = open(&dir).unwrap();
        let mut model = Model::default();
        let mut last_frame = 0;
        for _ in 0..5 {
            run(Step::Append { count: 1, len: 500 }, &mut model, &mut store)
                .await
                .unwrap();
        }
        drop(store);
        let name = format::segment_name(1);
        let file = dir.open(&name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        let mut at = format::SEGMENT_HEADER;
        while let Ok(Some(frame)) = format::frame_at(&bytes, 1, at) {
            last_frame = at;
            at += frame.len;
        }
        let mut refused = 0;
        for offset in 0..last_frame {
            let copy = dir.after_crash(Fault::None);
            copy.damage(&name, offset);
            match open(&copy) {
                Err(LogError::Damaged { file, .. }) => {
                    assert_eq!(file, name);
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
                // Reserved and padding bytes carry nothing.
                Ok(mut store) => assert_eq!(Model::of(&mut store).await, model, "byte {offset}"),
            }
        }
        assert!(refused > last_frame * 9 / 10, "{refused} of {last_frame}");

        let torn = dir.after_crash(Fault::None);
        torn.damage(&name, last_frame + 40);
        let mut store = open(&torn).unwrap();
        model.entries.pop();
        assert_eq!(Model::of(&mut store).await, model, "the torn tail alone is cut");
    });
}

#[test]
fn a_missing_segment_refuses_to_start() {
    block_on(async {
        let dir = SimDir::new(Fault::None, 1);
        let mut store = open(&dir).unwrap();
        let mut model = Model::default();
        for _ in 0..12 {
            run(Step::Append { count: 1, len: 900 }, &mut model, &mut store)
                .await
                .unwrap();
        }
        drop(store);
        dir.remove(&format::segment_name(2)).unwrap();
        let refused = open(&dir).err().expect("refused").to_string();
        assert!(
            refused.contains("00000000000000000003.log") && refused.contains("missing"),
            "{refused}"
        );
        dir.remove(&format::segment_name(1)).unwrap();
        let refused = open(&dir).err().expect("refused").to_string();
        assert!(refused.contains("missing"), "{refused}");
    });
}

#[test]
fn a_newer_format_is_named() {
    let dir = SimDir::new(Fault::None, 1);
    drop(open(&dir).unwrap());
    let file = dir.open(&format::segment_name(1)).unwrap();
    let (mut header, _) = format::segment_header(1, keys().writing());
    header[8] = 3;
    let crc = crc32c::crc32c(&header[..72]);
    header[72..76].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&header, 0).unwrap();
    assert!(matches!(open(&dir), Err(LogError::Version { version: 3, .. })));
}

#[tokio::test]
async fn entries_beyond_the_cache_are_read_from_disk() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = OsDir::open(tmp.path()).unwrap();
    let mut store = LogStore::open(dir, SEGMENT_BYTES, keys(), WriteBy::Thread).unwrap();
    let count = 3 * index::CACHE_BYTES_MAX as u64 / (1 << 20);
    for index in 0..count {
        append(&mut store, vec![entry(1, index, 1 << 20)]).await.unwrap();
    }
    let mut reader = store.get_log_reader().await;
    for index in 0..count {
        let entries = reader.try_get_log_entries(index..=index).await.unwrap();
        assert_eq!(entries, [entry(1, index, 1 << 20)]);
    }
    let limited = reader.limited_get_log_entries(0, count).await.unwrap();
    assert_eq!(limited.len(), 1, "one message carries one large entry");
    let streamed: Vec<_> = reader.entries_stream(0..count).await.collect().await;
    assert_eq!(streamed.len() as u64, count);
}
