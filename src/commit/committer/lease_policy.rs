//! What happens to the lease after a batch: it is kept for the next batch, or released with or without a place in the queue of
//! replicas for the next turn.
//!
//! The figures in this file are rows per second with a rule against rows per second without it, on two cores that the load
//! generator shares. `benches/RESULTS.md` ("The service") says how they were measured, and what was tried and left out.
//!
//! - **Keep.** If no other replica waits, the lease is kept for one batch after another, at most 50 ms ([`Lease::may_keep`]): it
//!   saves a call to Redis for each batch.
//! - **Which batches.** A batch that several requests shared may be followed by any rows: 1.09 and 1.05 with one replica at 64 and
//!   256 connections. A batch of one request is followed only by rows that arrived before its answer left, so that a client that
//!   sends one row after another gets a new token for each.
//! - **On a network volume** a new hold costs some ten calls of the server, so both lease and OS lock are kept while other
//!   replicas wait, too, for a bound that follows from that cost ([`Storage::keep_until`](crate::storage::Storage::keep_until)).
//! - **Yield.** Before a further batch under a kept lease, threads with requests run first: see [`yield_to_request_threads`].
//! - **Requeue.** The call that releases the lock also asks for it again, if rows wait: 1.14 and 1.05 with one replica. When it asks
//!   without rows: see [`Committer::reacquire_policy`].

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::commit::{
    committer::Committer,
    queue::{Queue, QueueEvent},
};
use crate::{
    api::events::Change,
    lock::{Lease, QueueTicket, Reacquire, Reacquired, Released},
    time::ms,
};

/// How long a place in the queue of replicas is kept while this replica has no rows.
const EMPTY_TICKET_MAX: Duration = Duration::from_millis(30);

/// How long a hold on a network volume waits for the next rows of clients that share it. Without this pause the queue is empty
/// right after the answers, and each hold is one batch; 3 ms is no better.
const LINGER: Duration = Duration::from_millis(1);

/// How long the OS lock of a network volume is kept after its lease, for the next row of a client that sends one after another,
/// if no other replica waits. Another replica that gets the lease tries again after as long.
const FILES_LINGER: Duration = Duration::from_millis(5);
/// How long it is kept while the lock is acquired, which takes no longer unless another replica has it.
const ACQUIRE_LINGER: Duration = Duration::from_millis(2);

/// The lock, held for one batch or more.
pub(super) struct Hold {
    pub(super) lease: Lease,
    granted: Instant,
    /// Whether subscribers were told of the grant.
    pub(super) announced: bool,
    /// How long the oldest row of the first batch waited.
    pub(super) waited_ms: u64,
    /// Whether it is held for a `sleep`.
    pub(super) slept: bool,
    /// Rows written so far.
    pub(super) rows: usize,
    /// Whether several requests shared one of its batches.
    shared: bool,
    /// Appends with a lower sequence number may use this hold for a further batch.
    continue_below: Option<u64>,
}

/// What is left of the lock between two turns.
pub(super) enum Retained {
    Nothing,
    Hold(Hold),
    /// A place in the queue of replicas.
    Ticket(QueueTicket),
}

/// How the lock is released after a turn.
pub(super) enum ReleaseMode {
    Release,
    /// The lock is left to expire, for `skip_release`.
    Abandon,
    /// Redis lost its counter: the next token must be above this one.
    RaiseToken(u64),
}

impl Hold {
    pub(super) fn new(lease: Lease) -> Self {
        Self {
            lease,
            granted: Instant::now(),
            announced: false,
            waited_ms: 0,
            slept: false,
            rows: 0,
            shared: false,
            continue_below: None,
        }
    }

    /// Takes the sequence number below which appends may join the next batch.
    pub(super) fn take_limit(&mut self) -> u64 {
        self.continue_below.take().unwrap_or(u64::MAX)
    }

    /// Decides, before the answers of a batch of `requests` are sent, which appends may follow it under this lease.
    pub(super) fn limit_continuing(&mut self, requests: usize, queue: &Queue) {
        self.shared |= requests > 1;
        self.continue_below.get_or_insert_with(|| if requests > 1 { u64::MAX } else { queue.next_sequence() });
    }

    /// No further batch may be written under this lease.
    pub(super) fn forbid_continuing(&mut self) {
        self.continue_below = None;
    }
}

impl Committer {
    fn wants_lock(&self) -> bool {
        wants_lock(&self.queue)
    }

    fn awaits_rows(&self) -> bool {
        !self.queue.is_closed() && !self.queue.has_forced_releases()
    }

    /// The next event. A lone client's next row finds the OS lock of a network volume still held.
    pub(super) async fn next_event(&mut self, idle_after: Duration) -> QueueEvent {
        if self.storage.is_holding() {
            match self.queue.next(FILES_LINGER).await {
                QueueEvent::Idle => self.storage.end_hold(),
                event => return event,
            }
        }
        self.queue.next(idle_after).await
    }

    /// Acquires the lock. While another replica has it, that replica needs the OS lock.
    pub(super) async fn acquire(&mut self) -> Option<Hold> {
        let lock = Arc::clone(&self.lock);
        let queue = Arc::clone(&self.queue);
        let mut lease = pin!(lock.acquire(|| wants_lock(&queue)));
        if self.storage.is_holding() {
            // Another replica has the lease, and needs the OS lock.
            match tokio::time::timeout(ACQUIRE_LINGER, &mut lease).await {
                Ok(lease) => return lease.map(Hold::new),
                Err(_) => self.storage.end_hold(),
            }
        }
        lease.await.map(Hold::new)
    }

