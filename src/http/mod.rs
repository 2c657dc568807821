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
    convert::Infallible,
    future::ready,
    net::SocketAddr,
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
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::map_response,
    response::{IntoResponse, Response},
};
use body::Room;
use error::ApiError;
use opentelemetry_sdk::trace::SdkTracer;
use rate::Shares;
use tokio::sync::{Semaphore, watch};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::{compression::CompressionLayer, cors::CorsLayer, decompression::RequestDecompressionLayer};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    commit::{Appender, events::Events, reading::Reading},
    config::{Config, Switch},
};

/// What the handlers share. The router clones it for each request: one reference is enough to count.
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
    fn new(parts: Parts, config: &Config) -> Self {
        let Parts { appender, reading, events, access, draining, stopped, tracer } = parts;
        let limits = Limits {
            body_bytes_max: config.body_limit,
            batch_bytes_max: config.batch_limit,
            sleep_max: config.max_sleep,
            simulation: config.simulation == Switch::On,
        };
        let (watchers, shares) = (Arc::new(Semaphore::new(events::READERS_MAX)), config.rate_limit.map(Shares::new));
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
            draining,
            stopped,
            tracer,
        }))
    }
}

/// All that a client sees: the routes, and around them edge, CORS and door. These three stand outside of the router, since each layer
/// in it would cost every request a copy of all that is further in, and memory for its future.
pub struct Site {
    app: App,
    router: Router,
    cors: Option<CorsLayer>,
    paths: Vec<String>,
}

impl Site {
    /// Serves `parts` within the limits that `config` sets. To be called where tasks can be started.
    pub fn new(parts: Parts, config: &Config) -> Self {
        let app = App::new(parts, config);
        let (router, api) = routes().split_for_parts();
        scrape::expected(&api).iter().for_each(|answered| app.appender.meter().expect(answered));
        #[cfg(feature = "ceiling")]
        let router = ceiling::add(router);
        let router = router
            .fallback(async |headers: HeaderMap, body: Body| body::refuse(&headers, body, ApiError::NotFound).await)
            .method_not_allowed_fallback(other_method)
            .with_state(app.clone());
        let cors = config.cors_origins.as_ref().map(cors::layer);
        Self { app, router, cors, paths: api.paths.paths.into_keys().collect() }
    }

    /// Answers a request that came from `peer`.
    pub async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        // As the contract writes it; none leads nowhere.
        let route = self.paths.iter().map(String::as_str).find(|to| leads(to, request.uri().path()));
        edge::edge(&self.app, route, request, |request| self.answer_pages(peer, request)).await
    }

    /// Answers what may come from a page of another origin.
    async fn answer_pages(&self, peer: SocketAddr, request: Request) -> Response {
        let answer = |request| door::door(&self.app, peer, request, self.router.clone());
        let Some(cors) = &self.cors else { return answer(request).await };
        let door = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
        Box::pin(cors.layer(door).oneshot(request)).await.unwrap_or_else(|never| match never {})
    }
}

/// Whether a path of the contract, which may end in one part by choice, is this one.
fn leads(to: &str, path: &str) -> bool {
    match to.split_once('{') {
        None => path == to,
        Some((start, _)) => path.strip_prefix(start).is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
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

#[cfg(test)]
mod tests {
    use super::leads;

    #[test]
    fn a_path_is_named_as_the_contract_has_it() {
        assert!(leads("/rows", "/rows") && leads("/docs/{asset}", "/docs/index.css"));
        for (to, path) in [("/rows", "/rows/"), ("/rows", "/rows.csv"), ("/docs", "/docs/index.css")] {
            assert!(!leads(to, path), "{to} {path}");
        }
        for path in ["/docs", "/docs/", "/docs/a/b", "/web/a"] {
            assert!(!leads("/docs/{asset}", path), "{path}");
        }
    }
}
