//! A bound on the memory of all answers that are being sent.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::header,
    response::Response,
};
use hyper::body::{Frame, SizeHint};

use crate::http::error::ApiError;

/// The memory of all answers together.
const BYTES_MAX: usize = 128 << 20;
/// An answer up to this size is never refused: a connection's write buffer has room for it.
const SMALL_BYTES: usize = 64 << 10;
/// The largest piece that a connection gets at once, and copies into its write buffer.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// What the source of a large answer holds between two pieces: a chunk of the file, and where the rows of a page are.
const SOURCE_BYTES: usize = 256 << 10;
/// What compression holds in addition.
const COMPRESSION_BYTES: usize = 256 << 10;

/// Bytes for all answers together: what their sources hold, and what waits in the write buffers of their connections.
#[derive(Debug, Clone, Default)]
pub struct AnswerBudget(Arc<AtomicUsize>);

/// Bytes that count toward the budget until they are dropped.
#[derive(Debug)]
pub struct AnswerBytes {
    budget: AnswerBudget,
    bytes: usize,
}

impl AnswerBudget {
    /// Counts no bytes yet.
    pub fn nothing(&self) -> AnswerBytes {
        AnswerBytes { budget: self.clone(), bytes: 0 }
    }

    /// The bytes that count now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Sends an answer in small pieces. A small answer stays as it is.
    ///
    /// # Errors
    /// `AnswerBudgetExceeded`, if other answers hold too much.
    pub(crate) fn bound(&self, response: Response) -> Result<Response, ApiError> {
        if response.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BYTES as u64) {
            return Ok(response);
        }
        let is_compressed = response.headers().contains_key(header::CONTENT_ENCODING);
        let mut held = self.nothing();
        held.set(SOURCE_BYTES + if is_compressed { COMPRESSION_BYTES } else { 0 });
        // guard: answers_bounded: clients that read slowly use bounded memory
        if self.bytes() > BYTES_MAX {
            return Err(ApiError::AnswerBudgetExceeded);
        }
        Ok(response.map(|body| Body::new(InPieces { body, rest: Bytes::new(), _held: held })))
    }
}

impl AnswerBytes {
    /// Replaces the number of bytes.
    pub fn set(&mut self, bytes: usize) {
        let used = &self.budget.0;
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => drop(used.fetch_add(more, Ordering::Relaxed)),
            None => drop(used.fetch_sub(self.bytes - bytes, Ordering::Relaxed)),
        }
        self.bytes = bytes;
    }
}

impl Drop for AnswerBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A body whose data comes in pieces of at most `PIECE_BYTES_MAX`.
struct InPieces {
    body: Body,
    /// What is left of the newest data.
    rest: Bytes,
    _held: AnswerBytes,
}

impl HttpBody for InPieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES_MAX);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn answer(bytes: usize) -> Response {
        Response::new(Body::from(vec![b'x'; bytes]))
    }

    #[tokio::test]
    async fn large_answer_is_sent_whole_in_small_pieces() {
        let budget = AnswerBudget::default();
        for bytes in [SMALL_BYTES + 1, 10 * PIECE_BYTES_MAX, 10 * PIECE_BYTES_MAX + 7] {
            let mut body = budget.bound(answer(bytes)).expect("within the budget").into_body();
            let mut sent = 0;
            while !body.is_end_stream() {
                assert_eq!(body.size_hint().exact(), Some((bytes - sent) as u64));
                let piece = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
                assert!((1..=PIECE_BYTES_MAX).contains(&piece.len()));
                sent += piece.len();
            }
            assert_eq!(sent, bytes);
        }
        assert_eq!(budget.bytes(), 0, "dropped answers hold nothing");
    }

    #[test]
    fn only_large_answers_over_the_budget_are_refused() {
        let budget = AnswerBudget::default();
        let large: Vec<_> = std::iter::from_fn(|| budget.bound(answer(SMALL_BYTES + 1)).ok()).take(100_000).collect();
        assert_eq!(large.len(), BYTES_MAX / SOURCE_BYTES);
        assert!(budget.bound(answer(SMALL_BYTES)).is_ok());
        let mut unsent = budget.nothing();
        drop(large);
        unsent.set(BYTES_MAX);
        assert!(budget.bound(answer(SMALL_BYTES + 1)).is_err(), "write buffers count, too");
        unsent.set(7);
        assert!(budget.bound(answer(SMALL_BYTES + 1)).is_ok());
    }
}
