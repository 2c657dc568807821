//! What others see of the committer's work: metrics, changes of the lock, answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::runtime::Handle;

use crate::commit::{
    error::AppendError,
    file_fault::{FileFault, LastFileFault},
    lock_changes::LockChanges,
    queue::PendingAppend,
};
use crate::{
    api::{
        acknowledgement::Acknowledgement,
        events::{Change, LockChange},
    },
    fencing::FencingToken,
    metrics::Meter,
    storage,
};

/// Where the committer reports what it does.
pub(crate) struct Observers {
    replica: Arc<str>,
    lock_changes: LockChanges,
    meter: Arc<Meter>,
    file_busy: Arc<AtomicBool>,
    file_fault: LastFileFault,
    /// The runtime of the tasks that wait for answers.
    request_runtime: Handle,
}

impl Observers {
    /// To be called on the runtime of the requests.
    pub(crate) fn new(
        replica: Arc<str>,
        lock_changes: LockChanges,
        meter: Arc<Meter>,
        file_busy: Arc<AtomicBool>,
        file_fault: LastFileFault,
    ) -> Self {
        Self { replica, lock_changes, meter, file_busy, file_fault, request_runtime: Handle::current() }
    }

    pub(super) fn replica(&self) -> &Arc<str> {
        &self.replica
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Sets whether the last turn found the file locked by another process.
    pub(super) fn set_file_busy(&self, busy: bool) {
        self.file_busy.store(busy, Ordering::Relaxed);
    }

    /// What an operator must repair before rows are accepted again.
    pub(super) fn file_fault(&self) -> Option<FileFault> {
        self.file_fault.get()
    }

    /// Notes the fault behind a failed call, if waiting does not fix it.
    pub(super) fn note_file_fault(&self, e: &storage::AppendError) {
        if let fault @ Some(_) = FileFault::of(e) {
            self.set_file_fault(fault);
        }
    }

    /// Sets that, and logs a change.
    pub(super) fn set_file_fault(&self, fault: Option<FileFault>) {
        if fault == self.file_fault.get() {
            return;
        }
        match fault {
            Some(fault) => tracing::error!(
                csv = fault.describe(),
                "rows are refused and this replica is not ready until an operator has repaired the CSV"
            ),
            None => tracing::info!("the CSV can be written again"),
        }
        self.file_fault.set(fault);
    }

    /// Records a change of the lock for subscribers of `/events`.
    pub(super) fn lock_changed(&self, change: Change, token: FencingToken, details: impl FnOnce(&mut LockChange)) {
        let mut event = LockChange::now(change, &self.replica, token);
        details(&mut event);
        self.lock_changes.record(event);
    }

    /// Answers a batch, ignoring disconnected clients: a row that was written stays written.
    ///
    /// One task on the runtime of the requests sends all answers: sent from this thread, each would wake a worker by a system call.
    /// It takes 0.95 times the processor time per row (`benches/RESULTS.md`, "The service").
    pub(super) fn answer(
        &self,
        batch: Vec<PendingAppend>,
        mut answer: impl FnMut(&PendingAppend) -> Result<Acknowledgement, AppendError>,
    ) {
        let answers: Vec<_> = batch.into_iter().map(|append| (answer(&append), append)).collect();
        self.request_runtime.spawn(async move {
            for (answer, append) in answers {
                append.answer(answer);
            }
        });
    }
}
