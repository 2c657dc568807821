//! Refusals: every error code, its status and title, and the problem that a client receives.

use std::{io::ErrorKind, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    commit::{AppendError, Outcome, reading::ReadError},
    csv::schema::InvalidField,
};

/// Why a request is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{}", .0.detail)]
    InvalidField(#[from] InvalidField),
    #[error("{0}")]
    BrokenBody(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("the request's target is too long")]
    UriTooLong,
    #[error("the request's head is too large, or has too many headers")]
    HeadTooLarge,
    #[error("Idempotency-Key: accepted: one header, 1 to 255 printable ASCII characters, bare or in double quotes")]
    BadKey,
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("the body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    #[error("Content-Type: accepted: application/json, application/x-www-form-urlencoded or text/plain, in UTF-8")]
    UnsupportedMediaType,
    #[error(
        "Content-Type: accepted: text/csv (header=present or header=absent), application/x-ndjson or application/json, in UTF-8"
    )]
    UnsupportedBatchType,
    #[error("Content-Encoding: accepted: gzip, zstd or identity, once")]
    UnsupportedEncoding,
    #[error("{0}")]
    BatchTooLarge(String),
    #[error("{}", if *.unknown_token { "the token is not known" } else { "Authorization: accepted: Bearer, a space and a token" })]
    Unauthorized { unknown_token: bool },
    #[error("the token's role does not permit this; needed: {0}")]
    Forbidden(&'static str),
    #[error("too many requests from this client (ROWLOCK_RATE_LIMIT); the next one is accepted in {0:?}")]
    RateLimited(Duration),
    #[error("sleep and skip_release are switched off (ROWLOCK_SIMULATION)")]
    SimulationOff,
    #[error("this path does not exist; /docs lists the paths")]
    NotFound,
    #[error("the Allow header lists the methods of this path")]
    MethodNotAllowed,
    #[error("from: no row starts at byte {offset}; accepted: the offset of a row, 0 for the first, at most {end}")]
    NotARowStart { offset: u64, end: u64 },
    #[error("Range: accepted: bytes within the {0} bytes of the file")]
    RangeNotSatisfiable(u64),
    #[error("{0} clients are subscribed to /events, the most at once")]
    TooManySubscribers(usize),
    #[error("the request bodies being received take too many bytes (ROWLOCK_QUEUE_BYTES)")]
    BodyBudgetExceeded,
    #[error("the answers being sent hold too many bytes, since their clients read slowly")]
    AnswerBudgetExceeded,
    #[error("If-Match: accepted: the ETag of the file as it is now, or *")]
    PreconditionFailed,
    #[error("the rows could not be read")]
    ReadFailed,
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<ReadError> for ApiError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::NotARowStart { offset, end } => Self::NotARowStart { offset, end },
            ReadError::Behind { .. } => Self::Append(AppendError::FileBusy),
            ReadError::Io(e) if e.kind() == ErrorKind::TimedOut => {
                Self::Append(AppendError::StorageStuck(Outcome::NotWritten))
            }
            ReadError::Files(ref e) if AppendError::from(e) == AppendError::FileReplaced => {
                Self::Append(AppendError::FileReplaced)
            }
            ReadError::Files(_) | ReadError::Io(_) => {
                tracing::error!(error = %e, "rows could not be read");
                Self::ReadFailed
            }
        }
    }
}

/// The reason of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    BadRequest,
    BrokenBody,
    BadKey,
    Unauthorized,
    Forbidden,
    SimulationOff,
    NotFound,
    MethodNotAllowed,
    BodyTimeout,
    KeyInFlight,
    PreconditionFailed,
    BodyTooLarge,
    BatchTooLarge,
    UnsupportedMediaType,
    UriTooLong,
    RangeNotSatisfiable,
    HeadTooLarge,
    InvalidField,
    KeyReused,
    NotARowStart,
    RateLimited,
    SyncFailed,
    Internal,
    QueueFull,
    WaitTimeout,
    RedisUnavailable,
    RedisRejected,
    LockLost,
    FileBusy,
    FileReplaced,
    Draining,
    DiskFull,
}

impl std::fmt::Display for Code {
    /// The name in JSON, without quotes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// The status, title and retry advice of a code.
pub(crate) struct CodeFacts {
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    /// When to repeat the request; `None` if it cannot succeed.
    pub(crate) retry_after_secs: Option<u64>,
}

impl CodeFacts {
    const fn permanent(status: StatusCode, title: &'static str) -> Self {
        Self { status, title, retry_after_secs: None }
    }

