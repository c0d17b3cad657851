//! Which protocol version two agents use (agrenting.md R131).

use muster_protocol::agent::PROTOCOL_VERSIONS;
use muster_protocol::error_code::{ErrorCode, Refusal};

/// The highest version that both speak, or the one that was asked for, if both speak it.
///
/// # Errors
/// `protocol_version_incompatible` with what each speaks.
pub(super) fn agreed(
    yours: &[String],
    theirs: &[String],
    asked: Option<&str>,
) -> Result<&'static str, Refusal> {
    let both = |version: &&&str| {
        let spoken = |versions: &[String]| versions.iter().any(|known| known == **version);
        spoken(yours) && spoken(theirs) && asked.is_none_or(|asked| asked == **version)
    };
    PROTOCOL_VERSIONS.iter().rev().find(both).copied().ok_or_else(|| {
        Refusal::new(ErrorCode::ProtocolVersionIncompatible).with("yours", yours).with("theirs", theirs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_that_both_speak() {
        let list =
            |versions: &[&str]| versions.iter().map(|version| (*version).to_owned()).collect::<Vec<_>>();
        let (old, usual, new) = (list(&["1.0.0"]), list(&["1.1.0", "1.0.0"]), list(&["1.1.0", "2.0.0"]));
        assert_eq!(agreed(&usual, &new, None), Ok("1.1.0"));
        assert_eq!(agreed(&new, &new, None), Ok("2.0.0"));
        assert_eq!(agreed(&new, &new, Some("1.1.0")), Ok("1.1.0"));
        assert_eq!(agreed(&usual, &old, None), Ok("1.0.0"));
        for (yours, theirs, asked) in
            [(&old, &new, None), (&usual, &new, Some("2.0.0")), (&usual, &usual, Some("3.0.0"))]
        {
            let refusal = agreed(yours, theirs, asked).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::ProtocolVersionIncompatible);
            assert_eq!(refusal.details.len(), 2);
        }
    }
}
