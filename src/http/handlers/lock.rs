//! `/lock`: who has it, who waits for it, and a forced release.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use crate::api::lock_status::{ForcedRelease, LockStatus};
use crate::http::{
    app::App,
    contract::document::{LockRefused, ReleaseRefused},
    error::ApiError,
};

/// Who has the lock, and who waits for it
#[utoipa::path(
    get,
    path = "/lock",
    tag = "lock",
    operation_id = "lockStatus",
    responses((status = OK, description = "As of now.", body = LockStatus), LockRefused),
)]
pub(crate) async fn status(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(Json(app.appender.lock_status().await?).into_response())
}

/// Take the lock from whoever has it
///
/// A newer token is recorded first, so that the old holder writes nothing any more; then the longest waiter gets the lock.
/// A row that was sleeping under it is refused (`lock_lost`). An embedded lock that another process keeps stays its own.
#[utoipa::path(
    delete,
    path = "/lock",
    tag = "lock",
    operation_id = "forceRelease",
    responses((status = OK, description = "Done.", body = ForcedRelease), ReleaseRefused),
)]
pub(crate) async fn release(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(Json(app.appender.force_release().await?).into_response())
}
