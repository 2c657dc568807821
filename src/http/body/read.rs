//! Receives a body within bounds of size, time and memory, and discards the body of a refused request.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyDataStream, BodyExt};

use crate::http::{
    body::{
        budget::{BodyBudget, BodyReservation},
        encoding::{Encoding, decoded},
    },
    error::ApiError,
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refused body is discarded, so that its sender reads the answer instead of a connection reset.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// How long a refused body is discarded.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest piece that a parser gets at once. Other tasks run after each piece of this size.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Discards the body of a refused request, within bounds, and returns the refusal. A client that expects `100 Continue` does not
/// get it.
pub(crate) async fn refuse(headers: &HeaderMap, mut body: Body, error: ApiError) -> ApiError {
    if !headers.contains_key(header::EXPECT) {
        discard(&mut body, DISCARD_BYTES_MAX).await;
    }
    error
}

async fn discard(body: &mut Body, bytes_max: usize) {
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > bytes_max {
                return;
            }
        }
    };
    // After the timeout, the connection closes with the answer.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Refuses a body by its `Content-Length`.
async fn refuse_declared(headers: &HeaderMap, body: &mut Body, bytes_max: usize) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_none_or(|declared: u64| declared <= bytes_max as u64) {
        return Ok(());
    }
    let discard_bytes = if headers.contains_key(header::EXPECT) { 0 } else { DISCARD_BYTES_MAX };
    discard_rest(Err(refused(ApiError::BodyTooLarge(bytes_max), discard_bytes)), body).await
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
    refuse_declared(headers, &mut body, bytes_max).await?;
    let mut pieces = Vec::new();
    let mut reservation = budget.reservation();
    let keep = |piece| {
        pieces.push(piece);
        Ok(())
    };
    let received = each_piece(BodyDataStream::new(&mut body), bytes_max, &mut reservation, keep).await;
    discard_rest(received, &mut body).await?;
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
        refuse_declared(headers, &mut body, bytes_max).await?;
    }
    let mut reservation = budget.reservation();
    let pieces = decoded(&mut body, encoding);
    let received = each_piece(pieces, bytes_max, &mut reservation, |piece| parse(&piece)).await;
    discard_rest(received, &mut body).await
}

/// Why receiving stopped, and how much of the rest to discard so that the sender reads the answer.
struct Refused {
    error: ApiError,
    discard_bytes: usize,
}

fn refused(error: ApiError, discard_bytes: usize) -> Refused {
    Refused { error, discard_bytes }
}

async fn discard_rest(received: Result<(), Refused>, body: &mut Body) -> Result<(), ApiError> {
    let Err(Refused { error, discard_bytes }) = received else { return Ok(()) };
    if discard_bytes > 0 {
        discard(body, discard_bytes).await;
    }
    Err(error)
}

/// Gives a body to `take` as it arrives, in pieces of at most `PIECE_BYTES_MAX`.
async fn each_piece<E>(
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    bytes_max: usize,
    reservation: &mut BodyReservation<'_>,
    mut take: impl FnMut(Bytes) -> Result<(), ApiError>,
) -> Result<(), Refused> {
    let (mut left, mut since_yield) = (bytes_max, 0);
    let receive = async {
        while let Some(data) = body.next().await {
            let mut data = data.map_err(|_| refused(ended_early(), DISCARD_BYTES_MAX))?;
            let len = data.len();
            let Some(rest) = left.checked_sub(len) else {
                return Err(refused(ApiError::BodyTooLarge(bytes_max), DISCARD_BYTES_MAX));
            };
            left = rest;
            // The sender reads no answer before it has sent its whole body, so all that a valid body may still hold is discarded.
            let refuse = |e| refused(e, left.max(DISCARD_BYTES_MAX));
            reservation.grow(len).map_err(refuse)?;
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                since_yield += piece.len();
                take(piece).map_err(refuse)?;
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
        Err(_) => Err(refused(ApiError::BodyTimeout(BODY_TIMEOUT), 0)),
    }
}

fn ended_early() -> ApiError {
    ApiError::BrokenBody("the body ended early, or does not match its Content-Encoding".to_owned())
}
