//! The answer to rows that were appended.

use serde::Serialize;
use utoipa::ToSchema;

use crate::fencing::FencingToken;

/// Proof that rows are durable, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"offset": 29, "bytes": 40, "token": 1, "replica": "r1", "waited_ms": 0, "held_ms": 1, "released": true}))]
pub struct Ack {
    /// Rows written; left out of the answer where it is always one.
    #[serde(skip)]
    pub rows: usize,
    /// Byte offset of the first row in the CSV.
    pub offset: u64,
    /// Bytes of the rows, line endings included.
    #[schema(minimum = 1)]
    pub bytes: u64,
    /// The fencing token that the rows were written under.
    #[schema(value_type = u64, minimum = 1)]
    pub token: FencingToken,
    /// The replica that wrote them.
    #[schema(value_type = String)]
    pub replica: std::sync::Arc<str>,
    /// Milliseconds from arrival to the grant of the lock.
    pub waited_ms: u64,
    /// Milliseconds from the grant to the moment the rows were durable; with a key, to that when the answer was recorded.
    pub held_ms: u64,
    /// False only where `skip_release` left the lock to expire.
    pub released: bool,
    /// Whether this is the answer that the request's key got before.
    #[serde(skip)]
    pub replayed: bool,
    /// How long the sync took that made them durable; zero in an answer that is repeated.
    #[serde(skip)]
    pub sync: std::time::Duration,
}
