//! Imports an archive: an OCI layout, what `docker save` writes, or a root file system; plain, gzip or zstd.
//!
//! The archive lies in a file (the caller spooled it), so that its parts are read where they stand, in any order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::layer::{self, Compression, Layer, decompress, kind_of};
use super::parts::{Part, Parts, blob_path, rewound};
use super::{
    Digest, Document, Image, ImageError, LAYERS_MAX, Record, Store, document, normalize, now_ms,
    sync_directory,
};

/// Most bytes that a compressed archive may become before it is looked at.
const ARCHIVE_BYTES_MAX: u64 = 64 << 30;

/// Why an archive was not imported. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no archive, or a damaged one.
    #[error("the archive is not readable")]
    Archive {
        /// Cause.
        source: io::Error,
    },
    /// It has no name of its own and none was given.
    #[error("the archive names no image; give a name: `ctl image import FILE NAME`")]
    Nameless,
    /// The name given, or one in it, is not an image's name.
    #[error("`{name}` is not an image name: {reason}")]
    Name {
        /// The text.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A part that it speaks of is not in it.
    #[error("the archive has no {part}")]
    Missing {
        /// Which.
        part: String,
    },
    /// A part could not be taken over.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What a root file system's image says of its containers.
#[derive(Clone, Debug, Default)]
pub struct RootDefaults {
    /// Its program.
    pub cmd: Vec<String>,
}

impl Store {
    /// A new file in the store's own scratch directory, for spooling an archive; removed when dropped.
    pub fn spool(&self) -> Result<Spool, ImageError> {
        let path = self.temporary();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        Ok(Spool {
            file: file.map_err(ImageError::io("create", &path))?,
            path,
        })
    }

    /// Imports a spooled archive. `name` is given to its only image; without it the archive's own names are taken.
    pub fn import(
        &self,
        archive: &File,
        name: Option<&str>,
        defaults: &RootDefaults,
    ) -> Result<Vec<Image>, ImportError> {
        let failed = |source| ImportError::Archive { source };
        let plain;
        let archive = match compression(archive).map_err(failed)? {
            Compression::None => archive,
            _ => {
                let reader = decompress(rewound(archive).map_err(failed)?).map_err(failed)?;
                plain = self.spool()?;
                let mut limited = reader.take(ARCHIVE_BYTES_MAX);
                io::copy(&mut limited, &mut &plain.file).map_err(ImageError::io("write", &plain.path))?;
                &plain.file
            }
        };
        let parts = Parts::read(archive)?;
        if parts.files.contains_key(Path::new("oci-layout"))
            && parts.files.contains_key(Path::new("index.json"))
        {
            return self.import_oci(&parts, name);
        }
        if parts.files.contains_key(Path::new("manifest.json")) {
            return self.import_docker(&parts, name);
        }
        Ok(vec![self.import_root(
            archive,
            name.ok_or(ImportError::Nameless)?,
            defaults,
        )?])
    }

    fn import_oci(&self, parts: &Parts, name: Option<&str>) -> Result<Vec<Image>, ImportError> {
        let index: Index = parts.document("index.json")?;
        let mut found = Vec::new();
        for descriptor in &index.manifests {
            let own = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
            let own = own
                .iter()
                .find_map(|key| descriptor.annotations.get(*key))
                .filter(|own| name_of(own).is_ok());
            found.push((descriptor.clone(), own.cloned()));
        }
        let several = found.len() > 1;
        let mut images = Vec::new();
        for (descriptor, own) in found {
            let reference = match (name, own) {
                (Some(name), own) if !several || own.as_deref() == Some(name) => name_of(name)?,
                (Some(_), _) => continue,
                (None, Some(own)) => name_of(&own)?,
                (None, None) if several => continue,
                (None, None) => return Err(ImportError::Nameless),
            };
            let (digest, manifest) = self.oci_manifest(parts, &descriptor, 0)?;
            let config = parts.blob(&manifest.config)?;
            let layers: Vec<Part> = manifest
                .layers
                .iter()
                .map(|layer| parts.part(&blob_path(&layer.digest)))
                .collect::<Result<_, _>>()?;
            let expected: Vec<Digest> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
            images.push(self.take(&reference, digest.to_string(), &config, &layers, Some(&expected))?);
        }
        if images.is_empty() {
            Err(ImportError::Nameless)
        } else {
            Ok(images)
        }
    }

    /// The manifest that a descriptor leads to; of an index, the one for this machine.
    fn oci_manifest(
        &self,
        parts: &Parts,
        descriptor: &Descriptor,
        depth: u32,
    ) -> Result<(Digest, Manifest), ImportError> {
        let bytes = parts.blob(descriptor)?;
        let what = || format!("manifest {}", descriptor.digest);
        if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
            let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(Platform::is_ours);
            let chosen = index
                .manifests
                .iter()
                .find(fits)
                .or(index.manifests.first().filter(|only| only.platform.is_none()));
            return match chosen {
                Some(chosen) if depth < 4 => self.oci_manifest(parts, chosen, depth + 1),
                _ => {
                    let reason = "it has no image for linux/amd64".to_owned();
                    Err(ImageError::Invalid { what: what(), reason }.into())
                }
            };
        }
        Ok((descriptor.digest.clone(), document(&bytes, what)?))
    }

    fn import_docker(&self, parts: &Parts, name: Option<&str>) -> Result<Vec<Image>, ImportError> {
        let manifests: Vec<DockerManifest> = parts.document("manifest.json")?;
        let several = manifests.len() > 1;
        let mut images = Vec::new();
        for manifest in &manifests {
            let own = manifest.repo_tags.clone().unwrap_or_default();
            let names: Vec<String> = match name {
                Some(name) if !several || own.iter().any(|own| own == name) => vec![name_of(name)?],
                Some(_) => continue,
                None => own.iter().map(|own| name_of(own)).collect::<Result<_, _>>()?,
            };
            let config = parts.bytes(&manifest.config)?;
            let layers: Vec<Part> = manifest
                .layers
                .iter()
                .map(|layer| parts.part(Path::new(layer)))
                .collect::<Result<_, _>>()?;
            for reference in names {
                // There is no manifest with a digest: the configuration's stands for the image, as docker's id does.
                images.push(self.take(
                    &reference,
                    Digest::of(&config).to_string(),
                    &config,
                    &layers,
                    None,
                )?);
            }
        }
        if images.is_empty() {
            Err(ImportError::Nameless)
        } else {
            Ok(images)
        }
    }

    /// A root file system is one layer.
    fn import_root(&self, archive: &File, name: &str, defaults: &RootDefaults) -> Result<Image, ImportError> {
        let reference = name_of(name)?;
        let failed = |source| ImportError::Archive { source };
        let size = archive.metadata().map_err(failed)?.len();
        let (diff_id, bytes) = self.add_layer(rewound(archive).map_err(failed)?, size, None)?;
        let _hold = self.hold(std::slice::from_ref(&diff_id));
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Cmd": defaults.cmd, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = config.to_string().into_bytes();
        let digest = Digest::of(&config);
        let record = Record {
            digest: digest.to_string(),
            config: digest,
            layers: vec![diff_id],
            size_bytes: bytes,
            created_ms: now_ms(),
        };
        Ok(self.add(&reference, record, &config)?)
    }

    /// Unpacks an image's layers out of an archive and records it.
    fn take(
        &self,
        reference: &str,
        digest: String,
        config: &[u8],
        layers: &[Part],
        expected: Option<&[Digest]>,
    ) -> Result<Image, ImportError> {
        let parsed: Document = document(config, || format!("configuration of {reference}"))?;
        let diff_ids = parsed.rootfs.diff_ids;
        check_layers(reference, diff_ids.len(), layers.len())?;
        let _hold = self.hold(&diff_ids);
        let mut size_bytes = 0;
        for (number, (part, diff_id)) in layers.iter().zip(&diff_ids).enumerate() {
            let expected = expected.and_then(|expected| expected.get(number));
            let reader = part.open().map_err(|source| ImportError::Archive { source })?;
            size_bytes += self.ensure_layer(reader, part.size, expected, diff_id)?;
        }
        let record = Record {
            digest,
            config: Digest::of(config),
            layers: diff_ids,
            size_bytes,
            created_ms: now_ms(),
        };
        Ok(self.add(reference, record, config)?)
    }

    /// Unpacks a layer unless it is there, and checks both its digests. Returns its size.
    pub(super) fn ensure_layer(
        &self,
        compressed: impl Read,
        compressed_bytes: u64,
        blob: Option<&Digest>,
        diff_id: &Digest,
    ) -> Result<u64, ImageError> {
        let path = self.layer(diff_id);
        if path.is_dir() {
            return size_of(&path);
        }
        let (_, bytes) = self.add_layer(compressed, compressed_bytes, Some((blob, diff_id)))?;
        Ok(bytes)
    }

    /// Unpacks a layer under `tmp`, checks it, and puts it in its place at once. Returns its diff id and size.
    fn add_layer(
        &self,
        compressed: impl Read,
        compressed_bytes: u64,
        expected: Option<(Option<&Digest>, &Digest)>,
    ) -> Result<(Digest, u64), ImageError> {
        let temporary = self.temporary();
        fs::create_dir(&temporary).map_err(ImageError::io("create", &temporary))?;
        let result = self.fill_layer(&temporary, compressed, compressed_bytes, expected);
        if result.is_err() {
            // The cause is what matters; what stays is removed when the store is opened next.
            if let Err(error) = fs::remove_dir_all(&temporary) {
                tracing::warn!(path = %temporary.display(), %error, "failed to remove a partial layer");
            }
        }
        result
    }

    fn fill_layer(
        &self,
        directory: &Path,
        compressed: impl Read,
        compressed_bytes: u64,
        expected: Option<(Option<&Digest>, &Digest)>,
    ) -> Result<(Digest, u64), ImageError> {
        let shown =
            || expected.map_or_else(|| "of the archive".to_owned(), |(_, diff_id)| diff_id.to_string());
        let root = File::open(directory).map_err(ImageError::io("open", directory))?;
        rustix::fs::fchmod(&root, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(|error| ImageError::io("set the mode of", directory)(error.into()))?;
        let read = layer::read(root.as_fd(), compressed, compressed_bytes, expected.is_some());
        let Layer {
            blob,
            diff_id,
            unpacked,
        } = read.map_err(|source| ImageError::Unpack {
            digest: shown(),
            source,
        })?;
        if let Some((expected_blob, expected_diff)) = expected {
            let mismatch = |what: &str, found: &Digest, expected: &Digest| ImageError::Mismatch {
                what: what.to_owned(),
                found: found.to_string(),
                expected: expected.to_string(),
            };
            if let Some(expected) = expected_blob.filter(|expected| **expected != blob) {
                return Err(mismatch("the layer as it was sent", &blob, expected));
            }
            if *expected_diff != diff_id {
                return Err(mismatch("the unpacked layer", &diff_id, expected_diff));
            }
        }
        if unpacked.devices_left_out > 0 {
            tracing::info!(layer = %diff_id, devices = unpacked.devices_left_out, "device nodes of the layer were left out");
        }
        // One sync for all of the layer's files; then it may be seen.
        rustix::fs::syncfs(&root).map_err(|error| ImageError::io("sync", directory)(error.into()))?;
        let path = self.layer(&diff_id);
        match fs::rename(directory, &path) {
            // Another pull was quicker: the same content.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                fs::remove_dir_all(directory).map_err(ImageError::io("remove", directory))?;
            }
            other => other.map_err(ImageError::io("put in place", &path))?,
        }
        sync_directory(&path)?;
        Ok((diff_id, unpacked.bytes))
    }
}

