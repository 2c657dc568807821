//! The registry of all metrics that Prometheus can scrape, with their names, units and help texts.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use ::metrics::{
    Counter as CounterHandle, Gauge as GaugeHandle, Histogram as HistogramHandle, Key, KeyName, Label, Level, Metadata,
    Recorder, Unit,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Whether values of several replicas can be added up, as the help text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Own,
    /// Every replica of one CSV reports the same value.
    Shared,
}

/// The description of one metric.
#[derive(Debug)]
struct Description {
    name: &'static str,
    unit: Unit,
    scope: Scope,
    help: &'static str,
}

impl Description {
    fn help(&self) -> String {
        let scope = match self.scope {
            Scope::Own => "This replica's own.",
            Scope::Shared => "Shared: the same from every replica, not to be added up.",
        };
        format!("{} {scope}", self.help)
    }
}

macro_rules! table {
    ($($(#[$doc:meta])* $vis:vis $kind:ident { $($variant:ident $name:literal $unit:ident $scope:ident $help:literal)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $kind { $(#[doc = $help] $variant),+ }

        impl $kind {
            const TABLE: &[Description] =
                &[$(Description { name: $name, unit: Unit::$unit, scope: Scope::$scope, help: $help }),+];
        }
    )+};
}

// All metrics.
table! {
    /// Metrics that only grow.
    pub Counter {
        Rows "rowlock_appended_rows_total" Count Own "Rows written."
        Bytes "rowlock_appended_bytes_total" Bytes Own "Bytes of the rows written, line endings included."
        Replays "rowlock_replays_total" Count Own "Requests whose Idempotency-Key was known, answered as the first time."
        BatchRetries "rowlock_batch_retries_total" Count Own "Batches that were certainly not written, and put back into the queue for another try under a new lease."
        FencedWrites "rowlock_fenced_writes_total" Count Own "Batches that the file refused, because a newer fencing token is recorded there."
        Acquired "rowlock_lock_acquired_total" Count Own "Grants of the lock."
        HandedOver "rowlock_lock_handed_over_total" Count Own "Releases that handed the lock on at once, to a waiting replica or back to this one. Always 0 with the embedded lock."
        Lost "rowlock_lock_lost_total" Count Own "Leases that expired or were taken away before they were released."
        Abandoned "rowlock_lock_abandoned_total" Count Own "Leases left to expire by skip_release."
        Forced "rowlock_lock_forced_releases_total" Count Own "Forced releases that this replica carried out, whichever replica held the lock."
        Renewals "rowlock_lock_renewals_total" Count Own "Successful renewals of a lease in Redis."
        RenewalFailures "rowlock_lock_renewal_failures_total" Count Own "Renewals of a lease in Redis that failed or found the lease lost."
        ConnectionsOpened "rowlock_redis_connections_opened_total" Count Own "Connections to Redis opened."
        ConnectionsDiscarded "rowlock_redis_connections_discarded_total" Count Own "Connections to Redis discarded after a failed call."
        Checkpoints "rowlock_checkpoints_total" Count Own "Checkpoints written."
        SyncFailures "rowlock_sync_failures_total" Count Own "Writes or syncs that failed half way. The process ends at once; the replica that recovers counts rowlock_recovery_failed_syncs_total."
        RecoveredFailedSyncs "rowlock_recovery_failed_syncs_total" Count Own "Recoveries from a failed sync of this or another replica: everything in doubt was written again."
        CompletedBatches "rowlock_recovery_completed_batches_total" Count Own "Batches that a killed replica had partly written to the CSV, completed from the journal."
        Rebuilds "rowlock_recovery_rebuilds_total" Count Own "Rebuilds of the CSV's tail from the journal, after a power cut or a failed sync."
        QuarantinedLines "rowlock_quarantined_lines_total" Count Own "Incomplete last lines moved from the CSV to its .torn file."
        UnlockedAppends "rowlock_unlocked_appends_total" Count Own "Appends by other programs without the lock, at the moment of a batch."
        QuarantinedBytes "rowlock_quarantined_bytes_total" Bytes Own "Bytes copied from the CSV to its .torn file before they were removed or rewritten."
    }
    /// Metrics that go up and down.
    pub Gauge {
        StartTime "process_start_time_seconds" Seconds Own "When the process started, in Unix time."
        Ready "rowlock_ready" Count Own "1 while the replica accepts rows, as /readyz reports."
        QueueRows "rowlock_queue_rows" Count Own "Rows in the queue."
        QueueRowsLimit "rowlock_queue_rows_limit" Count Own "The most rows that the queue holds (ROWLOCK_QUEUE_ROWS)."
        QueueBytes "rowlock_queue_bytes" Bytes Own "Memory of the rows in the queue."
        QueueBytesLimit "rowlock_queue_limit_bytes" Bytes Own "The most memory that rows in the queue may take (ROWLOCK_QUEUE_BYTES)."
        QueueAge "rowlock_queue_oldest_age_seconds" Seconds Own "How long the oldest row has been in the queue."
        StorageStuck "rowlock_storage_stuck_seconds" Seconds Own "How long the oldest call to the volume has not returned, once that is more than a second; 0 while the volume answers."
        LockBackendUp "rowlock_lock_backend_up" Count Own "1 if Redis, or the file of the embedded lock, answered the last call."
        LockHeld "rowlock_lock_held" Count Own "1 while this replica holds the lock. The sum over all replicas is at most 1, except while a replica has not noticed yet that it lost the lock."
        LockHasHolder "rowlock_lock_has_holder" Count Shared "1 while anybody holds the lock, other Redis clients included; as of the last scrape that could read it."
        LockHolderToken "rowlock_lock_holder_token" Count Shared "The token of the lock's holder, as of the last scrape that could read it; 0 without a holder, and for other Redis clients."
        LockWaiters "rowlock_lock_waiters" Count Shared "Replicas that wait for the lock, as of the last scrape that could read it."
        EventSubscribers "rowlock_event_subscribers" Count Own "Subscribers of /events."
        FileReadable "rowlock_file_readable" Count Own "1 if the file could be read for this scrape; if not, its values are those of an earlier scrape."
        FileBytes "rowlock_file_bytes" Bytes Shared "Size of the CSV up to its last committed row."
        JournalBytes "rowlock_journal_bytes" Bytes Shared "Size of the journal's file."
        JournalLiveBytes "rowlock_journal_live_bytes" Bytes Shared "The part of the journal that waits for a checkpoint."
        FreeBytes "rowlock_volume_free_bytes" Bytes Shared "Space on the volume that is free for users other than root."
        VolumeBytes "rowlock_volume_size_bytes" Bytes Shared "Size of the volume."
    }
    /// Distributions.
    pub Histogram {
        BatchRows "rowlock_batch_rows" Count Own "Rows that shared one sync."
        LockWait "rowlock_lock_wait_seconds" Seconds Own "From the arrival of a written request to the grant of the lock."
        LockHold "rowlock_lock_hold_seconds" Seconds Own "From the grant of the lock to its release."
        Sync "rowlock_sync_seconds" Seconds Own "One sync of the journal."
    }
    /// Metrics with labels.
    Labelled {
        Requests "rowlock_http_requests_total" Count Own "Answers by method, route, status, code of the refusal, and outcome of the rows."
        RequestSeconds "rowlock_http_request_duration_seconds" Seconds Own "From the headers of a request to the head of its answer."
        BuildInfo "rowlock_build_info" Count Own "1, with the program's version and the replica's name."
        VolumeInfo "rowlock_volume_info" Count Own "1, with the volume's file system type, its kind (local or network), and the version of its network protocol, or none."
    }
}

/// The names of all metrics.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|description| description.name)
}

