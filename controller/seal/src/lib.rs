//! Sealing of what is written to files: encrypted and authenticated. A member's log and snapshots are, with a key that is its
//! own, and backups, with one that the operator names. What stands in a file beside its header is the business of whoever
//! writes it.
//!
//! Every file has a header, which says with which key it is sealed, and parts. A part is written by one [`Sealer`] and has an
//! AES-256-GCM key of its own, derived by HKDF-SHA256 from the storage key, the file's salt and a salt of 32 random bytes that
//! is drawn when the part is begun. Within a part the nonce is the position of what is sealed, which only rises.
//!
//! So no nonce is used twice under one key, and nothing has to be remembered for it: whoever opens a file after a crash and
//! writes on, also over a tail that was cut, begins a part, with a salt that was never used. (Random nonces under the storage
//! key itself would be good for 2^32 messages, NIST SP 800-38D section 8.3: five days at 10,000 a second. Salts of 256 bits
//! are not exhausted.)
//!
//! | header |                                                                     |
//! |--------|---------------------------------------------------------------------|
//! | 0      | magic of the kind of file                                           |
//! | 8      | version, u32                                                        |
//! | 12     | id of the storage key, u32                                          |
//! | 16     | number of the file among those of its kind, u64                     |
//! | 24     | salt of the file                                                    |
//! | 56     | tag over bytes 0 to 56: a wrong key is told before anything is read |
//! | 72     | CRC-32C of bytes 0 to 72, u32                                       |
//! | 76     | zero, u32                                                           |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::hkdf::{HKDF_SHA256, Salt};

/// Bytes of a salt.
pub const SALT_BYTES: usize = 32;
/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;
/// Bytes of a file's header.
pub const HEADER_BYTES: usize = 80;
/// Version of files that are sealed; those of version 1 are not.
pub const VERSION: u32 = 2;
/// Storage keys at a time: each rotation adds one, and a member drops what no file needs.
pub const KEYS_MAX: usize = 16;
/// Bytes of a key.
pub const SECRET_BYTES: usize = 32;
/// Bytes before the tag, and before the checksum.
const TAGGED: usize = 56;
const CHECKED: usize = TAGGED + TAG_BYTES;

type SaltBytes = [u8; SALT_BYTES];

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has booted");
    bytes
}

/// Names a storage key: random, so that the keys of two lives of a member are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A storage key.
#[derive(Clone)]
pub struct Key {
    id: KeyId,
    secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id) // never the secret
    }
}

impl Key {
    /// A fresh one.
    pub fn generate() -> Self {
        Self {
            id: KeyId(u32::from_le_bytes(random())),
            secret: random(),
        }
    }

    /// One that is nothing but these random bytes: its name follows from them.
    pub fn of_secret(secret: [u8; SECRET_BYTES]) -> Self {
        let hash = digest(&SHA256, &[&b"bulkhead key"[..], &secret].concat());
        let id = hash.as_ref()[..4].try_into().expect("four bytes");
        Self {
            id: KeyId(u32::from_le_bytes(id)),
            secret,
        }
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// A line of the key file can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not `ID BASE64`, with 8 hexadecimal digits and 32 bytes")]
pub struct KeyLineError;

impl FromStr for Key {
    type Err = KeyLineError;

    fn from_str(line: &str) -> Result<Self, KeyLineError> {
        let (id, secret) = line.split_once(' ').ok_or(KeyLineError)?;
        if id.len() != 8 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(KeyLineError);
        }
        let id = u32::from_str_radix(id, 16).map_err(|_| KeyLineError)?;
        let secret = BASE64.decode(secret).map_err(|_| KeyLineError)?;
        Ok(Self {
            id: KeyId(id),
            secret: secret.try_into().map_err(|_| KeyLineError)?,
        })
    }
}

impl Key {
    /// Its line in the key file.
    pub fn line(&self) -> String {
        format!("{} {}\n", self.id, BASE64.encode(self.secret))
    }

    /// The key of a part of a file.
    fn part(&self, file: &[u8], part: &SaltBytes) -> LessSafeKey {
        let derived = Salt::new(HKDF_SHA256, part).extract(&self.secret);
        let info = [&b"bulkhead storage"[..], file];
        let okm = derived
            .expand(&info, &AES_256_GCM)
            .expect("shorter than HKDF's 255 blocks");
        LessSafeKey::new(UnboundKey::from(okm))
    }
}

/// The storage keys of a member: the first is written with, all are read with.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Where they are from, for messages.
    file: Arc<PathBuf>,
    keys: Arc<Vec<Key>>,
}

impl Keys {
    /// At least one; `file` is where a person finds them.
    pub fn new(file: &Path, keys: Vec<Key>) -> Self {
        assert!(!keys.is_empty(), "the first is written with");
        Self {
            file: Arc::new(file.to_owned()),
            keys: Arc::new(keys),
        }
    }

    /// What new files are sealed with.
    pub fn writing(&self) -> &Key {
        &self.keys[0]
    }

