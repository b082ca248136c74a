use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,20}"
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::Flag),
        any::<u64>().prop_map(Value::Number),
        text().prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        prop::collection::vec(any::<u32>(), 0..10).prop_map(Value::Numbers),
        prop::collection::vec((text(), text()), 0..5).prop_map(Value::Pairs),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        names in prop::collection::vec(text(), 5),
        (serial, reply_serial) in (1u32.., any::<u32>()),
        (first, flag, properties) in (text(), any::<bool>(), prop::collection::vec((text(), value()), 0..8)),
    ) {
        let body = Writer::default().text(&first).flag(flag).properties(&properties).no_units();
        let mut message = Message::new(Kind::Call).with(body);
        (message.serial, message.reply_serial) = (serial, reply_serial);
        let fields = [&mut message.path, &mut message.interface, &mut message.member, &mut message.error, &mut message.sender];
        for (field, name) in fields.into_iter().zip(names) {
            *field = name;
        }
        let bytes = message.encode();
        let length = Message::length(bytes.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(length, bytes.len());
        let read = Message::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &message);
        prop_assert_eq!(&read.signature, "sba(sv)a(sa(sv))");
        let mut reader = read.reader();
        prop_assert_eq!(reader.text().unwrap(), first);
        prop_assert_eq!(reader.flag().unwrap(), flag);
        prop_assert_eq!(reader.properties().unwrap(), properties);
    }

    #[test]
    fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(message.body.len() <= bytes.len());
        }
    }

    /// Closer to what is right: one byte of a good message is another.
    #[test]
    fn a_changed_byte_is_read_or_refused(at in 0usize..400, byte in any::<u8>(), properties in prop::collection::vec((text(), value()), 1..5)) {
        let mut message = Message::new(Kind::Signal).with(Writer::default().properties(&properties));
        message.serial = 7;
        message.member = "JobRemoved".into();
        let mut bytes = message.encode();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(read) = Message::decode(&bytes) {
            drop(read.reader().properties());
        }
    }
}

/// As dbus-monitor records the call that opens every connection to a bus.
#[test]
fn a_hello_is_as_others_write_it() {
    let mut message = Message::new(Kind::Call);
    message.serial = 1;
    message.path = "/org/freedesktop/DBus".into();
    message.interface = "org.freedesktop.DBus".into();
    message.member = "Hello".into();
    message.destination = "org.freedesktop.DBus".into();
    let mut expected = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0".to_vec();
    expected.extend(b"\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0");
    expected.extend(b"\x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
    expected.extend(b"\x03\x01s\0\x05\0\0\0Hello\0\0\0");
    expected.extend(b"\x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
    assert_eq!(message.encode(), expected);
}

#[test]
fn lengths_beyond_the_limit_are_refused() {
    let mut prefix = [0; PREFIX_BYTES];
    (prefix[0], prefix[1], prefix[3]) = (b'l', 1, 1);
    prefix[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Message::length(&prefix), Err(Malformed("it is too long")));
    prefix[4..8].copy_from_slice(&(MESSAGE_BYTES_MAX as u32).to_le_bytes());
    assert_eq!(Message::length(&prefix), Err(Malformed("it is too long")));
    prefix[0] = b'B';
    assert_eq!(
        Message::length(&prefix),
        Err(Malformed("it is not little endian"))
    );
}
