//! `/livez` and `/readyz`: liveness and readiness.

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::commit::FileFault;
use crate::http::{
    app::App,
    contract::{parameters::Verbose, refusals::NeverRefused},
    middleware::tokens::{Caller, Role},
};

/// Liveness: the process answers
///
/// Does not check Redis or the volume, since a restart repairs neither.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "health",
    operation_id = "livez",
    params(Verbose),
    responses(
        (status = OK, description = "`ok`, with `verbose` after one line per check.", content_type = "text/plain", body = String),
        NeverRefused,
    ),
)]
pub(crate) async fn livez(RawQuery(query): RawQuery) -> Response {
    answer(StatusCode::OK, is_verbose(query.as_deref()).then(|| "[+] process: answers\n".to_owned()))
}

/// Readiness: the replica accepts rows
///
/// An unreachable Redis does not make a replica unready. All replicas share it, so a load balancer that removed them all would turn
/// clear refusals into broken connections. A Redis that rejects this replica does, if waiting does not help. `verbose` shows the state of the lock to callers that may read.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    operation_id = "readyz",
    params(Verbose),
    responses(
        (status = OK, description = "`ok`, with `verbose` after one line per check.", content_type = "text/plain", body = String),
        (status = SERVICE_UNAVAILABLE, description = "`not ready`: the replica is shutting down, a sync has failed, the volume does not answer, the CSV was replaced or cannot be written, or Redis rejects the replica.", content_type = "text/plain", body = String),
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
    // A probe is never refused, so a caller that may not read gets the answer without the checks.
    let verbose = caller.may(Role::Read) && is_verbose(query.as_deref());
    answer(status, verbose.then(|| checks(&app, ready)))
}

/// Whether this replica accepts rows.
pub(crate) fn is_ready(app: &App) -> bool {
    // After a failed sync the appender accepts no rows, and the process is about to end.
    // guard: ready_takes_rows: a replica that cannot write is not ready
    let takes_rows = !app.draining.has_begun() && app.appender.accepts_rows();
    // guard: ready_volume_answers: a replica whose volume does not answer is not ready
    let volume_answers = app.appender.storage_stuck_for().is_none();
    // guard: ready_file_fits: a replica whose file was replaced or cannot be written is not ready
    let file_fits = app.appender.file_fault().is_none();
    // guard: ready_lock_accepts: a replica that Redis rejects is not ready
    takes_rows && volume_answers && file_fits && !app.appender.is_rejected_by_lock()
}

fn checks(app: &App, ready: bool) -> String {
    let sign = |good| if good { '+' } else { '-' };
    let (lock, _) = app.appender.lock_state();
    let outage = app.appender.lock_outage();
    let stuck_for = app.appender.storage_stuck_for();
    let file_fault = app.appender.file_fault();
    let is_ending = app.draining.has_begun() || !app.appender.accepts_rows();
    let replica = match (ready, stuck_for, file_fault) {
        (true, ..) => "taking rows",
        (false, Some(_), _) => "waiting for the volume",
        (false, None, _) if is_ending => "draining",
        (false, None, Some(_)) => "refusing rows",
        (false, None, None) => "rejected by Redis",
    };
    let reach = match &outage {
        None => "reachable".to_owned(),
        Some(outage) if outage.is_rejection() => format!("rejected: {outage}"),
        Some(outage) => format!("unreachable: {outage}"),
    };
    let volume = stuck_for.map_or("answers".to_owned(), |stuck| format!("no answer for {} s", stuck.as_secs()));
    [
        format!("[{}] replica: {replica}\n", sign(ready)),
        format!("[{}] lock ({lock}): {reach}\n", sign(outage.is_none())),
        format!("[{}] volume: {volume}\n", sign(stuck_for.is_none())),
        format!("[{}] file: {}\n", sign(file_fault.is_none()), file_fault.map_or("as expected", FileFault::describe)),
    ]
    .concat()
}

fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")))
}

fn answer(status: StatusCode, checks: Option<String>) -> Response {
    let word = if status.is_success() { "ok\n" } else { "not ready\n" };
    (status, checks.unwrap_or_default() + word).into_response()
}
