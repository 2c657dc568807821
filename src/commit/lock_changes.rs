//! Changes of the lock, collected for `/events`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{api::events::LockChange, time::unix_ms};

/// The most changes that are kept until they are sent; the oldest are dropped.
const PENDING_MAX: usize = 32;
/// Changes that are older when the first subscriber comes are not sent: the live page shows a minute.
pub(super) const KNOWN_FOR_MS: u64 = 60_000;
/// A change that is sent this late waited for a subscriber.
const LATE_MS: u64 = 1000;

#[derive(Debug, Default)]
struct Pending {
    changes: VecDeque<LockChange>,
    skipped: u64,
}

/// The newest changes that were not sent yet. They are collected without a subscriber, too, so that the first one learns of them.
#[derive(Debug, Clone, Default)]
pub(super) struct LockChanges(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    subscribed: AtomicBool,
    pending: Mutex<Pending>,
}

impl LockChanges {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().expect("no holder of the changes panics")
    }

    /// Sets whether any replica has a subscriber.
    pub(super) fn set_subscribed(&self, subscribed: bool) {
        self.0.subscribed.store(subscribed, Ordering::Relaxed);
    }

    /// Records a change.
    pub(super) fn record(&self, change: LockChange) {
        let mut pending = self.pending();
        if pending.changes.len() == PENDING_MAX {
            pending.changes.pop_front();
            // Without a subscriber nobody misses it.
            pending.skipped += u64::from(self.0.subscribed.load(Ordering::Relaxed));
        }
        pending.changes.push_back(change);
    }

    /// Takes the recorded changes of the last minute, in order.
    pub(super) fn take(&self) -> Vec<LockChange> {
        let Pending { changes, skipped } = std::mem::take(&mut *self.pending());
        let now = unix_ms();
        let aged = changes.into_iter().map(|mut change| {
            let age_ms = now.saturating_sub(change.at_ms);
            change.age_ms = if age_ms < LATE_MS { 0 } else { age_ms };
            change
        });
        let mut changes: Vec<_> = aged.filter(|change| change.age_ms < KNOWN_FOR_MS).collect();
        if let Some(first) = changes.first_mut() {
            first.skipped = skipped;
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::events::Change;

    #[test]
    fn newest_changes_are_kept_and_missed_by_subscribers_only() {
        let changes = LockChanges::default();
        let record = |token| changes.record(LockChange::now(Change::Acquired, "r", token));
        for (subscribed, skipped) in [(false, 0), (true, 68)] {
            changes.set_subscribed(subscribed);
            (0..100).for_each(record);
            let taken = changes.take();
            assert_eq!((taken.len(), taken[0].skipped, taken[0].token, taken[31].token), (32, skipped, 68, 99));
            assert_eq!(changes.take(), []);
        }
    }

    #[test]
    fn late_change_has_its_age_and_a_stale_one_is_dropped() {
        let changes = LockChanges::default();
        for (token, age_ms) in [(1, 61_000), (2, 30_000), (3, 0)] {
            let now = LockChange::now(Change::Acquired, "r", token);
            changes.record(LockChange { at_ms: now.at_ms - age_ms, ..now });
        }
        let taken: Vec<_> = changes.take().iter().map(|change| (change.token, change.age_ms / 1000)).collect();
        assert_eq!(taken, [(2, 30), (3, 0)]);
    }
}