    /// All of them, the one to write with first.
    pub fn all(&self) -> &[Key] {
        &self.keys
    }

    fn get(&self, id: KeyId) -> Result<&Key, KeyError> {
        let found = self.keys.iter().find(|key| key.id == id);
        found.ok_or_else(|| KeyError::Missing {
            id,
            keys: self.file.display().to_string(),
        })
    }
}

/// The right key is not there.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// No key of this id.
    #[error(
        "it is sealed with storage key {id}, which is not in {keys}: put back the file that belongs to this data \
         directory, or add the key's line to it; if the key is lost, remove this member from the cluster, empty its data \
         directory and join it again"
    )]
    Missing {
        /// Which.
        id: KeyId,
        /// The key file.
        keys: String,
    },
    /// A key of this id that is another.
    #[error(
        "storage key {id} of {keys} is not the one that it was sealed with: put back the file that belongs to this \
         data directory; if the key is lost, remove this member from the cluster, empty its data directory and join it \
         again"
    )]
    Other {
        /// Which.
        id: KeyId,
        /// The key file.
        keys: String,
    },
}

/// A header is not one that we wrote, or can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderError {
    /// Not the bytes that were written.
    Damaged,
    /// Written by a newer version.
    Version(u32),
    /// The key is not there.
    Key(KeyError),
}

/// Sealed bytes are not what was written in this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Altered;

/// What seals and opens one file.
#[derive(Clone)]
pub struct FileKey {
    key: Key,
    salt: SaltBytes,
}

/// Begins a file: gives its header.
pub fn begin_file(key: &Key, magic: &[u8; 8], number: u64) -> ([u8; HEADER_BYTES], FileKey) {
    let mut sealer = Sealer::begin(key, b"header");
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&key.id.0.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    header[24..TAGGED].copy_from_slice(&sealer.salt);
    let tag = sealer.seal(0, &header[..TAGGED], &mut []);
    header[TAGGED..CHECKED].copy_from_slice(&tag);
    let crc = crc32c::crc32c(&header[..CHECKED]);
    header[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    let key = FileKey {
        key: key.clone(),
        salt: sealer.salt,
    };
    (header, key)
}

/// The header's version and the id of its key; None when it is damaged or none.
fn claims(bytes: &[u8]) -> Option<(u32, KeyId)> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let whole =
        |bytes: &[u8]| crc32c::crc32c(&bytes[..CHECKED]) == number(CHECKED) && number(CHECKED + 4) == 0;
    (bytes.len() >= HEADER_BYTES && whole(bytes)).then(|| (number(8), KeyId(number(12))))
}

/// With which key a file that begins with `bytes` is sealed, if it is.
pub fn key_of(bytes: &[u8]) -> Option<KeyId> {
    claims(bytes)
        .filter(|(version, _)| *version == VERSION)
        .map(|(_, id)| id)
}

/// Opens a file by its first bytes.
pub fn open_file(bytes: &[u8], magic: &[u8; 8], number: u64, keys: &Keys) -> Result<FileKey, HeaderError> {
    let (version, id) = claims(bytes).ok_or(HeaderError::Damaged)?;
    if &bytes[..8] != magic {
        return Err(HeaderError::Damaged);
    }
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    if bytes[16..24] != number.to_le_bytes() {
        return Err(HeaderError::Damaged); // a file under another's name
    }
    let key = keys.get(id).map_err(HeaderError::Key)?;
    let salt: SaltBytes = bytes[24..TAGGED].try_into().expect("as long as a salt");
    let mut tag = bytes[TAGGED..CHECKED].to_vec();
    let opener = Opener(key.part(b"header", &salt));
    if opener.open(0, &bytes[..TAGGED], &mut tag).is_err() {
        return Err(HeaderError::Key(KeyError::Other {
            id,
            keys: keys.file.display().to_string(),
        }));
    }
    Ok(FileKey {
        key: key.clone(),
        salt,
    })
}

impl FileKey {
    /// Whose key it is.
    pub fn id(&self) -> KeyId {
        self.key.id
    }

    /// Begins a part, which nobody can continue later.
    pub fn begin(&self) -> Sealer {
        Sealer::begin(&self.key, &self.salt)
    }

    /// Reads the part that was begun with this salt.
    pub fn opener(&self, salt: &[u8; SALT_BYTES]) -> Opener {
        Opener(self.key.part(&self.salt, salt))
    }
}

/// Writes one part. Made with a fresh salt only.
pub struct Sealer {
    key: LessSafeKey,
    salt: SaltBytes,
    /// Lowest position that was not sealed yet.
    next: u64,
}

