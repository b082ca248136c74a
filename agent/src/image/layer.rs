//! One layer, from the bytes that were sent to a directory and the digests of both forms.

use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;

use super::archive::{Capped, Padded};
use super::digest::{Digest, Digesting};
use super::unpack::{self, UnpackError, Unpacked};

/// What a layer was.
#[derive(Debug)]
pub(super) struct Layer {
    /// Digest of it as it was sent.
    pub blob: Digest,
    /// Digest of the plain archive.
    pub diff_id: Digest,
    /// What was made of it.
    pub unpacked: Unpacked,
}

/// Decompresses a layer and unpacks it into `root`, an empty directory; on an error that holds a part, for the caller to
/// remove. `checked` says that the digests will be compared: then the padding of the archive's last entry may be missing,
/// as whether it was cut is told by them.
pub(super) fn read(
    root: BorrowedFd,
    compressed: impl Read,
    compressed_bytes: u64,
    checked: bool,
) -> Result<Layer, UnpackError> {
    read_at_most(
        root,
        compressed,
        compressed_bytes,
        unpack::bytes_max(compressed_bytes),
        checked,
    )
}

fn read_at_most(
    root: BorrowedFd,
    compressed: impl Read,
    compressed_bytes: u64,
    most: u64,
    checked: bool,
) -> Result<Layer, UnpackError> {
    let mut blob = Digesting::new(compressed);
    let (diff_id, unpacked) = {
        let reader =
            decompress(BufReader::with_capacity(64 << 10, &mut blob)).map_err(UnpackError::archive)?;
        // Of all of it: what follows the archive's end is digested too, and a few bytes can be an endless padding.
        let mut content = Digesting::new(Capped::new(reader, most));
        let unpacked = if checked {
            unpack::unpack(root, Padded::new(&mut content), compressed_bytes)?
        } else {
            unpack::unpack(root, &mut content, compressed_bytes)?
        };
        // Padding after the archive's end belongs to the digest.
        (content.finish().map_err(UnpackError::archive)?, unpacked)
    };
    Ok(Layer {
        blob: blob.finish().map_err(UnpackError::archive)?,
        diff_id,
        unpacked,
    })
}

pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What a stream that begins so is compressed with.
pub(super) fn kind_of(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The plain content of a stream, by what it begins with.
pub(super) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut reader).take(4).read_to_end(&mut magic)?;
    let kind = kind_of(&magic);
    let whole = io::Cursor::new(magic).chain(reader);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_stream_that_goes_on_after_its_archive_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let root = File::open(temp.path()).unwrap();
        let plain = tar::Builder::new(Vec::new()).into_inner().unwrap();
        for (zeros, good) in [(1 << 20, true), (4 << 20, false)] {
            let compressed = zstd::stream::encode_all(plain.chain(io::repeat(0).take(zeros)), 1).unwrap();
            let read = read_at_most(
                root.as_fd(),
                &compressed[..],
                compressed.len() as u64,
                2 << 20,
                false,
            );
            assert_eq!(read.is_ok(), good, "{zeros}: {read:?}");
            assert!(
                good || matches!(read, Err(UnpackError::TooLarge { .. })),
                "{zeros}: {read:?}"
            );
        }
    }
}
