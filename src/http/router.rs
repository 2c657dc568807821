//! The routes, and what stands around all of them.

use std::{convert::Infallible, future::ready, net::SocketAddr};

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
use tower::{Layer, ServiceExt, service_fn};
use tower_http::{compression::CompressionLayer, cors::CorsLayer, decompression::RequestDecompressionLayer};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    config::Config,
    http::{
        app::{App, Parts},
        body::read,
        contract::document,
        error::ApiError,
        handlers, middleware, static_content,
    },
};

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
        handlers::metrics::expected(&api).iter().for_each(|answered| app.appender.meter().declare(answered));
        #[cfg(feature = "ceiling")]
        let router = handlers::ceiling::add(router);
        let router = router
            .fallback(async |headers: HeaderMap, body: Body| read::refuse(&headers, body, ApiError::NotFound).await)
            .method_not_allowed_fallback(other_method)
            .with_state(app.clone());
        let cors = config.cors_origins.as_ref().map(middleware::cors::layer);
        Self { app, router, cors, paths: api.paths.paths.into_keys().collect() }
    }

    /// Answers a request that came from `peer`.
    pub async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        // As the contract writes it; none leads nowhere.
        let route = self.paths.iter().map(String::as_str).find(|to| leads(to, request.uri().path()));
        middleware::request_context::edge(&self.app, route, request, |request| self.answer_pages(peer, request)).await
    }

    /// Answers what may come from a page of another origin.
    async fn answer_pages(&self, peer: SocketAddr, request: Request) -> Response {
        let answer = |request| middleware::authorize::door(&self.app, peer, request, self.router.clone());
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
    read::refuse(&headers, body, ApiError::MethodNotAllowed).await.into_response()
}

/// All routes, each with its part of the contract.
fn routes() -> OpenApiRouter<App> {
    // What cannot be decoded is passed on, and refused like every other type that is not accepted.
    let decode = RequestDecompressionLayer::new().pass_through_unaccepted(true);
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(handlers::append::append))
        .routes(routes!(handlers::append_batch::append_batch).layer(decode))
        .routes(compressed(routes!(handlers::rows::rows)))
        .routes(compressed(routes!(handlers::rows_csv::rows_csv)))
        .routes(routes!(handlers::events::events))
        .routes(routes!(handlers::lock::status, handlers::lock::release))
        .routes(routes!(handlers::metrics::metrics).layer(CompressionLayer::new()))
        .routes(routes!(handlers::health::livez))
        .routes(routes!(handlers::health::readyz))
        .routes(compressed(routes!(document::openapi)))
        .routes(in_browsers(routes!(handlers::docs::docs), handlers::docs::POLICY))
        .routes(in_browsers(routes!(handlers::docs::asset), handlers::docs::POLICY))
        .routes(in_browsers(routes!(handlers::page::page), handlers::page::POLICY))
        .routes(in_browsers(routes!(handlers::page::asset), handlers::page::POLICY))
}

fn compressed(route: UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    route.layer(CompressionLayer::new()).layer(map_response(static_content::weaken_etag))
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
pub(crate) fn contract() -> String {
    let mut api = routes().into_openapi();
    document::finish(&mut api);
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
