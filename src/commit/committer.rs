//! The protocol: acquire, hold, append, acknowledge, release.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    AppendError,
    queue::{Queue, Waiting},
};
use crate::{
    lock::{Lease, Lock},
    record::{Ack, Record, Simulation},
    schema::InvalidField,
    storage::{self, Storage, Turn, Written},
};

/// The most that one hold of the lock writes, so that other replicas get their turn.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// The committer can't go on: what the file holds can no longer be known by this process.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A write or sync failed half way.
    #[error("a write or sync failed")]
    SyncFailed,
}

/// Owns lock and file, so that no client that hangs up can leave either behind.
pub(super) struct Committer {
    queue: Arc<Queue>,
    lock: Arc<Lock>,
    storage: Storage,
    replica: String,
}

impl Committer {
    pub(super) fn new(queue: Arc<Queue>, lock: Arc<Lock>, storage: Storage, replica: String) -> Self {
        Self { queue, lock, storage, replica }
    }

    /// Serves until the queue is closed and empty.
    pub(super) async fn run(mut self) -> Result<(), Fatal> {
        let end = self.serve().await;
        self.queue.close();
        self.queue.refuse_all(&AppendError::Draining);
        end
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        while self.queue.has_work().await {
            let Some(lease) = self.lock.acquire(|| !self.queue.is_empty()).await else { continue };
            let granted = Instant::now();
            // Taken only now: what arrived while we waited for the lock shares this hold and this sync.
            match self.queue.take(BATCH_BYTES_MAX) {
                batch if batch.is_empty() => lease.release().await,
                batch => self.turn(lease, granted, batch).await?,
            }
        }
        Ok(())
    }

    async fn turn(&mut self, mut lease: Lease, granted: Instant, batch: Vec<Waiting>) -> Result<(), Fatal> {
        // A request with such wishes is alone in its batch.
        let Simulation { sleep, skip_release } = batch[0].simulation;
        if !sleep_under(&mut lease, sleep).await {
            answer_all(batch, &AppendError::LockLost);
            lease.release().await;
            return Ok(());
        }
        let written = self.write(&lease, sleep, &batch);
        let held = granted.elapsed();
        let stands = written.as_ref().is_ok_and(|places| places.iter().all(Result::is_ok));
        let released = !(skip_release && stands);
        let token = lease.token();
        // The answer goes out as soon as the rows are durable; what becomes of the lock is nobody's to wait for.
        let end = self.answer(batch, written, token, granted, held, released);
        if released {
            lease.release().await;
        } else {
            lease.abandon().await;
        }
        end
    }

    /// Blocks this thread, and no other, until the batch is durable.
    fn write(
        &mut self,
        lease: &Lease,
        sleep: Duration,
        batch: &[Waiting],
    ) -> Result<Vec<Result<Written, InvalidField>>, storage::AppendError> {
        let timestamp = format!("{:.3}", jiff::Timestamp::now());
        let earliest = batch.iter().map(|waiting| waiting.deadline).min().unwrap_or_else(Instant::now);
        let turn = Turn {
            token: lease.token(),
            timestamp: &timestamp,
            deadline: (earliest + sleep).into_std(),
            still_held: &|| lease.is_held(),
        };
        let rows: Vec<&[Record]> = batch.iter().map(|waiting| waiting.rows.as_slice()).collect();
        self.storage.append(&rows, &turn)
    }

    fn answer(
        &self,
        batch: Vec<Waiting>,
        written: Result<Vec<Result<Written, InvalidField>>, storage::AppendError>,
        token: u64,
        granted: Instant,
        held: Duration,
        released: bool,
    ) -> Result<(), Fatal> {
        let places = match written {
            Ok(places) => places,
            Err(e) => {
                tracing::error!(error = %e, token, requests = batch.len(), "a batch was not acknowledged");
                answer_all(batch, &AppendError::from(&e));
                return if matches!(e, storage::AppendError::Sync(_)) { Err(Fatal::SyncFailed) } else { Ok(()) };
            }
        };
        assert_eq!(places.len(), batch.len(), "storage answers every request");
        for (waiting, place) in batch.into_iter().zip(places) {
            let waited = granted.saturating_duration_since(waiting.arrived);
            let ack = place.map_err(AppendError::from).map(|Written { offset, bytes }| Ack {
                rows: waiting.rows.len(),
                offset,
                bytes,
                token,
                replica: self.replica.clone(),
                waited_ms: ms(waited),
                held_ms: ms(held),
                released,
            });
            // Who has hung up needs no answer: its row was taken, and stands.
            let _ = waiting.answer.send(ack);
        }
        Ok(())
    }
}

/// False if the lease was lost meanwhile.
async fn sleep_under(lease: &mut Lease, sleep: Duration) -> bool {
    if sleep.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(sleep) => true,
        () = lease.lost() => false,
    }
}

fn answer_all(batch: Vec<Waiting>, error: &AppendError) {
    for waiting in batch {
        let _ = waiting.answer.send(Err(error.clone()));
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
