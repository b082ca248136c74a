//! Images on a node: a content-addressed store of unpacked layers, filled by pulls and imports.
//!
//! ```text
//! images.json           which reference is which image; replaced whole, synced
//! blobs/sha256/HEX      configurations
//! layers/HEX            one layer unpacked, by its diff_id; there only when complete
//! shifted/START-COUNT/HEX   copies with shifted owners, where the kernel cannot idmap
//! tmp/                  what is being made; emptied when the store is opened
//! ```
//! Layers are owned by ids 0..65535 and shared by all containers; the runtime maps them at mount time.

mod archive;
mod digest;
mod entry;
mod import;
mod label;
mod layer;
mod parts;
mod pull;
mod shift;
mod unpack;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use digest::Digest;
pub use import::{ImportError, RootDefaults, Spool};
pub use pull::{PullError, Registries, normalize};
pub use unpack::UnpackError;
pub use user::{User, UserError};

/// Largest configuration or manifest that is kept; the registry's own limit is 4 MiB (distribution spec 1.1, "Pushing
/// Manifests").
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Most layers of an image: overlayfs takes 500 lower directories.
pub(crate) const LAYERS_MAX: usize = 500;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the store failed.
    #[error("failed to {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file of the store is not what the store wrote.
    #[error("{} is damaged; remove it, and images are pulled again", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A layer was refused or could not be written.
    #[error("failed to unpack layer {digest}")]
    Unpack {
        /// The layer.
        digest: String,
        /// Cause.
        source: UnpackError,
    },
    /// Content is not what its digest says.
    #[error("{what} has the digest {found}, not {expected} as it should")]
    Mismatch {
        /// What was checked.
        what: String,
        /// Digest of what came.
        found: String,
        /// Digest that was announced.
        expected: String,
    },
    /// A manifest or configuration is not usable.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which document.
        what: String,
        /// Why.
        reason: String,
    },
}

impl ImageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// What an image says of the containers made from it (OCI image specification 1.1, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// The program, before any arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments, or the program when there is no entry point.
    pub cmd: Option<Vec<String>>,
    /// NAME=VALUE.
    pub env: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// USER[:GROUP], names or numbers.
    pub user: Option<String>,
    /// Signal that asks it to end, as SIGQUIT or 3.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
}

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name that it was asked for by, in full.
    pub reference: String,
    /// The manifest's digest, `sha256:...`.
    pub digest: String,
    /// What it says of its containers.
    pub config: ImageConfig,
    /// Its layers' directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Bytes of its layers' files.
    pub size_bytes: u64,
    /// When it came to the node, in milliseconds since 1970.
    pub created_ms: i64,
}

/// One image in `images.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    digest: String,
    config: Digest,
    /// Diff ids, lowest first, as in the configuration.
    layers: Vec<Digest>,
    size_bytes: u64,
    created_ms: i64,
}

/// The node's images. Cheap calls are synchronous; pulls and imports hold what they make until it is complete.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// By full reference.
    index: Mutex<BTreeMap<String, Record>>,
    /// Layers that an unfinished pull or import counts on: not collected meanwhile.
    held: Mutex<BTreeMap<String, usize>>,
    /// One pull of a reference at a time; the others then find it there.
    pulls: tokio::sync::Mutex<BTreeMap<String, std::sync::Arc<tokio::sync::Mutex<()>>>>,
    /// Names in `tmp`.
    next: std::sync::atomic::AtomicU64,
}

