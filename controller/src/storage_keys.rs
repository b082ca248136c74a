//! `CONFIG/storage.keys`: the keys with which this member seals what it writes to its data directory.
//!
//! One line a key, `ID BASE64`; the first is written with, all are read with. They are this member's own: nobody sends them
//! anywhere, and what other members need travels over TLS.
//!
//! | found at start                     | done                                                            |
//! |------------------------------------|-----------------------------------------------------------------|
//! | the file                           | its keys are used                                               |
//! | no file, nothing in DATA is sealed | one is made: a new member, or one of a version that sealed none |
//! | no file, something is sealed       | refused: another key would open none of it                      |

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::setup::{Places, SetupError, read, write};
use seal::{HEADER_BYTES, KEYS_MAX, Key, KeyId, Keys};

/// How often a member looks whether a key is needed no longer: segments go with snapshots, which take minutes at least.
const DROP_INTERVAL: Duration = Duration::from_secs(60);

/// Why the keys can't be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum StorageKeysError {
    /// A line is not ours.
    #[error("{}, line {line}: {what}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The file is gone, and what it opened is not.
    #[error(
        "{} does not exist, but {} is sealed with key {id} of it: put the file back; if it is lost, remove this member \
         from the cluster, empty its data directory and join it again; if it is the only one, restore a backup of both \
         directories",
        .path.display(), .sealed.display()
    )]
    Lost {
        /// The key file.
        path: PathBuf,
        /// A file that needs it.
        sealed: PathBuf,
        /// The key.
        id: KeyId,
    },
    /// Rotation after rotation.
    #[error(
        "{} has {KEYS_MAX} keys: the controller drops those that no file needs any more, while it runs; rotate again \
         when it has",
        .path.display()
    )]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

fn path_in(config: &Path) -> PathBuf {
    config.join("storage.keys")
}

/// The keys of the file, in order.
fn parse(path: &Path, text: &str) -> Result<Vec<Key>, StorageKeysError> {
    let refuse = |at: usize, what: String| StorageKeysError::Line {
        path: path.to_owned(),
        line: at + 1,
        what,
    };
    let mut keys: Vec<Key> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let key: Key = line
            .parse()
            .map_err(|cause: seal::KeyLineError| refuse(at, cause.to_string()))?;
        if keys.iter().any(|other| other.id() == key.id()) {
            return Err(refuse(at, format!("key {} stands here twice", key.id())));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(refuse(0, "there is no key".to_owned()));
    }
    Ok(keys)
}

fn load(config: &Path) -> Result<Vec<Key>, SetupError> {
    let path = path_in(config);
    Ok(parse(&path, &read(&path)?)?)
}

fn save(config: &Path, keys: &[Key]) -> Result<(), SetupError> {
    let text: String = keys.iter().map(Key::line).collect();
    write(&path_in(config), text.as_bytes())
}

/// Held while the file is read and written anew: a rotation and the member that drops keys are two processes. The kernel
/// releases it when the process ends.
fn lock(config: &Path) -> Result<fs::File, SetupError> {
    let locked = fs::File::open(config).and_then(|directory| directory.lock().map(|()| directory));
    locked.map_err(|source| SetupError::Io {
        what: "lock",
        path: config.to_owned(),
        source,
    })
}

/// Puts a fresh key before the others; gives its name. A member that runs goes on with the one that it knows.
pub fn rotate(config: &Path) -> Result<KeyId, SetupError> {
    let path = path_in(config);
    if !path.exists() {
        return Err(SetupError::Missing { path });
    }
    let _locked = lock(config)?;
    let mut keys = load(config)?;
    if keys.len() >= KEYS_MAX {
        return Err(StorageKeysError::TooMany { path }.into());
    }
    let mut fresh = Key::generate();
    while keys.iter().any(|key| key.id() == fresh.id()) {
        fresh = Key::generate(); // names are short: one in four billion
    }
    let id = fresh.id();
    keys.insert(0, fresh);
    save(config, &keys)?;
    Ok(id)
}

impl Places {
    /// The keys of this member; made where nothing was ever sealed.
    pub fn storage_keys(&self) -> Result<Keys, SetupError> {
        let path = path_in(&self.config);
        let _locked = lock(&self.config)?;
        let keys = match load(&self.config) {
            Ok(keys) => keys,
            Err(SetupError::Missing { .. }) => {
                if let Some((sealed, id)) = self.sealed_files()?.into_iter().next() {
                    return Err(StorageKeysError::Lost { path, sealed, id }.into());
                }
                let keys = vec![Key::generate()];
                save(&self.config, &keys)?;
                keys
            }
            Err(cause) => return Err(cause),
        };
        Ok(Keys::new(&path, keys))
    }

    /// Every sealed file of the data directory, with its key.
    fn sealed_files(&self) -> Result<Vec<(PathBuf, KeyId)>, SetupError> {
        let mut found = Vec::new();
        for directory in self.stores() {
            let failed = |source| SetupError::Io {
                what: "read",
                path: directory.clone(),
                source,
            };
            let entries = match fs::read_dir(&directory) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue, // not begun
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                let mut head = Vec::with_capacity(HEADER_BYTES);
                match fs::File::open(&path)
                    .and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut head))
                {
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => {} // removed meanwhile
                    read => {
                        read.map_err(failed)?;
                    }
                }
                found.extend(seal::key_of(&head).map(|id| (path, id)));
            }
        }
        Ok(found)
    }

    /// Takes out of the file what no file of the data directory needs; `running` are the keys of the process that writes
    /// there. Gives how many are left.
    pub(crate) fn drop_unused_storage_keys(&self, running: &Keys) -> Result<usize, SetupError> {
        let _locked = lock(&self.config)?;
        let keys = load(&self.config)?;
        // The first may be one that a rotation has just put there; what the process writes now has its own first key.
        let mut needed = BTreeSet::from([keys[0].id(), running.writing().id()]);
        needed.extend(self.sealed_files()?.into_iter().map(|(_, id)| id));
        let (kept, dropped): (Vec<Key>, Vec<Key>) =
            keys.into_iter().partition(|key| needed.contains(&key.id()));
        if !dropped.is_empty() {
            save(&self.config, &kept)?;
            for key in &dropped {
                tracing::info!(key = %key.id(), "a storage key that no file needs any more was dropped");
            }
        }
        Ok(kept.len())
    }
}

/// Drops keys as they cease to be needed, until one is left.
pub(crate) async fn drop_unused(places: Places, running: Keys) {
    if running.all().len() == 1 {
        return;
    }
    let mut ticks = tokio::time::interval(DROP_INTERVAL);
    loop {
        ticks.tick().await;
        let (places, running) = (places.clone(), running.clone());
        let dropped = tokio::task::spawn_blocking(move || places.drop_unused_storage_keys(&running));
        match dropped.await {
            Ok(Ok(1)) => return,
            Ok(Ok(_)) => {}
            Ok(Err(cause)) => {
                tracing::warn!(error = %cause, "storage keys that are not needed were not dropped")
            }
            Err(cause) => {
                tracing::error!(error = %cause, "dropping storage keys failed");
                return;
            }
        }
    }
}
