//! What happens to the lock, noted for who watches.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use crate::api::events::LockChange;

/// So many are kept until they are told; of more, the newest.
const KEPT_MAX: usize = 32;

#[derive(Debug, Default)]
struct Kept {
    changes: Vec<LockChange>,
    skipped: u64,
}

/// The changes that were not told yet. Bounded, and empty while nobody watches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(Arc<(AtomicBool, Mutex<Kept>)>);

impl Changes {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.1.lock().expect("no holder of the changes panics")
    }

    /// Whether somebody watches.
    pub(crate) fn watch(&self, watched: bool) {
        self.0.0.store(watched, Ordering::Relaxed);
    }

    /// Notes a change, if somebody watches.
    pub(crate) fn note(&self, change: impl FnOnce() -> LockChange) {
        if !self.0.0.load(Ordering::Relaxed) {
            return;
        }
        let mut kept = self.kept();
        if kept.changes.len() == KEPT_MAX {
            kept.changes.remove(0);
            kept.skipped += 1;
        }
        kept.changes.push(change());
    }

    /// What was noted since, in order.
    pub(crate) fn take(&self) -> Vec<LockChange> {
        let Kept { mut changes, skipped } = std::mem::take(&mut *self.kept());
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
    fn the_newest_changes_are_kept_and_the_others_counted_and_none_while_nobody_watches() {
        let changes = Changes::default();
        let note = |token| changes.note(|| LockChange::now(Change::Acquired, "r", token));
        note(1);
        assert_eq!(changes.take(), []);
        changes.watch(true);
        (0..100).for_each(note);
        let told = changes.take();
        assert_eq!((told.len(), told[0].skipped, told[0].token, told[31].token), (32, 68, 68, 99));
        assert_eq!(changes.take(), []);
    }
}
