//! `POST /append/batch`: many rows, all or none.

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::{
    app::App,
    body::{
        batch::BatchParser,
        media_type::{BatchType, batch_type},
        read,
    },
    contract::document::{BatchRefused, BodyEncoding, IdempotencyKey},
    error::ApiError,
    handlers::append::{idempotency_key, written},
};
use crate::{api::acknowledgement::Ack, csv::idempotency_key::Key, simulation::Simulation};

/// Proof that all rows of a batch are durable, and where.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchAck, example = json!({
    "rows": 2, "offset": 29, "bytes": 80, "token": 1, "replica": "r1", "waited_ms": 0, "held_ms": 1, "released": true,
}))]
struct BatchAck<'a> {
    /// Rows written.
    #[schema(minimum = 1)]
    rows: usize,
    #[serde(flatten)]
    ack: &'a Ack,
}

/// Append many rows, all or none
///
/// All rows stand together in the file, under one token and one sync. The first line that does not fit the file refuses the
/// whole, without waiting for the rest; the 422 names the line (for a JSON array, the row) and the field.
#[utoipa::path(
    post,
    path = "/append/batch",
    tag = "rows",
    operation_id = "appendBatch",
    params(IdempotencyKey, BodyEncoding),
    request_body(
        description = "At most ROWLOCK_BATCH_LIMIT bytes once decoded (64 MiB unless set), UTF-8, within 30 s; its rows must \
            fit half of ROWLOCK_JOURNAL_BYTES.",
        content(
            (ref("#/components/schemas/CsvRows") = "text/csv", examples(
                ("header" = (value = json!("data\nOslo\n"))),
            )),
            (ref("#/components/schemas/JsonLines") = "application/x-ndjson", examples(
                ("lines" = (value = json!("\"Oslo\"\n[\"Bergen\"]\n{\"data\":\"Tromsø\"}\n"))),
            )),
            (ref("#/components/schemas/JsonRows") = "application/json", examples(
                ("rows" = (value = json!([{"data": "Oslo"}, ["Bergen"], "Tromsø"]))),
            )),
        ),
    ),
    responses(
        (status = CREATED, description = "The rows are durable.", body = BatchAck, headers(
            ("Location" = String, description = "Where they can be read."),
            ("Idempotent-Replayed" = bool, description = "`true`: the key was known; this is the answer that it got before."),
        )),
        BatchRefused,
    ),
)]
pub(crate) async fn append_batch(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let (batch_type, key) = match check_headers(&headers) {
        Ok(checked) => checked,
        Err(e) => return Err(read::refuse(&headers, body, e).await),
    };
    let bytes_max = app.limits.batch_bytes_max;
    let mut parser = BatchParser::new(batch_type, app.appender.schema());
    let read = read::read_in_pieces(&headers, body, bytes_max, &app.room, |piece| parser.push(piece)).await;
    read.map_err(|e| match e {
        ApiError::BodyTooLarge(_) => ApiError::BatchTooLarge(bytes_max),
        other => other,
    })?;
    let rows = parser.finish()?;
    let key = key.map(|text| Key::new(&text, &rows).ok_or(ApiError::BadKey)).transpose()?;
    let ack = app.appender.append(rows, Simulation::default(), key).await?;
    Ok(written(&BatchAck { rows: ack.rows, ack: &ack }, &ack))
}

fn check_headers(headers: &HeaderMap) -> Result<(BatchType, Option<String>), ApiError> {
    let key = idempotency_key(headers)?;
    Ok((batch_type(headers)?, key))
}
