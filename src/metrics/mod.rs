//! What this replica counts of its own work: one call counts for `/events` and for `/metrics` alike.
//!
//! The recorder behind `/metrics` is a value like the lock and the file that it counts for, not the process's.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use ::metrics::{
    Counter, Gauge, Histogram as Spreading, Key, KeyName, Label, Level as Severity, Metadata, Recorder, Unit,
};
use hdrhistogram::Histogram;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whose value a metric is, as its help says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Replicas' values may be added up.
    Own,
    /// Every replica of one CSV tells the same.
    Shared,
}

/// One metric, as it is described to Prometheus.
#[derive(Debug)]
struct Described {
    name: &'static str,
    unit: Unit,
    whose: Whose,
    help: &'static str,
}

impl Described {
    fn help(&self) -> String {
        let whose = match self.whose {
            Whose::Own => "This replica's own.",
            Whose::Shared => "Shared: the same from every replica, not to be added up.",
        };
        format!("{} {whose}", self.help)
    }
}

macro_rules! table {
    ($($(#[$doc:meta])* $kind:ident { $($variant:ident $name:literal $unit:ident $whose:ident $help:literal)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $kind { $(#[doc = $help] $variant),+ }

        impl $kind {
            const TABLE: &[Described] =
                &[$(Described { name: $name, unit: Unit::$unit, whose: Whose::$whose, help: $help }),+];
        }
    )+};
}

// All metrics there are.
table! {
    /// What only grows.
    Count {
        Rows "rowlock_appended_rows_total" Count Own "Rows written."
        Bytes "rowlock_appended_bytes_total" Bytes Own "Bytes of the rows written, line endings included."
        Replays "rowlock_replays_total" Count Own "Requests whose Idempotency-Key was known, answered as the first time."
        TriedAgain "rowlock_batches_tried_again_total" Count Own "Batches certain not to have been written, put back to be tried under a new lease."
        Fenced "rowlock_fenced_writes_total" Count Own "Batches refused by the file, since a newer fencing token is recorded there."
        Acquired "rowlock_lock_acquired_total" Count Own "Times that the lock was had."
        HandedOver "rowlock_lock_handed_over_total" Count Own "Releases after which another replica, or this one again, had the lock at once. None by an embedded lock."
        Lost "rowlock_lock_lost_total" Count Own "Leases that ran out, or were taken away, before they were released."
        Abandoned "rowlock_lock_abandoned_total" Count Own "Leases left to expire, by skip_release."
        Forced "rowlock_lock_forced_releases_total" Count Own "Forced releases done here, whoever had the lock."
        Renewals "rowlock_lock_renewals_total" Count Own "Renewals of a lease in Redis that succeeded."
        RenewalFailures "rowlock_lock_renewal_failures_total" Count Own "Renewals of a lease in Redis that failed, or found it lost."
        ConnectionsOpened "rowlock_redis_connections_opened_total" Count Own "Connections to Redis made for the pool."
        ConnectionsDiscarded "rowlock_redis_connections_discarded_total" Count Own "Connections to Redis thrown away after a call that failed."
        Checkpoints "rowlock_checkpoints_total" Count Own "Checkpoints written."
        SyncFailures "rowlock_sync_failures_total" Count Own "Writes or syncs that failed half way. The process ends at once: rowlock_recovered_failed_syncs_total of who comes next is what lasts."
        FailedSyncs "rowlock_recovered_failed_syncs_total" Count Own "Recoveries from a failed sync, some replica's: what was in doubt was written anew."
        BatchesCompleted "rowlock_recovered_batches_total" Count Own "Batches that a killed replica left half written, and whose rest was written."
        Rebuilds "rowlock_recovered_ends_total" Count Own "Recoveries that made the CSV's end anew, from the journal: after a power cut or a failed sync."
        TornLines "rowlock_recovered_torn_lines_total" Count Own "Torn last lines set aside and cut."
        UnlockedAppends "rowlock_unlocked_appends_total" Count Own "Appends of others, without any lock, in the very moment of a batch."
        SetAsideBytes "rowlock_set_aside_bytes_total" Bytes Own "Bytes of the CSV copied to its side file .torn before they were cut or written anew."
    }
    /// What goes up and down.
    Level {
        StartTime "process_start_time_seconds" Seconds Own "When the process started, in Unix time."
        Ready "rowlock_ready" Count Own "1 while rows are taken, as /readyz has it."
        QueueRows "rowlock_queue_rows" Count Own "Rows that wait."
        QueueRowsLimit "rowlock_queue_rows_limit" Count Own "Rows that may wait (ROWLOCK_QUEUE_ROWS)."
        QueueBytes "rowlock_queue_bytes" Bytes Own "Memory that waiting rows take."
        QueueBytesLimit "rowlock_queue_limit_bytes" Bytes Own "Memory that waiting rows may take (ROWLOCK_QUEUE_BYTES)."
        QueueAge "rowlock_queue_oldest_age_seconds" Seconds Own "How long the oldest row in the queue waits by now."
        LockInReach "rowlock_lock_in_reach" Count Own "1 if Redis, or the embedded lock's file, answered when it was last asked."
        LockHeld "rowlock_lock_held" Count Own "1 while this replica holds the lock. Over all replicas at most 1, but for one that does not know yet that it lost it."
        LockTaken "rowlock_lock_taken" Count Shared "1 while anybody has the lock, a client that is none of ours included; as of the last scrape that found it in reach."
        LockHolderToken "rowlock_lock_holder_token" Count Shared "The token of who has the lock, as of the last scrape that found it in reach; 0 for nobody and for a client that is none of ours."
        LockWaiters "rowlock_lock_waiters" Count Shared "Replicas that wait for the lock, as of the last scrape that found it in reach."
        EventReaders "rowlock_event_readers" Count Own "Readers of /events."
        FileReadable "rowlock_file_readable" Count Own "1 if the file could be looked at for this scrape; if not, its values are those of an earlier one."
        FileBytes "rowlock_file_bytes" Bytes Shared "The CSV, up to its last committed row."
        JournalBytes "rowlock_journal_bytes" Bytes Shared "The journal's file."
        JournalLiveBytes "rowlock_journal_live_bytes" Bytes Shared "What of the journal waits for a checkpoint."
        FreeBytes "rowlock_volume_free_bytes" Bytes Shared "Room left on the volume for who is not root."
        VolumeBytes "rowlock_volume_size_bytes" Bytes Shared "The volume's size."
    }
    /// What is seen many times, and differs.
    Spread {
        BatchRows "rowlock_batch_rows" Count Own "Rows that shared one sync."
        LockWait "rowlock_lock_wait_seconds" Seconds Own "From a written request's arrival to the grant of the lock."
        LockHold "rowlock_lock_hold_seconds" Seconds Own "From the grant of the lock to its release."
        Sync "rowlock_sync_seconds" Seconds Own "One sync of the journal."
    }
    /// What comes with labels.
    Labelled {
        Requests "rowlock_http_requests_total" Count Own "Answers, by method, route, status, the refusal's code, and what became of the rows."
        RequestSeconds "rowlock_http_request_duration_seconds" Seconds Own "From a request's headers to the head of its answer."
        BuildInfo "rowlock_build_info" Count Own "1, with the program's version and the replica's name."
    }
}

/// The name of every metric.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|described| described.name)
}

