//! The 201 answer to an append or a batch. Its buffers have their size from the start, since it is made for every row: that took a row
//! from 42 to 37 allocations (benches/RESULTS.md).

use std::{fmt, fmt::Write};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Serialize;

use crate::api::acknowledgement::Acknowledgement;
use crate::http::{handlers::rows::PAGE_ROWS_MAX, header_value::header_value, json::json_line};

/// The longest header value that is made here fits.
const HEADER_BYTES: usize = 96;
/// The headers of the answer and those that the layers around it add.
const HEADERS: usize = 12;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The 201 with this body, and the headers that follow from the acknowledgement.
pub(crate) fn created(body: &impl Serialize, ack: &Acknowledgement) -> Response {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::LOCATION, location(ack));
    // The times of a replayed answer belong to an earlier request.
    if ack.replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    } else {
        headers.insert(SERVER_TIMING, server_timing(ack));
    }
    let mut response = Response::new(Body::from(json_line(body)));
    (*response.status_mut(), *response.headers_mut()) = (StatusCode::CREATED, headers);
    response.extensions_mut().insert(ack.clone());
    response
}

/// Where the rows can be read; one page holds no more than `PAGE_ROWS_MAX`.
fn location(ack: &Acknowledgement) -> HeaderValue {
    formatted(format_args!("/rows?from={}&limit={}", ack.offset, ack.rows.min(PAGE_ROWS_MAX)))
}

/// Milliseconds, as <https://www.w3.org/TR/server-timing/> defines: the wait for the lock, the hold until the answer, and the sync
/// within the hold.
fn server_timing(ack: &Acknowledgement) -> HeaderValue {
    let (waited_ms, held_ms, sync_us) = (ack.waited_ms, ack.held_ms, ack.sync.as_micros());
    let (sync_ms, thousandths) = (sync_us / 1000, sync_us % 1000);
    formatted(format_args!("wait;dur={waited_ms}, hold;dur={held_ms}, sync;dur={sync_ms}.{thousandths:03}"))
}

fn formatted(text: fmt::Arguments<'_>) -> HeaderValue {
    let mut value = String::with_capacity(HEADER_BYTES);
    value.write_fmt(text).expect("a string accepts every write");
    header_value(value)
}