    /// Waits for the lock from a place in the queue of replicas that a release has taken.
    pub(super) async fn acquire_queued(&self, ticket: QueueTicket) -> Option<Hold> {
        let empty_until = Instant::now() + EMPTY_TICKET_MAX;
        let wanted = || self.wants_lock() || self.awaits_rows() && Instant::now() < empty_until;
        self.lock.acquire_from(ticket, wanted).await.map(Hold::new)
    }

    /// Whether the lease is kept for a further batch.
    pub(super) async fn keeps_lease(&self, hold: &Hold) -> bool {
        if let Some(until) = self.storage.keep_until() {
            return self.keeps_files(hold, until).await;
        }
        let may_continue = hold.shared || self.can_continue(hold);
        if !may_continue || !hold.lease.may_keep().await {
            return false;
        }
        if hold.shared {
            yield_to_request_threads();
        }
        self.can_continue(hold)
    }

    /// As `keeps_lease`, where lease and OS lock are kept `until` then even if other replicas wait.
    async fn keeps_files(&self, hold: &Hold, until: Instant) -> bool {
        // After that a waiting replica gets its turn.
        if !hold.lease.is_held() || Instant::now() >= until && !hold.lease.may_keep().await {
            return false;
        }
        if hold.shared && !self.can_continue(hold) {
            self.queue.next(LINGER).await;
        }
        self.can_continue(hold)
    }

    /// Whether rows wait that may be written under the same lease.
    fn can_continue(&self, hold: &Hold) -> bool {
        let waiting = hold.continue_below.is_some_and(|limit| self.queue.can_continue(limit));
        waiting && !hold.slept && !self.queue.has_forced_releases()
    }

    /// Whether the release asks for the lock again.
    ///
    /// After a batch that several clients shared, and if other replicas wait, it asks even if no rows wait yet: by the next turn
    /// these clients have sent more, and that turn needs no call and no wake-up of its own (1.18 and 0.99 with three replicas,
    /// 1.37 and 1.17 with eight, at 64 and 256 connections). After a batch of one request it does not ask, because that turn and
    /// its token would most likely be wasted.
    fn reacquire_policy(&self, hold: &Hold) -> Reacquire {
        // guard: queue_ahead: a busy replica requeues before rows arrive
        let if_contended = hold.shared && self.awaits_rows();
        match (self.wants_lock(), if_contended) {
            (true, _) => Reacquire::Yes,
            (false, true) => Reacquire::IfContended,
            (false, false) => Reacquire::No,
        }
    }

    /// Releases the lease; returns the next one or a place in the queue of replicas, if there is one.
    pub(super) async fn release(&mut self, hold: Hold, mode: ReleaseMode) -> Retained {
        let is_lone_client = self.storage.is_alone() && !hold.shared && matches!(mode, ReleaseMode::Release);
        if !is_lone_client || !hold.lease.may_keep().await {
            self.storage.end_hold();
        }
        let (token, wanted) = (hold.lease.token(), self.reacquire_policy(&hold));
        let mut reacquired = Reacquired::No;
        let (change, other) = match mode {
            ReleaseMode::Release => {
                let released;
                (released, reacquired) = hold.lease.release_and_requeue(wanted).await;
                to_change(released)
            }
            ReleaseMode::RaiseToken(highest_token) => {
                to_change(hold.lease.release_and_raise_token(highest_token).await)
            }
            ReleaseMode::Abandon => {
                hold.lease.abandon().await;
                (Change::Abandoned, None)
            }
        };
        // A grant without rows was not announced, and neither is its release.
        if hold.announced {
            self.observers.lock_changed(change, token, |event| {
                (event.held_ms, event.rows) = (Some(ms(hold.granted.elapsed())), Some(hold.rows));
                (event.slept, event.waited_ms, event.other) = (hold.slept, Some(hold.waited_ms), other);
                event.ttl_ms = (change == Change::Abandoned).then(|| ms(self.lock.ttl()));
            });
        }
        match reacquired {
            Reacquired::Granted(lease) => Retained::Hold(Hold::new(lease)),
            Reacquired::Queued(ticket) => Retained::Ticket(ticket),
            Reacquired::No => Retained::Nothing,
        }
    }
}

/// Whether rows wait that need the lock.
fn wants_lock(queue: &Queue) -> bool {
    !queue.is_empty() && !queue.has_forced_releases()
}

/// Lets threads run that have requests to read, if cores are scarce: their rows then share the next sync.
///
/// Only while no other replica waits: 1.09 and 1.16 with one replica, but 0.90 to 0.96 with three and eight replicas. Before the
/// check of the queue rather than after it: 1.04 and 1.02. Where cores are free it takes no time.
fn yield_to_request_threads() {
    std::thread::yield_now();
}

fn to_change(released: Released) -> (Change, Option<String>) {
    match released {
        Released::Free => (Change::Released, None),
        Released::HandedOver(to) => (Change::HandedOver, Some(to)),
        Released::Lost => (Change::Lost, None),
    }
}
