//! JSON that is passed on untouched, and the checks that untrusted JSON goes through.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error_code::{ErrorCode, Refusal};
use crate::money::InvalidAmount;

/// One valid JSON value as UTF-8 text. Cheap to clone; written into frames as it stands.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Bytes);

impl Json {
    /// `{}`
    #[must_use]
    pub fn empty_object() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// `null`
    #[must_use]
    pub fn null() -> Self {
        Self(Bytes::from_static(b"null"))
    }

    /// The JSON of a value. A value that cannot be written (a map with keys that are not strings) gives `null`: the
    /// types of this workspace have none.
    #[must_use]
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Self {
        serde_json::to_vec(value).map_or_else(|_| Self::null(), |text| Self(text.into()))
    }

    /// Takes over text already known to be one JSON value, as every reader takes it: lone surrogate escapes become
    /// U+FFFD (agrenting.md R47), and line breaks between tokens become spaces, so that it is one line of an event
    /// stream.
    #[must_use]
    pub fn from_raw(raw: &RawValue) -> Self {
        let text = raw.get();
        if memchr::memchr3(b'\\', b'\n', b'\r', text.as_bytes()).is_none() {
            return Self(Bytes::copy_from_slice(text.as_bytes()));
        }
        // Valid JSON has its line breaks between tokens only.
        Self(without_lone_surrogates(text).into_owned().replace(['\n', '\r'], " ").into())
    }

    /// Takes over bytes that this crate itself wrote as one JSON value.
    #[must_use]
    pub fn from_trusted_bytes(text: Bytes) -> Self {
        debug_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok(), "not JSON: {text:?}");
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, shared.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The text as `str`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor takes UTF-8; the empty string could only show through a bug, and is no valid JSON.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Reads the value into a type.
    ///
    /// # Errors
    /// The value has another shape.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(self.as_str()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self::from_raw(&raw))
    }
}

/// For `#[serde(with = …)]` in formats that are not JSON: the text as bytes, checked when it is read.
pub mod as_bytes {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use super::Json;

    /// Writes the text.
    ///
    /// # Errors
    /// Those of the format.
    pub fn serialize<S: Serializer>(json: &Json, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(json.as_bytes())
    }

    /// Reads the text.
    ///
    /// # Errors
    /// It is not one JSON value.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Json;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON text as bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Json, E> {
                serde_json::from_slice(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

/// A text that may hold lone surrogate escapes (`"\ud800"`, which JavaScript writes for broken strings): each becomes
/// U+FFFD instead of failing the message (agrenting.md R47).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossyString(pub String);

impl<'de> Deserialize<'de> for LossyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = LossyString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LossyString, E> {
                Ok(LossyString(text.to_owned()))
            }

            // serde_json hands strings read as bytes over with lone surrogates in their three-byte form.
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<LossyString, E> {
                Ok(LossyString(replace_surrogates(bytes)))
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

fn replace_surrogates(bytes: &[u8]) -> String {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                break;
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                out.push(char::REPLACEMENT_CHARACTER);
                let surrogate = broken.len() >= 3 && broken[0] == 0xED && broken[1] >= 0xA0;
                let skip = if surrogate { 3 } else { error.error_len().unwrap_or(broken.len()) };
                rest = &broken[skip..];
            }
        }
    }
    out
}

