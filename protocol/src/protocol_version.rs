//! Versions of the agents' protocol: which one two agents speak, and how an old one goes away (agrenting.md R130, R131,
//! R133).
//!
//! A version is its number and nothing else: what it brings is asked by comparing (`>= Version::SIGNED`). Which versions
//! there are, and which of them are on their way out, stands in a [`Table`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error_code::{ErrorCode, Refusal};
use crate::time::Timestamp;

/// A version: major, minor, patch; ordered by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// Core messaging.
    pub const CORE: Self = Self::new(1, 0, 0);
    /// With delivery guarantees; what is current.
    pub const GUARANTEED: Self = Self::new(1, 1, 0);
    /// With signed messages; the latest.
    pub const SIGNED: Self = Self::new(2, 0, 0);

    /// Those that this server speaks, oldest first (R130).
    pub const SPOKEN: [Self; 3] = [Self::CORE, Self::GUARANTEED, Self::SIGNED];
    /// What an agent speaks when it does not say (R131).
    pub const DEFAULT: [Self; 2] = [Self::CORE, Self::GUARANTEED];

    /// Of three numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// The versions in a stored list; what is none is left out.
    pub fn list<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<Self> {
        texts.into_iter().filter_map(|text| text.parse().ok()).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is not a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is three numbers, such as 1.1.0")]
pub struct InvalidVersion;

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Takes only the one spelling that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let mut numbers = text.split('.').map(|part| part.parse::<u16>().map_err(|_| InvalidVersion));
        let mut next = || numbers.next().unwrap_or(Err(InvalidVersion));
        let version = Self::new(next()?, next()?, next()?);
        if version.to_string() == text { Ok(version) } else { Err(InvalidVersion) }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How long a deprecated version is still served, in milliseconds: 180 days (R133).
pub const SUNSET_MS: i64 = 180 * 86_400_000;
/// Versions one agent may declare.
pub const DECLARED_MAX: usize = 16;
/// Majors, counted from the newest, of which no version is ever blocked (R133).
const MAJORS_KEPT: usize = 2;

/// That a version is going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Deprecation {
    /// Since when it is not to be used for anything new.
    pub deprecated_at: Timestamp,
    /// When it ends.
    pub sunset_at: Timestamp,
}

impl Deprecation {
    /// The `Deprecation` header (RFC 9745 §2.1): `@` and seconds since 1970.
    #[must_use]
    pub fn deprecation_header(&self) -> String {
        format!("@{}", self.deprecated_at.unix_ms() / 1_000)
    }

    /// The `Sunset` header (RFC 8594 §3): an HTTP date.
    #[must_use]
    pub fn sunset_header(&self) -> String {
        self.sunset_at.http_date()
    }
}

/// Which versions there are, and which of them are going away: `protocol.deprecated`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    deprecated: BTreeMap<Version, Timestamp>,
}

/// The version two agents speak with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Which.
    pub version: Version,
    /// Whether it is going away.
    pub deprecation: Option<Deprecation>,
}

impl Table {
    /// With these versions deprecated since those times. A version that this server does not speak itself may stand here
    /// too: one from before its time, which is then known until its sunset.
    ///
    /// # Errors
    /// A version above the latest cannot be going away.
    pub fn new(deprecated: BTreeMap<Version, Timestamp>) -> Result<Self, String> {
        match deprecated.keys().find(|version| **version > Version::SIGNED) {
            Some(version) => Err(format!("there is no version {version}: {} is the latest", Version::SIGNED)),
            None => Ok(Self { deprecated }),
        }
    }

    /// Every version there is, those that are going away included.
    fn known(&self) -> BTreeSet<Version> {
        Version::SPOKEN.into_iter().chain(self.deprecated.keys().copied()).collect()
    }

    /// Whether a version is going away, or has.
    #[must_use]
    pub fn deprecation(&self, version: Version, now: Timestamp) -> Option<Deprecation> {
        let deprecated_at = *self.deprecated.get(&version)?;
        let sunset_at = deprecated_at.plus_ms(SUNSET_MS);
        (deprecated_at <= now).then_some(Deprecation { deprecated_at, sunset_at })
    }

    /// Whether nobody may speak a version any more: its sunset is over, and it is none of the newest two majors.
    #[must_use]
    pub fn is_blocked(&self, version: Version, now: Timestamp) -> bool {
        let majors: BTreeSet<u16> = self.known().iter().map(|version| version.major).collect();
        let is_kept = majors.iter().rev().take(MAJORS_KEPT).any(|major| *major == version.major);
        !is_kept && self.deprecation(version, now).is_some_and(|deprecation| deprecation.sunset_at <= now)
    }

