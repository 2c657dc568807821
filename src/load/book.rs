//! What was sent, when, and what became of it: all that is needed to judge the file, 16 bytes a request.

use std::time::Duration;

/// What is known of a request's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// They must stand in the file, once.
    Acknowledged,
    /// They must not stand in the file.
    NotWritten,
    /// They may stand in the file, once.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// When it was first sent, since the run began.
    at_ns: u64,
    /// How long after that it was answered, rounded up.
    answered_after_us: u32,
    state: State,
}

/// Every request of a run, by its number.
#[derive(Debug, Default)]
pub(super) struct Book {
    requests: Vec<Sent>,
    rows_each: u64,
}

impl Book {
    pub(super) fn new(rows_each: u64) -> Self {
        Self { requests: Vec::new(), rows_each }
    }

    /// The next request goes out now. Nobody knows what becomes of it until it is answered.
    pub(super) fn send(&mut self, at: Duration) {
        let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.requests.push(Sent { at_ns, answered_after_us: u32::MAX, state: State::Unknown });
    }

    /// What has become of a request, at this time.
    pub(super) fn settle(&mut self, request: u64, at: Duration, state: State) {
        let sent = &mut self.requests[request as usize];
        let after_us = at.saturating_sub(Duration::from_nanos(sent.at_ns)).as_micros() + 1;
        (sent.answered_after_us, sent.state) = (u32::try_from(after_us).unwrap_or(u32::MAX), state);
    }

    /// How many rows were tried.
    pub(super) fn rows(&self) -> u64 {
        self.requests.len() as u64 * self.rows_each
    }

    /// What is known of a row, if it was tried.
    pub(super) fn state(&self, row: u64) -> Option<State> {
        self.sent(row).map(|sent| sent.state)
    }

    /// Not later than this a row that was tried was on its way, in ns since the run began.
    pub(super) fn sent_ns(&self, row: u64) -> Option<u64> {
        self.sent(row).map(|sent| sent.at_ns)
    }

    /// Not earlier than this it was acknowledged, if it was.
    pub(super) fn acknowledged_ns(&self, row: u64) -> Option<u64> {
        let sent = self.sent(row).filter(|sent| sent.state == State::Acknowledged)?;
        Some(sent.at_ns + u64::from(sent.answered_after_us) * 1000)
    }

    fn sent(&self, row: u64) -> Option<&Sent> {
        self.requests.get(usize::try_from(row / self.rows_each).ok()?)
    }
}
