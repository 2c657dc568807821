//! `GET /events`: rows, lock changes and statistics of all replicas, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema as JsonSchema},
};

use crate::http::{
    app::{App, SUBSCRIBERS_MAX, Shared},
    contract::refusals::EventsRefused,
    error::ApiError,
    handlers::rows::{RowBody, row_bodies},
    middleware::tokens::{Caller, Role},
    query::{Parameters, digits},
};
use crate::{
    api::events::{LockChange, Stats},
    commit::{
        peer_events::{Event, NEW_ROWS_MAX},
        reading::{NewRows, Position},
    },
    csv::schema::InvalidField,
    time::ms,
};

/// The most rows of one event.
const ROWS_DEFAULT: usize = 20;
/// How soon a subscriber reconnects.
const RETRY: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How polyfills of `EventSource` send it, since a header would need a CORS preflight.
const LAST_EVENT_ID_PARAMETER: &str = "lastEventId";

/// Said if the rows to begin with cannot be found.
const MOVED_AWAY: &str = "the file was replaced or repaired at this offset; rows are sent from now on";
/// Said before rows are sent again.
const MOVED: &str = "the file was repaired; the rows that may have moved are sent again";

/// The replica that sends the events, what it accepts, and what the subscriber may do.
#[derive(Serialize, ToSchema)]
#[schema(as = HelloEvent)]
struct HelloBody<'a> {
    /// The replica that sends the events.
    replica: &'a str,
    /// The roles of the subscriber; all of them if no tokens are configured.
    roles: Vec<Role>,
    /// Whether the subscriber sent a known token.
    by_token: bool,
    /// Whether `sleep` and `skip_release` are accepted.
    simulation: bool,
    /// The longest `sleep`.
    sleep_max_ms: u64,
    /// How long the lock stays held without a renewal.
    lock_ttl_ms: u64,
    /// The columns of the file in order; null without a header.
    #[schema(required)]
    columns: Option<&'a [String]>,
}

/// Rows were written.
#[derive(Serialize, ToSchema)]
#[schema(as = RowsEvent)]
struct RowsBody<'a> {
    /// Byte offset where the first row starts.
    offset: u64,
    /// Byte offset where the last row ends.
    end: u64,
    /// How many rows were written.
    count: u64,
    /// The newest of the rows.
    rows: Vec<RowBody<'a>>,
}

/// Events were lost.
#[derive(Serialize, ToSchema)]
#[schema(as = LaggedEvent)]
struct LaggedBody {
    /// How many events were lost, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
    /// Why, and what is missing.
    detail: &'static str,
}

/// The schemas of the events' data, for the contract.
pub(crate) fn schemas() -> Vec<(String, RefOr<JsonSchema>)> {
    fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<JsonSchema>)>) {
        all.push((T::name().into_owned(), T::schema()));
        T::schemas(all);
    }
    let mut all = Vec::new();
    add::<HelloBody<'_>>(&mut all);
    add::<RowsBody<'_>>(&mut all);
    add::<LaggedBody>(&mut all);
    add::<LockChange>(&mut all);
    add::<Stats>(&mut all);
    all
}

/// One subscriber: which rows it has received, and what it receives next.
struct Subscription {
    app: App,
    live: broadcast::Receiver<Event>,
    /// Where the next row to send begins; `None` until the first live rows arrive.
    at: Option<Position>,
    /// Live rows that start after `at`, so that the rows between are read from the file first.
    ahead: Option<Arc<NewRows>>,
    /// Rows of the file are sent before live ones.
    catching_up: bool,
    rows_max: usize,
    /// The first events, in reverse order.
    first: Vec<SseEvent>,
    stop: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
}

