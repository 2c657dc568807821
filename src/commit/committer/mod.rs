//! The protocol: acquire, hold, append, acknowledge, release.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::commit::{
    AppendError, Change, Forced, LockChange,
    lock_changes::Changes,
    queue::{Next, Queue, Waiting},
};
use crate::{
    api::acknowledgement::Ack,
    failpoints,
    lock::{Again, Lease, Lock, Place, Released, Wanted},
    metrics::{Count, Meter},
    simulation::Simulation,
    storage::{self, AppendEntry, EntryOutcome, IdleOutcome, KnownKey, Storage, Turn},
    time::ms,
};

/// The most that one hold of the lock writes, so that other replicas get their turn.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// A file that a stopped process keeps is tried for this long in one turn: then others may see for themselves.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);
/// After this long without work, a look at what others did, and a checkpoint.
const QUIET: Duration = Duration::from_secs(1);
/// How soon a lock that was out of reach is tried again while there is no work.
const OUT_OF_REACH: Duration = Duration::from_millis(250);
/// A place among those who wait for the lock is kept for so long while no rows have come.
const SOON: Duration = Duration::from_millis(30);
/// How soon a checkpoint's end is looked for while there is no work.
const CHECKPOINTING: Duration = Duration::from_millis(20);

/// The committer can't go on: what the file holds can no longer be known by this process.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A write or sync failed half way.
    #[error("a write or sync failed")]
    SyncFailed,
}

/// Owns lock and file, so that no client that hangs up can leave either behind.
pub(crate) struct Committer {
    queue: Arc<Queue>,
    lock: Arc<Lock>,
    storage: Storage,
    replica: Arc<str>,
    /// Whether the last turn found the file kept by another process.
    file_busy: Arc<AtomicBool>,
    /// What kept the last idle look from its work, so that it is logged once.
    idle_trouble: Option<String>,
    watch: Watch,
}

/// Where the committer tells how it fares.
pub(crate) struct Watch {
    pub(crate) changes: Changes,
    pub(crate) meter: Arc<Meter>,
    /// The threads of who waits for answers.
    pub(crate) workers: Handle,
}

/// The lock, ours for one batch or more.
struct Hold {
    lease: Lease,
    granted: Instant,
    /// Whether watchers know of it, and what they were told: milliseconds that the oldest row of its first batch waited, and whether
    /// it is held for a `sleep`.
    told: bool,
    waited: u64,
    slept: bool,
    /// Rows written under it so far.
    rows: usize,
    /// Whether several requests shared a batch of it.
    shared: bool,
    /// Who has a place before this one may share it. What a client sends next that had its batch for itself is told apart by its token.
    before: Option<u64>,
}

impl Hold {
    fn new(lease: Lease) -> Self {
        Self {
            lease,
            granted: Instant::now(),
            told: false,
            waited: 0,
            slept: false,
            rows: 0,
            shared: false,
            before: None,
        }
    }
}

/// What there is of the lock between two turns.
enum Kept {
    Nothing,
    Hold(Hold),
    /// A place among those who wait for it.
    Place(Place),
}

/// What becomes of the lock after a turn.
enum Leave {
    Release,
    Abandon,
    /// Redis lost its counter: the next token must be above the mark.
    Raise(u64),
}

impl Committer {
    pub(crate) fn new(
        queue: Arc<Queue>,
        lock: Arc<Lock>,
        storage: Storage,
        replica: Arc<str>,
        file_busy: Arc<AtomicBool>,
        watch: Watch,
    ) -> Self {
        Self { queue, lock, storage, replica, file_busy, idle_trouble: None, watch }
    }

