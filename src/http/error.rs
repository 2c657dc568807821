//! Every status code and every error code that this service answers.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::middleware::rate_limit::whole_seconds;
use crate::{
    commit::{AppendError, Outcome, reading::ReadError},
    csv::schema::InvalidField,
};

/// A refusal, as http knows it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{}", .0.detail)]
    InvalidField(#[from] InvalidField),
    #[error("{0}")]
    BrokenBody(String),
    #[error("Idempotency-Key: accepted, once: 1 to 255 printable ASCII characters, bare or in double quotes")]
    BadKey,
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("the body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    #[error("accepted: application/json or application/x-www-form-urlencoded, in UTF-8")]
    UnsupportedMediaType,
    #[error(
        "accepted, in UTF-8, plain or with Content-Encoding gzip or zstd: text/csv (header=present or header=absent), application/x-ndjson, application/json"
    )]
    UnsupportedBatchType,
    #[error("the body is larger than {0} bytes once decoded (ROWLOCK_BATCH_LIMIT)")]
    BatchTooLarge(usize),
    #[error("{}", if *.unknown_token { "the token is not known" } else { "Authorization: accepted: Bearer and a token" })]
    Unauthorized { unknown_token: bool },
    #[error("the token's role does not reach this; needed: {0}")]
    Forbidden(&'static str),
    #[error("more than one client may ask for (ROWLOCK_RATE_LIMIT); the next request may come in {0:?}")]
    RateLimited(Duration),
    #[error("sleep and skip_release are switched off here (ROWLOCK_SIMULATION)")]
    SimulationOff,
    #[error("there is nothing at this path; see /docs for what there is")]
    NotFound,
    #[error("the Allow header names the methods of this path")]
    MethodNotAllowed,
    #[error("from: no row begins at byte {offset}; accepted: the offset of a row, 0 for the first, at most {end}")]
    NotARowStart { offset: u64, end: u64 },
    #[error("Range: accepted: bytes within the {0} that there are")]
    RangeNotSatisfiable(u64),
    #[error("{0} readers of events are here already, the most at once")]
    TooManyWatchers(usize),
    #[error("too many bytes of bodies are under way (ROWLOCK_QUEUE_BYTES)")]
    TooMuchUnderWay,
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
            ReadError::Files(_) | ReadError::Io(_) => {
                tracing::error!(error = %e, "rows could not be read");
                Self::ReadFailed
            }
        }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    BrokenBody,
    BadKey,
    Unauthorized,
    Forbidden,
    SimulationOff,
    NotFound,
    MethodNotAllowed,
    BodyTimeout,
    KeyInFlight,
    BodyTooLarge,
    BatchTooLarge,
    UnsupportedMediaType,
    RangeNotSatisfiable,
    InvalidField,
    KeyReused,
    NotARowStart,
    RateLimited,
    SyncFailed,
    Internal,
    QueueFull,
    WaitTimeout,
    RedisUnavailable,
    LockLost,
    FileBusy,
    Draining,
    DiskFull,
}

impl std::fmt::Display for Code {
    /// As JSON has it, without the quotes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// What a code always comes with.
pub(crate) struct Facts {
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    /// How soon the same request may succeed, if it ever may.
    pub(crate) retry_after_secs: Option<u64>,
}

impl Facts {
    const fn refused(status: StatusCode, title: &'static str) -> Self {
        Self { status, title, retry_after_secs: None }
    }

