//! What a single value may stand for.

/// What an unquoted text is to a YAML reader.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Plain {
    Null,
    Boolean,
    /// `yes`, `no`, `on`, `off`, `y`, `n`: a boolean to readers of YAML 1.1, which Kubernetes' are, a text to those of 1.2.
    OldBoolean,
    Number,
    Text,
}

/// How YAML readers take an unquoted text.
pub(super) fn plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        _ => {}
    }
    match boolean(text) {
        Some(Boolean::New(_)) => return Plain::Boolean,
        Some(Boolean::Old(_)) => return Plain::OldBoolean,
        None => {}
    }
    // An integer of 64 bits in any form; what is larger is a number in decimal only.
    let fits = |number: i128| i64::try_from(number).is_ok() || u64::try_from(number).is_ok();
    if integer(text).is_some_and(fits) || float(text) {
        Plain::Number
    } else {
        Plain::Text
    }
}

/// A boolean and which version of YAML says so.
pub(super) enum Boolean {
    New(bool),
    Old(bool),
}

pub(super) fn boolean(text: &str) -> Option<Boolean> {
    Some(match text {
        "true" | "True" | "TRUE" => Boolean::New(true),
        "false" | "False" | "FALSE" => Boolean::New(false),
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Boolean::Old(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Boolean::Old(false),
        _ => return None,
    })
}

/// An integer in any form that Kubernetes' reader takes: decimal, `0x1f`, `0o17`, `017`, `0b1`, `1_000`, `1e3`, `2.0`.
/// `None`: not an integer, or beyond 128 bits.
pub(super) fn integer(text: &str) -> Option<i128> {
    // Longer than any integer that fits anywhere.
    if text.len() > 64 {
        return None;
    }
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let digits = digits.replace('_', "");
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        // YAML 1.1's octal, as in `defaultMode: 0644`.
        [b'0', _, ..] if digits.bytes().all(|byte| byte.is_ascii_digit()) => (8, &digits[1..]),
        _ => (10, digits.as_str()),
    };
    // from_str_radix takes signs of its own.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = match i128::from_str_radix(digits, radix) {
        Ok(number) => number,
        Err(_) if radix == 10 => integral_float(digits)?,
        Err(_) => return None,
    };
    Some(if negative { -number } else { number })
}

/// `2.0`, `1e3`: exact, without going through a float.
fn integral_float(text: &str) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let power = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let mut number: i128 = all.parse().ok()?;
    // 128 bits hold less than 39 digits: more steps than that end in zero or out of range.
    for _ in 0..power.unsigned_abs().min(64) {
        if power > 0 {
            number = number.checked_mul(10)?;
        } else if number % 10 == 0 {
            number /= 10;
        } else {
            return None;
        }
    }
    Some(number)
}

/// Whether a number is written as a person writes one in decimal, so that every reader makes the same text of it: `8080`,
/// not `010`, `1.0` or `1e3`.
pub(super) fn is_canonical(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    text == "0" || !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is an integer only because a leading 0 means octal: `010`, which people may mean as ten.
pub(super) fn is_old_octal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

/// Whether a reader takes it for a number with a fraction.
fn float(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let joined;
    let digits = match digits.as_bytes().first() {
        Some(byte) if byte.is_ascii_digit() && digits.contains('_') => {
            joined = digits.replace('_', "");
            joined.as_str()
        }
        _ => digits,
    };
    // Beyond the range of a float it stays a text: a commit's `123e4567`.
    let finite = digits.parse::<f64>().is_ok_and(f64::is_finite);
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa = (number(whole) || whole.is_empty()) && (number(fraction) || fraction.is_empty());
    let digits = !(whole.is_empty() && fraction.is_empty());
    let exponent =
        exponent.is_none_or(|exponent| number(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)));
    finite && mantissa && digits && exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_kubernetes_reads_them() {
        for (text, number) in [
            ("420", 420),
            ("0644", 420),
            ("0o644", 420),
            ("0x1A4", 420),
            ("-1", -1),
            ("1_000", 1000),
            ("1e3", 1000),
            ("2.0", 2),
            ("0", 0),
            ("00", 0),
            ("0e9999", 0),
        ] {
            assert_eq!(integer(text), Some(number), "{text}");
        }
        for text in [
            "", "-", "0x", "0899", "1.5", "1e-1", "half", "--1", "0o-7", "1e999", "0x-1",
        ] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn unquoted_texts_are_told_from_numbers() {
        for text in [
            "1.10",
            "1e3",
            ".5",
            "-.inf",
            "0899",
            "12",
            "1_000.5",
            "1.",
            "0x1_f",
            "99999999999999999999",
        ] {
            assert_eq!(plain(text), Plain::Number, "{text}");
        }
        for text in [
            "1.2.3",
            "v1",
            "2024-01-01",
            "0xzz",
            "e3",
            ".",
            "1-2",
            "12m",
            "123e4567",
            "_1",
            "0x10000000000000000",
            "12:30",
            "inf",
            "nan",
            "0x1p4",
        ] {
            assert_eq!(plain(text), Plain::Text, "{text}");
        }
        for text in ["on", "No", "y", "N"] {
            assert_eq!(plain(text), Plain::OldBoolean, "{text}");
        }
        for (text, canonical) in [
            ("8080", true),
            ("0", true),
            ("-1", true),
            ("010", false),
            ("1.0", false),
            ("+1", false),
        ] {
            assert_eq!(is_canonical(text), canonical, "{text}");
        }
    }
}
