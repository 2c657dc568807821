//! Whether the calls to a volume return. If the server of a network volume does not answer, a call to it hangs for as long as that
//! lasts, and its thread can do nothing about it. Other threads find out here.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// A call that runs longer than this is stuck. The slowest sync of a healthy disk under load takes some hundred milliseconds, and
/// other replicas must not wait much longer than the lease lasts.
pub const STUCK_AFTER: Duration = Duration::from_secs(1);

/// The calls that run now. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    /// In order of their start; rarely more than one.
    running: Vec<Running>,
    next_id: u64,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    id: u64,
    name: &'static str,
    since: Instant,
}

/// A call that has not returned for more than [`STUCK_AFTER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StuckCall {
    /// What was called.
    pub name: &'static str,
    /// How long it has run.
    pub running_for: Duration,
}

impl Progress {
    /// Notes that a call begins; it ends when the returned value is dropped.
    pub fn enter(&self, name: &'static str) -> CallGuard {
        let mut calls = self.calls();
        let id = calls.next_id;
        calls.next_id += 1;
        calls.running.push(Running { id, name, since: Instant::now() });
        CallGuard { progress: self.clone(), id }
    }

    /// The oldest call, if it is stuck.
    pub fn stuck(&self) -> Option<StuckCall> {
        let Running { name, since, .. } = self.calls().running.first().copied()?;
        let running_for = since.elapsed();
        (running_for >= STUCK_AFTER).then_some(StuckCall { name, running_for })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().expect("no holder of the calls panics")
    }
}

/// A call that runs until this is dropped.
#[derive(Debug)]
pub struct CallGuard {
    progress: Progress,
    id: u64,
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.progress.calls().running.retain(|call| call.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_is_stuck_after_a_second_until_it_returns() {
        let progress = Progress::default();
        let old = progress.enter("append");
        let new = progress.enter("refresh");
        assert_eq!(progress.stuck(), None);
        let earlier = Instant::now().checked_sub(STUCK_AFTER).expect("the host runs for longer");
        progress.calls().running[0].since = earlier;
        assert_eq!(progress.stuck().expect("stuck").name, "append");
        drop(old);
        assert_eq!(progress.stuck(), None);
        progress.calls().running[0].since = earlier;
        assert_eq!(progress.stuck().expect("stuck").name, "refresh");
        drop(new);
        assert_eq!(progress.stuck(), None);
    }
}