impl Store {
    /// Opens the store, or makes it. What an interrupted pull left is removed.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let tmp = dir.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(ImageError::io("empty", &tmp))?;
        }
        for part in ["blobs/sha256", "layers", "shifted", "tmp"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        }
        label::label(dir)?;
        let path = dir.join("images.json");
        let index: BTreeMap<String, Record> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ImageError::Damaged {
                path: path.clone(),
                source,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(ImageError::io("read", &path)(error)),
        };
        let store = Self {
            dir: dir.to_owned(),
            index: Mutex::new(index),
            held: Mutex::default(),
            pulls: tokio::sync::Mutex::default(),
            next: 0.into(),
        };
        store.collect_layers()?;
        Ok(store)
    }

    /// The image of a reference, if it is here.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let Ok(name) = normalize(reference) else {
            return Ok(None);
        };
        let record = lock(&self.index).get(&name).cloned();
        record.map(|record| self.image(name, &record)).transpose()
    }

    /// Every image.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let records = lock(&self.index).clone();
        records
            .iter()
            .map(|(reference, record)| self.image(reference.clone(), record))
            .collect()
    }

    /// Forgets a reference and removes what no other one needs. Fine when it is not there.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let name = normalize(reference).unwrap_or_else(|_| reference.to_owned());
        {
            let mut index = lock(&self.index);
            if index.remove(&name).is_none() {
                return Ok(());
            }
            self.write_index(&index)?;
        }
        self.collect_layers()
    }

    /// References whose image is none of `digests`, the oldest first: what may be removed when the disk fills up.
    pub fn unused(&self, digests: &BTreeSet<String>) -> Vec<String> {
        let index = lock(&self.index);
        let mut unused: Vec<_> = index
            .iter()
            .filter(|(_, record)| !digests.contains(&record.digest))
            .collect();
        unused.sort_by_key(|(_, record)| record.created_ms);
        unused
            .into_iter()
            .map(|(reference, _)| reference.clone())
            .collect()
    }

    /// How full the store's file system is, in percent.
    pub fn disk_used_percent(&self) -> Result<u8, ImageError> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| ImageError::io("stat", &self.dir)(error.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bavail);
        let percent = used
            .saturating_mul(100)
            .checked_div(stat.f_blocks)
            .unwrap_or_default();
        Ok(u8::try_from(percent).unwrap_or(100))
    }

    fn image(&self, reference: String, record: &Record) -> Result<Image, ImageError> {
        let path = self.blob(&record.config);
        let bytes = fs::read(&path).map_err(ImageError::io("read", &path))?;
        let document: Document = document(&bytes, || path.display().to_string())?;
        Ok(Image {
            reference,
            digest: record.digest.clone(),
            config: document.config.unwrap_or_default(),
            layers: record
                .layers
                .iter()
                .rev()
                .map(|layer| self.layer(layer))
                .collect(),
            size_bytes: record.size_bytes,
            created_ms: record.created_ms,
        })
    }

    /// Records an image whose layers are all there.
    fn add(&self, reference: &str, record: Record, config: &[u8]) -> Result<Image, ImageError> {
        self.write(&self.blob(&record.config), config)?;
        let mut index = lock(&self.index);
        index.insert(reference.to_owned(), record.clone());
        self.write_index(&index)?;
        drop(index);
        self.image(reference.to_owned(), &record)
    }

    fn write_index(&self, index: &BTreeMap<String, Record>) -> Result<(), ImageError> {
        let path = self.dir.join("images.json");
        let bytes = serde_json::to_vec_pretty(index).map_err(|source| ImageError::Damaged {
            path: path.clone(),
            source,
        })?;
        self.write(&path, &bytes)
    }

    /// Replaces a file: after a crash there is the old one or the new one, whole.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let temporary = self.temporary();
        let mut file = File::create(&temporary).map_err(ImageError::io("create", &temporary))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(ImageError::io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(ImageError::io("replace", path))?;
        sync_directory(path)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    /// A path in `tmp` that nobody else uses.
    fn temporary(&self) -> PathBuf {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.dir.join("tmp").join(number.to_string())
    }

    /// Keeps layers from being collected until the hold is dropped.
    fn hold(&self, layers: &[Digest]) -> Hold<'_> {
        let names: Vec<String> = layers.iter().map(|layer| layer.hex().to_owned()).collect();
        let mut held = lock(&self.held);
        for name in &names {
            *held.entry(name.clone()).or_default() += 1;
        }
        drop(held);
        Hold { store: self, names }
    }

    /// Removes layers and configurations that no image has.
    fn collect_layers(&self) -> Result<(), ImageError> {
        let index = lock(&self.index);
        let held = lock(&self.held);
        let layers: BTreeSet<&str> = index
            .values()
            .flat_map(|record| record.layers.iter().map(Digest::hex))
            .collect();
        let configs: BTreeSet<&str> = index.values().map(|record| record.config.hex()).collect();
        let unwanted =
            |directory: PathBuf, wanted: &dyn Fn(&str) -> bool| -> Result<Vec<PathBuf>, ImageError> {
                let entries = fs::read_dir(&directory).map_err(ImageError::io("list", &directory))?;
                let mut paths = Vec::new();
                for entry in entries {
                    let path = entry.map_err(ImageError::io("list", &directory))?.path();
                    if path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .is_none_or(|name| !wanted(name))
                    {
                        paths.push(path);
                    }
                }
                Ok(paths)
            };
        let wanted_layer = |name: &str| layers.contains(name) || held.contains_key(name);
        for path in unwanted(self.dir.join("layers"), &wanted_layer)? {
            // Out of sight first: a layer that is half removed must not be found under its name.
            let temporary = self.temporary();
            fs::rename(&path, &temporary).map_err(ImageError::io("remove", &path))?;
            fs::remove_dir_all(&temporary).map_err(ImageError::io("remove", &temporary))?;
        }
        for path in unwanted(self.dir.join("blobs/sha256"), &|name| configs.contains(name))? {
            fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
        }
        Ok(())
    }
}

/// Layers that an unfinished pull or import counts on.
struct Hold<'a> {
    store: &'a Store,
    names: Vec<String>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.store.held);
        for name in &self.names {
            if let Some(count) = held.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    held.remove(name);
                }
            }
        }
    }
}

/// The parts of an image configuration that are read; the rest is kept as it is.
#[derive(Debug, Deserialize)]
struct Document {
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

fn document<T: for<'a> Deserialize<'a>>(bytes: &[u8], what: impl Fn() -> String) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Invalid {
        what: what(),
        reason: error.to_string(),
    })
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    let directory = path.parent().unwrap_or(path);
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(ImageError::io("sync", directory))
}

/// A panic elsewhere leaves these maps whole: each change of them is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
