//! `/lock`: the lock's status, and its forced release.

use axum::{extract::State, response::Response};

use crate::api::lock_status::{ForcedRelease, LockStatus};
use crate::http::{
    app::App,
    contract::refusals::{LockRefused, ReleaseRefused},
    error::ApiError,
    json::json_answer,
};

/// The lock's holder and waiters
///
/// Says which replica holds the lock, under which token and for how long, and which replicas wait, the longest waiter first.
#[utoipa::path(
    get,
    path = "/lock",
    tag = "lock",
    operation_id = "lockStatus",
    responses((status = OK, description = "The current state.", body = LockStatus), LockRefused),
)]
pub(crate) async fn status(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(json_answer(&app.appender.lock_status().await?))
}

/// Take the lock from its holder
///
/// First records a newer token, so that the old holder cannot write any more; then grants the lock to the longest waiter. A row of the
/// old holder that waits for the end of its `sleep` is refused with `lock_lost`. An embedded lock that another process holds is not
/// taken.
#[utoipa::path(
    delete,
    path = "/lock",
    tag = "lock",
    operation_id = "forceRelease",
    responses((status = OK, description = "The newer token is recorded.", body = ForcedRelease), ReleaseRefused),
)]
pub(crate) async fn release(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(json_answer(&app.appender.force_release().await?))
}
