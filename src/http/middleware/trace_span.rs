//! One OpenTelemetry span per request, from its arrival to its answer.

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

use crate::api::acknowledgement::Acknowledgement;
use crate::http::error::Problem;

/// The span of a request. Dropping it ends the span, so a cancelled request ends its span, too.
pub(crate) struct Span {
    span: SdkSpan,
    began: SystemTime,
}

impl Span {
    /// A child of the caller's span, or the root of a new trace without the headers of a caller. `None` for a probe that is not part of
    /// a trace.
    ///
    /// Names follow <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.
    pub(crate) fn begin(
        tracer: &SdkTracer,
        caller: Option<&HeaderMap>,
        method: &Method,
        path: &str,
        route: Option<&str>,
    ) -> Option<Self> {
        let none = Context::new();
        let parent = caller.map_or(none.clone(), |headers| {
            TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers))
        });
        let route = route.map(str::to_owned);
        // Probes arrive several times a second.
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

    /// The `traceparent` of this span's children.
    pub(crate) fn trace_parent(&self) -> String {
        let context = self.span.span_context();
        let flags = context.trace_flags().to_u8();
        format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
    }

    /// Records the answer and ends the span.
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
        if let Some(ack) = response.extensions().get::<Acknowledgement>() {
            self.record_written(ack);
        }
        self.span.end();
    }

    fn record_written(&mut self, ack: &Acknowledgement) {
        self.set("rowlock.outcome", "written");
        self.set("rowlock.replica", ack.replica.to_string());
        self.set("rowlock.rows", number(ack.rows as u64));
        self.set("rowlock.offset", number(ack.offset));
        self.set("rowlock.token", number(ack.token));
        self.set("rowlock.replayed", ack.replayed);
        // The times of a replayed answer belong to an earlier request.
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

/// OpenTelemetry has signed numbers only.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
