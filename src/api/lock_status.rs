//! The lock's state, and the result of a forced release, as `/lock` and `rowlock lock` show them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::fencing::FencingToken;

/// The lock's holder and waiters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "lock": "redis", "state": "held", "holder": "one", "token": 7, "ttl_ms": 9100, "waiters": [{"replica": "two", "waited_ms": 1203}],
}))]
pub struct LockStatus {
    /// The lock in use.
    pub lock: LockKind,
    /// Whether the lock is held.
    pub state: LockState,
    /// The type of a foreign lock's key in Redis, such as `string` or `hash`; missing for a lock that is not foreign.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub foreign_type: Option<String>,
    /// The replica that holds the lock.
    #[schema(required)]
    pub holder: Option<String>,
    /// The holder's token; null for a foreign client.
    #[schema(required, value_type = Option<u64>)]
    pub token: Option<FencingToken>,
    /// Milliseconds until the lock expires without a renewal; null for an embedded lock, which its holder's process keeps.
    #[schema(required)]
    pub ttl_ms: Option<u64>,
    /// The replicas that wait, the next one first. A busy replica may wait before its next rows arrive. The embedded lock does not list waiters.
    pub waiters: Vec<Waiter>,
}

/// Where the lock is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// In Redis.
    Redis,
    /// In a side file of the CSV.
    Embedded,
}

/// Whether the lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockState {
    /// It is free.
    Free,
    /// A replica holds it.
    Held,
    /// A foreign client holds it.
    Foreign,
}

/// A replica that waits for the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Waiter {
    /// The name of the replica.
    pub replica: String,
    /// Milliseconds since the replica began to wait.
    pub waited_ms: u64,
}

/// What a forced release came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Forced, example = json!({"released": true, "holder": "one", "token": 8}))]
pub struct ForcedRelease {
    /// Whether the lock had a holder that lost it now.
    pub released: bool,
    /// The replica that held it.
    #[schema(required)]
    pub holder: Option<String>,
    /// The token that is recorded now. A holder of an older token can no longer write.
    #[schema(value_type = u64, minimum = 1)]
    pub token: FencingToken,
}
