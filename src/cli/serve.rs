//! `rowlock serve`.

use crate::cli::{Exit, FAILED, SYNC_FAILED, WRONG_USAGE};
use crate::{
    commit,
    config::Config,
    lock,
    server::{self, ServeError},
    storage,
};

pub(super) async fn run(config: Config) -> Result<(), Exit> {
    server::serve(config).await.map_err(|e| {
        let code = match &e {
            ServeError::Access(_) | ServeError::Open(_) | ServeError::Tls(_) | ServeError::Traces(_) => WRONG_USAGE,
            ServeError::Commit(e) => open_failed(e),
            ServeError::Fatal(commit::Fatal::SyncFailed) => SYNC_FAILED,
            ServeError::Listen { .. } | ServeError::Io(_) | ServeError::CommitterGone => FAILED,
        };
        Exit::new(code, e)
    })
}

/// A setting that can't be right is wrong usage; a file that can't be used has failed.
pub(super) fn open_failed(e: &commit::OpenError) -> u8 {
    match e {
        commit::OpenError::Storage(storage::OpenError::HeaderOption(_))
        | commit::OpenError::Lock(
            lock::OpenError::Address(_) | lock::OpenError::Certificate { .. } | lock::OpenError::HalfACertificate,
        ) => WRONG_USAGE,
        commit::OpenError::Storage(_) | commit::OpenError::Lock(_) | commit::OpenError::Thread(_) => FAILED,
    }
}
