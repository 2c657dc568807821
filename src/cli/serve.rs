//! `rowlock serve`: serves HTTP.

use crate::cli::{Exit, FAILED, SYNC_FAILED, WRONG_USAGE};
use crate::{
    commit,
    config::Config,
    server::{self, ServeError},
    storage,
};

pub(super) const EXAMPLES: &str = "\
Exit codes: 0 after SIGTERM or SIGINT; 1 failed; 2 wrong usage or a wrong setting; 74 a sync failed.

Examples:
  rowlock serve                                        rows.csv on 127.0.0.1:8080, embedded lock
  rowlock serve --redis redis://localhost --csv a.csv  one of many replicas
  rowlock serve --listen :8080                         all interfaces; needs ROWLOCK_API_TOKENS";

pub(super) async fn run(config: Config) -> Result<(), Exit> {
    server::serve(config).await.map_err(|e| {
        let code = match &e {
            ServeError::Access(_)
            | ServeError::Open(_)
            | ServeError::Resolve { .. }
            | ServeError::Tls(_)
            | ServeError::Traces(_) => WRONG_USAGE,
            ServeError::Commit(e) => open_error_code(e),
            ServeError::Fatal(commit::Fatal::SyncFailed) => SYNC_FAILED,
            ServeError::Fatal(commit::Fatal::StorageStuck | commit::Fatal::Panicked)
            | ServeError::Listen { .. }
            | ServeError::Io(_) => FAILED,
        };
        Exit::new(code, e)
    })
}

/// The exit code: a wrong setting is wrong usage; a file or lock that cannot be used is a failure.
pub(super) fn open_error_code(e: &commit::OpenError) -> u8 {
    match e {
        commit::OpenError::Storage(storage::OpenError::HeaderOption(_)) | commit::OpenError::Lock(_) => WRONG_USAGE,
        commit::OpenError::Storage(_) | commit::OpenError::Thread(_) => FAILED,
    }
}
