//! The settings of a run.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use hyper::header::HeaderValue;

use crate::client::Target;

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// After this many requests.
    Requests(u64),
    /// After this time.
    Duration(Duration),
}

/// Requests that hold the lock before the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// How long they hold it.
    pub length: Duration,
    /// Every Nth request does.
    pub every: NonZeroU64,
}

/// Where the CSV is read back from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyFrom {
    /// A path on this host.
    File(PathBuf),
    /// `/rows.csv` of the first replica that answers.
    Http,
}

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// At least one.
    pub targets: Vec<Target>,
    /// When it ends.
    pub amount: Amount,
    /// Concurrent requests.
    pub concurrency: usize,
    /// Requests per second, sent without waiting for earlier answers (open loop). `None`: each connection waits for an answer
    /// before it sends the next request (closed loop).
    pub rate: Option<f64>,
    /// Bytes of data in a row, at least `ROW_BYTES_MIN`.
    pub row_bytes: usize,
    /// Rows per request to `/append/batch`; `None`: one row per request to `/append`.
    pub batch: Option<u32>,
    /// Requests that sleep.
    pub sleep: Option<Sleep>,
    /// Every Nth request leaves the lock to expire.
    pub skip_release_every: Option<NonZeroU64>,
    /// Whether each request has an `Idempotency-Key`, and is retried until its outcome is known.
    pub keys: bool,
    /// The seed of the row data.
    pub seed: u64,
    /// `Bearer` and the token.
    pub authorization: Option<HeaderValue>,
    /// Where the CSV is read back from, if it is.
    pub verify: Option<VerifyFrom>,
    /// Whether latencies over time are kept, for a plot.
    pub plot: bool,
}

impl Plan {
    /// Rows per request.
    pub(super) fn rows_each(&self) -> u64 {
        self.batch.map_or(1, u64::from)
    }
}
