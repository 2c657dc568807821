//! Content with an `ETag`.

use std::collections::HashMap;

use axum::{
    extract::{Path, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::http::{conditional::validators, error::ApiError, header_value::header_value};

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

    pub(crate) fn answer(&self) -> Response {
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
) -> Result<Response, ApiError> {
    let content = name.ok().and_then(|Path(name)| contents.get(&*name));
    content.map(|content| content.answer()).ok_or(ApiError::NotFound)
}
