//! Says in the log that a call to the volume takes long. Calls to a network volume hang without an error while its server is
//! away, or gives out no locks yet after its restart.

use std::{
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// A local disk under load answers within this time, and so does a process that holds the OS lock at the start.
const FIRST_WARNING: Duration = Duration::from_secs(5);

/// Makes a call, and warns when it has taken 5 s, then 15 s, 35 s and so on. `doing` completes "cannot … the CSV".
pub(crate) fn watched<T>(csv: &Path, doing: &'static str, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let warn = |waited: Duration| {
        tracing::warn!(
            csv = %csv.display(), doing, waited_s = waited.as_secs(),
            "the volume does not answer: its server is away, or in its grace period after a restart (90 s unless set)"
        );
    };
    let (result, warnings) = watch(FIRST_WARNING, warn, call);
    if warnings > 0 {
        tracing::info!(csv = %csv.display(), doing, waited_s = start.elapsed().as_secs(), "the volume answers again");
    }
    result
}

/// Calls `report` with the time so far after `first`, and again after pauses that double. Returns the number of reports.
fn watch<T>(first: Duration, report: impl Fn(Duration) + Sync, call: impl FnOnce() -> T) -> (T, u32) {
    let start = Instant::now();
    let (running, ended) = mpsc::channel::<()>();
    let report = &report;
    let count_reports = move || {
        let (mut pause, mut reports) = (first, 0);
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            report(start.elapsed());
            reports += 1;
            pause *= 2;
        }
        reports
    };
    thread::scope(|scope| {
        let watcher = thread::Builder::new().name("slow-call".to_owned()).spawn_scoped(scope, count_reports);
        // Dropped also if the call panics, which ends the watcher.
        let running = running;
        let result = call();
        drop(running);
        // Without a thread the call goes unwatched.
        let reports = watcher.ok().and_then(|watcher| watcher.join().ok()).unwrap_or_default();
        (result, reports)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn slow_call_is_reported_at_doubling_intervals() {
        let first = Duration::from_millis(20);
        let (reported, reports) = mpsc::channel();
        let reported = Mutex::new(reported);
        let report = |waited| reported.lock().expect("not poisoned").send(waited).expect("received");
        let wait_for_three = || [(); 3].map(|()| reports.recv_timeout(Duration::from_secs(60)).expect("reported"));
        let (waited, count) = watch(first, report, wait_for_three);
        assert!(count >= 3, "{count}");
        for (waited, pauses) in waited.into_iter().zip([1, 3, 7]) {
            assert!(waited >= first * pauses, "{waited:?} before {pauses} pauses");
        }
    }

    #[test]
    fn quick_call_is_not_reported_and_returns_at_once() {
        let start = Instant::now();
        assert_eq!(watch(Duration::from_secs(60), |_| panic!("reported"), || 7), (7, 0));
        assert_eq!(watched(Path::new("rows.csv"), "open", || 7), 7);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
