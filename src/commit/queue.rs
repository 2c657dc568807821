//! Admission: what waits for its turn, bounded in rows, bytes and time, in order of arrival.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::commit::{AppendError, Forced};
use crate::{
    api::acknowledgement::Ack,
    csv::{idempotency_key::Key, rows::Rows},
    simulation::Simulation,
};

/// What may wait in one replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// The rows of one request, waiting.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its place in the order of arrival; given when it is admitted.
    pub(crate) place: u64,
    pub(crate) key: Option<Key>,
    /// How many keys had been recorded by then, as far as this replica knew.
    pub(crate) keys_seen: u64,
    pub(crate) rows: Rows,
    pub(crate) weight_bytes: usize,
    pub(crate) simulation: Simulation,
    pub(crate) arrived: Instant,
    /// Until when the rows may wait for their turn; their own `sleep` is not part of it.
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<Result<Ack, AppendError>>,
}

#[derive(Debug, Default)]
struct State {
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
    next: u64,
    rows: usize,
    bytes: usize,
    closed: bool,
}

impl State {
    fn remove(&mut self, place: u64) -> Option<Waiting> {
        let at = self.waiting.binary_search_by_key(&place, |waiting| waiting.place).ok()?;
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<Waiting> {
        let waiting = self.waiting.remove(at)?;
        self.rows -= waiting.rows.len();
        self.bytes -= waiting.weight_bytes;
        Some(waiting)
    }
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// A forced release.
    Order,
    Work,
    /// Nothing came for a while.
    Quiet,
    /// Nothing will come any more.
    End,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    /// Forced releases that were asked for, and not done yet.
    orders: Mutex<Vec<Order>>,
    ordered: Notify,
    /// The grace time is over: nobody sleeps any longer.
    time_is_up: watch::Sender<bool>,
    bounds: Bounds,
}

/// A forced release that somebody waits for.
pub(crate) type Order = oneshot::Sender<Result<Forced, AppendError>>;

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            orders: Mutex::default(),
            ordered: Notify::new(),
            time_is_up: watch::Sender::new(false),
            bounds,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the queue panics")
    }

    /// Asks the committer to take the lock from whoever has it.
    pub(crate) fn order_release(&self) -> oneshot::Receiver<Result<Forced, AppendError>> {
        let (order, done) = oneshot::channel();
        self.orders.lock().expect("no holder of the orders panics").push(order);
        self.ordered.notify_one();
        self.changed.notify_one();
        done
    }

    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *self.orders.lock().expect("no holder of the orders panics"))
    }

    pub(crate) fn has_orders(&self) -> bool {
        !self.orders.lock().expect("no holder of the orders panics").is_empty()
    }

    /// Returns when a forced release is asked for.
    pub(crate) async fn order(&self) {
        while !self.has_orders() {
            self.ordered.notified().await;
        }
    }

    /// Takes rows in, if there is room for them.
    pub(crate) fn admit(self: &Arc<Self>, waiting: Waiting) -> Result<Ticket, AppendError> {
        let mut state = self.state();
        if state.closed {
            return Err(AppendError::Draining);
        }
        let (rows, bytes) = (state.rows + waiting.rows.len(), state.bytes + waiting.weight_bytes);
        // One request alone may be larger: its own bounds hold it.
        if !state.waiting.is_empty() && (rows > self.bounds.rows || bytes > self.bounds.bytes) {
            return Err(AppendError::QueueFull);
        }
        let place = state.next;
        (state.rows, state.bytes, state.next) = (rows, bytes, place + 1);
        state.waiting.push_back(Waiting { place, ..waiting });
        drop(state);
        self.changed.notify_one();
        Ok(Ticket { queue: Arc::clone(self), place, settled: false })
    }

    /// Rows and bytes that wait, and for how long the oldest has.
    pub(crate) fn load(&self) -> (usize, usize, Option<Duration>) {
        let state = self.state();
        let oldest = state.waiting.front().map(|waiting| waiting.arrived.elapsed());
        (state.rows, state.bytes, oldest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// Waits until there is something to do, or for as long as `quiet`.
    pub(crate) async fn next(&self, quiet: Duration) -> Next {
        let deadline = Instant::now() + quiet;
        loop {
            let changed = self.changed.notified();
            if self.has_orders() {
                return Next::Order;
            }
            match self.state() {
                state if !state.waiting.is_empty() => return Next::Work,
                state if state.closed => return Next::End,
                _ => {}
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Next::Quiet;
            }
        }
    }

    /// Gives rows their old places back, for another turn: they are certain not to have been written. Those whose time is up
    /// are refused.
    pub(crate) fn put_back(&self, batch: Vec<Waiting>, refusal: &AppendError) {
        let mut state = self.state();
        let now = Instant::now();
        // What was taken stood before all that waits now.
        for waiting in batch.into_iter().rev() {
            if waiting.deadline <= now {
                let _ = waiting.answer.send(Err(refusal.clone()));
            } else if !waiting.answer.is_closed() {
                state.rows += waiting.rows.len();
                state.bytes += waiting.weight_bytes;
                state.waiting.push_front(waiting);
            }
        }
    }

    /// The place of who comes next.
    pub(crate) fn next_place(&self) -> u64 {
        self.state().next
    }

    /// Whether the first that waits has a place before this one, and no wish for a turn of its own.
    pub(crate) fn goes_on(&self, before: u64) -> bool {
        let state = self.state();
        state.waiting.front().is_some_and(|first| first.place < before && !first.simulation.wants_own_turn())
    }

    /// The next batch: all that waits in places before this one, up to `bytes_max`, but a request that wants a turn of its own gets
    /// one.
    pub(crate) fn take(&self, bytes_max: usize, before: u64) -> Vec<Waiting> {
        let mut state = self.state();
        let (mut batch, mut bytes) = (Vec::with_capacity(state.waiting.len()), 0);
        while let Some(next) = state.waiting.front().filter(|next| next.place < before) {
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

    /// Lets nobody in any more; who waits already keeps its place.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// From now on nobody sleeps before a write.
    pub(crate) fn end_sleeps(&self) {
        self.time_is_up.send_replace(true);
    }

    /// Returns when sleeps are to end.
    pub(crate) async fn sleeps_end(&self) {
        // An error would mean that the queue is gone, and with it who asks.
        let _ = self.time_is_up.subscribe().wait_for(|up| *up).await;
    }

    /// Refuses all that still wait.
    pub(crate) fn refuse_all(&self, with: &AppendError) {
        let mut state = self.state();
        while let Some(waiting) = state.take(0) {
            // Who has hung up needs no answer.
            let _ = waiting.answer.send(Err(with.clone()));
        }
    }
}

/// A place in the queue. Dropping it gives the place up: a client that hung up costs nothing.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    place: u64,
    settled: bool,
}

impl Ticket {
    /// Whether the place was still there to give up: then the rows are certain never to be written.
    pub(crate) fn withdraw(&self) -> bool {
        self.queue.state().remove(self.place).is_some()
    }

    /// Once the answer is there, so is no place any more.
    pub(crate) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Ticket {
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

    type Answer = oneshot::Receiver<Result<Ack, AppendError>>;

    fn admit(queue: &Arc<Queue>, sleep_secs: u64) -> Result<(Ticket, Answer), AppendError> {
        let schema = Schema::headerless();
        let mut rows = schema.rows();
        schema.push(&Data::Text(Cow::Borrowed("x")), &mut rows).expect("fits");
        let (answer, receiver) = oneshot::channel();
        let simulation = Simulation { sleep: Duration::from_secs(sleep_secs), skip_release: false };
        let now = Instant::now();
        let waiting = Waiting {
            place: 0,
            key: None,
            keys_seen: 0,
            weight_bytes: 100,
            rows,
            simulation,
            arrived: now,
            deadline: now + Duration::from_secs(60),
            answer,
        };
        Ok((queue.admit(waiting)?, receiver))
    }

    #[test]
    fn a_request_that_sleeps_has_a_batch_of_its_own_and_keeps_its_place() {
        let queue = Arc::new(Queue::new(Bounds { rows: 10, bytes: 10_000 }));
        let _tickets: Vec<_> = [0, 0, 5, 0].into_iter().map(|sleep| admit(&queue, sleep).expect("room")).collect();
        let sizes: Vec<_> = std::iter::repeat_with(|| queue.take(10_000, u64::MAX).len()).take(4).collect();
        assert_eq!(sizes, [2, 1, 1, 0]);
    }

    #[test]
    fn a_hold_goes_on_only_with_those_who_came_before_its_answers_left() {
        let queue = Arc::new(Queue::new(Bounds { rows: 10, bytes: 10_000 }));
        let _first = [0, 0].map(|sleep| admit(&queue, sleep).expect("room"));
        let before = queue.next_place();
        let _later = [0, 5].map(|sleep| admit(&queue, sleep).expect("room"));
        assert!(queue.goes_on(before));
        assert_eq!((queue.take(10_000, before).len(), queue.goes_on(before)), (2, false));
        assert!(queue.goes_on(u64::MAX));
        assert_eq!((queue.take(10_000, u64::MAX).len(), queue.goes_on(u64::MAX)), (1, false));
    }

    #[test]
    fn a_batch_ends_at_its_bytes_but_never_empty() {
        let queue = Arc::new(Queue::new(Bounds { rows: 10, bytes: 10_000 }));
        let _tickets: Vec<_> = (0..3).map(|_| admit(&queue, 0).expect("room")).collect();
        let sizes: Vec<_> = [1, 250, 250].into_iter().map(|bytes| queue.take(bytes, u64::MAX).len()).collect();
        assert_eq!(sizes, [1, 2, 0]);
    }

    #[test]
    fn the_queue_is_bounded_and_a_place_given_up_is_free_again() {
        let queue = Arc::new(Queue::new(Bounds { rows: 2, bytes: 10_000 }));
        let first = admit(&queue, 0).expect("room");
        let _second = admit(&queue, 0).expect("room");
        assert_eq!(admit(&queue, 0).expect_err("full"), AppendError::QueueFull);
        drop(first);
        let _third = admit(&queue, 0).expect("room again");
        let by_bytes = Arc::new(Queue::new(Bounds { rows: 10, bytes: 150 }));
        let _one = admit(&by_bytes, 0).expect("room");
        assert_eq!(admit(&by_bytes, 0).expect_err("full"), AppendError::QueueFull);
    }

    #[test]
    fn rows_that_are_put_back_keep_their_places_and_who_hung_up_or_is_late_loses_its_own() {
        let queue = Arc::new(Queue::new(Bounds { rows: 10, bytes: 10_000 }));
        let tickets: Vec<_> = (0..4).map(|_| admit(&queue, 0).expect("room")).collect();
        let mut batch = queue.take(250, u64::MAX);
        assert_eq!(batch.len(), 2);
        let late = Instant::now();
        batch[1].deadline = late;
        queue.put_back(batch, &AppendError::FileBusy);
        let places: Vec<_> = queue.take(10_000, u64::MAX).iter().map(|waiting| waiting.place).collect();
        assert_eq!(places, [0, 2, 3]);
        let mut answers: Vec<_> = tickets.into_iter().map(|(_ticket, answer)| answer).collect();
        assert_eq!(answers[1].try_recv().expect("answered"), Err(AppendError::FileBusy));
    }

    #[test]
    fn a_row_that_was_taken_cannot_be_withdrawn() {
        let queue = Arc::new(Queue::new(Bounds { rows: 2, bytes: 10_000 }));
        let (ticket, _answer) = admit(&queue, 0).expect("room");
        assert_eq!(queue.take(1, u64::MAX).len(), 1);
        assert!(!ticket.withdraw());
    }
}
