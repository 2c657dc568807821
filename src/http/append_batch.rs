//! `POST /append/batch`: many rows, all or none.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    App,
    append::{idempotency_key, written},
    batch_request::{BatchType, batch_type, parse},
    body,
    error::ApiError,
};
use crate::record::{Ack, Key, Simulation};

/// Larger bodies are parsed on a thread of their own, so that nobody else's answer waits for it.
const PARSE_HERE_BYTES_MAX: usize = 256 << 10;

#[derive(Serialize)]
struct BatchAck<'a> {
    rows: usize,
    #[serde(flatten)]
    ack: &'a Ack,
}

/// Parses, checks and quotes all of it, then waits for its turn.
pub(super) async fn append_batch(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let (batch_type, key) = match check_headers(&headers) {
        Ok(checked) => checked,
        Err(e) => return Err(body::refuse(&headers, body, e).await),
    };
    let bytes_max = app.limits.batch_bytes_max;
    let body = body::read(&headers, body, bytes_max).await.map_err(|e| match e {
        ApiError::BodyTooLarge(_) => ApiError::BatchTooLarge(bytes_max),
        other => other,
    })?;
    let (bytes, appender) = (body.len(), app.appender.clone());
    let parse = move || parse(batch_type, &body, appender.schema());
    let rows = if bytes <= PARSE_HERE_BYTES_MAX {
        parse()?
    } else {
        let parsed = tokio::task::spawn_blocking(parse).await;
        parsed.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?
    };
    let key = key.map(|text| Key::new(&text, &rows).ok_or(ApiError::BadKey)).transpose()?;
    let ack = app.appender.append(rows, Simulation::default(), key).await?;
    let response = (StatusCode::CREATED, Json(BatchAck { rows: ack.rows, ack: &ack })).into_response();
    Ok(written(response, ack))
}

fn check_headers(headers: &HeaderMap) -> Result<(BatchType, Option<String>), ApiError> {
    let key = idempotency_key(headers)?;
    Ok((batch_type(headers)?, key))
}
