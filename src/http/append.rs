//! `POST /append`: one row.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};

use super::{
    App,
    append_request::AppendRequest,
    body::{self, MediaType},
    error::ApiError,
};

/// Parses, checks and quotes on the request's own task, then waits for the row's turn.
pub(super) async fn append(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let media_type = match check_headers(&headers) {
        Ok(media_type) => media_type,
        Err(e) => return Err(body::refuse(&headers, body, e).await),
    };
    let body = body::read(&headers, body, app.limits.body_bytes_max).await?;
    let request = AppendRequest::parse(media_type, &body, app.limits.sleep_max)?;
    if request.simulation.wants_own_turn() && !app.limits.simulation {
        return Err(ApiError::SimulationOff);
    }
    let record = app.appender.schema().record(&request.data)?;
    let simulation = request.simulation;
    drop(body);
    let ack = app.appender.append(record, simulation).await?;
    let mut response = (StatusCode::CREATED, Json(&ack)).into_response();
    response.extensions_mut().insert(ack);
    Ok(response)
}

fn check_headers(headers: &HeaderMap) -> Result<MediaType, ApiError> {
    // A key that is not remembered would promise what is not kept.
    if headers.contains_key("idempotency-key") {
        return Err(ApiError::BadKey);
    }
    body::media_type(headers)
}
