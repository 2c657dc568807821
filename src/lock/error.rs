//! Errors of the lock.

use std::{io, path::PathBuf};

use deadpool::managed::PoolError;
use redis::RedisError;

/// Why a lock could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address has a syntax error, or names something unsupported. The text never repeats the address, which may hold a password.
    #[error(
        "REDIS_CONN_STR (--redis): {0}; accepted: redis://[user:password@]host:port/db, rediss://… (TLS), redis+unix:///path/to/socket, redis-sentinel://[user:password@]host:port,host:port/db#master, redis-cluster://[user:password@]host:port,host:port"
    )]
    Address(&'static str),
    /// A file for TLS cannot be read.
    #[error("{variable}: cannot read {}: {source}; accepted: a file in PEM", path.display())]
    Certificate {
        /// The setting.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("ROWLOCK_REDIS_CERT (--redis-cert) and ROWLOCK_REDIS_KEY (--redis-key) go together: set both or none")]
    HalfACertificate,
    /// The embedded lock's file cannot be opened.
    #[error("cannot open the lock file {path}: {source}")]
    File {
        /// `<csv>.lock`.
        path: String,
        /// The system's error.
        source: io::Error,
    },
}

/// Why one call to the backend failed. The caller tries again, so the only cost is time.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no connection: {0}")]
    Pool(#[from] PoolError<RedisError>),
    #[error("no answer in time")]
    TimedOut,
    #[error("{0}")]
    Unexpected(&'static str),
    #[error("the lock file: {0}")]
    File(#[from] io::Error),
}
