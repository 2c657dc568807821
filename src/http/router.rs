//! The routes, and the layers around them.

use std::{convert::Infallible, future::ready, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{from_fn, map_response},
    response::{IntoResponse, Response},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::{compression::CompressionLayer, cors::CorsLayer};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    config::Config,
    http::{
        answer_budget::AnswerBudget,
        app::{App, AppParts},
        body::read,
        conditional::revalidate,
        contract::document,
        error::ApiError,
        handlers,
        middleware::{authorize::authorize, cors, request_context::with_request_context, request_head::check_head},
        request_labels::declared_labels,
        static_content::StaticContent,
        unparsed::answer_unparsed,
    },
};

/// The router within the layers for request context, CORS and authorization. These layers are outside the router, since each layer
/// within it copies all that it wraps for every request: moving them out took a row from 61 to 42 allocations (benches/RESULTS.md).
pub struct Service {
    app: App,
    router: Router,
    cors: Option<CorsLayer>,
    /// The routes as the contract writes them.
    paths: Vec<String>,
}

impl Service {
    /// Serves `parts` within the limits of `config`. Starts tasks, so it must be called within a Tokio runtime.
    pub fn new(parts: AppParts, config: &Config) -> Self {
        let app = App::new(parts, config, || StaticContent::new(handlers::openapi::TYPE, contract()));
        let (router, api) = routes().split_for_parts();
        declared_labels(&api).iter().for_each(|labels| app.appender.meter().declare(labels));
        #[cfg(feature = "ceiling")]
        let router = handlers::ceiling::add(router);
        let router = router
            .fallback(async |headers: HeaderMap, body: Body| read::refuse(&headers, body, ApiError::NotFound).await)
            .method_not_allowed_fallback(other_method)
            .with_state(app.clone());
        let cors = config.cors_origins.as_ref().map(cors::layer);
        Self { app, router, cors, paths: api.paths.paths.into_keys().collect() }
    }

    /// Counts the memory that answers take.
    pub fn answer_budget(&self) -> &AnswerBudget {
        &self.app.answer_budget
    }

    /// Answers a request from `peer`.
    pub async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        let route = self.paths.iter().map(String::as_str).find(|route| matches_route(route, request.uri().path()));
        with_request_context(&self.app, route, request, |request| self.answer_valid(peer, request)).await
    }

    /// The bytes of the answer to a request that hyper cannot parse, from the bytes of hyper's own answer and its reason.
    pub async fn answer_unparsed(&self, automatic: &[u8], reason: &str) -> Vec<u8> {
        answer_unparsed(&self.app, automatic, reason).await
    }

    async fn answer_valid(&self, peer: SocketAddr, request: Request) -> Response {
        match check_head(&request) {
            Ok(()) => self.answer_with_cors(peer, request).await,
            Err(e) => ([(CACHE_CONTROL, "no-store")], e).into_response(),
        }
    }

    async fn answer_with_cors(&self, peer: SocketAddr, request: Request) -> Response {
        let answer = async |request| {
            let response = authorize(&self.app, peer, request, self.router.clone()).await;
            self.app.answer_budget.bound(response).unwrap_or_else(IntoResponse::into_response)
        };
        let Some(cors) = &self.cors else { return answer(request).await };
        let inner = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
        Box::pin(cors.layer(inner).oneshot(request)).await.unwrap_or_else(|never| match never {})
    }
}

/// Whether a path belongs to a route, whose last segment may be a parameter.
fn matches_route(route: &str, path: &str) -> bool {
    match route.split_once('{') {
        None => path == route,
        Some((start, _)) => path.strip_prefix(start).is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
    }
}

/// Answers `OPTIONS`, and refuses other methods that the path does not have. The router adds `Allow`.
async fn other_method(method: Method, headers: HeaderMap, body: Body) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    read::refuse(&headers, body, ApiError::MethodNotAllowed).await.into_response()
}

/// All routes with their operations in the contract.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(handlers::append::append))
        .routes(routes!(handlers::append_batch::append_batch))
        .routes(compressed(routes!(handlers::rows::rows)))
        .routes(compressed(routes!(handlers::rows_csv::rows_csv)))
        .routes(routes!(handlers::events::events))
        .routes(routes!(handlers::lock::status, handlers::lock::release))
        .routes(routes!(handlers::metrics::metrics).layer(CompressionLayer::new()))
        .routes(routes!(handlers::health::livez))
        .routes(routes!(handlers::health::readyz))
        .routes(compressed(routes!(handlers::openapi::openapi)))
        .routes(for_browsers(routes!(handlers::docs::docs), handlers::docs::POLICY))
        .routes(for_browsers(routes!(handlers::docs::asset), handlers::docs::POLICY))
        .routes(for_browsers(routes!(handlers::page::page), handlers::page::POLICY))
        .routes(for_browsers(routes!(handlers::page::asset), handlers::page::POLICY))
}

fn compressed(route: UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    route.layer(CompressionLayer::new()).layer(from_fn(revalidate))
}

/// Adds the headers that restrict what a browser loads, guesses about content types, and sends as a referrer.
fn for_browsers(route: UtoipaMethodRouter<App>, policy: &'static str) -> UtoipaMethodRouter<App> {
    let headers =
        [(CONTENT_SECURITY_POLICY, policy), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];
    compressed(route).layer(map_response(move |mut response: Response| {
        response.headers_mut().extend(headers.clone().map(|(name, value)| (name, HeaderValue::from_static(value))));
        ready(response)
    }))
}

/// The contract as YAML.
fn contract() -> String {
    let mut api = routes().into_openapi();
    document::finish(&mut api);
    api.to_yaml().expect("a contract is plain data")
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use utoipa::PartialSchema;

    use super::*;
    use crate::http::error::Code;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");

    #[test]
    fn path_is_matched_to_its_route() {
        assert!(matches_route("/rows", "/rows") && matches_route("/docs/{asset}", "/docs/index.css"));
        for (route, path) in [("/rows", "/rows/"), ("/rows", "/rows.csv"), ("/docs", "/docs/index.css")] {
            assert!(!matches_route(route, path), "{route} {path}");
        }
        for path in ["/docs", "/docs/", "/docs/a/b", "/web/a"] {
            assert!(!matches_route("/docs/{asset}", path), "{path}");
        }
    }

    #[test]
    fn openapi_yaml_is_what_the_code_says() {
        let written = contract();
        if env::var_os("ROWLOCK_WRITE").is_some() {
            return fs::write(FILE, written).expect("writable");
        }
        let file = fs::read_to_string(FILE).expect("readable");
        let same = file.lines().zip(written.lines()).take_while(|(a, b)| a == b).count();
        assert!(
            file == written,
            "openapi.yaml differs from the code at line {}; to write it: ROWLOCK_WRITE=1 cargo test --lib openapi",
            same + 1
        );
    }

    /// The codes for requests that reach no operation.
    const NO_OPERATION: [&str; 5] =
        ["bad_request", "not_found", "method_not_allowed", "uri_too_long", "head_too_large"];

    #[test]
    fn every_code_is_listed_by_an_operation() {
        let (contract, schema) = (contract(), serde_json::to_value(Code::schema()).expect("JSON"));
        let codes: Vec<_> =
            schema["enum"].as_array().expect("a list").iter().filter_map(|code| code.as_str()).collect();
        assert!(codes.len() > 20);
        for code in codes {
            // Each code stands once in the schema itself.
            let expected = if NO_OPERATION.contains(&code) { 1.. } else { 2.. };
            assert!(expected.contains(&contract.matches(&format!("- {code}\n")).count()), "{code}");
        }
    }
}
