//! A file that is written once, from its start to its end, and sealed in blocks, so that it can be read anywhere.
//!
//! | file |                                                                      |
//! |------|----------------------------------------------------------------------|
//! | 0    | header, see the crate `seal`                                         |
//! | 80   | salt of the one part that the file is                                |
//! | 112  | blocks: 64 KiB, the last one less, each followed by its tag          |
//!
//! Files of version 1 were not sealed: they are their content. Whether the content is complete its own format says.

use std::io;
use std::sync::Arc;

use super::File;
use seal::{FileKey, HEADER_BYTES, HeaderError, Key, Keys, Opener, SALT_BYTES, Sealer, TAG_BYTES};

/// Bytes sealed at a time: the least that is read.
const BLOCK_BYTES: usize = 64 << 10;
const SEALED_BYTES: u64 = (BLOCK_BYTES + TAG_BYTES) as u64;
const BLOCKS_AT: u64 = (HEADER_BYTES + SALT_BYTES) as u64;

/// Why a file can't be read.
#[derive(Debug)]
pub enum BlocksError {
    /// The operating system failed.
    Io(io::Error),
    /// The header.
    Header(HeaderError),
    /// A block is not what was written.
    Altered,
}

/// A file while it is written.
pub struct BlocksWriter<F> {
    file: F,
    sealer: Sealer,
    opener: Opener,
    /// Blocks that are written.
    blocks: u32,
    /// What does not fill a block yet.
    rest: Vec<u8>,
    len: u64,
}

impl<F: File> BlocksWriter<F> {
    /// Begins in an empty file.
    pub fn begin(file: F, key: &Key, magic: &[u8; 8]) -> io::Result<Self> {
        let (header, key): ([u8; HEADER_BYTES], FileKey) = seal::begin_file(key, magic, 0);
        let sealer = key.begin();
        let opener = key.opener(sealer.salt());
        file.write_at(&[&header[..], sealer.salt()].concat(), 0)?;
        Ok(Self {
            file,
            sealer,
            opener,
            blocks: 0,
            rest: Vec::with_capacity(BLOCK_BYTES),
            len: 0,
        })
    }

    /// Appends. What does not fill a block stays in memory: nothing is on disk in the clear.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let (fits, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.rest.len()));
            self.rest.extend_from_slice(fits);
            bytes = later;
            if self.rest.len() == BLOCK_BYTES {
                self.write_block()?;
            }
        }
        Ok(())
    }

    fn write_block(&mut self) -> io::Result<()> {
        let place = self.blocks.to_le_bytes();
        let tag = self.sealer.seal(self.blocks, &place, &mut self.rest);
        self.rest.extend_from_slice(&tag);
        let offset = BLOCKS_AT + u64::from(self.blocks) * SEALED_BYTES;
        self.file.write_at(&self.rest, offset)?;
        self.rest.clear();
        self.blocks += 1;
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes what is left and syncs.
    pub fn finish(mut self) -> io::Result<Blocks<F>> {
        if !self.rest.is_empty() {
            self.write_block()?;
        }
        self.file.sync()?;
        Ok(Blocks {
            file: Arc::new(self.file),
            len: self.len,
            opener: Some(Arc::new(self.opener)),
        })
    }
}

/// A file that can be read.
pub struct Blocks<F> {
    file: Arc<F>,
    len: u64,
    /// None: it is of version 1.
    opener: Option<Arc<Opener>>,
}

impl<F> Clone for Blocks<F> {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            len: self.len,
            opener: self.opener.clone(),
        }
    }
}

impl<F: File> Blocks<F> {
    /// Opens it, if it is sealed, by its header.
    pub fn open(file: F, magic: &[u8; 8], keys: &Keys) -> Result<Self, BlocksError> {
        let len = file.len().map_err(BlocksError::Io)?;
        let mut head = vec![0; len.min(BLOCKS_AT) as usize];
        file.read_at(&mut head, 0).map_err(BlocksError::Io)?;
        if head.starts_with(magic) && head.get(8..12) == Some(&1u32.to_le_bytes()[..]) {
            return Ok(Self {
                file: Arc::new(file),
                len,
                opener: None,
            });
        }
        let key = seal::open_file(&head, magic, 0, keys).map_err(BlocksError::Header)?;
        let salt = head.get(HEADER_BYTES..).and_then(|salt| salt.try_into().ok());
        let opener = key.opener(salt.ok_or(BlocksError::Altered)?);
        let sealed = len - BLOCKS_AT;
        let tags = sealed.div_ceil(SEALED_BYTES) * TAG_BYTES as u64;
        if (1..=TAG_BYTES as u64).contains(&(sealed % SEALED_BYTES)) {
            return Err(BlocksError::Altered); // no block is empty
        }
        Ok(Self {
            file: Arc::new(file),
            len: sealed - tags,
            opener: Some(Arc::new(opener)),
        })
    }