/// Subscribe to events of all replicas
///
/// Server-sent events with a JSON object as data: `hello` (a `HelloEvent`, always first), `rows` (a `RowsEvent`; its id is the offset
/// where its rows end), `lock` (a `LockEvent`), `stats` (a `StatsEvent`, once a second) and `lagged` (a `LaggedEvent`: the subscriber
/// read too slowly and lost events other than `rows`, or a repair moved rows, as its `detail` says).
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    operation_id = "events",
    params(
        ("rows" = Option<u64>, Query, maximum = 100, description = "The most rows of one event; default 20. They have at most \
            64 KiB."),
        ("last" = Option<u64>, Query, maximum = 100, description = "How many existing rows to begin with; default 0."),
        ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "Continue with the rows after this byte of the file."),
        ("lastEventId" = Option<String>, Query, nullable = false, description = "The same as a parameter, for clients that cannot set the header. The header wins."),
    ),
    responses(
        (status = OK, description = "A stream, until the subscriber disconnects or the replica shuts down.", content_type = "text/event-stream",
            body = String, example = "event: rows\ndata: {\"offset\":29,\"end\":69,\"count\":1,\"rows\":[]}\nid: 69\n\n"),
        EventsRefused,
    ),
)]
pub(crate) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut parameters = Parameters::parse(query.as_deref(), &["last", "rows", LAST_EVENT_ID_PARAMETER])?;
    let last = parameters.count("last", 0..=NEW_ROWS_MAX)?.unwrap_or(0);
    let rows_max = parameters.count("rows", 0..=NEW_ROWS_MAX)?.unwrap_or(ROWS_DEFAULT);
    let resume = resume_at(&headers, parameters.take(LAST_EVENT_ID_PARAMETER))?;
    let slot = Arc::clone(&app.subscriber_slots).try_acquire_owned();
    let slot = slot.map_err(|_| ApiError::TooManySubscribers(SUBSCRIBERS_MAX))?;
    let (live, known) = app.events.subscribe();
    let stop = app.stopped.clone();
    let mut subscription = Subscription {
        live,
        at: None,
        ahead: None,
        catching_up: false,
        rows_max,
        first: Vec::new(),
        stop,
        app,
        _slot: slot,
    };
    let first = subscription.begin(resume, last).await?;
    let known = known.iter().rev().map(|change| json_event("lock", change));
    subscription.first = known.chain([first, subscription.hello(caller).retry(RETRY)]).collect();
    let revoked = Arc::clone(&subscription.app.access).revoked(caller, Role::Read);
    let sse = Sse::new(subscription.stream().take_until(revoked)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Keeps nginx from buffering the stream.
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, sse).into_response())
}

/// Where to resume. The header wins; without an id, nothing is resumed.
fn resume_at(headers: &HeaderMap, parameter: Option<String>) -> Result<Option<u64>, InvalidField> {
    let (name, id) = match headers.get(LAST_EVENT_ID) {
        Some(header) => ("Last-Event-ID", header.to_str().unwrap_or("not text").to_owned()),
        None => (LAST_EVENT_ID_PARAMETER, parameter.unwrap_or_default()),
    };
    if id.is_empty() {
        return Ok(None);
    }
    let accepted = || InvalidField::new(name, "accepted: the id of a rows event, the offset where its rows end");
    digits(&id).map(Some).ok_or_else(accepted)
}

impl Subscription {
    fn hello(&self, caller: Caller) -> SseEvent {
        let Shared { appender, limits, .. } = &*self.app;
        let body = HelloBody {
            replica: appender.replica(),
            roles: caller.roles(),
            by_token: caller.token.is_some(),
            simulation: limits.simulation,
            sleep_max_ms: ms(limits.sleep_max),
            lock_ttl_ms: ms(appender.lock_ttl()),
            columns: appender.schema().names(),
        };
        json_event("hello", &body)
    }

