//! The traces that a collector receives.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use reqwest::Method;
use serde_json::json;
use tokio::sync::Mutex;

use crate::support::{Bench, On, PATIENCE, answer, free_port, until};

type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector that keeps what it receives.
struct Collector {
    url: String,
    received: Received,
}

impl Collector {
    async fn start(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let (url, received) = (format!("http://{}", listener.local_addr().expect("bound")), Received::default());
        let take = async |State(received): State<Received>, body: Bytes| {
            received.lock().await.push(ExportTraceServiceRequest::decode(body).expect("OTLP"));
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&received));
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, received }
    }

    async fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().await;
        let resources = received.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn span(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        until(what, async || self.spans().await.iter().any(&is_it)).await;
        self.spans().await.into_iter().find(is_it).expect("a span that has arrived")
    }
}

fn values(attributes: &[KeyValue]) -> HashMap<&str, String> {
    let text = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        Any::DoubleValue(number) => number.to_string(),
        Any::BoolValue(bool) => bool.to_string(),
        other => panic!("{other:?}"),
    };
    let value = |pair: &KeyValue| text(pair.value.as_ref().and_then(|value| value.value.as_ref()).expect("a value"));
    attributes.iter().map(|pair| (pair.key.as_str(), value(pair))).collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn request_is_one_span_with_lock_and_sync() {
    let (bench, collector) = (Bench::new(On::Embedded), Collector::start(0).await);
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("ROWLOCK_REPLICA", "one"),
    ];
    let replica = bench.replica(&settings);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let under = |flags: &str| format!("00-{trace}-{parent}-{flags}");
    let request = replica.post(&json!({"data": "x", "sleep": 0.05})).header("traceparent", under("01"));
    let response = request.header("x-request-id", "order-17").send().await.expect("an answer");
    assert_eq!(response.headers()["traceparent"], *under("01"));
    let ack: serde_json::Value = response.json().await.expect("JSON");
    let span = collector.span("the row's span", |span| span.name == "POST /append").await;
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (trace.to_owned(), parent.to_owned()));
    assert_eq!(span.kind, SpanKind::Server as i32);
    let attributes = values(&span.attributes);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/append"),
        ("url.path", "/append"),
        ("http.response.status_code", "201"),
        ("rowlock.request_id", "order-17"),
        ("rowlock.outcome", "written"),
        ("rowlock.rows", "1"),
        ("rowlock.token", &ack["token"].to_string()),
        ("rowlock.offset", &ack["offset"].to_string()),
        ("rowlock.held_ms", &ack["held_ms"].to_string()),
    ] {
        assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(attributes["rowlock.sync_ms"].parse::<f64>().expect("a number") > 0.0);
    let events: Vec<_> = span.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["lock granted", "rows durable"]);
    let held = span.events[1].time_unix_nano - span.events[0].time_unix_nano;
    assert!(held >= 50_000_000 && span.end_time_unix_nano - span.start_time_unix_nano >= held, "{held}");
    let received = collector.received.lock().await;
    let resource = values(&received[0].resource_spans[0].resource.as_ref().expect("a resource").attributes);
    assert_eq!((&*resource["service.name"], &*resource["service.instance.id"]), ("rowlock", "one"));
}

#[tokio::test]
async fn refusal_span_has_its_code_and_probes_have_none() {
    let (bench, collector) = (Bench::new(On::Redis), Collector::start(0).await);
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("ROWLOCK_WAIT_TIMEOUT", "100ms"),
        ("OTEL_SERVICE_NAME", "ledger"),
    ];
    let replica = bench.replica(&settings);
    // The caller decided not to record this trace.
    let unsampled = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00";
    assert_eq!(answer(replica.post(&json!({"data": "x"})).header("traceparent", unsampled)).await.0, 201);
    assert_eq!(answer(replica.request(Method::GET, "/readyz")).await.0, 200);
    bench.redis().cli(&["set", crate::support::LOCK_KEY, "foreign"]);
    let response = replica.post(&json!({"data": "x"})).send().await.expect("an answer");
    let returned = response.headers()["traceparent"].to_str().expect("text").to_owned();
    let late = collector.span("the refusal's span", |span| span.name == "POST /append").await;
    assert_eq!(returned, format!("00-{}-{}-01", hex(&late.trace_id), hex(&late.span_id)));
    assert!(late.parent_span_id.is_empty());
    let attributes = values(&late.attributes);
    assert_eq!((&*attributes["error.type"], &*attributes["rowlock.outcome"]), ("wait_timeout", "not_written"));
    assert_eq!(late.status.expect("a status").code, StatusCode::Error as i32);
    let wrong = json!({"data": "x", "sleep": -1});
    assert_eq!(replica.append(wrong).await.0, 422);
    let is_wrong = |span: &Span| values(&span.attributes).get("error.type").is_some_and(|code| code == "invalid_field");
    let wrong = collector.span("the wrong request's span", is_wrong).await;
    assert!(wrong.status.is_none_or(|status| status.code == StatusCode::Unset as i32), "an error of the client");
    assert_eq!(collector.spans().await.len(), 2, "neither the probe nor the unsampled request has a span");
    let received = collector.received.lock().await;
    let resource = values(&received[0].resource_spans[0].resource.as_ref().expect("a resource").attributes);
    assert_eq!(resource["service.name"], "ledger");
}

// Waiting for the end of a process blocks the thread.
#[tokio::test(flavor = "multi_thread")]
async fn last_spans_are_exported_before_exit() {
    let (bench, collector) = (Bench::new(On::Embedded), Collector::start(0).await);
    let settings = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url))];
    let mut replica = bench.replica(&settings.each_ref().map(|(name, value)| (*name, value.as_str())));
    replica.append_text("x").await;
    replica.signal("TERM");
    assert_eq!(replica.end().code(), Some(0));
    assert_eq!(collector.spans().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_is_logged_once_and_blocks_nothing() {
    let (bench, port) = (Bench::new(On::Embedded), free_port());
    let endpoint = format!("http://127.0.0.1:{port}");
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    let mut replica = bench.replica(&settings);
    let logged = |text: &str| replica.log().matches(text).count();
    for round in 0..5 {
        replica.append_text("x").await;
        until("the failure is logged", async || logged("traces cannot be exported") == 1).await;
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
    }
    let collector = Collector::start(port).await;
    until("the recovery is logged", async || {
        replica.append_text("y").await;
        logged("traces are exported again") == 1
    })
    .await;
    assert!(!collector.spans().await.is_empty());
    assert_eq!(logged("traces cannot be exported"), 1);
    replica.signal("TERM");
    assert_eq!(replica.end().code(), Some(0));
}

#[tokio::test]
async fn silent_collector_does_not_delay_shutdown() {
    let bench = Bench::new(On::Embedded);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("bound"));
    let mut replica = bench.replica(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    replica.append_text("x").await;
    replica.signal("TERM");
    let began = std::time::Instant::now();
    assert_eq!(replica.end().code(), Some(0));
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[test]
fn unusable_trace_settings_refuse_the_start() {
    let bench = Bench::new(On::Embedded);
    let address = "http://127.0.0.1:4318";
    for (settings, named) in [
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:secret")][..], "OTEL_EXPORTER_OTLP_ENDPOINT: accepted: http://"),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", address), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "OTEL_EXPORTER_OTLP_PROTOCOL: accepted: http/protobuf",
        ),
    ] {
        let output = bench.run(&[], settings);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(named), "{:?} {stderr}", output.status);
        assert!(!stderr.contains("secret"), "{stderr}");
    }
}
