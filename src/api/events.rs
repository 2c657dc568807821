//! What `/events` sends, and what replicas tell each other for it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{fencing::FencingToken, time::unix_ms};

/// What happened to the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The replica holds it now.
    Acquired,
    /// The replica gave it back, and nobody waited for it.
    Released,
    /// The replica gave it back, and another one has it now.
    HandedOver,
    /// The replica's time ran out, or it was taken from it.
    Lost,
    /// The replica left it to expire.
    Abandoned,
    /// The replica took it from its holder, for an admin.
    Forced,
}

/// One change of the lock, as the replica saw it that it happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LockEvent)]
pub struct LockChange {
    /// What happened.
    pub change: Change,
    /// When, in Unix milliseconds by that replica's clock.
    pub at_ms: u64,
    /// To whom.
    pub replica: String,
    /// Of the lease; after a forced release, the token that is recorded now.
    pub token: FencingToken,
    /// Milliseconds that the oldest row of the batch waited for the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Milliseconds since the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Rows written under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Whether it is, or was, held for a `sleep`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slept: bool,
    /// Who has it now, or had it before a forced release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// Milliseconds until an abandoned lock expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Changes that came before this one and were too many to be told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LockChange {
    /// Something that happened just now; details are for the caller to fill in.
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
        }
    }
}