    /// The event after `hello`: the `last` rows, or whether the stream continues where the subscriber wants.
    async fn begin(&mut self, resume: Option<u64>, last: usize) -> Result<SseEvent, ApiError> {
        Ok(match resume {
            Some(offset) => match self.app.reading.position_at(offset).await? {
                Some(position) => {
                    (self.at, self.catching_up) = (Some(position), true);
                    SseEvent::default().comment("resumed")
                }
                None => lagged(None, MOVED_AWAY),
            },
            None if last == 0 => SseEvent::default().comment("from now on"),
            None => {
                let (page, _) = self.app.reading.last(last).await?;
                let Some(start) = self.app.reading.position_at(page.start).await? else {
                    return Ok(lagged(None, MOVED_AWAY));
                };
                let news = self.app.reading.new_rows(start, last).await?;
                // The rows may be more than `new_rows` reads at once.
                (self.at, self.catching_up) = (Some(news.end), true);
                self.rows(&news, last)
            }
        })
    }

    fn stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(self, |mut subscription| async move {
            let event = subscription.next().await?;
            Some((Ok(event), subscription))
        })
    }

    async fn next(&mut self) -> Option<SseEvent> {
        if let Some(first) = self.first.pop() {
            return Some(first);
        }
        loop {
            if let Some(event) = self.missing_rows().await {
                return Some(event);
            }
            let live = tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return None,
                live = self.live.recv() => live,
            };
            match live {
                Ok(Event::Rows(news)) => {
                    if let Some(event) = self.live_rows(news) {
                        return Some(event);
                    }
                }
                Ok(Event::Lock(change)) => return Some(json_event("lock", &*change)),
                Ok(Event::Stats(stats)) => return Some(json_event("stats", &*stats)),
                // Lost rows are read from the file.
                Err(broadcast::error::RecvError::Lagged(events)) => {
                    return Some(lagged(
                        Some(events),
                        "events were lost because they were read too slowly; no rows are lost",
                    ));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// The next rows of the file that precede the live ones.
    async fn missing_rows(&mut self) -> Option<SseEvent> {
        let at = self.at?;
        if !self.catching_up && self.ahead.is_none() {
            return None;
        }
        let news = match self.app.reading.new_rows(at, self.rows_max).await {
            Ok(news) => news,
            Err(e) => {
                tracing::debug!(error = %e, "cannot read rows for a subscriber");
                self.at = None;
                return Some(lagged(None, "rows could not be read; rows are sent from now on"));
            }
        };
        self.at = Some(news.end);
        if news.count == 0 || self.ahead.as_ref().is_some_and(|ahead| ahead.end.offset <= news.end.offset) {
            (self.ahead, self.catching_up) = (None, false);
        }
        let rows = (news.count > 0).then(|| self.rows(&news, self.rows_max));
        if news.start.offset < at.offset {
            self.first.extend(rows);
            return Some(lagged(None, MOVED));
        }
        rows
    }

    fn live_rows(&mut self, news: Arc<NewRows>) -> Option<SseEvent> {
        match self.at {
            Some(at) if at.is_of_same_rows(news.end) && news.end.offset <= at.offset => None,
            Some(at) if !at.is_of_same_rows(news.start) || news.start.offset != at.offset => {
                self.ahead = Some(news);
                None
            }
            Some(_) | None => {
                self.at = Some(news.end);
                Some(self.rows(&news, self.rows_max))
            }
        }
    }

    fn rows(&self, news: &NewRows, rows_max: usize) -> SseEvent {
        let newest = &news.rows[news.rows.len().saturating_sub(rows_max)..];
        let rows = row_bodies(newest, self.app.appender.schema());
        let (offset, end) = (news.start.offset, news.end.offset);
        json_event("rows", &RowsBody { offset, end, count: news.count, rows }).id(end.to_string())
    }
}

fn lagged(events: Option<u64>, detail: &'static str) -> SseEvent {
    json_event("lagged", &LaggedBody { events, detail })
}

fn json_event(name: &str, data: &impl Serialize) -> SseEvent {
    let text = serde_json::to_string(data).expect("an event is plain data");
    SseEvent::default().event(name).data(text)
}
