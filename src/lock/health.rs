//! Whether the lock's backend answers and accepts this replica.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::lock::{
    error::AttemptError,
    outage::{Cause, Outage},
};

/// How the last call to the backend went, from any task of this process.
pub(super) struct BackendHealth {
    kind: &'static str,
    /// Name and address, without credentials.
    backend: String,
    /// Texts that no message may repeat.
    secrets: Vec<String>,
    failure: Mutex<Option<Failure>>,
    /// No failure is logged yet: the start is refused with it, or logs it then.
    checking: AtomicBool,
}

struct Failure {
    /// When the first call of the outage failed.
    since: Instant,
    cause: Cause,
    reason: String,
    /// A call failed that needs all that the lock needs: others may succeed, and say little.
    needs_all: bool,
}

impl BackendHealth {
    /// `secrets` are removed from all that the backend says.
    pub(super) fn new(kind: &'static str, backend: String, secrets: Vec<String>) -> Arc<Self> {
        Arc::new(Self { kind, backend, secrets, failure: Mutex::new(None), checking: AtomicBool::new(false) })
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// How long all calls have failed; `None` if the last one succeeded.
    pub(super) fn failing_for(&self) -> Option<Duration> {
        self.failure().as_ref().map(|failure| failure.since.elapsed())
    }

    /// Why calls fail; `None` if the last one succeeded.
    pub(super) fn outage(&self) -> Option<Outage> {
        let failure = self.failure();
        failure.as_ref().map(|Failure { since, cause, reason, .. }| Outage {
            cause: *cause,
            lasted: since.elapsed(),
            backend: self.backend.clone(),
            reason: reason.clone(),
        })
    }

    /// Records a call's result, and logs only a change. The error that it returns repeats no secret. `shows_all`: the call needs all that
    /// the lock needs, so only a call like it ends a rejection of one: a Redis without memory still answers what needs none.
    pub(super) fn record<T>(&self, result: Result<T, AttemptError>, shows_all: bool) -> Result<T, AttemptError> {
        let mut failure = self.failure();
        let e = match result {
            Ok(value) => {
                let is_over = |known: &mut Failure| shows_all || !known.needs_all || !known.cause.is_rejection();
                if failure.take_if(is_over).is_some() {
                    tracing::info!(lock = self.kind, backend = self.backend, "the lock is reachable again");
                }
                return Ok(value);
            }
            Err(e) => e,
        };
        let (cause, reason) = (e.cause(), self.without_secrets(e.reason()));
        let is_new = failure.as_ref().is_none_or(|known| known.cause.is_rejection() != cause.is_rejection());
        let since = failure.as_ref().map_or_else(Instant::now, |failure| failure.since);
        let needs_all = shows_all || failure.as_ref().is_some_and(|known| known.needs_all);
        let failure = failure.insert(Failure { since, cause, reason: reason.clone(), needs_all });
        if is_new && !self.checking.load(Ordering::Relaxed) {
            self.log(failure);
        }
        Err(AttemptError::Recorded(reason))
    }

    /// Begins the check of the start: failures are not logged until it ends.
    pub(super) fn begin_check(&self) {
        self.checking.store(true, Ordering::Relaxed);
    }

    /// Ends it, and logs the failure of a start that goes on.
    pub(super) fn end_check(&self) {
        self.checking.store(false, Ordering::Relaxed);
        if let Some(failure) = &*self.failure() {
            self.log(failure);
        }
    }

    fn log(&self, Failure { cause, reason, .. }: &Failure) {
        let (lock, backend) = (self.kind, &self.backend);
        if cause.is_rejection() {
            tracing::error!(lock, backend, error = reason, "Redis rejects this replica; trying again");
        } else {
            tracing::error!(lock, backend, error = reason, "the lock is unreachable; trying again");
        }
    }

    /// What a server answers may repeat what it was sent.
    pub(super) fn without_secrets(&self, text: String) -> String {
        self.secrets.iter().filter(|secret| !secret.is_empty()).fold(text, |text, secret| text.replace(secret, "***"))
    }

    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().expect("no code panics while it holds this mutex")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_ends_with_a_call_that_needs_as_much() {
        let health = BackendHealth::new("redis", "Redis at h:1".to_owned(), vec!["hush".to_owned()]);
        let oom = || AttemptError::Redis(redis::make_extension_error("OOM".to_owned(), Some("said hush".to_owned())));
        let (ok, fails) = (|| Ok::<_, AttemptError>(()), || Err::<(), _>(oom()));
        // (result of the first call, whether it needs all, whether the second does, whether the outage is over after its success)
        for (failing, first, second, is_over) in [
            (true, true, false, false),
            (true, true, true, true),
            (true, false, false, true),
            (false, true, false, true),
        ] {
            let result = if failing { fails() } else { Err(AttemptError::TimedOut) };
            let error = health.record(result, first).expect_err("failed");
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
            let outage = health.outage().expect("recorded");
            assert!(!format!("{outage} {outage:?}").contains("hush") && outage.is_rejection() == failing, "{outage}");
            let _ = health.record(ok(), second);
            assert_eq!(health.outage().is_none(), is_over, "{failing} {first} {second}");
            let _ = health.record(ok(), true);
        }
    }
}
