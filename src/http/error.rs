//! Every status code and every error code that this service answers.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    commit::{AppendError, Outcome, reading::ReadError},
    schema::InvalidField,
};

/// A refusal, as http knows it.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ApiError {
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
    #[error("sleep and skip_release are switched off here (ROWLOCK_SIMULATION)")]
    SimulationOff,
    #[error("there is nothing at this path; see the README for what there is")]
    NotFound,
    #[error("the Allow header names the methods of this path")]
    MethodNotAllowed,
    #[error("from: no row begins at byte {offset}; accepted: the offset of a row, 0 for the first, at most {end}")]
    NotARowStart { offset: u64, end: u64 },
    #[error("Range: accepted: bytes within the {0} that there are")]
    RangeNotSatisfiable(u64),
    #[error("{0} readers of events are here already, the most at once")]
    TooManyWatchers(usize),
    #[error("the rows could not be read")]
    ReadFailed,
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<ReadError> for ApiError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::NotARowStart { offset, end } => Self::NotARowStart { offset, end },
            ReadError::Files(_) | ReadError::Io(_) => {
                tracing::error!(error = %e, "rows could not be read");
                Self::ReadFailed
            }
        }
    }
}

/// What a kind of refusal always says.
struct Facts {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    retryable: bool,
    retry_after_secs: Option<u64>,
}

impl Facts {
    const fn refused(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title, retryable: false, retry_after_secs: None }
    }

    const fn try_again(status: StatusCode, code: &'static str, title: &'static str, secs: u64) -> Self {
        Self { status, code, title, retryable: true, retry_after_secs: Some(secs) }
    }
}

impl ApiError {
    fn facts(&self) -> Facts {
        use StatusCode as S;
        match self {
            Self::InvalidField(_) | Self::Append(AppendError::InvalidField(_)) => {
                Facts::refused(S::UNPROCESSABLE_ENTITY, "invalid_field", "A field is wrong")
            }
            Self::BrokenBody(_) => Facts::refused(S::BAD_REQUEST, "broken_body", "The body cannot be read"),
            Self::BadKey => Facts::refused(S::BAD_REQUEST, "bad_key", "Idempotency-Key cannot be taken"),
            Self::BodyTooLarge(_) => Facts::refused(S::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large"),
            Self::BodyTimeout(_) => {
                Facts::try_again(S::REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time", 1)
            }
            Self::UnsupportedMediaType | Self::UnsupportedBatchType => {
                Facts::refused(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body's type is not accepted")
            }
            Self::SimulationOff => Facts::refused(S::FORBIDDEN, "simulation_off", "Simulation is switched off"),
            Self::NotARowStart { .. } => {
                Facts::refused(S::UNPROCESSABLE_ENTITY, "not_a_row_start", "No row begins there")
            }
            Self::RangeNotSatisfiable(_) => {
                Facts::refused(S::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", "No such part of the file")
            }
            Self::NotFound => Facts::refused(S::NOT_FOUND, "not_found", "No such path"),
            Self::MethodNotAllowed => {
                Facts::refused(S::METHOD_NOT_ALLOWED, "method_not_allowed", "No such method here")
            }
            Self::Append(AppendError::KeyReused) => {
                Facts::refused(S::UNPROCESSABLE_ENTITY, "key_reused", "The key came with other data before")
            }
            Self::Append(AppendError::KeyInFlight) => {
                Facts::try_again(S::CONFLICT, "key_in_flight", "The key's first request is under way", 1)
            }
            Self::Append(AppendError::KeyOutrun) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "wait_timeout", "The turn did not come in time", 1)
            }
            Self::BatchTooLarge(_) | Self::Append(AppendError::BatchTooLarge(_)) => {
                Facts::refused(S::PAYLOAD_TOO_LARGE, "batch_too_large", "The rows are too many for one request")
            }
            Self::TooManyWatchers(_) | Self::Append(AppendError::QueueFull) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "queue_full", "Too much waits already", 1)
            }
            Self::Append(AppendError::WaitTimeout(_)) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "wait_timeout", "The turn did not come in time", 1)
            }
            Self::Append(AppendError::LockUnavailable(_)) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "redis_unavailable", "Redis is out of reach", 2)
            }
            Self::Append(AppendError::LockLost) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "lock_lost", "The lock was lost", 1)
            }
            Self::Append(AppendError::FileBusy) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "file_busy", "Another process keeps the file", 2)
            }
            Self::Append(AppendError::Draining) => {
                Facts::try_again(S::SERVICE_UNAVAILABLE, "draining", "This replica is shutting down", 1)
            }
            Self::Append(AppendError::DiskFull) => {
                Facts::try_again(S::INSUFFICIENT_STORAGE, "disk_full", "The volume is full", 10)
            }
            Self::Append(AppendError::SyncFailed) => {
                Facts::refused(S::INTERNAL_SERVER_ERROR, "sync_failed", "The rows could not be made durable")
            }
            Self::ReadFailed | Self::Append(AppendError::Internal(_)) => {
                Facts::refused(S::INTERNAL_SERVER_ERROR, "internal", "Something went wrong here")
            }
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
            | Self::SimulationOff
            | Self::NotARowStart { .. }
            | Self::RangeNotSatisfiable(_)
            | Self::TooManyWatchers(_)
            | Self::ReadFailed
            | Self::NotFound
            | Self::MethodNotAllowed => Outcome::NotWritten,
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

/// An RFC 9457 problem, without the request's id, which only the outermost layer knows.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    pub(super) code: &'static str,
    retryable: bool,
    pub(super) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

impl IntoResponse for ApiError {
    /// Carries the problem as an extension; `edge` writes the body.
    fn into_response(self) -> Response {
        let facts = self.facts();
        let problem = Problem {
            r#type: format!("urn:rowlock:problem:{}", facts.code),
            title: facts.title,
            status: facts.status.as_u16(),
            detail: self.to_string(),
            code: facts.code,
            retryable: facts.retryable,
            outcome: match self.outcome() {
                Outcome::NotWritten => "not_written",
                Outcome::Unknown => "unknown",
            },
            field: self.field().map(str::to_owned),
        };
        let mut response = facts.status.into_response();
        if let Some(secs) = facts.retry_after_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if matches!(self, Self::BodyTooLarge(_) | Self::BatchTooLarge(_)) {
            // The rest of the body may still be on its way: nothing more can be said on this connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(problem);
        response
    }
}