fn all() -> impl Iterator<Item = &'static Described> {
    [Count::TABLE, Level::TABLE, Spread::TABLE, Labelled::TABLE].into_iter().flatten()
}

const SYNC_BUCKETS: [f64; 14] =
    [50e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0];
const WAIT_BUCKETS: [f64; 18] =
    [100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const ROWS_BUCKETS: [f64; 9] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];

/// What stands for no code and no outcome: a label that is empty would be none.
pub const NONE: &str = "none";

/// How a request was answered. Each part is one of few: a method, a route as it is written in the router, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answered<'a> {
    /// In capitals.
    pub method: &'static str,
    /// As the router has it, never as the client sent it.
    pub route: Cow<'a, str>,
    /// The status.
    pub status: u16,
    /// Why it was refused, if it was, else `NONE`.
    pub code: Cow<'static, str>,
    /// What became of the rows, or `NONE`.
    pub outcome: &'static str,
}

impl Answered<'_> {
    fn labels(&self) -> Vec<Label> {
        let (code, outcome) = (self.code.clone().into_owned(), self.outcome);
        let mut labels = self.operation();
        labels.extend([
            Label::new("status", self.status.to_string()),
            Label::new("code", code),
            Label::new("outcome", outcome),
        ]);
        labels
    }

    fn operation(&self) -> Vec<Label> {
        vec![Label::new("method", self.method), Label::new("route", self.route.clone().into_owned())]
    }

    fn into_owned(self) -> Answered<'static> {
        Answered { route: Cow::Owned(self.route.into_owned()), ..self }
    }
}

