//! D-Bus messages as bytes, as far as talking to systemd needs them (D-Bus Specification 0.43, Message Protocol): little
//! endian, no descriptors. Pure: no socket is known here. What comes from outside is read with bounds, never trusted.

use std::fmt;

/// Largest message in either direction. The specification allows 128 MiB; what systemd answers us is some hundred bytes,
/// and the signals that it sends everybody are some thousand.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The part of a message that tells how long the rest is.
pub const PREFIX_BYTES: usize = 16;
const VERSION: u8 = 1;

/// What is wrong with bytes that should be a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "malformed D-Bus message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call of a method.
    Call,
    /// Its answer.
    Reply,
    /// Its failure.
    Error,
    /// Told to whoever listens.
    Signal,
}

/// The value of a unit's property, as far as ours have types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Flag(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Flag(_) => "b",
            Value::Number(_) => "t",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Numbers(_) => "au",
            Value::Pairs(_) => "a(ss)",
        }
    }
}

/// A unit's properties: `a(sv)`.
pub type Properties = Vec<(String, Value)>;

/// A message: header fields, each empty or zero when absent, and the body with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_serial: u32,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error: String,
    pub destination: String,
    pub sender: String,
    pub signature: String,
    pub body: Vec<u8>,
}

impl Message {
    /// One with nothing in it.
    pub fn new(kind: Kind) -> Message {
        Message {
            kind,
            serial: 0,
            reply_serial: 0,
            path: String::new(),
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            destination: String::new(),
            sender: String::new(),
            signature: String::new(),
            body: Vec::new(),
        }
    }

    /// With this body.
    pub fn with(mut self, body: Writer) -> Message {
        (self.signature, self.body) = (body.signature, body.bytes);
        self
    }

    /// A reader of the body.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.body.len() <= MESSAGE_BYTES_MAX, "our messages are small");
        let mut out = Writer::default();
        let kind = match self.kind {
            Kind::Call => 1,
            Kind::Reply => 2,
            Kind::Error => 3,
            Kind::Signal => 4,
        };
        out.bytes.extend([b'l', kind, 0, VERSION]);
        out.raw(self.body.len() as u32);
        out.raw(self.serial);
        out.array(8, |out| {
            let texts = [
                (1, "o", &self.path),
                (2, "s", &self.interface),
                (3, "s", &self.member),
                (4, "s", &self.error),
                (6, "s", &self.destination),
                (7, "s", &self.sender),
                (8, "g", &self.signature),
            ];
            for (code, signature, text) in texts.into_iter().filter(|(_, _, text)| !text.is_empty()) {
                out.align(8);
                out.bytes.push(code);
                out.raw_signature(signature);
                if signature == "g" {
                    out.raw_signature(text);
                } else {
                    out.raw_text(text);
                }
            }
            if self.reply_serial != 0 {
                out.align(8);
                out.bytes.push(5);
                out.raw_signature("u");
                out.raw(self.reply_serial);
            }
        });
        out.align(8);
        out.bytes.extend(&self.body);
        out.bytes
    }

    /// How long the whole message is that begins with these bytes.
    pub fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, Malformed> {
        if prefix[0] != b'l' {
            return Err(Malformed("it is not little endian"));
        }
        if prefix[3] != VERSION {
            return Err(Malformed("its version is not 1"));
        }
        let word = |at: usize| {
            u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize
        };
        let (body, fields) = (word(4), word(12));
        if body > MESSAGE_BYTES_MAX || fields > MESSAGE_BYTES_MAX {
            return Err(Malformed("it is too long"));
        }
        let whole = (PREFIX_BYTES + fields).next_multiple_of(8) + body;
        if whole > MESSAGE_BYTES_MAX {
            return Err(Malformed("it is too long"));
        }
        Ok(whole)
    }

    /// Reads a whole message.
    pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        let prefix = bytes.first_chunk().ok_or(Malformed("it is too short"))?;
        if Message::length(prefix)? != bytes.len() {
            return Err(Malformed("its length is not what it tells"));
        }
        let kind = match prefix[1] {
            1 => Kind::Call,
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return Err(Malformed("its type is unknown")),
        };
        let mut message = Message::new(kind);
        let mut reader = Reader { bytes, at: 4 };
        let body = reader.u32()? as usize;
        message.serial = reader.u32()?;
        if message.serial == 0 {
            return Err(Malformed("its serial is 0"));
        }
        let end = reader.u32()? as usize + PREFIX_BYTES;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (1, "o") => message.path = reader.text()?.to_owned(),
                (2, "s") => message.interface = reader.text()?.to_owned(),
                (3, "s") => message.member = reader.text()?.to_owned(),
                (4, "s") => message.error = reader.text()?.to_owned(),
                (5, "u") => message.reply_serial = reader.u32()?,
                (6, "s") => message.destination = reader.text()?.to_owned(),
                (7, "s") => message.sender = reader.text()?.to_owned(),
                (8, "g") => message.signature = reader.signature()?.to_owned(),
                (0..=8, _) => return Err(Malformed("a header field is not of its type")),
                // "unknown fields must be ignored": those that exist are numbers and texts.
                (_, "u") => drop(reader.u32()?),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, _) => return Err(Malformed("a header field has an unknown type")),
            }
        }
        if reader.at != end {
            return Err(Malformed("its header is longer than it tells"));
        }
        reader.align(8)?;
        message.body = reader.take(body)?.to_owned();
        Ok(message)
    }
}