    const fn retryable(status: StatusCode, title: &'static str, secs: u64) -> Self {
        Self { status, title, retry_after_secs: Some(secs) }
    }
}

impl Code {
    pub(crate) fn facts(self) -> CodeFacts {
        use StatusCode as S;
        match self {
            Self::BadRequest => CodeFacts::permanent(S::BAD_REQUEST, "The request is not valid HTTP"),
            Self::UriTooLong => CodeFacts::permanent(S::URI_TOO_LONG, "The target is too long"),
            Self::HeadTooLarge => CodeFacts::permanent(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "The head is too large"),
            Self::BrokenBody => CodeFacts::permanent(S::BAD_REQUEST, "The body cannot be read"),
            Self::BadKey => CodeFacts::permanent(S::BAD_REQUEST, "The Idempotency-Key is not accepted"),
            Self::Unauthorized => CodeFacts::permanent(S::UNAUTHORIZED, "A token is needed"),
            Self::Forbidden => CodeFacts::permanent(S::FORBIDDEN, "The token's role does not permit this"),
            Self::SimulationOff => CodeFacts::permanent(S::FORBIDDEN, "Simulation is switched off"),
            Self::NotFound => CodeFacts::permanent(S::NOT_FOUND, "No such path"),
            Self::MethodNotAllowed => CodeFacts::permanent(S::METHOD_NOT_ALLOWED, "The path does not have this method"),
            Self::BodyTimeout => CodeFacts::retryable(S::REQUEST_TIMEOUT, "The body did not arrive in time", 1),
            Self::KeyInFlight => CodeFacts::retryable(S::CONFLICT, "The first request with the key is in progress", 1),
            Self::PreconditionFailed => CodeFacts::permanent(S::PRECONDITION_FAILED, "The content has another ETag"),
            Self::BodyTooLarge => CodeFacts::permanent(S::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::BatchTooLarge => CodeFacts::permanent(S::PAYLOAD_TOO_LARGE, "The batch is too large"),
            Self::UnsupportedMediaType => {
                CodeFacts::permanent(S::UNSUPPORTED_MEDIA_TYPE, "The media type or coding of the body is not accepted")
            }
            Self::RangeNotSatisfiable => {
                CodeFacts::permanent(S::RANGE_NOT_SATISFIABLE, "The file does not have this range")
            }
            Self::InvalidField => CodeFacts::permanent(S::UNPROCESSABLE_ENTITY, "A field is wrong"),
            Self::KeyReused => CodeFacts::permanent(S::UNPROCESSABLE_ENTITY, "The key was used with other data"),
            Self::NotARowStart => CodeFacts::permanent(S::UNPROCESSABLE_ENTITY, "No row starts at this offset"),
            Self::RateLimited => CodeFacts::retryable(S::TOO_MANY_REQUESTS, "Too many requests from one client", 1),
            Self::SyncFailed => CodeFacts::permanent(S::INTERNAL_SERVER_ERROR, "The rows could not be made durable"),
            Self::Internal => CodeFacts::permanent(S::INTERNAL_SERVER_ERROR, "Internal error"),
            Self::QueueFull => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "The queue is full", 1),
            Self::WaitTimeout => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "The wait for the lock took too long", 1),
            Self::RedisUnavailable => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "Redis cannot be reached", 2),
            Self::RedisRejected => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "Redis rejects this replica", 2),
            Self::LockLost => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "The lock was lost", 1),
            Self::FileBusy => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "Another process holds the file", 2),
            Self::FileReplaced => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "Another program changed the file", 30),
            Self::Draining => CodeFacts::retryable(S::SERVICE_UNAVAILABLE, "This replica is shutting down", 1),
            Self::DiskFull => CodeFacts::retryable(S::INSUFFICIENT_STORAGE, "The volume is full", 10),
        }
    }
}