    /// Checks the versions that an agent declares.
    ///
    /// # Errors
    /// One that does not exist; `protocol_version_blocked` for one that is gone.
    pub fn check_declared(&self, versions: &[Version], now: Timestamp) -> Result<(), Refusal> {
        let known = self.known();
        if !versions.iter().all(|version| known.contains(version)) {
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            let message = format!("one or more of {}", known.join(", "));
            return Err(Refusal::field(ErrorCode::InvalidPayload, "protocol_versions", message));
        }
        match versions.iter().find(|version| self.is_blocked(**version, now)) {
            Some(version) => Err(self.blocked(*version, now)),
            None => Ok(()),
        }
    }

    fn blocked(&self, version: Version, now: Timestamp) -> Refusal {
        let refusal = Refusal::new(ErrorCode::ProtocolVersionBlocked).with("version", &version);
        match self.deprecation(version, now) {
            Some(deprecation) => refusal.with("sunset_at", &deprecation.sunset_at),
            None => refusal,
        }
    }
}

/// Reads the versions an agent declares, sorted, each once (R131). Whether they exist is for [`Table::check_declared`].
///
/// # Errors
/// None, too many, one that is no version, or one above the latest.
pub fn read_declared(texts: &[String]) -> Result<Vec<Version>, Refusal> {
    let refuse = |message: String| Refusal::field(ErrorCode::InvalidPayload, "protocol_versions", message);
    if texts.is_empty() || texts.len() > DECLARED_MAX {
        return Err(refuse(format!("1 to {DECLARED_MAX} versions")));
    }
    let read: Result<BTreeSet<Version>, InvalidVersion> = texts.iter().map(|text| text.parse()).collect();
    let versions = read.map_err(|error| refuse(error.to_string()))?;
    if versions.last() > Some(&Version::SIGNED) {
        return Err(refuse(format!("{} is the latest", Version::SIGNED)));
    }
    Ok(versions.into_iter().collect())
}

