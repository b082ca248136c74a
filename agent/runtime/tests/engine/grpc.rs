//! One unary call of gRPC over HTTP/2 (RFC 9113) on a unix socket: for what containerd can and its `ctr` has no command for.
//! What comes back is told by what it does, so that no answer need be decoded.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// The only stream.
const STREAM: u32 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as it is: "Literal Header Field without Indexing -- New Name" (RFC 7541, 6.2.2), without Huffman's code.
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127, "longer ones have more than one byte of length");
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A field of protobuf whose type has a length.
pub(crate) fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = value.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(value);
    bytes
}

/// Calls a method, and returns when it has been answered.
pub(crate) fn call(socket: &Path, method: &str, message: &[u8]) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", method),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
        header("containerd-namespace", "default"),
    ];
    let mut body = vec![0]; // not compressed
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frame(HEADERS, END_HEADERS, STREAM, &headers.concat()));
    bytes.extend(frame(DATA, END_STREAM, STREAM, &body));
    stream.write_all(&bytes)?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let payload = if kind == PING { &payload[..] } else { &[] };
                stream.write_all(&frame(kind, ACK, 0, payload))?;
            }
            GOAWAY => return Err(io::ErrorKind::ConnectionAborted.into()),
            DATA | HEADERS if flags & END_STREAM != 0 => return Ok(()),
            _ => {}
        }
    }
}
