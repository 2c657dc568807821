//! The protocol of one turn: acquire the lock, hold it, append a batch, acknowledge it, release the lock.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::commit::{
    committer::{
        Committer, FILE_LOCK_WAIT, Fatal,
        lease_policy::{Hold, ReleaseMode, Retained},
        sync_failed,
    },
    error::AppendError,
    queue::{PendingAppend, QueueEvent},
    storage_watch::APPEND,
};
use crate::{
    api::{acknowledgement::Acknowledgement, events::Change},
    failpoints,
    lock::Lease,
    metrics::Counter,
    storage::{self, AppendEntry, EntryOutcome, KnownKey, Storage, Turn},
    time::ms,
};

/// The most that one batch writes, so that other replicas get their turn.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// How the hold before the write ended.
enum BeforeWrite {
    /// The batch is to be appended now.
    Append(Vec<PendingAppend>),
    /// The batch is answered or back in the queue.
    Done(ReleaseMode),
}

impl Committer {
    /// Serves one turn after the other until the queue is closed and empty.
    pub(super) async fn serve(&mut self) -> Result<(), Fatal> {
        let mut idle_after = self.idle_refresh().await?;
        let mut retained = Retained::Nothing;
        loop {
            let hold = match retained {
                Retained::Hold(hold) => Some(hold),
                Retained::Ticket(ticket) => {
                    self.storage.end_hold();
                    self.acquire_queued(ticket).await
                }
                Retained::Nothing => match self.next_event(idle_after).await {
                    QueueEvent::Rows => self.acquire().await,
                    QueueEvent::ForcedRelease => {
                        self.force_release().await?;
                        None
                    }
                    QueueEvent::Idle => {
                        idle_after = self.idle_refresh().await?;
                        None
                    }
                    QueueEvent::Closed => return Ok(()),
                },
            };
            retained = match hold {
                Some(hold) => self.turn(hold).await?,
                None => Retained::Nothing,
            };
        }
    }

    /// One turn, from the grant of the lock to its release.
    async fn turn(&mut self, mut hold: Hold) -> Result<Retained, Fatal> {
        let granted = Instant::now();
        // The batch is taken after the grant: rows that arrived during the wait share this hold and its sync.
        let batch = self.queue.take(BATCH_BYTES_MAX, hold.take_limit());
        if batch.is_empty() {
            return Ok(self.release(hold, ReleaseMode::Release).await);
        }
        failpoints::hit("lock_granted");
        self.announce_grant(&mut hold, &batch[0], granted);
        let mode = match self.hold_before_write(&mut hold, granted, batch).await? {
            BeforeWrite::Append(batch) => self.append(&mut hold, granted, batch)?,
            BeforeWrite::Done(mode) => mode,
        };
        // The last step of a checkpoint is short, and the next holder would only wait for it at the file.
        self.maintain()?;
        // The answers are sent: no client waits for what happens to the lease.
        if matches!(mode, ReleaseMode::Release) && self.keeps_lease(&hold).await {
            return Ok(Retained::Hold(hold));
        }
        Ok(self.release(hold, mode).await)
    }

    /// Reports the grant to subscribers, once for each hold.
    fn announce_grant(&self, hold: &mut Hold, first: &PendingAppend, granted: Instant) {
        if !hold.announced {
            (hold.announced, hold.waited_ms) = (true, waited_ms(first, granted));
            // A request that sleeps is alone in its batch.
            hold.slept = !first.simulation.sleep.is_zero();
            self.observers.lock_changed(Change::Acquired, hold.lease.token(), |event| {
                (event.waited_ms, event.slept) = (Some(hold.waited_ms), hold.slept);
            });
        }
    }

