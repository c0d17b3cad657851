//! The one table of what can go wrong, as clients see it. `docs/errors.md` is written from it and compared in a test.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $reason:literal, $rest:literal, $status:literal, $retryable:literal, $meaning:literal;)*) => {
        /// A refusal with a stable name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The `reason` of a refused channel event.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// The `code` in a REST answer's `errors`.
            #[must_use]
            pub const fn rest_code(self) -> &'static str {
                match self { $(Self::$name => $rest,)* }
            }

            /// The HTTP status of a REST answer.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whether the same request can succeed later without a change.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

error_codes! {
    UnmatchedTopic = "unmatched topic", "NOT_FOUND", 404, false, "No such topic on this socket, or the topic is not joined.";
    UnknownEvent = "unknown_event", "NOT_FOUND", 404, false, "The channel has no such event.";
    TooManyChannels = "too many channels joined", "RATE_LIMIT_EXCEEDED", 429, false, "The socket has joined as many topics as it may.";
    JoinCrashed = "join crashed", "INTERNAL_ERROR", 500, true, "The join failed by a fault of the server.";
    ChannelCrash = "channel_crash", "INTERNAL_ERROR", 500, true, "The channel failed by a fault of the server; join again.";
    ReaderStalled = "reader_stalled", "TIMEOUT", 408, true, "The reader took nothing for too long; join again.";
    Unauthenticated = "unauthenticated", "UNAUTHORIZED", 401, false, "No credential, or one that is unknown, revoked or expired.";
    Unauthorized = "unauthorized", "FORBIDDEN", 403, false, "The credential does not allow this; also the answer for things that do not exist, where existence is private.";
    Forbidden = "forbidden", "FORBIDDEN", 403, false, "The credential does not allow this.";
    NotFound = "not_found", "NOT_FOUND", 404, false, "There is no such thing, or it is not yours.";
    RouteNotFound = "route_not_found", "ROUTE_NOT_FOUND", 404, false, "There is no such endpoint.";
    MethodNotAllowed = "method_not_allowed", "METHOD_NOT_ALLOWED", 405, false, "The endpoint does not take this method.";
    MalformedRequest = "malformed_request", "MALFORMED_REQUEST", 400, false, "The request is not valid HTTP, UTF-8 or JSON, or nests too deep.";
    PayloadTooLarge = "payload_too_large", "PAYLOAD_TOO_LARGE", 413, false, "The body is larger than allowed.";
    RequestTimeout = "request_timeout", "TIMEOUT", 408, true, "The request did not arrive in time.";
    InvalidPayload = "invalid_payload", "VALIDATION_ERROR", 422, false, "A field is missing, has another type than it must, or is out of bounds.";
    InvalidKind = "invalid_kind", "VALIDATION_ERROR", 422, false, "A chunk's kind is \"chat\" or \"artifact\".";
    InvalidContent = "invalid_content", "VALIDATION_ERROR", 422, false, "A chunk's content is a non-empty string within the size limit.";
    InvalidPeriod = "invalid_period", "VALIDATION_ERROR", 422, false, "There is no such period; `periods` says which there are.";
    UnknownMetric = "unknown_metric", "VALIDATION_ERROR", 422, false, "There is no such metric; `metrics` says which there are.";
    InvalidAmount = "invalid_amount", "INVALID_AMOUNT", 422, false, "An amount is a decimal number from 0 with at most six fraction digits.";
    NoPublicKey = "no_public_key", "VALIDATION_ERROR", 422, false, "The agent has no public key, so it cannot sign.";
    InvalidSignature = "invalid_signature", "VALIDATION_ERROR", 422, false, "The signature does not match.";
    AlreadyExists = "already_exists", "ALREADY_EXISTS", 409, false, "There is one of that name already.";
    LimitReached = "limit_reached", "LIMIT_REACHED", 409, false, "No more of these can be made.";
    TaskNotActive = "task_not_active", "TASK_NOT_ACTIVE", 409, false, "The task is not in a state that allows this; `status` says which it is in.";
    HiringNotActive = "hiring_not_active", "HIRING_NOT_ACTIVE", 409, false, "The hiring is not in a state that allows this; `status` says which it is in.";
    SessionExpired = "session_expired", "SESSION_EXPIRED", 409, false, "The negotiation is over: its time has passed, or it had as many offers as it may.";
    SessionNotOpen = "session_not_open", "SESSION_NOT_OPEN", 409, false, "The negotiation has ended; `status` says how.";
    RoundLimitReached = "round_limit_reached", "ROUND_LIMIT_REACHED", 409, false, "The negotiation has had as many offers as it may, and has ended.";
    OffersIncomplete = "offers_incomplete", "OFFERS_INCOMPLETE", 409, false, "Each side needs a signed offer before one can be accepted.";
    CannotAcceptOwnMove = "cannot_accept_own_move", "CANNOT_ACCEPT_OWN_MOVE", 409, false, "Who made the latest offer cannot accept; the other side can.";
    AmountExceedsMaximum = "amount_exceeds_maximum", "INVALID_AMOUNT", 422, false, "The amount is above twice the provider's base price; `max` says how much that is.";
    AmountMismatch = "amount_mismatch", "INVALID_AMOUNT", 422, false, "The amount is not the one it has to be; `expected` says which that is.";
    InsufficientBalance = "insufficient_balance", "INSUFFICIENT_BALANCE", 422, false, "There is less than that; `available` says how much there is.";
    InvalidNonce = "invalid_nonce", "INVALID_NONCE", 409, false, "The nonce is not the next one; `expected` says which that is. Nothing was moved.";
    TransferPending = "transfer_pending", "TRANSFER_PENDING", 409, false, "A transfer waits for its acknowledgement; one at a time.";
    NoTransferPending = "no_transfer_pending", "NO_TRANSFER_PENDING", 409, false, "No transfer waits for an acknowledgement.";
    ChannelNotOpen = "channel_not_open", "CHANNEL_NOT_OPEN", 409, false, "The payment channel is not in a state that allows this; `status` says which it is in.";
    ChannelDisputed = "channel_disputed", "DISPUTE_OPEN", 409, false, "The payment channel is disputed: nothing moves until the dispute is resolved.";
    SeqConflict = "seq_conflict", "SEQ_CONFLICT", 409, false, "Something else was sent under this seq.";
    StreamComplete = "stream_complete", "STREAM_COMPLETE", 409, false, "The stream has been completed; `checksum` and `total_size` say as what.";
    StreamTooLarge = "stream_too_large", "LIMIT_REACHED", 409, false, "The stream holds as much as it may: `max_bytes`, and `max_chunks`.";
    MissingChunks = "missing_chunks", "MISSING_CHUNKS", 409, false, "Chunks are missing; `seqs` names them, the first if there are many, and `count` says how many. The stream stays open.";
    ChecksumMismatch = "checksum_mismatch", "CHECKSUM_MISMATCH", 409, false, "What was received is not what was said: `expected` and `actual` are the checksums, `size` the bytes received. The stream stays open.";
    StaleCheckpoint = "stale_checkpoint", "STALE_CHECKPOINT", 409, false, "There is a newer checkpoint; `seq` says which.";
    IdempotencyPending = "idempotency_pending", "IDEMPOTENCY_PENDING", 409, true, "The same request is being done under this key; ask again for its answer.";
    IdempotencyMismatch = "idempotency_mismatch", "IDEMPOTENCY_MISMATCH", 422, false, "Something else was asked under this key.";
    AnswerNotKept = "answer_not_kept", "IDEMPOTENCY_ANSWER_NOT_KEPT", 409, false, "The request was done under this key; its answer was too large to be kept, or held a secret. `answer_status` says which status it had.";
    MessageNotActive = "message_not_active", "MESSAGE_NOT_ACTIVE", 409, false, "The message is not in a state that allows this; `status` says which it is in.";
    CapabilityMismatch = "capability_mismatch", "CAPABILITY_MISMATCH", 422, false, "The recipient cannot do all that is required; `missing` says what.";
    WebhookDisabled = "webhook_disabled", "WEBHOOK_DISABLED", 409, false, "Nothing has arrived at the webhook for days, and nothing is sent to it any more; remove it and add it again.";
    HandoffNotActive = "handoff_not_active", "HANDOFF_NOT_ACTIVE", 409, false, "The handoff is not in a state that allows this; `status` says which it is in.";
    ProtocolVersionIncompatible = "protocol_version_incompatible", "PROTOCOL_VERSION_INCOMPATIBLE", 422, false, "The two agents have no such protocol version in common; `yours` and `theirs` say which each speaks.";
    ProtocolVersionBlocked = "protocol_version_blocked", "PROTOCOL_VERSION_BLOCKED", 426, false, "The protocol version is not served any more; `sunset_at` says since when.";
    AgentUnavailable = "agent_unavailable", "AGENT_UNAVAILABLE", 503, true, "The agent is suspended, banned or not active.";
    RateLimited = "rate_limited", "RATE_LIMIT_EXCEEDED", 429, true, "Too many; `retry_after_ms` says when to come back.";
    Overloaded = "overloaded", "OVERLOADED", 503, true, "The node has as much work as it can hold.";
    Draining = "draining", "DRAINING", 503, true, "The node is shutting down; another one takes over.";
    StoreUnavailable = "store_unavailable", "STORE_UNAVAILABLE", 503, true, "The store cannot be written now; nothing was changed.";
    OwnerUnreachable = "owner_unreachable", "OWNER_UNREACHABLE", 503, true, "The node that holds this stream cannot be reached now; send it again under the same idempotency key.";
    Internal = "internal_error", "INTERNAL_ERROR", 500, true, "A fault of the server.";
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.reason())
    }
}

