//! Times as people read them: `5s`, `3m`, `2h`, `4d`.

use pbjson_types::Timestamp;

/// Seconds since 1970 now.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// How long ago `then` was, in Kubernetes' short form; `-` without a time.
pub(crate) fn since(then: Option<&Timestamp>) -> String {
    then.map_or_else(|| "-".to_owned(), |then| duration(now() - then.seconds))
}

/// How far away `then` is; empty when it is past.
pub(crate) fn until(then: Option<&Timestamp>) -> String {
    then.map(|then| then.seconds - now())
        .filter(|seconds| *seconds > 0)
        .map_or_else(String::new, duration)
}

/// A number of seconds in one or two units, as `kubectl get` shows them.
pub(crate) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large: i64, unit: char, rest: i64, small: char| {
        if rest == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{rest}{small}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        _ => pair(days / 365, 'y', days % 365, 'd'),
    }
}

/// A time as RFC 3339 in UTC, to the second.
pub(crate) fn stamp(time: &Timestamp) -> String {
    jiff::Timestamp::from_second(time.seconds).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

/// Parses `90`, `90s`, `5m`, `1h30m` or `2d` into seconds.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let mut total = 0u64;
    let mut digits = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let unit = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(format!("`{text}` is not a duration such as 30s, 5m or 1h30m")),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("`{text}`: a number is missing before `{letter}`"))?;
        total = total.saturating_add(number.saturating_mul(unit));
        digits.clear();
    }
    if !digits.is_empty() {
        let seconds: u64 = digits.parse().map_err(|_| format!("`{text}` is too long"))?;
        total = total.saturating_add(seconds);
    }
    if text.is_empty() {
        Err("a duration such as 30s is missing".to_owned())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (3600, "60m"),
            (10_860, "3h1m"),
            (86_400 * 3, "3d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn durations_parse() {
        assert_eq!(parse("90"), Ok(90));
        assert_eq!(parse("1h30m"), Ok(5400));
        assert!(parse("").is_err() && parse("x").is_err() && parse("m").is_err());
    }
}
