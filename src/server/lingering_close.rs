//! Closes a connection so that its client can read the last answer, after RFC 9112, section 9.6.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

/// How long the last bytes may take to be handed to the system.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may send nothing before its connection is closed, while the replica serves and while it drains.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const SILENCE_MAX_IN_DRAIN: Duration = Duration::from_secs(1);
/// The slowest sender that is waited for.
const BYTES_PER_SEC_MIN: u64 = 1_000_000;
const TIME_MIN: Duration = Duration::from_secs(10);
/// As much as hyper reads at first, so that a closing connection takes no more memory than an open one.
const PIECE_BYTES: usize = 8 << 10;

/// How much is discarded, and for how long, before a connection is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct LingerBounds {
    bytes_max: u64,
    time_max: Duration,
}

impl LingerBounds {
    /// Twice the largest accepted body, since most bodies that are too large are not much larger. The time lets a sender of 1 MB/s
    /// finish the largest accepted body.
    pub(super) fn for_bodies(body_bytes_max: usize) -> Self {
        let bytes = body_bytes_max as u64;
        Self {
            bytes_max: bytes.saturating_mul(2),
            time_max: Duration::from_secs(bytes.div_ceil(BYTES_PER_SEC_MIN)).max(TIME_MIN),
        }
    }
}

/// Ends the own side, then discards what still arrives until the client has closed its side. Closing a socket with unread bytes, or one
/// that bytes arrive for later, resets the connection, and a client that is still sending loses the answer.
pub(super) async fn close(
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    bounds: LingerBounds,
    draining: &watch::Receiver<bool>,
) {
    if !matches!(timeout(SHUTDOWN_TIMEOUT, connection.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let (deadline, mut left) = (Instant::now() + bounds.time_max, bounds.bytes_max);
    let mut piece = vec![0; PIECE_BYTES];
    // guard: linger_bytes: an endless upload is cut off
    while left > 0 {
        let silence_max = if *draining.borrow() { SILENCE_MAX_IN_DRAIN } else { SILENCE_MAX };
        let until = deadline.min(Instant::now() + silence_max);
        match timeout_at(until, connection.read(&mut piece)).await {
            Ok(Ok(bytes @ 1..)) => left = left.saturating_sub(bytes as u64),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_cover_the_largest_body_at_one_megabyte_a_second() {
        let bounds = LingerBounds::for_bodies(64 << 20);
        assert_eq!((bounds.bytes_max, bounds.time_max), (128 << 20, Duration::from_secs(68)));
        assert_eq!(LingerBounds::for_bodies(1).time_max, TIME_MIN);
    }
}
