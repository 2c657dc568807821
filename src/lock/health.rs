//! Whether the lock's backend answers.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::lock::error::AttemptError;

/// Whether the backend answered its last call, from any task of this process.
pub(super) struct BackendHealth {
    kind: &'static str,
    failing_since: Mutex<Option<Instant>>,
}

impl BackendHealth {
    pub(super) fn new(kind: &'static str) -> Arc<Self> {
        Arc::new(Self { kind, failing_since: Mutex::new(None) })
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// How long all calls have failed; `None` if the last one succeeded.
    pub(super) fn unreachable_for(&self) -> Option<Duration> {
        self.failing_since().map(|since| since.elapsed())
    }

    /// Records a call's result, and logs only a change between reachable and unreachable.
    pub(super) fn record<T>(&self, result: Result<T, AttemptError>) -> Result<T, AttemptError> {
        let mut failing_since = self.failing_since();
        let was_failing = failing_since.is_some();
        *failing_since = result.is_err().then(|| failing_since.unwrap_or_else(Instant::now));
        drop(failing_since);
        match (was_failing, &result) {
            (false, Err(e)) => tracing::error!(lock = self.kind, error = %e, "the lock is unreachable; trying again"),
            (true, Ok(_)) => tracing::info!(lock = self.kind, "the lock is reachable again"),
            (true, Err(_)) | (false, Ok(_)) => {}
        }
        result
    }

    fn failing_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failing_since.lock().expect("no code panics while it holds this mutex")
    }
}
