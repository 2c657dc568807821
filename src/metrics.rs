//! What this replica counts of its own work.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Counters since the start, and what was seen since they were last read out.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    rows: u64,
    /// When it was last read out.
    rows_per_s: f64,
    errors: BTreeMap<String, u64>,
    recent: Recent,
}

/// Since the last reading.
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
        // Two digits are more than anybody can see in a chart.
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("bounds and digits are right");
        Self { since: Instant::now(), rows: 0, syncs: 0, wait_us: histogram(), sync_us: histogram() }
    }

    fn begin_anew(&mut self) {
        (self.since, self.rows, self.syncs) = (Instant::now(), 0, 0);
        self.wait_us.reset();
        self.sync_us.reset();
    }
}

/// The middle of what was seen, and its slow end, in milliseconds. Null where nothing was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Quantiles {
    /// Half was at most this.
    pub p50: Option<f64>,
    /// All but one in a hundred were at most this.
    pub p99: Option<f64>,
}

impl Quantiles {
    fn of(us: &Histogram<u64>) -> Self {
        let ms = |quantile| (!us.is_empty()).then(|| us.value_at_quantile(quantile) as f64 / 1000.0);
        Self { p50: ms(0.5), p99: ms(0.99) }
    }
}

/// How the work went since the last reading.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Work {
    /// Seconds since this replica started.
    pub uptime_s: u64,
    /// Rows written since the start.
    pub rows: u64,
    /// Rows written a second.
    pub rows_per_s: f64,
    /// Rows that shared one sync; null where there was none.
    pub rows_per_sync: Option<f64>,
    /// From arrival to the grant of the lock.
    pub wait_ms: Quantiles,
    /// One sync of the journal.
    pub sync_ms: Quantiles,
    /// Refusals by their code, since the start.
    pub errors: BTreeMap<String, u64>,
}

impl Default for Meter {
    fn default() -> Self {
        let counts = Counts { rows: 0, rows_per_s: 0.0, errors: BTreeMap::new(), recent: Recent::new() };
        Self { started: Instant::now(), counts: Mutex::new(counts) }
    }
}

impl Meter {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("no holder of the counts panics")
    }

    /// One batch is durable: its rows, how long each request waited for the lock, and how long the sync took.
    pub fn batch(&self, rows: usize, waits: impl Iterator<Item = Duration>, sync: Duration) {
        let mut counts = self.counts();
        counts.rows += rows as u64;
        let recent = &mut counts.recent;
        recent.rows += rows as u64;
        recent.syncs += 1;
        recent.sync_us.saturating_record(us(sync));
        waits.for_each(|wait| recent.wait_us.saturating_record(us(wait)));
    }

    /// One request was refused.
    pub fn refused(&self, code: &str) {
        *self.counts().errors.entry(code.to_owned()).or_default() += 1;
    }

    /// Rows a second, when it was last read out.
    pub fn rows_per_s(&self) -> f64 {
        self.counts().rows_per_s
    }

    /// Reads out, and begins anew.
    pub fn take(&self) -> Work {
        let counts = &mut *self.counts();
        let recent = &mut counts.recent;
        let work = Work {
            uptime_s: self.started.elapsed().as_secs(),
            rows: counts.rows,
            rows_per_s: recent.rows as f64 / recent.since.elapsed().as_secs_f64().max(f64::EPSILON),
            rows_per_sync: (recent.syncs > 0).then(|| recent.rows as f64 / recent.syncs as f64),
            wait_ms: Quantiles::of(&recent.wait_us),
            sync_ms: Quantiles::of(&recent.sync_us),
            errors: counts.errors.clone(),
        };
        recent.begin_anew();
        counts.rows_per_s = work.rows_per_s;
        work
    }
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_out_is_not_read_again_and_totals_stay() {
        let meter = Meter::default();
        let waits = [1, 2, 3, 500].map(Duration::from_millis);
        meter.batch(8, waits.into_iter(), Duration::from_micros(250));
        meter.batch(2, [].into_iter(), Duration::from_micros(250));
        meter.refused("queue_full");
        let work = meter.take();
        assert_eq!((work.rows, work.rows_per_sync), (10, Some(5.0)));
        assert!(work.wait_ms.p50.is_some_and(|ms| (1.9..2.1).contains(&ms)), "{work:?}");
        assert!(work.wait_ms.p99.is_some_and(|ms| (495.0..505.0).contains(&ms)), "{work:?}");
        assert!(work.sync_ms.p50.is_some_and(|ms| (0.2..0.3).contains(&ms)), "{work:?}");
        let later = meter.take();
        assert_eq!((later.rows, later.rows_per_s, later.rows_per_sync), (10, 0.0, None));
        assert_eq!((later.wait_ms.p50, later.errors["queue_full"]), (None, 1));
    }
}
