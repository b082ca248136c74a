//! RFC 3339 times as Kubernetes writes them, without a clock or a time zone.

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar. Years start in March, so that the leap day is last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day, the reverse of [`days`].
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Seconds since 1970 and nanoseconds of `2026-01-31T10:00:00.5Z` or with an offset `+02:00`.
pub(crate) fn parse(text: &str) -> Option<(i64, i32)> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let part = text.get(from..to)?;
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            part.parse().ok()
        } else {
            None
        }
    };
    let bytes = text.as_bytes();
    if bytes.len() < 20 || bytes.len() > 40 {
        return None;
    }
    let signs = bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't' | b' ')
        && bytes[13] == b':'
        && bytes[16] == b':';
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let valid = signs
        && date(days(year, month, day)) == (year, month, day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid || year == 0 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        if end == 0 || end > 9 {
            return None;
        }
        nanos = fraction[..end].parse::<i32>().ok()? * 10_i32.pow(9 - u32::try_from(end).ok()?);
        rest = &fraction[end..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = rest.get(1..)?.split_once(':')?;
            let two = |text: &str| {
                (text.len() == 2)
                    .then(|| text.parse::<u8>().ok())
                    .flatten()
                    .map(i64::from)
            };
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 3600 + minutes * 60)
        }
    };
    Some((
        days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset,
        nanos,
    ))
}

/// As Kubernetes writes it: `2026-01-31T10:00:00Z`, with a fraction only where there is one. Years outside of 1 to 9999
/// cannot be written and become the nearest that can.
pub(crate) fn format(seconds: i64, nanos: i32) -> String {
    let seconds = seconds.clamp(days(1, 1, 1) * 86_400, days(10_000, 1, 1) * 86_400 - 1);
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = match nanos {
        1..=999_999_999 => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
        _ => String::new(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times_are_read() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(parse("2000-02-29T23:59:59Z"), Some((951_868_799, 0)));
        assert_eq!(
            parse("2026-01-31T12:00:00.25+02:00"),
            Some((1_769_853_600, 250_000_000))
        );
        for text in [
            "",
            "2026-02-30T00:00:00Z",
            "2026-01-31",
            "2026-01-31T10:00:00",
            "2026-13-01T00:00:00Z",
            "2026-01-31T10:00:00.Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in -62_135_596_800_i64..253_402_300_800, nanos in 0..1_000_000_000) {
            prop_assert_eq!(parse(&format(seconds, nanos)), Some((seconds, nanos)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,45}") {
            prop_assert!(parse(&text).is_none_or(|(_, nanos)| (0..1_000_000_000).contains(&nanos)));
        }
    }
}
