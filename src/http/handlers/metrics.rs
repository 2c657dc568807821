//! `GET /metrics`: the metrics of this replica, for Prometheus.

use std::time::Duration;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use tokio::time::timeout;

use crate::http::{
    app::{App, SUBSCRIBERS_MAX},
    contract::refusals::NeverRefused,
    handlers::health::is_ready,
};
use crate::{
    api::{lock_status::LockState, volume::Volume},
    metrics::{Gauge, Meter},
};

/// How long to wait for values that all replicas share: another request may be reading a large file, and Redis may be unreachable.
const SHARED_TIMEOUT: Duration = Duration::from_secs(1);

/// Metrics for Prometheus
///
/// The help of each metric says whether its value is of this replica alone or the same from all replicas.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "metrics",
    operation_id = "metrics",
    responses(
        (status = OK, description = "The text format of Prometheus.", content_type = "text/plain; version=0.0.4", body = String,
            example = "# TYPE rowlock_appended_rows_total counter\nrowlock_appended_rows_total 12\n"),
        NeverRefused,
    ),
)]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let meter = app.appender.meter();
    app.appender.update_gauges();
    meter.set(Gauge::Ready, f64::from(is_ready(&app)));
    meter.set(Gauge::EventSubscribers, (SUBSCRIBERS_MAX - app.subscriber_slots.available_permits()) as f64);
    let (volume, lock) = tokio::join!(
        timeout(SHARED_TIMEOUT, app.reading.volume()),
        timeout(SHARED_TIMEOUT, app.appender.lock_status())
    );
    if let Ok(Ok(lock)) = lock {
        meter.set(Gauge::LockHasHolder, f64::from(lock.state != LockState::Free));
        meter.set(Gauge::LockHolderToken, lock.token.unwrap_or_default() as f64);
        meter.set(Gauge::LockWaiters, lock.waiters.len() as f64);
    }
    let volume = volume
        .ok()
        .and_then(|read| read.inspect_err(|e| tracing::debug!(error = %e, "cannot read the sizes of the files")).ok());
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