fn all() -> impl Iterator<Item = &'static Description> {
    [Counter::TABLE, Gauge::TABLE, Histogram::TABLE, Labelled::TABLE].into_iter().flatten()
}

const SYNC_BUCKETS: [f64; 14] =
    [50e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0];
const WAIT_BUCKETS: [f64; 18] =
    [100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const ROWS_BUCKETS: [f64; 9] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];

/// The label value for no code and no outcome: Prometheus treats an empty label as a missing one.
pub const NONE: &str = "none";

/// The labels of an answered request. Each of them has few possible values, so that the series are few.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels<'a> {
    /// In capitals.
    pub method: &'static str,
    /// As written in the router, not as sent by the client.
    pub route: Cow<'a, str>,
    /// The HTTP status.
    pub status: u16,
    /// The code of a refusal, else `NONE`.
    pub code: Cow<'static, str>,
    /// What happened to the rows, or `NONE`.
    pub outcome: &'static str,
}

impl RequestLabels<'_> {
    fn all(&self) -> Vec<Label> {
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

    fn into_owned(self) -> RequestLabels<'static> {
        RequestLabels { route: Cow::Owned(self.route.into_owned()), ..self }
    }
}

/// The metrics of requests with the same labels.
#[derive(Debug)]
struct Series {
    requests: CounterHandle,
    seconds: HistogramHandle,
}

/// All metrics, registered once, so that counting is an atomic addition.
pub(super) struct Registry {
    recorder: PrometheusRecorder,
    rendering: PrometheusHandle,
    counters: Vec<CounterHandle>,
    gauges: Vec<GaugeHandle>,
    histograms: Vec<HistogramHandle>,
    requests: RwLock<HashMap<RequestLabels<'static>, Series>>,
}

const METADATA: Metadata<'static> = Metadata::new("rowlock", Level::INFO, None);

impl Registry {
    pub(super) fn new() -> Self {
        let recorder = recorder();
        let key = |description: &Description| Key::from_name(description.name);
        let gauge = |description: &Description| {
            let gauge = recorder.register_gauge(&key(description), &METADATA);
            // Unknown until the first scrape reads it: an alert must not take it for 0.
            gauge.set(if description.scope == Scope::Shared { f64::NAN } else { 0.0 });
            gauge
        };
        let counter = |description| recorder.register_counter(&key(description), &METADATA);
        let histogram = |description| recorder.register_histogram(&key(description), &METADATA);
        Self {
            counters: Counter::TABLE.iter().map(counter).collect(),
            gauges: Gauge::TABLE.iter().map(gauge).collect(),
            histograms: Histogram::TABLE.iter().map(histogram).collect(),
            rendering: recorder.handle(),
            requests: RwLock::default(),
            recorder,
        }
    }