/// The metrics of one answer.
#[derive(Debug)]
struct Series {
    requests: Counter,
    seconds: Spreading,
}

/// All metrics, registered once: counting is an atomic addition then.
struct Exposed {
    recorder: PrometheusRecorder,
    rendering: PrometheusHandle,
    counts: Vec<Counter>,
    levels: Vec<Gauge>,
    spreads: Vec<Spreading>,
    answers: RwLock<HashMap<Answered<'static>, Series>>,
}

const METADATA: Metadata<'static> = Metadata::new("rowlock", Severity::INFO, None);

impl Exposed {
    fn new() -> Self {
        let recorder = recorder();
        let key = |described: &Described| Key::from_name(described.name);
        let counts =
            Count::TABLE.iter().map(|described| recorder.register_counter(&key(described), &METADATA)).collect();
        let level = |described: &Described| {
            let gauge = recorder.register_gauge(&key(described), &METADATA);
            // Until it is known; an alert does not take it for nothing left.
            gauge.set(if described.whose == Whose::Shared { f64::NAN } else { 0.0 });
            gauge
        };
        let levels = Level::TABLE.iter().map(level).collect();
        let spreads =
            Spread::TABLE.iter().map(|described| recorder.register_histogram(&key(described), &METADATA)).collect();
        let rendering = recorder.handle();
        Self { recorder, rendering, counts, levels, spreads, answers: RwLock::default() }
    }

    /// Does something with the metrics of an answer, made if this is the first of its kind.
    fn with_answer(&self, answered: &Answered<'_>, act: impl FnOnce(&Series)) {
        {
            let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
            // Keys that live for ever are looked up by one that does not.
            let known: &HashMap<Answered<'_>, Series> = &answers;
            if let Some(series) = known.get(answered) {
                return act(series);
            }
        }
        let key = |which: Labelled, labels| Key::from_parts(Labelled::TABLE[which as usize].name, labels);
        let series = Series {
            requests: self.recorder.register_counter(&key(Labelled::Requests, answered.labels()), &METADATA),
            seconds: self.recorder.register_histogram(&key(Labelled::RequestSeconds, answered.operation()), &METADATA),
        };
        act(&series);
        self.answers.write().unwrap_or_else(PoisonError::into_inner).insert(answered.clone().into_owned(), series);
    }
}

fn recorder() -> PrometheusRecorder {
    let buckets = |described: &Described| match described.unit {
        Unit::Count => &ROWS_BUCKETS[..],
        _ if described.name == Spread::TABLE[Spread::Sync as usize].name => &SYNC_BUCKETS,
        _ => &WAIT_BUCKETS,
    };
    let mut builder = PrometheusBuilder::new();
    let seconds = &Labelled::TABLE[Labelled::RequestSeconds as usize];
    for described in Spread::TABLE.iter().chain([seconds]) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(described.name.to_owned()), buckets(described))
            .expect("there are buckets");
    }
    let recorder = builder.build_recorder();
    for described in all() {
        // The recorder keeps one description a name, of whatever kind.
        let (name, help) = (KeyName::from_const_str(described.name), described.help().into());
        recorder.describe_gauge(name, Some(described.unit), help);
    }
    recorder
}

impl std::fmt::Debug for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exposed")
    }
}

/// Counters since the start, and what was seen since they were last read out. The default one exposes nothing.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    counts: Mutex<Counts>,
    exposed: Option<Exposed>,
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
        Self { started: Instant::now(), counts: Mutex::new(counts), exposed: None }
    }
}

impl Meter {
    /// One whose metrics can be scraped, all of them from the start on.
    pub fn exposed() -> Self {
        let meter = Self { exposed: Some(Exposed::new()), ..Self::default() };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        meter.set(Level::StartTime, now.unwrap_or_default().as_secs_f64());
        meter
    }

