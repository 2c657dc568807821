//! Admission: the queue of appends that wait for a turn, in order of arrival, bounded in rows, bytes and time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::commit::{error::AppendError, in_flight::ReservedKey};
use crate::{
    api::{acknowledgement::Acknowledgement, lock_status::ForcedRelease},
    csv::{idempotency_key::Key, rows::Rows},
    simulation::Simulation,
};

/// The most that may wait in one replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

/// What waits at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLoad {
    pub(super) rows: usize,
    /// Memory of the rows.
    pub(super) bytes: usize,
    /// How long the oldest append has waited.
    pub(super) oldest_age: Option<Duration>,
}

/// The rows of one request, waiting for a turn.
#[derive(Debug)]
pub(super) struct PendingAppend {
    /// Its number in order of arrival, assigned at admission.
    pub(super) sequence: u64,
    pub(super) key: Option<Key>,
    /// Held until the answer, also if the client disconnects before it.
    pub(super) reserved_key: Option<ReservedKey>,
    /// How many keys this replica knew to be recorded when the request arrived.
    pub(super) keys_seen: u64,
    pub(super) rows: Rows,
    pub(super) weight_bytes: usize,
    pub(super) simulation: Simulation,
    pub(super) arrived: Instant,
    /// The end of its wait for a turn; its own `sleep` comes on top.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Acknowledgement, AppendError>>,
}

impl PendingAppend {
    /// Answers the client, if it is still connected. It may then send the key again.
    pub(super) fn answer(self, result: Result<Acknowledgement, AppendError>) {
        drop(self.reserved_key);
        // Ignore disconnected clients.
        let _ = self.answer.send(result);
    }
}

#[derive(Debug, Default)]
struct State {
    /// In order of `sequence`.
    pending: VecDeque<PendingAppend>,
    next_sequence: u64,
    rows: usize,
    bytes: usize,
    closed: bool,
}

impl State {
    fn remove(&mut self, sequence: u64) -> Option<PendingAppend> {
        let at = self.pending.binary_search_by_key(&sequence, |append| append.sequence).ok()?;
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<PendingAppend> {
        let append = self.pending.remove(at)?;
        self.rows -= append.rows.len();
        self.bytes -= append.weight_bytes;
        Some(append)
    }
}

/// What the committer has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueEvent {
    /// A forced release was requested.
    ForcedRelease,
    /// Rows wait.
    Rows,
    /// Nothing came for a while.
    Idle,
    /// The queue is closed and empty.
    Closed,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    /// Forced releases that are not done yet.
    forced_releases: Mutex<Vec<ForcedReleaseRequest>>,
    forced_release_requested: Notify,
    /// The grace time of a shutdown is over: nothing waits any longer.
    grace_over: watch::Sender<bool>,
    bounds: Bounds,
}

