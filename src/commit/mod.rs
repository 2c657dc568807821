//! Group commit: what waits becomes one batch, one hold of the lock, one sync.
//!
//! `Appender` is the handle that http calls, `Committer` the task behind it that owns lock and file. Only this room sees
//! both.

mod committer;
mod error;
mod in_flight;
mod lock_changes;
pub mod peer_events;
mod queue;
pub mod reading;
mod repair;

use std::{
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use crate::api::events::{Change, LockChange};
pub use crate::api::lock_status::{ForcedRelease as Forced, LockState, LockStatus};
pub use crate::commit::committer::Fatal;
use crate::commit::committer::{Committer, Watch};
pub use crate::commit::error::{AppendError, Outcome};
use crate::commit::in_flight::InFlight;
use crate::commit::lock_changes::Changes;
use crate::commit::queue::{Bounds, Queue, Waiting};
pub use crate::commit::repair::{RepairError, repair};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    api::acknowledgement::Ack,
    config::{Config, Switch, UnlockedVolume},
    csv::{idempotency_key::Key, rows::Rows, schema::Schema},
    lock::{self, Lock},
    metrics::{Level, Meter},
    simulation::Simulation,
    storage::{self, Storage},
};

/// Why lock or storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The CSV.
    #[error(transparent)]
    Storage(#[from] storage::OpenError),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] lock::OpenError),
    /// The thread that owns both.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The way in to one CSV, for as many tasks as want to.
#[derive(Clone)]
pub struct Appender {
    queue: Arc<Queue>,
    lock: Arc<Lock>,
    schema: Arc<Schema>,
    in_flight: InFlight,
    changes: Changes,
    meter: Arc<Meter>,
    replica: Arc<str>,
    path: Arc<Path>,
    keys_recorded: Arc<AtomicU64>,
    file_busy: Arc<AtomicBool>,
    batch_bytes_max: u64,
    wait_timeout: Duration,
}

/// How the committer ended: `Ok` after a drain, else what it could not go on from.
pub type Ended = oneshot::Receiver<Result<(), Fatal>>;

/// Opens lock and file, and starts the committer on a thread of its own: storage blocks, and only that thread. `meter` counts
/// what it does.
///
/// # Errors
/// If the file or the lock can't be used. A Redis that is away is no error: rows wait for it.
pub async fn open(config: &Config, meter: Arc<Meter>) -> Result<(Appender, Ended), OpenError> {
    let replica = config.replica_name();
    let options = storage_options(config, &replica, &meter);
    let lock_options = lock_options(config, &replica, &meter);
    // A wrong address is said before a file is made.
    let redis = open_redis(config, lock_options.clone())?;
    let storage = Storage::open(options)?;
    let lock = match redis {
        Some(lock) => lock,
        None => open_embedded(lock_options, storage.path())?,
    };
    tracing::info!(replica, csv = %storage.path().display(), lock = lock.kind(), "opened");

    let lock = Arc::new(lock);
    let queue = Arc::new(Queue::new(Bounds { rows: config.queue_rows, bytes: config.queue_bytes }));
    let file_busy = Arc::new(AtomicBool::new(false));
    let changes = Changes::default();
    meter.introduce(&replica);
    meter.set(Level::QueueRowsLimit, config.queue_rows as f64);
    meter.set(Level::QueueBytesLimit, config.queue_bytes as f64);
    tokio::spawn(keep_up(Arc::downgrade(&meter)));
    let name: Arc<str> = replica.into();
    let appender = Appender {
        queue: Arc::clone(&queue),
        lock: Arc::clone(&lock),
        schema: storage.schema().guarding_formulas(config.formula_guard == Switch::On).into(),
        in_flight: InFlight::default(),
        changes: changes.clone(),
        meter: Arc::clone(&meter),
        replica: Arc::clone(&name),
        path: storage.path().into(),
        keys_recorded: storage.keys_recorded(),
        file_busy: Arc::clone(&file_busy),
        batch_bytes_max: storage.batch_bytes_max(),
        wait_timeout: config.wait_timeout,
    };
    let watch = Watch { changes, meter, workers: tokio::runtime::Handle::current() };
    let committer = Committer::new(queue, lock, storage, name, file_busy, watch);
    let (ended, end) = oneshot::channel();
    // Its calls to Redis begin and end on its own thread, without others that would have to be woken for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("committer".to_owned()).spawn(move || {
        // Nobody listens any more if the server went first.
        let _ = ended.send(runtime.block_on(committer.run()));
    })?;
    Ok((appender, end))
}

/// For as long as anybody counts.
async fn keep_up(meter: Weak<Meter>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while let Some(meter) = meter.upgrade() {
        meter.upkeep();
        drop(meter);
        second.tick().await;
    }
}

fn storage_options(config: &Config, replica: &str, meter: &Arc<Meter>) -> storage::Options {
    storage::Options {
        path: config.csv.clone(),
        header: config.csv_header.clone(),
        replica: replica.to_owned(),
        journal_bytes: config.journal_bytes as u64,
        keys: config.idempotency_keys,
        accept_unlocked: config.unlocked_volume == UnlockedVolume::Accept,
        meter: Arc::clone(meter),
    }
}

fn lock_options(config: &Config, replica: &str, meter: &Arc<Meter>) -> lock::Options {
    let tls =
        lock::TlsFiles { ca: config.redis_ca.clone(), cert: config.redis_cert.clone(), key: config.redis_key.clone() };
    lock::Options { replica: replica.to_owned(), ttl: config.lock_ttl, tls, meter: Arc::clone(meter) }
}