fn nonce(position: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&position.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Sealer {
    fn begin(key: &Key, file: &[u8]) -> Self {
        let salt = random();
        Self {
            key: key.part(file, &salt),
            salt,
            next: 0,
        }
    }

    /// What a reader needs beside the key; not secret.
    pub fn salt(&self) -> &[u8; SALT_BYTES] {
        &self.salt
    }

    /// Encrypts in place; gives the tag. `place` says where it stands: it opens nowhere else.
    pub fn seal(&mut self, position: u32, place: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        assert!(
            u64::from(position) >= self.next,
            "a nonce is used once: positions rise"
        );
        self.next = u64::from(position) + 1;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(position), Aad::from(place), bytes)
            .expect("shorter than 64 GiB");
        tag.as_ref().try_into().expect("a tag is 16 bytes")
    }
}

/// Reads one part.
pub struct Opener(LessSafeKey);

impl Opener {
    /// Decrypts what is followed by its tag, and cuts the tag off.
    pub fn open(&self, position: u32, place: &[u8], bytes: &mut Vec<u8>) -> Result<(), Altered> {
        let opened = self.0.open_in_place(nonce(position), Aad::from(place), bytes);
        let len = opened.map_err(|_| Altered)?.len();
        bytes.truncate(len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"BHTESTED";

    fn keys(keys: &[&Key]) -> Keys {
        Keys::new(Path::new("storage.keys"), keys.iter().copied().cloned().collect())
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let key = Key::generate();
        let (header, file) = begin_file(&key, MAGIC, 7);
        let mut sealer = file.begin();
        let mut bytes = b"secret".to_vec();
        let tag = sealer.seal(3, b"here", &mut bytes);
        bytes.extend(tag);
        let again = open_file(&header, MAGIC, 7, &keys(&[&Key::generate(), &key])).unwrap();
        let opened = |salt, position, place: &[u8], mut bytes: Vec<u8>| {
            again
                .opener(salt)
                .open(position, place, &mut bytes)
                .map(|()| bytes)
        };
        assert_eq!(
            opened(sealer.salt(), 3, b"here", bytes.clone()).unwrap(),
            b"secret"
        );
        assert_eq!(opened(sealer.salt(), 4, b"here", bytes.clone()), Err(Altered));
        assert_eq!(opened(sealer.salt(), 3, b"there", bytes.clone()), Err(Altered));
        assert_eq!(opened(&[0; SALT_BYTES], 3, b"here", bytes.clone()), Err(Altered));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(opened(sealer.salt(), 3, b"here", flipped), Err(Altered), "{at}");
        }
        let (_, other) = begin_file(&key, MAGIC, 7);
        let elsewhere = other.opener(sealer.salt()).open(3, b"here", &mut bytes);
        assert_eq!(elsewhere, Err(Altered), "another file under the same key");
    }

    #[test]
    fn a_header_tells_damage_from_a_missing_and_from_another_key() {
        let key = Key::generate();
        let (header, _) = begin_file(&key, MAGIC, 7);
        assert_eq!(key_of(&header), Some(key.id()));
        let refused = |bytes: &[u8], number, with: &Key| {
            let opened = open_file(bytes, MAGIC, number, &keys(&[with]));
            opened.err().expect("it is refused")
        };
        assert_eq!(refused(&header, 8, &key), HeaderError::Damaged);
        for at in 0..HEADER_BYTES {
            let mut flipped = header;
            flipped[at] ^= 1;
            assert_eq!(refused(&flipped, 7, &key), HeaderError::Damaged, "{at}");
            assert_eq!(key_of(&flipped), None);
        }
        let missing = refused(&header, 7, &Key::generate());
        assert!(
            matches!(missing, HeaderError::Key(KeyError::Missing { .. })),
            "{missing:?}"
        );
        let mut other = Key::generate();
        other.id = key.id;
        let other = refused(&header, 7, &other);
        assert!(
            matches!(other, HeaderError::Key(KeyError::Other { .. })),
            "{other:?}"
        );
    }

    #[test]
    fn a_key_is_read_from_its_line_and_nothing_else_is() {
        let key = Key::generate();
        let line = key.line();
        let read: Key = line.trim_end().parse().unwrap();
        assert_eq!((read.id, read.secret), (key.id, key.secret));
        let (id, secret) = line.trim_end().split_once(' ').unwrap();
        for bad in [
            "",
            id,
            &format!("x{} {secret}", &id[1..]),
            &format!("{id} {}", &secret[4..]),
        ] {
            assert_eq!(bad.parse::<Key>().err(), Some(KeyLineError), "{bad}");
        }
        assert!(!format!("{key:?}").contains(secret));
        assert_eq!(Key::of_secret(key.secret).id, Key::of_secret(key.secret).id);
        assert_ne!(
            Key::of_secret(key.secret).id,
            Key::of_secret([7; SECRET_BYTES]).id
        );
    }

    #[test]
    #[should_panic(expected = "a nonce is used once")]
    fn a_position_is_sealed_once() {
        let (_, file) = begin_file(&Key::generate(), MAGIC, 1);
        let mut sealer = file.begin();
        sealer.seal(1, b"", &mut [1]);
        sealer.seal(1, b"", &mut [2]);
    }
}
