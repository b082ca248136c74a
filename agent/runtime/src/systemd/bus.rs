//! A connection to systemd: its private socket, which is there for root, or the system's bus. One call at a time, each
//! with an end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::SystemdError;
use super::wire::{Kind, Message, PREFIX_BYTES, Writer};

/// Longest wait for one answer, or for a unit to be there: runc's.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of the authentication; the specification's own limit is the bus's.
const LINE_BYTES_MAX: usize = 512;
/// Signals kept while an answer is awaited. Only those of one kind are, and each is for one job of the machine: more than
/// this within one call, and the oldest is let go.
const SIGNALS_MAX: usize = 256;
/// sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// systemd's own socket speaks the same protocol without a bus between.
const PRIVATE: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const JOB_REMOVED: &str = "JobRemoved";

/// A connection on which systemd answers.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    /// Who systemd is on a bus: the sender of its answers. Signals of anybody else are not systemd's.
    peer: String,
    bus: bool,
    signals: Vec<Message>,
}

fn lost(action: &'static str) -> impl FnOnce(io::Error) -> SystemdError {
    move |source| SystemdError::Connection { action, source }
}

impl Connection {
    pub(super) fn open() -> Result<Connection, SystemdError> {
        if !Path::new(BOOTED).is_dir() {
            return Err(SystemdError::NotRunning);
        }
        let (stream, bus) = match UnixStream::connect(PRIVATE) {
            Ok(stream) => (stream, false),
            Err(source) => match UnixStream::connect(SYSTEM_BUS) {
                Ok(stream) => (stream, true),
                Err(_) => {
                    return Err(SystemdError::Connection {
                        action: "connect to systemd at /run/systemd/private or /run/dbus/system_bus_socket",
                        source,
                    });
                }
            },
        };
        let mut connection = Connection {
            stream,
            serial: 0,
            peer: String::new(),
            bus,
            signals: Vec::new(),
        };
        connection.authenticate()?;
        if bus {
            connection.call_bus("Hello", Writer::default())?;
            let rule =
                format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='{JOB_REMOVED}'");
            connection.call_bus("AddMatch", Writer::default().text(&rule))?;
        }
        // Without a subscriber on the bus systemd tells nothing of its jobs; over its own socket it tells everybody.
        if bus {
            connection.call("Subscribe", Writer::default())?;
        }
        Ok(connection)
    }

    /// Who we are the kernel tells the other end (D-Bus Specification, EXTERNAL).
    fn authenticate(&mut self) -> Result<(), SystemdError> {
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        // BEGIN at once, and what we ask after the answer alone: systemd leaves what it read together with BEGIN where it is
        // until something else comes (sd-bus of 252, which itself begins like this).
        let hello = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n");
        self.stream
            .write_all(hello.as_bytes())
            .map_err(lost("introduce ourselves to systemd"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte, deadline)?;
            line.push(byte[0]);
            if line.len() > LINE_BYTES_MAX {
                break;
            }
        }
        if !line.starts_with(b"OK ") || !line.ends_with(b"\r\n") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(SystemdError::Unknown { said });
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8], deadline: Instant) -> Result<(), SystemdError> {
        let mut filled = 0;
        while filled < into.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SystemdError::Late {
                    seconds: PATIENCE.as_secs(),
                });
            }
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut into[filled..]));
            match read {
                Ok(0) => return Err(lost("hear from systemd")(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(lost("hear from systemd")(error)),
            }
        }
        Ok(())
    }

    fn next(&mut self, deadline: Instant) -> Result<Message, SystemdError> {
        let mut prefix = [0; PREFIX_BYTES];
        self.receive(&mut prefix, deadline)?;
        let mut bytes = vec![0; Message::length(&prefix)?];
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix);
        self.receive(&mut bytes[PREFIX_BYTES..], deadline)?;
        Ok(Message::decode(&bytes)?)
    }

    /// Calls a method of systemd's manager.
    pub(super) fn call(&mut self, member: &'static str, body: Writer) -> Result<Message, SystemdError> {
        let mut message = Message::new(Kind::Call).with(body);
        message.path = SYSTEMD_PATH.into();
        message.interface = MANAGER.into();
        message.member = member.into();
        if self.bus {
            message.destination = SYSTEMD.into();
        }
        let reply = self.exchange(member, message)?;
        self.peer.clone_from(&reply.sender);
        Ok(reply)
    }

    fn call_bus(&mut self, member: &'static str, body: Writer) -> Result<Message, SystemdError> {
        let mut message = Message::new(Kind::Call).with(body);
        message.path = "/org/freedesktop/DBus".into();
        message.interface = BUS.into();
        message.member = member.into();
        message.destination = BUS.into();
        self.exchange(member, message)
    }

    fn exchange(&mut self, member: &'static str, mut message: Message) -> Result<Message, SystemdError> {
        self.serial += 1;
        message.serial = self.serial;
        self.stream
            .set_write_timeout(Some(PATIENCE))
            .and_then(|()| self.stream.write_all(&message.encode()))
            .map_err(lost("ask systemd"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.next(deadline)?;
            match answer.kind {
                Kind::Reply if answer.reply_serial == self.serial => return Ok(answer),
                Kind::Error if answer.reply_serial == self.serial => {
                    let text = answer.reader().text().unwrap_or_default().to_owned();
                    return Err(SystemdError::Refused {
                        call: member,
                        name: answer.error,
                        text,
                    });
                }
                Kind::Signal if answer.member == JOB_REMOVED => {
                    if self.signals.len() >= SIGNALS_MAX {
                        self.signals.remove(0);
                    }
                    self.signals.push(answer);
                }
                // Somebody else's matter.
                _ => {}
            }
        }
    }

    /// Waits for the end of a job that systemd named in its answer; how it ended.
    pub(super) fn job(&mut self, job: &str) -> Result<String, SystemdError> {
        let deadline = Instant::now() + PATIENCE;
        let mut kept = std::mem::take(&mut self.signals).into_iter();
        loop {
            let message = match kept.next() {
                Some(message) => message,
                None => self.next(deadline)?,
            };
            let removed = message.kind == Kind::Signal
                && message.member == JOB_REMOVED
                && message.interface == MANAGER
                && message.sender == self.peer;
            if !removed {
                continue;
            }
            // JobRemoved(u id, o job, s unit, s result), org.freedesktop.systemd1(5).
            let mut body = message.reader();
            body.u32()?;
            if body.text()? == job {
                body.text()?;
                return Ok(body.text()?.to_owned());
            }
        }
    }
}
