//! The handle that appends rows to one CSV.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use crate::commit::{
    committer::{Committer, Observers},
    error::AppendError,
    file_fault::{FileFault, LastFileFault},
    file_room::FileRoom,
    in_flight::InFlight,
    lock_changes::LockChanges,
    queue::{Bounds, PendingAppend, Queue, QueueLoad},
    storage_watch::{APPEND, StorageWatch, WatchedStorage},
};
use crate::{
    api::{
        acknowledgement::Acknowledgement,
        lock_status::{ForcedRelease, LockStatus},
        outcome::Outcome,
    },
    config::{Config, Switch},
    csv::{idempotency_key::Key, rows::Rows, schema::Schema},
    lock::{Cause, Lock, Outage},
    metrics::{Gauge, Meter},
    simulation::Simulation,
    storage::Storage,
};

/// The handle to one CSV. Clones share its queue.
#[derive(Clone)]
pub struct Appender {
    queue: Arc<Queue>,
    lock: Arc<Lock>,
    schema: Arc<Schema>,
    in_flight: InFlight,
    lock_changes: LockChanges,
    meter: Arc<Meter>,
    storage_watch: StorageWatch,
    replica: Arc<str>,
    path: Arc<Path>,
    keys_recorded: Arc<AtomicU64>,
    file_busy: Arc<AtomicBool>,
    file_fault: LastFileFault,
    batch_bytes_max: u64,
    wait_timeout: Duration,
}

impl Appender {
    pub(super) fn new(
        config: &Config,
        storage: &Storage,
        lock: Lock,
        meter: Arc<Meter>,
        storage_watch: StorageWatch,
    ) -> Self {
        Self {
            queue: Arc::new(Queue::new(Bounds { rows: config.queue_rows, bytes: config.queue_bytes })),
            lock: Arc::new(lock),
            schema: storage.schema().guarding_formulas(config.formula_guard == Switch::On).into(),
            in_flight: InFlight::default(),
            lock_changes: LockChanges::default(),
            meter,
            storage_watch,
            replica: config.replica_name().into(),
            path: storage.path().into(),
            keys_recorded: storage.keys_recorded(),
            file_busy: Arc::new(AtomicBool::new(false)),
            file_fault: LastFileFault::default(),
            batch_bytes_max: storage.batch_bytes_max(),
            wait_timeout: config.wait_timeout,
        }
    }

    /// The committer of this handle's queue. To be called on the runtime of the requests.
    pub(super) fn committer(&self, storage: Storage) -> Committer {
        let (replica, meter, file_busy) =
            (Arc::clone(&self.replica), Arc::clone(&self.meter), Arc::clone(&self.file_busy));
        let observers = Observers::new(replica, self.lock_changes.clone(), meter, file_busy, self.file_fault.clone());
        let storage = WatchedStorage::new(storage, &self.storage_watch);
        Committer::new(Arc::clone(&self.queue), Arc::clone(&self.lock), storage, observers)
    }

    /// The columns that rows must fit.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// What one request with this key may write to the file.
    pub(crate) fn file_room(&self, key: Option<&str>) -> FileRoom {
        FileRoom::new(self.batch_bytes_max, &self.schema, &self.replica, key)
    }

    /// This replica's name.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// How long a silent holder keeps the lock.
    pub fn lock_ttl(&self) -> Duration {
        self.lock.ttl()
    }

