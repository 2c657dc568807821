//! The lock's state, and the result of a forced release, as `/lock` and `rowlock lock` show them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::fencing::FencingToken;

/// Who has the lock, and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "lock": "redis", "state": "held", "holder": "one", "token": 7, "ttl_ms": 9100, "waiters": [{"replica": "two", "waited_ms": 1203}],
}))]
pub struct LockStatus {
    /// Which lock serves.
    pub lock: LockKind,
    /// Whether somebody has it.
    pub state: LockState,
    /// The replica that has it.
    #[schema(required)]
    pub holder: Option<String>,
    /// Its token; none for a client that is none of ours.
    #[schema(required, value_type = Option<u64>)]
    pub token: Option<FencingToken>,
    /// Milliseconds until it expires, unless it is renewed. None for an embedded lock that its holder's process keeps.
    #[schema(required)]
    pub ttl_ms: Option<u64>,
    /// In order, the next one first. One that was just busy may stand there before its next rows come. The embedded lock knows of none.
    pub waiters: Vec<Waiter>,
}

/// Where the lock lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// In Redis.
    Redis,
    /// In a file beside the CSV.
    Embedded,
}

/// Whether somebody has the lock: nobody, a replica, or a client that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockState {
    /// Nobody.
    Free,
    /// A replica.
    Held,
    /// A client that is none of ours.
    Foreign,
}

/// A replica that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Waiter {
    /// Its name.
    pub replica: String,
    /// Milliseconds since it came.
    pub waited_ms: u64,
}

/// What a forced release came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Forced, example = json!({"released": true, "holder": "one", "token": 8}))]
pub struct ForcedRelease {
    /// Whether somebody had the lock, and has it no more.
    pub released: bool,
    /// The replica that had it.
    #[schema(required)]
    pub holder: Option<String>,
    /// The token that is recorded now: whoever holds an older one writes nothing any more.
    #[schema(value_type = u64, minimum = 1)]
    pub token: FencingToken,
}
