//! Router and layers: what a client sees. Knows no Redis and no path.

mod access;
mod append;
mod append_batch;
mod append_request;
mod batch_csv;
mod batch_json;
mod batch_parser;
mod batch_request;
mod body;
#[cfg(feature = "ceiling")]
mod ceiling;
mod cors;
mod docs;
mod door;
mod edge;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod lock;
mod openapi;
mod page;
mod query;
mod rate;
mod rows;
mod rows_csv;
mod scrape;
mod span;
mod tagged;

use std::{
    future::ready,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use access::{Access, AccessError};
use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{from_fn_with_state, map_response},
    response::{IntoResponse, Response},
};
use body::Room;
use error::ApiError;
use opentelemetry_sdk::trace::SdkTracer;
use rate::Shares;
use tokio::sync::{Semaphore, watch};
use tower_http::{compression::CompressionLayer, decompression::RequestDecompressionLayer};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    commit::{Appender, events::Events, reading::Reading},
    config::{Config, Origins, Switch},
};

/// What the handlers share. Layers and router clone it for each request: one reference is enough to count.
#[derive(Clone)]
pub struct App(Arc<Shared>);

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What an `App` refers to.
pub struct Shared {
    appender: Appender,
    reading: Reading,
    events: Events,
    /// Places for readers of events.
    watchers: Arc<Semaphore>,
    access: Arc<Access>,
    shares: Option<Shares>,
    /// For bodies that are under way.
    room: Room,
    limits: Limits,
    cors_origins: Option<Origins>,
    draining: Draining,
    /// True once nothing more is taken: streams end then.
    stopped: watch::Receiver<bool>,
    tracer: Option<SdkTracer>,
}

/// What there is to serve.
pub struct Parts {
    /// Takes rows.
    pub appender: Appender,
    /// Reads them back.
    pub reading: Reading,
    /// Tells of them.
    pub events: Events,
    /// Who may.
    pub access: Arc<Access>,
    /// Not ready any more.
    pub draining: Draining,
    /// True once nothing more is taken: streams end then.
    pub stopped: watch::Receiver<bool>,
    /// Takes spans, if anybody wants them.
    pub tracer: Option<SdkTracer>,
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
    /// Serves `parts` within the limits that `config` sets. To be called where tasks can be started.
    pub fn new(parts: Parts, config: &Config) -> Self {
        let Parts { appender, reading, events, access, draining, stopped, tracer } = parts;
        let limits = Limits {
            body_bytes_max: config.body_limit,
            batch_bytes_max: config.batch_limit,
            sleep_max: config.max_sleep,
            simulation: config.simulation == Switch::On,
        };
        let (watchers, shares) = (Arc::new(Semaphore::new(events::READERS_MAX)), config.rate_limit.map(Shares::new));
        let cors_origins = config.cors_origins.clone();
        let room = Room::new(config.queue_bytes);
        Self(Arc::new(Shared {
            appender,
            reading,
            events,
            watchers,
            access,
            shares,
            room,
            limits,
            cors_origins,
            draining,
            stopped,
            tracer,
        }))
    }

    /// All routes, and the layers around them.
    pub fn router(self) -> Router {
        let (router, api) = routes().split_for_parts();
        scrape::expected(&api).iter().for_each(|answered| self.appender.meter().expect(answered));
        #[cfg(feature = "ceiling")]
        let router = ceiling::add(router);
        let router = router
            .fallback(async |headers: HeaderMap, body: Body| body::refuse(&headers, body, ApiError::NotFound).await)
            .method_not_allowed_fallback(other_method)
            .layer(from_fn_with_state(self.clone(), door::door));
        let router = match &self.cors_origins {
            Some(origins) => router.layer(cors::layer(origins)),
            None => router,
        };
        router.layer(from_fn_with_state(self.clone(), edge::edge)).with_state(self)
    }
}

/// What a path can do is told to who asks; any other method is refused. The router adds `Allow`.
async fn other_method(method: Method, headers: HeaderMap, body: Body) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    body::refuse(&headers, body, ApiError::MethodNotAllowed).await.into_response()
}

/// All routes, each with its part of the contract.
fn routes() -> OpenApiRouter<App> {
    // What cannot be decoded is passed on, and refused like every other type that is not accepted.
    let decode = RequestDecompressionLayer::new().pass_through_unaccepted(true);
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(append::append))
        .routes(routes!(append_batch::append_batch).layer(decode))
        .routes(compressed(routes!(rows::rows)))
        .routes(compressed(routes!(rows_csv::rows_csv)))
        .routes(routes!(events::events))
        .routes(routes!(lock::status, lock::release))
        .routes(routes!(scrape::metrics).layer(CompressionLayer::new()))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(compressed(routes!(openapi::openapi)))
        .routes(in_browsers(routes!(docs::docs), docs::POLICY))
        .routes(in_browsers(routes!(docs::asset), docs::POLICY))
        .routes(in_browsers(routes!(page::page), page::POLICY))
        .routes(in_browsers(routes!(page::asset), page::POLICY))
}

fn compressed(route: UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    route.layer(CompressionLayer::new()).layer(map_response(tagged::weaken_etag))
}

/// Tells the browser to load nothing but what `policy` allows, to take nothing for what it isn't, and to tell nobody where it is.
fn in_browsers(route: UtoipaMethodRouter<App>, policy: &'static str) -> UtoipaMethodRouter<App> {
    let guards =
        [(CONTENT_SECURITY_POLICY, policy), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];
    compressed(route).layer(map_response(move |mut response: Response| {
        response.headers_mut().extend(guards.clone().map(|(name, value)| (name, HeaderValue::from_static(value))));
        ready(response)
    }))
}

/// The contract, as YAML.
fn contract() -> String {
    let mut api = routes().into_openapi();
    openapi::finish(&mut api);
    api.to_yaml().expect("a contract is plain data")
}