/// The lock alone, for who does not append.
fn open_lock(config: &Config, replica: &str) -> Result<Lock, OpenError> {
    let options = lock_options(config, replica, &Arc::default());
    match open_redis(config, options.clone())? {
        Some(lock) => Ok(lock),
        None => Ok(open_embedded(options, &storage::resolve(&config.csv)?)?),
    }
}

fn open_redis(config: &Config, options: lock::Options) -> Result<Option<Lock>, lock::OpenError> {
    config.redis.as_ref().map(|url| Lock::redis(url, &config.lock_key(), options)).transpose()
}

fn open_embedded(options: lock::Options, csv: &Path) -> Result<Lock, lock::OpenError> {
    let mut path = csv.as_os_str().to_owned();
    path.push(".lock");
    Lock::embedded(Path::new(&path), options)
}

/// Who has the lock, asked without touching the CSV.
///
/// # Errors
/// If the lock can't be opened, or, within, is out of reach.
pub async fn lock_status(config: &Config) -> Result<Result<LockStatus, AppendError>, OpenError> {
    let replica = config.replica_name();
    let lock = open_lock(config, &replica)?;
    Ok(lock.status().await.ok_or(AppendError::LockUnavailable(config.wait_timeout)))
}

impl Appender {
    /// The columns that rows must fit.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// This replica's name.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// How long a silent holder keeps the lock.
    pub fn lock_ttl(&self) -> Duration {
        self.lock.ttl()
    }

    /// What this replica counts.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// How long what waits will take at the speed of the last second; none if nothing moved in it.
    pub fn time_to_drain(&self) -> Option<Duration> {
        let (rows, _, _) = self.queue.load();
        let speed = self.meter.rows_per_s();
        (speed > 0.0).then(|| Duration::from_secs_f64((rows as f64 / speed).min(3600.0)))
    }

    /// Sets what is not counted as it happens but looked up, for who is about to read the meter.
    pub fn measure(&self) {
        let (rows, bytes, oldest) = self.queue.load();
        self.meter.set(Level::QueueRows, rows as f64);
        self.meter.set(Level::QueueBytes, bytes as f64);
        self.meter.set(Level::QueueAge, oldest.unwrap_or_default().as_secs_f64());
        self.meter.set(Level::LockInReach, f64::from(!self.lock.is_unreachable()));
    }

    /// Which lock serves, and whether it is in reach as far as the last append knows.
    pub fn lock_state(&self) -> (&'static str, bool) {
        (self.lock.kind(), !self.lock.is_unreachable())
    }

    /// Appends rows, all or none, and returns when they are durable. Dropped before their turn, they are not written;
    /// dropped after, they are. With a key that is remembered, the answer is the one that it got before.
    ///
    /// # Errors
    /// `AppendError::outcome` says whether the rows may stand in the file.
    pub async fn append(&self, rows: Rows, simulation: Simulation, key: Option<Key>) -> Result<Ack, AppendError> {
        let arrived = Instant::now();
        if rows.cell_bytes() as u64 > self.batch_bytes_max {
            return Err(AppendError::BatchTooLarge(self.batch_bytes_max));
        }
        // Who comes after all that time need not wait as long once more: there is no pile-up, and it is told at once.
        // guard: said_at_once
        if self.lock.unreachable_for().is_some_and(|lost| lost >= self.wait_timeout) {
            return Err(self.why_it_waited());
        }
        let _entered = key.as_ref().map(|key| self.in_flight.enter(key.hash)).transpose()?;
        let keys_seen = self.keys_recorded.load(Ordering::Relaxed);
        let deadline = arrived + self.wait_timeout;
        let weight_bytes = size_of::<Waiting>() + rows.weight_bytes();
        let (answer, mut answered) = oneshot::channel();
        let ticket = self.queue.admit(Waiting {
            place: 0,
            key,
            keys_seen,
            rows,
            weight_bytes,
            simulation,
            arrived,
            deadline,
            answer,
        })?;
        let result = match timeout_at(deadline, &mut answered).await {
            Ok(result) => result,
            Err(_) if ticket.withdraw() => return Err(self.why_it_waited()),
            // Its turn has come: the answer will be the truth, and the only one.
            Err(_) => answered.await,
        };
        ticket.settle();
        result.unwrap_or(Err(AppendError::Internal(Outcome::Unknown)))
    }

    /// Who has the lock, and who waits for it.
    ///
    /// # Errors
    /// `LockUnavailable`, if the lock is out of reach.
    pub async fn lock_status(&self) -> Result<LockStatus, AppendError> {
        self.lock.status().await.ok_or(AppendError::LockUnavailable(self.wait_timeout))
    }

    /// Takes the lock from whoever has it: records a newer token, so that the old holder is fenced out, then hands over.
    ///
    /// # Errors
    /// If lock or file are out of reach; then nothing was taken from anybody.
    pub async fn force_release(&self) -> Result<Forced, AppendError> {
        self.queue.order_release().await.unwrap_or(Err(AppendError::Draining))
    }

    fn why_it_waited(&self) -> AppendError {
        if self.file_busy.load(Ordering::Relaxed) {
            return AppendError::FileBusy;
        }
        match (self.lock.is_unreachable(), self.lock.is_embedded()) {
            (false, _) => AppendError::WaitTimeout(self.wait_timeout),
            (true, false) => AppendError::LockUnavailable(self.wait_timeout),
            // The lock's file failed, and the log says how.
            (true, true) => AppendError::Internal(Outcome::NotWritten),
        }
    }

    /// Whether rows are let in at all.
    pub fn takes_rows(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Lets no more rows in. The committer finishes what waits, and ends.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Refuses what still waits or sleeps, since time is up.
    pub fn refuse_waiting(&self) {
        self.queue.close();
        self.queue.end_sleeps();
        self.queue.refuse_all(&AppendError::Draining);
    }
}
