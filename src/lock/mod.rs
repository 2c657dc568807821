//! The lock: one replica at a time holds it, and each grant has a higher fencing token than the one before.
//!
//! It has two backends: `redis`, for replicas on any host, and `embedded`, a file lock for the processes of one host. The lock knows
//! nothing about the CSV. A `Lease` is renewed until it is released, abandoned or lost.

mod embedded;
mod error;
mod health;
mod lease;
mod outage;
mod redis;
mod shared_call;
mod types;

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    api::lock_status::LockStatus,
    config::RedisUrl,
    fencing::FencingToken,
    lock::{
        embedded::EmbeddedLock, error::AttemptError, health::BackendHealth, lease::BackendLease, redis::RedisLock,
        shared_call::SharedCall, types::AcquireAttempt,
    },
    metrics::Meter,
};

pub use crate::lock::{
    error::OpenError,
    lease::Lease,
    outage::{Cause, Outage},
    types::{Options, QueueTicket, Reacquire, Reacquired, Released, TlsFiles},
};

/// First and longest pause between two polls of a waiter that gets no notifications. It doubles in between.
const POLL_BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The lock of one CSV.
pub struct Lock {
    backend: Backend,
    health: Arc<BackendHealth>,
    meter: Arc<Meter>,
    status_calls: SharedCall<LockStatus>,
}

enum Backend {
    Redis(RedisLock),
    Embedded(Arc<EmbeddedLock>),
}

/// How long a reader waits for the embedded lock's status: its volume may not answer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