/// Whether objects and arrays nest deeper than `depth_max`. Expects JSON-like text; of other text it says nothing.
#[must_use]
pub fn deeper_than(text: &[u8], depth_max: usize) -> bool {
    // Nesting costs at least one opening bracket per level: most messages end here.
    if text.len() <= depth_max {
        return false;
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for &byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The fields of an object as they stand, those included that a later one of the same name replaces.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Keys that some JavaScript readers confuse with an object's own machinery when they merge (agrenting.md R11).
const POISONED_KEYS: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// Whether an object anywhere in the value has a key that must not reach an object merge.
#[must_use]
pub fn has_poisoned_key(value: &Json) -> bool {
    fn poisoned(raw: &RawValue) -> bool {
        if let Ok(Fields(fields)) = serde_json::from_str(raw.get()) {
            return fields
                .iter()
                .any(|(key, inner)| POISONED_KEYS.contains(&key.as_str()) || poisoned(inner));
        }
        serde_json::from_str::<Vec<&RawValue>>(raw.get()).is_ok_and(|items| items.into_iter().any(poisoned))
    }
    value.parse::<Box<RawValue>>().is_ok_and(|raw| poisoned(&raw))
}

/// Whether an object anywhere in the value has two fields of one name, of which readers take different ones.
#[must_use]
pub fn has_repeated_key(value: &Json) -> bool {
    fn repeated(raw: &RawValue) -> bool {
        if let Ok(Fields(fields)) = serde_json::from_str(raw.get()) {
            let names: HashSet<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
            return names.len() < fields.len() || fields.iter().any(|(_, inner)| repeated(inner));
        }
        serde_json::from_str::<Vec<&RawValue>>(raw.get()).is_ok_and(|items| items.into_iter().any(repeated))
    }
    value.parse::<Box<RawValue>>().is_ok_and(|raw| repeated(&raw))
}

/// Reads an object into a type. Lists are refused, which derived readers would take field by field.
///
/// # Errors
/// `invalid_payload` with the field and what it must be (never with what it is: that may be a secret in the wrong
/// place); `invalid_amount`.
pub fn read_object<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    if !text.trim_start().starts_with('{') {
        return Err(Refusal::invalid("expected an object"));
    }
    serde_json::from_str(text).or_else(|_| {
        // Where JSON breaks off says nothing about a field: it may be inside one that nobody knows.
        if serde_json::from_str::<IgnoredAny>(text).is_err() {
            return Err(Refusal::invalid("not valid JSON"));
        }
        // Read once more, this time keeping track of where.
        let mut reader = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| misfit(&error))
    })
}

fn misfit(error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let said = error.inner().to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(before, _)| before);
    let mut path: Vec<String> =
        error.path().iter().map(ToString::to_string).filter(|part| part != "?").collect();
    let (code, message) = if let Some(field) = said.strip_prefix("missing field `") {
        path.push(field.trim_end_matches('`').to_owned());
        (ErrorCode::InvalidPayload, "is missing".to_owned())
    } else if said.starts_with("unknown field") {
        path.pop();
        (ErrorCode::InvalidPayload, "has a field that is not known".to_owned())
    } else if said == InvalidAmount.to_string() {
        (ErrorCode::InvalidAmount, said.to_owned())
    } else if let Some((_, wanted)) = said.rsplit_once(", expected ") {
        (ErrorCode::InvalidPayload, format!("expected {wanted}"))
    } else if said.starts_with("expected ") || said.starts_with("duplicate field") {
        // Another type where a name is due; a field twice. Neither repeats what was sent.
        (ErrorCode::InvalidPayload, said.to_owned())
    } else {
        (ErrorCode::InvalidPayload, "does not fit".to_owned())
    };
    if path.is_empty() {
        return Refusal { message: Some(message), ..Refusal::new(code) };
    }
    let path = path.join(".").replace(".[", "[");
    let message = format!("{path}: {message}");
    Refusal { field: Some(path.into()), message: Some(message), ..Refusal::new(code) }
}

