//! Conditional requests by `ETag`, after RFC 9110, section 13. No answer has a `Last-Modified`, so conditions on dates are ignored.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use headers::{ETag, HeaderMapExt, IfMatch, IfNoneMatch, IfRange};

use crate::http::{error::ApiError, header_value::header_value};

/// `ETag`, and a `Cache-Control` that makes caches revalidate their copy on each use.
pub(crate) fn validators(etag: &str) -> [(HeaderName, HeaderValue); 2] {
    [(header::ETAG, header_value(etag)), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))]
}

/// Checks `If-Match`, by strong comparison.
///
/// # Errors
/// `PreconditionFailed`, if it does not list this `ETag`.
pub(crate) fn check_if_match(headers: &HeaderMap, etag: &str) -> Result<(), ApiError> {
    let Some(if_match) = headers.typed_get::<IfMatch>() else { return Ok(()) };
    let matches = etag.parse().is_ok_and(|etag: ETag| if_match.precondition_passes(&etag));
    if matches { Ok(()) } else { Err(ApiError::PreconditionFailed) }
}

/// Whether `If-None-Match` lists this `ETag`, by weak comparison.
pub(crate) fn client_has(headers: &HeaderMap, etag: &str) -> bool {
    let (if_none_match, etag) = (headers.typed_get::<IfNoneMatch>(), etag.parse::<ETag>());
    if_none_match.zip(etag.ok()).is_some_and(|(if_none_match, etag)| !if_none_match.precondition_passes(&etag))
}

/// Whether a range may be sent: `If-Range` is missing, or has this `ETag`, by strong comparison.
pub(crate) fn may_send_range(headers: &HeaderMap, etag: &str) -> bool {
    let is_current = |if_range: IfRange| !if_range.is_modified(etag.parse().ok().as_ref(), None);
    !headers.contains_key(header::IF_RANGE) || headers.typed_get().is_some_and(is_current)
}

/// Finishes the answers of a route whose answers may be compressed, and turns a 200 into a 304 if the client has its content.
pub(crate) async fn revalidate(request: Request, next: Next) -> Response {
    let conditions: HeaderMap = request
        .headers()
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .map(|value| (header::IF_NONE_MATCH, value.clone()))
        .collect();
    let mut response = next.run(request).await;
    weaken_etag(&mut response);
    if response.status() == StatusCode::PARTIAL_CONTENT {
        // Without the range, the answer may be compressed.
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
    let is_unchanged = response.status() == StatusCode::OK && etag.is_some_and(|etag| client_has(&conditions, etag));
    if is_unchanged { not_modified(&response) } else { response }
}

/// The `ETag` of a compressed answer is weak: its bytes are not those of the content, so they cannot be requested by range.
fn weaken_etag(response: &mut Response) {
    if response.headers().contains_key(header::CONTENT_ENCODING)
        && let Some(etag) = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok())
    {
        let weak = header_value(format!("W/{etag}"));
        response.headers_mut().insert(header::ETAG, weak);
    }
}

/// A 304 with the headers that the 200 would have, as far as caches need them.
fn not_modified(whole: &Response) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in [header::ETAG, header::CACHE_CONTROL, header::VARY] {
        if let Some(value) = whole.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
