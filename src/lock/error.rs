//! Errors of the lock.

use std::{io, path::PathBuf};

use deadpool::managed::PoolError;
use redis::RedisError;

use crate::lock::outage::{self, Cause};

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
    /// The key's hash tag cannot be given to the keys beside it, which a cluster needs.
    #[error(
        "ROWLOCK_LOCK_KEY (--lock-key): {0} has a }} but no hash tag, so its other keys would be on other nodes of the cluster; accepted: a key without }}, or with a hash tag such as {{rows}}"
    )]
    LockKey(String),
    /// The server refuses this replica, or is no Redis, and waiting does not help.
    #[error("REDIS_CONN_STR (--redis): {0}")]
    Rejected(outage::Outage),
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
    /// One of the others, recorded by `BackendHealth`: without passwords that a server repeated.
    #[error("{0}")]
    Recorded(String),
}

impl AttemptError {
    /// Whether the backend answered.
    pub(super) fn cause(&self) -> Cause {
        self.answer().map_or(Cause::Unreachable, outage::cause_of)
    }

    /// What the backend answered, on one line.
    pub(super) fn reason(&self) -> String {
        self.answer().map_or_else(|| self.to_string(), outage::reason_of)
    }

    /// The error that Redis, or its client, reported.
    fn answer(&self) -> Option<&RedisError> {
        match self {
            Self::Redis(e) | Self::Pool(PoolError::Backend(e)) => Some(e),
            Self::Pool(_) | Self::TimedOut | Self::Unexpected(_) | Self::File(_) | Self::Recorded(_) => None,
        }
    }
}
