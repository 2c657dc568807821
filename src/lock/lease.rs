//! One hold of the lock, by either backend.

use std::{sync::Arc, time::Instant};

use crate::{
    fencing::{FencingToken, LeaseId},
    lock::{
        embedded::EmbeddedLease,
        redis::lease::RedisLease,
        types::{Reacquire, Reacquired, Released},
    },
    metrics::{Counter, Gauge, Histogram, Meter},
};

/// The lock, held by this replica for now.
pub struct Lease {
    token: FencingToken,
    id: LeaseId,
    backend: BackendLease,
    metrics: LeaseMetrics,
}

pub(super) enum BackendLease {
    Redis(RedisLease),
    Embedded(EmbeddedLease),
}

impl Lease {
    pub(super) fn granted(token: FencingToken, backend: BackendLease, meter: &Arc<Meter>) -> Self {
        let metrics = LeaseMetrics::start(meter);
        Self { token, id: uuid::Uuid::new_v4().as_u128(), backend, metrics }
    }

    /// The fencing token of this grant. No other grant has the same one, unless Redis lost its counter.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Tells this lease from another one with the same token, which exists if Redis lost its counter.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Whether the time to live has not passed yet, by this process's monotonic clock, counted from before the request was sent.
    pub fn is_held(&self) -> bool {
        match &self.backend {
            BackendLease::Redis(lease) => lease.is_held(),
            BackendLease::Embedded(_) => true,
        }
    }

    /// Returns when the lease is lost; never, if it is not.
    pub async fn lost(&mut self) {
        match &mut self.backend {
            BackendLease::Redis(lease) => lease.lost().await,
            BackendLease::Embedded(_) => std::future::pending().await,
        }
    }

    /// Whether the lease may be kept for one more batch, because no other replica is known to wait. The embedded lock does not know its
    /// waiters, and acquiring it again is as quick.
    pub async fn may_keep(&self) -> bool {
        match &self.backend {
            BackendLease::Redis(lease) => lease.may_keep(self.token).await,
            BackendLease::Embedded(_) => false,
        }
    }

    /// Releases the lock.
    pub async fn release(self) -> Released {
        self.release_and_requeue(Reacquire::No).await.0
    }

    /// Releases the lock and queues for it again as `reacquire` says, in one call. The embedded lock has no queue.
    pub async fn release_and_requeue(self, reacquire: Reacquire) -> (Released, Reacquired<Self>) {
        let (released, reacquired) = match self.backend {
            BackendLease::Redis(lease) => lease.release(reacquire).await,
            BackendLease::Embedded(lease) => {
                lease.release();
                (Released::Free, Reacquired::No)
            }
        };
        self.metrics.record_release(&released);
        let reacquired = match reacquired {
            Reacquired::Granted((token, lease)) => {
                Reacquired::Granted(Self::granted(token, BackendLease::Redis(lease), &self.metrics.meter))
            }
            Reacquired::Queued(ticket) => Reacquired::Queued(ticket),
            Reacquired::No => Reacquired::No,
        };
        (released, reacquired)
    }

    /// Raises the token counter to `highest_token` if it is lower, then releases the lock: the next grant's token is above it.
    pub async fn release_and_raise_token(self, highest_token: FencingToken) -> Released {
        let released = match self.backend {
            BackendLease::Redis(lease) => lease.release_and_raise_token(highest_token).await,
            BackendLease::Embedded(lease) => {
                lease.release_and_raise_token(highest_token);
                Released::Free
            }
        };
        self.metrics.record_release(&released);
        released
    }

    /// Lets the lock expire a full time to live from now, as after a crash of this process.
    pub async fn abandon(self) {
        match self.backend {
            BackendLease::Redis(lease) => lease.abandon().await,
            BackendLease::Embedded(lease) => lease.abandon(),
        }
        self.metrics.record_abandon();
    }
}

/// Counts a lease's grant, end and duration.
struct LeaseMetrics {
    granted: Instant,
    meter: Arc<Meter>,
}

impl LeaseMetrics {
    fn start(meter: &Arc<Meter>) -> Self {
        meter.count(Counter::Acquired);
        meter.set(Gauge::LockHeld, 1.0);
        Self { granted: Instant::now(), meter: Arc::clone(meter) }
    }

    fn record_release(&self, released: &Released) {
        match released {
            Released::Free => {}
            Released::HandedOver(_) => self.meter.count(Counter::HandedOver),
            Released::Lost => self.meter.count(Counter::Lost),
        }
        self.record_end();
    }

    fn record_abandon(&self) {
        self.meter.count(Counter::Abandoned);
        self.record_end();
    }

    fn record_end(&self) {
        self.meter.set(Gauge::LockHeld, 0.0);
        self.meter.observe(Histogram::LockHold, self.granted.elapsed().as_secs_f64());
    }
}