    /// Whose work it is.
    pub fn introduce(&self, replica: &str) {
        let labels = vec![Label::new("version", env!("CARGO_PKG_VERSION")), Label::new("replica", replica.to_owned())];
        if let Some(exposed) = &self.exposed {
            let key = Key::from_parts(Labelled::TABLE[Labelled::BuildInfo as usize].name, labels);
            exposed.recorder.register_gauge(&key, &METADATA).set(1.0);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("no holder of the counts panics")
    }

    /// Once more.
    pub fn count(&self, what: Count) {
        self.add(what, 1);
    }

    /// So many more.
    pub fn add(&self, what: Count, more: u64) {
        if let Some(exposed) = &self.exposed {
            exposed.counts[what as usize].increment(more);
        }
    }

    /// So much now; 1 for yes.
    pub fn set(&self, what: Level, now: f64) {
        if let Some(exposed) = &self.exposed {
            exposed.levels[what as usize].set(now);
        }
    }

    /// Seen once.
    pub fn see(&self, what: Spread, value: f64) {
        if let Some(exposed) = &self.exposed {
            exposed.spreads[what as usize].record(value);
        }
    }

    /// One batch is durable: its rows and bytes, how long each request waited for the lock, and how long the sync took.
    pub fn batch(&self, rows: usize, bytes: u64, waits: &[Duration], sync: Duration) {
        self.add(Count::Rows, rows as u64);
        self.add(Count::Bytes, bytes);
        self.see(Spread::BatchRows, rows as f64);
        self.see(Spread::Sync, sync.as_secs_f64());
        let mut counts = self.counts();
        counts.rows += rows as u64;
        let recent = &mut counts.recent;
        recent.rows += rows as u64;
        recent.syncs += 1;
        recent.sync_us.saturating_record(us(sync));
        for wait in waits {
            recent.wait_us.saturating_record(us(*wait));
            self.see(Spread::LockWait, wait.as_secs_f64());
        }
    }

    /// Such answers are to be expected: they are told of from the start on, as none so far.
    pub fn expect(&self, answered: &Answered<'_>) {
        if let Some(exposed) = &self.exposed {
            exposed.with_answer(answered, |_| ());
        }
    }

    /// One request was answered.
    pub fn answered(&self, answered: &Answered<'_>, took: Duration) {
        if answered.code != NONE {
            *self.counts().errors.entry(answered.code.to_string()).or_default() += 1;
        }
        if let Some(exposed) = &self.exposed {
            exposed.with_answer(answered, |series| {
                series.requests.increment(1);
                series.seconds.record(took.as_secs_f64());
            });
        }
    }

    /// Sorts in what was seen since the last time, which is kept one by one until then: due every second or so.
    pub fn upkeep(&self) {
        if let Some(exposed) = &self.exposed {
            exposed.rendering.run_upkeep();
        }
    }

    /// All metrics, in Prometheus's text format.
    pub fn render(&self) -> String {
        self.exposed.as_ref().map(|exposed| exposed.rendering.render()).unwrap_or_default()
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

    fn full() -> Answered<'static> {
        let (route, code) = (Cow::Borrowed("/append"), Cow::Borrowed("queue_full"));
        Answered { method: "POST", route, status: 503, code, outcome: "not_written" }
    }

    #[test]
    fn names_say_their_unit_and_only_counters_are_totals() {
        for described in all() {
            let (name, is_count) = (described.name, Count::TABLE.iter().any(|count| count.name == described.name));
            let is_total = is_count || name == Labelled::TABLE[Labelled::Requests as usize].name;
            assert_eq!(name.ends_with("_total"), is_total, "{name}");
            let bare = name.trim_end_matches("_total");
            for (unit, end) in [(Unit::Bytes, "_bytes"), (Unit::Seconds, "_seconds")] {
                assert_eq!(bare.ends_with(end), described.unit == unit, "{name}");
            }
            assert!(described.help.ends_with('.'), "{name}");
        }
        assert_eq!(names().collect::<std::collections::HashSet<_>>().len(), all().count());
    }

    #[test]
    fn what_is_exposed_is_what_was_counted_whenever_it_is_sorted_in() {
        let meter = Meter::exposed();
        for _ in 0..3 {
            meter.batch(8, 80, &[Duration::from_millis(1); 2], Duration::from_micros(250));
            meter.upkeep();
            meter.answered(&full(), Duration::from_millis(20));
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
            assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
        }
        assert_eq!(meter.take().errors["queue_full"], 3);
        assert_eq!(Meter::default().render(), "");
    }

    #[test]
    fn what_was_read_out_is_not_read_again_and_totals_stay() {
        let meter = Meter::default();
        let waits = [1, 2, 3, 500].map(Duration::from_millis);
        meter.batch(8, 80, &waits, Duration::from_micros(250));
        meter.batch(2, 20, &[], Duration::from_micros(250));
        meter.answered(&full(), Duration::ZERO);
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
