//! openapi.yaml, written from the code: what operations have in common, and how each may be refused. All else stands beside
//! the handlers and the types.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};
use serde_json::{Value, json};
use utoipa::{
    IntoParams, IntoResponses, PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, Header, InfoBuilder, License, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
        Response as Answer, ResponseBuilder, Schema, Server,
        extensions::ExtensionsBuilder,
        header::HeaderBuilder,
        path::{Operation, Parameter, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::http::{
    body::{append, media_type},
    error::{Code, Problem},
    handlers::{docs, events, page},
    middleware::{authorize, tokens::Role},
    static_content::Fixed,
};

/// The security scheme.
const TOKEN: &str = "token";
const DESCRIPTION: &str = "Many replicas, one CSV, every acknowledged row exactly once.

`HEAD` works wherever `GET` does. What is refused is answered with a `Problem`, also unknown paths (404 `not_found`) and \
methods (405 `method_not_allowed`); only what is no HTTP at all is refused without one. Answers without an `ETag` are not \
to be kept.";

/// This contract
#[utoipa::path(
    get,
    path = "/openapi.yaml",
    tag = "contract",
    operation_id = "openapi",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "OpenAPI 3.1.", content_type = "application/yaml", body = Object,
            headers(("ETag" = String, description = "Changes with the contract."))),
        (status = NOT_MODIFIED, description = "It is what the tag names.",
            headers(("ETag" = String, description = "Changes with the contract."))),
        NeverRefused,
    ),
)]
pub(crate) async fn openapi(headers: HeaderMap) -> Response {
    static CONTRACT: LazyLock<Fixed> =
        LazyLock::new(|| Fixed::new("application/yaml", crate::http::router::contract()));
    CONTRACT.answer(&headers)
}

/// What comes before the operations.
pub(crate) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Rowlock")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(License::new(env!("CARGO_PKG_LICENSE"))));
    let mut problem = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut problem);
    problem.extend(events::schemas());
    let schemas = [append::schemas(), media_type::schemas()].map(read::<BTreeMap<String, RefOr<Schema>>>);
    let mut components =
        ComponentsBuilder::new().schemas_from_iter(schemas.into_iter().flatten().chain(problem)).build();
    components.headers = headers().into_iter().map(|(name, header)| (name.to_owned(), RefOr::T(header))).collect();
    components.parameters = read(json!({
        "RequestId": {
            "name": "X-Request-Id", "in": "header", "required": false, "schema": {"type": "string"},
            "description": "Taken over if it is 1 to 128 printable ASCII characters without spaces, else made; returned with every answer.",
            "example": "order-17-try-2",
        },
        "TraceParent": {
            "name": "traceparent", "in": "header", "required": false, "schema": {"type": "string"},
            "description": "W3C trace context; taken over or made, and returned.",
            "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        },
    }));
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("One of ROWLOCK_API_TOKENS. A replica without tokens asks nobody for one."));
    components.add_security_scheme(TOKEN, SecurityScheme::Http(token.build()));
    OpenApiBuilder::new().info(info).servers(Some([Server::new("/")])).components(Some(components)).build()
}

