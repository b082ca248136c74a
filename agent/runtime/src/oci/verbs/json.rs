//! Files of JSON that a command line names.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::super::config::{CONFIG_BYTES_MAX, parse};
use super::super::{Log, OciError};

/// Room for one of an engine's, so that it is read at once.
const ROOM: usize = 64 << 10;

pub(super) fn read<T: DeserializeOwned>(path: &Path, log: &Log) -> Result<T, OciError> {
    parse(&text(path)?, path, &mut |warning| log.warn(warning))
}

pub(super) fn text(path: &Path) -> Result<Vec<u8>, OciError> {
    let file = File::open(path).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    text_from(file, path)
}

pub(super) fn read_from<T: DeserializeOwned>(
    from: impl io::Read,
    path: &Path,
    log: &Log,
) -> Result<T, OciError> {
    parse(&text_from(from, path)?, path, &mut |warning| log.warn(warning))
}

fn text_from(from: impl io::Read, path: &Path) -> Result<Vec<u8>, OciError> {
    let mut text = Vec::with_capacity(ROOM);
    // One byte more than is allowed, which `parse` refuses.
    let mut limited = io::Read::take(from, CONFIG_BYTES_MAX as u64 + 1);
    io::Read::read_to_end(&mut limited, &mut text).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}
