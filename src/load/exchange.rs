//! One request and its answer.

use std::{borrow::Cow, num::NonZeroU64, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header, header::HeaderValue};
use serde::Deserialize;
use tokio::time::timeout;

use crate::load::{
    plan::{Plan, Sleep},
    rows::Generator,
};
use crate::{
    client::{Connection, Connector, Target},
    csv::encode::quote,
};

/// Longer than any answer of Rowlock.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longer than a replica lets a row wait, with its default settings.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// The result of one attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    Answered(Answer),
    /// The request was not sent.
    NotSent(&'static str),
    /// The request was sent, and its outcome is unknown.
    NoAnswer(&'static str),
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    is_replayed: bool,
    body: Bytes,
}

/// The fields of an acknowledgement.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Receipt<'a> {
    #[serde(borrow)]
    pub(super) replica: Option<Cow<'a, str>>,
    pub(super) token: Option<u64>,
    #[serde(skip)]
    pub(super) is_replayed: bool,
}

/// The fields of a refusal.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) detail: String,
    #[serde(default)]
    pub(super) retryable: bool,
    /// `None` if the answer is not Rowlock's, such as a proxy's.
    outcome: Option<String>,
}

impl Problem {
    pub(super) fn is_certainly_not_written(&self) -> bool {
        self.outcome.as_deref() == Some("not_written")
    }
}

impl Answer {
    /// Whether the rows are durable.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.status.is_success()
    }

    pub(super) fn receipt(&self) -> Receipt<'_> {
        let receipt = serde_json::from_slice(&self.body).unwrap_or_default();
        Receipt { is_replayed: self.is_replayed, ..receipt }
    }

    pub(super) fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Builds and sends the requests of a run.
pub(super) struct Requests {
    generator: Generator,
    batch: Option<u64>,
    sleep: Option<Sleep>,
    skip_release_every: Option<NonZeroU64>,
    key_prefix: Option<String>,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

/// The body and key of a request, the same for each attempt.
#[derive(Clone)]
pub(super) struct Body {
    content: Bytes,
    key: Option<HeaderValue>,
}

impl Requests {
    pub(super) fn new(plan: &Plan, generator: &Generator) -> Self {
        Self {
            generator: generator.clone(),
            batch: plan.batch.map(u64::from),
            sleep: plan.sleep,
            skip_release_every: plan.skip_release_every,
            key_prefix: plan.keys.then(|| generator.prefix().to_owned()),
            authorization: plan.authorization.clone(),
            timeout: ANSWER_TIMEOUT + plan.sleep.map_or(Duration::ZERO, |sleep| sleep.length),
        }
    }

    pub(super) fn body(&self, request: u64) -> Body {
        let mut row = String::new();
        let content = match self.batch {
            Some(batch) => {
                let mut text = Vec::new();
                for number in request * batch..(request + 1) * batch {
                    row.clear();
                    self.generator.write(number, &mut row);
                    text.extend_from_slice(&quote(&row));
                    text.push(b'\n');
                }
                text
            }
            None => {
                self.generator.write(request, &mut row);
                self.single(request, &row)
            }
        };
        let key = self
            .key_prefix
            .as_ref()
            .map(|prefix| HeaderValue::try_from(format!("{prefix}{request}")).expect("printable ASCII"));
        Body { content: content.into(), key }
    }

    fn single(&self, request: u64, row: &str) -> Vec<u8> {
        // Counted from 1, so that the first request is a plain one: it fails only if all requests fail.
        let is_turn = |every: NonZeroU64| (request + 1).is_multiple_of(every.get());
        let sleep = self.sleep.filter(|sleep| is_turn(sleep.every)).map(|sleep| sleep.length.as_secs_f64());
        let skips = self.skip_release_every.is_some_and(is_turn);
        let mut body = Vec::with_capacity(row.len() + 64);
        body.extend_from_slice(b"{\"data\":");
        serde_json::to_writer(&mut body, row).expect("writing to memory cannot fail");
        if let Some(secs) = sleep {
            body.extend_from_slice(format!(",\"sleep\":{secs}").as_bytes());
        }
        if skips {
            body.extend_from_slice(b",\"skip_release\":true");
        }
        body.push(b'}');
        body
    }

    fn request(&self, target: &Target, body: &Body) -> Request<Full<Bytes>> {
        let (path, media_type) = match self.batch {
            Some(_) => ("/append/batch", "text/csv; header=absent"),
            None => ("/append", "application/json"),
        };
        let mut request = target.request(Method::POST, path, body.content.clone());
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(key) = &body.key {
            headers.insert("idempotency-key", key.clone());
        }
        request
    }

    /// Sends a request on `connection`, which is opened if needed, and kept if it can be used again.
    pub(super) async fn send(
        &self,
        connector: &Connector,
        target: &Target,
        connection: &mut Option<Connection>,
        body: &Body,
    ) -> Attempt {
        let mut open = match connection.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => match connector.connect(target).await {
                Ok(open) => open,
                Err(_) => return Attempt::NotSent("no connection"),
            },
        };
        let Ok(attempt) = timeout(self.timeout, exchange(&mut open, self.request(target, body))).await else {
            return Attempt::NoAnswer("no answer in time");
        };
        if matches!(attempt, Attempt::Answered(_)) {
            *connection = Some(open);
        }
        attempt
    }
}

async fn exchange(connection: &mut Connection, request: Request<Full<Bytes>>) -> Attempt {
    if connection.ready().await.is_err() {
        return Attempt::NotSent("connection closed");
    }
    let response = match connection.try_send_request(request).await {
        Ok(response) => response,
        Err(mut e) => {
            // The client returns the request if it sent no byte of it.
            let was_not_sent = e.take_message().is_some();
            return if was_not_sent {
                Attempt::NotSent("connection closed")
            } else {
                Attempt::NoAnswer("connection broke")
            };
        }
    };
    let (head, body) = response.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let retry_after = text("retry-after").and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
    let is_replayed = text("idempotent-replayed") == Some("true");
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(body) => Attempt::Answered(Answer { status: head.status, retry_after, is_replayed, body: body.to_bytes() }),
        // The status alone is an acknowledgement.
        Err(_) if head.status.is_success() => {
            Attempt::Answered(Answer { status: head.status, retry_after, is_replayed, body: Bytes::new() })
        }
        Err(_) => Attempt::NoAnswer("connection broke"),
    }
}
