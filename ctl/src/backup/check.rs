//! Whether a backup is whole: its bytes, and with the key that they are the state that it says.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use model::Kind;
use rpc::v1::BackupStart;
use seal::{Key, KeyId};
use state::State;

use super::format::{Chunk, FormatError, Reader};
use crate::error::CtlError;

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// A backup that is whole, as far as was looked.
#[derive(Debug)]
pub(crate) struct Checked {
    /// What it is of.
    pub(crate) start: BackupStart,
    /// What it is sealed with.
    pub(crate) key: KeyId,
    /// Its size.
    pub(crate) bytes: u64,
}

/// Why it is not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Every byte is as it was written, and yet.
    #[error("what is in it is no state of a cluster: {0}")]
    State(#[from] state::DecodeError),
    /// It holds something else than it says.
    #[error("it says that it has {what} {said}, and it has {found}")]
    Claim {
        /// Of what.
        what: String,
        /// In its beginning.
        said: String,
        /// In its records.
        found: String,
    },
}

/// Opens a backup for reading.
pub(crate) fn open(path: &Path, key: Option<&Key>) -> Result<Reader<BufReader<File>>, CtlError> {
    let file = File::open(path).map_err(CtlError::io(format!("failed to open {}", path.display())))?;
    let reader = Reader::open(BufReader::with_capacity(READ_BYTES, file), key);
    reader.map_err(|cause| about(path, &cause.into()))
}

/// Reads all of it.
pub(crate) fn file(path: &Path, key: Option<&Key>) -> Result<Checked, CtlError> {
    whole(open(path, key)?).map_err(|cause| about(path, &cause))
}

/// An error of this file.
pub(crate) fn about(path: &Path, cause: &CheckError) -> CtlError {
    CtlError::refused(format!("{}: {cause}", path.display()))
}

fn whole<R: Read>(mut reader: Reader<R>) -> Result<Checked, CheckError> {
    let mut failed = None;
    let mut sealed = false;
    let records = std::iter::from_fn(|| {
        loop {
            match reader.next() {
                Ok(Some(Chunk::Records(records))) => return Some(records),
                Ok(Some(Chunk::Sealed)) => sealed = true,
                Ok(None) => return None,
                Err(cause) => {
                    failed = Some(cause);
                    return None;
                }
            }
        }
    });
    let state = State::decode(records);
    if let Some(cause) = failed {
        return Err(cause.into()); // why the state ended too early
    }
    if !sealed {
        claims(reader.start(), &state?)?;
    }
    Ok(Checked {
        start: reader.start().clone(),
        key: reader.key(),
        bytes: reader.offset(),
    })
}

/// Whether the state is what the beginning says.
fn claims(start: &BackupStart, state: &State) -> Result<(), CheckError> {
    let same = |what: &str, said: String, found: String| match said == found {
        true => Ok(()),
        false => Err(CheckError::Claim {
            what: what.to_owned(),
            said,
            found,
        }),
    };
    let cluster = state.settings().map_or("", |settings| &settings.cluster_id);
    same("the cluster id", start.cluster_id.clone(), cluster.to_owned())?;
    same(
        "the revision",
        start.revision.to_string(),
        state.revision().to_string(),
    )?;
    for kind in Kind::ALL {
        let said = start.counts.iter().find(|of| of.kind == kind.as_str());
        let said = said.map_or(0, |of| of.count);
        same(kind.plural(), said.to_string(), state.count(kind).to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::state::v1::command::Kind as Body;
    use proto::state::v1::{ClusterSettings, Command};
    use rpc::v1::KindCount;

    use super::super::format::Writer;
    use super::*;

    fn state() -> State {
        let mut state = State::new();
        let settings = ClusterSettings {
            cluster_id: "a-cluster".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            ..Default::default()
        };
        let command = Command {
            level: 3,
            kind: Some(Body::Settings(settings)),
            ..Default::default()
        };
        assert!(state.apply(&command).applied());
        state
    }

    fn start() -> BackupStart {
        BackupStart {
            cluster_id: "a-cluster".to_owned(),
            revision: 1,
            counts: vec![KindCount {
                kind: "Namespace".to_owned(),
                count: 1,
            }],
            ..Default::default()
        }
    }

    fn checked(start: &BackupStart, chunks: &[Vec<u8>], with_key: bool) -> Result<Checked, CheckError> {
        let key = Key::generate();
        let mut writer = Writer::begin(Vec::new(), &key, start).unwrap();
        for chunk in chunks {
            writer.chunk(chunk.clone()).unwrap();
        }
        let bytes = writer.finish().unwrap();
        whole(Reader::open(&bytes[..], with_key.then_some(&key))?)
    }

    #[test]
    fn a_backup_is_the_state_that_it_says() {
        let chunks: Vec<Vec<u8>> = state().encode().collect();
        assert_eq!(checked(&start(), &chunks, true).unwrap().start, start());
        let other_revision = BackupStart {
            revision: 2,
            ..start()
        };
        let more_pods = BackupStart {
            counts: [
                &start().counts[..],
                &[KindCount {
                    kind: "Pod".to_owned(),
                    count: 1,
                }],
            ]
            .concat(),
            ..start()
        };
        for lie in [BackupStart::default(), other_revision, more_pods] {
            let refused = checked(&lie, &chunks, true).unwrap_err();
            assert!(matches!(refused, CheckError::Claim { .. }), "{refused}");
            assert!(
                checked(&lie, &chunks, false).is_ok(),
                "nobody can see it without the key"
            );
        }
    }

    #[test]
    fn records_that_are_no_state_are_refused() {
        let chunks: Vec<Vec<u8>> = state().encode().collect();
        let cut = vec![chunks[0][..chunks[0].len() - 3].to_vec()];
        for chunks in [&[][..], &cut, &[b"something else".to_vec()]] {
            let refused = checked(&start(), chunks, true).unwrap_err();
            assert!(matches!(refused, CheckError::State(_)), "{refused}");
        }
    }
}
