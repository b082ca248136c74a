//! The files of an archive that an image is imported from, read where they stand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::import::{Descriptor, ImportError};
use super::{DOCUMENT_BYTES_MAX, Digest, ImageError, archive, document};

/// Most parts of an archive that are remembered; the largest images have some hundreds.
const PARTS_MAX: usize = 100_000;
/// Longest name of a part; layouts have some 80 bytes, and a root file system's names are not asked for.
const PART_NAME_BYTES_MAX: usize = 512;

/// Where the files of an archive stand.
pub(super) struct Parts {
    archive: File,
    pub(super) files: BTreeMap<PathBuf, (u64, u64)>,
    /// `docker save` of old links a layer to another's file.
    links: BTreeMap<PathBuf, PathBuf>,
}

/// One file of an archive.
pub(super) struct Part {
    archive: File,
    offset: u64,
    pub(super) size: u64,
}

impl Part {
    /// Reads it from its beginning, whatever else reads the archive.
    pub(super) fn open(&self) -> io::Result<impl Read> {
        Ok(At {
            file: self.archive.try_clone()?,
            offset: self.offset,
        }
        .take(self.size))
    }
}

/// Reads from a position of its own.
struct At {
    file: File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Parts {
    pub(super) fn read(archive: &File) -> Result<Self, ImportError> {
        let failed = |source| ImportError::Archive { source };
        let mut files = BTreeMap::new();
        let mut links = BTreeMap::new();
        let reader = BufReader::new(rewound(archive).map_err(failed)?);
        archive::walk(reader, failed, |entry| {
            if files.len() + links.len() >= PARTS_MAX {
                return Ok(ControlFlow::Break(())); // a root file system: no layout has so many
            }
            let path = clean(&entry.path().map_err(failed)?);
            if path.as_os_str().len() > PART_NAME_BYTES_MAX {
                return Ok(ControlFlow::Continue(()));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    files.insert(path, (entry.raw_file_position(), entry.size()));
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name().map_err(failed)?;
                    if let Some(target) =
                        target.filter(|target| target.as_os_str().len() <= PART_NAME_BYTES_MAX)
                    {
                        let base = path.parent().unwrap_or(Path::new(""));
                        links.insert(path.clone(), clean(&base.join(target)));
                    }
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if files.is_empty() {
            let source = io::Error::new(io::ErrorKind::InvalidData, "no files in it; is it a tar archive?");
            return Err(ImportError::Archive { source });
        }
        Ok(Self {
            archive: archive.try_clone().map_err(failed)?,
            files,
            links,
        })
    }

    pub(super) fn part(&self, path: &Path) -> Result<Part, ImportError> {
        let path = self.links.get(path).map_or(path, PathBuf::as_path);
        let missing = || ImportError::Missing {
            part: path.display().to_string(),
        };
        let (offset, size) = *self.files.get(path).ok_or_else(missing)?;
        let archive = self
            .archive
            .try_clone()
            .map_err(|source| ImportError::Archive { source })?;
        Ok(Part {
            archive,
            offset,
            size,
        })
    }

    pub(super) fn bytes(&self, path: &str) -> Result<Vec<u8>, ImportError> {
        let part = self.part(Path::new(path))?;
        if part.size > DOCUMENT_BYTES_MAX {
            let reason = format!("larger than {DOCUMENT_BYTES_MAX} bytes");
            return Err(ImageError::Invalid {
                what: path.to_owned(),
                reason,
            }
            .into());
        }
        let mut bytes = Vec::new();
        let read = part.open().and_then(|mut reader| reader.read_to_end(&mut bytes));
        read.map_err(|source| ImportError::Archive { source })?;
        Ok(bytes)
    }

    pub(super) fn document<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, ImportError> {
        Ok(document(&self.bytes(path)?, || path.to_owned())?)
    }

    /// A document by its digest, which is checked.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
        let path = blob_path(&descriptor.digest);
        let bytes = self.bytes(&path.display().to_string())?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            let (what, expected) = (path.display().to_string(), descriptor.digest.to_string());
            return Err(ImageError::Mismatch {
                what,
                found: found.to_string(),
                expected,
            }
            .into());
        }
        Ok(bytes)
    }
}

pub(super) fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

pub(super) fn rewound(file: &File) -> io::Result<File> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