pub(super) fn check_layers(what: &str, diff_ids: usize, layers: usize) -> Result<(), ImageError> {
    if diff_ids != layers || layers > LAYERS_MAX {
        let reason = format!(
            "{layers} layers and {diff_ids} diff ids; both must be the same and at most {LAYERS_MAX}"
        );
        return Err(ImageError::Invalid {
            what: format!("image {what}"),
            reason,
        });
    }
    Ok(())
}

/// Bytes of a layer's files, as counted when it was unpacked.
fn size_of(directory: &Path) -> Result<u64, ImageError> {
    let mut total = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
            let entry = entry.map_err(ImageError::io("list", &directory))?;
            let meta = entry.metadata().map_err(ImageError::io("stat", &directory))?;
            if meta.is_dir() {
                directories.push(entry.path());
            } else if meta.is_file() {
                total += meta.len();
            }
        }
    }
    Ok(total)
}

/// A file of the store's scratch directory.
#[derive(Debug)]
pub struct Spool {
    /// Open for reading and writing.
    pub file: File,
    path: PathBuf,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove a spooled archive");
        }
    }
}

fn name_of(name: &str) -> Result<String, ImportError> {
    normalize(name).map_err(|reason| ImportError::Name {
        name: name.to_owned(),
        reason,
    })
}

fn compression(file: &File) -> io::Result<Compression> {
    let mut magic = Vec::new();
    rewound(file)?.take(4).read_to_end(&mut magic)?;
    Ok(kind_of(&magic))
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}
