//! Amounts of money: integer micro-units, never floating point (agrenting.md R82, R142).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A non-negative amount in millionths of the currency unit. Read from a decimal string or a JSON number with at most
/// six fraction digits; always written as a decimal string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(i64);

const MICROS_PER_UNIT: i64 = 1_000_000;
const FRACTION_DIGITS_MAX: usize = 6;

/// The text is not an amount: negative, an exponent, more than six fraction digits, or too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an amount is a decimal number from 0 with at most six fraction digits")]
pub struct InvalidAmount;

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From micro-units; `None` when negative.
    #[must_use]
    pub fn from_micros(micros: i64) -> Option<Self> {
        (micros >= 0).then_some(Self(micros))
    }

    /// Micro-units.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The mean of two, an odd sum rounded down (R87).
    #[must_use]
    pub const fn mean(self, other: Self) -> Self {
        Self(self.0.midpoint(other.0))
    }

    /// Twice this; the largest amount there is if that is more.
    #[must_use]
    pub const fn doubled(self) -> Self {
        Self(self.0.saturating_mul(2))
    }

    /// Reads `12`, `12.5`, `0.000001`.
    ///
    /// # Errors
    /// [`InvalidAmount`] for everything else, exponents and signs included.
    pub fn parse(text: &str) -> Result<Self, InvalidAmount> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(whole) || !all_digits(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
            return Err(InvalidAmount);
        }
        let whole: i64 = whole.parse().map_err(|_| InvalidAmount)?;
        let padded = format!("{fraction:0<FRACTION_DIGITS_MAX$}");
        let fraction: i64 = padded.parse().map_err(|_| InvalidAmount)?;
        whole
            .checked_mul(MICROS_PER_UNIT)
            .and_then(|micros| micros.checked_add(fraction))
            .map(Self)
            .ok_or(InvalidAmount)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / MICROS_PER_UNIT, self.0 % MICROS_PER_UNIT);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The raw text, so that a number never passes through a float.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        Self::parse(inner).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_and_strings_exactly() {
        for (text, micros) in [
            ("0", 0),
            ("12", 12_000_000),
            ("12.5", 12_500_000),
            ("0.000001", 1),
            ("9223372036854.775807", i64::MAX),
        ] {
            assert_eq!(Amount::parse(text).map(Amount::micros), Ok(micros), "{text}");
            assert_eq!(serde_json::from_str::<Amount>(text).unwrap().micros(), micros);
            assert_eq!(serde_json::from_str::<Amount>(&format!("\"{text}\"")).unwrap().to_string(), text);
        }
    }

    #[test]
    fn means_are_rounded_down_and_never_overflow() {
        for (a, b, mean) in
            [(80, 100, 90), (1, 2, 1), (0, 1, 0), (i64::MAX, i64::MAX, i64::MAX), (i64::MAX, 0, i64::MAX / 2)]
        {
            assert_eq!(Amount(a).mean(Amount(b)), Amount(mean));
            assert_eq!(Amount(b).mean(Amount(a)), Amount(mean));
        }
        assert_eq!((Amount(21).doubled(), Amount(i64::MAX).doubled()), (Amount(42), Amount(i64::MAX)));
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in [
            "",
            "-1",
            "1e3",
            "1.0000001",
            "NaN",
            "1.",
            ".5",
            "9223372036854.775808",
            "1 ",
            "+1",
            "0x1",
            "1,5",
        ] {
            assert_eq!(Amount::parse(text), Err(InvalidAmount), "{text}");
            assert!(serde_json::from_str::<Amount>(&format!("\"{text}\"")).is_err(), "{text}");
        }
        for json in ["-1", "1e3", "true", "null", "[1]", "{}"] {
            assert!(serde_json::from_str::<Amount>(json).is_err(), "{json}");
        }
    }
}
