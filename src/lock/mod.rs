//! The lock: one holder at a time, told apart by a fencing token that only grows.
//!
//! It knows no file that rows go to. A `Lease` is kept alive until it is released, abandoned or lost.

mod embedded;
mod redis;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

pub use crate::api::lock_status::{LockKind, LockState, LockStatus, Waiter};
use crate::lock::embedded::{EmbeddedLease, EmbeddedLock};
pub use crate::lock::redis::lease::Place;
use crate::lock::redis::lease::{RedisLease, RedisLock};
pub use crate::lock::redis::topology::TlsFiles;

use crate::{
    config::RedisUrl,
    fencing::{FencingToken, LeaseId},
    metrics::{Counter, Gauge, Histogram, Meter},
};

/// How soon, at first and at most, a waiter looks again whether the lock is free.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// What both backends need.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who we are, as others see it in the lock.
    pub replica: String,
    /// How long a silent holder keeps the lock.
    pub ttl: Duration,
    /// Certificates for a Redis by TLS.
    pub tls: TlsFiles,
    /// Where grants and releases are counted.
    pub meter: Arc<Meter>,
}

/// Why a lock could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address can't be parsed, or needs what this version doesn't have. Says nothing of the address itself.
    #[error(
        "REDIS_CONN_STR (--redis): {0}; accepted: redis://[user:password@]host:port/db, rediss://… (TLS), redis+unix:///path/to/socket, redis-sentinel://[user:password@]host:port,host:port/db#master, redis-cluster://[user:password@]host:port,host:port"
    )]
    Address(&'static str),
    /// A file that TLS needs.
    #[error("{variable}: cannot read {}: {source}; accepted: a file in PEM", path.display())]
    Certificate {
        /// The setting.
        variable: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("ROWLOCK_REDIS_CERT (--redis-cert) and ROWLOCK_REDIS_KEY (--redis-key) go together: set both or none")]
    HalfACertificate,
    /// The embedded lock's file.
    #[error("cannot open the lock file {path}: {source}")]
    File {
        /// `<csv>.lock`.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// One try's failure, of no consequence but for the delay.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("{0}")]
    Redis(#[from] ::redis::RedisError),
    #[error("no connection: {0}")]
    Pool(#[from] deadpool::managed::PoolError<::redis::RedisError>),
    #[error("{0}")]
    Answer(&'static str),
    #[error("the lock file: {0}")]
    File(#[from] std::io::Error),
}

/// What one try at the lock came to.
enum Try<L> {
    Granted(L),
    /// Held by another, for as long as the backend knows.
    Held(Option<Duration>),
}

enum Backend {
    Redis(RedisLock),
    Embedded(EmbeddedLock),
}

/// Whether the backend answered when it was last asked, by whoever asked.
struct Reach {
    kind: &'static str,
    lost_since: Mutex<Option<Instant>>,
}

impl Reach {
    fn new(kind: &'static str) -> Arc<Self> {
        Arc::new(Self { kind, lost_since: Mutex::new(None) })
    }

    fn lost_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lost_since.lock().expect("no holder of the flag panics")
    }

    /// Notes how a call went, and logs only a change.
    fn note<T>(&self, result: Result<T, TryError>) -> Result<T, TryError> {
        let mut lost_since = self.lost_since();
        let was_lost = lost_since.is_some();
        *lost_since = result.is_err().then(|| lost_since.unwrap_or_else(Instant::now));
        drop(lost_since);
        match (was_lost, &result) {
            (false, Err(e)) => tracing::error!(lock = self.kind, error = %e, "the lock is out of reach; trying again"),
            (true, Ok(_)) => tracing::info!(lock = self.kind, "the lock is in reach again"),
            (true, Err(_)) | (false, Ok(_)) => {}
        }
        result
    }
}

/// A lock by either backend.
pub struct Lock {
    backend: Backend,
    reach: Arc<Reach>,
    meter: Arc<Meter>,
}

impl Lock {
    /// A lock in Redis. Connects when first needed, so Redis may be away now.
    ///
    /// # Errors
    /// If the address can't be used.
    pub fn redis(url: &RedisUrl, key: &str, options: Options) -> Result<Self, OpenError> {
        let (reach, meter) = (Reach::new("redis"), Arc::clone(&options.meter));
        Ok(Self { backend: Backend::Redis(RedisLock::new(url, key, options, Arc::clone(&reach))?), reach, meter })
    }

    /// A lock in a file beside the CSV, for processes of one host.
    ///
    /// # Errors
    /// If the file can't be opened or made.
    pub fn embedded(path: &Path, options: Options) -> Result<Self, OpenError> {
        let meter = Arc::clone(&options.meter);
        let open = EmbeddedLock::open(path, options);
        let lock = open.map_err(|source| OpenError::File { path: path.display().to_string(), source })?;
        Ok(Self { backend: Backend::Embedded(lock), reach: Reach::new("embedded"), meter })
    }

    /// `redis` or `embedded`, for logs and checks.
    pub fn kind(&self) -> &'static str {
        self.reach.kind
    }

    /// Whether the lock is a file of this host.
    pub fn is_embedded(&self) -> bool {
        matches!(self.backend, Backend::Embedded(_))
    }

    /// Whether the last call failed for want of Redis (or of the lock's file), rather than for a holder.
    pub fn is_out_of_reach(&self) -> bool {
        self.reach.lost_since().is_some()
    }

    /// For how long every call has failed, if the last one has.
    pub fn out_of_reach_for(&self) -> Option<Duration> {
        self.reach.lost_since().map(|since| since.elapsed())
    }

    /// Finds out whether the backend is in reach, while nobody asks for the lock.
    pub async fn probe(&self) {
        match &self.backend {
            Backend::Redis(redis) => redis.probe().await,
            // A volume that can be read need not be one that can be written to: only a grant tells.
            Backend::Embedded(embedded) if self.is_out_of_reach() => {
                let _ = self.reach.note(embedded.try_acquire().map_err(TryError::from));
            }
            Backend::Embedded(_) => {}
        }
    }

    /// Tries until the lock is ours, or until nobody `wanted` it any more.
    ///
    /// A backend out of reach is tried again for as long as somebody waits.
    pub async fn acquire(&self, wanted: impl Fn() -> bool) -> Option<Lease> {
        let place = match &self.backend {
            Backend::Redis(redis) => redis.new_place(),
            Backend::Embedded(_) => Place::default(),
        };
        self.acquire_from(place, wanted).await
    }

    /// The same from a place that a release answered.
    pub async fn acquire_from(&self, mut place: Place, wanted: impl Fn() -> bool) -> Option<Lease> {
        let mut pause = LOOK_AGAIN.0;
        let mut stands = place.looked.is_some();
        while wanted() {
            let expires = if std::mem::take(&mut stands) {
                None
            } else {
                let asked = tokio::time::Instant::now();
                match self.try_once(&place.id).await {
                    Ok(Try::Granted(lease)) => return Some(lease),
                    Ok(Try::Held(expires)) => {
                        place.looked = Some(asked);
                        expires
                    }
                    Err(_) => None,
                }
            };
            match &self.backend {
                Backend::Redis(redis) => {
                    if let Some((token, lease)) = redis.until_next_look(&place, pause, expires).await {
                        return Some(Lease::granted(token, Kind::Redis(lease), &self.meter));
                    }
                }
                Backend::Embedded(_) => tokio::time::sleep(pause.min(expires.unwrap_or(pause))).await,
            }
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
        // Neither our place nor a grant whose answer was lost must make others wait.
        if let Backend::Redis(redis) = &self.backend {
            redis.give_up(&place.id).await;
        }
        None
    }

    /// How long a silent holder keeps the lock.
    pub fn ttl(&self) -> Duration {
        match &self.backend {
            Backend::Redis(redis) => redis.ttl(),
            Backend::Embedded(embedded) => embedded.ttl(),
        }
    }

    /// Who has the lock, and who waits for it. `None`: the backend is out of reach.
    pub async fn status(&self) -> Option<LockStatus> {
        match &self.backend {
            Backend::Redis(redis) => redis.status().await.ok(),
            Backend::Embedded(embedded) => self.reach.note(embedded.status().map_err(TryError::from)).ok(),
        }
    }

    /// A token that is newer than the holder's. `None`: the backend is out of reach.
    pub async fn next_token(&self) -> Option<FencingToken> {
        match &self.backend {
            Backend::Redis(redis) => redis.next_token().await.ok(),
            Backend::Embedded(embedded) => self.reach.note(embedded.next_token().map_err(TryError::from)).ok(),
        }
    }

    /// Sees to it that the next grant's token is above `mark`. (The embedded lock is raised when it is next granted.)
    pub async fn raise(&self, mark: FencingToken) {
        if let Backend::Redis(redis) = &self.backend {
            redis.raise(mark).await;
        }
    }

    /// Takes the lock from whoever has it, and hands it over; whether somebody had it. An embedded lock that a process keeps
    /// can't be taken from it. `None`: the backend is out of reach.
    pub async fn force(&self) -> Option<bool> {
        match &self.backend {
            Backend::Redis(redis) => redis.force().await.ok(),
            Backend::Embedded(embedded) => self.reach.note(embedded.force().map_err(TryError::from)).ok(),
        }
    }

    async fn try_once(&self, id: &str) -> Result<Try<Lease>, TryError> {
        let (token, kind) = match &self.backend {
            Backend::Redis(redis) => match redis.try_acquire(id).await? {
                Try::Granted((token, lease)) => (token, Kind::Redis(lease)),
                Try::Held(expires) => return Ok(Try::Held(expires)),
            },
            Backend::Embedded(embedded) => match self.reach.note(embedded.try_acquire().map_err(TryError::from))? {
                Try::Granted((token, lease)) => (token, Kind::Embedded(lease)),
                Try::Held(expires) => return Ok(Try::Held(expires)),
            },
        };
        Ok(Try::Granted(Lease::granted(token, kind, &self.meter)))
    }
}

/// Whether who gives the lock back is to have it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Others may have it.
    Not,
    /// There is nothing to do yet, but likely will be by its next turn: a place in the queue, if others wait.
    Soon,
    /// At once if nobody else waits, else a place in the queue.
    Now,
}

/// What a release left of the wish to have the lock again.
pub enum Again<L = Lease> {
    /// Another lease, since nobody else waited.
    Granted(L),
    /// Wait here: `Lock::acquire_from` goes on.
    Waits(Place),
}

enum Kind {
    Redis(RedisLease),
    Embedded(EmbeddedLease),
}

/// What became of a lock that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// Nobody waited for it, or (embedded) nobody who is known.
    Free,
    /// This replica has it now.
    HandedOver(String),
    /// It was no longer ours.
    Lost,
}

/// The lock, ours for now.
pub struct Lease {
    token: FencingToken,
    id: LeaseId,
    kind: Kind,
    granted: Instant,
    meter: Arc<Meter>,
}

impl Lease {
    /// The number that this grant has, and no other.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// What tells this lease from another with the same token, should Redis have lost its counter.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Sees to it that the next grant's token is above `mark`, and gives the lock back.
    pub async fn release_and_raise(self, mark: FencingToken) -> Released {
        let left = Left::of(&self);
        left.count(match self.kind {
            Kind::Redis(lease) => lease.release_and_raise(mark).await,
            Kind::Embedded(lease) => {
                lease.release_and_raise(mark);
                Released::Free
            }
        })
    }

    /// Whether the time to live has not run out by our own monotonic clock, counted from before it was asked for.
    pub fn is_held(&self) -> bool {
        match &self.kind {
            Kind::Redis(lease) => lease.is_held(),
            Kind::Embedded(_) => true,
        }
    }

    /// Ends when the lease is lost; never, if it stays ours.
    pub async fn lost(&mut self) {
        match &mut self.kind {
            Kind::Redis(lease) => lease.lost().await,
            Kind::Embedded(_) => std::future::pending().await,
        }
    }

    /// Whether it may be kept for one more batch, since nobody else is known to wait for it. (The embedded lock knows no waiters,
    /// and is acquired as quickly.)
    pub async fn may_stay(&self) -> bool {
        match &self.kind {
            Kind::Redis(lease) => lease.may_stay(self.token).await,
            Kind::Embedded(_) => false,
        }
    }

    /// Gives the lock back.
    pub async fn release(self) -> Released {
        self.pass_on(Wanted::Not).await.0
    }

    /// Gives the lock back, and has it again as far as it is wanted. (The embedded lock knows no queue, and is acquired as quickly.)
    pub async fn pass_on(self, wanted: Wanted) -> (Released, Option<Again>) {
        let left = Left::of(&self);
        let (released, again) = match self.kind {
            Kind::Redis(lease) => lease.release(wanted).await,
            Kind::Embedded(lease) => {
                lease.release();
                (Released::Free, None)
            }
        };
        let released = left.count(released);
        let again = again.map(|again| match again {
            Again::Granted((token, lease)) => Again::Granted(Self::granted(token, Kind::Redis(lease), &left.meter)),
            Again::Waits(place) => Again::Waits(place),
        });
        (released, again)
    }

    fn granted(token: FencingToken, kind: Kind, meter: &Arc<Meter>) -> Self {
        meter.count(Counter::Acquired);
        meter.set(Gauge::LockHeld, 1.0);
        Self { token, id: uuid::Uuid::new_v4().as_u128(), kind, granted: Instant::now(), meter: Arc::clone(meter) }
    }

    /// Leaves the lock to expire, a whole time to live from now, as if this process had just crashed.
    pub async fn abandon(self) {
        let left = Left::of(&self);
        match self.kind {
            Kind::Redis(lease) => lease.abandon().await,
            Kind::Embedded(lease) => lease.abandon(),
        }
        left.meter.count(Counter::Abandoned);
        left.end();
    }
}

/// What is counted of a lease once it has ended.
struct Left {
    granted: Instant,
    meter: Arc<Meter>,
}

impl Left {
    fn of(lease: &Lease) -> Self {
        Self { granted: lease.granted, meter: Arc::clone(&lease.meter) }
    }

    fn count(&self, released: Released) -> Released {
        match released {
            Released::Free => {}
            Released::HandedOver(_) => self.meter.count(Counter::HandedOver),
            Released::Lost => self.meter.count(Counter::Lost),
        }
        self.end();
        released
    }

    fn end(&self) {
        self.meter.set(Gauge::LockHeld, 0.0);
        self.meter.observe(Histogram::LockHold, self.granted.elapsed().as_secs_f64());
    }
}
