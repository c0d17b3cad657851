//! Points in time, as plain data. Reading a clock is the business of `node/`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds since the Unix epoch, UTC. Written as ISO-8601 with milliseconds (agrenting.md R38).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// Latest time that has an ISO-8601 form of four year digits at every offset, which is the latest that can be read again:
/// 9999-12-30T22:00:00.999Z.
const UNIX_MS_MAX: i64 = 253_402_207_200_999;

impl Timestamp {
    /// From milliseconds since the epoch; clamped to the years 1970 to 9999.
    #[must_use]
    pub fn from_unix_ms(ms: i64) -> Self {
        Self(ms.clamp(0, UNIX_MS_MAX))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// The same, unsigned.
    #[must_use]
    pub fn unix_ms_unsigned(self) -> u64 {
        u64::try_from(self.0).unwrap_or_default()
    }

    /// This time plus that many milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: i64) -> Self {
        Self::from_unix_ms(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; negative when it is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> i64 {
        self.0 - earlier.0
    }

    /// Reads an ISO-8601 time with an offset.
    ///
    /// # Errors
    /// The text is no such time.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let parsed: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp)?;
        Ok(Self::from_unix_ms(parsed.as_millisecond()))
    }

    /// As an HTTP date (RFC 9110 §5.6.7): `Sat, 21 Nov 2026 02:38:00 GMT`.
    #[must_use]
    pub fn http_date(self) -> String {
        // The years of a timestamp all have such a form.
        jiff::Timestamp::from_millisecond(self.0)
            .and_then(|time| jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time))
            .unwrap_or_default()
    }

    /// Writes `2026-11-21T02:38:00.123Z` into `out`.
    pub fn write_iso(self, out: &mut Vec<u8>) {
        let days = self.0.div_euclid(86_400_000);
        let in_day = self.0.rem_euclid(86_400_000);
        let (year, month, day) = civil_from_days(days);
        push_digits(out, year, 4);
        out.push(b'-');
        push_digits(out, month, 2);
        out.push(b'-');
        push_digits(out, day, 2);
        out.push(b'T');
        push_digits(out, in_day / 3_600_000, 2);
        out.push(b':');
        push_digits(out, in_day / 60_000 % 60, 2);
        out.push(b':');
        push_digits(out, in_day / 1_000 % 60, 2);
        out.push(b'.');
        push_digits(out, in_day % 1_000, 3);
        out.push(b'Z');
    }
}

fn push_digits(out: &mut Vec<u8>, value: i64, width: usize) {
    let mut digits = [b'0'; 4];
    let mut rest = value;
    for slot in digits[..width].iter_mut().rev() {
        *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    out.extend_from_slice(&digits[..width]);
}

/// Days since the epoch to (year, month, day) in the proleptic Gregorian calendar, by eras of 400 years that begin on
/// 1 March, so that the leap day is the last day of its year. One chunk carries one timestamp: this is on the hot path.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    const DAYS_TO_0000_03_01: i64 = 719_468;
    let shifted = days + DAYS_TO_0000_03_01;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The text is not an ISO-8601 time with an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ISO-8601 time with an offset")]
pub struct InvalidTimestamp;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Vec::with_capacity(24);
        self.write_iso(&mut out);
        f.write_str(std::str::from_utf8(&out).unwrap_or_default())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn iso_form_has_milliseconds_and_z() {
        assert_eq!(Timestamp::from_unix_ms(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::from_unix_ms(951_827_696_789).to_string(), "2000-02-29T12:34:56.789Z");
        assert_eq!(Timestamp::from_unix_ms(i64::MAX).to_string(), "9999-12-30T22:00:00.999Z");
        // What is written can be read again, to the very end.
        for ms in [0, UNIX_MS_MAX, i64::MAX] {
            let time = Timestamp::from_unix_ms(ms);
            assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
        }
    }

    proptest! {
        #[test]
        fn own_formatting_agrees_with_the_library(ms in 0..=UNIX_MS_MAX) {
            let ours = Timestamp::from_unix_ms(ms);
            let theirs = jiff::Timestamp::from_millisecond(ms).unwrap();
            prop_assert_eq!(ours.to_string(), format!("{theirs:.3}"));
            prop_assert_eq!(Timestamp::parse(&ours.to_string()), Ok(ours));
        }
    }
}
