//! The counts of a run.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::load::exchange::Receipt;

/// Latencies above an hour count as an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// A histogram of latencies in microseconds, with three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("valid bounds")
}

/// A replica, by address and by the name in its answers.
pub(super) struct Replica {
    /// Index of the address in `Plan::targets`.
    pub(super) target: usize,
    /// `None` until it has acknowledged a request.
    pub(super) name: Option<Box<str>>,
    pub(super) acknowledged: u64,
    pub(super) latency: Histogram<u64>,
}

/// All counts of a run.
pub(super) struct Tally {
    /// Attempts, retries included.
    pub(super) attempts: u64,
    pub(super) acknowledged: u64,
    pub(super) not_written: u64,
    pub(super) unknown: u64,
    pub(super) replayed: u64,
    /// Of acknowledged requests; in an open loop, from when they were due.
    pub(super) latency: Histogram<u64>,
    /// In an open loop: from when they were first sent.
    pub(super) from_send: Option<Histogram<u64>>,
    /// Since the last update of the progress bar.
    pub(super) recent: Histogram<u64>,
    pub(super) replicas: Vec<Replica>,
    /// Attempts by status (0: no answer) and code.
    pub(super) answers: BTreeMap<(u16, Cow<'static, str>), u64>,
    pub(super) tokens: Tokens,
    pub(super) timeline: Option<Timeline>,
}

impl Tally {
    pub(super) fn new(targets: usize, is_open: bool, with_timeline: bool) -> Self {
        let replica = |target| Replica { target, name: None, acknowledged: 0, latency: histogram() };
        Self {
            attempts: 0,
            acknowledged: 0,
            not_written: 0,
            unknown: 0,
            replayed: 0,
            latency: histogram(),
            from_send: is_open.then(histogram),
            recent: histogram(),
            replicas: (0..targets).map(replica).collect(),
            answers: BTreeMap::new(),
            tokens: Tokens::default(),
            timeline: with_timeline.then(Timeline::default),
        }
    }

    /// Counts an attempt.
    pub(super) fn count_attempt(&mut self, status: u16, code: Cow<'static, str>) {
        self.attempts += 1;
        *self.answers.entry((status, code)).or_default() += 1;
    }

    /// Counts a request that was acknowledged at time `at` of the run.
    pub(super) fn acknowledge(&mut self, target: usize, receipt: &Receipt<'_>, at: Duration, times: Times) {
        let latency_us = micros(times.latency);
        self.acknowledged += 1;
        self.latency.saturating_record(latency_us);
        self.recent.saturating_record(latency_us);
        if let Some(from_send) = &mut self.from_send {
            from_send.saturating_record(micros(times.from_send));
        }
        if let Some(timeline) = &mut self.timeline {
            timeline.add(at, latency_us);
        }
        receipt.token.inspect(|&token| self.tokens.add(token));
        // A replayed answer names the replica that wrote the row, not the one that answered.
        if receipt.is_replayed {
            self.replayed += 1;
        } else {
            let replica = self.replica(target, receipt.replica.as_deref());
            replica.acknowledged += 1;
            replica.latency.saturating_record(latency_us);
        }
    }

    fn replica(&mut self, target: usize, name: Option<&str>) -> &mut Replica {
        let matches = |replica: &Replica| {
            replica.target == target && (replica.name.as_deref() == name || replica.acknowledged == 0)
        };
        let at = self.replicas.iter().position(matches).unwrap_or_else(|| {
            self.replicas.push(Replica { target, name: None, acknowledged: 0, latency: histogram() });
            self.replicas.len() - 1
        });
        let replica = &mut self.replicas[at];
        if replica.acknowledged == 0 {
            replica.name = name.map(Into::into);
        }
        replica
    }
}

/// The latency of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) latency: Duration,
    pub(super) from_send: Duration,
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// The set of tokens in acknowledgements, one bit each: tokens are nearly consecutive.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    words: HashMap<u64, u64>,
    last: u64,
}

impl Tokens {
    fn add(&mut self, token: u64) {
        if token != self.last {
            self.last = token;
            *self.words.entry(token / 64).or_default() |= 1 << (token % 64);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.words.values().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// The most columns; then each two are merged.
const COLUMNS_MAX: usize = 240;
const COLUMN_MIN: Duration = Duration::from_millis(100);

/// Latencies over time, in columns of equal duration.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) column: Duration,
    /// Histograms with fewer digits than those of the whole run.
    pub(super) columns: Vec<Histogram<u32>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { column: COLUMN_MIN, columns: Vec::new() }
    }
}

impl Timeline {
    fn add(&mut self, at: Duration, latency_us: u64) {
        loop {
            let index = usize::try_from(at.as_nanos() / self.column.as_nanos()).unwrap_or(usize::MAX);
            if index < COLUMNS_MAX {
                if index >= self.columns.len() {
                    self.columns.resize_with(index + 1, Self::histogram);
                }
                return self.columns[index].saturating_record(latency_us);
            }
            self.merge_columns();
        }
    }

    fn histogram() -> Histogram<u32> {
        Histogram::new_with_bounds(1, LATENCY_US_MAX, 1).expect("valid bounds")
    }

    fn merge_columns(&mut self) {
        self.column *= 2;
        let columns = std::mem::take(&mut self.columns);
        self.columns = columns
            .chunks(2)
            .map(|pair| {
                let mut both = pair[0].clone();
                pair[1..].iter().for_each(|other| both.add(other).expect("equal bounds"));
                both
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_once_in_any_order() {
        let mut tokens = Tokens::default();
        [1, 1, 2, 3, 2, 64, 65, 1 << 40, 64].into_iter().for_each(|token| tokens.add(token));
        assert_eq!(tokens.count(), 6);
    }

    #[test]
    fn timeline_merges_columns_and_keeps_all_latencies() {
        let mut timeline = Timeline::default();
        (0..10_000).for_each(|n| timeline.add(Duration::from_millis(n * 10), 1000));
        assert_eq!(timeline.column, Duration::from_millis(800));
        assert_eq!(timeline.columns.len(), 125);
        assert!(timeline.columns.iter().all(|column| column.len() == 80));
    }

    #[test]
    fn replicas_differ_by_address_and_name_even_if_silent() {
        let mut tally = Tally::new(3, false, false);
        let times = Times { latency: Duration::from_millis(1), from_send: Duration::from_millis(1) };
        for (target, name) in [(0, "a"), (1, "b"), (0, "c"), (0, "a")] {
            let receipt = Receipt { replica: Some(name.into()), token: Some(1), is_replayed: false };
            tally.acknowledge(target, &receipt, Duration::ZERO, times);
        }
        let replicas: Vec<_> = tally.replicas.iter().map(|r| (r.target, r.name.as_deref(), r.acknowledged)).collect();
        assert_eq!(replicas, [(0, Some("a"), 2), (1, Some("b"), 1), (2, None, 0), (0, Some("c"), 1)]);
    }
}
