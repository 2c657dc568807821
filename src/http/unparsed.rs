//! Answers requests that hyper cannot parse, and that no handler sees. Hyper's own answer to them has no body.

use std::future::ready;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Method, Uri, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;

use crate::http::{app::App, error::ApiError, middleware::request_context::with_request_context};

/// The bytes of an answer with a problem, from the bytes of hyper's own answer, whose status and date it takes, and from hyper's reason.
pub(crate) async fn answer_unparsed(app: &App, automatic: &[u8], reason: &str) -> Vec<u8> {
    let automatic = String::from_utf8_lossy(automatic);
    let error = match automatic.split(' ').nth(1) {
        Some("414") => ApiError::UriTooLong,
        Some("431") => ApiError::HeadTooLarge,
        _ => ApiError::BadRequest(format!("the request is not valid HTTP/1.1: {reason}")),
    };
    let response = with_request_context(app, None, unknown_request(), |_| ready(error.into_response())).await;
    let date = automatic.lines().find(|line| line.starts_with("date:"));
    serialized(response, date).await
}

/// Stands for the request in the log line and the metrics.
fn unknown_request() -> Request {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
    *request.uri_mut() = Uri::from_static("*");
    request
}

async fn serialized(mut response: Response, date: Option<&str>) -> Vec<u8> {
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(date.into_iter().flat_map(|date| [date, "\r\n"]).flat_map(str::bytes));
    bytes.extend(b"\r\n");
    // The body of a problem is in memory, so it cannot fail.
    bytes.extend(response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default());
    bytes
}
