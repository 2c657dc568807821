//! The parts of openapi.yaml that operations have in common: its head, its shared headers and parameters, and the effects of the layers
//! around all operations.

use std::collections::BTreeMap;

use axum::http::Method;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Components, ComponentsBuilder, Header, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, RefOr, Required,
        Schema, Server,
        header::HeaderBuilder,
        link::{Link, LinkBuilder},
        path::{Operation, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
        tag::TagBuilder,
    },
};

use crate::http::{
    body::{append, media_type},
    contract::{
        from_json, reference,
        refusals::{codes_of, refusals},
    },
    error::{Code, Problem},
    handlers::events,
    middleware::{authorize, tokens::Role},
};

/// The name of the security scheme.
const TOKEN: &str = "token";
const DESCRIPTION: &str = "Many replicas, one CSV, every acknowledged row exactly once.

`HEAD` works on every path that has `GET`. Every refusal is a `Problem`, also for unknown paths (404 `not_found`), methods (405 \
`method_not_allowed`), requests that are not valid HTTP (400 `bad_request`) and heads that are too large (414 `uri_too_long`, 431 \
`head_too_large`). Answers without an `ETag` are not to be cached.";

const LICENSE: &str = env!("CARGO_PKG_LICENSE");
/// The tags of all operations, in the order of the page.
const TAGS: [(&str, &str); 7] = [
    ("rows", "Append rows and read them back."),
    ("events", "Follow rows, the lock and figures of all replicas."),
    ("lock", "The lock that all replicas share."),
    ("health", "Probes for load balancers."),
    ("metrics", "Figures for Prometheus."),
    ("contract", "This contract and its page."),
    ("page", "The live page."),
];

/// The document without its operations.
pub(crate) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Rowlock")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(LicenseBuilder::new().name(LICENSE).identifier(Some(LICENSE)).build()));
    let tags = TAGS.map(|(name, description)| TagBuilder::new().name(name).description(Some(description)).build());
    let servers = [Server::new("/")];
    OpenApiBuilder::new().info(info).servers(Some(servers)).tags(Some(tags)).components(Some(components())).build()
}

fn components() -> Components {
    let mut problem = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut problem);
    problem.extend(events::schemas());
    let schemas = [append::schemas(), media_type::schemas()].map(from_json::<BTreeMap<String, RefOr<Schema>>>);
    let mut components =
        ComponentsBuilder::new().schemas_from_iter(schemas.into_iter().flatten().chain(problem)).build();
    components.headers = headers().into_iter().map(|(name, header)| (name.to_owned(), RefOr::T(header))).collect();
    components.parameters = from_json(json!({
        "RequestId": {
            "name": "X-Request-Id", "in": "header", "required": false, "schema": {"type": "string"},
            "description": "An id of this request. The service uses it if it is 1 to 128 printable ASCII characters without spaces, and makes one otherwise. Every answer returns it.",
            "example": "order-17-try-2",
        },
        "TraceParent": {
            "name": "traceparent", "in": "header", "required": false, "schema": {"type": "string"},
            "description": "W3C trace context. The service uses it if it is valid, and makes one otherwise. Every answer returns it.",
            "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        },
    }));
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("One of ROWLOCK_API_TOKENS. A replica without tokens needs none."));
    components.add_security_scheme(TOKEN, SecurityScheme::Http(token.build()));
    components
}

/// Headers that several operations answer with.
fn headers() -> [(&'static str, Header); 8] {
    let header = |description: &str, schema: Value| {
        HeaderBuilder::new().description(Some(description)).schema(Some(from_json::<RefOr<Schema>>(schema))).build()
    };
    [
        (
            "CacheControl",
            header("`no-store`, or `no-cache` with an `ETag` to revalidate a copy.", json!({"type": "string"})),
        ),
        ("Challenge", header("`Bearer`, and what is wrong with the token.", json!({"type": "string"}))),
        (
            "RateLimit",
            header("Requests that this client has left, and seconds until it has more.", json!({"type": "string"})),
        ),
        (
            "RequestId",
            header("The id of the request in answers, problems and logs.", json!({"type": "string", "maxLength": 128})),
        ),
        ("Accepted", header("The media types that are accepted, if one was not.", json!({"type": "string"}))),
        ("AcceptedEncoding", header("The codings that are accepted, if one was not.", json!({"type": "string"}))),
        ("RetryAfter", header("Seconds.", json!({"type": "integer", "minimum": 1}))),
        ("TraceParent", header("W3C trace context.", json!({"type": "string"}))),
    ]
}

/// Adds what the layers around all operations accept and answer.
pub(crate) fn finish(api: &mut OpenApi) {
    for (path, method, operation) in api.paths.paths.iter_mut().flat_map(|(path, item)| operations(path, item)) {
        add_authorization(path, &method, operation);
        if let Some(RefOr::T(created)) = operation.responses.responses.get_mut("201") {
            created.links.insert("rows".to_owned(), RefOr::T(link_to_rows()));
        }
        if let Some(RefOr::T(body)) = &mut operation.request_body {
            body.required = Some(Required::True);
        }
        let parameters = operation.parameters.get_or_insert_default();
        parameters.extend(["RequestId", "TraceParent"].map(|name| reference("parameters", name)));
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                for (header, name) in
                    [("X-Request-Id", "RequestId"), ("traceparent", "TraceParent"), ("Cache-Control", "CacheControl")]
                {
                    response.headers.insert(header.to_owned(), reference("headers", name));
                }
            }
        }
    }
}

/// From the answer of an append to its rows.
fn link_to_rows() -> Link {
    let link = LinkBuilder::new().operation_id("rows").parameter("from", "$response.body#/offset");
    link.description("The rows, from the first of them on.").build()
}

fn operations<'a>(path: &'a str, item: &'a mut PathItem) -> impl Iterator<Item = (&'a str, Method, &'a mut Operation)> {
    let all = [(Method::GET, &mut item.get), (Method::POST, &mut item.post), (Method::DELETE, &mut item.delete)];
    all.into_iter().filter_map(move |(method, operation)| Some((path, method, operation.as_mut()?)))
}

/// Adds the role that an operation needs, and the refusals of the authorization layer.
fn add_authorization(path: &str, method: &Method, operation: &mut Operation) {
    let mut codes = Vec::new();
    // A replica without tokens is open.
    operation.security = Some(Vec::new());
    if let Some(role) = Role::needed(method, path) {
        let token = SecurityRequirement::new(TOKEN, [] as [&str; 0]);
        operation.security = Some(vec![SecurityRequirement::default(), token]);
        let description = operation.description.get_or_insert_default();
        let gap = if description.is_empty() { "" } else { "\n\n" };
        description.push_str(&format!("{gap}Needs the role `{}`, if tokens are configured.", role.name()));
        codes.extend([Code::Unauthorized, Code::Forbidden]);
    }
    if !authorize::is_probe(path) {
        codes.push(Code::RateLimited);
    }
    for code in codes {
        let responses = &mut operation.responses.responses;
        let status = code.facts().status.as_str().to_owned();
        let mut all: Vec<Code> = responses.get(&status).map(codes_of).unwrap_or_default();
        all.insert(0, code);
        let mut response = refusals(&all).remove(&status).expect("all have this status");
        if let RefOr::T(response) = &mut response {
            let header = match code {
                Code::RateLimited => ("RateLimit", "RateLimit"),
                _ => ("WWW-Authenticate", "Challenge"),
            };
            response.headers.insert(header.0.to_owned(), reference("headers", header.1));
        }
        responses.insert(status, response);
    }
}
