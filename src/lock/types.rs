//! Types that both backends and their callers use.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{metrics::Meter, progress::Progress};

/// What both backends need.
#[derive(Debug, Clone)]
pub struct Options {
    /// This replica's name, as the lock's status shows it.
    pub replica: String,
    /// How long the lock stays held after its holder's last sign of life.
    pub ttl: Duration,
    /// Certificates for a Redis with TLS.
    pub tls: TlsFiles,
    /// Counts grants, releases and connections.
    pub meter: Arc<Meter>,
    /// The calls of the lock's user: while one is stuck, a lease in Redis is not renewed.
    pub progress: Progress,
}

/// PEM files for a `rediss…` address.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Certificates that may sign the server's certificate; by default those of the system.
    pub ca: Option<PathBuf>,
    /// The client's certificate, for servers that require one.
    pub cert: Option<PathBuf>,
    /// The client certificate's key.
    pub key: Option<PathBuf>,
}

/// The result of one attempt to acquire the lock.
pub(super) enum AcquireAttempt<L> {
    Granted(L),
    /// Another client holds the lock. `expires_in` is unknown for a lock that a live process holds.
    Held {
        expires_in: Option<Duration>,
    },
}

/// A lease that is not granted yet: its id, and its place in the queue after the first poll.
#[derive(Default)]
pub struct QueueTicket {
    pub(super) id: String,
    /// Start of the last poll that found the lock held. A grant that arrives later is newer than this.
    pub(super) polled: Option<Instant>,
}

/// Whether a replica that releases the lock queues for it again in the same call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reacquire {
    /// It does not.
    No,
    /// Only if other replicas wait: it has no rows yet, but expects some before its next turn.
    IfContended,
    /// Yes: behind the other waiters, or at once if there are none.
    Yes,
}

/// What a release that asked for the lock again returns.
pub enum Reacquired<L> {
    /// No lease and no place in the queue.
    No,
    /// The next lease, because no other replica waits.
    Granted(L),
    /// A place in the queue, for `Lock::acquire_from`.
    Queued(QueueTicket),
}

/// What happened to a lock that was released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// No replica waited. (The embedded lock does not know its waiters.)
    Free,
    /// This replica holds the lock now.
    HandedOver(String),
    /// The lease had ended before the release.
    Lost,
}
