//! The consensus library's own tests of a log and a state machine, over ours.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::log::{LogStore, SEGMENT_BYTES, WriteBy};
use super::machine::{Published, StateMachine};
use super::snapshot::Snapshots;
use super::types::Types;
use crate::store::os::OsDir;
use seal::{Key, Keys};

struct Builder(WriteBy);

impl StoreBuilder<Types, LogStore<OsDir>, StateMachine<OsDir>, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore<OsDir>, StateMachine<OsDir>), StorageError<Types>> {
        let tmp = tempfile::tempdir().unwrap();
        let log = OsDir::open(&tmp.path().join("log")).unwrap();
        let keys = Keys::new(tmp.path(), vec![Key::generate()]);
        let snapshots = OsDir::open(&tmp.path().join("snapshots")).unwrap();
        let snapshots = Snapshots::open(snapshots, keys.clone()).unwrap();
        let store = LogStore::open(log, SEGMENT_BYTES, keys, self.0).unwrap();
        Ok((
            tmp,
            store,
            StateMachine::new(snapshots, self.0, state::SCHEMA_LEVEL, Published::new()),
        ))
    }
}

#[tokio::test]
async fn log_and_state_machine_pass_the_librarys_suite_with_a_writer_thread() {
    Suite::test_all(Builder(WriteBy::Thread)).await.unwrap();
}

#[tokio::test]
async fn log_and_state_machine_pass_the_librarys_suite_written_by_the_caller() {
    Suite::test_all(Builder(WriteBy::Caller)).await.unwrap();
}
