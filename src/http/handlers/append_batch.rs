//! `POST /append/batch`: appends many rows, all or none.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::HeaderMap,
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::{
    app::App,
    body::{
        batch::{BatchParser, ParsedBatch},
        batch_rows::BatchLimits,
        media_type::BatchType,
        read,
    },
    contract::{
        parameters::{BodyEncoding, IdempotencyKey},
        refusals::BatchRefused,
    },
    created::created,
    error::ApiError,
    idempotency_key::idempotency_key,
};
use crate::{api::acknowledgement::Acknowledgement, csv::idempotency_key::Key, simulation::Simulation};

/// All rows of a batch are durable.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchAck, example = json!({
    "rows": 2, "offset": 29, "bytes": 80, "token": 1, "replica": "r1", "waited_ms": 0, "held_ms": 1, "released": true,
}))]
struct BatchAcknowledgement<'a> {
    /// How many rows were written.
    #[schema(minimum = 1)]
    rows: usize,
    /// How many blank lines were skipped; left out if there were none.
    #[serde(skip_serializing_if = "crate::api::events::is_zero")]
    #[schema(minimum = 1, required = false)]
    skipped_lines: u64,
    #[serde(flatten)]
    ack: &'a Acknowledgement,
}

/// Append many rows, all or none
///
/// All rows are consecutive in the file and are written under one token with one sync. The first line that does not fit the columns
/// refuses the whole batch at once; the 422 names the line (in a JSON array, the row) and the field.
#[utoipa::path(
    post,
    path = "/append/batch",
    tag = "rows",
    operation_id = "appendBatch",
    params(IdempotencyKey, BodyEncoding),
    request_body(
        description = "At most ROWLOCK_BATCH_LIMIT bytes after decoding (default 64 MiB) of UTF-8, received within 30 s. Its rows must \
            fit half of ROWLOCK_JOURNAL_BYTES. One row may take an eighth of ROWLOCK_BATCH_LIMIT.",
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
        (status = CREATED, description = "The rows are durable.", body = BatchAcknowledgement, headers(
            ("Location" = String, description = "Where to read the rows."),
            ("Idempotent-Replayed" = bool, description = "`true`: the key was known. This is the answer of its first request; nothing was written now."),
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
    let limits = BatchLimits::new(bytes_max, app.appender.file_room(key.as_deref()));
    let mut parser = BatchParser::new(batch_type, app.appender.schema(), limits);
    let parse = |piece: Bytes| parser.push(&piece).map(|()| parser.held_bytes());
    let parsed = read::read_in_pieces(&headers, body, bytes_max, &app.body_budget, parse).await;
    parsed.map_err(|e| match e {
        ApiError::BodyTooLarge(_) => {
            ApiError::BatchTooLarge(format!("the decoded body is larger than {bytes_max} bytes (ROWLOCK_BATCH_LIMIT)"))
        }
        other => other,
    })?;
    let ParsedBatch { rows, skipped_lines } = parser.finish()?;
    let key = key.map(|text| Key::new(&text, &rows).ok_or(ApiError::BadKey)).transpose()?;
    let ack = app.appender.append(rows, Simulation::default(), key).await?;
    Ok(created(&BatchAcknowledgement { rows: ack.rows, skipped_lines, ack: &ack }, &ack))
}

fn check_headers(headers: &HeaderMap) -> Result<(BatchType, Option<String>), ApiError> {
    let key = idempotency_key(headers)?;
    Ok((BatchType::of(headers)?, key))
}
