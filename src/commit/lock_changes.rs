//! Changes of the lock, collected for `/events`.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use crate::api::events::LockChange;

/// The most changes that are kept until they are sent; the oldest are dropped.
const PENDING_MAX: usize = 32;

#[derive(Debug, Default)]
struct Pending {
    changes: Vec<LockChange>,
    skipped: u64,
}

/// Changes that were not sent yet. Bounded, and not collected while there is no subscriber.
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

    /// Records a change, if there is a subscriber.
    pub(super) fn record(&self, change: impl FnOnce() -> LockChange) {
        if !self.0.subscribed.load(Ordering::Relaxed) {
            return;
        }
        let mut pending = self.pending();
        if pending.changes.len() == PENDING_MAX {
            pending.changes.remove(0);
            pending.skipped += 1;
        }
        pending.changes.push(change());
    }

    /// Takes the recorded changes, in order.
    pub(super) fn take(&self) -> Vec<LockChange> {
        let Pending { mut changes, skipped } = std::mem::take(&mut *self.pending());
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
    fn newest_changes_are_kept_and_only_for_subscribers() {
        let changes = LockChanges::default();
        let record = |token| changes.record(|| LockChange::now(Change::Acquired, "r", token));
        record(1);
        assert_eq!(changes.take(), []);
        changes.set_subscribed(true);
        (0..100).for_each(record);
        let taken = changes.take();
        assert_eq!((taken.len(), taken[0].skipped, taken[0].token, taken[31].token), (32, 68, 68, 99));
        assert_eq!(changes.take(), []);
    }
}
