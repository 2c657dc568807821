//! `POST /append`: appends one row.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, request::Parts},
    response::Response,
};

use crate::http::{
    app::App,
    body::{append::AppendRequest, media_type::MediaType, read},
    contract::{
        parameters::{BodyEncoding, IdempotencyKey},
        refusals::AppendRefused,
    },
    created::created,
    error::ApiError,
    idempotency_key::idempotency_key,
};
use crate::{api::acknowledgement::Acknowledgement, csv::idempotency_key::Key};

/// Append one row
///
/// Waits for the lock, appends the row, and answers once the row is durable. A form has the same fields, with `data` as a string. A plain
/// text is `data`.
#[utoipa::path(
    post,
    path = "/append",
    tag = "rows",
    operation_id = "append",
    params(IdempotencyKey, BodyEncoding),
    request_body(
        description = "At most ROWLOCK_BODY_LIMIT bytes after decoding (default 1 MiB) of UTF-8, received within 30 s.",
        content(
            (ref("#/components/schemas/AppendRequest") = "application/json", examples(
                ("a_cell" = (value = json!({"data": "hello"}))),
                ("cells_in_order" = (value = json!({"data": ["Oslo", 709_037, true]}))),
                ("cells_by_name" = (value = json!({"data": {"city": "Oslo", "people": 709_037}}))),
                ("slow" = (value = json!({"data": "slow", "sleep": 2.5}))),
                ("crash" = (value = json!({"data": "crash", "skip_release": true}))),
            )),
            (ref("#/components/schemas/AppendForm") = "application/x-www-form-urlencoded"),
            (ref("#/components/schemas/AppendText") = "text/plain"),
        ),
    ),
    responses(
        (status = CREATED, description = "The row is durable.", body = Acknowledgement, headers(
            ("Location" = String, description = "Where to read the row, `/rows?from=OFFSET&limit=1`."),
            ("Idempotent-Replayed" = bool, description = "`true`: the key was known. This is the answer of its first request; nothing was written now."),
        )),
        AppendRefused,
    ),
)]
pub(crate) async fn append(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let (media_type, key) = match check_headers(&headers) {
        Ok(checked) => checked,
        Err(e) => return Err(read::refuse(&headers, body, e).await),
    };
    let body = read::read(&headers, body, app.limits.body_bytes_max, &app.body_budget).await?;
    let request = AppendRequest::parse(media_type, &body, app.appender.schema(), app.limits.sleep_max)?;
    if request.simulation.wants_own_turn() && !app.limits.simulation {
        return Err(ApiError::SimulationOff);
    }
    let (schema, simulation) = (app.appender.schema(), request.simulation);
    let mut rows = schema.rows();
    schema.push(&request.data, &mut rows)?;
    let key = key.map(|text| Key::new(&text, &rows).ok_or(ApiError::BadKey)).transpose()?;
    // Frees their memory while the row waits for the lock.
    drop((headers, body));
    let ack = app.appender.append(rows, simulation, key).await?;
    Ok(created(&ack, &ack))
}

fn check_headers(headers: &HeaderMap) -> Result<(MediaType, Option<String>), ApiError> {
    let key = idempotency_key(headers)?;
    Ok((MediaType::of(headers)?, key))
}