    /// The metrics of this replica.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn shared_meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock_changes(&self) -> &LockChanges {
        &self.lock_changes
    }

    pub(super) fn storage_watch(&self) -> &StorageWatch {
        &self.storage_watch
    }

    pub(super) fn queue_load(&self) -> QueueLoad {
        self.queue.load()
    }

    /// How long the rows that wait will take at the speed of the last second; `None` if none were written in it.
    pub fn time_to_drain(&self) -> Option<Duration> {
        let rows = self.queue_load().rows;
        let speed = self.meter().rows_per_s();
        (speed > 0.0).then(|| Duration::from_secs_f64((rows as f64 / speed).min(3600.0)))
    }

    /// Updates the gauges of queue and lock. To be called before the metrics are rendered.
    pub fn update_gauges(&self) {
        let QueueLoad { rows, bytes, oldest_age } = self.queue_load();
        let meter = self.meter();
        meter.set(Gauge::QueueRows, rows as f64);
        meter.set(Gauge::QueueBytes, bytes as f64);
        meter.set(Gauge::QueueAge, oldest_age.unwrap_or_default().as_secs_f64());
        let stuck_for = self.storage_stuck_for().unwrap_or_default();
        meter.set(Gauge::StorageStuck, stuck_for.as_secs_f64());
        meter.set(Gauge::LockBackendUp, f64::from(!self.lock.is_failing()));
    }

    /// The kind of the lock, and whether its backend answered the last call.
    pub fn lock_state(&self) -> (&'static str, bool) {
        (self.lock.kind(), !self.lock.is_failing())
    }

    /// Why the lock's backend is of no use; `None` if it answered the last call.
    pub fn lock_outage(&self) -> Option<Outage> {
        self.lock.outage()
    }

    /// Whether Redis rejects this replica for a reason that does not pass by itself, or has rejected it for as long as a request may wait.
    pub fn is_rejected_by_lock(&self) -> bool {
        self.lock.outage().is_some_and(|outage| {
            outage.cause == Cause::Rejected || outage.is_rejection() && outage.lasted >= self.wait_timeout
        })
    }

    /// How long the oldest call to the volume has not returned; `None` while the volume answers.
    pub fn storage_stuck_for(&self) -> Option<Duration> {
        self.storage_watch.stuck().map(|call| call.running_for)
    }

    /// Why appends are refused until an operator acts; `None` if they are not.
    pub fn file_fault(&self) -> Option<FileFault> {
        let is_lock_file_failing = self.lock.is_embedded() && self.lock.is_failing();
        self.file_fault.get().or(is_lock_file_failing.then_some(FileFault::LockFile))
    }

    /// Whether rows are being written to a volume that does not answer.
    pub fn is_stuck_writing(&self) -> bool {
        self.storage_watch.committer().stuck().is_some_and(|call| call.name == APPEND)
    }

    /// Appends rows, all or none, and returns when they are durable. If the future is dropped before their turn, they are not
    /// written; if it is dropped later, they are. With a key that is remembered, it returns the first acknowledgement.
    ///
    /// # Errors
    /// `AppendError::outcome` says whether the rows may be in the file.
    pub async fn append(
        &self,
        rows: Rows,
        simulation: Simulation,
        key: Option<Key>,
    ) -> Result<Acknowledgement, AppendError> {
        let arrived = Instant::now();
        if rows.cell_bytes() as u64 > self.batch_bytes_max {
            return Err(AppendError::BatchTooLarge(self.batch_bytes_max));
        }
        // First, because a refusal for another reason would say nothing about the request that has the key.
        let reserved_key = key.as_ref().map(|key| self.in_flight.reserve(key.hash)).transpose()?;
        // The lock has been of no use for the whole wait that this request could have: refuse it now instead of queueing it.
        // guard: fail_fast_when_unreachable: appends fail at once after a long outage of Redis
        if self.lock.failing_for().is_some_and(|lost| lost >= self.wait_timeout) {
            return Err(self.wait_error());
        }
        if self.storage_stuck_for().is_some_and(|stuck| stuck >= self.wait_timeout) {
            return Err(AppendError::StorageStuck(Outcome::NotWritten));
        }
        let keys_seen = self.keys_recorded.load(Ordering::Relaxed);
        let deadline = arrived + self.wait_timeout;
        let weight_bytes = size_of::<PendingAppend>() + rows.weight_bytes();
        let (answer, mut answered) = oneshot::channel();
        let admission = self.queue.admit(PendingAppend {
            sequence: 0,
            key,
            // guard: key_reserved_until_answer: no refusal of a repeat calls a row not written that is being written
            reserved_key,
            keys_seen,
            rows,
            weight_bytes,
            simulation,
            arrived,
            deadline,
            answer,
        })?;
        let result = match timeout_at(deadline, &mut answered).await {
            Ok(result) => result.unwrap_or(Err(AppendError::Internal(Outcome::Unknown))),
            Err(_) if admission.withdraw() => return Err(self.wait_error()),
            // The committer has taken the rows: only its answer says what happens to them.
            Err(_) => self.answer_unless_stuck(answered).await,
        };
        admission.settle();
        result
    }

    /// The holder of the lock and its waiters.
    ///
    /// # Errors
    /// `LockUnavailable` or `LockRejected`, if the lock's backend does not answer or refuses; `StorageStuck`, if the volume of an
    /// embedded lock does not answer.
    pub async fn lock_status(&self) -> Result<LockStatus, AppendError> {
        self.lock.status().await.ok_or_else(|| match self.storage_stuck_for() {
            Some(_) if self.lock.is_embedded() => AppendError::StorageStuck(Outcome::NotWritten),
            _ => AppendError::of_lock(&self.lock, self.wait_timeout),
        })
    }

    /// Takes the lock from its holder: records a newer token, so that the old holder can no longer write, then releases the lock.
    ///
    /// # Errors
    /// If the lock's backend or the file cannot be used; then the holder keeps the lock.
    pub async fn force_release(&self) -> Result<ForcedRelease, AppendError> {
        let mut done = self.queue.request_forced_release();
        match timeout(self.wait_timeout, &mut done).await {
            Ok(result) => result.unwrap_or(Err(AppendError::Draining)),
            Err(_) => self.answer_unless_stuck(done).await,
        }
    }

    /// Waits for the committer's answer to a request whose wait is over, but not for a call that is stuck: it may still do what it
    /// was asked for, so the outcome is unknown.
    async fn answer_unless_stuck<T>(
        &self,
        answered: oneshot::Receiver<Result<T, AppendError>>,
    ) -> Result<T, AppendError> {
        tokio::select! {
            result = answered => result.unwrap_or(Err(AppendError::Internal(Outcome::Unknown))),
            () = self.storage_watch.until_stuck() => Err(AppendError::StorageStuck(Outcome::Unknown)),
        }
    }

    /// Why an append did not get its turn in time.
    fn wait_error(&self) -> AppendError {
        if self.storage_stuck_for().is_some() {
            return AppendError::StorageStuck(Outcome::NotWritten);
        }
        if self.file_busy.load(Ordering::Relaxed) {
            return AppendError::FileBusy;
        }
        if self.lock.is_failing() {
            AppendError::of_lock(&self.lock, self.wait_timeout)
        } else {
            AppendError::WaitTimeout(self.wait_timeout)
        }
    }

    /// Whether appends are admitted.
    pub fn accepts_rows(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Admits no more appends. The committer writes those that wait, and ends.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Refuses the appends that still wait or sleep, at the end of the grace time.
    pub fn refuse_waiting(&self) {
        self.queue.close();
        self.queue.end_grace();
    }
}
