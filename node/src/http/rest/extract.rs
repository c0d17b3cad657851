//! What handlers take from a request: who calls, the body, ids, pages.

use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Query};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Uri};
use muster_actors::store::PageRequest;
use muster_protocol::account::Scope;
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::escrow::RequestHash;
use muster_protocol::json::{deeper_than, read_object};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::Refused;
use crate::http::front::{Origin, presented_secret};

/// The node.
pub type State = axum::extract::State<Arc<App>>;

fn origin(parts: &Parts) -> Result<Origin, Refused> {
    parts.extensions.get::<Origin>().cloned().ok_or(Refused(ErrorCode::Internal.into()))
}

impl FromRequestParts<Arc<App>> for Origin {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, Refused> {
        origin(parts)
    }
}

/// Whoever shows a credential; within its scopes and its rate.
impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let origin = origin(parts)?;
        let secret = presented_secret(&parts.headers);
        // A header that is no text names no agent of the caller's.
        let choice = parts.headers.get("x-agent-id").map(|value| value.to_str().unwrap_or("?"));
        let caller = app.auth.caller(secret.as_ref(), choice, origin.address).await?;
        let scope = if parts.method == Method::GET { Scope::Read } else { Scope::Write };
        caller.principal.require(scope)?;
        let now_ms = app.core.environment.monotonic_ms();
        let credential = caller.principal.credential;
        let buckets = &app.core.usage.requests;
        let taken = buckets.take(credential, now_ms);
        let _once = origin.allowance.set((buckets.burst(), buckets.remaining(&credential, now_ms)));
        taken.map_err(Refusal::rate_limited)?;
        Ok(caller)
    }
}

impl Caller {
    /// The agent it acts as.
    ///
    /// # Errors
    /// It acts as none.
    pub fn acting(&self) -> Result<&Arc<Agent>, Refusal> {
        self.principal.acting_agent()?;
        self.agent.as_ref().ok_or_else(|| ErrorCode::Forbidden.into())
    }
}

/// The operator.
pub struct Operator;

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let origin = origin(parts)?;
        app.auth.operator(presented_secret(&parts.headers).as_ref(), origin.address).await?;
        Ok(Self)
    }
}

/// A JSON object as body. An empty body reads as `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request<axum::body::Body>, app: &Arc<App>) -> Result<Self, Refused> {
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|_| Refused(ErrorCode::MalformedRequest.into()))?;
        Ok(Self(read_body(&bytes, app.config.limits.json_depth_max)?))
    }
}

/// Reads a body.
///
/// # Errors
/// `malformed_request` for what is not UTF-8, no JSON, or nested deeper than `depth_max`; what
/// [`read_object`] refuses.
pub fn read_body<T: DeserializeOwned>(bytes: &[u8], depth_max: usize) -> Result<T, Refusal> {
    let malformed =
        |message: String| Refusal { message: Some(message), ..ErrorCode::MalformedRequest.into() };
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("the body is not UTF-8".into()))?;
    if deeper_than(bytes, depth_max) {
        return Err(malformed(format!("the body nests deeper than {depth_max}")));
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    // Told apart: what is no JSON at all, and JSON that does not fit.
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        return Err(malformed(error.to_string()));
    }
    read_object(text)
}

/// An id in the path. One that is none names nothing.
pub struct Id<T>(pub T);

impl<T: FromStr + Send> FromRequestParts<Arc<App>> for Id<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let not_found = || Refused(ErrorCode::NotFound.into());
        let Path(text) = Path::<String>::from_request_parts(parts, app).await.map_err(|_| not_found())?;
        text.parse().map(Self).map_err(|_| not_found())
    }
}

/// Two ids in the path.
pub struct Pair<A, B>(pub A, pub B);

impl<A: FromStr + Send, B: FromStr + Send> FromRequestParts<Arc<App>> for Pair<A, B> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let not_found = || Refused(ErrorCode::NotFound.into());
        let Path((a, b)) =
            Path::<(String, String)>::from_request_parts(parts, app).await.map_err(|_| not_found())?;
        match (a.parse(), b.parse()) {
            (Ok(a), Ok(b)) => Ok(Self(a, b)),
            _ => Err(not_found()),
        }
    }
}

/// The key that the request came under, if it did (`X-Idempotency-Key`): what it makes is made once by that.
#[derive(Clone, Copy)]
pub struct Key(pub Option<RequestHash>);

impl FromRequestParts<Arc<App>> for Key {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, Refused> {
        Ok(parts.extensions.get::<Self>().copied().unwrap_or(Self(None)))
    }
}

