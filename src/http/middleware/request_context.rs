//! The outermost layer: gives each request its ids, writes problems, logs one line.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::Response,
};
use uuid::Uuid;

use crate::api::acknowledgement::Ack;
use crate::http::{
    app::App,
    error::{Code, Problem},
    handlers::metrics::answered,
    middleware::{rate_limit::whole_seconds, trace_span::Span},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The longest that a client is told to stay away.
const COME_BACK_MAX: Duration = Duration::from_secs(60);

/// Takes over or makes `X-Request-Id` and `traceparent`, and returns both with what `within` answers.
pub(crate) async fn edge<F: Future<Output = Response>>(
    app: &App,
    route: Option<&str>,
    request: Request,
    within: impl FnOnce(Request) -> F,
) -> Response {
    let began = Instant::now();
    let request_id = take_over(request.headers(), &REQUEST_ID, is_request_id)
        .unwrap_or_else(|| header_value(Uuid::new_v4().hyphenated().encode_lower(&mut [0; 36])));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = app.tracer.as_ref();
    let span = span.and_then(|tracer| Span::begin(tracer, request.headers(), &method, &path, route));
    let trace_parent = take_over(request.headers(), &TRACE_PARENT, is_trace_parent)
        .unwrap_or_else(|| header_value(&span.as_ref().map_or_else(new_trace_parent, Span::trace_parent)));

    let mut response = within(request).await;

    let id = request_id.to_str().unwrap_or_default();
    let mut problem = response.extensions_mut().remove::<Problem>();
    if let Some(problem) = &mut problem {
        id.clone_into(&mut problem.request_id);
        write_problem(&mut response, problem);
        if matches!(problem.code, Code::QueueFull | Code::WaitTimeout)
            && let Some(wait) = app.appender.time_to_drain()
        {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait.min(COME_BACK_MAX))));
        }
    }
    if app.draining.has_begun() {
        // Whoever keeps connections open makes the next one elsewhere.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    app.appender.meter().count_request(&answered(&response, &method, route, problem.as_ref()), began.elapsed());
    log(&response, (id, trace_id(&trace_parent)), &method, &path, problem.as_ref(), began);
    if let Some(span) = span {
        span.end(&response, problem.as_ref(), id);
    }
    response.headers_mut().insert(REQUEST_ID, request_id);
    response.headers_mut().insert(TRACE_PARENT, trace_parent);
    response
}

fn take_over(headers: &HeaderMap, name: &HeaderName, valid: fn(&[u8]) -> bool) -> Option<HeaderValue> {
    headers.get(name).filter(|value| valid(value.as_bytes())).cloned()
}

fn is_request_id(value: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, neither id all zeros: <https://www.w3.org/TR/trace-context/>.
fn is_trace_parent(value: &[u8]) -> bool {
    let parts: Vec<&[u8]> = value.split(|&byte| byte == b'-').collect();
    let hex = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let lengths = parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]);
    lengths
        && parts.iter().all(|part| hex(part))
        && parts[0] != b"ff"
        && parts[1..3].iter().all(|id| id.iter().any(|&byte| byte != b'0'))
}

fn new_trace_parent() -> String {
    let (mut trace, mut span) = ([0; 32], [0; 32]);
    let [trace, span] = [&mut trace, &mut span].map(|hex| &*Uuid::new_v4().simple().encode_lower(hex));
    ["00-", trace, "-", &span[16..], "-01"].concat()
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).expect("hex digits and dashes make a header")
}

fn write_problem(response: &mut Response, problem: &Problem) {
    let body = serde_json::to_vec(problem).expect("a problem is plain data");
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    *response.body_mut() = Body::from(body);
}

/// The part of a valid `traceparent` by which logs of several services are found together.
fn trace_id(trace_parent: &HeaderValue) -> &str {
    trace_parent.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or_default()
}

fn log(
    response: &Response,
    (request_id, trace_id): (&str, &str),
    method: &Method,
    path: &str,
    problem: Option<&Problem>,
    began: Instant,
) {
    let status = response.status().as_u16();
    let took_ms = began.elapsed().as_millis();
    match (response.extensions().get::<Ack>(), problem) {
        (Some(Ack { token, waited_ms, held_ms, offset, .. }), _) => {
            tracing::info!(request_id, trace_id, %method, path, status, outcome = "written", token, waited_ms, held_ms, offset, took_ms, "request");
        }
        (None, Some(Problem { code, outcome, .. })) => {
            tracing::info!(request_id, trace_id, %method, path, status, %outcome, %code, took_ms, "request");
        }
        // Probes ask several times a second.
        (None, None) => tracing::debug!(request_id, trace_id, %method, path, status, took_ms, "request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_are_safe_to_repeat_are_taken_over() {
        assert!(is_request_id(b"abc-1"));
        assert!(!is_request_id(b"a b") && !is_request_id(b"") && !is_request_id(&[b'x'; 129]));
        assert!(is_trace_parent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent(b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent(b"00-1-2-3"));
        assert!(is_trace_parent(new_trace_parent().as_bytes()));
    }
}
