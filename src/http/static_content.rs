//! Content with an `ETag`, which is not sent again to a client that has it.

use std::collections::HashMap;

use axum::{
    extract::{Path, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::http::{error::ApiError, header_value::header_value};

/// Content that does not change while the process runs.
pub(crate) struct StaticContent {
    content_type: HeaderValue,
    content: Bytes,
    etag: String,
}

impl StaticContent {
    pub(crate) fn new(content_type: &str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let hash = Sha256::digest(&content);
        let etag = format!("\"{:032x}\"", u128::from_be_bytes(hash[..16].try_into().expect("16 bytes")));
        Self { content_type: header_value(content_type), content, etag }
    }

    pub(crate) fn answer(&self, headers: &HeaderMap) -> Response {
        if client_has(headers, &self.etag) {
            return (StatusCode::NOT_MODIFIED, validators(&self.etag)).into_response();
        }
        let mut response = (validators(&self.etag), self.content.clone()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
        response
    }
}

/// The content that a path names.
///
/// # Errors
/// `NotFound`, if the path names none of them.
pub(crate) fn answer_named(
    contents: &HashMap<&str, StaticContent>,
    name: Result<Path<String>, PathRejection>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let content = name.ok().and_then(|Path(name)| contents.get(&*name));
    content.map(|content| content.answer(headers)).ok_or(ApiError::NotFound)
}

/// `ETag`, and a `Cache-Control` that makes caches revalidate their copy on each use.
pub(crate) fn validators(etag: &str) -> [(HeaderName, HeaderValue); 2] {
    [(header::ETAG, header_value(etag)), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))]
}

/// Whether `If-None-Match` lists this `ETag`.
pub(crate) fn client_has(headers: &HeaderMap, etag: &str) -> bool {
    let lists_it = |tags: &str| {
        tags.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag || tag == "*")
    };
    headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(lists_it)
}

/// Makes the `ETag` of a compressed answer weak: its bytes are not those of the content, so they cannot be requested by range.
pub(crate) async fn weaken_etag(mut response: Response) -> Response {
    if response.headers().contains_key(header::CONTENT_ENCODING)
        && let Some(etag) = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok())
    {
        let weak = header_value(format!("W/{etag}"));
        response.headers_mut().insert(header::ETAG, weak);
    }
    response
}
