//! Opens lock and file as the settings say, and starts the committer.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::commit::{
    appender::Appender,
    committer::{Committer, Fatal},
    storage_watch::{OPEN, StorageWatch},
};
use crate::{
    api::lock_status::LockStatus,
    config::{Config, UnlockedVolume},
    lock::{self, Lock, Outage},
    metrics::{Gauge, Meter},
    progress::Progress,
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
    /// The committer's thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why the lock's status could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LockStatusError {
    /// The lock could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its backend does not answer, or refuses.
    #[error("{0}")]
    Outage(Outage),
    /// Its backend answers, but not with a status.
    #[error("the lock's status could not be read")]
    NoAnswer,
}

/// The running committer.
#[derive(Debug)]
pub struct CommitterHandle(oneshot::Receiver<Result<(), Fatal>>);

impl CommitterHandle {
    /// Waits until the committer has ended. It must not be called again after it has returned.
    ///
    /// # Errors
    /// Why the committer could not continue; `Ok` after a drain.
    pub async fn ended(&mut self) -> Result<(), Fatal> {
        (&mut self.0).await.unwrap_or(Err(Fatal::Panicked))
    }
}

/// Opens lock and file, and starts the committer on a thread of its own, because storage blocks. `meter` counts what it does.
///
/// # Errors
/// If the file or the lock cannot be used, or Redis rejects this replica. An unreachable Redis is no error: rows wait for it.
pub async fn open(config: &Config, meter: Arc<Meter>) -> Result<(Appender, CommitterHandle), OpenError> {
    // A random name is made once, for all uses.
    let config = &Config { replica: Some(config.replica_name()), ..config.clone() };
    let replica = config.replica_name();
    let storage_watch = StorageWatch::start();
    let lock_options = lock_options(config, &replica, &meter, storage_watch.committer());
    // A wrong Redis address or password is refused before a file is made.
    let redis = open_redis(config, lock_options.clone())?;
    if let Some(lock) = &redis {
        lock.check().await?;
    }
    let embedded = redis.is_none().then_some(lock_options);
    let (storage, embedded) = open_files(config, &replica, &meter, embedded, storage_watch.committer()).await?;
    let lock = redis.or(embedded).expect("one of them was opened");
    tracing::info!(replica, csv = %storage.path().display(), lock = lock.kind(), "opened");

    meter.set_build_info(&replica);
    meter.set(Gauge::QueueRowsLimit, config.queue_rows as f64);
    meter.set(Gauge::QueueBytesLimit, config.queue_bytes as f64);
    tokio::spawn(run_upkeep(Arc::downgrade(&meter)));
    storage_watch.start_probe(storage.path().to_owned())?;
    let appender = Appender::new(config, &storage, lock, meter, storage_watch);
    let committer = start(appender.committer(storage))?;
    Ok((appender, committer))
}

/// Opens the CSV, and the embedded lock if there is one, on a thread that may block: the volume may not answer yet.
async fn open_files(
    config: &Config,
    replica: &str,
    meter: &Arc<Meter>,
    embedded: Option<lock::Options>,
    progress: &Progress,
) -> Result<(Storage, Option<Lock>), OpenError> {
    let (options, progress) = (storage_options(config, replica, meter), progress.clone());
    let open = move || {
        let _running = progress.enter(OPEN);
        let storage = Storage::open(options)?;
        let lock = embedded.map(|options| open_embedded(options, storage.path())).transpose()?;
        Ok((storage, lock))
    };
    tokio::task::spawn_blocking(open).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

fn start(committer: Committer) -> std::io::Result<CommitterHandle> {
    let (ended, end) = oneshot::channel();
    // With a runtime of its own, its calls to Redis wake no other thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("committer".to_owned()).spawn(move || {
        // The receiver is gone if the server ended first.
        let _ = ended.send(runtime.block_on(committer.run()));
    })?;
    Ok(CommitterHandle(end))
}

/// Runs the meter's upkeep every second, until the meter is dropped.
async fn run_upkeep(meter: Weak<Meter>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while let Some(meter) = meter.upgrade() {
        meter.upkeep();
        drop(meter);
        second.tick().await;
    }
}

pub(super) fn storage_options(config: &Config, replica: &str, meter: &Arc<Meter>) -> storage::Options {
    storage::Options {
        path: config.csv.clone(),
        header: config.csv_header.clone(),
        replica: replica.to_owned(),
        journal_bytes: config.journal_bytes as u64,
        keys: config.idempotency_keys,
        accept_unlocked: config.unlocked_volume == UnlockedVolume::Accept,
        is_repair: false,
        meter: Arc::clone(meter),
    }
}

fn lock_options(config: &Config, replica: &str, meter: &Arc<Meter>, progress: &Progress) -> lock::Options {
    let tls =
        lock::TlsFiles { ca: config.redis_ca.clone(), cert: config.redis_cert.clone(), key: config.redis_key.clone() };
    let (replica, meter, progress) = (replica.to_owned(), Arc::clone(meter), progress.clone());
    lock::Options { replica, ttl: config.lock_ttl, tls, meter, progress }
}

/// Opens the lock without the file.
pub(super) fn open_lock(config: &Config, replica: &str) -> Result<Lock, OpenError> {
    let options = lock_options(config, replica, &Arc::default(), &Progress::default());
    match open_redis(config, options.clone())? {
        Some(lock) => Ok(lock),
        None => Ok(open_embedded(options, &storage::resolve(&config.csv)?)?),
    }
}

fn open_redis(config: &Config, options: lock::Options) -> Result<Option<Lock>, lock::OpenError> {
    config.redis.as_ref().map(|url| Lock::redis(url, &config.lock_key(), options)).transpose()
}

fn open_embedded(options: lock::Options, csv: &Path) -> Result<Lock, storage::OpenError> {
    let (path, file) = storage::open_lock_file(csv)?;
    Ok(Lock::embedded(path, file, options))
}

/// Reads the lock's status without opening the CSV.
///
/// # Errors
/// If the lock cannot be opened, or its backend does not answer.
pub async fn lock_status(config: &Config) -> Result<LockStatus, LockStatusError> {
    let lock = open_lock(config, &config.replica_name())?;
    // A Redis user that may only read is enough for this.
    if let Some(status) = lock.status_unlogged().await {
        return Ok(status);
    }
    lock.check().await.map_err(OpenError::from)?;
    Err(lock.outage().map_or(LockStatusError::NoAnswer, LockStatusError::Outage))
}
