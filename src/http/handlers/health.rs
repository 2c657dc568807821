//! `/livez` and `/readyz`: for load balancers and people.

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::http::{
    app::App,
    contract::document::{NeverRefused, Verbose},
    middleware::tokens::{Caller, Role},
};

/// The process answers
#[utoipa::path(
    get,
    path = "/livez",
    tag = "health",
    operation_id = "livez",
    params(Verbose),
    responses(
        (status = OK, description = "`ok`, behind one line a check if asked for.", content_type = "text/plain", body = String),
        NeverRefused,
    ),
)]
pub(crate) async fn livez(RawQuery(query): RawQuery) -> Response {
    answer(StatusCode::OK, is_verbose(query.as_deref()).then(|| "[+] process: answers\n".to_owned()))
}

/// Rows are taken here
///
/// A Redis that is away leaves a replica ready: it is shared, and taking every replica out of the load balancer would only
/// turn clear answers into broken connections. `verbose` shows it, to who may read.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    operation_id = "readyz",
    params(Verbose),
    responses(
        (status = OK, description = "`ok`, behind one line a check if asked for.", content_type = "text/plain", body = String),
        (status = SERVICE_UNAVAILABLE, description = "`not ready`: it is shutting down, or a sync has failed.", content_type = "text/plain", body = String),
        NeverRefused,
    ),
)]
pub(crate) async fn readyz(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Response {
    let ready = is_ready(&app);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // A probe is never refused: who may not see the checks gets the plain answer.
    let verbose = caller.may(Role::Read) && is_verbose(query.as_deref());
    answer(status, verbose.then(|| checks(&app, ready)))
}

/// Whether rows are taken here.
pub(crate) fn is_ready(app: &App) -> bool {
    // A sync has failed: the process is about to end.
    // guard: ready_takes_rows
    !app.draining.has_begun() && app.appender.accepts_rows()
}

fn checks(app: &App, ready: bool) -> String {
    let mark = |good| if good { '+' } else { '-' };
    let (lock, in_reach) = app.appender.lock_state();
    let (serving, reach) =
        (if ready { "taking rows" } else { "draining" }, if in_reach { "in reach" } else { "out of reach" });
    format!("[{}] replica: {serving}\n[{}] lock ({lock}): {reach}\n", mark(ready), mark(in_reach))
}

fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")))
}

fn answer(status: StatusCode, checks: Option<String>) -> Response {
    let word = if status.is_success() { "ok\n" } else { "not ready\n" };
    (status, checks.unwrap_or_default() + word).into_response()
}