    /// Length of the content.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Exactly `len` bytes of the content.
    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, BlocksError> {
        let end = offset + len as u64;
        assert!(end <= self.len, "the caller knows the length");
        let mut bytes = Vec::with_capacity(len);
        let Some(opener) = &self.opener else {
            bytes.resize(len, 0);
            self.file.read_at(&mut bytes, offset).map_err(BlocksError::Io)?;
            return Ok(bytes);
        };
        let block_bytes = BLOCK_BYTES as u64;
        let mut at = offset;
        while at < end {
            let number = at / block_bytes;
            let first = number * block_bytes; // of the content
            let plain = (self.len - first).min(block_bytes) as usize;
            let mut block = vec![0; plain + TAG_BYTES];
            self.file
                .read_at(&mut block, BLOCKS_AT + number * SEALED_BYTES)
                .map_err(BlocksError::Io)?;
            let position = u32::try_from(number).map_err(|_| BlocksError::Altered)?;
            opener
                .open(position, &position.to_le_bytes(), &mut block)
                .map_err(|_| BlocksError::Altered)?;
            let upto = (end - first).min(plain as u64);
            bytes.extend_from_slice(&block[(at - first) as usize..upto as usize]);
            at = first + upto;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::Dir;
    use crate::store::sim::{Fault, SimDir, SimFile};

    const MAGIC: &[u8; 8] = b"BHTESTED";

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    fn written(dir: &SimDir, keys: &Keys, name: &str, len: usize) -> Blocks<SimFile> {
        let mut writer = BlocksWriter::begin(dir.create(name).unwrap(), keys.writing(), MAGIC).unwrap();
        for piece in content(len).chunks(1000) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.len(), len as u64);
        writer.finish().unwrap()
    }

    #[test]
    fn any_range_reads_as_written() {
        let keys = Keys::new(Path::new("storage.keys"), vec![Key::generate()]);
        let dir = SimDir::new(Fault::None, 1);
        for len in [
            0,
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            3 * BLOCK_BYTES,
        ] {
            let fresh = written(&dir, &keys, "a", len);
            let opened = Blocks::open(dir.open("a").unwrap(), MAGIC, &keys).unwrap();
            for blocks in [fresh, opened] {
                assert_eq!(blocks.len(), len as u64);
                assert_eq!(blocks.read(0, len).unwrap(), content(len));
                for offset in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES] {
                    let upto = len.min(offset + 70_000);
                    if offset < upto {
                        let read = blocks.read(offset as u64, upto - offset).unwrap();
                        assert_eq!(read, content(len)[offset..upto], "{offset} of {len}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_of_another_place_or_file_is_refused() {
        let keys = Keys::new(Path::new("storage.keys"), vec![Key::generate()]);
        let dir = SimDir::new(Fault::None, 1);
        written(&dir, &keys, "a", 3 * BLOCK_BYTES);
        written(&dir, &keys, "b", 3 * BLOCK_BYTES);
        let mut block = vec![0; SEALED_BYTES as usize];
        for (from, block_from, to, block_to) in [("a", 0, "a", 1), ("b", 1, "a", 1)] {
            let (from, to) = (dir.open(from).unwrap(), dir.open(to).unwrap());
            from.read_at(&mut block, BLOCKS_AT + block_from * SEALED_BYTES)
                .unwrap();
            to.write_at(&block, BLOCKS_AT + block_to * SEALED_BYTES).unwrap();
            let opened = Blocks::open(dir.open("a").unwrap(), MAGIC, &keys).unwrap();
            assert!(opened.read(0, BLOCK_BYTES).is_ok());
            let refused = opened.read(BLOCK_BYTES as u64, 1);
            assert!(matches!(refused, Err(BlocksError::Altered)));
        }
    }
}