/// Replaces lone surrogate escapes (`\\ud800`) in JSON text by `\\ufffd`, for readers that refuse them.
#[must_use]
pub fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return Cow::Borrowed(text);
    }
    let unit = |at: usize| -> Option<u32> {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut out = String::with_capacity(text.len());
    let (mut at, mut copied) = (0, 0);
    while let Some(next) = text[at..].find('\\') {
        at += next;
        match unit(at) {
            Some(0xD800..0xDC00) if matches!(unit(at + 6), Some(0xDC00..0xE000)) => at += 12,
            Some(0xD800..0xE000) => {
                out.push_str(&text[copied..at]);
                out.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            // An escape is a backslash and one more character; both are ASCII in valid JSON.
            _ => at = (at + 2).min(text.len()),
        }
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing a str into a Vec cannot fail: neither the writer nor the serializer has an error to give.
    let _infallible = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_values_through_untouched() {
        let text = r#"{"big":12345678901234567890123,"one":1.0,"e":"\u0000","dup":[1, 2]}"#;
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(json.as_str(), text);
        assert_eq!(serde_json::to_string(&[&json]).unwrap(), format!("[{text}]"));
    }

    #[test]
    fn lone_surrogates_become_replacement_characters() {
        for (json, want) in [
            (r#""plain""#, "plain"),
            (r#""a\ud800b""#, "a\u{FFFD}b"),
            (r#""\udc00\ud800""#, "\u{FFFD}\u{FFFD}"),
            (r#""\ud83d\ude00é""#, "😀é"),
            (r#""""#, ""),
        ] {
            assert_eq!(serde_json::from_str::<LossyString>(json).unwrap().0, want, "{json}");
        }
        assert!(serde_json::from_str::<LossyString>("[1]").is_err());
        assert!(serde_json::from_str::<LossyString>("7").is_err());
    }

    #[test]
    fn lone_surrogate_escapes_are_replaced_in_place() {
        for (from, to) in [
            (r#"{"a":"x"}"#, r#"{"a":"x"}"#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83dx\uDE00""#, r#""\ufffdx\ufffd""#),
            (r#""\\ud800""#, r#""\\ud800""#),
            (r#""é\\\ud800\n""#, r#""é\\\ufffd\n""#),
            (r#""\ud8"#, r#""\ud8"#),
            ("\\é\\ud", "\\é\\ud"),
        ] {
            assert_eq!(without_lone_surrogates(from), to);
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(!deeper_than(nested(64).as_bytes(), 64));
        assert!(deeper_than(nested(65).as_bytes(), 64));
        assert!(!deeper_than(format!("\"\\\"{}\"", "[".repeat(500)).as_bytes(), 64));
        assert!(!deeper_than("{\"a\":[]}".repeat(200).as_bytes(), 64));
    }

    #[test]
    fn values_are_one_line_that_every_reader_takes() {
        let json: Json = serde_json::from_str("{\n  \"a\\n\": \"\\ud800\",\r\n  \"b\": 1\n}").unwrap();
        assert_eq!(json.as_str(), "{   \"a\\n\": \"\\ufffd\",    \"b\": 1 }");
    }

    #[test]
    fn a_misfit_is_named_but_not_repeated() {
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code, reason = "only read")]
        struct Inner {
            name: String,
            list: Vec<u8>,
            #[serde(default)]
            price: crate::money::Amount,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only read")]
        struct Outer {
            inner: Inner,
        }
        for (json, field, message) in [
            (r#"{"inner":{"name":7,"list":[]}}"#, "inner.name", "inner.name: expected a string"),
            (r#"{"inner":{"name":"a","list":[1,"secret"]}}"#, "inner.list[1]", "inner.list[1]: expected u8"),
            (r#"{"inner":{"list":[]}}"#, "inner.name", "inner.name: is missing"),
            (r#"{"inner":"secret"}"#, "inner", "inner: expected struct Inner"),
            (
                r#"{"inner":{"name":"a","list":[],"price":"secret"}}"#,
                "inner.price",
                "inner.price: an amount is a decimal number from 0 with at most six fraction digits",
            ),
        ] {
            let refusal = read_object::<Outer>(json).unwrap_err();
            assert_eq!((refusal.field.as_deref(), refusal.message.as_deref()), (Some(field), Some(message)));
        }
        let refusal = read_object::<Outer>(r#"{"secret":1}"#).unwrap_err();
        assert_eq!(refusal.message.as_deref(), Some("has a field that is not known"));
        let refusal = read_object::<Inner>(r#"{"secret":tru"#).unwrap_err();
        assert_eq!((refusal.field, refusal.message.as_deref()), (None, Some("not valid JSON")));
    }

    #[test]
    fn repeated_keys_are_found_at_any_depth() {
        for (json, repeated) in [
            (r#"{"a":1,"a":1}"#, true),
            (r#"{"a":1,"\u0061":2}"#, true),
            (r#"[1,{"b":{"c":[{"a":1,"b":2,"a":3}]}}]"#, true),
            (r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#, false),
            (r#""a""#, false),
        ] {
            assert_eq!(has_repeated_key(&serde_json::from_str(json).unwrap()), repeated, "{json}");
        }
    }

    #[test]
    fn poisoned_keys_are_found_at_any_depth() {
        for (json, poisoned) in [
            (r#"{"a":{"b":[{"__proto__":1}]}}"#, true),
            (r#"{"constructor":{}}"#, true),
            (r#"[1E400,{"a":{"\u0070rototype":1}}]"#, true),
            (r#"{"a":{"__proto__":1},"a":1}"#, true),
            (r#"{"a":"__proto__"}"#, false),
            ("[]", false),
        ] {
            assert_eq!(has_poisoned_key(&serde_json::from_str(json).unwrap()), poisoned, "{json}");
        }
    }
}