impl Lock {
    /// A lock in Redis. It connects at its first use, so Redis may be down now.
    ///
    /// Renewals and other background calls run on the runtime that calls this function.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn redis(url: &RedisUrl, key: &str, options: Options) -> Result<Self, OpenError> {
        let meter = Arc::clone(&options.meter);
        let (lock, health) = RedisLock::new(url, key, options)?;
        Ok(Self { backend: Backend::Redis(lock), health, meter, status_calls: SharedCall::new() })
    }

    /// A lock in this file next to the CSV, open for reading and writing, for processes of one host.
    ///
    /// Status calls run on the runtime that calls this function.
    pub fn embedded(path: PathBuf, file: File, options: Options) -> Self {
        let meter = Arc::clone(&options.meter);
        let health = BackendHealth::new("embedded", format!("the lock file {}", path.display()), Vec::new());
        let backend = Backend::Embedded(Arc::new(EmbeddedLock::new(path, file, options)));
        Self { backend, health, meter, status_calls: SharedCall::new() }
    }

    /// `redis` or `embedded`, for logs and health checks.
    pub fn kind(&self) -> &'static str {
        self.health.kind()
    }

    /// Whether the lock is a file of this host.
    pub fn is_embedded(&self) -> bool {
        matches!(self.backend, Backend::Embedded(_))
    }

    /// How long the lock stays held after its holder's last sign of life.
    pub fn ttl(&self) -> Duration {
        match &self.backend {
            Backend::Redis(redis) => redis.ttl(),
            Backend::Embedded(embedded) => embedded.ttl(),
        }
    }

    /// Whether the last call to Redis (or to the lock's file) failed. A lock that another replica holds is no failure.
    pub fn is_failing(&self) -> bool {
        self.failing_for().is_some()
    }

    /// How long all calls have failed; `None` if the last one succeeded.
    pub fn failing_for(&self) -> Option<Duration> {
        self.health.failing_for()
    }

    /// Why calls fail; `None` if the last one succeeded.
    pub fn outage(&self) -> Option<Outage> {
        self.health.outage()
    }

    /// Calls Redis once, within a few seconds, with every command that the lock needs. An embedded lock needs no check.
    ///
    /// # Errors
    /// If Redis rejects this replica for a reason that does not pass by itself. An unreachable Redis is no error.
    pub async fn check(&self) -> Result<(), OpenError> {
        let Backend::Redis(redis) = &self.backend else { return Ok(()) };
        self.health.begin_check();
        redis.check().await;
        match self.outage() {
            Some(outage) if outage.cause == Cause::Rejected => {
                let reason =
                    redis.auth_answer().await.map_or(outage.reason, |answer| self.health.without_secrets(answer));
                Err(OpenError::Rejected(Outage { reason, ..outage }))
            }
            _ => {
                self.health.end_check();
                Ok(())
            }
        }
    }

    /// Gives the connection that the calls of the committer share back to its pool. For idle times: taking it out again costs a PING.
    pub fn return_connection(&self) {
        if let Backend::Redis(redis) = &self.backend {
            redis.return_connection();
        }
    }

    /// Checks whether the backend is reachable, for times in which no row needs the lock.
    pub async fn probe(&self) {
        match &self.backend {
            Backend::Redis(redis) => redis.probe(self.is_failing()).await,
            // A volume that can be read may still refuse writes, and only a grant writes.
            Backend::Embedded(embedded) if self.is_failing() => {
                let _ = self.record(embedded.try_acquire());
            }
            Backend::Embedded(_) => {}
        }
    }

    /// Waits for the lock until it is granted, or until `is_wanted` returns false. An unreachable backend is tried again.
    pub async fn acquire(&self, is_wanted: impl Fn() -> bool) -> Option<Lease> {
        let ticket = match &self.backend {
            Backend::Redis(redis) => redis.new_ticket(),
            Backend::Embedded(_) => QueueTicket::default(),
        };
        self.acquire_from(ticket, is_wanted).await
    }

    /// The same, from a place in the queue that a release returned.
    pub async fn acquire_from(&self, mut ticket: QueueTicket, is_wanted: impl Fn() -> bool) -> Option<Lease> {
        let mut pause = POLL_BACKOFF.0;
        // The release that returned the ticket has just polled for it.
        let mut was_just_polled = ticket.polled.is_some();
        while is_wanted() {
            let expires_in = if std::mem::take(&mut was_just_polled) {
                None
            } else {
                let polled = Instant::now();
                match self.try_acquire(&ticket.id).await {
                    Ok(AcquireAttempt::Granted(lease)) => return Some(lease),
                    Ok(AcquireAttempt::Held { expires_in }) => {
                        ticket.polled = Some(polled);
                        expires_in
                    }
                    Err(_) => None,
                }
            };
            match &self.backend {
                Backend::Redis(redis) => {
                    if let Some((token, lease)) = redis.wait_for_grant(&ticket, pause, expires_in).await {
                        return Some(Lease::granted(token, BackendLease::Redis(lease), &self.meter));
                    }
                }
                Backend::Embedded(_) => tokio::time::sleep(pause.min(expires_in.unwrap_or(pause))).await,
            }
            pause = (pause * 2).min(POLL_BACKOFF.1);
        }
        if let Backend::Redis(redis) = &self.backend {
            redis.leave_queue(&ticket.id).await;
        }
        None
    }

    /// The holder and the waiters; `None` if the backend is unreachable. Readers share calls, so that they do not hinder the holder.
    pub async fn status(&self) -> Option<LockStatus> {
        let embedded = match &self.backend {
            Backend::Redis(redis) => return self.status_calls.answer(redis.status()).await,
            Backend::Embedded(embedded) => Arc::clone(embedded),
        };
        let health = Arc::clone(&self.health);
        // On a thread that may block. One call at a time, so that one thread hangs at most.
        let read = async move {
            let status = tokio::task::spawn_blocking(move || embedded.status()).await.map_err(std::io::Error::other);
            health.record(status.and_then(|status| status).map_err(AttemptError::from), true).ok()
        };
        let answer = timeout(STATUS_TIMEOUT, self.status_calls.answer(read)).await;
        answer.unwrap_or_else(|elapsed| self.record(Err(elapsed.into())))
    }

    /// The same for a command that tells by itself what fails.
    pub async fn status_unlogged(&self) -> Option<LockStatus> {
        self.health.begin_check();
        self.status().await
    }

    /// A token that is higher than the holder's; `None` if the backend is unreachable.
    pub async fn next_token(&self) -> Option<FencingToken> {
        match &self.backend {
            Backend::Redis(redis) => redis.next_token().await.ok(),
            Backend::Embedded(embedded) => self.record(embedded.next_token()),
        }
    }

    /// Raises Redis's token counter to `highest_token` if it is lower. The embedded lock's counter is raised at its next release.
    pub async fn raise_token(&self, highest_token: FencingToken) {
        if let Backend::Redis(redis) = &self.backend {
            redis.raise_token(highest_token).await;
        }
    }

    /// Takes the lock from its holder, hands it to the first waiter, and returns whether there was a holder; `None` if the backend is
    /// unreachable. An embedded lock cannot be taken from a live process.
    pub async fn force_release(&self) -> Option<bool> {
        match &self.backend {
            Backend::Redis(redis) => redis.force_release().await.ok(),
            Backend::Embedded(embedded) => self.record(embedded.force_release()),
        }
    }

    async fn try_acquire(&self, lease_id: &str) -> Result<AcquireAttempt<Lease>, AttemptError> {
        let (token, lease) = match &self.backend {
            Backend::Redis(redis) => match redis.try_acquire(lease_id).await? {
                AcquireAttempt::Granted((token, lease)) => (token, BackendLease::Redis(lease)),
                AcquireAttempt::Held { expires_in } => return Ok(AcquireAttempt::Held { expires_in }),
            },
            Backend::Embedded(embedded) => {
                match self.health.record(embedded.try_acquire().map_err(AttemptError::from), true)? {
                    AcquireAttempt::Granted((token, lease)) => (token, BackendLease::Embedded(lease)),
                    AcquireAttempt::Held { expires_in } => return Ok(AcquireAttempt::Held { expires_in }),
                }
            }
        };
        Ok(AcquireAttempt::Granted(Lease::granted(token, lease, &self.meter)))
    }

    /// Records how a call to the lock's file went.
    fn record<T>(&self, result: std::io::Result<T>) -> Option<T> {
        self.health.record(result.map_err(AttemptError::from), true).ok()
    }
}
