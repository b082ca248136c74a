//! Amounts in Kubernetes' notation: `500m`, `1Gi`, `1e3`, `0.5`. Exact to a billionth, as Kubernetes' own.

use std::iter::Sum;
use std::ops::{Add, Sub};

/// A billionth: the finest step that is kept; finer ones round up, as in Kubernetes.
const NANO: i128 = 1_000_000_000;
/// Kubernetes' own largest amount, 2^63-1.
const MAX: i128 = i64::MAX as i128 * NANO;
/// More digits than any amount below [`MAX`] needs; refuses long inputs before they are computed with.
const TEXT_MAX: usize = 64;

/// An amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount {
    nano: i128,
}

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form.
    #[error("`{text}` is not a quantity such as 500m, 0.5, 2 or 1Gi{hint}")]
    Syntax {
        /// What was written, cut when long.
        text: String,
        /// What was probably meant.
        hint: &'static str,
    },
    /// Above 2^63-1.
    #[error("`{text}` is larger than a quantity may be (2^63-1)")]
    Range {
        /// What was written.
        text: String,
    },
}

const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
/// Suffix and power of ten.
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

/// Reads an amount.
pub fn parse(text: &str) -> Result<Amount, QuantityError> {
    let refused = |hint| QuantityError::Syntax {
        text: text.chars().take(TEXT_MAX).collect(),
        hint,
    };
    if text.is_empty() {
        return Err(refused(""));
    }
    if text.len() > TEXT_MAX {
        return Err(refused(""));
    }
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(refused(""));
    }
    let range = || QuantityError::Range {
        text: text.to_owned(),
    };
    // The digits as one integer, and how many of them stand behind the point.
    let mut digits: i128 = 0;
    let mut scale: i32 = 0;
    let mut lost = false;
    for digit in whole.bytes() {
        digits = digits
            .checked_mul(10)
            .and_then(|d| d.checked_add(i128::from(digit - b'0')))
            .ok_or_else(range)?;
        if digits > MAX {
            return Err(range());
        }
    }
    for digit in fraction.bytes() {
        // Behind 18 places even the largest suffix leaves less than a billionth.
        if scale >= 27 || digits > i128::MAX / 10_000 {
            lost |= digit != b'0';
            continue;
        }
        digits = digits * 10 + i128::from(digit - b'0');
        scale += 1;
    }
    let (factor, power): (i128, i32) =
        if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            (1 << shift, 0)
        } else if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            (1, *power)
        } else if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
            let power: i32 = exponent.parse().map_err(|_| refused(suffix_hint(suffix)))?;
            // Beyond that everything but 0 is out of range or below a billionth.
            (1, power.clamp(-60, 60))
        } else {
            return Err(refused(suffix_hint(suffix)));
        };
    let power = power - scale + 9;
    let mut nano = digits.checked_mul(factor).ok_or_else(range)?;
    if power >= 0 {
        for _ in 0..power {
            nano = nano
                .checked_mul(10)
                .filter(|nano| *nano <= MAX)
                .ok_or_else(range)?;
        }
    } else {
        for _ in 0..-power {
            lost |= nano % 10 != 0;
            nano /= 10;
        }
    }
    if lost {
        nano += 1;
    }
    if nano > MAX {
        return Err(range());
    }
    Ok(Amount {
        nano: if negative { -nano } else { nano },
    })
}

fn suffix_hint(suffix: &str) -> &'static str {
    match suffix.trim() {
        "g" | "gb" | "GB" | "Gb" | "gi" | "GiB" | "gib" => "; did you mean Gi or G?",
        "mb" | "MB" | "Mb" | "mi" | "MiB" | "mib" => "; did you mean Mi or M?",
        "K" | "kb" | "KB" | "Kb" | "ki" | "KiB" | "kib" => "; did you mean Ki or k?",
        "t" | "tb" | "TB" | "ti" | "TiB" => "; did you mean Ti or T?",
        "b" | "B" => "; bytes need no unit",
        "%" => "; a percentage is not possible here",
        _ => "",
    }
}

/// The amount of a schema's quantity.
pub fn of(quantity: &proto::v1::Quantity) -> Result<Amount, QuantityError> {
    parse(&quantity.text)
}

impl Amount {
    /// None.
    pub const ZERO: Amount = Amount { nano: 0 };

    /// From whole units: cores, bytes.
    pub const fn from_units(units: i64) -> Amount {
        Amount {
            nano: units as i128 * NANO,
        }
    }

    /// From thousandths: `500` is half a core.
    pub const fn from_millis(millis: i64) -> Amount {
        Amount {
            nano: millis as i128 * (NANO / 1000),
        }
    }

    /// Thousandths, rounded up.
    pub fn cpu_millis(self) -> i64 {
        ceil(self.nano, NANO / 1000)
    }

