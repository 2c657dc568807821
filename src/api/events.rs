//! The data of `/events`, and what replicas publish for each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::volume::Volume;
use crate::{fencing::FencingToken, time::unix_ms};

/// What happened to the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The replica holds the lock now.
    Acquired,
    /// The replica released the lock, and no replica waited.
    Released,
    /// The replica released the lock, and another replica holds it now.
    HandedOver,
    /// The replica's lease expired, or the lock was taken from it.
    Lost,
    /// The replica left the lock to expire.
    Abandoned,
    /// The replica took the lock from its holder, on request of an admin.
    Forced,
}

/// One change of the lock, reported by the replica that it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LockEvent)]
pub struct LockChange {
    /// What happened.
    pub change: Change,
    /// When it happened, in Unix milliseconds by the clock of the replica.
    pub at_ms: u64,
    /// The replica that the change concerns.
    pub replica: String,
    /// The token of the lease; after a forced release, the newly recorded token.
    pub token: FencingToken,
    /// Milliseconds that the oldest row of the batch waited for the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Milliseconds since the grant of the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Rows written under this grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Whether the lock is, or was, held for a `sleep`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slept: bool,
    /// The replica that holds the lock now, or held it before a forced release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// Milliseconds until an abandoned lock expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How many earlier changes were dropped because there were too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Milliseconds since the change, by the clock of the replica, if it was sent later than at once: a new subscriber is sent the
    /// changes of the last minute that are known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub age_ms: u64,
}

/// Leaves a zero out of JSON.
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LockChange {
    /// A change that happens now. The caller fills in the details.
    pub(crate) fn now(change: Change, replica: &str, token: FencingToken) -> Self {
        Self {
            change,
            at_ms: unix_ms(),
            replica: replica.to_owned(),
            token,
            waited_ms: None,
            held_ms: None,
            rows: None,
            slept: false,
            other: None,
            ttl_ms: None,
            skipped: 0,
            age_ms: 0,
        }
    }
}

/// All replicas, and the file.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = StatsEvent)]
pub struct Stats {
    /// Sorted by name.
    pub replicas: Vec<ReplicaStats>,
    /// File, journal and volume; null if they cannot be read.
    pub file: Option<Volume>,
}

/// One replica.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReplicaStats {
    /// The name of the replica.
    pub replica: String,
    /// Milliseconds since its last report.
    pub seen_ms_ago: u64,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// The report of one replica, once a second.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Figures {
    pub(crate) state: ReplicaState,
    /// The version of the program.
    pub(crate) version: String,
    /// `redis` or `embedded`.
    pub(crate) lock: String,
    /// Whether the lock answered the last call.
    pub(crate) lock_in_reach: bool,
    /// Rows in the queue.
    pub(crate) queue_rows: usize,
    /// Memory of the rows in the queue.
    pub(crate) queue_bytes: usize,
    /// How long the oldest row in the queue has waited, in milliseconds.
    pub(crate) queue_age_ms: u64,
    #[serde(flatten)]
    pub(crate) work: Work,
}

/// Whether the replica accepts rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplicaState {
    Ready,
    Draining,
}

/// The work since the previous report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Work {
    /// Seconds since this replica started.
    pub uptime_s: u64,
    /// Rows written since the start.
    pub rows: u64,
    /// Rows written per second.
    pub rows_per_s: f64,
    /// Rows per sync; null if there was no sync.
    pub rows_per_sync: Option<f64>,
    /// From arrival to the grant of the lock.
    pub wait_ms: Quantiles,
    /// One sync of the journal.
    pub sync_ms: Quantiles,
    /// Refusals by their code, since the start.
    pub errors: BTreeMap<String, u64>,
}

/// Median and 99th percentile in milliseconds; null without values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Quantiles {
    /// The median.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
}
