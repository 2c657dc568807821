//! `/lock`: who has it, who waits for it, and a forced release.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{App, error::ApiError};

/// Holder, token, time to live, and the waiters in order.
pub(super) async fn status(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(Json(app.appender.lock_status().await?).into_response())
}

/// Fences the holder out and hands the lock over.
pub(super) async fn release(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(Json(app.appender.force_release().await?).into_response())
}
