//! Receives a body within bounds of size, time and memory, and discards the body of a refused request.

use std::{fmt::Display, time::Duration};

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
        encoding::{Encoding, decoded, decoding_fault},
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
    read_in_pieces(headers, body, bytes_max, budget, keep).await?;
    // A small body arrives in one piece, which needs no copy.
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Decodes the body as its headers say, and gives it to `take` as it arrives. `take` returns the bytes of memory that are kept of the
/// body so far. `bytes_max` bounds the decoded body.
///
/// # Errors
/// As `read`, or the first error of `take`.
pub(crate) async fn read_in_pieces(
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
        refuse_declared(headers, bytes_max)?;
        receiver.each_piece(BodyDataStream::new(&mut body), take).await
    } else {
        receiver.each_piece(decoded(&mut body, encoding), take).await
    };
    // The rest of a body that was refused while it arrived.
    if received.is_err() {
        discard_rest(&mut body).await;
    }
    received
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
    ) -> Result<(), ApiError> {
        let bytes_max = self.bytes_max;
        let (mut left, mut kept, mut since_yield) = (bytes_max, 0, 0);
        let receive = async {
            while let Some(data) = body.next().await {
                let mut data = data.map_err(|e| decoding_fault(&e))?;
                let len = data.len();
                left = left.checked_sub(len).ok_or(ApiError::BodyTooLarge(bytes_max))?;
                let window = self.encoding.window_bytes(bytes_max - left);
                self.reservation.resize(window + kept + len)?;
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                    since_yield += piece.len();
                    kept = take(piece)?;
                    if since_yield >= PIECE_BYTES_MAX {
                        since_yield = 0;
                        tokio::task::yield_now().await;
                    }
                }
                self.reservation.resize(window + kept)?;
            }
            Ok(())
        };
        match tokio::time::timeout(BODY_TIMEOUT, receive).await {
            Ok(received) => received,
            Err(_) => Err(ApiError::BodyTimeout(BODY_TIMEOUT)),
        }
    }
}
