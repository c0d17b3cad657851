//! JSON-RPC messages before the library reads them: what it would answer in plain text, or not at all as the protocol has
//! it, is answered here.

use std::borrow::Cow;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use muster_protocol::error_code::Refusal;
use muster_protocol::json::{deeper_than, without_lone_surrogates};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;

/// JSON-RPC error codes (JSON-RPC 2.0 §5.1; -32000 and below are the server's own).
const PARSE_ERROR: i32 = -32_700;
const INVALID_REQUEST: i32 = -32_600;
const METHOD_NOT_FOUND: i32 = -32_601;
const INVALID_PARAMS: i32 = -32_602;
const REFUSED: i32 = -32_000;

/// Which protocol a message is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// Up to 2025-11-25: `initialize`, and sessions.
    Sessions,
    /// From 2026-07-28 on: every request stands alone.
    Stateless,
}

/// A message's frame.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// A `null` that is there is no id either, but not the same as none.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The parameters of a tool's call.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It opens a session.
    Initialize,
    /// Anything else.
    Other,
}

/// What is answered instead of handing a message on.
#[derive(Debug)]
pub struct Rejected {
    /// HTTP status.
    pub status: StatusCode,
    /// The message's id, as it came, where it has one.
    pub id: Option<Box<RawValue>>,
    /// JSON-RPC error code.
    pub code: i32,
    /// What is wrong.
    pub message: &'static str,
}

/// Brings a body into the form the library reads, and says what it is.
///
/// # Errors
/// The answer to what is no message.
pub(super) fn check(
    request: &mut Request<Bytes>,
    era: Era,
    depth_max: usize,
) -> Result<Kind, Box<Response<Body>>> {
    let (kind, clean) = read(request.body(), era, depth_max).map_err(|rejected| {
        let Rejected { status, id, code, message } = rejected;
        Box::new(error(status, id.as_deref(), code, message))
    })?;
    if let Some(clean) = clean {
        *request.body_mut() = clean;
    }
    Ok(kind)
}

/// What a body is, and its form for the library where that is another.
///
/// # Errors
/// It is no message, or one that can be refused by itself.
pub fn read(body: &[u8], era: Era, depth_max: usize) -> Result<(Kind, Option<Bytes>), Rejected> {
    let fail = |code, message| Err(Rejected { status: StatusCode::BAD_REQUEST, id: None, code, message });
    let Ok(text) = std::str::from_utf8(body) else {
        return fail(PARSE_ERROR, "the body is not UTF-8");
    };
    if deeper_than(body, depth_max) {
        return fail(PARSE_ERROR, "the body nests too deep");
    }
    let clean = without_lone_surrogates(text);
    if serde_json::from_str::<serde::de::IgnoredAny>(&clean).is_err() {
        return fail(PARSE_ERROR, "the body is not JSON");
    }
    match clean.trim_start().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return fail(INVALID_REQUEST, "batches are not taken: send one message a request"),
        _ => return fail(INVALID_REQUEST, "a JSON-RPC message is an object"),
    }
    let kind = match serde_json::from_str::<Envelope<'_>>(&clean) {
        Ok(envelope) => classify(&envelope, era)?,
        Err(_) => return fail(INVALID_REQUEST, "not a JSON-RPC message"),
    };
    let clean = match clean {
        Cow::Owned(clean) => Some(clean.into()),
        Cow::Borrowed(_) => None,
    };
    Ok((kind, clean))
}

fn classify(envelope: &Envelope<'_>, era: Era) -> Result<Kind, Rejected> {
    let refuse = |status, id: Option<&RawValue>, code, message| {
        Err(Rejected { status, id: id.map(ToOwned::to_owned), code, message })
    };
    let id_fits = envelope.id.is_none_or(|id| {
        let text = id.get();
        text.starts_with('"') || text.parse::<i64>().is_ok()
    });
    let is_answer = envelope.result.is_some() || envelope.error.is_some();
    if envelope.jsonrpc.as_deref() != Some("2.0") || !id_fits || envelope.method.is_none() && !is_answer {
        return refuse(StatusCode::BAD_REQUEST, None, INVALID_REQUEST, "not a JSON-RPC 2.0 message");
    }
    match (envelope.method.as_deref(), era) {
        (Some("initialize"), Era::Stateless) => {
            refuse(StatusCode::NOT_FOUND, envelope.id, METHOD_NOT_FOUND, "initialize")
        }
        (Some("initialize"), Era::Sessions) => Ok(Kind::Initialize),
        (Some("tools/call"), _) if !is_call(envelope.params) => {
            let message = "name a tool, and give its arguments as an object";
            refuse(StatusCode::BAD_REQUEST, envelope.id, INVALID_PARAMS, message)
        }
        _ => Ok(Kind::Other),
    }
}

fn is_call(params: Option<&RawValue>) -> bool {
    let Some(params) = params.filter(|params| params.get().starts_with('{')) else { return false };
    serde_json::from_str::<Call<'_>>(params.get()).is_ok_and(|call| {
        call.name.is_some_and(|name| name.get().starts_with('"'))
            && call.arguments.is_none_or(|arguments| arguments.get().starts_with('{'))
    })
}

/// The answer to a message that cannot be read as one.
pub(super) fn unreadable() -> Response<Body> {
    error(StatusCode::BAD_REQUEST, None, INVALID_REQUEST, "not a JSON-RPC message")
}

/// A refusal as JSON-RPC has it, with the HTTP status of its code.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let status =
        StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, None, REFUSED, refusal.code.reason());
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"muster\""));
    }
    if let Some(wait_ms) = refusal.retry_after_ms {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1_000).max(1)));
    }
    response
}

fn error(status: StatusCode, id: Option<&RawValue>, code: i32, message: &str) -> Response<Body> {
    let body = json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(body: &str, era: Era) -> Result<Kind, u16> {
        let mut request = Request::new(Bytes::copy_from_slice(body.as_bytes()));
        check(&mut request, era, 8).map_err(|response| response.status().as_u16())
    }

    #[test]
    fn messages_are_told_from_what_is_none() {
        for (body, want) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#, Ok(Kind::Initialize)),
            (r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, Ok(Kind::Other)),
            (r#"{"jsonrpc":"2.0","id":"a","result":{}}"#, Ok(Kind::Other)),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{}}}"#,
                Ok(Kind::Other),
            ),
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"}}"#, Ok(Kind::Other)),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":[]}}"#,
                Err(400),
            ),
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, Err(400)),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, Err(400)),
            (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, Err(400)),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, Err(400)),
            (r#"{"jsonrpc":"2.0","id":1}"#, Err(400)),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, Err(400)),
            ("{", Err(400)),
            ("[]", Err(400)),
            ("[[[[[[[[[1]]]]]]]]]", Err(400)),
        ] {
            assert_eq!(check_text(body, Era::Sessions), want, "{body}");
        }
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;
        assert_eq!(check_text(initialize, Era::Stateless), Err(404));
    }
}
