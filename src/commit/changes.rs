//! What happens to the lock, noted for who watches.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::record::{FencingToken, ms};

/// So many are kept until they are told; of more, the newest.
const KEPT_MAX: usize = 32;

/// What happened to the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The replica holds it now.
    Acquired,
    /// The replica gave it back, and nobody waited for it.
    Released,
    /// The replica gave it back, and another one has it now.
    HandedOver,
    /// The replica's time ran out, or it was taken from it.
    Lost,
    /// The replica left it to expire.
    Abandoned,
    /// The replica took it from its holder, for an admin.
    Forced,
}

/// One change of the lock, as the replica saw it that it happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LockEvent)]
pub struct LockChange {
    /// What happened.
    pub change: Change,
    /// When, in Unix milliseconds by that replica's clock.
    pub at_ms: u64,
    /// To whom.
    pub replica: String,
    /// Of the lease; after a forced release, the token that is recorded now.
    pub token: FencingToken,
    /// Milliseconds that the oldest row of the batch waited for the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Milliseconds since the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Rows written under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Whether it is, or was, held for a `sleep`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slept: bool,
    /// Who has it now, or had it before a forced release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// Milliseconds until an abandoned lock expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Changes that came before this one and were too many to be told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LockChange {
    /// Something that happened just now; details are for the caller to fill in.
    pub(super) fn now(change: Change, replica: &str, token: FencingToken) -> Self {
        Self {
            change,
            at_ms: unix_ms(),
            replica: replica.to_owned(),
            token,
            waited_ms: None,
            held_ms: None,
            rows: None,
            slept: false,
            other: None,
            ttl_ms: None,
            skipped: 0,
        }
    }
}

/// For people, so a wall clock will do.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, ms)
}

#[derive(Debug, Default)]
struct Kept {
    changes: Vec<LockChange>,
    skipped: u64,
}

/// The changes that were not told yet. Bounded, and empty while nobody watches.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(Arc<(AtomicBool, Mutex<Kept>)>);

impl Changes {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.1.lock().expect("no holder of the changes panics")
    }

    /// Whether somebody watches.
    pub(super) fn watch(&self, watched: bool) {
        self.0.0.store(watched, Ordering::Relaxed);
    }

    /// Notes a change, if somebody watches.
    pub(super) fn note(&self, change: impl FnOnce() -> LockChange) {
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
    pub(super) fn take(&self) -> Vec<LockChange> {
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
