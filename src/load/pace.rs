//! Makes requests due at a rate, whatever becomes of those before. A thread of its own: the runtime's timer counts milliseconds.

use std::{
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore};

/// Requests that are due within so short a time go together: each wake-up costs.
const TICK: Duration = Duration::from_micros(500);

/// When requests are due.
pub(super) struct Pace {
    pub(super) begun: Instant,
    /// Requests a second.
    pub(super) rate: f64,
    pub(super) total: u64,
    /// So many are due in the end that are none, so that each worker sees that nothing is left.
    pub(super) workers: usize,
}

/// How many requests are due by now.
#[derive(Debug, Default)]
pub(super) struct Due {
    count: AtomicU64,
    changed: Notify,
}

/// When a request is to be sent, since the begin.
pub(super) fn intended(request: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(request as f64 / rate)
}

impl Pace {
    /// Tells what is due until everything is, or `ended` is hung up.
    pub(super) fn tell(&self, due: &Due, ended: &Receiver<()>) {
        let mut told = 0;
        while told < self.total {
            told = ((self.begun.elapsed().as_secs_f64() * self.rate) as u64 + 1).min(self.total);
            due.tell(told);
            let wait = intended(told, self.rate).saturating_sub(self.begun.elapsed()).max(TICK);
            if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
        due.tell(self.total + self.workers as u64);
    }
}

impl Due {
    fn tell(&self, count: u64) {
        self.count.store(count, Ordering::Release);
        self.changed.notify_one();
    }

    /// Gives a permit for each that is due, for ever. On the thread of those who want them: to wake a task from another one is dear.
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