    /// Serves until the queue is closed and empty.
    pub(crate) async fn run(mut self) -> Result<(), Fatal> {
        let end = self.serve().await;
        self.queue.close();
        self.queue.refuse_all(&AppendError::Draining);
        end?;
        match self.storage.close() {
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                tracing::warn!(error = %e, "no last checkpoint; the next start reads the journal");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        let mut quiet = self.look_idly().await?;
        let mut kept = Kept::Nothing;
        loop {
            let held = match kept {
                Kept::Hold(hold) => Some(hold),
                Kept::Place(place) => {
                    let soon = Instant::now() + SOON;
                    let wanted = || self.wants_lock() || self.awaits_rows() && Instant::now() < soon;
                    self.lock.acquire_from(place, wanted).await.map(Hold::new)
                }
                Kept::Nothing => match self.queue.next(quiet).await {
                    Next::End => return Ok(()),
                    Next::Quiet => {
                        quiet = self.look_idly().await?;
                        None
                    }
                    Next::Order => {
                        self.force_release().await?;
                        None
                    }
                    Next::Work => self.lock.acquire(|| self.wants_lock()).await.map(Hold::new),
                },
            };
            kept = match held {
                Some(hold) => self.use_hold(hold).await?,
                None => Kept::Nothing,
            };
        }
    }

    async fn use_hold(&mut self, hold: Hold) -> Result<Kept, Fatal> {
        let began = Instant::now();
        // Taken only now: what arrived while we waited for the lock shares this hold and this sync.
        match self.queue.take(BATCH_BYTES_MAX, hold.before.unwrap_or(u64::MAX)) {
            batch if batch.is_empty() => Ok(self.end(hold, Leave::Release).await),
            batch => {
                failpoints::hit("lock_granted");
                self.turn(hold, began, batch).await
            }
        }
    }

    fn wants_lock(&self) -> bool {
        !self.queue.is_empty() && !self.queue.has_orders()
    }

    fn awaits_rows(&self) -> bool {
        !self.queue.is_closed() && !self.queue.has_orders()
    }

    /// Where others wait, several clients that were just answered here have sent more by the time that it is our turn again: one call
    /// saved, and one wake-up. A turn that nobody needs is passed on at once, and no more are asked for until rows come.
    fn wanted_again(&self, hold: &Hold) -> Wanted {
        // guard: place_ahead
        let soon = hold.shared && self.awaits_rows();
        match (self.wants_lock(), soon) {
            (true, _) => Wanted::Now,
            (false, true) => Wanted::Soon,
            (false, false) => Wanted::Not,
        }
    }

    async fn turn(&mut self, mut hold: Hold, began: Instant, batch: Vec<Waiting>) -> Result<Kept, Fatal> {
        // A request with such wishes is alone in its batch.
        let Simulation { sleep, .. } = batch[0].simulation;
        if !hold.told {
            (hold.told, hold.waited, hold.slept) = (true, waited_ms(&batch[0], began), !sleep.is_zero());
            self.note(Change::Acquired, hold.lease.token(), |told| {
                (told.waited_ms, told.slept) = (Some(hold.waited), hold.slept);
            });
        }
        let batch = if sleep.is_zero() { Ok(batch) } else { self.sleep(&mut hold.lease, began, sleep, batch).await? };
        hold.before = None;
        let leave = match batch {
            Ok(batch) => self.write(&mut hold, began, sleep, batch)?,
            Err(leave) => leave,
        };
        // A checkpoint's last step is short, and the next holder would only wait for it at the file.
        self.maintain()?;
        // The answers are out: what becomes of the lock is nobody's to wait for.
        let may_go_on = matches!(leave, Leave::Release) && (hold.shared || self.goes_on(&hold));
        if may_go_on && hold.lease.may_stay().await {
            if hold.shared {
                // Nobody else waits. Where cores are scarce, threads that have rows go first: their rows share the next sync.
                std::thread::yield_now();
            }
            if self.goes_on(&hold) {
                return Ok(Kept::Hold(hold));
            }
        }
        Ok(self.end(hold, leave).await)
    }

    /// Whether more of what waits may be written under the same lease.
    fn goes_on(&self, hold: &Hold) -> bool {
        hold.before.is_some_and(|before| self.queue.goes_on(before)) && !hold.slept && !self.queue.has_orders()
    }

    /// Answers what is left of the lock, or has come of it at once.
    async fn end(&self, hold: Hold, leave: Leave) -> Kept {
        let (mut again, token, wanted) = (None, hold.lease.token(), self.wanted_again(&hold));
        let lease = hold.lease;
        let (change, other) = match leave {
            Leave::Release => {
                let released;
                (released, again) = lease.pass_on(wanted).await;
                left(released)
            }
            Leave::Raise(mark) => left(lease.release_and_raise(mark).await),
            Leave::Abandon => {
                lease.abandon().await;
                (Change::Abandoned, None)
            }
        };
        // A lock that nobody wanted any more when it came was never told of.
        if hold.told {
            self.note(change, token, |told| {
                (told.held_ms, told.rows, told.slept) = (Some(ms(hold.granted.elapsed())), Some(hold.rows), hold.slept);
                (told.other, told.waited_ms) = (other, Some(hold.waited));
                told.ttl_ms = (change == Change::Abandoned).then(|| ms(self.lock.ttl()));
            });
        }
        match again {
            Some(Again::Granted(lease)) => Kept::Hold(Hold::new(lease)),
            Some(Again::Waits(place)) => Kept::Place(place),
            None => Kept::Nothing,
        }
    }

    /// For who watches.
    fn note(&self, change: Change, token: u64, details: impl FnOnce(&mut LockChange)) {
        self.watch.changes.note(|| {
            let mut told = LockChange::now(change, &self.replica, token);
            details(&mut told);
            told
        });
    }

    /// Holds the lock before the write, its token recorded first. Answers the batch if it is still to be written.
    async fn sleep(
        &mut self,
        lease: &mut Lease,
        granted: Instant,
        sleep: Duration,
        batch: Vec<Waiting>,
    ) -> Result<Result<Vec<Waiting>, Leave>, Fatal> {
        let deadline = (Instant::now() + BUSY_PATIENCE).min(batch[0].deadline);
        // guard: token_before_sleep
        let fenced = with_turn(lease, granted, deadline, |turn| self.storage.fence(batch[0].key.as_ref(), turn));
        match fenced {
            Ok(None) => {}
            Ok(Some(known)) => {
                self.watch.meter.add(Count::Replays, matches!(known, KnownKey::Replayed(_)).into());
                self.answer(batch, |_| match &known {
                    KnownKey::Replayed(ack) => Ok(ack.clone()),
                    KnownKey::Reused => Err(AppendError::KeyReused),
                });
                return Ok(Err(Leave::Release));
            }
            Err(e) => return self.not_written(&e, batch, false).map(Err),
        }
        tokio::select! {
            () = tokio::time::sleep(sleep) => return Ok(Ok(batch)),
            // guard: work_is_told
            () = lease.lost() => {}
            () = self.queue.order() => self.force_release().await?,
            () = self.queue.sleeps_end() => {
                self.answer(batch, |_| Err(AppendError::Draining));
                return Ok(Err(Leave::Release));
            }
        }
        self.answer(batch, |_| Err(AppendError::LockLost));
        Ok(Err(Leave::Release))
    }

    /// Takes the lock from whoever has it, perhaps ourselves, for all who asked for that.
    async fn force_release(&mut self) -> Result<(), Fatal> {
        let orders = self.queue.take_orders();
        let forced = self.fence_and_force().await;
        match &forced {
            Ok(Forced { holder, token, .. }) => {
                tracing::warn!(?holder, token, "the lock was released by force");
                self.watch.meter.count(Count::Forced);
                self.note(Change::Forced, *token, |told| told.other.clone_from(holder));
            }
            Err(e) => tracing::error!(error = %e, "the lock was not released"),
        }
        let failed = forced == Err(AppendError::SyncFailed);
        for order in orders {
            let _ = order.send(forced.clone());
        }
        if failed { Err(Fatal::SyncFailed) } else { Ok(()) }
    }

    /// First the mark, so that the old holder can't write any more; then the hand-over.
    async fn fence_and_force(&mut self) -> Result<Forced, AppendError> {
        let away = || AppendError::LockUnavailable(BUSY_PATIENCE);
        let holder = self.lock.status().await.ok_or_else(away)?.holder;
        let mut token = self.lock.next_token().await.ok_or_else(away)?;
        let (now, lease) = (Instant::now(), uuid::Uuid::new_v4().as_u128());
        loop {
            let turn = Turn {
                token,
                lease,
                granted: now.into_std(),
                timestamp: "",
                deadline: (now + BUSY_PATIENCE).into_std(),
                still_held: &|| true,
            };
            // guard: fence_before_force
            match self.storage.fence(None, &turn) {
                Ok(_) => break,
                Err(storage::AppendError::Fenced { highest_token }) => {
                    token = highest_token + 1;
                    self.lock.raise(token).await;
                }
                Err(e) => return Err(AppendError::from(&e)),
            }
        }
        let released = self.lock.force().await.ok_or_else(away)?;
        Ok(Forced { released, holder, token })
    }

    /// Blocks this thread, and no other, until the batch is durable; answers as it goes.
    fn write(
        &mut self,
        hold: &mut Hold,
        granted: Instant,
        slept: Duration,
        mut batch: Vec<Waiting>,
    ) -> Result<Leave, Fatal> {
        let mut leave = Leave::Release;
        while !batch.is_empty() {
            let earliest = batch.iter().map(|waiting| waiting.deadline).min().unwrap_or_else(Instant::now);
            let patience = if slept.is_zero() { Instant::now() + BUSY_PATIENCE } else { earliest + slept };
            let entries: Vec<_> = batch.iter().map(|waiting| entry(waiting, granted)).collect();
            let deadline = patience.min(earliest + slept);
            let placed = with_turn(&hold.lease, granted, deadline, |turn| self.storage.append(&entries, turn));
            let placed = match placed {
                Ok(placed) => placed,
                Err(e) => {
                    hold.before = None;
                    return self.not_written(&e, batch, !slept.is_zero());
                }
            };
            self.file_busy.store(false, Ordering::Relaxed);
            assert!((1..=batch.len()).contains(&placed.len()), "storage answers some, in order");
            let rest = batch.split_off(placed.len());
            if batch[0].simulation.skip_release && matches!(placed[0], EntryOutcome::Written { .. }) {
                leave = Leave::Abandon;
            }
            failpoints::hit("answer_due");
            hold.before.get_or_insert_with(|| if batch.len() > 1 { u64::MAX } else { self.queue.next_place() });
            self.acknowledge(batch, placed, hold, granted);
            failpoints::hit("answered");
            batch = rest;
        }
        Ok(leave)
    }

    /// Rows that are certain not to have been written are tried again under a new lease, but for those that slept under this.
    fn not_written(&mut self, e: &storage::AppendError, batch: Vec<Waiting>, slept: bool) -> Result<Leave, Fatal> {
        let refusal = AppendError::from(e);
        self.file_busy.store(matches!(e, storage::AppendError::Busy), Ordering::Relaxed);
        let (leave, again) = match e {
            storage::AppendError::Sync(_) => {
                // Not ready any more before anybody hears why.
                self.queue.close();
                self.answer(batch, |_| Err(refusal.clone()));
                return Err(sync_failed(e));
            }
            storage::AppendError::Fenced { highest_token } => {
                self.watch.meter.count(Count::Fenced);
                (Leave::Raise(*highest_token), true)
            }
            storage::AppendError::LeaseLost | storage::AppendError::Busy => (Leave::Release, true),
            storage::AppendError::DiskFull(_)
            | storage::AppendError::Replaced
            | storage::AppendError::Unfit(_)
            | storage::AppendError::Before { .. } => (Leave::Release, false),
        };
        // guard: tried_again
        if again && !slept {
            tracing::info!(reason = %e, requests = batch.len(), "a batch was not written; trying again");
            self.watch.meter.count(Count::TriedAgain);
            self.queue.put_back(batch, &refusal);
        } else {
            tracing::error!(error = %e, requests = batch.len(), "a batch was not written");
            self.answer(batch, |_| Err(refusal.clone()));
        }
        Ok(leave)
    }

    fn acknowledge(&self, batch: Vec<Waiting>, placed: Vec<EntryOutcome>, hold: &mut Hold, granted: Instant) {
        let (held, token) = (ms(granted.elapsed()), hold.lease.token());
        let sync = self.storage.last_sync();
        hold.rows += self.count(&batch, &placed, granted, sync);
        hold.shared |= batch.len() > 1;
        let mut placed = placed.into_iter();
        self.answer(batch, |waiting| match placed.next().expect("one for each") {
            EntryOutcome::Refused(refusal) => Err(refusal.into()),
            EntryOutcome::Replayed(ack) => Ok(ack),
            EntryOutcome::Written { offset, bytes, held_ms } => Ok(Ack {
                rows: waiting.rows.len(),
                offset,
                bytes,
                token,
                replica: Arc::clone(&self.replica),
                waited_ms: waited_ms(waiting, granted),
                held_ms: held_ms.unwrap_or(held),
                released: !waiting.simulation.skip_release,
                replayed: false,
                sync,
            }),
        });
    }

    /// Answers how many rows were written.
    fn count(&self, batch: &[Waiting], placed: &[EntryOutcome], granted: Instant, sync: Duration) -> usize {
        let (mut rows, mut written_bytes, mut waits, mut replays) = (0, 0, Vec::with_capacity(batch.len()), 0);
        for (waiting, placed) in batch.iter().zip(placed) {
            match placed {
                EntryOutcome::Written { bytes, .. } => {
                    rows += waiting.rows.len();
                    written_bytes += bytes;
                    waits.push(granted.saturating_duration_since(waiting.arrived));
                }
                EntryOutcome::Replayed(_) => replays += 1,
                EntryOutcome::Refused(_) => {}
            }
        }
        let meter = &self.watch.meter;
        meter.add(Count::Replays, replays);
        if rows > 0 {
            meter.batch(rows, written_bytes, &waits, sync);
        }
        rows
    }

    /// Who has hung up needs no answer: a row that was taken stands all the same.
    ///
    /// Sent by a task of the runtime that waits for it: woken on its own threads, rather than from outside by a system call each.
    fn answer(&self, batch: Vec<Waiting>, mut with: impl FnMut(&Waiting) -> Result<Ack, AppendError>) {
        let answers: Vec<_> = batch.into_iter().map(|waiting| (with(&waiting), waiting)).collect();
        self.watch.workers.spawn(async move {
            for (answer, waiting) in answers {
                let _ = waiting.answer.send(answer);
            }
        });
    }

    fn maintain(&mut self) -> Result<(), Fatal> {
        match self.storage.maintain() {
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                tracing::warn!(error = %e, "a checkpoint was not finished; the next one will be");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Learns what others did while nobody asks for anything here; answers when to do so again.
    async fn look_idly(&mut self) -> Result<Duration, Fatal> {
        self.lock.probe().await;
        let mut looked = self.storage.idle_refresh();
        if let Ok(IdleOutcome::NeedsRepair) = looked {
            let patience = Instant::now() + QUIET;
            if let Some(lease) = self.lock.acquire(|| self.queue.is_empty() && Instant::now() < patience).await {
                looked = self.storage.recover((Instant::now() + BUSY_PATIENCE).into_std()).map(|()| IdleOutcome::Clean);
                lease.release().await;
            }
        }
        match looked {
            Ok(idle) => {
                self.idle_trouble = None;
                Ok(match idle {
                    IdleOutcome::Checkpointing => CHECKPOINTING,
                    _ if self.lock.is_out_of_reach() => OUT_OF_REACH,
                    _ => QUIET,
                })
            }
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                let trouble = e.to_string();
                if self.idle_trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(error = %e, "cannot look at the files");
                }
                self.idle_trouble = Some(trouble);
                Ok(QUIET)
            }
        }
    }
}

fn left(released: Released) -> (Change, Option<String>) {
    match released {
        Released::Free => (Change::Released, None),
        Released::HandedOver(to) => (Change::HandedOver, Some(to)),
        Released::Lost => (Change::Lost, None),
    }
}

fn sync_failed(e: &storage::AppendError) -> Fatal {
    tracing::error!(error = %e, "what the file holds is in doubt");
    Fatal::SyncFailed
}

/// Does something with the turn that a lease grants.
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

fn entry(waiting: &Waiting, granted: Instant) -> AppendEntry<'_> {
    AppendEntry {
        rows: &waiting.rows,
        key: waiting.key.as_ref(),
        keys_seen: waiting.keys_seen,
        waited_ms: waited_ms(waiting, granted),
        released: !waiting.simulation.skip_release,
    }
}

fn waited_ms(waiting: &Waiting, granted: Instant) -> u64 {
    ms(granted.saturating_duration_since(waiting.arrived))
}