    /// Holds the lock for the `sleep` of the batch, with its token recorded first.
    async fn hold_before_write(
        &mut self,
        hold: &mut Hold,
        granted: Instant,
        batch: Vec<PendingAppend>,
    ) -> Result<BeforeWrite, Fatal> {
        let (sleep, lease) = (batch[0].simulation.sleep, &mut hold.lease);
        if sleep.is_zero() {
            return Ok(BeforeWrite::Append(batch));
        }
        let deadline = (Instant::now() + FILE_LOCK_WAIT).min(batch[0].deadline);
        // guard: token_before_sleep: the token is recorded before a row sleeps
        let fenced = with_turn(lease, granted, deadline, |turn| {
            self.storage.call("fence", |storage| storage.fence(batch[0].key.as_ref(), turn))
        });
        match fenced {
            Ok(None) => {}
            Ok(Some(known)) => {
                self.observers.meter().add(Counter::Replays, matches!(known, KnownKey::Replayed(_)).into());
                self.observers.answer(batch, |_| match &known {
                    KnownKey::Replayed(ack) => Ok(ack.clone()),
                    KnownKey::Reused => Err(AppendError::KeyReused),
                });
                return Ok(BeforeWrite::Done(ReleaseMode::Release));
            }
            Err(e) => return self.handle_not_written(&e, batch, false).map(BeforeWrite::Done),
        }
        // Other replicas read while this one sleeps.
        self.storage.end_hold();
        let refusal = tokio::select! {
            () = tokio::time::sleep(sleep) => return Ok(BeforeWrite::Append(batch)),
            // guard: lost_lease_interrupts_sleep: a lost lease ends the sleep of a row
            () = lease.lost() => AppendError::LockLost,
            () = self.queue.forced_release() => AppendError::LockLost,
            () = self.queue.grace_over() => AppendError::Draining,
        };
        self.observers.answer(batch, |_| Err(refusal.clone()));
        // After the answer, because Redis may not answer.
        self.force_release().await?;
        Ok(BeforeWrite::Done(ReleaseMode::Release))
    }

    /// Blocks this thread, and no other, until the batch is durable. A batch that does not fit one record of the journal takes
    /// several; each part is acknowledged as soon as it is durable.
    fn append(
        &mut self,
        hold: &mut Hold,
        granted: Instant,
        mut batch: Vec<PendingAppend>,
    ) -> Result<ReleaseMode, Fatal> {
        let slept = batch[0].simulation.sleep;
        let mut mode = ReleaseMode::Release;
        while !batch.is_empty() {
            let give_up = give_up_at(&batch, slept);
            let deadline = give_up.min(Instant::now() + FILE_LOCK_WAIT);
            let entries: Vec<_> = batch.iter().map(|append| entry(append, granted)).collect();
            let outcomes = with_turn(&hold.lease, granted, deadline, |turn| {
                self.storage.call(APPEND, |storage| storage.append(&entries, turn))
            });
            let outcomes = match outcomes {
                Ok(outcomes) => outcomes,
                // A batch that slept cannot be tried again later, so it uses up its whole wait now.
                Err(storage::AppendError::Busy) if !slept.is_zero() && self.may_wait(give_up) => continue,
                Err(e) => {
                    hold.forbid_continuing();
                    return self.handle_not_written(&e, batch, !slept.is_zero());
                }
            };
            self.observers.set_file_busy(false);
            self.observers.set_file_fault(None);
            assert!((1..=batch.len()).contains(&outcomes.len()), "storage answers some of the entries, in order");
            let rest = batch.split_off(outcomes.len());
            if batch[0].simulation.skip_release && matches!(outcomes[0], EntryOutcome::Written { .. }) {
                mode = ReleaseMode::Abandon;
            }
            failpoints::hit("answer_due");
            hold.limit_continuing(batch.len(), &self.queue);
            self.acknowledge(batch, outcomes, hold, granted);
            failpoints::hit("answered");
            batch = rest;
        }
        Ok(mode)
    }

    /// Whether a batch that slept may go on waiting for a file that another process has locked.
    fn may_wait(&self, give_up: Instant) -> bool {
        // guard: no_wait_after_grace: a batch that waits for a busy file when the grace time ends is answered
        !self.queue.is_grace_over() && Instant::now() < give_up
    }

