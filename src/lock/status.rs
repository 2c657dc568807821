//! What there is to see of the lock.

use serde::Serialize;

use crate::record::FencingToken;

/// Who has the lock, and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `redis` or `embedded`.
    pub lock: &'static str,
    /// Whether somebody has it.
    pub state: State,
    /// The replica that has it.
    pub holder: Option<String>,
    /// Its token; none for a grant that is not collected yet.
    pub token: Option<FencingToken>,
    /// Milliseconds until it expires, unless it is renewed. None for an embedded lock that its holder's process keeps.
    pub ttl_ms: Option<u64>,
    /// In order, the next one first. The embedded lock knows of none.
    pub waiters: Vec<Waiter>,
}

/// Whether somebody has the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody.
    Free,
    /// A replica.
    Held,
    /// A client that is none of ours.
    Foreign,
}

/// A replica that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiter {
    /// Its name.
    pub replica: String,
    /// Milliseconds since it came.
    pub waited_ms: u64,
}