/// The sender of the answer to a forced release.
pub(super) type ForcedReleaseRequest = oneshot::Sender<Result<ForcedRelease, AppendError>>;

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            forced_releases: Mutex::default(),
            forced_release_requested: Notify::new(),
            grace_over: watch::Sender::new(false),
            bounds,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the queue panics")
    }

    fn forced_releases(&self) -> MutexGuard<'_, Vec<ForcedReleaseRequest>> {
        self.forced_releases.lock().expect("no holder of the requests panics")
    }

    /// Asks the committer for a forced release.
    pub(super) fn request_forced_release(&self) -> oneshot::Receiver<Result<ForcedRelease, AppendError>> {
        let (request, done) = oneshot::channel();
        let mut requests = self.forced_releases();
        if self.is_grace_over() {
            let _ = request.send(Err(AppendError::Draining));
            return done;
        }
        requests.push(request);
        drop(requests);
        self.forced_release_requested.notify_one();
        self.changed.notify_one();
        done
    }

    /// Takes the requests that somebody still waits for.
    pub(super) fn take_forced_releases(&self) -> Vec<ForcedReleaseRequest> {
        let mut requests = std::mem::take(&mut *self.forced_releases());
        requests.retain(|request| !request.is_closed());
        requests
    }

    pub(super) fn has_forced_releases(&self) -> bool {
        !self.forced_releases().is_empty()
    }

    /// Returns when a forced release is requested.
    pub(super) async fn forced_release(&self) {
        while !self.has_forced_releases() {
            self.forced_release_requested.notified().await;
        }
    }

    /// Admits an append, if the bounds allow it.
    pub(super) fn admit(self: &Arc<Self>, append: PendingAppend) -> Result<Admission, AppendError> {
        let mut state = self.state();
        if state.closed {
            return Err(AppendError::Draining);
        }
        let (rows, bytes) = (state.rows + append.rows.len(), state.bytes + append.weight_bytes);
        // A single request may be larger than the queue: it has bounds of its own.
        if !state.pending.is_empty() && (rows > self.bounds.rows || bytes > self.bounds.bytes) {
            return Err(AppendError::QueueFull);
        }
        let sequence = state.next_sequence;
        (state.rows, state.bytes, state.next_sequence) = (rows, bytes, sequence + 1);
        state.pending.push_back(PendingAppend { sequence, ..append });
        drop(state);
        self.changed.notify_one();
        Ok(Admission { queue: Arc::clone(self), sequence, settled: false })
    }

    pub(super) fn load(&self) -> QueueLoad {
        let state = self.state();
        let oldest_age = state.pending.front().map(|append| append.arrived.elapsed());
        QueueLoad { rows: state.rows, bytes: state.bytes, oldest_age }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().pending.is_empty()
    }

    /// Waits until there is something to do, at most for `idle_after`.
    pub(super) async fn next(&self, idle_after: Duration) -> QueueEvent {
        let deadline = Instant::now() + idle_after;
        loop {
            let changed = self.changed.notified();
            if self.has_forced_releases() {
                return QueueEvent::ForcedRelease;
            }
            match self.state() {
                state if !state.pending.is_empty() => return QueueEvent::Rows,
                state if state.closed => return QueueEvent::Closed,
                _ => {}
            }
            if timeout_at(deadline, changed).await.is_err() {
                return QueueEvent::Idle;
            }
        }
    }

    /// Puts appends that are certain not to be written back in their old order, for another turn. Those past their deadline are
    /// refused with `refusal`, and all of them after the grace time: nobody waits for another turn then.
    pub(super) fn requeue(&self, batch: Vec<PendingAppend>, refusal: &AppendError) {
        // Before the grace time is asked about: its end finds what is put back before.
        let mut state = self.state();
        let (now, is_grace_over) = (Instant::now(), self.is_grace_over());
        // A batch was taken from the front, so all that waits now came later.
        for append in batch.into_iter().rev() {
            // guard: no_retry_after_grace: a request that is tried again when the grace time ends is answered
            if is_grace_over {
                append.answer(Err(AppendError::Draining));
            } else if append.deadline <= now {
                append.answer(Err(refusal.clone()));
            } else if !append.answer.is_closed() {
                state.rows += append.rows.len();
                state.bytes += append.weight_bytes;
                state.pending.push_front(append);
            }
        }
    }

    /// The sequence number of the next append to arrive.
    pub(super) fn next_sequence(&self) -> u64 {
        self.state().next_sequence
    }

    /// Whether the first append that waits has a lower sequence number than `limit` and needs no turn of its own.
    pub(super) fn can_continue(&self, limit: u64) -> bool {
        let state = self.state();
        state.pending.front().is_some_and(|first| first.sequence < limit && !first.simulation.wants_own_turn())
    }

    /// Takes the next batch: what waits with a lower sequence number than `limit`, up to `bytes_max`. A request that needs a turn
    /// of its own is a batch of its own.
    pub(super) fn take(&self, bytes_max: usize, limit: u64) -> Vec<PendingAppend> {
        let mut state = self.state();
        let (mut batch, mut bytes) = (Vec::with_capacity(state.pending.len()), 0);
        while let Some(next) = state.pending.front().filter(|next| next.sequence < limit) {
            let own_turn = next.simulation.wants_own_turn();
            bytes += next.weight_bytes;
            if !batch.is_empty() && (own_turn || bytes > bytes_max) {
                break;
            }
            batch.extend(state.take(0));
            if own_turn {
                break;
            }
        }
        batch
    }

    /// Admits no more appends; those that wait keep their turn.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Refuses all that waits, and ends the sleep before a write and the waits for a busy file, now and from now on.
    pub(super) fn end_grace(&self) {
        let mut state = self.state();
        // With the queue locked: a turn that ends now finds no rows, and none are put back later.
        self.grace_over.send_replace(true);
        while let Some(append) = state.take(0) {
            append.answer(Err(AppendError::Draining));
        }
        drop(state);
        for request in self.take_forced_releases() {
            let _ = request.send(Err(AppendError::Draining));
        }
    }

    pub(super) fn is_grace_over(&self) -> bool {
        *self.grace_over.borrow()
    }

    /// Returns when the grace time is over.
    pub(super) async fn grace_over(&self) {
        // An error would mean that the queue was dropped, but its caller holds it.
        let _ = self.grace_over.subscribe().wait_for(|over| *over).await;
    }
}

/// An append in the queue. Dropping it withdraws the append, so that a cancelled request costs nothing.
#[derive(Debug)]
pub(super) struct Admission {
    queue: Arc<Queue>,
    sequence: u64,
    settled: bool,
}