/// Rounded up and at least one, since a client that comes back early is refused again.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl ApiError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidField(_) | Self::Append(AppendError::InvalidField(_)) => Code::InvalidField,
            Self::BadRequest(_) => Code::BadRequest,
            Self::UriTooLong => Code::UriTooLong,
            Self::HeadTooLarge => Code::HeadTooLarge,
            Self::BrokenBody(_) => Code::BrokenBody,
            Self::BadKey => Code::BadKey,
            Self::BodyTooLarge(_) => Code::BodyTooLarge,
            Self::BodyTimeout(_) => Code::BodyTimeout,
            Self::UnsupportedMediaType | Self::UnsupportedBatchType | Self::UnsupportedEncoding => {
                Code::UnsupportedMediaType
            }
            Self::Unauthorized { .. } => Code::Unauthorized,
            Self::Forbidden(_) => Code::Forbidden,
            Self::RateLimited(_) => Code::RateLimited,
            Self::SimulationOff => Code::SimulationOff,
            Self::NotARowStart { .. } => Code::NotARowStart,
            Self::RangeNotSatisfiable(_) => Code::RangeNotSatisfiable,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
            Self::Append(AppendError::KeyReused) => Code::KeyReused,
            Self::Append(AppendError::KeyInFlight) => Code::KeyInFlight,
            Self::BatchTooLarge(_) | Self::Append(AppendError::BatchTooLarge(_) | AppendError::RowTooLarge(_)) => {
                Code::BatchTooLarge
            }
            Self::PreconditionFailed => Code::PreconditionFailed,
            Self::TooManySubscribers(_)
            | Self::BodyBudgetExceeded
            | Self::AnswerBudgetExceeded
            | Self::Append(AppendError::QueueFull) => Code::QueueFull,
            Self::Append(AppendError::WaitTimeout(_) | AppendError::KeyMayBeForgotten) => Code::WaitTimeout,
            Self::Append(AppendError::LockUnavailable(_)) => Code::RedisUnavailable,
            Self::Append(AppendError::LockRejected) => Code::RedisRejected,
            Self::Append(AppendError::LockLost) => Code::LockLost,
            Self::Append(AppendError::FileBusy | AppendError::StorageStuck(Outcome::NotWritten)) => Code::FileBusy,
            Self::Append(AppendError::FileReplaced) => Code::FileReplaced,
            Self::Append(AppendError::Draining) => Code::Draining,
            Self::Append(AppendError::DiskFull) => Code::DiskFull,
            Self::Append(AppendError::SyncFailed) => Code::SyncFailed,
            Self::ReadFailed | Self::Append(AppendError::StorageStuck(_) | AppendError::Internal(_)) => Code::Internal,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Append(e) => e.outcome(),
            Self::InvalidField(_)
            | Self::BadRequest(_)
            | Self::UriTooLong
            | Self::HeadTooLarge
            | Self::BrokenBody(_)
            | Self::BadKey
            | Self::BodyTooLarge(_)
            | Self::BodyTimeout(_)
            | Self::UnsupportedMediaType
            | Self::UnsupportedBatchType
            | Self::UnsupportedEncoding
            | Self::BatchTooLarge(_)
            | Self::Unauthorized { .. }
            | Self::Forbidden(_)
            | Self::RateLimited(_)
            | Self::SimulationOff
            | Self::NotARowStart { .. }
            | Self::RangeNotSatisfiable(_)
            | Self::TooManySubscribers(_)
            | Self::BodyBudgetExceeded
            | Self::AnswerBudgetExceeded
            | Self::PreconditionFailed
            | Self::ReadFailed
            | Self::NotFound
            | Self::MethodNotAllowed => Outcome::NotWritten,
        }
    }

    /// The value of `WWW-Authenticate`, after RFC 6750.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized { unknown_token: false } => Some("Bearer realm=\"rowlock\""),
            Self::Unauthorized { unknown_token: true } => Some("Bearer realm=\"rowlock\", error=\"invalid_token\""),
            Self::Forbidden(_) => Some("Bearer realm=\"rowlock\", error=\"insufficient_scope\""),
            _ => None,
        }
    }

    /// What a 415 accepts, after RFC 9110, 15.5.16.
    fn accepted(&self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::UnsupportedMediaType => {
                Some((header::ACCEPT, "application/json, application/x-www-form-urlencoded, text/plain"))
            }
            Self::UnsupportedBatchType => Some((header::ACCEPT, "text/csv, application/x-ndjson, application/json")),
            Self::UnsupportedEncoding => Some((header::ACCEPT_ENCODING, "gzip, zstd, identity")),
            _ => None,
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::InvalidField(e) | Self::Append(AppendError::InvalidField(e)) => Some(&e.field),
            Self::NotARowStart { .. } => Some("from"),
            _ => None,
        }
    }
}

/// A refusal, after RFC 9457.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "urn:rowlock:problem:invalid_field",
    "title": "A field is wrong",
    "status": 422,
    "detail": "accepted: a number of seconds from 0 to 60",
    "code": "invalid_field",
    "retryable": false,
    "outcome": "not_written",
    "field": "sleep",
    "request_id": "9a7b990b-f970-4bd5-8d89-91b1664e3210",
}))]
pub(crate) struct Problem {
    /// `urn:rowlock:problem:` and the code.
    #[schema(format = "uri")]
    r#type: String,
    /// The meaning of the code.
    title: &'static str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong and what is accepted.
    pub(crate) detail: String,
    pub(crate) code: Code,
    /// Whether the same request may succeed later; `Retry-After` says when to try.
    retryable: bool,
    pub(crate) outcome: Outcome,
    /// The wrong field, for `invalid_field` and `not_a_row_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
    // Set by the outermost layer.
    /// The value of `X-Request-Id`.
    pub(crate) request_id: String,
}

impl IntoResponse for ApiError {
    /// Stores the problem as an extension; `with_request_context` writes the body.
    fn into_response(self) -> Response {
        let code = self.code();
        let CodeFacts { status, title, retry_after_secs } = code.facts();
        let problem = Problem {
            r#type: format!("urn:rowlock:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: self.to_string(),
            code,
            retryable: retry_after_secs.is_some(),
            outcome: self.outcome(),
            field: self.field().map(str::to_owned),
            request_id: String::new(),
        };
        let mut response = status.into_response();
        let wait = if let Self::RateLimited(wait) = self { Some(whole_seconds(wait)) } else { retry_after_secs };
        if let Some(secs) = wait {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some((name, accepted)) = self.accepted() {
            response.headers_mut().insert(name, HeaderValue::from_static(accepted));
        }
        response.extensions_mut().insert(problem);
        response
    }
}