/// Writes a body, and its signature with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
    signature: String,
}

impl Writer {
    /// `s`
    pub fn text(mut self, text: &str) -> Writer {
        self.signature.push('s');
        self.raw_text(text);
        self
    }

    /// `o`
    pub fn path(mut self, path: &str) -> Writer {
        self.signature.push('o');
        self.raw_text(path);
        self
    }

    /// `u`
    pub fn number(mut self, number: u32) -> Writer {
        self.signature.push('u');
        self.raw(number);
        self
    }

    /// `b`
    pub fn flag(mut self, flag: bool) -> Writer {
        self.signature.push('b');
        self.raw(u32::from(flag));
        self
    }

    /// `a(sv)`
    pub fn properties(mut self, properties: &[(String, Value)]) -> Writer {
        self.signature.push_str("a(sv)");
        self.array(8, |out| {
            for (name, value) in properties {
                out.align(8);
                out.raw_text(name);
                out.value(value);
            }
        });
        self
    }

    /// `a(sa(sv))` without any: units that a transient one would bring along.
    pub fn no_units(mut self) -> Writer {
        self.signature.push_str("a(sa(sv))");
        self.array(8, |_| ());
        self
    }

    fn value(&mut self, value: &Value) {
        self.raw_signature(value.signature());
        match value {
            Value::Flag(flag) => self.raw(u32::from(*flag)),
            Value::Number(number) => {
                self.align(8);
                self.bytes.extend(number.to_le_bytes());
            }
            Value::Text(text) => self.raw_text(text),
            Value::Bytes(bytes) => self.array(1, |out| out.bytes.extend(bytes)),
            Value::Numbers(numbers) => self.array(4, |out| numbers.iter().for_each(|one| out.raw(*one))),
            Value::Pairs(pairs) => self.array(8, |out| {
                for (one, other) in pairs {
                    out.align(8);
                    out.raw_text(one);
                    out.raw_text(other);
                }
            }),
        }
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn raw(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn raw_text(&mut self, text: &str) {
        self.raw(text.len() as u32);
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
    }

    fn raw_signature(&mut self, text: &str) {
        assert!(text.len() <= u8::MAX.into(), "our signatures are short");
        self.bytes.push(text.len() as u8);
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
    }

    /// An array's length does not count the padding before its first element.
    fn array(&mut self, element: usize, write: impl FnOnce(&mut Writer)) {
        self.raw(0);
        let length = self.bytes.len() - 4;
        self.align(element);
        let begin = self.bytes.len();
        write(self);
        let written = (self.bytes.len() - begin) as u32;
        self.bytes[length..length + 4].copy_from_slice(&written.to_le_bytes());
    }
}

/// Reads a body, value by value.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        self.at += count;
        taken.ok_or(Malformed("it ends too early"))
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to) - self.at;
        match self.take(padding)?.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(Malformed("its padding is not zero")),
        }
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// `u`
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.align(8)?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a truth value is neither 0 nor 1")),
        }
    }

    fn terminated(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let text = self.take(length)?;
        if self.byte()? != 0 || text.contains(&0) {
            return Err(Malformed("a text does not end where it should"));
        }
        std::str::from_utf8(text).map_err(|_| Malformed("a text is not UTF-8"))
    }

    /// `s` or `o`
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<&'a str, Malformed> {
        let length = self.byte()?.into();
        self.terminated(length)
    }

    /// Elements until the array's bytes are used up; each takes at least one, so this ends.
    fn array<T>(
        &mut self,
        element: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let length = self.u32()? as usize;
        self.align(element)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Malformed("an array is longer than the message"))?;
        let mut all = Vec::new();
        while self.at < end {
            all.push(read(self)?);
        }
        match self.at == end {
            true => Ok(all),
            false => Err(Malformed("an array's length is not that of its elements")),
        }
    }

    fn value(&mut self) -> Result<Value, Malformed> {
        Ok(match self.signature()? {
            "b" => Value::Flag(self.flag()?),
            "t" => Value::Number(self.u64()?),
            "s" => Value::Text(self.text()?.to_owned()),
            "ay" => Value::Bytes(self.array(1, Reader::byte)?),
            "au" => Value::Numbers(self.array(4, Reader::u32)?),
            "a(ss)" => Value::Pairs(self.array(8, |reader| {
                reader.align(8)?;
                Ok((reader.text()?.to_owned(), reader.text()?.to_owned()))
            })?),
            _ => return Err(Malformed("a property has a type that none of ours has")),
        })
    }

    /// `a(sv)`
    pub fn properties(&mut self) -> Result<Properties, Malformed> {
        self.array(8, |reader| {
            reader.align(8)?;
            Ok((reader.text()?.to_owned(), reader.value()?))
        })
    }
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
