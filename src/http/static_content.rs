//! Content that is not sent again to who has it: `ETag` and `If-None-Match`.

use std::collections::HashMap;

use axum::{
    extract::{Path, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::http::error::ApiError;

/// Content that is the same as long as this process lives.
pub(crate) struct Fixed {
    content_type: HeaderValue,
    content: Bytes,
    etag: String,
}

impl Fixed {
    pub(crate) fn new(content_type: &str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let hash = Sha256::digest(&content);
        let etag = format!("\"{:032x}\"", u128::from_be_bytes(hash[..16].try_into().expect("16 bytes")));
        Self { content_type: HeaderValue::try_from(content_type).expect("a media type"), content, etag }
    }

    pub(crate) fn answer(&self, headers: &HeaderMap) -> Response {
        if is_known(headers, &self.etag) {
            return (StatusCode::NOT_MODIFIED, tags(&self.etag)).into_response();
        }
        let mut response = (tags(&self.etag), self.content.clone()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
        response
    }
}

/// The one of these that a path names. A name that is no text names none.
pub(crate) fn answer_named(
    parts: &HashMap<&str, Fixed>,
    name: Result<Path<String>, PathRejection>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let part = name.ok().and_then(|Path(name)| parts.get(&*name));
    part.map(|part| part.answer(headers)).ok_or(ApiError::NotFound)
}

/// Who keeps a copy must ask: the content may change at any moment.
pub(crate) fn tags(etag: &str) -> [(HeaderName, HeaderValue); 2] {
    let etag = HeaderValue::try_from(etag).expect("hex digits and quotes");
    [(header::ETAG, etag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))]
}

/// Whether the client has what the tag names.
pub(crate) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let names_it = |tags: &str| {
        tags.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag || tag == "*")
    };
    headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(names_it)
}

/// What is compressed is another representation, and its bytes can't be asked for by range.
pub(crate) async fn weaken_etag(mut response: Response) -> Response {
    if response.headers().contains_key(header::CONTENT_ENCODING)
        && let Some(etag) = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok())
    {
        let weak = HeaderValue::try_from(format!("W/{etag}")).expect("a tag");
        response.headers_mut().insert(header::ETAG, weak);
    }
    response
}
