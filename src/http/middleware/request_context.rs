//! The outermost layer: gives each request its ids, writes problems, counts and logs the answer.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, header},
    response::Response,
};
use uuid::Uuid;

use crate::api::acknowledgement::Acknowledgement;
use crate::http::{
    app::App,
    error::{Code, Problem, whole_seconds},
    header_value::header_value,
    json::json_line,
    middleware::{
        trace_parent::{self, TRACE_PARENT},
        trace_span::Span,
    },
    request_labels::request_labels,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The longest `Retry-After` that is computed from the length of the queue.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Takes `X-Request-Id` and `traceparent` from the request or makes them, and returns both with the answer of `inner`.
pub(crate) async fn with_request_context<F: Future<Output = Response>>(
    app: &App,
    route: Option<&str>,
    request: Request,
    inner: impl FnOnce(Request) -> F,
) -> Response {
    let began = Instant::now();
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|value| is_request_id(value.as_bytes()))
        .cloned()
        .unwrap_or_else(|| header_value(&*Uuid::new_v4().hyphenated().encode_lower(&mut [0; 36])));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = app.tracer.as_ref();
    let of_caller = trace_parent::of_caller(request.headers());
    let span = span.and_then(|tracer| {
        let parent = of_caller.as_ref().map(|_| request.headers());
        Span::begin(tracer, parent, &method, &path, route)
    });
    let trace_parent =
        of_caller.unwrap_or_else(|| header_value(span.as_ref().map_or_else(trace_parent::new, Span::trace_parent)));
    let context = RequestContext { id, trace_parent, method, path, began };

    let mut response = inner(request).await;

    let problem = response.extensions_mut().remove::<Problem>().map(|mut problem| {
        context.id().clone_into(&mut problem.request_id);
        write_problem(app, &mut response, &problem);
        problem
    });
    if app.draining.closes_connections() {
        // Clients that keep connections open connect to another replica then.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let labels = request_labels(&response, &context.method, route, problem.as_ref());
    app.appender.meter().count_request(&labels, began.elapsed());
    context.log(&response, problem.as_ref());
    if let Some(span) = span {
        span.end(&response, problem.as_ref(), context.id());
    }
    response.headers_mut().insert(REQUEST_ID, context.id);
    response.headers_mut().insert(TRACE_PARENT, context.trace_parent);
    response
}

/// What is known of a request apart from its body.
struct RequestContext {
    id: HeaderValue,
    trace_parent: HeaderValue,
    method: Method,
    path: String,
    began: Instant,
}

impl RequestContext {
    fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The part of `traceparent` that is the same in the logs of all services.
    fn trace_id(&self) -> &str {
        self.trace_parent.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or_default()
    }

    fn log(&self, response: &Response, problem: Option<&Problem>) {
        let (request_id, trace_id) = (self.id(), self.trace_id());
        let Self { method, path, .. } = self;
        let status = response.status().as_u16();
        let took_ms = self.began.elapsed().as_millis();
        match (response.extensions().get::<Acknowledgement>(), problem) {
            (Some(Acknowledgement { token, waited_ms, held_ms, offset, .. }), _) => {
                tracing::info!(request_id, trace_id, %method, path, status, outcome = "written", token, waited_ms, held_ms, offset, took_ms, "request");
            }
            (None, Some(Problem { code, outcome, .. })) => {
                tracing::info!(request_id, trace_id, %method, path, status, %outcome, %code, took_ms, "request");
            }
            // Probes arrive several times a second.
            (None, None) => tracing::debug!(request_id, trace_id, %method, path, status, took_ms, "request"),
        }
    }
}

fn is_request_id(value: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

/// Writes the problem as the body of the answer. Where the queue refused the request, `Retry-After` becomes the time that the queue
/// needs to drain.
fn write_problem(app: &App, response: &mut Response, problem: &Problem) {
    let body = json_line(problem);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if matches!(problem.code, Code::QueueFull | Code::WaitTimeout)
        && let Some(wait) = app.appender.time_to_drain()
    {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait.min(RETRY_AFTER_MAX))));
    }
    *response.body_mut() = Body::from(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_printable_request_ids_are_accepted() {
        assert!(is_request_id(b"abc-1"));
        assert!(!is_request_id(b"a b") && !is_request_id(b"") && !is_request_id(&[b'x'; 129]));
    }
}
