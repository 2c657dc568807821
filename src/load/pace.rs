//! The pace of an open loop: makes requests due at a fixed rate. It is a thread, because the runtime's timer has a resolution of 1 ms.

use std::{
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore};

/// Requests that are due within this time are made due together, to save wake-ups.
const TICK: Duration = Duration::from_micros(500);

/// When requests are due.
pub(super) struct Pace {
    pub(super) started_at: Instant,
    /// Requests per second.
    pub(super) rate: f64,
    pub(super) total: u64,
    /// As many permits more at the end, so that each worker wakes up and finds no request left.
    pub(super) workers: usize,
}

/// How many requests are due by now.
#[derive(Debug, Default)]
pub(super) struct Due {
    count: AtomicU64,
    changed: Notify,
}

/// When a request is due, since the start of the run.
pub(super) fn due_at(request: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(request as f64 / rate)
}

impl Pace {
    /// Updates `due` until all requests are due, or the sender of `ended` is dropped.
    pub(super) fn run(&self, due: &Due, ended: &Receiver<()>) {
        let mut count = 0;
        while count < self.total {
            count = ((self.started_at.elapsed().as_secs_f64() * self.rate) as u64 + 1).min(self.total);
            due.set(count);
            let wait = due_at(count, self.rate).saturating_sub(self.started_at.elapsed()).max(TICK);
            if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
        due.set(self.total + self.workers as u64);
    }
}

impl Due {
    fn set(&self, count: u64) {
        self.count.store(count, Ordering::Release);
        self.changed.notify_one();
    }

    /// Adds a permit for each due request, forever. It runs on the workers' thread, because waking a task from another thread is
    /// expensive.
    pub(super) async fn hand_out(&self, permits: &Semaphore) {
        let mut given = 0;
        loop {
            self.changed.notified().await;
            let due = self.count.load(Ordering::Acquire);
            permits.add_permits((due - given) as usize);
            given = due;
        }
    }
}
