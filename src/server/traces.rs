//! Traces: exports spans by OTLP over HTTP, as configured by OpenTelemetry's own variables.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Uri, header};
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, ResponseExt};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};

use crate::{
    client::{Connector, Target, Trust},
    config::variable,
};

/// Each of these variables turns traces on: <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"];
const PROTOCOL: &str = "http/protobuf";
/// The timeout of one export.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// The largest answer of a collector.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long a shutdown waits for the last export.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Why traces cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A protocol that is not supported.
    #[error("{0}: accepted: {PROTOCOL}")]
    Protocol(&'static str),
    /// The address is not valid. It is not shown, because it may hold a secret.
    #[error("{0}: accepted: http://HOST:PORT or https://HOST:PORT, of a collector that takes OTLP over HTTP")]
    Endpoint(&'static str),
    /// A variable of OpenTelemetry cannot be used.
    #[error("traces (OTEL_EXPORTER_OTLP_…): {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// TLS cannot be set up.
    #[error("traces: {0}")]
    Tls(String),
}

/// Collects spans and exports them, in the background.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// `None` if no address is set. To be called on the runtime that is to run the exports.
    pub(super) fn from_env(replica: &str) -> Result<Option<Self>, TracesError> {
        let set: Vec<_> = ENDPOINTS.into_iter().filter_map(|name| Some((name, variable(name)?))).collect();
        if set.is_empty() {
            return Ok(None);
        }
        if let Some((name, _)) = set.iter().find(|(_, address)| Target::parse(address).is_err()) {
            return Err(TracesError::Endpoint(name));
        }
        if let Some(name) =
            PROTOCOLS.into_iter().find(|name| variable(name).is_some_and(|protocol| protocol != PROTOCOL))
        {
            return Err(TracesError::Protocol(name));
        }
        let connector = Connector::new(&Trust::System).map_err(TracesError::Tls)?;
        let client = Client { connector, runtime: Handle::current(), failing: AtomicBool::new(false) };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(replica));
        Ok(Some(Self(provider.build())))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer("rowlock")
    }

    /// Exports the remaining spans, within a bounded time.
    pub(super) async fn flush(self) {
        let shutdown = spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_MAX));
        if !matches!(timeout(FLUSH_MAX, shutdown).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last traces were not exported in time");
        }
    }
}

/// The resource attributes of this replica. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override and extend them.
fn resource(replica: &str) -> Resource {
    let own = [
        KeyValue::new("service.instance.id", replica.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|pair| pair.split('=').next().is_some_and(|key| key.trim() == "service.name"));
    let builder = Resource::builder().with_attributes(own);
    if is_named { builder.build() } else { builder.with_service_name("rowlock").build() }
}

/// Sends the requests of the exporter's thread, and logs when exports start to fail or succeed again.
struct Client {
    connector: Connector,
    runtime: Handle,
    failing: AtomicBool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // A connection needs the runtime, and the exporter's thread is not part of it.
        let connector = self.connector.clone();
        let sent = self.runtime.spawn(async move { timeout(EXPORT_MAX, send(connector, request)).await });
        let answer = sent.await?.unwrap_or_else(|late| Err(late.into())).and_then(ResponseExt::error_for_status);
        match &answer {
            Err(e) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(error = %e, "traces cannot be exported, and are lost until the collector answers again");
            }
            Ok(_) if self.failing.swap(false, Ordering::Relaxed) => tracing::info!("traces are exported again"),
            _ => {}
        }
        answer
    }
}

/// Each export has a connection of its own, because exports are seconds apart.
async fn send(connector: Connector, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let (scheme, authority) = (parts.uri.scheme_str().unwrap_or_default(), parts.uri.authority());
    let target = Target::parse(&format!("{scheme}://{}", authority.map_or("", |authority| authority.as_str())))?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = Uri::try_from(path)?;
    parts.headers.insert(header::HOST, target.authority());
    let mut connection = connector.connect(&target).await?;
    let (parts, body) = connection.send_request(Request::from_parts(parts, Full::new(body))).await?.into_parts();
    Ok(Response::from_parts(parts, Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes()))
}
