//! Receives a body within bounds of size, time and memory, and discards the body of a refused request.

use std::{fmt::Display, time::Duration};

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
        encoding::{Encoding, decoded, decoding_fault},
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

/// Receives the whole body, decoded as its headers say. `bytes_max` bounds the decoded body.
///
/// # Errors
/// If it is larger than `bytes_max`, late, broken, exceeds the budget, or has an encoding that is not accepted.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    budget: &BodyBudget,
) -> Result<Bytes, ApiError> {
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    let keep = |piece: Bytes| {
        if first.is_empty() {
            first = piece;
            return Ok(first.len());
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&piece);
        Ok(first.len() + all.len())
    };
    receive(headers, body, bytes_max, budget, keep).await?;
    // A small body arrives in one piece, which needs no copy.
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Decodes the body as its headers say, and gives it to `parse` as it arrives. `parse` returns the bytes of memory that are kept of the
/// body so far. `bytes_max` bounds the decoded body.
///
/// # Errors
/// As `read`, or the first error of `parse`.
pub(crate) async fn read_in_pieces(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    budget: &BodyBudget,
    mut parse: impl FnMut(&[u8]) -> Result<usize, ApiError>,
) -> Result<(), ApiError> {
    receive(headers, body, bytes_max, budget, |piece| parse(&piece)).await
}

async fn receive(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    budget: &BodyBudget,
    take: impl FnMut(Bytes) -> Result<usize, ApiError>,
) -> Result<(), ApiError> {
    let Some(encoding) = Encoding::of(headers) else {
        return Err(refuse(headers, body, ApiError::UnsupportedEncoding).await);
    };
    let receiver = Receiver { encoding, bytes_max, reservation: budget.reservation() };
    let received = if encoding == Encoding::Identity {
        refuse_declared(headers, &mut body, bytes_max).await?;
        receiver.each_piece(BodyDataStream::new(&mut body), take).await
    } else {
        receiver.each_piece(decoded(&mut body, encoding), take).await
    };
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

/// Receives one body.
struct Receiver<'a> {
    encoding: Encoding,
    bytes_max: usize,
    reservation: BodyReservation<'a>,
}

impl Receiver<'_> {
    /// Gives a body to `take` as it arrives, in pieces of at most `PIECE_BYTES_MAX`. `take` returns the bytes that it keeps.
    async fn each_piece<E: Display>(
        mut self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        mut take: impl FnMut(Bytes) -> Result<usize, ApiError>,
    ) -> Result<(), Refused> {
        let bytes_max = self.bytes_max;
        let (mut left, mut kept, mut since_yield) = (bytes_max, 0, 0);
        let receive = async {
            while let Some(data) = body.next().await {
                let mut data = data.map_err(|e| refused(decoding_fault(&e), DISCARD_BYTES_MAX))?;
                let len = data.len();
                let Some(rest) = left.checked_sub(len) else {
                    return Err(refused(ApiError::BodyTooLarge(bytes_max), DISCARD_BYTES_MAX));
                };
                left = rest;
                // The sender reads no answer before it has sent its whole body, so all that a valid body may still hold is discarded.
                let refuse = |e| refused(e, left.max(DISCARD_BYTES_MAX));
                let window = self.encoding.window_bytes(bytes_max - left);
                self.reservation.resize(window + kept + len).map_err(refuse)?;
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                    since_yield += piece.len();
                    kept = take(piece).map_err(refuse)?;
                    if since_yield >= PIECE_BYTES_MAX {
                        since_yield = 0;
                        tokio::task::yield_now().await;
                    }
                }
                self.reservation.resize(window + kept).map_err(refuse)?;
            }
            Ok(())
        };
        match tokio::time::timeout(BODY_TIMEOUT, receive).await {
            Ok(received) => received,
            Err(_) => Err(refused(ApiError::BodyTimeout(BODY_TIMEOUT), 0)),
        }
    }
}
