//! What a replica counts of its own work, for `/metrics` and `/events`: one call counts for both.
//!
//! A [`Meter`] is a value like the lock and the file that it counts for, not a global of the process.

mod registry;
mod stats;

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use crate::api::events::Work;
use crate::metrics::{registry::Registry, stats::Stats};

pub use crate::metrics::registry::{Counter, Gauge, Histogram, NONE, RequestLabels, names};

/// Counts the work of one replica. The default one has no metrics to scrape, for commands that serve no HTTP.
#[derive(Debug)]
pub struct Meter {
    stats: Mutex<Stats>,
    registry: Option<Registry>,
}

impl Default for Meter {
    fn default() -> Self {
        Self { stats: Mutex::new(Stats::new()), registry: None }
    }
}

impl Meter {
    /// A meter whose metrics can be scraped, all of them from the start.
    pub fn exposed() -> Self {
        let meter = Self { registry: Some(Registry::new()), ..Self::default() };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        meter.set(Gauge::StartTime, now.unwrap_or_default().as_secs_f64());
        meter
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("no holder of the stats panics")
    }

    /// Sets the labels of `rowlock_build_info`.
    pub fn set_build_info(&self, replica: &str) {
        if let Some(registry) = &self.registry {
            registry.set_build_info(replica);
        }
    }

    /// Sets the labels of `rowlock_volume_info`.
    pub fn set_volume_info(&self, fs_type: &str, kind: &'static str, version: &str) {
        if let Some(registry) = &self.registry {
            registry.set_volume_info(fs_type, kind, version);
        }
    }

    /// Adds 1 to a counter.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, more: u64) {
        if let Some(registry) = &self.registry {
            registry.add(counter, more);
        }
    }

    /// Sets a gauge; 1 stands for yes.
    pub fn set(&self, gauge: Gauge, value: f64) {
        if let Some(registry) = &self.registry {
            registry.set(gauge, value);
        }
    }

    /// Records one value of a histogram.
    pub fn observe(&self, histogram: Histogram, value: f64) {
        if let Some(registry) = &self.registry {
            registry.observe(histogram, value);
        }
    }

    /// Counts a batch that is durable: its rows and bytes, the wait of each request for the lock, and the time of the sync.
    pub fn count_batch(&self, rows: usize, bytes: u64, waits: &[Duration], sync: Duration) {
        self.add(Counter::Rows, rows as u64);
        self.add(Counter::Bytes, bytes);
        self.observe(Histogram::BatchRows, rows as f64);
        self.observe(Histogram::Sync, sync.as_secs_f64());
        for wait in waits {
            self.observe(Histogram::LockWait, wait.as_secs_f64());
        }
        self.stats().add_batch(rows, waits, sync);
    }

    /// Declares labels that requests may have, so that their series exist before the first such request.
    pub fn declare(&self, labels: &RequestLabels<'_>) {
        if let Some(registry) = &self.registry {
            registry.declare(labels);
        }
    }

    /// Counts an answered request.
    pub fn count_request(&self, labels: &RequestLabels<'_>, took: Duration) {
        if labels.code != NONE {
            self.stats().add_error(&labels.code);
        }
        if let Some(registry) = &self.registry {
            registry.count_request(labels, took);
        }
    }

    /// Frees the memory that recorded values take until then; to be called about once a second.
    pub fn upkeep(&self) {
        if let Some(registry) = &self.registry {
            registry.upkeep();
        }
    }

    /// All metrics, in Prometheus's text format.
    pub fn render(&self) -> String {
        self.registry.as_ref().map(Registry::render).unwrap_or_default()
    }

    /// Rows per second, as of the last `take_work`.
    pub fn rows_per_s(&self) -> f64 {
        self.stats().rows_per_s()
    }

    /// Reports the work since the last call.
    pub fn take_work(&self) -> Work {
        self.stats().take()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn queue_full() -> RequestLabels<'static> {
        let (route, code) = (Cow::Borrowed("/append"), Cow::Borrowed("queue_full"));
        RequestLabels { method: "POST", route, status: 503, code, outcome: "not_written" }
    }

    #[test]
    fn rendered_metrics_are_the_counted_ones_with_any_upkeep() {
        let meter = Meter::exposed();
        for _ in 0..3 {
            meter.count_batch(8, 80, &[Duration::from_millis(1); 2], Duration::from_micros(250));
            meter.upkeep();
            meter.count_request(&queue_full(), Duration::from_millis(20));
        }
        let text = meter.render();
        for line in [
            "rowlock_appended_rows_total 24",
            "rowlock_batch_rows_bucket{le=\"16\"} 3",
            "rowlock_lock_wait_seconds_count 6",
            "rowlock_sync_seconds_bucket{le=\"0.00025\"} 3",
            "rowlock_sync_seconds_bucket{le=\"0.00015\"} 0",
            "rowlock_file_bytes NaN",
            r#"rowlock_http_requests_total{method="POST",route="/append",status="503",code="queue_full",outcome="not_written"} 3"#,
            r#"rowlock_http_request_duration_seconds_bucket{method="POST",route="/append",le="0.025"} 3"#,
        ] {
            assert!(text.lines().any(|rendered| rendered == line), "{line} is not in {text}");
        }
        assert_eq!(meter.take_work().errors["queue_full"], 3);
        assert_eq!(Meter::default().render(), "");
    }

    #[test]
    fn taken_work_is_reported_once_and_totals_stay() {
        let meter = Meter::default();
        let waits = [1, 2, 3, 500].map(Duration::from_millis);
        meter.count_batch(8, 80, &waits, Duration::from_micros(250));
        meter.count_batch(2, 20, &[], Duration::from_micros(250));
        meter.count_request(&queue_full(), Duration::ZERO);
        let work = meter.take_work();
        assert_eq!((work.rows, work.rows_per_sync), (10, Some(5.0)));
        assert!(work.wait_ms.p50.is_some_and(|ms| (1.9..2.1).contains(&ms)), "{work:?}");
        assert!(work.wait_ms.p99.is_some_and(|ms| (495.0..505.0).contains(&ms)), "{work:?}");
        assert!(work.sync_ms.p50.is_some_and(|ms| (0.2..0.3).contains(&ms)), "{work:?}");
        let later = meter.take_work();
        assert_eq!((later.rows, later.rows_per_s, later.rows_per_sync), (10, 0.0, None));
        assert_eq!((later.wait_ms.p50, later.errors["queue_full"]), (None, 1));
    }
}