    pub(super) fn set_build_info(&self, replica: &str) {
        let labels = vec![Label::new("version", env!("CARGO_PKG_VERSION")), Label::new("replica", replica.to_owned())];
        self.set_info(Labelled::BuildInfo, labels);
    }

    pub(super) fn set_volume_info(&self, fs_type: &str, kind: &'static str, version: &str) {
        let labels = vec![
            Label::new("type", fs_type.to_owned()),
            Label::new("kind", kind),
            Label::new("version", version.to_owned()),
        ];
        self.set_info(Labelled::VolumeInfo, labels);
    }

    /// A gauge that is always 1, for the sake of its labels.
    fn set_info(&self, metric: Labelled, labels: Vec<Label>) {
        let key = Key::from_parts(Labelled::TABLE[metric as usize].name, labels);
        self.recorder.register_gauge(&key, &METADATA).set(1.0);
    }

    pub(super) fn add(&self, counter: Counter, more: u64) {
        self.counters[counter as usize].increment(more);
    }

    pub(super) fn set(&self, gauge: Gauge, value: f64) {
        self.gauges[gauge as usize].set(value);
    }

    pub(super) fn observe(&self, histogram: Histogram, value: f64) {
        self.histograms[histogram as usize].record(value);
    }

    /// Registers the metrics of such requests, with 0 requests so far.
    pub(super) fn declare(&self, labels: &RequestLabels<'_>) {
        self.with_series(labels, |_| ());
    }

    pub(super) fn count_request(&self, labels: &RequestLabels<'_>, took: Duration) {
        self.with_series(labels, |series| {
            series.requests.increment(1);
            series.seconds.record(took.as_secs_f64());
        });
    }

    /// Calls `act` with the metrics of these labels, registered on first use.
    fn with_series(&self, labels: &RequestLabels<'_>, act: impl FnOnce(&Series)) {
        {
            let requests = self.requests.read().unwrap_or_else(PoisonError::into_inner);
            // The shorter lifetime of the keys lets borrowed labels be looked up.
            let known: &HashMap<RequestLabels<'_>, Series> = &requests;
            if let Some(series) = known.get(labels) {
                return act(series);
            }
        }
        let key = |metric: Labelled, labels| Key::from_parts(Labelled::TABLE[metric as usize].name, labels);
        let series = Series {
            requests: self.recorder.register_counter(&key(Labelled::Requests, labels.all()), &METADATA),
            seconds: self.recorder.register_histogram(&key(Labelled::RequestSeconds, labels.operation()), &METADATA),
        };
        act(&series);
        self.requests.write().unwrap_or_else(PoisonError::into_inner).insert(labels.clone().into_owned(), series);
    }

    /// Sorts recorded values into the buckets of the histograms; they take memory until then.
    pub(super) fn upkeep(&self) {
        self.rendering.run_upkeep();
    }

    pub(super) fn render(&self) -> String {
        self.rendering.render()
    }
}

fn recorder() -> PrometheusRecorder {
    let buckets = |description: &Description| match description.unit {
        Unit::Count => &ROWS_BUCKETS[..],
        _ if description.name == Histogram::TABLE[Histogram::Sync as usize].name => &SYNC_BUCKETS,
        _ => &WAIT_BUCKETS,
    };
    let mut builder = PrometheusBuilder::new();
    let seconds = &Labelled::TABLE[Labelled::RequestSeconds as usize];
    for description in Histogram::TABLE.iter().chain([seconds]) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(description.name.to_owned()), buckets(description))
            .expect("there are buckets");
    }
    let recorder = builder.build_recorder();
    for description in all() {
        // The recorder keeps one description for each name, whatever the kind of the metric.
        let (name, help) = (KeyName::from_const_str(description.name), description.help().into());
        recorder.describe_gauge(name, Some(description.unit), help);
    }
    recorder
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_their_unit_and_only_counters_in_total() {
        for description in all() {
            let name = description.name;
            let is_counter = Counter::TABLE.iter().any(|counter| counter.name == name);
            let is_total = is_counter || name == Labelled::TABLE[Labelled::Requests as usize].name;
            assert_eq!(name.ends_with("_total"), is_total, "{name}");
            let bare = name.trim_end_matches("_total");
            for (unit, end) in [(Unit::Bytes, "_bytes"), (Unit::Seconds, "_seconds")] {
                assert_eq!(bare.ends_with(end), description.unit == unit, "{name}");
            }
            assert!(description.help.ends_with('.'), "{name}");
        }
        assert_eq!(names().collect::<std::collections::HashSet<_>>().len(), all().count());
    }
}
