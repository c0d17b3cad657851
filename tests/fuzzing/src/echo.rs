//! A refusal names the field and what it must be, and never repeats what was sent: that may be a secret in the wrong
//! place.

use muster_protocol::error_code::{ErrorCode, Refusal};

/// A word that no schema and no message has.
const MARKER: &str = "zqxjvkw";
/// The same as a number.
const NUMBER: &str = "918273645546372819";
/// Strings and numbers of one text that are tried.
const TRIED_MAX: usize = 12;

/// Puts the marker in the place of each string and number of a JSON text, and looks for it in what is refused.
pub fn never_echoes(text: &str, read: impl Fn(&str) -> Option<Refusal>) {
    for (from, to) in tokens(text).into_iter().take(TRIED_MAX) {
        let new = if text[from..].starts_with('"') { format!("\"{MARKER}\"") } else { NUMBER.to_owned() };
        let marked = format!("{}{new}{}", &text[..from], &text[to..]);
        if let Some(refusal) = read(&marked) {
            check(&refusal);
        }
    }
    if let Some(refusal) = read(text) {
        is_sound(&refusal);
    }
}

/// That a refusal holds no marker.
pub fn check(refusal: &Refusal) {
    let said = format!("{:?} {:?} {refusal}", refusal.field, refusal.message);
    assert!(!said.contains(MARKER) && !said.contains(NUMBER), "what was sent is repeated: {said}");
    is_sound(refusal);
}

/// That a refusal can be told: it is of the client's making, short, and its answer is one line of JSON with its reason.
pub fn is_sound(refusal: &Refusal) {
    assert!((400..500).contains(&refusal.code.http_status()), "{refusal:?}");
    assert_ne!(refusal.code, ErrorCode::Unauthenticated);
    let response = refusal.response();
    assert!(response.as_bytes().len() < 1_024, "{refusal:?}");
    assert!(!response.as_str().contains(['\n', '\r']));
    let told: serde_json::Value = response.parse().unwrap();
    assert_eq!(told["reason"], refusal.code.reason());
    assert_eq!(told["field"].as_str(), refusal.field.as_deref());
}

/// Where strings and numbers are, roughly: what is cut wrong is another text to try.
fn tokens(text: &str) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let from = at;
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
            }
            b'-' | b'0'..=b'9' => {
                while at < bytes.len() && matches!(bytes[at], b'-' | b'+' | b'.' | b'0'..=b'9' | b'e' | b'E')
                {
                    at += 1;
                }
            }
            _ => {
                at += 1;
                continue;
            }
        }
        if text.is_char_boundary(at) {
            found.push((from, at));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "what was sent is repeated")]
    fn a_value_that_is_repeated_is_found() {
        never_echoes(r#"{"a":[1,"b"]}"#, |text| Some(Refusal::invalid(text.split('"').nth(3)?)));
    }

    #[test]
    #[should_panic(expected = "what was sent is repeated")]
    fn a_number_that_is_repeated_is_found() {
        never_echoes(r#"{"a":[-1.5e3,"b"]}"#, |text| Some(Refusal::invalid(text)));
    }

    #[test]
    fn what_is_not_repeated_passes() {
        never_echoes(r#"{"a":"é\"","n":7}"#, |_| {
            Some(Refusal::field(ErrorCode::InvalidPayload, "a", "a number"))
        });
        never_echoes("\"\\", |_| None);
        assert_eq!(tokens(r#"{"é":"\"",7"#), [(1, 5), (6, 10), (11, 12)]);
    }
}
