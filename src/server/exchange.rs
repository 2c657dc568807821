//! The state of one connection, shared by its socket and its service: hyper sits between them and tells neither.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use hyper::{Version, body::Body, header::HeaderValue};

/// How much of a head is kept while it arrives, and between requests.
const HEAD_BYTES_KEPT: usize = 8 << 10;
const IDLE_HEAD_BYTES_KEPT: usize = 1 << 10;

/// A phase of a connection. All of a connection runs in one task, so the phases never change while one is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// A request's head is arriving.
    Head,
    /// The service works on a request.
    Handling,
    /// An answer is being sent.
    Answering,
    /// An answer without an end is being sent.
    Streaming,
    /// The last bytes of an answer are being sent.
    Ending,
}

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    phase: AtomicU8,
    /// Whether the request in progress may be answered with `100 Continue`: it is HTTP/1.1.
    takes_interim: AtomicBool,
    body_is_unread: AtomicBool,
    /// The first bytes since the last answer ended: the head of the next request, and maybe some of its body.
    head: Mutex<Vec<u8>>,
    automatic_answer: OnceLock<Vec<u8>>,
}

impl Exchange {
    /// Whether no part of a request has arrived since the last answer.
    pub(super) fn is_idle(&self) -> bool {
        self.is(Phase::Idle)
    }

    /// Whether the service works on a request that may be answered with `100 Continue`.
    pub(super) fn takes_interim_answer(&self) -> bool {
        self.is(Phase::Handling) && self.takes_interim.load(Ordering::Relaxed)
    }

    /// Whether an answer without an end is being sent.
    pub(super) fn is_streaming(&self) -> bool {
        self.is(Phase::Streaming)
    }

    /// Whether the service has begun no answer that is not sent completely.
    pub(super) fn is_before_answer(&self) -> bool {
        self.is(Phase::Idle) || self.is(Phase::Head)
    }

    /// Bytes have arrived.
    pub(super) fn received(&self, bytes: &[u8]) {
        if self.is_before_answer() && !bytes.is_empty() {
            self.enter(Phase::Head);
            let mut head = self.head();
            let room = HEAD_BYTES_KEPT - head.len();
            head.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }

    /// The service gets a request. Returns the `Content-Length` that stood beside a `Transfer-Encoding`, which hyper removes. One that
    /// stands far behind in a large head is not found: hyper then decodes the chunks and closes the connection, as RFC 9112 allows.
    pub(super) fn begin<B: Body>(&self, request: &hyper::Request<B>) -> Option<HeaderValue> {
        self.enter(Phase::Handling);
        self.takes_interim.store(request.version() == Version::HTTP_11, Ordering::Relaxed);
        self.body_is_unread.store(!request.body().is_end_stream(), Ordering::Relaxed);
        let mut head = self.head();
        let has_coding = request.headers().contains_key(hyper::header::TRANSFER_ENCODING);
        let length = has_coding.then(|| content_length(&head)).flatten();
        head.clear();
        head.shrink_to(IDLE_HEAD_BYTES_KEPT);
        length
    }

    /// The request's body was read to its end.
    pub(super) fn body_ended(&self) {
        self.body_is_unread.store(false, Ordering::Relaxed);
    }

    /// Whether more of the request's body may arrive.
    pub(super) fn has_unread_body(&self) -> bool {
        self.body_is_unread.load(Ordering::Relaxed)
    }

    /// The service has answered.
    pub(super) fn answer(&self, is_endless: bool) {
        self.enter(if is_endless { Phase::Streaming } else { Phase::Answering });
    }

    /// Hyper has taken the whole answer.
    pub(super) fn answer_taken(&self) {
        if self.is(Phase::Answering) || self.is(Phase::Streaming) {
            self.enter(Phase::Ending);
        }
    }

    /// Hyper has no more bytes to send.
    pub(super) fn flushed(&self) {
        if self.is(Phase::Ending) {
            self.enter(Phase::Idle);
        }
    }

    /// Keeps hyper's own answer to a head that it cannot parse, which has no body.
    pub(super) fn keep_automatic_answer(&self, bytes: &[u8]) {
        self.automatic_answer.get_or_init(|| bytes.to_vec());
    }

    /// Hyper's own answer, if it refused a head.
    pub(super) fn automatic_answer(&self) -> Option<&[u8]> {
        self.automatic_answer.get().map(Vec::as_slice)
    }

    fn head(&self) -> MutexGuard<'_, Vec<u8>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// The value of the first `Content-Length` in a head.
fn content_length(head: &[u8]) -> Option<HeaderValue> {
    const NAME: &[u8] = b"content-length:";
    let lines = head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).take_while(|line| !line.is_empty());
    let mut values = lines.filter_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then(|| value.trim_ascii())
    });
    values.next().and_then(|value| HeaderValue::from_bytes(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_is_found_in_the_head_alone() {
        let value = |head: &str| content_length(head.as_bytes()).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(value("POST / HTTP/1.1\r\nCONTENT-length:  7 \r\n\r\n").as_deref(), Some("7"));
        assert_eq!(value("POST / HTTP/1.1\nContent-Length: 7\n\n").as_deref(), Some("7"));
        assert_eq!(value("POST / HTTP/1.1\r\nhost: x\r\n\r\ncontent-length: 7\r\n"), None);
        assert_eq!(value("POST / HTTP/1.1\r\nx-content-length: 7\r\n\r\n"), None);
        assert_eq!(value(""), None);
    }
}