    /// Requeues appends that are certain not to be written, for a turn under a new lease. Refuses those that already slept under
    /// this lease, and all of them where a retry is of no use.
    fn handle_not_written(
        &mut self,
        e: &storage::AppendError,
        batch: Vec<PendingAppend>,
        slept: bool,
    ) -> Result<ReleaseMode, Fatal> {
        let refusal = match e {
            // It would wait on.
            storage::AppendError::Busy if self.queue.is_grace_over() => AppendError::Draining,
            _ => AppendError::from(e),
        };
        self.observers.set_file_busy(matches!(e, storage::AppendError::Busy));
        self.observers.note_file_fault(e);
        let (mode, retry) = match e {
            storage::AppendError::Sync(_) => {
                // Readiness ends before a client learns why.
                self.queue.close();
                self.observers.answer(batch, |_| Err(refusal.clone()));
                return Err(sync_failed(e));
            }
            storage::AppendError::Fenced { highest_token } => {
                self.observers.meter().count(Counter::FencedWrites);
                (ReleaseMode::RaiseToken(*highest_token), true)
            }
            storage::AppendError::LeaseLost
            | storage::AppendError::LockLost(_)
            | storage::AppendError::SyncFailedElsewhere
            | storage::AppendError::Busy => (ReleaseMode::Release, true),
            storage::AppendError::DiskFull(_)
            | storage::AppendError::Replaced
            | storage::AppendError::Unfit(_)
            | storage::AppendError::Before { .. }
            | storage::AppendError::Interrupted(_)
            | storage::AppendError::Unknown(_) => (ReleaseMode::Release, false),
        };
        // guard: retried: a batch that was fenced or lost its lease is tried again
        if retry && !slept {
            tracing::info!(reason = %e, requests = batch.len(), "a batch was not written; trying again");
            self.observers.meter().count(Counter::BatchRetries);
            self.queue.requeue(batch, &refusal);
        } else {
            tracing::error!(error = %e, requests = batch.len(), "a batch was not written");
            self.observers.answer(batch, |_| Err(refusal.clone()));
        }
        Ok(mode)
    }

    fn acknowledge(&self, batch: Vec<PendingAppend>, outcomes: Vec<EntryOutcome>, hold: &mut Hold, granted: Instant) {
        let (held, token) = (ms(granted.elapsed()), hold.lease.token());
        let sync = self.storage.last_sync();
        hold.rows += self.count(&batch, &outcomes, granted, sync);
        let mut outcomes = outcomes.into_iter();
        self.observers.answer(batch, |append| match outcomes.next().expect("one for each append") {
            EntryOutcome::Refused(refusal) => Err(refusal.into()),
            EntryOutcome::Replayed(ack) => Ok(ack),
            EntryOutcome::Written { offset, bytes, held_ms } => Ok(Acknowledgement {
                rows: append.rows.len(),
                offset,
                bytes,
                token,
                replica: Arc::clone(self.observers.replica()),
                waited_ms: waited_ms(append, granted),
                held_ms: held_ms.unwrap_or(held),
                released: !append.simulation.skip_release,
                replayed: false,
                sync,
            }),
        });
    }

    /// Counts a durable batch, and returns the number of its rows.
    fn count(&self, batch: &[PendingAppend], outcomes: &[EntryOutcome], granted: Instant, sync: Duration) -> usize {
        let (mut rows, mut written_bytes, mut waits, mut replays) = (0, 0, Vec::with_capacity(batch.len()), 0);
        for (append, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                EntryOutcome::Written { bytes, .. } => {
                    rows += append.rows.len();
                    written_bytes += bytes;
                    waits.push(granted.saturating_duration_since(append.arrived));
                }
                EntryOutcome::Replayed(_) => replays += 1,
                EntryOutcome::Refused(_) => {}
            }
        }
        let meter = self.observers.meter();
        meter.add(Counter::Replays, replays);
        if rows > 0 {
            meter.count_batch(rows, written_bytes, &waits, sync);
        }
        rows
    }

    fn maintain(&mut self) -> Result<(), Fatal> {
        match self.storage.call("maintain", Storage::maintain) {
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                tracing::warn!(error = %e, "a checkpoint was not finished; the next one will be");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// When a batch stops waiting for a file that another process has locked.
fn give_up_at(batch: &[PendingAppend], slept: Duration) -> Instant {
    batch.iter().map(|append| append.deadline).min().unwrap_or_else(Instant::now) + slept
}

/// Calls `act` with the turn that a lease grants.
fn with_turn<T>(lease: &Lease, granted: Instant, deadline: Instant, act: impl FnOnce(&Turn<'_>) -> T) -> T {
    act(&Turn {
        token: lease.token(),
        lease: lease.id(),
        granted: granted.into_std(),
        timestamp: &format!("{:.3}", jiff::Timestamp::now()),
        deadline: deadline.into_std(),
        still_held: &|| lease.is_held(),
    })
}

fn entry(append: &PendingAppend, granted: Instant) -> AppendEntry<'_> {
    AppendEntry {
        rows: &append.rows,
        key: append.key.as_ref(),
        keys_seen: append.keys_seen,
        waited_ms: waited_ms(append, granted),
        released: !append.simulation.skip_release,
    }
}

fn waited_ms(append: &PendingAppend, granted: Instant) -> u64 {
    ms(granted.saturating_duration_since(append.arrived))
}
