//! Router and layers: what a client sees. Knows no Redis and no path.

mod append;
mod append_batch;
mod append_request;
mod batch_request;
mod body;
mod edge;
mod error;
mod health;
mod lock;
mod rows;
mod rows_csv;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    body::Body,
    http::HeaderMap,
    middleware::{from_fn, map_response},
    routing::{get, post},
};
use error::ApiError;
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, decompression::RequestDecompressionLayer,
};

use crate::{
    commit::{AppendError, Appender, Outcome, reading::Reading},
    config::{Config, Switch},
};

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    appender: Appender,
    reading: Reading,
    limits: Limits,
    draining: Draining,
}

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
struct Limits {
    body_bytes_max: usize,
    batch_bytes_max: usize,
    sleep_max: std::time::Duration,
    simulation: bool,
}

/// Turned on once, when the replica begins to leave.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From now on, this replica is not ready.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl App {
    /// Serves `appender` and `reading` within the limits that `config` sets.
    pub fn new(appender: Appender, reading: Reading, config: &Config, draining: Draining) -> Self {
        let limits = Limits {
            body_bytes_max: config.body_limit,
            batch_bytes_max: config.batch_limit,
            sleep_max: config.max_sleep,
            simulation: config.simulation == Switch::On,
        };
        Self { appender, reading, limits, draining }
    }

    /// All routes.
    pub fn router(self) -> Router {
        // What cannot be decoded is passed on, and refused like every other type that is not accepted.
        let decode = RequestDecompressionLayer::new().pass_through_unaccepted(true);
        let batch = post(append_batch::append_batch).layer(decode);
        let file = get(rows_csv::rows_csv).layer(CompressionLayer::new()).layer(map_response(rows_csv::weaken_etag));
        Router::new()
            .route("/append", post(append::append))
            .route("/append/batch", batch)
            .route("/rows", get(rows::rows).layer(CompressionLayer::new()))
            .route("/rows.csv", file)
            .route("/lock", get(lock::status).delete(lock::release))
            .route("/livez", get(health::livez))
            .route("/readyz", get(health::readyz))
            .fallback(async |headers: HeaderMap, body: Body| body::refuse(&headers, body, ApiError::NotFound).await)
            .method_not_allowed_fallback(async |headers: HeaderMap, body: Body| {
                body::refuse(&headers, body, ApiError::MethodNotAllowed).await
            })
            .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
                axum::response::IntoResponse::into_response(ApiError::Append(AppendError::Internal(Outcome::Unknown)))
            }))
            .layer(from_fn(edge::edge))
            .with_state(self)
    }
}
