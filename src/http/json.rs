//! JSON answers. Each ends with a newline, so that a shell prompt does not stick to it.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use serde::Serialize;

/// The answer to an append fits without growing.
const CAPACITY_BYTES: usize = 256;

/// The value as JSON, and a newline.
pub(crate) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::with_capacity(CAPACITY_BYTES);
    serde_json::to_writer(&mut line, value).expect("an answer is plain data");
    line.push(b'\n');
    line
}

/// A 200 with this value.
pub(crate) fn json_answer(value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(json_line(value)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