    /// Whole units, rounded up: bytes.
    pub fn bytes(self) -> i64 {
        ceil(self.nano, NANO)
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether it has no part of a unit: `1`, `1Gi`, not `500m`.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// In powers of ten: `500m`, `2`, `1500k`. Reads back as the same amount.
    pub fn decimal(self) -> String {
        if self.nano == 0 {
            return "0".to_owned();
        }
        let (mut number, mut power) = (self.nano, -9);
        while number % 1000 == 0 && power < 18 {
            number /= 1000;
            power += 3;
        }
        let suffix = DECIMAL
            .iter()
            .find(|(_, known)| *known == power)
            .map_or("", |(name, _)| name);
        format!("{number}{suffix}")
    }

    /// In powers of two where that is exact and short: `512Mi`, `1536Mi`; else as [`Amount::decimal`].
    pub fn binary(self) -> String {
        if !self.is_whole() || self.nano.abs() < 1024 * NANO {
            return self.decimal();
        }
        let units = self.nano / NANO;
        for (name, shift) in BINARY.iter().rev() {
            if units % (1 << shift) == 0 {
                return format!("{}{name}", units >> shift);
            }
        }
        units.to_string()
    }

    /// For the schema, in powers of ten.
    pub fn to_decimal(self) -> proto::v1::Quantity {
        proto::v1::Quantity { text: self.decimal() }
    }

    /// For the schema, in powers of two.
    pub fn to_binary(self) -> proto::v1::Quantity {
        proto::v1::Quantity { text: self.binary() }
    }
}

fn ceil(nano: i128, step: i128) -> i64 {
    let whole = nano.div_euclid(step) + i128::from(nano.rem_euclid(step) != 0);
    i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
}

/// Saturating at the largest amount: a sum of many must not wrap.
impl Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        Amount {
            nano: (self.nano + other.nano).clamp(-MAX, MAX),
        }
    }
}

/// Saturating, as the sum.
impl Sub for Amount {
    type Output = Amount;

    fn sub(self, other: Amount) -> Amount {
        Amount {
            nano: (self.nano - other.nano).clamp(-MAX, MAX),
        }
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(amounts: I) -> Amount {
        amounts.fold(Amount::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kubernetes_forms_are_read_exactly() {
        for (text, nano) in [
            ("1", NANO),
            ("0.5", NANO / 2),
            ("500m", NANO / 2),
            ("1e3", 1000 * NANO),
            ("1E3", 1000 * NANO),
            ("1.5e-3", 1_500_000),
            ("1Ki", 1024 * NANO),
            (".5", NANO / 2),
            ("1.", NANO),
            ("100n", 100),
            ("0.1n", 1),
            ("-2", -2 * NANO),
            ("1.5Gi", 3 * 512 * 1024 * 1024 * NANO),
            ("0e100", 0),
            ("2E", 2_000_000_000_000_000_000 * NANO),
        ] {
            assert_eq!(parse(text).map(|amount| amount.nano), Ok(nano), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "", "half", "1 Gi", "1GB", "1gi", "--1", "1.2.3", ".", "-", "1e", "1e1.5", "0x10", "1_000",
            "9E9E", "1e40", "100Ei",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(
            parse("128MB")
                .unwrap_err()
                .to_string()
                .ends_with("; did you mean Mi or M?")
        );
    }

    #[test]
    fn canonical_forms_are_short() {
        assert_eq!(parse("0.5").unwrap().decimal(), "500m");
        assert_eq!(parse("1073741824").unwrap().binary(), "1Gi");
        assert_eq!(parse("1536Mi").unwrap().binary(), "1536Mi");
        assert_eq!(parse("1500").unwrap().decimal(), "1500");
        assert_eq!(parse("2000").unwrap().decimal(), "2k");
        assert_eq!(parse("1.0005").unwrap().cpu_millis(), 1001);
        assert_eq!(parse("500m").unwrap().bytes(), 1);
    }

    proptest! {
        #[test]
        fn both_canonical_forms_read_back_equal(nano in -MAX..=MAX) {
            let amount = Amount { nano };
            prop_assert_eq!(parse(&amount.decimal()), Ok(amount));
            prop_assert_eq!(parse(&amount.binary()), Ok(amount));
        }

        #[test]
        fn no_text_panics(text in ".{0,70}") {
            prop_assert!(parse(&text).is_ok_and(|amount| amount.nano.abs() <= MAX) || parse(&text).is_err());
        }

        #[test]
        fn no_number_like_text_panics(text in "[-+]?[0-9]{0,40}\\.?[0-9]{0,40}([eE]-?[0-9]{1,9}|Ei|n|m|k)?") {
            prop_assert!(parse(&text).is_ok_and(|amount| amount.nano.abs() <= MAX) || parse(&text).is_err());
        }
    }
}
