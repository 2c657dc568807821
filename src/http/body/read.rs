//! Receives a body within bounds of size, time and memory, and discards the body of a refused request.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyDataStream, BodyExt};
use hyper::body::Body as _;

use crate::http::{
    body::{
        budget::{BodyBudget, BodyReservation},
        encoding::{Encoding, decoded},
    },
    error::ApiError,
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest rest of a refused body that is discarded before the answer, so that the connection can carry another request. What is
/// left after the answer is discarded before the connection closes.
const DISCARD_BYTES_MAX: usize = 64 << 10;
/// How long such a rest may take to arrive.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(100);
/// The largest piece that a parser gets at once. Other tasks run after each piece of this size.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Discards a small body of a refused request, and returns the refusal. A client that expects `100 Continue` does not get it.
pub(crate) async fn refuse(headers: &HeaderMap, mut body: Body, error: ApiError) -> ApiError {
    if !headers.contains_key(header::EXPECT) {
        discard_rest(&mut body).await;
    }
    error
}

/// Discards the rest of a body if it is small.
async fn discard_rest(body: &mut Body) {
    let mut left = DISCARD_BYTES_MAX;
    if body.size_hint().lower() > left as u64 {
        return;
    }
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    // After the timeout, the connection closes with the answer.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Refuses a body by its `Content-Length`.
fn refuse_declared(headers: &HeaderMap, bytes_max: usize) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_none_or(|declared: u64| declared <= bytes_max as u64) {
        return Ok(());
    }
    Err(ApiError::BodyTooLarge(bytes_max))
}

/// Receives the whole body.
///
/// # Errors
/// If it is larger than `bytes_max`, late, broken, or exceeds the budget.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    budget: &BodyBudget,
) -> Result<Bytes, ApiError> {
    refuse_declared(headers, bytes_max)?;
    let mut pieces = Vec::new();
    let mut reservation = budget.reservation();
    let keep = |piece| {
        pieces.push(piece);
        Ok(())
    };
    let received = each_piece(BodyDataStream::new(&mut body), bytes_max, &mut reservation, keep).await;
    refuse_received(received, &mut body).await?;
    // A small body arrives in one piece, which needs no copy.
    Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
}

/// Decodes the body as its headers say, and gives it to `parse` as it arrives. `bytes_max` bounds the decoded body.
///
/// # Errors
/// As `read`, the first error of `parse`, or `UnsupportedBatchType` if the encoding is not accepted.
pub(crate) async fn read_in_pieces(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    budget: &BodyBudget,
    mut parse: impl FnMut(&[u8]) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let Some(encoding) = Encoding::of(headers) else {
        return Err(refuse(headers, body, ApiError::UnsupportedBatchType).await);
    };
    if encoding == Encoding::Identity {
        refuse_declared(headers, bytes_max)?;
    }
    let mut reservation = budget.reservation();
    let pieces = decoded(&mut body, encoding);
    let received = each_piece(pieces, bytes_max, &mut reservation, |piece| parse(&piece)).await;
    refuse_received(received, &mut body).await
}

/// Discards the rest of a body that was refused while it arrived.
async fn refuse_received(received: Result<(), ApiError>, body: &mut Body) -> Result<(), ApiError> {
    if received.is_err() {
        discard_rest(body).await;
    }
    received
}

/// Gives a body to `take` as it arrives, in pieces of at most `PIECE_BYTES_MAX`.
async fn each_piece<E>(
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    bytes_max: usize,
    reservation: &mut BodyReservation<'_>,
    mut take: impl FnMut(Bytes) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let (mut left, mut since_yield) = (bytes_max, 0);
    let receive = async {
        while let Some(data) = body.next().await {
            let mut data = data.map_err(|_| ended_early())?;
            let len = data.len();
            left = left.checked_sub(len).ok_or(ApiError::BodyTooLarge(bytes_max))?;
            reservation.grow(len)?;
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                since_yield += piece.len();
                take(piece)?;
                if since_yield >= PIECE_BYTES_MAX {
                    since_yield = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_TIMEOUT, receive).await {
        Ok(received) => received,
        Err(_) => Err(ApiError::BodyTimeout(BODY_TIMEOUT)),
    }
}

fn ended_early() -> ApiError {
    ApiError::BrokenBody("the body ended early, or does not match its Content-Encoding".to_owned())
}