/// The version in which a sender speaks to a recipient (R131): the highest that both declare and that is not blocked, or
/// the one requested, if it is one of those.
///
/// # Errors
/// `protocol_version_incompatible` with what each declares (`yours`, `theirs`): there is none, or the requested one is
/// not common; `protocol_version_blocked`: the requested one is gone, or all that are common are.
pub fn negotiate(
    sender: &[Version],
    recipient: &[Version],
    requested: Option<Version>,
    now: Timestamp,
    table: &Table,
) -> Result<Used, Refusal> {
    let incompatible = || {
        Refusal::new(ErrorCode::ProtocolVersionIncompatible).with("yours", sender).with("theirs", recipient)
    };
    let common = || sender.iter().copied().filter(|version| recipient.contains(version));
    let version = match requested {
        // What is gone is gone, whoever declares it: that is the more useful answer.
        Some(requested) if table.is_blocked(requested, now) => return Err(table.blocked(requested, now)),
        Some(requested) => common().find(|version| *version == requested).ok_or_else(incompatible)?,
        None => match common().filter(|version| !table.is_blocked(*version, now)).max() {
            Some(version) => version,
            None => {
                let gone = common().max();
                return Err(gone.map_or_else(incompatible, |version| table.blocked(version, now)));
            }
        },
    };
    Ok(Used { version, deprecation: table.deprecation(version, now) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version::new(0, 9, 0);
    const OLDER: Version = Version::new(0, 8, 1);

    fn day(n: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000).plus_ms(n * 86_400_000)
    }

    fn table(deprecated: &[(Version, i64)]) -> Table {
        Table::new(deprecated.iter().map(|(version, since)| (*version, day(*since))).collect()).unwrap()
    }

    /// R130: the versions there are.
    #[test]
    fn a_version_has_one_spelling_and_orders_by_number() {
        for text in ["1.0.0", "1.1.0", "2.0.0", "0.10.3"] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
        for bad in
            ["", "1", "1.0", "1.0.0.0", "01.0.0", "+1.0.0", "1.0.0 ", "v1.0.0", "1.0.x", "70000.0.0", "1..0"]
        {
            assert_eq!(bad.parse::<Version>(), Err(InvalidVersion), "{bad}");
        }
        assert!(Version::new(1, 10, 0) > Version::new(1, 9, 9));
        assert_eq!(Version::SPOKEN.map(|version| version.to_string()), ["1.0.0", "1.1.0", "2.0.0"]);
        assert_eq!(Version::list(&["2.0.0".to_owned(), "x".to_owned()]), [Version::SIGNED]);
    }

    /// R131: what is common, what is requested, what is left.
    #[test]
    fn the_highest_common_version_is_used_unless_another_common_one_is_requested() {
        use Version as V;
        let (c, g, s) = (V::CORE, V::GUARANTEED, V::SIGNED);
        type Case<'a> = (&'a [V], &'a [V], Option<V>, Option<V>);
        let cases: [Case<'_>; 10] = [
            (&[c, g, s], &[c, g, s], None, Some(s)),
            (&[c, g, s], &[c, g], None, Some(g)),
            (&[g, c], &[c, g], None, Some(g)),
            (&[c], &[c, g], None, Some(c)),
            (&[s], &[c, g], None, None),
            (&[], &[c], None, None),
            (&[c, g, s], &[c, g], Some(c), Some(c)),
            (&[c, g, s], &[c, g], Some(s), None),
            (&[c, g], &[c, g, s], Some(s), None),
            (&[c, g], &[c, g], Some(OLD), None),
        ];
        for (sender, recipient, requested, used) in cases {
            let got = negotiate(sender, recipient, requested, day(0), &Table::default());
            match used {
                Some(version) => assert_eq!(got, Ok(Used { version, deprecation: None })),
                None => {
                    let refusal = got.unwrap_err();
                    assert_eq!(refusal.code, ErrorCode::ProtocolVersionIncompatible);
                    let (yours, theirs) = (serde_json::json!(sender), serde_json::json!(recipient));
                    let said: serde_json::Value = refusal.response().parse().unwrap();
                    assert_eq!((&said["yours"], &said["theirs"]), (&yours, &theirs));
                }
            }
        }
    }

    /// R133: within, and after.
    #[test]
    fn a_deprecated_version_is_served_for_180_days_and_then_blocked() {
        let table = table(&[(OLD, 10)]);
        let both = [OLD];
        let at = |now| negotiate(&both, &both, None, now, &table);
        assert_eq!(at(day(9)).unwrap().deprecation, None, "announced, but not yet");
        let going = at(day(10)).unwrap().deprecation.unwrap();
        assert_eq!((going.deprecated_at, going.sunset_at), (day(10), day(190)));
        assert_eq!(going.deprecation_header(), format!("@{}", day(10).unix_ms() / 1_000));
        assert_eq!(going.sunset_header(), "Wed, 22 May 2024 22:13:20 GMT");
        assert!(at(day(190).plus_ms(-1)).is_ok());
        let gone = at(day(190)).unwrap_err();
        assert_eq!((gone.code, gone.code.http_status()), (ErrorCode::ProtocolVersionBlocked, 426));
        let requested = negotiate(&[Version::CORE], &both, Some(OLD), day(190), &table).unwrap_err();
        assert_eq!(requested.code, ErrorCode::ProtocolVersionBlocked);
        // What is left in common goes on.
        let more = [OLD, Version::CORE];
        assert_eq!(negotiate(&more, &more, None, day(190), &table).unwrap().version, Version::CORE);
        assert_eq!(negotiate(&more, &more, Some(OLD), day(189), &table).unwrap().version, OLD);
    }

    /// R133: a major is counted by what there is, so a third one pushes the oldest out.
    #[test]
    fn the_newest_two_majors_are_never_blocked() {
        let table = table(&[(Version::CORE, 0), (Version::GUARANTEED, 0), (Version::SIGNED, 0), (OLD, 0)]);
        let late = day(100_000);
        for version in Version::SPOKEN {
            let both = [version];
            let used = negotiate(&both, &both, Some(version), late, &table).unwrap();
            assert!(used.deprecation.is_some_and(|deprecation| deprecation.sunset_at < late));
        }
        assert!(table.is_blocked(OLD, late));
    }

    /// R131: what may be declared.
    #[test]
    fn what_an_agent_declares_is_read_and_must_exist() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let read = |list: &[&str]| read_declared(&texts(list));
        assert_eq!(read(&["2.0.0", "1.0.0", "2.0.0"]), Ok(vec![Version::CORE, Version::SIGNED]));
        for bad in [&[][..], &["9.0.0"], &["1.0"], &["1.0.0"; DECLARED_MAX + 1]] {
            let refusal = read(bad).unwrap_err();
            assert_eq!(
                (refusal.code, refusal.field.as_deref()),
                (ErrorCode::InvalidPayload, Some("protocol_versions"))
            );
        }
        let table = table(&[(OLD, 10)]);
        let declared =
            |versions: &[Version], now| table.check_declared(versions, now).map_err(|refusal| refusal.code);
        assert_eq!(declared(&[Version::CORE, OLD], day(100)), Ok(()));
        assert_eq!(declared(&[Version::CORE, OLD], day(190)), Err(ErrorCode::ProtocolVersionBlocked));
        assert_eq!(declared(&[OLDER], day(0)), Err(ErrorCode::InvalidPayload));
        assert_eq!(declared(&[Version::new(1, 0, 1)], day(0)), Err(ErrorCode::InvalidPayload));
        assert!(Table::new(BTreeMap::from([(Version::new(2, 0, 1), day(0))])).is_err());
    }
}
