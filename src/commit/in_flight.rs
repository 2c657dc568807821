//! Idempotency keys whose requests this replica is processing: a second request with the same key is refused at once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::commit::error::AppendError;

/// The hashes of these keys.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<HashSet<u128>>>);

impl InFlight {
    fn keys(&self) -> MutexGuard<'_, HashSet<u128>> {
        self.0.lock().expect("no holder of the keys panics")
    }

    /// Reserves a key until the returned value is dropped.
    pub(super) fn reserve(&self, hash: u128) -> Result<ReservedKey, AppendError> {
        if self.keys().insert(hash) {
            Ok(ReservedKey { keys: self.clone(), hash })
        } else {
            Err(AppendError::KeyInFlight)
        }
    }
}

/// A key in flight until this is dropped.
#[derive(Debug)]
pub(super) struct ReservedKey {
    keys: InFlight,
    hash: u128,
}

impl Drop for ReservedKey {
    fn drop(&mut self) {
        self.keys.keys().remove(&self.hash);
    }
}
