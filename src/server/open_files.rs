//! The process's limit of open files, and the connections that it leaves room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave free: files, connections to Redis, the listener, and connections that are refused.
const RESERVE: u64 = 128;

/// Raises the soft limit of open files to the hard limit. Returns how many connections can be open at once: `wanted`, or fewer if the
/// limit is too low, which is logged.
pub(super) fn connections_within_limit(wanted: usize) -> usize {
    let limit = raised_limit();
    let most = limit.map_or(usize::MAX, connections_within);
    if most < wanted {
        tracing::warn!(
            open_files_max = limit,
            connections_max = most,
            wanted,
            "the limit of open files is too low for ROWLOCK_MAX_CONNECTIONS: accepting fewer connections"
        );
    }
    wanted.min(most)
}

/// The limit of open files, `None` if there is none.
fn raised_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        Err(e) => {
            tracing::debug!(error = %e, "cannot raise the limit of open files");
            limit.current
        }
    }
}

/// Where the limit is very low, half of it stays for connections.
fn connections_within(limit: u64) -> usize {
    // guard: open_files_reserve: connections take no descriptor that files or Redis need
    let connections = limit.saturating_sub(RESERVE.min(limit / 2)).max(1);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_is_kept_and_connections_remain() {
        let cases = [(1024, 896), (256, 128), (255, 128), (100, 50), (2, 1), (0, 1)];
        for (limit, connections) in cases {
            assert_eq!(connections_within(limit), connections, "{limit}");
        }
    }
}
