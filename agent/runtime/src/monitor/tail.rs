//! The last words of a stream: a bounded tail of its bytes, and the last line in it.

/// How much of standard error is kept.
pub const STDERR_BYTES_MAX: usize = 4 << 10;
/// How much of standard output is kept: enough for one last line.
pub const STDOUT_BYTES_MAX: usize = 1 << 10;
/// Longest last line, in bytes; it goes into the cluster's replicated status.
pub const LINE_BYTES_MAX: usize = 512;

/// Keeps the last bytes written to it.
#[derive(Debug)]
pub struct Tail {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Tail {
    /// Keeps at most so many bytes; takes no memory before the first.
    pub fn new(bytes_max: usize) -> Self {
        Tail {
            bytes: Vec::new(),
            bytes_max,
        }
    }

    /// Adds bytes and forgets as many of the oldest as are too many.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        let surplus = (self.bytes.len() + bytes.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..surplus);
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= self.bytes_max, "a tail is bounded");
    }

    /// All that is kept, as text; what is not UTF-8 becomes replacement characters.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The last line that is not blank, cut to `LINE_BYTES_MAX` at a character's border; none when all is blank.
    pub fn last_line(&self) -> Option<String> {
        let line = self
            .bytes
            .rsplit(|byte| matches!(byte, b'\n' | b'\r'))
            .find(|line| !line.trim_ascii().is_empty())?;
        let mut text = String::from_utf8_lossy(line.trim_ascii()).into_owned();
        let mut end = LINE_BYTES_MAX.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_line_skips_blank_ones_and_needs_no_line_end() {
        let mut tail = Tail::new(100);
        assert_eq!(tail.last_line(), None);
        tail.push(b"first\nsecond\r\n\n  \n");
        assert_eq!(tail.last_line().as_deref(), Some("second"));
        tail.push(b"third");
        assert_eq!(tail.last_line().as_deref(), Some("third"));
    }

    #[test]
    fn a_long_line_is_cut_at_a_character() {
        let mut tail = Tail::new(STDERR_BYTES_MAX);
        tail.push("a".as_bytes());
        tail.push("\u{e4}".repeat(1000).as_bytes());
        let line = tail.last_line().unwrap();
        assert!(line.len() <= LINE_BYTES_MAX && line.len() >= LINE_BYTES_MAX - 1);
    }

    proptest! {
        #[test]
        fn a_tail_is_the_end_of_all_that_was_written(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut tail = Tail::new(32);
            let mut all = Vec::new();
            for part in parts {
                tail.push(&part);
                all.extend(part);
            }
            prop_assert_eq!(&tail.bytes, &all[all.len().saturating_sub(32)..]);
        }
    }
}