/// A query string.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, Refused> {
        Ok(Self(read_query(&parts.uri)?))
    }
}

/// Reads a query string.
///
/// # Errors
/// `invalid_payload` with the parameter and what it must be, never with what it is.
pub fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    let Query(params) = Query::try_from_uri(uri).map_err(|error| query_misfit(&error.body_text()))?;
    Ok(params)
}

/// From `Failed to deserialize query string: status: unknown variant `x`, expected `a``, which tells the value too.
fn query_misfit(said: &str) -> Refusal {
    let wanted = match said.rsplit_once(", expected ") {
        Some((_, wanted)) => format!("expected {wanted}"),
        None => "does not fit".to_owned(),
    };
    let is_name = |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    match said.split(": ").nth(1).filter(is_name) {
        Some(name) => {
            Refusal { field: Some(name.to_owned().into()), ..Refusal::invalid(format!("{name}: {wanted}")) }
        }
        None => Refusal::invalid(format!("the query string: {wanted}")),
    }
}

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// Items at most.
    pub limit: Option<usize>,
    /// Where to go on: the `cursor` of the part before.
    pub cursor: Option<String>,
}

impl PageParams {
    /// Within bounds.
    ///
    /// # Errors
    /// A limit out of bounds, or a cursor that is none of ours.
    pub fn request(&self, app: &App) -> Result<PageRequest, Refusal> {
        let limits = &app.config.limits;
        let limit = self.limit.unwrap_or(limits.page_items_default);
        if limit == 0 || limit > limits.page_items_max {
            let message = format!("from 1 to {}", limits.page_items_max);
            return Err(Refusal::field(ErrorCode::InvalidPayload, "limit", message));
        }
        let after = match &self.cursor {
            None => None,
            Some(cursor) => Some(read_cursor(cursor).ok_or_else(|| {
                Refusal::field(ErrorCode::InvalidPayload, "cursor", "a cursor from an earlier answer")
            })?),
        };
        Ok(PageRequest { limit, after })
    }
}

/// A cursor as clients see it.
#[must_use]
pub fn write_cursor(after: [u8; 16]) -> String {
    URL_SAFE_NO_PAD.encode(after)
}

/// Reads what [`write_cursor`] wrote; `None` for everything else.
#[must_use]
pub fn read_cursor(cursor: &str) -> Option<[u8; 16]> {
    URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Thing {
        #[serde(default)]
        n: u8,
    }

    #[test]
    fn bodies_are_told_apart() {
        let read = |bytes: &[u8]| read_body::<Thing>(bytes, 64).map_err(|refusal| refusal.code);
        assert_eq!(read(b""), Ok(Thing { n: 0 }));
        assert_eq!(read(b" {\"n\":7} "), Ok(Thing { n: 7 }));
        assert_eq!(read(b"{\"n\":7"), Err(ErrorCode::MalformedRequest));
        assert_eq!(read(b"\xFF"), Err(ErrorCode::MalformedRequest));
        assert_eq!(read("[".repeat(65).as_bytes()), Err(ErrorCode::MalformedRequest));
        assert_eq!(read(b"[7]"), Err(ErrorCode::InvalidPayload));
        assert_eq!(read(b"{\"n\":\"x\"}"), Err(ErrorCode::InvalidPayload));
        assert_eq!(read(b"{\"n\":9999999999999999999999}"), Err(ErrorCode::InvalidPayload));
    }

    #[test]
    fn a_parameter_that_does_not_fit_is_named_but_not_repeated() {
        let read = |query: &'static str| {
            let uri = Uri::from_static(query);
            let refusal = read_query::<crate::http::rest::tasks::ListParams>(&uri).err().unwrap();
            (refusal.field.unwrap_or_default().into_owned(), refusal.message.unwrap_or_default())
        };
        let named = |field: &str, message: &str| (field.to_owned(), format!("{field}: {message}"));
        assert_eq!(read("/?limit=secret"), named("limit", "does not fit"));
        assert_eq!(read("/?role=secret"), named("role", "expected `client` or `provider`"));
        assert_eq!(read("/?role=a:%20b,%20expected%20c").0, "role");
        assert!(!read("/?limit=1&limit=2").1.contains('1'));
    }

    #[test]
    fn cursors_round_trip() {
        assert_eq!(read_cursor(&write_cursor([7; 16])), Some([7; 16]));
        assert_eq!(read_cursor("AAAA"), None);
    }
}
