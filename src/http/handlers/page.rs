//! `GET /`: the live page. All of it is in this binary; what it shows it asks of `/events` and `/lock`.

use std::{collections::HashMap, sync::LazyLock};

use axum::{
    extract::{Path, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
};

use crate::http::{
    contract::document::{AssetRefused, IfNoneMatch, NeverRefused, PartName},
    error::ApiError,
    static_content::{Fixed, answer_named},
};

macro_rules! files {
    ($count:literal: $($name:literal)+) => {
        /// What the page loads.
        pub(crate) const FILES: [(&str, &[u8]); $count] =
            [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/", $name)))),+];
    };
}

files! { 12:
    "dom.js" "icon.svg" "main.js" "model.js" "now.js" "page.css" "rates.js" "replicas.js" "rows.js" "stream.js" "timeline.js"
    "try.js"
}

/// Nothing but what this replica serves, and no text becomes markup or script.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The live page
#[utoipa::path(
    get,
    path = "/",
    tag = "page",
    operation_id = "page",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "For browsers: the lock as it passes from replica to replica, and the rows as they arrive. It asks \
            for a token where one is needed, and loads nothing from elsewhere.", content_type = "text/html", body = String,
            headers(
                ("ETag" = String, description = "Changes with the page."),
                ("Content-Security-Policy" = String, description = "Nothing but what this replica serves."),
                ("X-Content-Type-Options" = String, description = "`nosniff`"),
                ("Referrer-Policy" = String, description = "`no-referrer`"),
            )),
        (status = NOT_MODIFIED, description = "It is what the tag names."),
        NeverRefused,
    ),
)]
pub(crate) async fn page(headers: HeaderMap) -> Response {
    static PAGE: LazyLock<Fixed> = LazyLock::new(|| {
        let page: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/index.html"));
        Fixed::new("text/html; charset=utf-8", page)
    });
    PAGE.answer(&headers)
}

/// What the live page loads
#[utoipa::path(
    get,
    path = "/web/{file}",
    tag = "page",
    operation_id = "pageAsset",
    params(PartName, IfNoneMatch),
    responses(
        (status = OK, description = "A part of the page.", headers(
            ("ETag" = String, description = "Changes with the content."),
            ("X-Content-Type-Options" = String, description = "`nosniff`"),
        ), content((String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml"))),
        (status = NOT_MODIFIED, description = "It is what the tag names."),
        AssetRefused,
    ),
)]
pub(crate) async fn asset(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    static PARTS: LazyLock<HashMap<&str, Fixed>> =
        LazyLock::new(|| FILES.map(|(name, content)| (name, Fixed::new(media_type(name), content))).into());
    answer_named(&PARTS, name, &headers)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    }
}