impl Admission {
    /// Takes the append out of the queue. True if it was still there: then it is certain never to be written.
    pub(super) fn withdraw(&self) -> bool {
        self.queue.state().remove(self.sequence).is_some()
    }

    /// To be called once the append is answered: it is no longer in the queue.
    pub(super) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.settled {
            self.withdraw();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::csv::schema::{Data, Schema};

    type Answer = oneshot::Receiver<Result<Acknowledgement, AppendError>>;

    fn admit(queue: &Arc<Queue>, sleep_secs: u64) -> Result<(Admission, Answer), AppendError> {
        let schema = Schema::headerless();
        let mut rows = schema.rows();
        schema.push(&Data::Text(Cow::Borrowed("x")), &mut rows).expect("fits");
        let (answer, receiver) = oneshot::channel();
        let simulation = Simulation { sleep: Duration::from_secs(sleep_secs), skip_release: false };
        let now = Instant::now();
        let append = PendingAppend {
            sequence: 0,
            key: None,
            reserved_key: None,
            keys_seen: 0,
            weight_bytes: 100,
            rows,
            simulation,
            arrived: now,
            deadline: now + Duration::from_secs(60),
            answer,
        };
        Ok((queue.admit(append)?, receiver))
    }

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new(Bounds { rows: 10, bytes: 10_000 }))
    }

    #[test]
    fn sleeping_request_gets_its_own_batch_in_order() {
        let queue = queue();
        let _admitted: Vec<_> = [0, 0, 5, 0].into_iter().map(|sleep| admit(&queue, sleep).expect("admitted")).collect();
        let sizes: Vec<_> = std::iter::repeat_with(|| queue.take(10_000, u64::MAX).len()).take(4).collect();
        assert_eq!(sizes, [2, 1, 1, 0]);
    }

    #[test]
    fn hold_continues_only_with_appends_below_its_limit() {
        let queue = queue();
        let _first = [0, 0].map(|sleep| admit(&queue, sleep).expect("admitted"));
        let limit = queue.next_sequence();
        let _later = [0, 5].map(|sleep| admit(&queue, sleep).expect("admitted"));
        assert!(queue.can_continue(limit));
        assert_eq!((queue.take(10_000, limit).len(), queue.can_continue(limit)), (2, false));
        assert!(queue.can_continue(u64::MAX));
        assert_eq!((queue.take(10_000, u64::MAX).len(), queue.can_continue(u64::MAX)), (1, false));
    }

    #[test]
    fn batch_is_bounded_in_bytes_but_never_empty() {
        let queue = queue();
        let _admitted: Vec<_> = (0..3).map(|_| admit(&queue, 0).expect("admitted")).collect();
        let sizes: Vec<_> = [1, 250, 250].into_iter().map(|bytes| queue.take(bytes, u64::MAX).len()).collect();
        assert_eq!(sizes, [1, 2, 0]);
    }

    #[test]
    fn full_queue_refuses_until_an_append_is_withdrawn() {
        let queue = Arc::new(Queue::new(Bounds { rows: 2, bytes: 10_000 }));
        let first = admit(&queue, 0).expect("admitted");
        let _second = admit(&queue, 0).expect("admitted");
        assert_eq!(admit(&queue, 0).expect_err("full"), AppendError::QueueFull);
        drop(first);
        let _third = admit(&queue, 0).expect("admitted");
        let by_bytes = Arc::new(Queue::new(Bounds { rows: 10, bytes: 150 }));
        let _one = admit(&by_bytes, 0).expect("admitted");
        assert_eq!(admit(&by_bytes, 0).expect_err("full"), AppendError::QueueFull);
    }

    #[test]
    fn requeued_appends_keep_their_order_and_late_ones_are_refused() {
        let queue = queue();
        let admitted: Vec<_> = (0..4).map(|_| admit(&queue, 0).expect("admitted")).collect();
        let mut batch = queue.take(250, u64::MAX);
        assert_eq!(batch.len(), 2);
        batch[1].deadline = Instant::now();
        queue.requeue(batch, &AppendError::FileBusy);
        let sequence: Vec<_> = queue.take(10_000, u64::MAX).iter().map(|append| append.sequence).collect();
        assert_eq!(sequence, [0, 2, 3]);
        let mut answers: Vec<_> = admitted.into_iter().map(|(_admission, answer)| answer).collect();
        assert_eq!(answers[1].try_recv().expect("answered"), Err(AppendError::FileBusy));
    }

    #[test]
    fn append_that_was_taken_cannot_be_withdrawn() {
        let queue = Arc::new(Queue::new(Bounds { rows: 2, bytes: 10_000 }));
        let (admission, _answer) = admit(&queue, 0).expect("admitted");
        assert_eq!(queue.take(1, u64::MAX).len(), 1);
        assert!(!admission.withdraw());
    }
}
