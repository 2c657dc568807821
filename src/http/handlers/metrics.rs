//! `GET /metrics`: what this replica counts, for Prometheus.

use std::{borrow::Cow, time::Duration};

use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::time::timeout;
use utoipa::openapi::{OpenApi, RefOr, Response as Described};

use crate::http::{
    app::App,
    contract::document::NeverRefused,
    error::{Code, Problem},
    handlers::{events::READERS_MAX, health::is_ready},
};
use crate::{
    api::{acknowledgement::Ack, events::Volume, lock_status::LockState},
    commit::Outcome,
    metrics::{Gauge, Meter, NONE, RequestLabels},
};

/// Outcomes of what was not refused.
const WRITTEN: &str = "written";
const REPLAYED: &str = "replayed";
/// A method that nothing here has, a path that leads nowhere: there are as many as clients make up.
const OTHER: &str = "other";
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// How long shared values may be waited for. Others may be reading a large file just now, Redis may be away.
const PATIENCE: Duration = Duration::from_secs(1);

/// What this replica counts
///
/// Each metric's help says whether its value is this replica's own, or the same from all.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    responses(
        (status = OK, description = "In Prometheus's text format.", content_type = "text/plain; version=0.0.4", body = String,
            example = "# TYPE rowlock_appended_rows_total counter\nrowlock_appended_rows_total 12\n"),
        NeverRefused,
    ),
)]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let meter = app.appender.meter();
    app.appender.update_gauges();
    meter.set(Gauge::Ready, f64::from(is_ready(&app)));
    meter.set(Gauge::EventSubscribers, (READERS_MAX - app.watchers.available_permits()) as f64);
    let (volume, lock) =
        tokio::join!(timeout(PATIENCE, app.reading.volume()), timeout(PATIENCE, app.appender.lock_status()));
    if let Ok(Ok(lock)) = lock {
        meter.set(Gauge::LockHasHolder, f64::from(lock.state != LockState::Free));
        meter.set(Gauge::LockHolderToken, lock.token.unwrap_or_default() as f64);
        meter.set(Gauge::LockWaiters, lock.waiters.len() as f64);
    }
    let volume =
        volume.ok().and_then(|read| read.inspect_err(|e| tracing::debug!(error = %e, "no file to measure")).ok());
    meter.set(Gauge::FileReadable, f64::from(volume.is_some()));
    if let Some(volume) = volume {
        set_volume(meter, volume);
    }
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4"), (header::CACHE_CONTROL, "no-store")];
    (headers, meter.render()).into_response()
}

fn set_volume(meter: &Meter, volume: Volume) {
    let Volume { csv_bytes, free_bytes, volume_bytes, journal_bytes, journal_used_bytes } = volume;
    for (level, bytes) in [
        (Gauge::FileBytes, csv_bytes),
        (Gauge::FreeBytes, free_bytes),
        (Gauge::VolumeBytes, volume_bytes),
        (Gauge::JournalBytes, journal_bytes),
        (Gauge::JournalLiveBytes, journal_used_bytes),
    ] {
        meter.set(level, bytes as f64);
    }
}

/// How a request was answered, in labels of which there are few.
pub(crate) fn answered<'a>(
    response: &Response,
    method: &Method,
    route: Option<&'a str>,
    problem: Option<&Problem>,
) -> RequestLabels<'a> {
    let outcome = match (response.extensions().get::<Ack>(), problem) {
        (Some(Ack { replayed: true, .. }), _) => REPLAYED,
        (Some(_), _) => WRITTEN,
        (None, Some(problem)) => problem.outcome.name(),
        (None, None) => NONE,
    };
    RequestLabels {
        method: METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER),
        route: Cow::Borrowed(route.unwrap_or(OTHER)),
        status: response.status().as_u16(),
        code: problem.map_or(Cow::Borrowed(NONE), |problem| Cow::Owned(problem.code.to_string())),
        outcome,
    }
}

/// The answers that the contract lists: an alert that asks for one of them finds it from the start on.
pub(crate) fn expected(api: &OpenApi) -> Vec<RequestLabels<'static>> {
    let mut all = Vec::new();
    for (path, item) in &api.paths.paths {
        for (method, operation) in [("GET", &item.get), ("POST", &item.post), ("DELETE", &item.delete)] {
            let Some(operation) = operation else { continue };
            for (status, answer) in &operation.responses.responses {
                let (status, RefOr::T(answer)) = (status.parse().expect("a status"), answer) else { continue };
                let answered =
                    |(code, outcome)| RequestLabels { method, route: path.clone().into(), status, code, outcome };
                all.extend(outcomes(status, answer).into_iter().map(answered));
            }
        }
    }
    all
}

/// The codes and outcomes that an answer comes with.
fn outcomes(status: u16, answer: &Described) -> Vec<(Cow<'static, str>, &'static str)> {
    let codes = answer.extensions.as_ref().and_then(|extensions| extensions.get("x-codes"));
    let codes: Vec<Code> = codes.map_or_else(Vec::new, |codes| crate::http::contract::document::read(codes.clone()));
    let refused = |code: Code| {
        let outcomes: &[Outcome] = match code {
            Code::SyncFailed => &[Outcome::Unknown],
            Code::Internal => &[Outcome::NotWritten, Outcome::Unknown],
            _ => &[Outcome::NotWritten],
        };
        outcomes.iter().map(move |outcome| (Cow::Owned(code.to_string()), outcome.name()))
    };
    let taken: &[&str] = match status {
        _ if !codes.is_empty() => &[],
        status if status == StatusCode::CREATED => &[WRITTEN, REPLAYED],
        _ => &[NONE],
    };
    codes.into_iter().flat_map(refused).chain(taken.iter().map(|outcome| (Cow::Borrowed(NONE), *outcome))).collect()
}
