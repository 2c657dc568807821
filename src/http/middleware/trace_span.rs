//! One span a request, from its `traceparent` to its answer, which follows the sync.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use axum::{
    http::{HeaderMap, Method},
    response::Response,
};
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::TextMapPropagator,
    trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span as SdkSpan},
};

use crate::api::acknowledgement::Ack;
use crate::http::error::Problem;

/// A request's span, while it is under way. Ends with it, also where its client hangs up.
pub(crate) struct Span {
    span: SdkSpan,
    began: SystemTime,
}

impl Span {
    /// The child of the span that the request comes from, or the root of a new trace.
    ///
    /// Names are those of <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.
    pub(crate) fn begin(
        tracer: &SdkTracer,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
        route: Option<&str>,
    ) -> Option<Self> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let route = route.map(str::to_owned);
        // Probes ask several times a second, and are of interest to who asks in a trace of his own.
        if matches!(route.as_deref(), Some("/livez" | "/readyz" | "/metrics")) && !parent.has_active_span() {
            return None;
        }
        let name: Cow<'static, str> = match &route {
            Some(route) => format!("{method} {route}").into(),
            None => method.to_string().into(),
        };
        let mut attributes =
            vec![KeyValue::new("http.request.method", method.to_string()), KeyValue::new("url.path", path.to_owned())];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        let began = SystemTime::now();
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(began);
        let span = tracer.build_with_context(builder.with_attributes(attributes), &parent);
        Some(Self { span, began })
    }

    /// The `traceparent` of what comes under it.
    pub(crate) fn trace_parent(&self) -> String {
        let context = self.span.span_context();
        let flags = context.trace_flags().to_u8();
        format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
    }

    /// Says how it went.
    pub(crate) fn end(mut self, response: &Response, problem: Option<&Problem>, request_id: &str) {
        let status = response.status();
        self.set("http.response.status_code", i64::from(status.as_u16()));
        self.set("rowlock.request_id", request_id.to_owned());
        if let Some(problem) = problem {
            self.set("error.type", problem.code.to_string());
            self.set("rowlock.outcome", problem.outcome.to_string());
            if status.is_server_error() {
                self.span.set_status(Status::error(problem.detail.clone()));
            }
        }
        if let Some(ack) = response.extensions().get::<Ack>() {
            self.written(ack);
        }
        self.span.end();
    }

    fn written(&mut self, ack: &Ack) {
        self.set("rowlock.outcome", "written");
        self.set("rowlock.replica", ack.replica.to_string());
        self.set("rowlock.rows", number(ack.rows as u64));
        self.set("rowlock.offset", number(ack.offset));
        self.set("rowlock.token", number(ack.token));
        self.set("rowlock.replayed", ack.replayed);
        // In an answer that is repeated, these are another request's.
        if !ack.replayed {
            self.set("rowlock.waited_ms", number(ack.waited_ms));
            self.set("rowlock.held_ms", number(ack.held_ms));
            self.set("rowlock.sync_ms", ack.sync.as_secs_f64() * 1e3);
            let granted = self.began + Duration::from_millis(ack.waited_ms);
            self.span.add_event_with_timestamp("lock granted", granted, Vec::new());
            self.span.add_event_with_timestamp(
                "rows durable",
                granted + Duration::from_millis(ack.held_ms),
                Vec::new(),
            );
        }
    }

    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(name, value));
    }
}

/// OpenTelemetry has signed numbers only; ours do not come near their end.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
