//! What `/events` reports once a second: totals since the start, and what was observed since the last report.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::api::events::{Quantiles, Work};

#[derive(Debug)]
pub(super) struct Stats {
    started: Instant,
    rows: u64,
    /// As of the last report.
    rows_per_s: f64,
    errors: BTreeMap<String, u64>,
    recent: Recent,
}

/// Since the last report.
#[derive(Debug)]
struct Recent {
    since: Instant,
    rows: u64,
    syncs: u64,
    wait_us: Histogram<u64>,
    sync_us: Histogram<u64>,
}

impl Recent {
    fn new() -> Self {
        // Two digits are enough for a chart.
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("valid bounds and digits");
        Self { since: Instant::now(), rows: 0, syncs: 0, wait_us: histogram(), sync_us: histogram() }
    }

    fn reset(&mut self) {
        (self.since, self.rows, self.syncs) = (Instant::now(), 0, 0);
        self.wait_us.reset();
        self.sync_us.reset();
    }
}

impl Stats {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), rows: 0, rows_per_s: 0.0, errors: BTreeMap::new(), recent: Recent::new() }
    }

    pub(super) fn add_batch(&mut self, rows: usize, waits: &[Duration], sync: Duration) {
        self.rows += rows as u64;
        let recent = &mut self.recent;
        recent.rows += rows as u64;
        recent.syncs += 1;
        recent.sync_us.saturating_record(micros(sync));
        for wait in waits {
            recent.wait_us.saturating_record(micros(*wait));
        }
    }

    pub(super) fn add_error(&mut self, code: &str) {
        *self.errors.entry(code.to_owned()).or_default() += 1;
    }

    /// Rows per second, as of the last report.
    pub(super) fn rows_per_s(&self) -> f64 {
        self.rows_per_s
    }

    /// Makes a report, and starts the next one.
    pub(super) fn take(&mut self) -> Work {
        let recent = &mut self.recent;
        let work = Work {
            uptime_s: self.started.elapsed().as_secs(),
            rows: self.rows,
            rows_per_s: recent.rows as f64 / recent.since.elapsed().as_secs_f64().max(f64::EPSILON),
            rows_per_sync: (recent.syncs > 0).then(|| recent.rows as f64 / recent.syncs as f64),
            wait_ms: quantiles(&recent.wait_us),
            sync_ms: quantiles(&recent.sync_us),
            errors: self.errors.clone(),
        };
        recent.reset();
        self.rows_per_s = work.rows_per_s;
        work
    }
}

fn quantiles(micros: &Histogram<u64>) -> Quantiles {
    let ms = |quantile| (!micros.is_empty()).then(|| micros.value_at_quantile(quantile) as f64 / 1000.0);
    Quantiles { p50: ms(0.5), p99: ms(0.99) }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
