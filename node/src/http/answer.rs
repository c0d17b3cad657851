//! The envelope of every REST answer: `{data, meta: {request_id, timestamp}, errors}`.
//!
//! Handlers give an [`Answer`]; the front end, which knows the request's id, writes it out.

use axum::body::Body;
use axum::response::IntoResponse;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use muster_actors::store::{Page, StoreError};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::protocol_version::Deprecation;
use muster_protocol::time::Timestamp;
use serde::Serialize;

/// What a handler answers.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    content: Result<Content, Refusal>,
}

#[derive(Clone, Debug)]
struct Content {
    data: Json,
    pagination: Option<Pagination>,
    deprecation: Option<Deprecation>,
}

/// Where a list goes on.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Pagination {
    /// Items of the whole list; of lists of tasks, hirings, negotiations, payment channels and messages 10000 at most.
    pub total_count: u64,
    /// Pass as `cursor` to get what follows.
    pub cursor: Option<String>,
    /// Whether something follows.
    pub has_more: bool,
}

/// What a handler gives.
pub type Handled = Result<Answer, Refused>;

/// A refusal on its way out of a handler.
#[derive(Clone, Debug)]
pub struct Refused(pub Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<ErrorCode> for Refused {
    fn from(code: ErrorCode) -> Self {
        Self(code.into())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::NotFound => ErrorCode::NotFound,
            StoreError::AlreadyExists => ErrorCode::AlreadyExists,
            StoreError::LimitReached => ErrorCode::LimitReached,
            StoreError::InsufficientBalance(available) => {
                return Self(Refusal::new(ErrorCode::InsufficientBalance).with("available", &available));
            }
            StoreError::WrongStatus(status) => {
                return Self(Refusal::wrong_status(ErrorCode::TaskNotActive, status.as_str()));
            }
            StoreError::Conflict | StoreError::Fenced | StoreError::Unavailable(_) => {
                tracing::error!(%error, "store");
                ErrorCode::StoreUnavailable
            }
        };
        Self(code.into())
    }
}

impl Answer {
    /// 200 with data.
    pub fn ok(data: &impl Serialize) -> Handled {
        Self::with(StatusCode::OK, data)
    }

    /// 201 with data.
    pub fn created(data: &impl Serialize) -> Handled {
        Self::with(StatusCode::CREATED, data)
    }

    /// 202 with data.
    pub fn accepted(data: &impl Serialize) -> Handled {
        Self::with(StatusCode::ACCEPTED, data)
    }

    /// 200 with a part of a list.
    pub fn page<T, V: Serialize>(page: &Page<T>, view: impl Fn(&T) -> V) -> Handled {
        let items: Vec<V> = page.items.iter().map(view).collect();
        let pagination = Pagination {
            total_count: page.total,
            cursor: page.next.map(super::rest::extract::write_cursor),
            has_more: page.next.is_some(),
        };
        Ok(Self {
            status: StatusCode::OK,
            content: Ok(Content { data: Json::of(&items), pagination: Some(pagination), deprecation: None }),
        })
    }

    /// The same, and in its headers that what was used is going away, if it is.
    #[must_use]
    pub fn deprecated(mut self, by: Option<Deprecation>) -> Self {
        if let Ok(content) = &mut self.content {
            content.deprecation = by;
        }
        self
    }

    fn with(status: StatusCode, data: &impl Serialize) -> Handled {
        Ok(Self {
            status,
            content: Ok(Content { data: Json::of(data), pagination: None, deprecation: None }),
        })
    }

    /// A refusal.
    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        let status =
            StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, content: Err(refusal) }
    }

    /// Writes it out.
    #[must_use]
    pub fn render(self, request_id: &str, now: Timestamp) -> Response<Body> {
        #[derive(Serialize)]
        struct Meta<'a> {
            request_id: &'a str,
            timestamp: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            pagination: Option<Pagination>,
        }
        #[derive(Serialize)]
        struct Problem<'a> {
            code: &'static str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            details: Json,
        }
        #[derive(Serialize)]
        struct Envelope<'a> {
            data: Json,
            meta: Meta<'a>,
            errors: Vec<Problem<'a>>,
        }
        let retry_after_ms = self.content.as_ref().err().and_then(|refusal| refusal.retry_after_ms);
        let meta = |pagination| Meta { request_id, timestamp: now, pagination };
        let body = match &self.content {
            Ok(content) => {
                let meta = meta(content.pagination.clone());
                Json::of(&Envelope { data: content.data.clone(), meta, errors: Vec::new() })
            }
            Err(refusal) => {
                let problem = Problem {
                    code: refusal.code.rest_code(),
                    message: refusal.message.as_deref().unwrap_or(refusal.code.meaning()),
                    field: refusal.field.as_deref(),
                    details: refusal.response(),
                };
                Json::of(&Envelope { data: Json::null(), meta: meta(None), errors: vec![problem] })
            }
        };
        let mut response = Response::new(Body::from(body.bytes()));
        *response.status_mut() = self.status;
        if let Some(deprecation) = self.content.as_ref().ok().and_then(|content| content.deprecation) {
            for (name, text) in
                [("deprecation", deprecation.deprecation_header()), ("sunset", deprecation.sunset_header())]
            {
                if let Ok(value) = HeaderValue::try_from(text) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        if let Some(wait_ms) = retry_after_ms {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1_000).max(1)));
        }
        response
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        Answer::refused(self.0).into_response()
    }
}