    const fn try_again(status: StatusCode, title: &'static str, secs: u64) -> Self {
        Self { status, title, retry_after_secs: Some(secs) }
    }
}

impl Code {
    pub(crate) fn facts(self) -> Facts {
        use StatusCode as S;
        match self {
            Self::BrokenBody => Facts::refused(S::BAD_REQUEST, "The body cannot be read"),
            Self::BadKey => Facts::refused(S::BAD_REQUEST, "Idempotency-Key cannot be taken"),
            Self::Unauthorized => Facts::refused(S::UNAUTHORIZED, "A token is needed"),
            Self::Forbidden => Facts::refused(S::FORBIDDEN, "The token's role does not reach this"),
            Self::SimulationOff => Facts::refused(S::FORBIDDEN, "Simulation is switched off"),
            Self::NotFound => Facts::refused(S::NOT_FOUND, "No such path"),
            Self::MethodNotAllowed => Facts::refused(S::METHOD_NOT_ALLOWED, "No such method here"),
            Self::BodyTimeout => Facts::try_again(S::REQUEST_TIMEOUT, "The body did not arrive in time", 1),
            Self::KeyInFlight => Facts::try_again(S::CONFLICT, "The key's first request is under way", 1),
            Self::BodyTooLarge => Facts::refused(S::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::BatchTooLarge => Facts::refused(S::PAYLOAD_TOO_LARGE, "The rows are too many for one request"),
            Self::UnsupportedMediaType => Facts::refused(S::UNSUPPORTED_MEDIA_TYPE, "The body's type is not accepted"),
            Self::RangeNotSatisfiable => Facts::refused(S::RANGE_NOT_SATISFIABLE, "No such part of the file"),
            Self::InvalidField => Facts::refused(S::UNPROCESSABLE_ENTITY, "A field is wrong"),
            Self::KeyReused => Facts::refused(S::UNPROCESSABLE_ENTITY, "The key came with other data before"),
            Self::NotARowStart => Facts::refused(S::UNPROCESSABLE_ENTITY, "No row begins there"),
            Self::RateLimited => Facts::try_again(S::TOO_MANY_REQUESTS, "Too many requests of one client", 1),
            Self::SyncFailed => Facts::refused(S::INTERNAL_SERVER_ERROR, "The rows could not be made durable"),
            Self::Internal => Facts::refused(S::INTERNAL_SERVER_ERROR, "Something went wrong here"),
            Self::QueueFull => Facts::try_again(S::SERVICE_UNAVAILABLE, "Too much waits already", 1),
            Self::WaitTimeout => Facts::try_again(S::SERVICE_UNAVAILABLE, "The turn did not come in time", 1),
            Self::RedisUnavailable => Facts::try_again(S::SERVICE_UNAVAILABLE, "Redis is out of reach", 2),
            Self::LockLost => Facts::try_again(S::SERVICE_UNAVAILABLE, "The lock was lost", 1),
            Self::FileBusy => Facts::try_again(S::SERVICE_UNAVAILABLE, "Another process keeps the file", 2),
            Self::Draining => Facts::try_again(S::SERVICE_UNAVAILABLE, "This replica is shutting down", 1),
            Self::DiskFull => Facts::try_again(S::INSUFFICIENT_STORAGE, "The volume is full", 10),
        }
    }
}

impl ApiError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidField(_) | Self::Append(AppendError::InvalidField(_)) => Code::InvalidField,
            Self::BrokenBody(_) => Code::BrokenBody,
            Self::BadKey => Code::BadKey,
            Self::BodyTooLarge(_) => Code::BodyTooLarge,
            Self::BodyTimeout(_) => Code::BodyTimeout,
            Self::UnsupportedMediaType | Self::UnsupportedBatchType => Code::UnsupportedMediaType,
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
            Self::BatchTooLarge(_) | Self::Append(AppendError::BatchTooLarge(_)) => Code::BatchTooLarge,
            Self::TooManyWatchers(_) | Self::TooMuchUnderWay | Self::Append(AppendError::QueueFull) => Code::QueueFull,
            Self::Append(AppendError::WaitTimeout(_) | AppendError::KeyOutrun) => Code::WaitTimeout,
            Self::Append(AppendError::LockUnavailable(_)) => Code::RedisUnavailable,
            Self::Append(AppendError::LockLost) => Code::LockLost,
            Self::Append(AppendError::FileBusy) => Code::FileBusy,
            Self::Append(AppendError::Draining) => Code::Draining,
            Self::Append(AppendError::DiskFull) => Code::DiskFull,
            Self::Append(AppendError::SyncFailed) => Code::SyncFailed,
            Self::ReadFailed | Self::Append(AppendError::Internal(_)) => Code::Internal,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Append(e) => e.outcome(),
            Self::InvalidField(_)
            | Self::BrokenBody(_)
            | Self::BadKey
            | Self::BodyTooLarge(_)
            | Self::BodyTimeout(_)
            | Self::UnsupportedMediaType
            | Self::UnsupportedBatchType
            | Self::BatchTooLarge(_)
            | Self::Unauthorized { .. }
            | Self::Forbidden(_)
            | Self::RateLimited(_)
            | Self::SimulationOff
            | Self::NotARowStart { .. }
            | Self::RangeNotSatisfiable(_)
            | Self::TooManyWatchers(_)
            | Self::TooMuchUnderWay
            | Self::ReadFailed
            | Self::NotFound
            | Self::MethodNotAllowed => Outcome::NotWritten,
        }
    }

    /// What a client is to show, after RFC 6750.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized { unknown_token: false } => Some("Bearer realm=\"rowlock\""),
            Self::Unauthorized { unknown_token: true } => Some("Bearer realm=\"rowlock\", error=\"invalid_token\""),
            Self::Forbidden(_) => Some("Bearer realm=\"rowlock\", error=\"insufficient_scope\""),
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

/// A refusal, as RFC 9457 has it.
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
    /// The code in words.
    title: &'static str,
    /// The answer's status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong, and what is accepted.
    pub(crate) detail: String,
    pub(crate) code: Code,
    /// The same request may succeed later; `Retry-After` says when to try.
    retryable: bool,
    pub(crate) outcome: Outcome,
    /// The field that is wrong, for `invalid_field` and `not_a_row_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
    // Only the outermost layer knows it.
    /// As `X-Request-Id` has it.
    pub(crate) request_id: String,
}

impl IntoResponse for ApiError {
    /// Carries the problem as an extension; `edge` writes the body.
    fn into_response(self) -> Response {
        let code = self.code();
        let Facts { status, title, retry_after_secs } = code.facts();
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
        if matches!(self, Self::BodyTooLarge(_) | Self::BatchTooLarge(_)) {
            // The rest of the body may still be on its way: nothing more can be said on this connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(problem);
        response
    }
}