/// A refusal as a client sees it: the code, and what helps to mend the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", code.reason())]
pub struct Refusal {
    /// Which entry of the table.
    pub code: ErrorCode,
    /// The field that is wrong, if it is one.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong with it, for a person. Never holds a secret or another party's data.
    pub message: Option<String>,
    /// When to come back, for `rate_limited`, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The state the thing is in, for `…_not_active`.
    pub status: Option<&'static str>,
    /// What else helps to mend the request, by the names that the specification gives: `expected`, `max` and so on.
    pub details: Vec<(Cow<'static, str>, crate::json::Json)>,
}

impl Refusal {
    /// Just the code.
    #[must_use]
    pub const fn new(code: ErrorCode) -> Self {
        Self { code, field: None, message: None, retry_after_ms: None, status: None, details: Vec::new() }
    }

    /// A field that does not fit.
    #[must_use]
    pub fn field(code: ErrorCode, field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), message: Some(message.into()), ..Self::new(code) }
    }

    /// A payload that does not fit, as a whole.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::new(ErrorCode::InvalidPayload) }
    }

    /// A rate limit, and when to come back.
    #[must_use]
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorCode::RateLimited) }
    }

    /// A task or hiring in the wrong state.
    #[must_use]
    pub fn wrong_status(code: ErrorCode, status: &'static str) -> Self {
        Self { status: Some(status), ..Self::new(code) }
    }

    /// The same, with one more thing that helps to mend the request.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &(impl Serialize + ?Sized)) -> Self {
        self.details.push((Cow::Borrowed(name), crate::json::Json::of(value)));
        self
    }

    /// What a channel answers: `{"reason": …}` and what else is known.
    #[must_use]
    pub fn response(&self) -> crate::json::Json {
        #[derive(Serialize)]
        struct Response<'a> {
            reason: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            message: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<&'a str>,
            #[serde(flatten)]
            details: std::collections::BTreeMap<&'a str, &'a crate::json::Json>,
        }
        crate::json::Json::of(&Response {
            reason: self.code.reason(),
            field: self.field.as_deref(),
            message: self.message.as_deref(),
            retry_after_ms: self.retry_after_ms,
            status: self.status,
            details: self.details.iter().map(|(name, value)| (name.as_ref(), value)).collect(),
        })
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_unique_and_statuses_make_sense() {
        let mut reasons: Vec<_> = ErrorCode::ALL.iter().map(|code| code.reason()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.http_status()), "{code:?}");
            assert!(code.meaning().ends_with('.'), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_says_only_what_it_knows() {
        assert_eq!(
            Refusal::new(ErrorCode::UnknownEvent).response().as_str(),
            r#"{"reason":"unknown_event"}"#
        );
        assert_eq!(
            Refusal::new(ErrorCode::AmountMismatch).with("expected", "90").response().as_str(),
            r#"{"reason":"amount_mismatch","expected":"90"}"#
        );
        assert_eq!(
            Refusal::rate_limited(5).response().as_str(),
            r#"{"reason":"rate_limited","retry_after_ms":5}"#
        );
    }
}
