//! `GET /`: the live page. All of its files are in this binary. It shows what `/events` and `/lock` answer.

use std::{collections::HashMap, sync::LazyLock};

use axum::{
    extract::{Path, rejection::PathRejection},
    response::Response,
};

use crate::http::{
    contract::{
        parameters::{IfNoneMatch, parameters},
        refusals::{AssetRefused, ContentRefused},
    },
    error::ApiError,
    static_content::{StaticContent, answer_named},
};

macro_rules! files {
    ($count:literal: $($name:literal)+) => {
        /// The files that the page loads.
        const FILES: [(&str, &[u8]); $count] =
            [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/", $name)))),+];
    };
}

files! { 12:
    "dom.js" "icon.svg" "main.js" "model.js" "now.js" "page.css" "rates.js" "replicas.js" "rows.js" "stream.js" "timeline.js"
    "try.js"
}

/// The `Content-Security-Policy`: only files of this replica, and no text becomes markup or script.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

parameters! {
    FileName: {
        "name": "file", "in": "path", "required": true, "schema": {"type": "string", "enum": FILES.map(|(name, _)| name)},
    };
}

/// The live page
///
/// Shows in a browser what `/events` and `/lock` answer.
#[utoipa::path(
    get,
    path = "/",
    tag = "page",
    operation_id = "page",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "A page for browsers: the lock as it passes from replica to replica, and the rows as they arrive. It asks \
            for a token if one is needed, and loads nothing from other hosts.", content_type = "text/html", body = String,
            headers(
                ("ETag" = String, description = "Changes with the page."),
                ("Content-Security-Policy" = String, description = "Only files of this replica."),
                ("X-Content-Type-Options" = String, description = "`nosniff`"),
                ("Referrer-Policy" = String, description = "`no-referrer`"),
            )),
        (status = NOT_MODIFIED, description = "The client's copy is current."),
        ContentRefused,
    ),
)]
pub(crate) async fn page() -> Response {
    static PAGE: LazyLock<StaticContent> = LazyLock::new(|| {
        let page: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/index.html"));
        StaticContent::new("text/html; charset=utf-8", page)
    });
    PAGE.answer()
}

/// A file of the live page
///
/// A script, a style sheet or an icon.
#[utoipa::path(
    get,
    path = "/web/{file}",
    tag = "page",
    operation_id = "pageAsset",
    params(FileName, IfNoneMatch),
    responses(
        (status = OK, description = "The file.", headers(
            ("ETag" = String, description = "Changes with the content."),
            ("X-Content-Type-Options" = String, description = "`nosniff`"),
        ), content((String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml"))),
        (status = NOT_MODIFIED, description = "The client's copy is current."),
        AssetRefused,
    ),
)]
pub(crate) async fn asset(name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    static CONTENTS: LazyLock<HashMap<&str, StaticContent>> =
        LazyLock::new(|| FILES.map(|(name, content)| (name, StaticContent::new(media_type(name), content))).into());
    answer_named(&CONTENTS, name)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    }
}
