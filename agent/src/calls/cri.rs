//! Lines of a log in the CRI format, `TIME stdout|stderr F|P TEXT`. Pure.

use jiff::Timestamp;

/// Longest line that is looked at: a piece of 16 KiB and its prefix, with room for another writer's habits.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;

/// One line of the file: a line of the container, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// As written in the file.
    pub(super) time: &'a str,
    /// The last piece: the container's line ends here.
    pub(super) whole: bool,
    pub(super) text: &'a [u8],
}

/// Takes a line of the file apart; none when it is not of the format, which a crash of the machine may leave.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    if !matches!(stream, b"stdout" | b"stderr") || time.len() < 20 {
        return None;
    }
    // Further tags may follow the first, divided by colons.
    let whole = match tag.first()? {
        b'F' => true,
        b'P' => false,
        _ => return None,
    };
    Some(Line { time, whole, text })
}

/// Which lines are wanted, and how they are shown. Counts lines of the container, not of the file.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    since: Option<Timestamp>,
    /// Lines that are passed over before the first one shown.
    skip: u64,
    timestamps: bool,
    /// In the middle of a container's line.
    inside: bool,
    /// Whether that line is shown.
    shown: bool,
}

impl Selection {
    pub(super) fn new(since: Option<Timestamp>, skip: u64, timestamps: bool) -> Self {
        Self {
            since,
            skip,
            timestamps,
            inside: false,
            shown: false,
        }
    }

    /// Appends what is to be shown of one line of the file.
    pub(super) fn take(&mut self, line: &[u8], into: &mut Vec<u8>) {
        let Some(line) = parse(line) else {
            return;
        };
        if !self.inside {
            self.shown = self.is_late_enough(line.time);
            if self.shown && self.skip > 0 {
                self.skip -= 1;
                self.shown = false;
            }
            if self.shown && self.timestamps {
                into.extend_from_slice(line.time.as_bytes());
                into.push(b' ');
            }
        }
        self.inside = !line.whole;
        if self.shown {
            into.extend_from_slice(line.text);
            if line.whole {
                into.push(b'\n');
            }
        }
    }

    fn is_late_enough(&self, time: &str) -> bool {
        self.since
            .is_none_or(|since| time.parse::<Timestamp>().is_ok_and(|time| time >= since))
    }
}

/// Counts the container's lines, those alone that are late enough.
#[derive(Clone, Debug)]
pub(super) struct Count {
    selection: Selection,
    pub(super) lines: u64,
}

impl Count {
    pub(super) fn new(since: Option<Timestamp>) -> Self {
        Self {
            selection: Selection::new(since, 0, false),
            lines: 0,
        }
    }

    pub(super) fn take(&mut self, line: &[u8]) {
        let Some(line) = parse(line) else {
            return;
        };
        if !self.selection.inside && self.selection.is_late_enough(line.time) {
            self.lines += 1;
        }
        self.selection.inside = !line.whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[&str] = &[
        "2026-11-24T10:00:00.000000001Z stdout F one",
        "2026-11-24T10:00:01.000000000Z stderr F ",
        "2026-11-24T10:00:02.000000000Z stdout P two, ",
        "2026-11-24T10:00:02.000000000Z stdout F in pieces",
        "torn",
        "2026-11-24T10:00:03.000000000Z stdout F three of  it",
    ];

    fn shown(selection: Selection) -> String {
        let mut selection = selection;
        let mut into = Vec::new();
        LOG.iter()
            .for_each(|line| selection.take(line.as_bytes(), &mut into));
        String::from_utf8(into).unwrap()
    }

    fn count(since: Option<Timestamp>) -> u64 {
        let mut count = Count::new(since);
        LOG.iter().for_each(|line| count.take(line.as_bytes()));
        count.lines
    }

    #[test]
    fn pieces_are_joined_and_torn_lines_left_out() {
        assert_eq!(
            shown(Selection::new(None, 0, false)),
            "one\n\ntwo, in pieces\nthree of  it\n"
        );
    }

    #[test]
    fn the_last_lines_are_counted_as_the_container_wrote_them() {
        assert_eq!(count(None), 4);
        assert_eq!(
            shown(Selection::new(None, 4 - 2, false)),
            "two, in pieces\nthree of  it\n"
        );
    }

    #[test]
    fn lines_before_the_time_are_left_out() {
        let since = Some("2026-11-24T10:00:02Z".parse().unwrap());
        assert_eq!(count(since), 2);
        assert_eq!(shown(Selection::new(since, 1, false)), "three of  it\n");
    }

    #[test]
    fn times_stand_before_whole_lines() {
        let text = shown(Selection::new(None, 2, true));
        assert_eq!(
            text,
            "2026-11-24T10:00:02.000000000Z two, in pieces\n2026-11-24T10:00:03.000000000Z three of  it\n"
        );
    }

    #[test]
    fn what_is_not_of_the_format_is_no_line() {
        for bad in [
            "",
            "x",
            "2026-11-24T10:00:00Z stdout F",
            "2026-11-24T10:00:00Z disk F x",
            "now stdout F x",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
