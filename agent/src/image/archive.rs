//! Tar archives, read with bounds on what is held in memory for an entry and on what is read at all.

use std::cell::Cell;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::rc::Rc;

use tar::{Archive, Entry};

/// Most bytes that stand before the content of an entry: its name, its link's, its extensions, the table of a sparse file.
/// The reader holds them all; file systems end at 4 KiB for a name and at 64 KiB for an attribute.
const HEAD_BYTES_MAX: u64 = 2 << 20;

/// More than is allowed: the inner error of the `io::Error` that a bounded reader fails with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TooLarge(String);

impl TooLarge {
    fn error(reason: String) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, TooLarge(reason))
    }

    /// What was too large, if that is why reading failed.
    pub(super) fn of(error: &io::Error) -> Option<&str> {
        let inner = error.get_ref()?.downcast_ref::<TooLarge>()?;
        Some(&inner.0)
    }
}

/// Calls `visit` with each entry, until one breaks off.
pub(super) fn walk<R: Read, E>(
    stream: R,
    failed: impl Fn(io::Error) -> E,
    mut visit: impl FnMut(&mut Entry<Headed<R>>) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let until = Rc::new(Cell::new(HEAD_BYTES_MAX));
    let mut archive = Archive::new(Headed {
        stream,
        position: 0,
        until: until.clone(),
    });
    for entry in archive.entries().map_err(&failed)? {
        let mut entry = entry.map_err(&failed)?;
        // Of a sparse file `size` counts the holes too.
        let stored = if entry.header().entry_type().is_gnu_sparse() {
            entry.header().entry_size().map_err(&failed)?
        } else {
            entry.size()
        };
        let end = entry.raw_file_position().saturating_add(stored);
        until.set(end.saturating_add(HEAD_BYTES_MAX));
        if visit(&mut entry)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// A stream that may be read up to where the head of the next entry must have ended.
pub(super) struct Headed<R> {
    stream: R,
    position: u64,
    until: Rc<Cell<u64>>,
}

impl<R: Read> Read for Headed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.get().saturating_sub(self.position);
        if left == 0 && !buffer.is_empty() {
            let reason = format!("an entry's name and extensions take more than {HEAD_BYTES_MAX} bytes");
            return Err(TooLarge::error(reason));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.stream.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

/// A stream that fails where it goes on after so many bytes.
pub(super) struct Capped<R> {
    stream: R,
    most: u64,
    left: u64,
}

impl<R: Read> Capped<R> {
    pub(super) fn new(stream: R, most: u64) -> Self {
        let left = most;
        Self { stream, most, left }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| TooLarge::error(format!("more than {} bytes when decompressed", self.most)))?;
        Ok(count)
    }
}

/// A tar stream with zeros after its end up to a whole block: some tools (umoci's `insert`) leave the padding of the last
/// entry out, and docker and podman take that.
pub(super) struct Padded<R> {
    stream: R,
    bytes: u64,
}

/// Bytes of a tar block.
const BLOCK_BYTES: u64 = 512;

impl<R: Read> Padded<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, bytes: 0 }
    }
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.stream.read(buffer)?;
        if count == 0 {
            let missing = self.bytes.next_multiple_of(BLOCK_BYTES) - self.bytes;
            count = buffer.len().min(usize::try_from(missing).unwrap_or(0));
            if let Some(padding) = buffer.get_mut(..count) {
                padding.fill(0);
            }
        }
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, EntryType, Header};

    use super::*;

    fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("name").unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn walked(archive: &[u8]) -> io::Result<u64> {
        let mut sizes = 0;
        walk(
            archive,
            |error| error,
            |entry| {
                sizes += entry.size();
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(sizes)
    }

    #[test]
    fn a_name_larger_than_any_is_not_held() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut builder = Builder::new(Vec::new());
            entry(&mut builder, EntryType::Regular, &vec![7; 5 << 20]);
            entry(&mut builder, kind, &vec![b'x'; 1 + HEAD_BYTES_MAX as usize]);
            entry(&mut builder, EntryType::Regular, b"content");
            let refused = walked(&builder.into_inner().unwrap()).unwrap_err();
            assert!(TooLarge::of(&refused).is_some(), "{refused}");
        }
    }

    #[test]
    fn content_has_no_such_bound() {
        let mut builder = Builder::new(Vec::new());
        for _ in 0..3 {
            entry(&mut builder, EntryType::Regular, &vec![7; 3 << 20]);
            entry(&mut builder, EntryType::GNULongName, &[b'x'; 100 << 10]);
            entry(&mut builder, EntryType::Symlink, &[7; 3 << 20]);
        }
        assert_eq!(walked(&builder.into_inner().unwrap()).unwrap(), 6 * (3 << 20));
    }

    #[test]
    fn a_capped_stream_ends_with_its_last_byte_or_fails() {
        let read =
            |bytes: u64, most| io::copy(&mut Capped::new(io::repeat(1).take(bytes), most), &mut io::sink());
        assert_eq!(read(100, 100).unwrap(), 100);
        assert!(TooLarge::of(&read(101, 100).unwrap_err()).is_some());
    }
}
