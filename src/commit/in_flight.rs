//! Keys whose requests are under way in this replica: a second one is told to come back, rather than to wait for the first.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::commit::AppendError;

/// The hashes of these keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashSet<u128>>>);

impl InFlight {
    fn keys(&self) -> MutexGuard<'_, HashSet<u128>> {
        self.0.lock().expect("no holder of the keys panics")
    }

    /// Takes a key for as long as the answer lives.
    pub(crate) fn enter(&self, hash: u128) -> Result<Entered, AppendError> {
        if self.keys().insert(hash) { Ok(Entered { keys: self.clone(), hash }) } else { Err(AppendError::KeyInFlight) }
    }
}

/// A key that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    keys: InFlight,
    hash: u128,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.keys.keys().remove(&self.hash);
    }
}
