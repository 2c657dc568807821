//! `GET /events`: what there is to see of all replicas, as server-sent events.

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
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema as JsonSchema},
};

use crate::http::{
    app::App,
    app::Shared,
    contract::document::EventsRefused,
    error::ApiError,
    handlers::rows::{RowBody, row_bodies},
    middleware::tokens::{Caller, Role},
    query::{Parameters, digits},
};
use crate::{
    commit::{
        LockChange,
        peer_events::{Event, NEWS_ROWS_MAX, Stats},
        reading::NewRows,
    },
    csv::schema::InvalidField,
    time::ms,
};

/// So many may watch at once.
pub(crate) const READERS_MAX: usize = 64;
/// The most rows of one event, unless asked otherwise.
const ROWS: usize = 20;
/// How soon a reader that lost its connection is to come back.
const RETRY: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Who tells, what it accepts, and what the reader may do.
#[derive(Serialize, ToSchema)]
#[schema(as = HelloEvent)]
struct HelloBody<'a> {
    /// The replica that tells.
    replica: &'a str,
    /// What the reader's token is for; everything, where nobody is asked for one.
    roles: Vec<Role>,
    /// Whether the reader was asked for a token.
    by_token: bool,
    /// Whether `sleep` and `skip_release` are accepted.
    simulation: bool,
    /// The longest `sleep`.
    sleep_max_ms: u64,
    /// How long a silent holder keeps the lock.
    lock_ttl_ms: u64,
    /// The file's columns, in order; null without a header.
    #[schema(required)]
    columns: Option<&'a [String]>,
}

/// Rows were written.
#[derive(Serialize, ToSchema)]
#[schema(as = RowsEvent)]
struct RowsBody<'a> {
    /// Where the first of them begins, in bytes.
    offset: u64,
    /// Where the last of them ends.
    end: u64,
    /// How many they are.
    count: u64,
    /// The newest of them.
    rows: Vec<RowBody<'a>>,
}

/// Something was lost.
#[derive(Serialize, ToSchema)]
#[schema(as = LaggedEvent)]
struct LaggedBody {
    /// Events that were lost, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
    /// What that means.
    detail: &'static str,
}

/// What the events' data are, for the contract.
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

/// A reader: how far it was told of rows, and what it gets next.
struct Watching {
    app: App,
    live: broadcast::Receiver<Event>,
    /// Where the rows that it was not told of begin; none until the first live ones come.
    at: Option<u64>,
    /// Rows that came live and are further on than `at`.
    ahead: Option<Arc<NewRows>>,
    /// Rows before the live ones are still to be told.
    catching_up: bool,
    rows_max: usize,
    /// What comes before all else, the last one first.
    first: Vec<SseEvent>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// What all replicas do, as it happens
///
/// Server-sent events, each with a JSON object as its data: `hello` (a `HelloEvent`, the first one), `rows` (a `RowsEvent`; its id is where its rows end), `lock` (a
/// `LockEvent`), `stats` (a `StatsEvent`, once a second) and `lagged` (a `LaggedEvent`: the reader was too slow, and lost other
/// events than `rows`).
#[utoipa::path(
    get,
    path = "/events",
    operation_id = "events",
    params(
        ("rows" = Option<u64>, Query, maximum = 100, description = "The most rows of one event; 20 unless set. They make up 64 KiB \
            at most."),
        ("last" = Option<u64>, Query, maximum = 100, description = "Begin with so many rows that are there already; none unless set."),
        ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "Go on with the rows behind this byte of the file."),
    ),
    responses(
        (status = OK, description = "Until the reader goes, or the replica leaves.", content_type = "text/event-stream",
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
    let mut parameters = Parameters::parse(query.as_deref(), &["last", "rows"])?;
    let last = parameters.count("last", 0..=NEWS_ROWS_MAX)?.unwrap_or(0);
    let rows_max = parameters.count("rows", 0..=NEWS_ROWS_MAX)?.unwrap_or(ROWS);
    let resume = headers.get(LAST_EVENT_ID).map(offset).transpose()?;
    let place = Arc::clone(&app.watchers).try_acquire_owned().map_err(|_| ApiError::TooManyWatchers(READERS_MAX))?;
    let live = app.events.subscribe();
    let (stop, catching_up) = (app.stopped.clone(), resume.is_some());
    let mut watching =
        Watching { live, at: resume, ahead: None, catching_up, rows_max, first: Vec::new(), stop, app, _place: place };
    let first = watching.begin(last).await?;
    watching.first = vec![first, watching.hello(caller).retry(RETRY)];
    let sse = Sse::new(watching.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies are not to keep back what is meant to be seen at once.
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, sse).into_response())
}

fn offset(value: &HeaderValue) -> Result<u64, InvalidField> {
    let accepted = || InvalidField::new("Last-Event-ID", "accepted: an id of an event, the offset where its rows end");
    value.to_str().ok().and_then(digits).ok_or_else(accepted)
}

impl Watching {
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

    /// The first of what it was asked for: the newest rows, or that those which were asked for can't be told.
    async fn begin(&mut self, last: usize) -> Result<SseEvent, ApiError> {
        Ok(match self.at {
            Some(at) if self.app.reading.is_start(at).await? => SseEvent::default().comment("resumed"),
            Some(_) => {
                (self.at, self.catching_up) = (None, false);
                lagged(None, "the file is another one, or was mended there: rows from now on")
            }
            None if last == 0 => SseEvent::default().comment("from now on"),
            None => {
                let page = self.app.reading.last(last).await?;
                let (count, end) = (page.rows.len() as u64, page.end);
                let offset = page.rows.first().map_or(end, |row| row.offset);
                // A page may end before the file does.
                (self.at, self.catching_up) = (Some(end), page.next.is_some());
                self.rows(&NewRows { offset, end, count, rows: page.rows }, last)
            }
        })
    }

    fn stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(self, |mut watching| async move {
            let event = watching.next().await?;
            Some((Ok(event), watching))
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
                // The rows among them are read from the file.
                Err(broadcast::error::RecvError::Lagged(events)) => {
                    return Some(lagged(
                        Some(events),
                        "events were lost, since they were read too slowly; no rows are",
                    ));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Rows between those that were told and those that came live.
    async fn missing_rows(&mut self) -> Option<SseEvent> {
        let at = self.at?;
        if !self.catching_up && self.ahead.is_none() {
            return None;
        }
        let news = match self.app.reading.new_rows(at, self.rows_max).await {
            Ok(news) => news,
            Err(e) => {
                tracing::debug!(error = %e, "no rows for a reader of events");
                self.at = None;
                return Some(lagged(None, "rows could not be read: rows from now on"));
            }
        };
        self.at = Some(news.end);
        if news.count == 0 || self.ahead.as_ref().is_some_and(|ahead| ahead.end <= news.end) {
            (self.ahead, self.catching_up) = (None, false);
        }
        (news.count > 0).then(|| self.rows(&news, self.rows_max))
    }

    fn live_rows(&mut self, news: Arc<NewRows>) -> Option<SseEvent> {
        match self.at {
            Some(at) if news.end <= at => None,
            Some(at) if news.offset != at => {
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
        let body = RowsBody { offset: news.offset, end: news.end, count: news.count, rows };
        json_event("rows", &body).id(news.end.to_string())
    }
}

fn lagged(events: Option<u64>, detail: &'static str) -> SseEvent {
    json_event("lagged", &LaggedBody { events, detail })
}

fn json_event(name: &str, data: &impl Serialize) -> SseEvent {
    let text = serde_json::to_string(data).expect("an event is plain data");
    SseEvent::default().event(name).data(text)
}
