//! The answer to rows that were appended.

use serde::Serialize;
use utoipa::ToSchema;

use crate::fencing::FencingToken;

/// The rows are durable in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Ack, example = json!({"offset": 29, "bytes": 40, "token": 1, "replica": "r1", "waited_ms": 0, "held_ms": 1, "released": true}))]
pub struct Acknowledgement {
    /// How many rows were written; not part of the answer to a single append.
    #[serde(skip)]
    pub rows: usize,
    /// Byte offset of the first row in the CSV.
    pub offset: u64,
    /// Bytes of the rows, including line ends.
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
    /// Milliseconds from the grant until the rows were durable; with a key, until the answer was recorded.
    pub held_ms: u64,
    /// False if `skip_release` left the lock to expire.
    pub released: bool,
    /// Whether this is the recorded answer of an earlier request with the same key.
    #[serde(skip)]
    pub replayed: bool,
    /// The duration of the sync that made the rows durable; zero in a replayed answer.
    #[serde(skip)]
    pub sync: std::time::Duration,
}