/// Headers that more than one operation answers with.
fn headers() -> [(&'static str, Header); 6] {
    let header = |description: &str, schema: Value| {
        HeaderBuilder::new().description(Some(description)).schema(Some(read::<RefOr<Schema>>(schema))).build()
    };
    [
        (
            "CacheControl",
            header("`no-store`; `no-cache` where an `ETag` lets a copy be checked.", json!({"type": "string"})),
        ),
        ("Challenge", header("`Bearer`, and what is wrong with the token that was sent.", json!({"type": "string"}))),
        (
            "RateLimit",
            header("Requests left to this client, and seconds until there are more.", json!({"type": "string"})),
        ),
        (
            "RequestId",
            header("The request's, in answers, problems and logs.", json!({"type": "string", "maxLength": 128})),
        ),
        ("RetryAfter", header("Seconds.", json!({"type": "integer", "minimum": 1}))),
        ("TraceParent", header("W3C trace context.", json!({"type": "string"}))),
    ]
}

/// Adds what the layers around all operations do.
pub(crate) fn finish(api: &mut OpenApi) {
    for (path, method, operation) in api.paths.paths.iter_mut().flat_map(|(path, item)| operations(path, item)) {
        add_door(path, &method, operation);
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

fn operations<'a>(path: &'a str, item: &'a mut PathItem) -> impl Iterator<Item = (&'a str, Method, &'a mut Operation)> {
    let all = [(Method::GET, &mut item.get), (Method::POST, &mut item.post), (Method::DELETE, &mut item.delete)];
    all.into_iter().filter_map(move |(method, operation)| Some((path, method, operation.as_mut()?)))
}

/// What is asked before anything of a request is read: its token's role, and its client's share.
fn add_door(path: &str, method: &Method, operation: &mut Operation) {
    let mut codes = Vec::new();
    if let Some(role) = Role::needed(method, path) {
        operation.security = Some(vec![SecurityRequirement::new(TOKEN, [] as [&str; 0])]);
        let description = operation.description.get_or_insert_default();
        let gap = if description.is_empty() { "" } else { "\n\n" };
        description.push_str(&format!("{gap}Role, where there are tokens: `{}`.", role.name()));
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

/// What a response lists already.
fn codes_of(response: &RefOr<Answer>) -> Vec<Code> {
    let RefOr::T(response) = response else { return Vec::new() };
    let listed = response.extensions.as_ref().and_then(|extensions| extensions.get("x-codes"));
    listed.map(|codes| read(codes.clone())).unwrap_or_default()
}

fn reference<T>(kind: &str, name: &str) -> RefOr<T> {
    RefOr::Ref(Ref::new(format!("#/components/{kind}/{name}")))
}

/// What no derive can say.
pub(crate) fn read<T: serde::de::DeserializeOwned>(written: Value) -> T {
    serde_json::from_value(written).expect("a part of OpenAPI, as the tests see")
}

macro_rules! refusals {
    ($($operation:ident: $($code:ident)+;)+) => {$(
        pub(crate) struct $operation;

        impl IntoResponses for $operation {
            fn responses() -> BTreeMap<String, RefOr<Answer>> {
                refusals(&[$(Code::$code),+])
            }
        }
    )+};
}

// How each operation may be refused. A panic is `internal`, and none is safe from that.
refusals! {
    AppendRefused:
        BrokenBody BadKey SimulationOff BodyTimeout KeyInFlight BodyTooLarge BatchTooLarge UnsupportedMediaType InvalidField
        KeyReused SyncFailed Internal QueueFull WaitTimeout RedisUnavailable LockLost FileBusy Draining DiskFull;
    BatchRefused:
        BrokenBody BadKey BodyTimeout KeyInFlight BatchTooLarge UnsupportedMediaType InvalidField KeyReused SyncFailed
        Internal QueueFull WaitTimeout RedisUnavailable LockLost FileBusy Draining DiskFull;
    RowsRefused: InvalidField NotARowStart Internal FileBusy;
    FileRefused: InvalidField RangeNotSatisfiable Internal;
    EventsRefused: InvalidField Internal QueueFull FileBusy;
    LockRefused: RedisUnavailable Internal;
    ReleaseRefused: SyncFailed Internal RedisUnavailable LockLost FileBusy Draining DiskFull;
    AssetRefused: NotFound Internal;
    NeverRefused: Internal;
}

/// One response a status, which lists its codes for people and, as `x-codes`, for programs.
fn refusals(codes: &[Code]) -> BTreeMap<String, RefOr<Answer>> {
    let mut by_status = BTreeMap::<StatusCode, Vec<Code>>::new();
    for &code in codes {
        by_status.entry(code.facts().status).or_default().push(code);
    }
    let response = |(status, codes): (StatusCode, Vec<Code>)| {
        let said: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}.", code.facts().title)).collect();
        let mut response = ResponseBuilder::new()
            .description(said.join(" "))
            .content(
                "application/problem+json",
                ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
            )
            .extensions(Some(ExtensionsBuilder::new().add("x-codes", json!(codes)).build()))
            .build();
        if codes.iter().any(|code| code.facts().retry_after_secs.is_some()) {
            response.headers.insert("Retry-After".to_owned(), reference("headers", "RetryAfter"));
        }
        (status.as_str().to_owned(), RefOr::T(response))
    };
    by_status.into_iter().map(response).collect()
}

/// What several operations take, or what no type says.
macro_rules! parameters {
    ($($operation:ident: $written:tt;)+) => {$(
        pub(crate) struct $operation;

        impl IntoParams for $operation {
            fn into_params(_: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>) -> Vec<Parameter> {
                vec![read(json!($written))]
            }
        }
    )+};
}

parameters! {
    IdempotencyKey: {
        "name": "Idempotency-Key", "in": "header", "required": false, "schema": {"type": "string", "pattern": r#"^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#},
        "description": "A name for this request, 1 to 255 printable ASCII characters, bare or in double quotes. Repeating the request with it writes the row once, as long as the key is among the newest ROWLOCK_IDEMPOTENCY_KEYS. Refusals are not remembered.",
        "example": "order-17",
    };
    IfNoneMatch: {
        "name": "If-None-Match", "in": "header", "required": false, "schema": {"type": "string"},
        "description": "The `ETag`s of what the client has, or `*`: 304 if it is still the same.",
    };
    BodyEncoding: {
        "name": "Content-Encoding", "in": "header", "required": false, "schema": {"type": "string", "enum": ["gzip", "zstd"]},
        "description": "How the body is compressed, if it is.",
    };
    AssetName: {
        "name": "file", "in": "path", "required": true, "schema": {"type": "string", "enum": docs::ASSETS},
    };
    PartName: {
        "name": "file", "in": "path", "required": true, "schema": {"type": "string", "enum": page::FILES.map(|(name, _)| name)},
    };
    Verbose: {
        "name": "verbose", "in": "query", "required": false, "schema": {"type": "string"},
        "description": "List the checks, whatever the value.",
    };
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use utoipa::PartialSchema;

    use crate::http::contract::document::Code;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");

    #[test]
    fn openapi_yaml_is_what_the_code_says() {
        let written = crate::http::router::contract();
        if env::var_os("ROWLOCK_WRITE").is_some() {
            return fs::write(FILE, written).expect("writable");
        }
        let file = fs::read_to_string(FILE).expect("readable");
        let same = file.lines().zip(written.lines()).take_while(|(a, b)| a == b).count();
        assert!(
            file == written,
            "openapi.yaml differs from the code from line {} on; to write it anew: ROWLOCK_WRITE=1 cargo test --lib openapi",
            same + 1
        );
    }

    #[test]
    fn every_code_is_said_to_come_from_some_operation() {
        let (contract, schema) = (crate::http::router::contract(), serde_json::to_value(Code::schema()).expect("JSON"));
        let codes: Vec<_> =
            schema["enum"].as_array().expect("a list").iter().filter_map(|code| code.as_str()).collect();
        assert!(codes.len() > 20);
        for code in codes {
            // What never reaches an operation is none's to answer.
            let expected = if ["not_found", "method_not_allowed"].contains(&code) { 1.. } else { 2.. };
            assert!(expected.contains(&contract.matches(&format!("- {code}\n")).count()), "{code}");
        }
    }
}
