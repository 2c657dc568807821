//! `GET /docs`: the contract in Swagger UI. All of its files are in this binary, and it loads nothing from other hosts.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::{Path, rejection::PathRejection},
    response::Response,
};
use utoipa_swagger_ui::{Config, SwaggerFile, serve};

use crate::http::{
    contract::{
        parameters::{IfNoneMatch, parameters},
        refusals::{AssetRefused, ContentRefused},
    },
    error::ApiError,
    static_content::{StaticContent, answer_named},
};

/// The files that the page loads.
const ASSETS: [&str; 7] = [
    "favicon-16x16.png",
    "favicon-32x32.png",
    "index.css",
    "swagger-initializer.js",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
];

/// The `Content-Security-Policy`: only files of this replica. The icons of Swagger UI are `data:` URLs.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is added to files of Swagger UI: the dark colours that it has, where the browser prefers them.
const ADDED: [(&str, &str); 2] = [
    ("index.css", "\nhtml.dark-mode body { background: #1c2022; }\n"),
    (
        "swagger-initializer.js",
        "
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('dark-mode', dark.matches);
dark.addEventListener('change', follow);
follow();
",
    ),
];

parameters! {
    AssetName: {
        "name": "file", "in": "path", "required": true, "schema": {"type": "string", "enum": ASSETS},
    };
}

/// The contract as a page, to read and try
///
/// Swagger UI, from this replica.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "contract",
    operation_id = "docs",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "A page for browsers. It loads nothing from other hosts.", content_type = "text/html", body = String,
            headers(
                ("ETag" = String, description = "Changes with the page."),
                ("Content-Security-Policy" = String, description = "Only files of this replica."),
                ("X-Content-Type-Options" = String, description = "`nosniff`"),
            )),
        (status = NOT_MODIFIED, description = "The client's copy is current."),
        ContentRefused,
    ),
)]
pub(crate) async fn docs() -> Response {
    static PAGE: LazyLock<StaticContent> = LazyLock::new(|| {
        // The page is at `/docs`, its files are below `/docs/`.
        let page = String::from_utf8_lossy(&file("index.html").bytes).into_owned();
        let page = page.replace("\"./", "\"").replace("href=\"", "href=\"/docs/").replace("src=\"", "src=\"/docs/");
        let page = page.replace("<title>Swagger UI</title>", "<title>Rowlock: HTTP API</title>");
        StaticContent::new("text/html; charset=utf-8", page)
    });
    PAGE.answer()
}

/// A file of the page
///
/// A script, a style sheet or an icon.
#[utoipa::path(
    get,
    path = "/docs/{file}",
    tag = "contract",
    operation_id = "docsAsset",
    params(AssetName, IfNoneMatch),
    responses(
        (status = OK, description = "The file.", headers(
            ("ETag" = String, description = "Changes with the content."),
            ("X-Content-Type-Options" = String, description = "`nosniff`"),
        ), content((String = "text/css"), (String = "text/javascript"), (String = "image/png"))),
        (status = NOT_MODIFIED, description = "The client's copy is current."),
        AssetRefused,
    ),
)]
pub(crate) async fn asset(name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    static FILES: LazyLock<HashMap<&str, StaticContent>> = LazyLock::new(|| {
        let content = |name| {
            let SwaggerFile { bytes, content_type, .. } = file(name);
            let added = ADDED.iter().find(|(to, _)| *to == name).map_or("", |(_, added)| added);
            (name, StaticContent::new(&content_type, [&bytes[..], added.as_bytes()].concat()))
        };
        ASSETS.map(content).into()
    });
    answer_named(&FILES, name)
}

fn file(name: &str) -> SwaggerFile<'static> {
    let config = Config::from("/openapi.yaml").validator_url("none").use_base_layout().default_models_expand_depth(0);
    serve(name, Arc::new(config)).ok().flatten().expect("a file of Swagger UI, as the tests check")
}
