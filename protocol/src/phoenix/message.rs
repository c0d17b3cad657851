//! A client's message, decoded no further than routing needs.

use std::borrow::Cow;

use serde_json::value::RawValue;
use smol_str::SmolStr;

/// A message reference. Opaque: echoed with the JSON type it came with (`"1"` is not `1`).
///
/// Held as canonical JSON text; `null` holds nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ref(Option<SmolStr>);

impl Ref {
    /// `null`.
    pub const NULL: Self = Self(None);

    /// From the JSON as it came. Strings are brought to one spelling, so that `"\u0031"` equals `"1"`.
    #[must_use]
    pub fn from_raw(raw: &RawValue) -> Self {
        let text = raw.get();
        if text == "null" {
            return Self::NULL;
        }
        if text.starts_with('"') && text.contains('\\') {
            return match serde_json::from_str::<String>(text) {
                Ok(plain) => Self::from_text(&plain),
                Err(_) => Self(Some(text.into())),
            };
        }
        Self(Some(text.into()))
    }

    /// A string reference.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut json = Vec::with_capacity(text.len() + 2);
        crate::json::write_string(&mut json, text);
        Self(Some(String::from_utf8_lossy(&json).into()))
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.as_deref().unwrap_or("null")
    }

    /// The text of a string reference, for the binary form; other types give their JSON text, `null` nothing.
    #[must_use]
    pub fn to_binary_text(&self) -> String {
        match &self.0 {
            None => String::new(),
            Some(json) => serde_json::from_str(json).unwrap_or_else(|_| json.to_string()),
        }
    }
}

/// Payload of a client's message.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Any JSON value.
    Json(&'a RawValue),
    /// Data of a V2 binary push.
    Binary(&'a [u8]),
}

/// A client's message.
#[derive(Clone, Debug)]
pub struct Inbound<'a> {
    /// Which join of the topic it belongs to.
    pub join_ref: Ref,
    /// What the reply must echo.
    pub reference: Ref,
    /// Topic; `None` when it was `null`, which matches nothing.
    pub topic: Option<Cow<'a, str>>,
    /// Event; `None` when it was `null`, which matches nothing.
    pub event: Option<Cow<'a, str>>,
    /// Payload.
    pub payload: Payload<'a>,
}
