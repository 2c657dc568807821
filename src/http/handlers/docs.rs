//! `GET /docs`: a reader for the contract, Swagger UI. All of it is in this binary, and none of it asks any other host.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::{Path, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
};
use utoipa_swagger_ui::{Config, SwaggerFile, serve};

use crate::http::{
    contract::document::{AssetName, AssetRefused, IfNoneMatch, NeverRefused},
    error::ApiError,
    static_content::{Fixed, answer_named},
};

/// What the page loads.
pub(crate) const ASSETS: [&str; 7] = [
    "favicon-16x16.png",
    "favicon-32x32.png",
    "index.css",
    "swagger-initializer.js",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
];

/// Nothing but what this replica serves. Swagger UI has its icons as `data:`.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The contract, to read and to try
#[utoipa::path(
    get,
    path = "/docs",
    tag = "contract",
    operation_id = "docs",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "A page for browsers. It loads nothing from elsewhere.", content_type = "text/html", body = String,
            headers(
                ("ETag" = String, description = "Changes with the page."),
                ("Content-Security-Policy" = String, description = "Nothing but what this replica serves."),
                ("X-Content-Type-Options" = String, description = "`nosniff`"),
            )),
        (status = NOT_MODIFIED, description = "It is what the tag names."),
        NeverRefused,
    ),
)]
pub(crate) async fn docs(headers: HeaderMap) -> Response {
    static PAGE: LazyLock<Fixed> = LazyLock::new(|| {
        // The page stands one level above what it loads, for the sake of a short address.
        let page = String::from_utf8_lossy(&file("index.html").bytes).into_owned();
        let page = page.replace("\"./", "\"").replace("href=\"", "href=\"/docs/").replace("src=\"", "src=\"/docs/");
        Fixed::new("text/html; charset=utf-8", page)
    });
    PAGE.answer(&headers)
}

/// What the page loads
#[utoipa::path(
    get,
    path = "/docs/{file}",
    tag = "contract",
    operation_id = "docsAsset",
    params(AssetName, IfNoneMatch),
    responses(
        (status = OK, description = "A part of the page.", headers(
            ("ETag" = String, description = "Changes with the content."),
            ("X-Content-Type-Options" = String, description = "`nosniff`"),
        ), content((String = "text/css"), (String = "text/javascript"), (String = "image/png"))),
        (status = NOT_MODIFIED, description = "It is what the tag names."),
        AssetRefused,
    ),
)]
pub(crate) async fn asset(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    static FILES: LazyLock<HashMap<&str, Fixed>> = LazyLock::new(|| {
        let fixed = |name| {
            let file = file(name);
            (name, Fixed::new(&file.content_type, file.bytes.into_owned()))
        };
        ASSETS.map(fixed).into()
    });
    answer_named(&FILES, name, &headers)
}

fn file(name: &str) -> SwaggerFile<'static> {
    let config = Config::from("/openapi.yaml").validator_url("none").use_base_layout();
    serve(name, Arc::new(config)).ok().flatten().expect("a part of Swagger UI, as the tests see")
}
