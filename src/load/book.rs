//! A record of all requests, when they were sent and with which outcome, for verification. It takes 16 bytes per request.

use std::time::Duration;

/// The outcome of a request's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// They must be in the file, once.
    Acknowledged,
    /// They must not be in the file.
    NotWritten,
    /// They may be in the file, once.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// When it was first sent, since the start of the run.
    at_ns: u64,
    /// When it was answered, after that, rounded up.
    answered_after_us: u32,
    state: State,
}

/// All requests of a run, by their number.
#[derive(Debug, Default)]
pub(super) struct Book {
    requests: Vec<Sent>,
    rows_each: u64,
}

impl Book {
    pub(super) fn new(rows_each: u64) -> Self {
        Self { requests: Vec::new(), rows_each }
    }

    /// Records that the next request is sent now. Its outcome is unknown until it is answered.
    pub(super) fn send(&mut self, at: Duration) {
        let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.requests.push(Sent { at_ns, answered_after_us: u32::MAX, state: State::Unknown });
    }

    /// Records the outcome of a request.
    pub(super) fn settle(&mut self, request: u64, at: Duration, state: State) {
        let sent = &mut self.requests[request as usize];
        let after_us = at.saturating_sub(Duration::from_nanos(sent.at_ns)).as_micros() + 1;
        (sent.answered_after_us, sent.state) = (u32::try_from(after_us).unwrap_or(u32::MAX), state);
    }

    /// How many rows were sent.
    pub(super) fn rows(&self) -> u64 {
        self.requests.len() as u64 * self.rows_each
    }

    /// The outcome of a row, if it was sent.
    pub(super) fn state(&self, row: u64) -> Option<State> {
        self.sent(row).map(|sent| sent.state)
    }

    /// When a row was sent, at the latest, in ns since the start of the run.
    pub(super) fn sent_ns(&self, row: u64) -> Option<u64> {
        self.sent(row).map(|sent| sent.at_ns)
    }

    /// When a row was acknowledged, at the earliest, if it was.
    pub(super) fn acknowledged_ns(&self, row: u64) -> Option<u64> {
        let sent = self.sent(row).filter(|sent| sent.state == State::Acknowledged)?;
        Some(sent.at_ns + u64::from(sent.answered_after_us) * 1000)
    }

    fn sent(&self, row: u64) -> Option<&Sent> {
        self.requests.get(usize::try_from(row / self.rows_each).ok()?)
    }
}
