//! Manifests on the command line: files, directories, standard input; all read before anything is asked of the cluster.

use std::io::Read;
use std::path::{Path, PathBuf};

use model::read::{Manifest, manifests};

use crate::error::CtlError;

/// Largest manifest file that is read: `model`'s own limit, so that a huge file is refused before it is in memory.
const FILE_BYTES_MAX: u64 = model::read::TEXT_BYTES_MAX as u64;
/// Most files of one command.
const FILES_MAX: usize = 10_000;

/// Arguments of verbs that take manifests.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Files {
    /// Manifests: files, directories (their .yaml, .yml and .json files), or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) filename: Vec<PathBuf>,
    /// Descend into directories
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

impl Files {
    /// Every manifest of every file; every refusal of every file when there is one.
    pub(crate) fn read(&self, further: &[PathBuf]) -> Result<Vec<Manifest>, CtlError> {
        let mut paths = Vec::new();
        for path in self.filename.iter().chain(further) {
            self.expand(path, true, &mut paths)?;
        }
        let mut read = Vec::new();
        let mut refusals: Vec<String> = Vec::new();
        for path in &paths {
            let (name, bytes) = match load(path) {
                Ok(loaded) => loaded,
                Err(CtlError::Refused(lines)) => {
                    refusals.extend(lines);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match manifests(&name, &bytes) {
                Ok(more) => read.extend(more),
                Err(more) => refusals.extend(more.to_string().lines().map(str::to_owned)),
            }
        }
        if !refusals.is_empty() {
            return Err(CtlError::Refused(refusals));
        }
        if read.is_empty() {
            return Err(CtlError::refused("no manifests were found"));
        }
        Ok(read)
    }

    fn expand(&self, path: &Path, named: bool, paths: &mut Vec<PathBuf>) -> Result<(), CtlError> {
        let failed = || format!("failed to read {}", path.display());
        if paths.len() >= FILES_MAX {
            return Err(CtlError::refused(format!("more than {FILES_MAX} files")));
        }
        if path == Path::new("-") {
            paths.push(path.to_owned());
            return Ok(());
        }
        let text = path.to_string_lossy();
        if named && (text.starts_with("http://") || text.starts_with("https://")) {
            return Err(CtlError::refused(format!(
                "{text}: URLs are not fetched; download it, or pipe it: `curl -fsSL {text} | ctl apply -f -`"
            )));
        }
        let meta = std::fs::metadata(path).map_err(CtlError::io(failed()))?;
        if !meta.is_dir() {
            // A pipe or device is read when it was named, as `<(...)` is; one that lies about would only block.
            if named || meta.is_file() {
                paths.push(path.to_owned());
            }
            return Ok(());
        }
        // A link to a directory leads elsewhere, or around in a circle.
        if !named && (!self.recursive || path.is_symlink()) {
            return Ok(());
        }
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut entries: Vec<PathBuf> = entries
            .map_err(CtlError::io(failed()))?
            .into_iter()
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        for entry in entries {
            let is_manifest = entry
                .extension()
                .is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
            if is_manifest || entry.is_dir() {
                self.expand(&entry, false, paths)?;
            }
        }
        Ok(())
    }
}

/// A file's shown name and its bytes.
fn load(path: &Path) -> Result<(String, Vec<u8>), CtlError> {
    let stdin = path == Path::new("-");
    let name = if stdin {
        "<stdin>".to_owned()
    } else {
        path.display().to_string()
    };
    let failed = || format!("failed to read {name}");
    let file: Box<dyn Read> = match stdin {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(CtlError::io(failed()))?),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(CtlError::io(failed()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let limit = FILE_BYTES_MAX >> 20;
        return Err(CtlError::refused(format!(
            "{name}:1:1: larger than {limit} MiB; split it into several files"
        )));
    }
    Ok((name, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_directory_the_manifests_are_read_in_order_and_nothing_else() {
        let directory = std::env::temp_dir().join(format!("ctl-files-{}", std::process::id()));
        let inner = directory.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        for name in ["b.yml", "a.yaml", "c.json", "README.md", "d.yaml.orig"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        std::fs::write(inner.join("e.yaml"), "").unwrap();
        std::os::unix::fs::symlink(&directory, inner.join("circle.yaml")).unwrap();
        let read = |recursive| {
            let files = Files {
                filename: Vec::new(),
                recursive,
            };
            let mut paths = Vec::new();
            files.expand(&directory, true, &mut paths).unwrap();
            let names = paths.iter().map(|path| path.strip_prefix(&directory).unwrap());
            names.map(|name| name.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(read(false), ["a.yaml", "b.yml", "c.json"]);
        assert_eq!(read(true), ["a.yaml", "b.yml", "c.json", "inner/e.yaml"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_url_is_no_file() {
        let error = Files::default().expand(Path::new("https://example.com/a.yaml"), true, &mut Vec::new());
        assert!(error.unwrap_err().to_string().contains("URLs are not fetched"));
    }
}
