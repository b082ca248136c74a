//! Manifests: YAML or JSON text to objects, strictly, with every refusal of every document at once.
//!
//! The parser's events become a tree that knows its places (`tree`); one walk of it against the schema's descriptors makes
//! a message or refusals (`walk`); the message becomes the typed object, which is then validated as the server would.
//!
//! Nothing written is ignored: what is not in the schema is refused, as not supported yet when Kubernetes has it, as
//! unknown when nobody has it. Only `null` is nothing, as in Kubernetes.

mod document;
mod json;
mod scalar;
mod tree;
mod walk;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use proto::v1::Object;

use crate::object;

/// Largest text of one file: above the largest transaction, below what would trouble a small machine.
pub const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Deepest nesting: a Deployment needs 12.
pub const DEPTH_MAX: usize = 64;
/// Most values in one file, each use of an alias counted with all that is below it: what the largest text can say in
/// earnest, and the end of a bomb.
pub const NODES_MAX: usize = 1_000_000;
/// Most refusals told in full; the rest is counted. A person fixes a few at a time.
pub const REFUSALS_MAX: usize = 100;

/// A place in a file, from 1; the column counts characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// An object as written (no defaults filled in), and where each of its fields stands.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The object.
    pub object: Object,
    /// The file's name as it was given.
    pub file: String,
    /// Line on which the object begins.
    pub line: u32,
    /// Paths of fields that are written with nothing in them (`false`, `0`, `""`, `[]`, `null`): the object alone does not
    /// tell them from fields that are not written. Maps are not among them: an empty one says nothing.
    pub empty: Vec<String>,
    positions: HashMap<String, Position>,
}

impl Manifest {
    /// Where the field with this path stands, or else the nearest field around it.
    pub fn position(&self, path: &str) -> Position {
        nearest_position(&self.positions, path).unwrap_or(Position {
            line: self.line,
            column: 1,
        })
    }

    /// A refusal of this object, at the place of `path`: for what the server says.
    pub fn refusal(&self, path: &str, message: &str) -> Refusal {
        let at = self.position(path);
        Refusal {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            path: path.to_owned(),
            message: message.to_owned(),
        }
    }
}

fn nearest_position(positions: &HashMap<String, Position>, path: &str) -> Option<Position> {
    let mut path = path;
    loop {
        if let Some(at) = positions.get(path) {
            return Some(*at);
        }
        if path.is_empty() {
            return None;
        }
        path = parent(path);
    }
}

/// The path without its last step.
fn parent(path: &str) -> &str {
    // The key of a map may hold dots: `limits[bulkhead.io/read-bps]`.
    let end = match path.strip_suffix(']') {
        Some(inner) => inner.rfind('['),
        None => path.rfind('.'),
    };
    &path[..end.unwrap_or(0)]
}

/// One reason why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The file's name as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The field: `spec.template.spec.containers[0].imge`; empty where no field is meant.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every reason, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// At most [`REFUSALS_MAX`].
    pub refusals: Vec<Refusal>,
    /// How many more there were.
    pub more: usize,
}

impl Refusals {
    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.refusals.is_empty()
    }

    fn push(&mut self, refusal: Refusal) {
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push(refusal);
        } else {
            self.more += 1;
        }
    }

    /// Takes over another file's.
    pub fn extend(&mut self, other: Refusals) {
        self.more += other.more;
        for refusal in other.refusals {
            self.push(refusal);
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (index, refusal) in self.refusals.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{refusal}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusals {}

/// Reads every document of a file, or tells everything that is wrong with any of them. An empty file is no manifest.
///
/// Each object is as written; a copy was defaulted and validated, so that what is returned here is what the server accepts
/// as far as it depends on the manifest alone.
pub fn manifests(file: &str, bytes: &[u8]) -> Result<Vec<Manifest>, Refusals> {
    let mut reader = Reader {
        file,
        refusals: Refusals::default(),
        manifests: Vec::new(),
        nodes: 0,
    };
    if let Some(text) = reader.text(bytes) {
        let mut nodes = 0;
        for (origin, part) in json::values(text) {
            for document in tree::documents(part, origin, &mut nodes, &mut |at, message| {
                reader.refusals.push(refusal(file, at, "", message))
            }) {
                reader.document(&document);
            }
            if nodes > NODES_MAX {
                break; // told
            }
        }
    }
    for refusal in duplicates(&reader.manifests) {
        reader.refusals.push(refusal);
    }
    if reader.refusals.is_empty() {
        return Ok(reader.manifests);
    }
    reader
        .refusals
        .refusals
        .sort_by_key(|refusal| (refusal.line, refusal.column));
    Err(reader.refusals)
}

/// Objects that are written more than once, in one file or in several: the caller passes all that it applies together.
pub fn duplicates(manifests: &[Manifest]) -> Vec<Refusal> {
    let mut seen = BTreeMap::new();
    let mut refusals = Vec::new();
    for manifest in manifests {
        let meta = object::meta(&manifest.object);
        if meta.name.is_empty() {
            continue; // its name is made by the server
        }
        let key = (
            object::kind(&manifest.object),
            meta.namespace.clone(),
            meta.name.clone(),
        );
        if let Some((file, line)) = seen.insert(key, (&manifest.file, manifest.line)) {
            let message = format!(
                "{} is written twice; the first is at {file}:{line}",
                object::display(&manifest.object)
            );
            refusals.push(manifest.refusal("metadata.name", &message));
        }
    }
    refusals
}

fn refusal(file: &str, at: Position, path: &str, message: String) -> Refusal {
    Refusal {
        file: file.to_owned(),
        line: at.line,
        column: at.column,
        path: path.to_owned(),
        message,
    }
}

/// What is gathered from one file.
struct Reader<'a> {
    file: &'a str,
    refusals: Refusals,
    manifests: Vec<Manifest>,
    /// Values walked so far, see [`NODES_MAX`].
    nodes: usize,
}

impl Reader<'_> {
    /// The text, without a byte order mark, or nothing and a refusal.
    fn text<'t>(&mut self, bytes: &'t [u8]) -> Option<&'t str> {
        let start = Position { line: 1, column: 1 };
        if bytes.len() > TEXT_BYTES_MAX {
            let message = format!(
                "the file has {} bytes; a manifest may have {} MiB: split it",
                bytes.len(),
                TEXT_BYTES_MAX >> 20
            );
            self.refusals.push(refusal(self.file, start, "", message));
            return None;
        }
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            let message = "the file is UTF-16; save it as UTF-8".to_owned();
            self.refusals.push(refusal(self.file, start, "", message));
            return None;
        }
        let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                let at = end_of(&String::from_utf8_lossy(good));
                let byte = bad.first().copied().unwrap_or_default();
                let message = format!("invalid UTF-8: byte 0x{byte:02x}; save the file as UTF-8");
                self.refusals.push(refusal(self.file, at, "", message));
                return None;
            }
        };
        // The parser takes NUL for the end: whatever stands behind it would be ignored.
        let control = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
        if let Some(index) = text.find(control) {
            let byte = text.as_bytes()[index];
            let message = format!("control character 0x{byte:02x} is not allowed; is this a text file?");
            self.refusals
                .push(refusal(self.file, end_of(&text[..index]), "", message));
            return None;
        }
        Some(text)
    }
}

/// The place just behind a text.
fn end_of(text: &str) -> Position {
    let line = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Position {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
    }
}
